//! The record behind a set's metrics: one entry per picture.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{BORDER, Convention, Metrics, Pair, RadialSpectra};
use crate::data::Image;
use crate::{Error, Result};

/// What one method scored on every held-out crop; from these every set metric and its interval follow.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// [`Metrics::psnr_y`] of each picture.
    pub psnr_y: Vec<f64>,
    /// [`Metrics::ssim_y`] of each picture.
    pub ssim_y: Vec<f64>,
    /// [`Metrics::lsd_db`] of each picture.
    pub lsd_db: Vec<f64>,
    /// Radial spectra of each picture and of its truth, all over the same rings.
    pub spectra: Vec<RadialSpectra>,
}

impl Scores {
    /// Scores `sr[i]` against `hq[i]`. Restored pictures are first clamped and rounded to 8 bits, as a file would hold
    /// them.
    ///
    /// Sizes may differ from pair to pair, and need not be square; each side must be at least 19 (the SSIM window plus
    /// borders).
    pub fn of(sr: &[Image], hq: &[Image]) -> Result<Self> {
        if sr.is_empty() || sr.len() != hq.len() {
            let (s, h) = (sr.len(), hq.len());
            return Err(Error::shape(
                "evaluate",
                format!("{s} restored and {h} true pictures; expected as many, at least 1"),
            ));
        }
        let least = Pair::least_side(BORDER);
        for (i, (s, h)) in sr.iter().zip(hq).enumerate() {
            if (s.height, s.width) != (h.height, h.width) || s.height.min(s.width) < least {
                return Err(Error::shape(
                    "evaluate",
                    format!(
                        "pair {i}: restored {}×{}, true {}×{} pixels; expected the same, at least {least} a side",
                        s.height, s.width, h.height, h.width,
                    ),
                ));
            }
        }
        let rings = hq.iter().map(|h| h.height.min(h.width)).min().unwrap_or(0);
        let scored = sr.par_iter().zip(hq).map(|(s, h)| {
            let pair = score(s, h);
            let spectra = pair.spectra(rings);
            (pair.psnr_y, pair.ssim_y, pair.lsd_db, spectra)
        });
        let mut scores = Self::default();
        for (psnr, ssim, lsd, spectra) in scored.collect::<Vec<_>>() {
            scores.psnr_y.push(psnr);
            scores.ssim_y.push(ssim);
            scores.lsd_db.push(lsd);
            scores.spectra.push(spectra);
        }
        Ok(scores)
    }

    /// How many pictures were scored.
    pub fn len(&self) -> usize {
        self.spectra.len()
    }

    /// Whether nothing was scored.
    pub fn is_empty(&self) -> bool {
        self.spectra.is_empty()
    }

    /// The set's metrics: means of the first three, and what the summed spectra say.
    pub fn metrics(&self) -> Metrics {
        self.metrics_over(&self.all())
    }

    /// The radial spectra summed over the set.
    pub fn spectrum(&self) -> RadialSpectra {
        self.spectrum_over(&self.all())
    }

    /// The metrics of the set made of `crops`, which may name one more than once.
    pub(crate) fn metrics_over(&self, crops: &[usize]) -> Metrics {
        let mean = |of: &[f64]| crops.iter().map(|&i| of[i]).sum::<f64>() / crops.len() as f64;
        let spectra = self.spectrum_over(crops);
        Metrics {
            psnr_y: mean(&self.psnr_y),
            ssim_y: mean(&self.ssim_y),
            lsd_db: mean(&self.lsd_db),
            rlsd_db: spectra.rlsd_db(),
            hf_ratio: spectra.hf_ratio(),
        }
    }

    fn spectrum_over(&self, crops: &[usize]) -> RadialSpectra {
        let mut sum = RadialSpectra::new(self.spectra.first().map_or(0, RadialSpectra::side));
        crops.iter().for_each(|&i| sum.add(&self.spectra[i]));
        sum
    }

    fn all(&self) -> Vec<usize> {
        (0..self.len()).collect()
    }

    /// What is wrong with scores read from a file, if anything: lists of different length, rings that do not match.
    pub(crate) fn fault(&self) -> Option<String> {
        let lengths = [self.psnr_y.len(), self.ssim_y.len(), self.lsd_db.len(), self.spectra.len()];
        if lengths[0] == 0 || lengths.iter().any(|&n| n != lengths[0]) {
            return Some(format!("lists of {lengths:?} entries; expected as many in each, at least 1"));
        }
        let side = self.spectra[0].side();
        let odd = self.spectra.iter().position(|s| s.side() != side || !s.is_whole())?;
        Some(format!("spectrum {odd} has other rings than a side of {side} pixels makes"))
    }
}

fn score(sr: &Image, hq: &Image) -> Pair {
    let mut rounded = sr.clone();
    rounded.data.iter_mut().for_each(|v| *v = (*v * 255.0).round_ties_even().clamp(0.0, 255.0) / 255.0);
    Pair::of(&rounded, hq, BORDER, Convention::Pyiqa)
}
