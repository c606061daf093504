//! A whole picture of any size: one field of latents, overlapping tiles of the size the model was trained at, whose
//! velocities are blended into one before each Euler step.
//!
//! ```text
//! condition   LQ resized to the size wanted, reflected at the lower and right edge to whole tokens, encoded
//! each step   v = Σ_tiles weight · velocity(tile of x, tile of the condition, σ);   x ← x + (σ_next − σ)·v
//! picture     x decoded, cut to the size wanted
//! ```
//! A codec that is a network works in overlapping windows, which are blended alike. A tile's position ids begin at 0, as in
//! training, and the noise levels are those of its number of tokens. Beside the picture, the condition, the latents and
//! their velocity, memory holds a few tiles: a device that has too little is given fewer tiles at a time, and then
//! smaller ones, from the step on that did not fit.

use super::model::{Model, noise_window, pack, unpack};
use super::tiles::{Axis, Planes, Tiles};
use crate::autograd::Tape;
use crate::data::photo::MAX_PIXELS;
use crate::data::{Codec, Image};
use crate::engine::{Device, Tensor};
use crate::flux::sampler::velocity;
use crate::flux::schedule::sampling_sigmas;
use crate::{Error, Result};
use std::sync::atomic::{AtomicBool, Ordering};

/// Image tokens that one forward pass takes, if a tile has no more.
pub(crate) const TOKENS: usize = 1024;
/// Side of a codec's window, in latent cells. Where a network looks around neighbours share a quarter of it.
const WINDOW: usize = 64;

/// How a picture is restored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// How many times larger each side becomes, 1 to 8.
    pub scale: f64,
    /// Euler steps.
    pub steps: usize,
    /// Guidance value.
    pub guidance: f32,
    /// Seed of the noise.
    pub seed: u64,
    /// Side of a tile in the restored picture's pixels; whole tokens.
    pub tile: usize,
    /// Pixels that neighbours share at least, at most half a tile; rounded down to whole tokens.
    pub overlap: usize,
}

/// Who watches.
pub struct Watch<'a> {
    /// Is told of tiles done in all steps, and of how many there are.
    pub progress: &'a (dyn Fn(usize, usize) + Sync),
    /// Is told what is worth a line.
    pub say: &'a (dyn Fn(&str) + Sync),
    /// Raised, it ends the work between two passes.
    pub stop: &'a AtomicBool,
}

/// A restored picture.
pub struct Restored {
    /// Its pixels; may leave [0, 1].
    pub image: Image,
    /// How often the tiles were halved, for want of memory.
    pub halved: u32,
}

impl Settings {
    /// Refuses what `model` cannot do.
    pub fn check(&self, model: &Model) -> Result<()> {
        let (token, refuse) = (token(model), |why: String| Err(Error::Usage(why)));
        let Self { scale, steps, tile, overlap, .. } = *self;
        let (below, above) = (tile / token * token, tile.next_multiple_of(token));
        match () {
            _ if !(1.0..=8.0).contains(&scale) => refuse(format!("a scale of {scale}: wanted 1 to 8")),
            _ if steps == 0 => refuse("0 Euler steps: wanted one at least".into()),
            _ if tile < 2 * token => {
                refuse(format!("tiles of {tile} pixels: wanted two tokens of {token} pixels at least"))
            }
            _ if below != above => refuse(format!(
                "tiles of {tile} pixels are not whole tokens of {token} pixels; take {below} or {above}"
            )),
            _ if overlap > tile / 2 => {
                refuse(format!("an overlap of {overlap} pixels: wanted at most half a tile, {}", tile / 2))
            }
            _ => Ok(()),
        }
    }

    /// The noise levels of the steps, whatever the picture: those of a tile. A codec's `block` is 1/2 of a token's side.
    pub fn sigmas(&self, block: usize) -> Vec<f32> {
        sampling_sigmas(self.steps, (self.tile / (2 * block)).pow(2))
    }

    /// Height and width that a picture of this size gets.
    pub fn size(&self, height: usize, width: usize) -> Result<(usize, usize)> {
        let side = |n: usize| ((n as f64 * self.scale).round() as usize).max(1);
        let (h, w) = (side(height), side(width));
        if (h as u64).saturating_mul(w as u64) > MAX_PIXELS {
            return Err(Error::Usage(format!(
                "{width}×{height} pixels times {} are {w}×{h}, at most {MAX_PIXELS} are made; choose a smaller --scale",
                self.scale
            )));
        }
        Ok((h, w))
    }
}

/// Pixels on a token's side.
pub fn token(model: &Model) -> usize {
    2 * model.codec.block()
}

