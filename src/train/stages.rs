//! The four stages, each alone or chained: `base` (all weights), `sft`, `adversary` and `asdpo` (one adapter each): what
//! each trains, on top of what, and one micro-batch of it.
//!
//! A batch, its noise and its noise levels are pure functions of (seed, stage, micro-batch).

use super::config::Config;
use super::init::{self, AInit};
use super::log::StageSummary;
use super::monitor::Coefficients;
use super::objective::{
    Adversary, AsDpo, Mode, Outcome, Pairs, Policies, Text, as_dpo, flow_matching, riesz_perturbation,
};
use super::options::{LoserNoise, Named, StageName};
use super::validation::Validation;
use crate::autograd::{ParamSet, Tape, Var};
use crate::data::{Batch, Degradation, Sampler};
use crate::engine::{Device, Philox, Tensor};
use crate::flux::config::FluxConfig;
use crate::flux::lora::AdapterFile;
use crate::flux::params::{Adapter, Weights};
use crate::flux::schedule::{logit_normal, sigma_of};
use crate::flux::transformer::Flux;
use crate::flux::weights::Folder;
use crate::infer::model::layout;
use crate::losses::flow_matching::noised;
use crate::losses::riesz::Riesz;
use crate::ops::AdapterSet;
use crate::ops::patch::Pack;
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// Is told how a run goes; the command line draws bars from it.
pub trait Progress {
    /// A stage of `steps` begins, or goes on after `done` of them.
    fn stage(&self, name: &str, steps: usize, done: usize);
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
    /// Held-out images, for a look during training.
    pub validation: Validation,
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
    /// SHA-256 of every file this run made of them, by its path in the run directory.
    pub files: BTreeMap<String, String>,
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
pub(super) struct Micro {
    pub loss: f32,
    pub fields: Vec<(&'static str, f64)>,
    pub preference: Option<Coefficients>,
}

/// A stage about to be trained: what is trained, and what it stands on.
pub(super) struct Plan {
    pub stage: StageName,
    /// Name of the trained adapter; `None`: the base itself is trained.
    pub adapter: Option<&'static str>,
    /// The frozen base the adapter stands on.
    base: Option<Weights>,
    /// Frozen adapters under the trained one.
    below: Vec<AdapterFile>,
    /// The frozen adversary of the preference stage.
    beside: Option<AdapterFile>,
    /// The stage's own training pairs, where it shifts the degradation.
    sampler: Option<Sampler>,
}

impl Plan {
    /// The weights and adapters of the policy, and where its trained parts are views of `params`: drop them before the
    /// optimizer writes. Adapters: those below, the trained one, the adversary.
    pub fn model(&self, config: &Config, params: &ParamSet) -> Result<(Weights, Vec<Adapter>)> {
        let weights = self.base.clone().unwrap_or_else(|| Weights::trainable(params));
        let mut adapters: Vec<Adapter> = self.below.iter().map(|f| Adapter::frozen(f, 1.0)).collect();
        if let Some(name) = self.adapter {
            let o = config.stage(self.stage);
            adapters.push(Adapter::trainable(name, o.alpha / o.rank as f32, params)?);
        }
        adapters.extend(self.beside.iter().map(|f| Adapter::frozen(f, 1.0)));
        Ok((weights, adapters))
    }

    /// The adapters of the policy, as indices into those of [`Plan::model`].
    pub fn policy(&self) -> Vec<usize> {
        (0..self.below.len() + usize::from(self.adapter.is_some())).collect()
    }

