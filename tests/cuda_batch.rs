//! A sample's bits depend on nothing beside it: an op on a batch, and on each sample alone, gives the same outputs and the
//! same gradients of its inputs, to the bit, at random small shapes.

mod common;

use asasr_engine::engine::{DType, Device, Philox, Tensor};
use asasr_engine::ops::attention::Attention;
use asasr_engine::ops::colored_noise::ColoredNoise;
use asasr_engine::ops::embed::RopeTable;
use asasr_engine::ops::feed_forward::FeedForward;
use asasr_engine::ops::linear::{Epilogue, Linear};
use asasr_engine::ops::modulate::LnModulate;
use asasr_engine::ops::patch::Pack;
use asasr_engine::ops::qk_norm_rope::QkNormRope;
use asasr_engine::ops::reduce::MeanSquare;
use asasr_engine::ops::sobolev::{Metric, SobolevGap};
use asasr_engine::ops::{ModSource, Op, Save, Slot, TokenLayout};
use half::bf16;
use proptest::prelude::*;
use proptest::test_runner::{Config as Runs, RngAlgorithm, TestRng, TestRunner};
use std::ops::Range;
use std::sync::Arc;

/// Shapes of each op.
const CASES: u32 = 3;

/// What the ops make their shapes of.
#[derive(Clone, Copy, Debug)]
struct Extents {
    batch: usize,
    tokens: usize,
    heads: usize,
    /// Pairs of a head.
    pairs: usize,
    height: usize,
    width: usize,
}

/// One input: its shape, of a sample where it has one for each, and what it is otherwise.
struct Input {
    shape: Vec<usize>,
    /// Is it as long as the batch?
    samples: bool,
    differentiable: bool,
    /// Is it bf16 where the op computes in bf16?
    half: bool,
}

/// A sample's, with a gradient.
fn sample(shape: &[usize]) -> Input {
    Input { shape: shape.to_vec(), samples: true, differentiable: true, half: false }
}
impl Input {
    fn half(self) -> Self {
        Self { half: true, ..self }
    }
    fn constant(self) -> Self {
        Self { differentiable: false, ..self }
    }
    /// One for all samples; of parameters there is nothing to compare.
    fn shared(self) -> Self {
        Self { samples: false, ..self }.constant()
    }
}

/// An op by its name: on samples `range` of the batch, and its inputs.
struct Kind {
    name: &'static str,
    op: fn(&Extents, Range<usize>) -> Box<dyn Op>,
    inputs: fn(&Extents) -> Vec<Input>,
}

/// Planes of two channels.
fn planes(e: &Extents) -> Input {
    sample(&[2, 2 * e.height, 2 * e.width])
}
/// A stream of tokens, as wide as the heads.
fn stream(e: &Extents) -> Input {
    sample(&[e.tokens, 2 * e.heads * e.pairs])
}

fn ln_modulate(e: &Extents, range: Range<usize>, narrow: bool) -> Box<dyn Op> {
    // Samples read rows of the tables in any order.
    let cond = range.clone().map(|b| b % 2).collect();
    let image = range.map(|b| e.batch - 1 - b).collect();
    let source = ModSource { split: e.tokens / 2, image, cond: Some(cond) };
    Box::new(LnModulate { source, shift: 1, scale: 0, narrow })
}
fn tables(e: &Extents, x: Input) -> Vec<Input> {
    let width = 2 * x.shape[1];
    vec![x, sample(&[e.batch, width]).shared(), sample(&[2, width]).shared()]
}

fn attention(e: &Extents) -> Attention {
    let layout = TokenLayout { txt: 2, img: e.tokens, cond: 1 };
    let multiplicity = (0..layout.total()).map(|key| key as f32 * 0.3).collect();
    Attention { heads: e.heads, layout, log_multiplicity: Some(multiplicity), groups: None }
}

