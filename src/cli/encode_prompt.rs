//! `asasr-engine encode-prompt`.

use super::device::Choice;
use super::verify::precision;
use super::{print, threads};
use asasr_engine::flux::text::{Cache, TOKENS, TextEncoders};
use asasr_engine::{Error, Result};
use indicatif::{ProgressBar, ProgressStyle};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(clap::Args)]
pub struct Args {
    /// A model with text encoders: FLUX.1 in diffusers' layout
    #[arg(long, value_name = "FOLDER")]
    model: PathBuf,
    /// The prompt
    #[arg(long, value_name = "TEXT", default_value = "")]
    prompt: String,
    /// Where the result goes: a safetensors file with txt [tokens, width] and pooled [width]
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Text tokens: 512 for FLUX.1-dev, 256 for FLUX.1-schnell
    #[arg(long, value_name = "N", default_value_t = TOKENS)]
    tokens: usize,
    /// What the encoders compute in: f32, or bf16 on a GPU or emu
    #[arg(long, value_name = "PRECISION", default_value = "f32")]
    precision: String,
    /// A folder of prompts that were encoded before, which is looked into first and added to
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Worker threads; 0: one per core
    #[arg(long, default_value_t = 0)]
    threads: usize,
    #[command(flatten)]
    device: Choice,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    threads(args.threads)?;
    let folder = args.out.parent().filter(|p| !p.as_os_str().is_empty());
    if args.out.is_dir() || folder.is_some_and(|f| !f.is_dir()) {
        return Err(Error::Usage(format!(
            "--out {}: wanted a file in a folder that is there",
            args.out.display()
        )));
    }
    let dtype = precision(&args.precision)?.dtype();
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} layers of T5, left {eta}");
    let bar = ProgressBar::new(1).with_style(style.expect("a literal template"));
    let encoders = TextEncoders::open(&args.model, &args.device.open()?, dtype)?.telling({
        let bar = bar.clone();
        move |done, all| {
            bar.set_length(all as u64);
            bar.set_position(done as u64);
        }
    });
    let (prompt, cached) = match &args.cache {
        Some(dir) => encoders.encode_cached(&args.prompt, args.tokens, &Cache::open(dir)?)?,
        None => (encoders.encode(&args.prompt, args.tokens)?, false),
    };
    bar.finish_and_clear();
    prompt.save(&args.out)?;
    print(&format!(
        "{:?} → {}: txt {:?}, pooled {:?}{}\n",
        args.prompt,
        args.out.display(),
        prompt.txt.shape(),
        prompt.pooled.shape(),
        if cached { ", from the cache" } else { "" }
    ))?;
    Ok(ExitCode::SUCCESS)
}
