//! `asasr-engine doctor`.

use super::print;
use asasr_engine::engine::cuda::{self, Driver};
use asasr_engine::engine::jit::Jit;
use asasr_engine::engine::nvrtc::{self, Nvrtc};
use asasr_engine::engine::{Device, kernels};
use asasr_engine::{Error, Result};
use std::fmt::Write;
use std::process::ExitCode;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    device: super::device::Choice,
}

/// What there is on this machine, what is missing, and what would run.
pub fn run(args: &Args) -> Result<ExitCode> {
    let mut text = String::new();
    let mut line = |what: &str, says: &str| {
        let mut says = says.lines();
        let _ = writeln!(text, "{what:<10} {}", says.next().unwrap_or_default());
        for more in says {
            let _ = writeln!(text, "{:<10} {more}", "");
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    line("cpu", &format!("{cores} threads, {}", memory()));
    line("driver", &cuda::library::find_driver(Driver::Nvidia).unwrap_or_else(|e| missing(&e)));
    line("emulator", &cuda::library::find_driver(Driver::Emulator).unwrap_or_else(|e| missing(&e)));
    line(
        "NVRTC",
        &Nvrtc::find().map_or_else(
            |e| missing(&e),
            |n| format!("{}.{}, {}", n.version().0, n.version().1, n.path().display()),
        ),
    );
    line("cache", &cache().unwrap_or_else(|e| missing(&e)));
    let opened = args.device.open();
    match &opened {
        Ok(device) => line("device", &describe(device)),
        Err(e) => line("device", &missing(e)),
    }
    print(&text)?;
    Ok(if opened.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn missing(e: &Error) -> String {
    format!("missing: {e}")
}

/// The device and, where it is a GPU, what its kernels are compiled for.
fn describe(device: &Device) -> String {
    let Some(gpu) = device.gpu() else { return "cpu: all ops, f32".into() };
    let p = gpu.properties();
    let gib = |bytes: usize| bytes as f64 / f64::from(1 << 30);
    let free = gpu.memory().map_or(String::from("?"), |(free, _)| format!("{:.1}", gib(free)));
    format!(
        "{device:?}: {}, {}, {} multiprocessors, {free} of {:.1} GiB free, {} KiB of shared memory per block\n\
         its driver supports CUDA {}.{}; {} sources of kernels, compiled when first used or by `asasr-engine warm`",
        p.name,
        p.arch(),
        p.multiprocessors,
        gib(p.memory),
        p.shared_limit >> 10,
        p.driver.0,
        p.driver.1,
        kernels::SOURCES.iter().filter(|s| s.0.ends_with(".cu")).count(),
    )
}

fn memory() -> String {
    let read = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = |name: &str| {
        let line = read.lines().find(|l| l.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse::<f64>().ok()
    };
    match (kib("MemAvailable:"), kib("MemTotal:")) {
        (Some(free), Some(all)) => {
            format!("{:.1} of {:.1} GiB free", free / 1024.0 / 1024.0, all / 1024.0 / 1024.0)
        }
        _ => "memory unknown".into(),
    }
}

fn cache() -> Result<String> {
    let folder = nvrtc::cache_folder().ok_or_else(Jit::no_folder)?.join("kernels");
    let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
    let sizes: Vec<u64> = entries
        .filter(|e| e.path().extension().is_some_and(|x| x == "kernel"))
        .filter_map(|e| Some(e.metadata().ok()?.len()))
        .collect();
    let mib = sizes.iter().sum::<u64>() as f64 / f64::from(1 << 20);
    Ok(format!("{} compiled sources, {mib:.1} MiB, {}", sizes.len(), folder.display()))
}
