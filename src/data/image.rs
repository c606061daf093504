//! The picture type of the engine, and its way to and from files.
//!
//! RGB, planar `[3, height, width]`, row-major, in [0, 1] where a file can hold it (intermediate results may leave the
//! range: codecs and resizers overshoot).

use std::path::Path;

use ::image::codecs::png::PngEncoder;
use ::image::{ExtendedColorType, ImageEncoder};

use crate::data::photo::{Photo, check_window};
use crate::engine::pixels;
use crate::{Error, Result};

/// An RGB picture, planar `[3, height, width]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Image {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// `3·height·width` values: the R plane, then G, then B.
    pub data: Vec<f32>,
}

impl Image {
    /// A black picture.
    pub fn zeros(height: usize, width: usize) -> Self {
        Self { height, width, data: vec![0.0; 3 * height * width] }
    }

    /// A picture from its planes; `data` must hold `3·height·width` values.
    pub fn new(height: usize, width: usize, data: Vec<f32>) -> Result<Self> {
        if data.len() != 3 * height * width {
            let n = data.len();
            return Err(Error::shape("Image::new", format!("{n} values for [3, {height}, {width}]")));
        }
        Ok(Self { height, width, data })
    }

    /// The picture whose channel `c` at row `y`, column `x` is `f(c, y, x)`.
    pub fn from_fn(height: usize, width: usize, mut f: impl FnMut(usize, usize, usize) -> f32) -> Self {
        let mut data = Vec::with_capacity(3 * height * width);
        for c in 0..3 {
            for y in 0..height {
                data.extend((0..width).map(|x| f(c, y, x)));
            }
        }
        Self { height, width, data }
    }

    /// From interleaved 8-bit RGB, `[height, width, 3]`.
    pub fn from_rgb8(height: usize, width: usize, rgb: &[u8]) -> Result<Self> {
        if rgb.len() != 3 * height * width {
            let n = rgb.len();
            return Err(Error::shape("Image::from_rgb8", format!("{n} bytes for [{height}, {width}, 3]")));
        }
        let mut out = Self::zeros(height, width);
        let plane = height * width;
        let mut bytes = vec![0; plane];
        for (c, values) in out.data.chunks_exact_mut(plane.max(1)).enumerate() {
            bytes.iter_mut().zip(rgb.as_chunks::<3>().0).for_each(|(b, pixel)| *b = pixel[c]);
            pixels::from_bytes(&bytes, values);
        }
        Ok(out)
    }

    /// Interleaved 8-bit RGB, `[height, width, 3]`: clamped to [0, 1], rounded half to even. NaN becomes 0.
    pub fn to_rgb8(&self) -> Vec<u8> {
        let plane = self.height * self.width;
        let (mut out, mut bytes) = (vec![0; 3 * plane], vec![0; plane]);
        for c in 0..3 {
            pixels::to_bytes(self.plane(c), &mut bytes);
            out.as_chunks_mut::<3>().0.iter_mut().zip(&bytes).for_each(|(pixel, b)| pixel[c] = *b);
        }
        out
    }

