//! What adapters cost beside the layer they are on, by the counters: FLOPs on tensor cores of one layer of FLUX's width,
//! forward and backward, with a frozen adapter and a trained one beside a frozen weight, as a policy has them.
//!
//! 256 tokens, the latter half the condition's, which adapters act on: whole tiles of either kind, so the shares are those
//! of 2048 tokens of which 1024 are the condition's.

use asasr_engine::engine::cuda::{Gpu, library};
use asasr_engine::engine::{DType, Device, Tensor};
use asasr_engine::ops::linear::{Linear, Lora};
use asasr_engine::ops::{AdapterSet, Op, Save, Slot};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

const WIDTH: usize = 3072;
const TOKENS: usize = 256;
/// Rank of the trained adapter.
const TRAINED: usize = 16;
/// Most that adapters of rank 16 + 16 may add to a pass.
const SHARE: f64 = 0.03;
/// Most FLOPs of a pass's adapters of rank 128 + 16, as a multiple of the arithmetic with ranks rounded up to 16.
const PADDED: f64 = 1.15;

type Any = Box<dyn std::error::Error>;

/// FLOPs on tensor cores by kernel, since the last call.
fn flops(gpu: &Gpu) -> Result<BTreeMap<String, u64>, Any> {
    gpu.synchronize()?;
    let all: Value = serde_json::from_str(&library::counters().ok_or("the emulator counts nothing")?)?;
    library::reset_counters();
    let needs = gpu.take_needs();
    let kernels = all["kernels"].as_object().ok_or("the emulator's counters have no kernels")?;
    let mut found = BTreeMap::new();
    for (name, counts) in kernels {
        let done = counts["mma_FLOPs"].as_u64().unwrap_or(0);
        let need = needs.get(name).map_or(0, |n| n.mma_flops);
        if done != need {
            return Err(format!("{name} multiplies {done}, its launches said {need}").into());
        }
        found.insert(name.clone(), done);
    }
    Ok(found)
}

/// Forward and backward of the layer with adapters of `ranks`, the last of them trained: FLOPs by kernel of each.
fn layer(device: &Device, gpu: &Gpu, ranks: &[usize]) -> Result<[BTreeMap<String, u64>; 2], Any> {
    let make = |shape: &[usize]| Tensor::bf16_from_f32(device, shape, &vec![0.5; shape.iter().product()]);
    let mut inputs = vec![make(&[1, TOKENS, WIDTH])?, make(&[WIDTH, WIDTH])?];
    for &rank in ranks {
        inputs.extend([make(&[rank, WIDTH])?, make(&[WIDTH, rank])?]);
    }
    let lora = (!ranks.is_empty()).then(|| Lora {
        tokens: TOKENS / 2..TOKENS,
        set: Arc::new(AdapterSet::uniform((0..ranks.len()).collect(), 1)),
        adapters: (0..ranks.len()).map(|i| (i, 1.0)).collect(),
    });
    let op = Linear { bias: false, lora, ..Linear::plain() };
    let trained = |i: usize| !ranks.is_empty() && i + 2 >= inputs.len();
    let needs: Vec<bool> = (0..inputs.len()).map(|i| i == 0 || trained(i)).collect();
    flops(gpu)?;
    let mut save = Save::new(&needs);
    let y = op.forward(&inputs.iter().collect::<Vec<_>>(), &mut save)?;
    let forward = flops(gpu)?;
    let slot = |i: usize| {
        let dtype = if i == 0 { DType::Bf16 } else { DType::F32 };
        let grad = needs[i].then(|| Tensor::empty_as(device, inputs[i].shape(), dtype)).transpose();
        grad.map(|grad| grad.map(|grad| Slot { grad, accumulate: false }))
    };
    let mut slots = (0..inputs.len()).map(slot).collect::<Result<Vec<_>, _>>()?;
    op.backward(&save.into_kept(), &[Some(&y[0])], &mut slots)?;
    Ok([forward, flops(gpu)?])
}

/// Prints the table; its rows as JSON, and what fails.
pub fn report(device: &Device) -> Result<(Vec<Value>, Vec<String>), Any> {
    let gpu = device.gpu().ok_or("the emulator is no GPU")?;
    let base = layer(device, gpu, &[])?.map(|pass| pass.values().sum::<u64>());
    println!(
        "\n{:<24} {:>10} {:>10} {:>9} {:>10}   {WIDTH}→{WIDTH}, adapters on half of the tokens, MFLOP",
        "adapters", "layer", "adapters", "share", "of padded"
    );
    let (mut rows, mut faulty) = (Vec::new(), Vec::new());
    for ranks in [[16, TRAINED], [128, TRAINED]] {
        let all = layer(device, gpu, &ranks)?;
        let rank: usize = ranks.iter().map(|r| r.next_multiple_of(16)).sum();
        // Two products with all ranks, and backward two with the trained one's: on half of the tokens.
        let padded = [2 * rank, 2 * rank + 2 * TRAINED].map(|r| (TOKENS * WIDTH * r) as f64);
        for (i, pass) in ["forward", "backward"].into_iter().enumerate() {
            let extra = all[i].values().sum::<u64>() - base[i];
            let (share, of) = (extra as f64 / base[i] as f64, extra as f64 / padded[i]);
            let title = format!("r = {}+{}, {pass}", ranks[0], ranks[1]);
            println!(
                "{title:<24} {:>10.1} {:>10.1} {:>7.2} % {of:>10.3}",
                base[i] as f64 / 1e6,
                extra as f64 / 1e6,
                100.0 * share
            );
            if ranks[0] == 16 && share >= SHARE {
                faulty.push(format!("adapters, {title}: {:.2} % of the layer", 100.0 * share));
            }
            if ranks[0] == 128 && of > PADDED {
                faulty.push(format!("adapters, {title}: {of:.3} times the padded arithmetic"));
            }
            let kernels = &all[i];
            rows.push(json!({ "adapters": ranks, "pass": pass, "layer": base[i], "extra": extra, "kernels": kernels }));
        }
    }
    println!(
        "share: limit {} % at r = 16+16. of padded: of the arithmetic with ranks rounded up to 16, limit {PADDED} at \
         r = 128+16; the S that backward computes again is in it.",
        100.0 * SHARE
    );
    Ok((rows, faulty))
}
