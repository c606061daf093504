//! Coupled-negative synthesis: the adversarial loser made from the winner's own noise, free of
//! cancellation (paper §4.1).
//!
//! ```text
//! e = v*_w − v_φ                        inputs x_w, x_σ_w, v*_w, v_φ [B, C, H, W], σ [B]
//! x_σ_a = x_σ_w + (1−σ)·λσe             the loser at the winner's σ and ε
//! v*_a  = v*_w  − λσe                   its target velocity
//! x_a   = x_w   + λσe                   its clean image
//! ```
//! The same as `x_a = x_w + λ·(x̂_φ − x_w)` with `x̂_φ = x_σ_w − σ·v_φ`, noised again with the same ε, but never
//! subtracting two nearly equal images. [`NegativeFromNoise`] makes ε itself from the winner's noise counter, so that
//! neither ε nor x_σ_w nor v*_w is ever stored; on a CUDA device it is one kernel. Saves σ; linear in the rest: with `c = λσ` and
//! `de = c·((1−σ)·dx_σ_a − dv*_a + dx_a)`, `dx_w = dx_a`, `dx_σ_w = dx_σ_a`, `dv*_w = dv*_a + de`, `dv_φ = −de`.

use super::{Case, Op, Save, Slot, dims4, expect_constant, expect_f32, expect_inputs, given, random};
use crate::engine::{Device, Philox, Tensor, simd};
use crate::{Error, Result};
use rayon::prelude::*;

mod launch;

const NAME: &str = "coupled_negative";

/// The op: inputs x_w, x_σ_w, v*_w, v_φ, σ; outputs x_σ_a, v*_a, x_a.
pub struct CoupledNegative {
    /// How far towards the adversary's restoration; 1 is all the way.
    pub lambda: f32,
}

impl Op for CoupledNegative {
    fn name(&self) -> &'static str {
        NAME
    }
    fn cuda(&self) -> bool {
        true
    }
    fn forward(&self, inputs: &[&Tensor], save: &mut Save) -> Result<Vec<Tensor>> {
        expect_inputs(NAME, inputs, 5)?;
        expect_f32(NAME, inputs)?;
        expect_constant(NAME, save, &[(4, "sigma")])?;
        let shape = dims4(NAME, "x_w", inputs[0])?;
        for (t, what) in inputs.iter().zip(["x_w", "x_sigma_w", "v_star_w", "v_phi"]) {
            t.expect(NAME, what, &shape)?;
        }
        inputs[4].expect(NAME, "sigma", &shape[..1])?;
        let each = inputs[0].stride0();
        if each == 0 {
            return Err(Error::shape(NAME, format!("samples of shape {shape:?} hold nothing")));
        }
        let mut outputs = fresh(inputs[0])?;
        if let Some(gpu) = inputs[0].device().gpu() {
            launch::given(gpu, self.lambda, inputs, &mut outputs)?;
            save.keep(inputs[4]);
            return Ok(outputs);
        }
        let [x_sigma_a, v_star_a, x_a] = &mut outputs[..] else { unreachable!("three were made") };
        x_sigma_a
            .f32_mut()
            .par_chunks_mut(each)
            .zip(v_star_a.f32_mut().par_chunks_mut(each))
            .zip(x_a.f32_mut().par_chunks_mut(each))
            .enumerate()
            .for_each(|(b, ((x_sigma_a, v_star_a), x_a))| {
                let [x_w, x_sigma_w, v_star_w, v_phi] =
                    [0, 1, 2, 3].map(|i| &inputs[i].f32()[b * each..][..each]);
                let sigma = inputs[4].f32()[b];
                let (c, keep) = (self.lambda * sigma, 1.0 - sigma);
                for i in 0..each {
                    let step = c * (v_star_w[i] - v_phi[i]);
                    x_sigma_a[i] = x_sigma_w[i] + keep * step;
                    v_star_a[i] = v_star_w[i] - step;
                    x_a[i] = x_w[i] + step;
                }
            });
        save.keep(inputs[4]);
        Ok(outputs)
    }
    fn backward(
        &self,
        saved: &[Tensor],
        grads: &[Option<&Tensor>],
        slots: &mut [Option<Slot>],
    ) -> Result<()> {
        if let Some(gpu) = saved[0].device().gpu() {
            return launch::backward(gpu, self.lambda, &saved[0], grads, slots);
        }
        // What gradient `grad` (0: x_σ_a, 1: v*_a, 2: x_a) of sample σ contributes to input `input`.
        let factor = |input: usize, grad: usize, sigma: f32| {
            let de = self.lambda * sigma * [1.0 - sigma, -1.0, 1.0][grad];
            match (input, grad) {
                (0, 2) | (1, 0) => 1.0,
                (0 | 1, _) => 0.0,
                (2, 1) => 1.0 + de,
                (2, _) => de,
                _ => -de,
            }
        };
        for (input, slot) in slots.iter_mut().enumerate().take(4) {
            let Some(slot) = slot else { continue };
            let each = slot.grad.stride0();
            let rows = slot.adding().par_chunks_mut(each).zip(saved[0].f32()).enumerate();
            rows.for_each(|(b, (row, &sigma))| {
                for (k, grad) in grads.iter().enumerate() {
                    if let (Some(grad), f) = (grad, factor(input, k, sigma))
                        && f != 0.0
                    {
                        simd::axpy(f, &grad.f32()[b * each..][..each], row);
                    }
                }
            });
        }
        Ok(())
    }
}

