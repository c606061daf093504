//! How the kernels are launched at FLUX.1-dev's size: all stages at 512 pixels, adapters of rank 128 and 16, bf16; and the
//! autoencoder's layers, whole pictures of 512 pixels. Both run on a device that computes nothing, so this takes no memory.
//!
//! No kernel is compiled for a shape: registers, spills and static shared memory are those of any size. What a shape decides
//! is which kernels there are, over how many blocks, and with how much dynamic shared memory.

use asasr_engine::engine::cuda::Need;
use asasr_engine::engine::jit::report::KernelReport;
use asasr_engine::engine::{DType, Device, Tensor};
use asasr_engine::ops::conv2d::Conv2d;
use asasr_engine::ops::group_norm::GroupNorm;
use asasr_engine::ops::sdpa::Sdpa;
use asasr_engine::train::stages::Progress;
use asasr_engine::train::{Config, StageSummary, plan};
use serde_json::{Value, json};

/// Any autoencoder of 16 channels plans as FLUX.1's does: latents come from the host.
const SETS: [&str; 14] = [
    "model.base=random:flux-dev",
    "data.codec=tests/golden/tiny_flux/vae",
    "data.source=dead-leaves",
    "data.image_size=512",
    "data.images=3",
    "data.held_out=1",
    "run.stages=[\"sft\",\"adversary\",\"asdpo\"]",
    "sft.rank=128",
    "sft.batch=1",
    "adversary.batch=1",
    "asdpo.batch=1",
    "sft.accumulation=1",
    "adversary.accumulation=1",
    "asdpo.accumulation=1",
];
/// More than any device has: the stages are looked at, not fitted.
const MEMORY: usize = 1 << 40;
/// Multiprocessors of an H100, by which waves are counted.
const PROCESSORS: u64 = 132;

type Any = Box<dyn std::error::Error>;

struct Quiet;

impl Progress for Quiet {
    fn stage(&self, _: &str, _: usize, _: usize) {}
    fn step(&self, _: f64, _: f64) {}
    fn done(&self, _: &StageSummary) {}
    fn say(&self, _: &str) {}
}

/// The layers of FLUX.1's autoencoder: convolutions of every width and kind, a normalisation of the largest plane, attention.
fn autoencoder(device: &Device) -> Result<(), Any> {
    let make = |shape: &[usize]| Tensor::empty_as(device, shape, DType::F32);
    let same = Conv2d::same(3);
    let (down, up) = (Conv2d { stride: 2, padding: [0, 1], ..same }, Conv2d { upsample: true, ..same });
    for (op, inp, out, side) in [
        (same, 3, 128, 512),
        (same, 128, 128, 512),
        (down, 256, 256, 256),
        (Conv2d::same(1), 256, 512, 128),
        (same, 512, 512, 64),
        (up, 512, 512, 128),
        (same, 128, 3, 512),
    ] {
        let window = if op.padding == [0, 0] { 1 } else { 3 };
        let inputs = [make(&[1, inp, side, side])?, make(&[out, inp, window, window])?, make(&[out])?];
        op.apply(&inputs.each_ref())?;
    }
    for (channels, side, silu) in [(128, 512, true), (512, 64, false)] {
        let inputs = [make(&[1, channels, side, side])?, make(&[channels])?, make(&[channels])?];
        GroupNorm { groups: 32, silu }.apply(&inputs.each_ref())?;
    }
    let tokens = make(&[1, 64 * 64, 512])?;
    Sdpa { heads: 1, scale: 512f32.powf(-0.5), causal: false }.apply(&[&tokens; 3])?;
    Ok(())
}

/// Every kernel that is launched, and its launches: by the stages, by the autoencoder's layers.
fn launches() -> Result<Vec<(String, Need)>, Any> {
    let device = Device::absent_gpu();
    let gpu = device.gpu().ok_or("the absent GPU is no GPU")?;
    gpu.take_needs();
    let sets: Vec<String> = SETS.iter().map(|s| (*s).into()).collect();
    plan(&Config::load(Some("paper-asdpo"), None, &sets)?, &device, Some(MEMORY), &Quiet)?;
    let stages = gpu.take_needs();
    autoencoder(&device)?;
    let layers = gpu.take_needs();
    if stages.is_empty() || layers.is_empty() {
        return Err("a device that computes nothing has kept no launch".into());
    }
    Ok(stages.into_iter().chain(layers).collect())
}

