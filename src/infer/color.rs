//! Colour fixes: a restored picture keeps its detail and takes the colours of the picture it was made from.
//!
//! Results may leave [0, 1].

use crate::data::{Image, pil_bicubic};
use rayon::prelude::*;

/// Added to a variance before its root is taken.
const EPSILON: f64 = 1e-5;
/// Levels of the wavelet decomposition: blurs that reach 1, 2, 4, 8, 16 pixels.
const LEVELS: u32 = 5;

/// How a restored picture's colours are brought back to those of its source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ColorFix {
    /// Not at all.
    None,
    /// [`adain`], the reference's.
    #[default]
    Adain,
    /// [`wavelet`].
    Wavelet,
}

impl ColorFix {
    /// Every kind and its name.
    pub const NAMES: [(&'static str, Self); 3] =
        [("none", Self::None), ("adain", Self::Adain), ("wavelet", Self::Wavelet)];

    /// The kind of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(n, _)| *n == name).map(|&(_, kind)| kind)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, kind)| *kind == self).map_or("", |(name, _)| name)
    }

    /// `restored` with the colours of `lq`, enlarged to its size as Pillow does (bicubic).
    pub fn apply(self, restored: Image, lq: &Image) -> Image {
        let fix = match self {
            Self::None => return restored,
            Self::Adain => adain,
            Self::Wavelet => wavelet,
        };
        fix(&restored, &pil_bicubic(lq, restored.height, restored.width).clamped())
    }
}

/// Adaptive instance normalisation: every channel of `content` shifted and scaled to the mean and the standard deviation
/// (unbiased, 1e-5 added to the variance) that it has in `style`.
pub fn adain(content: &Image, style: &Image) -> Image {
    expect_same_size(content, style);
    let mut out = content.clone();
    let plane = content.height * content.width;
    for (c, values) in out.data.chunks_exact_mut(plane.max(1)).enumerate() {
        let ((m, s), (to_m, to_s)) = (moments(content.plane(c)), moments(style.plane(c)));
        let (gain, shift) = (to_s / s, to_m - to_s / s * m);
        values.iter_mut().for_each(|v| *v = (gain * f64::from(*v) + shift) as f32);
    }
    out
}

/// Mean and standard deviation.
fn moments(plane: &[f32]) -> (f64, f64) {
    let n = plane.len() as f64;
    let mean = plane.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
    let squares = plane.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>();
    (mean, (squares / (n - 1.0).max(1.0) + EPSILON).sqrt())
}

/// The detail of `content` over the low frequencies of `style`; those are what is left after blurs of 1 2 1 by 1 2 1 whose
/// taps lie 1, 2, 4, 8 and 16 pixels apart, edges repeated.
pub fn wavelet(content: &Image, style: &Image) -> Image {
    expect_same_size(content, style);
    let (from, to) = (low(content), low(style));
    let mut out = content.clone();
    out.data.iter_mut().zip(from.data.iter().zip(&to.data)).for_each(|(v, (f, t))| *v += t - f);
    out
}

fn low(image: &Image) -> Image {
    (0..LEVELS).fold(image.clone(), |image, level| blur(&image, 1 << level))
}

/// One blur, rows and then columns, with taps `reach` pixels apart.
fn blur(image: &Image, reach: usize) -> Image {
    let (h, w) = (image.height, image.width);
    if image.data.is_empty() {
        return image.clone();
    }
    let mix = |a: f32, b: f32, c: f32| 0.25 * a + 0.5 * b + 0.25 * c;
    let ends = |i: usize, n: usize| (i.saturating_sub(reach), (i + reach).min(n - 1));
    let mut across = image.clone();
    across.data.par_chunks_mut(w).zip(image.data.par_chunks(w)).for_each(|(to, from)| {
        for (x, v) in to.iter_mut().enumerate() {
            let (a, b) = ends(x, w);
            *v = mix(from[a], from[x], from[b]);
        }
    });
    let mut out = across.clone();
    out.data.par_chunks_mut(w).enumerate().for_each(|(i, to)| {
        let plane = &across.data[i / h * h * w..][..h * w];
        let row = |y: usize| &plane[y * w..][..w];
        let y = i % h;
        let (a, b) = ends(y, h);
        for (v, ((a, y), b)) in to.iter_mut().zip(row(a).iter().zip(row(y)).zip(row(b))) {
            *v = mix(*a, *y, *b);
        }
    });
    out
}

fn expect_same_size(a: &Image, b: &Image) {
    assert_eq!((a.height, a.width), (b.height, b.width), "a colour fix of pictures of different size");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::DeadLeaves;

    /// A picture with a cast, and the picture without it.
    fn cast() -> (Image, Image) {
        let truth = DeadLeaves::new(3, 64).unwrap().image(0);
        let mut cast = truth.clone();
        let plane = 64 * 64;
        cast.data.iter_mut().enumerate().for_each(|(i, v)| *v = 0.8 * *v + [0.1, 0.0, -0.05][i / plane]);
        (cast, truth)
    }

    #[test]
    fn a_cast_is_taken_off() {
        let (cast, truth) = cast();
        let largest =
            |a: &Image| a.data.iter().zip(&truth.data).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(largest(&cast) > 0.1);
        // a cast that is a gain and a shift of each channel goes to what the 1e-5 leaves of it
        assert!(largest(&adain(&cast, &truth)) < 1e-3);
        assert_eq!(ColorFix::None.apply(cast.clone(), &truth), cast);
        for fix in [ColorFix::Adain, ColorFix::Wavelet] {
            let same = fix.apply(truth.clone(), &truth);
            assert!(largest(&same) < 1e-6, "{fix:?} changes what is right");
        }
    }

    #[test]
    fn wavelets_move_low_frequencies_alone() {
        let truth = DeadLeaves::new(3, 96).unwrap().image(0);
        let board = |y: usize, x: usize| if (y + x).is_multiple_of(2) { 0.1 } else { -0.1 };
        let at = |image: &Image, c: usize, y: usize, x: usize| image.plane(c)[96 * y + x];
        let content =
            Image::from_fn(96, 96, |c, y, x| at(&truth, c, y, x) + 0.2 - 0.1 * c as f32 + board(y, x));
        let fixed = wavelet(&content, &truth);
        // where no edge is within the 31 pixels that the blurs reach together
        for (c, y, x) in [(0, 48, 48), (1, 40, 53), (2, 55, 44)] {
            let left = at(&fixed, c, y, x) - at(&truth, c, y, x);
            assert!((left - board(y, x)).abs() < 1e-6, "{left}: the shift goes, the chess board stays");
        }
        // one pixel: nothing to blur, the edges are all there is
        let (a, b) = (Image::from_fn(1, 1, |_, _, _| 0.25), Image::from_fn(1, 1, |_, _, _| 0.75));
        assert_eq!(wavelet(&a, &b), b);
    }
}
