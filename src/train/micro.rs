//! One stage's micro-batches on the device: what each is computed from, at addresses that stay; forward and backward,
//! launched one by one or, on a CUDA device, replayed from a captured graph; and the numbers for the log, read when they
//! have arrived.
//!
//! The first micro-batch is launched, the second is captured, and from then on the host asks for one graph per
//! micro-batch. What changes from one to the next stands in the device's memory and comes through a [`Feed`].

use super::monitor::Coefficients;
use super::objective::{
    Adversary, AsDpo, Mode, Pairs, Policies, Text, as_dpo, flow_matching, riesz_perturbation,
};
use super::options::{LoserNoise, StageName};
use super::stages::{Context, Plan};
#[cfg(test)]
use crate::autograd::tape::Rewrite;
use crate::autograd::{ParamSet, Tape, Var};
use crate::data::{Image, Plane, Sampler};
use crate::engine::cuda::{Feed, Graph, Readback};
use crate::engine::{Device, Philox, Tensor};
use crate::flux::modulation::Levels;
use crate::flux::schedule::{logit_normal, sigma_of};
use crate::flux::transformer::Flux;
use crate::losses::dpo::{Preference, Stats};
use crate::losses::flow_matching::noised;
use crate::losses::riesz::Riesz;
use crate::ops::AdapterSet;
use crate::ops::blend::{Blend, Factor};
use crate::ops::embed::NoiseLevels;
use crate::ops::patch::Pack;
use crate::{Error, Result};
use std::cell::Cell;

/// Uses of noise within a stage, each a Philox stream of its own.
#[derive(Clone, Copy)]
enum Use {
    Winner = 0,
    Loser = 1,
    SigmaWinner = 2,
    SigmaLoser = 3,
}

/// Micro-batches between two measurements of the cosine between the adversary's perturbation and the Riesz direction.
pub(super) const COSINE_EVERY: u64 = 20;

/// Makes a stage's micro-batches on the host, but for what a codec on the device does: pure functions of (seed, stage, number).
#[derive(Clone)]
pub(super) struct Loader<'c> {
    sampler: &'c Sampler,
    levels: Levels,
    stage: StageName,
    batch: usize,
    seed: u64,
    /// The dataset losers' noise and level; `None` in a stage without losers.
    loser: Option<(Use, Use)>,
}

/// A micro-batch on the host.
pub(super) struct Prepared {
    target: Vec<Plane>,
    cond: Vec<Plane>,
    draws: Vec<Drawn>,
}

/// Noise and noise levels of one kind of sample: where the noise begins, σ, and its embedding.
struct Drawn {
    counter: [u64; 3],
    sigma: Vec<f32>,
    embedding: Vec<f32>,
}

impl<'c> Loader<'c> {
    pub fn new(context: &'c Context, plan: &'c Plan) -> Self {
        let loser = match context.config.preference.loser_noise {
            LoserNoise::Own => (Use::Loser, Use::SigmaLoser),
            LoserNoise::Shared => (Use::Winner, Use::SigmaWinner),
        };
        Self {
            sampler: plan.sampler.as_ref().unwrap_or(&context.sampler),
            levels: plan.levels(),
            stage: plan.stage,
            batch: context.config.stage(plan.stage).batch,
            seed: context.config.run.seed,
            loser: (plan.stage == StageName::Asdpo).then_some(loser),
        }
    }

    /// Micro-batch `index`.
    pub fn prepare(&self, index: u64) -> Result<Prepared> {
        let towards_bad = self.stage == StageName::Adversary;
        let batch = self.sampler.batch(self.stage as u64, index, self.batch, towards_bad)?;
        let values: usize = self.shape().iter().product();
        let kinds = [Some((Use::Winner, Use::SigmaWinner)), self.loser];
        let draw = |(noise, level): (Use, Use)| {
            let counter = self.stream(noise).counter(index * values as u64);
            let mut n = vec![0.0; self.batch];
            self.stream(level).normals(index * self.batch as u64, &mut n);
            let sigma: Vec<f32> = n.into_iter().map(|n| sigma_of(logit_normal(n))).collect();
            let embedding = self.levels.rows(&sigma)?;
            Ok(Drawn { counter, sigma, embedding })
        };
        let draws = kinds.into_iter().flatten().map(draw).collect::<Result<_>>()?;
        Ok(Prepared { target: batch.target, cond: batch.cond, draws })
    }

