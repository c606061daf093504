//! Kills a training run again and again and wants its files to be, in the end, those of a run that nobody disturbed.
//!
//! A kill comes at a random time, or at a random point of writing a file (before and after fsync, rename and the
//! manifest; the feature `faults` of the engine). Once per kind of run Ctrl-C comes instead, which must save and exit with 130.

use crate::checks::{faulty_binary, root, target};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// A run of a few seconds, with every option that adds to the state.
struct Kind {
    name: &'static str,
    preset: &'static str,
    options: &'static [&'static str],
}

const KINDS: [Kind; 2] = [
    Kind {
        name: "all stages of a model of its own",
        preset: "tiny",
        options: &[
            "base.steps=14",
            "base.warmup=1",
            "base.checkpoint_every=5",
            "base.validate_every=5",
            "sft.steps=10",
            "sft.warmup=1",
            "sft.checkpoint_every=3",
            "sft.ema=0.9",
            "adversary.steps=10",
            "adversary.warmup=1",
            "adversary.checkpoint_every=3",
            "asdpo.steps=10",
            "asdpo.warmup=1",
            "asdpo.checkpoint_every=3",
            "asdpo.validate_every=4",
            "asdpo.accumulation=2",
            "asdpo.auto_beta=0.2",
            "asdpo.anchor=0.1",
            "asdpo.sft_mix=0.1",
            "run.keep_every=8",
            "run.eval_crops=2",
            "run.eval_steps=2",
            "run.validation_crops=2",
            "data.images=12",
            "data.held_out=4",
        ],
    },
    Kind {
        name: "the paper's stages on a model and an autoencoder that diffusers wrote",
        preset: "paper-asdpo",
        options: &[
            "run.stages=[\"sft\",\"adversary\",\"asdpo\"]",
            "run.precision=f32",
            "run.eval_crops=1",
            "run.eval_steps=2",
            "run.validation_crops=1",
            "run.keep_every=8",
            "model.base=tests/golden/tiny_flux",
            "data.codec=tests/golden/tiny_flux/vae",
            "data.source=dead-leaves",
            "data.images=6",
            "data.held_out=2",
            "data.image_size=64",
            "data.crop=64",
            "data.pool=8",
            "sft.steps=24",
            "sft.warmup=1",
            "sft.checkpoint_every=7",
            "sft.batch=2",
            "sft.accumulation=2",
            "sft.rank=5",
            "adversary.steps=24",
            "adversary.warmup=1",
            "adversary.checkpoint_every=7",
            "adversary.batch=2",
            "adversary.accumulation=1",
            "asdpo.steps=24",
            "asdpo.warmup=1",
            "asdpo.checkpoint_every=7",
            "asdpo.validate_every=9",
            "asdpo.batch=1",
            "asdpo.accumulation=2",
        ],
    },
];
/// Fields that say how long something took, or how much memory.
const TIMING: [&str; 6] = ["seconds", "samples_per_s", "time", "wall_s", "peak_rss_mb", "sessions"];
/// Points of writing among which one is drawn; a run has a few more.
const POINTS: u64 = 60;

/// So many kills of each kind of run.
pub fn run(kills: usize, seed: u64) -> Result<(), String> {
    let binary = faulty_binary()?;
    let dir = target().join("xtask-soak");
    let _ = fs::remove_dir_all(&dir);
    for (i, kind) in KINDS.iter().enumerate() {
        println!("{}:", kind.name);
        let dir = dir.join(i.to_string());
        fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        soak(&binary, kind, &dir, kills, seed).map_err(|why| format!("{}: {why}", kind.name))?;
    }
    fs::remove_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))
}

fn soak(binary: &Path, kind: &Kind, dir: &Path, kills: usize, seed: u64) -> Result<(), String> {
    let reference = dir.join("undisturbed");
    let begun = Instant::now();
    let status = wait(start(binary, kind, &reference, None)?)?;
    if !status.success() {
        return Err(format!("the undisturbed run ended with {status}"));
    }
    let whole = begun.elapsed();
    println!("undisturbed: {:.1} s", whole.as_secs_f64());
    let wanted = files(&reference)?;
    let mut draws = Draws(seed | 1);
    let (mut killed, mut runs) = (0, 0);
    interrupted(binary, kind, &dir.join("interrupted"), whole)?;
    compare(&dir.join("interrupted"), &wanted)?;
    while killed < kills {
        runs += 1;
        let out = dir.join(format!("run-{runs}"));
        while killed < kills {
            let point = draws.next().is_multiple_of(2).then(|| 1 + draws.next() % POINTS);
            let mut child = start(binary, kind, &out, point)?;
            if point.is_none() {
                let after = whole.mul_f64(0.05 + 0.75 * draws.unit());
                let begun = Instant::now();
                while begun.elapsed() < after && matches!(child.try_wait(), Ok(None)) {
                    std::thread::sleep(Duration::from_millis(5));
                }
                let _ = child.kill();
            }
            if wait(child)?.success() {
                break;
            }
            killed += 1;
            let how = point.map_or("at a random time".to_owned(), |n| format!("at writing point {n}"));
            println!("kill {killed:>3}, run {runs}: {how:<22} {}", place(&out));
        }
        let status = wait(start(binary, kind, &out, None)?)?;
        if !status.success() {
            return Err(format!("{}: the last resume ended with {status}", out.display()));
        }
        compare(&out, &wanted)?;
        println!("run {runs}: {} files as if undisturbed", wanted.len());
    }
    println!("{killed} kills in {runs} runs, and Ctrl-C once: the same bytes every time");
    Ok(())
}

