//! `asdpo_step` and `adversary_step`: whole optimizer steps of the reference's two stages.

use super::arithmetic::{Model, Run};
use super::fixture::Fixture;
use crate::Result;
use crate::autograd::{ParamSet, Tape, Var};
use crate::engine::Tensor;
use crate::flux::lora::AdapterFile;
use crate::flux::params::{Adapter, adapter_params};
use crate::flux::schedule::sigma_of;
use crate::losses::flow_matching::noised;
use crate::ops::AdapterSet;
use crate::ops::adamw::{AdamW, Gradients};
use crate::ops::embed::NoiseLevels;
use crate::ops::patch::Pack;
use crate::ops::sobolev::{Metric, Spectrum, Weight};
use crate::train::objective::{
    Adversary, AsDpo, Mode, Outcome, Pairs, Policies, Text, as_dpo, flow_matching, velocity,
};

use std::collections::BTreeSet;

const MODE: Mode = Mode { text: Text::Collapsed, recompute: false };
const REFERENCE_QUIRK: &str =
    "the reference also clips by, and accumulates, the frozen base_sft adapter's gradients";

/// Training knows the reference's default attention only.
fn plain_attention(f: &Fixture) -> Result<()> {
    match f.group_bias()? {
        None => Ok(()),
        Some(_) => Err(f.error("recorded with attention masks, which training does not offer")),
    }
}

fn scale_of(file: &AdapterFile) -> f32 {
    file.modules.values().next().map_or(1.0, |m| m.scaling())
}

fn adamw(f: &Fixture) -> Result<(AdamW, f32)> {
    let n = |at: &str| f.number(&format!("/optimizer/{at}")).map(|v| v as f32);
    let opt = AdamW {
        beta1: n("betas/0")?,
        beta2: n("betas/1")?,
        eps: n("eps")?,
        weight_decay: n("weight_decay")?,
    };
    Ok((opt, n("max_grad_norm")?))
}

/// Compares the gradients of `adapter` in `params` under `prefix`, and then `norms`, of which each is that of no other
/// gradients but these and perhaps base_sft's.
fn check_grads(
    f: &mut Fixture,
    prefix: &str,
    adapter: &str,
    params: &ParamSet,
    norms: [(&str, f32); 2],
) -> Result<()> {
    let (mut off, mut size) = (0.0, 0.0);
    for name in f.names() {
        let Some(rest) = name.strip_prefix(&format!("{prefix}transformer.")) else { continue };
        let id = params
            .find(&format!("{adapter}.{rest}"))
            .ok_or_else(|| f.error(format!("{name}: no such parameter")))?;
        let (got, want) = (params.grad(id.0).values()?, f.f32s(&name)?);
        f.check(&name, &got)?;
        for (got, want) in got.iter().zip(&want) {
            off += f64::from(got - want).powi(2);
            size += f64::from(*want).powi(2);
        }
    }
    norms.into_iter().try_for_each(|(name, norm)| f.check_sum(name, &[norm], (off / size).sqrt()))
}

fn check_weights(
    f: &mut Fixture,
    prefix: &str,
    grads: &str,
    adapter: &str,
    params: &ParamSet,
    lr: f64,
) -> Result<()> {
    for name in f.names() {
        let Some(rest) = name.strip_prefix(&format!("{prefix}transformer.")) else { continue };
        let id = params
            .find(&format!("{adapter}.{rest}"))
            .ok_or_else(|| f.error(format!("{name}: no such parameter")))?;
        let grad = format!("{grads}transformer.{rest}");
        f.check_adamw(&name, &params.master(id.0).values()?, &grad, params.updates == 2, lr)?;
    }
    Ok(())
}

