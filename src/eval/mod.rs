//! Honest numbers: how near a restored picture is to the truth, pixel by pixel (PSNR, SSIM), in its spectrum (LSD,
//! radial LSD, high-frequency ratio) and to a network's eye (LPIPS, DISTS).
//!
//! Must not know: how the picture was made, the models that make it, files but that of its own [`Evaluation`], those of
//! the metrics' networks and the pictures of [`Folders`]. Everything is computed from [`Image`]s on the CPU, in f64 but for the networks' activations.
pub mod bootstrap;
pub mod dists;
pub mod evaluation;
mod features;
pub mod folders;
pub mod lpips;
pub mod luma;
pub mod pair;
mod pool;
pub mod psnr;
pub mod results;
pub mod scores;
pub mod spectrum;
pub mod ssim;

pub use bootstrap::{Difference, Verdict, compare};
pub use dists::Dists;
pub use evaluation::{Comparison, Evaluation};
pub use features::Backbone;
pub use folders::Folders;
pub use lpips::Lpips;
pub use luma::luma;
pub use pair::{Convention, Pair};
pub use psnr::psnr;
pub use results::{Networks, Results};
pub use scores::Scores;
pub use spectrum::{RadialSpectra, lsd_db, power_spectrum};
pub use ssim::ssim;

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::data::Image;

/// Pixels cut off each side before PSNR and SSIM.
pub const BORDER: usize = 4;

/// What a set of restored pictures scores against the truth; means over the set.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// Peak signal-to-noise ratio on luma, dB; more is better (80 for identical pictures).
    pub psnr_y: f64,
    /// Structural similarity on luma, at most 1.
    pub ssim_y: f64,
    /// Two-dimensional log-spectral distance on luma, dB; 0 is right. It cannot fall below about 7.9 dB where high
    /// frequencies have the right power but not the right phase: read it beside the two below.
    pub lsd_db: f64,
    /// RMS difference of the set-mean radial spectra, dB; 0 is right.
    pub rlsd_db: f64,
    /// Power above 0.125 cycles/pixel over the truth's; 1 is right, less is blur, more is noise.
    pub hf_ratio: f64,
}

impl std::fmt::Display for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { psnr_y, ssim_y, lsd_db, rlsd_db, hf_ratio } = self;
        write!(
            f,
            "PSNR-Y {psnr_y:.2} dB, SSIM-Y {ssim_y:.4}, LSD {lsd_db:.2} dB, radial LSD {rlsd_db:.2} dB, "
        )?;
        write!(f, "hf ratio {hf_ratio:.3}")
    }
}

/// Scores `sr[i]` against `hq[i]`: the [`Scores::metrics`] of [`Scores::of`].
pub fn evaluate(sr: &[Image], hq: &[Image]) -> Result<Metrics> {
    Ok(Scores::of(sr, hq)?.metrics())
}
