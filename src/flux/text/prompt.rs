//! What the transformer is told of a prompt: as tensors, as a file, and in a folder of those.

use crate::engine::{Device, Tensor};
use crate::files::sha256;
use crate::flux::weights::{SafeFile, write_safetensors};
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The hash of the values, among the metadata.
const HASH: &str = "sha256";

/// An encoded prompt, in f32 on the host.
#[derive(Clone, Debug)]
pub struct Prompt {
    /// T5's tokens `[tokens, width]`.
    pub txt: Tensor,
    /// CLIP's pooled vector `[width]`.
    pub pooled: Tensor,
}

impl Prompt {
    fn hash(&self) -> String {
        let bytes = [&self.txt, &self.pooled].map(|t| bytemuck::cast_slice::<f32, u8>(t.f32()));
        sha256(&bytes.concat())
    }

    /// Writes it as a safetensors file with tensors `txt` and `pooled`.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let metadata = BTreeMap::from([(HASH.to_owned(), self.hash())]);
        let tensors = [("txt", &self.txt), ("pooled", &self.pooled)].map(|(n, t)| (n.to_owned(), t.clone()));
        write_safetensors(path, &metadata, &tensors)
    }

    /// Reads what [`Prompt::save`] wrote.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let file = SafeFile::open(&path)?;
        let read = |name: &str, dimensions: usize| {
            let tensor = file.weight(name, &Device::cpu())?;
            let have = tensor.shape();
            if have.len() == dimensions && !tensor.is_empty() {
                return Ok(tensor);
            }
            let detail = format!(
                "tensor `{name}` has shape {have:?}, wanted {dimensions} dimensions: no encoded prompt"
            );
            Err(Error::format(file.path(), detail))
        };
        let prompt = Self { txt: read("txt", 2)?, pooled: read("pooled", 1)? };
        match file.metadata().get(HASH) {
            Some(hash) if *hash != prompt.hash() => Err(Error::format(
                file.path(),
                "its values are not those that were written: encode the prompt again",
            )),
            _ => Ok(prompt),
        }
    }
}

/// A folder of encoded prompts, each named by what it follows from. Several processes may use one at the same time.
#[derive(Debug)]
pub struct Cache {
    dir: PathBuf,
}

impl Cache {
    /// The cache in `dir`, which is made if it is not there.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref().to_path_buf();
        if dir.exists() && !dir.is_dir() {
            return Err(Error::Usage(format!("{} is a file; encoded prompts want a folder", dir.display())));
        }
        std::fs::create_dir_all(&dir).map_err(Error::io(&dir))?;
        Ok(Self { dir })
    }

    /// The prompt of this name and whether it was there, or what `encode` makes where there is none or it is damaged.
    pub(super) fn get(&self, name: &str, encode: impl FnOnce() -> Result<Prompt>) -> Result<(Prompt, bool)> {
        let path = self.dir.join(format!("{name}.safetensors"));
        if let Ok(prompt) = Prompt::load(&path) {
            return Ok((prompt, true));
        }
        let prompt = encode()?;
        prompt.save(&path)?;
        Ok((prompt, false))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt(value: f32) -> Prompt {
        let cpu = Device::cpu();
        let tensor = |shape: &[usize], values: &[f32]| Tensor::from_slice(&cpu, shape, values).unwrap();
        Prompt { txt: tensor(&[2, 1], &[value, 2.0]), pooled: tensor(&[3], &[1.0, -0.0, 5.0]) }
    }

    #[test]
    fn a_prompt_is_encoded_once_and_again_when_its_file_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path().join("prompts")).unwrap();
        let get = |name: &str| {
            let (got, hit) = cache.get(name, || Ok(prompt(7.0))).unwrap();
            assert_eq!((got.txt.f32(), got.pooled.shape()), (&[7.0, 2.0][..], &[3][..]));
            hit
        };
        assert!(!get("a") && get("a") && !get("b"));
        let path = dir.path().join("prompts/a.safetensors");
        let whole = std::fs::read(&path).unwrap();
        let mut other = whole.clone();
        *other.last_mut().unwrap() ^= 1;
        for spoilt in [&whole[..whole.len() - 4], &other, b""] {
            std::fs::write(&path, spoilt).unwrap();
            assert!(Prompt::load(&path).is_err() && !get("a") && get("a"));
        }
        assert!(Cache::open(&path).unwrap_err().to_string().contains("is a file"));
    }

    #[test]
    fn what_is_no_prompt_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        let p = prompt(1.0);
        let tensors = [("txt".to_owned(), p.pooled.clone()), ("pooled".to_owned(), p.pooled)];
        write_safetensors(&path, &BTreeMap::new(), &tensors).unwrap();
        let refused = Prompt::load(&path).unwrap_err().to_string();
        assert!(refused.contains("`txt` has shape [3], wanted 2 dimensions"), "{refused}");
    }
}
