//! One preference step and what it gives, as the device computes it or with a rounding policy emulated.

use asasr_engine::Result;
use asasr_engine::autograd::{ParamSet, Tape};
use asasr_engine::engine::Device;
use asasr_engine::flux::config::FluxConfig;
use asasr_engine::flux::lora::AdapterFile;
use asasr_engine::flux::params::{Adapter, Weights};
use asasr_engine::flux::rounding::{Class, rounded_adapter, rounding, with_rounded};
use asasr_engine::flux::transformer::Flux;
use asasr_engine::train::objective::{AsDpo, Mode, Pairs, Policies, Text, as_dpo};

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
        let below = rounded_adapter(self.below)?;
        with_rounded(params, |params| Step { below: &below, ..*self }.with(params, Some(rounds)))
    }

    /// The step with everything of the classes `rounds` in bf16, and the adapters' factors as they are.
    pub fn with(&self, params: &mut ParamSet, rounds: Option<&[Class]>) -> Result<Made> {
        params.reset_grads();
        let dpo = Adapter::trainable("train_dpo", self.scale, params)?;
        let adapters = [Adapter::frozen(self.below, 1.0), dpo];
        let flux = Flux { config: self.config, weights: self.weights, adapters: &adapters };
        let policies = Policies { policy: vec![0, 1], reference: vec![0], adversary: vec![] };
        let mode = Mode { text: Text::Collapsed, recompute: false };
        let rounding = rounds.map(|rounds| rounding(self.config, rounds));
        let tape: Tape = Tape::new(params.leaves());
        let tape = match &rounding {
            Some(f) => tape.rewriting(f),
            None => tape,
        };
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
