//! The differentiable operations: one op, one file.
//!
//! Each file holds, in this order: the formula with shapes, what backward saves, the [`Op`] impl with its CPU version
//! (plain enough to be read as the definition), and its [`Case`]s. An op knows nothing of the tape, the model or
//! the other ops' state; it may use another op's slice functions. Adding an op touches its file and one line here.

use crate::engine::{DType, Device, Philox, Tensor};
use crate::{Error, Result};
use rayon::prelude::*;
use std::sync::Arc;

pub mod activation;
pub mod adamw;
pub mod attention;
pub mod blend;
pub mod cast;
pub mod colored_noise;
pub mod concat;
pub mod conv2d;
pub(crate) mod cuda;
pub mod embed;
pub mod feed_forward;
pub mod gelu;
pub mod group_norm;
pub mod linear;
pub mod modulate;
pub mod multiplier;
pub mod negative;
pub mod norm;
pub mod patch;
pub mod qk_norm_rope;
pub mod reduce;
pub mod sdpa;
pub mod silu;
pub mod sobolev;
pub mod transpose;

/// A differentiable operation with many inputs and many outputs.
///
/// The batch is the first dimension of input 0 and of every output.
pub trait Op: Send + Sync {
    /// The op's name, as in errors, benchmarks and reports.
    fn name(&self) -> &'static str;

    /// Has it CUDA kernels? All ops here have; one of a user's without them is refused tensors on a CUDA device.
    fn cuda(&self) -> bool {
        false
    }

    /// Computes the outputs; saves what backward needs when `save` asks for it (nothing otherwise).
    fn forward(&self, inputs: &[&Tensor], save: &mut Save) -> Result<Vec<Tensor>>;

    /// Adds each wanted input's gradient to its slot. `grads[i]` is the gradient of output `i`, `None` when it is 0;
    /// at least one is there.
    fn backward(&self, saved: &[Tensor], grads: &[Option<&Tensor>], slots: &mut [Option<Slot>])
    -> Result<()>;
}

/// What forward may keep for backward.
pub struct Save<'a> {
    needs: &'a [bool],
    kept: Vec<Tensor>,
}

impl<'a> Save<'a> {
    /// For an op whose input `i` needs a gradient where `needs[i]`.
    pub fn new(needs: &'a [bool]) -> Self {
        Self { needs, kept: Vec::new() }
    }
    /// Nothing will be asked of backward.
    pub fn nothing() -> Save<'static> {
        Save { needs: &[], kept: Vec::new() }
    }
    /// Does any input need a gradient?
    pub fn wanted(&self) -> bool {
        self.needs.contains(&true)
    }
    /// Does input `i` need a gradient?
    pub fn needs(&self, i: usize) -> bool {
        self.needs.get(i).copied().unwrap_or(false)
    }
    /// Keeps a tensor, if anything is wanted at all.
    pub fn keep(&mut self, t: &Tensor) {
        if self.wanted() {
            self.kept.push(t.clone());
        }
    }
    /// What was kept.
    pub fn into_kept(self) -> Vec<Tensor> {
        self.kept
    }
}

/// Where an input's gradient goes: written the first time, accumulated afterwards.
pub struct Slot {
    /// The gradient, of the input's shape.
    pub grad: Tensor,
    /// Add to what is there (true) or overwrite it.
    pub accumulate: bool,
}

impl Slot {
    /// The buffer, zeroed first unless it accumulates: for ops that add contributions piecewise.
    pub fn adding(&mut self) -> &mut [f32] {
        let g = self.grad.f32_mut();
        if !self.accumulate {
            g.fill(0.0);
        }
        g
    }
    /// Writes or adds a gradient of the slot's shape, on any device.
    pub fn add(&mut self, grad: &Tensor) -> Result<()> {
        match grad.device().gpu() {
            Some(gpu) => cuda::add(gpu, grad, self),
            None => {
                self.put(grad.f32());
                Ok(())
            }
        }
    }
    /// Writes or adds `values`.
    pub fn put(&mut self, values: &[f32]) {
        if self.grad.device().is_meta() {
            // Nothing is kept there.
        } else if self.accumulate {
            crate::engine::simd::axpy(1.0, values, self.grad.f32_mut());
        } else {
            self.grad.f32_mut().copy_from_slice(values);
        }
    }
}

