//! Latents kept on disk, for codecs that cost more than reading a small file.
//!
//! An entry's name is the hash of what was encoded, pixel by pixel, and of the codec: whatever changes either (the picture,
//! the crop, the degradation, the weights) asks for another entry, so that none is ever stale. An entry that is damaged is
//! made again.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::data::Image;
use crate::files::{expect_space, write_atomic};
use crate::{Error, Result};

/// Bytes of the hash in front of the values.
const HASH: usize = 32;

/// A folder of latents. Several processes may use one at the same time.
#[derive(Debug)]
pub struct LatentCache {
    dir: PathBuf,
    codec: String,
}

impl LatentCache {
    /// The cache in `dir`, which is made if it is not there, of the latents of the codec that `codec` identifies.
    pub fn open(dir: impl AsRef<Path>, codec: impl Into<String>) -> Result<Self> {
        let dir = dir.as_ref().to_path_buf();
        if dir.exists() && !dir.is_dir() {
            return Err(Error::Usage(format!(
                "{} is a file; data.latent_cache wants a folder",
                dir.display()
            )));
        }
        std::fs::create_dir_all(&dir).map_err(Error::io(&dir))?;
        Ok(Self { dir, codec: codec.into() })
    }

    /// Refuses to begin what `latents` latents of `values` values each have no room for; says what they take.
    pub fn expect_room(&self, latents: u64, values: usize) -> Result<String> {
        let each = (HASH + 4 * values) as u64;
        let bytes = latents.saturating_mul(each);
        expect_space(
            &self.dir,
            bytes,
            "the latent cache",
            "lower data.pool, or leave data.latent_cache empty",
        )?;
        let (dir, mib) = (self.dir.display(), bytes.div_ceil(1 << 20));
        Ok(format!("latent cache {dir}: at most {latents} latents of {} KiB, {mib} MiB", each.div_ceil(1024)))
    }

    /// The `values` latents of `image`, if they are there.
    pub fn find(&self, image: &Image, values: usize) -> Option<Vec<f32>> {
        std::fs::read(self.path(image)).ok().and_then(|bytes| read(&bytes, values))
    }

    /// The `values` latents of `image`, which `encode` makes if they are not there yet.
    pub fn get(
        &self,
        image: &Image,
        values: usize,
        encode: impl FnOnce() -> Result<Vec<f32>>,
    ) -> Result<Vec<f32>> {
        if let Some(latents) = self.find(image, values) {
            return Ok(latents);
        }
        let (latents, path) = (encode()?, self.path(image));
        let folder = path.parent().unwrap_or(&self.dir);
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let payload = bytemuck::cast_slice::<f32, u8>(&latents);
        write_atomic(&path, &[&Sha256::digest(payload)[..], payload].concat())?;
        Ok(latents)
    }

    /// Where that is kept which `image` becomes.
    fn path(&self, image: &Image) -> PathBuf {
        let mut hash = Sha256::new();
        hash.update(&self.codec);
        hash.update([0]);
        hash.update((image.height as u64).to_le_bytes());
        hash.update((image.width as u64).to_le_bytes());
        hash.update(bytemuck::cast_slice::<f32, u8>(&image.data));
        let name: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        self.dir.join(&name[..2]).join(&name[2..])
    }
}

/// The `values` values of an entry that is whole.
fn read(bytes: &[u8], values: usize) -> Option<Vec<f32>> {
    let (hash, payload) = bytes.split_at_checked(HASH)?;
    let whole = payload.len() == 4 * values && Sha256::digest(payload)[..] == *hash;
    whole.then(|| bytemuck::pod_collect_to_vec(payload))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_made_once_and_again_when_anything_changed() {
        let dir = tempfile::tempdir().unwrap();
        let cache = LatentCache::open(dir.path().join("latents"), "codec 1").unwrap();
        let image = Image::from_fn(4, 4, |c, y, x| (c + y * x) as f32);
        let made = |cache: &LatentCache, image: &Image| {
            let mut made = false;
            let latents = cache.get(image, 3, || {
                made = true;
                Ok(vec![1.5, -0.0, 3.0])
            });
            assert_eq!(latents.unwrap(), [1.5, -0.0, 3.0]);
            made
        };
        assert!(made(&cache, &image) && !made(&cache, &image));
        let mut other = image.clone();
        other.data[7] += 1e-6;
        assert!(made(&cache, &other));
        let again = LatentCache::open(dir.path().join("latents"), "codec 1").unwrap();
        assert!(!made(&again, &image));
        let codec = LatentCache::open(dir.path().join("latents"), "codec 2").unwrap();
        assert!(made(&codec, &image));
        // damaged, cut off, of another size
        let path = cache.path(&image);
        let whole = std::fs::read(&path).unwrap();
        for spoil in [whole[..30].to_vec(), whole[..40].to_vec(), [&whole[..43], &[9]].concat()] {
            std::fs::write(&path, spoil).unwrap();
            assert!(made(&cache, &image) && !made(&cache, &image));
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_before_it_is_begun() {
        let dir = tempfile::tempdir().unwrap();
        let cache = LatentCache::open(dir.path(), "codec").unwrap();
        let said = cache.expect_room(100, 4096).unwrap();
        assert!(said.contains("100 latents of 17 KiB, 2 MiB"), "{said}");
        assert!(cache.expect_room(u64::MAX, 4096).unwrap_err().to_string().contains("data.pool"));
        std::fs::write(dir.path().join("file"), "").unwrap();
        assert!(LatentCache::open(dir.path().join("file"), "codec").is_err());
    }
}
