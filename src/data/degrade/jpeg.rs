//! JPEG compression: what a file of some quality shows of a picture, by a real encoder and decoder, or by the arithmetic
//! of DiffJPEG (basicsr), which rounds nothing but coefficients.

use ::image::ImageFormat;
use jpeg_encoder::{ChromaSubsamplingMethod, ColorType, Encoder, SamplingFactor};
use serde::{Deserialize, Serialize};

use crate::data::Image;
use crate::{Error, Result};

/// How a picture is compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Codec {
    /// A file is written and read: 8 bits, integer tables, edges repeated to whole blocks. Quality is rounded.
    #[default]
    File,
    /// [`diff_jpeg`], as the reference trains.
    Diff,
}

impl Codec {
    /// `img`, clamped to [0, 1], at `quality` (1…100) with colour at half the resolution (4:2:0).
    pub fn apply(self, img: &Image, quality: f64) -> Result<Image> {
        match self {
            Self::File => jpeg_file(img, quality.round().clamp(1.0, 100.0) as u8, true),
            Self::Diff => Ok(diff_jpeg(img, quality)),
        }
    }
}

/// `img` as an 8-bit JPEG file of `quality` (1…100) would show it, colour at half the resolution (4:2:0) or at all of it.
pub fn jpeg_file(img: &Image, quality: u8, half_colour: bool) -> Result<Image> {
    let fail = |what: String| Error::shape("JPEG", what);
    let (Ok(w), Ok(h)) = (u16::try_from(img.width), u16::try_from(img.height)) else {
        return Err(fail(format!("{}×{} pixels are beyond the format's 65535", img.height, img.width)));
    };
    let mut file = Vec::new();
    let mut encoder = Encoder::new(&mut file, quality);
    encoder.set_sampling_factor(if half_colour { SamplingFactor::R_4_2_0 } else { SamplingFactor::R_4_4_4 });
    encoder.set_chroma_subsampling_method(ChromaSubsamplingMethod::Average);
    let made = encoder.encode(&img.to_rgb8(), w, h, ColorType::Rgb);
    made.map_err(|e| fail(format!("quality {quality}: {e}")))?;
    let back = ::image::load_from_memory_with_format(&file, ImageFormat::Jpeg)
        .map_err(|e| fail(format!("reading back quality {quality}: {e}")))?;
    Image::from_rgb8(img.height, img.width, &back.into_rgb8())
}

const SIDE: usize = 8;
const AREA: usize = SIDE * SIDE;
/// A plane of 8×8 blocks, row by row.
pub type Blocks = Vec<[f32; AREA]>;

/// Annex K's luma table, transposed as DiffJPEG has it.
const LUMA: [[u8; SIDE]; SIDE] = [
    [16, 12, 14, 14, 18, 24, 49, 72],
    [11, 12, 13, 17, 22, 35, 64, 92],
    [10, 14, 16, 22, 37, 55, 78, 95],
    [16, 19, 24, 29, 56, 64, 87, 98],
    [24, 26, 40, 51, 68, 81, 103, 112],
    [40, 58, 57, 87, 109, 104, 121, 100],
    [51, 60, 69, 80, 103, 113, 120, 103],
    [61, 55, 56, 62, 77, 92, 101, 99],
];
/// Annex K's colour table, which is symmetric.
const COLOUR: [[u8; SIDE]; SIDE] = [
    [17, 18, 24, 47, 99, 99, 99, 99],
    [18, 21, 26, 66, 99, 99, 99, 99],
    [24, 26, 56, 99, 99, 99, 99, 99],
    [47, 66, 99, 99, 99, 99, 99, 99],
    [99; SIDE],
    [99; SIDE],
    [99; SIDE],
    [99; SIDE],
];

/// A picture's quantised coefficients.
pub struct Coefficients {
    /// Of luma, of the two colour differences at half the resolution.
    pub planes: [Blocks; 3],
    height: usize,
    width: usize,
    /// By plane, the step of each coefficient.
    steps: [[f32; AREA]; 3],
}

/// `img` through DiffJPEG's compression and decompression: black borders up to multiples of 16, real-valued tables, colour
/// averaged over 2×2 pixels and repeated. Quality may be a fraction.
pub fn diff_jpeg(img: &Image, quality: f64) -> Image {
    compress(img, quality).decompress()
}