/// Restores `lq`.
pub fn upscale(
    model: &Model,
    lq: &Image,
    settings: &Settings,
    device: &Device,
    watch: &Watch,
) -> Result<Restored> {
    settings.check(model)?;
    let (h, w) = settings.size(lq.height, lq.width)?;
    let (token, block, tile) = (token(model), model.codec.block(), settings.tile);
    let [rows, columns] = [h, w].map(|side| side.max(tile).next_multiple_of(token) / block);
    let coder = Coder { codec: &model.codec, window: WINDOW, watch };
    let cond = coder.encode(&model.lq_resize.apply(lq, h, w), rows, columns)?;
    let data = noise_window(settings.seed, [model.codec.channels(), rows, columns], (0, 0));
    let x = Planes { height: rows, width: columns, data };
    let cut = Cut { tile: tile / block, overlap: settings.overlap / token * 2, tokens: TOKENS, halved: 0 };
    let mut sampling = Sampling { model, device, watch, guidance: settings.guidance, cond, x, cut };
    let sigmas = settings.sigmas(block);
    for (step, pair) in sigmas.windows(2).enumerate() {
        sampling.step(step, settings.steps, [pair[0], pair[1]])?;
    }
    let Sampling { x, cut, .. } = sampling;
    Ok(Restored { image: coder.decode(&x, h, w)?, halved: cut.halved })
}

/// How the latents are cut, in cells; becomes less where memory is short.
struct Cut {
    tile: usize,
    overlap: usize,
    /// Image tokens of a pass.
    tokens: usize,
    halved: u32,
}

impl Cut {
    /// Tiles of one pass.
    fn batch(&self) -> usize {
        (4 * self.tokens / self.tile.pow(2)).max(1)
    }

    /// Asks for less at once: fewer tiles, which changes no bit, or else smaller ones; not below 2×2 tokens.
    fn less(&mut self, block: usize, why: Error, watch: &Watch) -> Result<()> {
        if self.batch() > 1 {
            self.tokens /= 2;
            return Ok(());
        }
        if self.tile < 8 {
            return Err(why);
        }
        // Whole tokens, two cells each.
        (self.tile, self.overlap) = (self.tile / 4 * 2, self.overlap / 4 * 2);
        self.halved += 1;
        (watch.say)(&format!(
            "{why}; going on with tiles of {} pixels, which the model may not be used to",
            self.tile * block
        ));
        Ok(())
    }
}

/// Latents on their way from noise to a picture.
struct Sampling<'a> {
    model: &'a Model,
    device: &'a Device,
    watch: &'a Watch<'a>,
    guidance: f32,
    cond: Planes,
    x: Planes,
    cut: Cut,
}

impl Sampling<'_> {
    /// Euler step number `step` of `steps`.
    fn step(&mut self, step: usize, steps: usize, [sigma, next]: [f32; 2]) -> Result<()> {
        let v = loop {
            match self.velocity(step, steps, sigma) {
                Err(why @ Error::Memory { .. }) => {
                    self.cut.less(self.model.codec.block(), why, self.watch)?
                }
                other => break other?,
            }
        };
        self.x.data.iter_mut().zip(&v.data).for_each(|(x, v)| *x += (next - sigma) * v);
        Ok(())
    }

    /// The blended velocity of all tiles.
    fn velocity(&self, step: usize, steps: usize, sigma: f32) -> Result<Planes> {
        let axis = |len: usize| Axis::cut(len, self.cut.tile, self.cut.overlap, 2);
        let tiles = Tiles { rows: axis(self.x.height), columns: axis(self.x.width) };
        let (n, (h, w), channels) = (tiles.len(), tiles.size(), self.model.codec.channels());
        let (flux, tape) = (self.model.flux(), Tape::no_grad());
        let mut sum = Planes::zeros(channels, self.x.height, self.x.width);
        let all: Vec<usize> = (0..n).collect();
        for group in all.chunks(self.cut.batch()) {
            if self.watch.stop.load(Ordering::Relaxed) {
                let saved = "pictures that are done are kept".to_owned();
                return Err(Error::Interrupted { stage: "upscale".to_owned(), step, saved });
            }
            let of = |planes: &Planes| {
                let mut values = Vec::with_capacity(group.len() * channels * h * w);
                group.iter().for_each(|&i| planes.window(tiles.corner(i), (h, w), &mut values));
                Tensor::from_slice(self.device, &[group.len(), channels, h, w], &values)
            };
            let (x, given) = (pack(&of(&self.x)?)?, self.model.conditions(&of(&self.cond)?, self.guidance)?);
            let levels = self.model.weights.levels().of(self.device, &vec![sigma; group.len()])?;
            let v = unpack(velocity(&flux, &tape, &x, &levels, &given)?, h, w)?.values()?;
            for (&i, v) in group.iter().zip(v.chunks_exact(channels * h * w)) {
                tiles.add(i, v, &mut sum);
            }
            (self.watch.progress)(step * n + group[group.len() - 1] + 1, steps * n);
        }
        Ok(sum)
    }
}

/// A codec, window by window.
struct Coder<'a> {
    codec: &'a Codec,
    /// Side of a window in cells, where memory suffices.
    window: usize,
    watch: &'a Watch<'a>,
}

