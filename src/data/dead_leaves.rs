//! Procedural "dead leaves": overlapping textured shapes whose sizes follow a power law, the training data of the tiny
//! preset. Edges occur at every scale and textures have the 1/fᵅ spectra of photographs, and no file is needed.
//!
//! An image is a pure function of `(seed, index)`. Lengths below are pixels of the finished image; painting happens at
//! twice that resolution and each 2×2 block is averaged.

use rustfft::num_complex::Complex;
use rustfft::{FftDirection, FftPlanner};

use crate::data::fft::{fft2, fftfreq};
use crate::data::{Domain, Image, draws};
use crate::engine::random::Reader;
use crate::{Error, Result};

/// Painting happens at this multiple of the finished size.
const OVERSAMPLE: usize = 2;
/// Shapes per image, painted back to front.
const SHAPES: usize = 260;
/// The first shapes painted are large, so that the ground is covered.
const LARGE: usize = 24;
/// Exponents α of the noise tiles: amplitude spectrum 1/fᵅ.
const NOISE_ALPHAS: [f64; 6] = [0.3, 0.6, 0.9, 1.2, 1.5, 1.8];
/// Number of grating tiles.
const GRATINGS: usize = 6;

/// The textures of one seed, and the painter.
pub struct DeadLeaves {
    seed: u64,
    size: usize,
    /// Each `[2·size, 2·size]`, periodic, about unit variance.
    tiles: Vec<Vec<f32>>,
}

impl DeadLeaves {
    /// Makes the twelve texture tiles of `seed` for images of `size`×`size` pixels (32…4096).
    pub fn new(seed: u64, size: usize) -> Result<Self> {
        if !(32..=4096).contains(&size) {
            return Err(Error::Usage(format!("dead leaves: size {size} is outside 32…4096 pixels")));
        }
        let side = size * OVERSAMPLE;
        let mut planner = FftPlanner::new();
        let noises = NOISE_ALPHAS.iter().enumerate().map(|(i, &alpha)| (i as u64, Some(alpha)));
        let gratings = (0..GRATINGS).map(|i| ((NOISE_ALPHAS.len() + i) as u64, None));
        let tiles = noises
            .chain(gratings)
            .map(|(i, alpha)| {
                let mut rng = draws(seed, Domain::Tiles, i, size as u64);
                match alpha {
                    Some(alpha) => noise_tile(&mut rng, &mut planner, side, alpha),
                    None => grating_tile(&mut rng, &mut planner, side),
                }
            })
            .collect();
        Ok(Self { seed, size, tiles })
    }

    /// Height and width of the images.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Image number `index`: `[3, size, size]`, multiples of 1/255.
    pub fn image(&self, index: u64) -> Image {
        let side = self.size * OVERSAMPLE;
        let r_max = side as f32 / 2.5;
        let mut rng = draws(self.seed, Domain::Leaves, index, self.size as u64);
        let mut canvas = vec![[rng.uniform(0.2, 0.8); 3]; side * side];
        let cast = [(); 3].map(|()| 0.06 * rng.normal());
        for k in 0..SHAPES {
            let radius = radius(&mut rng, k, (4 * OVERSAMPLE) as f32, r_max);
            let leaf = Leaf::draw(&mut rng, radius, r_max, side, cast, self.tiles.len());
            leaf.paint(&mut canvas, side, &self.tiles[leaf.tile]);
        }
        reduce(&canvas, self.size)
    }
}

/// Image number `index` of `seed`, `size`×`size`; [`DeadLeaves`] amortises the textures over many.
pub fn dead_leaves(index: u64, seed: u64, size: usize) -> Result<Image> {
    Ok(DeadLeaves::new(seed, size)?.image(index))
}

/// Periodic Gaussian noise with amplitude spectrum 1/fᵅ, scaled to unit variance.
fn noise_tile(rng: &mut Reader, planner: &mut FftPlanner<f32>, side: usize, alpha: f64) -> Vec<f32> {
    let mut z: Vec<Complex<f32>> = (0..side * side).map(|_| Complex::new(rng.normal(), 0.0)).collect();
    fft2(planner, &mut z, (side, side), FftDirection::Forward);
    for (i, v) in z.iter_mut().enumerate() {
        let (fy, fx) = (fftfreq(i / side, side), fftfreq(i % side, side));
        let f2 = if i == 0 { 1.0 } else { fy * fy + fx * fx };
        *v *= f2.powf(-alpha / 2.0) as f32;
    }
    fft2(planner, &mut z, (side, side), FftDirection::Inverse);
    let n = z.len() as f64;
    let mean = z.iter().map(|v| f64::from(v.re)).sum::<f64>() / n;
    let variance = z.iter().map(|v| (f64::from(v.re) - mean).powi(2)).sum::<f64>() / n;
    let unit = (1.0 / variance.sqrt()) as f32;
    z.iter().map(|v| v.re * unit).collect()
}

