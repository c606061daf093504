//! Unsharp masking, as Real-ESRGAN sharpens its targets.

use serde::{Deserialize, Serialize};

use super::filter::blur_plane;
use super::kernels::gaussian;
use crate::data::Image;

/// How a target is sharpened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sharpen {
    /// Taps of the Gaussian on a side; its σ is `0.3·((radius − 1)/2 − 1) + 0.8`. Even ones are raised by one.
    pub radius: usize,
    /// Share of the difference to the blurred picture that is added; 0: no sharpening.
    pub amount: f64,
    /// Differences up to this, in 1/255, are left alone.
    pub threshold: f64,
}

impl Default for Sharpen {
    fn default() -> Self {
        Self { radius: 51, amount: 0.5, threshold: 10.0 }
    }
}

impl Sharpen {
    /// The taps along an axis.
    pub fn axis(&self) -> Vec<f64> {
        let size = self.radius | 1;
        gaussian(size, 0.3 * ((size as f64 - 1.0) * 0.5 - 1.0) + 0.8)
    }

    /// `img` plus `amount` of what the blurred one lacks, clamped to [0, 1], where that is more than the threshold; the
    /// mask of these places is blurred as well, so that none of them has an edge.
    pub fn apply(&self, img: Image) -> Image {
        if self.amount == 0.0 || img.data.is_empty() {
            return img;
        }
        let axis: Vec<f32> = self.axis().iter().map(|&w| w as f32).collect();
        let (h, w, amount, threshold) = (img.height, img.width, self.amount as f32, self.threshold as f32);
        let (mut out, mut soft, mut mask) = (img, vec![0.0; h * w], vec![0.0; h * w]);
        for plane in out.data.chunks_exact_mut(h * w) {
            let mut sharp = vec![0.0; h * w];
            blur_plane(plane, h, w, &axis, &mut soft);
            for ((m, s), (v, b)) in mask.iter_mut().zip(&mut sharp).zip(plane.iter().zip(&soft)) {
                let lost = v - b;
                *m = if lost.abs() * 255.0 > threshold { 1.0 } else { 0.0 };
                *s = (v + amount * lost).clamp(0.0, 1.0);
            }
            blur_plane(&mask, h, w, &axis, &mut soft);
            for ((v, s), m) in plane.iter_mut().zip(&sharp).zip(&soft) {
                *v = m * s + (1.0 - m) * *v;
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_sharpened() {
        let usm = Sharpen::default();
        let taps = usm.axis();
        assert_eq!(taps.len(), 51);
        // σ = 8
        assert!((taps[25 + 8] / taps[25] - (-0.5f64).exp()).abs() < 1e-12);
        let flat = Image::from_fn(60, 70, |_, _, _| 0.4);
        assert_eq!(usm.apply(flat.clone()), flat);
        // a step of 8/255 never differs from its blur by more than the threshold
        let faint = Image::from_fn(60, 70, |_, _, x| if x < 35 { 0.4 } else { 0.4 + 8.0 / 255.0 });
        assert_eq!(usm.apply(faint.clone()), faint);
        let edge = Image::from_fn(60, 120, |_, _, x| if x < 60 { 0.3 } else { 0.7 });
        let out = usm.apply(edge.clone());
        let row = &out.plane(1)[30 * 120..31 * 120];
        assert!(row[59] < 0.25 && row[60] > 0.75, "{} {}", row[59], row[60]);
        assert!((row[0] - 0.3).abs() < 1e-6 && (row[119] - 0.7).abs() < 1e-6);
        assert_eq!(Sharpen { amount: 0.0, ..usm }.apply(edge.clone()), edge);
    }
}
