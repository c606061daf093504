//! The CUDA side of the optimizer: `kernels/adamw.cu`. Norm, clip and update without a word to the host in between.

use super::super::cuda;
use super::{AdamW, Gradients, decimal};
use crate::engine::Tensor;
use crate::engine::cuda::Gpu;
use crate::{Error, Result};
use bytemuck::{Pod, Zeroable};

const OP: &str = "adamw";
const SOURCE: &str = "adamw.cu";
/// Elements of a block of the norm's first pass.
const PIECE: usize = 1 << 14;

/// `Step` of the source: what changes from update to update, in device memory.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Block {
    step_size: f32,
    root_correction: f32,
    keep: f32,
    one_minus_1: f32,
    beta2: f32,
    one_minus_2: f32,
    eps: f32,
    max_norm: f32,
    share: f32,
    norm: f32,
    clip: f32,
    finite: u32,
}

/// Numbers of 4 bytes of a block.
const WORDS: usize = size_of::<Block>() / 4;
/// Which of them is the norm.
const NORM: usize = std::mem::offset_of!(Block, norm) / 4;

/// The flat arenas of the parameters, f32 and of one length.
pub struct Arenas<'a> {
    /// The masters.
    pub w: &'a mut Tensor,
    /// Their gradients.
    pub g: &'a Tensor,
    /// First moments.
    pub m: &'a mut Tensor,
    /// Second moments.
    pub v: &'a mut Tensor,
    /// Where the masters are wanted in bf16, too.
    pub half: Option<&'a mut Tensor>,
}

/// What changes from update to update, as [`update_from`] reads it in the device's memory: number `n` (from 1) at learning
/// rate `lr`.
pub fn step_block(opt: &AdamW, (n, lr): (u64, f32), gradients: Gradients) -> [f32; WORDS] {
    let step = opt.at(n, lr, 1.0);
    bytemuck::cast(Block {
        step_size: step.step_size,
        root_correction: step.root_correction,
        keep: step.keep(),
        one_minus_1: (1.0 - decimal(opt.beta1)) as f32,
        beta2: opt.beta2,
        one_minus_2: (1.0 - decimal(opt.beta2)) as f32,
        eps: opt.eps,
        max_norm: gradients.max_norm,
        share: gradients.share,
        ..Block::zeroed()
    })
}

/// The update that [`step_block`] describes; `sizes` lists `(values, weight decay applies)` in arena order. Gives the norm
/// before the clip, still on the device; an update whose norm is not finite changes nothing. The bits are the CPU's.
pub fn update(
    gpu: &Gpu,
    opt: &AdamW,
    step: (u64, f32),
    gradients: Gradients,
    sizes: &[(usize, bool)],
    arenas: Arenas,
) -> Result<Tensor> {
    let mut block = Tensor::from_slice(arenas.g.device(), &[WORDS], &step_block(opt, step, gradients))?;
    update_from(gpu, &mut block, sizes, arenas)?;
    block.rows(NORM..NORM + 1)?.reshape(&[])
}

/// The same from a block that stands in the device's memory, for a captured graph; the norm is written there, too.
pub fn update_from(gpu: &Gpu, block: &mut Tensor, sizes: &[(usize, bool)], mut arenas: Arenas) -> Result<()> {
    block.expect(OP, "the step block", &[WORDS])?;
    let (device, len) = (arenas.g.device().clone(), arenas.g.len());
    let listed: usize = sizes.iter().map(|s| s.0).sum();
    let lengths = [arenas.w.len(), arenas.m.len(), arenas.v.len(), listed];
    if lengths.iter().any(|&l| l != len) || arenas.half.as_ref().is_some_and(|h| h.len() != len) {
        return Err(Error::shape(OP, format!("{len} gradients beside arenas (and a list) of {lengths:?}")));
    }
    let pieces = len.div_ceil(PIECE);
    let mut partial = Tensor::empty(&device, &[pieces.max(1), 2])?;
    let kernel = gpu.kernel(SOURCE, "adamw_partial_f32")?;
    let launch = gpu.launch(&kernel, [pieces, 1, 1], 256).read(arenas.g).write(&mut partial);
    launch.value(cuda::long(len)).run()?;
    let kernel = gpu.kernel(SOURCE, "adamw_norm_f32")?;
    let launch = gpu.launch(&kernel, [1, 1, 1], 256).read(&partial).value(cuda::int(OP, pieces)?);
    launch.write(block).run()?;
    let kernel = gpu.kernel(SOURCE, "adamw_update_f32")?;
    for (first, count, decays) in ranges(sizes) {
        gpu.launch(&kernel, [cuda::blocks(gpu, count.div_ceil(4) + 1), 1, 1], cuda::THREADS)
            .write(arenas.w)
            .read(arenas.g)
            .write(arenas.m)
            .write(arenas.v)
            .write_or_null(arenas.half.as_deref_mut())
            .read(block)
            .value(cuda::long(first))
            .value(cuda::long(count))
            .value(i32::from(decays))
            .run()?;
    }
    Ok(())
}

/// First element, number and weight decay of the runs of parameters that are treated alike.
fn ranges(sizes: &[(usize, bool)]) -> Vec<(usize, usize, bool)> {
    let mut runs: Vec<(usize, usize, bool)> = Vec::new();
    for &(count, decays) in sizes {
        let first = runs.last().map_or(0, |r| r.0 + r.1);
        match runs.last_mut() {
            Some(last) if last.2 == decays => last.1 += count,
            _ => runs.push((first, count, decays)),
        }
    }
    runs
}

/// `average ← keep·average + (1 − keep)·w`.
pub fn average(gpu: &Gpu, keep: f32, w: &Tensor, average: &mut Tensor) -> Result<()> {
    let kernel = gpu.kernel(SOURCE, "adamw_average_f32")?;
    let n = w.len();
    let launch = gpu.launch(&kernel, [cuda::blocks(gpu, n), 1, 1], cuda::THREADS).value(keep).read(w);
    launch.write(average).value(cuda::long(n)).run()
}
