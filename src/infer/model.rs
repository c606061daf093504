//! A trained run, ready to restore images.

use super::parts::{Parts, Runs};
use super::upscale::{Settings, TOKENS};
use crate::autograd::{Tape, Var};
use crate::data::{Codec, Image, LqResize};
use crate::engine::{DType, Device, Philox, Tensor};
use crate::flux::base::BaseModel;
use crate::flux::config::FluxConfig;
use crate::flux::lora::AdapterFile;
use crate::flux::modulation::Known;
use crate::flux::params::{Adapter, Weights};
use crate::flux::sampler::{Conditions, sample};
use crate::flux::text::Prompt;
use crate::flux::transformer::{Flux, TEXT_TOKENS, grid_ids};
use crate::ops::patch::{Pack, Unpack};
use crate::{Error, Result};
use std::path::Path;

/// Super-resolution factor of the models.
pub const SCALE: usize = 4;

/// Seed of the sampler's noise, the same before each image (the reference's).
pub const SAMPLE_SEED: u64 = 42;

/// Names of what a run directory holds.
pub mod layout {
    /// The base model: `config.json` and its weights.
    pub const BASE: &str = "base";
    /// The latent codec.
    pub const CODEC: &str = "codec.json";
    /// The super-resolution adapter.
    pub const SFT: &str = "base_sft";
    /// The adversary's adapter.
    pub const ADVERSARY: &str = "adv";
    /// The preference adapter.
    pub const ASDPO: &str = "train_dpo";
}

/// Base weights, codec and the adapters to apply.
pub struct Model {
    /// The transformer's structure.
    pub config: FluxConfig,
    /// Pixels ↔ latents.
    pub codec: Codec,
    /// How LQ was brought to HQ size in training.
    pub lq_resize: LqResize,
    /// The base weights.
    pub weights: Weights,
    /// All of them are applied.
    pub adapters: Vec<Adapter>,
    /// What the transformer is told in words; `None`: zeros, as in training.
    pub prompt: Option<Prompt>,
}

/// Reads the codec of a run, or of the one that it was built from; one that is a network will compute on `device`.
pub fn load_codec(run: &Path, device: &Device) -> Result<Codec> {
    let runs = Runs::of(run)?;
    // What lacks that is no run.
    runs.base()?;
    Codec::load(runs.part(layout::CODEC)?, device)
}

impl Model {
    /// The model of a run directory with those of `adapters` (see [`layout`]) that it has.
    pub fn open(run: &Path, adapters: &[&str], device: &Device) -> Result<Self> {
        let runs = Runs::of(run)?;
        let adapters = adapters.iter().filter_map(|name| Some((runs.find(name)?, 1.0))).collect();
        let (base, codec) = (runs.base()?, runs.part(layout::CODEC)?);
        let parts = Parts { base, codec, adapters, prompt: None };
        Self::load(&parts, device, DType::F32, None, &mut |_, _| ())
    }

    /// The model that these parts make, its activations of `dtype` (bf16: a GPU's), for no other upscaling than what is
    /// `asked`, if that is known: its modulation is a table then. `progress` is [`BaseModel::load`]'s.
    pub fn load(
        parts: &Parts,
        device: &Device,
        dtype: DType,
        asked: Option<&Settings>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self> {
        let base = BaseModel::open(&parts.base)?;
        let config = base.config().clone();
        let mut adapters = Vec::new();
        let mut lq_resize = LqResize::TorchBicubic;
        for (path, strength) in &parts.adapters {
            let file = AdapterFile::load(path, device)?;
            file.validate(&config)?;
            if let Some(name) = &file.lq_resize {
                let unknown = || {
                    let known: Vec<&str> = LqResize::NAMES.iter().map(|n| n.0).collect();
                    Error::format(
                        path,
                        format!("trained with lq_resize = {name}, wanted one of {}", known.join(", ")),
                    )
                };
                lq_resize = LqResize::named(name).ok_or_else(unknown)?;
            }
            adapters.push(Adapter::frozen(&file.computing_in(dtype)?, *strength));
        }
        let codec = match parts.codec.extension() {
            Some(ending) if ending == "json" => Codec::load(&parts.codec, device)?,
            _ => Codec::open(&parts.codec, device)?,
        };
        if config.in_channels != 4 * codec.channels() {
            let (tokens, name, channels) = (config.in_channels, codec.name(), codec.channels());
            let detail = format!(
                "in_channels is {tokens}; the codec {name} has {channels} channels, and a token four times as many"
            );
            return Err(Error::format(parts.base.join("config.json"), detail));
        }
        let prompt = parts.prompt.as_ref().map(|path| {
            let prompt = Prompt::load(path)?;
            let (have, want) = (
                [prompt.txt.width(), prompt.pooled.width()],
                [config.joint_attention_dim, config.pooled_projection_dim],
            );
            if have != want {
                let detail = format!(
                    "txt and pooled are {have:?} wide, the model takes {want:?}: another model's prompt"
                );
                return Err(Error::format(path, detail));
            }
            Ok(prompt)
        });
        let prompt = prompt.transpose()?;
        let weights = match asked {
            None => base.load(device, dtype, progress)?,
            Some(settings) => {
                let sigma = settings.sigmas(codec.block());
                let pooled = prompt.as_ref().map(|p| p.pooled.f32().to_vec());
                let known = Known { sigma, guidance: settings.guidance, pooled };
                base.load_tabulated(device, dtype, &known, progress)?
            }
        };
        Ok(Self { config, codec, lq_resize, weights, adapters, prompt })
    }

    /// The transformer with its adapters.
    pub(super) fn flux(&self) -> Flux<'_> {
        Flux { config: &self.config, weights: &self.weights, adapters: &self.adapters }
    }

