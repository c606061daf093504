//! `asasr-engine upscale`.

use super::device::Choice;
use super::verify::precision;
use super::{ctrl_c, threads};
use asasr_engine::Result;
use asasr_engine::data::Format;
use asasr_engine::flux::base::pace;
use asasr_engine::infer::job::{Sizes, Task};
use asasr_engine::infer::model::SAMPLE_SEED;
use asasr_engine::infer::{ColorFix, Job, Model, Parts, Settings, Watch};
use asasr_engine::train::Config;
use asasr_engine::train::options::{Named, Precision};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use indicatif::{ProgressBar, ProgressStyle};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

const HELP: &str = "\
A result says in itself what it was made of and how; one that is there and says just that is kept. One bad file does not \
stop the others. Grey stays grey, 16 bits stay 16 bits; transparency, ICC profile and EXIF are kept.";

/// `None`: the same; by this name, or clap would take it for an option that may be absent.
type Wanted = Option<Format>;

#[derive(clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    /// Pictures (png, jpeg or webp, any size) and folders of them
    #[arg(required = true)]
    input: Vec<PathBuf>,
    /// Where the result goes: a file for one picture, else a folder that repeats the inputs' names
    output: PathBuf,
    /// A trained run, or a folder of FLUX's weights as diffusers keeps it
    #[arg(long, value_name = "FOLDER")]
    model: PathBuf,
    /// An adapter and its strength, instead of the run's own: base_sft, train_dpo or adv of the run, or a path (repeatable;
    /// all of them act). Without it base_sft and train_dpo at strength 1; base_sft alone leaves the preference adapter off
    #[arg(long, value_name = "NAME[:STRENGTH]", value_parser = lora)]
    lora: Vec<(String, f32)>,
    /// The latent codec's weights, where the model has none or others are wanted
    #[arg(long, value_name = "PATH")]
    codec: Option<PathBuf>,
    /// What `encode-prompt` made of a prompt: for FLUX.1-dev's weights that of the empty one. Without it the text is all zeros,
    /// as in training
    #[arg(long, value_name = "FILE")]
    prompt: Option<PathBuf>,
    /// How many times larger each side becomes, from 1 (its own size) to 8; need not be whole
    #[arg(long, default_value_t = 4.0, value_parser = scale)]
    scale: f64,
    /// Euler steps: fewer are closer to the input, more richer in texture. Default: run.eval_steps of the run, 28 for FLUX's
    /// weights alone
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    steps: Option<u32>,
    /// Guidance value, for models that have one
    #[arg(long, default_value_t = 3.5, value_parser = guidance)]
    guidance: f32,
    /// Seed of the noise
    #[arg(long, default_value_t = SAMPLE_SEED)]
    seed: u64,
    /// Side of a tile in the result's pixels. Default: that of the crops trained on, 512 for FLUX's weights alone
    #[arg(long, value_name = "PIXELS")]
    tile: Option<usize>,
    /// Pixels that neighbouring tiles share at least, in whole tokens. Default: a quarter of a tile
    #[arg(long, value_name = "PIXELS")]
    overlap: Option<usize>,
    /// Whose colours the result has: its own (none), or those of the input, by the mean and the spread of each channel
    /// (adain) or by the low frequencies (wavelet)
    #[arg(long, value_name = "HOW", default_value = "adain", value_parser = color_fix())]
    color_fix: ColorFix,
    /// What to write: png, jpg, webp (lossless), or same, what the input is. A single output's name says it, too
    #[arg(long, default_value = "same", value_parser = format())]
    format: Wanted,
    /// Quality of jpg files
    #[arg(long, default_value_t = 95, value_parser = clap::value_parser!(u8).range(1..=100))]
    quality: u8,
    /// Search folders within folders
    #[arg(long)]
    recursive: bool,
    /// Make again what is there and was made otherwise
    #[arg(long)]
    overwrite: bool,
    /// What the transformer computes in: f32, or bf16 on a GPU. Default: what the run was trained in, bf16 for FLUX's weights
    /// alone; on the CPU f32
    #[arg(long, value_name = "PRECISION")]
    precision: Option<String>,
    /// Worker threads; 0: one per core
    #[arg(long, default_value_t = 0)]
    threads: usize,
    #[command(flatten)]
    device: Choice,
}

fn color_fix() -> impl TypedValueParser<Value = ColorFix> {
    PossibleValuesParser::new(ColorFix::NAMES.map(|(name, _)| name))
        .map(|name| ColorFix::named(&name).unwrap_or_default())
}

fn format() -> impl TypedValueParser<Value = Wanted> {
    let names = ["same"].into_iter().chain(Format::NAMES.map(|(name, _)| name));
    PossibleValuesParser::new(names)
        .map(|name| Format::NAMES.iter().find(|(n, _)| *n == name).map(|&(_, format)| format))
}

