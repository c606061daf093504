//! What is left of a preference where its energies are rounded to bf16 before they are subtracted, as the public reference
//! does it. The preference of a pair is the difference of two gaps, each the difference of two energies that agree in most
//! of their digits.

use asasr_engine::autograd::{Tape, Var};
use asasr_engine::data::Sampler;
use asasr_engine::engine::{Device, Philox, Tensor};
use asasr_engine::flux::config::FluxConfig;
use asasr_engine::flux::params::{Adapter, Weights};
use asasr_engine::flux::schedule::{logit_normal, sigma_of};
use asasr_engine::flux::transformer::Flux;
use asasr_engine::ops::embed::NoiseLevels;
use asasr_engine::ops::patch::Pack;
use asasr_engine::ops::sobolev::{Metric, Sobolev};
use asasr_engine::train::objective::{Adversary, AsDpo, Mode, Pairs, Policies, Text, as_dpo};
use asasr_engine::{Error, Result};
use half::bf16;
use serde::{Deserialize, Serialize};

/// Strengths of the trained adapter, 1 being where its training ended.
pub const STRENGTHS: [f32; 4] = [0.01, 0.1, 0.3, 1.0];
/// Pairs in one pass.
const BATCH: usize = 8;

/// The preferences of some pairs under one strength of the adapter.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Preferences {
    /// Gap of the winner − gap of the loser, without cancellation.
    pub exact: Vec<f64>,
    /// The same from energies in bf16.
    pub rounded: Vec<f64>,
}

impl Preferences {
    /// Shares of the pairs whose preference is lost (0 in bf16) and turned round.
    pub fn lost_and_turned(&self) -> (f64, f64) {
        let share = |f: &dyn Fn(f64, f64) -> bool| {
            let n = self.exact.iter().zip(&self.rounded).filter(|(e, r)| f(**e, **r)).count();
            n as f64 / self.exact.len() as f64
        };
        (share(&|_, r| r == 0.0), share(&|e, r| e * r < 0.0))
    }

    /// Root of the mean squared error over that of the preferences.
    pub fn relative_error(&self) -> f64 {
        let square = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
        let error = square(&mut self.exact.iter().zip(&self.rounded).map(|(e, r)| e - r));
        (error / square(&mut self.exact.iter().copied())).sqrt()
    }
}

fn rounded(v: f64) -> f64 {
    f64::from(bf16::from_f64(v))
}

/// Preferences of `pairs` pairs of `sampler` between the last of `adapters` at `strength` and those below it.
pub fn preferences(
    (config, weights): (&FluxConfig, &Weights),
    adapters: &[Adapter],
    sampler: &Sampler,
    (metric, pairs): (Metric, usize),
) -> Result<Preferences> {
    let all: Vec<usize> = (0..adapters.len()).collect();
    let (_, below) = all.split_last().ok_or_else(|| Error::Usage("no adapter to measure".to_owned()))?;
    let policies = Policies { policy: all.clone(), reference: below.to_vec(), adversary: Vec::new() };
    let objective = AsDpo::new(metric, 1.0, 1.0, Adversary::None, 0.1);
    let energy = Sobolev::new(metric);
    let flux = Flux { config, weights, adapters };
    let mode = Mode { text: Text::Collapsed, recompute: false };
    let mut out = Preferences::default();
    for first in (0..pairs).step_by(BATCH) {
        let given = batch(sampler, first / BATCH)?;
        let o = as_dpo(&flux, &Tape::no_grad(), &objective, &policies, &given, mode)?;
        let e = |v: &Tensor| -> Result<Vec<f64>> {
            let difference = v.f32().iter().zip(o.target.f32()).map(|(a, b)| a - b).collect::<Vec<f32>>();
            energy.energy(&Tensor::from_slice(v.device(), o.target.shape(), &difference)?)
        };
        let (policy, reference) = (e(&o.v_policy)?, e(&o.v_reference)?);
        let gaps = o.gaps.values()?;
        let gap = |i: usize| rounded(rounded(policy[i]) - rounded(reference[i]));
        for i in 0..BATCH {
            out.exact.push(f64::from(gaps[i]) - f64::from(gaps[BATCH + i]));
            out.rounded.push(rounded(gap(i) - gap(BATCH + i)));
        }
    }
    Ok(out)
}

/// Pairs whose losers are the dataset's.
fn batch(sampler: &Sampler, index: usize) -> Result<Pairs> {
    let device = &Device::cpu();
    let batch = sampler.batch(9, index as u64, BATCH, false)?;
    let shape = [BATCH, batch.channels, batch.side, batch.side];
    let normals = |kind: u64, n: usize| {
        let mut v = vec![0.0; n];
        Philox::new(index as u64, 0xb16_0000 + kind).normals(0, &mut v);
        v
    };
    let planes = |values: &[f32]| Tensor::from_slice(device, &shape, values);
    let levels = |kind| {
        let sigma: Vec<f32> = normals(kind, BATCH).into_iter().map(|n| sigma_of(logit_normal(n))).collect();
        NoiseLevels::new(device, &sigma)
    };
    let cond = planes(&sampler.latents(&batch.cond)?)?;
    Ok(Pairs {
        winner: planes(&sampler.latents(&batch.target)?)?,
        cond: Tape::no_grad().one(Pack, &[&Var::constant(cond.clone())])?.value().clone(),
        noise_winner: planes(&normals(0, cond.len()))?,
        noise_loser: planes(&normals(1, cond.len()))?,
        sigma_winner: levels(2)?,
        sigma_loser: levels(3)?,
        loser: cond,
    })
}
