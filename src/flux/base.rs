//! A base model, wherever it comes from, as one thing: its dimensions, and its weights when they are asked for.
//!
//! ```text
//! RUN                     a run of this engine: its base/
//! FOLDER                  a diffusers folder, of the transformer or of a pipeline (transformer/); sharded or not
//! flux1-dev.safetensors   a single file in Black Forest Labs' naming (ComfyUI's `model.diffusion_model.` is one), or in
//!                         diffusers' with a config.json beside it
//! random:flux-dev         random weights of FLUX.1-dev's dimensions; random:PATH those of a config.json
//! ```
//! Which naming a file has is seen in it. [`BaseModel::open`] reads headers alone and refuses what does not fit;
//! [`BaseModel::load`] streams tensor by tensor, straight into the dtype that is computed with.

use super::bfl;
use super::config::FluxConfig;
use super::modulation::{Known, ModulationTable};
use super::params::Weights;
use super::weights::{Folder, SafeFile, Slice};
use crate::engine::{DType, Device, Philox, Tensor};
use crate::ops::blend::{Blend, Factor};
use crate::ops::cast;
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What a model of random weights is asked for by.
const RANDOM: &str = "random:";
/// Philox streams of random weights start here; each tensor has its own.
const STREAM: u64 = 1 << 41;
/// Names listed of each kind of misfit.
const LISTED: usize = 3;

/// A base model that can be loaded.
pub struct BaseModel {
    path: PathBuf,
    config: FluxConfig,
    source: Source,
}

enum Source {
    Files(Folder, Naming),
    Random,
}

/// Whose names the tensors have.
#[derive(Clone, Copy)]
enum Naming {
    Diffusers,
    /// Black Forest Labs', behind a prefix.
    Bfl(&'static str),
}

impl BaseModel {
    /// Finds the model that `what` names (see the module) and checks name, shape and dtype of every tensor.
    pub fn open(what: impl AsRef<Path>) -> Result<Self> {
        let what = what.as_ref();
        if let Some(of) = what.to_str().and_then(|w| w.strip_prefix(RANDOM)) {
            let config = match of {
                "flux-dev" => FluxConfig::flux1_dev(),
                path => FluxConfig::load(located(Path::new(path))?)?,
            };
            return Ok(Self { path: what.to_path_buf(), config, source: Source::Random });
        }
        let path = located(what)?;
        let folder = if path.is_dir() { Folder::open(&path)? } else { SafeFile::open(&path)?.into() };
        let naming = naming(&path, &folder)?;
        let beside = path.with_file_name("config.json");
        let config = match naming {
            _ if path.is_dir() => FluxConfig::load(&path)?,
            _ if beside.is_file() => FluxConfig::load(&beside)?,
            Naming::Bfl(prefix) => {
                let names = folder.names().filter_map(|n| n.strip_prefix(prefix));
                let shape = |name: &str| folder.shape(&format!("{prefix}{name}")).ok();
                let config = bfl::config(names, shape).map_err(|detail| Error::format(&path, detail))?;
                config.validate().map_err(|e| Error::format(&path, e.to_string()))?;
                config
            }
            Naming::Diffusers => {
                let detail = "is in diffusers' naming, which needs the model's config.json beside it";
                return Err(Error::format(&path, detail));
            }
        };
        let model = Self { path, config, source: Source::Files(folder, naming) };
        model.expect_fitting()?;
        Ok(model)
    }

    /// The model's dimensions.
    pub fn config(&self) -> &FluxConfig {
        &self.config
    }

    /// Whose names its tensors have, in words.
    pub fn naming(&self) -> &'static str {
        match &self.source {
            Source::Files(_, Naming::Diffusers) => "diffusers' naming",
            Source::Files(_, Naming::Bfl(_)) => "Black Forest Labs' naming",
            Source::Random => "random weights",
        }
    }

