//! `asasr-engine convert-lora`.

use asasr_engine::Result;
use asasr_engine::flux::convert::{Format, convert};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(clap::Args)]
pub struct Args {
    /// The adapter: a folder or a .safetensors file, in diffusers', PEFT's or kohya's naming
    input: PathBuf,
    /// Where it goes, which must not exist: a folder for diffusers, a .safetensors file for kohya
    output: PathBuf,
    /// Whose naming it gets: diffusers' and PEFT's, or kohya's sd-scripts', which ComfyUI reads, too
    #[arg(long, value_name = "NAMING", value_parser = format())]
    format: Format,
}

fn format() -> impl TypedValueParser<Value = Format> {
    PossibleValuesParser::new(Format::NAMES.map(|(name, _)| name)).map(|name| {
        let found = Format::NAMES.into_iter().find(|(known, _)| *known == name);
        found.map_or(Format::Kohya, |(_, format)| format)
    })
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let (adapter, written, off) = convert(&args.input, &args.output, args.format)?;
    println!(
        "{} ({} modules) → {}; read back, {} modules, outputs differ by at most {off:.2} unit roundoffs",
        args.input.display(),
        adapter.modules.len(),
        args.output.display(),
        written.modules.len()
    );
    Ok(ExitCode::SUCCESS)
}