    /// A micro-batch of zeros; for a codec on the device there is a picture, which stands for all: each is encoded alone.
    pub fn blank(&self) -> Prepared {
        let crop = self.sampler.crop();
        let latents = Plane::Latents(vec![0.0; self.shape()[1..].iter().product()]);
        let mut target = vec![latents; self.batch];
        let cond = target.clone();
        if self.sampler.codec().device().is_some() {
            target[0] = Plane::Picture(Image::zeros(crop, crop));
        }
        let embedding = vec![0.0; self.batch * self.levels.width()];
        let drawn = || Drawn { counter: [0; 3], sigma: vec![0.5; self.batch], embedding: embedding.clone() };
        let draws = (0..1 + usize::from(self.loser.is_some())).map(|_| drawn()).collect();
        Prepared { target, cond, draws }
    }

    /// `[batch, channels, side, side]` of the latents.
    fn shape(&self) -> [usize; 4] {
        let codec = self.sampler.codec();
        let side = self.sampler.crop() / codec.block();
        [self.batch, codec.channels(), side, side]
    }

    fn stream(&self, usage: Use) -> Philox {
        Philox::new(self.seed, (self.stage as u64 + 1) << 8 | usage as u64)
    }
}

/// A micro-batch on the device, at addresses that stay.
struct Inputs {
    /// Latents of HQ, or of the bad upscaler's output for the adversary.
    target: Tensor,
    /// Latents of LQ, resized: the condition, and the dataset's losers.
    cond: Tensor,
    winner: Draw,
    loser: Option<Draw>,
}

struct Draw {
    counter: Tensor,
    levels: NoiseLevels,
}

impl Draw {
    fn new(device: &Device, batch: usize, width: usize) -> Result<Self> {
        let zeros = |shape: &[usize]| Tensor::zeros(device, shape);
        let levels = NoiseLevels { sigma: zeros(&[batch])?, embedding: zeros(&[batch, width])? };
        Ok(Self { counter: zeros(&[3, 2])?, levels })
    }

    fn noise(&self, shape: &[usize]) -> Result<Tensor> {
        let mut noise = Tensor::empty(self.counter.device(), shape)?;
        Philox::fill_from(&self.counter, &mut noise)?;
        Ok(noise)
    }

    fn tensors(&mut self) -> [&mut Tensor; 3] {
        [&mut self.counter, &mut self.levels.sigma, &mut self.levels.embedding]
    }
}

impl Inputs {
    fn new(device: &Device, shape: &[usize], losers: bool, width: usize) -> Result<Self> {
        let planes = || Tensor::zeros(device, shape);
        Ok(Self {
            target: planes()?,
            cond: planes()?,
            winner: Draw::new(device, shape[0], width)?,
            loser: losers.then(|| Draw::new(device, shape[0], width)).transpose()?,
        })
    }

    /// In the order of [`Micros::send`].
    fn tensors(&mut self) -> Vec<&mut Tensor> {
        let planes = [&mut self.target, &mut self.cond];
        let draws = [Some(&mut self.winner), self.loser.as_mut()];
        planes.into_iter().chain(draws.into_iter().flatten().flat_map(Draw::tensors)).collect()
    }

    /// The condition as tokens.
    fn tokens(&self) -> Result<Tensor> {
        Ok(Tape::no_grad().one(Pack, &[&Var::constant(self.cond.clone())])?.value().clone())
    }
}

#[cfg(test)]
impl Prepared {
    /// Changes the latents, which a codec of the host has made: HQ's, which are part 0, and LQ's.
    pub fn change(&mut self, change: impl Fn(u64, &mut [f32])) {
        for (part, planes) in (0..).zip([&mut self.target, &mut self.cond]) {
            let latents = planes.iter().flat_map(|plane| match plane {
                Plane::Latents(values) => values.clone(),
                Plane::Picture(_) => panic!("a picture has no latents yet"),
            });
            let mut latents: Vec<f32> = latents.collect();
            change(part, &mut latents);
            *planes = vec![Plane::Latents(latents)];
        }
    }
}

