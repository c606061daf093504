//! Adapters in the naming of kohya's sd-scripts, which ComfyUI and most collections of FLUX.1 LoRAs have.
//!
//! ```text
//! lora_unet_<layer>.lora_down.weight [R, in]    y += alpha/R · up(down x)
//! lora_unet_<layer>.lora_up.weight   [out, R]
//! lora_unet_<layer>.alpha            []         R if absent
//! ```
//! `<layer>` is Black Forest Labs' name with underscores ([`super::bfl`]). Where several of diffusers' layers are rows of one
//! there, so are their adapters: the A's stand below each other, the B's in blocks along the diagonal, and the rank is the
//! sum of theirs; those with the same A and scale share its rows. Reading takes that apart again: a layer gets those
//! columns of B that are not zero in its rows, and what is zero altogether is not adapted.

use super::bfl::{self, Rows};
use super::lora::{AdapterFile, LQ_RESIZE, LoraModule};
use super::weights::write_safetensors;
use crate::engine::{Device, Tensor};
use crate::error::did_you_mean;
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::path::Path;

/// What the names of the transformer's layers begin with.
const PREFIX: &str = "lora_unet_";
/// The same of the text encoders.
const TEXT: &str = "lora_te";
/// How the names of A, B and alpha end.
pub(super) const HALVES: [&str; 3] = ["lora_down.weight", "lora_up.weight", "alpha"];
/// FLUX.1's width of an MLP over its own.
const MLP_RATIO: usize = 4;

/// Are `names` those of an adapter in this naming?
pub(super) fn named<'n>(mut names: impl Iterator<Item = &'n str>) -> bool {
    names.any(|name| name.starts_with(PREFIX))
}

/// The layer that a key is of, without prefix and ending; `Err` says what the key is instead.
pub(super) fn layer(key: &str) -> Result<&str, String> {
    if key.starts_with(TEXT) {
        return Err(format!(
            "key `{key}` adapts a text encoder, this engine adapts the transformer alone: save the adapter without those"
        ));
    }
    key.strip_prefix(PREFIX)
        .ok_or_else(|| format!("key `{key}` does not begin with {PREFIX}, as others here do"))
}

/// The adapters of diffusers' layers that `fused`, on the host, is made of.
pub(super) fn split(layer: &str, fused: LoraModule) -> Result<Vec<(String, LoraModule)>, String> {
    let parts = bfl::parts(layer);
    let (d, height, rank) = (fused.a.shape()[1], fused.b.shape()[0], fused.rank());
    if let [(module, Rows::All)] = &parts[..] {
        return Ok(vec![(module.clone(), fused)]);
    }
    if parts.is_empty() {
        let block = layer.split('_').find(|p| p.parse::<usize>().is_ok()).unwrap_or("0");
        let known: Vec<String> = bfl::layers(block).iter().map(|n| n.replace('.', "_")).collect();
        let hint = did_you_mean(layer, known.iter().map(String::as_str));
        return Err(format!("`{PREFIX}{layer}` is no layer of FLUX.1{hint}"));
    }
    let rest = parts.iter().any(|(_, rows)| *rows == Rows::Rest);
    let swapped = parts.iter().any(|(_, rows)| *rows == Rows::Swapped);
    if if swapped {
        height % 2 != 0
    } else if rest {
        height <= 3 * d
    } else {
        height != 3 * d
    } {
        return Err(format!(
            "`{PREFIX}{layer}` maps {d} values to {height}, wanted {} of them: queries, keys and values are rows of it",
            if rest { format!("more than {}", 3 * d) } else { (3 * d).to_string() }
        ));
    }
    let (a, b) = (fused.a.f32(), fused.b.f32());
    let untouched = b.iter().all(|v| *v == 0.0);
    let mut made = Vec::new();
    for (module, rows) in parts {
        let n = match rows {
            Rows::Part(_) => d,
            Rows::Rest => height - 3 * d,
            Rows::All | Rows::Swapped => height,
        };
        let own: Vec<&[f32]> =
            rows.ranges(d, n).into_iter().flatten().map(|r| &b[r * rank..(r + 1) * rank]).collect();
        let kept: Vec<usize> =
            (0..rank).filter(|&j| untouched || own.iter().any(|row| row[j] != 0.0)).collect();
        if kept.is_empty() {
            continue;
        }
        let of_a: Vec<f32> = kept.iter().flat_map(|&j| &a[j * d..(j + 1) * d]).copied().collect();
        let of_b: Vec<f32> = own.iter().flat_map(|row| kept.iter().map(|&j| row[j])).collect();
        made.push((module, lora((kept.len(), d, n), &of_a, &of_b, share(&fused, kept.len()))?));
    }
    Ok(made)
}

/// alpha of `rank` rows at the scale of `m`.
fn share(m: &LoraModule, rank: usize) -> f32 {
    if rank == m.rank() { m.alpha } else { (f64::from(m.alpha) / m.rank() as f64 * rank as f64) as f32 }
}

fn lora((r, d, n): (usize, usize, usize), a: &[f32], b: &[f32], alpha: f32) -> Result<LoraModule, String> {
    let cpu = Device::cpu();
    let tensor = |shape: [usize; 2], values: &[f32]| {
        Tensor::from_slice(&cpu, &shape, values).map_err(|e| e.to_string())
    };
    Ok(LoraModule { a: tensor([r, d], a)?, b: tensor([n, r], b)?, alpha })
}

