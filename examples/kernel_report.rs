//! Compiles every CUDA source for the architectures named (`sm_80 sm_90` if none is) and prints what each kernel uses:
//! registers, spills, shared memory, and how full a multiprocessor it leaves. Fails on a spill or where there is no NVRTC.
//!
//! Needs no GPU. `cargo run --release --example kernel_report -- sm_89`

use asasr_engine::engine::{jit::Jit, kernels};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut archs: Vec<String> = std::env::args().skip(1).collect();
    if archs.is_empty() {
        archs = ["sm_80", "sm_90"].map(String::from).to_vec();
    }
    let jit = Jit::open()?;
    if archs == ["--find"] {
        return Ok(()); // There is an NVRTC.
    }
    let (major, minor) = jit.nvrtc().version();
    println!("NVRTC {major}.{minor}, {}", jit.nvrtc().path().display());
    let mut spilling = Vec::new();
    for arch in &archs {
        println!(
            "\n{arch:<30} {:>7} {:>9} {:>6} {:>8} {:>8} {:>9} {:>9}",
            "threads", "registers", "spills", "static", "dynamic", "blocks/SM", "occupancy"
        );
        for (file, source) in kernels::SOURCES.iter().filter(|s| s.0.ends_with(".cu")) {
            for kernel in jit.kernel(file, arch)?.kernels {
                let dynamic = kernels::dynamic_shared(source, &kernel.name);
                let threads = kernel.threads.unwrap_or(1024);
                let (blocks, share) = match kernel.occupancy(arch, threads, dynamic) {
                    Some((blocks, share)) => (blocks.to_string(), format!("{:.0} %", share * 100.0)),
                    None => ("?".into(), "?".into()),
                };
                let spills = kernel.spill_stores + kernel.spill_loads;
                println!(
                    "{:<30} {threads:>7} {:>9} {spills:>6} {:>8} {dynamic:>8} {blocks:>9} {share:>9}",
                    kernel.name, kernel.registers, kernel.static_shared
                );
                // A stack without spills is an array that could not be kept in registers: as slow.
                if spills + kernel.stack > 0 {
                    spilling.push(format!("{} on {arch}", kernel.name));
                }
            }
        }
    }
    println!("\n{} sources compiled, the rest found in the cache", jit.compiled());
    if spilling.is_empty() { Ok(()) } else { Err(format!("registers spill: {}", spilling.join(", ")).into()) }
}
