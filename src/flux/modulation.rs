//! Modulation from a table, for a frozen base.
//!
//! Under one prompt and guidance a modulation is a function of σ alone, and the σ are known: training's thousand (METHOD
//! §1), a sampler's steps. So each layer that computes one is multiplied with all of them once and then left out, with the
//! embedding in front of them: of FLUX.1-dev 3.2 of 11.9 billion parameters, 6.1 GiB in bf16.
//!
//! ```text
//! row of σ    [SiLU(e) | every module's W·SiLU(e) + b]      chunks of D f32: 1 + 12 per double, 3 per single block, 2 at the end
//! ```
//! Rows (4.2 MB each of FLUX.1-dev) stay in the host's memory; a batch brings those of its samples. On the device is that of
//! σ = 0, the condition's. Adapters of a modulation act on the row's first chunk and are added to the module's.

use super::config::FluxConfig;
use super::params::Weights;
use super::transformer::Flux;
use crate::autograd::{Tape, Var};
use crate::engine::{Device, Tensor};
use crate::ops::concat::Narrow;
use crate::ops::embed::{self, NoiseLevels, sinusoids};
use crate::{Error, Result};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

/// Where the embedding's weights are.
const EMBEDDER: &str = "time_text_embed";

/// What a model is given of a noise level.
#[derive(Clone, Default)]
pub enum Levels {
    /// The sinusoid of 1000·σ: it computes embedding and modulation itself.
    #[default]
    Sinusoid,
    /// Its row.
    Table(Arc<ModulationTable>),
}

impl Levels {
    /// Values per noise level.
    pub fn width(&self) -> usize {
        match self {
            Self::Sinusoid => embed::WIDTH,
            Self::Table(table) => table.chunks * table.dim,
        }
    }

    /// What of them is on the device.
    pub(crate) fn tensor(&self) -> Option<&Tensor> {
        match self {
            Self::Sinusoid => None,
            Self::Table(table) => Some(&table.clean),
        }
    }

    /// Those of each of `sigma`, one after the other.
    pub fn rows(&self, sigma: &[f32]) -> Result<Vec<f32>> {
        match self {
            Self::Sinusoid => Ok(sinusoids(&NoiseLevels::times(sigma))),
            Self::Table(table) => table.rows(sigma),
        }
    }

    /// The noise levels `sigma` on `device`.
    pub fn of(&self, device: &Device, sigma: &[f32]) -> Result<NoiseLevels> {
        let embedding = Tensor::from_slice(device, &[sigma.len(), self.width()], &self.rows(sigma)?)?;
        Ok(NoiseLevels { sigma: Tensor::from_slice(device, &[sigma.len()], sigma)?, embedding })
    }
}

/// What a model will be asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Known {
    /// Noise levels, besides 0.
    pub sigma: Vec<f32>,
    /// The one guidance.
    pub guidance: f32,
    /// The one pooled prompt; `None`: zeros.
    pub pooled: Option<Vec<f32>>,
}

impl Known {
    /// Without text and at guidance 0, as in training.
    pub fn unprompted(sigma: Vec<f32>) -> Self {
        Self { sigma, guidance: 0.0, pooled: None }
    }
}

/// The table of one model for what is known.
pub struct ModulationTable {
    dim: usize,
    guidance: f32,
    chunks: usize,
    /// Each module's chunks.
    modules: HashMap<String, Range<usize>>,
    /// Ascending, the first 0.
    sigma: Vec<f32>,
    /// `[sigma, chunks, D]`; empty on a meta device.
    values: Vec<f32>,
    /// The row of σ = 0, `[1, chunks, D]`.
    clean: Tensor,
}

