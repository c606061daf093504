//! The CUDA side of the Sobolev gap: `kernels/sobolev.cu`, and cuFFT for planes that do not fit a block.

use super::super::{Slot, cuda};
use super::{Metric, Route};
use crate::engine::Tensor;
use crate::engine::cuda::Gpu;
use crate::engine::cuda::fft::Direction;
use crate::{Error, Result};

const OP: &str = "sobolev_gap";
const SOURCE: &str = "sobolev.cu";
/// Longest side of a plane that a block transforms by the matrix of the DFT.
const BY_MATRIX: usize = 64;
/// The square plane that fits a block of a device with much shared memory.
const LARGE: usize = 128;
/// Radices of its lines.
const LARGE_RADICES: (usize, usize) = (16, 8);
/// Bytes of shared memory it takes: the plane, lines of 129 complex numbers, and 128 roots.
const LARGE_SHARED: usize = 8 * (LARGE * (LARGE + 1) + LARGE);
/// What its kernel has besides.
const LARGE_STATIC: usize = 8 * 16;
/// Values of a plane that a block of the unpacking kernel sums.
const PIECE: usize = 4096;

impl Route {
    /// How planes of `h`×`w` are transformed where the caller does not mind, by blocks that may have `shared` bytes.
    fn of(h: usize, w: usize, shared: usize) -> Self {
        match (h, w) {
            (8, 8) | (16, 16) | (32, 32) | (64, 64) => Self::Radix,
            (LARGE, LARGE) if shared >= LARGE_SHARED + LARGE_STATIC => Self::Radix,
            _ if h.max(w) <= BY_MATRIX => Self::Matrix,
            _ => Self::CuFft,
        }
    }
}

/// The weight in the DFT's order, with the 1/(H·W) of transforms that do not divide.
fn weight(metric: &Metric, h: usize, w: usize) -> Vec<f32> {
    metric.plane_f64(h, w).into_iter().map(|v| (v / (h * w) as f64) as f32).collect()
}

/// The weight of a large plane in the order in which its kernel reads it: by column position, then row position.
fn by_position(plane: &[f32]) -> Vec<f32> {
    let (first, second) = LARGE_RADICES;
    let frequency = |position: usize| position / second + first * (position % second);
    (0..LARGE * LARGE).map(|i| plane[frequency(i % LARGE) * LARGE + frequency(i / LARGE)]).collect()
}

/// What a gap is computed from: three fields, their extents, the metric, the route if it is forced.
pub struct Problem<'a> {
    pub fields: [&'a Tensor; 3],
    pub extents: [usize; 4],
    pub metric: &'a Metric,
    pub route: Option<Route>,
    /// What ∂ is multiplied by, if not 1/(C·H·W).
    pub scale: Option<f32>,
}

