//! A look at held-out images during training: always the same crops, the same noise and the same noise levels, through
//! the very code that inference runs.

use super::objective::{Mode, Text, flow_matching, velocity};
use crate::autograd::{Tape, Var};
use crate::data::{Codec, EvalPair, Image, LqResize, Sampler, bad_upscale, montage, nearest, torch_up};
use crate::engine::{Device, Philox, Tensor};
use crate::eval::{Metrics, evaluate};
use crate::flux::config::FluxConfig;
use crate::flux::params::{Adapter, Weights};
use crate::flux::transformer::Flux;
use crate::infer::model::{Model, SCALE};
use crate::infer::upscale::TOKENS;
use crate::ops::AdapterSet;
use crate::ops::embed::NoiseLevels;
use crate::ops::patch::Pack;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Noise levels at which the flow-matching error is measured.
const SIGMAS: [f32; 5] = [0.1, 0.3, 0.5, 0.7, 0.9];
/// Philox stream of the validation's noise.
const STREAM: u64 = 1 << 41;
/// Rows of a picture.
const ROWS: usize = 4;
const MODE: Mode = Mode { text: Text::Collapsed, recompute: false };

/// Held-out crops, ready to be restored.
pub struct Validation {
    lq: Vec<Image>,
    hq: Vec<Image>,
    bad: Vec<Image>,
    codec: Codec,
    lq_resize: LqResize,
    hq_latents: Tensor,
    bad_latents: Tensor,
    cond: Tensor,
    noise: Tensor,
    steps: usize,
}

/// One validation: a line of `validation.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Look {
    /// The stage.
    pub stage: String,
    /// Updates done in it.
    pub step: usize,
    /// Flow-matching error, mean over the crops and five noise levels.
    pub loss: f64,
    /// What the restored crops score.
    #[serde(flatten)]
    pub metrics: Metrics,
    /// Where the picture is, in the run directory.
    pub picture: String,
    /// What was said about it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// A policy to look at: the transformer's structure, its weights, and the adapters that all act.
pub struct Policy<'m> {
    /// Structure.
    pub config: &'m FluxConfig,
    /// Weights.
    pub weights: &'m Weights,
    /// Every adapter there is; only those of `acting` act.
    pub adapters: &'m [Adapter],
    /// Indices into `adapters`.
    pub acting: Vec<usize>,
}

impl Validation {
    /// The first `crops` held-out crops of `sampler`, restored in `steps` Euler steps.
    pub fn new(sampler: &Sampler, crops: usize, steps: usize, device: &Device) -> Result<Self> {
        let pairs = sampler.held_out(crops)?;
        let bad = |p: &EvalPair| p.neg.clone().unwrap_or_else(|| bad_upscale(&p.lq, SCALE));
        let bad: Vec<Image> = pairs.iter().map(bad).collect();
        let side = sampler.crop() / sampler.codec().block();
        let shape = [crops, sampler.codec().channels(), side, side];
        let planes = |parts: Vec<Vec<f32>>| Tensor::from_slice(device, &shape, &parts.concat());
        let encode = |images: &mut dyn Iterator<Item = &Image>| -> Result<Tensor> {
            planes(images.map(|i| sampler.encode(i)).collect::<Result<_>>()?)
        };
        let cond = planes(pairs.iter().map(|p| sampler.condition(&p.lq)).collect::<Result<_>>()?)?;
        let noise = Philox::new(0, STREAM).tensor(device, &shape, 0)?;
        Ok(Self {
            hq_latents: encode(&mut pairs.iter().map(|p| &p.hq))?,
            bad_latents: encode(&mut bad.iter())?,
            cond: Tape::no_grad().one(Pack, &[&Var::constant(cond)])?.value().clone(),
            noise,
            bad,
            codec: sampler.codec().clone(),
            lq_resize: sampler.lq_resize(),
            lq: pairs.iter().map(|p| p.lq.clone()).collect(),
            hq: pairs.into_iter().map(|p| p.hq).collect(),
            steps,
        })
    }

    /// As large, and of zeros; of pictures only those that are restored.
    pub fn blank(sampler: &Sampler, crops: usize, steps: usize, device: &Device) -> Result<Self> {
        let side = sampler.crop() / sampler.codec().block();
        let shape = [crops, sampler.codec().channels(), side, side];
        let planes = || Tensor::zeros(device, &shape);
        let (cond, lq) = (planes()?, sampler.crop() / sampler.degradation().scale());
        Ok(Self {
            hq_latents: planes()?,
            bad_latents: planes()?,
            cond: Tape::no_grad().one(Pack, &[&Var::constant(cond)])?.value().clone(),
            noise: planes()?,
            bad: Vec::new(),
            codec: sampler.codec().clone(),
            lq_resize: sampler.lq_resize(),
            lq: vec![Image::zeros(lq, lq); crops],
            hq: Vec::new(),
            steps,
        })
    }

