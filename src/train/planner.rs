//! What a run will ask of the device's memory, known before its first step.
//!
//! Nothing is estimated: each stage is set up and taken through three updates, and a look if it takes any, on a meta device
//! ([`Device::meta`]), whose arena is the real one's and whose kernels do nothing. Three, because a micro-batch is launched,
//! then captured into a graph, then replayed. Knows the trainer; the trainer does not know it.

use super::checkpoint::TrainState;
use super::config::Config;
use super::micro::{COSINE_EVERY, Loader, Micros};
use super::monitor::Monitor;
use super::options::{Named, StageName};
use super::stages::{Artifacts, Context};
use super::trainer::Underway;
use crate::engine::{Device, Tensor, arena::size_class};
use crate::{Error, Result};
use std::fmt::Write;

/// Updates that show all there is to see.
const UPDATES: usize = 3;

/// What a stage needs at once on its device, in bytes, by what it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageMemory {
    /// The stage.
    pub stage: StageName,
    /// Samples per forward and backward.
    pub batch: usize,
    /// Are activations recomputed in backward?
    pub recompute: bool,
    /// The frozen base.
    pub weights: usize,
    /// The codec's weights, where it is a network.
    pub codec: usize,
    /// Frozen adapters.
    pub adapters: usize,
    /// Trained parameters, their gradients, AdamW's moments, the running average.
    pub optimizer: usize,
    /// What is kept from forward to backward.
    pub activations: usize,
    /// The rest: batches on their way, held-out crops, what ops and the codec need while they run.
    pub workspace: usize,
    /// The most at any time: all of the above.
    pub peak: usize,
    /// What the arena then holds of the device's memory, idle blocks between two sizes included.
    pub reserved: usize,
}

impl StageMemory {
    /// One line for people.
    pub fn line(&self) -> String {
        let how = if self.recompute { "recomputing" } else { "keeping all activations" };
        let mut line =
            format!("{}: {} of memory, {how}, batch {}:", self.stage.name(), mib(self.peak), self.batch);
        let parts = [
            ("weights", self.weights),
            ("codec", self.codec),
            ("adapters", self.adapters),
            ("optimizer", self.optimizer),
            ("activations", self.activations),
            ("workspace", self.workspace),
        ];
        for (i, (name, bytes)) in parts.into_iter().filter(|p| p.1 > 0).enumerate() {
            let _ = write!(line, "{} {name} {}", if i > 0 { "," } else { "" }, mib(bytes));
        }
        line
    }
}

/// Bytes, readable.
pub fn mib(bytes: usize) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    if mib < 1024.0 { format!("{mib:.1} MiB") } else { format!("{:.2} GiB", mib / 1024.0) }
}

/// What `stage` needs on top of `made` and of the codec, whose weights take `codec` bytes, all of it on a meta device; adds what
/// it makes to `made`.
pub(super) fn stage(
    context: &Context,
    codec: usize,
    stage: StageName,
    made: &mut Artifacts,
) -> Result<StageMemory> {
    let (device, o) = (&context.device, context.config.stage(stage));
    device.reset_peak();
    let held = |tensors: &mut dyn Iterator<Item = &Tensor>| -> usize {
        tensors.map(|t| size_class(t.len() * t.dtype().size())).sum()
    };
    let base = made.base.as_ref().map_or(0, |w| held(&mut w.iter().map(|w| w.1).chain(w.levels().tensor())));
    let adapters = made.adapters.values().flat_map(|f| f.modules.values());
    let adapters = held(&mut adapters.flat_map(|m| [&m.a, &m.b]));
    let before = device.stats().live;
    let plan = context.plan(stage, made)?;
    let planned = device.stats().live;
    let params = context.parameters(&plan)?;
    let optimizer = device.stats().live - planned;
    let mut state = TrainState {
        stage,
        step: 0,
        params,
        monitor: Monitor::default(),
        beta: context.config.preference.beta,
    };
    let loader = Loader::new(context, &plan);
    let micros = Micros::new(context, &plan, &loader)?;
    let standing = device.stats().live;
    let mut underway = Underway::new(micros, Box::new(|| Some(Ok(loader.blank()))), 0);
    underway.send()?;
    // The first ones, and one that measures a cosine besides.
    let measuring = COSINE_EVERY as usize / o.accumulation;
    for step in (0..UPDATES).chain((UPDATES..o.steps).contains(&measuring).then_some(measuring)) {
        state.step = step;
        context.launch(&plan, &mut state, &mut underway)?;
        underway.discard()?;
    }
    if o.validate_every > 0 {
        context.restore(&plan, &mut state)?;
    }
    let stats = device.stats();
    let (weights, activations) = (base + planned - before, underway.kept().saturating_sub(standing));
    drop(underway);
    made.shadow(&plan, context, &state.params)?;
    let parts = weights + codec + adapters + optimizer + activations;
    Ok(StageMemory {
        stage,
        batch: o.batch,
        recompute: o.recompute,
        weights,
        codec,
        adapters,
        optimizer,
        activations,
        workspace: stats.peak.saturating_sub(parts),
        peak: stats.peak,
        reserved: stats.reserved,
    })
}

/// Changes to `config` that need less memory in `stage`, the cheapest in time first, each as `--set` takes it.
pub(super) fn thriftier(config: &Config, stage: StageName) -> Vec<(Config, String)> {
    let (name, mut all) = (stage.name(), Vec::new());
    let mut next = config.clone();
    let mut said = String::new();
    if !config.stage(stage).recompute {
        next.stage_mut(stage).recompute = true;
        said = format!("--set {name}.recompute=true");
        all.push((next.clone(), said.clone()));
    }
    while next.stage(stage).batch > 1 {
        let o = next.stage_mut(stage);
        // As many samples an update, where the batch can be halved.
        let halves = if o.batch.is_multiple_of(2) { 2 } else { o.batch };
        (o.batch, o.accumulation) = (o.batch / halves, o.accumulation * halves);
        let (batch, accumulation) = (o.batch, o.accumulation);
        let smaller = format!("--set {name}.batch={batch} --set {name}.accumulation={accumulation}");
        all.push((next.clone(), format!("{said} {smaller}").trim().to_owned()));
    }
    all
}

/// Bytes that the device could still give: of a GPU what its driver says, of the CPU what the system says; `None` where
/// nobody does.
pub fn available(device: &Device) -> Option<usize> {
    match device.gpu() {
        // It is not here to be asked.
        Some(_) if device.is_meta() => None,
        Some(gpu) => gpu.memory().ok().map(|(free, _)| free + device.stats().reserved),
        None => {
            let text = std::fs::read_to_string("/proc/meminfo").ok()?;
            let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
            Some(line.trim().trim_end_matches(" kB").trim().parse::<usize>().ok()? << 10)
        }
    }
}

/// The refusal of a stage that needs more than there is, with what `remedy` found.
pub(super) fn too_much(
    memory: &StageMemory,
    there: usize,
    device: &Device,
    remedy: Option<(String, usize)>,
) -> Error {
    let remedy = match remedy {
        Some((sets, bytes)) => format!("{sets} needs {}", mib(bytes)),
        None => {
            "no setting of batch and recompute fits: a smaller data.crop or a larger device does".to_owned()
        }
    };
    Error::Usage(format!("{}\n{device:?} has {} to give; {remedy}", memory.line(), mib(there)))
}
