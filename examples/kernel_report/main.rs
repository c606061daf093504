//! Compiles every CUDA source for the architectures named (`sm_80 sm_90` if none is, those of every GPU since Ampere with
//! `--all`) and prints what each kernel uses: registers, spills, shared memory, and how full a multiprocessor it leaves.
//! Then runs the ops' cases on the emulator and prints what each kernel did beside what it needed: bytes, products, bank
//! conflicts; what adapters add to a layer of FLUX's width; and how the kernels are launched by all stages of FLUX.1-dev at
//! 512 pixels and by its autoencoder. `--json FILE` writes all of it. Fails where a kernel spills, breaks its launch bounds,
//! exceeds a limit without a reason in its heading or is run by nothing, where adapters add more than they may, where a
//! launch at full size could not be, and where there is no NVRTC or no emulator.
//!
//! Needs no GPU. `cargo run --release --example kernel_report -- sm_89`

mod adapters;
mod counters;
mod direct;
mod full;

use asasr_engine::engine::{Device, jit::Jit, kernels, nvrtc::Nvrtc};
use serde_json::{Value, json};
use std::path::PathBuf;

const USUAL: [&str; 2] = ["sm_80", "sm_90"];
const ALL: [&str; 6] = ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut archs: Vec<String> = Vec::new();
    let mut json: Option<PathBuf> = None;
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            // Is there an NVRTC?
            "--find" => return Ok(Nvrtc::find().map(|_| ())?),
            "--all" => archs.extend(ALL.map(String::from)),
            "--json" => json = Some(args.next().ok_or("--json wants a file")?.into()),
            arch if arch.starts_with("sm_") => archs.push(arg),
            _ => return Err(format!("`{arg}` is none of --all, --json FILE, --find, sm_XX").into()),
        }
    }
    if archs.is_empty() {
        archs.extend(USUAL.map(String::from));
    }
    let jit = Jit::open()?;
    let (major, minor) = jit.nvrtc().version();
    println!("NVRTC {major}.{minor}, {}", jit.nvrtc().path().display());
    let (mut rows, mut faulty) = (Vec::new(), Vec::new());
    let mut compiled = Vec::new();
    for arch in &archs {
        println!(
            "\n{arch:<30} {:>7} {:>9} {:>6} {:>8} {:>8} {:>9} {:>9}",
            "threads", "registers", "spills", "static", "dynamic", "blocks/SM", "occupancy"
        );
        for (file, source) in kernels::SOURCES.iter().filter(|s| s.0.ends_with(".cu")) {
            for kernel in jit.kernel(file, arch)?.kernels {
                let dynamic = kernels::dynamic_shared(source, &kernel.name);
                let threads = kernel.threads.unwrap_or(1024);
                let fits = kernel.occupancy(arch, threads, dynamic);
                let (blocks, share) = match fits {
                    Some((blocks, share)) => (blocks.to_string(), format!("{:.0} %", share * 100.0)),
                    None => ("?".into(), "?".into()),
                };
                let spills = kernel.spill_stores + kernel.spill_loads;
                println!(
                    "{:<30} {threads:>7} {:>9} {spills:>6} {:>8} {dynamic:>8} {blocks:>9} {share:>9}",
                    kernel.name, kernel.registers, kernel.static_shared
                );
                let elsewhere =
                    kernels::heading(source, &kernel.name).is_some_and(|h| h.contains("Devices: "));
                let faults = match fits {
                    Some((0, _)) if elsewhere => Vec::new(),
                    _ => kernel.faults(arch, dynamic),
                };
                faulty.extend(faults.iter().map(|f| format!("{} on {arch}: {f}", kernel.name)));
                let mut row = json!({
                    "arch": arch, "file": file, "dynamic_shared": dynamic, "faults": faults,
                    "blocks_per_sm": fits.map(|f| f.0), "occupancy": fits.map(|f| f.1),
                });
                if let (Value::Object(row), Value::Object(more)) = (&mut row, serde_json::to_value(&kernel)?)
                {
                    row.extend(more);
                }
                rows.push(row);
                compiled.push((arch.as_str(), kernel));
            }
        }
    }
    println!("\n{} sources compiled, the rest found in the cache", jit.compiled());
    let device = Device::emu()?;
    let (counted, exceeding) = counters::report(&device)?;
    faulty.extend(exceeding);
    let (adapters, exceeding) = adapters::report(&device)?;
    faulty.extend(exceeding);
    let (full, exceeding) = full::report(&compiled)?;
    faulty.extend(exceeding);
    if let Some(path) = json {
        let all = json!({
            "nvrtc": format!("{major}.{minor}"), "kernels": rows, "counters": counted, "adapters": adapters, "full": full,
        });
        std::fs::write(&path, serde_json::to_vec_pretty(&all)?)
            .map_err(|e| format!("{}: {e}", path.display()))?;
    }
    if faulty.is_empty() { Ok(()) } else { Err(format!("\n  {}", faulty.join("\n  ")).into()) }
}
