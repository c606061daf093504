//! The CUDA side of the linear layer: what is launched in which order.
//!
//! x, W and dz are multiplied in x's dtype, W being narrowed or widened where it is of the other; A and B of adapters
//! likewise, and biases are read as they are. z, where it is kept, is of x's dtype, being multiplied with the same. y
//! has the residual's dtype, else x's, or f32 where it is `wide`; so has dy, which is narrowed to x's on the way to dz.

use super::super::modulate::launch::table_bytes;
use super::super::qk_norm_rope::{self, launch as rope};
use super::super::{Slot, cuda, expect_dtypes};
use super::{Dims, Epilogue, Layout, Linear};
use crate::Result;
use crate::engine::cuda::Gpu;
use crate::engine::{DType, Tensor};
use product::{After, Product, as_dtype, expect_residual};

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
        let (x, resid) = (inputs[0], at.resid.map(|i| inputs[i]));
        let dtype = x.dtype();
        resid.map_or(Ok(()), |r| expect_residual(dtype, r))?;
        let mut shape = x.shape().to_vec();
        *shape.last_mut().expect("x has at least two dimensions") = d.out;
        let fresh = |dtype| Tensor::empty_as(x.device(), &shape, dtype);
        let out = resid.map_or(if self.wide { DType::F32 } else { dtype }, Tensor::dtype);
        let (mut y, mut z) = (fresh(out)?, if keep_z { Some(fresh(dtype)?) } else { None });
        let w = as_dtype(gpu, inputs[1], dtype)?;
        let input = |i: usize| inputs[i];
        let adapted = match self.stack(gpu, at, &input, d)? {
            Some(stack) => {
                let down = stack.down(gpu, at, &input, dtype)?;
                let s = stack.narrow(gpu, x, &down, true, &(0..stack.rank))?;
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
            strides: [d.in_, d.in_],
            a: x,
            b: &w,
            bias: at.bias.map(|i| inputs[i]),
            adapted: adapted.as_ref(),
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

    /// The gradients of every input. Input i ≥ 1 was saved at position i + 1.
    pub(super) fn backward_cuda(
        &self,
        gpu: &Gpu,
        saved: &[Tensor],
        at: &Layout,
        d: Dims,
        dy: &Tensor,
        slots: &mut [Option<Slot>],
    ) -> Result<()> {
        let (x, z) = (&saved[0], &saved[1]);
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
        let dtype = x.dtype();
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
        let adapted = self.backward_adapters(gpu, [x, &dz], at, &input, d, slots)?;
        let rows = d.batch * d.tokens;
        if let Some(slot) = &mut slots[0] {
            expect_dtypes(OP, dtype, &[&slot.grad])?;
            let product = Product {
                name: "linear_bwd_dx",
                extents: [rows, d.in_, d.out],
                strides: [d.out, d.in_],
                a: &dz,
                b: &as_dtype(gpu, input(1), dtype)?,
                bias: None,
                adapted: adapted.as_ref(),
            };
            product.run(gpu, &mut slot.grad, slot.accumulate, After::Nothing)?;
        }
        if let Some(slot) = &mut slots[1] {
            expect_dtypes(OP, DType::F32, &[&slot.grad])?;
            let product = Product {
                name: "linear_bwd_dw",
                extents: [d.out, d.in_, rows],
                strides: [d.out, d.in_],
                a: &dz,
                b: x,
                bias: None,
                adapted: None,
            };
            product.run(gpu, &mut slot.grad, slot.accumulate, After::Nothing)?;
        }
        Ok(())
    }
}
