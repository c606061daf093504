//! The updates of every stage on a CUDA device: each is the CPU's, to rounding; captured graphs do to the bit what their
//! launches did; a number that is none ends the run.
//!
//! The emulator checks every access and reports by an error of the call, so an update that ends is a clean one.

use super::*;
use crate::autograd::ParamSet;
use crate::data::{Codec, Sampler};
use crate::engine::{DType, Device, Philox, Tensor};
use crate::flux::params::Weights;
use crate::infer::model::layout;
use crate::train::config::Config;
use crate::train::data;
use crate::train::run::flux_config;
use crate::train::stages::Silent;
use crate::train::validation::Validation;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::AtomicBool;

#[allow(dead_code, reason = "shared with the tests of the library from outside")]
#[path = "../../../tests/common/cuda.rs"]
mod cuda;

mod bf16;

static STOP: AtomicBool = AtomicBool::new(false);

fn config(sets: &str) -> Config {
    let sets: Vec<String> = sets.split_whitespace().map(Into::into).collect();
    Config::load(Some("nano"), None, &sets).unwrap()
}

/// What a run that makes its own codec gives its stages.
fn context<'r>(config: &'r Config, device: &Device, out: &'r Path) -> Context<'r> {
    let (source, split) = data::source(config).unwrap();
    let codec = Codec::from(Sampler::fit_codec(&*source, &split).unwrap());
    let flux = flux_config(config, codec.channels()).unwrap();
    let sampler = data::sampler(config, source, split, codec).unwrap();
    let validation =
        Validation::new(&sampler, config.run.validation_crops, config.run.eval_steps, device).unwrap();
    let (device, progress, stop) = (device.clone(), &Silent, &STOP);
    Context { config, flux, device, sampler, validation, imitated: None, out, progress, stop }
}

/// A stage under way on one device.
struct Session<'c> {
    context: &'c Context<'c>,
    plan: &'c Plan,
    state: TrainState,
    underway: Underway<'c>,
    logs: Logs,
    out: tempfile::TempDir,
}

impl<'c> Session<'c> {
    /// `plan`'s stage with fresh parameters before the first of `updates`, whose micro-batches `change` may change.
    fn new(
        context: &'c Context<'c>,
        plan: &'c Plan,
        updates: Range<usize>,
        change: impl Fn(u64, &mut [f32]),
    ) -> Self {
        let accumulation = context.config.stage(plan.stage).accumulation;
        let loader = Loader::new(context, plan);
        let prepare = |i: usize| {
            let mut prepared = loader.prepare(i as u64).unwrap();
            prepared.change(|part, values| change(2 * i as u64 + part, values));
            Ok(prepared)
        };
        let all = (updates.start * accumulation..updates.end * accumulation).map(prepare);
        let mut batches = all.collect::<Vec<_>>().into_iter();
        let params = context.parameters(plan).unwrap();
        let (monitor, beta) = (Monitor::default(), context.config.preference.beta);
        let state = TrainState { stage: plan.stage, step: updates.start, params, monitor, beta };
        let mut underway = Underway {
            micros: Micros::new(context, plan, &loader).unwrap(),
            batches: Box::new(move || batches.next()),
            pending: VecDeque::new(),
            begun: (Instant::now(), updates.start),
        };
        underway.send().unwrap();
        let out = tempfile::tempdir().unwrap();
        let logs = Logs::open(out.path(), (0, 0)).unwrap();
        Self { context, plan, state, underway, logs, out }
    }

    /// One update, its numbers read.
    fn update(&mut self) {
        self.context.launch(self.plan, &mut self.state, &mut self.underway).unwrap();
        self.context.finish(&mut self.state, &mut self.underway, 0, &mut self.logs).unwrap();
    }

    /// The updates that are left, as a run does them.
    fn finish(&mut self) -> Result<()> {
        let made = Artifacts::default();
        self.context.steps(self.plan, &mut self.state, &mut self.underway, &made, &mut self.logs)
    }

    /// The log's numbers by name, one for each update, without those that depend on the time.
    fn log(&self) -> BTreeMap<String, Vec<f32>> {
        let text = std::fs::read_to_string(self.out.path().join("log.jsonl")).unwrap();
        let mut log: BTreeMap<String, Vec<f32>> = BTreeMap::new();
        for line in text.lines() {
            for (name, value) in serde_json::from_str::<Map<String, Value>>(line).unwrap() {
                if let (Some(value), false) =
                    (value.as_f64(), ["seconds", "samples_per_s", "time"].contains(&&*name))
                {
                    log.entry(name).or_default().push(value as f32);
                }
            }
        }
        log
    }
}