impl ModulationTable {
    /// The rows of 0 and of what is `known`, computed on `device` by the weights whose names begin with what `weights` is
    /// given: it is asked for one module at a time, and for the embedder before all.
    pub(super) fn new(
        config: &FluxConfig,
        device: &Device,
        known: &Known,
        weights: &mut dyn FnMut(&str) -> Result<Weights>,
    ) -> Result<Self> {
        let mut sigma = [&[0.0], &known.sigma[..]].concat();
        sigma.sort_by(f32::total_cmp);
        sigma.dedup();
        let (n, dim) = (sigma.len(), config.dim());
        let (mut chunks, mut modules) = (1, HashMap::new());
        for (module, more) in config.modulations() {
            modules.insert(module, chunks..chunks + more);
            chunks += more;
        }
        let meta = device.is_meta();
        let mut values = vec![0.0; if meta { 0 } else { n * chunks * dim }];
        let mut place = |at: &Range<usize>, part: &Tensor| -> Result<()> {
            let part = if meta { Vec::new() } else { part.values()? };
            let rows = values.chunks_exact_mut(chunks * dim).zip(part.chunks_exact(at.len() * dim));
            rows.for_each(|(row, part)| row[at.start * dim..at.end * dim].copy_from_slice(part));
            Ok(())
        };
        let emb = {
            let weights = weights(&format!("{EMBEDDER}."))?;
            let flux = Flux { config, weights: &weights, adapters: &[] };
            let shape = [n, config.pooled_projection_dim];
            let pooled = match &known.pooled {
                None => Tensor::zeros(device, &shape)?,
                Some(pooled) => Tensor::from_slice(device, &shape, &pooled.repeat(n))?,
            };
            let (pooled, guidance) = (Var::constant(pooled), vec![known.guidance; n]);
            let levels = embed::sinusoid(device, &NoiseLevels::times(&sigma))?;
            flux.time_modulation(&Tape::no_grad(), &levels, &guidance, &pooled)?
        };
        place(&(0..1), emb.value())?;
        for (module, _) in config.modulations() {
            let weights = weights(&format!("{module}."))?;
            let flux = Flux { config, weights: &weights, adapters: &[] };
            let given = flux.modulation(&Tape::no_grad(), &module, &emb, None, None)?;
            place(&modules[&module], given.value())?;
        }
        let clean = match meta {
            true => Tensor::zeros(device, &[1, chunks, dim])?,
            false => Tensor::from_slice(device, &[1, chunks, dim], &values[..chunks * dim])?,
        };
        Ok(Self { dim, guidance: known.guidance, chunks, modules, sigma, values, clean })
    }

    /// Is the weight `name` of no use beside a table?
    pub(super) fn replaces(config: &FluxConfig, name: &str) -> bool {
        let module = name.rsplit_once('.').map_or(name, |(module, _)| module);
        module.starts_with(EMBEDDER) || config.modulations().iter().any(|(m, _)| m == module)
    }

    fn rows(&self, sigma: &[f32]) -> Result<Vec<f32>> {
        let width = self.chunks * self.dim;
        let mut rows = Vec::with_capacity(sigma.len() * width);
        for s in sigma {
            let at = self.sigma.binary_search_by(|have| have.total_cmp(s)).map_err(|_| {
                let n = self.sigma.len();
                let detail = format!("σ = {s} is none of the {n} noise levels that the table was made for");
                Error::shape("modulation", detail)
            })?;
            match self.values.get(at * width..(at + 1) * width) {
                Some(row) => rows.extend_from_slice(row),
                // On a meta device there are none.
                None => rows.resize(rows.len() + width, 0.0),
            }
        }
        Ok(rows)
    }

    /// The guidance it was made for.
    pub(super) fn guidance(&self) -> f32 {
        self.guidance
    }

    /// The rows of a batch, as [`Levels::of`] gives them.
    pub(super) fn batch(&self, embedding: &Tensor) -> Result<Tensor> {
        let batch = embedding.shape().first().copied().unwrap_or(0);
        embedding.expect("modulation", "the rows of the noise levels", &[batch, self.chunks * self.dim])?;
        embedding.clone().reshape(&[batch, self.chunks, self.dim])
    }

    /// The row of σ = 0, `n` times.
    pub(super) fn clean(&self, n: usize) -> Result<Tensor> {
        if n == 1 { Ok(self.clean.clone()) } else { Tensor::stack(&vec![&self.clean; n]) }
    }

    /// SiLU of the embedding, `[n, D]`, of `rows`.
    pub(super) fn embedding(&self, rows: &Tensor) -> Result<Tensor> {
        self.columns(rows, 0..1)
    }

    /// What `module` gives, `[n, chunks·D]`, in `rows`.
    pub(super) fn of(&self, module: &str, rows: &Tensor) -> Result<Tensor> {
        let chunks = self.modules.get(module);
        let chunks =
            chunks.ok_or_else(|| Error::shape("modulation", format!("there is no module {module}")))?;
        self.columns(rows, chunks.clone())
    }

    fn columns(&self, rows: &Tensor, chunks: Range<usize>) -> Result<Tensor> {
        let shape = [rows.shape()[0], chunks.len() * self.dim];
        let part = Tape::no_grad().one(Narrow { axis: 1, range: chunks }, &[&Var::constant(rows.clone())])?;
        part.value().clone().reshape(&shape)
    }
}

impl Weights {
    /// These frozen weights with a table for what is `known` in the place of the layers that it replaces.
    pub fn tabulated(&self, config: &FluxConfig, device: &Device, known: &Known) -> Result<Self> {
        if let Levels::Table(_) = self.levels() {
            return Ok(self.clone());
        }
        let table = ModulationTable::new(config, device, known, &mut |_| Ok(self.clone()))?;
        Ok(self.without(|name| ModulationTable::replaces(config, name)).with_levels(table))
    }
}
