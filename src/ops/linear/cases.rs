//! The linear layer's cases.

use super::super::embed::RopeTable;
use super::super::{AdapterSet, Case, ModSource, given, random};
use super::{Epilogue, Linear, Lora};
use crate::engine::{Device, Tensor};
use std::ops::Range;
use std::sync::Arc;

/// A layer with what it is given.
pub(in super::super) struct Layer {
    pub op: Linear,
    pub inputs: Vec<Tensor>,
    /// Which of them are parameters, and which bf16 where x is.
    pub parameters: Vec<usize>,
    pub half: Vec<usize>,
    pub flops: f64,
    /// Does its CUDA form store more than its output in x's dtype?
    pub stores: bool,
}

/// A layer from [batch, tokens, in] to out, whose adapters of `ranks` act on `tokens`; of an x in two tensors the first has
/// a fifth of the features. Weights and adapters are parameters, x, W and the bias bf16 where x is.
pub(in super::super) fn layer(
    device: &Device,
    [b, t, i, o]: [usize; 4],
    op: Linear,
    ranks: &[usize],
    tokens: Range<usize>,
) -> Layer {
    let rnd = |shape: &[usize], stream, scale| random(device, shape, stream, scale);
    let fan = 1.0 / (i as f32).sqrt();
    let mut inputs = match op.joined {
        true => vec![rnd(&[b, t, i / 5], 19, 1.0), rnd(&[b, t, i - i / 5], 20, 1.0)],
        false => vec![rnd(&[b, t, i], 20, 1.0)],
    };
    let w = inputs.len();
    inputs.extend([rnd(&[o, i], 21, fan), rnd(&[o], 22, 0.3)]);
    let mut parameters = vec![w, w + 1];
    match &op.epilogue {
        Epilogue::None | Epilogue::Gelu => {}
        Epilogue::NormRope { table } => {
            let norm: Vec<f32> = rnd(&[2 * table.half], 23, 0.3).f32().iter().map(|v| v + 1.0).collect();
            parameters.push(inputs.len());
            inputs.push(given(device, &[norm.len()], &norm));
        }
        Epilogue::Add => inputs.push(rnd(&[b, t, o], 23, 1.0)),
        Epilogue::Gate { source, chunk } => {
            inputs.push(rnd(&[b, t, o], 23, 1.0));
            inputs.push(rnd(&[b, (chunk + 1) * o], 24, 0.7));
            if source.cond.is_some() {
                inputs.push(rnd(&[2, (chunk + 1) * o], 25, 0.7));
            }
        }
    }
    for (k, &r) in ranks.iter().enumerate() {
        parameters.extend([inputs.len(), inputs.len() + 1]);
        inputs.push(rnd(&[r, i], 26 + k as u64, fan));
        inputs.push(rnd(&[o, r], 30 + k as u64, 1.0 / (r as f32).sqrt()));
    }
    let adapted: f64 = ranks.iter().map(|&r| (2 * b * tokens.len() * r * (i + o)) as f64).sum();
    let lora = (!ranks.is_empty()).then(|| Lora {
        tokens,
        set: Arc::new(AdapterSet::runs(&[(vec![0, 1], b - b / 2), (vec![0], b / 2)])),
        adapters: (0..ranks.len()).map(|k| (k, 1.0 + 0.5 * k as f32)).collect(),
    });
    // S, z, what is left of an f32 gradient or a master beside bf16.
    let stores = lora.is_some() || op.wide || !matches!(op.epilogue, Epilogue::None);
    let (flops, half) = (2.0 * (b * t * i * o) as f64 + adapted, (0..w + 2).collect());
    Layer { op: Linear { lora, ..op }, inputs, parameters, half, flops, stores }
}

/// A gate from tables of the image and of the condition, which is half of the tokens.
pub(in super::super) fn gate(b: usize, t: usize) -> Epilogue {
    let cond = Some((0..b).map(|i| usize::from(i >= b - b / 2)).collect());
    Epilogue::Gate { source: ModSource { split: t / 2, image: (0..b).collect(), cond }, chunk: 1 }
}

/// QK-norm and RoPE of heads of this width; every token has angles of its own.
fn rope(t: usize, head: usize) -> Epilogue {
    let ids: Vec<[f32; 3]> = (0..t).map(|i| [0.0, (i / 8) as f32, (i % 8) as f32]).collect();
    let table = RopeTable::new(&ids, &[2, head / 2 - 2, head / 2], 1e4).expect("the axes are even");
    Epilogue::NormRope { table: Arc::new(table) }
}

