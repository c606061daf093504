//! Adapter (LoRA) files as diffusers and PEFT read and write them; those in kohya's naming are read, too ([`super::kohya`]).
//!
//! ```text
//! transformer.<module>.lora_A.weight [r, in]    y += alpha/r · B(A x)    r is read from the tensors
//! transformer.<module>.lora_B.weight [out, r]
//! transformer.<module>.alpha         []         optional; else lora_alpha of the description; else r
//! ```
//! The description is what diffusers writes into the file's own metadata, or else PEFT's `adapter_config.json`. diffusers
//! ignores `adapter_config.json` and takes alpha = r where there is no `.alpha` key, so ours always writes it.

use super::config::FluxConfig;
use super::kohya;
use super::weights::{SafeFile, write_safetensors};
use crate::engine::{DType, Device, Tensor};
use crate::error::did_you_mean;
use crate::files::write_atomic;
use crate::ops::cast;
use crate::{Error, Result};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The weights' file inside an adapter folder.
pub const WEIGHTS: &str = "adapter_model.safetensors";
/// The description beside it.
pub const CONFIG: &str = "adapter_config.json";
/// What diffusers' `save_lora_weights` calls the weights.
const WEIGHTS_DIFFUSERS: &str = "pytorch_lora_weights.safetensors";
/// The metadata key under which [`AdapterFile::lq_resize`] is kept.
pub(super) const LQ_RESIZE: &str = "lq_resize";
/// The metadata key under which diffusers keeps PEFT's description, as JSON.
const EMBEDDED: &str = "lora_adapter_metadata";

/// How the names of A, B and alpha end.
const HALVES: [&str; 3] = ["lora_A.weight", "lora_B.weight", "alpha"];

/// One adapted linear layer.
#[derive(Clone, Debug)]
pub struct LoraModule {
    /// The down projection A, `[r, in]`.
    pub a: Tensor,
    /// The up projection B, `[out, r]`.
    pub b: Tensor,
    /// The scale's numerator.
    pub alpha: f32,
}

impl LoraModule {
    /// Rank r.
    pub fn rank(&self) -> usize {
        self.a.shape()[0]
    }
    /// `alpha / r`: what `B(A x)` is multiplied by.
    pub fn scaling(&self) -> f32 {
        self.alpha / self.rank() as f32
    }
}

/// A whole adapter.
#[derive(Clone, Debug)]
pub struct AdapterFile {
    /// What the adapter is called: the folder's name, or the file's without its ending.
    pub name: String,
    /// Adapted modules by name, without the `transformer.` prefix (`transformer_blocks.0.attn.to_q`).
    pub modules: BTreeMap<String, LoraModule>,
    /// How the low-quality image was brought to the target size when this adapter was trained; inference must do the
    /// same (METHOD §7). `None` in files of other tools.
    pub lq_resize: Option<String>,
    /// Every other free-form string of the file.
    pub metadata: BTreeMap<String, String>,
}

/// What we read of an `adapter_config.json`.
#[derive(Debug, Deserialize)]
#[serde(default)]
struct PeftConfig {
    peft_type: String,
    r: Option<usize>,
    lora_alpha: Option<f32>,
    alpha_pattern: BTreeMap<String, f32>,
    rank_pattern: BTreeMap<String, usize>,
    use_rslora: bool,
    use_dora: bool,
    fan_in_fan_out: bool,
    lora_bias: bool,
}

impl Default for PeftConfig {
    fn default() -> Self {
        Self {
            peft_type: "LORA".into(),
            r: None,
            lora_alpha: None,
            alpha_pattern: BTreeMap::new(),
            rank_pattern: BTreeMap::new(),
            use_rslora: false,
            use_dora: false,
            fan_in_fan_out: false,
            lora_bias: false,
        }
    }
}

/// The keys of one module's A, B and alpha, as they turn up in the file.
type Parts<'a> = [Option<&'a str>; 3];

