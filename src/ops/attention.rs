//! Joint attention over text, image and condition tokens, without ever holding an N×N tensor.
//!
//! ```text
//! S = q·kᵀ/√head_dim + log m[key] + bias[group(query)][group(key)];  P = softmax(S);  o = P·v
//! ```
//! The stream (image, then condition tokens) and the text come as tensors of their own, `[batch, tokens,
//! heads·head_dim]`; the joint order is text, image, condition. `m` is a key's multiplicity: one key with m = 512
//! stands for 512 equal ones, exactly. A group bias of −∞ masks a block; log c is a condition strength.
//!
//! Inputs: q, k, v of the stream, k, v of the text, then q of the text when its output is wanted. The stream may ask
//! with fewer queries than it has keys (its leading ones). Outputs: o of the stream, then o of the text.
//!
//! Saves the inputs, the outputs and log Σ exp S per query; probabilities are recomputed block by block.

use super::{Case, Op, Save, Slot, TokenLayout, dims3, random};
use crate::engine::matmul::{Mat, matmul};
use crate::engine::par::{Columns, columns};
use crate::engine::{Device, Tensor, simd};
use crate::{Error, Result};
use rayon::prelude::*;
use std::sync::{Arc, Mutex, PoisonError};

mod launch;

/// Most queries per block; a sequence is cut into equal blocks, so that none is left with a row or two.
const BLOCK: usize = 192;

/// Queries per block of a sequence of `queries`.
fn block(queries: usize) -> usize {
    queries.div_ceil(queries.div_ceil(BLOCK).max(1)).max(1)
}

/// Additive log-bias from query group to key group, both in the order text, image, condition.
pub type GroupBias = [[f32; 3]; 3];

/// The op.
#[derive(Clone, Debug)]
pub struct Attention {
    /// Number of heads.
    pub heads: usize,
    /// Tokens of the keys.
    pub layout: TokenLayout,
    /// log-multiplicity of each key in joint order, if any differs from 0.
    pub log_multiplicity: Option<Arc<[f32]>>,
    /// Bias between groups, if any.
    pub groups: Option<GroupBias>,
}

const OP: &str = "attention";
const INPUTS: [&str; 6] = ["q", "k", "v", "text k", "text v", "text q"];

#[derive(Clone, Copy)]
struct Dims {
    batch: usize,
    heads: usize,
    hd: usize,
    /// Text queries, stream queries.
    asking: [usize; 2],
}

impl Dims {
    fn queries(&self) -> usize {
        self.asking[0] + self.asking[1]
    }
}

impl Attention {
    fn dims(&self, inputs: &[&Tensor]) -> Result<Dims> {
        if inputs.len() != 5 && inputs.len() != 6 {
            return Err(Error::shape(OP, format!("{} inputs were given, 5 or 6 are wanted", inputs.len())));
        }
        let [batch, q, width] = dims3(OP, "q", inputs[0])?;
        if self.heads == 0 || !width.is_multiple_of(self.heads) {
            return Err(Error::shape(OP, format!("width {width} is not a multiple of {} heads", self.heads)));
        }
        let l = self.layout;
        if q > l.stream() {
            return Err(Error::shape(OP, format!("{q} stream queries, {} stream keys", l.stream())));
        }
        for (i, tokens) in [(1, l.stream()), (2, l.stream()), (3, l.txt), (4, l.txt), (5, l.txt)] {
            if let Some(t) = inputs.get(i) {
                t.expect(OP, INPUTS[i], &[batch, tokens, width])?;
            }
        }
        if let Some(m) = &self.log_multiplicity
            && m.len() != l.total()
        {
            return Err(Error::shape(OP, format!("{} log-multiplicities for {} keys", m.len(), l.total())));
        }
        let text = if inputs.len() == 6 { l.txt } else { 0 };
        Ok(Dims { batch, heads: self.heads, hd: width / self.heads, asking: [text, q] })
    }

    /// The bias of every key for queries of group `group`; `None` when it is 0 throughout.
    fn bias(&self, group: usize) -> Option<Vec<f32>> {
        if self.log_multiplicity.is_none() && self.groups.is_none() {
            return None;
        }
        let l = self.layout;
        let sizes = [l.txt, l.img, l.cond];
        let of_group =
            (0..3).flat_map(|g| std::iter::repeat_n(self.groups.map_or(0.0, |b| b[group][g]), sizes[g]));
        let m = self.log_multiplicity.as_deref();
        Some(of_group.enumerate().map(|(i, b)| b + m.map_or(0.0, |m| m[i])).collect())
    }

    fn biases(&self) -> [Option<Vec<f32>>; 3] {
        [self.bias(0), self.bias(1), self.bias(2)]
    }