/// Everything the optimizer remembers, by name.
fn remembered(params: &ParamSet) -> BTreeMap<String, Vec<f32>> {
    params.tensors().into_iter().map(|(name, t)| (name, t.values().unwrap())).collect()
}

/// Puts it back, before update `updates`, as `change` makes it.
fn remember(
    params: &mut ParamSet,
    all: &BTreeMap<String, Vec<f32>>,
    updates: usize,
    change: impl Fn(&str, &mut [f32]),
) {
    let read = |name: &str, shape: &[usize]| {
        let mut values = all[name].clone();
        change(name, &mut values);
        Tensor::from_slice(&Device::cpu(), shape, &values)
    };
    params.restore(updates as u64, read).unwrap();
}

/// Moves each value by an ulp, up or down as direction `direction` says for tensor `tensor`.
fn nudge(direction: u64, tensor: u64, values: &mut [f32]) {
    let mut signs = vec![0.0; values.len()];
    Philox::new(direction, tensor).normals(0, &mut signs);
    values.iter_mut().zip(signs).for_each(|(v, s)| *v *= 1.0 + f32::EPSILON * s.signum());
}

/// Streams of the numbers that [`nudge`] draws for weights, adapters and parameters.
const WEIGHTS: u64 = 1 << 20;
const ADAPTERS: u64 = 2 << 20;
const PARAMETERS: u64 = 3 << 20;

/// The frozen parts, moved.
fn nudged(made: &Artifacts, direction: u64) -> Artifacts {
    let cpu = Device::cpu();
    let base = made.base.as_ref().map(|base| {
        let mut all: Vec<_> =
            base.iter().map(|(n, t)| (n.to_owned(), t.shape().to_vec(), t.f32().to_vec())).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all.iter_mut().enumerate().for_each(|(i, w)| nudge(direction, WEIGHTS + i as u64, &mut w.2));
        Weights::frozen(&cpu, &ParamSet::new(&cpu, all).unwrap()).unwrap()
    });
    let mut adapters = made.adapters.clone();
    let factors =
        adapters.values_mut().flat_map(|f| f.modules.values_mut()).flat_map(|m| [&mut m.a, &mut m.b]);
    for (i, t) in factors.enumerate() {
        let mut values = t.f32().to_vec();
        nudge(direction, ADAPTERS + i as u64, &mut values);
        *t = Tensor::from_slice(&cpu, t.shape(), &values).unwrap();
    }
    Artifacts { base, adapters, files: BTreeMap::new() }
}

/// The 2-norm and the largest size of a − b.
fn distance(a: &[f32], b: &[f32]) -> [f64; 2] {
    assert_eq!(a.len(), b.len());
    let off = || a.iter().zip(b).map(|(&a, &b)| (f64::from(a) - f64::from(b)).abs());
    [off().map(|v| v * v).sum::<f64>().sqrt(), off().fold(0.0, |a, v| if v.is_nan() { v } else { a.max(v) })]
}

/// How far from `want` a result may be, in the 2-norm and at the worst element: twice what a naive implementation is off
/// by, and the rounding of the result. Naive is `chain` times what the result moves by where everything that it is
/// computed from moves by an ulp (`near`, one for each direction).
fn allowed<'v>(chain: f64, want: &[f32], near: impl Iterator<Item = &'v [f32]>) -> [f64; 2] {
    let mut most = [0f64; 2];
    for near in near {
        let by = distance(near, want);
        most = [0, 1].map(|i| most[i].max(by[i]));
    }
    let size = distance(want, &vec![0.0; want.len()]);
    [0, 1].map(|i| {
        2.0 * chain * most[i] + size[i] * f64::from(f32::EPSILON) / 2.0 + f64::from(f32::MIN_POSITIVE)
    })
}

/// What a chain of as many additions as the longest of the model's sums is off by, in roundings of its terms: √K/(2√6),
/// as in `tests/parity.rs`. Forward sums over a matrix' columns, backward over its rows, or over the batch's tokens.
fn chain(context: &Context) -> f64 {
    let side = context.config.data.crop / 8;
    let streams = |stage| if stage == StageName::Asdpo { 3 } else { 1 };
    let tokens = |stage| streams(stage) * context.config.stage(stage).batch * (2 * side * side + 1);
    let widths = context.flux.parameters().into_iter().flat_map(|p| p.1);
    let longest = widths.chain(STAGES.map(tokens)).max().unwrap_or(1);
    ((longest as f64).sqrt() / 24f64.sqrt()).max(1.0)
}

