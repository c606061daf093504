//! Replays golden vectors recorded from other implementations, and says how far the engine is from them.
//!
//! A fixture is `<stem>.safetensors` with `<stem>.json`; the stem says what is computed, the json its configuration and,
//! per tensor, the tolerance (derived from the recorder's own float32-against-float64 gap). In bf16 that tolerance grows by
//! twice what a naive bf16 implementation, emulated on the CPU, is off by in the same tensor, and more where that is one
//! number. Knows every floor below it; nothing below knows it.

mod arithmetic;
mod degradation;
mod fixture;
mod flux;
mod full;
mod image_io;
mod metrics;
mod sampler;
mod scheduler;
mod sobolev;
mod steps;
mod text;
mod vae;

use crate::engine::Device;
use crate::error::did_you_mean;
use crate::train::options::Precision;
use crate::{Error, Result};
use arithmetic::{Run, SPARED};
use fixture::Fixture;
use std::path::Path;

type Replay = fn(&mut Fixture, &Run) -> Result<()>;

/// What can be replayed: stem, whether the model is in it, which may compute in bf16, and how.
const REPLAYS: [(&str, bool, Replay); 15] = [
    ("flux_tiny", true, flux::plain),
    ("flux_cond", true, flux::conditioned),
    ("full_blocks", true, full::blocks),
    ("full_cond", true, full::conditioned),
    ("sobolev", false, sobolev::replay),
    ("asdpo_step", true, steps::asdpo),
    ("adversary_step", true, steps::adversary),
    ("scheduler", false, scheduler::replay),
    ("sampler", true, sampler::replay),
    ("metrics", false, metrics::replay),
    ("image_io", false, image_io::replay),
    ("degradation", false, degradation::replay),
    ("clip_tiny", false, text::clip),
    ("t5_tiny", false, text::t5),
    ("vae_tiny", false, vae::replay),
];

/// The verdict on one fixture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every tensor within its tolerance.
    Passed,
    /// At least one is not, or the fixture could not be replayed.
    Failed,
    /// Nothing here knows this stem.
    Skipped,
}

/// What replaying one fixture gave.
#[derive(Clone, Debug)]
pub struct Row {
    /// File stem.
    pub name: String,
    /// What it was computed in: f32 where nothing of it is ever bf16.
    pub precision: Precision,
    /// Tensors compared.
    pub tensors: usize,
    /// Tensors left out, with the reason.
    pub left_out: Vec<String>,
    /// Worst error as a share of its tolerance, and where.
    pub worst: Option<(f64, String)>,
    /// The verdict.
    pub verdict: Verdict,
    /// What failed, or why it was skipped.
    pub detail: String,
}

/// Replays the fixtures of `dir` (all, or those named in `only`) on `device`, in name order.
pub fn run(dir: &Path, only: &[String], device: &Device, precision: Precision) -> Result<Vec<Row>> {
    if precision == Precision::Bf16 && device.gpu().is_none() {
        return Err(Error::Usage(format!(
            "--precision bf16 is for a GPU, the device is {device:?}: say --device cuda or emu, or --precision f32"
        )));
    }
    let mut stems: Vec<String> = std::fs::read_dir(dir)
        .map_err(Error::io(dir))?
        .filter_map(|e| e.ok()?.path().file_name()?.to_str()?.strip_suffix(".safetensors").map(str::to_owned))
        .collect();
    stems.sort();
    for name in only {
        if !stems.contains(name) {
            let have = if stems.is_empty() { "none".to_owned() } else { stems.join(", ") };
            let hint = did_you_mean(name, stems.iter().map(String::as_str));
            let detail =
                format!("no golden vectors named {name} in {}; there are: {have}{hint}", dir.display());
            return Err(Error::Usage(detail));
        }
    }
    Ok(stems
        .into_iter()
        .filter(|s| only.is_empty() || only.contains(s))
        .map(|s| replay(dir, &s, device, precision))
        .collect())
}

fn replay(dir: &Path, stem: &str, device: &Device, precision: Precision) -> Row {
    let mut row = Row {
        name: stem.to_owned(),
        precision,
        tensors: 0,
        left_out: Vec::new(),
        worst: None,
        verdict: Verdict::Skipped,
        detail: "nothing in this version computes it".to_owned(),
    };
    let Some((_, model, how)) = REPLAYS.iter().find(|r| r.0 == stem) else { return row };
    if !model {
        row.precision = Precision::F32;
    }
    let outcome = Fixture::open(dir, stem).and_then(|mut f| {
        if row.precision == Precision::Bf16 {
            let cpu = Device::cpu();
            SPARED.iter().try_for_each(|spared| f.learn(|f| how(f, &Run::naive(&cpu, spared))))?;
        }
        how(&mut f, &Run::engine(device, row.precision.dtype()))?;
        f.finish()
    });
    match outcome {
        Ok(tally) => {
            row.tensors = tally.compared;
            row.left_out = tally.left_out;
            row.worst = tally.worst;
            let ok = tally.misses.is_empty() && tally.compared > 0;
            row.verdict = if ok { Verdict::Passed } else { Verdict::Failed };
            row.detail = if tally.compared == 0 {
                "it holds nothing to compare".to_owned()
            } else {
                tally.misses.join("; ")
            };
        }
        Err(e) => {
            row.verdict = Verdict::Failed;
            row.detail = e.to_string();
        }
    }
    row
}
