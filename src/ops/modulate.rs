//! LayerNorm without affine, then modulation: `y = LN(x)·(1 + scale) + shift`, eps 1e-6 (FLUX's adaLN).
//!
//! x `[batch, tokens, D]`; shift and scale are chunks of D columns of a modulation table `[rows, chunks·D]`; image and
//! condition tokens read tables of their own ([`ModSource`]). Inputs: x, image table, condition table (if any).
//!
//! On CUDA, y has x's dtype or, where the op is `narrow`, is bf16 beside an f32 x; a gradient has its tensor's dtype.
//!
//! Saves x and the tables; mean and 1/σ are recomputed. With `g = dy·(1+scale)`, `x̂ = LN(x)`:
//! `dx = (g − mean g − x̂·mean(g·x̂))/σ`, `dshift = Σ_t dy`, `dscale = Σ_t dy·x̂`.

use super::{Case, ModSource, Op, Save, Slot, dims3, expect_inputs, random};
use crate::Result;
use crate::engine::{DType, Device, Tensor, simd};
use rayon::prelude::*;

pub(super) mod launch;

/// Added to the variance.
pub const EPS: f32 = 1e-6;

/// The op.
#[derive(Clone, Debug)]
pub struct LnModulate {
    /// Where the tables are.
    pub source: ModSource,
    /// Chunk that is the shift.
    pub shift: usize,
    /// Chunk that is the scale.
    pub scale: usize,
    /// Is y bf16 on a CUDA device though x, a residual stream, is f32? Nothing to the CPU, which computes in f32 alone.
    pub narrow: bool,
}

/// Mean and 1/σ of a row.
fn stats(x: &[f32]) -> (f32, f32) {
    let n = x.len() as f32;
    let mean = simd::sum(x) / n;
    (mean, 1.0 / (simd::sum_sq_dev(x, mean) / n + EPS).sqrt())
}

impl Op for LnModulate {
    fn name(&self) -> &'static str {
        "ln_modulate"
    }

    fn cuda(&self) -> bool {
        true
    }

    fn forward(&self, inputs: &[&Tensor], save: &mut Save) -> Result<Vec<Tensor>> {
        expect_inputs("ln_modulate", inputs, 2 + usize::from(self.source.cond.is_some()))?;
        let [batch, tokens, d] = dims3("ln_modulate", "x", inputs[0])?;
        let tables = (inputs[1], inputs.get(2).copied());
        for chunk in [self.shift, self.scale] {
            self.source.check("ln_modulate", batch, tables.0, tables.1, d, chunk)?;
        }
        let device = inputs[0].device();
        let dtype = if self.narrow && device.gpu().is_some() { DType::Bf16 } else { inputs[0].dtype() };
        let mut y = Tensor::empty_as(device, inputs[0].shape(), dtype)?;
        save.keep(inputs[0]);
        inputs[1..].iter().for_each(|t| save.keep(t));
        if let Some(gpu) = y.device().clone().gpu() {
            launch::forward(self, gpu, inputs[0], tables, &mut y)?;
            return Ok(vec![y]);
        }
        let x = inputs[0].f32();
        y.f32_mut().par_chunks_mut(d).enumerate().for_each(|(i, y)| {
            let (b, t) = (i / tokens, i % tokens);
            let x = &x[i * d..][..d];
            let shift = self.source.chunk(tables, b, t, d, self.shift);
            let scale = self.source.chunk(tables, b, t, d, self.scale);
            let (mean, rstd) = stats(x);
            for (((y, x), shift), scale) in y.iter_mut().zip(x).zip(shift).zip(scale) {
                *y = (x - mean) * rstd * (1.0 + scale) + shift;
            }
        });
        Ok(vec![y])
    }

    fn backward(
        &self,
        saved: &[Tensor],
        grads: &[Option<&Tensor>],
        slots: &mut [Option<Slot>],
    ) -> Result<()> {
        let Some(dy) = grads[0] else { return Ok(()) };
        let [batch, tokens, d] = dims3("ln_modulate", "the gradient", dy)?;
        if let Some(gpu) = dy.device().gpu() {
            return launch::backward(self, gpu, saved, dy, slots);
        }
        let (x, dy) = (saved[0].f32(), dy.f32());
        let tables = (&saved[1], saved.get(2));
        if slots[1..].iter().any(Option::is_some) {
            self.source.add_gradient(slots, 1, batch, d, tokens, self.shift, |b, t, acc| {
                simd::axpy(1.0, &dy[(b * tokens + t) * d..][..d], acc);
            })?;
            // The shift's pass has initialised the tables' gradients; the scale's adds to them.
            let first: Vec<bool> =
                slots[1..].iter_mut().flatten().map(|s| std::mem::replace(&mut s.accumulate, true)).collect();
            self.source.add_gradient(slots, 1, batch, d, tokens, self.scale, |b, t, acc| {
                let i = (b * tokens + t) * d;
                let (mean, rstd) = stats(&x[i..i + d]);
                for ((a, x), dy) in acc.iter_mut().zip(&x[i..i + d]).zip(&dy[i..i + d]) {
                    *a += dy * ((x - mean) * rstd);
                }
            })?;
            slots[1..].iter_mut().flatten().zip(first).for_each(|(s, a)| s.accumulate = a);
        }
        if let Some(slot) = &mut slots[0] {
            let add = slot.accumulate;
            slot.grad.f32_mut().par_chunks_mut(d).enumerate().for_each_init(
                || (vec![0.0; d], vec![0.0; d]),
                |(g, hat), (i, dx)| {
                    let scale = self.source.chunk(tables, i / tokens, i % tokens, d, self.scale);
                    let (x, dy) = (&x[i * d..][..d], &dy[i * d..][..d]);
                    let (mean, rstd) = stats(x);
                    for ((((g, hat), x), dy), scale) in
                        g.iter_mut().zip(hat.iter_mut()).zip(x).zip(dy).zip(scale)
                    {
                        *g = dy * (1.0 + scale);
                        *hat = (x - mean) * rstd;
                    }
                    let (mean_g, mean_gx) = (simd::sum(g) / d as f32, simd::dot(g, hat) / d as f32);
                    for ((dx, g), hat) in dx.iter_mut().zip(&*g).zip(&*hat) {
                        let v = rstd * (g - mean_g - hat * mean_gx);
                        *dx = if add { *dx + v } else { v };
                    }
                },
            );
        }
        Ok(())
    }
}