/// Three tensors of the winners' shape.
fn fresh(x: &Tensor) -> Result<Vec<Tensor>> {
    (0..3).map(|_| Tensor::empty(x.device(), x.shape())).collect()
}

/// The op that knows the winner's noise by its counter: inputs x_w, v_φ, σ and ε's counter ([`Philox::on`]); outputs
/// x_σ_a, v*_a, x_a, with the bits of [`CoupledNegative`] on the winner noised with ε. For losers, which have no gradient.
pub struct NegativeFromNoise {
    /// How far towards the adversary's restoration; 1 is all the way.
    pub lambda: f32,
}

impl Op for NegativeFromNoise {
    fn name(&self) -> &'static str {
        "negative_from_noise"
    }
    fn cuda(&self) -> bool {
        true
    }
    fn forward(&self, inputs: &[&Tensor], save: &mut Save) -> Result<Vec<Tensor>> {
        const OP: &str = "negative_from_noise";
        expect_inputs(OP, inputs, 4)?;
        expect_f32(OP, inputs)?;
        expect_constant(OP, save, &[(0, "x_w"), (1, "v_phi"), (2, "sigma"), (3, "noise")])?;
        let [x, v_phi, sigma, noise] = [inputs[0], inputs[1], inputs[2], inputs[3]];
        let shape = dims4(OP, "x_w", x)?;
        v_phi.expect(OP, "v_phi", &shape)?;
        sigma.expect(OP, "sigma", &shape[..1])?;
        noise.expect(OP, "noise", &[3, 2])?;
        if let Some(gpu) = x.device().gpu() {
            let mut outputs = fresh(x)?;
            launch::from_noise(gpu, self.lambda, inputs, &mut outputs)?;
            return Ok(outputs);
        }
        let (mut x_sigma, mut v_star) =
            (Tensor::empty(x.device(), &shape)?, Tensor::empty(x.device(), &shape)?);
        Philox::fill_from(noise, &mut v_star)?;
        let each = x.stride0().max(1);
        for (i, (noised, star)) in x_sigma.f32_mut().iter_mut().zip(v_star.f32_mut()).enumerate() {
            let (clean, eps, level) = (x.f32()[i], *star, sigma.f32()[i / each]);
            *noised = (1.0 - level) * clean + level * eps;
            *star = eps - clean;
        }
        CoupledNegative { lambda: self.lambda }
            .forward(&[x, &x_sigma, &v_star, v_phi, sigma], &mut Save::nothing())
    }
    fn backward(&self, _: &[Tensor], _: &[Option<&Tensor>], _: &mut [Option<Slot>]) -> Result<()> {
        Ok(())
    }
}