/// Tokens of the joint sequence, in the order text, image, condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenLayout {
    /// Text tokens actually present (1 when collapsed).
    pub txt: usize,
    /// Image tokens.
    pub img: usize,
    /// Condition tokens (0 for a plain FLUX).
    pub cond: usize,
}

impl TokenLayout {
    /// Length of the joint image and condition stream.
    pub fn stream(&self) -> usize {
        self.img + self.cond
    }
    /// Length of the whole sequence.
    pub fn total(&self) -> usize {
        self.txt + self.stream()
    }
}

/// Which adapters act on which sample: sets of adapter indices, and the set of each sample. An argument, never state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterSet {
    /// Each set: indices of the stacked adapters, applied in this order.
    pub sets: Vec<Vec<usize>>,
    /// The set of each sample of the batch.
    pub of_sample: Vec<usize>,
}

impl AdapterSet {
    /// `batch` samples that all use the adapters `set`.
    pub fn uniform(set: Vec<usize>, batch: usize) -> Self {
        Self { sets: vec![set], of_sample: vec![0; batch] }
    }
    /// Consecutive runs: `(set, samples)` each.
    pub fn runs(runs: &[(Vec<usize>, usize)]) -> Self {
        let mut out = Self { sets: Vec::new(), of_sample: Vec::new() };
        for (i, (set, n)) in runs.iter().enumerate() {
            out.sets.push(set.clone());
            out.of_sample.extend(std::iter::repeat_n(i, *n));
        }
        out
    }
    /// The adapters of sample `b`.
    pub fn of(&self, b: usize) -> &[usize] {
        &self.sets[self.of_sample[b]]
    }
}

/// Which row of a modulation table each sample of a batch reads.
pub type RowMap = Arc<[usize]>;

/// Where the tokens of an image-and-condition stream find their modulation: tables `[rows, chunks·D]`, one for image
/// tokens and one for condition tokens, and the row of each that a sample reads.
#[derive(Clone, Debug)]
pub struct ModSource {
    /// The first condition token of the stream.
    pub split: usize,
    /// Row of the image table of each sample.
    pub image: RowMap,
    /// Row of the condition table of each sample, if there is such a table.
    pub cond: Option<RowMap>,
}

impl ModSource {
    /// Every token reads row `b` of the image table, `b` being its sample.
    pub fn per_sample(batch: usize) -> Self {
        Self { split: usize::MAX, image: (0..batch).collect(), cond: None }
    }

