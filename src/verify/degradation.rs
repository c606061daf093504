//! `degradation`: the pieces of Real-ESRGAN's degradation, from kernels to a whole chain. Always on the CPU, where pictures
//! are made.
//!
//! What was done to which picture stands in the tensors' names and in the recorder's words for them.

use super::arithmetic::Run;
use super::fixture::Fixture;
use crate::Result;
use crate::data::Image;
use crate::data::degrade::filter::filter;
use crate::data::degrade::jpeg::{Codec, compress, diff_jpeg};
use crate::data::degrade::kernels::{Blur, Sinc};
use crate::data::degrade::noise::{gaussian, levels, photons, poisson};
use crate::data::degrade::usm::Sharpen;
use crate::data::resize::{Mode, To, interpolate};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The recorded pictures and kernels.
struct Recorded {
    whole: Image,
    crop: Image,
    jpeg_crop: Image,
    blurs: Vec<Blur>,
    sincs: Vec<(Sinc, usize)>,
}

pub(super) fn replay(f: &mut Fixture, _: &Run) -> Result<()> {
    let r = Recorded::read(f)?;
    for (i, blur) in r.blurs.iter().enumerate() {
        let name = f.names().into_iter().find(|n| n.starts_with(&format!("kernel.{i}_")));
        f.check_f64(&name.unwrap_or_default(), &blur.weights())?;
    }
    for (i, (sinc, pad_to)) in r.sincs.iter().enumerate() {
        f.check_f64(&format!("sinc.{i}"), &padded(&sinc.weights(), sinc.size, *pad_to))?;
    }
    f.check_f64("usm.kernel1d", &Sharpen::default().axis())?;
    f.check("usm.out", &Sharpen::default().apply(r.whole.clone()).data)?;
    for name in f.names() {
        if let Some(kernel) = name.strip_prefix("filter2D.").filter(|n| *n != "batch") {
            f.check(&name, &r.filtered(f, &r.crop, kernel)?.data)?;
        } else if let Some(what) = name.strip_prefix("resize.") {
            let whole = words(f.meaning(&name)).any(|w| w == "x");
            f.check(&name, &resized(f, if whole { &r.whole } else { &r.crop }, what)?.data)?;
        } else if let Some(quality) = name.strip_prefix("jpeg.q").and_then(|n| n.strip_suffix(".out")) {
            let quality = parsed(f, &name, quality)?;
            let made = compress(&r.jpeg_crop, quality);
            f.check(&name, &made.decompress().data)?;
            for (plane, blocks) in ["y", "cb", "cr"].into_iter().zip(&made.planes) {
                f.check(&name.replace("out", &format!("coef_{plane}")), blocks.as_flattened())?;
            }
        }
    }
    batched(f, &r)?;
    noisy(f, &r)?;
    if f.has("chain.out") {
        f.check("chain.out", &r.chain(f, "chain.out")?.data)?;
    }
    Ok(())
}

impl Recorded {
    fn read(f: &Fixture) -> Result<Self> {
        let shape = f.shape("in.image")?;
        let [height, width, 3] = shape[..] else {
            return Err(f.error(format!("in.image is {shape:?}, wanted [height, width, 3]")));
        };
        let bytes: Vec<u8> = f.f32s("in.image")?.into_iter().map(|v| v as u8).collect();
        let whole = Image::from_rgb8(height, width, &bytes)?;
        let crop = |of: &str| -> Result<Image> {
            let at = |key: &str| Ok(f.number(&format!("/{of}/{key}"))? as usize);
            whole.crop(at("y0")?, at("x0")?, at("ch")?, at("cw")?)
        };
        let sincs: Vec<Value> = listed(f, "/sincs")?;
        let pad_to = sincs.iter().map(|s| s["pad_to"].as_u64().unwrap_or(0) as usize);
        Ok(Self {
            crop: crop("crop")?,
            jpeg_crop: crop("jpeg_crop")?,
            blurs: listed(f, "/kernels")?,
            sincs: listed(f, "/sincs")?.into_iter().zip(pad_to).collect(),
            whole,
        })
    }

