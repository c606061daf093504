//! `metrics`: PSNR and SSIM as pyiqa and as basicsr compute them, log-spectral distances, colour fixes.

use super::arithmetic::Run;
use super::fixture::Fixture;
use crate::Result;
use crate::data::Image;
use crate::eval::luma::exact;
use crate::eval::spectrum::{EPSILON, rms_db};
use crate::eval::{Convention, Pair, power_spectrum, psnr};
use crate::infer::color::{adain, wavelet};

pub(super) fn replay(f: &mut Fixture, _: &Run) -> Result<()> {
    let truth = f.picture("in.gt")?;
    for name in f.names() {
        let Some((metric, which)) = name.split_once('.') else { continue };
        if !["pyiqa", "basicsr", "lsd"].iter().any(|tool| metric.starts_with(tool)) {
            continue;
        }
        let picture = if which == "same" { truth.clone() } else { f.picture(&format!("in.{which}"))? };
        if (picture.height, picture.width) != (truth.height, truth.width) {
            return Err(f.error(format!("in.{which} and in.gt differ in size")));
        }
        let of = |convention| Pair::of(&picture, &truth, 0, convention);
        let got = match metric {
            "pyiqa_psnr_y" => vec![of(Convention::Pyiqa).psnr_y],
            "pyiqa_ssim_y" => vec![of(Convention::Pyiqa).ssim_y],
            "pyiqa_psnr_rgb" => {
                let [a, b] = [&picture, &truth].map(|p| wide(&p.data));
                vec![psnr(&a, &b, Convention::Pyiqa)]
            }
            "basicsr_psnr_y" => vec![of(Convention::Basicsr).psnr_y],
            "basicsr_ssim_y" => vec![of(Convention::Basicsr).ssim_y],
            "lsd_db_y" => vec![of(Convention::Pyiqa).lsd_db],
            "lsd_db_rgb" => (0..3).map(|c| lsd_of_plane(&picture, &truth, c)).collect(),
            _ => continue,
        };
        f.check_f64(&name, &got)?;
    }
    let (content, style) = (f.picture("in.sr")?, f.picture("in.other")?);
    for (kind, fix) in [("adain", adain as fn(&Image, &Image) -> Image), ("wavelet", wavelet)] {
        let fixed = fix(&content, &style);
        f.check(&format!("colorfix.{kind}_float"), &fixed.data)?;
        // Recorded as Pillow has it, which cuts off what the engine rounds when it writes a picture.
        let (plane, mut bytes) = (fixed.height * fixed.width, Vec::new());
        for i in 0..plane {
            bytes.extend((0..3).map(|c| (fixed.data[c * plane + i].clamp(0.0, 1.0) * 255.0).floor()));
        }
        f.check(&format!("colorfix.{kind}_u8"), &bytes)?;
    }
    Ok(())
}

/// The log-spectral distance of channel `c` in [0, 1]: 1e-8 is added to the powers of that, not of bytes.
fn lsd_of_plane(a: &Image, b: &Image, c: usize) -> f64 {
    let size = (a.height, a.width);
    let [p, q] = [a, b].map(|image| power_spectrum(&wide(image.plane(c)), size));
    rms_db(&p, &q, EPSILON / p.len() as f64)
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| exact(v)).collect()
}