    /// The weights, frozen, for passes whose activations are of `activations` ([`Weights::computing_in`]): matrices are of
    /// that dtype as they arrive, the rest is f32. Every value is seen to be finite. `progress` is told the bytes done and
    /// the bytes in all.
    pub fn load(
        &self,
        device: &Device,
        activations: DType,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Weights> {
        self.those(device, activations, &mut self.telling(progress)?, |_| true)
    }

    /// [`BaseModel::load`] with a table for what is `known` in the place of modulation's layers ([`ModulationTable`]), of which one at
    /// a time is on the device.
    pub fn load_tabulated(
        &self,
        device: &Device,
        activations: DType,
        known: &Known,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Weights> {
        let mut told = self.telling(progress)?;
        let table = ModulationTable::new(&self.config, device, known, &mut |start| {
            self.those(device, activations, &mut told, |name| name.starts_with(start))
        })?;
        let others = |name: &str| !ModulationTable::replaces(&self.config, name);
        Ok(self.those(device, activations, &mut told, others)?.with_levels(table))
    }

    /// Tells `progress` the bytes done, of those that are more now, and the bytes in all.
    fn telling<'p>(&self, progress: &'p mut dyn FnMut(u64, u64)) -> Result<impl FnMut(u64) + use<'p>> {
        let (mut done, total) = (0, self.bytes()?);
        Ok(move |more: u64| {
            done += more;
            progress(done, total);
        })
    }

    /// The weights whose names are `wanted`; `told` is told the bytes of each.
    fn those(
        &self,
        device: &Device,
        activations: DType,
        told: &mut dyn FnMut(u64),
        wanted: impl Fn(&str) -> bool,
    ) -> Result<Weights> {
        Weights::expect_possible(activations, device, "the base model")?;
        let mut tensors = Vec::new();
        for (i, (name, shape)) in self.config.parameters().into_iter().enumerate().filter(|p| wanted(&p.1.0))
        {
            let dtype = if shape.len() == 2 { activations } else { DType::F32 };
            let (tensor, bytes) = match &self.source {
                Source::Random => (random(&name, &shape, STREAM + i as u64, dtype, device)?, half(&shape)),
                Source::Files(..) => {
                    let slice = self.slice(&name, &shape)?;
                    (slice.weight(dtype, device)?, slice.len() as u64)
                }
            };
            tensors.push((name, tensor));
            told(bytes);
        }
        Ok(Weights::of(tensors, activations))
    }

    /// Bytes of all weights, as they are stored; two for each random value.
    pub fn bytes(&self) -> Result<u64> {
        let parameters = self.config.parameters();
        match &self.source {
            Source::Random => Ok(parameters.iter().map(|(_, shape)| half(shape)).sum()),
            Source::Files(..) => {
                let each = |(name, shape): &(String, Vec<usize>)| Ok(self.slice(name, shape)?.len() as u64);
                parameters.iter().map(each).sum()
            }
        }
    }

    /// What is stored of diffusers' tensor `name`.
    fn slice(&self, name: &str, shape: &[usize]) -> Result<Slice<'_>> {
        let Source::Files(folder, naming) = &self.source else {
            return Err(Error::format(&self.path, "has no files"));
        };
        match naming {
            Naming::Diffusers => folder.slice(name, &[]),
            Naming::Bfl(prefix) => {
                let (theirs, rows) = bfl::tensor(name)
                    .ok_or_else(|| Error::format(&self.path, format!("has no name for tensor `{name}`")))?;
                let ranges = rows.ranges(self.config.dim(), shape.first().copied().unwrap_or(0));
                folder.slice(&format!("{prefix}{theirs}"), &ranges)
            }
        }
    }

    /// Refuses a file that lacks a tensor, holds one in another shape or dtype, or has one to spare.
    fn expect_fitting(&self) -> Result<()> {
        let Source::Files(folder, naming) = &self.source else { return Ok(()) };
        let (prefix, wanted) = match naming {
            Naming::Diffusers => ("", self.config.parameters()),
            Naming::Bfl(prefix) => (*prefix, bfl::parameters(&self.config)),
        };
        let mut stored = BTreeMap::new();
        for name in folder.names() {
            // Without the prefix it is another network's.
            if let Some(bare) = name.strip_prefix(prefix) {
                stored.insert(bare, folder.shape(name)?);
            }
        }
        if let Some(detail) = misfit(&wanted, stored) {
            return Err(Error::format(&self.path, detail));
        }
        for (name, _) in &wanted {
            folder.slice(&format!("{prefix}{name}"), &[])?.expect_readable()?;
        }
        Ok(())
    }
}

/// How fast `bytes` of weights were read, in words; `None` where it was over before anybody wondered.
pub fn pace(bytes: u64, took: Duration) -> Option<String> {
    let (gb, s) = (bytes as f64 / 1e9, took.as_secs_f64());
    (gb > 0.1).then(|| format!("{gb:.2} GB in {s:.1} s, {:.2} GB/s", gb / s))
}