    /// `img` through the kernel called `kernel2`, `kernel.2`, `sinc0` or `sinc.0`.
    fn filtered(&self, f: &Fixture, img: &Image, kernel: &str) -> Result<Image> {
        let missing = || f.error(format!("there is no kernel `{kernel}`"));
        let digits = kernel.trim_start_matches(|c: char| !c.is_ascii_digit());
        let index: usize = digits.parse().map_err(|_| missing())?;
        if kernel.starts_with("sinc") {
            let (sinc, _) = self.sincs.get(index).ok_or_else(missing)?;
            return Ok(filter(img, &sinc.weights(), sinc.size));
        }
        let blur = self.blurs.get(index).ok_or_else(missing)?;
        Ok(filter(img, &blur.weights(), blur.size))
    }

    /// The recorder's words for `name`, steps with arrows between them, done to the whole picture.
    fn chain(&self, f: &Fixture, name: &str) -> Result<Image> {
        let whole = (self.whole.height, self.whole.width);
        f.meaning(name).split("->").map(str::trim).try_fold(self.whole.clone(), |img, step| {
            let said: Vec<&str> = step.split_whitespace().collect();
            Ok(match said[..] {
                ["usm"] => Sharpen::default().apply(img),
                ["clamp"] => img.clamped(),
                ["filter2D", kernel] => self.filtered(f, &img, kernel)?,
                ["DiffJPEG", quality] => Codec::Diff.apply(&img, parsed(f, name, quality)?)?,
                [mode, "scale", by] => interpolate(&img, To::Scale(parsed(f, name, by)?), mode_of(f, mode)?),
                [mode, "to", ..] => {
                    let by: Vec<usize> = numbers(step).map(|n| n as usize).collect();
                    let [h, w] = by[..] else { return Err(f.error(format!("{name}: no size in `{step}`"))) };
                    interpolate(&img, To::Size(whole.0 / h, whole.1 / w), mode_of(f, mode)?)
                }
                _ => return Err(f.error(format!("{name}: nothing here knows the step `{step}`"))),
            })
        })
    }
}

/// Pictures that were filtered, or compressed, together, each by its own kernel or quality.
fn batched(f: &mut Fixture, r: &Recorded) -> Result<()> {
    if f.has("filter2D.batch") {
        let meaning = f.meaning("filter2D.batch").to_owned();
        let kernels: Vec<&str> =
            words(&meaning).filter(|w| w.starts_with("kernel.") || w.starts_with("sinc.")).collect();
        let both = [r.crop.clone(), flipped(&r.crop, &meaning)];
        let out = both.iter().zip(kernels).map(|(img, k)| Ok(r.filtered(f, img, k)?.data));
        let out = out.collect::<Result<Vec<_>>>()?.concat();
        f.check("filter2D.batch", &out)?;
    }
    if f.has("jpeg.batch.out") {
        let both = [r.jpeg_crop.clone(), flipped(&r.jpeg_crop, f.meaning("jpeg.batch.out"))];
        let quality = f.f32s("jpeg.batch.quality")?;
        let out = both.iter().zip(quality).map(|(img, q)| diff_jpeg(img, f64::from(q)).data);
        let out: Vec<_> = out.collect();
        f.check("jpeg.batch.out", &out.concat())?;
    }
    Ok(())
}

/// Both kinds of noise, on the recorded draws.
fn noisy(f: &mut Fixture, r: &Recorded) -> Result<()> {
    if f.has("noise.gauss.out") {
        let both = [r.crop.clone(), flipped(&r.crop, f.meaning("noise.gauss.out"))];
        let draws = Draws::read(f, "noise.gauss")?;
        let (plane, colour) = (f.f32s("noise.gauss.z_gray")?, f.f32s("noise.gauss.z_color")?);
        let mut out = Vec::new();
        for (i, mut img) in both.into_iter().enumerate() {
            let (strength, grey) = draws.of(i);
            let n = img.data.len();
            gaussian(&mut img, strength, if grey { &plane } else { &colour[i * n..][..n] });
            out.extend(img.data);
        }
        f.check("noise.gauss.out", &out)?;
    }
    if f.has("noise.poisson.out") {
        let both = [r.crop.clone(), flipped(&r.crop, f.meaning("noise.poisson.out"))];
        let draws = Draws::read(f, "noise.poisson")?;
        let counts = |f: &Fixture, kind: &str| -> Result<Vec<u32>> {
            Ok(f.f32s(&format!("noise.poisson.count_{kind}"))?.into_iter().map(|v| v as u32).collect())
        };
        let (plane, colour) = (counts(f, "gray")?, counts(f, "color")?);
        for (kind, grey) in [("gray", true), ("color", false)] {
            let white: Vec<f32> = both.iter().map(|img| photons(&levels(img, grey)) as f32).collect();
            f.check(&format!("noise.poisson.vals_{kind}"), &white)?;
        }
        let mut out = Vec::new();
        for (i, mut img) in both.into_iter().enumerate() {
            let (strength, grey) = draws.of(i);
            let n = if grey { img.data.len() / 3 } else { img.data.len() };
            let counts = if grey { &plane } else { &colour };
            let levels = levels(&img, grey);
            poisson(&mut img, strength, &levels, &counts[i * n..][..n]);
            out.extend(img.data);
        }
        f.check("noise.poisson.out", &out)?;
    }
    Ok(())
}

