//! CLIP's text encoder as `transformers` has it: causal, quick GELU, LayerNorm before each part and at the end.

use super::encoder::{self, Encoder, expect_sizes};
use crate::engine::{DType, Device, Tensor};
use crate::ops::activation::Activation;
use crate::ops::sdpa::Sdpa;
use crate::{Error, Result};
use serde::Deserialize;
use std::path::PathBuf;

/// `eos_token_id` in the configuration of OpenAI's models, which is not their tokenizer's.
const LEGACY_EOS: u32 = 2;
/// What stands before every weight's name: `transformers`' releases before 5, and from there on.
const PREFIXES: [&str; 2] = ["text_model.", ""];
const EMBEDDING: &str = "embeddings.token_embedding.weight";

/// What is read of `config.json`; names are `transformers`'.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct ClipConfig {
    /// Must be a text model's of CLIP.
    #[serde(default = "model_type")]
    pub model_type: String,
    /// Ids there are.
    pub vocab_size: usize,
    /// Values of a token.
    pub hidden_size: usize,
    /// Values inside an MLP.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Heads.
    pub num_attention_heads: usize,
    /// Most tokens, and as many as a prompt is padded to.
    pub max_position_embeddings: usize,
    /// Of the norms.
    pub layer_norm_eps: f32,
    /// Must be quick GELU.
    pub hidden_act: String,
    /// What a prompt begins with.
    pub bos_token_id: u32,
    /// What it ends with, where the pooled vector is taken. 2 stands for the largest id that occurs.
    pub eos_token_id: u32,
    /// What follows that.
    pub pad_token_id: u32,
}

fn model_type() -> String {
    "clip_text_model".into()
}

impl ClipConfig {
    /// Of the text of a `config.json`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let config: Self = encoder::fields(text)?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        if self.model_type != model_type() {
            return Err(format!("model_type is {}, wanted {}", self.model_type, model_type()));
        }
        if self.hidden_act != "quick_gelu" {
            return Err(format!("hidden_act is {}, only quick_gelu is supported", self.hidden_act));
        }
        expect_sizes(&[
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("max_position_embeddings", self.max_position_embeddings),
        ])?;
        let (d, heads) = (self.hidden_size, self.num_attention_heads);
        if !d.is_multiple_of(heads) {
            return Err(format!("hidden_size is {d}, no multiple of num_attention_heads = {heads}"));
        }
        Ok(())
    }

    /// Ids of the empty prompt and what follows them. Where `eos_token_id` is the legacy one, `bos_token_id` and
    /// `pad_token_id` are as wrong: those models' tokenizers end with bos and eos, and pad with eos.
    pub fn empty(&self) -> (Vec<u32>, u32) {
        let last = self.vocab_size as u32 - 1;
        match self.eos_token_id {
            LEGACY_EOS => (vec![last.saturating_sub(1), last], last),
            eos => (vec![self.bos_token_id, eos], self.pad_token_id),
        }
    }

    /// Where the pooled vector is taken: at the end of the prompt, at its beginning if it has none.
    fn pooled_at(&self, ids: &[u32]) -> usize {
        let end = match self.eos_token_id {
            LEGACY_EOS => ids.iter().max().copied().unwrap_or_default(),
            eos => eos,
        };
        ids.iter().position(|&id| id == end).unwrap_or(0)
    }

    fn parameters(&self, prefix: &str) -> Vec<(String, Vec<usize>)> {
        let (d, mlp) = (self.hidden_size, self.intermediate_size);
        let at = |name: &str| format!("{prefix}{name}");
        let mut all = vec![
            (at(EMBEDDING), vec![self.vocab_size, d]),
            (at("embeddings.position_embedding.weight"), vec![self.max_position_embeddings, d]),
        ];
        let mut add = |module: String, out: usize, inp: Option<usize>| {
            all.push((format!("{module}.weight"), std::iter::once(out).chain(inp).collect()));
            all.push((format!("{module}.bias"), vec![out]));
        };
        for i in 0..self.num_hidden_layers {
            let part = |name: &str| at(&format!("encoder.layers.{i}.{name}"));
            add(part("layer_norm1"), d, None);
            add(part("layer_norm2"), d, None);
            for name in ["q_proj", "k_proj", "v_proj", "out_proj"] {
                add(part(&format!("self_attn.{name}")), d, Some(d));
            }
            add(part("mlp.fc1"), mlp, Some(d));
            add(part("mlp.fc2"), d, Some(mlp));
        }
        add(at("final_layer_norm"), d, None);
        all
    }
}

