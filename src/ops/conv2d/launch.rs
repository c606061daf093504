//! The CUDA side of convolution: `kernels/conv2d.cu` and `kernels/conv2d_f32.cu`. x and w are turned to have their
//! channels last, rounded up to whole 16 bytes, and multiplied as they then lie.

use super::super::{cuda, expect_dtypes};
use super::{Conv2d, Dims, NAME};
use crate::Result;
use crate::engine::cuda::Gpu;
use crate::engine::{DType, Tensor, kernels};
use bytemuck::NoUninit;

const SOURCE: &str = "conv2d.cu";
/// Channels of y and positions of a tile.
const TILE: [usize; 2] = [64, 128];
/// What a tile of bf16 advances by along k.
const DEPTH: usize = 32;

/// `Conv` of the source.
#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Conv {
    out: i32,
    positions: i32,
    width: i32,
    depth: i32,
    channels: i32,
    high: i32,
    wide: i32,
    window: [i32; 2],
    stride: i32,
    padding: i32,
    up: i32,
    relu: i32,
}

/// `Floats` of the source: numbers of either dtype, or none.
#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Floats {
    at: u64,
    f32: i32,
    unused: i32,
}

pub(super) fn forward(gpu: &Gpu, op: &Conv2d, d: Dims, inputs: &[&Tensor]) -> Result<Tensor> {
    let (x, w, bias, resid) = (inputs[0], inputs[1], inputs.get(2).copied(), inputs.get(3).copied());
    let dtype = x.dtype();
    expect_dtypes(NAME, dtype, &[w])?;
    resid.map_or(Ok(()), |r| expect_dtypes(NAME, dtype, &[r]))?;
    let mut y = Tensor::empty_as(x.device(), &[d.batch, d.out, d.y[0], d.y[1]], dtype)?;
    if y.is_empty() {
        return Ok(y);
    }
    let channels = d.inp.next_multiple_of(dtype.per_16_bytes());
    let last = |t: &Tensor, n, positions| turned(gpu, NAME, t, [n, d.inp, positions], channels);
    let (x, w) = (last(x, d.batch, d.x[0] * d.x[1])?, last(w, d.out, d.window[0] * d.window[1])?);
    let int = |n| cuda::int(NAME, n);
    let (depth, scale) = (channels * d.window[0] * d.window[1], 1 + usize::from(op.upsample));
    // A sample's places are counted in the kernels' `int`.
    int(channels * d.x[0] * d.x[1])?;
    let p = Conv {
        out: int(d.out)?,
        positions: int(d.plane())?,
        width: int(d.y[1])?,
        depth: int(depth)?,
        channels: int(channels)?,
        high: int(scale * d.x[0])?,
        wide: int(scale * d.x[1])?,
        window: [int(d.window[0])?, int(d.window[1])?],
        stride: int(op.stride)?,
        padding: int(op.padding[0])?,
        up: i32::from(op.upsample),
        relu: i32::from(op.relu),
    };
    let at = bias.map_or(Ok(0), |b| gpu.address(b))?;
    let floats = Floats { at, f32: i32::from(bias.is_some_and(|b| b.dtype() == DType::F32)), unused: 0 };
    let (source, name) = match dtype {
        DType::Bf16 => (SOURCE, "conv2d_fwd_bf16"),
        DType::F32 => ("conv2d_f32.cu", "conv2d_fwd_f32"),
    };
    let kernel = gpu.kernel(source, name)?;
    let tiles = [d.out.div_ceil(TILE[0]), d.plane().div_ceil(TILE[1])];
    // f32 does without tensor cores.
    let flops = match dtype {
        DType::Bf16 => 2 * d.batch * tiles[0] * TILE[0] * tiles[1] * TILE[1] * depth.next_multiple_of(DEPTH),
        DType::F32 => 0,
    };
    gpu.launch(&kernel, [tiles[0] * tiles[1], d.batch, 1], cuda::THREADS)
        .shared(kernels::dynamic_shared(kernels::text(source)?, name) as usize)
        .read(&w)
        .read(&x)
        .value(floats)
        .moves(bias.map_or(0, |b| b.len() * b.dtype().size()))
        .read_or_null(resid)
        .write(&mut y)
        .value(p)
        .multiplies(flops)
        .run()?;
    Ok(y)
}

/// `x` `[batch, inp, positions]` as `[batch, positions, channels]`, what is added to `inp` being zero, for the op `name`.
pub fn turned(
    gpu: &Gpu,
    name: &'static str,
    x: &Tensor,
    [batch, inp, positions]: [usize; 3],
    channels: usize,
) -> Result<Tensor> {
    let mut to = Tensor::empty_as(x.device(), &[batch, positions, channels], x.dtype())?;
    let kernel = cuda::kernel(gpu, SOURCE, "conv2d_fwd_turn", x.dtype())?;
    gpu.launch(&kernel, [positions.div_ceil(32), channels.div_ceil(32), batch], cuda::THREADS)
        .read(x)
        .write(&mut to)
        .value(cuda::int(name, inp)?)
        .value(cuda::int(name, channels)?)
        .value(cuda::int(name, positions)?)
        .run()?;
    Ok(to)
}
