//! Linear layer with an epilogue and stacked LoRA adapters on part of the tokens.
//!
//! ```text
//! z[b,t] = W·x[b,t] + bias + Σ_{a ∈ set(b)} scale_a · B_a·(A_a·x[b,t])      the sum for t in `lora.tokens` only
//! y = z  |  GELU(z)  |  RoPE(norm(z))  |  resid + z  |  resid + gate ⊙ z
//! ```
//! x `[batch, tokens, in]` (or `[batch, in]`), W `[out, in]` f32 or bf16, bias `[out]`, A `[r, in]`, B `[out, r]`;
//! the gate is a chunk of a modulation table. Inputs, in order: x, W, bias (if `bias`), the norm's weight (if the epilogue
//! has a norm), resid (if it adds) and the gate tables, then A and B of every adapter.
//!
//! Saves x where a weight needs its gradient, z for GELU′, for the norm or the gate's gradient, and handles on the weights.
//! Adapters are applied one after the other, so a policy whose last B is 0 gives the reference's very bits. On CUDA they
//! are further terms of the same sum, which an adapter that is not in a sample's set, or whose B is 0, adds zeros to.

use super::embed::RopeTable;
use super::{AdapterSet, Case, ModSource, Op, Save, Slot, gelu, given, qk_norm_rope, random};
use crate::engine::matmul::{Mat, matmul, transpose};
use crate::engine::{Device, Tensor, simd};
use crate::{Error, Result};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

mod launch;

/// Rows of one sample that one task computes.
const ROWS: usize = 128;
/// Fewest tokens of a sample for which forward turns the weight.
const TURNED: usize = 16;
/// Rows of a weight gradient that one task computes.
const OUT_ROWS: usize = 64;

/// What happens to `z` before it is written.
#[derive(Clone, Debug)]
pub enum Epilogue {
    /// Nothing.
    None,
    /// tanh-GELU.
    Gelu,
    /// Queries' and keys' norm and rotation, as [`QkNormRope`](qk_norm_rope::QkNormRope) has them.
    NormRope {
        /// Angles of every token.
        table: Arc<RopeTable>,
    },
    /// `resid + z`.
    Add,
    /// `resid + gate ⊙ z`, the gate being chunk `chunk` of the modulation.
    Gate {
        /// Where the modulation tables are.
        source: ModSource,
        /// Which chunk of them is the gate.
        chunk: usize,
    },
}

/// The adapters of a layer.
#[derive(Clone, Debug)]
pub struct Lora {
    /// Tokens that the adapters act on (the condition's).
    pub tokens: Range<usize>,
    /// Which adapters act on which sample.
    pub set: Arc<AdapterSet>,
    /// The adapters this layer has: index in `set`, and scale.
    pub adapters: Vec<(usize, f32)>,
}

/// The op. See the module's formula.
#[derive(Clone, Debug)]
pub struct Linear {
    /// Is there a bias?
    pub bias: bool,
    /// What follows the product.
    pub epilogue: Epilogue,
    /// The adapters, if any.
    pub lora: Option<Lora>,
    /// The output is f32 even where x is bf16. On the CPU it always is; one that adds to a residual has the residual's
    /// dtype, and what goes through GELU is for another product: it is not for these.
    pub wide: bool,
}

impl Linear {
    /// `W·x + bias`, nothing else.
    pub fn plain() -> Self {
        Self { bias: true, epilogue: Epilogue::None, lora: None, wide: false }
    }

    fn adapters(&self) -> &[(usize, f32)] {
        self.lora.as_ref().map_or(&[], |l| &l.adapters)
    }

    /// Positions of the inputs.
    fn layout(&self) -> Layout {
        let mut at = 2;
        let mut next = |there: bool| {
            at += usize::from(there);
            there.then(|| at - 1)
        };
        let bias = next(self.bias);
        let norm = next(matches!(self.epilogue, Epilogue::NormRope { .. }));
        let (adds, gated, two) = match &self.epilogue {
            Epilogue::Gate { source, .. } => (true, true, source.cond.is_some()),
            Epilogue::Add => (true, false, false),
            _ => (false, false, false),
        };
        let (resid, image, cond) = (next(adds), next(gated), next(two));
        Layout { bias, norm, resid, image, cond, lora: at, total: at + 2 * self.adapters().len() }
    }