fn scale(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|v| (1.0..=8.0).contains(v)).ok_or("wanted a number from 1 to 8".to_owned())
}

fn guidance(text: &str) -> Result<f32, String> {
    text.parse().ok().filter(|v| (0.0..=100.0).contains(v)).ok_or("wanted a number from 0 to 100".to_owned())
}

/// A name, and a strength behind the last colon if that is a number.
fn lora(text: &str) -> Result<(String, f32), String> {
    let (name, strength) = match text.rsplit_once(':').map(|(name, k)| (name, k.parse::<f32>())) {
        Some((name, Ok(strength))) => (name, strength),
        _ => (text, 1.0),
    };
    match (name.is_empty(), strength.is_finite()) {
        (false, true) => Ok((name.to_owned(), strength)),
        _ => Err("wanted an adapter and a finite strength, as in train_dpo:0.8".to_owned()),
    }
}

/// Euler steps, the tiles' side and the precision: a run's own, or FLUX's.
fn defaults(model: &Path) -> Result<(usize, usize, Precision)> {
    let options = model.join("config.toml");
    if !options.exists() && !model.join("base").exists() {
        return Ok((28, 512, Precision::Bf16));
    }
    let trained = Config::load(None, Some(&options), &[])?;
    Ok((trained.run.eval_steps, trained.data.crop, trained.run.precision))
}

pub fn run(args: &Args) -> Result<ExitCode> {
    threads(args.threads)?;
    let mut job = Job {
        inputs: args.input.clone(),
        output: args.output.clone(),
        recursive: args.recursive,
        format: args.format,
        quality: args.quality,
        overwrite: args.overwrite,
        color_fix: args.color_fix,
        settings: Settings {
            scale: args.scale,
            steps: 0,
            guidance: args.guidance,
            seed: args.seed,
            tile: 0,
            overlap: 0,
        },
        model: String::new(),
        adapters: Vec::new(),
    };
    let tasks = job.tasks()?;
    let loras = Some(&args.lora[..]).filter(|all| !all.is_empty());
    let mut parts = Parts::find(&args.model, loras, args.codec.as_deref())?;
    parts.prompt.clone_from(&args.prompt);
    let (steps, tile, usual) = defaults(&args.model)?;
    let tile = args.tile.unwrap_or(tile);
    job.settings.steps = args.steps.map_or(steps, |n| n as usize);
    (job.settings.tile, job.settings.overlap) = (tile, args.overlap.unwrap_or(tile / 4));
    let device = args.device.open()?;
    let precision = match &args.precision {
        Some(name) => precision(name)?,
        None if device.gpu().is_none() => Precision::F32,
        None => usual,
    };
    // Rounding changes pixels: it is part of what a result is known by.
    job.model = format!("{} in {}", parts.fingerprint()?, precision.name());
    job.adapters = parts.names();
    let stop = ctrl_c()?;
    let style =
        ProgressStyle::with_template("{bar:30} {pos}/{len} tiles, left {eta}").expect("a literal template");
    let bar = ProgressBar::new(1).with_style(style);
    let watch = Watch {
        progress: &|done, all| {
            bar.set_length(all as u64);
            bar.set_position(done as u64);
        },
        say: &|text| bar.suspend(|| eprintln!("{text}")),
        stop: &stop,
    };
    let done = |task: &Task, Sizes { before: [h, w], after: [to_h, to_w] }: Sizes| {
        let (from, to) = (task.from.display(), task.to.display());
        bar.suspend(|| println!("{from} {w}×{h} → {to} {to_w}×{to_h}"));
        bar.reset();
    };
    let load = || {
        let (weights, begun, mut bytes) = (super::weights_bar(), Instant::now(), 0);
        let asked = Some(&job.settings);
        let model = Model::load(&parts, &device, precision.dtype(), asked, &mut |done, all| {
            weights.set_length(all);
            weights.set_position(done);
            bytes = all;
        });
        weights.finish_and_clear();
        if let Some(pace) = pace(bytes, begun.elapsed()) {
            println!("{}: {pace}", parts.base.display());
        }
        model
    };
    let outcome = job.run(&tasks, load, &device, &watch, &done);
    bar.finish_and_clear();
    let outcome = outcome?;
    outcome.failed.iter().for_each(|why| eprintln!("error: {why}"));
    if tasks.len() > 1 || outcome.kept > 0 {
        println!("{} made, {} there already, {} failed", outcome.made, outcome.kept, outcome.failed.len());
    }
    if outcome.stopped {
        eprintln!("interrupted; what is done is kept, and the same command goes on from here");
        return Ok(ExitCode::from(130));
    }
    Ok(if outcome.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
