//! The four stages, each alone or chained: `base` (all weights), `sft`, `adversary` and `asdpo` (one adapter each).
//!
//! A batch, its noise and its noise levels are pure functions of (seed, stage, step).

use super::config::Config;
use super::init::{self, AInit};
use super::log::{JsonlLog, StageSummary};
use super::objective::{
    Adversary, AsDpo, Mode, Outcome, Pairs, Policies, Text, as_dpo, flow_matching, riesz_perturbation,
};
use super::options::{LoserNoise, Named, StageName, StageOptions};
use crate::autograd::{ParamSet, Tape, Var};
use crate::data::{Batch, Degradation, Sampler};
use crate::engine::{Device, Philox, Tensor};
use crate::flux::config::FluxConfig;
use crate::flux::lora::{AdapterFile, LoraModule};
use crate::flux::params::{Adapter, Weights};
use crate::flux::schedule::{logit_normal, sigma_of};
use crate::flux::transformer::Flux;
use crate::flux::weights::{Folder, write_safetensors};
use crate::infer::model::layout;
use crate::losses::flow_matching::noised;
use crate::losses::riesz::Riesz;
use crate::ops::AdapterSet;
use crate::ops::adamw::{AdamW, clip_factor};
use crate::ops::patch::Pack;
use crate::{Error, Result};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Is told how a run goes; the command line draws bars from it.
pub trait Progress {
    /// A stage begins.
    fn stage(&self, name: &str, steps: usize);
    /// A step is done: its loss, and samples per second so far.
    fn step(&self, loss: f64, samples_per_s: f64);
    /// The stage is over.
    fn done(&self, summary: &StageSummary);
    /// Something worth a line.
    fn say(&self, line: &str);
}

/// What every stage needs and none changes.
pub struct Context<'r> {
    /// All options.
    pub config: &'r Config,
    /// Structure of the transformer.
    pub flux: FluxConfig,
    /// Where it runs.
    pub device: Device,
    /// Training pairs.
    pub sampler: Sampler,
    /// The run directory.
    pub out: &'r Path,
    /// Watches.
    pub progress: &'r dyn Progress,
    /// Set by Ctrl-C.
    pub stop: &'r AtomicBool,
}

/// What training has made so far.
#[derive(Default)]
pub struct Artifacts {
    /// The frozen base.
    pub base: Option<Weights>,
    /// Finished adapters by name.
    pub adapters: BTreeMap<String, AdapterFile>,
}

/// Uses of noise within a stage, each a Philox stream of its own.
#[derive(Clone, Copy)]
enum Use {
    Winner = 0,
    Loser = 1,
    SigmaWinner = 2,
    SigmaLoser = 3,
}

/// Steps between two measurements of the cosine between the adversary's perturbation and the Riesz direction.
const COSINE_EVERY: usize = 20;

/// What one micro-batch gave: its loss and what to log beside it.
struct Step {
    loss: f32,
    fields: Map<String, Value>,
}

impl<'r> Context<'r> {
    /// Runs `stage`, saves what it made, and adds it to `made`.
    pub fn run(&self, stage: StageName, made: &mut Artifacts, log: &mut JsonlLog) -> Result<StageSummary> {
        match stage {
            StageName::Base => self.base(made, log),
            StageName::Sft => self.flow_adapter(stage, layout::SFT, AInit::Uniform, made, log),
            StageName::Adversary => self.flow_adapter(stage, layout::ADVERSARY, AInit::Gaussian, made, log),
            StageName::Asdpo => self.asdpo(made, log),
        }
    }

