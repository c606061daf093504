//! The transformer's dimensions: diffusers' `config.json`, and every weight and adapter target they imply.

use crate::error::did_you_mean;
use crate::files::write_atomic;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Width of the sinusoidal embedding of time and guidance, before its MLP.
pub const SINUSOID: usize = 256;

/// diffusers' class name, as `config.json` carries it.
const CLASS: &str = "FluxTransformer2DModel";

/// Dimensions of a FLUX transformer. Fields and defaults (those of FLUX.1-dev) are diffusers'; the last two are ours.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct FluxConfig {
    /// Side of a patch in tokens; always 1 (packing 2×2 happens before the model).
    pub patch_size: usize,
    /// Values per image token: latent channels × 4.
    pub in_channels: usize,
    /// Values per output token; `None` means as many as come in.
    pub out_channels: Option<usize>,
    /// Double-stream blocks.
    pub num_layers: usize,
    /// Single-stream blocks.
    pub num_single_layers: usize,
    /// Width of one attention head.
    pub attention_head_dim: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Width of a text token as the text encoder gives it.
    pub joint_attention_dim: usize,
    /// Width of the pooled text vector.
    pub pooled_projection_dim: usize,
    /// Whether the guidance scale is embedded (the "dev" models).
    pub guidance_embeds: bool,
    /// Head values turned by each of the three position axes (text/time, row, column); they sum to the head's width.
    pub axes_dims_rope: [usize; 3],
    /// Base of the rotary frequencies. Ours: diffusers has 10⁴ fixed; written only when it differs.
    #[serde(skip_serializing_if = "is_usual_theta")]
    pub rope_theta: f64,
    /// Width of an MLP over the model's width. Ours: diffusers has 4 fixed; written only when it differs.
    #[serde(skip_serializing_if = "is_usual_ratio")]
    pub mlp_ratio: f64,
}

fn is_usual_theta(v: &f64) -> bool {
    *v == 1e4
}
fn is_usual_ratio(v: &f64) -> bool {
    *v == 4.0
}

impl Default for FluxConfig {
    fn default() -> Self {
        Self {
            patch_size: 1,
            in_channels: 64,
            out_channels: None,
            num_layers: 19,
            num_single_layers: 38,
            attention_head_dim: 128,
            num_attention_heads: 24,
            joint_attention_dim: 4096,
            pooled_projection_dim: 768,
            guidance_embeds: false,
            axes_dims_rope: [16, 56, 56],
            rope_theta: 1e4,
            mlp_ratio: 4.0,
        }
    }
}

impl FluxConfig {
    /// The dimensions of FLUX.1-dev.
    pub fn flux1_dev() -> Self {
        Self { guidance_embeds: true, ..Self::default() }
    }

    /// Width D of the model: heads × head width.
    pub fn dim(&self) -> usize {
        self.num_attention_heads * self.attention_head_dim
    }
    /// Width of the MLPs' hidden layer.
    pub fn mlp_dim(&self) -> usize {
        (self.dim() as f64 * self.mlp_ratio) as usize
    }
    /// Values per output token.
    pub fn out_dim(&self) -> usize {
        self.out_channels.unwrap_or(self.in_channels)
    }

    /// Where the other one differs, in words: "num_layers is 1, wanted 2, …".
    pub fn differences(&self, wanted: &Self) -> String {
        let fields = |c: &Self| {
            serde_json::to_value(Self { rope_theta: -c.rope_theta, mlp_ratio: -c.mlp_ratio, ..c.clone() })
        };
        let (Ok(mine), Ok(wanted)) = (fields(self), fields(wanted)) else { return String::new() };
        let each = mine.as_object().into_iter().flatten();
        let differing = each.filter(|(key, value)| wanted[key.as_str()] != **value);
        differing
            .map(|(key, value)| format!("{key} is {value}, wanted {}", wanted[key.as_str()]))
            .collect::<Vec<_>>()
            .join("; ")
    }

