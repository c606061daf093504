//! Overlapping tiles: where they lie, and how what was made of them is blended.
//!
//! An axis is cut into pieces of equal length, evenly spread. A piece counts by a cosine ramp over the overlap at both of its
//! ends, divided by the sum of all pieces' ramps: at every place weights sum to 1, and what only one piece covers is that
//! piece's, to the bit.

use std::f64::consts::PI;

/// One axis, cut up.
pub(super) struct Axis {
    /// Where pieces begin.
    pub starts: Vec<usize>,
    /// Length of each.
    pub size: usize,
    /// Weights of each piece's places.
    weights: Vec<Vec<f32>>,
}

impl Axis {
    /// `len` places in pieces of `size` (or one of `len`) that share `overlap` places at least and begin at multiples of
    /// `unit`; `len`, `size` and `overlap` are such multiples, too, and `overlap` is less than `size`.
    pub fn cut(len: usize, size: usize, overlap: usize, unit: usize) -> Self {
        let size = size.min(len);
        let pieces = if size == len { 1 } else { (len - overlap).div_ceil(size - overlap) };
        let start = |i: usize| i * (len - size) / (pieces - 1).max(1) / unit * unit;
        let starts: Vec<usize> = (0..pieces).map(start).collect();
        let ramp = |i: usize| match i {
            _ if i < overlap => 0.5 - 0.5 * (PI * (i as f64 + 0.5) / overlap as f64).cos(),
            _ => 1.0,
        };
        let window: Vec<f64> = (0..size).map(|i| ramp(i).min(ramp(size - 1 - i))).collect();
        let mut sums = vec![0.0; len];
        for start in &starts {
            sums[*start..].iter_mut().zip(&window).for_each(|(sum, w)| *sum += w);
        }
        let of =
            |start: &usize| window.iter().zip(&sums[*start..]).map(|(w, sum)| (w / sum) as f32).collect();
        Self { weights: starts.iter().map(of).collect(), starts, size }
    }
}

/// A plane cut up on both axes.
pub(super) struct Tiles {
    pub rows: Axis,
    pub columns: Axis,
}

impl Tiles {
    pub fn len(&self) -> usize {
        self.rows.starts.len() * self.columns.starts.len()
    }

    /// Row and column of tile `i`'s corner.
    pub fn corner(&self, i: usize) -> (usize, usize) {
        let across = self.columns.starts.len();
        (self.rows.starts[i / across], self.columns.starts[i % across])
    }

    /// Height and width of a tile.
    pub fn size(&self) -> (usize, usize) {
        (self.rows.size, self.columns.size)
    }

    /// Adds what was made of tile `i`, weighted; what reaches beyond `sum` is left out.
    pub fn add(&self, i: usize, made: &[f32], sum: &mut Planes) {
        let (across, (y, x), (h, w)) = (self.columns.starts.len(), self.corner(i), self.size());
        let (down, along) = (&self.rows.weights[i / across], &self.columns.weights[i % across]);
        let rows = h.min(sum.height.saturating_sub(y));
        let Planes { height, width, data } = sum;
        for (c, plane) in data.chunks_exact_mut(*height * *width).enumerate() {
            for (r, &k) in down[..rows].iter().enumerate() {
                let from = &made[(c * h + r) * w..][..w];
                let to = plane[(y + r) * *width..][..*width].iter_mut().skip(x);
                to.zip(from.iter().zip(along)).for_each(|(v, (&m, &l))| *v += k * l * m);
            }
        }
    }
}

/// Values `[channels, height, width]`.
pub(super) struct Planes {
    pub height: usize,
    pub width: usize,
    pub data: Vec<f32>,
}

impl Planes {
    pub fn zeros(channels: usize, height: usize, width: usize) -> Self {
        Self { height, width, data: vec![0.0; channels * height * width] }
    }

