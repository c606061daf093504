//! Filtering a picture, reflected at its edges without repeating the edge pixel.

use crate::data::Image;
use crate::engine::pixels::correlate;

/// `img` correlated with `weights`, `size`×`size` taps row by row (`size` odd).
pub fn filter(img: &Image, weights: &[f64], size: usize) -> Image {
    let weights: Vec<f32> = weights.iter().map(|&w| w as f32).collect();
    by_plane(img, |from, to| {
        let (padded, stride) = padded(from, img.height, img.width, size / 2, size / 2);
        correlate(&padded, stride, &weights, size, 1, img.width, to);
    })
}

/// `img` correlated with the product of `axis` and itself: down the columns, then along the rows.
pub fn separable(img: &Image, axis: &[f64]) -> Image {
    let axis: Vec<f32> = axis.iter().map(|&w| w as f32).collect();
    by_plane(img, |from, to| blur_plane(from, img.height, img.width, &axis, to))
}

/// One plane of [`separable`].
pub(super) fn blur_plane(from: &[f32], h: usize, w: usize, axis: &[f32], to: &mut [f32]) {
    let (size, r) = (axis.len(), axis.len() / 2);
    let (tall, _) = padded(from, h, w, r, 0);
    correlate(&tall, w, axis, size, w, w, to);
    let (wide, stride) = padded(to, h, w, 0, r);
    correlate(&wide, stride, axis, size, 1, w, to);
}

fn by_plane(img: &Image, filter: impl Fn(&[f32], &mut [f32])) -> Image {
    let mut out = Image::zeros(img.height, img.width);
    let plane = img.height * img.width;
    if plane > 0 {
        out.data
            .chunks_exact_mut(plane)
            .zip(img.data.chunks_exact(plane))
            .for_each(|(to, from)| filter(from, to));
    }
    out
}

/// A plane with `down` rows above and below it and `across` columns on either side, reflected; and its width.
fn padded(from: &[f32], h: usize, w: usize, down: usize, across: usize) -> (Vec<f32>, usize) {
    let stride = w + 2 * across;
    let mut out = Vec::with_capacity((h + 2 * down) * stride);
    for y in 0..h + 2 * down {
        let row = &from[reflect(y as i64 - down as i64, h) * w..][..w];
        out.extend((0..across).map(|x| row[reflect(x as i64 - across as i64, w)]));
        out.extend_from_slice(row);
        out.extend((0..across).map(|x| row[reflect((w + x) as i64, w)]));
    }
    (out, stride)
}

/// Index `i` folded into `0..n` by reflection about the first and last sample.
pub(in crate::data) fn reflect(i: i64, n: usize) -> usize {
    let period = 2 * (n as i64 - 1);
    if period == 0 {
        return 0;
    }
    let i = i.rem_euclid(period);
    i.min(period - i) as usize
}

#[cfg(test)]
mod tests {
    use super::super::kernels::gaussian;
    use super::*;

    #[test]
    fn reflection_does_not_repeat_the_edge() {
        assert_eq!((-4..8).map(|i| reflect(i, 4)).collect::<Vec<_>>(), [2, 3, 2, 1, 0, 1, 2, 3, 2, 1, 0, 1]);
        assert_eq!((-3..3).map(|i| reflect(i, 1)).sum::<usize>(), 0);
    }

    /// Correlation, not convolution, and edges reflected: worked out tap by tap, in f64.
    #[test]
    fn filtering_is_its_definition() {
        let img = Image::from_fn(6, 9, |c, y, x| ((c * 31 + y * 17 + x * 7) % 23) as f32 / 23.0);
        for size in [1, 3, 7, 15] {
            let weights: Vec<f64> = (0..size * size).map(|i| (i as f64 * 0.7).sin() / size as f64).collect();
            let got = filter(&img, &weights, size);
            let r = (size / 2) as i64;
            let want = Image::from_fn(6, 9, |c, y, x| {
                let tap = |i: usize| {
                    let (dy, dx) = ((i / size) as i64 - r, (i % size) as i64 - r);
                    let at = reflect(y as i64 + dy, 6) * 9 + reflect(x as i64 + dx, 9);
                    weights[i] * f64::from(img.plane(c)[at])
                };
                (0..size * size).map(tap).sum::<f64>() as f32
            });
            let worst = got.data.iter().zip(&want.data).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            // each product and sum is rounded once
            let bound = weights.iter().map(|w| w.abs()).sum::<f64>() as f32 * weights.len() as f32 * 6e-8;
            assert!(worst <= bound, "{size}: {worst:e} > {bound:e}");
        }
    }

    #[test]
    fn a_product_of_axes_is_filtered_axis_by_axis() {
        let img = Image::from_fn(12, 10, |c, y, x| ((c * 5 + y * 3 + x * x) % 11) as f32 / 11.0);
        let axis = gaussian(9, 1.3);
        let weights: Vec<f64> = (0..81).map(|i| axis[i / 9] * axis[i % 9]).collect();
        let (a, b) = (separable(&img, &axis), filter(&img, &weights, 9));
        assert!(a.data.iter().zip(&b.data).all(|(a, b)| (a - b).abs() < 1e-6));
    }
}
