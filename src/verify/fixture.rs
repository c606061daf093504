//! One fixture: its tensors, its configuration, and the tally of comparisons.

use crate::data::Image;
use crate::engine::{Device, Tensor};
use crate::flux::lora::AdapterFile;
use crate::flux::weights::SafeFile;
use crate::ops::attention::GroupBias;
use crate::{Error, Result};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Comparisons made so far.
#[derive(Default)]
pub(super) struct Tally {
    pub compared: usize,
    pub left_out: Vec<String>,
    pub worst: Option<(f64, String)>,
    pub misses: Vec<String>,
}

pub(super) struct Fixture {
    pub dir: PathBuf,
    pub config: Value,
    path: PathBuf,
    tensors: Value,
    file: SafeFile,
    seen: BTreeSet<String>,
    tally: Tally,
}

impl Fixture {
    pub fn open(dir: &Path, stem: &str) -> Result<Self> {
        let path = dir.join(format!("{stem}.json"));
        let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
        let mut json: Value = serde_json::from_str(&text).map_err(|e| Error::format(&path, e.to_string()))?;
        let file = SafeFile::open(dir.join(format!("{stem}.safetensors")))?;
        let (config, tensors) = (json["config"].take(), json["tensors"].take());
        Ok(Self {
            dir: dir.to_owned(),
            config,
            path,
            tensors,
            file,
            seen: BTreeSet::new(),
            tally: Tally::default(),
        })
    }

    /// Ends the replay: an output or gradient that was neither compared nor left out with a reason is an error.
    pub fn finish(self) -> Result<Tally> {
        let forgotten: Vec<&str> =
            self.file.names().filter(|n| !self.seen.contains(*n) && self.kind(n) != "input").collect();
        if let Some(first) = forgotten.first() {
            return Err(self.error(format!(
                "{} recorded tensors were not replayed, the first is {first}",
                forgotten.len()
            )));
        }
        Ok(self.tally)
    }

    pub fn error(&self, detail: impl Into<String>) -> Error {
        Error::format(&self.path, detail)
    }

    fn kind(&self, name: &str) -> &str {
        self.tensors[name]["kind"].as_str().unwrap_or("")
    }

    pub fn names(&self) -> Vec<String> {
        self.file.names().map(str::to_owned).collect()
    }

    pub fn has(&self, name: &str) -> bool {
        self.file.contains(name)
    }

    pub fn shape(&self, name: &str) -> Result<Vec<usize>> {
        Ok(self.file.shape(name)?.to_vec())
    }

    pub fn tensor(&self, name: &str, device: &Device) -> Result<Tensor> {
        self.file.tensor(name, device)
    }

    pub fn f32s(&self, name: &str) -> Result<Vec<f32>> {
        Ok(self.file.f64s(name)?.into_iter().map(|v| v as f32).collect())
    }

    /// Height and width of a picture `[h, w, 3]`.
    pub fn size(&self, name: &str) -> Result<(usize, usize)> {
        match *self.file.shape(name)? {
            [h, w, 3] if h * w > 0 => Ok((h, w)),
            ref other => Err(self.error(format!("{name} has shape {other:?}, wanted a picture [h, w, 3]"))),
        }
    }

    /// A picture of bytes, `[h, w, 3]`.
    pub fn picture(&self, name: &str) -> Result<Image> {
        let (h, w) = self.size(name)?;
        let bytes: Vec<u8> = self.file.f64s(name)?.into_iter().map(|v| v as u8).collect();
        Image::from_rgb8(h, w, &bytes)
    }

    /// Position ids `[n, 3]`.
    pub fn ids(&self, name: &str) -> Result<std::sync::Arc<[[f32; 3]]>> {
        Ok(self.f32s(name)?.as_chunks::<3>().0.into())
    }

    /// What the recorder says a tensor is, in words; empty where it says nothing.
    pub fn meaning(&self, name: &str) -> &str {
        self.tensors[name]["meaning"].as_str().unwrap_or("")
    }

