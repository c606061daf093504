//! Group normalisation over planes, as frozen networks use it: forward only.
//!
//! ```text
//! y[b,c] = f( (x[b,c] − μ)/√(σ² + ε)·w[c] + bias[c] )     μ, σ² over all positions of the channels of c's group
//! x [B, C, H, W], w [C], bias [C];   y as x
//! ```
//! Groups are neighbouring channels, so a group of a sample is one run of values; ε = 1e-6. f is the identity or SiLU.
//! Saves nothing and has no gradient. Sums are f64 (on the CPU those of 4096 values in f32), in a fixed order.

use super::{Case, Op, Save, Slot, cuda, dims4, expect_constant, expect_f32, expect_inputs, random};
use crate::engine::cuda::Gpu;
use crate::engine::{Device, Tensor, simd};
use crate::{Error, Result};
use rayon::prelude::*;

const NAME: &str = "group_norm";
const EPS: f64 = 1e-6;
/// Values that are summed, or made, at a time.
const PIECE: usize = 4096;

/// The op: inputs x, w and bias; output y.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupNorm {
    /// How many groups the channels are.
    pub groups: usize,
    /// Whether f is SiLU.
    pub silu: bool,
}

impl GroupNorm {
    /// [`Op::forward`]'s one output.
    pub fn apply(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        expect_inputs(NAME, inputs, 3)?;
        expect_f32(NAME, inputs)?;
        let (x, [_, channels, h, w]) = (inputs[0], dims4(NAME, "x", inputs[0])?);
        if self.groups == 0 || channels % self.groups != 0 {
            let detail = format!("{channels} channels are not {} equal groups", self.groups);
            return Err(Error::shape(NAME, detail));
        }
        inputs[1].expect(NAME, "w", &[channels])?;
        inputs[2].expect(NAME, "the bias", &[channels])?;
        let mut y = Tensor::empty(x.device(), x.shape())?;
        if y.is_empty() {
            return Ok(y);
        }
        match x.device().gpu() {
            Some(gpu) => self.on_cuda(gpu, inputs, &mut y)?,
            None if x.device().is_meta() => {}
            None => self.on_cpu(h * w, x.f32(), inputs[1].f32(), inputs[2].f32(), y.f32_mut()),
        }
        Ok(y)
    }

    fn on_cpu(&self, plane: usize, x: &[f32], w: &[f32], bias: &[f32], y: &mut [f32]) {
        let (channels, own) = (w.len(), w.len() / self.groups);
        let stats: Vec<[f32; 2]> = x.par_chunks(own * plane).map(moments).collect();
        y.par_chunks_mut(plane).zip(x.par_chunks(plane)).enumerate().for_each(|(row, (y, x))| {
            let (c, [mean, rstd]) = (row % channels, stats[row / own]);
            let (factor, bias) = (rstd * w[c], bias[c]);
            let mut normed = [0f32; PIECE];
            for (y, x) in y.chunks_mut(PIECE).zip(x.chunks(PIECE)) {
                let to = if self.silu { &mut normed[..x.len()] } else { &mut *y };
                to.iter_mut().zip(x).for_each(|(y, x)| *y = (x - mean) * factor + bias);
                if self.silu {
                    simd::silu(&normed[..x.len()], y);
                }
            }
        });
    }

    fn on_cuda(&self, gpu: &Gpu, inputs: &[&Tensor], y: &mut Tensor) -> Result<()> {
        const SOURCE: &str = "group_norm.cu";
        let &[x, w, bias] = inputs else { unreachable!("the op has counted its inputs") };
        let [batch, channels, high, wide] = dims4(NAME, "x", x)?;
        let (groups, plane) = (batch * self.groups, high * wide);
        let each = channels / self.groups * plane;
        let pieces = each.div_ceil(PIECE);
        // Two f64 in the place of four f32.
        let mut partial = Tensor::empty(x.device(), &[groups, pieces, 4])?;
        let sums = gpu.kernel(SOURCE, "group_norm_fwd_sums_f32")?;
        gpu.launch(&sums, [pieces, groups, 1], cuda::THREADS)
            .read(x)
            .write(&mut partial)
            .value(cuda::long(each))
            .run()?;
        let mut stats = Tensor::empty(x.device(), &[groups, 2])?;
        let kernel = gpu.kernel(SOURCE, "group_norm_fwd_stats_f32")?;
        gpu.launch(&kernel, [groups, 1, 1], 32)
            .read(&partial)
            .write(&mut stats)
            .value(cuda::int(NAME, pieces)?)
            .value(EPS)
            .value(each as f64)
            .run()?;
        let kernel = gpu.kernel(SOURCE, "group_norm_fwd_f32")?;
        gpu.launch(&kernel, [plane.div_ceil(PIECE), channels, batch], cuda::THREADS)
            .read(x)
            .read(&stats)
            .read(w)
            .read(bias)
            .write(y)
            .value(cuda::int(NAME, channels / self.groups)?)
            .value(i32::from(self.silu))
            .value(cuda::long(plane))
            .run()
    }
}

