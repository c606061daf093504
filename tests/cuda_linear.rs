//! A sample's bits do not depend on what lies beside it: the linear layer with an epilogue and adapters, whose samples use
//! different sets of them, on a batch and on each sample alone, with and without a backward; and an adapter whose B is 0
//! is none.

mod common;

use asasr_engine::engine::{DType, Device, Philox, Tensor};
use asasr_engine::ops::embed::RopeTable;
use asasr_engine::ops::linear::{Epilogue, Linear, Lora};
use asasr_engine::ops::{AdapterSet, ModSource, Op, Save, Slot};
use std::sync::Arc;

/// No multiple of a tile's rows: tiles hold rows of two samples, some adapted and some not.
const TOKENS: usize = 70;
const IN: usize = 40;
/// Three heads of 32, which fill no tile.
const OUT: usize = 96;
/// The set of each sample.
const SETS: [&[usize]; 4] = [&[0, 1], &[0], &[], &[1]];

fn normals(device: &Device, shape: &[usize], stream: u64, dtype: DType) -> Tensor {
    let mut values = vec![0.0; shape.iter().product()];
    Philox::new(7, stream).normals(0, &mut values);
    match dtype {
        DType::F32 => Tensor::from_slice(device, shape, &values),
        DType::Bf16 => Tensor::bf16_from_f32(device, shape, &values),
    }
    .unwrap_or_else(|e| panic!("{e}"))
}

/// What follows z.
#[derive(Clone, Copy, PartialEq, Debug)]
enum After {
    Gate,
    /// Heads of this width.
    NormRope(usize),
}

impl After {
    fn epilogue(self, samples: &[usize]) -> Epilogue {
        match self {
            Self::Gate => {
                let cond = Some(vec![0; samples.len()].into());
                Epilogue::Gate { source: ModSource { split: 30, image: samples.into(), cond }, chunk: 1 }
            }
            Self::NormRope(head) => {
                let ids: Vec<[f32; 3]> = (0..TOKENS).map(|t| [0.0, t as f32, 0.5]).collect();
                let table = RopeTable::new(&ids, &[0, head, 0], 1e4).expect("the axes are even");
                Epilogue::NormRope { table: Arc::new(table) }
            }
        }
    }
}

/// The layer for these samples of the batch.
fn layer(samples: &[usize], after: After) -> Linear {
    let lora = Lora {
        tokens: 20..61,
        set: Arc::new(AdapterSet {
            sets: SETS.iter().map(|s| s.to_vec()).collect(),
            of_sample: samples.to_vec(),
        }),
        adapters: vec![(0, 0.5), (1, 2.0)],
    };
    Linear { epilogue: after.epilogue(samples), lora: Some(lora), ..Linear::plain() }
}

fn bits(t: &Tensor) -> Vec<u32> {
    t.values().unwrap_or_else(|e| panic!("{e}")).iter().map(|v| v.to_bits()).collect()
}

/// The bits of y, which are those without a backward, and dx.
fn run(op: &Linear, inputs: &[&Tensor], dy: &Tensor) -> [Vec<u32>; 2] {
    let needs: Vec<bool> = (0..inputs.len()).map(|i| i == 0).collect();
    let mut save = Save::new(&needs);
    let y = op.forward(inputs, &mut save).unwrap_or_else(|e| panic!("{e}"));
    let alone = op.forward(inputs, &mut Save::nothing()).unwrap_or_else(|e| panic!("{e}"));
    assert!(bits(&y[0]) == bits(&alone[0]), "{:?}: what backward wants changes y", op.epilogue);
    let grad = Tensor::zeros_as(inputs[0].device(), inputs[0].shape(), inputs[0].dtype()).unwrap();
    let mut slots: Vec<Option<Slot>> = inputs.iter().map(|_| None).collect();
    slots[0] = Some(Slot { grad, accumulate: false });
    op.backward(&save.into_kept(), &[Some(dy)], &mut slots).unwrap_or_else(|e| panic!("{e}"));
    [bits(&y[0]), bits(&slots[0].as_ref().expect("it was given").grad)]
}

