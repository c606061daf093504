//! A run as a library call: interrupted and resumed, refused, stopped by numbers that are none, warned.

use asasr_engine::engine::Device;
use asasr_engine::flux::weights::SafeFile;
use asasr_engine::train::checkpoint::{CHECKPOINTS, Checkpoint};
use asasr_engine::train::stages::Progress;
use asasr_engine::train::{Config, StageSummary, Start, Summary, plan, run};
use asasr_engine::{Error, Result};
use std::cell::{Cell, RefCell};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

#[allow(dead_code, reason = "shared with tests of the emulator alone")]
#[path = "common/cuda.rs"]
mod cuda;

/// All stages of a very small model.
const SMALL: &str = "model.dim=16 model.heads=2 model.axes=[2,2,4] model.double=1 model.single=1 data.images=5 \
    data.held_out=2 data.image_size=32 data.crop=32 run.eval_crops=2 run.eval_steps=1 run.validation_crops=1 \
    sft.rank=2 adversary.rank=2 asdpo.rank=2 base.steps=5 sft.steps=4 adversary.steps=4 asdpo.steps=6 \
    base.batch=2 sft.batch=2 adversary.batch=2 asdpo.batch=2 base.warmup=1 sft.warmup=1 adversary.warmup=1 \
    asdpo.warmup=1 base.checkpoint_every=2 sft.checkpoint_every=3 asdpo.checkpoint_every=2 sft.ema=0.9 \
    asdpo.accumulation=2 asdpo.auto_beta=0.2 asdpo.anchor=0.5 asdpo.sft_mix=0.5 asdpo.validate_every=3";

fn config(more: &str) -> Config {
    let sets: Vec<String> = SMALL.split_whitespace().chain(more.split_whitespace()).map(Into::into).collect();
    Config::load(None, None, &sets).unwrap()
}

/// Raises Ctrl-C's flag after so many updates, and keeps what was said.
struct Watch {
    left: Cell<usize>,
    stop: AtomicBool,
    said: RefCell<Vec<String>>,
}

impl Progress for Watch {
    fn stage(&self, _: &str, _: usize, _: usize) {}
    fn step(&self, _: f64, _: f64) {
        self.left.set(self.left.get().saturating_sub(1));
        if self.left.get() == 0 {
            self.stop.store(true, Ordering::Relaxed);
        }
    }
    fn done(&self, _: &StageSummary) {}
    fn say(&self, line: &str) {
        self.said.borrow_mut().push(line.to_owned());
    }
}

/// Runs until the end, or for `updates`; the outcome and what was said.
fn train(config: &Config, out: &Path, start: &Start, updates: usize) -> (Result<Summary>, String) {
    train_on(&Device::cpu(), config, out, start, updates)
}

fn train_on(
    device: &Device,
    config: &Config,
    out: &Path,
    start: &Start,
    updates: usize,
) -> (Result<Summary>, String) {
    let watch = Watch { left: Cell::new(updates), stop: AtomicBool::new(false), said: RefCell::default() };
    let outcome = run(config, out, start, device, &watch, &watch.stop);
    (outcome, watch.said.into_inner().join("\n"))
}

const LATEST: Start = Start::Resume { checkpoint: None, change_config: false };

/// Every file with its bytes, without those that are about time.
fn files(run: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    let mut folders = vec![run.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(run).unwrap().to_path_buf();
            if path.is_dir() {
                folders.push(path);
            } else if !["summary.json", "environment.json", "log.jsonl"].iter().any(|n| name == Path::new(n))
                && !name.starts_with("tensorboard")
            {
                all.push((name, fs::read(path).unwrap()));
            }
        }
    }
    all.sort();
    all
}

#[test]
fn interrupted_anywhere_it_ends_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let (config, whole) = (config(""), dir.path().join("whole"));
    let summary = train(&config, &whole, &Start::New, usize::MAX).0.unwrap();
    let wanted = files(&whole);
    for updates in [1, 4, 5, 7, 9, 14, 17, 19] {
        let out = dir.path().join(updates.to_string());
        let (outcome, _) = train(&config, &out, &Start::New, updates);
        let e = outcome.unwrap_err();
        assert!(matches!(e, Error::Interrupted { .. }) && e.exit_code() == 130, "{e}");
        let (outcome, said) = train(&config, &out, &LATEST, usize::MAX);
        let resumed = outcome.unwrap();
        assert!(said.contains("going on from"), "{said}");
        assert_eq!(resumed.eval, summary.eval);
        let rows =
            |s: &Summary| s.stages.iter().map(|s| (s.steps, s.first_loss, s.last_loss)).collect::<Vec<_>>();
        assert_eq!(rows(&resumed), rows(&summary));
        same_files(&wanted, &files(&out), updates);
    }
    assert!(train(&config, &whole, &LATEST, usize::MAX).1.contains("is finished"));
}

