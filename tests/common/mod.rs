//! A FLUX with random weights, three random adapters and one batch of pairs: what the tests of a whole step run, and
//! the benchmark of one.
#![allow(dead_code, reason = "each test uses its part")]
#![allow(missing_docs, reason = "shared by tests, not a library")]

pub mod cuda;
use asasr_engine::Result;
use asasr_engine::autograd::{ParamSet, Tape};
use asasr_engine::engine::{Device, Philox, Tensor};
use asasr_engine::flux::config::FluxConfig;
use asasr_engine::flux::lora::{AdapterFile, LoraModule};
use asasr_engine::flux::params::{Adapter, Weights, adapter_params};
use asasr_engine::flux::transformer::Flux;
use asasr_engine::ops::embed::NoiseLevels;
use asasr_engine::ops::random;
use asasr_engine::ops::sobolev::Metric;
use asasr_engine::train::objective::{Adversary, AsDpo, Mode, Outcome, Pairs, Policies, Text, as_dpo};
use std::collections::BTreeMap;

/// The usual mode of training.
pub const COLLAPSED: Mode = Mode { text: Text::Collapsed, recompute: false };
/// All 512 text tokens.
pub const FULL: Mode = Mode { text: Text::Full, recompute: false };

/// Sizes of a [`World`].
pub struct Size {
    pub heads: usize,
    pub axes: [usize; 3],
    pub double: usize,
    pub single: usize,
    /// Latent channels, height and width.
    pub latents: [usize; 3],
    pub rank: usize,
    /// Weight of the query and key norms: with 1 the 512 text tokens outweigh a few condition tokens by so much that
    /// the adapters hardly reach the velocity.
    pub sharpness: f32,
    /// Pairs in the batch.
    pub pairs: usize,
}

/// Small enough for thousands of forward passes; everything there is to differentiate is in it.
pub const SMALL: Size = Size {
    heads: 2,
    axes: [2, 2, 4],
    double: 1,
    single: 2,
    latents: [4, 6, 8],
    rank: 3,
    sharpness: 2.0,
    pairs: 2,
};

/// The model of the nano preset.
pub const NANO: Size = Size {
    heads: 2,
    axes: [4, 6, 6],
    double: 1,
    single: 2,
    latents: [24, 8, 8],
    rank: 4,
    sharpness: 2.0,
    pairs: 4,
};

/// The model of the tiny preset and its AS-DPO batch.
pub const TINY: Size = Size {
    heads: 4,
    axes: [4, 14, 14],
    double: 1,
    single: 4,
    latents: [24, 16, 16],
    rank: 16,
    sharpness: 1.0,
    pairs: 4,
};

/// A model, its adapters and a batch.
pub struct World {
    pub device: Device,
    pub config: FluxConfig,
    pub weights: Weights,
    pub sft: AdapterFile,
    pub dpo: AdapterFile,
    pub adv: AdapterFile,
    pub pairs: Pairs,
}

fn normals(seed: u64, stream: u64, n: usize, scale: f32) -> Vec<f32> {
    let mut v = vec![0.0; n];
    Philox::new(seed, stream).normals(0, &mut v);
    v.iter_mut().for_each(|v| *v *= scale);
    v
}

impl World {
    pub fn new(size: &Size, device: &Device) -> Result<Self> {
        let [channels, height, width] = size.latents;
        let config = FluxConfig {
            in_channels: 4 * channels,
            num_layers: size.double,
            num_single_layers: size.single,
            attention_head_dim: size.axes.iter().sum(),
            num_attention_heads: size.heads,
            joint_attention_dim: 8,
            pooled_projection_dim: 8,
            axes_dims_rope: size.axes,
            rope_theta: 100.0,
            ..FluxConfig::default()
        };
        config.validate()?;
        let values = config.parameters().into_iter().enumerate().map(|(i, (name, shape))| {
            let (n, stream) = (shape.iter().product(), i as u64);
            let values = match shape[..] {
                [_, inp] => normals(1, stream, n, 1.0 / (inp as f32).sqrt()),
                _ if name.contains(".attn.norm_") => {
                    normals(1, stream, n, 0.3).iter().map(|v| size.sharpness + v).collect()
                }
                _ => normals(1, stream, n, 0.2),
            };
            (name, shape, values)
        });
        let weights = Weights::frozen(device, &ParamSet::new(device, values.collect())?)?;
        let adapter = |name: &str, seed: u64| -> Result<AdapterFile> {
            let mut modules = BTreeMap::new();
            for (i, (module, inp, out)) in config.lora_targets().into_iter().enumerate() {
                let (stream, r) = (2 * i as u64, size.rank);
                let factor = |shape: [usize; 2], stream: u64, scale: f32| {
                    Tensor::from_slice(device, &shape, &normals(seed, stream, shape[0] * shape[1], scale))
                };
                let a = factor([r, inp], stream, 1.0 / (inp as f32).sqrt())?;
                let b = factor([out, r], stream + 1, 1.0)?;
                modules.insert(module, LoraModule { a, b, alpha: 0.75 * r as f32 });
            }
            Ok(AdapterFile { name: name.to_owned(), modules, lq_resize: None, metadata: BTreeMap::new() })
        };
        let (b, tokens) = (size.pairs, height * width / 4);
        let planes = |stream: u64| random(device, &[b, channels, height, width], stream, 1.0);
        let sigmas = |shift: f32| {
            let sigma: Vec<f32> = (0..b).map(|i| 0.3 + shift + 0.5 * i as f32 / b as f32).collect();
            NoiseLevels::new(device, &sigma)
        };
        let pairs = Pairs {
            winner: planes(100),
            loser: planes(101),
            cond: random(device, &[b, tokens, 4 * channels], 102, 1.0),
            noise_winner: planes(103),
            noise_loser: planes(104),
            sigma_winner: sigmas(0.0)?,
            sigma_loser: sigmas(0.1)?,
        };
        Ok(Self {
            device: device.clone(),
            weights,
            sft: adapter("base_sft", 2)?,
            dpo: adapter("train_dpo", 3)?,
            adv: adapter("adv", 4)?,
            config,
            pairs,
        })
    }

