//! Resizing: separable bicubic in the two conventions the method meets, bilinear, and nearest neighbour.
//!
//! - *antialiased* (Pillow, and PyTorch's `interpolate(mode="bicubic", antialias=True)`): Keys' kernel with `a = −0.5`,
//!   stretched by the shrinking factor, renormalised where it leaves the image;
//! - *plain* (PyTorch's `interpolate(mode="bicubic", align_corners=False)`): four taps with `a = −0.75`, indices clamped
//!   to the edge, no stretching. [`interpolate`] has its other modes and its scale factors, too.
//!
//! Weights are computed in f64, applied in f32. Results overshoot [0, 1]; clamping is the caller's.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::data::Image;

/// What each output sample of one axis reads: input samples `start..start + weights.len()`.
struct Taps {
    start: usize,
    weights: Vec<f32>,
}

/// Keys' cubic convolution kernel.
pub(crate) fn keys(x: f64, a: f64) -> f64 {
    let x = x.abs();
    if x < 1.0 {
        ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        a * (((x - 5.0) * x + 8.0) * x - 4.0)
    } else {
        0.0
    }
}

fn taps(from: usize, to: usize, antialias: bool, a: f64) -> Vec<Taps> {
    let scale = from as f64 / to as f64;
    (0..to)
        .map(|i| {
            let center = (i as f64 + 0.5) * scale;
            if antialias {
                stretched_taps(center, scale.max(1.0), from, a)
            } else {
                plain_taps(center - 0.5, from, a)
            }
        })
        .collect()
}

fn stretched_taps(center: f64, stretch: f64, from: usize, a: f64) -> Taps {
    let support = 2.0 * stretch;
    let start = ((center - support + 0.5).max(0.0) as usize).min(from - 1);
    let end = ((center + support + 0.5) as usize).clamp(start + 1, from);
    let raw: Vec<f64> = (start..end).map(|j| keys((j as f64 + 0.5 - center) / stretch, a)).collect();
    let sum: f64 = raw.iter().sum();
    Taps { start, weights: raw.iter().map(|w| (w / sum) as f32).collect() }
}

fn plain_taps(at: f64, from: usize, a: f64) -> Taps {
    let base = at.floor();
    let clamped = |k: i64| (base as i64 + k).clamp(0, from as i64 - 1) as usize;
    let start = clamped(-1);
    let mut weights = vec![0f64; clamped(2) - start + 1];
    for k in -1..=2 {
        weights[clamped(k) - start] += keys(at - (base + k as f64), a);
    }
    Taps { start, weights: weights.iter().map(|&w| w as f32).collect() }
}

/// `img` resized to `h`×`w` by separable cubic convolution with parameter `a` (see the module for the two conventions).
/// An empty input or output gives a black picture.
pub fn bicubic(img: &Image, h: usize, w: usize, antialias: bool, a: f32) -> Image {
    separable(img, h, w, |from, to| taps(from, to, antialias, f64::from(a)))
}

/// PyTorch's `interpolate(mode="bilinear", align_corners=False)`, edges clamped.
pub fn torch_bilinear(img: &Image, h: usize, w: usize) -> Image {
    separable(img, h, w, |from, to| {
        let scale = from as f64 / to as f64;
        (0..to).map(|i| linear_taps((i as f64 + 0.5) * scale - 0.5, from)).collect()
    })
}

fn linear_taps(at: f64, from: usize) -> Taps {
    let at = at.clamp(0.0, (from - 1) as f64);
    let (start, t) = (at.floor() as usize, (at - at.floor()) as f32);
    Taps { start, weights: if t > 0.0 { vec![1.0 - t, t] } else { vec![1.0] } }
}

/// How [`interpolate`] fills a pixel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// The mean of the pixels it covers, whole ones (adaptive average pooling).
    Area,
    /// Two pixels on each axis.
    Bilinear,
    /// Four, by Keys' kernel with `a = −0.75`.
    Bicubic,
}

impl Mode {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Area, Self::Bilinear, Self::Bicubic];
}

/// What size [`interpolate`] makes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum To {
    /// Each side times this, rounded down, at least 1; the factor itself maps coordinates, not the ratio of the sides.
    Scale(f64),
    /// Height and width.
    Size(usize, usize),
}

impl To {
    /// Height and width of what `height`×`width` pixels become.
    pub fn size(self, height: usize, width: usize) -> (usize, usize) {
        match self {
            Self::Scale(by) => {
                let side = |n: usize| ((n as f64 * by) as usize).max(1);
                (side(height), side(width))
            }
            Self::Size(h, w) => (h, w),
        }
    }
}

