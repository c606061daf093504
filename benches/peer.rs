//! The engine's side of `benches/peers/torch_step.py`, which writes the folder read here and says what is timed.
//!
//! `peer FOLDER TEXT_TOKENS` answers each line of stdin with one JSON object: `shared` (a step with the folder's next
//! noise) and `fresh` (a step with noise drawn now) with seconds and loss, `memory` with the process's peak.

use asasr_engine::autograd::{ParamSet, Tape};
use asasr_engine::engine::{DType, Device, Philox, Tensor};
use asasr_engine::flux::base::BaseModel;
use asasr_engine::flux::config::FluxConfig;
use asasr_engine::flux::lora::AdapterFile;
use asasr_engine::flux::params::{Adapter, Weights, adapter_params};
use asasr_engine::flux::schedule::logit_normal;
use asasr_engine::flux::transformer::{Flux, TEXT_TOKENS};
use asasr_engine::flux::weights::SafeFile;
use asasr_engine::ops::adamw::{AdamW, Gradients};
use asasr_engine::ops::embed::NoiseLevels;
use asasr_engine::ops::sobolev::{Metric, Spectrum, Weight};
use asasr_engine::train::objective::{Adversary, AsDpo, Mode, Pairs, Policies, Text, as_dpo};
use serde::Deserialize;
use std::error::Error;
use std::io::{BufRead, Write};
use std::path::Path;
use std::time::Instant;

#[derive(Deserialize)]
struct Settings {
    s: f64,
    beta: f32,
    lam: f32,
    lr: f32,
    weight_decay: f32,
    max_norm: f32,
    threads: usize,
    seed: u64,
}

/// The model, its adapters and what the steps share.
struct Peer {
    settings: Settings,
    config: FluxConfig,
    weights: Weights,
    adapters: [AdapterFile; 3],
    params: ParamSet,
    objective: AsDpo,
    opt: AdamW,
    mode: Mode,
    pairs: Pairs,
    /// `[steps, 2, B, C, H, W]` and `[steps, 2, B]`: of the winners and of the losers.
    noise: Tensor,
    sigma: Tensor,
    shared: usize,
    fresh: u64,
}

impl Peer {
    fn open(folder: &Path, text_tokens: usize) -> Result<Self, Box<dyn Error>> {
        let settings: Settings = serde_json::from_slice(&std::fs::read(folder.join("step.json"))?)?;
        rayon::ThreadPoolBuilder::new().num_threads(settings.threads).use_current_thread().build_global()?;
        let device = Device::cpu();
        let base = BaseModel::open(folder.join("base"))?;
        let weights = base.load(&device, DType::F32, &mut |_, _| ())?;
        let adapter = |name: &str| AdapterFile::load(folder.join(name), &device);
        let adapters = [adapter("base_sft")?, adapter("adv")?, adapter("train_dpo")?];
        let params = adapter_params(&device, &[&adapters[2]])?;
        let metric = Metric { s: settings.s, spectrum: Spectrum::Full, weight: Weight::MeanOne };
        let batch = SafeFile::open(folder.join("batch.safetensors"))?;
        let read = |name: &str| batch.tensor(name, &device);
        let (winner, loser) = (read("winner")?, read("loser")?);
        let sigma = NoiseLevels::new(&device, &vec![0.0; winner.shape()[0]])?;
        let text = match text_tokens {
            1 => Text::Collapsed,
            TEXT_TOKENS => Text::Full,
            n => return Err(format!("{n} text tokens, wanted 1 or {TEXT_TOKENS}").into()),
        };
        Ok(Self {
            objective: AsDpo::new(metric, settings.beta, settings.lam, Adversary::Lora, 0.0),
            opt: AdamW { weight_decay: settings.weight_decay, ..AdamW::default() },
            mode: Mode { text, recompute: false },
            pairs: Pairs {
                cond: read("cond")?,
                noise_winner: winner.clone(),
                noise_loser: loser.clone(),
                sigma_winner: sigma.clone(),
                sigma_loser: sigma,
                winner,
                loser,
            },
            noise: read("noise")?,
            sigma: read("sigma")?,
            shared: 0,
            fresh: 0,
            settings,
            config: base.config().clone(),
            weights,
            adapters,
            params,
        })
    }

