//! FLUX.1's autoencoder, diffusers' `AutoencoderKL`: pictures in [−1, 1] to a normal distribution of latents, and latents
//! to pictures.
//!
//! ```text
//! (mean, logvar) = encoder(picture);   sample = mean + e^{logvar/2}·ε;   latent z = (sample − shift)·scale
//! picture = decoder(z/scale + shift)
//! ```
//! It computes in f32, also where its weights are bf16: in 16 bits FLUX.1's overflows. Samples of a batch are taken one
//! after the other. One whose sides are at most [`Tiling::side`] is computed whole; of a larger one tiles of that size,
//! which share [`Tiling::overlap`] pixels and are blended with linear ramps.
//!
//! So memory is bounded: at FLUX.1's width decoding has 2.6 KB in use per pixel of a tile on the CPU and 3.6 KB on a GPU, and
//! what the device's arena keeps between layers is up to as much again; of a tile of 768×768 that is 1.5 and 2.1 GB (three
//! and four with what is kept), of 512×512 0.7 and 0.9 GB, beside 0.34 GB of weights. Encoding takes less. A tile's
//! normalisations see that tile alone, which is why a picture in tiles is not to the bit what it is whole.

mod config;
mod layers;
mod tiles;
mod weights;

pub use config::VaeConfig;
pub use tiles::Tiling;

use crate::engine::{Device, Tensor};
use crate::ops::dims4;
use crate::{Error, Result};
use layers::Network;
use std::path::{Path, PathBuf};
use weights::Reader;

const NAME: &str = "vae";

/// The autoencoder.
pub struct Vae {
    config: VaeConfig,
    encoder: Network,
    decoder: Network,
    tiling: Tiling,
    device: Device,
}

/// A normal distribution of latents for each picture, `[batch, channels, h, w]`, before scale and shift; in host memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Posterior {
    /// The most probable latents.
    pub mean: Vec<f32>,
    /// Logarithm of the variance, clamped to [−30, 20].
    pub logvar: Vec<f32>,
}

impl Posterior {
    /// mean + e^{logvar/2}·`noise`, which is standard normal.
    pub fn sample(&self, noise: &[f32]) -> Vec<f32> {
        let each = self.mean.iter().zip(&self.logvar).zip(noise);
        each.map(|((mean, logvar), e)| mean + (0.5 * logvar).exp() * e).collect()
    }
}

impl Vae {
    /// Whether the weights at `path`, a folder or a file, are such an autoencoder's: by the class in a folder's
    /// `config.json`, or by what its tensors are called.
    pub fn is_at(path: &Path) -> bool {
        weights::is_vae(&weights::folder(path))
    }

    /// The files at `path` that say what it computes, see [`Vae::load`]: weights, then dimensions.
    pub fn files(path: &Path) -> Result<Vec<PathBuf>> {
        let config = weights::folder(path).join("config.json");
        let weights = weights::open(path)?.0;
        Ok(weights.paths().map(Path::to_path_buf).chain(config.exists().then_some(config)).collect())
    }

    /// Reads the weights at `path`, to compute on `device`: diffusers' folder (`config.json` and its `.safetensors`, sharded
    /// or not) or one that has it as its `vae`, or Black Forest Labs' `ae.safetensors`. Every tensor must be there, in its
    /// shape, and no other.
    pub fn load(path: &Path, device: &Device) -> Result<Self> {
        let (folder, config) = weights::open(path)?;
        let reader = Reader::new(&folder, &config, device);
        let vae = Self {
            encoder: Network::encoder(&reader)?,
            decoder: Network::decoder(&reader)?,
            tiling: Tiling::default(),
            device: device.clone(),
            config: config.clone(),
        };
        reader.expect_nothing_left(path)?;
        Ok(vae)
    }

    /// With other tiles.
    pub fn tiled(self, tiling: Tiling) -> Self {
        Self { tiling, ..self }
    }

    /// Its dimensions.
    pub fn config(&self) -> &VaeConfig {
        &self.config
    }

    /// Where it computes.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Pictures `[B, 3, h·block, w·block]` in [−1, 1] → distributions of latents `[B, channels, h, w]`.
    pub fn encode(&self, pictures: &Tensor) -> Result<Posterior> {
        let block = self.config.block();
        let cells = self.cells(pictures, self.config.in_channels, block)?;
        let [mut mean, mut logvar] = [const { Vec::new() }; 2];
        for b in 0..pictures.shape()[0] {
            let picture = pictures.rows(b..b + 1)?;
            let both =
                self.tiling.run(&picture, cells, [block, 1], &self.device, |x| self.encoder.apply(x))?;
            let (first, second) = both.split_at(both.len() / 2);
            mean.extend_from_slice(first);
            logvar.extend(second.iter().map(|v| v.clamp(-30.0, 20.0)));
        }
        Ok(Posterior { mean, logvar })
    }

    /// Samples as the transformer has them: (sample − shift)·scale.
    pub fn scaled(&self, mut samples: Vec<f32>) -> Vec<f32> {
        let (scale, shift) = (self.config.scaling_factor, self.config.shift());
        samples.iter_mut().for_each(|v| *v = (*v - shift) * scale);
        samples
    }

    /// Scaled latents `[B, channels, h, w]` → pictures `[B, 3, h·block, w·block]`, in [−1, 1] but for overshoot.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        let block = self.config.block();
        let cells = self.cells(latents, self.config.latent_channels, 1)?;
        let mut all = Vec::new();
        for b in 0..latents.shape()[0] {
            let z = self.unscaled(&latents.rows(b..b + 1)?)?;
            all.extend(self.tiling.run(&z, cells, [1, block], &self.device, |z| self.decoder.apply(z))?);
        }
        let [high, wide] = cells.map(|n| n * block);
        Tensor::from_slice(&self.device, &[latents.shape()[0], self.config.out_channels, high, wide], &all)
    }

    /// The samples that scaled latents are; so few that they may as well go by the host.
    fn unscaled(&self, latents: &Tensor) -> Result<Tensor> {
        let (scale, shift) = (self.config.scaling_factor, self.config.shift());
        let samples: Vec<f32> = latents.values()?.into_iter().map(|z| z / scale + shift).collect();
        Tensor::from_slice(&self.device, latents.shape(), &samples)
    }

    /// What the middle blocks make of whole pictures and of whole scaled latents, as golden vectors have it.
    pub(crate) fn middles(&self, pictures: &Tensor, latents: &Tensor) -> Result<[Tensor; 2]> {
        Ok([
            self.encoder.to_middle(&pictures.to(&self.device)?)?,
            self.decoder.to_middle(&self.unscaled(latents)?)?,
        ])
    }

    /// Height and width in latent cells of `x`, which has `channels` channels and `each`×`each` values per cell.
    fn cells(&self, x: &Tensor, channels: usize, each: usize) -> Result<[usize; 2]> {
        let [_, have, h, w] = dims4(NAME, "the input", x)?;
        if have != channels || [h, w].iter().any(|&n| n == 0 || n % each != 0) {
            let detail = format!(
                "the input has shape {:?}, wanted [batch, {channels}, height, width], sides multiples of {each}",
                x.shape()
            );
            return Err(Error::shape(NAME, detail));
        }
        Ok([h / each, w / each])
    }
}
