//! Per-head RMSNorm of queries or keys, then rotary position embedding on adjacent pairs.
//!
//! ```text
//! n = x / √(mean(x²) + 1e-6) ⊙ w                                   over each head
//! y[2i]   = n[2i]·cos − n[2i+1]·sin
//! y[2i+1] = n[2i+1]·cos + n[2i]·sin                                angles of the token, see `RopeTable`
//! ```
//! x `[batch, tokens, heads·head_dim]`, w `[head_dim]`. Saves x and w; 1/rms is recomputed.

pub(super) mod launch;

use super::embed::RopeTable;
use super::{Case, Op, Save, Slot, dims3, expect_inputs, given, random};
use crate::engine::{Device, Tensor, simd};
use crate::{Error, Result};
use rayon::prelude::*;
use std::sync::Arc;

/// Added to the mean square.
pub const EPS: f32 = 1e-6;

/// The op. [`Linear`](super::linear::Linear) has it as an epilogue.
#[derive(Clone, Debug)]
pub struct QkNormRope {
    /// Angles of every token.
    pub table: Arc<RopeTable>,
}

/// cos and sin of token `t`.
fn angles(table: &RopeTable, t: usize) -> (&[f32], &[f32]) {
    let half = table.half;
    (&table.cos[t * half..][..half], &table.sin[t * half..][..half])
}

/// Refuses x `[.., tokens, width]` of other heads or tokens than the table's, and a weight of another width.
pub(super) fn expect(
    op: &'static str,
    table: &RopeTable,
    [tokens, width]: [usize; 2],
    w: &Tensor,
) -> Result<()> {
    let hd = 2 * table.half;
    w.expect(op, "the norm's weight", &[hd])?;
    if !width.is_multiple_of(hd) || table.cos.len() != tokens * table.half {
        let have = table.cos.len() / table.half.max(1);
        let detail =
            format!("x is {tokens} tokens of width {width}, the angles are for {have} of head_dim {hd}");
        return Err(Error::shape(op, detail));
    }
    Ok(())
}

/// The row of token `t` of a sample: y from x.
pub(super) fn row(table: &RopeTable, w: &[f32], t: usize, x: &[f32], y: &mut [f32]) {
    let (cos, sin) = angles(table, t);
    simd::norm_rotate(x, w, EPS, cos, sin, y);
}