    /// Group of query `i` among the queries asked (text first).
    fn group(&self, d: Dims, i: usize) -> usize {
        match i.checked_sub(d.asking[0]) {
            None => 0,
            Some(s) if s < self.layout.img => 1,
            Some(_) => 2,
        }
    }

    /// `s[n × keys]`: scaled scores plus bias of queries `first..first + n`.
    fn scores(
        &self,
        d: Dims,
        biases: &[Option<Vec<f32>>; 3],
        first: usize,
        q: &[f32],
        k: &[f32],
        s: &mut [f32],
    ) {
        let keys = self.layout.total();
        let n = s.len() / keys;
        let scale = 1.0 / (d.hd as f32).sqrt();
        matmul(
            n,
            d.hd,
            keys,
            scale,
            Mat::new(&q[first * d.hd..], d.hd),
            Mat::new(k, d.hd).t(),
            s,
            keys,
            false,
        );
        for (i, s) in s.chunks_exact_mut(keys).enumerate() {
            if let Some(bias) = &biases[self.group(d, first + i)] {
                simd::axpy(1.0, bias, s);
            }
        }
    }
}

/// Head `h` of sample `b` into `to`: text rows, then stream rows, contiguous `[rows, hd]`.
fn gather(d: Dims, b: usize, h: usize, text: Option<&Tensor>, stream: &Tensor, to: &mut [f32]) {
    let mut to = to.chunks_exact_mut(d.hd);
    for t in text.into_iter().chain([stream]) {
        let sample = t.stride0();
        for (row, to) in t.f32()[b * sample..][..sample].chunks_exact(d.heads * d.hd).zip(&mut to) {
            to.copy_from_slice(&row[h * d.hd..][..d.hd]);
        }
    }
}

/// Room for tasks of which each thread is at one: so many tensors, made before any task runs, so that what the arena sees
/// does not depend on who runs when.
struct Scratch(Mutex<Vec<Tensor>>);

impl Scratch {
    fn new(device: &Device, tasks: usize, values: usize) -> Result<Self> {
        let room = || Tensor::empty(device, &[values]);
        let rooms = (0..rayon::current_num_threads().min(tasks)).map(|_| room()).collect::<Result<_>>()?;
        Ok(Self(Mutex::new(rooms)))
    }

    /// Runs `task` with pieces of these sizes, which together are what there is.
    fn with<const N: usize>(&self, sizes: [usize; N], task: impl FnOnce([&mut [f32]; N])) {
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut room = lock().pop().expect("each thread is at one task");
        let mut rest = room.f32_mut();
        task(sizes.map(|n| rest.split_off_mut(..n).expect("there is room for all")));
        lock().push(room);
    }
}

/// One `Columns` per (sample, head), or one `None` each when there is nothing to write.
fn bands<'t>(d: Dims, t: Option<&'t mut Tensor>) -> Vec<Option<Columns<'t>>> {
    match t {
        Some(t) if !t.is_empty() => {
            let rows = t.shape()[1];
            columns(t.f32_mut(), rows, d.heads, d.hd).into_iter().map(Some).collect()
        }
        _ => (0..d.batch * d.heads).map(|_| None).collect(),
    }
}

/// Writes or adds `rows` to a band.
fn scatter(rows: &[f32], hd: usize, band: Option<&mut Columns>, add: bool) {
    let Some(band) = band else { return };
    for (r, row) in rows.chunks_exact(hd).enumerate() {
        let out = band.row(r);
        if add { simd::axpy(1.0, row, out) } else { out.copy_from_slice(row) }
    }
}

