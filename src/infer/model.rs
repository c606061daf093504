//! A trained run, ready to restore images.

use crate::autograd::{Tape, Var};
use crate::data::{Codec, Image, LqResize};
use crate::engine::{DType, Device, Philox, Tensor};
use crate::flux::base::BaseModel;
use crate::flux::config::FluxConfig;
use crate::flux::lora::AdapterFile;
use crate::flux::params::{Adapter, Weights};
use crate::flux::sampler::{Conditions, sample};
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
}

/// Refuses what is no run directory, or one of a run that has not got as far as its model.
fn expect_run(run: &Path) -> Result<()> {
    let lacking = [layout::BASE, layout::CODEC].into_iter().find(|part| !run.join(part).exists());
    match lacking {
        _ if !run.is_dir() => {
            Err(Error::Usage(format!("{}: no such folder; wanted a trained run", run.display())))
        }
        Some(part) => Err(Error::format(
            run,
            format!("holds no {part}: not a trained run, or one that has not finished"),
        )),
        None => Ok(()),
    }
}

/// Reads a run directory's codec; one that is a network will compute on `device`.
pub fn load_codec(run: &Path, device: &Device) -> Result<Codec> {
    expect_run(run)?;
    Codec::load(run.join(layout::CODEC), device)
}

impl Model {
    /// The model of a run directory with those of `adapters` (see [`layout`]) that it has.
    pub fn open(run: &Path, adapters: &[&str], device: &Device) -> Result<Self> {
        expect_run(run)?;
        let base = run.join(layout::BASE);
        let base = BaseModel::open(&base)?;
        let (config, weights) = (base.config().clone(), base.load(device, DType::F32, &mut |_, _| ())?);
        let mut loaded = Vec::new();
        let mut lq_resize = LqResize::TorchBicubic;
        for dir in adapters.iter().map(|name| run.join(name)).filter(|d| d.is_dir()) {
            let file = AdapterFile::load(&dir, device)?;
            file.validate(&config)?;
            if let Some(name) = &file.lq_resize {
                let unknown = || {
                    let known: Vec<&str> = LqResize::NAMES.iter().map(|n| n.0).collect();
                    Error::format(
                        &dir,
                        format!("trained with lq_resize = {name}, wanted one of {}", known.join(", ")),
                    )
                };
                lq_resize = LqResize::named(name).ok_or_else(unknown)?;
            }
            loaded.push(Adapter::frozen(&file, 1.0));
        }
        Ok(Self { config, codec: load_codec(run, device)?, lq_resize, weights, adapters: loaded })
    }

    /// Restores low-quality images of equal size in one batch, with `steps` Euler steps. `corners[i]` is the position
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
        let c = self.codec.channels();
        let mut cond = Vec::with_capacity(lq.len() * c * h * w);
        let mut noise = Vec::with_capacity(cond.capacity());
        for (image, &corner) in lq.iter().zip(corners) {
            let up = self.lq_resize.apply(image, image.height * SCALE, image.width * SCALE);
            cond.extend(self.codec.encode(&up)?);
            noise.extend(noise_window(c, h, w, corner));
        }
        let shape = [lq.len(), c, h, w];
        let tape = Tape::no_grad();
        let pack = |z: &[f32]| {
            let planes = Var::constant(Tensor::from_slice(device, &shape, z)?);
            Ok::<_, Error>(tape.one(Pack, &[&planes])?.value().clone())
        };
        let flux = Flux { config: &self.config, weights: &self.weights, adapters: &self.adapters };
        let given = Conditions {
            cond: pack(&cond)?,
            txt: Tensor::zeros(device, &[lq.len(), 1, self.config.joint_attention_dim])?,
            pooled: Tensor::zeros(device, &[lq.len(), self.config.pooled_projection_dim])?,
            same_text: true,
            text_multiplicity: TEXT_TOKENS as f32,
            img_ids: grid_ids(h / 2, w / 2),
            guidance: 0.0,
            adapters: (0..self.adapters.len()).collect(),
        };
        let x = sample(&flux, &Tape::no_grad(), &pack(&noise)?, &given, steps, &mut |_, _, _| {})?;
        let planes = tape.one(Unpack { height: h, width: w }, &[&Var::constant(x)])?;
        let values = planes.value().values()?;
        values.chunks_exact(c * h * w).map(|z| Ok(self.codec.decode(z, h, w)?.clamped())).collect()
    }
}

/// Noise `[c, h, w]` at `corner` of an endless field: cell (row, column) of a channel always draws the same value.
fn noise_window(c: usize, h: usize, w: usize, (row, col): (usize, usize)) -> Vec<f32> {
    let mut out = vec![0.0; c * h * w];
    for (i, line) in out.chunks_exact_mut(w).enumerate() {
        let (channel, y) = (i / h, row + i % h);
        let stream = (channel as u64) << 32 | y as u64;
        Philox::new(SAMPLE_SEED, stream).normals(col as u64, line);
    }
    out
}