/// The share of `allowed` that `got` uses.
fn share(got: &[f32], want: &[f32], allowed: [f64; 2]) -> f64 {
    let off = distance(got, want);
    let worst = (off[0] / allowed[0]).max(off[1] / allowed[1]);
    if off.iter().any(|o| !o.is_finite()) { f64::INFINITY } else { worst }
}

const STAGES: [StageName; 4] = [StageName::Base, StageName::Sft, StageName::Adversary, StageName::Asdpo];
/// What they export, in the run directory.
const EXPORTED: [&str; 4] = [layout::BASE, layout::SFT, layout::ADVERSARY, layout::ASDPO];
const DIRECTIONS: u64 = 3;

/// The CPU's run of a stage and those that follow it, each update from the state that it is in then: the device's, and
/// the CPU's own where parameters, frozen weights and latents are moved by an ulp.
struct Compared<'c> {
    here: Session<'c>,
    there: Session<'c>,
    near: Vec<Session<'c>>,
    chain: f64,
    failures: Vec<String>,
    worst: (f64, String),
}

impl Compared<'_> {
    fn hold(&mut self, what: &str, share: f64) {
        let what = format!("{}, {what}", self.here.plan.stage.name());
        if share > 1.0 {
            self.failures.push(format!("{what}: {share:.2} of the tolerance"));
        }
        if share > self.worst.0 {
            self.worst = (share, what);
        }
    }

    /// One update of all, compared.
    fn update(&mut self) {
        let step = self.here.state.step;
        let before = remembered(&self.here.state.params);
        let names = self.here.state.params.names().to_vec();
        self.here.update();
        remember(&mut self.there.state.params, &before, step, |_, _| ());
        self.there.update();
        for (d, near) in (0..).zip(&mut self.near) {
            remember(&mut near.state.params, &before, step, |name, values| {
                let at = names.iter().position(|n| name.strip_prefix("master/") == Some(n));
                if let Some(at) = at {
                    nudge(d, PARAMETERS + at as u64, values);
                }
            });
            near.update();
        }
        let edges = self.gradients(step);
        self.weights(step, &before, &edges);
    }

    /// Holds each parameter's gradient to its tolerance; gives that of the worst element, for each element.
    fn gradients(&mut self, step: usize) -> Vec<f32> {
        let grads = |s: &Session| s.state.params.grads().unwrap();
        let (want, got) = (grads(&self.here), grads(&self.there));
        let near: Vec<Vec<f32>> = self.near.iter().map(grads).collect();
        let params = &self.here.state.params;
        let sizes = (0..params.names().len()).map(|i| params.shape(i).iter().product());
        let named: Vec<(String, usize)> = params.names().iter().cloned().zip(sizes).collect();
        let mut edges = Vec::with_capacity(want.len());
        for (name, size) in named {
            let part = edges.len()..edges.len() + size;
            let (want, got) = (&want[part.clone()], &got[part.clone()]);
            let allowed = allowed(self.chain, want, near.iter().map(|n| &n[part.clone()]));
            self.hold(&format!("update {step}, the gradient of {name}"), share(got, want, allowed));
            edges.resize(part.end, allowed[1] as f32);
        }
        edges
    }

    /// The device's weights have, to the bit, what the CPU's AdamW makes of the device's gradients, and are off from the
    /// CPU's by no more than what the gradients' tolerance moves those by: where a gradient is all rounding, by twice
    /// AdamW's step.
    fn weights(&mut self, step: usize, before: &BTreeMap<String, Vec<f32>>, edges: &[f32]) {
        let Session { context, plan, .. } = self.here;
        let o = context.config.stage(plan.stage);
        let opt = AdamW { beta1: o.beta1, beta2: o.beta2, eps: o.eps, weight_decay: o.weight_decay };
        let mut params = context.parameters(plan).unwrap();
        let decays = plan.decays(&params);
        let mut stepped = |grads: &[f32]| {
            remember(&mut params, before, step, |_, _| ());
            params.set_grads(grads).unwrap();
            params.step(&opt, o.lr_at(step), Gradients::of_one(o.clip), |i| decays[i]).unwrap();
            remembered(&params)
        };
        let grads = self.here.state.params.grads().unwrap();
        let by = |sign: f32| grads.iter().zip(edges).map(|(g, e)| g + sign * e).collect::<Vec<_>>();
        let (low, high) = (stepped(&by(-1.0)), stepped(&by(1.0)));
        let (want, got) = (remembered(&self.here.state.params), remembered(&self.there.state.params));
        let own = stepped(&self.there.state.params.grads().unwrap());
        assert!(bits(&got) == bits(&own), "{}, update {step}: AdamW's bits", plan.stage.name());
        for (name, want) in want.iter().filter(|w| w.0.starts_with("master/")) {
            let off = |other: &[f32], i: usize| f64::from((other[i] - want[i]).abs());
            let shares = (0..want.len()).map(|i| {
                // Half an ulp of either weight, and of each of the eight roundings of either's step.
                let step = f64::from((want[i] - before[name][i]).abs());
                let rounding = f64::from(f32::EPSILON) * (f64::from(want[i].abs()) + 8.0 * step);
                let moved = off(&low[name], i).max(off(&high[name], i));
                off(&got[name], i) / (moved + rounding + f64::from(f32::MIN_POSITIVE))
            });
            self.hold(&format!("update {step}, {name}"), shares.fold(0.0, f64::max));
        }
    }

    /// Holds what the log says, losses and gaps among it: each number's of all updates together, because one number's
    /// tolerance may be small by chance.
    fn log(&mut self) {
        let (want, got) = (self.here.log(), self.there.log());
        let near: Vec<_> = self.near.iter().map(Session::log).collect();
        for (name, want) in &want {
            // The first two are given; the others are counts, which jump.
            if !["step", "lr", "implicit_accuracy", "negative_margins"].contains(&&**name) {
                let allowed = allowed(self.chain, want, near.iter().map(|n| &n[name][..]));
                self.hold(&format!("the log's {name}"), share(&got[name], want, allowed));
            }
        }
    }
}

