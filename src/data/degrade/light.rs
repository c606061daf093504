//! From a good picture to the bad one a model must restore: the light degradation of the tiny preset, and the
//! procedural "bad upscaler" whose outputs the adversary learns to imitate.

use serde::{Deserialize, Serialize};

use super::filter::separable;
use super::jpeg::jpeg_file;
use super::kernels::gaussian;
use crate::data::Image;
use crate::data::resize::{nearest, torch_down, torch_up};
use crate::engine::random::Reader;
use crate::{Error, Result};

/// Half the support of every Gaussian blur here, in pixels.
const BLUR_RADIUS: usize = 5;

/// Blur, shrink, noise and, on request, JPEG. Strengths are drawn uniformly from the ranges, once a picture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Light {
    /// Range of the Gaussian blur's σ, pixels of the good picture. A σ of 0 is no blur.
    pub blur: (f32, f32),
    /// Range of the Gaussian noise's σ, in 1/255.
    pub noise: (f32, f32),
    /// Range of the JPEG quality (1…100, both ends drawn), or none. The encoder keeps full chroma resolution (4:4:4).
    pub jpeg: Option<(u8, u8)>,
    /// The bad picture is smaller by this factor on each side.
    pub scale: usize,
}

impl Default for Light {
    fn default() -> Self {
        Self { blur: (0.2, 1.5), noise: (0.0, 3.0), jpeg: None, scale: 4 }
    }
}

impl Light {
    /// Refuses ranges that are reversed, negative, not numbers or beyond what the operations accept.
    pub fn check(&self) -> Result<()> {
        for (name, (lo, hi), limit) in [("blur", self.blur, 10.0), ("noise", self.noise, 255.0)] {
            if !(0.0 <= lo && lo <= hi && hi <= limit) {
                return Err(Error::Usage(format!(
                    "degradation: {name} ({lo}, {hi}) is not a range low…high within 0…{limit}"
                )));
            }
        }
        if let Some((lo, hi)) = self.jpeg
            && !(1 <= lo && lo <= hi && hi <= 100)
        {
            return Err(Error::Usage(format!(
                "degradation: jpeg ({lo}, {hi}) is not a range low…high within 1…100"
            )));
        }
        if !(1..=16).contains(&self.scale) {
            return Err(Error::Usage(format!("degradation: scale {} is outside 1…16", self.scale)));
        }
        Ok(())
    }

    /// `hq` `[3, H, W]` → `[3, H/scale, W/scale]`, clamped to [0, 1]: Gaussian blur (radius 5, reflected at the edges),
    /// antialiased bicubic shrink, Gaussian noise independent per value, JPEG. `H` and `W` must be multiples of the scale.
    pub fn apply(&self, hq: &Image, rng: &mut Reader) -> Result<Image> {
        self.check()?;
        let (h, w, s) = (hq.height, hq.width, self.scale);
        if h == 0 || w == 0 || h % s != 0 || w % s != 0 {
            return Err(Error::shape(
                "degradation",
                format!("{h}×{w} pixels cannot be shrunk by {s} exactly"),
            ));
        }
        let blur = rng.uniform(self.blur.0, self.blur.1);
        let noise = rng.uniform(self.noise.0, self.noise.1) / 255.0;
        let mut lq = torch_down(&gaussian_blur(hq, blur, BLUR_RADIUS), h / s, w / s);
        lq.data.iter_mut().for_each(|v| *v += noise * rng.normal());
        if let Some((lo, hi)) = self.jpeg {
            let quality = lo + rng.below(usize::from(hi - lo) + 1) as u8;
            lq = jpeg_file(&lq, quality, false)?;
        }
        Ok(lq.clamped())
    }
}

/// Separable Gaussian blur with σ `sigma` (pixels), cut at ±`radius` taps and renormalised; the picture is reflected at
/// its edges without repeating the edge pixel. σ ≤ 0 copies.
pub fn gaussian_blur(img: &Image, sigma: f32, radius: usize) -> Image {
    if sigma <= 0.0 || img.data.is_empty() {
        return img.clone();
    }
    separable(img, &gaussian(2 * radius + 1, f64::from(sigma)))
}

