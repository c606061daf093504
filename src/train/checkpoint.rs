//! A run's state, and the folders it is kept in: complete, with a manifest of hashes, or absent.
//!
//! ```text
//! checkpoints/3-adversary-000100/   stage's place and name, updates done
//!   state.safetensors               master/<name>, m/<name>, v/<name>, average/<name>
//!   state.json                      everything else: see `Record`
//!   manifest.json                   SHA-256 and size of the two
//! ```
//! The folder is filled under a temporary name, every file synced, and renamed last. Nothing in it depends on time, so
//! a resumed run writes the very same bytes as one that was never stopped.

use super::config::Config;
use super::monitor::Monitor;
use super::options::{Named, StageName};
use crate::autograd::ParamSet;
use crate::engine::Device;
use crate::files::{create_folder, expect_space, sha256, sha256_file, write_atomic};
use crate::flux::weights::{SafeFile, write_safetensors};
use crate::{Error, Result, faults};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The folder of a run that holds its checkpoints.
pub const CHECKPOINTS: &str = "checkpoints";
/// Version of the format; another one is refused.
const FORMAT: u32 = 1;
const TENSORS: &str = "state.safetensors";
const RECORD: &str = "state.json";
const MANIFEST: &str = "manifest.json";
/// How a folder's name ends when the run went back behind it.
const SET_ASIDE: &str = "set-aside";

/// Everything a stage must remember to go on as if it had never stopped. Batches, noise and noise levels are functions
/// of the seed and `step`.
pub struct TrainState {
    /// The stage.
    pub stage: StageName,
    /// Updates done in it.
    pub step: usize,
    /// Masters, moments, running average.
    pub params: ParamSet,
    /// What has been seen of the losses.
    pub monitor: Monitor,
    /// DPO's β, where `asdpo.auto_beta` steers it.
    pub beta: f32,
}

/// What a checkpoint says beside the tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Version of the format.
    pub format: u32,
    /// Version of the engine that wrote it.
    pub engine: String,
    /// The stage.
    pub stage: String,
    /// Updates done in it.
    pub step: usize,
    /// Updates the optimizer's bias correction has counted.
    pub updates: u64,
    /// The data cursor: training samples drawn in this stage.
    pub samples: u64,
    /// The noise counter: micro-batches for which noise was drawn in this stage, under `seed`.
    pub noise: u64,
    /// The seed of both.
    pub seed: u64,
    /// The schedule: learning rate of the next update; `None` after the last.
    pub next_lr: Option<f32>,
    /// DPO's β.
    pub beta: f32,
    /// What has been seen of the losses.
    pub monitor: Monitor,
    /// Lines of `log.jsonl`.
    pub log_lines: usize,
    /// Lines of `validation.jsonl`.
    pub validation_lines: usize,
    /// SHA-256 of each file of the run that the finished stages made.
    pub artifacts: BTreeMap<String, String>,
    /// SHA-256 of `config`.
    pub config_hash: String,
    /// The configuration, in full.
    pub config: String,
}

#[derive(Serialize, Deserialize)]
struct Manifest {
    format: u32,
    files: BTreeMap<String, Entry>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    bytes: u64,
    sha256: String,
}

/// A checkpoint whose hashes were found right.
pub struct Checkpoint {
    /// Its folder.
    pub path: PathBuf,
    /// What it says.
    pub record: Record,
    /// Its stage.
    pub stage: StageName,
}

/// Lengths of the logs and hashes of the finished stages' files, which a checkpoint records beside the state.
pub struct Beside<'r> {
    /// Lines of `log.jsonl` and of `validation.jsonl`.
    pub lines: (usize, usize),
    /// SHA-256 of each file of the run that the finished stages made.
    pub artifacts: &'r BTreeMap<String, String>,
}

/// The folder of the checkpoint after `step` updates of `stage`. Names sort as the run goes.
fn folder(run: &Path, stage: StageName, step: usize) -> PathBuf {
    run.join(CHECKPOINTS).join(format!("{}-{}-{step:06}", stage as usize + 1, stage.name()))
}

/// Stage and step of a checkpoint's folder, from its name.
fn parse(path: &Path) -> Option<(StageName, usize)> {
    let name = path.file_name()?.to_str()?;
    let mut parts = name.split('-');
    let (number, stage, step) = (parts.next()?, parts.next()?, parts.next()?);
    let stage = StageName::ALL.iter().find(|(n, _)| *n == stage)?.1;
    (parts.next().is_none() && number == (stage as usize + 1).to_string())
        .then_some((stage, step.parse().ok()?))
}