    /// Reads and validates `config.json`, given as the file or as the folder that holds it.
    ///
    /// Keys that begin with `_` are diffusers' own and are ignored, except that a `_class_name` of another model is
    /// refused; any other unknown key is an error.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = config_file(path.as_ref());
        let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
        Self::parse(&text).map_err(|detail| Error::format(&path, detail))
    }

    /// [`FluxConfig::load`] of a file's text; `Err` says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let config = Self::from_json(text)?;
        config.check()?;
        Ok(config)
    }

    fn from_json(text: &str) -> Result<Self, String> {
        let mut map: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(text).map_err(|e| format!("not a JSON object of model dimensions: {e}"))?;
        if let Some(class) = map.get("_class_name").filter(|c| *c != CLASS) {
            return Err(format!("is the config of {class}, wanted \"{CLASS}\""));
        }
        map.retain(|key, _| !key.starts_with('_'));
        let defaults = serde_json::to_value(Self { rope_theta: 0.0, mlp_ratio: 0.0, ..Self::default() })
            .map_err(|e| e.to_string())?;
        let known: Vec<&str> = defaults.as_object().into_iter().flatten().map(|(k, _)| k.as_str()).collect();
        if let Some(key) = map.keys().find(|k| !known.contains(&k.as_str())) {
            return Err(format!("unknown key `{key}`{}", did_you_mean(key, known)));
        }
        serde_json::from_value(map.into()).map_err(|e| e.to_string())
    }

    /// Writes `config.json` into the folder `dir`, as diffusers reads it.
    pub fn save(&self, dir: impl AsRef<Path>) -> Result<()> {
        let path = dir.as_ref().join("config.json");
        let wrong = |e: serde_json::Error| Error::format(&path, e.to_string());
        let mut map = serde_json::Map::from_iter([("_class_name".to_owned(), CLASS.into())]);
        map.extend(serde_json::to_value(self).map_err(wrong)?.as_object().cloned().unwrap_or_default());
        let text = serde_json::to_string_pretty(&map).map_err(wrong)?;
        write_atomic(&path, format!("{text}\n").as_bytes())
    }

    /// Refuses dimensions that contradict each other or that the engine cannot run.
    pub fn validate(&self) -> Result<()> {
        self.check().map_err(|detail| Error::shape("FLUX config", detail))
    }

    fn check(&self) -> Result<(), String> {
        let (head, axes) = (self.attention_head_dim, self.axes_dims_rope);
        if self.patch_size != 1 {
            return Err(format!("patch_size is {}, only 1 is supported", self.patch_size));
        }
        for (name, value) in [
            ("in_channels", self.in_channels),
            ("out_channels", self.out_dim()),
            ("attention_head_dim", head),
            ("num_attention_heads", self.num_attention_heads),
            ("joint_attention_dim", self.joint_attention_dim),
            ("pooled_projection_dim", self.pooled_projection_dim),
        ] {
            if value == 0 || value > 1 << 20 {
                return Err(format!("{name} is {value}, wanted 1 to {}", 1 << 20));
            }
        }
        if self.num_layers > 4096 || self.num_single_layers > 4096 {
            return Err(format!(
                "num_layers is {} and num_single_layers {}, wanted at most 4096 each",
                self.num_layers, self.num_single_layers
            ));
        }
        for (name, value) in [("in_channels", self.in_channels), ("out_channels", self.out_dim())] {
            if !value.is_multiple_of(4) {
                return Err(format!("{name} is {value}, wanted a multiple of 4: a token is a 2×2 patch"));
            }
        }
        if axes.iter().any(|a| a % 2 != 0) {
            return Err(format!(
                "axes_dims_rope is {axes:?}, wanted even numbers: values are turned in pairs"
            ));
        }
        if axes.iter().try_fold(0usize, |sum, &a| sum.checked_add(a)) != Some(head) {
            return Err(format!("axes_dims_rope is {axes:?}, wanted a sum of attention_head_dim = {head}"));
        }
        if !(self.rope_theta.is_finite() && self.rope_theta > 1.0) {
            return Err(format!("rope_theta is {}, wanted more than 1", self.rope_theta));
        }
        let mlp = self.dim() as f64 * self.mlp_ratio;
        if !(1.0..=1e9).contains(&mlp) || mlp.fract() != 0.0 {
            return Err(format!(
                "mlp_ratio {} of width {} gives {mlp} hidden values, wanted a whole number from 1",
                self.mlp_ratio,
                self.dim()
            ));
        }
        Ok(())
    }

    /// Name and shape of every weight, in diffusers' naming and module order; a linear layer's is `[out, in]`.
    pub fn parameters(&self) -> Vec<(String, Vec<usize>)> {
        let (d, mlp) = (self.dim(), self.mlp_dim());
        let mut p = Parameters(Vec::new());
        for (part, width) in [
            ("timestep_embedder", Some(SINUSOID)),
            ("guidance_embedder", self.guidance_embeds.then_some(SINUSOID)),
            ("text_embedder", Some(self.pooled_projection_dim)),
        ] {
            if let Some(width) = width {
                p.linear(format!("time_text_embed.{part}.linear_1"), width, d);
                p.linear(format!("time_text_embed.{part}.linear_2"), d, d);
            }
        }
        p.linear("context_embedder", self.joint_attention_dim, d);
        p.linear("x_embedder", self.in_channels, d);
        for i in 0..self.num_layers {
            let b = |part: &str| format!("transformer_blocks.{i}.{part}");
            p.linear(b("norm1.linear"), d, 6 * d);
            p.linear(b("norm1_context.linear"), d, 6 * d);
            p.norms(
                &b("attn"),
                ["norm_q", "norm_k", "norm_added_q", "norm_added_k"],
                self.attention_head_dim,
            );
            for part in ["to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj"] {
                p.linear(format!("{}.{part}", b("attn")), d, d);
            }
            p.linear(b("attn.to_out.0"), d, d);
            p.linear(b("attn.to_add_out"), d, d);
            for part in ["ff", "ff_context"] {
                p.linear(format!("{}.net.0.proj", b(part)), d, mlp);
                p.linear(format!("{}.net.2", b(part)), mlp, d);
            }
        }
        for i in 0..self.num_single_layers {
            let b = |part: &str| format!("single_transformer_blocks.{i}.{part}");
            p.linear(b("norm.linear"), d, 3 * d);
            p.linear(b("proj_mlp"), d, mlp);
            p.linear(b("proj_out"), d + mlp, d);
            p.norms(&b("attn"), ["norm_q", "norm_k"], self.attention_head_dim);
            for part in ["attn.to_q", "attn.to_k", "attn.to_v"] {
                p.linear(b(part), d, d);
            }
        }
        p.linear("norm_out.linear", d, 2 * d);
        p.linear("proj_out", d, self.out_dim());
        p.0
    }

    /// The layers that compute modulations, with the chunks of D columns that each gives, in module order.
    pub fn modulations(&self) -> Vec<(String, usize)> {
        let double = (0..self.num_layers).flat_map(|i| {
            ["norm1", "norm1_context"].map(|norm| (format!("transformer_blocks.{i}.{norm}"), 6))
        });
        let single = (0..self.num_single_layers).map(|i| (format!("single_transformer_blocks.{i}.norm"), 3));
        let all = double.chain(single).chain([("norm_out".to_owned(), 2)]);
        all.map(|(norm, chunks)| (format!("{norm}.linear"), chunks)).collect()
    }

    /// The modules an adapter acts on, with input and output width, in module order (METHOD §2).
    pub fn lora_targets(&self) -> Vec<(String, usize, usize)> {
        let (d, mlp) = (self.dim(), self.mlp_dim());
        let mut targets = vec![("x_embedder".to_owned(), self.in_channels, d)];
        for i in 0..self.num_layers {
            let parts = [("norm1.linear", d, 6 * d), ("attn.to_q", d, d), ("attn.to_k", d, d)];
            let more = [("attn.to_v", d, d), ("attn.to_out.0", d, d), ("ff.net.2", mlp, d)];
            let block = parts.into_iter().chain(more);
            targets.extend(block.map(|(m, i_, o)| (format!("transformer_blocks.{i}.{m}"), i_, o)));
        }
        for i in 0..self.num_single_layers {
            let parts = [("norm.linear", d, 3 * d), ("proj_mlp", d, mlp), ("proj_out", d + mlp, d)];
            let more = [("attn.to_q", d, d), ("attn.to_k", d, d), ("attn.to_v", d, d)];
            let block = parts.into_iter().chain(more);
            targets.extend(block.map(|(m, i_, o)| (format!("single_transformer_blocks.{i}.{m}"), i_, o)));
        }
        targets
    }
}

