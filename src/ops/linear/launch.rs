//! The CUDA side of the linear layer: `kernels/linear.cu`. Plain and GELU epilogues; no adapters yet.

use super::super::{Slot, cuda, expect_dtypes};
use super::{Dims, Epilogue, Layout, Linear};
use crate::engine::cuda::Gpu;
use crate::engine::{DType, Tensor, kernels};
use crate::{Error, Result};
use bytemuck::NoUninit;

const OP: &str = "linear";
const SOURCE: &str = "linear.cu";
/// Rows and columns of a tile.
const TILE: usize = 128;
/// What a tile of bf16 advances by along k.
const DEPTH: usize = 32;

/// `Problem` of the source.
#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct Problem {
    m: i32,
    n: i32,
    k: i32,
    lda: i32,
    ldb: i32,
    ldc: i32,
    alpha: f32,
    accumulate: i32,
}

/// C = A·B (+ bias) (+ C) by kernel `name`. Extents as the source has them; rows are contiguous.
#[allow(clippy::too_many_arguments, reason = "a matrix product has as many")]
fn product(
    gpu: &Gpu,
    name: &str,
    [m, n, k]: [usize; 3],
    [lda, ldb]: [usize; 2],
    a: &Tensor,
    b: &Tensor,
    bias: Option<&Tensor>,
    c: &mut Tensor,
    z: Option<Option<&mut Tensor>>,
    accumulate: bool,
) -> Result<()> {
    if m * n * k == 0 {
        return Ok(());
    }
    let dtype = a.dtype();
    expect_dtypes(OP, dtype, &[b])?;
    expect_dtypes(OP, dtype, bias.as_slice())?;
    let on = |t: &Tensor, bytes: u64| t.address().is_multiple_of(bytes);
    let whole = lda % 8 == 0 && ldb % 8 == 0 && on(a, 16) && on(b, 16) && n % 2 == 0 && on(c, 8);
    let name = match dtype {
        DType::Bf16 if !whole => format!("{name}_any_bf16"),
        dtype => format!("{name}_{}", dtype.name()),
    };
    let kernel = gpu.kernel(SOURCE, &name)?;
    let int = |n| cuda::int(OP, n);
    let problem = Problem {
        m: int(m)?,
        n: int(n)?,
        k: int(k)?,
        lda: int(lda)?,
        ldb: int(ldb)?,
        ldc: int(n)?,
        alpha: 1.0,
        accumulate: i32::from(accumulate),
    };
    // f32 does without tensor cores.
    let tiled = |n: usize, by: usize| n.next_multiple_of(by);
    let flops = match dtype {
        DType::Bf16 => 2 * tiled(m, TILE) * tiled(n, TILE) * tiled(k, DEPTH),
        DType::F32 => 0,
    };
    let shared = kernels::dynamic_shared(kernels::text(SOURCE)?, &name);
    let launch = gpu
        .launch(&kernel, [m.div_ceil(TILE) * n.div_ceil(TILE), 1, 1], 256)
        .shared(shared as usize)
        .read(a)
        .read(b)
        .read_or_null(bias)
        .write_or_add(c, accumulate)
        .multiplies(flops);
    let launch = match z {
        Some(z) => launch.write_or_null(z),
        None => launch,
    };
    launch.value(problem).run()
}

/// The weight in x's dtype: itself, or widened.
fn weight_as(gpu: &Gpu, w: &Tensor, dtype: DType) -> Result<Tensor> {
    match (w.dtype(), dtype) {
        (DType::Bf16, DType::F32) => {
            let mut wide = Tensor::empty(w.device(), w.shape())?;
            cuda::cast(gpu, w, &mut wide)?;
            Ok(wide)
        }
        _ => Ok(w.clone()),
    }
}

impl Linear {
    /// Whether the kernels know this form of the layer.
    pub(super) fn on_cuda(&self) -> bool {
        self.lora.is_none() && matches!(self.epilogue, Epilogue::None | Epilogue::Gelu)
    }

    /// y, and z where GELU′ will want it.
    pub(super) fn forward_cuda(
        &self,
        gpu: &Gpu,
        inputs: &[&Tensor],
        at: &Layout,
        d: Dims,
        keep_z: bool,
    ) -> Result<(Tensor, Option<Tensor>)> {
        if !self.on_cuda() {
            return Err(Error::shape(OP, "adapters and residuals have no CUDA kernel yet"));
        }
        let x = inputs[0];
        let mut shape = x.shape().to_vec();
        *shape.last_mut().expect("x has at least two dimensions") = d.out;
        let fresh = || Tensor::empty_as(x.device(), &shape, x.dtype());
        let w = weight_as(gpu, inputs[1], x.dtype())?;
        let (mut y, mut z) = (fresh()?, if keep_z { Some(fresh()?) } else { None });
        let gelu = matches!(self.epilogue, Epilogue::Gelu);
        product(
            gpu,
            if gelu { "linear_fwd_gelu" } else { "linear_fwd" },
            [d.batch * d.tokens, d.out, d.in_],
            [d.in_, d.in_],
            x,
            &w,
            at.bias.map(|i| inputs[i]),
            &mut y,
            gelu.then_some(z.as_mut()),
            false,
        )?;
        Ok((y, z))
    }

    /// The gradients of x, W and bias. Input i ≥ 1 was saved at position i + 1.
    pub(super) fn backward_cuda(
        &self,
        gpu: &Gpu,
        saved: &[Tensor],
        at: &Layout,
        d: Dims,
        dy: &Tensor,
        slots: &mut [Option<Slot>],
    ) -> Result<()> {
        let (x, z, w) = (&saved[0], &saved[1], &saved[2]);
        let rows = d.batch * d.tokens;
        let mut through_gelu = None;
        if matches!(self.epilogue, Epilogue::Gelu) {
            let grad = Tensor::empty_as(dy.device(), dy.shape(), dy.dtype())?;
            let slot = through_gelu.insert(Slot { grad, accumulate: false });
            cuda::slope(gpu, OP, ["gelu.cu", "gelu_bwd"], z, dy, slot)?;
        }
        let dz = through_gelu.as_ref().map_or(dy, |slot| &slot.grad);
        if let Some(slot) = &mut slots[0] {
            expect_dtypes(OP, dz.dtype(), &[&slot.grad])?;
            let (w, keep) = (weight_as(gpu, w, dz.dtype())?, slot.accumulate);
            let (extents, strides) = ([rows, d.in_, d.out], [d.out, d.in_]);
            product(gpu, "linear_bwd_dx", extents, strides, dz, &w, None, &mut slot.grad, None, keep)?;
        }
        if let Some(slot) = &mut slots[1] {
            expect_dtypes(OP, DType::F32, &[&slot.grad])?;
            let (extents, strides, keep) = ([d.out, d.in_, rows], [d.out, d.in_], slot.accumulate);
            product(gpu, "linear_bwd_dw", extents, strides, dz, x, None, &mut slot.grad, None, keep)?;
        }
        if let Some(slot) = at.bias.and_then(|i| slots[i].as_mut()) {
            cuda::column_sums(gpu, dz, slot)?;
        }
        Ok(())
    }
}