    /// A number of the configuration.
    pub fn number(&self, at: &str) -> Result<f64> {
        self.value(at)?.as_f64().ok_or_else(|| self.error(format!("config {at} is not a number")))
    }

    pub fn value(&self, at: &str) -> Result<&Value> {
        self.config.pointer(at).ok_or_else(|| self.error(format!("config {at} is missing")))
    }

    /// Folder of the model the fixture was recorded with.
    pub fn model_dir(&self) -> PathBuf {
        let named = self.config["weights"].as_str().and_then(|w| w.split_whitespace().next());
        self.dir.join(named.unwrap_or("tiny_flux/transformer"))
    }

    /// The reference's attention options as biases between text, image and condition.
    pub fn group_bias(&self) -> Result<Option<GroupBias>> {
        let on = |key: &str, default: bool| self.config["model_config"][key].as_bool().unwrap_or(default);
        for key in ["add_cond_attn", "latent_lora"] {
            if on(key, false) {
                return Err(self.error(format!("recorded with {key} on, which is not supported")));
            }
        }
        let shut = f32::NEG_INFINITY;
        Ok(match (on("union_cond_attn", true), on("independent_condition", false)) {
            (false, _) => Some([[0.0, 0.0, shut], [0.0, 0.0, shut], [shut, shut, 0.0]]),
            (true, true) => Some([[0.0; 3], [0.0; 3], [shut, shut, 0.0]]),
            (true, false) => None,
        })
    }

    /// The adapter the configuration lists under `name`, its alpha as recorded there.
    pub fn adapter(&self, name: &str, device: &Device) -> Result<AdapterFile> {
        let entry = self.value(&format!("/lora/{name}"))?;
        let path = entry["file"]
            .as_str()
            .ok_or_else(|| self.error(format!("config lora.{name}.file is missing")))?;
        let mut file = AdapterFile::load(self.dir.join(path), device)?;
        file.name = name.to_owned();
        if let Some(alpha) = entry["lora_alpha"].as_f64() {
            file.modules.values_mut().for_each(|m| m.alpha = alpha as f32);
        }
        Ok(file)
    }

    /// Leaves out every tensor `which` accepts, for `reason`.
    pub fn leave_out(&mut self, reason: &str, which: impl Fn(&str) -> bool) {
        let names: Vec<String> =
            self.names().into_iter().filter(|n| which(n) && self.kind(n) != "input").collect();
        if !names.is_empty() {
            self.tally.left_out.push(format!("{} tensors: {reason}", names.len()));
            self.seen.extend(names);
        }
    }

    /// The largest error that the recorder allows of a tensor; 0 where it says nothing.
    pub fn tolerance(&self, name: &str) -> f64 {
        self.tensors[name]["tolerance"]["max_abs"].as_f64().unwrap_or(0.0)
    }

    /// Compares with the recorded tensor, where there is one, at its recorded tolerance (largest and root-mean-square error, both).
    pub fn check(&mut self, name: &str, got: &[f32]) -> Result<()> {
        self.check_f64(name, &got.iter().map(|&v| f64::from(v)).collect::<Vec<_>>())
    }

    /// [`Fixture::check`] of a picture as the bytes that a file would hold.
    pub fn check_picture(&mut self, name: &str, got: &Image) -> Result<()> {
        self.check(name, &got.to_rgb8().into_iter().map(f32::from).collect::<Vec<_>>())
    }

    /// [`Fixture::check`] at the tolerance recorded for another tensor.
    pub fn check_as(&mut self, name: &str, tolerance_of: &str, got: &[f32]) -> Result<()> {
        self.compare(name, tolerance_of, &got.iter().map(|&v| f64::from(v)).collect::<Vec<_>>())
    }

    /// [`Fixture::check`] for values computed in f64.
    pub fn check_f64(&mut self, name: &str, got: &[f64]) -> Result<()> {
        self.compare(name, name, got)
    }