    /// Adapters of sample `b`: position among this layer's adapters, and scale.
    fn active(&self, b: usize) -> impl Iterator<Item = (usize, f32)> {
        self.lora.iter().flat_map(move |l| {
            l.set.of(b).iter().filter_map(|a| {
                let i = l.adapters.iter().position(|(index, _)| index == a)?;
                Some((i, l.adapters[i].1))
            })
        })
    }

    fn tokens(&self, t: usize) -> Range<usize> {
        self.lora.as_ref().map_or(0..0, |l| l.tokens.start.min(t)..l.tokens.end.min(t))
    }

    fn check(&self, inputs: &[&Tensor]) -> Result<Dims> {
        const OP: &str = "linear";
        let at = self.layout();
        super::expect_inputs(OP, inputs, at.total)?;
        if self.wide && !matches!(self.epilogue, Epilogue::None) {
            let detail =
                format!("a wide output is for no epilogue, here it is {:?}: leave `wide` out", self.epilogue);
            return Err(Error::shape(OP, detail));
        }
        let (batch, tokens, in_) = match *inputs[0].shape() {
            [b, i] => (b, 1, i),
            [b, t, i] => (b, t, i),
            ref s => {
                return Err(Error::shape(OP, format!("x has shape {s:?}, wanted [batch, (tokens,) in]")));
            }
        };
        let out = match *inputs[1].shape() {
            [o, i] if i == in_ => o,
            ref s => {
                return Err(Error::shape(
                    OP,
                    format!("W has shape {s:?}, x has width {in_}: wanted [out, {in_}]"),
                ));
            }
        };
        if let Some(i) = at.bias {
            inputs[i].expect(OP, "the bias", &[out])?;
        }
        if let (Epilogue::NormRope { table }, Some(i)) = (&self.epilogue, at.norm) {
            qk_norm_rope::expect(OP, table, [tokens, out], inputs[i])?;
        }
        if let Some(r) = at.resid
            && (inputs[r].len() != batch * tokens * out || inputs[r].shape().first() != Some(&batch))
        {
            inputs[r].expect(OP, "the residual", &[batch, tokens, out])?;
        }
        if let (Some(r), Epilogue::Gate { source, chunk }) = (at.resid, &self.epilogue) {
            source.check(OP, batch, inputs[r + 1], at.cond.map(|i| inputs[i]), out, *chunk)?;
        }
        if let Some(l) = &self.lora {
            if l.set.of_sample.len() != batch {
                let n = l.set.of_sample.len();
                return Err(Error::shape(
                    OP,
                    format!("the adapter set lists {n} samples, the batch has {batch}"),
                ));
            }
            for i in 0..l.adapters.len() {
                let (a, b) = (inputs[at.lora + 2 * i], inputs[at.lora + 2 * i + 1]);
                let r = a.shape().first().copied().unwrap_or(0);
                a.expect(OP, "lora A", &[r, in_])?;
                b.expect(OP, "lora B", &[out, r])?;
            }
        }
        Ok(Dims { batch, tokens, in_, out })
    }
}

struct Layout {
    bias: Option<usize>,
    norm: Option<usize>,
    resid: Option<usize>,
    image: Option<usize>,
    cond: Option<usize>,
    lora: usize,
    total: usize,
}

#[derive(Clone, Copy)]
struct Dims {
    batch: usize,
    tokens: usize,
    in_: usize,
    out: usize,
}