/// Ten updates of each stage, each from the state that the CPU's run is in then: losses, gaps, gradients and weights.
#[test]
fn every_update_agrees_with_the_cpus() {
    let Some(device) = cuda::device() else { return };
    let folder = tempfile::tempdir().unwrap();
    let config = config(TEN);
    let (cpu, gpu) =
        (context(&config, &Device::cpu(), folder.path()), context(&config, &device, folder.path()));
    let (mut made, mut on_device) = (Artifacts::default(), Artifacts::default());
    let mut failures = Vec::new();
    for (stage, name) in STAGES.into_iter().zip(EXPORTED) {
        let steps = config.stage(stage).steps;
        let (plan, far) = (cpu.plan(stage, &made).unwrap(), gpu.plan(stage, &on_device).unwrap());
        let near: Vec<Plan> = (0..DIRECTIONS).map(|d| cpu.plan(stage, &nudged(&made, d)).unwrap()).collect();
        let moved =
            |(d, plan)| Session::new(&cpu, plan, 0..steps, move |part, values| nudge(d, part, values));
        let mut all = Compared {
            here: Session::new(&cpu, &plan, 0..steps, |_, _| ()),
            there: Session::new(&gpu, &far, 0..steps, |_, _| ()),
            near: (0..).zip(&near).map(moved).collect(),
            chain: chain(&cpu),
            failures: Vec::new(),
            worst: (0.0, String::new()),
        };
        (0..steps).for_each(|_| all.update());
        all.log();
        assert!(all.there.underway.micros.replays(), "{}: was it captured?", stage.name());
        println!("{:.3} of the tolerance: {}", all.worst.0, all.worst.1);
        failures.append(&mut all.failures);
        export::export(&cpu, &plan, &mut all.here.state.params, &mut made).unwrap();
        on_device.load(folder.path(), &[name], &gpu.flux, &device, DType::F32).unwrap();
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// The options of ten updates of each stage.
const TEN: &str = "base.steps=10 base.ema=0.9 base.validate_every=0 run.validation_crops=1";

/// A very small model with a few updates behind each stage.
const SMALL: &str = "model.dim=16 model.axes=[2,2,4] model.double=1 model.single=1 data.images=5 data.held_out=1 \
    run.eval_crops=1 run.validation_crops=1 run.keep_every=0 base.steps=22 sft.steps=22 adversary.steps=22 \
    asdpo.steps=22 base.batch=2 sft.batch=2 adversary.batch=2 asdpo.checkpoint_every=100 \
    base.validate_every=0 sft.validate_every=0 adversary.validate_every=0 asdpo.validate_every=0 \
    base.schedule=constant asdpo.schedule=constant";

/// Trains the stages before the last for two updates each on the CPU, and exports them to `folder`.
fn prepare(folder: &Path) {
    let config = config(SMALL);
    let context = context(&config, &Device::cpu(), folder);
    let mut made = Artifacts::default();
    for stage in [StageName::Base, StageName::Sft, StageName::Adversary] {
        let plan = context.plan(stage, &made).unwrap();
        let mut session = Session::new(&context, &plan, 0..2, |_, _| ());
        (0..2).for_each(|_| session.update());
        export::export(&context, &plan, &mut session.state.params, &mut made).unwrap();
    }
}

/// Four updates whose micro-batches are captured at their second occurrence and replayed, twice, have the bits of four that
/// are all launched: in masters, moments, running average and log. Every stage, in f32 and bf16, with what changes a
/// graph: accumulation (a second kind of micro-batch), recompute, the Riesz adversary, and what holds the policy back.
#[test]
fn replays_have_the_bits_of_launches() {
    let Some(device) = cuda::device() else { return };
    let folder = tempfile::tempdir().unwrap();
    prepare(folder.path());
    let holding = "asdpo.anchor=0.5 asdpo.sft_mix=0.5";
    for (stage, sets) in [
        (StageName::Base, "base.accumulation=2"),
        (StageName::Sft, "sft.ema=0.9 sft.recompute=true asdpo.auto_beta=0.2"),
        (StageName::Adversary, "adversary.clip=0.01"),
        (StageName::Asdpo, "asdpo.accumulation=2"),
        (StageName::Asdpo, &format!("asdpo.adversary=riesz asdpo.recompute=true asdpo.ema=0.9 {holding}")),
    ] {
        for precision in ["f32", "bf16"] {
            let config = config(&format!("{SMALL} run.precision={precision} {sets}"));
            let context = context(&config, &device, folder.path());
            let mut made = Artifacts::default();
            let names = [layout::BASE, layout::SFT, layout::ADVERSARY];
            let (names, dtype) = (&names[..stage as usize], config.run.precision.dtype());
            made.load(folder.path(), names, &context.flux, &device, dtype).unwrap();
            let plan = context.plan(stage, &made).unwrap();
            // The adversary's cosine is measured in update 20, of what a replay left.
            let run = |graphs: bool| {
                let mut session = Session::new(&context, &plan, 18..22, |_, _| ());
                if !graphs {
                    session.underway.micros.without_graphs();
                }
                session.finish().unwrap();
                assert_eq!(session.underway.micros.replays(), graphs);
                assert_eq!(session.state.step, 22);
                (bits(&remembered(&session.state.params)), bits(&session.log()))
            };
            let title = format!("{}, {sets}, {precision}", stage.name());
            let launched = run(false);
            assert!(run(true) == launched, "{title}: replayed");
            assert!(run(true) == launched, "{title}: replayed again");
        }
    }
}

/// The first update makes weights of 1e30, so the second has a loss that is no number. The host reads it when the third
/// is asked for: one late, and neither has changed anything.
#[test]
fn a_number_that_is_none_ends_the_run_one_update_late() {
    let Some(device) = cuda::device() else { return };
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(&format!("{SMALL} base.warmup=0"));
    config.base.lr = 1e30;
    let context = context(&config, &device, folder.path());
    let plan = context.plan(StageName::Base, &Artifacts::default()).unwrap();
    let run = |updates: usize| {
        let mut session = Session::new(&context, &plan, 0..6, |_, _| ());
        (0..updates).for_each(|_| session.update());
        session
    };
    let good = bits(&remembered(&run(1).state.params));
    let mut session = run(0);
    let e = session.finish().unwrap_err();
    assert!(matches!(&e, Error::NonFinite { step: 1, stage, .. } if stage == "base"), "{e}");
    assert_eq!((session.state.step, session.log()["step"].len()), (3, 1));
    assert!(
        bits(&remembered(&session.state.params)) == good,
        "an update that is not finite changed something"
    );
}

fn bits(all: &BTreeMap<String, Vec<f32>>) -> Vec<(String, Vec<u32>)> {
    all.iter().map(|(name, values)| (name.clone(), values.iter().map(|v| v.to_bits()).collect())).collect()
}