/// The encoder.
pub struct Clip {
    config: ClipConfig,
    encoder: Encoder,
    prefix: &'static str,
}

impl Clip {
    /// Opens the folder `dir`, see [`TextEncoders::open`](super::TextEncoders::open).
    pub fn open(dir: impl Into<PathBuf>, device: &Device, dtype: DType) -> Result<Self> {
        let dir = dir.into();
        let config = encoder::config(&dir, ClipConfig::parse)?;
        let encoder = Encoder::open(dir, device, dtype)?;
        let old = encoder.folder.contains(&format!("{}{EMBEDDING}", PREFIXES[0]));
        let prefix = if old { PREFIXES[0] } else { PREFIXES[1] };
        encoder.folder.expect(&config.parameters(prefix))?;
        Ok(Self { config, encoder, prefix })
    }

    /// Its dimensions.
    pub fn config(&self) -> &ClipConfig {
        &self.config
    }

    pub(super) fn identity(&self) -> String {
        self.encoder.folder.identity()
    }

    /// Every token's vector `[batch, tokens, width]` and the pooled ones `[batch, width]`, of prompts of equal length.
    pub fn encode(&self, ids: &[Vec<u32>]) -> Result<(Tensor, Tensor)> {
        let (c, e) = (&self.config, &self.encoder);
        let at = |name: &str| format!("{}{name}", self.prefix);
        let mut x = e.embedded(&at(EMBEDDING), c.vocab_size, ids)?;
        let tokens = ids[0].len();
        if tokens > c.max_position_embeddings {
            return Err(Error::Usage(format!(
                "a prompt of {tokens} tokens; {} takes at most {}",
                e.dir.display(),
                c.max_position_embeddings
            )));
        }
        let rows: Vec<usize> = (0..tokens).collect();
        let places = e.folder.rows(&at("embeddings.position_embedding.weight"), &rows)?;
        for x in x.chunks_exact_mut(places.len()) {
            x.iter_mut().zip(&places).for_each(|(x, p)| *x += p);
        }
        let mut x = Tensor::from_slice(&e.device, &[ids.len(), tokens, c.hidden_size], &x)?;
        let heads = c.num_attention_heads;
        let scale = 1.0 / ((c.hidden_size / heads) as f32).sqrt();
        let attention = Sdpa { heads, scale, causal: true };
        let norm = |name: &str, x: &Tensor, last| e.norm(name, x, c.layer_norm_eps, true, last);
        for i in 0..c.num_hidden_layers {
            let part = |name: &str| at(&format!("encoder.layers.{i}.{name}"));
            let h = norm(&part("layer_norm1"), &x, false)?;
            let project = |name| e.linear(&part(name), &h, true, None);
            let (q, k) = (project("self_attn.q_proj")?, project("self_attn.k_proj")?);
            let o = attention.apply(&[&q, &k, &project("self_attn.v_proj")?])?;
            x = e.linear(&part("self_attn.out_proj"), &o, true, Some(&x))?;
            let h = norm(&part("layer_norm2"), &x, false)?;
            let h = Activation::QuickGelu.apply(&[&e.linear(&part("mlp.fc1"), &h, true, None)?])?;
            x = e.linear(&part("mlp.fc2"), &h, true, Some(&x))?;
        }
        let x = norm(&at("final_layer_norm"), &x, true)?;
        let values = x.values()?;
        let pooled: Vec<f32> = ids
            .iter()
            .zip(values.chunks_exact(tokens * c.hidden_size))
            .flat_map(|(ids, x)| &x[c.pooled_at(ids) * c.hidden_size..][..c.hidden_size])
            .copied()
            .collect();
        let pooled = Tensor::from_slice(&e.device, &[ids.len(), c.hidden_size], &pooled)?;
        Ok((x, pooled))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn the_pooled_place_is_the_first_end() {
        let mut c =
            encoder::config(Path::new("tests/golden/tiny_flux/text_encoder"), ClipConfig::parse).unwrap();
        assert_eq!(c.eos_token_id, LEGACY_EOS);
        assert_eq!(c.pooled_at(&[62, 7, 63, 63]), 2);
        assert_eq!(c.empty(), (vec![62, 63], 63));
        c.eos_token_id = 7;
        assert_eq!((c.pooled_at(&[62, 7, 63, 7]), c.pooled_at(&[62, 63])), (1, 0));
        assert_eq!(c.empty(), (vec![0, 7], 1));
    }
}
