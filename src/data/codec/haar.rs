//! The codec of the tiny preset: one orthonormal matrix on 4×4 blocks, and a per-channel standardisation.
//!
//! Colour is rotated by the orthonormal rows of (1,1,1), (1,0,−1), (1,−2,1); each plane gets a two-level Haar transform
//! on its 4×4 blocks. All 16 luma coefficients are kept and the first 4 (mean and coarse detail) of each chroma plane:
//! 24 channels on an (H/4)×(W/4) plane. Luma survives exactly, fine chroma is lost.

use std::borrow::Borrow;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use crate::data::Image;
use crate::{Error, Result};

const BLOCK: usize = 4;
const AREA: usize = BLOCK * BLOCK;
const KEPT_CHROMA: usize = 4;
const CHANNELS: usize = AREA + 2 * KEPT_CHROMA;
/// Values of one RGB block.
const INPUTS: usize = 3 * AREA;
/// A standard deviation below this is raised to it, so that a near-constant channel is not blown up.
const STD_FLOOR: f64 = 0.02;

/// Rows: latent channels. Columns: `16·colour + 4·y + x` within the block.
type Matrix = [[f32; INPUTS]; CHANNELS];

static MATRIX: LazyLock<Matrix> = LazyLock::new(matrix);

fn matrix() -> Matrix {
    let colors = [[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]];
    let haar = haar();
    let rows = (0..AREA).map(|k| (0, k)).chain((1..3).flat_map(|c| (0..KEPT_CHROMA).map(move |k| (c, k))));
    let mut out = [[0.0; INPUTS]; CHANNELS];
    for (row, (color, k)) in out.iter_mut().zip(rows) {
        let norm = colors[color].iter().map(|v: &f64| v * v).sum::<f64>().sqrt();
        for (i, v) in row.iter_mut().enumerate() {
            *v = (colors[color][i / AREA] / norm * haar[k][i % AREA]) as f32;
        }
    }
    out
}

/// The two-level Haar transform of a 4×4 block: the mean, then the coarse horizontal, vertical and diagonal detail, then
/// the fine ones, four positions each.
fn haar() -> [[f64; AREA]; AREA] {
    // the sign of a 2×2 corner in (sum, horizontal, vertical, diagonal) detail
    let sign = |kind: usize, y: usize, x: usize| {
        let (h, v) = (1.0 - 2.0 * x as f64, 1.0 - 2.0 * y as f64);
        [1.0, h, v, h * v][kind]
    };
    let mut out = [[0.0; AREA]; AREA];
    for (k, row) in out.iter_mut().enumerate() {
        for (i, v) in row.iter_mut().enumerate() {
            let (y, x) = (i / BLOCK, i % BLOCK);
            if k < 4 {
                *v = sign(k, y / 2, x / 2) / 4.0;
            } else if k % 4 == 2 * (y / 2) + x / 2 {
                *v = sign(k / 4, y % 2, x % 2) / 2.0;
            }
        }
    }
    out
}

/// The codec with its fitted standardisation, as it is stored with a checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Affine", into = "Affine")]
pub struct HaarCodec {
    affine: Affine,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Affine {
    mean: Vec<f32>,
    std: Vec<f32>,
}

impl TryFrom<Affine> for HaarCodec {
    type Error = Error;
    fn try_from(affine: Affine) -> Result<Self> {
        Self::new(affine.mean, affine.std)
    }
}

impl From<HaarCodec> for Affine {
    fn from(codec: HaarCodec) -> Self {
        codec.affine
    }
}

impl HaarCodec {
    /// A codec from its 24 means and 24 standard deviations (finite, above 0).
    pub fn new(mean: Vec<f32>, std: Vec<f32>) -> Result<Self> {
        if mean.len() != CHANNELS || std.len() != CHANNELS {
            let (m, s) = (mean.len(), std.len());
            return Err(Error::Usage(format!(
                "codec: {m} means and {s} deviations, expected {CHANNELS} of each"
            )));
        }
        if let Some(c) = (0..CHANNELS).find(|&c| !(mean[c].is_finite() && std[c].is_finite() && std[c] > 0.0))
        {
            let (m, s) = (mean[c], std[c]);
            return Err(Error::Usage(format!(
                "codec: channel {c} has mean {m}, deviation {s}; expected numbers, > 0"
            )));
        }
        Ok(Self { affine: Affine { mean, std } })
    }