/// Bytes of a tensor in bf16.
fn half(shape: &[usize]) -> u64 {
    shape.iter().product::<usize>() as u64 * 2
}

/// The folder or file that holds the model: a pipeline's and a run's are one folder down.
fn located(what: &Path) -> Result<PathBuf> {
    if !what.exists() {
        let wanted = "a diffusers folder, a run, a single .safetensors file, or random:flux-dev";
        return Err(Error::Usage(format!("{}: no such file or folder; wanted {wanted}", what.display())));
    }
    if what.is_file() {
        return Ok(what.to_path_buf());
    }
    let inside = [what.to_path_buf(), what.join("transformer"), what.join("base")];
    inside.into_iter().find(|dir| dir.join("config.json").is_file()).ok_or_else(|| {
        let detail = "holds no config.json, nor do transformer/ and base/ in it: not a diffusers folder and not a run; \
                      name a single .safetensors file itself";
        Error::format(what, detail)
    })
}

fn naming(path: &Path, folder: &Folder) -> Result<Naming> {
    if let Some(prefix) = bfl::prefix(folder.names()) {
        return Ok(Naming::Bfl(prefix));
    }
    let blocks = ["transformer_blocks.", "single_transformer_blocks.", "x_embedder."];
    if folder.names().any(|name| blocks.iter().any(|b| name.starts_with(b))) {
        return Ok(Naming::Diffusers);
    }
    let first: Vec<&str> = folder.names().take(LISTED).collect();
    Err(Error::format(
        path,
        format!(
            "holds no FLUX transformer: its tensors are named {first:?} and so on; wanted diffusers' \
             (`transformer_blocks.0.…`) or Black Forest Labs' (`double_blocks.0.…`)"
        ),
    ))
}

/// What of `wanted` is not `stored`, is so in another shape, and what else is; `None` if all fits.
fn misfit(wanted: &[(String, Vec<usize>)], mut stored: BTreeMap<&str, &[usize]>) -> Option<String> {
    let (mut missing, mut shapes) = (Vec::new(), Vec::new());
    for (name, want) in wanted {
        match stored.remove(name.as_str()) {
            None => missing.push(name.as_str()),
            Some(have) if have != want => shapes.push(format!("`{name}` as {have:?}, wanted {want:?}")),
            Some(_) => {}
        }
    }
    let near = |name: &&str| {
        let mut others: Vec<_> = stored.keys().map(|o| (strsim::damerau_levenshtein(name, o), o)).collect();
        others.sort();
        let others: Vec<String> = others.iter().take(LISTED).map(|(_, o)| format!("`{o}`")).collect();
        if others.is_empty() {
            format!("`{name}`")
        } else {
            format!("`{name}` (nearest: {})", others.join(", "))
        }
    };
    let left: Vec<String> = stored.keys().map(|name| format!("`{name}`")).collect();
    let near: Vec<String> = missing.iter().take(LISTED).map(near).collect();
    let parts: Vec<String> = [
        ("lacks", missing.len(), near),
        ("holds", shapes.len(), shapes),
        ("has no place for", left.len(), left),
    ]
    .into_iter()
    .filter(|(_, n, _)| *n > 0)
    .map(|(what, n, mut listed)| {
        listed.truncate(LISTED);
        let more = if n > listed.len() { format!(" and {} more", n - listed.len()) } else { String::new() };
        format!("{what} {}{more}", listed.join(", "))
    })
    .collect();
    (!parts.is_empty()).then(|| {
        format!("is not the model its dimensions describe: {}; fetch or save it again", parts.join("; "))
    })
}

/// Random values of a weight, the same bits on every device: matrices keep the variance of what they multiply, norms are
/// one, biases zero. They are drawn where they will be, one tensor at a time.
fn random(name: &str, shape: &[usize], stream: u64, dtype: DType, device: &Device) -> Result<Tensor> {
    let &[height, width] = shape else {
        return Tensor::full(device, shape, if name.contains(".norm_") { 1.0 } else { 0.0 });
    };
    let unit = Philox::new(0, stream).tensor(device, shape, 0)?;
    let factor = Blend { x: Factor::constant(1.0 / (width as f32).sqrt()), y: Factor::constant(0.0) };
    let scaled = factor.of(&unit, &unit, &Tensor::zeros(device, &[height])?)?;
    cast::to(&scaled, dtype)
}