impl AdapterFile {
    /// Writes the adapter as one file in kohya's naming, complete or as it was.
    pub fn save_kohya(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        if self.modules.is_empty() {
            return Err(Error::format(path, "an adapter without modules is not saved"));
        }
        let mut tensors = Vec::new();
        for (layer, m) in self.fused().map_err(|detail| Error::format(path, detail))? {
            let alpha = Tensor::scalar(m.a.device(), m.alpha)?;
            for (half, tensor) in HALVES.into_iter().zip([m.a, m.b, alpha]) {
                tensors.push((format!("{PREFIX}{}.{half}", layer.replace('.', "_")), tensor));
            }
        }
        let mut metadata = self.metadata.clone();
        metadata.entry("format".into()).or_insert_with(|| "pt".into());
        metadata.extend(self.lq_resize.iter().map(|r| (LQ_RESIZE.to_owned(), r.clone())));
        write_safetensors(path, &metadata, &tensors)
    }

    /// The adapter by Black Forest Labs' layers.
    fn fused(&self) -> Result<BTreeMap<String, LoraModule>, String> {
        let mut layers = BTreeMap::<String, Vec<(&str, Rows, &LoraModule)>>::new();
        for (module, m) in &self.modules {
            let (layer, rows) =
                bfl::layer(module).ok_or_else(|| format!("module `{module}` is no layer of FLUX.1"))?;
            layers.entry(layer).or_default().push((module, rows, m));
        }
        let hidden = self.hidden();
        let each = layers.into_iter().map(|(layer, parts)| match parts[..] {
            [(_, Rows::All, m)] => Ok((layer, m.clone())),
            _ => {
                let fused = fuse(&layer, &parts, hidden)?;
                Ok((layer, fused))
            }
        });
        each.collect()
    }

    /// Width of the single blocks' MLPs, where a module tells it.
    fn hidden(&self) -> Option<usize> {
        self.modules.iter().find_map(|(module, m)| {
            let single = module.starts_with("single_");
            match module.rsplit_once('.')?.1 {
                "proj_mlp" if single => Some(m.b.shape()[0]),
                "proj_out" if single => m.a.shape()[1].checked_sub(m.b.shape()[0]),
                _ => None,
            }
        })
    }
}

/// One adapter for all of a layer's rows.
fn fuse(
    layer: &str,
    parts: &[(&str, Rows, &LoraModule)],
    hidden: Option<usize>,
) -> Result<LoraModule, String> {
    let d = parts[0].2.a.shape()[1];
    let height = match parts[0].1 {
        Rows::Swapped => parts[0].2.b.shape()[0],
        _ if layer.ends_with("linear1") => 3 * d + hidden.unwrap_or(MLP_RATIO * d),
        _ => 3 * d,
    };
    // The largest scale is the layer's, and the others' B take up what they lack of it.
    let scaling = |m: &LoraModule| f64::from(m.alpha) / m.rank() as f64;
    let most = parts.iter().map(|p| p.2).max_by(|x, y| scaling(x).abs().total_cmp(&scaling(y).abs()));
    let most = most.expect("a layer is fused of at least one module");
    // What has the same A and scale stands in the same columns.
    let mut shared: Vec<(Vec<f32>, f64, usize)> = Vec::new();
    let (mut all_a, mut rank, mut columns) = (Vec::new(), 0, Vec::new());
    for &(module, rows, m) in parts {
        let a = m.a.values().map_err(|e| e.to_string())?;
        let end = rows.ranges(d, m.b.shape()[0]).iter().map(|r| r.end).max().unwrap_or(0);
        if m.a.shape()[1] != d || end > height || (matches!(rows, Rows::Part(_)) && m.b.shape()[0] != d) {
            return Err(format!(
                "module `{module}` maps {} values to {}, which is no part of `{layer}`: {d} values to {height}",
                m.a.shape()[1],
                m.b.shape()[0]
            ));
        }
        let same = |(other, scale, _): &&(Vec<f32>, f64, usize)| *scale == scaling(m) && *other == a;
        columns.push(match shared.iter().find(same) {
            Some(&(_, _, at)) => at,
            None => {
                all_a.extend_from_slice(&a);
                shared.push((a, scaling(m), rank));
                rank += m.rank();
                rank - m.rank()
            }
        });
    }
    let mut all_b = vec![0.0; height * rank];
    for (&(_, rows, m), at) in parts.iter().zip(columns) {
        let own = m.b.values().map_err(|e| e.to_string())?;
        let factor = if scaling(m) == scaling(most) { 1.0 } else { scaling(m) / scaling(most) };
        let places = rows.ranges(d, m.b.shape()[0]).into_iter().flatten();
        for (row, from) in places.zip(own.chunks_exact(m.rank())) {
            let to = &mut all_b[row * rank + at..][..from.len()];
            to.iter_mut().zip(from).for_each(|(to, v)| *to = (f64::from(*v) * factor) as f32);
        }
    }
    lora((rank, d, height), &all_a, &all_b, share(most, rank))
}