#[test]
fn a_sample_has_the_bits_it_has_alone() {
    let Some(device) = common::cuda::device() else { return };
    for (dtype, after) in [DType::F32, DType::Bf16]
        .into_iter()
        .flat_map(|d| [After::Gate, After::NormRope(32), After::NormRope(48)].map(|a| (d, a)))
    {
        let batch = SETS.len();
        let make = |shape: &[usize], stream, dtype| normals(&device, shape, stream, dtype);
        let x = make(&[batch, TOKENS, IN], 0, dtype);
        let narrow = if after == After::Gate { DType::F32 } else { dtype };
        let resid = make(&[batch, TOKENS, OUT], 1, narrow);
        let dy = make(&[batch, TOKENS, OUT], 2, narrow);
        let layers = [make(&[OUT, IN], 3, dtype), make(&[OUT], 4, DType::F32)];
        let tables = [make(&[batch, 2 * OUT], 5, DType::F32), make(&[1, 2 * OUT], 6, DType::F32)];
        let adapters = [([20, IN], 7), ([OUT, 20], 8), ([3, IN], 9), ([OUT, 3], 10)]
            .map(|(shape, stream)| make(&shape, stream, DType::F32));
        let on = |samples: &[usize], x: &Tensor, resid: &Tensor, dy: &Tensor| {
            let head = match after {
                After::Gate => 0,
                After::NormRope(head) => head,
            };
            let norm = make(&[head], 11, DType::F32);
            let mut inputs = vec![x, &layers[0], &layers[1]];
            match after {
                After::Gate => inputs.extend([resid, &tables[0], &tables[1]]),
                After::NormRope(_) => inputs.push(&norm),
            }
            inputs.extend(&adapters);
            run(&layer(samples, after), &inputs, dy)
        };
        let all: Vec<usize> = (0..batch).collect();
        let together = on(&all, &x, &resid, &dy);
        for b in all {
            let row = |t: &Tensor| t.rows(b..b + 1).unwrap();
            let alone = on(&[b], &row(&x), &row(&resid), &row(&dy));
            for (what, (all, one)) in ["y", "dx"].iter().zip(together.iter().zip(&alone)) {
                let same = all[b * one.len()..][..one.len()] == one[..];
                assert!(same, "{dtype:?}, {after:?}, sample {b}: {what}");
            }
        }
    }
}

/// At the first step of a stage the policy's last B is 0: it must agree with the reference to the bit.
#[test]
fn an_adapter_whose_b_is_zero_is_none() {
    let Some(device) = common::cuda::device() else { return };
    for dtype in [DType::F32, DType::Bf16] {
        let one = normals(&device, &[1, TOKENS, IN], 0, dtype);
        let dy = normals(&device, &[1, TOKENS, OUT], 1, dtype);
        let (x, dy) = (Tensor::stack(&[&one, &one]).unwrap(), Tensor::stack(&[&dy, &dy]).unwrap());
        let w = normals(&device, &[OUT, IN], 2, dtype);
        let (a, b) =
            (normals(&device, &[16, IN], 3, DType::F32), normals(&device, &[OUT, 16], 4, DType::F32));
        let (a1, b1) =
            (normals(&device, &[20, IN], 5, DType::F32), Tensor::zeros(&device, &[OUT, 20]).unwrap());
        let set = Arc::new(AdapterSet { sets: vec![vec![0, 1], vec![0]], of_sample: vec![0, 1] });
        let lora = Lora { tokens: 10..TOKENS, set, adapters: vec![(0, 1.0), (1, 1.0)] };
        let op = Linear { bias: false, lora: Some(lora), ..Linear::plain() };
        for (what, bits) in ["y", "dx"].iter().zip(run(&op, &[&x, &w, &a, &b, &a1, &b1], &dy)) {
            let (policy, reference) = bits.split_at(bits.len() / 2);
            assert!(policy == reference, "{dtype:?}: {what}");
        }
    }
}
