//! The command line: one file per subcommand. Parses, prints, sets exit codes; no maths.

/// The standard one, but training does not end in a panic because the reader of its progress has (`| head`).
macro_rules! println {
    ($($arg:tt)*) => {{
        let _ = $crate::cli::print(&format!("{}\n", format_args!($($arg)*)));
    }};
}

mod convert_lora;
mod degrade;
mod device;
mod doctor;
mod encode_prompt;
mod eval;
mod inspect;
mod report;
mod train;
mod upscale;
mod verify;
mod warm;

use asasr_engine::{Error, Result};
use clap::{Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{ErrorKind, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Trains faithful image super-resolution: FLUX + LoRA, aligned with ASASR.
#[derive(Parser)]
#[command(version, about, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train a model through ASASR's stages
    Train(train::Args),
    /// Upscale pictures and folders of them with a trained run
    Upscale(upscale::Args),
    /// Score folders of restored pictures against the truth
    Eval(eval::Args),
    /// Make pairs for training of good pictures: Real-ESRGAN's degradation, with a manifest
    Degrade(degrade::Args),
    /// Encode a prompt once, with FLUX.1's text encoders
    EncodePrompt(encode_prompt::Args),
    /// Replay golden vectors recorded from the reference implementation
    Verify(verify::Args),
    /// Show what a safetensors file, a model, an adapter or a run directory holds
    Inspect(inspect::Args),
    /// Write an adapter in diffusers' or in kohya's naming, and compare what was written
    ConvertLora(convert_lora::Args),
    /// Show a run, or two side by side, as one page
    Report(report::Args),
    /// Say what this machine has, what is missing, and what would run
    Doctor(doctor::Args),
    /// Compile every CUDA kernel into the cache
    Warm(warm::Args),
}

/// Parses, runs, and turns the outcome into an exit code: 0, 1 for a failure, 2 for a usage error, 130 for Ctrl-C.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.command {
        Command::Train(args) => train::run(&args),
        Command::Upscale(args) => upscale::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Degrade(args) => degrade::run(&args),
        Command::EncodePrompt(args) => encode_prompt::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::ConvertLora(args) => convert_lora::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Warm(args) => warm::run(&args),
    };
    outcome.unwrap_or_else(|e| {
        eprintln!("error: {e}");
        ExitCode::from(e.exit_code())
    })
}

/// Prints; a reader that has gone away (`| head`) is no error, and no panic.
fn print(text: &str) -> Result<()> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(Error::io("standard output")(e)),
        _ => Ok(()),
    }
}

/// A bar of the bytes of weights that are read.
fn weights_bar() -> ProgressBar {
    let style = "{prefix:<10} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} left {eta}";
    let style = ProgressStyle::with_template(style).expect("a literal template");
    ProgressBar::new(0).with_style(style).with_prefix("weights")
}

/// A flag that Ctrl-C raises; a second Ctrl-C ends the process at once.
fn ctrl_c() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        eprintln!("\nstopping after this step; Ctrl-C again stops at once");
    })
    .map_err(|e| Error::Usage(format!("Ctrl-C cannot be caught: {e}")))?;
    Ok(stop)
}

/// Sets the number of threads; 0 is one per core. The main thread is one of them: a parallel loop then begins at once,
/// without waking a worker and going to sleep.
fn threads(n: usize) -> Result<()> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(n)
        .use_current_thread()
        .build_global()
        .map_err(|e| Error::Usage(format!("{n} worker threads cannot be started: {e}")))
}
