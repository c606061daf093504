//! The engine as a library: three pieces of it on memory the caller owns, each held against a formula written out below.
//!
//! ```sh
//! cargo run --no-default-features --example link
//! ```
//!
//! Exits with an error if a value or gradient is off by more than 2·10⁻⁵ of the largest.

use asasr_engine::autograd::{Leaves, Tape, Var};
use asasr_engine::engine::{Device, Tensor};
use asasr_engine::ops::attention::Attention;
use asasr_engine::ops::linear::{Linear, Lora};
use asasr_engine::ops::sobolev::{Metric, SobolevGap};
use asasr_engine::ops::{AdapterSet, TokenLayout};
use asasr_engine::{Error, Result};
use std::f64::consts::TAU;
use std::sync::Arc;

fn main() -> Result<()> {
    let device = Device::cpu();
    sobolev(&device)?;
    attention(&device)?;
    lora(&device)
}

/// The gap of two residuals' energies in the Sobolev metric, and its gradient: a circular convolution.
fn sobolev(device: &Device) -> Result<()> {
    let (shape, n, plane, s) = ([1, 2, 6, 4], 48, 24, 1.5);
    let [v, v_ref, target] = [1, 2, 3].map(|seed| values(seed, n));
    let tape = Tape::new(Leaves::default());
    let x = tape.input(Tensor::lend(device, &shape, &v)?);
    let [r, t] = [Tensor::lend(device, &shape, &v_ref)?, Tensor::lend(device, &shape, &target)?];
    let gap = tape.one(SobolevGap::new(Metric::full(s)), &[&x, &Var::constant(r), &Var::constant(t)])?;
    tape.backward(&gap, None)?;

    let frequency = |k: usize, n: usize| k.min(n - k) as f64;
    // A: what multiplies frequency k by (1 + |k|²)^s, as a kernel between pixels p and q.
    let kernel = |p: usize, q: usize| -> f64 {
        let turns = |k: usize, p: usize, q: usize, n: usize| k as f64 * (p as f64 - q as f64) / n as f64;
        let wave = |k: usize| {
            let weight = 1.0 + frequency(k / 4, 6).powi(2) + frequency(k % 4, 4).powi(2);
            weight.powf(s) * (TAU * (turns(k / 4, p / 4, q / 4, 6) + turns(k % 4, p % 4, q % 4, 4))).cos()
        };
        (0..plane).map(wave).sum::<f64>() / plane as f64
    };
    let minus =
        |a: &[f32], b: &[f32]| -> Vec<f64> { a.iter().zip(b).map(|(a, b)| f64::from(a - b)).collect() };
    let apply = |x: &[f64]| -> Vec<f64> {
        let pixel = |i: usize| (0..plane).map(|q| kernel(i % plane, q) * x[i / plane * plane + q]).sum();
        (0..n).map(pixel).collect()
    };
    let energy = |r: &[f64]| dot(r, &apply(r)) / n as f64;
    let residual = minus(&v, &target);
    let want = energy(&residual) - energy(&minus(&v_ref, &target));
    let slope: Vec<f64> = apply(&residual).iter().map(|a| 2.0 * a / n as f64).collect();
    close("Sobolev gap", gap.value(), &[want])?;
    close("Sobolev gap, dv", &gradient(&tape, &x), &slope)
}

/// Softmax attention of one head over five tokens, forward and backward.
fn attention(device: &Device) -> Result<()> {
    let (tokens, width) = (5, 4);
    let shape = [1, tokens, width];
    let [q, k, v, seed] = [4, 5, 6, 7].map(|seed| values(seed, tokens * width));
    let tape = Tape::new(Leaves::default());
    let mut inputs = Vec::new();
    for data in [&q, &k, &v] {
        inputs.push(tape.input(Tensor::lend(device, &shape, data)?));
    }
    // No text tokens here; their keys and values are empty.
    let none = Var::constant(Tensor::zeros(device, &[1, 0, width]).unwrap());
    let layout = TokenLayout { txt: 0, img: tokens, cond: 0 };
    let op = Attention { heads: 1, layout, log_multiplicity: None, groups: None };
    let o = tape.one(op, &[&inputs[0], &inputs[1], &inputs[2], &none, &none])?;
    tape.backward(&o, Some(Tensor::lend(device, &shape, &seed)?))?;

    let scale = 1.0 / (width as f64).sqrt();
    let [q, k, v, d_o] = [&q, &k, &v, &seed].map(|x| wide(x));
    let mut p: Vec<f64> =
        product(&q, &transposed(&k, width), width).iter().map(|s| (s * scale).exp()).collect();
    for row in p.chunks_exact_mut(tokens) {
        let sum: f64 = row.iter().sum();
        row.iter_mut().for_each(|p| *p /= sum);
    }
    let dp = product(&d_o, &transposed(&v, width), width);
    let mut ds = Vec::new();
    for (p, dp) in p.chunks_exact(tokens).zip(dp.chunks_exact(tokens)) {
        let mean = dot(p, dp);
        ds.extend(p.iter().zip(dp).map(|(p, dp)| scale * p * (dp - mean)));
    }
    close("attention", o.value(), &product(&p, &v, tokens))?;
    close("attention, dq", &gradient(&tape, &inputs[0]), &product(&ds, &k, tokens))?;
    close("attention, dk", &gradient(&tape, &inputs[1]), &product(&transposed(&ds, tokens), &q, tokens))?;
    close("attention, dv", &gradient(&tape, &inputs[2]), &product(&transposed(&p, tokens), &d_o, tokens))
}

