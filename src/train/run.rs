//! A whole run: data, stages, evaluation on held-out images, picture and summary.

use super::config::Config;
use super::log::{Eval, JsonlLog, StageSummary, Summary, peak_rss_mb};
use super::objective::Adversary;
use super::options::StageName;
use super::stages::{Artifacts, Context, Progress, missing};
use crate::data::{
    DeadLeavesSource, Degradation, EvalPair, Folder, HaarCodec, Image, Sampler, Source, Split, montage,
    nearest, torch_up,
};
use crate::engine::Device;
use crate::eval::{Metrics, evaluate};
use crate::files::write_atomic;
use crate::flux::config::FluxConfig;
use crate::flux::params::Adapter;
use crate::infer::model::{Model, SCALE, layout, load_codec};
use crate::{Error, Result};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

/// Crops restored in one forward pass of the evaluation.
const EVAL_BATCH: usize = 8;
/// Rows of the comparison picture.
const PICTURE_ROWS: usize = 6;

/// Structure of the model that `config` trains from nothing.
fn flux_config(config: &Config, channels: usize) -> Result<FluxConfig> {
    let m = &config.model;
    let flux = FluxConfig {
        patch_size: 1,
        in_channels: 4 * channels,
        out_channels: None,
        num_layers: m.double,
        num_single_layers: m.single,
        attention_head_dim: m.dim / m.heads,
        num_attention_heads: m.heads,
        // Prompt and pooled embedding are all zero in training; their width is free.
        joint_attention_dim: 8,
        pooled_projection_dim: 8,
        guidance_embeds: false,
        axes_dims_rope: m.axes,
        rope_theta: f64::from(m.theta),
        mlp_ratio: f64::from(m.mlp_ratio),
    };
    flux.validate()?;
    Ok(flux)
}

/// The image source and how it is split.
fn source(config: &Config) -> Result<(Arc<dyn Source>, Split)> {
    let d = &config.data;
    if d.source == "dead-leaves" {
        let source = DeadLeavesSource::new(d.images, d.seed, d.image_size)?;
        return Ok((Arc::new(source), Split::last(d.images, d.held_out)?));
    }
    let folder = Folder::open(&d.source, d.crop)?;
    let photos = Split::photos(folder.len())?;
    let split =
        if d.held_out < photos.held_out.len() { Split::last(folder.len(), d.held_out)? } else { photos };
    Ok((Arc::new(folder), split))
}

fn degradation(config: &Config) -> Degradation {
    let d = &config.data;
    let quality = |q: usize| u8::try_from(q).unwrap_or(100);
    Degradation {
        blur: (d.blur_min, d.blur_max),
        noise: (0.0, d.noise_max),
        jpeg: (d.jpeg_max > 0).then(|| (quality(d.jpeg_min.max(1)), quality(d.jpeg_max))),
        scale: d.scale,
    }
}

/// Runs the stages `config` lists and writes everything into `out`, which must not hold a run yet.
pub fn run(config: &Config, out: &Path, progress: &dyn Progress, stop: &AtomicBool) -> Result<Summary> {
    let begun = Instant::now();
    if config.data.scale != SCALE {
        return Err(Error::Usage(format!(
            "data.scale = {}: this codec's models are ×{SCALE}; set it to that",
            config.data.scale
        )));
    }
    vacant(out)?;
    let from = Some(Path::new(&config.run.from)).filter(|p| !p.as_os_str().is_empty());
    let (source, split) = source(config)?;
    let names: Vec<String> = split.held_out.iter().map(|&i| source.name(i)).collect();
    progress.say(&format!("{} images to train on, {} held out", split.train.len(), names.len()));
    let codec: HaarCodec = match from {
        Some(run) => load_codec(run)?,
        None => Sampler::fit_codec(&*source, &split)?,
    };
    let device = Device::cpu();
    let flux = flux_config(config, codec.channels())?;
    let sampler = Sampler::new(source, split, config.data.crop, degradation(config), codec, config.run.seed)?
        .resizing(config.data.lq_resize);
    let mut made = Artifacts::default();
    if let Some(run) = from {
        made.load(run, &flux, &device)?;
    }
    stages_have_what_they_need(config, &made)?;
    std::fs::create_dir_all(out).map_err(Error::io(out))?;
    write_atomic(out.join("config.toml"), config.to_toml().as_bytes())?;
    let codec_json =
        serde_json::to_string_pretty(sampler.codec()).map_err(|e| Error::format(out, e.to_string()))?;
    write_atomic(out.join(layout::CODEC), codec_json.as_bytes())?;
    let mut log = JsonlLog::append(out.join("log.jsonl"))?;
    let context = Context { config, flux, device, sampler, out, progress, stop };
    let stages: Vec<StageSummary> = config
        .run
        .stages
        .iter()
        .map(|&stage| context.run(stage, &mut made, &mut log))
        .collect::<Result<_>>()?;
    let pairs = context.sampler.held_out(config.run.eval_crops)?;
    let eval = evaluation(&context, made, &pairs)?;
    let summary = Summary {
        stages,
        eval,
        held_out: names,
        peak_rss_mb: peak_rss_mb(),
        wall_s: begun.elapsed().as_secs_f64(),
        seed: config.run.seed,
        version: Summary::VERSION.to_owned(),
    };
    summary.save(out.join("summary.json"))?;
    Ok(summary)
}

