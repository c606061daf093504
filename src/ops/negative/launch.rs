//! The CUDA side of coupled-negative synthesis: `kernels/negative.cu`.

use super::super::{Slot, cuda};
use crate::Result;
use crate::engine::Tensor;
use crate::engine::cuda::Gpu;

const SOURCE: &str = "negative.cu";

/// A grid over the elements of each sample.
fn grid(gpu: &Gpu, x: &Tensor, per_thread: usize) -> [usize; 3] {
    [cuda::blocks(gpu, x.stride0() / per_thread + 1), x.shape()[0], 1]
}

/// The losers from x_w, x_σ_w, v*_w, v_φ and σ.
pub fn given(gpu: &Gpu, lambda: f32, inputs: &[&Tensor], outputs: &mut [Tensor]) -> Result<()> {
    let kernel = gpu.kernel(SOURCE, "coupled_negative_given_fwd_f32")?;
    let launch = gpu.launch(&kernel, grid(gpu, inputs[0], 1), cuda::THREADS);
    let launch = inputs.iter().fold(launch, |launch, t| launch.read(t)).value(lambda);
    let launch = outputs.iter_mut().fold(launch, |launch, t| launch.write(t));
    launch.value(cuda::long(inputs[0].stride0())).run()
}

/// The losers from x_w, v_φ, σ and the noise's counter; the kernel makes the noise.
pub fn from_noise(gpu: &Gpu, lambda: f32, inputs: &[&Tensor], outputs: &mut [Tensor]) -> Result<()> {
    let kernel = gpu.kernel(SOURCE, "coupled_negative_fwd_f32")?;
    let launch = gpu.launch(&kernel, grid(gpu, inputs[0], 4), cuda::THREADS);
    let launch = inputs.iter().fold(launch, |launch, t| launch.read(t)).value(lambda);
    let launch = outputs.iter_mut().fold(launch, |launch, t| launch.write(t));
    launch.value(cuda::long(inputs[0].stride0())).run()
}

/// The gradients of x_w, x_σ_w, v*_w and v_φ where there are slots for them.
pub fn backward(
    gpu: &Gpu,
    lambda: f32,
    sigma: &Tensor,
    grads: &[Option<&Tensor>],
    slots: &mut [Option<Slot>],
) -> Result<()> {
    let Some(shape) = grads.iter().flatten().next() else { return Ok(()) };
    let kernel = gpu.kernel(SOURCE, "coupled_negative_bwd_f32")?;
    let launch = gpu.launch(&kernel, grid(gpu, shape, 1), cuda::THREADS);
    let launch = grads.iter().fold(launch, |launch, t| launch.read_or_null(*t)).read(sigma).value(lambda);
    let (each, slots) = (shape.stride0(), &mut slots[..4]);
    let adds = |(i, s): (usize, &Option<Slot>)| i32::from(s.as_ref().is_some_and(|s| s.accumulate)) << i;
    let accumulate: i32 = slots.iter().enumerate().map(adds).sum();
    let launch = slots.iter_mut().fold(launch, |launch, slot| match slot {
        Some(slot) => launch.write_or_add(&mut slot.grad, slot.accumulate),
        None => launch.write_or_null(None),
    });
    launch.value(cuda::long(each)).value(accumulate).run()
}