impl Op for QkNormRope {
    fn name(&self) -> &'static str {
        "qk_norm_rope"
    }

    fn cuda(&self) -> bool {
        self.table.half <= launch::MOST
    }

    fn forward(&self, inputs: &[&Tensor], save: &mut Save) -> Result<Vec<Tensor>> {
        const OP: &str = "qk_norm_rope";
        expect_inputs(OP, inputs, 2)?;
        let [_, tokens, width] = dims3(OP, "x", inputs[0])?;
        expect(OP, &self.table, [tokens, width], inputs[1])?;
        let mut y = Tensor::empty_as(inputs[0].device(), inputs[0].shape(), inputs[0].dtype())?;
        save.keep(inputs[0]);
        save.keep(inputs[1]);
        if let Some(gpu) = inputs[0].device().gpu() {
            launch::forward(gpu, &self.table, inputs[0], inputs[1], &mut y)?;
            return Ok(vec![y]);
        }
        let (x, w) = (inputs[0].f32(), inputs[1].f32());
        y.f32_mut().par_chunks_mut(width).enumerate().for_each(|(i, y)| {
            row(&self.table, w, i % tokens, &x[i * width..][..width], y);
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
        let (dx, dw) = slots.split_at_mut(1);
        backward(&self.table, [&saved[0], &saved[1]], dy, dx[0].as_mut(), dw[0].as_mut())
    }
}

/// The gradients of x and of the weight from those two and that of y.
pub(super) fn backward(
    table: &RopeTable,
    [x, w]: [&Tensor; 2],
    dy: &Tensor,
    dx: Option<&mut Slot>,
    dw: Option<&mut Slot>,
) -> Result<()> {
    let [batch, tokens, width] = dims3("qk_norm_rope", "the gradient", dy)?;
    if let Some(gpu) = dy.device().gpu() {
        return launch::backward(gpu, table, [x, w], dy, dx, dw);
    }
    let (x, w, dy) = (x.f32(), w.f32(), dy.f32());
    let hd = w.len();
    if let Some(slot) = dx {
        let add = slot.accumulate;
        let rows = slot.grad.f32_mut().par_chunks_mut(width).enumerate();
        rows.for_each_init(
            || vec![0.0; hd],
            |g, (row, dx)| {
                let (cos, sin) = angles(table, row % tokens);
                let at = row * width..(row + 1) * width;
                simd::norm_rotate_back(&x[at.clone()], w, EPS, cos, sin, &dy[at], g, dx, add);
            },
        );
    }
    if let Some(slot) = dw.filter(|slot| !slot.grad.device().is_meta()) {
        let sums: Vec<Vec<f32>> = (0..batch)
            .into_par_iter()
            .map(|b| {
                let mut acc = vec![0.0; hd];
                for t in 0..tokens {
                    let (cos, sin) = angles(table, t);
                    let row = (b * tokens + t) * width;
                    let heads =
                        x[row..row + width].chunks_exact(hd).zip(dy[row..row + width].chunks_exact(hd));
                    for (x, dy) in heads {
                        let r = simd::rrms(x, EPS);
                        for (i, a) in acc.iter_mut().enumerate() {
                            *a += unrotate(dy, cos, sin, i) * x[i] * r;
                        }
                    }
                }
                acc
            })
            .collect();
        let grad = slot.adding();
        sums.iter().for_each(|s| simd::axpy(1.0, s, grad));
    }
    Ok(())
}

/// Element `i` of dy turned back by the token's angle.
#[inline(always)]
fn unrotate(dy: &[f32], cos: &[f32], sin: &[f32], i: usize) -> f32 {
    let p = i / 2;
    if i.is_multiple_of(2) {
        dy[i] * cos[p] + dy[i + 1] * sin[p]
    } else {
        dy[i] * cos[p] - dy[i - 1] * sin[p]
    }
}

/// Two heads; then the tiny preset's stream.
pub fn cases(device: &Device) -> Vec<Case> {
    let make = |b: usize, side: usize, heads: usize, axes: [usize; 3]| {
        let ids: Vec<[f32; 3]> =
            (0..side * side).map(|i| [0.0, (i / side) as f32, (i % side) as f32]).collect();
        let table = RopeTable::new(&ids, &axes, 1e4).expect("the axes are even");
        let (t, hd) = (ids.len(), axes.iter().sum::<usize>());
        let w: Vec<f32> = random(&Device::cpu(), &[hd], 51, 0.3).f32().iter().map(|v| v + 1.0).collect();
        let w = given(device, &[hd], &w);
        let inputs = vec![random(device, &[b, t, heads * hd], 50, 1.0), w];
        Case::new(format!("qk_norm_rope/{b}x{t}x{heads}x{hd}"), QkNormRope { table: Arc::new(table) }, inputs)
            .chain(b * t * heads)
            .half(&[0])
            .parameters(&[1])
            .cost(10.0 * (b * t * heads * hd) as f64, b * t * heads * hd)
    };
    vec![
        make(2, 2, 2, [2, 4, 2]),
        make(3, 2, 2, [2, 4, 2]),
        make(12, 11, 4, [4, 14, 14]).bench_only(),
        // FLUX.1's heads, others, and some that are no multiple of 16 bytes; more of a token's than a warp takes.
        make(2, 4, 12, [16, 56, 56]).bench_only(),
        make(3, 4, 7, [8, 28, 28]).bench_only(),
        make(2, 4, 5, [14, 14, 14]).bench_only(),
        make(2, 2, 35, [8, 20, 20]).bench_only(),
    ]
}