impl Op for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cuda(&self) -> bool {
        match &self.epilogue {
            Epilogue::NormRope { table } => table.half <= qk_norm_rope::launch::MOST,
            _ => true,
        }
    }

    fn forward(&self, inputs: &[&Tensor], save: &mut Save) -> Result<Vec<Tensor>> {
        let d = self.check(inputs)?;
        let at = self.layout();
        let keep_z = match &self.epilogue {
            Epilogue::None | Epilogue::Add => false,
            Epilogue::Gelu | Epilogue::NormRope { .. } => save.wanted(),
            Epilogue::Gate { .. } => [at.image, at.cond].into_iter().flatten().any(|i| save.needs(i)),
        };
        if let Some(gpu) = inputs[0].device().gpu() {
            let (y, z) = self.forward_cuda(gpu, inputs, &at, d, keep_z)?;
            keep(inputs, &at, z.as_ref(), save)?;
            return Ok(vec![y]);
        }
        let mut shape = inputs[0].shape().to_vec();
        *shape.last_mut().expect("x has at least two dimensions") = d.out;
        let x = inputs[0].f32();
        let w = inputs[1].to_f32();
        // A product with many rows reads W by columns: turned here once, not in every task.
        let turned = (d.tokens >= TURNED).then(|| -> Result<_> {
            let mut turned = Tensor::empty(inputs[0].device(), &[d.in_, d.out])?;
            transpose(&w, d.in_, turned.f32_mut());
            Ok(turned)
        });
        let turned = turned.transpose()?;
        let w = turned.as_ref().map_or_else(|| Mat::new(&w, d.in_).t(), |t| Mat::new(t.f32(), d.out));
        let bias = at.bias.map(|i| inputs[i].f32());
        let row = |b: usize, range: Range<usize>, z: &mut [f32]| {
            let n = range.len();
            if let Some(bias) = bias {
                z.chunks_exact_mut(d.out).for_each(|r| r.copy_from_slice(bias));
            }
            let x = &x[(b * d.tokens + range.start) * d.in_..];
            matmul(n, d.in_, d.out, 1.0, Mat::new(x, d.in_), w, z, d.out, bias.is_some());
            let lora = self.tokens(d.tokens);
            let (lo, hi) = (lora.start.max(range.start), lora.end.min(range.end));
            if lo < hi {
                let (x, z) = (&x[(lo - range.start) * d.in_..], &mut z[(lo - range.start) * d.out..]);
                for (i, scale) in self.active(b) {
                    let (a, up) = (inputs[at.lora + 2 * i], inputs[at.lora + 2 * i + 1]);
                    let r = a.shape()[0];
                    let mut s = vec![0.0; (hi - lo) * r];
                    matmul(
                        hi - lo,
                        d.in_,
                        r,
                        1.0,
                        Mat::new(x, d.in_),
                        Mat::new(a.f32(), d.in_).t(),
                        &mut s,
                        r,
                        false,
                    );
                    matmul(
                        hi - lo,
                        r,
                        d.out,
                        scale,
                        Mat::new(&s, r),
                        Mat::new(up.f32(), r).t(),
                        z,
                        d.out,
                        true,
                    );
                }
            }
        };
        let mut z = Tensor::empty(inputs[0].device(), &shape)?;
        let finish = |b: usize, first: usize, y: &mut [f32]| self.finish(inputs, &at, d, b, first, y);
        let mut y = keep_z.then(|| Tensor::empty(inputs[0].device(), &shape)).transpose()?;
        if let Some(y) = &mut y {
            for_rows2(d, z.f32_mut(), y.f32_mut(), |b, range, z, y| {
                row(b, range.clone(), z);
                y.copy_from_slice(z);
                finish(b, range.start, y);
            });
        } else {
            for_rows(d, z.f32_mut(), |b, range, z| {
                row(b, range.clone(), z);
                finish(b, range.start, z);
            });
        }
        keep(inputs, &at, keep_z.then_some(&z), save)?;
        Ok(vec![y.unwrap_or(z)])
    }

    fn backward(
        &self,
        saved: &[Tensor],
        grads: &[Option<&Tensor>],
        slots: &mut [Option<Slot>],
    ) -> Result<()> {
        let Some(dy) = grads[0] else { return Ok(()) };
        let at = self.layout();
        let (x, z) = (&saved[0], &saved[1]);
        // Input i ≥ 1 was saved at position i + 1.
        let input = |i: usize| &saved[i + 1];
        let (&batch, &out) = (&dy.shape()[0], &dy.width());
        let in_ = input(1).width();
        let d = Dims { batch, tokens: dy.len() / (batch * out), in_, out };
        if let Some(gpu) = dy.device().gpu() {
            return self.backward_cuda(gpu, saved, &at, d, dy, slots);
        }
        let dz = self.before_epilogue(dy, z, &at, &input, d, slots)?;
        let dz = dz.as_ref().unwrap_or(dy).f32();
        if let Some(slot) = &mut slots[0] {
            self.input_gradient(&input(1).to_f32(), dz, &at, &input, d, slot);
        }
        if let Some(slot) = &mut slots[1] {
            let (keep, x) = (slot.accumulate, x.f32());
            slot.grad.f32_mut().par_chunks_mut(OUT_ROWS * d.in_).enumerate().for_each(|(c, dw)| {
                let (rows, k) = (dw.len() / d.in_, d.batch * d.tokens);
                let left = Mat::new(&dz[c * OUT_ROWS..], d.out).t();
                matmul(rows, k, d.in_, 1.0, left, Mat::new(x, d.in_), dw, d.in_, keep);
            });
        }
        if let Some(slot) = at.bias.and_then(|i| slots[i].as_mut()) {
            slot.adding().par_chunks_mut(OUT_ROWS).enumerate().for_each(|(c, db)| {
                for row in dz.chunks_exact(d.out) {
                    simd::axpy(1.0, &row[c * OUT_ROWS..][..db.len()], db);
                }
            });
        }
        for i in 0..self.adapters().len() {
            let (a, b) = (at.lora + 2 * i, at.lora + 2 * i + 1);
            if slots[a].is_some() || slots[b].is_some() {
                self.adapter_gradient(i, x.f32(), dz, input(a), input(b), d, &mut slots[a..=b]);
            }
        }
        Ok(())
    }
}