    /// Restores the crops with `policy`, beside its flow-matching error towards HQ or the bad upscaler's output.
    pub fn restore(&self, policy: &Policy, towards_bad: bool) -> Result<(f64, Vec<Image>)> {
        let device = self.noise.device();
        let target = if towards_bad { &self.bad_latents } else { &self.hq_latents };
        let flux = policy.flux();
        let (crops, at_once) = (self.crops(), (TOKENS / self.cond.shape()[1]).max(1));
        let mut loss = 0.0;
        for sigma in SIGMAS {
            for first in (0..crops).step_by(at_once) {
                let some = first..crops.min(first + at_once);
                let [x, cond, noise] =
                    [target, &self.cond, &self.noise].map(|planes| planes.rows(some.clone()));
                let (sigmas, set) = (self.levels(policy, sigma, some.len())?, policy.set(some.len()));
                let e = flow_matching(&flux, &Tape::no_grad(), &x?, &cond?, &noise?, &sigmas, set, MODE)?;
                loss += f64::from(e.value().values()?[0]) * some.len() as f64;
            }
        }
        let loss = loss / (SIGMAS.len() * crops) as f64;
        let model = Model {
            prompt: None,
            config: policy.config.clone(),
            codec: self.codec.clone(),
            lq_resize: self.lq_resize,
            weights: policy.weights.clone(),
            adapters: policy.acting.iter().map(|&i| policy.adapters[i].clone()).collect(),
        };
        let corners = vec![(0, 0); self.lq.len()];
        Ok((loss, model.restore(&self.lq, &corners, self.steps, device)?))
    }

    /// Measures what [`Validation::restore`] gave against HQ, or against the bad upscaler's output; writes the picture to `run`.
    pub fn look(
        &self,
        (loss, restored): (f64, Vec<Image>),
        towards_bad: bool,
        run: &Path,
        (stage, step): (&str, usize),
    ) -> Result<Look> {
        let truth = if towards_bad { &self.bad } else { &self.hq };
        let metrics = evaluate(&restored, truth)?;
        let folder = run.join("samples");
        std::fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
        let picture = format!("samples/{stage}-{step:06}.png");
        self.picture(&restored, truth, if towards_bad { "target" } else { "HQ" })?
            .save_png(run.join(&picture))?;
        Ok(Look { stage: stage.to_owned(), step, loss, metrics, picture, warnings: Vec::new() })
    }

    /// Velocities `[B, C, H, W]` at the middle noise level: what two forms of one model must agree on.
    pub fn velocities(&self, policy: &Policy) -> Result<Tensor> {
        let x = Var::constant(self.noise.clone());
        let sigma = self.levels(policy, SIGMAS[SIGMAS.len() / 2], self.crops())?;
        let set = policy.set(self.crops());
        let v = velocity(&policy.flux(), &Tape::no_grad(), &x, &self.cond, &sigma, set, MODE)?;
        Ok(v.value().clone())
    }

    fn crops(&self) -> usize {
        self.noise.shape()[0]
    }

    /// One noise level for `crops`.
    fn levels(&self, policy: &Policy, sigma: f32, crops: usize) -> Result<NoiseLevels> {
        policy.weights.levels().of(self.noise.device(), &vec![sigma; crops])
    }

    fn picture(&self, restored: &[Image], truth: &[Image], last: &str) -> Result<Image> {
        let rows = self.lq.iter().zip(truth).take(ROWS);
        let enlarged: Vec<[Image; 2]> = rows
            .map(|(lq, hq)| {
                let (h, w) = (hq.height, hq.width);
                [nearest(lq, h, w), torch_up(lq, h, w).clamped()]
            })
            .collect();
        let rows: Vec<Vec<&Image>> = enlarged
            .iter()
            .zip(restored.iter().zip(truth))
            .map(|([lq, bicubic], (sr, hq))| vec![lq, bicubic, sr, hq])
            .collect();
        montage(&rows, &["LQ", "bicubic", "model", last], 4, 2)
    }
}

impl<'m> Policy<'m> {
    fn flux(&self) -> Flux<'m> {
        Flux { config: self.config, weights: self.weights, adapters: self.adapters }
    }
    fn set(&self, batch: usize) -> AdapterSet {
        AdapterSet::uniform(self.acting.clone(), batch)
    }
}
