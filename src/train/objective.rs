//! The objectives as one forward pass each: from latents and noise to a loss on the tape.
//!
//! An AS-DPO step is (i) one no-grad adversary forward on the winners, (ii) the synthesis of the adversarial losers,
//! (iii) one no-grad forward of the reference on winners, dataset losers and adversarial losers, and one of the policy,
//! on the tape. The two are passes of their own, not halves of one: what a pass keeps for backward are whole tensors,
//! and the reference's samples would be kept beside the policy's.

use crate::autograd::{Leaves, Tape, Var};
use crate::engine::Tensor;
use crate::flux::transformer::{Flux, Inputs, TEXT_TOKENS, grid_ids};
use crate::losses::anchor::Anchor;
use crate::losses::dpo::{Preference, Stats};
use crate::losses::flow_matching::noised;
use crate::losses::riesz::Riesz;
use crate::ops::blend::{Blend, Factor};
use crate::ops::embed::NoiseLevels;
use crate::ops::negative::CoupledNegative;
use crate::ops::patch::{Pack, Unpack};
use crate::ops::reduce::{Mean, MeanSquare};
use crate::ops::sobolev::{Metric, SobolevGap, Spectrum};
use crate::ops::{AdapterSet, dims4};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// How the 512 equal text tokens of training are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Text {
    /// One token whose key counts 512 times: the same result.
    Collapsed,
    /// All of them, as the reference does.
    Full,
}

/// How the model is run in training.
#[derive(Clone, Copy, Debug)]
pub struct Mode {
    /// Text tokens.
    pub text: Text,
    /// Recompute blocks in backward.
    pub recompute: bool,
}

/// Velocity `[B, C, H, W]` of noisy latents `x` `[B, C, H, W]` under condition tokens `cond` `[B, N, 4C]`: zero text,
/// guidance 0.
pub fn velocity<'a>(
    flux: &'a Flux<'a>,
    tape: &Tape<'a>,
    x: &Var,
    cond: &Tensor,
    sigma: &NoiseLevels,
    adapters: AdapterSet,
    mode: Mode,
) -> Result<Var> {
    let [batch, _, height, width] = dims4("velocity", "the noisy latents", x.value())?;
    let device = x.value().device();
    let (txt, multiplicity) = match mode.text {
        Text::Collapsed => (1, TEXT_TOKENS),
        Text::Full => (TEXT_TOKENS, 1),
    };
    let inputs = Inputs {
        img: tape.one(Pack, &[x])?,
        cond: Some(Var::constant(cond.clone())),
        txt: Var::constant(Tensor::zeros(device, &[batch, txt, flux.config.joint_attention_dim])?),
        pooled: Var::constant(Tensor::zeros(device, &[batch, flux.config.pooled_projection_dim])?),
        same_text: true,
        sigma: sigma.clone(),
        guidance: vec![0.0; batch],
        img_ids: grid_ids(height / 2, width / 2),
        txt_ids: vec![[0.0; 3]; txt].into(),
        text_multiplicity: multiplicity as f32,
        groups: None,
        adapters: Arc::new(adapters),
        adapt_all: false,
        recompute: mode.recompute,
    };
    tape.one(Unpack { height, width }, &[&flux.forward(tape, &inputs)?])
}

/// Flow matching: the mean over the batch of the mean squared error between velocity and `ε − x`.
#[allow(clippy::too_many_arguments, reason = "model, tape, data, noise and how to run them")]
pub fn flow_matching<'a>(
    flux: &'a Flux<'a>,
    tape: &Tape<'a>,
    x: &Tensor,
    cond: &Tensor,
    noise: &Tensor,
    sigma: &NoiseLevels,
    adapters: AdapterSet,
    mode: Mode,
) -> Result<Var> {
    let (x_sigma, target) = noised(x, noise, &sigma.sigma)?;
    let v = velocity(flux, tape, &Var::constant(x_sigma), cond, sigma, adapters, mode)?;
    let per_sample = tape.one(MeanSquare, &[&v, &Var::constant(target)])?;
    tape.one(Mean, &[&per_sample])
}

/// Where adversarial losers come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Adversary {
    /// The trained adversary (AMG).
    Lora,
    /// The closed form of the paper's Eq. 19.
    Riesz,
    /// Dataset losers only (S-DPO).
    None,
}

/// The preference objective's constants.
#[derive(Clone)]
pub struct AsDpo {
    /// Measures residuals; its plans and weights are made once per plane size.
    pub gap: SobolevGap,
    /// Its metric.
    pub metric: Metric,
    /// β/2.
    pub beta_eff: f32,
    /// Share λ of the adversary's estimate in its loser.
    pub lambda: f32,
    /// Where adversarial losers come from.
    pub adversary: Adversary,
    /// Radius ρ of the Riesz perturbation, in units of √E_s.
    pub rho: f32,
    /// Weight of the losers' gaps against the winner's; 1 in the paper.
    pub loser_weight: f32,
    /// Weight of the distance to the reference; 0 in the paper.
    pub anchor: f32,
    /// Weight of flow matching on the winners; 0 in the paper.
    pub sft_mix: f32,
}

