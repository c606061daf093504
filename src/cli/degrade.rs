//! `asasr-engine degrade`.

use super::{ctrl_c, threads};
use asasr_engine::data::degrade::pairs::Job;
use asasr_engine::data::{RealEsrgan, Strengths};
use asasr_engine::{Error, Result};
use indicatif::{ProgressBar, ProgressStyle};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use toml::Table;

#[derive(clap::Args)]
pub struct Args {
    /// A folder of good png and jpeg pictures
    #[arg(long, value_name = "DIR")]
    hq: PathBuf,
    /// Where gt/, lr/, manifest.jsonl and contact.png go: a folder of this command's, which is completed, or a new one
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Seed of every draw
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// How many times smaller the bad pictures are on each side
    #[arg(long, value_name = "N")]
    scale: Option<usize>,
    /// Side of the good pictures' crops; smaller pictures are reflected at their edges, those with fewer pixels than
    /// three quarters of it squared are left out
    #[arg(long, default_value_t = 512)]
    crop: usize,
    /// Pairs of each picture
    #[arg(long, value_name = "N", default_value_t = 1)]
    repeats: usize,
    /// How strong a part is, from 0 (mildest) to 1: blur, second, ringing, resize, noise or jpeg (repeatable)
    #[arg(long = "strength", value_name = "PART=VALUE")]
    strengths: Vec<String>,
    /// Only shrink and compress: the light path alone
    #[arg(long)]
    light: bool,
    /// A TOML file of probabilities and ranges
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Set one of them, e.g. first.blur_sigma=[0.2,1] (repeatable; last wins)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Print all of them, as a TOML file, and exit
    #[arg(long)]
    print_config: bool,
    /// Worker threads; 0: one per core
    #[arg(long, default_value_t = 0)]
    threads: usize,
}

/// Strengths, then the file, then what else is said.
fn degradation(args: &Args) -> Result<RealEsrgan> {
    let mut strengths = Strengths::default();
    for text in &args.strengths {
        set_strength(&mut strengths, text)
            .map_err(|why| Error::Usage(format!("--strength {text}: {why}")))?;
    }
    let mut out = RealEsrgan::at(&strengths);
    if let Some(path) = &args.config {
        out = from_file(&out, path).map_err(|why| Error::Usage(format!("{}: {why}", path.display())))?;
    }
    for text in &args.sets {
        out = set(&out, text).map_err(|why| Error::Usage(format!("--set {text}: {why}")))?;
    }
    if args.light {
        out.light_prob = 1.0;
    }
    out.scale = args.scale.unwrap_or(out.scale);
    out.check()?;
    Ok(out)
}

fn set_strength(strengths: &mut Strengths, text: &str) -> Result<(), String> {
    let (name, value) = text.split_once('=').ok_or("wanted PART=VALUE, as in noise=0.5")?;
    let value =
        value.parse().ok().filter(|v| (0.0..=1.0).contains(v)).ok_or("wanted a number from 0 to 1")?;
    strengths
        .set(name, value)
        .ok_or_else(|| format!("there is no such part; there are {}", Strengths::NAMES.join(", ")))
}

fn from_file(config: &RealEsrgan, path: &Path) -> Result<RealEsrgan, String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("{e}; wanted a TOML file"))?;
    let table: Table = text.parse().map_err(|e: toml::de::Error| {
        let line = e.span().map_or(1, |s| text[..s.start.min(text.len())].matches('\n').count() + 1);
        format!("line {line}: {}", e.message())
    })?;
    config.overwritten(&table)
}

fn set(config: &RealEsrgan, text: &str) -> Result<RealEsrgan, String> {
    let (key, value) = text.split_once('=').ok_or("wanted KEY=VALUE, as in light_prob=0.5")?;
    // A word needs no quotes.
    let table: Result<Table, _> = text.parse().or_else(|_| format!("{key} = {value:?}").parse());
    config.overwritten(&table.map_err(|e: toml::de::Error| e.message().to_owned())?)
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let degradation = degradation(args)?;
    if args.print_config {
        let text = toml::to_string(&degradation).map_err(|e| Error::Usage(e.to_string()))?;
        super::print(&text)?;
        return Ok(ExitCode::SUCCESS);
    }
    threads(args.threads)?;
    let stop = ctrl_c()?;
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} pairs {elapsed} left {eta}")
        .expect("a literal template");
    let bar = ProgressBar::new(1).with_style(style);
    let job = Job {
        hq: args.hq.clone(),
        out: args.out.clone(),
        seed: args.seed,
        crop: args.crop,
        repeats: args.repeats,
        degradation,
    };
    let outcome = job.run(
        &|done, all| {
            bar.set_length(all as u64);
            bar.set_position(done as u64);
        },
        &stop,
    );
    bar.finish_and_clear();
    let outcome = outcome?;
    outcome.skipped.iter().for_each(|why| println!("left out: {why}"));
    println!("{} pairs made, {} there already, in {}", outcome.made, outcome.kept, args.out.display());
    outcome.failed.iter().for_each(|why| eprintln!("error: {why}"));
    if outcome.stopped {
        eprintln!("interrupted; the same command goes on from here");
        return Ok(ExitCode::from(130));
    }
    let nothing = outcome.made + outcome.kept == 0;
    if nothing {
        eprintln!("error: {}: no picture in it can be used", args.hq.display());
    }
    Ok(if nothing || !outcome.failed.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
