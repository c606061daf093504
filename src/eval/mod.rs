//! Honest numbers: how near a restored picture is to the truth, pixel by pixel (PSNR, SSIM) and in its spectrum (LSD,
//! radial LSD, high-frequency ratio).
//!
//! Must not know: how the picture was made, models, files. Everything is computed in f64 from [`Image`]s.
pub mod luma;
pub mod psnr;
pub mod spectrum;
pub mod ssim;

pub use luma::luma;
pub use psnr::psnr;
pub use spectrum::{RadialSpectra, lsd_db, power_spectrum};
pub use ssim::ssim;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::data::Image;
use crate::{Error, Result};

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

/// Scores `sr[i]` against `hq[i]`. Restored pictures are first clamped and rounded to 8 bits, as a file would hold them.
///
/// Sizes may differ from pair to pair, and need not be square; each side must be at least 19 (the SSIM window plus
/// borders).
pub fn evaluate(sr: &[Image], hq: &[Image]) -> Result<Metrics> {
    if sr.is_empty() || sr.len() != hq.len() {
        let (s, h) = (sr.len(), hq.len());
        return Err(Error::shape(
            "evaluate",
            format!("{s} restored and {h} true pictures; expected as many, at least 1"),
        ));
    }
    for (i, (s, h)) in sr.iter().zip(hq).enumerate() {
        if (s.height, s.width) != (h.height, h.width) || s.height.min(s.width) < ssim::WINDOW + 2 * BORDER {
            return Err(Error::shape(
                "evaluate",
                format!(
                    "pair {i}: restored {}×{}, true {}×{} pixels; expected the same, at least {} a side",
                    s.height,
                    s.width,
                    h.height,
                    h.width,
                    ssim::WINDOW + 2 * BORDER
                ),
            ));
        }
    }
    let rings = hq.iter().map(|h| h.height.min(h.width)).min().unwrap_or(0);
    let parts: Vec<_> = sr.par_iter().zip(hq).map(|(s, h)| evaluate_pair(s, h, rings)).collect();
    let n = parts.len() as f64;
    let mean = |f: fn(&Pair) -> f64| parts.iter().map(f).sum::<f64>() / n;
    let mut spectra = RadialSpectra::new(rings);
    parts.iter().for_each(|p| spectra.add(&p.spectra));
    Ok(Metrics {
        psnr_y: mean(|p| p.psnr),
        ssim_y: mean(|p| p.ssim),
        lsd_db: mean(|p| p.lsd),
        rlsd_db: spectra.rlsd_db(),
        hf_ratio: spectra.hf_ratio(),
    })
}

struct Pair {
    psnr: f64,
    ssim: f64,
    lsd: f64,
    spectra: RadialSpectra,
}

fn evaluate_pair(sr: &Image, hq: &Image, rings: usize) -> Pair {
    let size = (hq.height, hq.width);
    let mut rounded = sr.clone();
    rounded.data.iter_mut().for_each(|v| *v = (*v * 255.0).round_ties_even().clamp(0.0, 255.0) / 255.0);
    let (a, b) = (luma(&rounded), luma(hq));
    let inner = (size.0 - 2 * BORDER, size.1 - 2 * BORDER);
    let (ca, cb) = (cropped(&a, size), cropped(&b, size));
    let (p, q) = (power_spectrum(&a, size), power_spectrum(&b, size));
    let mut spectra = RadialSpectra::new(rings);
    spectra.add_pair(&p, &q, size);
    Pair { psnr: psnr(&ca, &cb), ssim: ssim(&ca, &cb, inner), lsd: lsd_db(&p, &q), spectra }
}

/// `plane` without [`BORDER`] pixels on each side.
fn cropped(plane: &[f64], (h, w): (usize, usize)) -> Vec<f64> {
    (BORDER..h - BORDER).flat_map(|y| &plane[y * w + BORDER..(y + 1) * w - BORDER]).copied().collect()
}
