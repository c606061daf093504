//! Attention of every position of a plane to all of them, one head as wide as there are channels, as frozen networks use
//! it: forward only.
//!
//! ```text
//! S[i,j] = Σ_c q[c,i]·k[c,j] / √C;   P = softmax_j(S);   y[c,i] = Σ_j P[i,j]·v[c,j]        i, j positions
//! q, k, v [B, C, H, W];   y as q
//! ```
//! Saves nothing and has no gradient. Queries are taken some at a time, so that P is never whole.

use super::linear::Linear;
use super::{Case, Op, Save, Slot, cuda, dims4, expect_constant, expect_f32, expect_inputs, random};
use crate::engine::cuda::Gpu;
use crate::engine::matmul::{Mat, matmul};
use crate::engine::{Device, Tensor, par, simd};
use crate::{Error, Result};
use rayon::prelude::*;

const NAME: &str = "spatial_attention";
/// Queries of one task on the CPU.
const QUERIES: usize = 64;
/// Values of P at a time on CUDA: 256 MiB.
const HELD: usize = 1 << 26;

/// The op: inputs q, k and v; output y.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpatialAttention;

impl SpatialAttention {
    /// [`Op::forward`]'s one output.
    pub fn apply(self, inputs: &[&Tensor]) -> Result<Tensor> {
        expect_inputs(NAME, inputs, 3)?;
        expect_f32(NAME, inputs)?;
        let (q, [_, channels, h, w]) = (inputs[0], dims4(NAME, "q", inputs[0])?);
        inputs[1].expect(NAME, "k", q.shape())?;
        inputs[2].expect(NAME, "v", q.shape())?;
        if q.is_empty() {
            return Tensor::empty(q.device(), q.shape());
        }
        if let Some(gpu) = q.device().gpu() {
            return on_cuda(gpu, inputs);
        }
        let mut y = Tensor::empty(q.device(), q.shape())?;
        let [q, k, v] = [0, 1, 2].map(|i| inputs[i].f32());
        on_cpu(channels, h * w, q, k, v, y.f32_mut());
        Ok(y)
    }
}

fn on_cpu(channels: usize, n: usize, q: &[f32], k: &[f32], v: &[f32], y: &mut [f32]) {
    let (scale, each, tasks) = (1.0 / (channels as f32).sqrt(), channels * n, n.div_ceil(QUERIES));
    let room = || (vec![0f32; QUERIES * n], vec![0f32; channels * QUERIES]);
    par::strips(y, channels, n, QUERIES).into_par_iter().enumerate().for_each_init(
        room,
        |(p, out), (i, mut strip)| {
            let (sample, first) = (i / tasks * each, i % tasks * QUERIES);
            let m = QUERIES.min(n - first);
            let [k, v] = [k, v].map(|x| Mat::new(&x[sample..][..each], n));
            let asking = Mat::new(&q[sample + first..sample + each], n).t();
            matmul(m, channels, n, scale, asking, k, p, n, false);
            for row in p.chunks_exact_mut(n).take(m) {
                simd::exp_shift(row, simd::max(row));
                simd::scale(1.0 / simd::sum(row), row);
            }
            matmul(channels, n, m, 1.0, v, Mat::new(p, n).t(), out, m, false);
            for (c, out) in out.chunks_exact(m).take(channels).enumerate() {
                strip.row(c).copy_from_slice(out);
            }
        },
    );
}

/// Products by the linear layer, which sums along what is contiguous: q and k are turned to have their channels last.
fn on_cuda(gpu: &Gpu, inputs: &[&Tensor]) -> Result<Tensor> {
    let [batch, channels, h, w] = dims4(NAME, "q", inputs[0])?;
    let (n, scale) = (h * w, 1.0 / (channels as f32).sqrt());
    let [q, k] = [0, 1].map(|i| turned(gpu, inputs[i], [batch, channels, n]));
    let (q, k, v) = (q?, k?, inputs[2].clone().reshape(&[batch * channels, n])?);
    let product = |x: Tensor, w: &Tensor| {
        let op = Linear { bias: false, ..Linear::plain() };
        op.forward(&[&x, w], &mut Save::nothing())?.pop().ok_or_else(|| Error::shape(NAME, "no product"))
    };
    let some = (HELD / n).clamp(1, n);
    let softmax = gpu.kernel("spatial_attention.cu", "spatial_attention_fwd_softmax_f32")?;
    let mut parts = Vec::new();
    for b in 0..batch {
        let (k, v) = (k.rows(b * n..(b + 1) * n)?, v.rows(b * channels..(b + 1) * channels)?);
        for first in (0..n).step_by(some) {
            let m = some.min(n - first);
            let mut p = product(q.rows(b * n + first..b * n + first + m)?, &k)?;
            gpu.launch(&softmax, [m, 1, 1], cuda::THREADS)
                .write_or_add(&mut p, true)
                .value(cuda::int(NAME, n)?)
                .value(scale)
                .run()?;
            parts.push(product(p, &v)?);
        }
    }
    let y = Tensor::stack(&parts.iter().collect::<Vec<_>>())?;
    turned(gpu, &y, [batch, n, channels])?.reshape(inputs[0].shape())
}

