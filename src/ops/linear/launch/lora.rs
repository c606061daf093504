//! The adapters: `kernels/linear_lora.cu` (bf16), `kernels/linear_f32.cu`, and their factors put side by side.
//!
//! All adapters of a layer stand side by side in one A `[R, in]` and one B `[out, R]`, each with its rank rounded up to 16.
//! `S = factor ∘ (x·Aᵀ)` is of the rows that adapters act on alone, packed; a factor is the adapter's scale, or 0 where
//! the sample's set has it not. Then S·Bᵀ is R more of the main product's k. Backward has `dS = factor ∘ (dz·B)`, dS·A
//! likewise, and dA = dSᵀ·x, dB = dzᵀ·S. S is computed again for dB rather than kept: that is one narrow product more of
//! the trained ranks alone, over an x that is kept anyway, and what is kept stays what the CPU keeps.

use super::super::super::{Slot, cuda, expect_dtypes};
use super::super::{Dims, Layout, Linear};
use super::OP;
use super::product::{DEPTH, Floats, Joined, Problem};
use crate::Result;
use crate::engine::cuda::{Gpu, Kernel};
use crate::engine::{DType, Tensor};
use bytemuck::NoUninit;
use std::ops::Range;
use std::sync::Arc;

/// What a rank is rounded up to.
const RANK: usize = 16;
/// Rows of a tile.
const ROWS: usize = 64;
/// Packed rows of one part of a gradient.
const CHUNK: usize = 512;

/// `Rows` of the source.
#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
pub struct Rows {
    tokens: i32,
    start: i32,
    count: i32,
}

impl Rows {
    /// As the source's: is one of the rows first .. end among them?
    pub fn any(&self, first: usize, end: usize) -> bool {
        let [tokens, start, count] = [self.tokens, self.start, self.count].map(|n| n as usize);
        let (t, past) = (first % tokens, first % tokens + end - first);
        count > 0 && ((t < start + count && past > start) || past > tokens + start)
    }
}

/// `Extra` of the source.
#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
pub struct Extra {
    s: u64,
    f: u64,
    rows: Rows,
    rank: i32,
    ldf: i32,
    unused: i32,
}

/// A narrow product's result and the factor that the main product multiplies it with.
pub struct Adapted {
    s: Tensor,
    f: Tensor,
    /// The columns of f, where it is of backward and they are n.
    columns: Range<usize>,
    pub rows: Rows,
    pub rank: usize,
}

impl Adapted {
    pub fn extra(&self, gpu: &Gpu) -> Result<Extra> {
        Ok(Extra {
            s: gpu.address(&self.s)?,
            f: gpu.address(&self.f)? + (self.columns.start * self.f.dtype().size()) as u64,
            rows: self.rows,
            rank: cuda::int(OP, self.rank)?,
            ldf: cuda::int(OP, self.f.width())?,
            unused: 0,
        })
    }
    pub fn bytes(&self) -> usize {
        let rows = self.f.len() / self.f.width().max(1);
        (self.s.len() + rows * self.columns.len()) * self.s.dtype().size()
    }
    /// Whether rows begin on 16 bytes, where they are bf16.
    pub fn whole(&self) -> bool {
        [&self.s, &self.f].iter().all(|t| Joined(std::slice::from_ref(*t)).whole())
            && self.columns.start.is_multiple_of(8)
    }
    /// The same for these columns of dx.
    pub fn columns(&self, columns: Range<usize>) -> Self {
        Self { s: self.s.clone(), f: self.f.clone(), columns, ..*self }
    }
}

/// The adapters of a layer beside each other.
pub struct Stack {
    rows: Rows,
    /// Rows that they act on.
    packed: usize,
    /// Of all of them.
    pub rank: usize,
    /// Each one's columns, without what they were rounded up by.
    columns: Vec<Range<usize>>,
    /// Each sample's factors on the device, and how many there are.
    factor: (u64, usize),
    d: Dims,
}

