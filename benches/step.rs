//! One AS-DPO step of the tiny preset's size (4 pairs, width 128, 1 double and 4 single blocks, 24 × 16 × 16 latents,
//! rank 16, LoRA adversary): forward, backward, clip and AdamW, with one collapsed text token and with all 512.
//!
//! FLOPs are those of the matrix products and the attention with the text tokens that line computes, bytes what those read
//! and write of activations. Last, the ratio of the two times.
#![allow(missing_docs, reason = "criterion's macros")]

#[path = "../tests/common/mod.rs"]
mod common;
mod support;

use asasr_engine::engine::Device;
use asasr_engine::ops::adamw::{AdamW, Gradients};
use asasr_engine::train::objective::Mode;
use common::{COLLAPSED, FULL, TINY, World};
use criterion::{Criterion, SamplingMode, criterion_group, criterion_main};
use std::time::Duration;
use support::{Flops, Table};

/// FLOPs and bytes of one sample's forward pass with `txt` text tokens: matrix products and attention.
fn forward_cost(w: &World, txt: usize, stream: usize) -> (f64, f64) {
    let (d, mlp, tokens) = (w.config.dim() as f64, w.config.mlp_dim() as f64, (txt + stream) as f64);
    let double = [(d, 3.0 * d), (d, d), (d, mlp), (mlp, d)];
    let single = [(d, 3.0 * d), (d, mlp), (d + mlp, d)];
    let block = |products: &[(f64, f64)]| {
        let flops: f64 = products.iter().map(|(i, o)| 2.0 * i * o).sum();
        let values: f64 = products.iter().map(|(i, o)| i + o).sum();
        (tokens * flops + 4.0 * tokens * tokens * d, 4.0 * tokens * (values + 4.0 * d))
    };
    let ((fd, bd), (fs, bs)) = (block(&double), block(&single));
    let (nd, ns) = (w.config.num_layers as f64, w.config.num_single_layers as f64);
    (nd * fd + ns * fs, nd * bd + ns * bs)
}

fn step(c: &mut Criterion<Flops>) {
    let w = World::new(&TINY, &Device::cpu()).expect("sizes that fit");
    let objective = w.objective(w.beta().expect("a finite batch"));
    let [_, height, width] = TINY.latents;
    let opt = AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 };
    let mut group = c.benchmark_group("asdpo_step");
    group.sampling_mode(SamplingMode::Flat).sample_size(10).measurement_time(Duration::from_secs(8));
    let (mut median, mut table) = (Vec::new(), Table::default());
    for (name, mode, txt) in [("text collapsed to 1 token", COLLAPSED, 1), ("512 text tokens", FULL, 512)] {
        let mut params = w.params().expect("an adapter");
        let mut once = |mode: Mode| {
            let out = w.step(&objective, &mut params, &w.pairs, mode).expect("a step");
            assert!(out.loss.value().item().is_finite());
            params.step(&opt, 1e-6, Gradients::of_one(1.0), |_| true).expect("an update");
            params.reset_grads();
        };
        // The adversary's forward, six streams forward, and backward, twice the work of forward, of the policy's three.
        let passes = TINY.pairs as f64 * (1.0 + 6.0 + 2.0 * 3.0);
        let (flops, bytes) = forward_cost(&w, txt, height * width / 2);
        let cost = (passes * flops, passes * bytes);
        median.extend(table.measure(&mut group, ("asdpo_step", name), cost, || once(mode)));
    }
    group.finish();
    table.print();
    if let [one, all] = median[..] {
        println!(
            "one text token instead of 512: {:.1} times as fast ({:.0} ms against {:.0} ms a step)\n",
            all / one,
            1e3 * one,
            1e3 * all
        );
    }
}

criterion_group! { name = benches; config = support::criterion(); targets = step }
criterion_main!(benches);
