//! T5's encoder, version 1.1, as `transformers` has it: RMSNorm before each part and at the end, gated GELU, scores that
//! are not scaled, and a bias by the distance of query and key that all layers share.

use super::encoder::{self, Encoder, expect_sizes};
use crate::Result;
use crate::engine::{DType, Device, Tensor};
use crate::ops::activation::Activation;
use crate::ops::sdpa::Sdpa;
use serde::Deserialize;
use std::path::PathBuf;

/// The distances' biases, in the first layer.
const BIAS: &str = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight";
/// The embedding's names: files hold it under the first, some under the second alone.
const EMBEDDINGS: [&str; 2] = ["shared.weight", "encoder.embed_tokens.weight"];

/// What is read of `config.json`; names are `transformers`'.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct T5Config {
    /// Must be T5's.
    pub model_type: String,
    /// Ids there are.
    pub vocab_size: usize,
    /// Values of a token.
    pub d_model: usize,
    /// Values of a head.
    pub d_kv: usize,
    /// Values inside an MLP.
    pub d_ff: usize,
    /// Layers.
    pub num_layers: usize,
    /// Heads.
    pub num_heads: usize,
    /// Distances that are told apart, in either direction.
    pub relative_attention_num_buckets: usize,
    /// From which on they are not.
    #[serde(default = "max_distance")]
    pub relative_attention_max_distance: usize,
    /// Of the norms.
    pub layer_norm_epsilon: f32,
    /// Must be gated GELU.
    pub feed_forward_proj: String,
    /// What a prompt ends with.
    pub eos_token_id: u32,
    /// What follows that.
    pub pad_token_id: u32,
}

fn max_distance() -> usize {
    128
}

impl T5Config {
    /// Of the text of a `config.json`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let config: Self = encoder::fields(text)?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        if self.model_type != "t5" {
            return Err(format!("model_type is {}, wanted t5", self.model_type));
        }
        if self.feed_forward_proj != "gated-gelu" {
            let have = &self.feed_forward_proj;
            return Err(format!(
                "feed_forward_proj is {have}, only gated-gelu (T5 version 1.1) is supported"
            ));
        }
        expect_sizes(&[
            ("vocab_size", self.vocab_size),
            ("d_model", self.d_model),
            ("d_kv", self.d_kv),
            ("d_ff", self.d_ff),
            ("num_layers", self.num_layers),
            ("num_heads", self.num_heads),
            ("relative_attention_num_buckets", self.relative_attention_num_buckets),
        ])?;
        let (buckets, most) = (self.relative_attention_num_buckets, self.relative_attention_max_distance);
        if !buckets.is_multiple_of(4) || most <= buckets / 4 {
            return Err(format!(
                "relative_attention_num_buckets is {buckets} and relative_attention_max_distance {most}; wanted a \
                 multiple of 4, and more than a quarter of that"
            ));
        }
        Ok(())
    }

    /// Ids of the empty prompt and what follows them.
    pub fn empty(&self) -> (Vec<u32>, u32) {
        (vec![self.eos_token_id], self.pad_token_id)
    }

    /// The bucket of a key `distance` after its query: near ones have one each, far ones share by the logarithm. f32
    /// throughout, as the weights were trained.
    fn bucket(&self, distance: i64) -> usize {
        let half = self.relative_attention_num_buckets / 2;
        let (exact, away) = (half / 2, distance.unsigned_abs() as usize);
        let near = if away < exact {
            away
        } else {
            let range = (self.relative_attention_max_distance as f64 / exact as f64).ln() as f32;
            let far = (away as f32 / exact as f32).ln() / range * (half - exact) as f32;
            (exact + far as usize).min(half - 1)
        };
        near + if distance > 0 { half } else { 0 }
    }

    fn parameters(&self, embedding: &str) -> Vec<(String, Vec<usize>)> {
        let (d, inner) = (self.d_model, self.num_heads * self.d_kv);
        let mut all = vec![
            (embedding.to_owned(), vec![self.vocab_size, d]),
            (BIAS.to_owned(), vec![self.relative_attention_num_buckets, self.num_heads]),
        ];
        for i in 0..self.num_layers {
            let mut add = |part: &str, shape: &[usize]| {
                all.push((format!("encoder.block.{i}.layer.{part}.weight"), shape.to_vec()));
            };
            add("0.layer_norm", &[d]);
            ["q", "k", "v"].iter().for_each(|n| add(&format!("0.SelfAttention.{n}"), &[inner, d]));
            add("0.SelfAttention.o", &[d, inner]);
            add("1.layer_norm", &[d]);
            ["wi_0", "wi_1"].iter().for_each(|n| add(&format!("1.DenseReluDense.{n}"), &[self.d_ff, d]));
            add("1.DenseReluDense.wo", &[d, self.d_ff]);
        }
        all.push(("encoder.final_layer_norm.weight".into(), vec![d]));
        all
    }
}

/// The encoder.
pub struct T5 {
    config: T5Config,
    encoder: Encoder,
    embedding: &'static str,
}

