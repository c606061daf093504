//! Noise levels in training and sampling, the Euler step, and learning-rate schedules.
//!
//! ```text
//! training   u = sigmoid(n), n ~ N(0,1);  i = ⌊1000·u⌋;  σ = (1000 − i)/1000;  the model is given 1000·σ
//! sampling   σ' = e^μ / (e^μ + 1/σ − 1) of σ = linspace(1, 1/n, n);  a last 0;  x ← x + (σ_next − σ)·v
//! ```
//! Source: diffusers' `FlowMatchEulerDiscreteScheduler` with FLUX.1-dev's settings; σ stays f32 (METHOD §1).

use crate::Result;
use crate::engine::Tensor;
use crate::ops::blend::{Blend, Factor};

/// Distinct noise levels in training; the time embedding's unit (it is given `TRAIN_STEPS · σ`).
pub const TRAIN_STEPS: usize = 1000;

/// Image tokens and μ of the two points that define the resolution-dependent shift.
const SHIFT_POINTS: [(f64, f64); 2] = [(256.0, 0.5), (4096.0, 1.15)];

/// The training noise level σ ∈ {0.001, …, 1} of `u` ∈ [0, 1]; the product 1000·u is taken in f32, as torch does.
///
/// u = 1, which a sigmoid in f32 can round to, is given the least noise like its neighbours below.
pub fn sigma_of(u: f32) -> f32 {
    let index = ((TRAIN_STEPS as f32 * u).floor().max(0.0) as usize).min(TRAIN_STEPS - 1);
    (TRAIN_STEPS - index) as f32 / TRAIN_STEPS as f32
}

/// `1 / (1 + e^−n)`: a standard normal mapped to a logit-normal in (0, 1).
pub fn logit_normal(n: f32) -> f32 {
    1.0 / (1.0 + (-n).exp())
}

/// The shift μ for a picture of `image_tokens` tokens: linear through (256, 0.5) and (4096, 1.15), extrapolated.
pub fn shift_mu(image_tokens: usize) -> f64 {
    let [(x0, y0), (x1, y1)] = SHIFT_POINTS;
    let slope = (y1 - y0) / (x1 - x0);
    image_tokens as f64 * slope + (y0 - slope * x0)
}

/// The `steps + 1` noise levels of a sampling run, from 1 down to an exact 0. Computed in f64, rounded once.
pub fn sampling_sigmas(steps: usize, image_tokens: usize) -> Vec<f32> {
    let shift = shift_mu(image_tokens).exp();
    let n = steps as f64;
    let shifted = (0..steps).map(|i| {
        let sigma = if steps == 1 { 1.0 } else { 1.0 + i as f64 * (1.0 / n - 1.0) / (n - 1.0) };
        (shift / (shift + (1.0 / sigma - 1.0))) as f32
    });
    shifted.chain([0.0]).collect()
}

/// Every noise level of training, and those of a sampling run.
pub fn known_sigmas(steps: usize, image_tokens: usize) -> Vec<f32> {
    let training = (1..=TRAIN_STEPS).map(|i| i as f32 / TRAIN_STEPS as f32);
    training.chain(sampling_sigmas(steps, image_tokens)).collect()
}

/// One Euler step from each sample's `sigma` `[B]` to `sigma_next`: `x + (sigma_next − sigma)·velocity`.
pub fn euler(x: &Tensor, velocity: &Tensor, sigma: &Tensor, sigma_next: f32) -> Result<Tensor> {
    let step = Factor { at_0: sigma_next, slope: -1.0 };
    Blend { x: Factor::constant(1.0), y: step }.of(x, velocity, sigma)
}

/// The learning rate of update `update` (from 0) under a linear warm-up: `base · min(1, update/warmup)`.
///
/// Update 0 therefore has rate 0, as in diffusers' `constant_with_warmup`. Without warm-up it is `base` throughout.
pub fn warmup_lr(base: f64, update: usize, warmup: usize) -> f64 {
    if update >= warmup { base } else { base * (update as f64 / warmup as f64) }
}

/// How the learning rate moves after its warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LrSchedule {
    /// It stays.
    #[default]
    Constant,
    /// It stays for the first half of the run, then falls linearly to 0 at its end.
    DecayHalf,
}