/// What was drawn for each picture, and what the recorder says the draws mean.
struct Draws {
    strength: Vec<f32>,
    range: [f64; 2],
    grey: Vec<f32>,
    grey_below: f64,
}

impl Draws {
    fn read(f: &Fixture, noise: &str) -> Result<Self> {
        let (strength, grey) = (format!("{noise}.u_strength"), format!("{noise}.u_gray"));
        let last = |name: &str, n: usize| -> Result<Vec<f64>> {
            let all: Vec<f64> = numbers(f.meaning(name)).collect();
            let from = all.len().checked_sub(n);
            let from = from.ok_or_else(|| f.error(format!("{name}: wanted {n} numbers in its meaning")))?;
            Ok(all[from..].to_vec())
        };
        let range = last(&strength, 2)?;
        Ok(Self {
            strength: f.f32s(&strength)?,
            range: [range[0], range[1]],
            grey_below: last(&grey, 1)?[0],
            grey: f.f32s(&grey)?,
        })
    }

    /// Strength of picture `i`'s noise, and whether it is grey.
    fn of(&self, i: usize) -> (f64, bool) {
        let [lo, hi] = self.range;
        (f64::from(self.strength[i]) * (hi - lo) + lo, f64::from(self.grey[i]) < self.grey_below)
    }
}

/// `area_s0.61` or `area_24x24`.
fn resized(f: &Fixture, img: &Image, what: &str) -> Result<Image> {
    let odd = || f.error(format!("resize.{what}: wanted <mode>_s<scale> or <mode>_<height>x<width>"));
    let (mode, to) = what.split_once('_').ok_or_else(odd)?;
    let to = match (to.strip_prefix('s'), to.split_once('x')) {
        (Some(by), _) => To::Scale(by.parse().map_err(|_| odd())?),
        (None, Some((h, w))) => To::Size(h.parse().map_err(|_| odd())?, w.parse().map_err(|_| odd())?),
        (None, None) => return Err(odd()),
    };
    Ok(interpolate(img, to, mode_of(f, mode)?))
}

fn mode_of(f: &Fixture, name: &str) -> Result<Mode> {
    serde_json::from_value(name.into()).map_err(|_| f.error(format!("there is no resize mode `{name}`")))
}

/// The second picture of a batch is the first, flipped along the axis the recorder names.
fn flipped(img: &Image, meaning: &str) -> Image {
    if meaning.contains("flipped in y") { img.flip_vertical() } else { img.flip_horizontal() }
}

fn padded(weights: &[f64], size: usize, to: usize) -> Vec<f64> {
    let (side, edge) = (to.max(size), to.saturating_sub(size) / 2);
    let mut out = vec![0.0; side * side];
    for (y, row) in weights.chunks_exact(size).enumerate() {
        out[(y + edge) * side + edge..][..size].copy_from_slice(row);
    }
    out
}

fn listed<T: DeserializeOwned>(f: &Fixture, at: &str) -> Result<Vec<T>> {
    serde_json::from_value(f.value(at)?.clone()).map_err(|e| f.error(format!("config {at}: {e}")))
}

fn parsed(f: &Fixture, name: &str, number: &str) -> Result<f64> {
    number.parse().map_err(|_| f.error(format!("{name}: `{number}` is not a number")))
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '.').filter(|w| !w.is_empty())
}

fn numbers(text: &str) -> impl Iterator<Item = f64> {
    words(text).filter_map(|w| w.trim_end_matches('.').parse().ok())
}
