//! Rounding policies: which tensors of a preference step are bf16, emulated in f32 arithmetic on the CPU by a tape that
//! rewrites what passes it, and what such a step gives.
//!
//! Rounded is what an op of the engine writes, not what it has inside: the emulation is kinder to every policy than
//! kernels are, above all to the naive one, whose reference implementation rounds between the pieces of an op too.

use asasr_engine::Result;
use asasr_engine::autograd::tape::Seen;
use asasr_engine::autograd::{ParamSet, Tape};
use asasr_engine::engine::{Device, Tensor};
use asasr_engine::flux::config::FluxConfig;
use asasr_engine::flux::lora::AdapterFile;
use asasr_engine::flux::params::{Adapter, Weights};
use asasr_engine::flux::transformer::Flux;
use asasr_engine::ops::sobolev::SobolevGap;
use asasr_engine::ops::{Op, Save};
use asasr_engine::train::objective::{AsDpo, Mode, Pairs, Policies, Text, as_dpo};
use half::bf16;

/// What a tensor is to the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Packed latents, on the way into the embedder.
    Input,
    /// Embeddings of times, and modulation tables.
    Table,
    /// The residual stream.
    Residual,
    /// What LayerNorm and modulation make of it.
    Normed,
    /// Queries, keys and values as projected.
    Projected,
    /// Queries and keys after norm and rotation.
    Rotated,
    /// What attention gives.
    Attended,
    /// The MLP's inside.
    Hidden,
    /// The velocity, and its gradient.
    Velocity,
    /// The energies, subtracted as they are.
    Energy,
    /// Gradients of activations beside the residual stream.
    Gradient,
    /// Gradients of the residual stream.
    ResidualGradient,
    /// Gradients of parameters and tables.
    ParameterGradient,
}
use Class::*;

/// What the public reference rounds, under autocast: everything.
pub const NAIVE: &[Class] = &[
    Input,
    Table,
    Residual,
    Normed,
    Projected,
    Rotated,
    Attended,
    Hidden,
    Velocity,
    Energy,
    Gradient,
    ResidualGradient,
    ParameterGradient,
];
/// Everything that the model hands from op to op; velocity, gap and what the optimizer reads are f32.
pub const INSIDE: &[Class] =
    &[Input, Table, Residual, Normed, Projected, Rotated, Attended, Hidden, Gradient, ResidualGradient];
/// What the engine rounds: that, but for the residual stream and the modulation tables.
pub const ENGINE: &[Class] = &[Input, Normed, Projected, Rotated, Attended, Hidden, Gradient];

/// `v` as bf16 has it.
pub fn rounded(v: f32) -> f32 {
    bf16::from_f32(v).to_f32()
}

fn round(t: &Tensor) -> Result<Tensor> {
    let values: Vec<f32> = t.f32().iter().map(|&v| rounded(v)).collect();
    Tensor::from_slice(t.device(), t.shape(), &values)
}

/// The class of what the tape has seen; `None` where it is but moved. Roles are told apart by shapes: an embedder is
/// what reads tokens of another width than the stream's.
fn class(config: &FluxConfig, seen: &Seen, t: &Tensor) -> Option<Class> {
    let outside = [config.in_channels, config.joint_attention_dim];
    Some(match *seen {
        Seen::Output { op: "concat", inputs } if inputs[0].width() == t.width() => Input,
        Seen::Output { op: "linear", inputs } => match t.shape() {
            [_, _] => Table,
            [.., width] if *width == config.out_dim() => Velocity,
            _ if outside.contains(&inputs[0].width()) => Residual,
            _ if inputs.get(3).is_some_and(|i| i.shape().len() == 3) => Residual,
            [.., width] if *width == config.dim() => Projected,
            _ => Hidden,
        },
        Seen::Output { op: "silu", .. } => Table,
        Seen::Output { op: "ln_modulate", .. } => Normed,
        Seen::Output { op: "qk_norm_rope", .. } => Rotated,
        Seen::Output { op: "attention", .. } => Attended,
        Seen::Output { op: "sobolev_gap", .. } => Energy,
        Seen::Output { .. } => return None,
        Seen::Gradient { op: "sobolev_gap" | "unpack", .. } => Velocity,
        Seen::Gradient { op: "preference", .. } => return None,
        Seen::Gradient { op: "ln_modulate", input: 0 } => ResidualGradient,
        Seen::Gradient { op: "linear", input: 3 } if t.shape().len() == 3 => ResidualGradient,
        Seen::Gradient { op: "linear" | "ln_modulate" | "qk_norm_rope", input: 1.. } => ParameterGradient,
        Seen::Gradient { .. } => Gradient,
    })
}

/// Rounds what is of the classes `rounds`.
fn rewrite(
    config: &FluxConfig,
    gap: &SobolevGap,
    rounds: &[Class],
    seen: &Seen,
    mut t: Tensor,
) -> Result<Tensor> {
    let Some(class) = class(config, seen, &t).filter(|c| rounds.contains(c)) else { return Ok(t) };
    match seen {
        Seen::Output { inputs: [v, reference, target], .. } if class == Energy => {
            // An energy is the gap to a residual of 0.
            let energy = |v: &Tensor| -> Result<Vec<f32>> {
                let e = gap.forward(&[v, target, target], &mut Save::nothing())?;
                Ok(e[0].f32().iter().map(|&e| rounded(e)).collect())
            };
            let pairs = energy(v)?.into_iter().zip(energy(reference)?);
            let gaps: Vec<f32> = pairs.map(|(policy, reference)| rounded(policy - reference)).collect();
            Tensor::from_slice(t.device(), t.shape(), &gaps)
        }
        Seen::Output { .. } => round(&t),
        Seen::Gradient { .. } => {
            // In place: it may be a part of the arena.
            t.f32_mut().iter_mut().for_each(|v| *v = rounded(*v));
            Ok(t)
        }
    }
}

