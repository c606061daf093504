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
    let vae = Vae::load(folder, &cpu)?;
    let (blocks, block) = (vae.config().block_out_channels.len() as u32, vae.config().block());
    let (cells, least) = (SIDE / block, (SIDE / block) * (SIDE / block));
    let weights = Folder::open(folder)?;
    let work = |half: &str| -> Result<f64, Box<dyn Error>> {
        let mut sum = 0.0;
        for name in weights.names().filter(|n| n.starts_with(half)) {
            sum += flops(name, weights.shape(name)?, blocks, least);
        }
        let width = *vae.config().block_out_channels.last().unwrap_or(&0) as f64;
        Ok(sum + 4.0 * width * (least * least) as f64)
    };
    let noise = |shape: &[usize]| {
        let mut values = vec![0f32; shape.iter().product()];
        Philox::new(1, 0).normals(0, &mut values);
        Tensor::from_slice(&cpu, shape, &values)
    };

    // What the machine's matrix product does of the shape that a 3×3 layer of 512 channels has, on every thread.
    let (m, k, n) = (512, 9 * 512, 512);
    let (a, b) = (noise(&[m, k])?, noise(&[k, n])?);
    let threads = rayon::current_num_threads();
    let mut out = vec![vec![0f32; m * n]; 4 * threads];
    let begun = Instant::now();
    out.par_iter_mut().for_each(|out| {
        matmul(m, k, n, 1.0, Mat::new(a.f32(), k), Mat::new(b.f32(), n), out, n, false);
    });
    let peak = (2 * m * k * n * out.len()) as f64 / begun.elapsed().as_secs_f64() / 1e9;
    println!("gemm {m}×{k}×{n}, {threads} threads: {peak:.0} GFLOP/s");

    let (picture, z) = (
        noise(&[1, vae.config().in_channels, SIDE, SIDE])?,
        noise(&[1, vae.config().latent_channels, cells, cells])?,
    );
    let time =
        |what: &str, half: &str, f: &dyn Fn() -> asasr_engine::Result<()>| -> Result<(), Box<dyn Error>> {
            let begun = Instant::now();
            f()?;
            let (seconds, flops) = (begun.elapsed().as_secs_f64(), work(half)?);
            let speed = flops / seconds / 1e9;
            println!(
                "{what} {SIDE}²: {seconds:.2} s, {:.2} TFLOP, {speed:.0} GFLOP/s, {:.0} % of gemm",
                flops / 1e12,
                100.0 * speed / peak
            );
            Ok(())
        };
    time("encode", "encoder.", &|| vae.encode(&picture).map(drop))?;
    time("decode", "decoder.", &|| vae.decode(&z).map(drop))?;
    Ok(())
}
