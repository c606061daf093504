//! `image_io`: Pillow's and torchvision's resizes and crops of 8-bit pictures, and how floats become bytes.

use super::arithmetic::Run;
use super::fixture::Fixture;
use crate::Result;
use crate::data::Image;
use crate::data::image::level;
use crate::data::pil::{Filter, center_crop, resize};

/// Sides of the VAE's input are multiples of this.
const MULTIPLE: usize = 16;

pub(super) fn replay(f: &mut Fixture, _: &Run) -> Result<()> {
    let image = f.picture("in.image")?;
    for name in f.names() {
        let Some(kind) = name.strip_prefix("pil.") else { continue };
        let filter = match kind.split('_').next() {
            Some("bilinear") => Filter::Bilinear,
            Some("bicubic") => Filter::Bicubic,
            Some("lanczos") => Filter::Lanczos,
            _ => return Err(f.error(format!("{name}: expected a resize by bilinear, bicubic or lanczos"))),
        };
        let (h, w) = f.size(&name)?;
        f.check_picture(&name, &resize(&image, h, w, filter))?;
    }
    if f.has("train.resize_crop") {
        let (side, _) = f.size("train.resize_crop")?;
        let cropped = center_crop(&shorter_side(&image, side), side, side);
        f.check_picture("train.resize_crop", &cropped)?;
        f.check("train.tensor", &signed(&cropped))?;
    }
    if f.has("infer.crop_resize") {
        let side = image.height.min(image.width);
        let square = image.crop((image.height - side) / 2, (image.width - side) / 2, side, side)?;
        let (h, w) = f.size("infer.crop_resize")?;
        let condition = resize(&square, h, w, Filter::Bicubic);
        f.check_picture("infer.crop_resize", &condition)?;
        let (h, w) = (h - h % MULTIPLE, w - w % MULTIPLE);
        f.check("infer.preprocess", &signed(&resize(&condition, h, w, Filter::Lanczos)))?;
    }
    if f.has("infer.postprocess") {
        let (h, w) = f.size("infer.postprocess")?;
        let unsigned = f.f32s("in.decoded")?.iter().map(|v| v * 0.5 + 0.5).collect();
        f.check_picture("infer.postprocess", &Image::new(h, w, unsigned)?)?;
    }
    if f.has("cv2.imwrite_png") {
        let bytes: Vec<f32> = f.f32s("in.float255")?.iter().map(|v| f32::from(level(*v))).collect();
        f.check("cv2.imwrite_png", &bytes)?;
    }
    Ok(())
}

/// torchvision's `Resize(side, BILINEAR)`: the shorter side becomes `side`, the longer one follows, rounded down.
fn shorter_side(image: &Image, side: usize) -> Image {
    let (h, w) = (image.height, image.width);
    let (h, w) = if h <= w { (side, side * w / h) } else { (side * h / w, side) };
    resize(image, h, w, Filter::Bilinear)
}

/// [0, 1] as [−1, 1].
fn signed(image: &Image) -> Vec<f32> {
    image.data.iter().map(|v| (v - 0.5) / 0.5).collect()
}