/// A sine grating of random direction and of log-uniform frequency (.01….16 cycles per painted pixel) whose phase is
/// bent by smooth noise.
fn grating_tile(rng: &mut Reader, planner: &mut FftPlanner<f32>, side: usize) -> Vec<f32> {
    let angle = rng.uniform(0.0, std::f32::consts::PI);
    let frequency = rng.uniform(0.01f32.ln(), 0.16f32.ln()).exp();
    let (ky, kx) = (frequency * angle.sin(), frequency * angle.cos());
    let mut tile = noise_tile(rng, planner, side, 1.6);
    for (i, v) in tile.iter_mut().enumerate() {
        let turns = ky * (i / side) as f32 + kx * (i % side) as f32;
        *v = 1.2 * (std::f32::consts::TAU * turns + 1.5 * *v).sin();
    }
    tile
}

/// Radius of shape `k`: p(r) ∝ r⁻³ on `min…max`, except the first shapes, uniform on `max/4…max`.
fn radius(rng: &mut Reader, k: usize, min: f32, max: f32) -> f32 {
    if k < LARGE {
        return rng.uniform(max / 4.0, max);
    }
    let (near, far) = (min.powi(-2), max.powi(-2));
    rng.uniform(near, far).powf(-0.5)
}

/// A Beta(1.6, 1.9) variate: rejection from the uniform under the density's maximum, at 0.4 (71 % are accepted).
fn luminance(rng: &mut Reader) -> f32 {
    let density = |x: f32| x.powf(0.6) * (1.0 - x).powf(0.9);
    let peak = density(0.4);
    loop {
        let (x, u) = (rng.unit(), rng.unit());
        if u * peak <= density(x) {
            return x;
        }
    }
}

#[derive(Clone, Copy)]
enum Shape {
    Ellipse,
    Box,
    Triangle,
}

/// One shape, in painted pixels.
struct Leaf {
    shape: Shape,
    radius: f32,
    center: [f32; 2], // y, x
    axes: [f32; 2],   // along and across the direction
    turn: (f32, f32), // sine and cosine of the direction
    color: [f32; 3],
    slope: [f32; 2], // shade per radius, y and x
    amplitude: f32,
    tile: usize,
    offset: [usize; 2],
}

impl Leaf {
    fn draw(rng: &mut Reader, radius: f32, r_max: f32, side: usize, cast: [f32; 3], tiles: usize) -> Self {
        let reach = |rng: &mut Reader| rng.uniform(-0.5 * radius, side as f32 + 0.5 * radius);
        let center = [reach(rng), reach(rng)];
        let stretch = (0.45 * rng.normal()).exp().sqrt();
        let turn = rng.uniform(0.0, std::f32::consts::PI).sin_cos();
        let shape = [Shape::Ellipse, Shape::Box, Shape::Triangle][rng.below(3)];
        let light = luminance(rng);
        let color = cast.map(|c| (light + c + 0.06 * rng.normal()).clamp(0.02, 0.98));
        let steep = 0.12 * (radius / r_max).sqrt();
        let slope = [steep * rng.normal(), steep * rng.normal()];
        let (tile, offset) = (rng.below(tiles), [rng.below(side), rng.below(side)]);
        let amplitude = (0.055 * rng.normal()).abs().min(0.16);
        let axes = [radius * stretch, radius / stretch];
        Self { shape, radius, center, axes, turn, color, slope, amplitude, tile, offset }
    }

    /// Whether the point lies inside; `a`, `b` in units of the half axes.
    fn covers(&self, a: f32, b: f32) -> bool {
        match self.shape {
            Shape::Ellipse => a * a + b * b < 1.0,
            Shape::Box => a.abs() < 0.9 && b.abs() < 0.9,
            Shape::Triangle => b > -0.8 && b < 0.9 - 1.7 * a.abs(),
        }
    }

