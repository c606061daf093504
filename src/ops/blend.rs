//! Two fields mixed sample by sample, by factors that are linear in the sample's noise level.
//!
//! ```text
//! out_b = (a₀ + a₁·σ_b)·x_b + (c₀ + c₁·σ_b)·y_b        x, y [B, …] f32, σ [B] f32
//! ```
//! The noised sample, its target velocity, the clean estimate, a perturbed endpoint and a sampler's step are all of this
//! form. Every rounding is written out, so the bits are the same on every device. Saves σ; backward:
//! `dx_b = (a₀ + a₁·σ_b)·dout_b`, `dy_b` alike; σ has no gradient.

use super::{Case, Op, Save, Slot, expect_constant, expect_f32, expect_inputs, given, random};
use crate::engine::{Device, Tensor};
use crate::{Error, Result};
use rayon::prelude::*;

mod launch;

const NAME: &str = "blend";

/// A factor `at_0 + slope·σ`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Factor {
    /// Its value at σ = 0.
    pub at_0: f32,
    /// What it gains per σ.
    pub slope: f32,
}

impl Factor {
    /// The same at every σ.
    pub const fn constant(value: f32) -> Self {
        Self { at_0: value, slope: 0.0 }
    }
    /// σ itself.
    pub const SIGMA: Self = Self { at_0: 0.0, slope: 1.0 };
    /// 1 − σ.
    pub const REST: Self = Self { at_0: 1.0, slope: -1.0 };

    fn at(self, sigma: f32) -> f32 {
        self.at_0 + self.slope * sigma
    }
}

/// The op: inputs x, y, σ; one output of x's shape.
#[derive(Clone, Copy, Debug)]
pub struct Blend {
    /// What x is multiplied by.
    pub x: Factor,
    /// What y is multiplied by.
    pub y: Factor,
}

impl Blend {
    /// The output for values that need no gradient.
    pub fn of(self, x: &Tensor, y: &Tensor, sigma: &Tensor) -> Result<Tensor> {
        let mut out = self.forward(&[x, y, sigma], &mut Save::nothing())?;
        out.pop().ok_or_else(|| Error::shape(NAME, "gave no output"))
    }
}

impl Op for Blend {
    fn name(&self) -> &'static str {
        NAME
    }
    fn cuda(&self) -> bool {
        true
    }
    fn forward(&self, inputs: &[&Tensor], save: &mut Save) -> Result<Vec<Tensor>> {
        expect_inputs(NAME, inputs, 3)?;
        expect_f32(NAME, inputs)?;
        expect_constant(NAME, save, &[(2, "sigma")])?;
        let [x, y, sigma] = [inputs[0], inputs[1], inputs[2]];
        y.expect(NAME, "y", x.shape())?;
        sigma.expect(NAME, "sigma", &x.shape()[..x.shape().len().min(1)])?;
        let mut out = Tensor::empty(x.device(), x.shape())?;
        save.keep(sigma);
        if let Some(gpu) = x.device().gpu() {
            launch::forward(gpu, self, x, y, sigma, &mut out)?;
            return Ok(vec![out]);
        }
        let each = x.stride0().max(1);
        let samples = out.f32_mut().par_chunks_mut(each).zip(sigma.f32());
        let inputs = x.f32().par_chunks(each).zip(y.f32().par_chunks(each));
        samples.zip(inputs).for_each(|((out, &sigma), (x, y))| {
            let (p, q) = (self.x.at(sigma), self.y.at(sigma));
            out.iter_mut().zip(x.iter().zip(y)).for_each(|(out, (x, y))| *out = p * x + q * y);
        });
        Ok(vec![out])
    }
    fn backward(
        &self,
        saved: &[Tensor],
        grads: &[Option<&Tensor>],
        slots: &mut [Option<Slot>],
    ) -> Result<()> {
        let Some(dy) = grads[0] else { return Ok(()) };
        for (slot, factor) in slots.iter_mut().zip([self.x, self.y]) {
            let Some(slot) = slot else { continue };
            if let Some(gpu) = dy.device().gpu() {
                launch::backward(gpu, factor, dy, &saved[0], slot)?;
                continue;
            }
            let each = dy.stride0().max(1);
            let rows = slot.adding().par_chunks_mut(each).zip(dy.f32().par_chunks(each));
            rows.zip(saved[0].f32()).for_each(|((g, dy), &sigma)| {
                let p = factor.at(sigma);
                g.iter_mut().zip(dy).for_each(|(g, dy)| *g += p * dy);
            });
        }
        Ok(())
    }
}

/// Small ones for gradcheck, of odd size and with a part of the batch; the velocities of a batch of the tiny preset.
pub fn cases(device: &Device) -> Vec<Case> {
    let case = |op: Blend, shape: &[usize]| {
        let n: usize = shape.iter().product();
        let sigmas: Vec<f32> = (0..shape[0]).map(|b| b as f32 / shape[0] as f32).collect();
        let (x, y) = (random(device, shape, 1, 1.0), random(device, shape, 2, 1.0));
        let inputs = vec![x, y, given(device, &[shape[0]], &sigmas)];
        Case::new(format!("blend/{n}"), op, inputs).constant(&[2]).cost(3.0 * n as f64, n)
    };
    let noised = Blend { x: Factor::REST, y: Factor::SIGMA };
    let estimate = Blend { x: Factor::constant(1.0), y: Factor { at_0: 0.5, slope: -2.0 } };
    vec![case(noised, &[3, 2, 5]), case(estimate, &[4, 7]), case(noised, &[6, 16, 16, 16]).bench_only()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_carry_the_numbers() {
        let d = Device::cpu();
        let (x, y) = (Tensor::zeros(&d, &[2, 3]).unwrap(), Tensor::zeros(&d, &[2, 4]).unwrap());
        let op = Blend { x: Factor::REST, y: Factor::SIGMA };
        let e = op.of(&x, &y, &x).unwrap_err().to_string();
        assert!(e.contains("y has shape [2, 4], wanted [2, 3]"), "{e}");
        assert!(op.of(&x, &x, &x).unwrap_err().to_string().contains("sigma"));
    }
}