/// The gap of every sample; ∂ into `partial`, which is empty where none is wanted.
pub fn forward(gpu: &Gpu, problem: &Problem, partial: &mut Tensor) -> Result<Tensor> {
    let &Problem { fields: [v, v_ref, target], extents: [n, c, h, w], metric, route, scale } = problem;
    let limit = gpu.properties().shared_limit as usize;
    let route = route.unwrap_or_else(|| Route::of(h, w, limit));
    let (planes, area, device) = (n * c, h * w, v.device());
    let large = route == Route::Radix && h == LARGE;
    // Where a block has a small plane to itself, the frequencies from 0 on are all of the weight that it reads.
    let (rows, columns) = if large || route == Route::CuFft { (h, w) } else { (h / 2 + 1, w / 2 + 1) };
    let name = format!("{OP} {metric:?} {rows}x{columns} of {h}x{w}, {route:?}");
    let weights = 4 * rows * columns;
    let weight = gpu.constant(name, || {
        let plane = weight(metric, h, w);
        if large {
            return by_position(&plane);
        }
        plane.chunks(w).take(rows).flat_map(|row| row[..columns].to_vec()).collect()
    })?;
    let int = |n| cuda::int(OP, n);
    let (kept, scale) = (int(partial.shape()[0] * c)?, scale.unwrap_or((1.0 / (c * area) as f64) as f32));
    let pieces = if route == Route::CuFft { area.div_ceil(PIECE) } else { 1 };
    // f64: two f32 each.
    let mut dot = Tensor::empty(device, &[planes * pieces, 2])?;
    match route {
        Route::Radix => {
            let kernel = gpu.kernel(SOURCE, &format!("sobolev_gap_fwd_{h}_f32"))?;
            let (threads, shared) = if large { (512, LARGE_SHARED) } else { (4 * h as u32, 0) };
            let launch = gpu.launch(&kernel, [planes, 1, 1], threads).shared(shared);
            let launch = launch.read(v).read(v_ref).read(target);
            let launch = launch.value(weight).moves(weights).write(&mut dot).write(partial);
            launch.value(kept).value(scale).run()?;
        }
        Route::Matrix => {
            let kernel = gpu.kernel(SOURCE, "sobolev_gap_fwd_dft_f32")?;
            let launch = gpu.launch(&kernel, [planes, 1, 1], 256).shared(16 * h * (w | 1));
            let launch = launch.read(v).read(v_ref).read(target).value(weight).moves(weights);
            let launch = launch.write(&mut dot).write(partial);
            launch.value(int(h)?).value(int(w)?).value(kept).value(scale).run()?;
        }
        Route::CuFft => {
            let values = planes * area;
            let mut z = Tensor::empty(device, &[values, 2])?;
            let kernel = gpu.kernel(SOURCE, "sobolev_gap_fwd_pack_f32")?;
            let launch = gpu.launch(&kernel, [cuda::blocks(gpu, values / 4 + 1), 1, 1], cuda::THREADS);
            launch.read(v).read(v_ref).read(target).write(&mut z).value(cuda::long(values)).run()?;
            // SAFETY: z holds `values` complex numbers and is used by this stream alone.
            unsafe { gpu.fft(z.address_mut()?, planes, h, w, Direction::Forward) }?;
            let kernel = gpu.kernel(SOURCE, "sobolev_gap_fwd_weigh_f32")?;
            // Several planes to a thread, which reads its weight once.
            let down = planes.div_ceil(4).min(8);
            let launch = gpu.launch(&kernel, [cuda::blocks(gpu, area), down, 1], cuda::THREADS);
            let launch = launch.value(weight).moves(weights).write_or_add(&mut z, true);
            launch.value(int(area)?).value(int(planes)?).run()?;
            // SAFETY: as above.
            unsafe { gpu.fft(z.address_mut()?, planes, h, w, Direction::Inverse) }?;
            let kernel = gpu.kernel(SOURCE, "sobolev_gap_fwd_unpack_f32")?;
            let launch = gpu.launch(&kernel, [pieces, planes, 1], cuda::THREADS);
            let launch = launch.read(&z).read(v).read(v_ref).write(&mut dot).write(partial);
            launch.value(int(area)?).value(kept).value(scale).run()?;
        }
    }
    let mut gap = Tensor::empty(device, &[n])?;
    let kernel = gpu.kernel(SOURCE, "sobolev_gap_fwd_sum_f32")?;
    let launch = gpu.launch(&kernel, [n, 1, 1], 32).read(&dot).write(&mut gap);
    launch.value(int(c * pieces)?).value((c * area) as f64).run()?;
    Ok(gap)
}

/// A x of every plane: the gap's ∂ with x for both fields, d = u = x being one complex field (1 + i)·x.
pub fn apply(gpu: &Gpu, metric: &Metric, x: &Tensor, out: &mut Tensor) -> Result<()> {
    let extents: [usize; 4] = x.shape().try_into().map_err(|_| Error::shape(OP, format!("{x:?}")))?;
    let zero = Tensor::zeros(x.device(), x.shape())?;
    forward(
        gpu,
        &Problem { fields: [x, &zero, &zero], extents, metric, route: None, scale: Some(0.5) },
        out,
    )?;
    Ok(())
}

/// dv = ∂·dgap.
pub fn backward(gpu: &Gpu, partial: &Tensor, dgap: &Tensor, slot: &mut Slot) -> Result<()> {
    let (samples, each) = (partial.shape()[0], partial.stride0());
    let kernel = gpu.kernel(SOURCE, "sobolev_gap_bwd_f32")?;
    gpu.launch(&kernel, [cuda::blocks(gpu, each / 4 + 1), samples, 1], cuda::THREADS)
        .read(partial)
        .read(dgap)
        .write_or_add(&mut slot.grad, slot.accumulate)
        .value(cuda::long(each))
        .value(i32::from(slot.accumulate))
        .run()
}
