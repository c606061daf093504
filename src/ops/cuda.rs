//! What the CUDA side of several ops has in common. Knows launches, not formulas.

use super::{Slot, expect_dtypes};
use crate::engine::cuda::{Gpu, Kernel};
use crate::engine::{DType, Tensor};
use crate::{Error, Result};
use std::sync::Arc;

/// Threads of a block of an elementwise kernel.
pub const THREADS: u32 = 256;

/// Blocks that cover `items` with one thread each, but no more than fill the device eight times over: the kernels walk on.
pub fn blocks(gpu: &Gpu, items: usize) -> usize {
    items.div_ceil(THREADS as usize).clamp(1, 8 * gpu.properties().multiprocessors.max(1) as usize)
}

/// Kernel `name` for `dtype`: `gelu_fwd` and bf16 make `gelu_fwd_bf16`.
pub fn kernel(gpu: &Gpu, source: &'static str, name: &str, dtype: DType) -> Result<Arc<Kernel>> {
    gpu.kernel(source, &format!("{name}_{}", dtype.name()))
}

/// A length or an index as the kernels' `int`.
pub fn int(op: &'static str, n: usize) -> Result<i32> {
    i32::try_from(n).map_err(|_| Error::shape(op, format!("an extent of {n} exceeds the kernels' 2³¹ − 1")))
}

/// A length as the kernels' `i64`.
pub fn long(n: usize) -> i64 {
    n as i64
}

/// y = f(x), element by element.
pub fn map(gpu: &Gpu, source: &'static str, name: &str, x: &Tensor, y: &mut Tensor) -> Result<()> {
    let kernel = kernel(gpu, source, name, x.dtype())?;
    let n = x.len();
    gpu.launch(&kernel, [blocks(gpu, n / x.dtype().per_16_bytes() + 1), 1, 1], THREADS)
        .read(x)
        .write(y)
        .value(long(n))
        .run()
}

/// y = x in y's dtype, which is the other one.
pub fn cast(gpu: &Gpu, x: &Tensor, y: &mut Tensor) -> Result<()> {
    cast_or_add(gpu, x, y, false)
}

/// The slot's gradient = x in its dtype, which is the other one, or x added to it.
pub fn cast_into(gpu: &Gpu, x: &Tensor, slot: &mut Slot) -> Result<()> {
    cast_or_add(gpu, x, &mut slot.grad, slot.accumulate)
}

fn cast_or_add(gpu: &Gpu, x: &Tensor, y: &mut Tensor, accumulate: bool) -> Result<()> {
    let kernel = gpu.kernel("elementwise.cu", &format!("cast_{}_{}", x.dtype().name(), y.dtype().name()))?;
    let n = x.len();
    gpu.launch(&kernel, [blocks(gpu, n / 8 + 1), 1, 1], THREADS)
        .read(x)
        .write_or_add(y, accumulate)
        .value(long(n))
        .value(i32::from(accumulate))
        .run()
}

/// The slot's gradient [n] = the sums of the columns of `x` [rows, n], or they are added to it.
pub fn column_sums(gpu: &Gpu, x: &Tensor, slot: &mut Slot) -> Result<()> {
    const OP: &str = "column sums";
    expect_dtypes(OP, DType::F32, &[&slot.grad])?;
    let n = slot.grad.len();
    let kernel = kernel(gpu, "linear_around.cu", "linear_bwd_db", x.dtype())?;
    gpu.launch(&kernel, [n.div_ceil(32), 1, 1], THREADS)
        .read(x)
        .write_or_add(&mut slot.grad, slot.accumulate)
        .value(int(OP, x.len() / n.max(1))?)
        .value(int(OP, n)?)
        .value(int(OP, n)?)
        .value(i32::from(slot.accumulate))
        .run()
}

/// The slot's gradient = x, or x added to it.
pub fn add(gpu: &Gpu, x: &Tensor, slot: &mut Slot) -> Result<()> {
    expect_dtypes("add", x.dtype(), &[&slot.grad])?;
    if !slot.accumulate {
        return slot.grad.copy_from(x);
    }
    let kernel = kernel(gpu, "elementwise.cu", "add", x.dtype())?;
    let n = x.len();
    gpu.launch(&kernel, [blocks(gpu, n / x.dtype().per_16_bytes() + 1), 1, 1], THREADS)
        .read(x)
        .write_or_add(&mut slot.grad, true)
        .value(long(n))
        .run()
}

/// The slot's gradient = f(x, dy), element by element, or added to it.
pub fn slope(
    gpu: &Gpu,
    op: &'static str,
    [source, name]: [&'static str; 2],
    x: &Tensor,
    dy: &Tensor,
    slot: &mut Slot,
) -> Result<()> {
    expect_dtypes(op, x.dtype(), &[dy, &slot.grad])?;
    let kernel = kernel(gpu, source, name, x.dtype())?;
    let n = dy.len();
    gpu.launch(&kernel, [blocks(gpu, n / x.dtype().per_16_bytes() + 1), 1, 1], THREADS)
        .read(x)
        .read(dy)
        .write_or_add(&mut slot.grad, slot.accumulate)
        .value(long(n))
        .value(i32::from(slot.accumulate))
        .run()
}

/// The slot's gradient = factor·x, or that is added to it; the factor is a number on the device.
pub fn add_scaled(gpu: &Gpu, factor: &Tensor, x: &Tensor, slot: &mut Slot) -> Result<()> {
    expect_dtypes("scale", DType::F32, &[factor, x, &slot.grad])?;
    let kernel = kernel(gpu, "elementwise.cu", if slot.accumulate { "axpy" } else { "scale" }, DType::F32)?;
    gpu.launch(&kernel, [blocks(gpu, x.len() / 4 + 1), 1, 1], THREADS)
        .value(1f32)
        .read(factor)
        .read(x)
        .write_or_add(&mut slot.grad, slot.accumulate)
        .value(long(x.len()))
        .run()
}