/// The first half of [`diff_jpeg`].
pub fn compress(img: &Image, quality: f64) -> Coefficients {
    let (h, w) = (img.height.next_multiple_of(16), img.width.next_multiple_of(16));
    let factor = if quality < 50.0 { 5000.0 / quality } else { 200.0 - 2.0 * quality } / 100.0;
    let steps = [&LUMA, &COLOUR, &COLOUR]
        .map(|table| std::array::from_fn(|i| (f64::from(table[i / SIDE][i % SIDE]) * factor) as f32));
    let mut ycc = [(); 3].map(|()| vec![0.0; h * w]);
    for y in 0..h {
        for x in 0..w {
            let inside = y < img.height && x < img.width;
            let at = |c: usize| if inside { 255.0 * img.plane(c)[y * img.width + x] } else { 0.0 };
            let (r, g, b) = (at(0), at(1), at(2));
            ycc[0][y * w + x] = 0.299 * r + 0.587 * g + 0.114 * b - 128.0;
            ycc[1][y * w + x] = -0.168_736 * r - 0.331_264 * g + 0.5 * b;
            ycc[2][y * w + x] = 0.5 * r - 0.418_688 * g - 0.081_312 * b;
        }
    }
    let [luma, blue, red] = ycc;
    let half = |plane: Vec<f32>| -> Vec<f32> {
        let pixel = |i: usize| 2 * (i / (w / 2)) * w + 2 * (i % (w / 2));
        let mean = |p: usize| 0.25 * (plane[p] + plane[p + 1] + plane[p + w] + plane[p + w + 1]);
        (0..h * w / 4).map(|i| mean(pixel(i))).collect()
    };
    let planes = [(luma, w, 0), (half(blue), w / 2, 1), (half(red), w / 2, 2)];
    let planes = planes.map(|(plane, w, c)| {
        let mut blocks = to_blocks(&plane, w);
        for block in &mut blocks {
            *block = transform(block, &dct());
            block.iter_mut().zip(&steps[c]).for_each(|(v, s)| *v = (*v / s).round_ties_even());
        }
        blocks
    });
    Coefficients { planes, height: img.height, width: img.width, steps }
}

impl Coefficients {
    /// The second half of [`diff_jpeg`].
    pub fn decompress(&self) -> Image {
        let w = self.width.next_multiple_of(16);
        let inverse = transposed(&dct());
        let plane = |c: usize, w: usize| {
            let restored = self.planes[c].iter().map(|block| {
                let scaled: [f32; AREA] = std::array::from_fn(|i| block[i] * self.steps[c][i]);
                transform(&scaled, &inverse)
            });
            from_blocks(&restored.collect(), w)
        };
        let (luma, blue, red) = (plane(0, w), plane(1, w / 2), plane(2, w / 2));
        let mut out = Image::zeros(self.height, self.width);
        let area = self.height * self.width;
        for y in 0..self.height {
            for x in 0..self.width {
                let half = y / 2 * (w / 2) + x / 2;
                let (l, b, r) = (luma[y * w + x] + 128.0, blue[half], red[half]);
                let rgb = [l + 1.402 * r, l - 0.344_136 * b - 0.714_136 * r, l + 1.772 * b];
                for (c, v) in rgb.into_iter().enumerate() {
                    out.data[c * area + y * self.width + x] = v.clamp(0.0, 255.0) / 255.0;
                }
            }
        }
        out
    }
}

/// The orthonormal DCT-II: row u, column x.
fn dct() -> [f32; AREA] {
    std::array::from_fn(|i| {
        let (u, x) = ((i / SIDE) as f64, (i % SIDE) as f64);
        let norm = if u == 0.0 { 0.125f64.sqrt() } else { 0.5 };
        (norm * ((2.0 * x + 1.0) * u * std::f64::consts::PI / 16.0).cos()) as f32
    })
}

/// M·block·Mᵀ.
fn transform(block: &[f32; AREA], m: &[f32; AREA]) -> [f32; AREA] {
    let right = product(block, &transposed(m));
    product(m, &right)
}