impl AdapterFile {
    /// Reads an adapter: a folder that holds `adapter_model.safetensors`, or a `.safetensors` file. The description is
    /// `<stem>.adapter_config.json` or `adapter_config.json` beside the weights, and may be absent.
    pub fn load(path: impl AsRef<Path>, device: &Device) -> Result<Self> {
        let (name, weights) = locate(path.as_ref())?;
        let description = description_of(&weights);
        let text = |path: &PathBuf| std::fs::read_to_string(path).map_err(Error::io(path));
        let description = description.map(|path| Ok::<_, Error>((text(&path)?, path))).transpose()?;
        let description = description.as_ref().map(|(text, path)| (path.as_path(), text.as_str()));
        Self::read(name, &SafeFile::open(&weights)?, description, device)
    }

    /// Its factors in the dtype that a pass multiplies them in, as [`Weights::computing_in`](super::Weights::computing_in)
    /// has it.
    pub fn computing_in(mut self, dtype: DType) -> Result<Self> {
        for m in self.modules.values_mut().filter(|m| m.a.dtype() != dtype) {
            (m.a, m.b) = (cast::to(&m.a, dtype)?, cast::to(&m.b, dtype)?);
        }
        Ok(self)
    }

    /// [`AdapterFile::load`] of a file that is open already, and of its description: path and text.
    pub fn read(
        name: String,
        file: &SafeFile,
        description: Option<(&Path, &str)>,
        device: &Device,
    ) -> Result<Self> {
        let weights = file.path();
        let config = match (file.metadata().get(EMBEDDED), description) {
            (Some(text), _) => Some(describe(weights, &unprefixed(text))?),
            (None, Some((path, text))) => Some(describe(path, text)?),
            (None, None) => None,
        };
        let wrong = |detail: String| Error::format(weights, detail);
        let kohya = kohya::named(file.names());
        let halves = if kohya { kohya::HALVES } else { HALVES };
        let mut parts = BTreeMap::<String, Parts>::new();
        for key in file.names() {
            let bare = if kohya { kohya::layer(key).map_err(wrong)? } else { unprefixed_key(key) };
            let (module, half) = halves
                .into_iter()
                .enumerate()
                .find_map(|(i, half)| Some((bare.strip_suffix(half)?.strip_suffix('.')?, i)))
                .ok_or_else(|| unknown_key(weights, key, halves))?;
            if let Some(other) = parts.entry(module.to_owned()).or_default()[half].replace(key) {
                return Err(Error::format(
                    weights,
                    format!("keys `{other}` and `{key}` are the same tensor"),
                ));
            }
        }
        if parts.is_empty() {
            return Err(Error::format(weights, "holds no tensor; an adapter has at least one module"));
        }
        let mut modules = BTreeMap::new();
        for (module, part) in parts {
            if kohya {
                let fused = read_module(file, &module, &part, halves, None, &Device::cpu())?;
                for (module, m) in kohya::split(&module, fused).map_err(wrong)? {
                    let m = LoraModule { a: m.a.to(device)?, b: m.b.to(device)?, ..m };
                    if modules.insert(module.clone(), m).is_some() {
                        return Err(wrong(format!("adapts module `{module}` twice")));
                    }
                }
            } else {
                let read = read_module(file, &module, &part, halves, config.as_ref(), device)?;
                modules.insert(module, read);
            }
        }
        let mut metadata = file.metadata().clone();
        let lq_resize = metadata.remove(LQ_RESIZE);
        // What it says is in `modules` now, and diffusers refuses a file that has both it and `.alpha` keys.
        metadata.remove(EMBEDDED);
        Ok(Self { name, modules, lq_resize, metadata })
    }

