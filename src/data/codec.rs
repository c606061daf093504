//! Pictures to latents and back: a fixed transform fitted to the training pictures, or a network from files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use sha2::{Digest, Sha256};

use crate::data::Image;
use crate::engine::{Device, Philox, Tensor};
use crate::files::sha256_file;
use crate::flux::{Taef1, Vae};
use crate::{Error, Result};

mod haar;

pub use haar::HaarCodec;

/// A latent codec, ready to use; cheap to clone.
#[derive(Clone)]
pub enum Codec {
    /// The tiny preset's.
    Haar(HaarCodec),
    /// FLUX.1's latents by TAEF1, computed where its weights are.
    Taef1(Taef1Codec),
    /// FLUX.1's latents by its own autoencoder, likewise.
    Vae(VaeCodec),
}

/// TAEF1 and where it came from.
#[derive(Clone)]
pub struct Taef1Codec {
    network: Arc<Taef1>,
    path: PathBuf,
    sha256: String,
}

/// FLUX.1's autoencoder, where it came from, and which of the latents that a picture may have are taken.
#[derive(Clone)]
pub struct VaeCodec {
    network: Arc<Vae>,
    path: PathBuf,
    sha256: String,
    latents: Latents,
}

/// Which latents an autoencoder that gives a distribution of them makes of a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Latents {
    /// A sample, always the same of the same picture: its noise is counted from the hash of the pixels.
    Sample,
    /// The most probable ones.
    Mode,
}

impl Latents {
    /// Every kind and its name in configurations.
    pub const NAMES: &'static [(&'static str, Self)] = &[("sample", Self::Sample), ("mode", Self::Mode)];
}

/// What is written down of a codec: enough to have it again.
#[derive(Serialize, Deserialize)]
#[serde(tag = "codec", rename_all = "lowercase")]
enum Record {
    Haar(HaarCodec),
    Taef1 { path: PathBuf, sha256: String },
    Vae { path: PathBuf, sha256: String, latents: Latents },
}

impl From<HaarCodec> for Codec {
    fn from(codec: HaarCodec) -> Self {
        Self::Haar(codec)
    }
}

impl Codec {
    /// What the options call [`HaarCodec`].
    pub const HAAR: &str = "haar";

    /// Seed of the noise of samples: they are of the picture, not of the run, so that they may be kept.
    const SAMPLE_SEED: u64 = 42;

    /// The network at `path`, see [`Vae::load`] and [`Taef1::files`], on `device`. What is there says which it is.
    pub fn open(path: impl AsRef<Path>, device: &Device) -> Result<Self> {
        let path = path.as_ref();
        let path = path.canonicalize().map_err(|e| {
            Error::Usage(format!(
                "{}: {e}; wanted \"{}\", or the folder or file of TAEF1's weights or FLUX.1's autoencoder's, as a codec",
                path.display(),
                Self::HAAR
            ))
        })?;
        let hash = |files: Vec<PathBuf>| -> Result<String> {
            Ok(files.iter().map(|f| sha256_file(f)).collect::<Result<Vec<_>>>()?.join(" "))
        };
        if Vae::is_at(&path) {
            let (network, sha256) = (Arc::new(Vae::load(&path, device)?), hash(Vae::files(&path)?)?);
            return Ok(Self::Vae(VaeCodec { network, path, sha256, latents: Latents::Sample }));
        }
        let sha256 = hash(Taef1::files(&path)?)?;
        let network = Arc::new(Taef1::load(&path, device)?);
        Ok(Self::Taef1(Taef1Codec { network, path, sha256 }))
    }

    /// With these of the latents that a picture may have; there is a choice only with an autoencoder that samples.
    pub fn taking(self, latents: Latents) -> Self {
        match self {
            Self::Vae(c) => Self::Vae(VaeCodec { latents, ..c }),
            other => other,
        }
    }