impl AsDpo {
    /// The paper's objective with these constants. The reference's half spectrum is plain MSE at s = 0; so is this one's.
    pub fn new(mut metric: Metric, beta: f32, lambda: f32, adversary: Adversary, rho: f32) -> Self {
        if metric.s == 0.0 {
            metric.spectrum = Spectrum::Full;
        }
        Self {
            gap: SobolevGap::new(metric),
            metric,
            beta_eff: 0.5 * beta,
            lambda,
            adversary,
            rho,
            loser_weight: 1.0,
            anchor: 0.0,
            sft_mix: 0.0,
        }
    }
}

/// The adapters of each policy, as indices into [`Flux::adapters`].
#[derive(Clone, Debug)]
pub struct Policies {
    /// Reference + the adapter being trained.
    pub policy: Vec<usize>,
    /// The frozen reference.
    pub reference: Vec<usize>,
    /// Reference + adversary.
    pub adversary: Vec<usize>,
}

/// Pairs and their noise. Latents `[b, C, H, W]`, condition tokens `[b, N, 4C]`.
pub struct Pairs {
    /// HQ.
    pub winner: Tensor,
    /// LQ, resized.
    pub loser: Tensor,
    /// Condition.
    pub cond: Tensor,
    /// ε of the winners (and of their adversarial losers).
    pub noise_winner: Tensor,
    /// ε of the dataset losers.
    pub noise_loser: Tensor,
    /// σ of the winners.
    pub sigma_winner: NoiseLevels,
    /// σ of the dataset losers.
    pub sigma_loser: NoiseLevels,
}

/// What a step computed. Batches of `streams·b`: winners, dataset losers, adversarial losers (if any).
pub struct Outcome {
    /// The loss.
    pub loss: Var,
    /// The gaps of all pairs, of which [`Preference::stats`] makes what the log says.
    pub gaps: Tensor,
    /// The preference part of the loss.
    pub preference: Preference,
    /// Mean squared distances of the policy to the reference and of its winners to their targets, each a scalar, where
    /// one of them is in the loss.
    pub held: Option<[Tensor; 2]>,
    /// The policy's velocities.
    pub v_policy: Tensor,
    /// The reference's velocities.
    pub v_reference: Tensor,
    /// Target velocities.
    pub target: Tensor,
    /// The adversary's velocity at the winners, if there is a LoRA adversary.
    pub v_adversary: Option<Tensor>,
    /// Clean adversarial losers and their noisy latents, if any.
    pub negative: Option<Negative>,
}

impl Outcome {
    /// What the log says of the preference losses. Waits for the device.
    pub fn stats(&self) -> Result<Stats> {
        self.preference.stats(&self.gaps.values()?)
    }
}

/// A synthesised loser.
pub struct Negative {
    /// Clean latents x^a.
    pub x: Tensor,
    /// Noisy latents, with the winner's ε and σ.
    pub x_sigma: Tensor,
    /// Target velocity.
    pub target: Tensor,
}