impl Coder<'_> {
    /// Latents of `image` on `rows`×`columns` cells, reflected where it ends before them.
    fn encode(&self, image: &Image, rows: usize, columns: usize) -> Result<Planes> {
        let block = self.codec.block();
        let mut out = Planes::zeros(self.codec.channels(), rows, columns);
        self.in_windows(|side| {
            let cells = self.windows(rows, columns, side, 1);
            out.data.fill(0.0);
            for i in 0..cells.len() {
                let ((y, x), (h, w)) = (cells.corner(i), cells.size());
                let window = reflected(image, (y * block, x * block), (h * block, w * block));
                cells.add(i, &self.codec.encode(&window)?, &mut out);
            }
            Ok(())
        })?;
        Ok(out)
    }

    /// The upper left `h`×`w` pixels of the picture of `latents`.
    fn decode(&self, latents: &Planes, h: usize, w: usize) -> Result<Image> {
        let block = self.codec.block();
        let mut out = Planes::zeros(3, h, w);
        self.in_windows(|side| {
            let [cells, pixels] = [1, block].map(|of| self.windows(latents.height, latents.width, side, of));
            out.data.fill(0.0);
            for i in 0..cells.len() {
                let (mut z, size) = (Vec::new(), cells.size());
                latents.window(cells.corner(i), size, &mut z);
                pixels.add(i, &self.codec.decode(&z, size.0, size.1)?.data, &mut out);
            }
            Ok(())
        })?;
        Image::new(h, w, out.data)
    }

    /// Has `work` done in windows of so many cells, and again in smaller ones where memory is short.
    fn in_windows(&self, mut work: impl FnMut(usize) -> Result<()>) -> Result<()> {
        let mut side = self.window;
        loop {
            match work(side) {
                Err(why @ Error::Memory { .. }) if side > 1 => {
                    side /= 2;
                    let pixels = side * self.codec.block();
                    (self.watch.say)(&format!("{why}; going on with windows of {pixels} pixels"));
                }
                other => return other,
            }
        }
    }

    /// `rows`×`columns` cells in windows of `side`, measured in something of which a cell has `unit`.
    fn windows(&self, rows: usize, columns: usize, side: usize, unit: usize) -> Tiles {
        // Haar's blocks know nothing of each other.
        let overlap = if matches!(self.codec, Codec::Haar(_)) { 0 } else { side / 4 };
        let axis = |len: usize| Axis::cut(unit * len, unit * side, unit * overlap, unit);
        Tiles { rows: axis(rows), columns: axis(columns) }
    }
}

/// The window of this size at `(row, column)`, `image` being continued by reflection.
fn reflected(image: &Image, (y, x): (usize, usize), (h, w): (usize, usize)) -> Image {
    let columns: Vec<usize> = (x..x + w).map(|x| reflect(x, image.width)).collect();
    let mut data = Vec::with_capacity(3 * h * w);
    for plane in image.data.chunks_exact(image.height * image.width) {
        for y in y..y + h {
            let row = &plane[reflect(y, image.height) * image.width..][..image.width];
            data.extend(columns.iter().map(|&x| row[x]));
        }
    }
    Image { height: h, width: w, data }
}

/// Mirror image of index `i` in `0..n` (edges not repeated).
fn reflect(i: usize, n: usize) -> usize {
    if n == 1 {
        return 0;
    }
    let period = 2 * (n - 1);
    let i = i % period;
    i.min(period - i)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// TAEF1 in windows against TAEF1 at once, on a photograph. Both are looked for in `../shared/data`; where they are absent
    /// the test is skipped, and says so.
    #[test]
    fn windows_of_a_network_leave_no_trace() {
        let shared = Path::new("../shared/data");
        let [weights, photo] = ["weights/taef1", "photos/kodak/kodim23.png"].map(|part| shared.join(part));
        if !weights.exists() || !photo.exists() {
            return println!("skipped: {} or {} is not here", weights.display(), photo.display());
        }
        let codec = Codec::open(&weights, &Device::cpu()).unwrap();
        let image = Image::load(&photo).unwrap().crop(200, 0, 64, 768).unwrap();
        let watch = Watch { progress: &|_, _| (), say: &|_| (), stop: &AtomicBool::new(false) };
        let coder = |window: usize| Coder { codec: &codec, window, watch: &watch };
        let (at_once, windows) = (coder(96), coder(WINDOW));
        let latents = at_once.encode(&image, 8, 96).unwrap();
        assert_eq!(latents.data, codec.encode(&image).unwrap());
        let whole = at_once.decode(&latents, 64, 768).unwrap();
        let rms = |other: Image| {
            let squares = whole.data.iter().zip(&other.data).map(|(a, b)| f64::from(a - b).powi(2));
            (squares.sum::<f64>() / whole.data.len() as f64).sqrt()
        };
        // What the rounding to 8 bits takes away is more.
        let level = 1.0 / 255.0 / 12f64.sqrt();
        let back = rms(windows.decode(&latents, 64, 768).unwrap());
        let both = rms(windows.decode(&windows.encode(&image, 8, 96).unwrap(), 64, 768).unwrap());
        println!("{:.2} and {:.2} of a rounding", back / level, both / level);
        assert!(back < level && both < level);
    }

    #[test]
    fn reflection_stays_inside() {
        assert_eq!((0..7).map(|i| reflect(i, 3)).collect::<Vec<_>>(), [0, 1, 2, 1, 0, 1, 2]);
        assert_eq!(reflect(5, 1), 0);
    }
}
