//! One fixture: its tensors, its configuration, and the tally of comparisons.

use crate::data::Image;
use crate::engine::{Device, Tensor};
use crate::flux::lora::AdapterFile;
use crate::flux::weights::SafeFile;
use crate::ops::attention::GroupBias;
use crate::{Error, Result};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
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
    naive: Naive,
}

/// The bookkeeping of a replay in bf16: see [`Fixture::learn`].
#[derive(Default)]
struct Naive {
    /// Is a naive implementation computing?
    at_work: bool,
    /// How many have.
    draws: usize,
    kinds: BTreeMap<String, Kind>,
}

/// Tensors that are held together, by sums of squares.
#[derive(Default)]
struct Kind {
    naive: f64,
    error: f64,
    tolerance: f64,
    /// How many root mean squares of the naive errors are allowed.
    multiple: f64,
}

/// What the naive error of many numbers together is multiplied by.
const TWICE: f64 = 2.0;
/// What that of one number is multiplied by: Student's t of as many degrees of freedom as there are naive implementations,
/// 6, at 1 in 1000. Six draws say so little of a rounding noise that one number in eleven would be off by twice their
/// root mean square and be no worse.
const ONE_NUMBER: f64 = 5.96;

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
            naive: Naive::default(),
        })
    }

    /// Has `replay` compute in a naive bf16, whose errors widen the tolerances of the replays to come: to those recorded,
    /// for f32, is added twice the root mean square of such errors, in the 2-norm ([`ONE_NUMBER`] times where there is but
    /// one). What nobody rounds is so held to f32's.
    ///
    /// All gradients of an adapter, or of the model, are held together, by their relative errors: a low-rank factor's, or
    /// a gap's share in all of them, follows from a few numbers, and what is off in those is by chance next to nothing or
    /// twice the usual.
    pub fn learn(&mut self, replay: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        self.naive.at_work = true;
        replay(self)?;
        self.naive.at_work = false;
        self.naive.draws += 1;
        (self.seen, self.tally) = Default::default();
        Ok(())
    }

    /// Is this replay measured as one in bf16?
    pub fn in_bf16(&self) -> bool {
        self.naive.at_work || self.naive.draws > 0
    }

    /// Ends the replay: an output or gradient that was neither compared nor left out with a reason is an error.
    pub fn finish(mut self) -> Result<Tally> {
        let forgotten: Vec<&str> =
            self.file.names().filter(|n| !self.seen.contains(*n) && self.kind(n) != "input").collect();
        if let Some(first) = forgotten.first() {
            return Err(self.error(format!(
                "{} recorded tensors were not replayed, the first is {first}",
                forgotten.len()
            )));
        }
        let draws = self.naive.draws.max(1) as f64;
        for (name, kind) in std::mem::take(&mut self.naive.kinds) {
            let tolerance = kind.tolerance.sqrt() + kind.multiple * (kind.naive / draws).sqrt();
            let error = kind.error.sqrt();
            self.judge(&name, error / tolerance, &format!("error {error:.2e}"));
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

    /// Numbers of the configuration.
    pub fn numbers(&self, at: &str) -> Result<Vec<f64>> {
        let wrong = || self.error(format!("config {at} is not a list of numbers"));
        self.value(at)?.as_array().and_then(|all| all.iter().map(Value::as_f64).collect()).ok_or_else(wrong)
    }

    pub fn value(&self, at: &str) -> Result<&Value> {
        self.config.pointer(at).ok_or_else(|| self.error(format!("config {at} is missing")))
    }

    /// Folder of the model the fixture was recorded with.
    pub fn model_dir(&self) -> PathBuf {
        let named = self.config["weights"].as_str().and_then(|w| w.split_whitespace().next());
        self.dir.join(named.unwrap_or("tiny_flux/transformer"))
    }

    /// Folder of the autoencoder beside that model.
    pub fn vae_dir(&self) -> PathBuf {
        self.model_dir().with_file_name("vae")
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
        // Recorded without a tolerance: exact integers and float64 values, to float32 rounding.
        let exact = || 2e-6 * want.iter().fold(1e-30, |a: f64, v| a.max(v.abs()));
        if self.in_bf16() {
            let multiple = if want.len() == 1 { ONE_NUMBER } else { TWICE };
            return match t["rel_l2"].as_f64().filter(|_| size > 0.0) {
                Some(tol) => self.hold(name, kind(name), miss / size, tol, multiple),
                None => self.hold(
                    name,
                    name.to_owned(),
                    largest,
                    t["max_abs"].as_f64().unwrap_or_else(exact),
                    multiple,
                ),
            };
        }
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
        self.count(name);
        self.judge(name, ratio.unwrap_or_else(|| largest / exact()), &format!("error {largest:.2e}"));
        Ok(())
    }

    /// [`Fixture::check`] of numbers that sum a tensor up: its norm, or the energy of a residual. In bf16 they may be off by
    /// what the naive tensor's error could do to them, which is `off` of their size: what it did is a draw or two, and by
    /// chance next to nothing.
    pub fn check_sum(&mut self, name: &str, got: &[f32], off: f64) -> Result<()> {
        if !self.in_bf16() || !self.has(name) {
            return self.check(name, got);
        }
        let want = self.file.f64s(name)?;
        let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|v| v * v).sum::<f64>().sqrt();
        let miss = norm(&mut got.iter().zip(&want).map(|(&g, w)| f64::from(g) - w));
        let error = if self.naive.at_work { off } else { miss / norm(&mut want.iter().copied()) };
        let tolerance = self.tensors[name]["tolerance"]["rel_l2"].as_f64().unwrap_or(0.0);
        self.hold(name, name.to_owned(), error, tolerance, TWICE)
    }

    /// [`Fixture::check_sum`] of the mean squared distance of `v`, recorded as `recorded`, to `target`.
    pub fn check_mse(
        &mut self,
        name: &str,
        got: &[f32],
        v: &Tensor,
        recorded: &str,
        target: &Tensor,
    ) -> Result<()> {
        let (v, target, recorded) = (v.values()?, target.values()?, self.f32s(recorded)?);
        let square =
            |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
        // (r + e)² is off from r² by 2⟨r, e⟩.
        self.check_sum(name, got, 2.0 * (square(&v, &recorded) / square(&recorded, &target)).sqrt())
    }

    /// The recorder's rule for weights after AdamW's first update, which moves an element by lr·g/(|g|+ε) whatever its
    /// size: to 1 % of lr, but where the gradient is at rounding level to twice the move. The second update moves by a
    /// ratio of gradients, so (`of_second`) it inherits the relative tolerance recorded for them. In bf16, where many more
    /// gradients are at rounding level and one that changes its sign is a whole move, all weights of the update are held
    /// together.
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
        let (mut worst, mut off, mut allowed) = (0f64, 0f64, 0f64);
        for ((w, &got), g) in want.iter().zip(got).zip(&g) {
            let sure = g.abs() > 1e-3 * peak || *g == 0.0;
            let moves = if sure { (2.0 * noise / g.abs().max(1e-30)).clamp(1e-2, 2.02) } else { 2.02 };
            let moves = if *g == 0.0 { 1e-2 } else { moves };
            let (e, most) = ((f64::from(got) - w).abs(), moves * lr + 1.2e-7 * w.abs());
            worst = if e.is_nan() { f64::INFINITY } else { worst.max(e / most) };
            (off, allowed) = (off + e * e, allowed + most * most);
        }
        if self.in_bf16() {
            return self.hold(name, kind(name), off.sqrt(), allowed.sqrt(), TWICE);
        }
        self.count(name);
        self.judge(name, worst, "AdamW rule");
        Ok(())
    }

    /// Takes in a comparison in bf16: an error beside its tolerance in f32 and the multiple of the naive error it may be.
    fn hold(&mut self, name: &str, kind: String, error: f64, tolerance: f64, multiple: f64) -> Result<()> {
        let naive = self.naive.at_work;
        if naive && !error.is_finite() {
            return Err(self.error(format!("{name}: a naive bf16 implementation is off by {error}")));
        }
        let kind = self.naive.kinds.entry(kind).or_default();
        if naive {
            kind.naive += error * error;
        } else {
            kind.error += error * error;
            kind.tolerance += tolerance * tolerance;
            kind.multiple = multiple;
            self.count(name);
        }
        Ok(())
    }

    fn count(&mut self, name: &str) {
        self.seen.insert(name.to_owned());
        self.tally.compared += 1;
    }

    fn judge(&mut self, name: &str, ratio: f64, what: &str) {
        if self.tally.worst.as_ref().is_none_or(|(r, _)| ratio > *r) {
            self.tally.worst = Some((ratio, name.to_owned()));
        }
        if ratio.is_nan() || ratio > 1.0 {
            self.tally.misses.push(format!("{name}: {what}, {ratio:.2}× its tolerance"));
        }
    }
}