impl Op for Attention {
    fn name(&self) -> &'static str {
        OP
    }

    fn cuda(&self) -> bool {
        true
    }

    fn forward(&self, inputs: &[&Tensor], save: &mut Save) -> Result<Vec<Tensor>> {
        let d = self.dims(inputs)?;
        if let Some(gpu) = inputs[0].device().gpu() {
            if d.hd > launch::WIDEST {
                let detail =
                    format!("heads of {} values; the CUDA kernels take up to {}", d.hd, launch::WIDEST);
                return Err(Error::shape(OP, detail));
            }
            let (outputs, lse) = self.forward_cuda(gpu, inputs, d)?;
            inputs.iter().copied().chain(&outputs).chain([&lse]).for_each(|t| save.keep(t));
            return Ok(outputs);
        }
        let (device, keys, queries) = (inputs[0].device(), self.layout.total(), d.queries());
        let mut o = Tensor::empty(device, inputs[0].shape())?;
        let mut o_text = inputs.get(5).map(|q| Tensor::empty(device, q.shape())).transpose()?;
        let mut lse = Tensor::empty(device, &[d.batch, d.heads * queries])?;
        let biases = self.biases();
        let block = block(queries);
        let sizes = [queries * d.hd, keys * d.hd, keys * d.hd, block * keys, queries * d.hd];
        let scratch = Scratch::new(device, d.batch * d.heads, sizes.iter().sum())?;
        if !device.is_meta() {
            let stream = bands(d, Some(&mut o));
            let text = bands(d, o_text.as_mut());
            let rows = lse.f32_mut().par_chunks_mut(queries);
            rows.zip(stream).zip(text).enumerate().for_each(|(i, ((lse, mut stream), mut text))| {
                scratch.with(sizes, |[q, k, v, s, out]| {
                    let (b, h) = (i / d.heads, i % d.heads);
                    gather(d, b, h, inputs.get(5).copied(), inputs[0], q);
                    gather(d, b, h, Some(inputs[3]), inputs[1], k);
                    gather(d, b, h, Some(inputs[4]), inputs[2], v);
                    for first in (0..queries).step_by(block) {
                        let n = block.min(queries - first);
                        let s = &mut s[..n * keys];
                        self.scores(d, &biases, first, q, k, s);
                        for (row, lse) in s.chunks_exact_mut(keys).zip(&mut lse[first..]) {
                            let max = simd::max(row);
                            simd::exp_shift(row, max);
                            let sum = simd::sum(row);
                            *lse = max + sum.ln();
                            simd::scale(1.0 / sum, row);
                        }
                        let o = &mut out[first * d.hd..];
                        matmul(n, keys, d.hd, 1.0, Mat::new(s, keys), Mat::new(v, d.hd), o, d.hd, false);
                    }
                    let (t, x) = out.split_at(d.asking[0] * d.hd);
                    scatter(t, d.hd, text.as_mut(), false);
                    scatter(x, d.hd, stream.as_mut(), false);
                });
            });
        }
        let outputs: Vec<Tensor> = std::iter::once(o).chain(o_text).collect();
        inputs.iter().for_each(|t| save.keep(t));
        outputs.iter().for_each(|t| save.keep(t));
        save.keep(&lse);
        Ok(outputs)
    }

    fn backward(
        &self,
        saved: &[Tensor],
        grads: &[Option<&Tensor>],
        slots: &mut [Option<Slot>],
    ) -> Result<()> {
        let n_in = slots.len();
        let inputs: Vec<&Tensor> = saved[..n_in].iter().collect();
        let d = self.dims(&inputs)?;
        let (outputs, lse) = (&saved[n_in..saved.len() - 1], &saved[saved.len() - 1]);
        if let Some(gpu) = lse.device().gpu() {
            return self.backward_cuda(gpu, (&inputs, outputs, lse), d, grads, slots);
        }
        let device = lse.device();
        let (keys, queries) = (self.layout.total(), d.queries());
        let biases = self.biases();
        let block = block(queries);
        let scale = 1.0 / (d.hd as f32).sqrt();
        let d_out: Vec<Tensor> = outputs
            .iter()
            .zip(grads)
            .map(|(o, g)| g.cloned().map_or_else(|| Tensor::zeros(o.device(), o.shape()), Ok))
            .collect::<Result<_>>()?;
        let [queried, kept] = [queries * d.hd, keys * d.hd];
        let inner = [queried, kept, kept, queried, queried, queried, kept, kept, block * keys, block * keys];
        let scratch = Scratch::new(device, d.batch * d.heads, inner.iter().sum())?;
        if device.is_meta() {
            return Ok(());
        }
        let lse = lse.f32();
        let add: Vec<bool> = slots.iter().map(|s| s.as_ref().is_some_and(|s| s.accumulate)).collect();
        let mut per_input: Vec<_> =
            slots.iter_mut().map(|s| bands(d, s.as_mut().map(|s| &mut s.grad)).into_iter()).collect();
        let tasks: Vec<Vec<Option<Columns>>> = (0..d.batch * d.heads)
            .map(|_| per_input.iter_mut().map(|b| b.next().expect("one band per sample and head")).collect())
            .collect();
        tasks.into_par_iter().enumerate().for_each(|(i, mut out)| {
            scratch.with(inner, |room| {
                let [q, k, v, o, do_, dq, dk, dv, p, ds] = room;
                let (b, h) = (i / d.heads, i % d.heads);
                gather(d, b, h, inputs.get(5).copied(), inputs[0], q);
                gather(d, b, h, Some(inputs[3]), inputs[1], k);
                gather(d, b, h, Some(inputs[4]), inputs[2], v);
                gather(d, b, h, outputs.get(1), &outputs[0], o);
                gather(d, b, h, d_out.get(1), &d_out[0], do_);
                let lse = &lse[i * queries..][..queries];
                dk.fill(0.0);
                dv.fill(0.0);
                for first in (0..queries).step_by(block) {
                    let n = block.min(queries - first);
                    let (p, ds) = (&mut p[..n * keys], &mut ds[..n * keys]);
                    self.scores(d, &biases, first, q, k, p);
                    let (dob, ob) = (&do_[first * d.hd..][..n * d.hd], &o[first * d.hd..][..n * d.hd]);
                    matmul(n, d.hd, keys, 1.0, Mat::new(dob, d.hd), Mat::new(v, d.hd).t(), ds, keys, false);
                    for (r, (p, ds)) in p.chunks_exact_mut(keys).zip(ds.chunks_exact_mut(keys)).enumerate() {
                        simd::exp_shift(p, lse[first + r]);
                        let delta = simd::dot(&dob[r * d.hd..][..d.hd], &ob[r * d.hd..][..d.hd]);
                        ds.iter_mut().zip(&*p).for_each(|(ds, p)| *ds = p * (*ds - delta));
                    }
                    matmul(keys, n, d.hd, 1.0, Mat::new(p, keys).t(), Mat::new(dob, d.hd), dv, d.hd, true);
                    let qb = Mat::new(&q[first * d.hd..], d.hd);
                    matmul(keys, n, d.hd, scale, Mat::new(ds, keys).t(), qb, dk, d.hd, true);
                    let dqb = &mut dq[first * d.hd..];
                    matmul(n, keys, d.hd, scale, Mat::new(ds, keys), Mat::new(k, d.hd), dqb, d.hd, false);
                }
                let text = self.layout.txt * d.hd;
                let asked = d.asking[0] * d.hd;
                let parts: [&[f32]; 6] =
                    [&dq[asked..], &dk[text..], &dv[text..], &dk[..text], &dv[..text], &dq[..asked]];
                for (i, band) in out.iter_mut().enumerate() {
                    scatter(parts[i], d.hd, band.as_mut(), add[i]);
                }
            })
        });
        Ok(())
    }
}

