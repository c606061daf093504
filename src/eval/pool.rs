//! The poolings of the metrics' networks, on `[B, C, H, W]` in host memory: windows of 3×3 or 2×2, two apart.

use rayon::prelude::*;

use crate::engine::Tensor;
use crate::{Error, Result};

/// How a stage of a network halves its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pool {
    /// The largest value of each window of this side that fits.
    Max(usize),
    /// The root of the squares' mean under a 3×3 Hann window, zeros beyond the edges (DISTS).
    L2,
}

impl Pool {
    /// `[B, C, H, W]` → `[B, C, H', W']`.
    pub(super) fn apply(self, x: &Tensor) -> Result<Tensor> {
        let &[b, c, h, w] = x.shape() else {
            return Err(Error::shape("pool", format!("{x:?}: wanted [batch, channels, height, width]")));
        };
        let halved = |side: usize| match self {
            Self::Max(window) => side.checked_sub(window).map(|room| room / 2 + 1),
            Self::L2 => Some(side.div_ceil(2)),
        };
        let (Some(oh), Some(ow)) = (halved(h), halved(w)) else {
            return Err(Error::shape("pool", format!("{self:?} of planes of {h}×{w}")));
        };
        let mut y = Tensor::empty(x.device(), &[b, c, oh, ow])?;
        if y.is_empty() {
            return Ok(y);
        }
        let planes = y.f32_mut().par_chunks_exact_mut(oh * ow).zip(x.f32().par_chunks_exact(h * w));
        planes.for_each(|(y, x)| match self {
            Self::Max(window) => max(x, w, window, y, ow),
            Self::L2 => root_mean_square(x, (h, w), y, ow),
        });
        Ok(y)
    }
}

fn max(x: &[f32], w: usize, window: usize, y: &mut [f32], ow: usize) {
    for (i, row) in y.chunks_exact_mut(ow).enumerate() {
        row.fill(f32::NEG_INFINITY);
        for line in x[2 * i * w..].chunks(w).take(window) {
            for (y, window) in row.iter_mut().zip(line.windows(window).step_by(2)) {
                *y = window.iter().copied().fold(*y, f32::max);
            }
        }
    }
}

fn root_mean_square(x: &[f32], (h, w): (usize, usize), y: &mut [f32], ow: usize) {
    /// Of the rows and columns before, at and after the middle.
    const HANN: [f32; 3] = [0.25, 0.5, 0.25];
    for (i, row) in y.chunks_exact_mut(ow).enumerate() {
        row.fill(1e-12);
        // Row 2i + u − 1 of x, where it is.
        for (u, down) in HANN.iter().enumerate().filter(|(u, _)| (1..=h).contains(&(2 * i + u))) {
            let line = &x[(2 * i + u - 1) * w..][..w];
            let square = |q: usize| line.get(q).map_or(0.0, |v| v * v);
            for (j, y) in row.iter_mut().enumerate() {
                let before = if j == 0 { 0.0 } else { square(2 * j - 1) };
                *y += down * (HANN[0] * before + HANN[1] * square(2 * j) + HANN[2] * square(2 * j + 1));
            }
        }
        row.iter_mut().for_each(|y| *y = y.sqrt());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Device;

    fn planes(h: usize, w: usize) -> Tensor {
        let values: Vec<f32> = (0..2 * h * w).map(|i| ((7 * i * i + 3) % 23) as f32 - 11.0).collect();
        Tensor::from_slice(&Device::cpu_poisoned(), &[1, 2, h, w], &values).unwrap()
    }

    /// Every window of every pooling, value by value, at even and odd sizes.
    #[test]
    fn windows_are_two_apart() {
        for (h, w) in [(4, 6), (5, 7), (7, 4), (3, 3)] {
            let x = planes(h, w);
            let at = |c: usize, i: isize, j: isize| {
                let inside = i >= 0 && j >= 0 && i < h as isize && j < w as isize;
                inside.then(|| x.f32()[(c * h + i as usize) * w + j as usize])
            };
            for (pool, from) in [(Pool::Max(2), 0), (Pool::Max(3), 0), (Pool::L2, -1)] {
                let y = pool.apply(&x).unwrap();
                let &[_, _, oh, ow] = y.shape() else { unreachable!("four extents") };
                let side =
                    |n: usize| if pool == Pool::L2 { n.div_ceil(2) } else { (n - window(pool)) / 2 + 1 };
                assert_eq!((oh, ow), (side(h), side(w)));
                for (k, &got) in y.f32().iter().enumerate() {
                    let (c, i, j) = (k / (oh * ow), (k / ow % oh) as isize, (k % ow) as isize);
                    let cells = (0..window(pool) as isize)
                        .flat_map(|u| (0..window(pool) as isize).map(move |v| (u, v)));
                    let want = match pool {
                        Pool::L2 => {
                            let weight = |u: isize| if u == 1 { 0.5 } else { 0.25 };
                            let terms = cells.filter_map(|(u, v)| {
                                let x = at(c, 2 * i + u + from, 2 * j + v + from)?;
                                Some(weight(u) * weight(v) * x * x)
                            });
                            (terms.sum::<f32>() + 1e-12).sqrt()
                        }
                        Pool::Max(_) => {
                            cells.map(|(u, v)| at(c, 2 * i + u, 2 * j + v).unwrap()).fold(f32::MIN, f32::max)
                        }
                    };
                    assert!((got - want).abs() < 1e-5, "{pool:?} {h}×{w} at {k}: {got}, wanted {want}");
                }
            }
        }
        assert!(Pool::Max(3).apply(&planes(2, 8)).is_err());
    }

    fn window(pool: Pool) -> usize {
        match pool {
            Pool::Max(side) => side,
            Pool::L2 => 3,
        }
    }
}