pub(super) fn adversary(f: &mut Fixture, run: &Run) -> Result<()> {
    let (device, model) = (run.device, Model::open(f, run)?);
    let (x, noise) = (f.tensor("in.latents", device)?, f.tensor("in.noise", device)?);
    let cond = f.tensor("in.cond", device)?;
    plain_attention(f)?;
    let sigma: Vec<f32> = f.f32s("in.u")?.into_iter().map(sigma_of).collect();
    let batch = sigma.len();
    f.check("out.sigmas", &sigma)?;
    f.check("out.timesteps", &sigma.iter().map(|s| s * 1000.0).collect::<Vec<_>>())?;
    let sigma = NoiseLevels::new(device, &sigma)?;
    let (noisy, target) = noised(&x, &noise, &sigma.sigma)?;
    f.check("out.noisy", &noisy.values()?)?;
    f.check("out.target_v", &target.values()?)?;

    let (sft, adv) = (f.adapter("base_sft", device)?, f.adapter("adv", device)?);
    let (opt, max_norm) = adamw(f)?;
    let pass = |params: &mut ParamSet, also_sft: bool| -> Result<[Tensor; 2]> {
        let sft = match also_sft {
            true => Adapter::trainable("base_sft", scale_of(&sft), params)?,
            false => run.frozen(&sft, 1.0)?,
        };
        let adapters = [sft, Adapter::trainable("adv", scale_of(&adv), params)?];
        let flux = model.flux(&adapters);
        let set = || AdapterSet::uniform(vec![0, 1], batch);
        let tape = model.on(Tape::new(params.leaves()));
        let x_sigma = Var::constant(noisy.clone());
        let v = velocity(&flux, &tape.aside(), &x_sigma, &cond, &sigma, set(), MODE)?;
        let loss = flow_matching(&flux, &tape, &x, &cond, &noise, &sigma, set(), MODE)?;
        tape.backward(&loss, None)?;
        params.take_back(tape.into_leaves())?;
        Ok([v.value().clone(), loss.value().clone()])
    };
    let mut both = adapter_params(device, &[&sft, &adv])?;
    run.train(&mut both, |params| pass(params, true))?;
    let mut params = adapter_params(device, &[&adv])?;
    let [pred, loss] = run.train(&mut params, |params| pass(params, false))?;
    f.check("out.pred", &pred.values()?)?;
    f.check_mse("out.loss", &loss.values()?, &pred, "out.pred", &target)?;
    let norms = [("out.norm_ref", both.grad_norm()?), ("out.norm_adv", params.grad_norm()?)];
    check_grads(f, "grad.", "adv", &params, norms)?;
    let lr = f.number("/lr")?;
    params.step(&opt, lr as f32, Gradients::of_one(max_norm), |_| true)?;
    check_weights(f, "intended.adv.", "grad.", "adv", &params, lr)?;
    f.leave_out(REFERENCE_QUIRK, |n| n.starts_with("ref."));
    Ok(())
}

pub(super) fn asdpo(f: &mut Fixture, run: &Run) -> Result<()> {
    let (device, model) = (run.device, Model::open(f, run)?);
    plain_attention(f)?;
    let b = f.number("/half_bsz")? as usize;
    let (x, noise) = (f.tensor("in.latents", device)?, f.tensor("in.noise", device)?);
    let sigma: Vec<f32> = f.f32s("in.u")?.into_iter().map(sigma_of).collect();
    f.check("mid.sigmas", &sigma)?;
    f.check("mid.timesteps", &sigma.iter().map(|s| s * 1000.0).collect::<Vec<_>>())?;
    let (noisy, target) = noised(&x, &noise, &Tensor::from_slice(device, &[2 * b], &sigma)?)?;
    f.check("mid.noisy_latents", &noisy.values()?)?;
    f.check("mid.target", &target.values()?)?;
    let packed = Tape::no_grad().one(Pack, &[&Var::constant(noisy)])?;
    f.check("mid.packed_noisy_latents", &packed.value().values()?)?;
    let pairs = Pairs {
        winner: x.rows(0..b)?,
        loser: x.rows(b..2 * b)?,
        cond: f.tensor("in.cond", device)?,
        noise_winner: noise.rows(0..b)?,
        noise_loser: noise.rows(b..2 * b)?,
        sigma_winner: NoiseLevels::new(device, &sigma[..b])?,
        sigma_loser: NoiseLevels::new(device, &sigma[b..])?,
    };
    let variants: Vec<String> =
        f.value("/variants")?.as_object().map(|o| o.keys().cloned().collect()).unwrap_or_default();
    for name in &variants {
        variant(f, run, &model, &pairs, name)?;
    }
    f.leave_out(REFERENCE_QUIRK, |n| n.contains(".ref."));
    if f.in_bf16() {
        f.leave_out("a share of signs jumps where an argument is nearly 0", |n| n.contains(".implicit_acc"));
    }
    Ok(())
}