impl Linear {
    /// How the adapters stand beside each other; `None` where there is nothing they act on.
    pub(super) fn stack<'t>(
        &self,
        gpu: &Gpu,
        at: &Layout,
        input: &impl Fn(usize) -> &'t Tensor,
        d: Dims,
    ) -> Result<Option<Stack>> {
        let Some(lora) = &self.lora else { return Ok(None) };
        let (mut rank, mut columns) = (0, Vec::new());
        for i in 0..lora.adapters.len() {
            let r = input(at.lora + 2 * i).shape()[0];
            columns.push(rank..rank + r);
            rank += r.next_multiple_of(RANK);
        }
        let tokens = self.tokens(d.tokens);
        if rank * tokens.len() * d.batch == 0 {
            return Ok(None);
        }
        let name = format!("{OP} {:?} {:?} {columns:?}", lora.set, lora.adapters);
        let samples = lora.set.of_sample.len();
        let factor = gpu.constant(name, || {
            let mut factor = vec![0f32; samples * rank];
            for (b, row) in factor.chunks_exact_mut(rank).enumerate() {
                for (i, scale) in self.active(b) {
                    row[columns[i].clone()].iter_mut().for_each(|f| *f += scale);
                }
            }
            factor
        })?;
        let int = |n| cuda::int(OP, n);
        let rows = Rows { tokens: int(d.tokens)?, start: int(tokens.start)?, count: int(tokens.len())? };
        let packed = d.batch * tokens.len();
        Ok(Some(Stack { rows, packed, rank, columns, factor: (factor, samples * rank), d }))
    }

    /// The gradients of every adapter from x and dz, and the adapters' part of dx where that is wanted.
    pub(super) fn backward_adapters<'t>(
        &self,
        gpu: &Gpu,
        [x, dz]: [&[Tensor]; 2],
        at: &Layout,
        input: &impl Fn(usize) -> &'t Tensor,
        d: Dims,
        slots: &mut [Option<Slot>],
    ) -> Result<Option<Adapted>> {
        let Some(stack) = self.stack(gpu, at, input, d)? else {
            // Those that act on nothing.
            for slot in slots[at.lora..].iter_mut().flatten().filter(|s| !s.accumulate) {
                slot.grad.zero()?;
            }
            return Ok(None);
        };
        let wanted = stack.wanted(at, slots);
        let [has_a, has_b] = [0, 1].map(|of| slots[at.lora + of..].iter().step_by(2).any(Option::is_some));
        let through = slots[..at.w].iter().any(Option::is_some);
        let (x, dz) = (Joined(x), Joined(dz));
        let down = if through || has_b { Some(stack.down(gpu, at, input, dz.dtype())?) } else { None };
        if let (true, Some(down)) = (has_b, &down) {
            let s = stack.narrow(gpu, x, down, true, &wanted)?;
            stack.gradients(gpu, (dz, &s), &wanted, at, false, slots)?;
        }
        if !through && !has_a {
            return Ok(None);
        }
        let up = stack.up(gpu, at, input, dz.dtype())?;
        let columns = if through { 0..stack.rank } else { wanted.clone() };
        let ds = stack.narrow(gpu, dz, &up, false, &columns)?;
        if has_a {
            stack.gradients(gpu, (x, &ds), &wanted, at, true, slots)?;
        }
        Ok(down.filter(|_| through).map(|down| stack.adapted(ds, down)))
    }
}