/// One AS-DPO forward, whose policy pass is recorded on `tape`.
pub fn as_dpo<'a>(
    flux: &'a Flux<'a>,
    tape: &Tape<'a>,
    objective: &AsDpo,
    policies: &Policies,
    pairs: &Pairs,
    mode: Mode,
) -> Result<Outcome> {
    let b = pairs.winner.shape()[0];
    let (sigma_w, sigma_l) = (&pairs.sigma_winner, &pairs.sigma_loser);
    let (x_w, target_w) = noised(&pairs.winner, &pairs.noise_winner, &sigma_w.sigma)?;
    let (x_l, target_l) = noised(&pairs.loser, &pairs.noise_loser, &sigma_l.sigma)?;

    let mut v_adversary = None;
    let negative = match objective.adversary {
        Adversary::None => None,
        Adversary::Lora => {
            let set = AdapterSet::uniform(policies.adversary.clone(), b);
            let x = Var::constant(x_w.clone());
            let v = velocity(flux, &tape.aside(), &x, &pairs.cond, sigma_w, set, mode)?;
            let v = v.value().clone();
            let negative = coupled(objective.lambda, &pairs.winner, &x_w, &target_w, &v, &sigma_w.sigma)?;
            v_adversary = Some(v);
            Some(negative)
        }
        Adversary::Riesz => {
            let delta =
                riesz_perturbation(flux, objective, &policies.reference, pairs, &x_w, &target_w, mode)?;
            Some(perturbed(&pairs.winner, &x_w, &target_w, &delta, &sigma_w.sigma)?)
        }
    };

    let mut x = vec![&x_w, &x_l];
    let mut target = vec![&target_w, &target_l];
    let mut sigma = vec![sigma_w, sigma_l];
    if let Some(n) = &negative {
        x.push(&n.x_sigma);
        target.push(&n.target);
        sigma.push(sigma_w);
    }
    let streams = x.len();
    let x = Var::constant(Tensor::stack(&x)?);
    let cond = Tensor::stack(&vec![&pairs.cond; streams])?;
    let sigma = NoiseLevels::stack(&sigma)?;
    let set = |of: &[usize]| AdapterSet::uniform(of.to_vec(), streams * b);
    let reference = velocity(flux, &tape.aside(), &x, &cond, &sigma, set(&policies.reference), mode)?;
    let v = velocity(flux, tape, &x, &cond, &sigma, set(&policies.policy), mode)?;
    let target = Tensor::stack(&target)?;
    let (v_reference, wanted) = (reference.value().clone(), Var::constant(target.clone()));
    let gaps = tape.one(objective.gap.clone(), &[&v, &reference, &wanted])?;
    let preference = Preference {
        loser_weight: objective.loser_weight,
        ..Preference::new(objective.beta_eff, streams - 1)
    };
    let mut loss = tape.one(preference, &[&gaps])?;
    let mut held = None;
    if objective.anchor > 0.0 || objective.sft_mix > 0.0 {
        let anchor = Anchor { reference: objective.anchor, flow_matching: objective.sft_mix, winners: b };
        held = Some(anchor.errors(v.value(), &v_reference, &target)?);
        loss = tape.one(anchor, &[&v, &reference, &wanted, &loss])?;
    }
    Ok(Outcome {
        loss,
        gaps: gaps.value().clone(),
        preference,
        held,
        v_policy: v.value().clone(),
        v_reference,
        target,
        v_adversary,
        negative,
    })
}

impl AsDpo {
    /// Winner and losers per pair.
    pub fn streams(&self) -> usize {
        if self.adversary == Adversary::None { 2 } else { 3 }
    }
}

fn coupled(
    lambda: f32,
    x: &Tensor,
    x_sigma: &Tensor,
    target: &Tensor,
    v: &Tensor,
    sigma: &Tensor,
) -> Result<Negative> {
    let inputs = [x, x_sigma, target, v, sigma].map(|t| Var::constant(t.clone()));
    let out = Tape::no_grad().apply(CoupledNegative { lambda }, &inputs.iter().collect::<Vec<_>>())?;
    let [x_sigma, target, x]: [Var; 3] =
        out.try_into().map_err(|_| Error::shape("coupled_negative", "gave other than three outputs"))?;
    Ok(Negative { x: x.value().clone(), x_sigma: x_sigma.value().clone(), target: target.value().clone() })
}

/// `t + factor·delta`, sample by sample.
fn moved(t: &Tensor, delta: &Tensor, sigma: &Tensor, factor: Factor) -> Result<Tensor> {
    Blend { x: Factor::constant(1.0), y: factor }.of(t, delta, sigma)
}

/// The loser at `x + δ` with the winner's noise.
fn perturbed(
    x: &Tensor,
    x_sigma: &Tensor,
    target: &Tensor,
    delta: &Tensor,
    sigma: &Tensor,
) -> Result<Negative> {
    Ok(Negative {
        x: moved(x, delta, sigma, Factor::constant(1.0))?,
        x_sigma: moved(x_sigma, delta, sigma, Factor::REST)?,
        target: moved(target, delta, sigma, Factor::constant(-1.0))?,
    })
}

/// δ* of the frozen reference: `g = (1−σ)·Jᵀr + r`, r its residual at the winner, J its Jacobian in x_σ.
pub fn riesz_perturbation<'a>(
    flux: &'a Flux<'a>,
    objective: &AsDpo,
    reference: &[usize],
    pairs: &Pairs,
    x_w: &Tensor,
    target_w: &Tensor,
    mode: Mode,
) -> Result<Tensor> {
    let b = x_w.shape()[0];
    let tape = Tape::new(Leaves::default());
    let x = tape.input(x_w.clone());
    let set = AdapterSet::uniform(reference.to_vec(), b);
    let v = velocity(flux, &tape, &x, &pairs.cond, &pairs.sigma_winner, set, mode)?;
    let sigma = &pairs.sigma_winner.sigma;
    let r = moved(v.value(), target_w, sigma, Factor::constant(-1.0))?;
    tape.backward(&v, Some(r.clone()))?;
    let jr = tape.grad(&x).ok_or_else(|| Error::shape("riesz", "the reference gave no gradient"))?;
    let g = moved(&r, &jr, sigma, Factor::REST)?;
    Riesz::new(objective.metric.s).direction(&g, &vec![objective.rho; b])
}