fn variant(f: &mut Fixture, run: &Run, model: &Model, pairs: &Pairs, name: &str) -> Result<()> {
    let device = run.device;
    let number = |f: &Fixture, key: &str| f.number(&format!("/variants/{name}/{key}"));
    let use_adv = f.value(&format!("/variants/{name}"))?["use_adv"].as_bool().unwrap_or(true);
    let metric = Metric { s: number(f, "s")?, spectrum: Spectrum::Half, weight: Weight::Raw };
    let adversary = if use_adv { Adversary::Lora } else { Adversary::None };
    let objective = AsDpo::new(metric, number(f, "beta")? as f32, number(f, "lam")? as f32, adversary, 0.0);
    let (sft, adv) = (f.adapter("base_sft", device)?, f.adapter("adv", device)?);
    let mut dpo = f.adapter("train_dpo", device)?;
    // The files hold B as drawn with a scale of 0.3.
    let b_scale = (number(f, "b_scale")? / 0.3) as f32;
    for m in dpo.modules.values_mut() {
        let scaled: Vec<f32> = m.b.values()?.iter().map(|v| v * b_scale).collect();
        m.b = Tensor::from_slice(device, m.b.shape(), &scaled)?;
    }
    // `also_sft`: with the gradients of base_sft too, which only the reference's clip norm looks at.
    let pass = |params: &mut ParamSet, also_sft: bool| -> Result<Outcome> {
        let sft = match also_sft {
            true => Adapter::trainable("base_sft", scale_of(&sft), params)?,
            false => run.frozen(&sft, 1.0)?,
        };
        let adapters =
            [sft, Adapter::trainable("train_dpo", scale_of(&dpo), params)?, run.frozen(&adv, 1.0)?];
        let flux = model.flux(&adapters);
        let policies = Policies { policy: vec![0, 1], reference: vec![0], adversary: vec![0, 2] };
        let tape = model.on(Tape::new(params.leaves()));
        let out = as_dpo(&flux, &tape, &objective, &policies, pairs, MODE)?;
        tape.backward(&out.loss, None)?;
        params.take_back(tape.into_leaves())?;
        Ok(out)
    };
    let mut both = adapter_params(device, &[&sft, &dpo])?;
    run.train(&mut both, |params| pass(params, true))?;
    let mut params = adapter_params(device, &[&dpo])?;
    let out = run.train(&mut params, |params| pass(params, false))?;
    predictions(f, name, model, pairs, &out, &objective)?;
    let [with_sft, own] = ["ref", "train_dpo"].map(|whose| format!("{name}.grad_norm_{whose}"));
    let norms = [(&*with_sft, both.grad_norm()?), (&*own, params.grad_norm()?)];
    check_grads(f, &format!("{name}.grad."), "train_dpo", &params, norms)?;

    let (opt, max_norm) = adamw(f)?;
    let grads = format!("{name}.grad.");
    // Learning rates there are weights for: `<variant>.intended.lr<rate>[_step2].transformer.…`.
    let rates: BTreeSet<String> = f
        .names()
        .iter()
        .filter_map(|n| n.strip_prefix(&format!("{name}.intended.lr"))?.split_once(".transformer"))
        .map(|(rate, _)| rate.trim_end_matches("_step2").to_owned())
        .collect();
    for lr in rates {
        let rate: f64 =
            lr.parse().map_err(|_| f.error(format!("{name}.intended.lr{lr} names no learning rate")))?;
        let prefix = format!("{name}.intended.lr{lr}.");
        let second_prefix = format!("{name}.intended.lr{lr}_step2.");
        let has_second = f.names().iter().any(|n| n.starts_with(&second_prefix));
        let mut stepped = adapter_params(device, &[&dpo])?;
        stepped.set_grads(&params.grads()?)?;
        stepped.step(&opt, rate as f32, Gradients::of_one(max_norm), |_| true)?;
        check_weights(f, &prefix, &grads, "train_dpo", &stepped, rate)?;
        if has_second {
            let second = run.train(&mut stepped, |params| pass(params, false))?;
            let own = format!("{name}.intended.loss_step2");
            f.check_as(&own, &tolerance_of_loss(f, name, &own), &second.loss.value().values()?)?;
            let norm = stepped.grad_norm()?;
            f.check(&format!("{name}.intended.grad_norm_step2"), &[norm])?;
            stepped.step(&opt, rate as f32, Gradients::of_one(max_norm), |_| true)?;
            check_weights(f, &second_prefix, &grads, "train_dpo", &stepped, rate)?;
        }
    }
    Ok(())
}

