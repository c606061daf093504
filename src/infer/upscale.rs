//! A whole image of any size: overlapping tiles of the size the model was trained at, blended with linear ramps.

use super::model::{Model, SCALE};
use crate::Result;
use crate::data::Image;
use crate::engine::Device;

/// How an image is cut up, in low-quality pixels.
#[derive(Clone, Copy, Debug)]
pub struct Tiling {
    /// Side of a tile.
    pub tile: usize,
    /// Pixels that neighbours share.
    pub overlap: usize,
    /// Tiles per forward pass.
    pub batch: usize,
}

/// Restores `lq` ×4 with `steps` Euler steps per tile. Images smaller than a tile, or that the codec's cells do not divide,
/// are padded by reflection and cut back.
/// `progress` is told tiles done and in all.
pub fn upscale(
    model: &Model,
    lq: &Image,
    tiling: Tiling,
    steps: usize,
    device: &Device,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Image> {
    let Tiling { tile, overlap, batch } = tiling;
    // A latent cell is `block` high-quality pixels: tiles begin where cells do.
    let block = model.codec.block();
    let cell = block.div_ceil(SCALE);
    let [h, w] = [lq.height, lq.width].map(|side| side.max(tile).next_multiple_of(cell));
    let padded =
        Image::from_fn(h, w, |c, y, x| lq.plane(c)[reflect(y, lq.height) * lq.width + reflect(x, lq.width)]);
    let step = tile.saturating_sub(overlap) / cell * cell;
    let corners: Vec<(usize, usize)> = starts(h, tile, step)
        .into_iter()
        .flat_map(|y| starts(w, tile, step).into_iter().map(move |x| (y, x)))
        .collect();
    let (oh, ow, side) = (h * SCALE, w * SCALE, tile * SCALE);
    let mut sum = Image::zeros(oh, ow);
    let mut weight = vec![0f32; oh * ow];
    let ramp = ramp(side, overlap * SCALE);
    let mut done = 0;
    for group in corners.chunks(batch.max(1)) {
        let tiles = group.iter().map(|&(y, x)| padded.crop(y, x, tile, tile)).collect::<Result<Vec<_>>>()?;
        let cells: Vec<_> = group.iter().map(|&(y, x)| (y * SCALE / block, x * SCALE / block)).collect();
        for (restored, &(y, x)) in model.restore(&tiles, &cells, steps, device)?.iter().zip(group) {
            for r in 0..side {
                for q in 0..side {
                    let (at, k) = ((y * SCALE + r) * ow + x * SCALE + q, ramp[r] * ramp[q]);
                    weight[at] += k;
                    for c in 0..3 {
                        sum.data[c * oh * ow + at] += k * restored.data[c * side * side + r * side + q];
                    }
                }
            }
        }
        done += group.len();
        progress(done, corners.len());
    }
    for plane in sum.data.chunks_exact_mut(oh * ow) {
        plane.iter_mut().zip(&weight).for_each(|(v, k)| *v /= k);
    }
    sum.crop(0, 0, lq.height * SCALE, lq.width * SCALE)
}

/// Where tiles begin: `step` apart, the last flush with the end.
fn starts(len: usize, tile: usize, step: usize) -> Vec<usize> {
    let mut at: Vec<usize> = (0..=len - tile).step_by(step.max(1)).collect();
    if at.last() != Some(&(len - tile)) {
        at.push(len - tile);
    }
    at
}

/// Weight of a tile's pixels along one axis: rises over the overlap at both ends, never 0.
fn ramp(side: usize, overlap: usize) -> Vec<f32> {
    let rise = |i: usize| ((i + 1) as f32 / (overlap + 1) as f32).min(1.0);
    (0..side).map(|i| rise(i).min(rise(side - 1 - i))).collect()
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

    #[test]
    fn tiles_cover_everything_and_reach_the_end() {
        for len in 16..90 {
            let at = starts(len, 16, 12);
            assert_eq!((at[0], at[at.len() - 1]), (0, len - 16));
            assert!(at.windows(2).all(|p| p[1] > p[0] && p[1] - p[0] <= 12));
        }
    }

    #[test]
    fn reflection_stays_inside() {
        assert_eq!((0..7).map(|i| reflect(i, 3)).collect::<Vec<_>>(), [0, 1, 2, 1, 0, 1, 2]);
        assert_eq!(reflect(5, 1), 0);
    }
}