/// Small ones for gradcheck; the winners of one batch of the tiny preset.
pub fn cases(device: &Device) -> Vec<Case> {
    let case = |b: usize, c: usize, h: usize, w: usize| {
        let mut inputs: Vec<Tensor> = (1..5).map(|i| random(device, &[b, c, h, w], i, 1.0)).collect();
        let sigma: Vec<f32> = (1..=b).map(|i| 0.31 * i as f32 % 1.0).collect();
        inputs.push(given(device, &[b], &sigma));
        let n = inputs[0].len();
        Case::new(format!("{NAME}/{b}x{c}x{h}x{w}"), CoupledNegative { lambda: 0.7 }, inputs)
            .constant(&[4])
            .cost(6.0 * n as f64, 3 * n)
    };
    // From a noise counter in the middle of a block of four, and from one at its start.
    let from_noise = |shape: [usize; 4], first: u64| {
        let op = NegativeFromNoise { lambda: 0.7 };
        let sigma: Vec<f32> = (1..=shape[0]).map(|i| 0.31 * i as f32 % 1.0).collect();
        let inputs = vec![random(device, &shape, 1, 1.0), random(device, &shape, 2, 1.0)];
        let noise = Philox::new(5, 6).on(device, first).expect("a case is small beside any memory");
        let inputs = [inputs, vec![given(device, &shape[..1], &sigma), noise]].concat();
        let n = inputs[0].len();
        Case::new(format!("negative_from_noise/{first}"), op, inputs)
            .constant(&[0, 1, 2, 3])
            .cost(70.0 * n as f64, 3 * n)
            .bench_only()
    };
    vec![
        case(3, 2, 3, 4),
        case(2, 16, 16, 16).bench_only(),
        from_noise([3, 1, 3, 5], 7),
        from_noise([2, 16, 16, 16], 8192),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against the definition (the adversary's clean estimate, mixed and noised again) in f64.
    #[test]
    fn is_the_definition_without_its_cancellation() {
        let d = Device::cpu_poisoned();
        let shape = [3, 2, 4, 4];
        let (x, eps, v_phi) =
            (random(&d, &shape, 1, 1.0), random(&d, &shape, 2, 1.0), random(&d, &shape, 3, 1.0));
        let sigma = Tensor::from_slice(&d, &[3], &[0.003, 0.5, 1.0]).unwrap();
        let (mut x_sigma, mut v_star) =
            (Tensor::empty(&d, &shape).unwrap(), Tensor::empty(&d, &shape).unwrap());
        for i in 0..x.len() {
            let s = sigma.f32()[i / 32];
            x_sigma.f32_mut()[i] = (1.0 - s) * x.f32()[i] + s * eps.f32()[i];
            v_star.f32_mut()[i] = eps.f32()[i] - x.f32()[i];
        }
        for lambda in [0.1f32, 1.0] {
            let out = CoupledNegative { lambda }
                .forward(&[&x, &x_sigma, &v_star, &v_phi, &sigma], &mut Save::nothing())
                .unwrap();
            for i in 0..x.len() {
                let at = |t: &Tensor| f64::from(t.f32()[i]);
                let (s, l) = (f64::from(sigma.f32()[i / 32]), f64::from(lambda));
                let estimate = at(&x_sigma) - s * at(&v_phi);
                let x_a = at(&x) + l * (estimate - at(&x));
                let want = [(1.0 - s) * x_a + s * at(&eps), at(&eps) - x_a, x_a];
                for (got, want) in out.iter().zip(want) {
                    assert!((at(got) - want).abs() < 2e-6, "{} vs {want}", at(got));
                }
            }
        }
    }

    #[test]
    fn refusals_carry_the_numbers() {
        let d = Device::cpu();
        let (x, bad, sigma) = (
            Tensor::zeros(&d, &[2, 1, 2, 2]).unwrap(),
            Tensor::zeros(&d, &[2, 1, 2, 3]).unwrap(),
            Tensor::zeros(&d, &[2]).unwrap(),
        );
        let op = CoupledNegative { lambda: 0.1 };
        let e = op.forward(&[&x, &x, &x, &bad, &sigma], &mut Save::nothing()).unwrap_err().to_string();
        assert!(e.contains("v_phi has shape [2, 1, 2, 3]"), "{e}");
        let needs = [false, false, false, false, true];
        assert!(op.forward(&[&x, &x, &x, &x, &sigma], &mut Save::new(&needs)).is_err());
    }
}