    /// Writes the folder `dir` (made if absent; its parent must exist): `adapter_model.safetensors` and PEFT's
    /// `adapter_config.json`, each complete or as it was.
    pub fn save(&self, dir: impl AsRef<Path>) -> Result<()> {
        let dir = dir.as_ref();
        if !dir.is_dir() {
            std::fs::create_dir(dir).map_err(Error::io(dir))?;
        }
        let Some((r, alpha)) = self.commonest() else {
            return Err(Error::format(dir, "an adapter without modules is not saved"));
        };
        let mut tensors = Vec::new();
        for (module, m) in &self.modules {
            check_shapes(module, m.a.shape(), m.b.shape()).map_err(|detail| Error::format(dir, detail))?;
            tensors.push((format!("transformer.{module}.lora_A.weight"), m.a.clone()));
            tensors.push((format!("transformer.{module}.lora_B.weight"), m.b.clone()));
            tensors.push((format!("transformer.{module}.alpha"), Tensor::scalar(m.a.device(), m.alpha)?));
        }
        let mut metadata = self.metadata.clone();
        metadata.entry("format".into()).or_insert_with(|| "pt".into());
        metadata.extend(self.lq_resize.iter().map(|r| (LQ_RESIZE.to_owned(), r.clone())));
        write_safetensors(dir.join(WEIGHTS), &metadata, &tensors)?;

        let others = |differs: &dyn Fn(&LoraModule) -> Option<Value>| -> serde_json::Map<String, Value> {
            self.modules.iter().filter_map(|(k, m)| Some((k.clone(), differs(m)?))).collect()
        };
        let config = json!({
            "alpha_pattern": others(&|m| (m.alpha != alpha).then(|| number(m.alpha))),
            "auto_mapping": null,
            "base_model_name_or_path": null,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "layers_pattern": null,
            "layers_to_transform": null,
            "lora_alpha": number(alpha),
            "lora_dropout": 0.0,
            "modules_to_save": null,
            "peft_type": "LORA",
            "r": r,
            "rank_pattern": others(&|m| (m.rank() != r).then(|| m.rank().into())),
            "revision": null,
            "target_modules": self.modules.keys().collect::<Vec<_>>(),
            "task_type": null,
            "use_dora": false,
            "use_rslora": false,
        });
        let path = dir.join(CONFIG);
        let text = serde_json::to_string_pretty(&config).map_err(|e| Error::format(&path, e.to_string()))?;
        write_atomic(&path, format!("{text}\n").as_bytes())
    }

    /// The rank, where all modules share one.
    pub fn rank(&self) -> Option<usize> {
        let first = self.modules.values().next()?.rank();
        self.modules.values().all(|m| m.rank() == first).then_some(first)
    }
    /// alpha, where all modules share one.
    pub fn alpha(&self) -> Option<f32> {
        let first = self.modules.values().next()?.alpha;
        self.modules.values().all(|m| m.alpha == first).then_some(first)
    }

    /// Refuses an adapter with a module that `config`'s transformer lacks, that the engine does not adapt, or whose
    /// widths differ. Modules may be absent: they are simply not adapted.
    pub fn validate(&self, config: &FluxConfig) -> Result<()> {
        let targets: BTreeMap<String, (usize, usize)> =
            config.lora_targets().into_iter().map(|(m, i, o)| (m, (i, o))).collect();
        let refuse = |detail: String| Err(Error::shape("adapter", format!("{}: {detail}", self.name)));
        for (module, m) in &self.modules {
            if let Err(detail) = check_shapes(module, m.a.shape(), m.b.shape()) {
                return refuse(detail);
            }
            let Some(&(width, out)) = targets.get(module) else {
                let linear = format!("{module}.weight");
                if config.parameters().iter().any(|(name, shape)| *name == linear && shape.len() == 2) {
                    return refuse(format!(
                        "module `{module}` is a layer of the model, but none of the {} this engine adapts; retrain or \
                         drop it from the file",
                        targets.len()
                    ));
                }
                let hint = did_you_mean(module, targets.keys().map(String::as_str));
                return refuse(format!("the model has no module `{module}`{hint}"));
            };
            let have = (m.a.shape()[1], m.b.shape()[0]);
            if have != (width, out) {
                return refuse(format!(
                    "module `{module}` maps {} values to {}, the model's maps {width} to {out}; the adapter belongs to \
                     another model",
                    have.0, have.1
                ));
            }
        }
        Ok(())
    }

