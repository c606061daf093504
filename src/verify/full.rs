//! FLUX.1-dev's real width, forward and backward: `full_blocks`, diffusers' own pass with one block of each kind, and
//! `full_cond`, a condition with one adapter frozen and another trained on it.
//!
//! The weights are too many to keep, so both sides draw them from a counter: a weight's stream is its place among the
//! names in order, adapters' factors come after all weights. Of each gradient of a weight or a factor the recorder has some
//! entries, evenly spaced, and the 2-norm.

use super::arithmetic::{Model, Run};
use super::fixture::Fixture;
use super::flux::{cond_inputs, plain_pass, policy_pass};
use crate::Result;
use crate::autograd::{Leaves, Tape};
use crate::engine::{DType, Philox, Tensor};
use crate::flux::config::FluxConfig;
use crate::flux::lora::{AdapterFile, LoraModule};
use crate::flux::params::{Adapter, Weights, adapter_params};
use rayon::prelude::*;
use std::collections::BTreeMap;

/// Values that one thread draws at a time: whole blocks of the counter.
const PIECE: usize = 1 << 16;

pub(super) fn blocks(f: &mut Fixture, run: &Run) -> Result<()> {
    let (config, seed) = (config(f)?, f.number("/seed")? as u64);
    let mut parameters = config.parameters();
    parameters.sort();
    let (mut weights, mut grads) = (Vec::new(), Vec::new());
    for (i, (name, shape)) in parameters.iter().enumerate() {
        let values = run.trained(drawn(name, shape, Philox::new(seed, i as u64)));
        weights.push((name.clone(), Tensor::from_slice(run.device, shape, &values)?));
        grads.push(Tensor::empty(run.device, shape)?);
    }
    let leaves = Leaves::into_buffers(grads, false);
    let leaves = plain_pass(f, run, config, Weights::leaves(weights), leaves)?;
    let grads = leaves.buffers(parameters.len())?;
    parameters.iter().zip(grads).try_for_each(|((name, _), grad)| check(f, "weights", name, &grad.values()?))
}

/// The policy's pass of a preference step, and the reference's and the base's velocities.
pub(super) fn conditioned(f: &mut Fixture, run: &Run) -> Result<()> {
    let (frozen, trained) = ("base_sft", "train_dpo");
    let (config, seed, device) = (config(f)?, f.number("/seed")? as u64, run.device);
    let draw = |stream: usize, name: &str, shape: &[usize]| {
        Tensor::from_slice(device, shape, &drawn(name, shape, Philox::new(seed, stream as u64)))
    };
    let mut parameters = config.parameters();
    parameters.sort();
    let weights =
        parameters.iter().enumerate().map(|(i, (name, shape))| Ok((name.clone(), draw(i, name, shape)?)));
    let weights = run.published(Weights::of(weights.collect::<Result<_>>()?, DType::F32))?;
    let mut targets = config.lora_targets();
    targets.sort();
    let adapter = |i: usize, name: &str| {
        let number = |key: &str| f.number(&format!("/lora/{name}/{key}"));
        let (r, alpha) = (number("r")? as usize, number("lora_alpha")? as f32);
        let first = parameters.len() + 2 * i * targets.len();
        let module = |(j, (module, width, out)): (usize, &(String, usize, usize))| {
            let half = |k: usize, shape: [usize; 2]| draw(first + 2 * j + k, module, &shape);
            Ok((module.clone(), LoraModule { a: half(0, [r, *width])?, b: half(1, [*out, r])?, alpha }))
        };
        let modules = targets.iter().enumerate().map(module).collect::<Result<_>>()?;
        Ok(AdapterFile { name: name.to_owned(), modules, lq_resize: None, metadata: BTreeMap::new() })
    };
    let (base_sft, train_dpo) = (adapter(0, frozen)?, adapter(1, trained)?);
    let model = Model::of(config, weights, run)?;
    let both = [run.frozen(&base_sft, 1.0)?, run.frozen(&train_dpo, 1.0)?];
    for (name, set) in [("out.none", vec![]), ("out.sft", vec![0]), ("out.sft_dpo", vec![0, 1])] {
        let inputs = cond_inputs(f, &model.config, device, set, None)?;
        let v = model.flux(&both).forward(&model.on(Tape::no_grad()), &inputs)?;
        f.check(name, &v.value().values()?)?;
    }
    let mut params = adapter_params(device, &[&train_dpo])?;
    run.train(&mut params, |params| {
        let scale = train_dpo.modules.values().next().map_or(1.0, LoraModule::scaling);
        let policy = [both[0].clone(), Adapter::trainable(trained, scale, params)?];
        policy_pass(f, run, &model, &policy, "out.sft_dpo", params)
    })?;
    for (i, name) in params.names().iter().enumerate() {
        let name = name.replacen("train_dpo.", "transformer.", 1);
        check(f, trained, &name, &params.grad(i).values()?)?;
    }
    Ok(())
}

fn config(f: &Fixture) -> Result<FluxConfig> {
    FluxConfig::parse(&f.value("/transformer")?.to_string()).map_err(|e| f.error(e))
}

/// Compares what is recorded of the gradient `grad` of `of`'s `name`.
fn check(f: &mut Fixture, of: &str, name: &str, grad: &[f32]) -> Result<()> {
    let probes = f.number("/probes")? as usize;
    let spread = |j: usize| grad[j * (grad.len() - 1) / (probes - 1).max(1)];
    f.check(&format!("grad.{of}.{name}"), &(0..probes).map(spread).collect::<Vec<_>>())?;
    let norm = grad.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
    f.check_f64(&format!("norm.{of}.{name}"), &[norm])
}

/// A weight, uniform: a matrix keeps the variance of what it multiplies, a bias is small, a norm's weight near 1.
fn drawn(name: &str, shape: &[usize], stream: Philox) -> Vec<f32> {
    let (centre, scale) = match *shape {
        [_, width] => (0.0, (3.0 / width as f32).sqrt()),
        _ if name.ends_with("weight") => (1.0, 0.1),
        _ => (0.0, 0.1),
    };
    let mut values = vec![0.0; shape.iter().product()];
    values.par_chunks_mut(PIECE).enumerate().for_each(|(i, piece)| {
        for (j, four) in piece.chunks_mut(4).enumerate() {
            let words = stream.words((i * PIECE / 4 + j) as u64);
            for (value, word) in four.iter_mut().zip(words) {
                *value = centre + scale * ((word >> 8) as f32 / (1 << 23) as f32 - 1.0);
            }
        }
    });
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `drawn` of `tests/interop/full_blocks.py` gives: more than a piece of a matrix, its last value, a norm, a bias.
    #[test]
    fn weights_are_the_recorders() {
        let of = |name: &str, shape: &[usize]| drawn(name, shape, Philox::new(20_260_131, 5));
        let matrix = of("a.weight", &[40, 3072]);
        assert_eq!(
            [matrix[0], matrix[PIECE + 1], matrix[40 * 3072 - 1]],
            [-0.016_853_191, -0.011_867_791, 0.030_031_9]
        );
        assert_eq!(of("a.norm_q.weight", &[6])[4..], [1.052_601_9, 0.950_100_7]);
        assert_eq!(of("a.bias", &[7])[5..], [-0.049_899_306, 0.069_050_804]);
    }
}
