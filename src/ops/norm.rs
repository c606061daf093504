//! LayerNorm and RMSNorm with weights, over the last dimension, as frozen networks use them: forward only.
//!
//! ```text
//! y = (x − mean x)/√(mean (x − mean x)² + ε) ⊙ w + b   |   y = x/√(mean x² + ε) ⊙ w
//! x [batch, …, D], w [D], b [D];  y as x
//! ```
//! All are f32; on CUDA y is bf16 where the op is `narrow`, for the layers that follow a residual stream in f32. Saves
//! nothing and has no gradient.

use super::{Case, Op, Save, Slot, cuda, expect_constant, expect_f32, expect_inputs, random};
use crate::engine::{DType, Device, Tensor, simd};
use crate::{Error, Result};
use rayon::prelude::*;

const NAME: &str = "norm";

/// The op: inputs x, w and, unless it is `rms`, b.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    /// RMSNorm, which has neither mean nor b.
    pub rms: bool,
    /// Added to the mean square.
    pub eps: f32,
    /// Is y bf16 on a CUDA device? Nothing to the CPU, which computes in f32 alone.
    pub narrow: bool,
}

impl Norm {
    /// [`Op::forward`]'s one output.
    pub fn apply(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        expect_inputs(NAME, inputs, if self.rms { 2 } else { 3 })?;
        expect_f32(NAME, inputs)?;
        let (x, w, b) = (inputs[0], inputs[1], inputs.get(2));
        let d = x.width();
        if d == 0 {
            return Err(Error::shape(NAME, format!("x has shape {:?}, wanted rows of values", x.shape())));
        }
        w.expect(NAME, "w", &[d])?;
        b.map_or(Ok(()), |b| b.expect(NAME, "b", &[d]))?;
        let gpu = x.device().gpu();
        let dtype = if self.narrow && gpu.is_some() { DType::Bf16 } else { DType::F32 };
        let mut y = Tensor::empty_as(x.device(), x.shape(), dtype)?;
        if let Some(gpu) = gpu {
            let rows = x.len() / d;
            let name = if dtype == DType::Bf16 { "norm_fwd_mixed" } else { "norm_fwd_f32" };
            gpu.launch(&*gpu.kernel("norm.cu", name)?, [rows.div_ceil(8), 1, 1], cuda::THREADS)
                .read(x)
                .read(w)
                .read_or_null(b.copied())
                .write(&mut y)
                .value(cuda::int(NAME, rows)?)
                .value(cuda::int(NAME, d)?)
                .value(self.eps)
                .run()?;
            return Ok(y);
        }
        let (w, b) = (w.f32(), b.map(|b| b.f32()));
        y.f32_mut().par_chunks_mut(d).zip(x.f32().par_chunks(d)).for_each(|(y, x)| {
            let mean = if self.rms { 0.0 } else { simd::sum(x) / d as f32 };
            let by = 1.0 / (simd::sum_sq_dev(x, mean) / d as f32 + self.eps).sqrt();
            y.iter_mut().zip(x).zip(w).for_each(|((y, x), w)| *y = (x - mean) * by * w);
            if let Some(b) = b {
                simd::axpy(1.0, b, y);
            }
        });
        Ok(y)
    }
}

impl Op for Norm {
    fn name(&self) -> &'static str {
        NAME
    }
    fn cuda(&self) -> bool {
        true
    }
    fn forward(&self, inputs: &[&Tensor], save: &mut Save) -> Result<Vec<Tensor>> {
        expect_constant(NAME, save, &[(0, "x"), (1, "w"), (2, "b")])?;
        Ok(vec![self.apply(inputs)?])
    }
    fn backward(&self, _: &[Tensor], _: &[Option<&Tensor>], _: &mut [Option<Slot>]) -> Result<()> {
        // Forward refused every input that wants a gradient.
        Ok(())
    }
}

/// Both, in rows of any width; T5's width.
pub fn cases(device: &Device) -> Vec<Case> {
    let case = |[b, t, d]: [usize; 3], rms: bool, narrow: bool| {
        let shapes: [&[usize]; 3] = [&[b, t, d], &[d], &[d]];
        let shapes = shapes.iter().take(if rms { 2 } else { 3 }).enumerate();
        let inputs: Vec<Tensor> = shapes.map(|(i, s)| random(device, s, 80 + i as u64, 1.3)).collect();
        let all: Vec<usize> = (0..inputs.len()).collect();
        let form = [(rms, "_rms"), (narrow, "_mixed")];
        let form: String = form.iter().filter(|f| f.0).map(|f| f.1).collect();
        Case::new(format!("norm{form}/{b}x{t}x{d}"), Norm { rms, eps: 1e-5, narrow }, inputs)
            .constant(&all)
            .chain(d)
            .cost(8.0 * (b * t * d) as f64, b * t * d)
            .bench_only()
    };
    vec![
        case([2, 5, 24], false, false),
        case([2, 5, 37], true, false),
        case([2, 77, 768], false, true),
        case([1, 20, 4096], true, true),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::given;
    use super::*;

    #[test]
    fn rows_are_normed_and_weighted() {
        let cpu = Device::cpu();
        let x = given(&cpu, &[1, 2, 4], &[1.0, 2.0, 3.0, 6.0, -1.0, 1.0, -1.0, 1.0]);
        let (w, b) = (given(&cpu, &[4], &[1.0, 2.0, 1.0, 0.5]), given(&cpu, &[4], &[0.0, 1.0, 0.0, 0.0]));
        let layer = Norm { rms: false, eps: 0.0, narrow: false };
        let deviation = 3.5f32.sqrt();
        let want = [-2.0 / deviation, 1.0 - 2.0 / deviation, 0.0, 1.5 / deviation, -1.0, 3.0, -1.0, 0.5];
        let near = |got: Tensor, want: &[f32]| {
            assert!(got.f32().iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-6), "{got:?}");
        };
        near(layer.apply(&[&x, &w, &b]).unwrap(), &want);
        let rms = Norm { rms: true, eps: 1.0, narrow: false };
        let (r, s) = (13.5f32.sqrt(), 2f32.sqrt());
        near(
            rms.apply(&[&x, &w]).unwrap(),
            &[1.0 / r, 4.0 / r, 3.0 / r, 3.0 / r, -1.0 / s, 2.0 / s, -1.0 / s, 0.5 / s],
        );
        assert!(rms.apply(&[&x, &w, &b]).unwrap_err().to_string().contains("3 inputs were given, 2"));
        assert!(layer.apply(&[&x, &w, &x]).unwrap_err().to_string().contains("b has shape [1, 2, 4]"));
        assert!(rms.forward(&[&x, &w], &mut Save::new(&[true])).is_err());
    }
}
