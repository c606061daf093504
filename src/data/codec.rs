//! Pictures to latents and back: a fixed transform fitted to the training pictures, or a network from files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::data::Image;
use crate::engine::{Device, Tensor};
use crate::files::sha256_file;
use crate::flux::Taef1;
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
}

/// TAEF1 and where it came from.
#[derive(Clone)]
pub struct Taef1Codec {
    network: Arc<Taef1>,
    path: PathBuf,
    sha256: String,
}

/// What is written down of a codec: enough to have it again.
#[derive(Serialize, Deserialize)]
#[serde(tag = "codec", rename_all = "lowercase")]
enum Record {
    Haar(HaarCodec),
    Taef1 { path: PathBuf, sha256: String },
}

impl From<HaarCodec> for Codec {
    fn from(codec: HaarCodec) -> Self {
        Self::Haar(codec)
    }
}

impl Codec {
    /// What the options call [`HaarCodec`].
    pub const HAAR: &str = "haar";

    /// The network at `path`, see [`Taef1::files`], on `device`.
    pub fn open(path: impl AsRef<Path>, device: &Device) -> Result<Self> {
        let path = path.as_ref();
        let path = path.canonicalize().map_err(|e| {
            Error::Usage(format!(
                "{}: {e}; wanted \"{}\", or the folder or file of TAEF1's weights, as a codec",
                path.display(),
                Self::HAAR
            ))
        })?;
        let hashes = Taef1::files(&path)?.iter().map(|f| sha256_file(f)).collect::<Result<Vec<_>>>()?;
        let network = Arc::new(Taef1::load(&path, device)?);
        Ok(Self::Taef1(Taef1Codec { network, path, sha256: hashes.join(" ") }))
    }

    /// The codec that `codec.json` at `path` describes; a network's weights are read again, on `device`, and must be those
    /// that it was written with.
    pub fn load(path: impl AsRef<Path>, device: &Device) -> Result<Self> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        let wrong = |e: serde_json::Error| Error::format(path, e.to_string());
        let mut value: serde_json::Value = serde_json::from_str(&text).map_err(wrong)?;
        if let Some(fields) = value.as_object_mut() {
            // Runs of before there were others do not say.
            fields.entry("codec").or_insert_with(|| Self::HAAR.into());
        }
        match serde_json::from_value(value).map_err(wrong)? {
            Record::Haar(codec) => Ok(Self::Haar(codec)),
            Record::Taef1 { path: weights, sha256 } => {
                if !weights.exists() {
                    let detail = format!(
                        "the codec's weights are no longer at {}; put them back, or write here where they are",
                        weights.display()
                    );
                    return Err(Error::format(path, detail));
                }
                let codec = Self::open(&weights, device)?;
                match &codec {
                    Self::Taef1(c) if c.sha256 != sha256 => {
                        let (at, have) = (weights.display(), &c.sha256);
                        let detail =
                            format!("was written with weights of SHA-256 {sha256}, {at} now has {have}");
                        Err(Error::format(path, detail))
                    }
                    _ => Ok(codec),
                }
            }
        }
    }

    /// The text of `codec.json`.
    pub fn to_json(&self) -> Result<String> {
        let record = match self {
            Self::Haar(codec) => Record::Haar(codec.clone()),
            Self::Taef1(c) => Record::Taef1 { path: c.path.clone(), sha256: c.sha256.clone() },
        };
        serde_json::to_string_pretty(&record).map_err(|e| Error::shape("codec", e.to_string()))
    }

    /// What its latents depend on: two codecs with the same identity make the same.
    pub fn identity(&self) -> Result<String> {
        match self {
            Self::Haar(_) => self.to_json(),
            Self::Taef1(c) => Ok(format!("{} {}", self.name(), c.sha256)),
        }
    }

    /// What `data.codec` has to say to name it.
    pub fn option(&self) -> String {
        match self {
            Self::Haar(_) => Self::HAAR.to_owned(),
            Self::Taef1(c) => c.path.display().to_string(),
        }
    }

    /// As options and files call it.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Haar(_) => Self::HAAR,
            Self::Taef1(_) => "taef1",
        }
    }

    /// Latent channels.
    pub const fn channels(&self) -> usize {
        match self {
            Self::Haar(codec) => codec.channels(),
            Self::Taef1(_) => Taef1::CHANNELS,
        }
    }

    /// Pixels per latent position and side.
    pub const fn block(&self) -> usize {
        match self {
            Self::Haar(codec) => codec.block(),
            Self::Taef1(_) => Taef1::BLOCK,
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
        }
    }
}
