//! The training pairs a configuration asks for: the run's own, and the adversary's where it learns from others.

use super::config::Config;
use super::options::StageName;
use crate::data::{DeadLeavesSource, Degradation, Folder, HaarCodec, Part, Sampler, Source, Split, Wanted};
use crate::{Error, Result};
use std::collections::HashSet;
use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;

/// The image source of a run and how it is split.
pub fn source(config: &Config) -> Result<(Arc<dyn Source>, Split)> {
    let d = &config.data;
    if d.source == "dead-leaves" {
        let source = DeadLeavesSource::new(d.images, d.seed, d.image_size)?;
        return Ok((Arc::new(source), Split::last(d.images, d.held_out)?));
    }
    let folder = folder(config, &d.source, None)?;
    let photos = Split::photos(folder.len())?;
    let split =
        if d.held_out < photos.held_out.len() { Split::last(folder.len(), d.held_out)? } else { photos };
    Ok((Arc::new(folder), split))
}

fn folder(config: &Config, path: &str, negatives: Option<&Path>) -> Result<Folder> {
    let d = &config.data;
    Folder::open(path, &Wanted { min_side: d.crop, scale: d.scale, negatives, memory: d.memory << 20 })
}

/// How bad pictures are made of good ones.
pub fn degradation(config: &Config) -> Degradation {
    let d = &config.data;
    let quality = |q: usize| u8::try_from(q).unwrap_or(100);
    Degradation {
        blur: (d.blur_min, d.blur_max),
        noise: (0.0, d.noise_max),
        jpeg: (d.jpeg_max > 0).then(|| (quality(d.jpeg_min.max(1)), quality(d.jpeg_max))),
        scale: d.scale,
    }
}

/// The pairs of `source`.
pub fn sampler(config: &Config, source: Arc<dyn Source>, split: Split, codec: HaarCodec) -> Result<Sampler> {
    let sampler = Sampler::new(source, split, config.data.crop, degradation(config), codec, config.run.seed)?;
    Ok(sampler.resizing(config.data.lq_resize))
}

/// What the adversary learns to imitate, where that is not of the run's own source. Pictures called as one of `held_out` are
/// held out here, too, or where there are none the last quarter.
pub fn adversary(config: &Config, held_out: &[String]) -> Result<Option<(Arc<dyn Source>, Split)>> {
    let a = &config.adversary_data;
    if (a.source.is_empty() && a.negatives.is_empty()) || !config.run.stages.contains(&StageName::Adversary) {
        return Ok(None);
    }
    let path = if a.source.is_empty() { &config.data.source } else { &a.source };
    if path == "dead-leaves" {
        let remedy = "name their pairs with adversary.source, or with data.source";
        return Err(Error::Usage(format!(
            "adversary.negatives = {:?} without pictures: {remedy}",
            a.negatives
        )));
    }
    let negatives = Some(Path::new(&a.negatives)).filter(|p| !p.as_os_str().is_empty());
    let folder = folder(config, path, negatives)?;
    if folder.has(Part::Neg) && !folder.has(Part::Lr) {
        let detail =
            "without lr/: an upscaler's outputs go with the bad pictures it was given, in lr/ beside gt/";
        return Err(Error::Usage(format!("adversary.negatives of {path} {detail}")));
    }
    let stem = |name: &str| -> Option<OsString> { Path::new(name).file_stem().map(ToOwned::to_owned) };
    let held: HashSet<_> = held_out.iter().map(|name| stem(name)).collect();
    let (out, train): (Vec<usize>, Vec<usize>) =
        (0..folder.len()).partition(|&i| held.contains(&stem(&folder.name(i))));
    if train.is_empty() {
        let detail = "every picture is called as one that data.source holds out; none is left to learn from";
        return Err(Error::Usage(format!("adversary.source = {path:?}: {detail}")));
    }
    let split = if out.is_empty() { Split::photos(folder.len())? } else { Split { train, held_out: out } };
    Ok(Some((Arc::new(folder), split)))
}