    /// The window of this size at `(row, column)`, appended to `out`.
    pub fn window(&self, (y, x): (usize, usize), (h, w): (usize, usize), out: &mut Vec<f32>) {
        for plane in self.data.chunks_exact(self.height * self.width) {
            (y..y + h).for_each(|row| out.extend_from_slice(&plane[row * self.width + x..][..w]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_the_axis_and_weights_sum_to_one() {
        for unit in [1, 2] {
            for (size, overlap) in [(8, 0), (8, 2), (8, 4), (8, 6), (16, 4), (2, 0)] {
                for len in (unit..90).step_by(unit) {
                    let axis = Axis::cut(len, size, overlap, unit);
                    assert_eq!((axis.starts[0], axis.starts[axis.starts.len() - 1] + axis.size), (0, len));
                    assert!(axis.starts.iter().all(|s| s.is_multiple_of(unit)));
                    let apart = axis.starts.windows(2).map(|p| p[1] - p[0]);
                    assert!(
                        apart.into_iter().all(|d| d > 0 && d <= size - overlap),
                        "{len} {size} {overlap}"
                    );
                    let mut sums = vec![0f32; len];
                    for (start, weights) in axis.starts.iter().zip(&axis.weights) {
                        assert!(weights.iter().all(|w| *w > 0.0));
                        sums[*start..].iter_mut().zip(weights).for_each(|(sum, w)| *sum += w);
                    }
                    // Two or three weights, each rounded once, and their sum.
                    assert!(
                        sums.iter().all(|sum| (sum - 1.0).abs() <= 3.0 * f32::EPSILON),
                        "{len} {size} {overlap}"
                    );
                }
            }
        }
    }

    /// Tiles that differ by a constant each, as a model's do: side by side they make a step as high as their difference,
    /// blended one that is no steeper than the cosine, π/2 of the mean slope over the overlap.
    #[test]
    fn what_tiles_disagree_about_is_spread_over_the_overlap() {
        let (n, size) = (80, 16);
        let bias = |i: usize| if i.is_multiple_of(2) { 0.0 } else { 1.0 };
        let steepest = |overlap: usize| {
            let cut = || Axis::cut(n, size, overlap, 2);
            let tiles = Tiles { rows: cut(), columns: cut() };
            let mut sum = Planes::zeros(1, n, n);
            (0..tiles.len()).for_each(|i| tiles.add(i, &vec![bias(i); size * size], &mut sum));
            let row = &sum.data[..n];
            row.windows(2).map(|p| (p[1] - p[0]).abs()).fold(0.0, f32::max)
        };
        assert_eq!(steepest(0), 1.0);
        for overlap in [4, 8] {
            let most = std::f32::consts::FRAC_PI_2 / overlap as f32;
            assert!(steepest(overlap) <= most + 1e-6, "{overlap}: {} of {most}", steepest(overlap));
        }
    }

    #[test]
    fn tiles_of_a_plane_blend_back_to_it() {
        let (h, w) = (14, 22);
        let plane =
            Planes { height: h, width: w, data: (0..2 * h * w).map(|i| (i as f32 * 0.37).sin()).collect() };
        let tiles = Tiles { rows: Axis::cut(h, 8, 2, 2), columns: Axis::cut(w, 8, 4, 2) };
        // A sum that is smaller than what is added to it.
        let (mut whole, mut part) = (Planes::zeros(2, h, w), Planes::zeros(2, h - 3, w - 9));
        for i in 0..tiles.len() {
            let mut tile = Vec::new();
            plane.window(tiles.corner(i), tiles.size(), &mut tile);
            tiles.add(i, &tile, &mut whole);
            tiles.add(i, &tile, &mut part);
        }
        let close = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 8.0 * f32::EPSILON);
        assert!(close(&whole.data, &plane.data));
        let mut cut = Vec::new();
        whole.window((0, 0), (h - 3, w - 9), &mut cut);
        assert_eq!(part.data, cut);
    }
}