/// Every epilogue, with and without stacked adapters; then the layers of the tiny preset, and what
/// the GPU's tiles and dtypes make different.
pub fn cases(device: &Device) -> Vec<Case> {
    let adapted = |name: &str, shape: [usize; 4], op: Linear, ranks: &[usize], tokens: Range<usize>| {
        let [b, t, i, o] = shape;
        let layer = layer(device, shape, op, ranks, tokens);
        Case::new(name, layer.op, layer.inputs)
            .chain((b * t).max(i).max(o))
            .stores(layer.stores)
            .half(&layer.half)
            .parameters(&layer.parameters)
            .cost(layer.flops, b * t * o)
    };
    let form = |epilogue| Linear { epilogue, ..Linear::plain() };
    let make = |name: &str, shape: [usize; 4], epilogue, ranks: &[usize]| {
        adapted(name, shape, form(epilogue), ranks, shape[1] / 2..shape[1])
    };
    let joined = |name: &str, shape: [usize; 4], epilogue, ranks: &[usize]| {
        let op = Linear { joined: true, ..form(epilogue) };
        adapted(name, shape, op, ranks, shape[1] / 2..shape[1])
    };
    let wide = || Linear { wide: true, ..Linear::plain() };
    let mut rows =
        adapted("linear/20 64→192 +16+16", [20, 1, 64, 192], form(Epilogue::None), &[16, 16], 0..1);
    rows.inputs[0] = random(device, &[20, 64], 20, 1.0);
    let mut cases = vec![
        make("linear/plain", [2, 3, 5, 4], Epilogue::None, &[]),
        make("linear/gelu", [2, 3, 5, 4], Epilogue::Gelu, &[]),
        make("linear/rope", [2, 3, 12, 16], rope(3, 8), &[]),
        make("linear/lora+rope", [4, 4, 12, 16], rope(4, 8), &[2, 3]),
        make("linear/add", [2, 3, 5, 4], Epilogue::Add, &[]),
        make("linear/gate", [2, 4, 5, 6], gate(2, 4), &[]),
        make("linear/lora", [3, 4, 6, 5], Epilogue::None, &[2, 3]),
        make("linear/lora+gelu", [3, 4, 6, 5], Epilogue::Gelu, &[2, 3]),
        make("linear/lora+gate", [4, 4, 6, 5], gate(4, 4), &[2, 3]),
        joined("linear/joined", [2, 3, 10, 4], Epilogue::None, &[]),
        joined("linear/joined, lora+gate", [4, 4, 10, 5], gate(4, 4), &[2, 3]),
    ];
    let large = [
        make("linear/12x128 128→128 +lora", [12, 128, 128, 128], Epilogue::None, &[16, 16]),
        // A whole number of the GPU's tiles; ragged ones; rows that begin on no 16 bytes.
        make("linear/256 96→384", [2, 128, 96, 384], Epilogue::None, &[]),
        make("linear/200 72→136 gelu", [1, 200, 72, 136], Epilogue::Gelu, &[]),
        make("linear/150 37→131 gelu", [1, 150, 37, 131], Epilogue::Gelu, &[]),
        make("linear/12x128 128→512 gelu", [12, 128, 128, 512], Epilogue::Gelu, &[]),
        make("linear/12x128 512→128 gate+lora", [12, 128, 512, 128], gate(12, 128), &[16, 16]),
        // Heads of every width that the GPU's tiles hold whole, and others; tiles of two samples; rows on no 16 bytes.
        make("linear/3x128 128→128 rope 32 +lora", [3, 128, 128, 128], rope(128, 32), &[16, 16]),
        make("linear/1x150 72→384 rope 128", [1, 150, 72, 384], rope(150, 128), &[]),
        make("linear/3x70 64→192 rope 64", [3, 70, 64, 192], rope(70, 64), &[]),
        make("linear/2x70 64→144 rope 16", [2, 70, 64, 144], rope(70, 16), &[]),
        make("linear/2x70 64→144 rope 48", [2, 70, 64, 144], rope(70, 48), &[]),
        make("linear/2x70 37→96 rope 32", [2, 70, 37, 96], rope(70, 32), &[]),
        // A result, and a residual, of either dtype.
        adapted("linear/2x70 64→136 wide", [2, 70, 64, 136], wide(), &[], 0..0),
        adapted("linear/2x70 33→137 wide", [2, 70, 33, 137], wide(), &[], 0..0),
        make("linear/2x70 64→136 add", [2, 70, 64, 136], Epilogue::Add, &[]).half(&[0, 1, 2, 3]),
        make("linear/2x70 64→136 gate", [2, 70, 64, 136], gate(2, 70), &[]).half(&[0, 1, 2, 3]),
        make("linear/2x70 33→137 gate", [2, 70, 33, 137], gate(2, 70), &[]).half(&[0, 1, 2, 3]),
        make("linear/2x70 33→137 gate, f32 beside", [2, 70, 33, 137], gate(2, 70), &[]),
        // Ranks that are no multiple of 16, and more columns than a tile; rows of part of a tile.
        adapted("linear/3x150 40→72 +20", [3, 150, 40, 72], form(Epilogue::None), &[20], 30..100),
        adapted("linear/3x150 40→72 +128+16", [3, 150, 40, 72], form(Epilogue::Gelu), &[128, 16], 130..150),
        adapted("linear/4x90 39→71 +3+16", [4, 90, 39, 71], form(Epilogue::Add), &[3, 16], 0..90),
        // x in two tensors: as the blocks have it; the second on no 16 bytes, and both.
        joined("linear/3x129 128+512→128 gate+lora", [3, 129, 640, 128], gate(3, 129), &[16, 16]),
        joined("linear/3x70 8+33→72 +20", [3, 70, 41, 72], Epilogue::None, &[20]),
        joined("linear/3x70 9+37→72 gate+3+16", [3, 70, 46, 72], gate(3, 70), &[3, 16]),
        // Adapters and masters of the other dtype than x; a frozen adapter; none of the tokens.
        make("linear/3x40 64→72 +16+16, masters", [3, 40, 64, 72], Epilogue::None, &[16, 16])
            .half(&[0])
            .stores(true),
        make("linear/3x40 64→72 +16+16, frozen", [3, 40, 64, 72], Epilogue::None, &[16, 16])
            .half(&[0, 1, 2, 3, 4])
            .constant(&[1, 2, 3, 4]),
        adapted("linear/3x40 64→72 +16+16, none", [3, 40, 64, 72], form(Epilogue::None), &[16, 16], 40..50),
        // A modulation: one row for each sample.
        rows,
    ];
    cases.extend(large.map(Case::bench_only));
    cases
}