impl Linear {
    /// Applies the epilogue to rows `first..` of sample `b`.
    fn finish(&self, inputs: &[&Tensor], at: &Layout, d: Dims, b: usize, first: usize, y: &mut [f32]) {
        match &self.epilogue {
            Epilogue::None => {}
            Epilogue::Gelu => simd::gelu_in_place(y),
            Epilogue::NormRope { table } => {
                let w = inputs[at.norm.expect("there is a norm")].f32();
                let mut z = vec![0.0; d.out];
                for (t, y) in (first..).zip(y.chunks_exact_mut(d.out)) {
                    z.copy_from_slice(y);
                    qk_norm_rope::row(table, w, t, &z, y);
                }
            }
            Epilogue::Add => {
                let resid = inputs[at.resid.expect("there is a residual")].f32();
                simd::axpy(1.0, &resid[(b * d.tokens + first) * d.out..][..y.len()], y);
            }
            Epilogue::Gate { source, chunk } => {
                let resid = at.resid.expect("a gate has a residual");
                let tables = (inputs[resid + 1], at.cond.map(|i| inputs[i]));
                for (t, y) in (first..).zip(y.chunks_exact_mut(d.out)) {
                    let gate = source.chunk(tables, b, t, d.out, *chunk);
                    let r = &inputs[resid].f32()[(b * d.tokens + t) * d.out..][..d.out];
                    y.iter_mut().zip(gate).zip(r).for_each(|((y, g), r)| *y = r + g * *y);
                }
            }
        }
    }