#[track_caller]
fn same_files(wanted: &[(PathBuf, Vec<u8>)], found: &[(PathBuf, Vec<u8>)], updates: usize) {
    for (wanted, found) in wanted.iter().zip(found) {
        assert_eq!(wanted.0, found.0, "after {updates} updates");
        assert!(wanted.1 == found.1, "after {updates} updates {} differs", wanted.0.display());
    }
    assert_eq!(wanted.len(), found.len());
}

/// On a CUDA device micro-batches are captured and replayed; those that a resumed run launches, before it captures its
/// own, have the same bits.
#[test]
fn interrupted_on_a_device_it_ends_the_same() {
    let Some(device) = cuda::device() else { return };
    let dir = tempfile::tempdir().unwrap();
    let few = "base.steps=2 sft.steps=2 adversary.steps=2 asdpo.steps=6 run.precision=bf16 asdpo.auto_beta=0";
    let (config, whole, out) = (config(few), dir.path().join("whole"), dir.path().join("out"));
    train_on(&device, &config, &whole, &Start::New, usize::MAX).0.unwrap();
    // Within the last stage, whose second update is captured.
    let updates = 9;
    let e = train_on(&device, &config, &out, &Start::New, updates).0.unwrap_err();
    assert!(
        matches!(&e, Error::Interrupted { stage, step, .. } if stage == "asdpo" && (3..6).contains(step)),
        "{e}"
    );
    train_on(&device, &config, &out, &LATEST, usize::MAX).0.unwrap();
    same_files(&files(&whole), &files(&out), updates);
}

/// With an autoencoder on the device a run has the same bits whether latents are made or found, and interrupted too.
#[test]
fn latents_are_the_same_made_or_found() {
    let Some(device) = cuda::device() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (vae, cache) = ("tests/golden/tiny_flux/vae", dir.path().join("latents"));
    let few = format!(
        "run.stages=[\"base\"] base.steps=4 base.validate_every=0 base.batch=1 data.codec={vae} data.pool=6 data.latent_cache={}",
        cache.display()
    );
    let config = config(&few);
    let kept = || -> usize {
        fs::read_dir(&cache).unwrap().map(|d| fs::read_dir(d.unwrap().path()).unwrap().count()).sum()
    };
    let at = |name: &str| dir.path().join(name);
    let quiet = Watch { left: Cell::new(0), stop: AtomicBool::new(false), said: RefCell::default() };
    plan(&config, &device, None, &quiet).unwrap();
    assert_eq!(kept(), 0, "a plan keeps nothing");
    train_on(&device, &config, &at("made"), &Start::New, usize::MAX).0.unwrap();
    let (wanted, made) = (files(&at("made")), kept());
    assert!(made > 2);
    train_on(&device, &config, &at("found"), &Start::New, usize::MAX).0.unwrap();
    assert_eq!(kept(), made);
    same_files(&wanted, &files(&at("found")), usize::MAX);
    // Interrupted, and all of them gone.
    train_on(&device, &config, &at("out"), &Start::New, 3).0.unwrap_err();
    fs::remove_dir_all(&cache).unwrap();
    train_on(&device, &config, &at("out"), &LATEST, usize::MAX).0.unwrap();
    same_files(&wanted, &files(&at("out")), 3);
}