/// A procedurally bad ×`scale` upscaling of `lq`: 0.6 bicubic + 0.4 nearest, then an unsharp mask (σ 1.5, amount 2):
/// blocks and halos. Clamped to [0, 1].
pub fn bad_upscale(lq: &Image, scale: usize) -> Image {
    let (h, w) = (lq.height * scale, lq.width * scale);
    let mut x = torch_up(lq, h, w).clamped();
    let blocks = nearest(lq, h, w);
    x.data.iter_mut().zip(&blocks.data).for_each(|(v, b)| *v = 0.6 * *v + 0.4 * b);
    let soft = gaussian_blur(&x, 1.5, BLUR_RADIUS);
    x.data.iter_mut().zip(&soft.data).for_each(|(v, s)| *v += 2.0 * (*v - s));
    x.clamped()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::random::Philox;

    #[test]
    fn blur_spreads_a_point_as_a_gaussian_and_keeps_its_mass() {
        let mut img = Image::zeros(21, 21);
        img.data[10 * 21 + 10] = 1.0;
        let out = gaussian_blur(&img, 1.2, 5);
        let at = |y: usize, x: usize| out.data[y * 21 + x];
        assert!((out.data.iter().sum::<f32>() - 1.0).abs() < 1e-5);
        assert!((at(10, 12) / at(10, 10) - (-4.0f32 / 2.88).exp()).abs() < 1e-5);
        assert!((at(13, 11) / at(10, 10) - (-10.0f32 / 2.88).exp()).abs() < 1e-5);
        assert_eq!(gaussian_blur(&img, 0.0, 5), img);
    }

    #[test]
    fn strengths_do_what_they_say() {
        let grey = Image::from_fn(64, 64, |_, _, _| 0.5);
        let mut rng = Philox::new(1, 1).reader();
        let still = Light { noise: (0.0, 0.0), ..Light::default() }.apply(&grey, &mut rng).unwrap();
        assert_eq!((still.height, still.width), (16, 16));
        assert!(still.data.iter().all(|v| (v - 0.5).abs() < 1e-5));
        let noisy = Light { noise: (10.0, 10.0), ..Light::default() }.apply(&grey, &mut rng).unwrap();
        let rms = (noisy.data.iter().map(|v| (v - 0.5).powi(2)).sum::<f32>() / 768.0).sqrt() * 255.0;
        assert!((rms - 10.0).abs() < 1.0, "{rms}");
        let coarse = Light { jpeg: Some((5, 5)), noise: (10.0, 10.0), ..Light::default() };
        let (mut a, mut b) = (Philox::new(2, 1).reader(), Philox::new(2, 1).reader());
        let plain = Light { jpeg: None, ..coarse.clone() }.apply(&grey, &mut a).unwrap();
        assert_ne!(coarse.apply(&grey, &mut b).unwrap(), plain);
        let best = jpeg_file(&still, 100, false).unwrap();
        assert!(best.data.iter().all(|v| (v - 0.5).abs() < 0.01));
    }

    #[test]
    fn refusals_carry_the_numbers() {
        let mut rng = Philox::new(1, 1).reader();
        let odd = Light::default().apply(&Image::zeros(64, 30), &mut rng).unwrap_err().to_string();
        assert!(odd.contains("64×30") && odd.contains('4'), "{odd}");
        let bad = [
            Light { blur: (2.0, 1.0), ..Light::default() },
            Light { noise: (f32::NAN, 1.0), ..Light::default() },
            Light { jpeg: Some((0, 90)), ..Light::default() },
            Light { scale: 0, ..Light::default() },
        ];
        assert!(bad.iter().all(|d| matches!(d.check(), Err(Error::Usage(_)))));
    }

    #[test]
    fn the_bad_upscaler_keeps_flat_areas_and_rings_at_edges() {
        let edge = Image::from_fn(16, 16, |_, _, x| if x < 8 { 0.3 } else { 0.7 });
        let out = bad_upscale(&edge, 4);
        assert_eq!((out.height, out.width), (64, 64));
        let row = &out.data[32 * 64..33 * 64];
        assert!((row[4] - 0.3).abs() < 1e-4 && (row[60] - 0.7).abs() < 1e-4);
        // the halo, worked out in f64 by the definition
        let want = [
            0.302_113, 0.306_617, 0.307_115, 0.273_240, 0.232_295, 0.213_626, 0.236_546, 0.255_729, 0.744_271,
        ];
        assert!(row[24..].iter().zip(want).all(|(v, w)| (v - w).abs() < 1e-5), "{row:?}");
    }
}
