//! The adversary in closed form: the worst perturbation inside a Sobolev ball (paper §4.2, Eq. 19).
//!
//! ```text
//! ‖δ‖²_{H^s} = E_s(δ) = ⟨δ, A δ⟩/(C·H·W),   ‖g‖²_{H^{-s}} = ⟨g, A⁻¹ g⟩/(C·H·W),   A = (I − Δ)^s
//! δ*_b = −ρ_b · A⁻¹ g_b / ‖g_b‖_{H^{-s}}       g [B, C, H, W], ρ [B] in units of √E_s
//! ```
//! Among all δ with E_s(δ) ≤ ρ² it makes ⟨g, δ⟩ lowest, and E_s(δ*) = ρ². g is the gradient of the reference policy's
//! Euclidean residual energy with respect to the clean endpoint on the coupled path. Where g is 0, so is δ*.

use crate::engine::cuda::Gpu;
use crate::engine::{Device, Tensor};
use crate::ops::cuda;
use crate::ops::sobolev::{Metric, Sobolev};
use crate::{Error, Result};

/// Values of a sample that a block of the kernel sums.
const PIECE: usize = 4096;

/// The operators of one s: `(I − Δ)^s` and its inverse. A clone shares their plans.
#[derive(Clone)]
pub struct Riesz {
    forward: Sobolev,
    inverse: Sobolev,
}

impl Riesz {
    /// The geometry of smoothness `s`.
    pub fn new(s: f64) -> Self {
        Self { forward: Sobolev::new(Metric::full(s)), inverse: Sobolev::new(Metric::full(-s)) }
    }

    /// δ* of every sample.
    pub fn direction(&self, g: &Tensor, rho: &[f32]) -> Result<Tensor> {
        let mut delta = self.inverse.apply(g)?;
        let n = g.shape()[0];
        if rho.len() != n {
            return Err(Error::shape("riesz", format!("{} radii for {n} samples", rho.len())));
        }
        if let Some((b, r)) = rho.iter().enumerate().find(|(_, r)| !(**r >= 0.0 && r.is_finite())) {
            return Err(Error::shape("riesz", format!("the radius of sample {b} is {r}, wanted at least 0")));
        }
        let each = g.stride0().max(1);
        if let Some(gpu) = g.device().gpu() {
            scale_cuda(gpu, g, &mut delta, rho)?;
            return Ok(delta);
        }
        let samples = delta.f32_mut().chunks_exact_mut(each).zip(g.f32().chunks_exact(each));
        for ((delta, g), &rho) in samples.zip(rho) {
            let product: f64 = g.iter().zip(&*delta).map(|(&g, &d)| f64::from(g) * f64::from(d)).sum();
            let norm = (product / each as f64).sqrt();
            // A gradient that is not finite stays visible: NaN is not 0.
            let factor = if norm == 0.0 { 0.0 } else { (-f64::from(rho) / norm) as f32 };
            delta.iter_mut().for_each(|d| *d *= factor);
        }
        Ok(delta)
    }

    /// E_s of every sample: the square of its H^s norm.
    pub fn energy(&self, field: &Tensor) -> Result<Vec<f64>> {
        self.forward.energy(field)
    }

    /// The H^s cosine of every sample of two fields; 0 where one of them vanishes. A figure to be logged now and then:
    /// it is computed on the CPU, whichever device the fields are on.
    pub fn cosine(&self, a: &Tensor, b: &Tensor) -> Result<Vec<f32>> {
        let cpu = Device::cpu();
        let (a, b) = (&a.to(&cpu)?, &b.to(&cpu)?);
        let product = self.forward.inner(a, b)?;
        let norms = self.energy(a)?.into_iter().zip(self.energy(b)?).map(|(a, b)| (a * b).sqrt());
        Ok(product.into_iter().zip(norms).map(|(p, n)| if n == 0.0 { 0.0 } else { (p / n) as f32 }).collect())
    }
}

/// δ ← −ρ/‖g‖·δ of every sample, δ being A⁻¹ g, by `kernels/riesz.cu`.
fn scale_cuda(gpu: &Gpu, g: &Tensor, delta: &mut Tensor, rho: &[f32]) -> Result<()> {
    const SOURCE: &str = "riesz.cu";
    let (samples, each) = (g.shape()[0], g.stride0());
    let pieces = each.div_ceil(PIECE);
    let name = format!("riesz radii {rho:?}");
    let rho = Tensor::constant(g.device(), name, &[samples], || rho.to_vec())?;
    // f64: two f32 each.
    let mut partial = Tensor::empty(g.device(), &[samples * pieces, 2])?;
    let kernel = gpu.kernel(SOURCE, "riesz_dot_f32")?;
    let launch = gpu.launch(&kernel, [pieces, samples, 1], cuda::THREADS).read(g).read(delta);
    launch.write(&mut partial).value(cuda::long(each)).run()?;
    let kernel = gpu.kernel(SOURCE, "riesz_scale_f32")?;
    let launch = gpu.launch(&kernel, [cuda::blocks(gpu, each), samples, 1], cuda::THREADS);
    let launch = launch.write_or_add(delta, true).read(&partial).read(&rho);
    launch.value(cuda::long(each)).value(cuda::int("riesz", pieces)?).run()
}