    fn base(&self, made: &mut Artifacts, log: &mut JsonlLog) -> Result<StageSummary> {
        let mut params = init::base(&self.flux, self.config.run.seed, &self.device)?;
        let o = &self.config.base;
        let matrices: Vec<bool> = (0..params.names().len()).map(|i| params.shape(i).len() == 2).collect();
        let summary = self.train(StageName::Base, &mut params, &matrices, log, |params, step| {
            let batch = self.sampler.batch(StageName::Base as u64, step, o.batch, false)?;
            let weights = Weights::trainable(params);
            self.flow_step(StageName::Base, params, &weights, &[], &batch, &batch.hq, step)
        })?;
        let dir = self.out.join(layout::BASE);
        std::fs::create_dir_all(&dir).map_err(Error::io(&dir))?;
        let tensors: Vec<(String, Tensor)> =
            params.names().iter().enumerate().map(|(i, n)| (n.clone(), params.master(i))).collect();
        write_safetensors(dir.join("diffusion_pytorch_model.safetensors"), &BTreeMap::new(), &tensors)?;
        self.flux.save(&dir)?;
        made.base = Some(Weights::frozen(&self.device, &params)?);
        Ok(summary)
    }

    /// Stages whose adapter learns by flow matching: `sft` towards HQ, `adversary` towards a bad upscaler's output.
    fn flow_adapter(
        &self,
        stage: StageName,
        name: &str,
        init: AInit,
        made: &mut Artifacts,
        log: &mut JsonlLog,
    ) -> Result<StageSummary> {
        let o = self.config.stage(stage);
        let base = made.base.as_ref().ok_or_else(|| missing(stage, layout::BASE))?;
        let mut params = init::adapter(&self.flux, name, o, init, self.config.run.seed, &self.device)?;
        let decay = vec![true; params.names().len()];
        let shifted = self.shifted_sampler(stage)?;
        let sampler = shifted.as_ref().unwrap_or(&self.sampler);
        let towards_bad = stage == StageName::Adversary;
        let below: Vec<&AdapterFile> =
            made.adapters.get(layout::SFT).filter(|_| towards_bad).into_iter().collect();
        let summary = self.train(stage, &mut params, &decay, log, |params, step| {
            let batch = sampler.batch(stage as u64, step, o.batch, towards_bad)?;
            let mut adapters: Vec<Adapter> = below.iter().map(|f| Adapter::frozen(f, 1.0)).collect();
            adapters.push(Adapter::trainable(name, o.alpha / o.rank as f32, params)?);
            let target = batch.bad.as_ref().unwrap_or(&batch.hq);
            self.flow_step(stage, params, base, &adapters, &batch, target, step)
        })?;
        self.finish_adapter(name, o, &params, made)?;
        Ok(summary)
    }

    fn asdpo(&self, made: &mut Artifacts, log: &mut JsonlLog) -> Result<StageSummary> {
        let stage = StageName::Asdpo;
        let (o, p) = (&self.config.asdpo, &self.config.preference);
        let objective = AsDpo::new(p.metric(), p.beta, p.lambda, p.adversary, p.rho);
        let base = made.base.as_ref().ok_or_else(|| missing(stage, layout::BASE))?;
        let find = |name: &str| made.adapters.get(name).ok_or_else(|| missing(stage, name));
        let sft = find(layout::SFT)?;
        let adv = if p.adversary == Adversary::Lora { Some(find(layout::ADVERSARY)?) } else { None };
        let mut params =
            init::adapter(&self.flux, layout::ASDPO, o, AInit::Uniform, self.config.run.seed, &self.device)?;
        let decay = vec![true; params.names().len()];
        let policies = Policies { policy: vec![0, 1], reference: vec![0], adversary: vec![0, 2] };
        let mode = Mode { text: Text::Collapsed, recompute: o.recompute };
        let summary = self.train(stage, &mut params, &decay, log, |params, step| {
            let batch = self.sampler.batch(stage as u64, step, o.batch, false)?;
            let pairs = self.pairs(&batch, step)?;
            let mut adapters = vec![
                Adapter::frozen(sft, 1.0),
                Adapter::trainable(layout::ASDPO, o.alpha / o.rank as f32, params)?,
            ];
            adapters.extend(adv.map(|f| Adapter::frozen(f, 1.0)));
            let flux = Flux { config: &self.flux, weights: base, adapters: &adapters };
            let tape = objective.tape(o.batch, params.leaves());
            let out = as_dpo(&flux, &tape, &objective, &policies, &pairs, mode)?;
            tape.backward(&out.loss, None)?;
            params.take_back(tape.into_leaves());
            let loss = out.loss.value().item();
            if step == 0 {
                first_step_is_ln2(loss, objective.streams() - 1)?;
            }
            let mut fields = stats_fields(&out);
            if p.adversary == Adversary::Lora && step.is_multiple_of(COSINE_EVERY as u64) {
                let cosine = self.riesz_cosine(&flux, &objective, &policies, &pairs, &out, mode)?;
                fields.insert("riesz_cosine".into(), cosine.into());
            }
            Ok(Step { loss, fields })
        })?;
        self.finish_adapter(layout::ASDPO, o, &params, made)?;
        Ok(summary)
    }