#[test]
fn a_resume_is_refused_until_nothing_speaks_against_it() {
    let dir = tempfile::tempdir().unwrap();
    let (out, here) = (dir.path().join("run"), config(""));
    let refused = |config: &Config, start: &Start| {
        let before = out.exists().then(|| files(&out));
        let e = train(config, &out, start, usize::MAX).0.unwrap_err();
        assert_eq!(out.exists().then(|| files(&out)), before, "a refused resume changes nothing");
        (e.exit_code(), e.to_string())
    };
    let (code, e) = refused(&here, &LATEST);
    assert!(code == 2 && e.contains("holds no run to resume"), "{e}");
    train(&here, &out, &Start::New, 15).0.unwrap_err();

    let (code, e) = refused(&config("asdpo.lr=1e-3 run.seed=4"), &LATEST);
    assert!(code == 2 && e.contains("run.seed: 0 → 4") && e.contains("asdpo.lr: 0.0005 → 0.001"), "{e}");
    let at = |checkpoint: PathBuf| Start::Resume { checkpoint: Some(checkpoint), change_config: false };
    let (code, e) = refused(&here, &at(out.join("base")));
    assert!(code == 2 && e.contains("is no checkpoint of"), "{e}");

    let newest = out.join(CHECKPOINTS).join("4-asdpo-000002");
    let file = newest.join("state.safetensors");
    let good = fs::read(&file).unwrap();
    let mut bad = good.clone();
    bad[good.len() / 2] ^= 1;
    fs::write(&file, &bad).unwrap();
    let (code, e) = refused(&here, &at(newest.clone()));
    assert!(code == 1 && e.contains("state.safetensors") && e.contains("damaged"), "{e}");
    fs::write(&file, &good).unwrap();

    let adapter = out.join("base_sft/adapter_model.safetensors");
    let good = fs::read(&adapter).unwrap();
    fs::write(&adapter, [&good[..], b" "].concat()).unwrap();
    let (code, e) = refused(&here, &LATEST);
    assert!(code == 1 && e.contains("base_sft"), "{e}");
    fs::write(&adapter, &good).unwrap();

    let log = fs::read(out.join("log.jsonl")).unwrap();
    fs::write(out.join("log.jsonl"), &log[..log.len() / 2]).unwrap();
    let (code, e) = refused(&here, &LATEST);
    assert!(code == 1 && e.contains("log.jsonl") && e.contains("lines"), "{e}");
    fs::write(out.join("log.jsonl"), &log).unwrap();

    // The newest is damaged: the one before it is taken, and the run says so.
    fs::write(&file, &bad).unwrap();
    let (outcome, said) = train(&here, &out, &LATEST, usize::MAX);
    outcome.unwrap();
    assert!(said.contains("damaged") && said.contains("3-adversary-000004"), "{said}");
    assert!(said.contains("set aside"), "{said}");

    // Another learning rate, told so, from a chosen checkpoint.
    let other = config("asdpo.lr=1e-3");
    let start =
        Start::Resume { checkpoint: Some(out.join(CHECKPOINTS).join("4-asdpo-000004")), change_config: true };
    train(&other, &out, &start, usize::MAX).0.unwrap();
    let written = Config::load(None, Some(&out.join("config.toml")), &[]).unwrap();
    assert_eq!((written.asdpo.lr, written), (1e-3, other));
    assert_eq!(Checkpoint::latest(&out, |e| panic!("{e}")).unwrap().record.step, 6);
}

#[test]
fn a_number_that_is_none_stops_the_run_and_is_named() {
    stops_at_a_number_that_is_none(&Device::cpu(), 2);
}

/// A device is a step ahead of its numbers, but not where it saves; what it does meanwhile is neither logged nor saved.
#[test]
fn a_number_that_is_none_stops_the_run_on_a_device() {
    if let Some(device) = cuda::device() {
        [1, 2].into_iter().for_each(|every| stops_at_a_number_that_is_none(&device, every));
    }
}

fn stops_at_a_number_that_is_none(device: &Device, checkpoint_every: usize) {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let explode = "sft.lr=1 sft.clip=0 sft.beta2=0 sft.weight_decay=10 sft.steps=400 asdpo.auto_beta=0";
    let explode = format!("{explode} sft.checkpoint_every={checkpoint_every}");
    let (outcome, _) = train_on(device, &config(&explode), &out, &Start::New, usize::MAX);
    let e = outcome.unwrap_err();
    let text = e.to_string();
    assert!(
        e.exit_code() == 1 && text.contains("stage sft, step") && text.contains("is not finite"),
        "{text}"
    );
    assert!(text.contains("last good checkpoint is") && text.contains("2-sft-"), "{text}");
    let Error::NonFinite { step, .. } = e else { panic!("{text}") };
    // All updates before the named one are logged, and none after.
    let log = fs::read_to_string(out.join("log.jsonl")).unwrap();
    assert_eq!(log.lines().filter(|l| l.contains("\"stage\":\"sft\"")).count(), step, "{text}");
    let last = Checkpoint::latest(&out, |e| panic!("{e}")).unwrap();
    assert!(last.record.step <= step && last.record.log_lines <= log.lines().count());
    let saved = SafeFile::open(last.path.join("state.safetensors")).unwrap();
    for name in saved.names() {
        let values = saved.tensor(name, &Device::cpu()).unwrap().values().unwrap();
        assert!(values.iter().all(|v| v.is_finite()), "{name} was saved as what is no number");
    }
    assert!(!out.join("base_sft").exists() && !out.join("summary.json").exists());
}

/// β far too small and steps far too large: the policy ends up preferring losers, and the run says so.
#[test]
fn a_failing_preference_is_warned_of() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let collapse = "asdpo.beta=1 asdpo.auto_beta=0 asdpo.anchor=0 asdpo.sft_mix=0 asdpo.lr=0.5 asdpo.steps=60 \
        asdpo.accumulation=1 base.steps=300 base.lr=1e-2";
    let (outcome, said) = train(&config(collapse), &out, &Start::New, usize::MAX);
    outcome.unwrap();
    assert!(said.contains("warning: asdpo, step") && said.contains("prefers the losers"), "{said}");
    let log = fs::read_to_string(out.join("log.jsonl")).unwrap();
    assert!(log.contains("\"warnings\":["), "the log keeps it");
    let (_, said) = train(&config(""), &dir.path().join("calm"), &Start::New, usize::MAX);
    assert!(!said.contains("warning"), "{said}");
}