    fn compare(&mut self, name: &str, tolerance_of: &str, got: &[f64]) -> Result<()> {
        if !self.file.contains(name) {
            return Ok(());
        }
        let want = self.file.f64s(name)?;
        if want.len() != got.len() {
            return Err(self.error(format!(
                "{name}: {} values computed, {} recorded",
                got.len(),
                want.len()
            )));
        }
        let t = &self.tensors[tolerance_of]["tolerance"];
        let error = |i: usize| (got[i] - want[i]).abs();
        let largest = (0..want.len())
            .map(error)
            .fold(0.0, |a: f64, e| if e.is_nan() { f64::INFINITY } else { a.max(e) });
        let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|v| v * v).sum::<f64>().sqrt();
        let (size, miss) = (norm(&mut want.iter().copied()), norm(&mut (0..want.len()).map(error)));
        let mut ratio: Option<f64> = None;
        let mut bound = |r: f64| ratio = Some(ratio.map_or(r, |a| a.max(r)));
        if let Some(tol) = t["max_abs"].as_f64() {
            // a tolerance of 0: the very same
            bound(if largest == 0.0 { 0.0 } else { largest / tol });
        }
        if let Some(tol) = t["mean_abs"].as_f64() {
            bound((0..want.len()).map(error).sum::<f64>() / want.len().max(1) as f64 / tol);
        }
        if let (Some(tol), true) = (t["rel_l2"].as_f64(), size > 0.0) {
            bound(miss / size / tol);
        }
        if let (Some(tol), true) = (t["rel"].as_f64(), size > 0.0) {
            bound(largest / size / tol);
        }
        // Recorded without a tolerance: exact integers and float64 values, to float32 rounding.
        let ratio =
            ratio.unwrap_or_else(|| largest / want.iter().fold(1e-30, |a: f64, v| a.max(v.abs())) / 2e-6);
        self.record(name, ratio, &format!("error {largest:.2e}"));
        Ok(())
    }

    /// The recorder's rule for weights after AdamW's first update, which moves an element by lr·g/(|g|+ε) whatever its
    /// size: to 1 % of lr, but where the gradient is at rounding level to twice the move. The second update moves by a
    /// ratio of gradients, so (`of_second`) it inherits the relative tolerance recorded for them.
    pub fn check_adamw(
        &mut self,
        name: &str,
        got: &[f32],
        grad: &str,
        of_second: bool,
        lr: f64,
    ) -> Result<()> {
        let (want, g) = (self.file.f64s(name)?, self.file.f64s(grad)?);
        if want.len() != got.len() || want.len() != g.len() {
            return Err(self.error(format!(
                "{name}: {} values computed, {} recorded",
                got.len(),
                want.len()
            )));
        }
        let noise =
            if of_second { self.tensors[grad]["tolerance"]["max_abs"].as_f64().unwrap_or(0.0) } else { 0.0 };
        let peak = g.iter().fold(0.0f64, |a, g| a.max(g.abs()));
        let mut worst = 0f64;
        for ((w, &got), g) in want.iter().zip(got).zip(&g) {
            let sure = g.abs() > 1e-3 * peak || *g == 0.0;
            let moves = if sure { (2.0 * noise / g.abs().max(1e-30)).clamp(1e-2, 2.02) } else { 2.02 };
            let moves = if *g == 0.0 { 1e-2 } else { moves };
            let e = (f64::from(got) - w).abs() / (moves * lr + 1.2e-7 * w.abs());
            worst = if e.is_nan() { f64::INFINITY } else { worst.max(e) };
        }
        self.record(name, worst, "AdamW rule");
        Ok(())
    }

    fn record(&mut self, name: &str, ratio: f64, what: &str) {
        self.seen.insert(name.to_owned());
        self.tally.compared += 1;
        if self.tally.worst.as_ref().is_none_or(|(r, _)| ratio > *r) {
            self.tally.worst = Some((ratio, name.to_owned()));
        }
        if ratio.is_nan() || ratio > 1.0 {
            self.tally.misses.push(format!("{name}: {what}, {ratio:.2}× its tolerance"));
        }
    }
}
