//! What rounding to bf16 does to a preference step of a trained model: the relative error of the DPO gaps and the cosine
//! of the LoRA gradient against f32, for candidate policies and several sizes of the trained adapter, as a table.
//!
//! ```sh
//! asasr-engine train --preset tiny --out runs/tiny
//! cargo run --release --example precision -- runs/tiny [--pairs 4] [--device emu|cuda]
//! ```
//!
//! The model's matrices are bf16 to begin with, as FLUX.1's are: what is measured is the computation. Losers are the
//! dataset's and, once and for all policies made in f32, the adversary's. With `--device` the kernels compute the same.

mod step;

use asasr_engine::autograd::{Tape, Var};
use asasr_engine::data::{DeadLeavesSource, Degradation, Sampler, Split};
use asasr_engine::engine::{DType, Device, Philox, Tensor};
use asasr_engine::flux::base::BaseModel;
use asasr_engine::flux::lora::{AdapterFile, LoraModule};
use asasr_engine::flux::params::{Adapter, Weights, adapter_params};
use asasr_engine::flux::rounding::Class::{self, *};
use asasr_engine::flux::rounding::{ENGINE, INSIDE, NAIVE, rounded, rounded_matrices};
use asasr_engine::flux::schedule::{logit_normal, sigma_of};
use asasr_engine::flux::transformer::Flux;
use asasr_engine::infer::model::{layout, load_codec};
use asasr_engine::ops::embed::NoiseLevels;
use asasr_engine::ops::patch::Pack;
use asasr_engine::train::Config;
use asasr_engine::train::objective::{Adversary, AsDpo, Mode, Pairs, Policies, Text, as_dpo};
use asasr_engine::{Error, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use step::{Made, Step, cosine, pairs_on, relative_error};

/// ‖ΔW‖/‖W‖ of the adapter; 0 is the first step.
const SIZES: [f32; 4] = [0.0, 1e-4, 1e-3, 1e-2];

/// Policies that are emulated.
fn candidates() -> Vec<(&'static str, Vec<Class>)> {
    let but = |of: &[Class], not: &[Class]| of.iter().copied().filter(|c| !not.contains(c)).collect();
    let alone = |name: &'static str, classes: &[Class]| (name, classes.to_vec());
    let with = |more: &[Class]| [ENGINE, more].concat();
    vec![
        ("naive: everything, energies subtracted in bf16", NAIVE.to_vec()),
        ("everything but energies", but(NAIVE, &[Energy])),
        ("everything but velocity, gap and the trained gradients", INSIDE.to_vec()),
        ("**the engine's**: the residual stream and modulation f32 besides", ENGINE.to_vec()),
        ("the engine's, and the residual stream", with(&[Residual, ResidualGradient])),
        ("the engine's, and the residual stream's gradient", with(&[ResidualGradient])),
        ("the engine's, and modulation", with(&[Table])),
        ("the engine's, and the velocity", with(&[Velocity])),
        ("the engine's but q, k, v", but(ENGINE, &[Projected, Rotated])),
        ("the engine's but LayerNorm's output", but(ENGINE, &[Normed])),
        ("the engine's but attention's output", but(ENGINE, &[Attended])),
        ("the engine's but gradients", but(ENGINE, &[Gradient])),
        alone("A and B alone", &[]),
        alone("the residual stream alone", &[Residual, ResidualGradient]),
        alone("modulation alone", &[Table]),
        alone("LayerNorm's output alone", &[Normed]),
        alone("q, k, v alone", &[Projected, Rotated]),
        alone("attention's output alone", &[Attended]),
        alone("the MLP's inside alone", &[Hidden]),
        alone("the velocity alone", &[Velocity]),
        alone("gradients alone", &[Gradient]),
    ]
}

/// What the command line says.
struct Args {
    run: PathBuf,
    pairs: usize,
    device: Option<Device>,
}

fn args() -> Result<Args> {
    let usage = || Error::Usage("precision RUN [--pairs N] [--device emu|cuda]".to_owned());
    let mut args = std::env::args().skip(1);
    let mut out = Args { run: args.next().ok_or_else(usage)?.into(), pairs: 4, device: None };
    while let Some(option) = args.next() {
        match (option.as_str(), args.next().as_deref()) {
            ("--pairs", Some(n)) => out.pairs = n.parse().map_err(|_| usage())?,
            ("--device", Some("emu")) => out.device = Some(Device::emu()?),
            ("--device", Some("cuda")) => out.device = Some(Device::cuda(0)?),
            _ => return Err(usage()),
        }
    }
    Ok(out)
}

/// Pairs whose losers are the dataset's.
fn dataset_pairs(config: &Config, run: &Path, n: usize, device: &Device) -> Result<Pairs> {
    let d = &config.data;
    let source = Arc::new(DeadLeavesSource::new(d.images, d.seed, d.image_size)?);
    let split = Split::last(d.images, d.held_out)?;
    let codec = load_codec(run, &Device::cpu())?;
    let sampler = Sampler::new(source, split, d.crop, Degradation::default(), codec, config.run.seed)?;
    let batch = sampler.batch(9, 0, n, false)?;
    let shape = [n, batch.channels, batch.side, batch.side];
    let planes = |values: &[f32]| Tensor::from_slice(device, &shape, values);
    let normals = |stream: u64, n: usize| {
        let mut v = vec![0.0; n];
        Philox::new(config.run.seed, stream).normals(0, &mut v);
        v
    };
    let levels = |stream| {
        let sigma: Vec<f32> = normals(stream, n).into_iter().map(|n| sigma_of(logit_normal(n))).collect();
        NoiseLevels::new(device, &sigma)
    };
    let cond = planes(&sampler.latents(&batch.cond)?)?;
    Ok(Pairs {
        winner: planes(&sampler.latents(&batch.target)?)?,
        cond: Tape::no_grad().one(Pack, &[&Var::constant(cond.clone())])?.value().clone(),
        noise_winner: planes(&normals(0xa0, cond.len()))?,
        noise_loser: planes(&normals(0xa1, cond.len()))?,
        sigma_winner: levels(0xa2)?,
        sigma_loser: levels(0xa3)?,
        loser: cond,
    })
}

/// The pairs, and once more with the adversary's losers.
fn with_adversary(flux: &Flux, objective: &AsDpo, pairs: Pairs) -> Result<Pairs> {
    let policies = Policies { policy: vec![0], reference: vec![0], adversary: vec![0, 1] };
    let mode = Mode { text: Text::Collapsed, recompute: false };
    let lora = AsDpo { adversary: Adversary::Lora, ..objective.clone() };
    let made = as_dpo(flux, &Tape::no_grad(), &lora, &policies, &pairs, mode)?.negative;
    let made = made.ok_or_else(|| Error::Usage("the adversary made no losers".to_owned()))?;
    let both = |a: &Tensor, b: &Tensor| Tensor::stack(&[a, b]);
    let p = &pairs;
    Ok(Pairs {
        winner: both(&p.winner, &p.winner)?,
        loser: both(&p.loser, &made.x)?,
        cond: both(&p.cond, &p.cond)?,
        noise_winner: both(&p.noise_winner, &p.noise_winner)?,
        noise_loser: both(&p.noise_loser, &p.noise_winner)?,
        sigma_winner: NoiseLevels::stack(&[&p.sigma_winner, &p.sigma_winner])?,
        sigma_loser: NoiseLevels::stack(&[&p.sigma_loser, &p.sigma_winner])?,
    })
}

/// `a·b`, `[m, k]·[k, n]`, or with the transpose of one.
fn product(a: &[f32], at: bool, b: &[f32], bt: bool, [m, k, n]: [usize; 3]) -> Vec<f32> {
    let of = |x: &[f32], turned: bool, i: usize, j: usize, rows: usize, columns: usize| {
        f64::from(if turned { x[j * rows + i] } else { x[i * columns + j] })
    };
    let value =
        |i: usize, j: usize| (0..k).map(|l| of(a, at, i, l, m, k) * of(b, bt, l, j, k, n)).sum::<f64>();
    (0..m * n).map(|at| value(at / n, at % n) as f32).collect()
}

/// scale·B·A.
fn change(m: &LoraModule) -> Vec<f32> {
    let (a, b) = (m.a.f32(), m.b.f32());
    let mut w = product(b, false, a, false, [m.b.shape()[0], m.rank(), m.a.width()]);
    w.iter_mut().for_each(|v| *v *= m.scaling());
    w
}

fn norm(v: &[f32]) -> f64 {
    v.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt()
}

/// ‖ΔW‖/‖W‖ over the adapted layers.
fn size(weights: &Weights, dpo: &AdapterFile) -> f64 {
    let w = |module: &str| {
        let name = format!("{module}.weight");
        weights.iter().find(|(n, _)| *n == name).map_or(0.0, |(_, w)| norm(w.f32()))
    };
    let both = dpo.modules.iter().map(|(name, m)| (norm(&change(m)).powi(2), w(name).powi(2)));
    let (changed, whole) = both.fold((0.0, 0.0), |(a, b), (c, d)| (a + c, b + d));
    (changed / whole).sqrt()
}

/// The layers' matrices with adapters folded in, in bf16, as what that changes of them.
fn folded(weights: &Weights, adapters: &[&AdapterFile], name: &str) -> Result<AdapterFile> {
    let mut out = adapters[0].clone();
    out.name = name.to_owned();
    for (module, m) in &mut out.modules {
        let full = format!("{module}.weight");
        let lacks = || Error::Usage(format!("the model has no {full}"));
        let w = weights.iter().find(|(n, _)| *n == full).ok_or_else(lacks)?.1;
        let (rows, columns) = (w.shape()[0], w.width());
        let mut sum = w.f32().to_vec();
        for one in adapters.iter().filter_map(|a| a.modules.get(module)) {
            sum.iter_mut().zip(change(one)).for_each(|(s, c)| *s += c);
        }
        let off: Vec<f32> = sum.iter().zip(w.f32()).map(|(s, w)| rounded(*s) - w).collect();
        let unit: Vec<f32> =
            (0..columns * columns).map(|i| if i / columns == i % columns { 1.0 } else { 0.0 }).collect();
        *m = LoraModule {
            a: Tensor::from_slice(w.device(), &[columns, columns], &unit)?,
            b: Tensor::from_slice(w.device(), &[rows, columns], &off)?,
            alpha: columns as f32,
        };
    }
    Ok(out)
}

/// A step of the engine's policy whose adapters are folded into bf16 matrices; the gradient is the factors', through
/// that of the matrix.
fn folded_step(step: &Step, dpo: &AdapterFile) -> Result<Made> {
    // Both are what they change of the base: the policy's stands in the place of the reference's, not on it.
    let reference = folded(step.weights, &[step.below], "base_sft")?;
    let policy = folded(step.weights, &[step.below, dpo], "train_dpo")?;
    let mut more = policy.clone();
    for (name, m) in &mut more.modules {
        let off: Vec<f32> =
            m.b.f32().iter().zip(reference.modules[name].b.f32()).map(|(p, r)| p - r).collect();
        m.b = Tensor::from_slice(m.b.device(), m.b.shape(), &off)?;
    }
    let mut whole = adapter_params(&Device::cpu(), &[&more])?;
    let step = Step { below: &reference, scale: 1.0, ..*step };
    let made = step.with(&mut whole, Some(ENGINE))?;
    let mut gradient = Vec::new();
    for (i, m) in dpo.modules.values().enumerate() {
        // Of this module's A, then its B, which is ΔW.
        let g = whole.grad(2 * i + 1).values()?;
        let (rows, columns, rank) = (m.b.shape()[0], m.a.width(), m.rank());
        let mut both = product(m.b.f32(), true, &g, false, [rank, rows, columns]);
        both.extend(product(&g, false, m.a.f32(), true, [rows, columns, rank]));
        gradient.extend(both.iter().map(|v| m.scaling() * v));
    }
    Ok(Made { gaps: made.gaps, gradient })
}

/// Rows in the order in which they were first said, a cell per size.
#[derive(Default)]
struct Table {
    rows: Vec<(String, Vec<String>)>,
}

impl Table {
    fn say(&mut self, name: &str, got: &Made, want: &Made) {
        let error = relative_error(&got.gaps, &want.gaps);
        let turned = format!("{:.0e}", 1.0 - cosine(&got.gradient, &want.gradient));
        // At the first step there is no gap.
        let cell = if error == 0.0 { turned } else { format!("{error:.1e}, {turned}") };
        eprintln!("{name}: {cell}");
        match self.rows.iter_mut().find(|r| r.0 == name) {
            Some(row) => row.1.push(cell),
            None => self.rows.push((name.to_owned(), vec![cell])),
        }
    }

    fn print(&self) {
        let sizes: Vec<String> = SIZES[1..].iter().map(|s| format!("{s:.0e}")).collect();
        println!("| bf16 is | first step | {} |", sizes.join(" | "));
        println!("|---|{}", "---|".repeat(SIZES.len()));
        self.rows.iter().for_each(|(name, cells)| println!("| {name} | {} |", cells.join(" | ")));
    }
}

fn main() -> Result<()> {
    let args = args()?;
    let cpu = Device::cpu();
    let options = Config::load(None, Some(&args.run.join("config.toml")), &[])?;
    let base = BaseModel::open(args.run.join(layout::BASE))?;
    let weights = base.load(&cpu, DType::F32, &mut |_, _| ())?;
    let weights = rounded_matrices(&weights, &cpu)?;
    let load = |name: &str, device: &Device| AdapterFile::load(args.run.join(name), device);
    let (sft, trained) = (load(layout::SFT, &cpu)?, load(layout::ASDPO, &cpu)?);
    let p = &options.preference;
    let objective = AsDpo::new(p.metric(), p.beta, p.lambda, Adversary::None, 0.0);
    let adapters = [&sft, &load(layout::ADVERSARY, &cpu)?].map(|f| Adapter::frozen(f, 1.0));
    let flux = Flux { config: base.config(), weights: &weights, adapters: &adapters };
    let pairs = dataset_pairs(&options, &args.run, args.pairs, &cpu)?;
    let pairs = with_adversary(&flux, &objective, pairs)?;
    let natural = size(&weights, &trained);
    if natural == 0.0 {
        return Err(Error::Usage(format!("{}: train_dpo changes nothing yet", args.run.display())));
    }
    println!("‖ΔW‖/‖W‖ = {natural:.1e} as trained, {} pairs, β {}\n", 2 * args.pairs, p.beta);

    let elsewhere = args.device.as_ref().map(|device| -> Result<_> {
        let sft = load(layout::SFT, device)?;
        Ok((device, rounded_matrices(&weights, device)?, sft, pairs_on(&pairs, device)?))
    });
    let elsewhere = elsewhere.transpose()?;
    let mut table = Table::default();
    for wanted in SIZES {
        let mut dpo = trained.clone();
        for m in dpo.modules.values_mut() {
            let factor = (f64::from(wanted) / natural) as f32;
            let b: Vec<f32> = m.b.f32().iter().map(|v| v * factor).collect();
            m.b = Tensor::from_slice(&cpu, m.b.shape(), &b)?;
        }
        let mut params = adapter_params(&cpu, &[&dpo])?;
        let scale = options.asdpo.alpha / options.asdpo.rank as f32;
        let (below, objective) = (&sft, &objective);
        let step = Step { config: base.config(), weights: &weights, below, scale, objective, pairs: &pairs };
        let want = step.run(&mut params)?;
        let rms = norm(&want.gaps) / (want.gaps.len() as f64).sqrt();
        eprintln!("ΔW {wanted:.0e}: gaps of {rms:.1e}, gradient of {:.1e}", norm(&want.gradient));
        for (name, rounds) in candidates() {
            table.say(name, &step.rounding(&mut params, &rounds)?, &want);
        }
        let folded = folded_step(&step, &dpo)?;
        table.say("the engine's, adapters folded into bf16 matrices", &folded, &want);
        if let Some((device, weights, sft, pairs)) = &elsewhere {
            for (name, dtype) in [("kernels, f32", DType::F32), ("**kernels, bf16**", DType::Bf16)] {
                let weights = weights.clone().computing_in(dtype)?;
                let step = Step { weights: &weights, below: sft, pairs, ..step };
                let mut params = adapter_params(device, &[&dpo])?;
                table.say(name, &step.run(&mut params)?, &want);
            }
        }
    }
    table.print();
    Ok(())
}