/// Bytes of a checkpoint of `values` parameters.
pub fn size(values: usize, averaged: bool) -> u64 {
    4 * values as u64 * if averaged { 4 } else { 3 } + (1 << 16)
}

impl TrainState {
    /// Writes the checkpoint of this state into `run`, removes those that `run.keep_last` and `run.keep_every` do not
    /// keep, and gives its folder.
    pub fn save(&self, run: &Path, config: &Config, beside: &Beside) -> Result<PathBuf> {
        let path = folder(run, self.stage, self.step);
        let all = run.join(CHECKPOINTS);
        std::fs::create_dir_all(&all).map_err(Error::io(&all))?;
        let tensors = self.params.tensors();
        let bytes = tensors.iter().map(|t| 4 * t.1.len() as u64).sum::<u64>() + (1 << 16);
        expect_space(&all, bytes, "a checkpoint", "lower run.keep_last and resume")?;
        create_folder(&path, |dir| {
            write_safetensors(dir.join(TENSORS), &BTreeMap::new(), &tensors)?;
            let record = json(&path, &self.record(config, beside))?;
            write_atomic(dir.join(RECORD), &record)?;
            faults::point();
            let entry = |name: &str| -> Result<(String, Entry)> {
                let file = dir.join(name);
                let bytes = std::fs::metadata(&file).map_err(Error::io(&file))?.len();
                Ok((name.to_owned(), Entry { bytes, sha256: sha256_file(&file)? }))
            };
            let files = [TENSORS, RECORD].into_iter().map(entry).collect::<Result<_>>()?;
            write_atomic(dir.join(MANIFEST), &json(&path, &Manifest { format: FORMAT, files })?)
        })?;
        prune(run, config)?;
        Ok(path)
    }

    fn record(&self, config: &Config, beside: &Beside) -> Record {
        let o = config.stage(self.stage);
        let text = config.to_toml();
        let micro = (self.step * o.accumulation) as u64;
        Record {
            format: FORMAT,
            engine: env!("CARGO_PKG_VERSION").to_owned(),
            stage: self.stage.name().to_owned(),
            step: self.step,
            updates: self.params.updates,
            samples: micro * o.batch as u64,
            noise: micro,
            seed: config.run.seed,
            next_lr: (self.step < o.steps).then(|| o.lr_at(self.step)),
            beta: self.beta,
            monitor: self.monitor.clone(),
            log_lines: beside.lines.0,
            validation_lines: beside.lines.1,
            artifacts: beside.artifacts.clone(),
            config_hash: sha256(text.as_bytes()),
            config: text,
        }
    }
}

fn json(path: &Path, value: &impl Serialize) -> Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|e| Error::format(path, e.to_string()))?;
    text.push(b'\n');
    Ok(text)
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read(path).map_err(Error::io(path))?;
    serde_json::from_slice(&text)
        .map_err(|e| Error::format(path, format!("not what this version writes: {e}")))
}

/// The complete-looking checkpoints of a run in the order they were written, not yet verified.
pub fn list(run: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(run.join(CHECKPOINTS)).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries.filter_map(|e| Some((parse(&e.path())?, e.path()))).collect();
    found.sort();
    found.into_iter().map(|f| f.1).collect()
}

/// The folder of a run's newest checkpoint, not yet verified.
pub fn newest(run: &Path) -> Option<PathBuf> {
    list(run).pop()
}

/// Removes all but the newest `run.keep_last` checkpoints and those at multiples of `run.keep_every`.
pub fn prune(run: &Path, config: &Config) -> Result<()> {
    let (keep_last, keep_every) = (config.run.keep_last, config.run.keep_every);
    let all = list(run);
    for path in all.iter().rev().skip(keep_last) {
        let kept = keep_every > 0 && parse(path).is_some_and(|(_, step)| step.is_multiple_of(keep_every));
        if !kept {
            std::fs::remove_dir_all(path).map_err(Error::io(path))?;
        }
    }
    Ok(())
}

