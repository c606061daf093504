//! The CUDA side of mixed fields: `kernels/blend.cu`.

use super::super::{Slot, cuda};
use super::{Blend, Factor};
use crate::Result;
use crate::engine::Tensor;
use crate::engine::cuda::Gpu;

const SOURCE: &str = "blend.cu";

/// A grid over the elements of each sample.
fn grid(gpu: &Gpu, x: &Tensor) -> [usize; 3] {
    [cuda::blocks(gpu, x.stride0() / 4 + 1), x.shape().first().copied().unwrap_or(1), 1]
}

pub fn forward(
    gpu: &Gpu,
    op: &Blend,
    x: &Tensor,
    y: &Tensor,
    sigma: &Tensor,
    out: &mut Tensor,
) -> Result<()> {
    let kernel = gpu.kernel(SOURCE, "blend_fwd_f32")?;
    let launch = gpu.launch(&kernel, grid(gpu, x), cuda::THREADS).read(x).read(y).read(sigma).write(out);
    let launch = [op.x, op.y].iter().fold(launch, |l, f| l.value(f.at_0).value(f.slope));
    launch.value(cuda::long(x.stride0())).run()
}

pub fn backward(gpu: &Gpu, factor: Factor, dy: &Tensor, sigma: &Tensor, slot: &mut Slot) -> Result<()> {
    let kernel = gpu.kernel(SOURCE, "blend_bwd_f32")?;
    let launch = gpu.launch(&kernel, grid(gpu, dy), cuda::THREADS).read(dy).read(sigma);
    let launch = launch.write_or_add(&mut slot.grad, slot.accumulate).value(factor.at_0).value(factor.slope);
    launch.value(cuda::long(dy.stride0())).value(i32::from(slot.accumulate)).run()
}
