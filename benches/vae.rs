//! FLUX.1's autoencoder on the CPU: `cargo bench --bench vae -- FOLDER` times one encoding and one decoding of 512×512
//! pixels by the weights in FOLDER, beside the matrix product that nearly all of their time goes into.
//!
//! Weights of any values will do; `diffusers.AutoencoderKL(...).save_pretrained(FOLDER)` makes random ones.

use asasr_engine::engine::matmul::{Mat, matmul};
use asasr_engine::engine::{Device, Philox, Tensor};
use asasr_engine::flux::{Folder, Vae};
use rayon::prelude::*;
use std::error::Error;
use std::path::Path;
use std::time::Instant;

const SIDE: usize = 512;

/// FLOPs of the layer of weight `name`, whose shape is `shape`, in a network whose smallest plane has `least` positions.
fn flops(name: &str, shape: &[usize], blocks: u32, least: usize) -> f64 {
    let level = name.split('.').nth(2).and_then(|i| i.parse::<u32>().ok()).unwrap_or(0);
    let positions = match name {
        _ if shape.len() < 2 => 0,
        _ if name.contains("downsamplers") => least << (2 * (blocks - 2 - level)),
        _ if name.contains("down_blocks") => least << (2 * (blocks - 1 - level)),
        _ if name.contains("upsamplers") => least << (2 * (level + 1)),
        _ if name.contains("up_blocks") => least << (2 * level),
        _ if name.contains("encoder.conv_in") || name.contains("decoder.conv_out") => SIDE * SIDE,
        _ => least,
    };
    2.0 * (shape.iter().product::<usize>() * positions) as f64
}

fn main() -> Result<(), Box<dyn Error>> {
    let Some(folder) = std::env::args().skip(1).find(|a| !a.starts_with("--")) else {
        println!(
            "cargo bench --bench vae -- FOLDER: the autoencoder's weights, by diffusers' names; nothing to do"
        );
        return Ok(());
    };
    let (folder, cpu) = (Path::new(&folder), Device::cpu());
    let weights = Folder::open(folder)?;

    // What the machine's matrix product does of the shape that a 3×3 layer of 512 channels has, on every thread.
    let (m, k, n) = (512, 9 * 512, 512);
    let (a, b) = (noise(&cpu, &[m, k])?, noise(&cpu, &[k, n])?);
    let threads = rayon::current_num_threads();
    let mut out = vec![vec![0f32; m * n]; 16 * threads];
    let begun = Instant::now();
    out.par_iter_mut().for_each(|out| {
        matmul(m, k, n, 1.0, Mat::new(a.f32(), k), Mat::new(b.f32(), n), out, n, false);
    });
    let peak = (2 * m * k * n * out.len()) as f64 / begun.elapsed().as_secs_f64() / 1e9;
    println!("gemm {m}×{k}×{n}, {threads} threads: {peak:.0} GFLOP/s");

    for half in ["encoder.", "decoder."] {
        // Of its own, so that its memory is counted alone.
        let device = Device::cpu();
        let vae = Vae::load(folder, &device)?;
        let config = vae.config();
        let (blocks, cells) = (config.block_out_channels.len() as u32, SIDE / config.block());
        let (least, width) = (cells * cells, config.block_out_channels.last().copied().unwrap_or(0));
        let mut work = 4.0 * (width * least * least) as f64;
        for name in weights.names().filter(|n| n.starts_with(half)) {
            work += flops(name, weights.shape(name)?, blocks, least);
        }
        let begun = Instant::now();
        if half == "encoder." {
            vae.encode(&noise(&device, &[1, config.in_channels, SIDE, SIDE])?)?;
        } else {
            vae.decode(&noise(&device, &[1, config.latent_channels, cells, cells])?)?;
        }
        let (seconds, stats) = (begun.elapsed().as_secs_f64(), device.stats());
        let speed = work / seconds / 1e9;
        println!(
            "{half} {SIDE}²: {seconds:.2} s, {:.2} TFLOP, {speed:.0} GFLOP/s, {:.0} % of gemm; {} MiB at most at a time with \
             the weights, {} MiB reserved",
            work / 1e12,
            100.0 * speed / peak,
            stats.peak >> 20,
            stats.reserved >> 20
        );
    }
    Ok(())
}

fn noise(device: &Device, shape: &[usize]) -> asasr_engine::Result<Tensor> {
    let mut values = vec![0f32; shape.iter().product()];
    Philox::new(1, 0).normals(0, &mut values);
    Tensor::from_slice(device, shape, &values)
}
