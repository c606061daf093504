//! One restored picture against the truth, in luma.

use super::luma::rounded_luma;
use super::{RadialSpectra, lsd_db, luma, power_spectrum, psnr, ssim};
use crate::data::Image;

/// Whose PSNR and SSIM: two tools that papers quote differ in what they round and clamp.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Convention {
    /// pyiqa, called with `test_y_channel=True, color_space="ycbcr"`: the paper's.
    #[default]
    Pyiqa,
    /// basicsr's `calculate_psnr` and `calculate_ssim` with `test_y_channel=True`.
    Basicsr,
}

/// What is measured of one pair.
pub struct Pair {
    /// See [`psnr()`].
    pub psnr_y: f64,
    /// See [`ssim()`].
    pub ssim_y: f64,
    /// See [`lsd_db`].
    pub lsd_db: f64,
    /// Power spectra of the restored picture and of the truth.
    power: [Vec<f64>; 2],
    size: (usize, usize),
}

impl Pair {
    /// The least side of a picture whose `border` does not count.
    pub fn least_side(border: usize) -> usize {
        ssim::WINDOW + 2 * border
    }

    /// Measures `restored` against `truth`. PSNR and SSIM leave out `border` pixels on each side, spectra do not.
    ///
    /// # Panics
    /// Where the pictures differ in size, or are smaller than [`Pair::least_side`].
    pub fn of(restored: &Image, truth: &Image, border: usize, convention: Convention) -> Self {
        let size = (truth.height, truth.width);
        assert_eq!((restored.height, restored.width), size, "a pair of pictures of different size");
        let inner = (size.0 - 2 * border, size.1 - 2 * border);
        let [a, b] = [restored, truth].map(luma);
        let [ca, cb] = [&a, &b].map(|y| cropped(y, size, border));
        let ssim_y = match convention {
            Convention::Pyiqa => {
                let [ra, rb] = [restored, truth].map(|image| cropped(&rounded_luma(image), size, border));
                ssim(&ra, &rb, inner, convention)
            }
            Convention::Basicsr => ssim(&ca, &cb, inner, convention),
        };
        let power = [&a, &b].map(|y| power_spectrum(y, size));
        Self { psnr_y: psnr(&ca, &cb, convention), ssim_y, lsd_db: lsd_db(&power[0], &power[1]), power, size }
    }

    /// The pair's radial spectra over the rings of a set whose smallest side is `n`.
    pub fn spectra(&self, n: usize) -> RadialSpectra {
        let mut spectra = RadialSpectra::new(n);
        spectra.add_pair(&self.power[0], &self.power[1], self.size);
        spectra
    }
}

/// `plane` without `border` pixels on each side.
fn cropped(plane: &[f64], (h, w): (usize, usize), border: usize) -> Vec<f64> {
    (border..h - border).flat_map(|y| &plane[y * w + border..(y + 1) * w - border]).copied().collect()
}
