//! Scaled dot-product attention of any head size, its scores in memory a part at a time: forward only, as frozen
//! networks use it (text encoders, the autoencoder's one head of 512).
//!
//! ```text
//! S[h,i,j] = scale·q[i,h]·k[j,h] + bias[h,i,j], −∞ where causal and j > i;  o[i,h] = Σ_j softmax_j(S)[h,i,j]·v[j,h]
//! q [batch, queries, heads·hd], k and v [batch, keys, heads·hd], bias [heads, queries, keys] in f32;  o as q
//! ```
//! Saves nothing and has no gradient. What is trained has [`Attention`](super::attention::Attention), which holds no
//! scores.

use super::{Case, Op, Save, Slot, dims3, expect_constant, expect_dtypes, expect_f32, random};
use crate::engine::matmul::{Mat, matmul};
use crate::engine::{DType, Device, Tensor, simd};
use crate::{Error, Result};
use rayon::prelude::*;

mod launch;
#[cfg(test)]
mod tests;

const NAME: &str = "sdpa";
/// Queries that one task computes on the CPU.
const BLOCK: usize = 64;

/// The op: inputs q, k, v and, if there is one, the bias; output o.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sdpa {
    /// Number of heads.
    pub heads: usize,
    /// What q·k is multiplied with.
    pub scale: f32,
    /// Does a query see no key that comes after it?
    pub causal: bool,
}

#[derive(Clone, Copy)]
struct Dims {
    batch: usize,
    queries: usize,
    keys: usize,
    heads: usize,
    hd: usize,
}

impl Dims {
    fn width(&self) -> usize {
        self.heads * self.hd
    }
    /// Does every head's row begin on 16 bytes, in bf16?
    fn whole(&self, tensors: &[&Tensor]) -> bool {
        self.hd.is_multiple_of(8) && tensors.iter().all(|t| t.address().is_multiple_of(16))
    }
}

impl Sdpa {
    /// [`Op::forward`]'s one output.
    pub fn apply(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let d = self.dims(inputs)?;
        expect_dtypes(NAME, DType::F32, &inputs[3..])?;
        if let Some(gpu) = inputs[0].device().gpu() {
            return launch::forward(gpu, self, d, inputs, launch::SCORES);
        }
        expect_f32(NAME, inputs)?;
        let mut o = Tensor::empty(inputs[0].device(), inputs[0].shape())?;
        let (width, bias) = (d.width(), inputs.get(3).map(|b| b.f32()));
        let blocks: Vec<(usize, usize, &mut [f32])> = o
            .f32_mut()
            .chunks_mut((d.queries * width).max(1))
            .enumerate()
            .flat_map(|(b, o)| {
                let blocks = o.chunks_mut((BLOCK * width).max(1)).enumerate();
                blocks.map(move |(i, o)| (b, i * BLOCK, o))
            })
            .collect();
        blocks.into_par_iter().for_each_init(
            || vec![0f32; BLOCK.min(d.queries) * d.keys],
            |scores, (b, first, o)| {
                let n = o.len() / width;
                let q = &inputs[0].f32()[(b * d.queries + first) * width..];
                let [k, v] = [1, 2].map(|i| &inputs[i].f32()[b * d.keys * width..]);
                for h in 0..d.heads {
                    let [q, k, v] = [q, k, v].map(|x| Mat::new(&x[h * d.hd..], width));
                    let scores = &mut scores[..n * d.keys];
                    matmul(n, d.hd, d.keys, self.scale, q, k.t(), scores, d.keys, false);
                    for (i, row) in scores.chunks_exact_mut(d.keys).enumerate() {
                        if let Some(bias) = bias {
                            let at = (h * d.queries + first + i) * d.keys;
                            simd::axpy(1.0, &bias[at..at + d.keys], row);
                        }
                        let seen = if self.causal { first + i + 1 } else { d.keys };
                        let (seen, rest) = row.split_at_mut(seen);
                        rest.fill(0.0);
                        simd::exp_shift(seen, simd::max(seen));
                        simd::scale(1.0 / simd::sum(seen), seen);
                    }
                    let scores = Mat::new(scores, d.keys);
                    matmul(n, d.keys, d.hd, 1.0, scores, v, &mut o[h * d.hd..], width, false);
                }
            },
        );
        Ok(o)
    }