/// The file meant by a folder or a file.
fn config_file(path: &Path) -> PathBuf {
    if path.is_dir() { path.join("config.json") } else { path.to_path_buf() }
}

struct Parameters(Vec<(String, Vec<usize>)>);

impl Parameters {
    fn linear(&mut self, module: impl Into<String>, width: usize, out: usize) {
        let module = module.into();
        self.0.push((format!("{module}.weight"), vec![out, width]));
        self.0.push((format!("{module}.bias"), vec![out]));
    }
    fn norms<const N: usize>(&mut self, module: &str, parts: [&str; N], width: usize) {
        self.0.extend(parts.map(|part| (format!("{module}.{part}.weight"), vec![width])));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flux::weights::Folder;
    use std::collections::BTreeMap;

    #[test]
    fn flux1_dev_has_its_published_size() {
        let c = FluxConfig::flux1_dev();
        c.validate().unwrap();
        let weights: usize = c.parameters().iter().map(|(_, s)| s.iter().product::<usize>()).sum();
        assert_eq!(weights, 11_901_408_320);
        let targets = c.lora_targets();
        let adapter: usize = targets.iter().map(|(_, i, o)| 16 * (i + o)).sum();
        assert_eq!((targets.len(), adapter), (343, 57_951_232));
    }

    /// Each target is a weight of the model with the shape stated.
    #[test]
    fn targets_are_linear_layers() {
        let c = FluxConfig { num_layers: 2, num_single_layers: 3, mlp_ratio: 2.0, ..FluxConfig::default() };
        let weights: BTreeMap<_, _> = c.parameters().into_iter().collect();
        for (module, width, out) in c.lora_targets() {
            assert_eq!(weights[&format!("{module}.weight")], [out, width], "{module}");
        }
    }

    #[test]
    fn parameters_are_those_of_a_diffusers_folder() {
        let Some(dir) = crate::flux::weights::tests::fixtures("tiny_flux/transformer") else { return };
        let c = FluxConfig::load(&dir).unwrap();
        let folder = Folder::open(&dir).unwrap();
        let have: BTreeMap<_, _> =
            folder.names().map(|n| (n.to_owned(), folder.shape(n).unwrap().to_vec())).collect();
        assert_eq!(c.parameters().into_iter().collect::<BTreeMap<_, _>>(), have);
        folder.expect(&c.parameters()).unwrap();
    }

    #[test]
    fn saved_and_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let c = FluxConfig {
            attention_head_dim: 32,
            num_attention_heads: 4,
            axes_dims_rope: [4, 14, 14],
            rope_theta: 100.0,
            in_channels: 96,
            ..FluxConfig::default()
        };
        c.save(dir.path()).unwrap();
        assert_eq!(FluxConfig::load(dir.path()).unwrap(), c);
        FluxConfig::flux1_dev().save(dir.path()).unwrap();
        let text = std::fs::read_to_string(dir.path().join("config.json")).unwrap();
        assert!(
            !text.contains("rope_theta") && !text.contains("mlp_ratio"),
            "diffusers knows neither: {text}"
        );
    }

