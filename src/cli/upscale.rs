//! `asasr-engine upscale`.

use super::device::Choice;
use super::threads;
use asasr_engine::data::Image;
use asasr_engine::infer::model::layout;
use asasr_engine::infer::{ColorFix, Model, Tiling, upscale};
use asasr_engine::train::Config;
use asasr_engine::{Error, Result};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use indicatif::{ProgressBar, ProgressStyle};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(clap::Args)]
pub struct Args {
    /// The image to upscale: png or jpeg, any size
    input: PathBuf,
    /// Where the result goes: a png
    output: PathBuf,
    /// A trained run
    #[arg(long, value_name = "RUN")]
    model: PathBuf,
    /// Leave the preference adapter off
    #[arg(long)]
    sft_only: bool,
    /// Euler steps: 4 is closer to the input, 8 richer in texture
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1000))]
    steps: u32,
    /// Whose colours the result has: its own (none), or those of the input, by the mean and the spread of each channel
    /// (adain) or by the low frequencies (wavelet)
    #[arg(long, value_name = "HOW", default_value = "adain", value_parser = color_fix())]
    color_fix: ColorFix,
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

/// Refuses, before any work is done, an input that is not there and an output that cannot be or must not be written.
fn check_paths(input: &Path, output: &Path) -> Result<()> {
    let refuse = |path: &Path, why: &str| Err(Error::Usage(format!("{} {why}", path.display())));
    let folder = output.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match (input.canonicalize(), output.canonicalize()) {
        _ if !input.exists() => refuse(input, "does not exist"),
        (Ok(a), Ok(b)) if a == b => refuse(input, "would be overwritten by its own upscale"),
        _ if output.is_dir() => refuse(output, "is a folder; name the png to write"),
        _ if !folder.is_dir() => refuse(folder, "is no folder to write the result into; make it first"),
        _ => Ok(()),
    }
}

pub fn run(args: &Args) -> Result<ExitCode> {
    threads(args.threads)?;
    check_paths(&args.input, &args.output)?;
    let lq = Image::load(&args.input)?;
    let device = args.device.open()?;
    let adapters: &[&str] = if args.sft_only { &[layout::SFT] } else { &[layout::SFT, layout::ASDPO] };
    let model = Model::open(&args.model, adapters, &device)?;
    let style =
        ProgressStyle::with_template("{bar:30} {pos}/{len} tiles, left {eta}").expect("a literal template");
    let bar = ProgressBar::new(1).with_style(style);
    // Tiles of the size the model was trained at: it knows no other.
    let trained = Config::load(None, Some(&args.model.join("config.toml")), &[])?;
    let tile = trained.data.crop / trained.data.scale;
    let tiling = Tiling { tile, overlap: tile / 4, batch: 8 };
    let hq = upscale(&model, &lq, tiling, args.steps as usize, &device, &mut |done, all| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
    })?;
    bar.finish_and_clear();
    let hq = args.color_fix.apply(hq, &lq);
    hq.save_png(&args.output)?;
    println!(
        "{} {}×{} → {} {}×{}",
        args.input.display(),
        lq.width,
        lq.height,
        args.output.display(),
        hq.width,
        hq.height
    );
    Ok(ExitCode::SUCCESS)
}