impl Stack {
    /// A of all adapters, [R, in].
    pub fn down<'t>(
        &self,
        gpu: &Gpu,
        at: &Layout,
        input: &impl Fn(usize) -> &'t Tensor,
        dtype: DType,
    ) -> Result<Tensor> {
        let device = input(at.w).device();
        let mut all = Tensor::empty_as(device, &[self.rank, self.d.in_], dtype)?;
        for (i, columns) in self.columns.iter().enumerate() {
            let extents = [columns.len().next_multiple_of(RANK), self.d.in_];
            put(gpu, input(at.lora + 2 * i), &mut all, columns.start * self.d.in_, extents)?;
        }
        Ok(all)
    }

    /// B of all adapters, [out, R].
    pub fn up<'t>(
        &self,
        gpu: &Gpu,
        at: &Layout,
        input: &impl Fn(usize) -> &'t Tensor,
        dtype: DType,
    ) -> Result<Tensor> {
        let device = input(at.w).device();
        let mut all = Tensor::empty_as(device, &[self.d.out, self.rank], dtype)?;
        for (i, columns) in self.columns.iter().enumerate() {
            let extents = [self.d.out, columns.len().next_multiple_of(RANK)];
            put(gpu, input(at.lora + 2 * i + 1), &mut all, columns.start, extents)?;
        }
        Ok(all)
    }

    /// What the main product takes of a narrow one.
    pub fn adapted(&self, s: Tensor, f: Tensor) -> Adapted {
        let columns = 0..f.width();
        Adapted { s, f, columns, rows: self.rows, rank: self.rank }
    }

    /// Columns `columns` of factor ∘ (y·F), [packed, R]; the others are not written. `along`: F is A, not B.
    pub fn narrow(
        &self,
        gpu: &Gpu,
        y: Joined,
        f: &Tensor,
        along: bool,
        columns: &Range<usize>,
    ) -> Result<Tensor> {
        let (dtype, k) = (y.dtype(), y.width());
        let mut s = Tensor::empty_as(f.device(), &[self.packed, self.rank], dtype)?;
        let name = if along { "linear_fwd_lora" } else { "linear_bwd_lora" };
        let (kernel, threads, tile) = kernel(gpu, name, y, f)?;
        let (m, n, size) = (self.packed, columns.len(), dtype.size());
        gpu.launch(&kernel, [m.div_ceil(ROWS) * n.div_ceil(tile), 1, 1], threads)
            .value(y.given(gpu)?)
            .moves(m * k * size)
            .read_part(f, n * k * size)
            .write_part(&mut s, m * n * size)
            .value(self.factor.0)
            .moves(4 * self.factor.1)
            .value(self.rows)
            .value(cuda::int(OP, columns.start)?)
            .value(Problem::new([m, n, k], [k, f.width(), self.rank], false)?)
            .multiplies(flops(dtype, [m, n, k]))
            .run()?;
        Ok(s)
    }

    /// The columns that the adapters with a wanted gradient span.
    pub fn wanted(&self, at: &Layout, slots: &[Option<Slot>]) -> Range<usize> {
        let has = |i: usize| slots[at.lora + 2 * i].is_some() || slots[at.lora + 2 * i + 1].is_some();
        let mut wanted = (0..self.columns.len()).filter(|&i| has(i));
        let Some(first) = wanted.next() else { return 0..0 };
        let last = wanted.next_back().unwrap_or(first);
        self.columns[first].start..self.columns[last].end.next_multiple_of(RANK)
    }

    /// yᵀ·s over the packed rows into the slots of every adapter's A (`across`) or B; of s the columns `columns`.
    pub fn gradients(
        &self,
        gpu: &Gpu,
        (y, s): (Joined, &Tensor),
        columns: &Range<usize>,
        at: &Layout,
        across: bool,
        slots: &mut [Option<Slot>],
    ) -> Result<()> {
        let (dtype, m, n, k) = (y.dtype(), y.width(), columns.len(), self.packed);
        let parts = k.div_ceil(CHUNK);
        let mut partial = Tensor::empty(s.device(), &[parts, m * n])?;
        let (kernel, threads, tile) = kernel(gpu, "linear_bwd_lora_grad", y, s)?;
        gpu.launch(&kernel, [m.div_ceil(ROWS) * n.div_ceil(tile), parts, 1], threads)
            .value(y.given(gpu)?)
            .moves(k * m * dtype.size())
            .read_part(s, k * n * dtype.size())
            .write(&mut partial)
            .value(self.rows)
            .value(cuda::int(OP, columns.start)?)
            .value(i32::from(across))
            .value(Problem::new([m, n, k], [m, self.rank, n], false)?)
            .multiplies(flops(dtype, [m, n, k]))
            .run()?;
        for (i, of) in self.columns.iter().enumerate() {
            let Some(slot) = &mut slots[at.lora + 2 * i + usize::from(!across)] else { continue };
            let first = of.start - columns.start;
            let (first, extents, ld) =
                if across { (first * m, [of.len(), m], m) } else { (first, [m, of.len()], n) };
            take(gpu, &partial, first, extents, ld, slot)?;
        }
        Ok(())
    }
}

