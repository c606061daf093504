//! The gate of the residual's epilogue: where it stands, its gradient, dz.

use super::super::super::modulate::launch::{Tables, row_map, table_bytes};
use super::super::super::{ModSource, Slot, cuda, expect_dtypes};
use super::super::{Dims, Layout};
use super::OP;
use crate::Result;
use crate::engine::cuda::Gpu;
use crate::engine::{DType, Tensor};

const SOURCE: &str = "linear_around.cu";

/// The tables that the gate is a chunk of.
pub fn tables<'t>(
    gpu: &Gpu,
    source: &ModSource,
    at: &Layout,
    input: &impl Fn(usize) -> &'t Tensor,
) -> Result<Tables> {
    let (image, cond) = (input(at.image.expect("gated")), at.cond.map(input));
    expect_dtypes(OP, DType::F32, &[image])?;
    expect_dtypes(OP, DType::F32, cond.as_slice())?;
    Tables::new(gpu, source, image, cond)
}

/// A kernel that reads dy beside tensors of `dtype`.
fn name(name: &str, dtype: DType, dy: &Tensor) -> String {
    format!("{name}{}_{}", if dy.dtype() == dtype { "" } else { "_wide" }, dtype.name())
}

/// dz = gate ⊙ dy in `dtype`.
pub fn backward(
    gpu: &Gpu,
    (source, chunk): (&ModSource, usize),
    tables: Tables,
    dy: &Tensor,
    dtype: DType,
    d: Dims,
) -> Result<Tensor> {
    let mut dz = Tensor::empty_as(dy.device(), dy.shape(), dtype)?;
    let rows = d.batch * d.tokens;
    let int = |n| cuda::int(OP, n);
    let kernel = gpu.kernel(SOURCE, &name("linear_bwd_gate", dtype, dy))?;
    gpu.launch(&kernel, [rows.div_ceil(32), d.out.div_ceil(1024), 1], cuda::THREADS)
        .read(dy)
        .value(tables)
        .moves(table_bytes(source, d.batch, d.tokens, d.out, 1))
        .write(&mut dz)
        .value(int(rows)?)
        .value(int(d.tokens)?)
        .value(int(d.out)?)
        .value(int(chunk)?)
        .run()?;
    Ok(dz)
}

/// The gradients of the tables: of chunk `chunk` the sums of dy ⊙ z, of the others nothing.
pub fn table_gradients(
    gpu: &Gpu,
    (source, chunk): (&ModSource, usize),
    (dy, z): (&Tensor, &Tensor),
    at: &Layout,
    d: Dims,
    slots: &mut [Option<Slot>],
) -> Result<()> {
    let split = if source.cond.is_some() { source.split.min(d.tokens) } else { d.tokens };
    let int = |n| cuda::int(OP, n);
    for (at, range, map) in
        [(at.image, 0..split, Some(&source.image)), (at.cond, split..d.tokens, source.cond.as_ref())]
    {
        let (Some(map), Some(slot)) = (map, at.and_then(|i| slots[i].as_mut())) else { continue };
        expect_dtypes(OP, DType::F32, &[&slot.grad])?;
        if !slot.accumulate {
            slot.grad.zero()?;
        }
        let (rows, width) = (slot.grad.shape()[0], slot.grad.width());
        let (values, sums) = (d.batch * range.len() * d.out, 4 * rows * d.out);
        let kernel = gpu.kernel(SOURCE, &name("linear_bwd_table", z.dtype(), dy))?;
        gpu.launch(&kernel, [d.out.div_ceil(32), rows, 1], cuda::THREADS)
            .read_part(dy, values * dy.dtype().size())
            .read_part(z, values * z.dtype().size())
            .value(row_map(gpu, map)?)
            .moves(4 * d.batch)
            .write_part(&mut slot.grad, sums * if slot.accumulate { 2 } else { 1 })
            .value(int(d.batch)?)
            .value(int(d.tokens)?)
            .value(int(range.start)?)
            .value(int(range.end)?)
            .value(int(d.out)?)
            .value(int(width)?)
            .value(int(chunk)?)
            .value(i32::from(slot.accumulate))
            .run()?;
    }
    Ok(())
}
