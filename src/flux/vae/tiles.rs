//! A large picture in overlapping tiles, blended with linear ramps.

use crate::Result;
use crate::engine::{Device, Tensor};
use std::ops::Range;

/// How a picture that is too large to be computed whole is cut, in pixels; each a multiple of a latent's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiling {
    /// Side of a tile, and of the largest picture that is no tiles.
    pub side: usize,
    /// Pixels that neighbours share, at least.
    pub overlap: usize,
}

impl Default for Tiling {
    fn default() -> Self {
        Self { side: 768, overlap: 192 }
    }
}

impl Tiling {
    /// `f` of `x` `[1, C, h·from, w·from]`, made of tiles where a side is too long; f makes `[1, C′, h·to, w·to]` of
    /// `[1, C, h·from, w·from]` of any h and w. `cells` is \[h, w\] and `[from, to]` how many values a cell has along
    /// a side.
    ///
    /// A normalisation sees its tile alone, so tiles differ in tone by what that does; ramps over what neighbours share turn
    /// the step between them into a slope.
    pub(super) fn run(
        self,
        x: &Tensor,
        cells: [usize; 2],
        [from, to]: [usize; 2],
        device: &Device,
        f: impl Fn(&Tensor) -> Result<Tensor>,
    ) -> Result<Vec<f32>> {
        let block = from.max(to);
        let (side, overlap) = ((self.side / block).max(1), self.overlap / block);
        if cells.iter().all(|&n| n <= side) {
            return f(&x.to(device)?)?.values();
        }
        let (channels, values) = (x.shape()[1], x.values()?);
        let [high, wide] = cells.map(|n| n * to);
        let plane = high * wide;
        let (mut sum, mut weight) = (Vec::new(), vec![0f32; plane]);
        for rows in spans(cells[0], side, overlap) {
            for columns in spans(cells[1], side, overlap) {
                let [r, c] = [&rows, &columns].map(|s| s.start * from..s.end * from);
                let lines = (0..channels).flat_map(|p| r.clone().map(move |y| p * cells[0] * from + y));
                let tile: Vec<f32> =
                    lines.flat_map(|line| &values[line * cells[1] * from..][c.clone()]).copied().collect();
                let y = f(&Tensor::from_slice(device, &[1, channels, r.len(), c.len()], &tile)?)?;
                sum.resize(y.shape()[1] * plane, 0.0);
                let [r, c] = [&rows, &columns].map(|s| s.start * to..s.end * to);
                let [ramp_r, ramp_c] = [&r, &c].map(|s| ramp(s.len(), overlap * to));
                for (i, line) in y.values()?.chunks_exact(c.len()).enumerate() {
                    let (p, row) = (i / r.len(), i % r.len());
                    let at = (r.start + row) * wide + c.start;
                    let shares = ramp_c.iter().map(|k| k * ramp_r[row]);
                    let sums = sum[p * plane + at..].iter_mut().zip(line);
                    sums.zip(shares.clone()).for_each(|((s, v), k)| *s += k * v);
                    if p == 0 {
                        weight[at..].iter_mut().zip(shares).for_each(|(w, k)| *w += k);
                    }
                }
            }
        }
        for plane in sum.chunks_exact_mut(plane) {
            plane.iter_mut().zip(&weight).for_each(|(v, k)| *v /= k);
        }
        Ok(sum)
    }
}

/// Tiles along one side: as few as there can be, evenly spread.
fn spans(len: usize, side: usize, overlap: usize) -> Vec<Range<usize>> {
    let side = side.min(len);
    let step = side.saturating_sub(overlap).max(1);
    let gaps = (len - side).div_ceil(step);
    let start = |i: usize| (i * (len - side)).checked_div(gaps).unwrap_or(0);
    (0..=gaps).map(|i| start(i)..start(i) + side).collect()
}

/// Weight of a tile's values along one side: rises over the overlap at both ends, never 0.
fn ramp(len: usize, overlap: usize) -> Vec<f32> {
    let rise = |i: usize| ((i + 1) as f32 / (overlap + 1) as f32).min(1.0);
    (0..len).map(|i| rise(i).min(rise(len - 1 - i))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_everything_and_share_enough() {
        for len in 1..90 {
            let all = spans(len, 16, 5);
            assert_eq!((all[0].start, all[all.len() - 1].end), (0, len));
            assert!(all.iter().all(|s| s.len() == len.min(16)));
            assert!(all.windows(2).all(|p| p[1].start > p[0].start && p[0].end >= p[1].start + 5), "{all:?}");
            assert_eq!(all.len(), if len <= 16 { 1 } else { 1 + (len - 16).div_ceil(11) });
        }
        assert_eq!(spans(5, 2, 2), [0..2, 1..3, 2..4, 3..5]);
    }

    /// What depends on a value and nothing beside it is the same in tiles.
    #[test]
    fn tiles_of_a_pointwise_function_are_the_whole() {
        let cpu = Device::cpu();
        let (h, w) = (7, 11);
        let x: Vec<f32> = (0..2 * h * w).map(|v| v as f32).collect();
        let x = Tensor::from_slice(&cpu, &[1, 2, h, w], &x).unwrap();
        // Every cell twice along both sides, a second plane with its double.
        let f = |x: &Tensor| {
            let &[_, c, h, w] = x.shape() else { unreachable!() };
            let at =
                |p: usize, i: usize, j: usize| (1 + p / c) as f32 * x.f32()[(p % c * h + i / 2) * w + j / 2];
            let places =
                (0..2 * c * 4 * h * w).map(|k| at(k / (4 * h * w), k / (2 * w) % (2 * h), k % (2 * w)));
            Tensor::from_slice(&cpu, &[1, 2 * c, 2 * h, 2 * w], &places.collect::<Vec<_>>())
        };
        let run = |side| Tiling { side, overlap: 4 }.run(&x, [h, w], [1, 2], &cpu, f).unwrap();
        for (whole, tiled) in run(100).into_iter().zip(run(8)) {
            assert!((whole - tiled).abs() <= 2e-7 * whole.abs() * 4.0, "{tiled}, wanted {whole}");
        }
    }
}