    /// The adapter to train, as parameters.
    pub fn params(&self) -> Result<ParamSet> {
        adapter_params(&self.device, &[&self.dpo])
    }

    /// AS-DPO against the dataset's and the LoRA adversary's losers, full spectrum, s = 1.5.
    pub fn objective(&self, beta: f32) -> AsDpo {
        AsDpo::new(Metric::full(1.5), beta, 0.7, Adversary::Lora, 0.0)
    }

    /// One forward of the step on `tape` with the policy's adapter from `params`.
    fn on_tape<T>(
        &self,
        objective: &AsDpo,
        params: &mut ParamSet,
        pairs: &Pairs,
        mode: Mode,
        then: impl FnOnce(&mut ParamSet, &Outcome, &Tape<'_>) -> Result<T>,
        record: bool,
    ) -> Result<(Outcome, T)> {
        let dpo = Adapter::trainable("train_dpo", 0.75, params)?;
        let adapters = [Adapter::frozen(&self.sft, 1.0), dpo, Adapter::frozen(&self.adv, 1.0)];
        let flux = Flux { config: &self.config, weights: &self.weights, adapters: &adapters };
        let policies = Policies { policy: vec![0, 1], reference: vec![0], adversary: vec![0, 2] };
        let tape = match record {
            true => Tape::new(params.leaves()),
            false => Tape::no_grad(),
        };
        let out = as_dpo(&flux, &tape, objective, &policies, pairs, mode)?;
        let more = then(params, &out, &tape)?;
        if record {
            params.take_back(tape.into_leaves())?;
        }
        Ok((out, more))
    }

    /// Forward alone.
    pub fn forward(&self, objective: &AsDpo, params: &mut ParamSet, mode: Mode) -> Result<Outcome> {
        Ok(self.on_tape(objective, params, &self.pairs, mode, |_, _, _| Ok(()), false)?.0)
    }

    /// Forward and backward of `pairs`; gradients add to those in `params`.
    pub fn step(
        &self,
        objective: &AsDpo,
        params: &mut ParamSet,
        pairs: &Pairs,
        mode: Mode,
    ) -> Result<Outcome> {
        let backward = |_: &mut ParamSet, out: &Outcome, tape: &Tape<'_>| tape.backward(&out.loss, None);
        Ok(self.on_tape(objective, params, pairs, mode, backward, true)?.0)
    }

    /// β at which the largest argument of this batch's losses is 1: neither saturated nor linear.
    pub fn beta(&self) -> Result<f32> {
        let out = self.forward(&self.objective(2.0), &mut self.params()?, COLLAPSED)?;
        Ok(2.0 / out.stats()?.arguments.iter().fold(0f32, |m, a| m.max(a.abs())))
    }
}

/// The gradients of `params`, one vector.
pub fn grads(params: &ParamSet) -> Vec<f32> {
    params.grads().unwrap()
}

/// Largest difference over the largest value of `want`.
pub fn error_to_max(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let max = want.iter().fold(0f32, |m, v| m.max(v.abs()));
    let off =
        got.iter().zip(want).map(|(a, b)| f64::from(*a) - f64::from(*b)).fold(0f64, |m, d| m.max(d.abs()));
    off / f64::from(max)
}