fn rope(e: &Extents) -> QkNormRope {
    let ids: Vec<[f32; 3]> = (0..e.tokens).map(|t| [0.0, t as f32, 0.5]).collect();
    let table = RopeTable::new(&ids, &[0, 2 * e.pairs, 0], 1e4).expect("the axes are even");
    QkNormRope { table: Arc::new(table) }
}

fn kinds() -> Vec<Kind> {
    vec![
        Kind {
            name: "ln_modulate",
            op: |e, range| ln_modulate(e, range, false),
            inputs: |e| tables(e, stream(e).half()),
        },
        Kind {
            name: "ln_modulate, mixed",
            op: |e, range| ln_modulate(e, range, true),
            inputs: |e| tables(e, stream(e)),
        },
        Kind {
            name: "qk_norm_rope",
            op: |e, _| Box::new(rope(e)),
            inputs: |e| vec![stream(e).half(), sample(&[2 * e.pairs]).shared()],
        },
        Kind {
            name: "feed_forward",
            op: |_, _| {
                let down = Linear { joined: true, epilogue: Epilogue::Add, ..Linear::plain() };
                Box::new(FeedForward::new(Linear::plain(), down))
            },
            inputs: |e| {
                let d = 2 * e.pairs;
                let rows = || sample(&[e.tokens, d]);
                let weight = |shape: &[usize]| sample(shape).half().shared();
                let (up, down) =
                    ([weight(&[2 * d, d]), weight(&[2 * d])], [weight(&[d, 3 * d]), weight(&[d])]);
                let mut inputs = vec![rows().half()];
                inputs.extend(up);
                inputs.push(rows().half());
                inputs.extend(down);
                inputs.push(rows());
                inputs
            },
        },
        Kind {
            name: "attention",
            op: |e, _| Box::new(attention(e)),
            inputs: |e| {
                let rows = |tokens: usize| sample(&[tokens, 2 * e.heads * e.pairs]).half();
                vec![rows(e.tokens), rows(e.tokens + 1), rows(e.tokens + 1), rows(2), rows(2), rows(2)]
            },
        },
        Kind { name: "pack", op: |_, _| Box::new(Pack), inputs: |e| vec![planes(e).half()] },
        Kind {
            name: "mean_square",
            op: |_, _| Box::new(MeanSquare),
            inputs: |e| vec![planes(e), planes(e).constant()],
        },
        Kind {
            name: "colored_noise",
            op: |_, _| Box::new(ColoredNoise::new(1.5)),
            inputs: |e| vec![planes(e)],
        },
        Kind {
            name: "sobolev_gap",
            op: |_, _| Box::new(SobolevGap::new(Metric::full(1.5))),
            inputs: |e| vec![planes(e), planes(e).constant(), planes(e).constant()],
        },
    ]
}

/// Normals that bf16 holds, so that both dtypes take the same.
fn normals(stream: usize, n: usize) -> Vec<f32> {
    let mut values = vec![0.0; n];
    Philox::new(7, stream as u64).normals(0, &mut values);
    values.iter().map(|&v| bf16::from_f32(v).to_f32()).collect()
}

fn tensor(device: &Device, shape: &[usize], dtype: DType, values: &[f32]) -> Tensor {
    match dtype {
        DType::F32 => Tensor::from_slice(device, shape, values),
        DType::Bf16 => Tensor::bf16_from_f32(device, shape, values),
    }
    .unwrap_or_else(|e| panic!("{e}"))
}

/// The values of samples `range` of `batch` samples of `each`.
fn cut(stream: usize, batch: usize, each: usize, range: &Range<usize>) -> Vec<f32> {
    normals(stream, batch * each)[range.start * each..range.end * each].to_vec()
}