    /// dz from dy (`None`: the same), and the gradients of the residual and the gate on the way.
    fn before_epilogue<'t>(
        &self,
        dy: &Tensor,
        z: &Tensor,
        at: &Layout,
        input: &impl Fn(usize) -> &'t Tensor,
        d: Dims,
        slots: &mut [Option<Slot>],
    ) -> Result<Option<Tensor>> {
        match &self.epilogue {
            Epilogue::None => Ok(None),
            Epilogue::Add => {
                if let Some(slot) = at.resid.and_then(|i| slots[i].as_mut()) {
                    slot.put(dy.f32());
                }
                Ok(None)
            }
            Epilogue::Gelu => {
                let mut dz = Tensor::from_slice(dy.device(), dy.shape(), dy.f32())?;
                gelu::backward(z.f32(), dz.f32_mut());
                Ok(Some(dz))
            }
            Epilogue::NormRope { table } => {
                let i = at.norm.expect("there is a norm");
                let mut dz = Slot { grad: Tensor::empty(dy.device(), dy.shape())?, accumulate: false };
                qk_norm_rope::backward(table, [z, input(i)], dy, Some(&mut dz), slots[i].as_mut())?;
                Ok(Some(dz.grad))
            }
            Epilogue::Gate { source, chunk } => {
                let (resid, image) = (at.resid.expect("gated"), at.image.expect("gated"));
                if let Some(slot) = &mut slots[resid] {
                    slot.put(dy.f32());
                }
                let tables = (input(image), at.cond.map(input));
                if slots[image].is_some() || at.cond.is_some_and(|c| slots[c].is_some()) {
                    let z = z.f32();
                    source.add_gradient(slots, image, d.batch, d.out, d.tokens, *chunk, |b, t, acc| {
                        let row = (b * d.tokens + t) * d.out;
                        simd::mul_add(&dy.f32()[row..row + d.out], &z[row..row + d.out], acc);
                    })?;
                }
                let mut dz = Tensor::from_slice(dy.device(), dy.shape(), dy.f32())?;
                dz.f32_mut().par_chunks_mut(d.tokens * d.out).enumerate().for_each(|(b, dz)| {
                    for (t, dz) in dz.chunks_exact_mut(d.out).enumerate() {
                        let gate = source.chunk(tables, b, t, d.out, *chunk);
                        dz.iter_mut().zip(gate).for_each(|(dz, g)| *dz *= g);
                    }
                });
                Ok(Some(dz))
            }
        }
    }

    /// dx = dz·W + Σ scale·(dz·B)·A
    fn input_gradient<'t>(
        &self,
        w: &[f32],
        dz: &[f32],
        at: &Layout,
        input: &impl Fn(usize) -> &'t Tensor,
        d: Dims,
        slot: &mut Slot,
    ) {
        let keep = slot.accumulate;
        let lora = self.tokens(d.tokens);
        let factors: Vec<(&Tensor, &Tensor)> = (0..self.adapters().len())
            .map(|i| (input(at.lora + 2 * i), input(at.lora + 2 * i + 1)))
            .collect();
        let rows = Dims { out: d.in_, ..d };
        for_rows(rows, slot.grad.f32_mut(), |b, range, dx| {
            let dz = &dz[(b * d.tokens + range.start) * d.out..];
            matmul(range.len(), d.out, d.in_, 1.0, Mat::new(dz, d.out), Mat::new(w, d.in_), dx, d.in_, keep);
            let (lo, hi) = (lora.start.max(range.start), lora.end.min(range.end));
            if lo < hi {
                let (dz, dx) = (&dz[(lo - range.start) * d.out..], &mut dx[(lo - range.start) * d.in_..]);
                for (i, scale) in self.active(b) {
                    let (a, up) = factors[i];
                    let r = a.shape()[0];
                    let mut ds = vec![0.0; (hi - lo) * r];
                    matmul(
                        hi - lo,
                        d.out,
                        r,
                        scale,
                        Mat::new(dz, d.out),
                        Mat::new(up.f32(), r),
                        &mut ds,
                        r,
                        false,
                    );
                    matmul(
                        hi - lo,
                        r,
                        d.in_,
                        1.0,
                        Mat::new(&ds, r),
                        Mat::new(a.f32(), d.in_),
                        dx,
                        d.in_,
                        true,
                    );
                }
            }
        });
    }

    /// dA = scale·Σ (dz·B)ᵀx and dB = scale·Σ dzᵀ(x·Aᵀ) over the adapter's tokens of the samples that use it.
    #[allow(clippy::too_many_arguments, reason = "two operands, two factors, their shapes and slots")]
    fn adapter_gradient(
        &self,
        i: usize,
        x: &[f32],
        dz: &[f32],
        a: &Tensor,
        up: &Tensor,
        d: Dims,
        slots: &mut [Option<Slot>],
    ) {
        let (a, up, r) = (a.f32(), up.f32(), a.shape()[0]);
        let lora = self.tokens(d.tokens);
        let n = lora.len();
        let samples: Vec<(usize, f32)> = (0..if n > 0 { d.batch } else { 0 })
            .filter_map(|b| {
                self.active(b).find(|(k, _)| *k == i).map(|(_, scale)| (b * d.tokens + lora.start, scale))
            })
            .collect();
        // Per sample: (x·Aᵀ, scale·dz·B), both [n, r].
        let down: Vec<(Vec<f32>, Vec<f32>)> = samples
            .par_iter()
            .map(|&(first, scale)| {
                let (mut s, mut ds) = (vec![0.0; n * r], vec![0.0; n * r]);
                let (x, dz) = (&x[first * d.in_..], &dz[first * d.out..]);
                matmul(n, d.in_, r, scale, Mat::new(x, d.in_), Mat::new(a, d.in_).t(), &mut s, r, false);
                matmul(n, d.out, r, scale, Mat::new(dz, d.out), Mat::new(up, r), &mut ds, r, false);
                (s, ds)
            })
            .collect();
        let (slot_a, slot_b) = slots.split_at_mut(1);
        if let Some(slot) = &mut slot_b[0] {
            slot.adding().par_chunks_mut(OUT_ROWS * r).enumerate().for_each(|(c, db)| {
                for (&(first, _), (s, _)) in samples.iter().zip(&down) {
                    let dz = Mat::new(&dz[first * d.out + c * OUT_ROWS..], d.out).t();
                    matmul(db.len() / r, n, r, 1.0, dz, Mat::new(s, r), db, r, true);
                }
            });
        }
        if let Some(slot) = &mut slot_a[0] {
            let da = slot.adding();
            for (&(first, _), (_, ds)) in samples.iter().zip(&down) {
                let x = Mat::new(&x[first * d.in_..], d.in_);
                matmul(r, n, d.in_, 1.0, Mat::new(ds, r).t(), x, da, d.in_, true);
            }
        }
    }
}