/// Refuses a run directory that holds a run.
fn vacant(out: &Path) -> Result<()> {
    if out.join("config.toml").exists() {
        let detail = "there is a run already; choose another --out, or remove it";
        return Err(Error::Usage(format!("{}: {detail}", out.display())));
    }
    if out.exists() && !out.is_dir() {
        return Err(Error::Usage(format!("{} is a file; --out wants a folder", out.display())));
    }
    Ok(())
}

/// Refuses, before anything is trained or written, stages that build on what neither this run nor `run.from` makes.
fn stages_have_what_they_need(config: &Config, made: &Artifacts) -> Result<()> {
    let mut have: Vec<&str> = made.adapters.keys().map(String::as_str).collect();
    have.extend(made.base.is_some().then_some(layout::BASE));
    for &stage in &config.run.stages {
        let (needs, makes): (&[&str], _) = match stage {
            StageName::Base => (&[], layout::BASE),
            StageName::Sft => (&[layout::BASE], layout::SFT),
            StageName::Adversary => (&[layout::BASE], layout::ADVERSARY),
            StageName::Asdpo if config.preference.adversary == Adversary::Lora => {
                (&[layout::BASE, layout::SFT, layout::ADVERSARY], layout::ASDPO)
            }
            StageName::Asdpo => (&[layout::BASE, layout::SFT], layout::ASDPO),
        };
        if let Some(lacking) = needs.iter().find(|n| !have.contains(n)) {
            return Err(missing(stage, lacking));
        }
        have.push(makes);
    }
    Ok(())
}

/// Metrics of bicubic and of every policy there is, and the picture LQ | bicubic | sft | asdpo | HQ.
fn evaluation(context: &Context, made: Artifacts, pairs: &[EvalPair]) -> Result<Eval> {
    let hq: Vec<Image> = pairs.iter().map(|p| p.hq.clone()).collect();
    let score = |sr: &[Image]| -> Result<Metrics> { evaluate(sr, &hq) };
    let bicubic: Vec<Image> =
        pairs.iter().map(|p| torch_up(&p.lq, p.hq.height, p.hq.width).clamped()).collect();
    let mut eval = Eval { bicubic: Some(score(&bicubic)?), ..Eval::default() };
    let Some(weights) = made.base else { return Ok(eval) };
    let frozen = |name: &str| made.adapters.get(name).map(|f| Adapter::frozen(f, 1.0));
    let config = context.flux.clone();
    let lq_resize = context.config.data.lq_resize;
    let codec = context.sampler.codec().clone();
    let mut model = Model { config, codec, lq_resize, weights, adapters: Vec::new() };
    let restore = |model: &Model| -> Result<Vec<Image>> {
        let mut all = Vec::new();
        for group in pairs.chunks(EVAL_BATCH) {
            let lq: Vec<Image> = group.iter().map(|p| p.lq.clone()).collect();
            let corners = vec![(0, 0); lq.len()];
            all.extend(model.restore(&lq, &corners, context.config.run.eval_steps, &context.device)?);
        }
        Ok(all)
    };
    let mut columns = vec![("bicubic", bicubic)];
    let base = restore(&model)?;
    eval.base = Some(score(&base)?);
    if let Some(sft) = frozen(layout::SFT) {
        model.adapters.push(sft);
        let images = restore(&model)?;
        eval.sft = Some(score(&images)?);
        columns.push(("sft", images));
        if let Some(dpo) = frozen(layout::ASDPO) {
            model.adapters.push(dpo);
            let images = restore(&model)?;
            eval.asdpo = Some(score(&images)?);
            columns.push(("asdpo", images));
        }
    } else {
        columns.push(("base", base));
    }
    let lq: Vec<Image> = pairs.iter().map(|p| nearest(&p.lq, p.hq.height, p.hq.width)).collect();
    let rows: Vec<Vec<&Image>> = (0..pairs.len().min(PICTURE_ROWS))
        .map(|i| std::iter::once(&lq[i]).chain(columns.iter().map(|c| &c.1[i])).chain([&hq[i]]).collect())
        .collect();
    let labels: Vec<&str> = ["LQ"].into_iter().chain(columns.iter().map(|c| c.0)).chain(["HQ"]).collect();
    montage(&rows, &labels, 4, 2)?.save_png(context.out.join("samples.png"))?;
    Ok(eval)
}