    /// The commonest rank and alpha, for the description; the exceptions go into its patterns.
    fn commonest(&self) -> Option<(usize, f32)> {
        let mut ranks = BTreeMap::<usize, usize>::new();
        let mut alphas = BTreeMap::<u32, usize>::new();
        for m in self.modules.values() {
            *ranks.entry(m.rank()).or_default() += 1;
            *alphas.entry(m.alpha.to_bits()).or_default() += 1;
        }
        let (&r, _) = ranks.iter().max_by_key(|&(_, n)| n)?;
        let (&alpha, _) = alphas.iter().max_by_key(|&(_, n)| n)?;
        Some((r, f32::from_bits(alpha)))
    }
}

/// Whole numbers as PEFT writes them: without a point.
fn number(v: f32) -> Value {
    if v.fract() == 0.0 && v.abs() < 1e9 { json!(v as i64) } else { json!(v) }
}

/// The adapter's name and its weights' file.
fn locate(path: &Path) -> Result<(String, PathBuf)> {
    if !path.is_dir() {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        return Ok((stem, path.to_path_buf()));
    }
    let weights = [WEIGHTS, WEIGHTS_DIFFUSERS]
        .map(|f| path.join(f))
        .into_iter()
        .find(|f| f.exists())
        .ok_or_else(|| Error::format(path, format!("holds neither {WEIGHTS} nor {WEIGHTS_DIFFUSERS}")))?;
    Ok((path.file_name().unwrap_or_default().to_string_lossy().into_owned(), weights))
}

/// The description that belongs to `weights`, if there is one.
fn description_of(weights: &Path) -> Option<PathBuf> {
    let stem = weights.file_stem().unwrap_or_default().to_string_lossy();
    let own = weights.with_file_name(format!("{stem}.{CONFIG}"));
    [own, weights.with_file_name(CONFIG)].into_iter().find(|path| path.exists())
}

/// A key without what diffusers and PEFT put before the transformer's modules.
fn unprefixed_key(key: &str) -> &str {
    let bare = key.strip_prefix("base_model.model.").unwrap_or(key);
    bare.strip_prefix("transformer.").unwrap_or(bare)
}

fn unknown_key(file: &Path, key: &str, [a, b, alpha]: [&str; 3]) -> Error {
    Error::format(
        file,
        format!(
            "key `{key}` is none of `….{a}`, `….{b}` or `….{alpha}`: not a LoRA as diffusers, PEFT or kohya's sd-scripts \
             save one"
        ),
    )
}

/// A pipeline's description with the transformer's keys as PEFT has them; anything else as it is.
fn unprefixed(text: &str) -> String {
    let Ok(Value::Object(map)) = serde_json::from_str(text) else { return text.to_owned() };
    let bare = |key: String| key.strip_prefix("transformer.").map(str::to_owned).unwrap_or(key);
    Value::Object(map.into_iter().map(|(key, value)| (bare(key), value)).collect()).to_string()
}

/// Reads a description and refuses what we would compute wrongly.
fn describe(path: &Path, text: &str) -> Result<PeftConfig> {
    let config: PeftConfig = serde_json::from_str(text)
        .map_err(|e| Error::format(path, format!("not a PEFT description: {e}")))?;
    if config.peft_type != "LORA" {
        return Err(Error::format(path, format!("peft_type is {}, wanted LORA", config.peft_type)));
    }
    for (key, on) in [
        ("use_dora", config.use_dora),
        ("fan_in_fan_out", config.fan_in_fan_out),
        ("lora_bias", config.lora_bias),
    ] {
        if on {
            return Err(Error::format(
                path,
                format!("{key} is true, which this engine does not support; train the adapter without it"),
            ));
        }
    }
    Ok(config)
}