/// μ and 1/√(σ² + ε).
fn moments(x: &[f32]) -> [f32; 2] {
    let n = x.len() as f64;
    let mean = x.chunks(PIECE).map(|x| f64::from(simd::sum(x))).sum::<f64>() / n;
    let squares = x.chunks(PIECE).map(|x| f64::from(simd::sum_sq_dev(x, mean as f32)));
    [mean as f32, (squares.sum::<f64>() / n + EPS).sqrt().recip() as f32]
}

impl Op for GroupNorm {
    fn name(&self) -> &'static str {
        NAME
    }
    fn cuda(&self) -> bool {
        true
    }
    fn forward(&self, inputs: &[&Tensor], save: &mut Save) -> Result<Vec<Tensor>> {
        expect_constant(NAME, save, &[(0, "x"), (1, "w"), (2, "the bias")])?;
        Ok(vec![self.apply(inputs)?])
    }
    fn backward(&self, _: &[Tensor], _: &[Option<&Tensor>], _: &mut [Option<Slot>]) -> Result<()> {
        // Forward refused every input that wants a gradient.
        Ok(())
    }
}

/// Groups of one piece and of several, planes of odd size; a layer of an autoencoder.
pub fn cases(device: &Device) -> Vec<Case> {
    let case = |groups: usize, silu: bool, shape: [usize; 4]| {
        let (n, [b, c, h, w]) = (shape.iter().product::<usize>(), shape);
        let inputs =
            vec![random(device, &shape, 1, 2.0), random(device, &[c], 2, 1.0), random(device, &[c], 3, 0.5)];
        let form = if silu { "_silu" } else { "" };
        Case::new(format!("group_norm{form}/{b}x{c}x{h}x{w}/{groups}"), GroupNorm { groups, silu }, inputs)
            .constant(&[0, 1, 2])
            .chain(n / b / groups)
            .cost(if silu { 12.0 } else { 8.0 } * n as f64, n)
            .bench_only()
    };
    vec![
        case(2, false, [2, 6, 7, 9]),
        case(3, true, [2, 6, 7, 9]),
        case(4, true, [1, 16, 64, 48]),
        case(32, true, [1, 128, 64, 64]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::given;

    /// Against the definition in f64, with a mean that is large beside the deviation, and each sample by itself.
    #[test]
    fn agrees_with_the_definition_and_samples_stand_alone() {
        let cpu = Device::cpu_poisoned();
        for (groups, silu, shape) in
            [(2, false, [3, 6, 5, 7]), (1, true, [1, 3, 61, 67]), (6, true, [2, 6, 1, 4])]
        {
            let mut x = random(&cpu, &shape, 1, 1.0).f32().to_vec();
            x.iter_mut().for_each(|v| *v += 10.0);
            let (x, c) = (given(&cpu, &shape, &x), shape[1]);
            let (w, bias) = (random(&cpu, &[c], 2, 1.0), random(&cpu, &[c], 3, 1.0));
            let op = GroupNorm { groups, silu };
            let y = op.apply(&[&x, &w, &bias]).unwrap();
            let (plane, run) = (shape[2] * shape[3], c / groups * shape[2] * shape[3]);
            for (i, &got) in y.f32().iter().enumerate() {
                let group = &x.f32()[i / run * run..][..run];
                let mean = group.iter().map(|&v| f64::from(v)).sum::<f64>() / run as f64;
                let variance = group.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / run as f64;
                let at = i / plane % c;
                let normed = (f64::from(x.f32()[i]) - mean) / (variance + EPS).sqrt();
                let z = normed * f64::from(w.f32()[at]) + f64::from(bias.f32()[at]);
                let want = if silu { z / (1.0 + (-z).exp()) } else { z };
                // x − μ is known to half an ulp of the mean, 10, and the rest to a few ulps.
                let slope = (f64::from(w.f32()[at]) / (variance + EPS).sqrt()).abs();
                let allowed = 2e-6 * slope + 1e-6 * (1.0 + z.abs());
                assert!((f64::from(got) - want).abs() < allowed, "{op:?} {i}: {got}, wanted {want}");
            }
            for b in 0..shape[0] {
                let one = op.apply(&[&x.rows(b..b + 1).unwrap(), &w, &bias]).unwrap();
                assert_eq!(one.f32(), y.rows(b..b + 1).unwrap().f32());
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let cpu = Device::cpu();
        let (x, w) = (random(&cpu, &[1, 6, 2, 2], 1, 1.0), random(&cpu, &[6], 2, 1.0));
        let refused = |groups, inputs: &[&Tensor]| {
            GroupNorm { groups, silu: false }.apply(inputs).unwrap_err().to_string()
        };
        assert!(refused(4, &[&x, &w, &w]).contains("6 channels are not 4 equal groups"));
        assert!(refused(0, &[&x, &w, &w]).contains("not 0 equal groups"));
        assert!(refused(2, &[&x, &w, &given(&cpu, &[2], &[0.0; 2])]).contains("the bias has shape [2]"));
        assert!(refused(2, &[&x, &w]).contains("2 inputs"));
    }
}
