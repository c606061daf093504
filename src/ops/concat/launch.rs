//! The CUDA side of joining and cutting: `kernels/concat.cu`, one kernel for both, forward and backward.

use super::super::{cuda, expect_dtypes};
use crate::Result;
use crate::engine::Tensor;

/// A block of columns moved: its rows and width; of each side the width of a row and where the block begins in it.
pub struct Block {
    pub rows: usize,
    pub width: usize,
    pub from: [usize; 2],
    pub to: [usize; 2],
}

/// Copies the block, or adds it.
pub fn copy(from: &Tensor, to: &mut Tensor, block: &Block, accumulate: bool) -> Result<()> {
    expect_dtypes("concat", from.dtype(), &[to])?;
    let (device, values) = (from.device().clone(), block.rows * block.width);
    let (Some(gpu), 1..) = (device.gpu(), values) else { return Ok(()) };
    let kernel = cuda::kernel(gpu, "concat.cu", "concat_copy", from.dtype())?;
    let grid = [cuda::blocks(gpu, values / from.dtype().per_16_bytes() + 1), 1, 1];
    let bytes = values * from.dtype().size();
    let launch = gpu.launch(&kernel, grid, cuda::THREADS).read_part(from, bytes).write_part(to, bytes);
    let launch = launch.moves(if accumulate { bytes } else { 0 });
    let extents = [block.rows, block.width, block.from[0], block.from[1], block.to[0], block.to[1]];
    let launch = extents.into_iter().fold(launch, |launch, n| launch.value(cuda::long(n)));
    launch.value(i32::from(accumulate)).run()
}