impl Drawn {
    /// In the order of [`Draw::tensors`].
    fn parts(&self) -> [&[u8]; 3] {
        let [counter, numbers] = [bytemuck::cast_slice(&self.counter), bytemuck::cast_slice(&self.sigma)];
        [counter, numbers, bytemuck::cast_slice(&self.embedding)]
    }
}

/// What a micro-batch leaves on the device.
#[derive(Clone)]
struct Made {
    loss: Tensor,
    preferred: Option<Preferred>,
}

/// What a preference micro-batch leaves besides.
#[derive(Clone)]
struct Preferred {
    rule: Preference,
    gaps: Tensor,
    held: Option<[Tensor; 2]>,
    /// The clean adversarial losers.
    losers: Option<Tensor>,
}

/// What one micro-batch gave: its loss and what to log beside it.
pub(super) struct Micro {
    pub loss: f32,
    pub fields: Vec<(&'static str, f64)>,
    pub preference: Option<Coefficients>,
}

/// What is on its way to the host of one micro-batch.
pub(super) struct Coming {
    rule: Option<Preference>,
    held: bool,
    fields: Vec<(&'static str, f64)>,
}

/// How the next micro-batch is asked for.
enum Form {
    /// Piece by piece: no other was before.
    New,
    /// Piece by piece, or recorded: everything it needs is there.
    Launched,
    /// By a replay.
    Captured(Box<(Graph, Made)>),
}

/// The micro-batches of a stage.
pub(super) struct Micros<'c> {
    context: &'c Context<'c>,
    plan: &'c Plan,
    sampler: &'c Sampler,
    inputs: Inputs,
    feed: Feed,
    numbers: Readback,
    form: Form,
    /// May they be captured?
    capture: bool,
    /// Bytes in use on the device between the last forward pass and its backward.
    kept: Cell<usize>,
    /// What their tapes rewrite.
    #[cfg(test)]
    rewrite: Option<&'c Rewrite<'c>>,
}

impl<'c> Micros<'c> {
    pub fn new(context: &'c Context<'c>, plan: &'c Plan, loader: &Loader<'c>) -> Result<Self> {
        let device = &context.device;
        let mut inputs = Inputs::new(device, &loader.shape(), loader.loser.is_some(), loader.levels.width())?;
        let bytes = inputs.tensors().iter().map(|t| 4 * t.len()).sum();
        Ok(Self {
            context,
            plan,
            sampler: loader.sampler,
            inputs,
            feed: Feed::new(device, bytes)?,
            numbers: Readback::new(device, 3 * loader.batch),
            form: Form::New,
            // A β that is steered changes from step to step and is part of the launches.
            capture: device.gpu().is_some() && !context.steers_beta(plan.stage),
            kept: Cell::default(),
            #[cfg(test)]
            rewrite: None,
        })
    }

    /// Sends a micro-batch on its way to the device, encoded there as far as it is not; [`Micros::next`] computes the oldest.
    pub fn send(&mut self, prepared: &Prepared) -> Result<()> {
        let [target, cond] = [self.sampler.latents(&prepared.target)?, self.sampler.latents(&prepared.cond)?];
        let planes = [bytemuck::cast_slice(&target), bytemuck::cast_slice(&cond)];
        // In the order of `Inputs::tensors`.
        let parts: Vec<&[u8]> =
            planes.into_iter().chain(prepared.draws.iter().flat_map(Drawn::parts)).collect();
        self.feed.send(&parts)
    }

    /// Forward and backward of the micro-batch that was sent first, number `index` of the stage; adds its gradients to
    /// `params`. [`Micros::read`] gives its numbers.
    pub fn next(&mut self, params: &mut ParamSet, index: u64, beta: f32) -> Result<Coming> {
        self.feed.deliver(&mut self.inputs.tensors())?;
        let made = match std::mem::replace(&mut self.form, Form::Launched) {
            Form::Launched if self.capture => {
                let captured = self.context.device.capture(|| self.forward_backward(params, beta))?;
                self.replay(Box::new(captured), params)?
            }
            Form::Captured(captured) => self.replay(captured, params)?,
            _ => self.forward_backward(params, beta)?,
        };
        let mut coming = Coming { rule: None, held: false, fields: Vec::new() };
        let mut wanted = vec![made.loss.clone()];
        if let Some(p) = &made.preferred {
            (coming.rule, coming.held) = (Some(p.rule), p.held.is_some());
            wanted.push(p.gaps.clone());
            wanted.extend(p.held.iter().flatten().cloned());
            if let (Some(losers), 0) = (&p.losers, index % COSINE_EVERY) {
                let cosine = self.riesz_cosine(params, losers, beta)?;
                coming.fields.push(("riesz_cosine", f64::from(cosine)));
            }
        }
        wanted.iter().try_for_each(|t| self.numbers.push(t))?;
        Ok(coming)
    }