/// The bits of every output and of every gradient, on samples `range` of the batch: each sample's by itself.
fn run(kind: &Kind, e: &Extents, device: &Device, dtype: DType, range: Range<usize>) -> Vec<Vec<Vec<u32>>> {
    let of = |input: &Input| if input.half { dtype } else { DType::F32 };
    let n = range.len();
    let wanted = (kind.inputs)(e);
    let inputs = wanted.iter().enumerate().map(|(i, input)| {
        let each: usize = input.shape.iter().product();
        if !input.samples {
            return tensor(device, &input.shape, of(input), &normals(i, each));
        }
        let shape = [&[n], &input.shape[..]].concat();
        tensor(device, &shape, of(input), &cut(i, e.batch, each, &range))
    });
    let inputs: Vec<Tensor> = inputs.collect();
    let differentiable: Vec<bool> = wanted.iter().map(|i| i.differentiable).collect();
    let mut save = Save::new(&differentiable);
    let op = (kind.op)(e, range.clone());
    let given: Vec<&Tensor> = inputs.iter().collect();
    let outputs = op.forward(&given, &mut save).unwrap_or_else(|e| panic!("{}: {e}", kind.name));
    let above: Vec<Tensor> = outputs
        .iter()
        .zip(100..)
        .map(|(o, i)| tensor(device, o.shape(), o.dtype(), &cut(i, e.batch, o.len() / n, &range)))
        .collect();
    let above: Vec<Option<&Tensor>> = above.iter().map(Some).collect();
    let slot = |(i, x): (&Input, &Tensor)| {
        let grad = || Tensor::zeros_as(device, x.shape(), x.dtype()).unwrap_or_else(|e| panic!("{e}"));
        i.differentiable.then(|| Slot { grad: grad(), accumulate: false })
    };
    let mut slots: Vec<Option<Slot>> = wanted.iter().zip(&inputs).map(slot).collect();
    op.backward(&save.into_kept(), &above, &mut slots).unwrap_or_else(|e| panic!("{}: {e}", kind.name));
    let gradients = slots.iter().flatten().map(|s| &s.grad);
    let bits = |t: &Tensor| {
        let values = t.values().unwrap_or_else(|e| panic!("{}: {e}", kind.name));
        let samples = values.chunks_exact(values.len() / n);
        samples.map(|s| s.iter().map(|v| v.to_bits()).collect()).collect()
    };
    outputs.iter().chain(gradients).map(bits).collect()
}

#[test]
fn a_samples_bits_are_its_own() {
    let Some(device) = common::cuda::device() else { return };
    for kind in kinds() {
        // More than a block or a warp takes at once; heads whose rows are whole pieces of 16 bytes, and others.
        let heads = prop_oneof![1usize..4, Just(20)];
        let pairs = prop_oneof![Just(4usize), Just(16), 1usize..12];
        let extents = (2usize..5, 2usize..40, heads, pairs, 1usize..5, 1usize..5).prop_map(
            |(batch, tokens, heads, pairs, height, width)| Extents {
                batch,
                tokens,
                heads,
                pairs,
                height,
                width,
            },
        );
        let runs = Runs { cases: CASES, failure_persistence: None, ..Runs::default() };
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
        let outcome = TestRunner::new_with_rng(runs, rng).run(&extents, |e| {
            let halves = (kind.inputs)(&e).iter().any(|i| i.half);
            for dtype in [DType::F32, DType::Bf16].into_iter().filter(|&d| d == DType::F32 || halves) {
                let whole = run(&kind, &e, &device, dtype, 0..e.batch);
                for b in 0..e.batch {
                    let alone = run(&kind, &e, &device, dtype, b..b + 1);
                    for (i, (whole, alone)) in whole.iter().zip(&alone).enumerate() {
                        let differing = whole[b].iter().zip(&alone[0]).position(|(w, a)| w != a);
                        let what = format!("{dtype:?}: sample {b} of result {i} differs at {differing:?}");
                        prop_assert!(whole[b] == alone[0], "{what}");
                    }
                }
            }
            Ok(())
        });
        outcome.unwrap_or_else(|why| panic!("{}: {why}", kind.name));
    }
}