    /// Noise and noise levels of the folder's next step.
    fn next_shared(&mut self) -> asasr_engine::Result<()> {
        let (step, [b, c, h, w]) = (self.shared..self.shared + 1, self.planes());
        let (noise, sigma) = (self.noise.rows(step.clone())?, self.sigma.rows(step)?);
        let noise = noise.reshape(&[2 * b, c, h, w])?;
        let (winner, loser) = sigma.f32().split_at(b);
        (self.pairs.noise_winner, self.pairs.noise_loser) = (noise.rows(0..b)?, noise.rows(b..2 * b)?);
        let levels = |sigma: &[f32]| NoiseLevels::new(self.pairs.winner.device(), sigma);
        (self.pairs.sigma_winner, self.pairs.sigma_loser) = (levels(winner)?, levels(loser)?);
        self.shared += 1;
        Ok(())
    }

    /// Noise and noise levels nobody has used.
    fn draw(&mut self) {
        let shape = self.planes();
        let stream = |i: u64| Philox::new(self.settings.seed, 4 * self.fresh + i);
        let planes = |i: u64| {
            let mut t = Tensor::empty(self.pairs.winner.device(), &shape).unwrap();
            stream(i).normals(0, t.f32_mut());
            t
        };
        let sigma = |i: u64| {
            let mut n = vec![0.0; shape[0]];
            stream(i).normals(0, &mut n);
            let sigma: Vec<f32> = n.into_iter().map(logit_normal).collect();
            NoiseLevels::new(self.pairs.winner.device(), &sigma).unwrap()
        };
        let (winner, loser, sigma_winner, sigma_loser) = (planes(0), planes(1), sigma(2), sigma(3));
        (self.pairs.noise_winner, self.pairs.noise_loser) = (winner, loser);
        (self.pairs.sigma_winner, self.pairs.sigma_loser) = (sigma_winner, sigma_loser);
        self.fresh += 1;
    }

    fn planes(&self) -> [usize; 4] {
        self.pairs.winner.shape().try_into().expect("a batch of planes")
    }

    /// One optimizer step; its loss before the update.
    fn step(&mut self) -> asasr_engine::Result<f32> {
        let [sft, adv, dpo] = &self.adapters;
        self.params.reset_grads();
        let loss = {
            let trained = Adapter::trainable(&dpo.name, 1.0, &self.params)?;
            let adapters = [Adapter::frozen(sft, 1.0), trained, Adapter::frozen(adv, 1.0)];
            let flux = Flux { config: &self.config, weights: &self.weights, adapters: &adapters };
            let policies = Policies { policy: vec![0, 1], reference: vec![0], adversary: vec![0, 2] };
            let tape = Tape::new(self.params.leaves());
            let out = as_dpo(&flux, &tape, &self.objective, &policies, &self.pairs, self.mode)?;
            tape.backward(&out.loss, None)?;
            self.params.take_back(tape.into_leaves())?;
            out.loss.value().item()
        };
        let gradients = Gradients::of_one(self.settings.max_norm);
        self.params.step(&self.opt, self.settings.lr, gradients, |_| true)?;
        Ok(loss)
    }

    fn answer(&mut self, line: &str) -> Result<serde_json::Value, Box<dyn Error>> {
        if line == "memory" {
            let status = std::fs::read_to_string("/proc/self/status")?;
            let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).ok_or("no VmHWM")?;
            let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
            return Ok(serde_json::json!({ "mib": kib / 1024.0 }));
        }
        let begun = Instant::now();
        match line {
            "shared" => self.next_shared()?,
            "fresh" => self.draw(),
            _ => return Err(format!("`{line}` is none of shared, fresh, memory").into()),
        }
        let loss = self.step()?;
        Ok(serde_json::json!({ "seconds": begun.elapsed().as_secs_f64(), "loss": loss }))
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let [folder, tokens] = &arguments[..] else {
        println!("peer: benches/peers/torch_step.py runs this one");
        return Ok(());
    };
    let mut peer = Peer::open(Path::new(folder), tokens.parse()?)?;
    for line in std::io::stdin().lock().lines() {
        let answer = peer.answer(line?.trim())?;
        println!("{answer}");
        std::io::stdout().flush()?;
    }
    Ok(())
}
