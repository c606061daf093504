//! Power spectra of luma planes, and what they say of a restored picture's texture.

use rustfft::num_complex::Complex;
use rustfft::{FftDirection, FftPlanner};
use serde::{Deserialize, Serialize};

use crate::data::fft::{fft2, fftfreq};

/// Added to powers before a ratio is taken.
pub(crate) const EPSILON: f64 = 1e-8;
/// Radial frequency above which power counts as high, cycles per pixel.
const HIGH: f64 = 0.125;

/// `|FFT|² / (h·w)` of a `[h, w]` plane, `[h, w]`, zero frequency first.
pub fn power_spectrum(plane: &[f64], (h, w): (usize, usize)) -> Vec<f64> {
    let mut z: Vec<Complex<f64>> = plane.iter().map(|&v| Complex::new(v, 0.0)).collect();
    fft2(&mut FftPlanner::new(), &mut z, (h, w), FftDirection::Forward);
    let norm = 1.0 / (h * w) as f64;
    z.iter().map(|v| norm * v.norm_sqr()).collect()
}

/// Two-dimensional log-spectral distance of two planes with these [`power_spectrum`]s: RMS over all frequencies of the
/// powers' ratio in dB. To both is added what is 1e-8 to `|FFT|²` of the planes times 255.
///
/// # Panics
/// Where the spectra differ in size.
pub fn lsd_db(p: &[f64], q: &[f64]) -> f64 {
    rms_db(p, q, EPSILON / (255.0 * 255.0 * p.len() as f64))
}

/// RMS of two lists' ratio in dB, with `epsilon` added to both.
pub(crate) fn rms_db(p: &[f64], q: &[f64], epsilon: f64) -> f64 {
    assert_eq!(p.len(), q.len(), "spectra of different size");
    let decibels = |(p, q): (&f64, &f64)| 10.0 * ((p + epsilon) / (q + epsilon)).log10();
    (p.iter().zip(q).map(|pair| decibels(pair).powi(2)).sum::<f64>() / p.len() as f64).sqrt()
}

/// Power by radial frequency, of restored and of true pictures, summed over a set.
///
/// Ring `k` holds the frequencies whose radius (cycles per pixel) times `n` rounds to `k`, where `n` is the smallest
/// side in the set; the corners beyond `n/2` are folded into the last ring.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RadialSpectra {
    n: usize,
    restored: Vec<f64>,
    truth: Vec<f64>,
    high: (f64, f64),
}

impl RadialSpectra {
    /// An empty set whose smallest picture side is `n` (at least 2).
    pub fn new(n: usize) -> Self {
        Self { n, restored: vec![0.0; n / 2 + 1], truth: vec![0.0; n / 2 + 1], high: (0.0, 0.0) }
    }

    /// Adds one picture's [`power_spectrum`]s, `[h, w]` each.
    pub fn add_pair(&mut self, restored: &[f64], truth: &[f64], (h, w): (usize, usize)) {
        assert!(restored.len() == h * w && truth.len() == h * w, "spectra of a size other than named");
        for (i, (p, q)) in restored.iter().zip(truth).enumerate() {
            let r = (fftfreq(i / w, h).powi(2) + fftfreq(i % w, w).powi(2)).sqrt();
            let ring = ((r * self.n as f64).round_ties_even() as usize).min(self.n / 2);
            self.restored[ring] += p;
            self.truth[ring] += q;
            if r > HIGH {
                self.high.0 += p;
                self.high.1 += q;
            }
        }
    }

    /// Adds another set with the same `n`.
    pub fn add(&mut self, other: &Self) {
        assert_eq!(self.n, other.n, "radial spectra over different rings");
        self.restored.iter_mut().zip(&other.restored).for_each(|(a, b)| *a += b);
        self.truth.iter_mut().zip(&other.truth).for_each(|(a, b)| *a += b);
        self.high = (self.high.0 + other.high.0, self.high.1 + other.high.1);
    }

    /// Smallest side in the set: ring `k` is at `k / n` cycles per pixel.
    pub fn side(&self) -> usize {
        self.n
    }

    /// Whether the rings are as many as the side says, which a file may not keep to.
    pub(crate) fn is_whole(&self) -> bool {
        [&self.restored, &self.truth].iter().all(|r| r.len() == self.n / 2 + 1)
    }

    /// Power of each ring 0…n/2 (ring 0 is the mean), of the restored and of the true pictures.
    pub fn rings(&self) -> (&[f64], &[f64]) {
        (&self.restored, &self.truth)
    }

    /// RMS over rings 1…n/2 of the two set-mean powers' ratio in dB.
    pub fn rlsd_db(&self) -> f64 {
        rms_db(&self.restored[1..], &self.truth[1..], EPSILON)
    }

    /// Restored power above 0.125 cycles per pixel over the true one.
    pub fn hf_ratio(&self) -> f64 {
        (self.high.0 + EPSILON) / (self.high.1 + EPSILON)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rings that hold the power of the wave with `ky` and `kx` periods over `[h, w]`, for rings of side `n`.
    fn rings_of((ky, kx): (f64, f64), (h, w): (usize, usize), n: usize) -> (Vec<usize>, bool) {
        let wave = |i: usize| {
            let turns = ky * (i / w) as f64 / h as f64 + kx * (i % w) as f64 / w as f64;
            (std::f64::consts::TAU * turns + 0.3).cos()
        };
        let plane: Vec<f64> = (0..h * w).map(wave).collect();
        let p = power_spectrum(&plane, (h, w));
        let mut set = RadialSpectra::new(n);
        set.add_pair(&p, &vec![0.0; h * w], (h, w));
        let rings = set.rings().0.iter().enumerate().filter(|(_, p)| **p > 1e-3).map(|(k, _)| k).collect();
        (rings, set.hf_ratio() > 1e3)
    }

    #[test]
    fn a_wave_lands_in_its_ring() {
        let square = (64, 64);
        assert_eq!(rings_of((0.0, 0.0), square, 64), (vec![0], false));
        assert_eq!(rings_of((3.0, 4.0), square, 64), (vec![5], false));
        // radius 5.66 rounds up, 4.24 down; 8 periods are 0.125 cycles a pixel, not yet high
        assert_eq!(rings_of((4.0, 4.0), square, 64), (vec![6], false));
        assert_eq!(rings_of((3.0, -3.0), square, 64), (vec![4], false));
        assert_eq!(rings_of((8.0, 0.0), square, 64), (vec![8], false));
        assert_eq!(rings_of((8.0, 1.0), square, 64), (vec![8], true));
        // the corners belong to the last ring
        assert_eq!(rings_of((30.0, 30.0), square, 64), (vec![32], true));
        // 12 periods over 96 pixels and 6 over 48 are the same frequency: ring 6 of 48
        assert_eq!(rings_of((0.0, 12.0), (48, 96), 48), (vec![6], false));
        assert_eq!(rings_of((6.0, 0.0), (48, 96), 48), (vec![6], false));
        assert_eq!(rings_of((0.0, 48.0), (48, 96), 48), (vec![24], true));
    }

    #[test]
    fn power_is_conserved() {
        let plane: Vec<f64> = (0..12 * 20).map(|i| f64::from(i * i % 17)).collect();
        let (direct, spectral) =
            (plane.iter().map(|v| v * v).sum::<f64>(), power_spectrum(&plane, (12, 20)).iter().sum::<f64>());
        assert!((direct - spectral).abs() < 1e-9 * direct);
    }
}
