//! The worst pictures, each beside the truth and what the other methods made of it.

use crate::data::Image;
use crate::eval::results::MEASURES;
use crate::eval::{Folders, Results};
use crate::report::html::esc;
use crate::{Error, Result};
use ::image::ExtendedColorType;
use ::image::codecs::jpeg::JpegEncoder;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// The longest side that is shown; of a larger picture, the window where the methods err most.
const SIDE: usize = 512;
/// Distance of the windows that are looked at.
const STRIDE: usize = 16;
/// JPEG quality: at 95 its error is some 45 dB down, far below any method's.
const QUALITY: u8 = 95;

/// The `worst` worst pictures of each method, each once, the worst of all methods first.
pub fn cases(results: &Results, folders: &Folders, worst: usize) -> Result<String> {
    let orders: Vec<Vec<usize>> = (0..results.methods.len()).map(|m| results.worst(m)).collect();
    let mut shown: Vec<usize> = Vec::new();
    for rank in 0..worst.min(results.names.len()) {
        for order in &orders {
            if !shown.contains(&order[rank]) {
                shown.push(order[rank]);
            }
        }
    }
    let mut out = String::new();
    for i in shown {
        let rank = |m: usize| orders[m].iter().position(|&j| j == i).filter(|&r| r < worst);
        let ranks = (0..orders.len()).filter_map(|m| Some((m, rank(m)?)));
        let of = |(m, r): (usize, usize)| match r {
            0 => format!("worst of {}", results.methods[m].name),
            r => format!("{}. worst of {}", r + 1, results.methods[m].name),
        };
        let reason = ranks.map(of).collect::<Vec<_>>().join(", ");
        out += &case(results, folders, i, &format!("{reason}, by {}", MEASURES[results.judge()].title))?;
    }
    out += "<p class=\"note\">Click, tap or + to look closer, drag to move: all pictures of a row follow. They are JPEGs of \
            high quality, made for this page; the figures are of the files.</p>\n";
    Ok(out)
}

fn case(results: &Results, folders: &Folders, i: usize, reason: &str) -> Result<String> {
    let truth = folders.truth(i)?;
    let restored =
        (0..results.methods.len()).map(|m| folders.restored(m, i, &truth)).collect::<Result<Vec<_>>>()?;
    let (h, w) = (truth.height.min(SIDE), truth.width.min(SIDE));
    let (y, x) = window(&truth, &restored, (h, w));
    let name = esc(&results.names[i]);
    let part = if (h, w) == (truth.height, truth.width) {
        String::new()
    } else {
        format!("; {w}×{h} of {}×{} pixels, where the methods err most", truth.width, truth.height)
    };
    let mut out = format!(
        "<section class=\"case\"><h3>{name}</h3>\n<p class=\"note\">{}{part}</p>\n<div class=\"panes\">\n",
        esc(reason)
    );
    out += &pane(&truth.crop(y, x, h, w)?, &name, "original", "")?;
    for (method, image) in results.methods.iter().zip(&restored) {
        let values = method.images[i].values();
        let shown = [0, results.judge()];
        let kept = if shown[0] == shown[1] { &shown[..1] } else { &shown[..] };
        let figure = |&k: &usize| {
            let m = &MEASURES[k];
            Some(format!("{} {} {}", m.title, m.format(values[k]?), m.unit))
        };
        let figures = kept.iter().filter_map(figure).collect::<Vec<_>>().join("<br>");
        out += &pane(&image.crop(y, x, h, w)?, &name, &esc(&method.name), &figures)?;
    }
    Ok(out + "</div></section>\n")
}

fn pane(image: &Image, name: &str, method: &str, figures: &str) -> Result<String> {
    let (h, w) = (image.height, image.width);
    let mut jpeg = Vec::new();
    JpegEncoder::new_with_quality(&mut jpeg, QUALITY)
        .encode(&image.to_rgb8(), w as u32, h as u32, ExtendedColorType::Rgb8)
        .map_err(|e| Error::shape("report", format!("{w}×{h} pixels cannot be encoded as JPEG: {e}")))?;
    let data = STANDARD.encode(&jpeg);
    Ok(format!(
        "<figure><div class=\"view\" style=\"aspect-ratio:{w}/{h}\"><img draggable=\"false\" width=\"{w}\" height=\"{h}\" \
         alt=\"{name}, {method}\" src=\"data:image/jpeg;base64,{data}\"></div><figcaption>{method}<small>{figures}</small>\
         </figcaption></figure>\n"
    ))
}

/// The top left corner of the window of `h`×`w` pixels in which the methods differ most from the truth.
fn window(truth: &Image, restored: &[Image], (h, w): (usize, usize)) -> (usize, usize) {
    let (height, width) = (truth.height, truth.width);
    // sums of squared differences above and left of a pixel
    let mut sums = vec![0f64; (height + 1) * (width + 1)];
    let at = |y: usize, x: usize| y * (width + 1) + x;
    for y in 0..height {
        let mut row = 0.0;
        for x in 0..width {
            for image in restored {
                for c in 0..3 {
                    let i = (c * height + y) * width + x;
                    row += f64::from(image.data[i] - truth.data[i]).powi(2);
                }
            }
            sums[at(y + 1, x + 1)] = sums[at(y, x + 1)] + row;
        }
    }
    let starts = |len: usize, cut: usize| (0..len - cut).step_by(STRIDE).chain([len - cut]);
    let error = |&(y, x): &(usize, usize)| {
        sums[at(y + h, x + w)] - sums[at(y, x + w)] - sums[at(y + h, x)] + sums[at(y, x)]
    };
    let corners = starts(height, h).flat_map(|y| starts(width, w).map(move |x| (y, x)));
    corners.max_by(|a, b| error(a).total_cmp(&error(b))).unwrap_or((0, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_is_where_the_error_is() {
        let truth = Image::zeros(600, 700);
        let mut restored = truth.clone();
        restored.data[600 * 700 + 580 * 700 + 690] = 1.0;
        let (y, x) = window(&truth, std::slice::from_ref(&restored), (100, 100));
        assert!((481..=500).contains(&y) && (591..=600).contains(&x), "{y} {x}");
        assert_eq!(window(&truth, &[restored], (600, 700)), (0, 0));
    }
}