impl T5 {
    /// Opens the folder `dir`, see [`TextEncoders::open`](super::TextEncoders::open).
    pub fn open(dir: impl Into<PathBuf>, device: &Device, dtype: DType) -> Result<Self> {
        let dir = dir.into();
        let config = encoder::config(&dir, T5Config::parse)?;
        let encoder = Encoder::open(dir, device, dtype)?;
        let embedding = EMBEDDINGS.into_iter().find(|n| encoder.folder.contains(n)).unwrap_or(EMBEDDINGS[0]);
        encoder.folder.expect(&config.parameters(embedding))?;
        Ok(Self { config, encoder, embedding })
    }

    /// Its dimensions.
    pub fn config(&self) -> &T5Config {
        &self.config
    }

    pub(super) fn identity(&self) -> String {
        self.encoder.folder.identity()
    }

    /// How many layers it has.
    pub fn layers(&self) -> usize {
        self.config.num_layers
    }

    /// Every token's vector `[batch, tokens, width]`, of prompts of equal length. `observe` is shown the residual stream
    /// after each layer, with its number.
    pub fn encode(&self, ids: &[Vec<u32>], observe: &mut dyn FnMut(usize, &Tensor)) -> Result<Tensor> {
        let (c, e) = (&self.config, &self.encoder);
        let x = e.embedded(self.embedding, c.vocab_size, ids)?;
        let tokens = ids[0].len();
        let mut x = Tensor::from_slice(&e.device, &[ids.len(), tokens, c.d_model], &x)?;
        let bias = self.bias(tokens)?;
        let attention = Sdpa { heads: c.num_heads, scale: 1.0, causal: false };
        let norm = |name: &str, x: &Tensor, last| e.norm(name, x, c.layer_norm_epsilon, false, last);
        for i in 0..c.num_layers {
            let part = |name: &str| format!("encoder.block.{i}.layer.{name}");
            let h = norm(&part("0.layer_norm"), &x, false)?;
            let project = |name, h: &Tensor| e.linear(&part(name), h, false, None);
            let (q, k) = (project("0.SelfAttention.q", &h)?, project("0.SelfAttention.k", &h)?);
            let o = attention.apply(&[&q, &k, &project("0.SelfAttention.v", &h)?, &bias])?;
            x = e.linear(&part("0.SelfAttention.o"), &o, false, Some(&x))?;
            let h = norm(&part("1.layer_norm"), &x, false)?;
            let gate = project("1.DenseReluDense.wi_0", &h)?;
            let h = Activation::GatedGelu.apply(&[&gate, &project("1.DenseReluDense.wi_1", &h)?])?;
            x = e.linear(&part("1.DenseReluDense.wo"), &h, false, Some(&x))?;
            observe(i, &x);
        }
        norm("encoder.final_layer_norm", &x, true)
    }

    /// The bias of every pair of `tokens` tokens, `[heads, tokens, tokens]`.
    fn bias(&self, tokens: usize) -> Result<Tensor> {
        let (c, heads) = (&self.config, self.config.num_heads);
        let table = self.encoder.folder.tensor(BIAS, &Device::cpu())?;
        // By distance, from −(tokens − 1) on: a row of the bias is a window of it.
        let buckets: Vec<usize> =
            (0..2 * tokens - 1).map(|i| c.bucket(i as i64 - (tokens as i64 - 1))).collect();
        let mut bias = Vec::with_capacity(heads * tokens * tokens);
        for head in 0..heads {
            let by_distance: Vec<f32> = buckets.iter().map(|b| table.f32()[b * heads + head]).collect();
            (0..tokens).for_each(|query| bias.extend(&by_distance[tokens - 1 - query..][..tokens]));
        }
        Tensor::from_slice(&self.encoder.device, &[heads, tokens, tokens], &bias)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// As `transformers`' `_relative_position_bucket` has them.
    #[test]
    fn buckets_are_those_of_the_reference() {
        let c = encoder::config(Path::new("tests/golden/tiny_flux/text_encoder_2"), T5Config::parse).unwrap();
        // The first distance of every bucket, from far before on.
        let firsts = [
            (-600, 15),
            (-90, 14),
            (-63, 13),
            (-45, 12),
            (-31, 11),
            (-22, 10),
            (-15, 9),
            (-11, 8),
            (-7, 7),
            (-6, 6),
            (-5, 5),
            (-4, 4),
            (-3, 3),
            (-2, 2),
            (-1, 1),
            (0, 0),
            (1, 17),
            (2, 18),
            (3, 19),
            (4, 20),
            (5, 21),
            (6, 22),
            (7, 23),
            (8, 24),
            (12, 25),
            (16, 26),
            (23, 27),
            (32, 28),
            (46, 29),
            (64, 30),
            (91, 31),
        ];
        for distance in -600..=600 {
            let want = firsts.iter().rev().find(|f| f.0 <= distance).unwrap().1;
            assert_eq!(c.bucket(distance), want, "{distance}");
        }
    }
}
