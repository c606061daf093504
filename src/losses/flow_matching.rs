//! Flow matching in FLUX's convention (paper §2, with t = 1 − σ and the velocity's sign turned).
//!
//! ```text
//! x_σ = (1−σ)·x + σ·ε,   v* = ε − x,   x̂ = x_σ − σ·v;      x, ε [B, C, H, W], σ [B] in [0, 1]
//! ```
//! ε is white: colour enters the metric only. The loss on v is [`MeanSquare`](crate::ops::reduce::MeanSquare).

use crate::engine::{DType, Tensor};
use crate::ops::blend::{Blend, Factor};
use crate::{Error, Result};

const NAME: &str = "flow_matching";

/// The noised sample x_σ and the target velocity v*.
pub fn noised(x: &Tensor, eps: &Tensor, sigma: &Tensor) -> Result<(Tensor, Tensor)> {
    check(x, eps, "eps", sigma)?;
    let x_sigma = Blend { x: Factor::REST, y: Factor::SIGMA }.of(x, eps, sigma)?;
    let v_star = Blend { x: Factor::constant(-1.0), y: Factor::constant(1.0) }.of(x, eps, sigma)?;
    Ok((x_sigma, v_star))
}

/// The clean estimate x̂ a velocity stands for.
pub fn clean_estimate(x_sigma: &Tensor, v: &Tensor, sigma: &Tensor) -> Result<Tensor> {
    check(x_sigma, v, "v", sigma)?;
    Blend { x: Factor::constant(1.0), y: Factor { at_0: 0.0, slope: -1.0 } }.of(x_sigma, v, sigma)
}

/// σ is looked at where it is at hand; a device's memory is not waited for.
fn check(x: &Tensor, other: &Tensor, what: &str, sigma: &Tensor) -> Result<()> {
    other.expect(NAME, what, x.shape())?;
    sigma.expect(NAME, "sigma", &x.shape()[..x.shape().len().min(1)])?;
    if let Some(t) = [x, other, sigma].into_iter().find(|t| t.dtype() != DType::F32) {
        return Err(Error::shape(NAME, format!("an input is {:?}, wanted F32", t.dtype())));
    }
    if sigma.device().gpu().is_some() {
        return Ok(());
    }
    match sigma.f32().iter().enumerate().find(|(_, s)| !(0.0..=1.0).contains(*s)) {
        Some((b, s)) => Err(Error::shape(NAME, format!("sigma of sample {b} is {s}, wanted 0 to 1"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Device;
    use crate::ops::random;

    #[test]
    fn noise_and_velocity_give_the_clean_sample_back() {
        let d = Device::cpu_poisoned();
        let shape = [3, 2, 4, 4];
        let (x, eps) = (random(&d, &shape, 1, 1.0), random(&d, &shape, 2, 1.0));
        let sigma = Tensor::from_slice(&d, &[3], &[0.0, 0.25, 1.0]).unwrap();
        let (x_sigma, v_star) = noised(&x, &eps, &sigma).unwrap();
        assert_eq!(x_sigma.leading(1).f32(), x.leading(1).f32());
        assert_eq!(x_sigma.rows(2..3).unwrap().f32(), eps.rows(2..3).unwrap().f32());
        for i in 32..64 {
            assert!((x_sigma.f32()[i] - (0.75 * x.f32()[i] + 0.25 * eps.f32()[i])).abs() < 1e-6);
            assert_eq!(v_star.f32()[i], eps.f32()[i] - x.f32()[i]);
        }
        let back = clean_estimate(&x_sigma, &v_star, &sigma).unwrap();
        assert!(back.f32().iter().zip(x.f32()).all(|(a, b)| (a - b).abs() < 1e-6));
    }

    #[test]
    fn refusals_carry_the_numbers() {
        let d = Device::cpu();
        let x = Tensor::zeros(&d, &[2, 1, 2, 2]).unwrap();
        let sigma = |v: [f32; 2]| Tensor::from_slice(&d, &[2], &v).unwrap();
        let e = noised(&x, &x, &sigma([0.5, 1.5])).unwrap_err().to_string();
        assert!(e.contains("sample 1 is 1.5"), "{e}");
        assert!(noised(&x, &x, &sigma([f32::NAN, 0.0])).is_err());
        let e = noised(&x, &Tensor::zeros(&d, &[2, 1, 2, 3]).unwrap(), &sigma([0.0, 1.0]))
            .unwrap_err()
            .to_string();
        assert!(e.contains("eps has shape [2, 1, 2, 3]"), "{e}");
    }
}