fn read_module(
    file: &SafeFile,
    module: &str,
    parts: &Parts,
    [name_a, name_b, _]: [&str; 3],
    config: Option<&PeftConfig>,
    device: &Device,
) -> Result<LoraModule> {
    let wrong = |detail: String| Error::format(file.path(), detail);
    let half = |key: Option<&str>, which: &str| match key {
        Some(key) => file.weight(key, device),
        None => Err(wrong(format!("module `{module}` has no {which}; the file is incomplete"))),
    };
    let (a, b) = (half(parts[0], name_a)?, half(parts[1], name_b)?);
    check_shapes(module, a.shape(), b.shape()).map_err(wrong)?;
    let rank = a.shape()[0];
    let alpha = match (parts[2], config) {
        (Some(key), _) => {
            let value = file.f64s(key)?;
            let [alpha] = value[..] else {
                return Err(wrong(format!("`{key}` has {} values, wanted one", value.len())));
            };
            alpha as f32
        }
        (None, Some(config)) => described_alpha(config, module, rank).map_err(wrong)?,
        (None, None) => rank as f32,
    };
    if !alpha.is_finite() {
        return Err(wrong(format!("module `{module}` has alpha {alpha}, wanted a finite number")));
    }
    Ok(LoraModule { a, b, alpha })
}

/// alpha of `module` by the description; rank-stabilised scaling (alpha/√r) is folded in.
fn described_alpha(config: &PeftConfig, module: &str, rank: usize) -> Result<f32, String> {
    if let Some(r) = config.r.filter(|&r| r != rank && config.rank_pattern.is_empty()) {
        return Err(format!(
            "module `{module}` has rank {rank}, its description ({CONFIG} or {EMBEDDED}) says r = {r}: that is of another \
             file, and its lora_alpha cannot be trusted; put the right one there or remove it"
        ));
    }
    let alpha = pattern(&config.alpha_pattern, module)?.or(config.lora_alpha).unwrap_or(rank as f32);
    Ok(if config.use_rslora { alpha * (rank as f32).sqrt() } else { alpha })
}

/// PEFT's pattern keys are regular expressions matched at the end of the name; plain names are what occurs.
fn pattern(map: &BTreeMap<String, f32>, module: &str) -> Result<Option<f32>, String> {
    if let Some(&exact) = map.get(module) {
        return Ok(Some(exact));
    }
    for (key, &value) in map {
        if let Some(odd) = key.chars().find(|c| "*+?()[]{}|\\^$".contains(*c)) {
            return Err(format!(
                "alpha_pattern has the key `{key}` with `{odd}`: only plain module names are understood"
            ));
        }
        let key = key.strip_prefix("transformer.").unwrap_or(key);
        if module.strip_suffix(key).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')) {
            return Ok(Some(value));
        }
    }
    Ok(None)
}

