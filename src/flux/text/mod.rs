//! FLUX.1's text encoders, CLIP-L (pooled) and T5-XXL, and what they make of a prompt.
//!
//! Their weights, 9.5 GB of them T5's, are read from the files' map where they are used and dropped after: no more than a
//! layer's are ever held, on any device. A prompt that is asked for again comes from a [`Cache`]. There is no attention mask,
//! as in FLUX.1: padding is attended to.

mod clip;
mod encoder;
mod prompt;
mod t5;
#[cfg(feature = "text")]
mod tokenizer;

pub use clip::{Clip, ClipConfig};
pub use prompt::{Cache, Prompt};
pub use t5::{T5, T5Config};
#[cfg(feature = "text")]
pub use tokenizer::Tokenizer;

use crate::engine::{DType, Device, simd};
use crate::files::{sha256, sha256_file};
use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// Text tokens of FLUX.1-dev, and the most there may be.
pub const TOKENS: usize = 512;

/// The two encoders of a model folder in diffusers' layout, with their tokenizers where it has them.
pub struct TextEncoders {
    dir: PathBuf,
    clip: Clip,
    t5: T5,
    dtype: DType,
    /// See [`TextEncoders::telling`].
    told: Box<dyn Fn(usize, usize) + Send + Sync>,
}

/// Folders of the encoders and of their tokenizers.
const CLIP: [&str; 2] = ["text_encoder", "tokenizer"];
const T5_FOLDERS: [&str; 2] = ["text_encoder_2", "tokenizer_2"];

impl TextEncoders {
    /// Opens `text_encoder` and `text_encoder_2` of `dir`, to compute on `device`, beside a residual stream in f32, in
    /// `dtype` (bf16: a GPU's). Weights are looked at, not read.
    pub fn open(dir: impl AsRef<Path>, device: &Device, dtype: DType) -> Result<Self> {
        let dir = dir.as_ref();
        if let Some(part) = [CLIP[0], T5_FOLDERS[0]].into_iter().find(|part| !dir.join(part).is_dir()) {
            return Err(Error::Usage(format!(
                "{} has no folder {part}: wanted a model with text encoders, as FLUX.1-dev in diffusers' layout",
                dir.display()
            )));
        }
        Ok(Self {
            dir: dir.to_path_buf(),
            clip: Clip::open(dir.join(CLIP[0]), device, dtype)?,
            t5: T5::open(dir.join(T5_FOLDERS[0]), device, dtype)?,
            dtype,
            told: Box::new(|_, _| ()),
        })
    }

    /// With `told` of T5's layers: how many are done, each read when its turn has come, and how many there are.
    pub fn telling(self, told: impl Fn(usize, usize) + Send + Sync + 'static) -> Self {
        Self { told: Box::new(told), ..self }
    }

    /// What `text` becomes, T5's ids cut or padded to `tokens` of them: FLUX.1-dev wants [`TOKENS`].
    pub fn encode(&self, text: &str, tokens: usize) -> Result<Prompt> {
        let (clip, t5) = self.ids(text, tokens)?;
        let (_, pooled) = self.clip.encode(&[clip])?;
        let txt = self.t5.encode(&[t5], &mut |i, _| (self.told)(i + 1, self.t5.layers()))?;
        let (tokens, widths) = (txt.shape()[1], [txt.width(), pooled.width()]);
        let cpu = Device::cpu();
        let prompt = Prompt {
            txt: txt.to(&cpu)?.reshape(&[tokens, widths[0]])?,
            pooled: pooled.to(&cpu)?.reshape(&[widths[1]])?,
        };
        for (part, values) in [(T5_FOLDERS[0], &prompt.txt), (CLIP[0], &prompt.pooled)] {
            if let Some(i) = simd::first_non_finite(values.f32()) {
                let detail = format!(
                    "makes {} of {text:?}: its weights are damaged; fetch them again",
                    values.f32()[i]
                );
                return Err(Error::format(self.dir.join(part), detail));
            }
        }
        Ok(prompt)
    }

    /// [`TextEncoders::encode`], or what `cache` has of it, and whether it had it.
    pub fn encode_cached(&self, text: &str, tokens: usize, cache: &Cache) -> Result<(Prompt, bool)> {
        cache.get(&self.key(text, tokens)?, || self.encode(text, tokens))
    }

    /// A name for what [`TextEncoders::encode`] gives: of the prompt, its length, the weights and the small files beside
    /// them, the tokenizers' and what is computed in.
    fn key(&self, text: &str, tokens: usize) -> Result<String> {
        let mut all =
            format!("{} {} {tokens} {}\n", self.clip.identity(), self.t5.identity(), self.dtype.name());
        for part in [CLIP, T5_FOLDERS].concat() {
            all += &small_files(&self.dir.join(part))?;
        }
        Ok(sha256((all + text).as_bytes()))
    }

    /// The ids that CLIP and T5 are given.
    fn ids(&self, text: &str, tokens: usize) -> Result<(Vec<u32>, Vec<u32>)> {
        if !(1..=TOKENS).contains(&tokens) {
            return Err(Error::Usage(format!("a prompt of {tokens} text tokens; wanted 1 to {TOKENS}")));
        }
        let length = self.clip.config().max_position_embeddings;
        let clip = self.of(CLIP[1], text, length, self.clip.config().empty())?;
        let t5 = self.of(T5_FOLDERS[1], text, tokens, self.t5.config().empty())?;
        Ok((clip, t5))
    }

    /// The `length` ids of `text` by the tokenizer in folder `part`. A model without one knows the empty prompt: the ids
    /// `empty` and a padding.
    fn of(&self, part: &str, text: &str, length: usize, (empty, pad): (Vec<u32>, u32)) -> Result<Vec<u32>> {
        let folder = self.dir.join(part);
        if folder.is_dir() {
            #[cfg(feature = "text")]
            return Tokenizer::open(&folder, length)?.encode(text);
            #[cfg(not(feature = "text"))]
            return Err(Error::Usage("prompts want the feature `text`, which has the tokenizers".into()));
        }
        if !text.is_empty() {
            return Err(Error::Usage(format!(
                "{} has no folder {part}: without a tokenizer only the empty prompt is known, not {text:?}",
                self.dir.display()
            )));
        }
        // The end is kept, as tokenizers do.
        let mut ids = empty;
        ids.drain(..ids.len().saturating_sub(length));
        ids.resize(length, pad);
        Ok(ids)
    }
}

/// Names and hashes of a folder's files but the weights; nothing where there is no folder.
fn small_files(dir: &Path) -> Result<String> {
    let mut lines = Vec::new();
    if dir.is_dir() {
        for entry in std::fs::read_dir(dir).map_err(Error::io(dir))? {
            let path = entry.map_err(Error::io(dir))?.path();
            let weights = path.extension().is_some_and(|e| e == "safetensors" || e == "bin");
            if path.is_file() && !weights {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                lines.push(format!("{name} {}\n", sha256_file(&path)?));
            }
        }
    }
    lines.sort();
    Ok(lines.concat())
}