impl LrSchedule {
    /// The learning rate of update `update` of `total` (from 0), warm-up included.
    pub fn lr(self, base: f64, update: usize, warmup: usize, total: usize) -> f64 {
        let decay = match self {
            Self::Constant => 1.0,
            Self::DecayHalf if total == 0 => 1.0,
            Self::DecayHalf => (2.0 * (1.0 - update as f64 / total as f64)).clamp(0.0, 1.0),
        };
        decay * warmup_lr(base, update, warmup)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Device;
    use crate::flux::weights::SafeFile;

    fn golden() -> SafeFile {
        SafeFile::open(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/scheduler.safetensors")).unwrap()
    }

    fn close(name: &str, got: &[f64], want: &[f64], tolerance: f64) {
        assert_eq!(got.len(), want.len(), "{name}");
        let worst = got.iter().zip(want).map(|(g, w)| (g - w).abs()).fold(0.0, f64::max);
        assert!(worst <= tolerance, "{name}: off by {worst:e}, allowed {tolerance:e}");
    }

    fn wide(v: &[f32]) -> Vec<f64> {
        v.iter().map(|&v| f64::from(v)).collect()
    }

    /// Every tensor of the golden file, with the tolerances of its json. None is passed over unnamed.
    #[test]
    fn agrees_with_diffusers() {
        let file = golden();
        for name in file.names() {
            let want = file.f64s(name).unwrap();
            let read = |name: &str| file.f64s(name).unwrap();
            match name {
                "train.sigmas" | "train.timesteps" => {
                    let levels: Vec<f32> =
                        (0..TRAIN_STEPS).map(|i| sigma_of((i as f32 + 0.5) / 1000.0)).collect();
                    let unit = if name == "train.sigmas" { 1.0 } else { 1000.0 };
                    let got: Vec<f32> = levels.iter().map(|s| s * unit).collect();
                    close(name, &wide(&got), &want, 0.0);
                }
                "logit.z" => {
                    let u: Vec<f32> = want.iter().map(|&z| logit_normal(z as f32)).collect();
                    close(name, &wide(&u), &read("logit.u")[..64], 2e-7);
                }
                "logit.u" | "logit.index" | "logit.timestep" | "logit.sigma" => {
                    let sigma: Vec<f32> = read("logit.u").iter().map(|&u| sigma_of(u as f32)).collect();
                    let got: Vec<f64> = match name {
                        "logit.index" => {
                            sigma.iter().map(|s| 1000.0 - f64::from((s * 1000.0).round())).collect()
                        }
                        "logit.timestep" => sigma.iter().map(|s| f64::from(s * 1000.0)).collect(),
                        "logit.sigma" => wide(&sigma),
                        _ => continue, // logit.u is the input of the other three
                    };
                    close(name, &got, &want, 0.0);
                }
                "lr.constant_with_warmup_5" => {
                    let got: Vec<f64> = (0..9).map(|n| warmup_lr(1e-5, n, 5)).collect();
                    close(name, &got, &want, 1e-17);
                    assert_eq!(got[0], 0.0);
                }
                "step.prev_sample" => {
                    let d = Device::cpu();
                    let one = |values: &[f32]| Tensor::from_slice(&d, &[1, values.len()], values).unwrap();
                    let narrow = |n: &str| one(&read(n).iter().map(|&v| v as f32).collect::<Vec<_>>());
                    let s = sampling_sigmas(4, 1024);
                    let sigma = one(&s[..1]).reshape(&[1]).unwrap();
                    let x = narrow("step.sample");
                    let x = euler(&x, &narrow("step.model_output"), &sigma, s[1]).unwrap();
                    close(name, &wide(x.f32()), &want, 1e-6);
                }
                "step.sample" | "step.model_output" => {} // inputs of step.prev_sample
                // What the reference makes of σ by rounding it to bf16: 500 distinct values instead of 1000. The engine
                // keeps σ in f32 on purpose, so there is nothing of ours to compare with these two.
                "logit.sigma_bf16" | "logit.t_embed_bf16" => {}
                _ => sampling(name, &want),
            }
        }
    }

    /// `infer.{sigmas,timesteps,mu}_n<steps>_L<tokens>`.
    fn sampling(name: &str, want: &[f64]) {
        let rest = name.strip_prefix("infer.").unwrap_or_else(|| panic!("{name} is not checked"));
        let (what, rest) = rest.split_once("_n").unwrap();
        let (steps, tokens) = rest.split_once("_L").unwrap();
        let (steps, tokens): (usize, usize) = (steps.parse().unwrap(), tokens.parse().unwrap());
        let sigmas = sampling_sigmas(steps, tokens);
        match what {
            "mu" => close(name, &[shift_mu(tokens)], want, 1e-15),
            "sigmas" => close(name, &wide(&sigmas), want, 1.2e-7),
            "timesteps" => {
                let t: Vec<f32> = sigmas[..steps].iter().map(|s| s * 1000.0).collect();
                close(name, &wide(&t), want, 1.3e-4);
            }
            _ => panic!("{name} is not checked"),
        }
    }

    #[test]
    fn edges() {
        assert_eq!((sigma_of(0.0), sigma_of(1.0)), (1.0, 0.001));
        assert_eq!(sampling_sigmas(1, 256), [1.0, 0.0]);
        assert_eq!(sampling_sigmas(0, 256), [0.0]);
        assert!(shift_mu(16_384) > 3.0, "extrapolated, not clamped");
        let zeros = |shape: &[usize]| Tensor::zeros(&Device::cpu(), shape).unwrap();
        let e = euler(&zeros(&[1, 3]), &zeros(&[1, 2]), &zeros(&[1]), 0.5).unwrap_err().to_string();
        assert!(e.contains("[1, 2]") && e.contains("[1, 3]"), "{e}");
    }

    #[test]
    fn decay_starts_at_the_half_and_ends_at_zero() {
        let lr = |n| LrSchedule::DecayHalf.lr(2.0, n, 10, 100);
        assert_eq!([lr(0), lr(5), lr(10), lr(50), lr(75), lr(100)], [0.0, 1.0, 2.0, 2.0, 1.0, 0.0]);
        assert_eq!(LrSchedule::Constant.lr(2.0, 99, 10, 100), 2.0);
    }
}
