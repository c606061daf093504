//! One degradation as a list of steps: drawn from a configuration, printed, and run as often as one likes.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

use super::config::{Range, RealEsrgan, Stage};
use super::filter::{filter, separable};
use super::jpeg::Codec;
use super::kernels::{Blur, Kind, Sinc};
use super::noise::{add_gaussian, add_poisson};
use crate::Result;
use crate::data::Image;
use crate::data::resize::{Mode, To, interpolate};
use crate::engine::random::{Philox, Reader};

/// One step, with every number that it was drawn with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// A blur.
    Blur(Blur),
    /// A low-pass that rings.
    Sinc(Sinc),
    /// Another size.
    Resize {
        /// How.
        mode: Mode,
        /// What size.
        to: To,
    },
    /// Gaussian noise, then a clamp.
    Gaussian {
        /// Its σ, in 1/255.
        sigma: f64,
        /// The same in all channels.
        grey: bool,
        /// What it is drawn from.
        seed: u64,
    },
    /// Poisson noise, then a clamp.
    Poisson {
        /// Its strength.
        scale: f64,
        /// The same in all channels.
        grey: bool,
        /// What it is drawn from.
        seed: u64,
    },
    /// A clamp, then JPEG.
    Jpeg {
        /// Quality, 1…100.
        quality: f64,
    },
}

impl Step {
    /// `img` after it.
    pub fn apply(&self, mut img: Image, codec: Codec) -> Result<Image> {
        Ok(match *self {
            Self::Blur(ref blur) => match blur.axis() {
                Some(axis) => separable(&img, &axis),
                None => filter(&img, &blur.weights(), blur.size),
            },
            Self::Sinc(ref sinc) => filter(&img, &sinc.weights(), sinc.size),
            Self::Resize { mode, to } => interpolate(&img, to, mode),
            Self::Gaussian { sigma, grey, seed } => {
                add_gaussian(&mut img, sigma, grey, Philox::new(seed, 0));
                img
            }
            Self::Poisson { scale, grey, seed } => {
                add_poisson(&mut img, scale, grey, Philox::new(seed, 0));
                img
            }
            Self::Jpeg { quality } => codec.apply(&img.clamped(), quality)?,
        })
    }
}

/// `img` after all of `steps`, clamped and rounded to 8 bits.
pub fn replay(steps: &[Step], img: Image, codec: Codec) -> Result<Image> {
    let out = steps.iter().try_fold(img, |img, step| step.apply(img, codec))?;
    Image::from_rgb8(out.height, out.width, &out.to_rgb8())
}

impl RealEsrgan {
    /// Draws what happens to a picture of `height`×`width` pixels once it is sharpened.
    pub fn draw(&self, height: usize, width: usize, rng: &mut Reader) -> Vec<Step> {
        let size = (height / self.scale, width / self.scale);
        let mut steps = Vec::new();
        if happens(self.light_prob, rng) {
            steps.push(resize(To::Size(size.0, size.1), rng));
            steps.push(jpeg(self.light_jpeg_range, rng));
            return steps;
        }
        self.first.blur(rng, &mut steps);
        if let Some(factor) = self.first.factor(rng) {
            steps.push(resize(To::Scale(factor), rng));
        }
        steps.push(self.first.noise(rng));
        steps.push(jpeg(self.first.jpeg_range, rng));

        self.second.blur(rng, &mut steps);
        let factor = self.second.factor(rng).unwrap_or(1.0);
        // of the exact quarter, before it is rounded down
        let side = |n: usize| ((n as f64 / self.scale as f64 * factor) as usize).max(1);
        steps.push(resize(To::Size(side(height), side(width)), rng));
        steps.push(self.second.noise(rng));
        let resize_first = happens(self.resize_first_prob, rng);
        let last = resize(To::Size(size.0, size.1), rng);
        let jpeg = jpeg(self.second.jpeg_range, rng);
        let sinc = happens(self.final_sinc_prob, rng)
            .then(|| sinc(odd(self.final_kernel_size, rng), self.final_sinc_cutoff, rng));
        if resize_first {
            steps.extend([last].into_iter().chain(sinc).chain([jpeg]));
        } else {
            steps.extend([jpeg, last].into_iter().chain(sinc));
        }
        steps
    }

