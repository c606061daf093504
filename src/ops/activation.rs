//! The text encoders' activations, elementwise, any shape with a batch first: forward only.
//!
//! ```text
//! y = x·σ(1.702·x)  (CLIP's quick GELU)   |   y = GELU(x) ⊙ g  (T5's gated GELU, the tanh form)
//! ```
//! Saves nothing and has no gradient.

use super::{Case, Op, Save, Slot, cuda, expect_constant, expect_dtypes, expect_inputs, gelu, random};
use crate::Result;
use crate::engine::{Device, Tensor, simd};
use rayon::prelude::*;

const NAME: &str = "activation";
const SOURCE: &str = "activation.cu";
/// Elements per task.
const PIECE: usize = 1 << 14;

/// The op.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// Input x.
    QuickGelu,
    /// Inputs x and g, of one shape.
    GatedGelu,
}
use Activation::{GatedGelu, QuickGelu};

impl Activation {
    /// [`Op::forward`]'s one output.
    pub fn apply(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        expect_inputs(NAME, inputs, if *self == QuickGelu { 1 } else { 2 })?;
        let x = inputs[0];
        inputs.get(1).map_or(Ok(()), |g| g.expect(NAME, "g", x.shape()))?;
        expect_dtypes(NAME, x.dtype(), inputs)?;
        let mut y = Tensor::empty_as(x.device(), x.shape(), x.dtype())?;
        match (x.device().gpu(), self) {
            (Some(gpu), QuickGelu) => cuda::map(gpu, SOURCE, "activation_fwd_quick", x, &mut y)?,
            (Some(gpu), GatedGelu) => {
                let kernel = cuda::kernel(gpu, SOURCE, "activation_fwd_gated", x.dtype())?;
                let blocks = cuda::blocks(gpu, x.len() / x.dtype().per_16_bytes() + 1);
                gpu.launch(&kernel, [blocks, 1, 1], cuda::THREADS)
                    .read(x)
                    .read(inputs[1])
                    .write(&mut y)
                    .value(cuda::long(x.len()))
                    .run()?;
            }
            (None, QuickGelu) => {
                let pieces = y.f32_mut().par_chunks_mut(PIECE).zip(x.f32().par_chunks(PIECE));
                pieces.for_each(|(y, x)| {
                    y.iter_mut().zip(x).for_each(|(y, &x)| *y = x / (1.0 + simd::exp(-1.702 * x)));
                });
            }
            (None, GatedGelu) => {
                gelu::forward(x.f32(), y.f32_mut());
                let pieces = y.f32_mut().par_chunks_mut(PIECE).zip(inputs[1].f32().par_chunks(PIECE));
                pieces.for_each(|(y, g)| y.iter_mut().zip(g).for_each(|(y, g)| *y *= g));
            }
        }
        Ok(y)
    }
}

impl Op for Activation {
    fn name(&self) -> &'static str {
        NAME
    }
    fn cuda(&self) -> bool {
        true
    }
    fn forward(&self, inputs: &[&Tensor], save: &mut Save) -> Result<Vec<Tensor>> {
        expect_constant(NAME, save, &[(0, "x"), (1, "g")])?;
        Ok(vec![self.apply(inputs)?])
    }
    fn backward(&self, _: &[Tensor], _: &[Option<&Tensor>], _: &mut [Option<Slot>]) -> Result<()> {
        // Forward refused every input that wants a gradient.
        Ok(())
    }
}

/// Both, at an odd size and at a large one.
pub fn cases(device: &Device) -> Vec<Case> {
    let case = |op: Activation, shape: &[usize]| {
        let (n, gated) = (shape.iter().product(), op == GatedGelu);
        let inputs =
            (0..1 + u64::from(gated)).map(|i| random(device, shape, 90 + i, 1.5)).collect::<Vec<_>>();
        let all: Vec<usize> = (0..inputs.len()).collect();
        let name = if gated { "gated_gelu" } else { "quick_gelu" };
        Case::new(format!("{name}/{n}"), op, inputs)
            .constant(&all)
            .half(&all)
            .cost(15.0 * n as f64, n)
            .bench_only()
    };
    [QuickGelu, GatedGelu]
        .into_iter()
        .flat_map(|op| [&[3, 5, 7][..], &[2, 77, 768]].map(|s| case(op, s)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::given;
    use super::*;

    #[test]
    fn values_agree_with_f64() {
        let cpu = Device::cpu();
        let x: Vec<f32> = (-800..800).map(|i| i as f32 * 0.125).collect();
        let g: Vec<f32> = (0..x.len()).map(|i| (i % 7) as f32 - 3.0).collect();
        let [tx, tg] = [&x, &g].map(|v| given(&cpu, &[1, x.len()], v));
        let quick = QuickGelu.apply(&[&tx]).unwrap();
        let gated = GatedGelu.apply(&[&tx, &tg]).unwrap();
        for (i, (&x, &g)) in x.iter().zip(&g).enumerate() {
            let (x, g) = (f64::from(x), f64::from(g));
            let want = x / (1.0 + (-1.702 * x).exp());
            assert!((f64::from(quick.f32()[i]) - want).abs() <= 1e-6 * x.abs(), "quick_gelu({x})");
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            let want = 0.5 * x * (1.0 + inner.tanh()) * g;
            assert!((f64::from(gated.f32()[i]) - want).abs() <= 4e-6 * x.abs(), "gated_gelu({x}, {g})");
        }
        assert!(GatedGelu.apply(&[&tx]).unwrap_err().to_string().contains("1 inputs were given, 2"));
        assert!(QuickGelu.forward(&[&tx], &mut Save::new(&[true])).is_err());
    }
}