    /// Asks for the captured micro-batch, and keeps it for the next.
    fn replay(&mut self, captured: Box<(Graph, Made)>, params: &mut ParamSet) -> Result<Made> {
        captured.0.replay()?;
        params.accumulated();
        let made = captured.1.clone();
        self.form = Form::Captured(captured);
        Ok(made)
    }

    /// A number of the update to be read in turn.
    pub fn push(&mut self, number: &Tensor) -> Result<()> {
        self.numbers.push(number)
    }

    /// The next values that were asked for. Waits until they are here.
    pub fn take(&mut self) -> Result<Vec<f32>> {
        self.numbers.take()?.ok_or_else(|| Error::shape("readback", "nothing was asked for"))
    }

    /// The numbers of a micro-batch, in the order of the calls of [`Micros::next`].
    pub fn read(&mut self, coming: Coming) -> Result<Micro> {
        let loss = self.take()?[0];
        let mut micro = Micro { loss, fields: Vec::new(), preference: None };
        if let Some(rule) = coming.rule {
            let stats = rule.stats(&self.take()?)?;
            micro.fields = stats_fields(&stats);
            micro.preference = Some(Coefficients::of(&stats));
            if coming.held {
                micro.fields.push(("anchor_error", f64::from(self.take()?[0])));
                micro.fields.push(("winner_error", f64::from(self.take()?[0])));
            }
        }
        micro.fields.extend(coming.fields);
        Ok(micro)
    }

    /// Bytes in use on the device when the last forward pass was done.
    pub fn kept(&self) -> usize {
        self.kept.get()
    }

    fn forward_backward(&self, params: &mut ParamSet, beta: f32) -> Result<Made> {
        match self.plan.stage {
            StageName::Asdpo => self.preference(params, beta),
            _ => self.flow(params),
        }
    }

    /// Flow matching towards the target.
    fn flow(&self, params: &mut ParamSet) -> Result<Made> {
        let Inputs { target, winner, .. } = &self.inputs;
        let (cond, noise) = (self.inputs.tokens()?, winner.noise(target.shape())?);
        let (weights, adapters) = self.plan.model(self.context.config, params)?;
        let flux = Flux { config: &self.context.flux, weights: &weights, adapters: &adapters };
        let set = AdapterSet::uniform(self.plan.policy(), target.shape()[0]);
        let tape = self.on(Tape::new(params.leaves()));
        let loss = flow_matching(&flux, &tape, target, &cond, &noise, &winner.levels, set, self.mode())?;
        self.kept.set(self.context.device.stats().live);
        tape.backward(&loss, None)?;
        params.take_back(tape.into_leaves())?;
        Ok(Made { loss: loss.value().clone(), preferred: None })
    }

    fn preference(&self, params: &mut ParamSet, beta: f32) -> Result<Made> {
        let (objective, pairs) = (self.objective(beta), self.pairs()?);
        let (weights, adapters) = self.plan.model(self.context.config, params)?;
        let flux = Flux { config: &self.context.flux, weights: &weights, adapters: &adapters };
        let tape = self.on(Tape::new(params.leaves()));
        let out = as_dpo(&flux, &tape, &objective, &policies(), &pairs, self.mode())?;
        self.kept.set(self.context.device.stats().live);
        tape.backward(&out.loss, None)?;
        params.take_back(tape.into_leaves())?;
        let losers = match objective.adversary {
            Adversary::Lora => out.negative.map(|n| n.x),
            _ => None,
        };
        let preferred = Preferred { rule: out.preference, gaps: out.gaps, held: out.held, losers };
        Ok(Made { loss: out.loss.value().clone(), preferred: Some(preferred) })
    }

