//! A tensor in another dtype: `y = x`, f32 → bf16 rounded to nearest even, bf16 → f32 exact.
//!
//! Saves nothing. Backward: `dx = dy` in x's dtype. The CPU computes in f32 alone: there, and where x has the dtype
//! already, y is x.

use super::{Case, Op, Save, Slot, cuda, expect_inputs, random};
use crate::engine::{DType, Device, Tensor};
use crate::{Error, Result};

/// The op; one input, one output of the same shape.
pub struct Cast {
    /// The output's dtype on a CUDA device.
    pub to: DType,
}

impl Op for Cast {
    fn name(&self) -> &'static str {
        "cast"
    }
    fn cuda(&self) -> bool {
        true
    }
    fn forward(&self, inputs: &[&Tensor], _: &mut Save) -> Result<Vec<Tensor>> {
        expect_inputs("cast", inputs, 1)?;
        let x = inputs[0];
        let Some(gpu) = x.device().gpu().filter(|_| x.dtype() != self.to) else { return Ok(vec![x.clone()]) };
        let mut y = Tensor::empty_as(x.device(), x.shape(), self.to)?;
        cuda::cast(gpu, x, &mut y)?;
        Ok(vec![y])
    }
    fn backward(&self, _: &[Tensor], grads: &[Option<&Tensor>], slots: &mut [Option<Slot>]) -> Result<()> {
        let (Some(slot), Some(dy)) = (&mut slots[0], grads[0]) else { return Ok(()) };
        match dy.device().gpu() {
            Some(gpu) if dy.dtype() != slot.grad.dtype() => cuda::cast_into(gpu, dy, slot),
            _ => slot.add(dy),
        }
    }
}

/// `x` in `dtype`, as the op gives it.
pub fn to(x: &Tensor, dtype: DType) -> Result<Tensor> {
    let mut out = Cast { to: dtype }.forward(&[x], &mut Save::nothing())?;
    out.pop().ok_or_else(|| Error::shape("cast", "gave no output"))
}

/// Small ones for gradcheck, either way; a residual stream of the tiny preset.
pub fn cases(device: &Device) -> Vec<Case> {
    let case = |shape: &[usize], to: DType| {
        let n: usize = shape.iter().product();
        let half: &[usize] = if to == DType::F32 { &[0] } else { &[] };
        let title = format!("cast/{}/{n}", to.name());
        Case::new(title, Cast { to }, vec![random(device, shape, 1, 1.5)]).half(half).cost(0.0, n)
    };
    let both = |shape: &'static [usize]| [DType::Bf16, DType::F32].map(|to| case(shape, to));
    both(&[3, 5, 7]).into_iter().chain(both(&[12, 128, 128]).map(Case::bench_only)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_keeps_f32() {
        let x = random(&Device::cpu_poisoned(), &[2, 3], 1, 1.0);
        let y = Cast { to: DType::Bf16 }.forward(&[&x], &mut Save::nothing()).unwrap().remove(0);
        assert_eq!((y.dtype(), y.shape(), y.f32()), (DType::F32, x.shape(), x.f32()));
    }
}