fn product(a: &[f32; AREA], b: &[f32; AREA]) -> [f32; AREA] {
    let mut out = [0.0; AREA];
    for (row, a) in out.as_chunks_mut::<SIDE>().0.iter_mut().zip(a.as_chunks::<SIDE>().0) {
        for (a, b) in a.iter().zip(b.as_chunks::<SIDE>().0) {
            row.iter_mut().zip(b).for_each(|(v, b)| *v += a * b);
        }
    }
    out
}

fn transposed(m: &[f32; AREA]) -> [f32; AREA] {
    std::array::from_fn(|i| m[i % SIDE * SIDE + i / SIDE])
}

/// A plane `width` wide, both sides multiples of 8, as its blocks, row by row.
fn to_blocks(plane: &[f32], width: usize) -> Blocks {
    let across = width / SIDE;
    let block = |b: usize| {
        let corner = b / across * SIDE * width + b % across * SIDE;
        std::array::from_fn(|i| plane[corner + i / SIDE * width + i % SIDE])
    };
    (0..plane.len() / AREA).map(block).collect()
}

fn from_blocks(blocks: &Blocks, width: usize) -> Vec<f32> {
    let across = width / SIDE;
    let at = |i: usize| {
        let (y, x) = (i / width, i % width);
        blocks[y / SIDE * across + x / SIDE][y % SIDE * SIDE + x % SIDE]
    };
    (0..blocks.len() * AREA).map(at).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture() -> Image {
        Image::from_fn(48, 64, |_, y, x| 0.5 + 0.4 * (0.1 * (2 * x + y) as f32).sin())
    }

    fn rms(a: &Image, b: &Image) -> f32 {
        let sum: f32 = a.data.iter().zip(&b.data).map(|(a, b)| (a - b).powi(2)).sum();
        (sum / a.data.len() as f32).sqrt() * 255.0
    }

    #[test]
    fn the_transform_is_orthonormal() {
        let m = dct();
        let unit = product(&m, &transposed(&m));
        assert!((0..AREA).all(|i| (unit[i] - f32::from(i / SIDE == i % SIDE)).abs() < 1e-6));
    }

    /// Grey at full quality comes back: the steps are next to nothing. Less quality, more loss, by both codecs alike where
    /// nothing is coloured (DiffJPEG repeats colour, decoders interpolate it) and blocks are whole (it has black borders).
    #[test]
    fn quality_is_quality() {
        let grey = Image::from_fn(37, 50, |_, y, x| ((y * 5 + x * 3) % 97) as f32 / 96.0);
        assert!(rms(&diff_jpeg(&grey, 99.9), &grey) < 0.2);
        assert!(rms(&jpeg_file(&grey, 100, true).unwrap(), &grey) < 1.0);
        let img = picture();
        let mut before = (0.0, 0.0);
        for quality in [95.0, 70.0, 40.0, 10.0] {
            let file = rms(&Codec::File.apply(&img, quality).unwrap(), &img);
            let diff = rms(&Codec::Diff.apply(&img, quality).unwrap(), &img);
            assert!(file > before.0 && diff > before.1, "{quality}: {file}, {diff} after {before:?}");
            assert!((0.5..2.0).contains(&(file / diff)), "{quality}: {file} {diff}");
            before = (file, diff);
        }
    }

    /// Colour that changes from pixel to pixel survives at full resolution, and not at half.
    #[test]
    fn half_resolution_loses_fine_colour() {
        let stripes = Image::from_fn(32, 32, |c, _, x| if (c == 0) == (x % 2 == 0) { 0.8 } else { 0.2 });
        let [half, full] = [true, false].map(|half| rms(&jpeg_file(&stripes, 95, half).unwrap(), &stripes));
        assert!(half > 40.0 && full < 10.0, "{half} {full}");
    }

    #[test]
    fn any_size_is_compressed() {
        for (h, w) in [(1, 1), (7, 33), (16, 16)] {
            let img = Image::from_fn(h, w, |_, _, _| 0.5);
            for codec in [Codec::File, Codec::Diff] {
                let out = codec.apply(&img, 80.0).unwrap();
                assert_eq!((out.height, out.width), (h, w));
            }
        }
        let long = Image::zeros(1, 65_536);
        assert!(jpeg_file(&long, 80, true).unwrap_err().to_string().contains("1×65536"));
    }
}
