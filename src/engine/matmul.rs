//! Dense f32 matrix products on the CPU, one thread each; callers cut the work into fixed pieces, so the bits of a
//! result depend on the shapes alone, never on the number of threads.

use gemm::Parallelism;
use rayon::prelude::*;

/// A read-only matrix: element (i, j) is `data[i * row + j * col]`.
#[derive(Clone, Copy)]
pub struct Mat<'a> {
    data: &'a [f32],
    row: usize,
    col: usize,
}

impl<'a> Mat<'a> {
    /// Row-major with `row` elements from one row to the next.
    pub fn new(data: &'a [f32], row: usize) -> Self {
        Self { data, row, col: 1 }
    }
    /// The transpose, without a copy.
    pub fn t(self) -> Self {
        Self { data: self.data, row: self.col, col: self.row }
    }
}

/// `out[m×n] = α·(a[m×k] · b[k×n]) + (keep ? out : 0)`, `out` row-major with `ld` elements between its rows.
///
/// # Panics
/// When a slice is too short for its shape.
#[allow(clippy::too_many_arguments, reason = "a matrix product has three shapes and three operands")]
pub fn matmul(
    m: usize,
    k: usize,
    n: usize,
    alpha: f32,
    a: Mat,
    b: Mat,
    out: &mut [f32],
    ld: usize,
    keep: bool,
) {
    if m == 0 || n == 0 {
        return;
    }
    let reach = |rows: usize, cols: usize, r: usize, c: usize| (rows - 1) * r + (cols - 1) * c + 1;
    assert!(out.len() >= reach(m, n, ld, 1) && ld >= n, "matmul: the output is too short for {m}×{n}");
    if k == 0 {
        if !keep {
            (0..m).for_each(|i| out[i * ld..i * ld + n].fill(0.0));
        }
        return;
    }
    assert!(a.data.len() >= reach(m, k, a.row, a.col), "matmul: the left operand is too short for {m}×{k}");
    assert!(b.data.len() >= reach(k, n, b.row, b.col), "matmul: the right operand is too short for {k}×{n}");
    // SAFETY: all three operands were just checked to cover every element addressed; `out` is borrowed mutably, so
    // it cannot overlap the others.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            ld as isize,
            keep,
            a.data.as_ptr(),
            a.col as isize,
            a.row as isize,
            b.data.as_ptr(),
            b.col as isize,
            b.row as isize,
            1.0,
            alpha,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

/// out [columns, rows] = the transpose of `x` [rows, columns]: once for all the products that would each have to turn
/// it to read it.
pub fn transpose(x: &[f32], columns: usize, out: &mut [f32]) {
    /// Side of the tiles turned at a time: a cache line.
    const TILE: usize = 16;
    assert_eq!(x.len(), out.len(), "transpose: both sides have the same values");
    let rows = x.len() / columns.max(1);
    out.par_chunks_mut((TILE * rows).max(1)).enumerate().for_each(|(band, out)| {
        for first in (0..rows).step_by(TILE) {
            let mut tile = [[0f32; TILE]; TILE];
            let height = TILE.min(rows - first);
            let width = out.len() / rows;
            for (r, tile) in tile[..height].iter_mut().enumerate() {
                tile[..width].copy_from_slice(&x[(first + r) * columns + band * TILE..][..width]);
            }
            for (c, out) in out.chunks_exact_mut(rows).enumerate() {
                out[first..first + height].iter_mut().zip(&tile).for_each(|(o, row)| *o = row[c]);
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Philox;

    #[test]
    fn transpose_turns_every_element() {
        for (rows, columns) in [(0, 3), (1, 5), (7, 16), (3, 37)] {
            let x: Vec<f32> = (0..rows * columns).map(|v| v as f32).collect();
            let mut out = vec![-1.0; x.len()];
            transpose(&x, columns, &mut out);
            assert!((0..x.len()).all(|i| out[i % columns * rows + i / columns] == x[i]));
        }
    }

    #[test]
    fn agrees_with_the_definition_in_every_orientation() {
        let (m, k, n, ld) = (5, 7, 3, 4);
        let mut x = vec![0f32; m * k + k * n + m * ld];
        Philox::new(1, 0).normals(0, &mut x);
        let (a, rest) = x.split_at(m * k);
        let (b, c) = rest.split_at(k * n);
        for (ta, tb, keep) in
            [(false, false, false), (true, false, true), (false, true, true), (true, true, false)]
        {
            let left = if ta { Mat::new(a, m).t() } else { Mat::new(a, k) };
            let right = if tb { Mat::new(b, k).t() } else { Mat::new(b, n) };
            let mut out = c.to_vec();
            matmul(m, k, n, 0.5, left, right, &mut out, ld, keep);
            for i in 0..m {
                for j in 0..n {
                    let dot: f32 = (0..k)
                        .map(|p| {
                            let l = if ta { a[p * m + i] } else { a[i * k + p] };
                            l * if tb { b[j * k + p] } else { b[p * n + j] }
                        })
                        .sum();
                    let want = 0.5 * dot + if keep { c[i * ld + j] } else { 0.0 };
                    assert!((out[i * ld + j] - want).abs() < 1e-5);
                }
                assert_eq!(
                    out[i * ld + n..(i + 1) * ld],
                    c[i * ld + n..(i + 1) * ld],
                    "the gap is untouched"
                );
            }
        }
    }
}