    fn paint(&self, canvas: &mut [[f32; 3]], side: usize, tile: &[f32]) {
        let extent = (self.axes[0].max(self.axes[1]) * 1.45) as i64 + 1;
        let span = |c: f32| {
            let c = c as i64;
            (c - extent).clamp(0, side as i64) as usize..(c + extent).clamp(0, side as i64) as usize
        };
        let (sin, cos) = self.turn;
        let [cy, cx] = self.center;
        let slope = self.slope.map(|s| s / self.radius);
        for row in span(cy) {
            let y = row as f32 - cy;
            let texture = &tile[(row + self.offset[0]) % side * side..][..side];
            for col in span(cx) {
                let x = col as f32 - cx;
                let (a, b) = ((x * cos + y * sin) / self.axes[0], (y * cos - x * sin) / self.axes[1]);
                if !self.covers(a, b) {
                    continue;
                }
                let shade =
                    slope[0] * y + slope[1] * x + self.amplitude * texture[(col + self.offset[1]) % side];
                canvas[row * side + col] =
                    self.color.map(|c| (c * (1.0 + 1.2 * shade) + 0.35 * shade).clamp(0.0, 1.0));
            }
        }
    }
}

/// The mean of each block of painted pixels, rounded to 8 bits.
fn reduce(canvas: &[[f32; 3]], size: usize) -> Image {
    let side = size * OVERSAMPLE;
    Image::from_fn(size, size, |c, y, x| {
        let mut sum = 0.0;
        for dy in 0..OVERSAMPLE {
            for dx in 0..OVERSAMPLE {
                sum += canvas[(OVERSAMPLE * y + dy) * side + OVERSAMPLE * x + dx][c];
            }
        }
        (sum / (OVERSAMPLE * OVERSAMPLE) as f32 * 255.0).round_ties_even() / 255.0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reader(stream: u64) -> Reader {
        draws(5, Domain::Leaves, stream, 0)
    }

    #[test]
    fn luminance_has_the_moments_of_beta() {
        let mut rng = reader(0);
        let x: Vec<f64> = (0..100_000).map(|_| f64::from(luminance(&mut rng))).collect();
        let mean = x.iter().sum::<f64>() / x.len() as f64;
        let variance = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / x.len() as f64;
        // α/(α+β) and αβ/((α+β)²(α+β+1)); five standard errors of each
        assert!((mean - 1.6 / 3.5).abs() < 4e-3, "mean {mean}");
        assert!((variance - 1.6 * 1.9 / (3.5 * 3.5 * 4.5)).abs() < 8e-4, "variance {variance}");
    }

    #[test]
    fn small_radii_follow_the_inverse_cube() {
        let mut rng = reader(1);
        let r: Vec<f32> = (0..100_000).map(|_| radius(&mut rng, LARGE, 8.0, 153.6)).collect();
        assert!(r.iter().all(|&r| (7.99..154.0).contains(&r)));
        for cut in [10.0f32, 20.0, 60.0] {
            let share = r.iter().filter(|&&r| r > cut).count() as f32 / r.len() as f32;
            let want = (cut.powi(-2) - 153.6f32.powi(-2)) / (8f32.powi(-2) - 153.6f32.powi(-2));
            assert!((share - want).abs() < 8e-3, "P(r > {cut}) = {share}, expected {want}");
        }
    }

    /// The power of a noise tile falls as f^−2α: compare two octaves.
    #[test]
    fn noise_tiles_have_their_spectrum() {
        let side = 128;
        for alpha in [0.6, 1.5] {
            let tile = noise_tile(&mut reader(2), &mut FftPlanner::new(), side, alpha);
            let mut z: Vec<Complex<f64>> = tile.iter().map(|&v| Complex::new(f64::from(v), 0.0)).collect();
            fft2(&mut FftPlanner::new(), &mut z, (side, side), FftDirection::Forward);
            let octave = |lo: f64| {
                let inside = z.iter().enumerate().filter(|(i, _)| {
                    let f = fftfreq(i / side, side).hypot(fftfreq(i % side, side));
                    (lo..2.0 * lo).contains(&f)
                });
                let (n, p) = inside.fold((0.0, 0.0), |(n, p), (_, v)| (n + 1.0, p + v.norm_sqr()));
                p / n
            };
            let slope = (octave(0.05) / octave(0.2)).log2() / 2.0;
            assert!((slope - 2.0 * alpha).abs() < 0.15, "α {alpha}: power falls as f^-{slope}");
        }
    }

    #[test]
    fn an_image_is_a_function_of_seed_and_index() {
        let leaves = DeadLeaves::new(3, 64).unwrap();
        let a = leaves.image(7);
        assert_eq!(a, leaves.image(7));
        assert_eq!(a, dead_leaves(7, 3, 64).unwrap());
        assert_ne!(a, leaves.image(8));
        assert_ne!(a, dead_leaves(7, 4, 64).unwrap());
        assert!(a.data.iter().all(|v| (0.0..=1.0).contains(v) && (v * 255.0).fract().min(1.0 - (v * 255.0).fract()) < 1e-4));
        assert!(DeadLeaves::new(0, 31).is_err());
    }
}
