//! Rounding policies: which tensors of a pass are bf16, emulated in f32 arithmetic on the CPU by a tape that rewrites what
//! passes it. With [`NAIVE`] the measure that tolerances of bf16 are derived from.
//!
//! Rounded is what an op of the engine writes, not what it has inside: the emulation is kinder to every policy than
//! kernels are, above all to the naive one, whose reference implementation rounds between the pieces of an op too.

use super::config::FluxConfig;
use super::lora::AdapterFile;
use super::params::Weights;
use crate::Result;
use crate::autograd::ParamSet;
use crate::autograd::tape::{Rewrite, Seen};
use crate::engine::{Device, Tensor};
use crate::ops::Save;
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
        Seen::Output { op, inputs } => match op.name() {
            "concat" if inputs[0].width() == t.width() => Input,
            "linear" => match t.shape() {
                [_, _] => Table,
                [.., width] if *width == config.out_dim() => Velocity,
                _ if outside.contains(&inputs[0].width()) => Residual,
                _ if inputs.get(3).is_some_and(|i| i.shape().len() == 3) => Residual,
                [.., width] if *width == config.dim() => Projected,
                _ => Hidden,
            },
            "silu" => Table,
            "ln_modulate" => Normed,
            "qk_norm_rope" => Rotated,
            "attention" => Attended,
            "sobolev_gap" => Energy,
            _ => return None,
        },
        Seen::Gradient { op: "sobolev_gap" | "unpack", .. } => Velocity,
        Seen::Gradient { op: "preference", .. } => return None,
        Seen::Gradient { op: "ln_modulate", input: 0 } => ResidualGradient,
        Seen::Gradient { op: "linear", input: 3 } if t.shape().len() == 3 => ResidualGradient,
        Seen::Gradient { op: "linear" | "ln_modulate" | "qk_norm_rope", input: 1.. } => ParameterGradient,
        Seen::Gradient { .. } => Gradient,
    })
}

/// Rounds what is of the classes `rounds`, for [`Tape::rewriting`](crate::autograd::Tape::rewriting).
pub fn rounding(config: &FluxConfig, rounds: &[Class]) -> Box<Rewrite<'static>> {
    let (config, rounds) = (config.clone(), rounds.to_vec());
    Box::new(move |seen, mut t| {
        let Some(class) = class(&config, seen, &t).filter(|c| rounds.contains(c)) else { return Ok(t) };
        match seen {
            Seen::Output { op, inputs: [v, reference, target] } if class == Energy => {
                // An energy is the gap to a residual of 0.
                let energy = |v: &Tensor| -> Result<Vec<f32>> {
                    let e = op.forward(&[v, target, target], &mut Save::nothing())?;
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
    })
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

/// A frozen adapter on the CPU whose factors are bf16.
pub fn rounded_adapter(file: &AdapterFile) -> Result<AdapterFile> {
    let mut file = file.clone();
    for m in file.modules.values_mut() {
        (m.a, m.b) = (round(&m.a)?, round(&m.b)?);
    }
    Ok(file)
}

/// `pass` with parameters as bf16 has them, which are what they were afterwards.
pub fn with_rounded<T>(params: &mut ParamSet, pass: impl FnOnce(&mut ParamSet) -> Result<T>) -> Result<T> {
    let masters = params.masters()?;
    params.set_masters(&masters.iter().map(|&v| rounded(v)).collect::<Vec<_>>())?;
    let made = pass(params);
    params.set_masters(&masters)?;
    made
}