/// A narrow product's kernel, its threads and the columns of its tile.
fn kernel(gpu: &Gpu, name: &str, a: Joined, b: &Tensor) -> Result<(Arc<Kernel>, u32, usize)> {
    expect_dtypes(OP, a.dtype(), &[b])?;
    if a.dtype() == DType::F32 {
        return Ok((cuda::kernel(gpu, "linear_f32.cu", name, DType::F32)?, 256, 32));
    }
    let whole = a.whole() && Joined(std::slice::from_ref(b)).whole();
    let name = format!("{name}{}_bf16", if whole { "" } else { "_any" });
    Ok((gpu.kernel("linear_lora.cu", &name)?, 128, 64))
}

/// What a narrow product multiplies on tensor cores.
fn flops(dtype: DType, [m, n, k]: [usize; 3]) -> usize {
    match dtype {
        DType::Bf16 => 2 * m.next_multiple_of(ROWS) * n * k.next_multiple_of(DEPTH),
        DType::F32 => 0,
    }
}

/// Puts one adapter's factor in its window of all, of `extents`, from value `at` on.
fn put(gpu: &Gpu, from: &Tensor, all: &mut Tensor, at: usize, [height, width]: [usize; 2]) -> Result<()> {
    let (int, ld) = (|n| cuda::int(OP, n), all.width());
    let kernel = cuda::kernel(gpu, "linear_around.cu", "linear_stack", all.dtype())?;
    let bytes = height * width * all.dtype().size();
    gpu.launch(&kernel, [cuda::blocks(gpu, height * width), 1, 1], cuda::THREADS)
        .value(Floats::new(gpu, Some(from))?)
        .moves(from.len() * from.dtype().size())
        .write_part(all, bytes)
        .value(cuda::long(at))
        .value(int(from.shape()[0])?)
        .value(int(from.width())?)
        .value(int(height * width)?)
        .value(int(width)?)
        .value(int(ld)?)
        .run()
}

/// The sum of a window of every part, from value `first` on, into the slot.
fn take(
    gpu: &Gpu,
    partial: &Tensor,
    first: usize,
    [rows, columns]: [usize; 2],
    ld: usize,
    slot: &mut Slot,
) -> Result<()> {
    expect_dtypes(OP, DType::F32, &[&slot.grad])?;
    let int = |n| cuda::int(OP, n);
    let kernel = cuda::kernel(gpu, "linear_around.cu", "linear_bwd_unstack", DType::F32)?;
    let parts = partial.shape()[0];
    gpu.launch(&kernel, [cuda::blocks(gpu, rows * columns), 1, 1], cuda::THREADS)
        .read_part(partial, 4 * parts * rows * columns)
        .value(cuda::long(first))
        .write_or_add(&mut slot.grad, slot.accumulate)
        .value(int(rows * columns)?)
        .value(int(columns)?)
        .value(int(ld)?)
        .value(cuda::long(partial.width()))
        .value(int(parts)?)
        .value(i32::from(slot.accumulate))
        .run()
}