/// What keeps `kernel` from being launched so on `arch`, or slows it there.
fn faults(arch: &str, kernel: &KernelReport, need: &Need) -> Vec<String> {
    let mut faults = kernel.faults(arch, need.shared);
    if let Some(most) = kernel.threads.filter(|&most| need.threads > most) {
        faults.push(format!("{} threads are launched, it was compiled for {most}", need.threads));
    }
    faults
}

/// Prints the table, of the last architecture of `compiled`; its rows as JSON, and what fails on any.
pub fn report(compiled: &[(&str, KernelReport)]) -> Result<(Vec<Value>, Vec<String>), Any> {
    let begun = std::time::Instant::now();
    let launched = launches()?;
    let shown = compiled.last().ok_or("no architecture is compiled for")?.0;
    println!(
        "\n{:<30} {:>8} {:>7} {:>9} {:>6} {:>8} {:>9} {:>9} {:>8} {:>9}   the largest launches of FLUX.1-dev, 512 px, {shown}",
        "full size",
        "launches",
        "threads",
        "registers",
        "spills",
        "dynamic",
        "blocks/SM",
        "blocks",
        "waves",
        "GB need"
    );
    let (mut rows, mut faulty) = (Vec::new(), Vec::new());
    for (name, need) in &launched {
        let of_name: Vec<_> = compiled.iter().filter(|(_, k)| k.name == *name).collect();
        if of_name.is_empty() {
            faulty.push(format!("{name}: is launched at full size, and no source has it"));
        }
        for (arch, kernel) in of_name {
            let faults = faults(arch, kernel, need);
            faulty.extend(faults.iter().map(|f| format!("{name} at full size on {arch}: {f}")));
            let fits = kernel.occupancy(arch, need.threads, need.shared).map_or(0, |f| u64::from(f.0));
            let waves = need.blocks as f64 / (fits * PROCESSORS).max(1) as f64;
            let spills = kernel.spill_stores + kernel.spill_loads;
            if *arch == shown {
                println!(
                    "{name:<30} {:>8} {:>7} {:>9} {spills:>6} {:>8} {fits:>9} {:>9} {waves:>8.2} {:>9.2}",
                    need.launches,
                    need.threads,
                    kernel.registers,
                    need.shared,
                    need.blocks,
                    need.bytes as f64 / 1e9
                );
            }
            rows.push(json!({
                "arch": arch, "kernel": name, "launches": need.launches, "threads": need.threads, "spills": spills,
                "registers": kernel.registers, "dynamic_shared": need.shared, "blocks_per_sm": fits,
                "blocks": need.blocks, "waves": waves, "needed_bytes": need.bytes, "faults": faults,
            }));
        }
    }
    println!(
        "{} kernels; launches and GB: a validation and three updates by one sample of each of the stages sft (r = 128), \
         adversary and asdpo (r = 16, recomputing), and the autoencoder's layers. waves: on {PROCESSORS} multiprocessors. {:.1} s",
        launched.len(),
        begun.elapsed().as_secs_f64()
    );
    Ok((rows, faulty))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_launch_that_cannot_be_is_a_fault() {
        let kernel = KernelReport { registers: 128, threads: Some(256), ..KernelReport::default() };
        let words = |kernel: &KernelReport, threads, shared| {
            faults("sm_90", kernel, &Need { threads, shared, ..Need::default() }).join("; ")
        };
        assert_eq!(words(&kernel, 256, 227 << 10), "");
        assert!(words(&kernel, 512, 0).contains("512 threads are launched, it was compiled for 256"));
        assert!(words(&kernel, 256, 228 << 10).contains("233472 bytes of shared memory fits"));
        let spilling = KernelReport { spill_stores: 8, ..kernel };
        assert!(words(&spilling, 256, 0).contains("8 bytes of spills"));
    }
}