/// Starts the run in `out`, or resumes what is there; it dies at writing point `point`.
fn start(binary: &Path, kind: &Kind, out: &Path, point: Option<u64>) -> Result<Child, String> {
    let mut command = Command::new(binary);
    command.current_dir(root()).arg("train").arg("--out").arg(out);
    if out.join("config.toml").exists() {
        command.arg("--resume");
    } else {
        command.args(["--preset", kind.preset]).args(kind.options.iter().flat_map(|o| ["--set", o]));
    }
    command.envs(point.map(|n| ("ASASR_KILL", n.to_string())));
    command.stdout(Stdio::null());
    command.spawn().map_err(|e| format!("{}: {e}", binary.display()))
}

fn wait(mut child: Child) -> Result<ExitStatus, String> {
    child.wait().map_err(|e| format!("the run cannot be waited for: {e}"))
}

/// Ctrl-C in the middle: the run must save and exit with 130; then it is resumed to its end.
fn interrupted(binary: &Path, kind: &Kind, out: &Path, whole: Duration) -> Result<(), String> {
    let child = start(binary, kind, out, None)?;
    std::thread::sleep(whole / 2);
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    sent.map_err(|e| format!("kill cannot be started: {e}"))?;
    let status = wait(child)?;
    if status.code() != Some(130) {
        return Err(format!("after Ctrl-C the run ended with {status}, wanted exit code 130"));
    }
    println!("Ctrl-C: exit code 130, {}", place(out));
    let status = wait(start(binary, kind, out, None)?)?;
    if status.success() { Ok(()) } else { Err(format!("resumed after Ctrl-C it ended with {status}")) }
}

/// How far a run's log and its checkpoints had come.
fn place(out: &Path) -> String {
    let log = fs::read_to_string(out.join("log.jsonl")).unwrap_or_default();
    let last = log.lines().rev().find_map(|l| serde_json::from_str::<Value>(l).ok());
    let log = last.map_or("before the first step".to_owned(), |l| {
        format!("after step {} of {}", l["step"], l["stage"].as_str().unwrap_or_default())
    });
    let mut saved: Vec<String> = fs::read_dir(out.join("checkpoints"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect();
    saved.sort();
    format!("{log}; checkpoints: {}", if saved.is_empty() { "none".to_owned() } else { saved.join(" ") })
}

/// Every file of a run with what of it does not depend on time.
fn files(run: &Path) -> Result<BTreeMap<PathBuf, Vec<u8>>, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![run.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(|e| format!("{}: {e}", folder.display()))?.flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let bytes = fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
            let name = path.strip_prefix(run).map_err(|e| e.to_string())?.to_path_buf();
            if let Some(bytes) = timeless(&name, bytes)? {
                found.insert(name, bytes);
            }
        }
    }
    Ok(found)
}

/// What of a file a resumed run must repeat; `None` for those that are about time throughout.
fn timeless(name: &Path, bytes: Vec<u8>) -> Result<Option<Vec<u8>>, String> {
    let kind = name.extension().and_then(|e| e.to_str()).unwrap_or_default();
    if name.starts_with("tensorboard") || kind == "html" {
        return Ok(None);
    }
    if name.components().count() > 1 || !matches!(kind, "json" | "jsonl") {
        return Ok(Some(bytes));
    }
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let parts: Vec<&str> = if kind == "jsonl" { text.lines().collect() } else { vec![&text] };
    let mut out = Vec::new();
    for part in parts {
        let mut value: Value = serde_json::from_str(part).map_err(|e| format!("{}: {e}", name.display()))?;
        strip(&mut value);
        out.extend(value.to_string().into_bytes());
        out.push(b'\n');
    }
    Ok(Some(out))
}

fn strip(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|key, _| !TIMING.contains(&key.as_str()));
            map.values_mut().for_each(strip);
        }
        Value::Array(items) => items.iter_mut().for_each(strip),
        _ => {}
    }
}

fn compare(run: &Path, wanted: &BTreeMap<PathBuf, Vec<u8>>) -> Result<(), String> {
    let found = files(run)?;
    let mut wrong: Vec<String> = Vec::new();
    for name in wanted.keys().chain(found.keys().filter(|n| !wanted.contains_key(*n))) {
        match (wanted.get(name), found.get(name)) {
            (Some(_), None) => wrong.push(format!("{} is missing", name.display())),
            (None, Some(_)) => wrong.push(format!("{} is too much", name.display())),
            (a, b) if a != b => wrong.push(format!("{} differs", name.display())),
            _ => {}
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(format!("{}: {}", run.display(), wrong.join(", "))) }
}

/// SplitMix64: which kill comes next.
struct Draws(u64);

impl Draws {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}
