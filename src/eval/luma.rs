//! The Y of ITU-R BT.601, "studio swing".

use crate::data::Image;

/// `(65.481 R + 128.553 G + 24.966 B + 16) / 255`, `[height, width]`, in 16/255…235/255 for a picture in [0, 1].
pub fn luma(image: &Image) -> Vec<f64> {
    let (r, g, b) = (image.plane(0), image.plane(1), image.plane(2));
    let y = |((&r, &g), &b): ((&f32, &f32), &f32)| {
        (65.481 * f64::from(r) + 128.553 * f64::from(g) + 24.966 * f64::from(b) + 16.0) / 255.0
    };
    r.iter().zip(g).zip(b).map(y).collect()
}
