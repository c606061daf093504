//! `Image.resize` of Pillow, to the level: separable convolution of 8-bit pixels by weights of 22 fractional bits, rounded
//! to 8 bits after the rows and again after the columns.
//!
//! [`pil_bicubic`](crate::data::pil_bicubic) is the same without the rounding.

use rayon::prelude::*;
use std::f64::consts::PI;

use crate::data::Image;
use crate::data::image::level;
use crate::data::resize::keys;

/// Fractional bits of a weight: 8 bits of a pixel, two for what overshoots, of 32.
const BITS: u32 = 32 - 8 - 2;

/// Pillow's filters; all are stretched by the factor where a picture shrinks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// `BILINEAR`: a triangle.
    Bilinear,
    /// `BICUBIC`: Keys' kernel, a = −0.5.
    Bicubic,
    /// `LANCZOS`: a sinc under a sinc of three lobes.
    Lanczos,
}

impl Filter {
    fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    fn at(self, x: f64) -> f64 {
        let sinc = |x: f64| if x == 0.0 { 1.0 } else { (x * PI).sin() / (x * PI) };
        match self {
            Self::Bilinear => (1.0 - x.abs()).max(0.0),
            Self::Bicubic => keys(x, -0.5),
            Self::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Self::Lanczos => 0.0,
        }
    }
}

/// Input samples `start..start + weights.len()` of one axis, and what they count.
struct Taps {
    start: usize,
    weights: Vec<i32>,
}

fn taps(from: usize, to: usize, filter: Filter) -> Vec<Taps> {
    let scale = from as f64 / to as f64;
    let stretch = scale.max(1.0);
    let support = filter.support() * stretch;
    let tap = |i: usize| {
        let center = (i as f64 + 0.5) * scale;
        let start = ((center - support + 0.5).max(0.0) as usize).min(from - 1);
        let end = ((center + support + 0.5) as usize).clamp(start + 1, from);
        let weight = |j: usize| filter.at((j as f64 - center + 0.5) * (1.0 / stretch));
        let raw: Vec<f64> = (start..end).map(weight).collect();
        let sum: f64 = raw.iter().sum();
        // away from zero where it lies midway, as C's cast of ±0.5 more
        let fixed = |w: &f64| (w / sum * f64::from(1 << BITS)).round() as i32;
        Taps { start, weights: raw.iter().map(fixed).collect() }
    };
    (0..to).map(tap).collect()
}

/// What a sum of weighted levels rounds to.
fn rounded(sum: i32) -> u8 {
    ((sum + (1 << (BITS - 1))) >> BITS).clamp(0, 255) as u8
}

/// Three planes of bytes.
struct Levels {
    height: usize,
    width: usize,
    data: Vec<u8>,
}

impl Levels {
    fn rows_resized(&self, w: usize, filter: Filter) -> Self {
        let taps = taps(self.width, w, filter);
        let mut data = vec![0; 3 * self.height * w];
        data.par_chunks_mut(w).zip(self.data.par_chunks(self.width)).for_each(|(to, from)| {
            for (v, t) in to.iter_mut().zip(&taps) {
                *v = rounded(t.weights.iter().zip(&from[t.start..]).map(|(w, x)| w * i32::from(*x)).sum());
            }
        });
        Self { height: self.height, width: w, data }
    }

    fn columns_resized(&self, h: usize, filter: Filter) -> Self {
        let (taps, rows, w) = (taps(self.height, h, filter), self.height, self.width);
        let mut data = vec![0; 3 * h * w];
        data.par_chunks_mut(w).enumerate().for_each(|(i, to)| {
            let t = &taps[i % h];
            let plane = &self.data[(i / h) * rows * w..][..rows * w];
            for (x, v) in to.iter_mut().enumerate() {
                let column = plane[t.start * w + x..].iter().step_by(w);
                *v = rounded(t.weights.iter().zip(column).map(|(w, x)| w * i32::from(*x)).sum());
            }
        });
        Self { height: h, width: w, data }
    }
}

/// `image`, rounded to 8 bits, at `h`×`w` pixels. An empty input or output gives a black picture.
pub fn resize(image: &Image, h: usize, w: usize, filter: Filter) -> Image {
    if h * w == 0 || image.data.is_empty() {
        return Image::zeros(h, w);
    }
    let data = image.data.iter().map(|v| level(v * 255.0)).collect();
    let from = Levels { height: image.height, width: image.width, data };
    // Pillow 13 begins with the columns of what loses more than twice as many rows as columns, for speed; as levels
    // saturate after either pass, a sharp picture shows which was first.
    let (fewer_rows, fewer_columns) = (from.height.saturating_sub(h), from.width.saturating_sub(w));
    let to = if fewer_rows > 2 * fewer_columns {
        from.columns_resized(h, filter).rows_resized(w, filter)
    } else {
        from.rows_resized(w, filter).columns_resized(h, filter)
    };
    Image { height: h, width: w, data: to.data.into_iter().map(|v| f32::from(v) / 255.0).collect() }
}

/// The `h`×`w` pixels in the middle of `image`, as torchvision's `CenterCrop` takes them of a picture that is no smaller:
/// from half of what is left over, rounded half to even. What is larger than the picture is cut to it.
pub fn center_crop(image: &Image, h: usize, w: usize) -> Image {
    let (h, w) = (h.min(image.height), w.min(image.width));
    let offset = |side: usize, cut: usize| ((side - cut) as f64 / 2.0).round_ties_even() as usize;
    let (top, left) = (offset(image.height, h), offset(image.width, w));
    Image::from_fn(h, w, |c, y, x| image.plane(c)[(top + y) * image.width + left + x])
}
