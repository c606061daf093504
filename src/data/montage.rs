//! Comparison pictures: rows of images side by side, one label above each column.

use crate::data::resize::nearest;
use crate::data::{Image, font};
use crate::{Error, Result};

/// Ground and ink of the picture, as grey levels.
const GROUND: f32 = 1.0;
const INK: f32 = 0.1;

/// Puts `rows` of pictures into one, `gap` white pixels between and around them, `labels[k]` above column `k`.
///
/// Every cell has the size of the largest picture times `scale`; smaller ones (the low-quality input) are enlarged by
/// nearest neighbour, so that their pixels stay visible. Labels are set in the largest letters (up to 3×) that fit a
/// cell and are cut off where they do not fit; with no labels there is no label band.
pub fn montage(rows: &[Vec<&Image>], labels: &[&str], gap: usize, scale: usize) -> Result<Image> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let largest = |side: fn(&Image) -> usize| rows.iter().flatten().map(|i| side(i)).max().unwrap_or(0);
    let (h, w) = (scale * largest(|i| i.height), scale * largest(|i| i.width));
    if h == 0 || w == 0 {
        return Err(Error::shape("montage", "nothing to show: no picture, an empty one, or scale 0"));
    }
    if labels.len() > columns {
        let n = labels.len();
        return Err(Error::shape("montage", format!("{n} labels for {columns} columns")));
    }
    let longest = labels.iter().map(|l| l.chars().count()).max().unwrap_or(0);
    let letter = if longest == 0 { 0 } else { (w / (longest * (font::WIDTH + 1))).clamp(1, 3) };
    let band = if longest == 0 { 0 } else { letter * font::HEIGHT + gap };
    let mut out = Image::zeros(gap + band + rows.len() * (h + gap), gap + columns * (w + gap));
    out.data.fill(GROUND);
    let left = |column: usize| gap + column * (w + gap);
    for (column, label) in labels.iter().enumerate() {
        write(&mut out, label, (gap, left(column)), w, letter);
    }
    for (r, row) in rows.iter().enumerate() {
        for (c, picture) in row.iter().enumerate() {
            paste(&mut out, &nearest(picture, h, w), gap + band + r * (h + gap), left(c));
        }
    }
    Ok(out)
}

fn paste(out: &mut Image, cell: &Image, top: usize, left: usize) {
    for c in 0..3 {
        for y in 0..cell.height {
            let to = (c * out.height + top + y) * out.width + left;
            let from = (c * cell.height + y) * cell.width;
            out.data[to..to + cell.width].copy_from_slice(&cell.data[from..from + cell.width]);
        }
    }
}

/// Writes `text` centred in `width` pixels from `(top, left)`, each dot `letter` pixels wide.
fn write(out: &mut Image, text: &str, (top, left): (usize, usize), width: usize, letter: usize) {
    let advance = letter * (font::WIDTH + 1);
    let letters = text.chars().count().min(width / advance.max(1));
    let start = left + (width - letters * advance) / 2;
    for (k, c) in text.chars().take(letters).enumerate() {
        for (row, bits) in font::glyph(c).into_iter().enumerate() {
            for col in (0..font::WIDTH).filter(|col| bits >> (font::WIDTH - 1 - col) & 1 == 1) {
                dot(out, top + letter * row, start + k * advance + letter * col, letter);
            }
        }
    }
}

fn dot(out: &mut Image, top: usize, left: usize, side: usize) {
    for c in 0..3 {
        for y in top..top + side {
            let at = (c * out.height + y) * out.width + left;
            out.data[at..at + side].fill(INK);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_labels_and_gaps_are_where_they_belong() {
        let (small, large) = (Image::from_fn(2, 3, |c, _, _| 0.2 * c as f32), Image::zeros(8, 12));
        let m = montage(&[vec![&small, &large], vec![&large]], &["lq", "b"], 2, 2).unwrap();
        // cells 16×24, letters 2 pixels a dot: band 14 + gap
        assert_eq!((m.height, m.width), (2 + 16 + 2 * 18, 2 + 2 * 26));
        let at = |y: usize, x: usize| [0, 1, 2].map(|c| m.plane(c)[y * m.width + x]);
        assert_eq!(at(18, 2), [0.0, 0.2, 0.4]);
        assert_eq!(at(33, 25), [0.0, 0.2, 0.4]);
        assert_eq!((at(18, 28), at(36, 2), at(36, 28)), ([0.0; 3], [0.0; 3], [GROUND; 3]));
        let ink =
            (2..16).flat_map(|y| (0..m.width).map(move |x| (y, x))).filter(|&(y, x)| at(y, x) == [INK; 3]);
        let dots = "lqb".chars().flat_map(font::glyph).map(u8::count_ones).sum::<u32>();
        assert_eq!(ink.count(), 4 * dots as usize);
        assert!(montage(&[], &[], 2, 1).is_err() && montage(&[vec![&large]], &["a", "b"], 2, 1).is_err());
        assert!(montage(&[vec![&small]], &["a long label over a tiny cell"], 0, 1).is_ok());
    }
}