    /// Mean H^s cosine between the LoRA adversary's perturbation of the winner and the Riesz direction.
    fn riesz_cosine<'a>(
        &self,
        flux: &'a Flux<'a>,
        objective: &AsDpo,
        policies: &Policies,
        pairs: &Pairs,
        out: &Outcome,
        mode: Mode,
    ) -> Result<f32> {
        let Some(negative) = &out.negative else { return Ok(0.0) };
        let sigma = Tensor::from_slice(&self.device, &[pairs.sigma_winner.len()], &pairs.sigma_winner)?;
        let (x_w, target) = noised(&pairs.winner, &pairs.noise_winner, &sigma)?;
        let best = riesz_perturbation(flux, objective, &policies.reference, pairs, &x_w, &target, mode)?;
        let mut moved = Tensor::from_slice(&self.device, negative.x.shape(), negative.x.f32())?;
        crate::engine::simd::axpy(-1.0, pairs.winner.f32(), moved.f32_mut());
        let cosines = Riesz::new(objective.metric.s).cosine(&moved, &best)?;
        Ok(cosines.iter().sum::<f32>() / cosines.len().max(1) as f32)
    }

    /// One flow-matching forward and backward of the whole batch towards `target` latents.
    #[allow(clippy::too_many_arguments, reason = "stage, model, data and where gradients go")]
    fn flow_step(
        &self,
        stage: StageName,
        params: &mut ParamSet,
        weights: &Weights,
        adapters: &[Adapter],
        batch: &Batch,
        target: &[f32],
        step: u64,
    ) -> Result<Step> {
        let o = self.config.stage(stage);
        let x = self.planes(batch, target)?;
        let cond = self.tokens(batch, &batch.cond)?;
        let noise = self.noise(stage, Use::Winner, step, x.shape());
        let sigma = self.sigmas(stage, Use::SigmaWinner, step, batch.batch);
        let flux = Flux { config: &self.flux, weights, adapters };
        let set = AdapterSet::uniform((0..adapters.len()).collect(), batch.batch);
        let mode = Mode { text: Text::Collapsed, recompute: o.recompute };
        let tape = Tape::new(params.leaves());
        let loss = flow_matching(&flux, &tape, &x, &cond, &noise, &sigma, set, mode)?;
        tape.backward(&loss, None)?;
        params.take_back(tape.into_leaves());
        Ok(Step { loss: loss.value().item(), fields: Map::new() })
    }

    fn pairs(&self, batch: &Batch, step: u64) -> Result<Pairs> {
        let stage = StageName::Asdpo;
        let winner = self.planes(batch, &batch.hq)?;
        let (noise, sigma) = match self.config.preference.loser_noise {
            LoserNoise::Own => (Use::Loser, Use::SigmaLoser),
            LoserNoise::Shared => (Use::Winner, Use::SigmaWinner),
        };
        Ok(Pairs {
            loser: self.planes(batch, &batch.cond)?,
            cond: self.tokens(batch, &batch.cond)?,
            noise_winner: self.noise(stage, Use::Winner, step, winner.shape()),
            noise_loser: self.noise(stage, noise, step, winner.shape()),
            sigma_winner: self.sigmas(stage, Use::SigmaWinner, step, batch.batch),
            sigma_loser: self.sigmas(stage, sigma, step, batch.batch),
            winner,
        })
    }

    fn planes(&self, batch: &Batch, latents: &[f32]) -> Result<Tensor> {
        Tensor::from_slice(&self.device, &[batch.batch, batch.channels, batch.side, batch.side], latents)
    }

    fn tokens(&self, batch: &Batch, latents: &[f32]) -> Result<Tensor> {
        let planes = Var::constant(self.planes(batch, latents)?);
        Ok(Tape::no_grad().one(Pack, &[&planes])?.value().clone())
    }

    fn stream(&self, stage: StageName, usage: Use) -> Philox {
        Philox::new(self.config.run.seed, (stage as u64 + 1) << 8 | usage as u64)
    }

    fn noise(&self, stage: StageName, usage: Use, step: u64, shape: &[usize]) -> Tensor {
        let mut t = Tensor::empty(&self.device, shape);
        let n = t.len() as u64;
        self.stream(stage, usage).normals(step * n, t.f32_mut());
        t
    }

    fn sigmas(&self, stage: StageName, usage: Use, step: u64, batch: usize) -> Vec<f32> {
        let mut n = vec![0.0; batch];
        self.stream(stage, usage).normals(step * batch as u64, &mut n);
        n.into_iter().map(|n| sigma_of(logit_normal(n))).collect()
    }

    /// The sampler of a stage that shifts the degradation, if this one does.
    fn shifted_sampler(&self, stage: StageName) -> Result<Option<Sampler>> {
        let s = &self.config.sft_data;
        if stage != StageName::Sft || (s.blur_max == 0.0 && s.noise_max == 0.0) {
            return Ok(None);
        }
        let mut d: Degradation = self.sampler.degradation().clone();
        if s.blur_max > 0.0 {
            d.blur.1 = s.blur_max;
        }
        if s.noise_max > 0.0 {
            d.noise.1 = s.noise_max;
        }
        Ok(Some(self.sampler.with_degradation(d)?))
    }

    /// Keeps a finished adapter: in `made`, and on disk.
    fn finish_adapter(
        &self,
        name: &str,
        o: &StageOptions,
        params: &ParamSet,
        made: &mut Artifacts,
    ) -> Result<()> {
        let mut modules = BTreeMap::new();
        let copy = |full: &str| -> Result<Tensor> {
            let id =
                params.find(full).ok_or_else(|| Error::Usage(format!("there is no parameter {full}")))?;
            let t = params.master(id.0);
            Tensor::from_slice(&self.device, t.shape(), t.f32())
        };
        for (module, ..) in self.flux.lora_targets() {
            let (a, b) = (
                copy(&format!("{name}.{module}.lora_A.weight"))?,
                copy(&format!("{name}.{module}.lora_B.weight"))?,
            );
            modules.insert(module, LoraModule { a, b, alpha: o.alpha });
        }
        let file = AdapterFile {
            name: name.to_owned(),
            modules,
            lq_resize: Some(self.config.data.lq_resize.name().to_owned()),
            metadata: BTreeMap::new(),
        };
        file.save(self.out.join(name))?;
        made.adapters.insert(name.to_owned(), file);
        Ok(())
    }

    /// The optimizer loop of a stage. `micro(params, index)` adds the gradients of micro-batch `index` to `params`.
    fn train(
        &self,
        stage: StageName,
        params: &mut ParamSet,
        decay: &[bool],
        log: &mut JsonlLog,
        mut micro: impl FnMut(&mut ParamSet, u64) -> Result<Step>,
    ) -> Result<StageSummary> {
        let o = self.config.stage(stage);
        let opt = AdamW { beta1: o.beta1, beta2: o.beta2, eps: o.eps, weight_decay: o.weight_decay };
        let name = stage.name();
        self.progress.stage(name, o.steps);
        let begun = Instant::now();
        let (mut first, mut last) = (f64::NAN, f64::NAN);
        for step in 0..o.steps {
            let (mut loss, mut fields) = (0.0, Map::new());
            for k in 0..o.accumulation {
                let done = micro(params, (step * o.accumulation + k) as u64)?;
                loss += f64::from(done.loss) / o.accumulation as f64;
                fields = done.fields;
            }
            let share = 1.0 / o.accumulation as f32;
            let norm = params.grad_norm() * share;
            if !loss.is_finite() || !norm.is_finite() {
                let (tensor, value) = match params.non_finite() {
                    Some((name, value)) => (format!("the gradient of {name}"), value),
                    None => ("the loss".to_owned(), loss as f32),
                };
                return Err(Error::NonFinite { stage: name.to_owned(), step, tensor, value });
            }
            let lr = o.schedule.lr(f64::from(o.lr), step, o.warmup, o.steps) as f32;
            params.step(&opt, lr, clip_factor(norm, o.clip) * share, |i| decay[i]);
            params.reset_grads();
            if step == 0 {
                first = loss;
            }
            last = loss;
            let rate = ((step + 1) * o.batch * o.accumulation) as f64 / begun.elapsed().as_secs_f64();
            let mut line = json!({ "stage": name, "step": step, "loss": loss, "lr": lr, "grad_norm": norm, "samples_per_s": rate });
            if let Some(object) = line.as_object_mut() {
                object.extend(fields);
            }
            log.write(&line)?;
            self.progress.step(loss, rate);
            if self.stop.load(Ordering::Relaxed) {
                let saved = "finished stages are kept in the run directory".to_owned();
                return Err(Error::Interrupted { stage: name.to_owned(), step, saved });
            }
        }
        let summary = StageSummary {
            name: name.to_owned(),
            steps: o.steps,
            seconds: begun.elapsed().as_secs_f64(),
            first_loss: first,
            last_loss: last,
        };
        self.progress.done(&summary);
        Ok(summary)
    }
}