    /// Chunk `chunk` (D = `d` columns) of the row that token `t` of sample `b` reads.
    fn chunk<'t>(
        &self,
        tables: (&'t Tensor, Option<&'t Tensor>),
        b: usize,
        t: usize,
        d: usize,
        chunk: usize,
    ) -> &'t [f32] {
        let (table, row) = match (&self.cond, tables.1) {
            (Some(rows), Some(table)) if t >= self.split => (table, rows[b]),
            _ => (tables.0, self.image[b]),
        };
        &table.f32()[row * table.width() + chunk * d..][..d]
    }

    fn check(
        &self,
        op: &'static str,
        batch: usize,
        image: &Tensor,
        cond: Option<&Tensor>,
        d: usize,
        chunk: usize,
    ) -> Result<()> {
        for (what, table, map) in
            [("image", Some(image), Some(&self.image)), ("condition", cond, self.cond.as_ref())]
        {
            let (Some(table), Some(map)) = (table, map) else { continue };
            let rows = table.shape().first().copied().unwrap_or(0);
            if table.shape().len() != 2 || table.width() < (chunk + 1) * d {
                let detail = format!(
                    "the {what} modulation has shape {:?}, chunk {chunk} of width {d} is wanted",
                    table.shape()
                );
                return Err(Error::shape(op, detail));
            }
            if map.len() != batch || map.iter().any(|&r| r >= rows) {
                let detail = format!(
                    "the {what} modulation maps {} samples to {rows} rows: {map:?}; batch {batch}",
                    map.len()
                );
                return Err(Error::shape(op, detail));
            }
        }
        Ok(())
    }

    /// Adds `f(b, t, acc)` over all tokens to chunk `chunk` of the gradients of the tables, whose slots are
    /// `slots[first]` and, for a condition table, `slots[first + 1]`: tokens in order, then samples in order.
    #[allow(clippy::too_many_arguments, reason = "three extents, the chunk, the slots and the summand")]
    fn add_gradient(
        &self,
        slots: &mut [Option<Slot>],
        first: usize,
        batch: usize,
        d: usize,
        tokens: usize,
        chunk: usize,
        f: impl Fn(usize, usize, &mut [f32]) + Sync,
    ) -> Result<()> {
        let split = if self.cond.is_some() { self.split.min(tokens) } else { tokens };
        for (at, range, map) in
            [(first, 0..split, Some(&self.image)), (first + 1, split..tokens, self.cond.as_ref())]
        {
            let (Some(map), Some(Some(slot))) = (map, slots.get_mut(at)) else { continue };
            if slot.grad.device().is_meta() {
                continue;
            }
            let sums: Vec<Vec<f32>> = (0..batch)
                .into_par_iter()
                .map(|b| {
                    let mut acc = vec![0.0; d];
                    range.clone().for_each(|t| f(b, t, &mut acc));
                    acc
                })
                .collect();
            let width = slot.grad.width();
            let grad = slot.adding();
            for (b, sum) in sums.iter().enumerate() {
                crate::engine::simd::axpy(1.0, sum, &mut grad[map[b] * width + chunk * d..][..d]);
            }
        }
        Ok(())
    }
}

/// One shape of an op: feeds gradcheck, the benchmark, and on a GPU parity and the kernel report.
pub struct Case {
    /// Op and shape, e.g. `linear/768x128x512`.
    pub name: String,
    /// The op.
    pub op: Box<dyn Op>,
    /// Its inputs.
    pub inputs: Vec<Tensor>,
    /// Which inputs it has a gradient for.
    pub differentiable: Vec<bool>,
    /// Floating-point operations of forward.
    pub flops: f64,
    /// Bytes that forward must at least move.
    pub bytes: f64,
    /// Small enough for finite differences.
    pub check: bool,
    /// The inputs that are bf16 where the op computes in bf16; empty where it knows f32 alone.
    pub half: Vec<usize>,
    /// The inputs that are parameters: their gradients are f32 whatever they are.
    pub parameters: Vec<usize>,
    /// The longest sum that one element is.
    pub chain: usize,
    /// Does its CUDA form store an intermediate in the inputs' dtype?
    pub stores: bool,
}

impl Case {
    /// A case whose every input is differentiable.
    pub fn new(name: impl Into<String>, op: impl Op + 'static, inputs: Vec<Tensor>) -> Self {
        let differentiable = vec![true; inputs.len()];
        let bytes = inputs.iter().map(|t| (t.len() * t.dtype().size()) as f64).sum();
        Self {
            name: name.into(),
            op: Box::new(op),
            inputs,
            differentiable,
            flops: 0.0,
            bytes,
            check: true,
            half: Vec::new(),
            parameters: Vec::new(),
            chain: 1,
            stores: false,
        }
    }
    /// States the forward FLOPs and adds the outputs' bytes to the minimal traffic.
    pub fn cost(mut self, flops: f64, output_values: usize) -> Self {
        self.flops = flops;
        self.bytes += 4.0 * output_values as f64;
        self
    }
    /// Marks inputs that have no gradient.
    pub fn constant(mut self, inputs: &[usize]) -> Self {
        inputs.iter().for_each(|&i| self.differentiable[i] = false);
        self
    }
    /// States which inputs are bf16 in the op's bf16 form.
    pub fn half(mut self, inputs: &[usize]) -> Self {
        self.half = inputs.to_vec();
        self
    }
    /// Marks inputs as parameters.
    pub fn parameters(mut self, inputs: &[usize]) -> Self {
        self.parameters = inputs.to_vec();
        self
    }
    /// States the longest sum that an element of a result is.
    pub fn chain(mut self, terms: usize) -> Self {
        self.chain = terms;
        self
    }
    /// States that its CUDA form stores an intermediate in the inputs' dtype.
    pub fn stores(mut self, stores: bool) -> Self {
        self.stores = stores;
        self
    }
    /// Is it for a GPU, and too long for its emulator?
    pub fn long(&self) -> bool {
        self.flops > 1e9
    }
    /// Too large for finite differences: benchmark only.
    pub fn bench_only(mut self) -> Self {
        self.check = false;
        self
    }
}

