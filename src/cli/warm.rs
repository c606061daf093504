//! `asasr-engine warm`.

use asasr_engine::engine::jit::Jit;
use asasr_engine::engine::kernels;
use asasr_engine::{Error, Result};
use indicatif::{ProgressBar, ProgressStyle};
use std::process::ExitCode;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    device: super::device::Choice,
    /// Compile for this architecture, as sm_90, instead of the device's; needs no device (repeatable)
    #[arg(long, value_name = "ARCH")]
    arch: Vec<String>,
}

/// Compiles every kernel into the cache, so that nothing has to be compiled later.
pub fn run(args: &Args) -> Result<ExitCode> {
    let mut arches = args.arch.clone();
    if arches.is_empty() {
        let device = args.device.open()?;
        let gpu = device.gpu().ok_or_else(|| {
            Error::Usage(
                "warm: the CPU needs no kernels; name a device (--device cuda) or --arch sm_90".into(),
            )
        })?;
        arches.push(gpu.properties().arch());
    }
    let jit = Jit::open()?;
    let sources: Vec<&str> = kernels::SOURCES.iter().map(|s| s.0).filter(|s| s.ends_with(".cu")).collect();
    let style =
        ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}, left {eta}").expect("a literal template");
    let bar = ProgressBar::new((sources.len() * arches.len()) as u64).with_style(style);
    let mut count = 0;
    for arch in &arches {
        for source in &sources {
            bar.set_message(format!("{source} for {arch}"));
            count += jit.kernel(source, arch)?.kernels.len();
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    let (made, all) = (jit.compiled(), sources.len() * arches.len());
    println!(
        "{count} kernels in {all} sources for {}: {made} compiled, {} found",
        arches.join(", "),
        all - made
    );
    Ok(ExitCode::SUCCESS)
}