/// Keeps what backward needs: x where a weight wants its gradient, z, and handles on the weights.
fn keep(inputs: &[&Tensor], at: &Layout, z: Option<&Tensor>, save: &mut Save) -> Result<()> {
    if !save.wanted() {
        return Ok(());
    }
    let weights = (1..at.total).filter(|i| ![at.norm, at.resid, at.image, at.cond].contains(&Some(*i)));
    let x_needed = weights.into_iter().any(|i| save.needs(i));
    save.keep(&if x_needed { inputs[0].clone() } else { empty(inputs[0])? });
    save.keep(&z.map_or_else(|| empty(inputs[0]), |z| Ok(z.clone()))?);
    for (i, t) in inputs.iter().enumerate().skip(1) {
        save.keep_whole(&if Some(i) == at.resid { empty(t)? } else { (*t).clone() });
    }
    Ok(())
}

/// Stands for an input that is not kept, but for its dtype.
fn empty(like: &Tensor) -> Result<Tensor> {
    Tensor::zeros_as(like.device(), &[0], like.dtype())
}

/// Runs `f(sample, tokens, rows)` over a fixed partition of `[batch, tokens, out]`, in parallel.
fn for_rows(d: Dims, z: &mut [f32], f: impl Fn(usize, Range<usize>, &mut [f32]) + Sync) {
    z.par_chunks_mut((d.tokens * d.out).max(1)).enumerate().for_each(|(b, z)| {
        z.par_chunks_mut(ROWS * d.out).enumerate().for_each(|(c, z)| {
            f(b, c * ROWS..c * ROWS + z.len() / d.out, z);
        });
    });
}

/// [`for_rows`] over two buffers of the same shape.
fn for_rows2(
    d: Dims,
    z: &mut [f32],
    y: &mut [f32],
    f: impl Fn(usize, Range<usize>, &mut [f32], &mut [f32]) + Sync,
) {
    let sample = (d.tokens * d.out).max(1);
    z.par_chunks_mut(sample).zip(y.par_chunks_mut(sample)).enumerate().for_each(|(b, (z, y))| {
        z.par_chunks_mut(ROWS * d.out).zip(y.par_chunks_mut(ROWS * d.out)).enumerate().for_each(
            |(c, (z, y))| {
                f(b, c * ROWS..c * ROWS + z.len() / d.out, z, y);
            },
        );
    });
}