fn check_shapes(module: &str, a: &[usize], b: &[usize]) -> Result<(), String> {
    match (a, b) {
        (&[r, width], &[out, r_b]) if r == r_b && r > 0 && width > 0 && out > 0 => Ok(()),
        _ => {
            Err(format!("module `{module}` has A {a:?} and B {b:?}, wanted [r, in] and [out, r] with one r"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flux::weights::tests::fixtures;

    fn module(rank: usize, alpha: f32) -> LoraModule {
        let d = Device::cpu();
        let ramp = |n: usize| (0..n).map(|i| i as f32 * 0.25 - 1.0).collect::<Vec<_>>();
        LoraModule {
            a: Tensor::from_slice(&d, &[rank, 8], &ramp(rank * 8)).unwrap(),
            b: Tensor::from_slice(&d, &[12, rank], &ramp(rank * 12)).unwrap(),
            alpha,
        }
    }

    fn adapter(modules: &[(&str, usize, f32)]) -> AdapterFile {
        AdapterFile {
            name: "x".into(),
            modules: modules.iter().map(|&(m, r, a)| (m.to_owned(), module(r, a))).collect(),
            lq_resize: Some("torch_bicubic".into()),
            metadata: BTreeMap::from([("step".into(), "80".into())]),
        }
    }

    fn write(path: &Path, keys: &[(&str, &[usize])]) {
        let d = Device::cpu();
        let t = |s: &[usize]| Tensor::from_slice(&d, s, &vec![3.0; s.iter().product()]).unwrap();
        let tensors: Vec<_> = keys.iter().map(|(k, s)| ((*k).to_owned(), t(s))).collect();
        write_safetensors(path, &BTreeMap::new(), &tensors).unwrap();
    }

    #[test]
    fn round_trip_keeps_alpha_rank_and_bits() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("sr");
        let a = adapter(&[("p.to_q", 4, 6.0), ("p.to_k", 4, 6.0), ("p.to_v", 2, 0.5)]);
        a.save(&dir).unwrap();
        a.save(&dir).unwrap();
        let check = |b: &AdapterFile| {
            assert_eq!((b.rank(), b.alpha(), b.modules.len()), (None, None, 3));
            assert_eq!(b.modules["p.to_v"].scaling(), 0.25);
            for (k, m) in &b.modules {
                let want = &a.modules[k];
                assert_eq!((m.a.f32(), m.b.f32(), m.alpha), (want.a.f32(), want.b.f32(), want.alpha), "{k}");
            }
        };
        let back = AdapterFile::load(&dir, &Device::cpu()).unwrap();
        check(&back);
        assert_eq!((back.name.as_str(), &back.lq_resize), ("sr", &a.lq_resize));
        assert_eq!(back.metadata["step"], "80");

        // The description alone says the same, for PEFT, which does not know the `.alpha` keys.
        let keep: Vec<(String, Tensor)> = a
            .modules
            .iter()
            .flat_map(|(k, m)| {
                let key = |half: &str| format!("base_model.model.transformer.{k}.{half}.weight");
                [(key("lora_A"), m.a.clone()), (key("lora_B"), m.b.clone())]
            })
            .collect();
        write_safetensors(dir.join(WEIGHTS), &BTreeMap::new(), &keep).unwrap();
        check(&AdapterFile::load(&dir, &Device::cpu()).unwrap());
        let json: Value = serde_json::from_str(&std::fs::read_to_string(dir.join(CONFIG)).unwrap()).unwrap();
        assert_eq!(json["target_modules"], json!(["p.to_k", "p.to_q", "p.to_v"]));
        assert_eq!(
            (&json["r"], &json["lora_alpha"], &json["peft_type"]),
            (&json!(4), &json!(6), &json!("LORA"))
        );
        // Without it alpha is r.
        std::fs::remove_file(dir.join(CONFIG)).unwrap();
        assert_eq!(AdapterFile::load(&dir, &Device::cpu()).unwrap().modules["p.to_q"].scaling(), 1.0);
    }

    #[test]
    fn reads_what_the_reference_saves() {
        let Some(dir) = fixtures("lora") else { return };
        let config = FluxConfig::load(fixtures("tiny_flux/transformer").unwrap()).unwrap();
        for (name, rank, scaling) in [("base_sft", 4, 1.0), ("train_dpo", 3, 1.0), ("adv", 2, 1.5)] {
            let a = AdapterFile::load(dir.join(format!("{name}.safetensors")), &Device::cpu()).unwrap();
            a.validate(&config).unwrap();
            assert_eq!((a.name.as_str(), a.rank(), a.modules.len()), (name, Some(rank), 31));
            assert_eq!(a.modules["x_embedder"].scaling(), scaling);
            assert_eq!(a.alpha(), Some(scaling * rank as f32));
        }
    }

    #[test]
    fn malformed_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        let load = || AdapterFile::load(&path, &Device::cpu());
        let error = |keys: &[(&str, &[usize])]| {
            write(&path, keys);
            load().unwrap_err().to_string()
        };
        let (a, b) = ("transformer.m.lora_A.weight", "transformer.m.lora_B.weight");
        assert!(error(&[(a, &[2, 8])]).contains("`m` has no lora_B.weight"));
        assert!(error(&[(b, &[8, 2])]).contains("`m` has no lora_A.weight"));
        assert!(error(&[(a, &[2, 8]), (b, &[8, 3])]).contains("[8, 3]"));
        assert!(error(&[(a, &[2, 8]), (b, &[16])]).contains("[16]"));
        assert!(error(&[("transformer.m.lora_down.weight", &[2, 8])]).contains("lora_down"));
        assert!(error(&[(a, &[2, 8]), ("m.lora_A.weight", &[2, 8])]).contains("same tensor"));
        assert!(error(&[(a, &[2, 8]), (b, &[8, 2]), ("transformer.m.alpha", &[2])]).contains("2 values"));
        assert!(error(&[]).contains("no tensor"));
        assert!(AdapterFile::load(dir.path(), &Device::cpu()).unwrap_err().to_string().contains(WEIGHTS));

        write(&path, &[(a, &[2, 8]), (b, &[8, 2])]);
        let config = |text: &str| {
            std::fs::write(dir.path().join("w.adapter_config.json"), text).unwrap();
            load()
        };
        let alpha = |text: &str| config(text).unwrap().modules["m"].alpha;
        assert_eq!(alpha(r#"{"r": 2, "lora_alpha": 5, "unknown": []}"#), 5.0);
        assert_eq!(alpha(r#"{"r": 2, "lora_alpha": 5, "use_rslora": true}"#), 5.0 * 2f32.sqrt());
        assert_eq!(
            alpha(r#"{"r": 8, "lora_alpha": 5, "rank_pattern": {"m": 2}, "alpha_pattern": {"m": 7}}"#),
            7.0
        );
        let refused = |text: &str| config(text).unwrap_err().to_string();
        assert!(refused(r#"{"r": 8, "lora_alpha": 5}"#).contains("r = 8"));
        assert!(refused(r#"{"use_dora": true}"#).contains("use_dora"));
        assert!(refused(r#"{"peft_type": "IA3"}"#).contains("IA3"));
        assert!(refused(r#"{"alpha_pattern": {".*m": 2}}"#).contains(".*m"));
        assert!(refused("[").contains("w.adapter_config.json"));
        // What diffusers put into the file itself wins over what lies beside it.
        let d = Device::cpu();
        let pair = [(a, [2, 8]), (b, [8, 2])].map(|(k, s)| (k.to_owned(), Tensor::zeros(&d, &s).unwrap()));
        for prefix in ["", "transformer."] {
            let json =
                format!(r#"{{"{prefix}r": 2, "{prefix}lora_alpha": 3, "text_encoder.lora_alpha": 9}}"#);
            let metadata = BTreeMap::from([(EMBEDDED.to_owned(), json), ("step".into(), "8".into())]);
            write_safetensors(&path, &metadata, &pair).unwrap();
            assert_eq!(alpha(r#"{"r": 2, "lora_alpha": 5}"#), 3.0);
            assert_eq!(load().unwrap().metadata.keys().collect::<Vec<_>>(), ["step"]);
        }
        // alpha keys win over the description.
        write(&path, &[(a, &[2, 8]), (b, &[8, 2]), ("transformer.m.alpha", &[])]);
        assert_eq!(alpha(r#"{"r": 2, "lora_alpha": 5}"#), 3.0);
    }

    #[test]
    fn modules_are_checked_against_the_model() {
        let c = FluxConfig { num_layers: 1, num_single_layers: 1, ..FluxConfig::default() };
        let error = |m: &str| adapter(&[(m, 2, 2.0)]).validate(&c).unwrap_err().to_string();
        let e = error("transformer_blocks.0.atn.to_q");
        assert!(e.contains("did you mean `transformer_blocks.0.attn.to_q`"), "{e}");
        assert!(error("transformer_blocks.0.ff.net.0.proj").contains("none of the 13"));
        let e = error("x_embedder");
        assert!(e.contains("maps 8 values to 12") && e.contains("64 to 3072"), "{e}");
    }
}