impl Artifacts {
    /// Adds what an earlier run directory holds.
    pub fn load(&mut self, run: &Path, config: &FluxConfig, device: &Device) -> Result<()> {
        let base = run.join(layout::BASE);
        let stored = FluxConfig::load(&base)?;
        if &stored != config {
            let detail = format!("another model than the options ask for: {}", stored.differences(config));
            return Err(Error::format(base.join("config.json"), detail));
        }
        self.base = Some(Weights::load(&Folder::open(&base)?, config, device)?);
        for name in [layout::SFT, layout::ADVERSARY, layout::ASDPO] {
            let dir = run.join(name);
            if dir.is_dir() {
                let file = AdapterFile::load(&dir, device)?;
                file.validate(config)?;
                self.adapters.insert(name.to_owned(), file);
            }
        }
        Ok(())
    }
}

pub(super) fn missing(stage: StageName, what: &str) -> Error {
    let stage = stage.name();
    Error::Usage(format!(
        "stage {stage} needs {what}: run the stage that makes it first, or name a run that has it with run.from"
    ))
}

/// Policy = reference at the first step: every loser's loss is ln 2, to rounding of the mean.
fn first_step_is_ln2(loss: f32, losers: usize) -> Result<()> {
    let want = losers as f32 * std::f32::consts::LN_2;
    if (loss - want).abs() <= 1e-6 * want {
        return Ok(());
    }
    let detail = format!(
        "the first loss is {loss}, but policy and reference are equal: it must be {want} ({losers}·ln 2)"
    );
    Err(Error::shape("asdpo", detail))
}

fn stats_fields(out: &Outcome) -> Map<String, Value> {
    let s = &out.stats;
    let mut m = Map::new();
    m.insert("loss_data".into(), s.loss_data.into());
    if let (Some(loss), Some(gap)) = (s.loss_adv, s.gap_a) {
        m.insert("loss_adv".into(), loss.into());
        m.insert("gap_adv".into(), gap.into());
    }
    m.insert("gap_winner".into(), s.gap_w.into());
    m.insert("gap_loser".into(), s.gap_l.into());
    m.insert("margin".into(), s.margin.into());
    m.insert("implicit_accuracy".into(), s.implicit_accuracy.into());
    m.insert("coefficient".into(), s.mean_coefficient.into());
    m.insert("negative_margins".into(), s.negative_margin_share.into());
    m
}
