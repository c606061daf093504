//! Where the autoencoder's weights are and what they are called: diffusers' names, or those of the original code (Black
//! Forest Labs' `ae.safetensors`), which are one pure function of diffusers'.

use super::config::{CLASS, VaeConfig};
use crate::engine::{Device, Tensor};
use crate::error::did_you_mean;
use crate::flux::weights::{Folder, SafeFile};
use crate::{Error, Result};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A tensor that every autoencoder has, in both namings and in TAEF1's none.
const EVERY: &str = "encoder.conv_in.weight";
/// One that only the original naming has.
const ORIGINAL: &str = "encoder.mid.block_1.norm1.weight";

/// `path`, or its `vae` where it is a model's folder.
pub fn folder(path: &Path) -> PathBuf {
    let vae = path.join("vae");
    if vae.is_dir() { vae } else { path.to_path_buf() }
}

/// Whether an autoencoder's weights are at `path`.
pub fn is_vae(path: &Path) -> bool {
    let class = || -> Option<String> {
        let text = std::fs::read_to_string(path.join("config.json")).ok()?;
        let config: serde_json::Value = serde_json::from_str(&text).ok()?;
        Some(config.get("_class_name")?.as_str()?.to_owned())
    };
    let holds = || if path.is_dir() { Folder::open(path) } else { SafeFile::open(path).map(Folder::from) };
    match class() {
        Some(class) => class == CLASS,
        None => holds().is_ok_and(|f| f.contains(EVERY)),
    }
}

/// The weights at `path` and their dimensions, which are those of a `config.json` where there is one.
pub fn open(path: &Path) -> Result<(Folder, VaeConfig)> {
    let path = folder(path);
    let (folder, config) = if path.is_dir() {
        let config = path.join("config.json").exists().then(|| VaeConfig::load(&path)).transpose()?;
        (Folder::open(&path)?, config)
    } else {
        (Folder::from(SafeFile::open(&path)?), None)
    };
    let config = match config {
        Some(config) => config,
        None => {
            let original = folder.contains(ORIGINAL);
            let name = |name: &str| if original { original_name(name, 0) } else { name.to_owned() };
            let config = VaeConfig::of_shapes(|n| folder.shape(&name(n)).ok().map(<[usize]>::to_vec));
            config.check().map_err(|detail| {
                Error::format(&path, format!("by its tensors' shapes no autoencoder that is known: {detail}"))
            })?;
            config
        }
    };
    Ok((folder, config))
}

/// Hands out tensors by diffusers' names, and keeps count.
pub struct Reader<'a> {
    pub config: &'a VaeConfig,
    folder: &'a Folder,
    original: bool,
    device: &'a Device,
    taken: RefCell<BTreeSet<String>>,
}

impl<'a> Reader<'a> {
    pub fn new(folder: &'a Folder, config: &'a VaeConfig, device: &'a Device) -> Self {
        let original = folder.contains(ORIGINAL);
        Self { config, folder, original, device, taken: RefCell::default() }
    }

    /// The tensor `name` of shape `want`, whose trailing extents of 1 the file may lack or have: a 1×1 convolution is a
    /// linear layer.
    pub fn get(&self, name: &str, want: &[usize]) -> Result<Tensor> {
        let name = match self.original {
            true => original_name(name, self.config.block_out_channels.len()),
            false => name.to_owned(),
        };
        let stored = self.folder.shape(&name)?.to_vec();
        let bare = |shape: &[usize]| match shape {
            &[a, b, 1, 1] => vec![a, b],
            shape => shape.to_vec(),
        };
        if bare(&stored) != bare(want) {
            self.folder.expect(&[(name.clone(), want.to_vec())])?;
        }
        let tensor = self.folder.weight(&name, self.device)?.reshape(want)?;
        self.taken.borrow_mut().insert(name);
        Ok(tensor)
    }

    /// Refuses weights at `path` that hold more than has been handed out.
    pub fn expect_nothing_left(&self, path: &Path) -> Result<()> {
        let taken = self.taken.borrow();
        let left: Vec<&str> = self.folder.names().filter(|name| !taken.contains(*name)).collect();
        let Some(first) = left.first() else { return Ok(()) };
        let near = did_you_mean(first, taken.iter().map(String::as_str));
        let near = near.replace("did you mean", "the nearest that it has is").replace('?', "");
        let detail = format!(
            "{} tensors have no place in this autoencoder, the first is `{first}`{near}; wanted its weights and nothing else",
            left.len()
        );
        Err(Error::format(path, detail))
    }
}

/// What the original code calls the tensor that diffusers calls `name`, in an autoencoder of so many blocks. Its decoder
/// counts blocks from the largest plane on, diffusers' from the smallest.
pub fn original_name(name: &str, blocks: usize) -> String {
    let parts: Vec<&str> = name.split('.').collect();
    // A number that no block has stays.
    let reversed = |i: &str| {
        let place = i.parse().ok().and_then(|i: usize| blocks.checked_sub(i + 1));
        place.map_or_else(|| i.to_owned(), |place| place.to_string())
    };
    let inner = |rest: &[&str]| rest.join(".").replace("conv_shortcut", "nin_shortcut");
    match parts[..] {
        [half, "down_blocks", i, "resnets", j, ref rest @ ..] => {
            format!("{half}.down.{i}.block.{j}.{}", inner(rest))
        }
        [half, "down_blocks", i, "downsamplers", "0", ref rest @ ..] => {
            format!("{half}.down.{i}.downsample.{}", inner(rest))
        }
        [half, "up_blocks", i, "resnets", j, ref rest @ ..] => {
            format!("{half}.up.{}.block.{j}.{}", reversed(i), inner(rest))
        }
        [half, "up_blocks", i, "upsamplers", "0", ref rest @ ..] => {
            format!("{half}.up.{}.upsample.{}", reversed(i), inner(rest))
        }
        [half, "mid_block", "resnets", "0", ref rest @ ..] => format!("{half}.mid.block_1.{}", inner(rest)),
        [half, "mid_block", "resnets", _, ref rest @ ..] => format!("{half}.mid.block_2.{}", inner(rest)),
        [half, "mid_block", "attentions", "0", layer, .., kind] => {
            let layer = match layer {
                "group_norm" => "norm",
                "to_q" => "q",
                "to_k" => "k",
                "to_v" => "v",
                _ => "proj_out",
            };
            format!("{half}.mid.attn_1.{layer}.{kind}")
        }
        [half, "conv_norm_out", kind] => format!("{half}.norm_out.{kind}"),
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `tests/interop/vae_names.py` had of diffusers' converter.
    #[test]
    fn names_are_those_that_diffusers_converts_from() {
        let pairs: Vec<(&str, &str)> = include_str!("../../../tests/interop/vae_names.txt")
            .lines()
            .map(|line| line.split_once(' ').expect("two names"))
            .collect();
        assert_eq!(pairs.len(), 240);
        for (ours, theirs) in pairs {
            assert_eq!(original_name(ours, 4), theirs, "{ours}");
        }
        assert_eq!(
            original_name("decoder.up_blocks.7.resnets.0.norm1.bias", 4),
            "decoder.up.7.block.0.norm1.bias"
        );
    }
}