/// One table, two tables; then the tiny preset's stream.
pub fn cases(device: &Device) -> Vec<Case> {
    let shaped = |[b, t, d]: [usize; 3], two: bool, narrow: bool| {
        let image = (0..b).collect();
        let cond = two.then(|| (0..b).map(|i| usize::from(i >= b - b / 2)).collect());
        let mut inputs = vec![random(device, &[b, t, d], 40, 1.3), random(device, &[b, 3 * d], 41, 0.5)];
        if two {
            inputs.push(random(device, &[2, 3 * d], 42, 0.5));
        }
        let op = LnModulate {
            source: ModSource { split: if two { t / 2 } else { t }, image, cond },
            shift: 0,
            scale: 2,
            narrow,
        };
        Case::new(format!("ln_modulate{}/{b}x{t}x{d}", if narrow { "_mixed" } else { "" }), op, inputs)
            .chain((b * t).max(d))
            .parameters(&[1, 2])
            .cost(9.0 * (b * t * d) as f64, b * t * d)
    };
    let make = |shape, two| shaped(shape, two, false).half(&[0]);
    // x is f32 whatever the activations are.
    let mixed = |shape, two| shaped(shape, two, true);
    vec![
        make([2, 3, 7], false),
        make([2, 4, 6], true),
        make([4, 4, 8], true),
        make([12, 128, 128], true).bench_only(),
        // Rows that do not fit where the kernels keep them, by pieces of 16 bytes and by values.
        make([2, 16, 1536], true).bench_only(),
        make([1, 5, 1027], false).bench_only(),
        // FLUX.1's width, which has kernels of its own.
        make([2, 20, 3072], true).bench_only(),
        mixed([2, 3, 7], false).bench_only(),
        mixed([4, 4, 8], true).bench_only(),
        mixed([12, 128, 128], true).bench_only(),
        mixed([2, 16, 1536], true).bench_only(),
        mixed([1, 5, 1027], false).bench_only(),
        mixed([2, 20, 3072], true).bench_only(),
    ]
}
