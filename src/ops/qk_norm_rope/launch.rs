//! The CUDA side of QK-norm and RoPE: `kernels/qk_norm_rope.cu`.

use super::super::embed::RopeTable;
use super::super::{Slot, cuda, expect_dtypes};
use crate::Result;
use crate::engine::cuda::Gpu;
use crate::engine::{DType, Tensor};

const OP: &str = "qk_norm_rope";
const SOURCE: &str = "qk_norm_rope.cu";
/// Most pairs of a head.
pub const MOST: usize = 128;
/// Most heads of a token that a warp takes, over all samples.
const RUN: usize = 64;
/// Warps of a block.
const WARPS: usize = 8;

/// `Heads` of the source, and the blocks that take them. Partial sums depend on both: they follow from the shape alone.
fn heads(table: &RopeTable, x: &Tensor) -> Result<([i32; 5], usize)> {
    let (tokens, heads) = (x.shape()[1], x.width() / (2 * table.half));
    let all = x.shape()[0] * heads;
    let run = all.div_ceil(all.div_ceil(RUN).max(1)).max(1);
    let int = |n| cuda::int(OP, n);
    let given = [int(all)?, int(heads)?, int(tokens)?, int(table.half)?, int(run)?];
    Ok((given, (tokens * all.div_ceil(run)).div_ceil(WARPS)))
}

/// Bytes of the angles.
pub fn angle_bytes(table: &RopeTable) -> usize {
    8 * table.cos.len()
}

/// The angles on the device: cosines, sines.
pub fn angles(gpu: &Gpu, table: &RopeTable) -> Result<[u64; 2]> {
    Ok([
        gpu.constant(format!("cos {}", table.key), || table.cos.clone())?,
        gpu.constant(format!("sin {}", table.key), || table.sin.clone())?,
    ])
}

pub fn forward(gpu: &Gpu, table: &RopeTable, x: &Tensor, w: &Tensor, y: &mut Tensor) -> Result<()> {
    expect_dtypes(OP, DType::F32, &[w])?;
    let [cos, sin] = angles(gpu, table)?;
    let (heads, blocks) = heads(table, x)?;
    let kernel = cuda::kernel(gpu, SOURCE, "qk_norm_rope_fwd", x.dtype())?;
    gpu.launch(&kernel, [blocks, 1, 1], cuda::THREADS)
        .read(x)
        .read(w)
        .value(cos)
        .value(sin)
        .moves(angle_bytes(table))
        .write(y)
        .value(heads)
        .run()
}

pub fn backward(
    gpu: &Gpu,
    table: &RopeTable,
    [x, w]: [&Tensor; 2],
    dy: &Tensor,
    mut dx: Option<&mut Slot>,
    dw: Option<&mut Slot>,
) -> Result<()> {
    expect_dtypes(OP, x.dtype(), &[dy])?;
    let [cos, sin] = angles(gpu, table)?;
    let (heads, blocks) = heads(table, x)?;
    let mut partial =
        dw.is_some().then(|| Tensor::empty(dy.device(), &[blocks, 2 * table.half])).transpose()?;
    let accumulate = dx.as_ref().is_some_and(|s| s.accumulate);
    if let Some(slot) = &dx {
        expect_dtypes(OP, x.dtype(), &[&slot.grad])?;
    }
    let kernel = cuda::kernel(gpu, SOURCE, "qk_norm_rope_bwd", x.dtype())?;
    gpu.launch(&kernel, [blocks, 1, 1], cuda::THREADS)
        .read(x)
        .read(w)
        .value(cos)
        .value(sin)
        .moves(angle_bytes(table))
        .read(dy)
        .write_or_null(dx.as_mut().map(|s| &mut s.grad))
        .moves(if accumulate { dy.len() * dy.dtype().size() } else { 0 })
        .write_or_null(partial.as_mut())
        .value(heads)
        .value(i32::from(accumulate))
        .run()?;
    let (Some(partial), Some(slot)) = (&partial, dw) else { return Ok(()) };
    cuda::column_sums(gpu, partial, slot)
}