/// Three groups with a multiplicity, a mask, fewer queries than keys; then the tiny preset, with one
/// text token and with 512.
pub fn cases(device: &Device) -> Vec<Case> {
    struct Shape {
        batch: usize,
        heads: usize,
        hd: usize,
        layout: TokenLayout,
        asking: usize,
        text_asks: bool,
    }
    let make = |name: &str, s: Shape, multiplicity: f32, groups: Option<GroupBias>| {
        let (l, w) = (s.layout, s.heads * s.hd);
        let rnd = |tokens: usize, stream| random(device, &[s.batch, tokens, w], stream, 1.0);
        let mut inputs =
            vec![rnd(s.asking, 60), rnd(l.stream(), 61), rnd(l.stream(), 62), rnd(l.txt, 63), rnd(l.txt, 64)];
        if s.text_asks {
            inputs.push(rnd(l.txt, 65));
        }
        let queries = s.asking + if s.text_asks { l.txt } else { 0 };
        let m: Arc<[f32]> = (0..l.total()).map(|i| if i < l.txt { multiplicity.ln() } else { 0.0 }).collect();
        let op = Attention { heads: s.heads, layout: l, log_multiplicity: Some(m), groups };
        let all: Vec<usize> = (0..inputs.len()).collect();
        Case::new(format!("attention/{name}"), op, inputs)
            .half(&all)
            .stores(true)
            .chain(l.total().max(queries))
            .cost(4.0 * (s.batch * s.heads * queries * l.total() * s.hd) as f64, s.batch * queries * w)
    };
    let small = |asking, text_asks| Shape {
        batch: 2,
        heads: 2,
        hd: 4,
        layout: TokenLayout { txt: 2, img: 3, cond: 2 },
        asking,
        text_asks,
    };
    let tiny = |txt| Shape {
        batch: 12,
        heads: 4,
        hd: 32,
        layout: TokenLayout { txt, img: 64, cond: 64 },
        asking: 128,
        text_asks: true,
    };
    let wide = |hd| Shape {
        batch: 1,
        heads: 2,
        hd,
        layout: TokenLayout { txt: 1, img: 70, cond: 66 },
        asking: 136,
        text_asks: true,
    };
    let apart =
        [[0.0, 0.0, f32::NEG_INFINITY], [0.0, 0.0, -0.7], [f32::NEG_INFINITY, f32::NEG_INFINITY, 0.0]];
    vec![
        make("joint", small(5, true), 3.0, None),
        make("masked", small(5, true), 1.0, Some(apart)),
        make("last block", small(3, false), 512.0, None),
        make("12x129x4x32", tiny(1), 512.0, None).bench_only(),
        // FLUX.1's heads; a head between two widths, whose rows begin on no 16 bytes.
        make("hd 128", wide(128), 512.0, None).bench_only(),
        make("hd 42", wide(42), 512.0, Some(apart)).bench_only(),
        make("12x640x4x32", tiny(512), 1.0, None).bench_only(),
    ]
}