impl Checkpoint {
    /// Opens a checkpoint's folder; every hash must be right.
    pub fn open(path: &Path) -> Result<Self> {
        if !path.join(MANIFEST).is_file() {
            let detail = format!("is no checkpoint: it has no {MANIFEST}");
            return Err(Error::Usage(format!("{} {detail}", path.display())));
        }
        let manifest: Manifest = read_json(&path.join(MANIFEST))?;
        if manifest.format != FORMAT {
            let detail = format!("written in format {}, this version reads format {FORMAT}", manifest.format);
            return Err(Error::format(path, detail));
        }
        for name in [TENSORS, RECORD] {
            let file = path.join(name);
            let Some(entry) = manifest.files.get(name) else {
                return Err(Error::format(path.join(MANIFEST), format!("does not list {name}")));
            };
            let bytes = std::fs::metadata(&file).map_err(Error::io(&file))?.len();
            if bytes != entry.bytes {
                let detail = format!("has {bytes} bytes, the manifest says {}", entry.bytes);
                return Err(Error::format(
                    &file,
                    format!("{detail}: damaged; resume from another checkpoint"),
                ));
            }
            let hash = sha256_file(&file)?;
            if hash != entry.sha256 {
                let detail = format!("SHA-256 is {hash}, the manifest says {}", entry.sha256);
                return Err(Error::format(
                    &file,
                    format!("{detail}: damaged; resume from another checkpoint"),
                ));
            }
        }
        let record: Record = read_json(&path.join(RECORD))?;
        let stage =
            StageName::ALL.iter().find(|(n, _)| *n == record.stage).map(|s| s.1).ok_or_else(|| {
                Error::format(path.join(RECORD), format!("there is no stage `{}`", record.stage))
            })?;
        Ok(Self { path: path.to_path_buf(), record, stage })
    }

    /// The newest checkpoint of a run that is intact, if there is one; those that are not are handed to `damaged`.
    pub fn latest(run: &Path, mut damaged: impl FnMut(Error)) -> Option<Self> {
        list(run).iter().rev().find_map(|path| Self::open(path).map_err(&mut damaged).ok())
    }

    /// Puts the checkpoint's arenas into freshly made parameters of its stage.
    pub fn restore(&self, mut params: ParamSet, device: &Device) -> Result<TrainState> {
        let file = SafeFile::open(self.path.join(TENSORS))?;
        params.restore(self.record.updates, |name, shape| {
            let tensor = file.tensor(name, device)?;
            if tensor.shape() != shape {
                let detail = format!("{name} has shape {:?}, the options make it {shape:?}", tensor.shape());
                return Err(Error::format(file.path(), detail));
            }
            Ok(tensor)
        })?;
        Ok(TrainState {
            stage: self.stage,
            step: self.record.step,
            params,
            monitor: self.record.monitor.clone(),
            beta: self.record.beta,
        })
    }

    /// Refuses when a file of a finished stage is not the one this checkpoint was written after, or a log is shorter.
    pub fn expect_files(&self, run: &Path) -> Result<()> {
        let logs = [("log.jsonl", self.record.log_lines), ("validation.jsonl", self.record.validation_lines)];
        for (name, lines) in logs {
            let path = run.join(name);
            let text = std::fs::read(&path).map_err(Error::io(&path))?;
            let found = text.iter().filter(|&&b| b == b'\n').count();
            if found < lines {
                let detail = format!("{} was written after {lines}", self.path.display());
                return Err(Error::format(
                    &path,
                    format!(
                        "has {found} lines and {detail}: put the log back, or resume from an earlier checkpoint"
                    ),
                ));
            }
        }
        for (name, hash) in &self.record.artifacts {
            let path = run.join(name);
            let now = sha256_file(&path)?;
            if now != *hash {
                let detail =
                    format!("SHA-256 is {now}; when {} was written it was {hash}", self.path.display());
                return Err(Error::format(&path, format!("{detail}: put the file back, or start a new run")));
            }
        }
        Ok(())
    }