    /// What the sampler is given beside the latents: condition planes `[B, C, h, w]`, no text.
    pub(super) fn conditions(&self, cond: &Tensor, guidance: f32) -> Result<Conditions> {
        let &[batch, _, h, w] = cond.shape() else {
            return Err(Error::shape("conditions", format!("shape {:?}, wanted [B, C, h, w]", cond.shape())));
        };
        let device = cond.device();
        let (txt, pooled, text_multiplicity) = match &self.prompt {
            None => {
                let txt = Tensor::zeros(device, &[batch, 1, self.config.joint_attention_dim])?;
                let pooled = Tensor::zeros(device, &[batch, self.config.pooled_projection_dim])?;
                // One stands for all, which are equal.
                (txt, pooled, TEXT_TOKENS as f32)
            }
            Some(prompt) => {
                let repeated = |t: &Tensor| {
                    let shape = [&[batch], t.shape()].concat();
                    Tensor::from_slice(device, &shape, &t.f32().repeat(batch))
                };
                (repeated(&prompt.txt)?, repeated(&prompt.pooled)?, 1.0)
            }
        };
        Ok(Conditions {
            cond: pack(cond)?,
            txt,
            pooled,
            same_text: true,
            text_multiplicity,
            img_ids: grid_ids(h / 2, w / 2),
            guidance,
            adapters: (0..self.adapters.len()).collect(),
        })
    }

    /// Restores low-quality images of equal size, as many at once as a pass takes, with `steps` Euler steps. `corners[i]` is the position
    /// (row, column), in latent cells, of image `i` in the noise field: tiles of one image share it.
    pub fn restore(
        &self,
        lq: &[Image],
        corners: &[(usize, usize)],
        steps: usize,
        device: &Device,
    ) -> Result<Vec<Image>> {
        let Some(first) = lq.first() else { return Ok(Vec::new()) };
        let block = self.codec.block();
        let (h, w) = (first.height * SCALE / block, first.width * SCALE / block);
        let at_once = (4 * TOKENS / (h * w).max(1)).max(1);
        if lq.len() > at_once {
            let parts = lq.chunks(at_once).zip(corners.chunks(at_once));
            let parts = parts.map(|(lq, corners)| self.restore(lq, corners, steps, device));
            return Ok(parts.collect::<Result<Vec<_>>>()?.concat());
        }
        let c = self.codec.channels();
        let mut cond = Vec::with_capacity(lq.len() * c * h * w);
        let mut noise = Vec::with_capacity(cond.capacity());
        for (image, &corner) in lq.iter().zip(corners) {
            let up = self.lq_resize.apply(image, image.height * SCALE, image.width * SCALE);
            cond.extend(self.codec.encode(&up)?);
            noise.extend(noise_window(SAMPLE_SEED, [c, h, w], corner));
        }
        let planes = |z: &[f32]| Tensor::from_slice(device, &[lq.len(), c, h, w], z);
        let (flux, given) = (self.flux(), self.conditions(&planes(&cond)?, 0.0)?);
        let x = sample(&flux, &Tape::no_grad(), &pack(&planes(&noise)?)?, &given, steps, &mut |_, _, _| {})?;
        let values = unpack(x, h, w)?.values()?;
        values.chunks_exact(c * h * w).map(|z| Ok(self.codec.decode(z, h, w)?.clamped())).collect()
    }
}

/// Planes `[B, C, h, w]` as tokens.
pub(super) fn pack(planes: &Tensor) -> Result<Tensor> {
    Ok(Tape::no_grad().one(Pack, &[&Var::constant(planes.clone())])?.value().clone())
}

/// Tokens as planes of `height`×`width`.
pub(super) fn unpack(tokens: Tensor, height: usize, width: usize) -> Result<Tensor> {
    Ok(Tape::no_grad().one(Unpack { height, width }, &[&Var::constant(tokens)])?.value().clone())
}

/// Noise `[c, h, w]` at `corner` of an endless field: cell (row, column) of a channel always draws the same value.
pub(super) fn noise_window(seed: u64, [c, h, w]: [usize; 3], (row, col): (usize, usize)) -> Vec<f32> {
    let mut out = vec![0.0; c * h * w];
    for (i, line) in out.chunks_exact_mut(w).enumerate() {
        let (channel, y) = (i / h, row + i % h);
        let stream = (channel as u64) << 32 | y as u64;
        Philox::new(seed, stream).normals(col as u64, line);
    }
    out
}