    /// May weight decay apply to each parameter? To matrices.
    pub fn decays(&self, params: &ParamSet) -> Vec<bool> {
        (0..params.names().len()).map(|i| params.shape(i).len() == 2).collect()
    }
}

impl Context<'_> {
    /// What `stage` trains, on top of what `made` holds.
    pub(super) fn plan(&self, stage: StageName, made: &Artifacts) -> Result<Plan> {
        let find = |name: &str| made.adapters.get(name).cloned().ok_or_else(|| missing(stage, name));
        let base = || made.base.clone().ok_or_else(|| missing(stage, layout::BASE));
        let plan = Plan { stage, adapter: None, base: None, below: Vec::new(), beside: None, sampler: None };
        Ok(match stage {
            StageName::Base => plan,
            StageName::Sft => Plan {
                adapter: Some(layout::SFT),
                base: Some(base()?),
                sampler: self.shifted_sampler()?,
                ..plan
            },
            StageName::Adversary => Plan {
                adapter: Some(layout::ADVERSARY),
                base: Some(base()?),
                below: made.adapters.get(layout::SFT).cloned().into_iter().collect(),
                ..plan
            },
            StageName::Asdpo => Plan {
                adapter: Some(layout::ASDPO),
                base: Some(base()?),
                below: vec![find(layout::SFT)?],
                beside: match self.config.preference.adversary {
                    Adversary::Lora => Some(find(layout::ADVERSARY)?),
                    _ => None,
                },
                ..plan
            },
        })
    }

    /// Fresh parameters of `plan`.
    pub(super) fn parameters(&self, plan: &Plan) -> Result<ParamSet> {
        let (o, seed) = (self.config.stage(plan.stage), self.config.run.seed);
        let init = if plan.stage == StageName::Adversary { AInit::Gaussian } else { AInit::Uniform };
        let mut params = match plan.adapter {
            None => init::base(&self.flux, seed, &self.device)?,
            Some(name) => init::adapter(&self.flux, name, o, init, seed, &self.device)?,
        };
        if o.ema > 0.0 {
            params.keep_average(&self.device, o.ema)?;
        }
        Ok(params)
    }

    /// Forward and backward of micro-batch `index`; adds its gradients to `params`.
    pub(super) fn micro(&self, plan: &Plan, params: &mut ParamSet, index: u64, beta: f32) -> Result<Micro> {
        match plan.stage {
            StageName::Asdpo => self.preference(plan, params, index, beta),
            _ => self.flow(plan, params, index),
        }
    }

    /// Flow matching towards HQ, or the bad upscaler's output for the adversary.
    fn flow(&self, plan: &Plan, params: &mut ParamSet, index: u64) -> Result<Micro> {
        let o = self.config.stage(plan.stage);
        let sampler = plan.sampler.as_ref().unwrap_or(&self.sampler);
        let towards_bad = plan.stage == StageName::Adversary;
        let batch = sampler.batch(plan.stage as u64, index, o.batch, towards_bad)?;
        let x = self.planes(&batch, batch.bad.as_ref().unwrap_or(&batch.hq))?;
        let cond = self.tokens(&batch, &batch.cond)?;
        let noise = self.noise(plan.stage, Use::Winner, index, x.shape())?;
        let sigma = self.sigmas(plan.stage, Use::SigmaWinner, index, batch.batch);
        let (weights, adapters) = plan.model(self.config, params)?;
        let flux = Flux { config: &self.flux, weights: &weights, adapters: &adapters };
        let set = AdapterSet::uniform(plan.policy(), batch.batch);
        let mode = Mode { text: Text::Collapsed, recompute: o.recompute };
        let tape = Tape::new(params.leaves());
        let loss = flow_matching(&flux, &tape, &x, &cond, &noise, &sigma, set, mode)?;
        tape.backward(&loss, None)?;
        params.take_back(tape.into_leaves());
        Ok(Micro { loss: loss.value().item(), fields: Vec::new(), preference: None })
    }