/// What is held together with `name`: the gradients or weights of its adapter, or of the model; else it alone.
fn kind(name: &str) -> String {
    let set = name.split_once(".transformer.").map(|(set, _)| set);
    let set = set.or_else(|| name.starts_with("grad.weights.").then_some("grad.weights"));
    set.map_or_else(|| name.to_owned(), |set| format!("{set}.*"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flux::weights::write_safetensors;

    /// Twice what the naive implementation is off by in all gradients together, f32's tolerance where it is exact, and more
    /// where there is one number to know it by.
    #[test]
    fn bf16_is_held_to_the_naive_error() {
        let dir = tempfile::tempdir().unwrap();
        let sizes = [("grad.transformer.0", 4), ("grad.transformer.1", 4), ("out.b", 4), ("loss", 1)];
        let ones = |n: usize| Tensor::full(&Device::cpu(), &[n], 1.0).unwrap();
        let tensors: Vec<_> = sizes.iter().map(|(name, n)| ((*name).to_owned(), ones(*n))).collect();
        write_safetensors(dir.path().join("x.safetensors"), &BTreeMap::new(), &tensors).unwrap();
        let tolerance = r#"{"kind": "output", "tolerance": {"max_abs": 1e-6, "rel_l2": 1e-6}}"#;
        let all = sizes.map(|(name, _)| format!("\"{name}\": {tolerance}")).join(", ");
        std::fs::write(dir.path().join("x.json"), format!("{{\"tensors\": {{{all}}}}}")).unwrap();
        let replay = |f: &mut Fixture, off: [f32; 4]| {
            sizes.iter().zip(off).try_for_each(|((name, n), off)| f.check(name, &vec![1.0 + off; *n]))
        };
        let misses = |off: [f32; 4]| {
            let mut f = Fixture::open(dir.path(), "x").unwrap();
            f.learn(|f| replay(f, [1e-2, 0.0, 0.0, 1e-2])).unwrap();
            f.learn(|f| replay(f, [0.0, 1e-2, 0.0, -1e-2])).unwrap();
            replay(&mut f, off).unwrap();
            f.finish().unwrap().misses.len()
        };
        assert_eq!(misses([1.9e-2, 0.0, 0.9e-6, 5.8e-2]), 0);
        assert_eq!(misses([0.0, 2.1e-2, 0.9e-6, 0.0]), 1);
        assert_eq!(misses([1.5e-2, 1.5e-2, 0.0, 0.0]), 1);
        assert_eq!(misses([0.0, 0.0, 1.2e-6, 6.1e-2]), 2);
        assert_eq!(misses([f32::NAN, 0.0, 0.0, 0.0]), 1);
    }
}