    /// Reads a PNG or JPEG file; see [`Photo::load`] for what becomes of grey, alpha, 16 bits and EXIF orientation.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        Ok(Photo::load(path)?.image())
    }

    /// Writes an 8-bit PNG (see [`Image::to_rgb8`]); the file appears complete or not at all.
    pub fn save_png(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let (Ok(w), Ok(h)) = (u32::try_from(self.width), u32::try_from(self.height)) else {
            return Err(Error::shape("Image::save_png", "a side above 2³² pixels"));
        };
        let mut bytes = Vec::new();
        PngEncoder::new(&mut bytes)
            .write_image(&self.to_rgb8(), w, h, ExtendedColorType::Rgb8)
            .map_err(|e| Error::format(path, format!("cannot encode {w}×{h} pixels as PNG: {e}")))?;
        crate::files::write_atomic(path, &bytes)
    }

    /// Channel `c` (0 R, 1 G, 2 B), `[height, width]`.
    pub fn plane(&self, c: usize) -> &[f32] {
        let n = self.height * self.width;
        &self.data[c * n..(c + 1) * n]
    }

    /// The window of `h`×`w` pixels whose top left corner is at row `y`, column `x`.
    pub fn crop(&self, y: usize, x: usize, h: usize, w: usize) -> Result<Self> {
        check_window("Image::crop", (self.height, self.width), (y, x), (h, w))?;
        let mut data = Vec::with_capacity(3 * h * w);
        for c in 0..3 {
            for row in y..y + h {
                let from = (c * self.height + row) * self.width + x;
                data.extend_from_slice(&self.data[from..from + w]);
            }
        }
        Ok(Self { height: h, width: w, data })
    }

    /// Left becomes right.
    pub fn flip_horizontal(&self) -> Self {
        let mut out = self.clone();
        if self.width > 0 {
            out.data.chunks_exact_mut(self.width).for_each(<[f32]>::reverse);
        }
        out
    }

    /// Top becomes bottom.
    pub fn flip_vertical(&self) -> Self {
        self.rearranged(self.height, self.width, |y, x| (self.height - 1 - y, x))
    }

    /// Rows become columns: `[3, h, w]` → `[3, w, h]`.
    pub fn transpose(&self) -> Self {
        self.rearranged(self.width, self.height, |y, x| (x, y))
    }

    fn rearranged(&self, height: usize, width: usize, from: impl Fn(usize, usize) -> (usize, usize)) -> Self {
        Self::from_fn(height, width, |c, y, x| {
            let (sy, sx) = from(y, x);
            self.data[(c * self.height + sy) * self.width + sx]
        })
    }

    /// Every value clamped to [0, 1].
    #[must_use]
    pub fn clamped(mut self) -> Self {
        self.data.iter_mut().for_each(|v| *v = v.clamp(0.0, 1.0));
        self
    }
}

/// A value around 0…255 as a byte: rounded half to even, saturated. NaN becomes 0.
pub(crate) fn level(v: f32) -> u8 {
    v.round_ties_even().clamp(0.0, 255.0) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp(h: usize, w: usize) -> Image {
        Image::from_fn(h, w, |c, y, x| ((c * h + y) * w + x) as f32)
    }

    #[test]
    fn bytes_come_back() {
        let bytes: Vec<u8> = (0..=255).cycle().take(3 * 16 * 16).collect();
        let img = Image::from_rgb8(16, 16, &bytes).unwrap();
        assert_eq!((img.plane(1)[2], img.to_rgb8()), (7.0 / 255.0, bytes));
        assert!(Image::from_rgb8(0, 5, &[]).unwrap().to_rgb8().is_empty());
    }

    #[test]
    fn geometry() {
        let a = ramp(3, 5);
        assert_eq!(a.transpose().transpose(), a);
        assert_eq!(a.flip_horizontal().flip_horizontal(), a);
        assert_eq!(a.flip_vertical().flip_vertical(), a);
        let c = a.crop(1, 2, 2, 3).unwrap();
        assert_eq!(c.plane(1), [15.0 + 7.0, 23.0, 24.0, 27.0, 28.0, 29.0]);
        assert_eq!(a.transpose().plane(0)[..3], [0.0, 5.0, 10.0]);
        assert_eq!(a.flip_horizontal().plane(0)[..5], [4.0, 3.0, 2.0, 1.0, 0.0]);
        assert_eq!(a.flip_vertical().plane(0)[..5], [10.0, 11.0, 12.0, 13.0, 14.0]);
        let message = a.crop(1, 3, 2, 3).unwrap_err().to_string();
        assert!(message.contains("2×3") && message.contains("3×5"), "{message}");
        assert!(a.crop(usize::MAX, 0, 2, 2).is_err() && a.crop(0, 0, 0, 2).is_err());
    }
}
