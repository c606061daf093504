//! How a model and its adapters start.
//!
//! The base: Xavier-uniform weights, zero biases, but every residual branch closed by a zero output projection behind
//! a gate of 1, the modulation weights zero, queries and keys biased alike so that RoPE starts as a local kernel, and
//! the embedder and the final projection mutually inverse behind an output scale of 0. It halves the time to a usable base.

use super::options::StageOptions;
use crate::autograd::ParamSet;
use crate::engine::{Device, Philox};
use crate::flux::config::FluxConfig;
use crate::{Error, Result};

/// Philox streams of initialisation start here; each parameter has its own.
const STREAM: u64 = 1 << 40;

fn uniform(seed: u64, stream: u64, n: usize, bound: f32) -> Vec<f32> {
    let mut rng = Philox::new(seed, stream).reader();
    (0..n).map(|_| rng.uniform(-bound, bound)).collect()
}

fn normal(seed: u64, stream: u64, n: usize, std: f32) -> Vec<f32> {
    let mut x = vec![0.0; n];
    Philox::new(seed, stream).normals(0, &mut x);
    x.iter_mut().for_each(|v| *v *= std);
    x
}

/// Every parameter of the transformer, ready to be trained from nothing.
pub fn base(config: &FluxConfig, seed: u64, device: &Device) -> Result<ParamSet> {
    let d = config.dim();
    let embed = if device.is_meta() { Vec::new() } else { semi_orthogonal(d, config.in_channels, seed) };
    let params = config.parameters().into_iter().enumerate().map(|(i, (name, shape))| {
        let (n, stream) = (shape.iter().product::<usize>(), STREAM + i as u64);
        let values = match shape[..] {
            _ if device.is_meta() => Vec::new(),
            [out, inp] => {
                if name == "x_embedder.weight" {
                    embed.clone()
                } else if name == "proj_out.weight" {
                    // The embedder's transpose, scaled by the share of D it fills.
                    let scale = (inp.min(out) as f32 / inp as f32).sqrt().min(1.0);
                    (0..n)
                        .map(|k| scale * embed.get(k % inp * out + k / inp).copied().unwrap_or(0.0))
                        .collect()
                } else if closed(&name) {
                    vec![0.0; n]
                } else {
                    uniform(seed, stream, n, (6.0 / (inp + out) as f32).sqrt())
                }
            }
            _ if name == "context_embedder.bias" => normal(seed, stream, n, 0.02),
            _ if name.contains(".attn.norm_") => vec![1.0; n],
            _ => bias(&name, n, d),
        };
        (name, shape, values)
    });
    ParamSet::new(device, params.collect())
}

/// Weights that start at zero: output projections of residual branches, and all modulation.
fn closed(name: &str) -> bool {
    ["attn.to_out.0.weight", "attn.to_add_out.weight", "ff.net.2.weight", "ff_context.net.2.weight"]
        .iter()
        .any(|end| name.ends_with(end))
        || (name.starts_with("single_") && name.ends_with("proj_out.weight"))
        || name.contains("norm")
}

fn bias(name: &str, n: usize, d: usize) -> Vec<f32> {
    let mut b = vec![0.0; n];
    let mut fill = |chunk: usize, value: f32| b[chunk * d..(chunk + 1) * d].fill(value);
    if name.ends_with("norm1.linear.bias") || name.ends_with("norm1_context.linear.bias") {
        fill(2, 1.0);
        fill(5, 1.0);
    } else if name.ends_with("norm.linear.bias") {
        fill(2, 1.0);
    } else if name == "norm_out.linear.bias" {
        fill(0, -1.0);
    } else if name.ends_with("attn.to_q.bias") || name.ends_with("attn.to_k.bias") {
        b.iter_mut().step_by(2).for_each(|v| *v = 1.0);
    }
    b
}

/// A `[rows, cols]` matrix with orthonormal columns (rows when there are fewer), by Gram–Schmidt in f64.
fn semi_orthogonal(rows: usize, cols: usize, seed: u64) -> Vec<f32> {
    let (long, short) = (rows.max(cols), rows.min(cols));
    let x = normal(seed, STREAM - 1, long * short, 1.0);
    let mut basis: Vec<Vec<f64>> = Vec::new();
    for v in x.chunks_exact(long) {
        let mut v: Vec<f64> = v.iter().map(|&v| f64::from(v)).collect();
        for _ in 0..2 {
            for b in &basis {
                let dot: f64 = v.iter().zip(b).map(|(a, b)| a * b).sum();
                v.iter_mut().zip(b).for_each(|(v, b)| *v -= dot * b);
            }
        }
        let norm = v.iter().map(|v| v * v).sum::<f64>().sqrt();
        v.iter_mut().for_each(|v| *v /= norm);
        basis.push(v);
    }
    let at = |r: usize, c: usize| if rows >= cols { basis[c][r] } else { basis[r][c] };
    (0..rows * cols).map(|i| at(i / cols, i % cols) as f32).collect()
}

/// How an adapter's A starts; B is always zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AInit {
    /// PEFT's default: uniform in ±1/√in.
    Uniform,
    /// Gaussian with standard deviation 1/r.
    Gaussian,
}

/// The parameters `<name>.<module>.lora_A.weight`, `…lora_B.weight` of a fresh adapter.
pub fn adapter(
    config: &FluxConfig,
    name: &str,
    options: &StageOptions,
    init: AInit,
    seed: u64,
    device: &Device,
) -> Result<ParamSet> {
    let r = options.rank;
    if r == 0 {
        return Err(Error::Usage(format!("the rank of adapter {name} is 0; set it to at least 1")));
    }
    // A stream apart for each adapter name.
    let salt = name.bytes().fold(0u64, |h, b| h.wrapping_mul(31).wrapping_add(u64::from(b))) << 20;
    let mut params = Vec::new();
    for (i, (module, inp, out)) in config.lora_targets().into_iter().enumerate() {
        let stream = STREAM.wrapping_add(salt).wrapping_add(i as u64);
        let zeros = if device.is_meta() { 0 } else { out * r };
        let a = match init {
            _ if device.is_meta() => Vec::new(),
            AInit::Uniform => uniform(seed, stream, r * inp, 1.0 / (inp as f32).sqrt()),
            AInit::Gaussian => normal(seed, stream, r * inp, 1.0 / r as f32),
        };
        params.push((format!("{name}.{module}.lora_A.weight"), vec![r, inp], a));
        params.push((format!("{name}.{module}.lora_B.weight"), vec![out, r], vec![0.0; zeros]));
    }
    ParamSet::new(device, params)
}