    /// The tape of a micro-batch, which a test may have rewritten.
    fn on<'a>(&self, tape: Tape<'a>) -> Tape<'a>
    where
        'c: 'a,
    {
        #[cfg(test)]
        if let Some(f) = self.rewrite {
            return tape.rewriting(f);
        }
        tape
    }

    /// Mean H^s cosine between the LoRA adversary's perturbation of the winners and the Riesz direction.
    fn riesz_cosine(&self, params: &ParamSet, losers: &Tensor, beta: f32) -> Result<f32> {
        let (objective, pairs) = (self.objective(beta), self.pairs()?);
        let (weights, adapters) = self.plan.model(self.context.config, params)?;
        let flux = Flux { config: &self.context.flux, weights: &weights, adapters: &adapters };
        let sigma = &pairs.sigma_winner.sigma;
        let (x_w, target) = noised(&pairs.winner, &pairs.noise_winner, sigma)?;
        // Beside what a captured micro-batch holds: so as to need little.
        let (reference, mode) = (&policies().reference, Mode { recompute: true, ..self.mode() });
        let best = riesz_perturbation(&flux, &objective, reference, &pairs, &x_w, &target, mode)?;
        let difference = Blend { x: Factor::constant(1.0), y: Factor::constant(-1.0) };
        let moved = difference.of(losers, &pairs.winner, sigma)?;
        let cosines = Riesz::new(objective.metric.s).cosine(&moved, &best)?;
        Ok(cosines.iter().sum::<f32>() / cosines.len().max(1) as f32)
    }

    fn mode(&self) -> Mode {
        let o = self.context.config.stage(self.plan.stage);
        Mode { text: Text::Collapsed, recompute: o.recompute }
    }

    fn objective(&self, beta: f32) -> AsDpo {
        let p = &self.context.config.preference;
        AsDpo {
            loser_weight: p.loser_weight,
            anchor: p.anchor,
            sft_mix: p.sft_mix,
            ..AsDpo::new(p.metric(), beta, p.lambda, p.adversary, p.rho)
        }
    }

    fn pairs(&self) -> Result<Pairs> {
        let Inputs { target, cond, winner, loser } = &self.inputs;
        let loser = loser.as_ref().ok_or_else(|| Error::shape("pairs", "a stage without losers has none"))?;
        Ok(Pairs {
            winner: target.clone(),
            loser: cond.clone(),
            cond: self.inputs.tokens()?,
            noise_winner: winner.noise(target.shape())?,
            noise_loser: loser.noise(target.shape())?,
            sigma_winner: winner.levels.clone(),
            sigma_loser: loser.levels.clone(),
        })
    }
}

#[cfg(test)]
impl<'c> Micros<'c> {
    /// From now on tapes rewrite what passes them.
    pub fn rewriting(&mut self, f: &'c Rewrite<'c>) {
        self.rewrite = Some(f);
    }

    /// From now on every micro-batch is launched.
    pub fn without_graphs(&mut self) {
        self.capture = false;
    }

    /// Are micro-batches replayed by now?
    pub fn replays(&self) -> bool {
        matches!(self.form, Form::Captured(_))
    }
}

/// The adapters of each policy, in the order in which [`Plan::model`] lists them: base_sft, train_dpo, adv.
fn policies() -> Policies {
    Policies { policy: vec![0, 1], reference: vec![0], adversary: vec![0, 2] }
}

/// Policy = reference at the first step: every loser's loss is ln 2, to rounding of the mean.
pub(super) fn first_step_is_ln2(micro: &Micro) -> Result<()> {
    let of = |name: &str| micro.fields.iter().find(|f| f.0 == name).map(|f| f.1);
    let Some(data) = of("loss_data") else { return Ok(()) };
    let (loss, losers) = of("loss_adv").map_or((data, 1), |adversarial| (data + adversarial, 2));
    let want = f64::from(losers) * std::f64::consts::LN_2;
    if (loss - want).abs() <= 1e-6 * want {
        return Ok(());
    }
    let detail = format!(
        "the first loss is {loss}, but policy and reference are equal: it must be {want} ({losers}·ln 2)"
    );
    Err(Error::shape("asdpo", detail))
}

fn stats_fields(s: &Stats) -> Vec<(&'static str, f64)> {
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
    fields
}
