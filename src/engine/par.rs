//! Cutting buffers into pieces that threads may write at once: rows, and column bands (attention heads).

use std::marker::PhantomData;

/// A band of `width` columns of a row-major matrix, writable independently of the other bands.
pub struct Columns<'a> {
    base: *mut f32,
    rows: usize,
    stride: usize,
    width: usize,
    _buffer: PhantomData<&'a mut [f32]>,
}

// SAFETY: a band owns its elements exclusively for 'a; f32 has no thread affinity.
unsafe impl Send for Columns<'_> {}
// SAFETY: `&Columns` gives read access only.
unsafe impl Sync for Columns<'_> {}

impl Columns<'_> {
    /// Row `r` of the band.
    pub fn row(&mut self, r: usize) -> &mut [f32] {
        assert!(r < self.rows, "row {r} of a band of {}", self.rows);
        // SAFETY: in bounds by `columns`' check; bands do not overlap; `&mut self` makes the row unique.
        unsafe { std::slice::from_raw_parts_mut(self.base.add(r * self.stride), self.width) }
    }
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }
}

/// The bands of every `[rows, bands·width]` matrix stacked in `buffer`: matrix by matrix, band by band.
///
/// # Panics
/// When `buffer` is not a whole number of such matrices.
pub fn columns(buffer: &mut [f32], rows: usize, bands: usize, width: usize) -> Vec<Columns<'_>> {
    strips(buffer, rows, bands * width, width)
}

/// The bands of `width` columns, the last of what is left, of every `[rows, stride]` matrix stacked in `buffer`.
///
/// # Panics
/// When `buffer` is not a whole number of such matrices.
pub fn strips(buffer: &mut [f32], rows: usize, stride: usize, width: usize) -> Vec<Columns<'_>> {
    let matrix = rows * stride;
    if matrix == 0 {
        return Vec::new();
    }
    assert!(
        buffer.len().is_multiple_of(matrix),
        "{} values are not whole {rows}×{stride} matrices",
        buffer.len()
    );
    let base = buffer.as_mut_ptr();
    (0..buffer.len() / matrix)
        .flat_map(|m| (0..stride).step_by(width).map(move |first| (m, first)))
        .map(|(m, first)| {
            // SAFETY: m and first stay inside the buffer; distinct bands address distinct elements.
            let base = unsafe { base.add(m * matrix + first) };
            Columns { base, rows, stride, width: width.min(stride - first), _buffer: PhantomData }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bands_tile_the_buffer() {
        let mut x = vec![0f32; 2 * 3 * 4];
        for (i, mut band) in columns(&mut x, 3, 2, 2).into_iter().enumerate() {
            for r in 0..band.rows() {
                band.row(r).iter_mut().for_each(|v| *v += (i * 10 + r) as f32 + 1.0);
            }
        }
        assert_eq!(&x[..8], [1., 1., 11., 11., 2., 2., 12., 12.]);
        assert_eq!(&x[20..], [23., 23., 33., 33.]);
    }

    #[test]
    fn the_last_band_is_what_is_left() {
        let mut x = vec![0f32; 2 * 2 * 5];
        for (i, mut band) in strips(&mut x, 2, 5, 3).into_iter().enumerate() {
            (0..band.rows()).for_each(|r| band.row(r).fill(i as f32 + 1.0));
        }
        assert_eq!(x, [1., 1., 1., 2., 2., 1., 1., 1., 2., 2., 3., 3., 3., 4., 4., 3., 3., 3., 4., 4.]);
    }
}