/// PyTorch's `interpolate(mode, align_corners=False, antialias=False)`: to a size, or by a scale factor.
pub fn interpolate(img: &Image, to: To, mode: Mode) -> Image {
    let (h, w) = to.size(img.height, img.width);
    separable(img, h, w, |from, n| {
        let step = match to {
            To::Scale(by) => 1.0 / by,
            To::Size(..) => from as f64 / n as f64,
        };
        let at = |i: usize| (i as f64 + 0.5) * step - 0.5;
        let taps = |i: usize| match mode {
            Mode::Area => area_taps(i, from, n),
            Mode::Bilinear => linear_taps(at(i), from),
            Mode::Bicubic => plain_taps(at(i), from, -0.75),
        };
        (0..n).map(taps).collect()
    })
}

/// The pixels that part `i` of `n` of the axis touches, all weighted alike.
fn area_taps(i: usize, from: usize, n: usize) -> Taps {
    let (start, end) = (i * from / n, ((i + 1) * from).div_ceil(n));
    Taps { start, weights: vec![1.0 / (end - start) as f32; end - start] }
}

/// Resizes rows, then columns, by the taps that `taps(from, to)` gives for an axis.
fn separable(img: &Image, h: usize, w: usize, taps: impl Fn(usize, usize) -> Vec<Taps>) -> Image {
    let mut out = Image::zeros(h, w);
    if out.data.is_empty() || img.data.is_empty() {
        return out;
    }
    let rows = img.height;
    let across = taps(img.width, w);
    let down = taps(rows, h);
    let mut wide = vec![0f32; 3 * rows * w];
    wide.par_chunks_mut(w).zip(img.data.par_chunks(img.width)).for_each(|(to, from)| {
        for (v, t) in to.iter_mut().zip(&across) {
            *v = t.weights.iter().zip(&from[t.start..]).map(|(w, x)| w * x).sum();
        }
    });
    out.data.par_chunks_mut(w).enumerate().for_each(|(i, to)| {
        let t = &down[i % h];
        let plane = &wide[(i / h) * rows * w..][..rows * w];
        for (k, &weight) in t.weights.iter().enumerate() {
            let from = &plane[(t.start + k) * w..][..w];
            to.iter_mut().zip(from).for_each(|(v, x)| *v += weight * x);
        }
    });
    out
}

/// PyTorch's `interpolate(mode="bicubic", antialias=True, align_corners=False)`; the ÷4 of the degradation.
pub fn torch_down(img: &Image, h: usize, w: usize) -> Image {
    bicubic(img, h, w, true, -0.5)
}

/// PyTorch's `interpolate(mode="bicubic", align_corners=False)`, edges clamped; the ×4 that makes the condition.
pub fn torch_up(img: &Image, h: usize, w: usize) -> Image {
    bicubic(img, h, w, false, -0.75)
}

/// Pillow's `Image.resize(…, BICUBIC)` up and down, without Pillow's rounding to 8 bits between and after the passes.
pub fn pil_bicubic(img: &Image, h: usize, w: usize) -> Image {
    bicubic(img, h, w, true, -0.5)
}

/// How a low-quality image is brought to the target size: the same in training and inference, and stored with the
/// adapter (METHOD §7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LqResize {
    /// [`torch_up`].
    TorchBicubic,
    /// [`torch_bilinear`]; what the paper trains with.
    TorchBilinear,
    /// [`pil_bicubic`]; what the reference infers with.
    PilBicubic,
}

impl LqResize {
    /// Every kind and its name in configurations and adapter files.
    pub const NAMES: &'static [(&'static str, Self)] = &[
        ("torch_bicubic", Self::TorchBicubic),
        ("torch_bilinear", Self::TorchBilinear),
        ("pil_bicubic", Self::PilBicubic),
    ];

    /// `lq` at `h`×`w`, clamped to [0, 1].
    pub fn apply(self, lq: &Image, h: usize, w: usize) -> Image {
        match self {
            Self::TorchBicubic => torch_up(lq, h, w),
            Self::TorchBilinear => torch_bilinear(lq, h, w),
            Self::PilBicubic => pil_bicubic(lq, h, w),
        }
        .clamped()
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, k)| *k == self).map_or("", |(n, _)| n)
    }

    /// The kind of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(n, _)| *n == name).map(|&(_, k)| k)
    }
}

