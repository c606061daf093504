//! Noise with the covariance `(I − Δ)^{-s}`: `n = F⁻¹ (1+|k|²)^{-s/2} F ε`, per plane of [B, C, H, W].
//!
//! With white ε of variance 1, `E|F n(k)|² = (1+|k|²)^{-s}`, F orthonormal. Saves nothing: the operator is real and
//! self-adjoint, so backward is the same operator on the gradient.

use super::sobolev::{Metric, Sobolev, Spectrum, Weight};
use super::{Case, Op, Save, Slot, expect_inputs, random};
use crate::Result;
use crate::engine::{Device, Tensor};

/// The op; one input, one output of the same shape. A clone shares the plans.
#[derive(Clone)]
pub struct ColoredNoise {
    root: Sobolev,
}

impl ColoredNoise {
    /// The colour of smoothness `s` (0 leaves the noise white).
    pub fn new(s: f64) -> Self {
        Self { root: Sobolev::new(Metric { s: -0.5 * s, spectrum: Spectrum::Full, weight: Weight::Raw }) }
    }
}

impl Op for ColoredNoise {
    fn name(&self) -> &'static str {
        "colored_noise"
    }
    fn cuda(&self) -> bool {
        true
    }
    fn forward(&self, inputs: &[&Tensor], _: &mut Save) -> Result<Vec<Tensor>> {
        expect_inputs("colored_noise", inputs, 1)?;
        Ok(vec![self.root.apply(inputs[0])?])
    }
    fn backward(&self, _: &[Tensor], grads: &[Option<&Tensor>], slots: &mut [Option<Slot>]) -> Result<()> {
        if let (Some(slot), Some(dy)) = (&mut slots[0], grads[0]) {
            slot.add(&self.root.apply(dy)?)?;
        }
        Ok(())
    }
}

/// Small ones for gradcheck; the noise of one batch of the tiny preset.
pub fn cases(device: &Device) -> Vec<Case> {
    let case = |s: f64, b: usize, c: usize, h: usize, w: usize| {
        let n = b * c * h * w;
        // Two complex transforms of 5·N·log₂N each.
        let flops = 10.0 * n as f64 * ((h * w) as f64).log2() + 2.0 * n as f64;
        Case::new(
            format!("colored_noise/s{s}/{b}x{c}x{h}x{w}"),
            ColoredNoise::new(s),
            vec![random(device, &[b, c, h, w], 1, 1.0)],
        )
        .cost(flops, n)
    };
    vec![
        case(1.5, 3, 2, 4, 6),
        case(-1.0, 3, 1, 3, 5),
        case(1.5, 3, 2, 4, 4),
        case(1.5, 6, 16, 16, 16).bench_only(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::sobolev::tests::dft;
    use rustfft::num_complex::Complex64;

    /// The power of many noises, frequency by frequency: chi-squared, so off by less than five deviations.
    #[test]
    fn the_spectrum_is_the_covariance() {
        let (s, h, w, draws) = (1.5, 8, 9, 4000);
        let white = random(&Device::cpu_poisoned(), &[draws, 1, h, w], 9, 1.0);
        let noise = ColoredNoise::new(s).forward(&[&white], &mut Save::nothing()).unwrap().remove(0);
        let mut power = vec![0f64; h * w];
        for plane in noise.f32().chunks_exact(h * w) {
            let z: Vec<Complex64> = plane.iter().map(|&v| Complex64::new(v.into(), 0.0)).collect();
            dft(&z, h, w).iter().zip(&mut power).for_each(|(z, p)| *p += z.norm_sqr());
        }
        let want = Metric { s: -s, spectrum: Spectrum::Full, weight: Weight::Raw }.plane(h, w);
        for (i, (p, want)) in power.iter().zip(want).enumerate() {
            let ratio = p / draws as f64 / (h * w) as f64 / f64::from(want);
            let deviation = (2.0 / draws as f64).sqrt();
            assert!((ratio - 1.0).abs() < 5.0 * deviation, "frequency {i}: {ratio} of what is wanted");
        }
    }

    #[test]
    fn no_smoothness_leaves_the_noise_alone() {
        let white = random(&Device::cpu_poisoned(), &[2, 3, 5, 4], 9, 1.0);
        let noise = ColoredNoise::new(0.0).forward(&[&white], &mut Save::nothing()).unwrap().remove(0);
        assert!(noise.f32().iter().zip(white.f32()).all(|(a, b)| (a - b).abs() < 1e-6));
    }
}
