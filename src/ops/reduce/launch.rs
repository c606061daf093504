//! The CUDA side of means: `kernels/reduce.cu`.

use super::super::{Slot, cuda};
use crate::Result;
use crate::engine::Tensor;
use crate::engine::cuda::Gpu;

const SOURCE: &str = "reduce.cu";
/// Values of a sample that a block sums.
const PIECE: usize = 4096;

/// v − target and the mean of its squares, per sample of `target`.
pub fn mean_square(
    gpu: &Gpu,
    v: &Tensor,
    target: &Tensor,
    residual: &mut Tensor,
    out: &mut Tensor,
) -> Result<()> {
    let (samples, each) = (out.len(), target.stride0());
    let pieces = each.div_ceil(PIECE);
    // f64: two f32 each.
    let mut partial = Tensor::empty(v.device(), &[samples * pieces, 2])?;
    let kernel = gpu.kernel(SOURCE, "mean_square_fwd_f32")?;
    let launch = gpu.launch(&kernel, [pieces, samples, 1], cuda::THREADS).read(v).read(target);
    launch.write(residual).write(&mut partial).value(cuda::long(each)).run()?;
    let kernel = gpu.kernel(SOURCE, "mean_square_fwd_sum_f32")?;
    let launch = gpu.launch(&kernel, [samples, 1, 1], 32).read(&partial).write(out);
    launch.value(cuda::int("mean_square", pieces)?).value(each as f64).run()
}

/// The gradient of v.
pub fn mean_square_backward(gpu: &Gpu, residual: &Tensor, de: &Tensor, slot: &mut Slot) -> Result<()> {
    let (samples, each) = (residual.shape()[0], residual.stride0());
    let kernel = gpu.kernel(SOURCE, "mean_square_bwd_f32")?;
    // Four values to a thread, beside the one that each reads of de.
    let launch = gpu.launch(&kernel, [cuda::blocks(gpu, each.div_ceil(4)), samples, 1], cuda::THREADS);
    let launch = launch.read(residual).read(de).write_or_add(&mut slot.grad, slot.accumulate);
    launch.value(cuda::long(each)).value(2.0 / each as f32).value(i32::from(slot.accumulate)).run()
}

/// The mean of a vector.
pub fn mean(gpu: &Gpu, x: &Tensor) -> Result<Tensor> {
    let mut y = Tensor::empty(x.device(), &[])?;
    let kernel = gpu.kernel(SOURCE, "mean_fwd_f32")?;
    let launch = gpu.launch(&kernel, [1, 1, 1], cuda::THREADS).read(x).write(&mut y);
    launch.value(cuda::int("mean", x.len())?).run()?;
    Ok(y)
}

/// dy/n for every value.
pub fn mean_backward(gpu: &Gpu, dy: &Tensor, n: f32, slot: &mut Slot) -> Result<()> {
    let values = slot.grad.len();
    let kernel = gpu.kernel(SOURCE, "mean_bwd_f32")?;
    let launch = gpu
        .launch(&kernel, [values.div_ceil(256), 1, 1], cuda::THREADS)
        .read(dy)
        .write_or_add(&mut slot.grad, slot.accumulate);
    launch.value(cuda::int("mean", values)?).value(n).value(i32::from(slot.accumulate)).run()
}