/// Nearest neighbour, PyTorch's `interpolate(mode="nearest")`: output `i` reads input `⌊i·from/to⌋`.
pub fn nearest(img: &Image, h: usize, w: usize) -> Image {
    if img.data.is_empty() {
        return Image::zeros(h, w);
    }
    Image::from_fn(h, w, |c, y, x| {
        let (sy, sx) = (y * img.height / h, x * img.width / w);
        img.data[(c * img.height + sy) * img.width + sx]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 1, 3 → 4 samples: PyTorch gives 1, 1.5, 2.5, 3.
    #[test]
    fn bilinear_is_linear_between_samples_and_flat_at_the_edges() {
        let img = Image::from_fn(1, 2, |_, _, x| if x == 0 { 1.0 } else { 3.0 });
        assert_eq!(torch_bilinear(&img, 1, 4).plane(0), [1.0, 1.5, 2.5, 3.0]);
    }

    #[test]
    fn areas_are_means_of_what_they_touch() {
        let img = Image::from_fn(1, 5, |_, _, x| (x * x) as f32);
        // parts of 5/3 pixels: 0…1, 1…3, 3…4
        let out = interpolate(&img, To::Size(1, 3), Mode::Area);
        assert!(out.plane(0).iter().zip([0.5, 14.0 / 3.0, 12.5]).all(|(a, b)| (a - b).abs() < 1e-5));
        assert_eq!(interpolate(&img, To::Size(1, 5), Mode::Area), img);
    }

    /// By a factor the picture is as far from pixel to pixel as the factor says, not as the rounded size would have it.
    #[test]
    fn a_scale_factor_maps_coordinates_itself() {
        let ramp = Image::from_fn(1, 10, |_, _, x| x as f32);
        let out = interpolate(&ramp, To::Scale(0.73), Mode::Bilinear);
        assert_eq!((out.height, out.width), (1, 7));
        for (i, v) in out.plane(0).iter().enumerate() {
            assert!((v - ((i as f32 + 0.5) / 0.73 - 0.5)).abs() < 1e-5, "{i}: {v}");
        }
        assert_eq!(To::Scale(0.01).size(10, 10), (1, 1));
        for mode in Mode::ALL {
            assert_eq!(interpolate(&ramp, To::Scale(1.0), mode), ramp);
        }
    }

    #[test]
    fn kernels_pass_through_samples_and_sum_to_one() {
        for a in [-0.5, -0.75] {
            assert_eq!([0.0, 1.0, -1.0, 2.0, 2.5].map(|x| keys(x, a)), [1.0, 0.0, 0.0, 0.0, 0.0]);
            for (from, to, antialias) in
                [(20, 80, false), (20, 80, true), (64, 16, true), (13, 7, true), (1, 9, false)]
            {
                for t in taps(from, to, antialias, a) {
                    assert!(t.start + t.weights.len() <= from);
                    assert!((t.weights.iter().sum::<f32>() - 1.0).abs() < 1e-6);
                }
            }
        }
    }

    /// A point enlarged ×4 without antialiasing shows Keys' kernel at a = −0.75 (numbers from its polynomial).
    #[test]
    fn plain_enlargement_shows_the_kernel() {
        let mut line = Image::zeros(1, 9);
        line.data[4] = 1.0;
        let out = torch_up(&line, 1, 36);
        let want =
            [0.967_285, 0.749_512, 0.426_270, 0.114_746, -0.071_777, -0.109_863, -0.065_918, -0.010_254, 0.0];
        for (i, w) in want.into_iter().enumerate() {
            assert!(
                (out.data[18 + i] - w).abs() < 1e-6 && (out.data[17 - i] - w).abs() < 1e-6,
                "{i}: {:?}",
                out.data
            );
        }
    }

    /// Away from the edges a = −0.5 reproduces straight lines, at whole factors exactly.
    #[test]
    fn a_ramp_stays_a_ramp() {
        let img = Image::from_fn(40, 40, |c, y, x| c as f32 + 0.5 * y as f32 - 0.25 * x as f32);
        for n in [10, 160] {
            let out = pil_bicubic(&img, n, n);
            let at = |i: usize| (i as f32 + 0.5) * 40.0 / n as f32 - 0.5;
            for y in n / 4..n - n / 4 {
                for x in n / 4..n - n / 4 {
                    let want = 1.0 + 0.5 * at(y) - 0.25 * at(x);
                    assert!((out.plane(1)[y * n + x] - want).abs() < 2e-5, "{n} {y} {x}");
                }
            }
        }
    }
}
