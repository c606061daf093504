//! From a good picture to the bad one a model must restore: Real-ESRGAN's second-order degradation (its pieces are
//! basicsr's), and the light one of the tiny preset.

pub mod chain;
pub mod config;
pub mod filter;
pub mod jpeg;
pub mod kernels;
pub mod light;
pub mod noise;
pub mod pairs;
pub mod usm;

pub use chain::{Step, replay};
pub use config::{RealEsrgan, Strengths};
pub use light::{Light, bad_upscale, gaussian_blur};

use crate::Result;
use crate::data::Image;
use crate::engine::random::Reader;

/// How a bad picture comes from a good one.
#[derive(Clone, Debug, PartialEq)]
pub enum Degradation {
    /// One blur, an antialiased shrink, noise.
    Light(Light),
    /// Real-ESRGAN's.
    RealEsrgan(Box<RealEsrgan>),
}

impl Default for Degradation {
    fn default() -> Self {
        Self::Light(Light::default())
    }
}

impl Degradation {
    /// Refuses ranges that are reversed or beyond what the operations accept.
    pub fn check(&self) -> Result<()> {
        match self {
            Self::Light(light) => light.check(),
            Self::RealEsrgan(full) => full.check(),
        }
    }

    /// The bad picture is smaller by this factor on each side.
    pub fn scale(&self) -> usize {
        match self {
            Self::Light(light) => light.scale,
            Self::RealEsrgan(full) => full.scale,
        }
    }

    /// The target and the bad picture that `hq` gives with the draws of `rng`; its sides must be multiples of the scale.
    /// The target is `hq` itself, or sharpened where the degradation says so.
    pub fn pair(&self, hq: Image, rng: &mut Reader) -> Result<(Image, Image)> {
        match self {
            Self::Light(light) => {
                let lq = light.apply(&hq, rng)?;
                Ok((hq, lq))
            }
            Self::RealEsrgan(full) => full.follow(&full.draw(hq.height, hq.width, rng), hq),
        }
    }
}