/// The weights on `device` in f32, matrices as bf16 has them: a model as FLUX.1 is published.
pub fn rounded_matrices(weights: &Weights, device: &Device) -> Result<Weights> {
    let values = |(name, t): (&str, &Tensor)| {
        let mut values = t.values()?;
        if t.shape().len() == 2 {
            values.iter_mut().for_each(|v| *v = rounded(*v));
        }
        Ok((name.to_owned(), t.shape().to_vec(), values))
    };
    Weights::frozen(device, &ParamSet::new(device, weights.iter().map(values).collect::<Result<_>>()?)?)
}

/// A frozen adapter whose factors are bf16.
pub fn rounded_adapter(file: &AdapterFile) -> Result<AdapterFile> {
    let mut file = file.clone();
    for m in file.modules.values_mut() {
        (m.a, m.b) = (round(&m.a)?, round(&m.b)?);
    }
    Ok(file)
}

/// One preference step: a model, the reference's adapters, pairs with given losers.
pub struct Step<'s> {
    pub config: &'s FluxConfig,
    pub weights: &'s Weights,
    /// The reference's adapter.
    pub below: &'s AdapterFile,
    /// What the trained adapter's product is multiplied with.
    pub scale: f32,
    pub objective: &'s AsDpo,
    pub pairs: &'s Pairs,
}

/// What a step gives: the gaps of all pairs, and the trained adapter's gradient.
pub struct Made {
    pub gaps: Vec<f32>,
    pub gradient: Vec<f32>,
}

impl Step<'_> {
    /// The step as the device does it.
    pub fn run(&self, params: &mut ParamSet) -> Result<Made> {
        self.with(params, None)
    }

    /// The step with everything of the classes `rounds` in bf16, and the adapters' factors with them.
    pub fn rounding(&self, params: &mut ParamSet, rounds: &[Class]) -> Result<Made> {
        let masters = params.masters()?;
        params.set_masters(&masters.iter().map(|&v| rounded(v)).collect::<Vec<_>>())?;
        let made = Step { below: &rounded_adapter(self.below)?, ..*self }.with(params, Some(rounds));
        params.set_masters(&masters)?;
        made
    }

    /// The step with everything of the classes `rounds` in bf16, and the adapters' factors as they are.
    pub fn with(&self, params: &mut ParamSet, rounds: Option<&[Class]>) -> Result<Made> {
        params.reset_grads();
        let dpo = Adapter::trainable("train_dpo", self.scale, params)?;
        let adapters = [Adapter::frozen(self.below, 1.0), dpo];
        let flux = Flux { config: self.config, weights: self.weights, adapters: &adapters };
        let policies = Policies { policy: vec![0, 1], reference: vec![0], adversary: vec![] };
        let mode = Mode { text: Text::Collapsed, recompute: false };
        let rounds_of = rounds.unwrap_or_default();
        let rounding = |seen: &Seen, t: Tensor| rewrite(self.config, &self.objective.gap, rounds_of, seen, t);
        let tape: Tape = self.objective.tape(self.pairs.winner.shape()[0], params.leaves());
        let tape = if rounds.is_some() { tape.rewriting(&rounding) } else { tape };
        let out = as_dpo(&flux, &tape, self.objective, &policies, self.pairs, mode)?;
        tape.backward(&out.loss, None)?;
        params.take_back(tape.into_leaves())?;
        Ok(Made { gaps: out.gaps.values()?, gradient: params.grads()? })
    }
}

/// The same pairs on `device`.
pub fn pairs_on(pairs: &Pairs, device: &Device) -> Result<Pairs> {
    let level = |l: &asasr_engine::ops::embed::NoiseLevels| -> Result<_> {
        Ok(asasr_engine::ops::embed::NoiseLevels {
            sigma: l.sigma.to(device)?,
            embedding: l.embedding.to(device)?,
        })
    };
    Ok(Pairs {
        winner: pairs.winner.to(device)?,
        loser: pairs.loser.to(device)?,
        cond: pairs.cond.to(device)?,
        noise_winner: pairs.noise_winner.to(device)?,
        noise_loser: pairs.noise_loser.to(device)?,
        sigma_winner: level(&pairs.sigma_winner)?,
        sigma_loser: level(&pairs.sigma_loser)?,
    })
}

/// Root mean square of the difference over that of `want`; 0 where both are 0.
pub fn relative_error(got: &[f32], want: &[f32]) -> f64 {
    let square = |v: f64| v * v;
    let off: f64 = got.iter().zip(want).map(|(g, w)| square(f64::from(*g) - f64::from(*w))).sum();
    let size: f64 = want.iter().map(|w| square(f64::from(*w))).sum();
    if off == 0.0 { 0.0 } else { (off / size).sqrt() }
}

/// Cosine of the angle between two gradients.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot =
        |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum() };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}