/// A frozen linear layer with a trainable LoRA: y = W·x + scale·B·(A·x), forward and backward.
fn lora(device: &Device) -> Result<()> {
    let (tokens, width, out, rank, scale) = (3, 4, 5, 2, 0.5f32);
    let [x, w, a, b, seed] =
        [(8, tokens * width), (9, out * width), (10, rank * width), (11, out * rank), (12, tokens * out)]
            .map(|(seed, n)| values(seed, n));
    let tape = Tape::new(Leaves::default());
    let x_in = tape.input(Tensor::lend(device, &[1, tokens, width], &x)?);
    let w_in = Var::constant(Tensor::lend(device, &[out, width], &w)?);
    let a_in = tape.input(Tensor::lend(device, &[rank, width], &a)?);
    let b_in = tape.input(Tensor::lend(device, &[out, rank], &b)?);
    let set = Arc::new(AdapterSet::uniform(vec![0], 1));
    let lora = Lora { tokens: 0..tokens, set, adapters: vec![(0, scale)] };
    let op = Linear { bias: false, lora: Some(lora), ..Linear::plain() };
    let y = tape.one(op, &[&x_in, &w_in, &a_in, &b_in])?;
    tape.backward(&y, Some(Tensor::lend(device, &[1, tokens, out], &seed)?))?;

    let [x, w, a, b, dy] = [&x, &w, &a, &b, &seed].map(|x| wide(x));
    let up: Vec<f64> = b.iter().map(|b| f64::from(scale) * b).collect();
    let ax = product(&x, &transposed(&a, width), width);
    let merged: Vec<f64> = w.iter().zip(product(&up, &a, rank)).map(|(w, ba)| w + ba).collect();
    let d_ax = product(&dy, &up, out);
    let db: Vec<f64> =
        product(&transposed(&dy, out), &ax, tokens).iter().map(|d| f64::from(scale) * d).collect();
    close("LoRA linear", y.value(), &product(&x, &transposed(&merged, width), width))?;
    close("LoRA linear, dx", &gradient(&tape, &x_in), &product(&dy, &merged, out))?;
    close("LoRA linear, dA", &gradient(&tape, &a_in), &product(&transposed(&d_ax, rank), &x, tokens))?;
    close("LoRA linear, dB", &gradient(&tape, &b_in), &db)
}

/// The caller's own numbers, in ±1.
fn values(seed: u32, n: usize) -> Arc<Vec<f32>> {
    Arc::new((0..n as u32).map(|i| ((seed * 7919 + i * 104_729) as f32).sin()).collect())
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&v| f64::from(v)).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `[m, inner] · [inner, n]`
fn product(a: &[f64], b: &[f64], inner: usize) -> Vec<f64> {
    let columns = transposed(b, b.len() / inner);
    a.chunks_exact(inner)
        .flat_map(|row| columns.chunks_exact(inner).map(|c| dot(row, c)).collect::<Vec<_>>())
        .collect()
}

/// `[rows, columns]` → `[columns, rows]`
fn transposed(x: &[f64], columns: usize) -> Vec<f64> {
    (0..x.len()).map(|i| x[i % (x.len() / columns) * columns + i / (x.len() / columns)]).collect()
}

fn gradient(tape: &Tape, x: &Var) -> Tensor {
    tape.grad(x).expect("backward has reached every input")
}

fn close(what: &str, got: &Tensor, want: &[f64]) -> Result<()> {
    let size = want.iter().fold(0f64, |a, w| a.max(w.abs()));
    let errors = got.f32().iter().zip(want).map(|(g, w)| (f64::from(*g) - w).abs() / size);
    let error = errors.fold(0f64, |a, e| if e > a || e.is_nan() { e } else { a });
    println!("{what:<18} {:>3} values, largest error {error:.1e} of the largest value", want.len());
    if got.len() == want.len() && error < 2e-5 {
        return Ok(());
    }
    Err(Error::Shape {
        op: "link",
        detail: format!("{what} differs by {error:.1e} from the formula, wanted 2e-5"),
    })
}
