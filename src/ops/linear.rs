//! Linear layer with an epilogue and stacked LoRA adapters on part of the tokens.
//!
//! ```text
//! z[b,t] = W·x[b,t] + bias + Σ_{a ∈ set(b)} scale_a · B_a·(A_a·x[b,t])      the sum for t in `lora.tokens` only
//! y = z  |  GELU(z)  |  RoPE(norm(z))  |  resid + z  |  resid + gate ⊙ z
//! ```
//! x `[batch, tokens, in]` (or `[batch, in]`), W `[out, in]` f32 or bf16, bias `[out]`, A `[r, in]`, B `[out, r]`;
//! the gate is a chunk of a modulation table. Inputs, in order: x (in two tensors if `joined`), W, bias (if `bias`), the
//! norm's weight (if the epilogue has a norm), resid (if it adds) and the gate tables, then A and B of every adapter.
//!
//! Saves x where a weight needs its gradient, z for GELU′, for the norm or the gate's gradient, and handles on the weights.
//! Adapters are applied one after the other, so a policy whose last B is 0 gives the reference's very bits. On CUDA they
//! are further terms of the same sum, which an adapter that is not in a sample's set, or whose B is 0, adds zeros to.

use super::embed::RopeTable;
use super::{AdapterSet, ModSource, Op, Save, Slot, concat, gelu, qk_norm_rope};
use crate::engine::matmul::{Mat, matmul, transpose};
use crate::engine::{Tensor, simd};
use crate::{Error, Result};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

mod cases;
mod launch;

pub use cases::cases;
pub(super) use cases::{gate, layer};

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
    /// Is x two tensors, whose features come one after the other?
    pub joined: bool,
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
        Self { bias: true, joined: false, epilogue: Epilogue::None, lora: None, wide: false }
    }

    fn adapters(&self) -> &[(usize, f32)] {
        self.lora.as_ref().map_or(&[], |l| &l.adapters)
    }

    /// How many tensors x is.
    pub(super) fn tensors(&self) -> usize {
        1 + usize::from(self.joined)
    }

    /// How many inputs there are.
    pub(super) fn inputs(&self) -> usize {
        self.layout().total
    }

    /// Positions of the inputs.
    fn layout(&self) -> Layout {
        let w = self.tensors();
        let mut at = w + 1;
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
        Layout { w, bias, norm, resid, image, cond, lora: at, total: at + 2 * self.adapters().len() }
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
        let in_ = match self.joined {
            false => in_,
            true => {
                let more = inputs[1].width();
                inputs[1].expect(OP, "the second x", &[batch, tokens, more])?;
                in_ + more
            }
        };
        let out = match *inputs[at.w].shape() {
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
    w: usize,
    bias: Option<usize>,
    norm: Option<usize>,
    resid: Option<usize>,
    image: Option<usize>,
    cond: Option<usize>,
    lora: usize,
    total: usize,
}

impl Layout {
    /// Is x wanted for the gradients of these inputs?
    fn reads_x(&self, wanted: impl Fn(usize) -> bool) -> bool {
        let beside = [self.norm, self.resid, self.image, self.cond];
        (self.w..self.total).any(|i| !beside.contains(&Some(i)) && wanted(i))
    }
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
        let joined = self.joined.then(|| concat::join(&inputs[..2])).transpose()?;
        let x = joined.as_ref().unwrap_or(inputs[0]).f32();
        let w = inputs[at.w].to_f32();
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
        grads[0].map_or(Ok(()), |dy| self.backward_through(saved, dy, None, slots))
    }
}

impl Linear {
    /// Is x wanted for the gradients of these inputs?
    pub(super) fn reads_x(&self, wanted: impl Fn(usize) -> bool) -> bool {
        self.layout().reads_x(wanted)
    }

    /// Backward. The last of x's tensors may be GELU(z) of a z that is given: the gradient in its slot, which does not
    /// accumulate, is then z's.
    pub(super) fn backward_through(
        &self,
        saved: &[Tensor],
        dy: &Tensor,
        through: Option<&Tensor>,
        slots: &mut [Option<Slot>],
    ) -> Result<()> {
        let at = self.layout();
        // x, z, then the other inputs: i was saved at position i + 1.
        let (x, z) = (&saved[..at.w], &saved[at.w]);
        let input = |i: usize| &saved[i + 1];
        let (&batch, &out) = (&dy.shape()[0], &dy.width());
        let in_ = input(at.w).width();
        let d = Dims { batch, tokens: dy.len() / (batch * out), in_, out };
        if let Some(gpu) = dy.device().gpu() {
            return self.backward_cuda(gpu, saved, &at, d, dy, through, slots);
        }
        let dz = self.before_epilogue(dy, z, &at, &input, d, slots)?;
        let dz = dz.as_ref().unwrap_or(dy).f32();
        if self.joined && slots[..2].iter().any(Option::is_some) {
            let grad = Tensor::empty(dy.device(), &[d.batch, d.tokens, d.in_])?;
            let mut both = Slot { grad, accumulate: false };
            self.input_gradient(&input(at.w).to_f32(), dz, &at, &input, d, &mut both);
            let first = self.first_width(&slots[..2], d);
            concat::split(&both.grad, &[first, d.in_ - first], &mut slots[..2])?;
        } else if let Some(slot) = &mut slots[0] {
            self.input_gradient(&input(at.w).to_f32(), dz, &at, &input, d, slot);
        }
        if let (Some(z), Some(slot)) = (through, &mut slots[at.w - 1]) {
            gelu::backward(z.f32(), slot.grad.f32_mut());
        }
        let joined = match x {
            [first, second] if !first.is_empty() => Some(concat::join(&[first, second])?),
            _ => None,
        };
        let x = joined.as_ref().unwrap_or(&x[0]);
        if let Some(slot) = &mut slots[at.w] {
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

    /// The width of x's first tensor, by the slots of both.
    fn first_width(&self, slots: &[Option<Slot>], d: Dims) -> usize {
        match slots {
            [Some(first), _] if self.joined => first.grad.width(),
            [_, Some(second)] if self.joined => d.in_ - second.grad.width(),
            _ => d.in_,
        }
    }

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
                let mut dz = dy.copied()?;
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
                let mut dz = dy.copied()?;
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
        if a.device().is_meta() {
            return;
        }
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
    let x_needed = at.reads_x(|i| save.needs(i));
    for x in &inputs[..at.w] {
        save.keep(&if x_needed { (*x).clone() } else { empty(x)? });
    }
    save.keep(&z.map_or_else(|| empty(inputs[0]), |z| Ok(z.clone()))?);
    for (i, t) in inputs.iter().enumerate().skip(at.w) {
        save.keep(&if Some(i) == at.resid { empty(t)? } else { (*t).clone() });
    }
    Ok(())
}

/// Stands for an input that is not kept, but for its dtype.
pub(super) fn empty(like: &Tensor) -> Result<Tensor> {
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