/// `[B, rows, columns]` as `[B·columns, rows]`.
fn turned(gpu: &Gpu, x: &Tensor, [batch, rows, columns]: [usize; 3]) -> Result<Tensor> {
    let mut to = Tensor::empty(x.device(), &[batch * columns, rows])?;
    let kernel = gpu.kernel("conv2d.cu", "conv2d_fwd_turn_f32")?;
    gpu.launch(&kernel, [columns.div_ceil(32), rows.div_ceil(32), batch], cuda::THREADS)
        .read(x)
        .write(&mut to)
        .value(cuda::int(NAME, rows)?)
        .value(cuda::int(NAME, rows)?)
        .value(cuda::int(NAME, columns)?)
        .run()?;
    Ok(to)
}

impl Op for SpatialAttention {
    fn name(&self) -> &'static str {
        NAME
    }
    fn cuda(&self) -> bool {
        true
    }
    fn forward(&self, inputs: &[&Tensor], save: &mut Save) -> Result<Vec<Tensor>> {
        expect_constant(NAME, save, &[(0, "q"), (1, "k"), (2, "v")])?;
        Ok(vec![self.apply(inputs)?])
    }
    fn backward(&self, _: &[Tensor], _: &[Option<&Tensor>], _: &mut [Option<Slot>]) -> Result<()> {
        // Forward refused every input that wants a gradient.
        Ok(())
    }
}

/// Odd sizes, more positions than channels and fewer; a layer of an autoencoder.
pub fn cases(device: &Device) -> Vec<Case> {
    let case = |shape: [usize; 4]| {
        let [b, c, h, w] = shape;
        let n = h * w;
        let inputs = [1, 2, 3].map(|stream| random(device, &shape, stream, 1.0)).to_vec();
        Case::new(format!("spatial_attention/{b}x{c}x{h}x{w}"), SpatialAttention, inputs)
            .constant(&[0, 1, 2])
            .chain(c + n)
            .cost((4 * b * c * n * n + 5 * b * n * n) as f64, b * c * n)
            .stores(true)
            .bench_only()
    };
    vec![case([2, 5, 3, 7]), case([1, 40, 9, 11]), case([2, 64, 4, 4]), case([1, 512, 32, 32])]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_the_definition_and_samples_stand_alone() {
        let cpu = Device::cpu_poisoned();
        for shape in [[2, 5, 3, 7], [1, 3, 9, 15], [2, 64, 1, 2]] {
            let [batch, c, h, w] = shape;
            let n = h * w;
            let inputs = [1, 2, 3].map(|stream| random(&cpu, &shape, stream, 1.5));
            let of =
                |t: usize, b: usize, c_: usize, i: usize| f64::from(inputs[t].f32()[(b * c + c_) * n + i]);
            let y = SpatialAttention.apply(&inputs.each_ref()).unwrap();
            for b in 0..batch {
                for i in 0..n {
                    let dot = |j| (0..c).map(|c| of(0, b, c, i) * of(1, b, c, j)).sum::<f64>();
                    let p: Vec<f64> = (0..n).map(|j| (dot(j) / (c as f64).sqrt()).exp()).collect();
                    let sum: f64 = p.iter().sum();
                    for ch in 0..c {
                        let want = p.iter().enumerate().map(|(j, p)| p * of(2, b, ch, j)).sum::<f64>() / sum;
                        let got = f64::from(y.f32()[(b * c + ch) * n + i]);
                        // Scores of up to 20 are known to 1e-6, and so are probabilities, relatively, twice over.
                        assert!((got - want).abs() < 1e-5, "{shape:?} {b} {ch} {i}: {got}, wanted {want}");
                    }
                }
                let one = inputs.each_ref().map(|t| t.rows(b..b + 1).unwrap());
                let one = SpatialAttention.apply(&one.each_ref()).unwrap();
                assert_eq!(one.f32(), y.rows(b..b + 1).unwrap().f32());
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let cpu = Device::cpu();
        let (q, k) = (random(&cpu, &[1, 6, 2, 2], 1, 1.0), random(&cpu, &[1, 6, 2, 3], 2, 1.0));
        let refused = |inputs: &[&Tensor]| SpatialAttention.apply(inputs).unwrap_err().to_string();
        assert!(refused(&[&q, &q]).contains("2 inputs"));
        assert!(refused(&[&q, &k, &q]).contains("k has shape [1, 6, 2, 3], wanted [1, 6, 2, 2]"));
    }
}
