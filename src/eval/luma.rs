//! The Y of ITU-R BT.601, "studio swing".

use crate::data::Image;

/// `(65.481 R + 128.553 G + 24.966 B + 16) / 255`, `[height, width]`, in 16/255…235/255 for a picture in [0, 1].
pub fn luma(image: &Image) -> Vec<f64> {
    each(image, |r, g, b| (65.481 * exact(r) + 128.553 * exact(g) + 24.966 * exact(b) + 16.0) / 255.0)
}

/// The sixteen bits (or eight, which are some of them) that a file's value was read from: as f32 it is a little off, and
/// where a spectrum is nearly empty, that would be seen.
pub fn exact(v: f32) -> f64 {
    (f64::from(v) * 65535.0).round() / 65535.0
}

/// [`luma`] rounded to whole levels of 255, half to even. Computed in f32 and in pyiqa's order: where Y lies midway
/// between two levels, the rounding of the arithmetic decides.
pub fn rounded_luma(image: &Image) -> Vec<f64> {
    each(image, |r, g, b| {
        let y = (65.481f32 * r + 128.553 * g + 24.966 * b + 16.0) / 255.0;
        f64::from((y * 255.0).round_ties_even()) / 255.0
    })
}

fn each(image: &Image, y: impl Fn(f32, f32, f32) -> f64) -> Vec<f64> {
    let (r, g, b) = (image.plane(0), image.plane(1), image.plane(2));
    r.iter().zip(g).zip(b).map(|((&r, &g), &b)| y(r, g, b)).collect()
}
