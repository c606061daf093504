//! Euler sampling of the flow from noise (σ = 1) to an image (σ = 0), METHOD: `x ← x + (σ_next − σ)·v`.

use super::schedule::{euler, sampling_sigmas};
use super::transformer::{Flux, Inputs};
use crate::autograd::{Tape, Var};
use crate::engine::Tensor;
use crate::ops::AdapterSet;
use crate::ops::embed::NoiseLevels;
use crate::{Error, Result};
use std::sync::Arc;

/// What a sampling run is conditioned on.
#[derive(Clone)]
pub struct Conditions {
    /// Condition tokens `[B, N, in_channels]`.
    pub cond: Tensor,
    /// Text embeddings `[B, T, joint]`.
    pub txt: Tensor,
    /// Pooled text embedding `[B, pooled]`.
    pub pooled: Tensor,
    /// The pooled embeddings of all samples are equal.
    pub same_text: bool,
    /// How many equal tokens each text token stands for.
    pub text_multiplicity: f32,
    /// Position ids of the image tokens.
    pub img_ids: Arc<[[f32; 3]]>,
    /// Guidance value.
    pub guidance: f32,
    /// Adapters of every sample.
    pub adapters: Vec<usize>,
}

/// Runs `steps` Euler steps on packed latents `noise` `[B, N, in_channels]`, with FLUX's resolution-dependent shift.
/// `observe` is shown step number, velocity and latents after each step.
pub fn sample<'a>(
    flux: &'a Flux<'a>,
    tape: &Tape<'a>,
    noise: &Tensor,
    given: &Conditions,
    steps: usize,
    observe: &mut dyn FnMut(usize, &Tensor, &Tensor),
) -> Result<Tensor> {
    let &[batch, tokens, _] = noise.shape() else {
        return Err(Error::shape(
            "sampler",
            format!("noise has shape {:?}, wanted [batch, tokens, channels]", noise.shape()),
        ));
    };
    let sigmas = sampling_sigmas(steps, tokens);
    let mut x = noise.clone();
    for (step, pair) in sigmas.windows(2).enumerate() {
        let sigma = flux.weights.levels().of(noise.device(), &vec![pair[0]; batch])?;
        let v = velocity(flux, tape, &x, &sigma, given)?;
        x = euler(&x, &v, &sigma.sigma, pair[1])?;
        observe(step, &v, &x);
    }
    Ok(x)
}

/// The velocity of packed latents `x` at noise level `sigma`.
pub fn velocity<'a>(
    flux: &'a Flux<'a>,
    tape: &Tape<'a>,
    x: &Tensor,
    sigma: &NoiseLevels,
    given: &Conditions,
) -> Result<Tensor> {
    let batch = sigma.len();
    let text = given.txt.shape().get(1).copied().unwrap_or(0);
    let inputs = Inputs {
        img: Var::constant(x.clone()),
        cond: Some(Var::constant(given.cond.clone())),
        txt: Var::constant(given.txt.clone()),
        pooled: Var::constant(given.pooled.clone()),
        same_text: given.same_text,
        sigma: sigma.clone(),
        guidance: vec![given.guidance; batch],
        img_ids: given.img_ids.clone(),
        txt_ids: vec![[0.0; 3]; text].into(),
        text_multiplicity: given.text_multiplicity,
        groups: None,
        adapters: Arc::new(AdapterSet::uniform(given.adapters.clone(), batch)),
        adapt_all: false,
        recompute: false,
    };
    Ok(flux.forward(tape, &inputs)?.value().clone())
}