/// The H^s cosine of every sample of two fields [B, C, H, W]; 0 where one of them vanishes.
pub fn h_s_cosine(a: &Tensor, b: &Tensor, s: f64) -> Result<Vec<f32>> {
    Riesz::new(s).cosine(a, b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::colored_noise::ColoredNoise;
    use crate::ops::{Op, Save, random};

    fn dots(a: &Tensor, b: &Tensor) -> Vec<f64> {
        let each = a.stride0();
        let sum =
            |(a, b): (&[f32], &[f32])| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
        a.f32().chunks_exact(each).zip(b.f32().chunks_exact(each)).map(sum).collect()
    }

    #[test]
    fn the_energy_is_the_radius_squared() {
        let d = Device::cpu_poisoned();
        let rho = [0.1, 1.0, 30.0];
        for (s, h, w) in [(1.5, 16, 16), (1.5, 64, 64), (0.0, 7, 9), (-1.0, 8, 6), (2.0, 15, 32)] {
            let riesz = Riesz::new(s);
            let delta = riesz.direction(&random(&d, &[3, 2, h, w], 1, 1e-3), &rho).unwrap();
            for (e, rho) in riesz.energy(&delta).unwrap().into_iter().zip(rho) {
                let want = f64::from(rho).powi(2);
                assert!((e - want).abs() < 2e-6 * want, "s {s}, {h}×{w}: {e} for a radius of {rho}");
            }
        }
    }

    /// No other perturbation of the ball is better: white ones, coloured ones, and neighbours of δ* itself.
    #[test]
    fn nothing_in_the_ball_is_lower() {
        let d = Device::cpu_poisoned();
        let shape = [40, 2, 12, 10];
        let g = {
            let one = random(&d, &[1, 2, 12, 10], 1, 1.0);
            Tensor::from_slice(&d, &shape, &one.f32().repeat(40)).unwrap()
        };
        let riesz = Riesz::new(1.5);
        let best = riesz.direction(&g, &[1.0; 40]).unwrap();
        let lowest = dots(&g, &best);
        assert!(lowest.iter().all(|&v| v < 0.0));
        let white = random(&d, &shape, 2, 1.0);
        let coloured =
            |s: f64| ColoredNoise::new(s).forward(&[&white], &mut Save::nothing()).unwrap().remove(0);
        let near = |t: f32| {
            let mut x = coloured(2.0);
            x.f32_mut().iter_mut().zip(best.f32()).for_each(|(x, b)| *x = b + t * *x);
            x
        };
        for (name, field) in
            [("white", coloured(0.0)), ("coloured", coloured(3.0)), ("near", near(0.03)), ("far", near(-0.3))]
        {
            let energies = riesz.energy(&field).unwrap();
            for (b, v) in dots(&g, &field).into_iter().enumerate() {
                let v = v / energies[b].sqrt();
                assert!(v > lowest[b] * (1.0 - 1e-9), "{name}: {v} is below {}", lowest[b]);
            }
        }
    }

    #[test]
    fn the_cosine_is_one_along_zero_across() {
        let d = Device::cpu_poisoned();
        let (a, b) = (random(&d, &[3, 2, 8, 8], 1, 1.0), random(&d, &[3, 2, 8, 8], 2, 1.0));
        let mut turned = Tensor::from_slice(&d, a.shape(), a.f32()).unwrap();
        turned.f32_mut().iter_mut().for_each(|v| *v *= -3.0);
        assert!(h_s_cosine(&a, &turned, 1.5).unwrap().iter().all(|c| (c + 1.0).abs() < 1e-6));
        let (inner, e) =
            (Sobolev::new(Metric::full(1.5)).inner(&a, &b).unwrap(), Riesz::new(1.5).energy(&a).unwrap());
        let mut across = Tensor::from_slice(&d, b.shape(), b.f32()).unwrap();
        for (i, v) in across.f32_mut().iter_mut().enumerate() {
            *v -= (inner[i / 128] / e[i / 128]) as f32 * a.f32()[i];
        }
        assert!(h_s_cosine(&a, &across, 1.5).unwrap().iter().all(|c| c.abs() < 1e-6));
        assert_eq!(h_s_cosine(&a, &Tensor::zeros(&d, a.shape()).unwrap(), 1.5).unwrap(), [0.0; 3]);
    }

    #[test]
    fn nothing_to_follow_moves_nothing_and_bad_radii_are_refused() {
        let g = Tensor::zeros(&Device::cpu(), &[2, 1, 4, 4]).unwrap();
        let riesz = Riesz::new(1.5);
        assert!(riesz.direction(&g, &[1.0, 1.0]).unwrap().f32().iter().all(|&v| v == 0.0));
        assert!(riesz.direction(&g, &[1.0]).unwrap_err().to_string().contains("1 radii for 2 samples"));
        assert!(riesz.direction(&g, &[1.0, -1.0]).unwrap_err().to_string().contains("sample 1 is -1"));
    }
}