    /// Fits mean and (unbiased) standard deviation of every channel on `images`, all blocks weighted alike; a deviation
    /// is at least .02. Rows and columns beyond the last whole block are left out.
    pub fn fit(images: impl IntoIterator<Item: Borrow<Image>>) -> Result<Self> {
        let (mut n, mut sum, mut square) = (0f64, [0f64; CHANNELS], [0f64; CHANNELS]);
        for image in images {
            let image = image.borrow();
            for_each_block(image, |_, z| {
                n += 1.0;
                for (c, &v) in z.iter().enumerate() {
                    sum[c] += f64::from(v);
                    square[c] += f64::from(v) * f64::from(v);
                }
            });
        }
        if n < 2.0 {
            return Err(Error::Usage("codec: fewer than two 4×4 blocks to fit on".into()));
        }
        let mean = sum.map(|s| s / n);
        let std = (0..CHANNELS).map(|c| ((square[c] - n * mean[c] * mean[c]) / (n - 1.0)).max(0.0).sqrt());
        let std = std.map(|s| s.max(STD_FLOOR) as f32).collect();
        Self::new(mean.map(|m| m as f32).to_vec(), std)
    }

    /// Latent channels: 24.
    pub const fn channels(&self) -> usize {
        CHANNELS
    }

    /// Pixels per latent position and side: 4.
    pub const fn block(&self) -> usize {
        BLOCK
    }

    /// Mean of each channel before standardisation.
    pub fn mean(&self) -> &[f32] {
        &self.affine.mean
    }

    /// Standard deviation of each channel before standardisation.
    pub fn std(&self) -> &[f32] {
        &self.affine.std
    }

    /// `image` `[3, H, W]` (mapped from [0, 1] to [−1, 1]) → `out` `[24, H/4, W/4]`. `H`, `W` must be multiples of 4.
    pub fn encode(&self, image: &Image, out: &mut [f32]) -> Result<()> {
        let (h, w) = (image.height, image.width);
        if h % BLOCK != 0 || w % BLOCK != 0 || h == 0 || w == 0 {
            return Err(Error::shape(
                "HaarCodec::encode",
                format!("{h}×{w} pixels: sides must be multiples of {BLOCK}"),
            ));
        }
        let plane = (h / BLOCK) * (w / BLOCK);
        if out.len() != CHANNELS * plane {
            let (n, h4, w4) = (out.len(), h / BLOCK, w / BLOCK);
            return Err(Error::shape(
                "HaarCodec::encode",
                format!("room for {n} values, expected [{CHANNELS}, {h4}, {w4}]"),
            ));
        }
        for_each_block(image, |at, z| {
            for (c, v) in z.iter().enumerate() {
                out[c * plane + at] = (v - self.affine.mean[c]) / self.affine.std[c];
            }
        });
        Ok(())
    }

