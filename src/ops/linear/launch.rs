//! The CUDA side of the linear layer: what is launched in which order.
//!
//! x, W and dz are multiplied in x's dtype, W being narrowed or widened where it is of the other; A and B of adapters
//! likewise, and biases are read as they are. z, where it is kept, is of x's dtype, being multiplied with the same. y
//! has the residual's dtype, else x's, or f32 where it is `wide`; so has dy, which is narrowed to x's on the way to dz.

use super::super::modulate::launch::table_bytes;
use super::super::qk_norm_rope::{self, launch as rope};
use super::super::{Slot, concat, cuda, expect_dtypes};
use super::{Dims, Epilogue, Layout, Linear};
use crate::Result;
use crate::engine::cuda::Gpu;
use crate::engine::{DType, Tensor};
use product::{After, Joined, Operand, Product, as_dtype, expect_residual};

mod gate;
mod lora;
mod product;

const OP: &str = "linear";

impl Linear {
    /// y, and z where backward will want it.
    pub(super) fn forward_cuda(
        &self,
        gpu: &Gpu,
        inputs: &[&Tensor],
        at: &Layout,
        d: Dims,
        keep_z: bool,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let resid = at.resid.map(|i| inputs[i]);
        let x = tensors(&inputs[..at.w].iter().map(|&t| t.clone()).collect::<Vec<_>>())?;
        let dtype = x[0].dtype();
        expect_dtypes(OP, dtype, &x.iter().collect::<Vec<_>>())?;
        resid.map_or(Ok(()), |r| expect_residual(dtype, r))?;
        let mut shape = inputs[0].shape().to_vec();
        *shape.last_mut().expect("x has at least two dimensions") = d.out;
        let fresh = |dtype| Tensor::empty_as(x[0].device(), &shape, dtype);
        let out = resid.map_or(if self.wide { DType::F32 } else { dtype }, Tensor::dtype);
        let (mut y, mut z) = (fresh(out)?, if keep_z { Some(fresh(dtype)?) } else { None });
        let w = as_dtype(gpu, inputs[at.w], dtype)?;
        let input = |i: usize| inputs[i];
        let adapted = match self.stack(gpu, at, &input, d)? {
            Some(stack) => {
                let down = stack.down(gpu, at, &input, dtype)?;
                let s = stack.narrow(gpu, Joined(&x), &down, true, &(0..stack.rank))?;
                Some(stack.adapted(s, stack.up(gpu, at, &input, dtype)?))
            }
            None => None,
        };
        let gate = match &self.epilogue {
            Epilogue::Gate { source, chunk } => {
                let bytes = table_bytes(source, d.batch, d.tokens, d.out, 1);
                Some((gate::tables(gpu, source, at, &input)?, d.tokens, *chunk, bytes))
            }
            _ => None,
        };
        let product = Product {
            name: "linear_fwd",
            extents: [d.batch * d.tokens, d.out, d.in_],
            a: Operand::X(Joined(&x)),
            b: Operand::whole(&w),
            bias: at.bias.map(|i| inputs[i]),
            adapted,
        };
        let after = match (&self.epilogue, resid) {
            (Epilogue::Gelu, _) => After::Gelu(z.as_mut()),
            (Epilogue::NormRope { table }, _) => {
                let w = inputs[at.norm.expect("there is a norm")];
                if !product.holds_heads(&y, 2 * table.half) {
                    let mut z = z.map_or_else(|| fresh(dtype), Ok)?;
                    product.run(gpu, &mut z, false, After::Nothing)?;
                    rope::forward(gpu, table, &z, w, &mut y)?;
                    return Ok((y, keep_z.then_some(z)));
                }
                After::NormRope(z.as_mut(), table, w)
            }
            (_, Some(resid)) => After::Residual(z.as_mut(), resid, gate),
            _ => After::Nothing,
        };
        product.run(gpu, &mut y, false, after)?;
        Ok((y, z))
    }