/// Which recorded tolerance holds for the second step's loss. A tolerance is a multiple of the recorder's gap between f32
/// and f64, which of one number is one draw of a rounding noise, and by chance may be next to nothing. The same loss was
/// recorded twice, after the intended and after the reference's own update: the larger draw holds for both.
fn tolerance_of_loss(f: &Fixture, variant: &str, own: &str) -> String {
    let twin = format!("{variant}.ref.loss_step2");
    if f.tolerance(&twin) > f.tolerance(own) { twin } else { own.to_owned() }
}

/// Everything the step computed on its way to the loss.
fn predictions(
    f: &mut Fixture,
    name: &str,
    model: &Model,
    pairs: &Pairs,
    out: &Outcome,
    objective: &AsDpo,
) -> Result<()> {
    let at = |what: &str| format!("{name}.{what}");
    let b = pairs.sigma_winner.len();
    f.check(&at("model_pred"), &out.v_policy.values()?)?;
    f.check(&at("ref_pred"), &out.v_reference.values()?)?;
    if let (Some(v), Some(n)) = (&out.v_adversary, &out.negative) {
        f.check(&at("adv_pred"), &v.values()?)?;
        f.check(&at("x1_hat_a"), &n.x.values()?)?;
        f.check(&at("noisy_latents_adv"), &n.x_sigma.values()?)?;
        f.check(&at("target_adv"), &n.target.values()?)?;
        // The adversary's clean estimate x_σ − σ·v = x + σ·(v* − v).
        let stride = pairs.winner.stride0();
        let (x, e, v) = (pairs.winner.values()?, pairs.noise_winner.values()?, v.values()?);
        let sigma = pairs.sigma_winner.sigma.values()?;
        let estimate: Vec<f32> =
            (0..x.len()).map(|i| x[i] + sigma[i / stride] * (e[i] - x[i] - v[i])).collect();
        f.check(&at("x1_adv"), &estimate)?;
    }
    // Energies of the residuals: gaps to a reference that hits the target.
    let energies = |v: &Tensor, target: &Tensor| -> Result<Vec<f32>> {
        let target = Var::constant(target.clone());
        model
            .on(Tape::no_grad())
            .one(objective.gap.clone(), &[&Var::constant(v.clone()), &target, &target])?
            .value()
            .values()
    };
    for (who, v) in [("model", &out.v_policy), ("ref", &out.v_reference)] {
        let e = energies(v, &out.target)?;
        // What the velocity's error could do to each: (r + e)² is off from r² by 2⟨r, e⟩.
        let errors = energies(v, &f.tensor(&at(&format!("{who}_pred")), v.device())?)?;
        let most: Vec<f64> = e.iter().zip(errors).map(|(e, d)| 2.0 * f64::from(e * d).sqrt()).collect();
        let off = |part: std::ops::Range<usize>| {
            let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|v| v * v).sum::<f64>().sqrt();
            norm(&mut most[part.clone()].iter().copied()) / norm(&mut e[part].iter().map(|&e| f64::from(e)))
        };
        for (i, stream) in ["win", "loss_data", "loss_adv"].iter().enumerate().take(e.len() / b) {
            let part = i * b..(i + 1) * b;
            f.check_sum(&at(&format!("loss_{who}_{stream}")), &e[part.clone()], off(part))?;
        }
        f.check_sum(&at(&format!("{who}_losses")), &e, off(0..e.len()))?;
        let sum = e.iter().map(|&e| f64::from(e)).sum::<f64>();
        let (mean, off) = ((sum / e.len() as f64) as f32, most.iter().sum::<f64>() / sum);
        f.check_sum(&at(&format!("raw_{who}_loss")), &[mean], off)?;
    }
    let s = &out.stats()?;
    let arguments = &s.arguments;
    for (i, argument) in arguments.chunks(b).enumerate() {
        let key =
            if f.has(&at("inside_term")) { at("inside_term") } else { at(&format!("inside_term_{}", i + 1)) };
        f.check(&key, argument)?;
    }
    f.check(&at("loss_dpo_data"), &[s.loss_data])?;
    f.check(&at("loss_dpo_adv"), &[s.loss_adv.unwrap_or(0.0)])?;
    f.check(&at("loss"), &out.loss.value().values()?)?;
    let share = |of: &dyn Fn(f32) -> bool| {
        arguments.iter().filter(|&&a| of(a)).count() as f32 / arguments.len() as f32
    };
    if f.in_bf16() {
        return Ok(());
    }
    f.check(&at("implicit_acc"), &[s.implicit_accuracy])?;
    f.check(&at("implicit_acc_lenient"), &[share(&|a| a >= 0.0)])
}