    /// The target and the bad picture that `hq` gives by `steps`: sharpened, and what is left of it.
    pub fn follow(&self, steps: &[Step], hq: Image) -> Result<(Image, Image)> {
        let hq = self.sharpen.apply(hq);
        let lq = replay(steps, hq.clone(), self.jpeg)?;
        Ok((hq, lq))
    }
}

/// Kernels with fewer taps a side than this have a sinc's lowest cut-off of their own.
const SMALL_SINC: usize = 13;

impl Stage {
    fn blur(&self, rng: &mut Reader, steps: &mut Vec<Step>) {
        if !happens(self.blur_prob, rng) {
            return;
        }
        let size = odd(self.kernel_size, rng);
        if happens(self.sinc_prob, rng) {
            steps.push(sinc(size, self.sinc_cutoff[usize::from(size >= SMALL_SINC)], rng));
            return;
        }
        let kind = self.kind(rng);
        let sigma_x = uniform(self.blur_sigma, rng);
        let (sigma_y, theta) = if kind.isotropic() {
            (sigma_x, 0.0)
        } else {
            (uniform(self.blur_sigma, rng), uniform([-PI, PI], rng))
        };
        let beta = match kind {
            Kind::Iso | Kind::Aniso => None,
            Kind::GeneralizedIso | Kind::GeneralizedAniso => Some(halves(self.betag_range, rng)),
            Kind::PlateauIso | Kind::PlateauAniso => Some(halves(self.betap_range, rng)),
        };
        steps.push(Step::Blur(Blur { kind, size, sigma_x, sigma_y, theta, beta }));
    }

    fn kind(&self, rng: &mut Reader) -> Kind {
        let mut left = unit(rng);
        for (kind, p) in Kind::ALL.into_iter().zip(self.kernel_prob) {
            left -= p;
            if left < 0.0 {
                return kind;
            }
        }
        // the probabilities' sum may be short of 1 by its rounding
        Kind::Iso
    }

    /// The factor of the resize; `None` where the size is kept.
    fn factor(&self, rng: &mut Reader) -> Option<f64> {
        let ([up, down], [lo, hi], at) = (self.resize_prob, self.resize_range, unit(rng));
        if at < up {
            Some(uniform([1.0, hi], rng))
        } else if at < up + down {
            Some(uniform([lo, 1.0], rng))
        } else {
            None
        }
    }

    fn noise(&self, rng: &mut Reader) -> Step {
        let gaussian = happens(self.gaussian_noise_prob, rng);
        let range = if gaussian { self.noise_range } else { self.poisson_scale_range };
        let (strength, grey) = (uniform(range, rng), happens(self.gray_noise_prob, rng));
        // 53 bits: any reader of a manifest has the number exactly
        let seed = u64::from(rng.word()) | u64::from(rng.word() >> 11) << 32;
        if gaussian {
            Step::Gaussian { sigma: strength, grey, seed }
        } else {
            Step::Poisson { scale: strength, grey, seed }
        }
    }
}

fn resize(to: To, rng: &mut Reader) -> Step {
    Step::Resize { mode: Mode::ALL[rng.below(Mode::ALL.len())], to }
}

fn jpeg(range: Range, rng: &mut Reader) -> Step {
    Step::Jpeg { quality: uniform(range, rng) }
}

fn sinc(size: usize, lowest: f64, rng: &mut Reader) -> Step {
    Step::Sinc(Sinc { size, cutoff: uniform([lowest, PI], rng) })
}

/// One of the odd numbers from the first to the last.
fn odd([lo, hi]: [usize; 2], rng: &mut Reader) -> usize {
    lo + 2 * rng.below((hi - lo) / 2 + 1)
}

/// Below 1 or above it, with equal chances.
fn halves([lo, hi]: Range, rng: &mut Reader) -> f64 {
    if happens(0.5, rng) { uniform([lo, 1.0], rng) } else { uniform([1.0, hi], rng) }
}

fn happens(probability: f64, rng: &mut Reader) -> bool {
    unit(rng) < probability
}

fn uniform([lo, hi]: Range, rng: &mut Reader) -> f64 {
    lo + (hi - lo) * unit(rng)
}

fn unit(rng: &mut Reader) -> f64 {
    f64::from(rng.unit())
}