    /// `latents` `[24, h4, w4]` → `[3, 4·h4, 4·w4]`, in [0, 1] up to overshoot (not clamped).
    pub fn decode(&self, latents: &[f32], h4: usize, w4: usize) -> Result<Image> {
        let plane = h4 * w4;
        if latents.len() != CHANNELS * plane {
            let n = latents.len();
            return Err(Error::shape(
                "HaarCodec::decode",
                format!("{n} values for [{CHANNELS}, {h4}, {w4}]"),
            ));
        }
        let mut out = Image::zeros(BLOCK * h4, BLOCK * w4);
        for at in 0..plane {
            let mut block = [0f32; INPUTS];
            for (c, row) in MATRIX.iter().enumerate() {
                let z = latents[c * plane + at] * self.affine.std[c] + self.affine.mean[c];
                block.iter_mut().zip(row).for_each(|(v, m)| *v += m * z);
            }
            for (i, v) in block.iter().enumerate() {
                out.data[pixel(at, i, h4, w4)] = 0.5 * (v + 1.0);
            }
        }
        Ok(out)
    }
}

/// Where value `i` of block `at` lies in a planar image of `h4`×`w4` blocks.
fn pixel(at: usize, i: usize, h4: usize, w4: usize) -> usize {
    let (c, y, x) = (i / AREA, i % AREA / BLOCK, i % BLOCK);
    ((c * h4 + at / w4) * BLOCK + y) * w4 * BLOCK + (at % w4) * BLOCK + x
}

/// Calls `f(position, coefficients)` for every whole block of `image`, row by row; not yet standardised.
fn for_each_block(image: &Image, mut f: impl FnMut(usize, &[f32; CHANNELS])) {
    let (h4, w4) = (image.height / BLOCK, image.width / BLOCK);
    for at in 0..h4 * w4 {
        let mut block = [0f32; INPUTS];
        for (i, v) in block.iter_mut().enumerate() {
            let (c, y, x) = (i / AREA, BLOCK * (at / w4) + i % AREA / BLOCK, BLOCK * (at % w4) + i % BLOCK);
            *v = 2.0 * image.data[(c * image.height + y) * image.width + x] - 1.0;
        }
        let z = MATRIX.each_ref().map(|row| row.iter().zip(&block).map(|(m, v)| m * v).sum());
        f(at, &z);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_matrix_is_orthonormal() {
        for (i, a) in MATRIX.iter().enumerate() {
            for (j, b) in MATRIX.iter().enumerate() {
                let dot: f32 = a.iter().zip(b).map(|(x, y)| x * y).sum();
                assert!((dot - f32::from(i == j)).abs() < 1e-6, "rows {i}, {j}: {dot}");
            }
        }
    }

    /// Channel order, seen from pictures: the mean, the sign and place of a coarse and of a fine detail, the chroma.
    #[test]
    fn channels_are_in_the_documented_order() {
        let codec = HaarCodec::new(vec![0.0; 24], vec![1.0; 24]).unwrap();
        let encode = |f: &dyn Fn(usize, usize, usize) -> f32| {
            let mut z = [0f32; 24];
            // f is the mapped value
            codec.encode(&Image::from_fn(4, 4, |c, y, x| 0.5 * (f(c, y, x) + 1.0)), &mut z).unwrap();
            let big: Vec<(usize, f32)> = z.into_iter().enumerate().filter(|(_, v)| v.abs() > 1e-5).collect();
            big
        };
        let close = |got: Vec<(usize, f32)>, at: usize, v: f32| {
            assert!(
                got.len() == 1 && got[0].0 == at && (got[0].1 - v).abs() < 1e-5,
                "{got:?}, expected {at}: {v}"
            );
        };
        let s3 = 3f32.sqrt();
        close(encode(&|_, _, _| 0.5), 0, 2.0 * s3);
        close(encode(&|_, _, x| if x < 2 { 0.5 } else { -0.5 }), 1, 2.0 * s3);
        close(encode(&|_, y, _| if y < 2 { 0.5 } else { -0.5 }), 2, 2.0 * s3);
        close(encode(&|_, y, x| if (y < 2) == (x < 2) { 0.5 } else { -0.5 }), 3, 2.0 * s3);
        // fine horizontal detail of the top right quarter, fine vertical of the bottom left, fine diagonal of the last
        close(encode(&|_, y, x| if y < 2 { [0.0, 0.0, 0.5, -0.5][x] } else { 0.0 }), 5, s3);
        close(encode(&|_, y, x| if x < 2 { [0.0, 0.0, 0.5, -0.5][y] } else { 0.0 }), 10, s3);
        close(encode(&|_, y, x| [0.0, 0.0, 1.0, -1.0][y] * [0.0, 0.0, 1.0, -1.0][x]), 15, 2.0 * s3);
        close(encode(&|c, _, _| [0.5, 0.0, -0.5][c]), 16, 4.0 * 0.5f32.sqrt());
        close(encode(&|c, _, x| [0.5, -1.0, 0.5][c] * if x < 2 { 1.0 } else { -1.0 }), 21, 2.0 * 6f32.sqrt());
    }

    #[test]
    fn a_fitted_codec_standardises_and_survives_storage() {
        let image = Image::from_fn(32, 24, |c, y, x| ((7 * y + 3 * x * x + 5 * c * y) % 17) as f32 / 17.0);
        let codec = HaarCodec::fit([&image]).unwrap();
        let mut z = vec![f32::NAN; 24 * 48];
        codec.encode(&image, &mut z).unwrap();
        for (c, plane) in z.chunks(48).enumerate() {
            let mean = plane.iter().sum::<f32>() / 48.0;
            let variance = plane.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / 47.0;
            assert!(mean.abs() < 1e-4 && (variance - 1.0).abs() < 1e-3, "channel {c}: {mean}, {variance}");
        }
        let back: HaarCodec = serde_json::from_str(&serde_json::to_string(&codec).unwrap()).unwrap();
        assert_eq!(back, codec);
        let bent =
            serde_json::from_str::<HaarCodec>(r#"{"mean":[0.0],"std":[1.0]}"#).unwrap_err().to_string();
        assert!(bent.contains("24"), "{bent}");
        // grey pictures have no chroma to lose
        let grey = Image::from_fn(16, 8, |_, y, x| ((y * x) % 5) as f32 / 5.0);
        let codec = HaarCodec::fit([&grey]).unwrap();
        assert!(codec.std()[16..].iter().all(|&s| s == 0.02));
        let mut z = vec![0f32; 24 * 8];
        codec.encode(&grey, &mut z).unwrap();
        let there = codec.decode(&z, 4, 2).unwrap();
        assert!(there.data.iter().zip(&grey.data).all(|(a, b)| (a - b).abs() < 1e-5));
    }

    #[test]
    fn wrong_sides_are_refused_with_their_numbers() {
        let codec = HaarCodec::new(vec![0.0; 24], vec![1.0; 24]).unwrap();
        let message = codec.encode(&Image::zeros(16, 18), &mut []).unwrap_err().to_string();
        assert!(message.contains("16×18") && message.contains("multiples of 4"), "{message}");
        assert!(
            codec.encode(&Image::zeros(16, 16), &mut [0.0; 5]).is_err()
                && codec.decode(&[0.0; 5], 1, 1).is_err()
        );
        assert!(HaarCodec::fit(&[] as &[Image]).is_err());
        assert!(HaarCodec::new(vec![0.0; 24], vec![0.0; 24]).is_err());
    }
}
