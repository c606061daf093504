//! What bf16 costs a preference step, beside f32 on the CPU. The kernels' gaps are off by no more than those of a bf16
//! implementation that spares nothing but velocities and gaps, their LoRA gradient is turned by no more than that of one
//! that spares nothing at all, nor by more than twice what the kernels' own dtypes must turn it by. All three are emulated
//! on the same batch by `examples/precision`, which measures the same on trained models.

mod common;
#[path = "../examples/precision/step.rs"]
mod step;

use asasr_engine::autograd::ParamSet;
use asasr_engine::engine::{DType, Device, Philox};
use asasr_engine::flux::params::adapter_params;
use asasr_engine::flux::rounding::{ENGINE, INSIDE, NAIVE, rounded_matrices};
use asasr_engine::ops::sobolev::Metric;
use asasr_engine::train::objective::{Adversary, AsDpo};
use common::{NANO, World};
use step::{Made, Step, cosine, pairs_on, relative_error};

/// ‖ΔW‖/‖W‖ of the trained adapter: the first step, and two on the way. A model with random weights heeds its condition,
/// and adapters on that, by so much less than a trained one that they are larger here.
const SIZES: [f32; 3] = [0.0, 3e-2, 3e-1];
/// Adapters of each size.
const SEEDS: u64 = 2;

/// A's and B's values: of B A's product as much of a weight as `size` says.
fn adapter(params: &ParamSet, seed: u64, size: f32) -> Vec<f32> {
    let mut values = Vec::new();
    for (i, name) in params.names().iter().enumerate() {
        let shape = params.shape(i);
        let down = name.contains("lora_A");
        let scale =
            if down { (shape[1] as f32).powf(-0.5) } else { size / (0.75 * (shape[1] as f32).sqrt()) };
        let mut part = vec![0.0; shape[0] * shape[1]];
        Philox::new(seed, i as u64).normals(0, &mut part);
        values.extend(part.iter().map(|v| scale * v));
    }
    values
}

/// β at which the arguments of these gaps' losses are at most 1: neither saturated nor linear.
fn beta(gaps: &[f32]) -> f32 {
    let (winners, losers) = gaps.split_at(gaps.len() / 2);
    let most = winners.iter().zip(losers).fold(0f32, |m, (w, l)| m.max((w - l).abs()));
    if most > 0.0 { 2.0 / most } else { 1.0 }
}

/// What the seeds' steps gave one way: all gaps, and the worst gradient's 1 − cosine.
#[derive(Default)]
struct Pooled {
    gaps: Vec<f32>,
    turned: f64,
}

impl Pooled {
    fn add(&mut self, made: &Made, want: &Made) {
        self.gaps.extend(&made.gaps);
        self.turned = self.turned.max(1.0 - cosine(&made.gradient, &want.gradient));
    }
}

#[test]
fn bf16_costs_no_more_than_a_naive_step() {
    let Some(device) = common::cuda::device() else { return };
    let cpu = Device::cpu();
    let [here, there] = [&cpu, &device].map(|d| World::new(&NANO, d).unwrap());
    let weights = rounded_matrices(&here.weights, &cpu).unwrap();
    let halves = rounded_matrices(&here.weights, &device).unwrap().computing_in(DType::Bf16).unwrap();
    let pairs = pairs_on(&here.pairs, &device).unwrap();
    for size in SIZES {
        let [mut exact, mut naive, mut spared, mut engine, mut kernels] = [(); 5].map(|()| Pooled::default());
        for seed in 0..SEEDS {
            let mut params = adapter_params(&cpu, &[&here.dpo]).unwrap();
            let masters = adapter(&params, seed, size);
            params.set_masters(&masters).unwrap();
            let objective = |beta| AsDpo::new(Metric::full(1.5), beta, 1.0, Adversary::None, 0.0);
            let any = objective(1.0);
            let step = Step {
                config: &here.config,
                weights: &weights,
                below: &here.sft,
                scale: 0.75,
                objective: &any,
                pairs: &here.pairs,
            };
            let objective = objective(beta(&step.run(&mut params).unwrap().gaps));
            let step = Step { objective: &objective, ..step };
            let want = step.run(&mut params).unwrap();
            exact.add(&want, &want);
            for (pooled, rounds) in [(&mut naive, NAIVE), (&mut spared, INSIDE), (&mut engine, ENGINE)] {
                pooled.add(&step.rounding(&mut params, rounds).unwrap(), &want);
            }
            let mut params = adapter_params(&device, &[&here.dpo]).unwrap();
            params.set_masters(&masters).unwrap();
            let step = Step { weights: &halves, below: &there.sft, pairs: &pairs, ..step };
            kernels.add(&step.run(&mut params).unwrap(), &want);
        }
        let error = |p: &Pooled| relative_error(&p.gaps, &exact.gaps);
        println!("‖ΔW‖/‖W‖ {size:.0e}");
        for (name, p) in
            [("naive", &naive), ("f32 gaps", &spared), ("emulated", &engine), ("kernels", &kernels)]
        {
            println!("  {name:<8} gaps off by {:.1e}, 1 − cosine {:.1e}", error(p), p.turned);
        }
        assert!(error(&kernels) <= error(&spared), "ΔW {size:.0e}: gaps");
        assert!(kernels.turned <= naive.turned, "ΔW {size:.0e}: gradient beside the naive one");
        assert!(kernels.turned <= 2.0 * engine.turned, "ΔW {size:.0e}: gradient beside the emulated one");
    }
}