/// Standard normals for a case: stream `stream` of seed 0, scaled.
pub fn random(device: &Device, shape: &[usize], stream: u64, scale: f32) -> Tensor {
    let mut values = vec![0.0; shape.iter().product()];
    Philox::new(0, stream).normals(0, &mut values);
    values.iter_mut().for_each(|v| *v *= scale);
    given(device, shape, &values)
}

/// These values for a case.
pub fn given(device: &Device, shape: &[usize], values: &[f32]) -> Tensor {
    Tensor::from_slice(device, shape, values).expect("a case is well-shaped, and small beside any memory")
}

/// Every op's cases.
pub fn cases(device: &Device) -> Vec<Case> {
    [
        activation::cases(device),
        attention::cases(device),
        blend::cases(device),
        cast::cases(device),
        colored_noise::cases(device),
        concat::cases(device),
        conv2d::cases(device),
        feed_forward::cases(device),
        gelu::cases(device),
        group_norm::cases(device),
        linear::cases(device),
        modulate::cases(device),
        negative::cases(device),
        norm::cases(device),
        patch::cases(device),
        qk_norm_rope::cases(device),
        reduce::cases(device),
        sdpa::cases(device),
        silu::cases(device),
        sobolev::cases(device),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Refuses a wrong number of inputs.
pub(crate) fn expect_inputs(op: &'static str, inputs: &[&Tensor], wanted: usize) -> Result<()> {
    if inputs.len() == wanted {
        return Ok(());
    }
    Err(Error::shape(op, format!("{} inputs were given, {wanted} are wanted", inputs.len())))
}

/// Refuses inputs that are not stored as f32.
pub(crate) fn expect_f32(op: &'static str, inputs: &[&Tensor]) -> Result<()> {
    match inputs.iter().position(|t| t.dtype() != DType::F32) {
        None => Ok(()),
        Some(i) => Err(Error::shape(op, format!("input {i} is {:?}, wanted F32", inputs[i].dtype()))),
    }
}

/// Refuses tensors that are not of `dtype`.
pub(crate) fn expect_dtypes(op: &'static str, dtype: DType, tensors: &[&Tensor]) -> Result<()> {
    match tensors.iter().find(|t| t.dtype() != dtype) {
        None => Ok(()),
        Some(t) => Err(Error::shape(op, format!("{t:?} beside {dtype:?}: its kernels take one type"))),
    }
}

/// Refuses to be asked for the gradient of an input that has none.
pub(crate) fn expect_constant(op: &'static str, save: &Save, inputs: &[(usize, &str)]) -> Result<()> {
    match inputs.iter().find(|(i, _)| save.needs(*i)) {
        None => Ok(()),
        Some((i, what)) => {
            Err(Error::shape(op, format!("input {i} ({what}) has no gradient here: pass it as a constant")))
        }
    }
}

/// The extents of a three-dimensional input, named in the error otherwise.
pub(crate) fn dims3(op: &'static str, what: &str, t: &Tensor) -> Result<[usize; 3]> {
    t.shape().try_into().map_err(|_| {
        Error::shape(op, format!("{what} has shape {:?}, wanted [batch, tokens, width]", t.shape()))
    })
}

/// The extents of a batch of planes, named in the error otherwise.
pub(crate) fn dims4(op: &'static str, what: &str, t: &Tensor) -> Result<[usize; 4]> {
    t.shape().try_into().map_err(|_| {
        Error::shape(op, format!("{what} has shape {:?}, wanted [batch, channels, height, width]", t.shape()))
    })
}
