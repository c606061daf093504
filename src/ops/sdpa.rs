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
            return launch::forward(gpu, self, d, inputs);
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

#[cfg(test)]
mod tests {
    use super::super::given;
    use super::*;

    /// The formula, term by term, in f64.
    fn plainly(op: &Sdpa, inputs: &[&Tensor]) -> Vec<f64> {
        let d = op.dims(inputs).unwrap();
        let w = d.width();
        let at = |t: usize, b: usize, i: usize, c: usize| {
            f64::from(inputs[t].f32()[(b * inputs[t].shape()[1] + i) * w + c])
        };
        let mut out = vec![0.0; d.batch * d.queries * w];
        for (b, h, i) in
            (0..d.batch).flat_map(|b| (0..d.heads).flat_map(move |h| (0..d.queries).map(move |i| (b, h, i))))
        {
            let keys = if op.causal { i + 1 } else { d.keys };
            let weights: Vec<f64> = (0..keys)
                .map(|j| {
                    let dot: f64 = (h * d.hd..(h + 1) * d.hd).map(|c| at(0, b, i, c) * at(1, b, j, c)).sum();
                    let bias = inputs.get(3).map_or(0.0, |t| t.f32()[(h * d.queries + i) * d.keys + j]);
                    (f64::from(op.scale) * dot + f64::from(bias)).exp()
                })
                .collect();
            let sum: f64 = weights.iter().sum();
            for c in h * d.hd..(h + 1) * d.hd {
                let o: f64 = weights.iter().enumerate().map(|(j, p)| p * at(2, b, j, c)).sum();
                out[(b * d.queries + i) * w + c] = o / sum;
            }
        }
        out
    }

    #[test]
    fn agrees_with_the_formula() {
        let cpu = Device::cpu();
        for (causal, biased, [queries, keys], heads, hd) in [
            (true, false, [67, 67], 4, 6),
            (false, true, [5, 70], 2, 8),
            (false, false, [130, 3], 1, 512),
            (true, true, [66, 66], 2, 64),
        ] {
            let shape = |tokens| [2, tokens, heads * hd];
            let [q, k, v] =
                [(queries, 1), (keys, 2), (keys, 3)].map(|(t, s)| random(&cpu, &shape(t), s, 1.0));
            let bias = random(&cpu, &[heads, queries, keys], 4, 1.0);
            let op = Sdpa { heads, scale: 1.0 / (hd as f32).sqrt(), causal };
            let inputs: Vec<&Tensor> = [&q, &k, &v].into_iter().chain(biased.then_some(&bias)).collect();
            let (got, want) = (op.apply(&inputs).unwrap(), plainly(&op, &inputs));
            // Scores of order 1 are sums of hd terms, each rounded to half an ulp; the average over keys adds as much.
            let allowed = 2f64.powi(-24) * ((hd + keys) as f64).sqrt() * 8.0;
            let worst = got.f32().iter().zip(&want).map(|(g, w)| (f64::from(*g) - w).abs());
            assert!(worst.fold(0.0, f64::max) < allowed, "{heads}×{hd}, causal {causal}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_with_its_shapes() {
        let cpu = Device::cpu();
        let (x, y) = (random(&cpu, &[1, 2, 6], 1, 1.0), random(&cpu, &[1, 3, 6], 2, 1.0));
        let op = Sdpa { heads: 2, scale: 1.0, causal: false };
        let refused = |op: Sdpa, inputs: &[&Tensor]| op.apply(inputs).unwrap_err().to_string();
        assert!(refused(op, &[&x, &y]).contains("2 inputs"));
        assert!(
            refused(Sdpa { heads: 4, ..op }, &[&x, &x, &x]).contains("width 6 is no multiple of 4 heads")
        );
        assert!(refused(op, &[&x, &y, &x]).contains("v has shape [1, 2, 6]"));
        assert!(refused(op, &[&x, &x, &x, &x]).contains("the bias has shape"));
        assert!(refused(Sdpa { causal: true, ..op }, &[&x, &y, &y]).contains("2 queries and 3 keys"));
        let none = given(&cpu, &[1, 0, 6], &[]);
        assert!(refused(op, &[&x, &none, &none]).contains("at least one"));
        assert!(op.forward(&[&x, &x, &x], &mut Save::new(&[true], 1)).is_err());
    }
}