    /// Makes this the newest checkpoint: renames those written later, which belong to a future that will not come.
    pub fn go_back(&self, run: &Path) -> Result<Vec<PathBuf>> {
        let here = parse(&self.path);
        let mut moved = Vec::new();
        for path in list(run).into_iter().filter(|p| parse(p) > here) {
            let mut aside = path.clone();
            let mut n = 1;
            while aside.exists() {
                aside = path.with_file_name(format!(
                    "{}-{SET_ASIDE}-{n}",
                    path.file_name().unwrap_or_default().to_string_lossy()
                ));
                n += 1;
            }
            std::fs::rename(&path, &aside).map_err(Error::io(&path))?;
            moved.push(aside);
        }
        Ok(moved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(step: usize) -> TrainState {
        let values = vec![("w".to_owned(), vec![2, 3], vec![0.25 * step as f32; 6])];
        let params = ParamSet::new(&Device::cpu(), values).unwrap();
        let monitor = Monitor::default();
        TrainState { stage: StageName::Sft, step, params, monitor, beta: 500.0 }
    }

    fn config() -> Config {
        Config::load(None, None, &["run.keep_every=30".into(), "run.seed=9".into()]).unwrap()
    }

    fn save(run: &Path, step: usize) -> PathBuf {
        let beside = Beside { lines: (step, 2), artifacts: &BTreeMap::new() };
        state(step).save(run, &config(), &beside).unwrap()
    }

    fn names(run: &Path) -> Vec<String> {
        list(run).iter().map(|p| p.file_name().unwrap().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn what_was_saved_comes_back() {
        let run = tempfile::tempdir().unwrap();
        let path = save(run.path(), 7);
        let c = Checkpoint::open(&path).unwrap();
        let r = &c.record;
        assert_eq!((c.stage, r.step, r.samples, r.noise, r.log_lines), (StageName::Sft, 7, 56, 7, 7));
        assert_eq!(r.next_lr, Some(config().sft.lr_at(7)));
        assert_eq!(Config::from_toml(&path, &r.config).unwrap(), config());
        let back = c.restore(state(0).params, &Device::cpu()).unwrap();
        assert_eq!((back.params.masters().unwrap(), back.step, back.beta), (vec![1.75; 6], 7, 500.0));
        let other = ParamSet::new(&Device::cpu(), vec![("w".into(), vec![3, 2], vec![0.0; 6])]).unwrap();
        let e = c.restore(other, &Device::cpu()).err().unwrap().to_string();
        assert!(e.contains("master/w has shape [2, 3]") && e.contains("[3, 2]"), "{e}");
    }

    #[test]
    fn the_newest_and_the_multiples_are_kept() {
        let run = tempfile::tempdir().unwrap();
        for step in [10, 20, 30, 40, 50, 60, 70, 100] {
            save(run.path(), step);
        }
        assert_eq!(names(run.path()), ["2-sft-000030", "2-sft-000060", "2-sft-000070", "2-sft-000100"]);
        assert_eq!(newest(run.path()), Some(folder(run.path(), StageName::Sft, 100)));
        let c = Checkpoint::open(&folder(run.path(), StageName::Sft, 60)).unwrap();
        assert_eq!(c.go_back(run.path()).unwrap().len(), 2);
        assert_eq!(names(run.path()), ["2-sft-000030", "2-sft-000060"]);
    }

    /// Whatever byte is turned, the checkpoint is refused, and the one before it is found.
    #[test]
    fn a_damaged_checkpoint_is_passed_over() {
        let run = tempfile::tempdir().unwrap();
        save(run.path(), 1);
        let path = save(run.path(), 2);
        for name in [TENSORS, RECORD, MANIFEST] {
            let file = path.join(name);
            let good = std::fs::read(&file).unwrap();
            for at in [0, good.len() / 3, good.len() - 2] {
                let mut bad = good.clone();
                bad[at] ^= 0x40;
                std::fs::write(&file, &bad).unwrap();
                let mut damaged = Vec::new();
                let found = Checkpoint::latest(run.path(), |e| damaged.push(e.to_string())).unwrap();
                // A turned byte of the manifest may leave it meaning what it meant; nothing else may.
                if name != MANIFEST || found.record.step == 1 {
                    assert_eq!((found.record.step, damaged.len()), (1, 1), "{name}, byte {at}: {damaged:?}");
                    assert!(damaged[0].contains(name) || damaged[0].contains("manifest"), "{damaged:?}");
                }
            }
            std::fs::write(&file, &good[..good.len() - 2]).unwrap();
            assert_eq!(Checkpoint::latest(run.path(), |_| ()).unwrap().record.step, 1, "{name} cut short");
            std::fs::write(&file, &good).unwrap();
        }
        assert_eq!(Checkpoint::latest(run.path(), |e| panic!("{e}")).unwrap().record.step, 2);
        std::fs::remove_file(path.join(MANIFEST)).unwrap();
        assert_eq!(Checkpoint::open(&path).err().unwrap().exit_code(), 2);
    }
}