    /// The codec that `codec.json` at `path` describes; a network's weights are read again, on `device`, and must be
    /// those that it was written with.
    pub fn load(path: impl AsRef<Path>, device: &Device) -> Result<Self> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        let wrong = |e: serde_json::Error| Error::format(path, e.to_string());
        let mut value: serde_json::Value = serde_json::from_str(&text).map_err(wrong)?;
        if let Some(fields) = value.as_object_mut() {
            // Runs of before there were others do not say.
            fields.entry("codec").or_insert_with(|| Self::HAAR.into());
        }
        let (weights, sha256, latents) = match serde_json::from_value(value).map_err(wrong)? {
            Record::Haar(codec) => return Ok(Self::Haar(codec)),
            Record::Taef1 { path, sha256 } => (path, sha256, Latents::Sample),
            Record::Vae { path, sha256, latents } => (path, sha256, latents),
        };
        let at = weights.display();
        if !weights.exists() {
            let detail = format!(
                "the codec's weights are no longer at {at}; put them back, or write here where they are"
            );
            return Err(Error::format(path, detail));
        }
        let codec = Self::open(&weights, device)?.taking(latents);
        match &codec {
            Self::Taef1(Taef1Codec { sha256: have, .. }) | Self::Vae(VaeCodec { sha256: have, .. })
                if *have != sha256 =>
            {
                let detail = format!("was written with weights of SHA-256 {sha256}, {at} now has {have}");
                Err(Error::format(path, detail))
            }
            _ => Ok(codec),
        }
    }

    /// The text of `codec.json`.
    pub fn to_json(&self) -> Result<String> {
        let record = match self {
            Self::Haar(codec) => Record::Haar(codec.clone()),
            Self::Taef1(c) => Record::Taef1 { path: c.path.clone(), sha256: c.sha256.clone() },
            Self::Vae(c) => {
                Record::Vae { path: c.path.clone(), sha256: c.sha256.clone(), latents: c.latents }
            }
        };
        serde_json::to_string_pretty(&record).map_err(|e| Error::shape("codec", e.to_string()))
    }

    /// The same codec, to compute on `device`: a network's weights are read there from where they were found.
    pub fn to(&self, device: &Device) -> Result<Self> {
        Ok(match self {
            Self::Haar(codec) => Self::Haar(codec.clone()),
            Self::Taef1(c) => {
                Self::Taef1(Taef1Codec { network: Arc::new(Taef1::load(&c.path, device)?), ..c.clone() })
            }
            Self::Vae(c) => {
                Self::Vae(VaeCodec { network: Arc::new(Vae::load(&c.path, device)?), ..c.clone() })
            }
        })
    }

    /// Where it computes; `None`: on the host, wherever it is asked to.
    pub fn device(&self) -> Option<&Device> {
        match self {
            Self::Haar(_) => None,
            Self::Taef1(c) => Some(c.network.device()),
            Self::Vae(c) => Some(c.network.device()),
        }
    }

    /// What its latents depend on: two codecs with the same identity make the same, to rounding.
    pub fn identity(&self) -> Result<String> {
        match self {
            Self::Haar(_) => self.to_json(),
            Self::Taef1(c) => Ok(format!("{} {}", self.name(), c.sha256)),
            Self::Vae(c) => Ok(format!("{} {:?} {}", self.name(), c.latents, c.sha256)),
        }
    }

    /// What its latents depend on to the bit: a GPU's kernels sum in another order.
    pub fn bits(&self) -> Result<String> {
        let identity = self.identity()?;
        let gpu = self.device().is_some_and(|device| device.gpu().is_some());
        Ok(if gpu { format!("{identity} cuda") } else { identity })
    }

    /// What `data.codec` has to say to name it.
    pub fn option(&self) -> String {
        match self {
            Self::Haar(_) => Self::HAAR.to_owned(),
            Self::Taef1(c) => c.path.display().to_string(),
            Self::Vae(c) => c.path.display().to_string(),
        }
    }

    /// As options and files call it.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Haar(_) => Self::HAAR,
            Self::Taef1(_) => "taef1",
            Self::Vae(_) => "vae",
        }
    }

    /// Latent channels.
    pub fn channels(&self) -> usize {
        match self {
            Self::Haar(codec) => codec.channels(),
            Self::Taef1(_) => Taef1::CHANNELS,
            Self::Vae(c) => c.network.config().latent_channels,
        }
    }

    /// Pixels per latent position and side.
    pub fn block(&self) -> usize {
        match self {
            Self::Haar(codec) => codec.block(),
            Self::Taef1(_) => Taef1::BLOCK,
            Self::Vae(c) => c.network.config().block(),
        }
    }

    /// Latents `[channels, H/block, W/block]` of a picture in [0, 1] whose sides are multiples of the block.
    pub fn encode(&self, image: &Image) -> Result<Vec<f32>> {
        let (h, w, block) = (image.height, image.width, self.block());
        if h == 0 || w == 0 || h % block != 0 || w % block != 0 {
            let detail = format!("{h}×{w} pixels: sides must be multiples of {block}");
            return Err(Error::shape("encode", detail));
        }
        match self {
            Self::Haar(codec) => {
                let mut z = vec![0.0; codec.channels() * (h / block) * (w / block)];
                codec.encode(image, &mut z)?;
                Ok(z)
            }
            Self::Taef1(c) => {
                let x = Tensor::from_slice(c.network.device(), &[1, 3, h, w], &image.data)?;
                c.network.encode(&x)?.values()
            }
            Self::Vae(c) => {
                let signed: Vec<f32> = image.data.iter().map(|v| 2.0 * v - 1.0).collect();
                let x = Tensor::from_slice(c.network.device(), &[1, 3, h, w], &signed)?;
                let posterior = c.network.encode(&x)?;
                Ok(c.network.scaled(match c.latents {
                    Latents::Mode => posterior.mean,
                    Latents::Sample => posterior.sample(&noise_of(image, posterior.mean.len())),
                }))
            }
        }
    }

    /// The picture `[3, h·block, w·block]` of latents `[channels, h, w]`; may overshoot [0, 1].
    pub fn decode(&self, latents: &[f32], h: usize, w: usize) -> Result<Image> {
        match self {
            Self::Haar(codec) => codec.decode(latents, h, w),
            Self::Taef1(c) => {
                let z = Tensor::from_slice(c.network.device(), &[1, Taef1::CHANNELS, h, w], latents)?;
                Image::new(h * Taef1::BLOCK, w * Taef1::BLOCK, c.network.decode(&z)?.values()?)
            }
            Self::Vae(c) => {
                let z = Tensor::from_slice(c.network.device(), &[1, self.channels(), h, w], latents)?;
                let signed = c.network.decode(&z)?.values()?;
                let block = self.block();
                Image::new(h * block, w * block, signed.iter().map(|v| 0.5 * v + 0.5).collect())
            }
        }
    }
}

/// `n` normals that follow from the pixels of `image`.
fn noise_of(image: &Image, n: usize) -> Vec<f32> {
    let hash = Sha256::digest(bytemuck::cast_slice::<f32, u8>(&image.data));
    let stream = hash.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    let mut noise = vec![0.0; n];
    Philox::new(Codec::SAMPLE_SEED, stream).normals(0, &mut noise);
    noise
}