    #[test]
    fn refusals_name_key_and_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        let error = |text: &str| {
            std::fs::write(&path, text).unwrap();
            FluxConfig::load(&path).unwrap_err().to_string()
        };
        assert!(error(r#"{"num_layer": 2}"#).contains("did you mean `num_layers`"));
        assert!(error(r#"{"_class_name": "AutoencoderKL"}"#).contains("AutoencoderKL"));
        assert!(error(r#"{"patch_size": 2}"#).contains("patch_size is 2"));
        assert!(error(r#"{"in_channels": 66}"#).contains("in_channels is 66"));
        assert!(error(r#"{"axes_dims_rope": [16, 56, 54]}"#).contains("attention_head_dim = 128"));
        assert!(error(r#"{"axes_dims_rope": [16, 55, 57]}"#).contains("even"));
        assert!(error(r#"{"mlp_ratio": 0.0001}"#).contains("mlp_ratio"));
        assert!(error(r#"{"num_attention_heads": 0}"#).contains("num_attention_heads is 0"));
        assert!(error("{").contains("config.json"));
        assert!(error(r#"{"num_layers": "two"}"#).contains("two"));
        assert!(
            FluxConfig::load(dir.path().join("none.json")).unwrap_err().to_string().contains("none.json")
        );
        std::fs::write(&path, r#"{"_name_or_path": "x", "_class_name": "FluxTransformer2DModel"}"#).unwrap();
        assert_eq!(FluxConfig::load(dir.path()).unwrap(), FluxConfig::default());
    }
}