    fn preference(&self, plan: &Plan, params: &mut ParamSet, index: u64, beta: f32) -> Result<Micro> {
        let (o, p) = (&self.config.asdpo, &self.config.preference);
        let objective = AsDpo {
            loser_weight: p.loser_weight,
            anchor: p.anchor,
            sft_mix: p.sft_mix,
            ..AsDpo::new(p.metric(), beta, p.lambda, p.adversary, p.rho)
        };
        let policies = Policies { policy: vec![0, 1], reference: vec![0], adversary: vec![0, 2] };
        let mode = Mode { text: Text::Collapsed, recompute: o.recompute };
        let batch = self.sampler.batch(plan.stage as u64, index, o.batch, false)?;
        let pairs = self.pairs(&batch, index)?;
        let (weights, adapters) = plan.model(self.config, params)?;
        let flux = Flux { config: &self.flux, weights: &weights, adapters: &adapters };
        let tape = objective.tape(o.batch, params.leaves());
        let out = as_dpo(&flux, &tape, &objective, &policies, &pairs, mode)?;
        tape.backward(&out.loss, None)?;
        params.take_back(tape.into_leaves());
        if params.updates == 0 {
            first_step_is_ln2(
                out.stats.loss_data + out.stats.loss_adv.unwrap_or(0.0),
                objective.streams() - 1,
            )?;
        }
        let mut fields = stats_fields(&out);
        if p.auto_beta > 0.0 {
            fields.push(("beta", f64::from(beta)));
        }
        if p.adversary == Adversary::Lora && index.is_multiple_of(COSINE_EVERY as u64) {
            let cosine = self.riesz_cosine(&flux, &objective, &policies, &pairs, &out, mode)?;
            fields.push(("riesz_cosine", f64::from(cosine)));
        }
        let preference = Some(Coefficients::of(&out.stats));
        Ok(Micro { loss: out.loss.value().item(), fields, preference })
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
            noise_winner: self.noise(stage, Use::Winner, step, winner.shape())?,
            noise_loser: self.noise(stage, noise, step, winner.shape())?,
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

    fn noise(&self, stage: StageName, usage: Use, step: u64, shape: &[usize]) -> Result<Tensor> {
        let mut t = Tensor::empty(&self.device, shape)?;
        let n = t.len() as u64;
        self.stream(stage, usage).normals(step * n, t.f32_mut());
        Ok(t)
    }

    fn sigmas(&self, stage: StageName, usage: Use, step: u64, batch: usize) -> Vec<f32> {
        let mut n = vec![0.0; batch];
        self.stream(stage, usage).normals(step * batch as u64, &mut n);
        n.into_iter().map(|n| sigma_of(logit_normal(n))).collect()
    }

    /// The training pairs of the super-resolution stage, if it shifts the degradation.
    fn shifted_sampler(&self) -> Result<Option<Sampler>> {
        let s = &self.config.sft_data;
        if s.blur_max == 0.0 && s.noise_max == 0.0 {
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
}

impl Artifacts {
    /// Adds what an earlier run directory holds, of `names` (see [`layout`]).
    pub fn load(&mut self, run: &Path, names: &[&str], config: &FluxConfig, device: &Device) -> Result<()> {
        if names.contains(&layout::BASE) {
            let base = run.join(layout::BASE);
            let stored = FluxConfig::load(&base)?;
            if &stored != config {
                let detail =
                    format!("another model than the options ask for: {}", stored.differences(config));
                return Err(Error::format(base.join("config.json"), detail));
            }
            self.base = Some(Weights::load(&Folder::open(&base)?, config, device)?);
        }
        for &name in names.iter().filter(|n| **n != layout::BASE) {
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

fn stats_fields(out: &Outcome) -> Vec<(&'static str, f64)> {
    let s = &out.stats;
    let wide = f64::from;
    let mut fields = vec![("loss_data", wide(s.loss_data))];
    if let (Some(loss), Some(gap)) = (s.loss_adv, s.gap_a) {
        fields.extend([("loss_adv", wide(loss)), ("gap_adv", wide(gap))]);
    }
    fields.extend([
        ("gap_winner", wide(s.gap_w)),
        ("gap_loser", wide(s.gap_l)),
        ("margin", wide(s.margin)),
        ("implicit_accuracy", wide(s.implicit_accuracy)),
        ("coefficient", wide(s.mean_coefficient)),
        ("negative_margins", wide(s.negative_margin_share)),
    ]);
    if let Some((anchor, winner)) = out.held {
        fields.extend([("anchor_error", anchor), ("winner_error", winner)]);
    }
    fields
}