    fn dims(&self, inputs: &[&Tensor]) -> Result<Dims> {
        if !(3..=4).contains(&inputs.len()) {
            return Err(Error::shape(NAME, format!("{} inputs; wanted q, k, v, then a bias", inputs.len())));
        }
        let [batch, queries, width] = dims3(NAME, "q", inputs[0])?;
        let [_, keys, _] = dims3(NAME, "k", inputs[1])?;
        let heads = self.heads;
        if heads == 0 || width == 0 || !width.is_multiple_of(heads) {
            return Err(Error::shape(NAME, format!("width {width} is no multiple of {heads} heads")));
        }
        inputs[1].expect(NAME, "k", &[batch, keys, width])?;
        inputs[2].expect(NAME, "v", &[batch, keys, width])?;
        inputs.get(3).map_or(Ok(()), |b| b.expect(NAME, "the bias", &[heads, queries, keys]))?;
        if keys == 0 || (self.causal && keys != queries) {
            let wanted = if self.causal { "as many, it being causal" } else { "at least one" };
            return Err(Error::shape(NAME, format!("{queries} queries and {keys} keys; wanted {wanted}")));
        }
        Ok(Dims { batch, queries, keys, heads, hd: width / heads })
    }
}

impl Op for Sdpa {
    fn name(&self) -> &'static str {
        NAME
    }
    fn cuda(&self) -> bool {
        true
    }
    fn forward(&self, inputs: &[&Tensor], save: &mut Save) -> Result<Vec<Tensor>> {
        expect_constant(NAME, save, &[(0, "q"), (1, "k"), (2, "v"), (3, "the bias")])?;
        Ok(vec![self.apply(inputs)?])
    }
    fn backward(&self, _: &[Tensor], _: &[Option<&Tensor>], _: &mut [Option<Slot>]) -> Result<()> {
        // Forward refused every input that wants a gradient.
        Ok(())
    }
}

/// CLIP's form (causal) and T5's (a bias, no scale) with the heads of small ones and theirs; the autoencoder's one
/// head, and fewer queries than keys.
pub fn cases(device: &Device) -> Vec<Case> {
    let case = |[b, queries, keys]: [usize; 3], heads: usize, hd: usize, causal: bool, biased: bool| {
        let shape = |tokens| [b, tokens, heads * hd];
        let mut inputs = vec![
            random(device, &shape(queries), 70, 1.0),
            random(device, &shape(keys), 71, 1.0),
            random(device, &shape(keys), 72, 1.0),
        ];
        if biased {
            inputs.push(random(device, &[heads, queries, keys], 73, 1.0));
        }
        let op = Sdpa { heads, scale: if biased { 0.5 } else { 1.0 / (hd as f32).sqrt() }, causal };
        let all: Vec<usize> = (0..inputs.len()).collect();
        let form = if causal { "_causal" } else { "" };
        let form = format!("{form}{}", if biased { "_bias" } else { "" });
        let pairs = b * heads * queries * keys;
        Case::new(format!("sdpa{form}/{b}x{queries}x{keys}/{heads}x{hd}"), op, inputs)
            .constant(&all)
            .half(&[0, 1, 2])
            .chain(keys.max(hd))
            .stores(true)
            .cost((4 * hd * pairs) as f64, b * queries * heads * hd)
            .bench_only()
    };
    vec![
        case([2, 7, 7], 4, 6, true, false),
        case([2, 77, 77], 3, 64, true, false),
        case([2, 20, 20], 4, 8, false, true),
        case([1, 150, 150], 2, 64, false, true),
        case([1, 70, 133], 1, 512, false, false),
    ]
}