    /// The gradients of every input, the last x's as [`Linear::backward_through`] has it.
    #[allow(
        clippy::too_many_arguments,
        reason = "what forward saved, its shapes, the gradient that comes in, the slots"
    )]
    pub(super) fn backward_cuda(
        &self,
        gpu: &Gpu,
        saved: &[Tensor],
        at: &Layout,
        d: Dims,
        dy: &Tensor,
        through: Option<&Tensor>,
        slots: &mut [Option<Slot>],
    ) -> Result<()> {
        let (x, z) = (tensors(&saved[..at.w])?, &saved[at.w]);
        let input = |i: usize| &saved[i + 1];
        if let Some(slot) = at.resid.and_then(|i| slots[i].as_mut()) {
            slot.add(dy)?;
        }
        if let Epilogue::Gate { source, chunk } = &self.epilogue {
            gate::table_gradients(gpu, (source, *chunk), (dy, z), at, d, slots)?;
        }
        let beside = [at.resid, at.image, at.cond];
        if !slots.iter().enumerate().any(|(i, s)| s.is_some() && !beside.contains(&Some(i))) {
            return Ok(());
        }
        let dtype = x[0].dtype();
        let dz = match &self.epilogue {
            Epilogue::None | Epilogue::Add => as_dtype(gpu, dy, dtype)?,
            Epilogue::Gelu => {
                let grad = Tensor::empty_as(dy.device(), dy.shape(), dtype)?;
                let mut slot = Slot { grad, accumulate: false };
                cuda::slope(gpu, OP, ["gelu.cu", "gelu_bwd"], z, dy, &mut slot)?;
                slot.grad
            }
            Epilogue::NormRope { table } => {
                let i = at.norm.expect("there is a norm");
                let grad = Tensor::empty_as(dy.device(), dy.shape(), dtype)?;
                let mut slot = Slot { grad, accumulate: false };
                qk_norm_rope::backward(table, [z, input(i)], dy, Some(&mut slot), slots[i].as_mut())?;
                slot.grad
            }
            Epilogue::Gate { source, chunk } => {
                gate::backward(gpu, (source, *chunk), gate::tables(gpu, source, at, &input)?, dy, dtype, d)?
            }
        };
        if let Some(slot) = at.bias.and_then(|i| slots[i].as_mut()) {
            // Where nothing but a rounding stands between dy and dz, the sums are of what it rounds.
            let same = matches!(self.epilogue, Epilogue::None | Epilogue::Add);
            cuda::column_sums(gpu, if same { dy } else { &dz }, slot)?;
        }
        let adapted = self.backward_adapters(gpu, [&x, std::slice::from_ref(&dz)], at, &input, d, slots)?;
        let (rows, first) = (d.batch * d.tokens, self.first_width(&slots[..at.w], d));
        let w = as_dtype(gpu, input(at.w), dtype)?;
        for (i, columns) in [0..first, first..d.in_].into_iter().enumerate().take(at.w) {
            let Some(slot) = &mut slots[i] else { continue };
            expect_dtypes(OP, dtype, &[&slot.grad])?;
            let product = Product {
                name: "linear_bwd_dx",
                extents: [rows, columns.len(), d.out],
                a: Operand::whole(&dz),
                b: Operand::Columns(&w, columns.clone()),
                bias: None,
                adapted: adapted.as_ref().map(|a| a.columns(columns)),
            };
            match through.filter(|_| i + 1 == at.w) {
                None => product.run(gpu, &mut slot.grad, slot.accumulate, After::Nothing)?,
                Some(z) if product.has_slope(&slot.grad, z) => {
                    product.run(gpu, &mut slot.grad, false, After::Slope(z))?;
                }
                Some(z) => {
                    let mut dh = Tensor::empty_as(z.device(), z.shape(), dtype)?;
                    product.run(gpu, &mut dh, false, After::Nothing)?;
                    cuda::slope(gpu, OP, ["gelu.cu", "gelu_bwd"], z, &dh, slot)?;
                }
            }
        }
        if let Some(slot) = &mut slots[at.w] {
            expect_dtypes(OP, DType::F32, &[&slot.grad])?;
            let product = Product {
                name: "linear_bwd_dw",
                extents: [d.out, d.in_, rows],
                a: Operand::whole(&dz),
                b: Operand::X(Joined(&x)),
                bias: None,
                adapted: None,
            };
            product.run(gpu, &mut slot.grad, slot.accumulate, After::Nothing)?;
        }
        Ok(())
    }
}

/// x as the kernels take it: of two tensors they want the first to be a multiple of their pieces, so others are joined.
fn tensors(x: &[Tensor]) -> Result<Vec<Tensor>> {
    match x {
        [first, second] if !first.width().is_multiple_of(first.dtype().per_16_bytes()) => {
            Ok(vec![concat::join(&[first, second])?])
        }
        _ => Ok(x.to_vec()),
    }
}
