//! The training pairs a configuration asks for: the run's own, and the adversary's where it learns from others.

use super::config::Config;
use super::options::{DegradationKind, StageName};
use crate::data::{
    Codec, DeadLeavesSource, Degradation, Folder, LatentCache, Light, Part, RealEsrgan, Sampler, Source,
    Split, Wanted,
};
use crate::engine::Device;
use crate::error::did_you_mean;
use crate::{Error, Result};
use std::collections::HashSet;
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
    let split = match &d.held_out_names[..] {
        [] => {
            let photos = Split::photos(folder.len())?;
            if d.held_out < photos.held_out.len() { Split::last(folder.len(), d.held_out)? } else { photos }
        }
        names => by_name(&folder, names)?,
    };
    Ok((Arc::new(folder), split))
}

/// The pictures that are called as one of `names` are held out.
fn by_name(folder: &Folder, names: &[String]) -> Result<Split> {
    let stems: Vec<String> = (0..folder.len()).map(|i| stem(&folder.name(i))).collect();
    if let Some(name) = names.iter().find(|name| !stems.contains(name)) {
        let hint = did_you_mean(name, stems.iter().map(String::as_str));
        let detail = format!("data.held_out_names: no picture is called {name:?}{hint}");
        return Err(Error::Usage(detail));
    }
    let (held_out, train): (Vec<usize>, _) = (0..stems.len()).partition(|&i| names.contains(&stems[i]));
    if train.is_empty() {
        let detail = "data.held_out_names names every picture; none is left to train on";
        return Err(Error::Usage(detail.to_owned()));
    }
    Ok(Split { train, held_out })
}

/// A file's name without what follows the last dot.
fn stem(name: &str) -> String {
    Path::new(name).file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

fn folder(config: &Config, path: &str, negatives: Option<&Path>) -> Result<Folder> {
    let d = &config.data;
    Folder::open(path, &Wanted { min_side: d.crop, scale: d.scale, negatives, memory: d.memory << 20 })
}

/// How bad pictures are made of good ones.
pub fn degradation(config: &Config) -> Degradation {
    let d = &config.data;
    match d.degradation {
        DegradationKind::Light => {
            let quality = |q: usize| u8::try_from(q).unwrap_or(100);
            Degradation::Light(Light {
                blur: (d.blur_min, d.blur_max),
                noise: (0.0, d.noise_max),
                jpeg: (d.jpeg_max > 0).then(|| (quality(d.jpeg_min.max(1)), quality(d.jpeg_max))),
                scale: d.scale,
            })
        }
        DegradationKind::RealEsrgan => {
            Degradation::RealEsrgan(Box::new(RealEsrgan { scale: d.scale, ..RealEsrgan::at(&d.strengths()) }))
        }
    }
}

/// The codec that the options ask for; it must be that of the run that is gone on from, if there is one. Of a network no
/// weights are read yet: [`Codec::to`] does where it is to compute.
pub fn codec(
    config: &Config,
    theirs: Option<(&Path, Codec)>,
    source: &dyn Source,
    split: &Split,
) -> Result<Codec> {
    let d = &config.data;
    let open = || Ok::<_, Error>(Codec::open(&d.codec, &Device::cpu().meta())?.taking(d.latents));
    let ours = if d.codec == Codec::HAAR { None } else { Some(open()?) };
    let codec = match (ours, theirs) {
        (None, None) => Sampler::fit_codec(source, split)?.into(),
        (Some(ours), None) => ours,
        (None, Some((_, theirs @ Codec::Haar(_)))) => theirs,
        (Some(ours), Some((_, theirs))) if ours.identity()? == theirs.identity()? => ours,
        (_, Some((run, theirs))) => {
            let (given, run, theirs) = (&d.codec, run.display(), theirs.option());
            return Err(Error::Usage(format!(
                "data.codec = {given:?} is not the codec of {run}: that is {theirs:?}"
            )));
        }
    };
    // A token is 2×2 latents.
    let (crop, token) = (d.crop, 2 * codec.block());
    if !crop.is_multiple_of(token) {
        let name = codec.name();
        return Err(Error::Usage(format!(
            "data.crop = {crop} is not a multiple of {token}, the side of a token of the codec {name}"
        )));
    }
    Ok(codec)
}

/// The pairs of `source`, whose latents are kept where the options say, unless they are a meta device's.
pub fn sampler(config: &Config, source: Arc<dyn Source>, split: Split, codec: Codec) -> Result<Sampler> {
    let d = &config.data;
    let sampler = Sampler::new(source, split, d.crop, degradation(config), codec, config.run.seed)?;
    let sampler = sampler.resizing(d.lq_resize).pooling(d.pool, d.seed);
    let codec = sampler.codec();
    if d.latent_cache.is_empty() || codec.device().is_some_and(Device::is_meta) {
        return Ok(sampler);
    }
    let codec = codec.bits()?;
    Ok(sampler.caching(Arc::new(LatentCache::open(&d.latent_cache, codec)?)))
}

/// What the latents of all stages will take of the disk, where they are kept: of each sample the good picture's and the bad
/// one's, the adversary's target (of pictures of its own the bad one's, too), and the bad one's again where a stage shifts
/// the degradation.
pub fn expect_room(config: &Config, codec: &Codec) -> Result<Option<String>> {
    let d = &config.data;
    if d.latent_cache.is_empty() {
        return Ok(None);
    }
    let (has, shift) = (|s| config.run.stages.contains(&s), &config.sft_data);
    let adversary = u64::from(has(StageName::Adversary));
    let elsewhere = !(config.adversary_data.source.is_empty() && config.adversary_data.negatives.is_empty());
    let shifted = u64::from(has(StageName::Sft) && shift.blur_max.max(shift.noise_max) > 0.0);
    let each = 2 + shifted + adversary * if elsewhere { 2 } else { 1 };
    let values = codec.channels() * (d.crop / codec.block()).pow(2);
    let cache = LatentCache::open(&d.latent_cache, String::new())?;
    cache.expect_room(d.pool as u64 * each, values).map(Some)
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