/// Every epilogue, with and without stacked adapters and a partial batch; then the layers of the tiny preset, and what
/// the GPU's tiles and dtypes make different.
pub fn cases(device: &Device) -> Vec<Case> {
    let rnd = |shape: &[usize], stream, scale| random(device, shape, stream, scale);
    let set = |b: usize| Arc::new(AdapterSet::runs(&[(vec![0, 1], b - b / 2), (vec![0], b / 2)]));
    // Adapters act on `tokens`; weights and adapters are parameters, x, W and the bias bf16 where x is.
    let adapted =
        |name: &str, [b, t, i, o]: [usize; 4], op: Linear, ranks: &[usize], tokens: Range<usize>| {
            let fan = 1.0 / (i as f32).sqrt();
            let mut inputs = vec![rnd(&[b, t, i], 20, 1.0), rnd(&[o, i], 21, fan), rnd(&[o], 22, 0.3)];
            if let Epilogue::Gate { source, chunk } = &op.epilogue {
                inputs.push(rnd(&[b, t, o], 23, 1.0));
                inputs.push(rnd(&[b, (chunk + 1) * o], 24, 0.7));
                if source.cond.is_some() {
                    inputs.push(rnd(&[2, (chunk + 1) * o], 25, 0.7));
                }
            } else if let Epilogue::Add = op.epilogue {
                inputs.push(rnd(&[b, t, o], 23, 1.0));
            }
            let mut parameters = vec![1, 2];
            if let Epilogue::NormRope { table } = &op.epilogue {
                let w: Vec<f32> = rnd(&[2 * table.half], 23, 0.3).f32().iter().map(|v| v + 1.0).collect();
                parameters.push(3);
                inputs.push(given(device, &[w.len()], &w));
            }
            for (k, &r) in ranks.iter().enumerate() {
                parameters.extend([inputs.len(), inputs.len() + 1]);
                inputs.push(rnd(&[r, i], 26 + k as u64, fan));
                inputs.push(rnd(&[o, r], 30 + k as u64, 1.0 / (r as f32).sqrt()));
            }
            let flops = 2.0 * (b * t * i * o) as f64;
            let lora_flops: f64 = ranks.iter().map(|&r| (2 * b * tokens.len() * r * (i + o)) as f64).sum();
            let lora = (!ranks.is_empty()).then(|| Lora {
                tokens,
                set: set(b),
                adapters: (0..ranks.len()).map(|k| (k, 1.0 + 0.5 * k as f32)).collect(),
            });
            // S, z, what is left of an f32 gradient or a master beside bf16.
            let stores = lora.is_some() || op.wide || !matches!(op.epilogue, Epilogue::None);
            Case::new(name, Linear { lora, ..op }, inputs)
                .chain((b * t).max(i).max(o))
                .stores(stores)
                .half(&[0, 1, 2])
                .parameters(&parameters)
                .cost(flops + lora_flops, b * t * o)
        };
    let form = |epilogue| Linear { epilogue, ..Linear::plain() };
    let make = |name: &str, shape: [usize; 4], epilogue, ranks: &[usize]| {
        adapted(name, shape, form(epilogue), ranks, shape[1] / 2..shape[1])
    };
    let gate = |b: usize, t: usize| Epilogue::Gate {
        source: ModSource {
            split: t / 2,
            image: (0..b).collect(),
            cond: Some((0..b).map(|i| usize::from(i >= b - b / 2)).collect()),
        },
        chunk: 1,
    };
    // Heads of this width; every token has angles of its own.
    let rope = |t: usize, head: usize| {
        let ids: Vec<[f32; 3]> = (0..t).map(|i| [0.0, (i / 8) as f32, (i % 8) as f32]).collect();
        let table = RopeTable::new(&ids, &[2, head / 2 - 2, head / 2], 1e4).expect("the axes are even");
        Epilogue::NormRope { table: Arc::new(table) }
    };
    let wide = || Linear { wide: true, ..Linear::plain() };
    let mut rows =
        adapted("linear/20 64→192 +16+16", [20, 1, 64, 192], form(Epilogue::None), &[16, 16], 0..1);
    rows.inputs[0] = rnd(&[20, 64], 20, 1.0);
    let mut cases = vec![
        make("linear/plain", [2, 3, 5, 4], Epilogue::None, &[]),
        make("linear/gelu", [2, 3, 5, 4], Epilogue::Gelu, &[]),
        make("linear/rope", [2, 3, 12, 16], rope(3, 8), &[]),
        make("linear/lora+rope, leading", [4, 4, 12, 16], rope(4, 8), &[2, 3]).leading(2),
        make("linear/add", [2, 3, 5, 4], Epilogue::Add, &[]),
        make("linear/gate", [2, 4, 5, 6], gate(2, 4), &[]),
        make("linear/lora", [3, 4, 6, 5], Epilogue::None, &[2, 3]),
        make("linear/lora+gelu", [3, 4, 6, 5], Epilogue::Gelu, &[2, 3]),
        make("linear/lora+gate, leading", [4, 4, 6, 5], gate(4, 4), &[2, 3]).leading(2),
    ];
    let large = [
        make("linear/12x128 128→128 +lora", [12, 128, 128, 128], Epilogue::None, &[16, 16]),
        // A whole number of the GPU's tiles; ragged ones; rows that begin on no 16 bytes.
        make("linear/256 96→384", [2, 128, 96, 384], Epilogue::None, &[]),
        make("linear/200 72→136 gelu", [1, 200, 72, 136], Epilogue::Gelu, &[]),
        make("linear/150 37→131 gelu", [1, 150, 37, 131], Epilogue::Gelu, &[]),
        make("linear/12x128 128→512 gelu", [12, 128, 128, 512], Epilogue::Gelu, &[]),
        make("linear/12x128 640→128 gate+lora", [12, 128, 640, 128], gate(12, 128), &[16, 16]),
        // Heads of every width that the GPU's tiles hold whole, and others; tiles of two samples; rows on no 16 bytes.
        make("linear/12x128 128→128 rope 32 +lora", [12, 128, 128, 128], rope(128, 32), &[16, 16]),
        make("linear/2x150 72→384 rope 128", [2, 150, 72, 384], rope(150, 128), &[]),
        make("linear/3x70 64→192 rope 64", [3, 70, 64, 192], rope(70, 64), &[]).leading(2),
        make("linear/2x70 64→144 rope 16", [2, 70, 64, 144], rope(70, 16), &[]),
        make("linear/2x70 64→144 rope 48", [2, 70, 64, 144], rope(70, 48), &[]),
        make("linear/2x70 37→96 rope 32", [2, 70, 37, 96], rope(70, 32), &[]),
        // A result, and a residual, of either dtype.
        adapted("linear/2x70 64→136 wide", [2, 70, 64, 136], wide(), &[], 0..0),
        adapted("linear/2x70 33→137 wide", [2, 70, 33, 137], wide(), &[], 0..0),
        make("linear/2x70 64→136 add", [2, 70, 64, 136], Epilogue::Add, &[]).half(&[0, 1, 2, 3]),
        make("linear/2x70 64→136 gate", [2, 70, 64, 136], gate(2, 70), &[]).half(&[0, 1, 2, 3]),
        make("linear/2x70 33→137 gate", [2, 70, 33, 137], gate(2, 70), &[]).half(&[0, 1, 2, 3]),
        make("linear/2x70 33→137 gate, f32 beside", [2, 70, 33, 137], gate(2, 70), &[]),
        // Ranks that are no multiple of 16, and more columns than a tile; rows of part of a tile.
        adapted("linear/3x150 40→72 +20", [3, 150, 40, 72], form(Epilogue::None), &[20], 30..100),
        adapted("linear/3x150 40→72 +128+16", [3, 150, 40, 72], form(Epilogue::Gelu), &[128, 16], 130..150),
        adapted("linear/4x90 39→71 +3+16", [4, 90, 39, 71], form(Epilogue::Add), &[3, 16], 0..90).leading(3),
        // Adapters and masters of the other dtype than x; a frozen adapter; none of the tokens.
        make("linear/3x40 64→72 +16+16, masters", [3, 40, 64, 72], Epilogue::None, &[16, 16])
            .half(&[0])
            .stores(true),
        make("linear/3x40 64→72 +16+16, frozen", [3, 40, 64, 72], Epilogue::None, &[16, 16])
            .half(&[0, 1, 2, 3, 4])
            .constant(&[1, 2, 3, 4]),
        adapted("linear/3x40 64→72 +16+16, none", [3, 40, 64, 72], form(Epilogue::None), &[16, 16], 40..50),
        // A modulation: one row for each sample.
        rows,
    ];
    cases.extend(large.map(Case::bench_only));
    cases
}
