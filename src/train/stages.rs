//! The four stages, each alone or chained: `base` (all weights), `sft`, `adversary` and `asdpo` (one adapter each): what
//! each trains, and on top of what.

use super::config::Config;
use super::init::{self, AInit};
use super::log::StageSummary;
use super::objective::Adversary;
use super::options::{Named, StageName};
use super::validation::Validation;
use crate::autograd::ParamSet;
use crate::data::{Codec, Degradation, Sampler};
use crate::engine::{DType, Device};
use crate::flux::base::BaseModel;
use crate::flux::config::FluxConfig;
use crate::flux::lora::{AdapterFile, LoraModule};
use crate::flux::modulation::{Known, Levels};
use crate::flux::params::{Adapter, Weights};
use crate::flux::schedule::known_sigmas;
use crate::infer::model::layout;
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// Is told how a run goes; the command line draws bars from it.
pub trait Progress {
    /// A stage of `steps` begins, or goes on after `done` of them.
    fn stage(&self, name: &str, steps: usize, done: usize);
    /// A step is done: its loss, and samples per second so far.
    fn step(&self, loss: f64, samples_per_s: f64);
    /// The stage is over.
    fn done(&self, summary: &StageSummary);
    /// Something worth a line.
    fn say(&self, line: &str);
    /// So many bytes of the base model's weights, of so many, are there.
    fn loading(&self, _done: u64, _all: u64) {}
}

/// Nobody is told.
pub struct Silent;

impl Progress for Silent {
    fn stage(&self, _: &str, _: usize, _: usize) {}
    fn step(&self, _: f64, _: f64) {}
    fn done(&self, _: &StageSummary) {}
    fn say(&self, _: &str) {}
}

/// What every stage needs and none changes.
pub struct Context<'r> {
    /// All options.
    pub config: &'r Config,
    /// Structure of the transformer.
    pub flux: FluxConfig,
    /// Where it runs.
    pub device: Device,
    /// Training pairs.
    pub sampler: Sampler,
    /// Held-out images, for a look during training.
    pub validation: Validation,
    /// Both for the adversary, where it has others.
    pub imitated: Option<(Sampler, Validation)>,
    /// The run directory.
    pub out: &'r Path,
    /// Watches.
    pub progress: &'r dyn Progress,
    /// Set by Ctrl-C.
    pub stop: &'r AtomicBool,
}

/// What training has made so far.
#[derive(Default)]
pub struct Artifacts {
    /// The frozen base.
    pub base: Option<Weights>,
    /// Finished adapters by name.
    pub adapters: BTreeMap<String, AdapterFile>,
    /// SHA-256 of every file this run made of them, by its path in the run directory.
    pub files: BTreeMap<String, String>,
}

/// A stage about to be trained: what is trained, and what it stands on.
pub(super) struct Plan {
    pub stage: StageName,
    /// Name of the trained adapter; `None`: the base itself is trained.
    pub adapter: Option<&'static str>,
    /// The frozen base the adapter stands on.
    base: Option<Weights>,
    /// Frozen adapters under the trained one.
    below: Vec<AdapterFile>,
    /// The frozen adversary of the preference stage.
    beside: Option<AdapterFile>,
    /// The stage's own training pairs, where they are not the run's.
    pub sampler: Option<Sampler>,
}

impl Plan {
    /// The weights and adapters of the policy, and where its trained parts are views of `params`: drop them before the
    /// optimizer writes. Adapters: those below, the trained one, the adversary.
    pub fn model(&self, config: &Config, params: &ParamSet) -> Result<(Weights, Vec<Adapter>)> {
        let weights = match &self.base {
            Some(base) => base.clone(),
            None => Weights::trainable(params).computing_in(config.run.precision.dtype())?,
        };
        let mut adapters: Vec<Adapter> = self.below.iter().map(|f| Adapter::frozen(f, 1.0)).collect();
        if let Some(name) = self.adapter {
            let o = config.stage(self.stage);
            adapters.push(Adapter::trainable(name, o.alpha / o.rank as f32, params)?);
        }
        adapters.extend(self.beside.iter().map(|f| Adapter::frozen(f, 1.0)));
        Ok((weights, adapters))
    }

    /// The adapters of the policy, as indices into those of [`Plan::model`].
    pub fn policy(&self) -> Vec<usize> {
        (0..self.below.len() + usize::from(self.adapter.is_some())).collect()
    }

    /// What the model is given of noise levels.
    pub fn levels(&self) -> Levels {
        self.base.as_ref().map(|base| base.levels().clone()).unwrap_or_default()
    }

    /// With the whole base of `made`: on a tape that rounds, modulation is seen where it is computed and not in a table.
    #[cfg(test)]
    pub fn computing_modulation(self, made: &Artifacts) -> Self {
        Self { base: self.base.and(made.base.clone()), ..self }
    }

    /// May weight decay apply to each parameter? To matrices.
    pub fn decays(&self, params: &ParamSet) -> Vec<bool> {
        (0..params.names().len()).map(|i| params.shape(i).len() == 2).collect()
    }
}

impl Context<'_> {
    /// What `stage` trains, on top of what `made` holds.
    pub(super) fn plan(&self, stage: StageName, made: &Artifacts) -> Result<Plan> {
        let find = |name: &str| made.adapters.get(name).cloned().ok_or_else(|| missing(stage, name));
        let base = || {
            let base = made.base.clone().ok_or_else(|| missing(stage, layout::BASE))?;
            let base = base.computing_in(self.config.run.precision.dtype())?;
            base.tabulated(&self.flux, &self.device, &known(self.config, self.sampler.codec()))
        };
        let plan = Plan { stage, adapter: None, base: None, below: Vec::new(), beside: None, sampler: None };
        Ok(match stage {
            StageName::Base => plan,
            StageName::Sft => Plan {
                adapter: Some(layout::SFT),
                base: Some(base()?),
                sampler: self.shifted_sampler()?,
                ..plan
            },
            StageName::Adversary => Plan {
                adapter: Some(layout::ADVERSARY),
                base: Some(base()?),
                below: made.adapters.get(layout::SFT).cloned().into_iter().collect(),
                sampler: self.imitated.as_ref().map(|(sampler, _)| sampler.clone()),
                ..plan
            },
            StageName::Asdpo => Plan {
                adapter: Some(layout::ASDPO),
                base: Some(base()?),
                below: vec![find(layout::SFT)?],
                beside: match self.config.preference.adversary {
                    Adversary::Lora => Some(find(layout::ADVERSARY)?),
                    _ => None,
                },
                ..plan
            },
        })
    }

    /// Does β follow each update of `stage`? Then the next one waits for its numbers, and has launches of its own.
    pub(super) fn steers_beta(&self, stage: StageName) -> bool {
        stage == StageName::Asdpo && self.config.preference.auto_beta > 0.0
    }

    /// Fresh parameters of `plan`.
    pub(super) fn parameters(&self, plan: &Plan) -> Result<ParamSet> {
        let (o, seed) = (self.config.stage(plan.stage), self.config.run.seed);
        let init = if plan.stage == StageName::Adversary { AInit::Gaussian } else { AInit::Uniform };
        let mut params = match plan.adapter {
            None => init::base(&self.flux, seed, &self.device)?,
            Some(name) => init::adapter(&self.flux, name, o, init, seed, &self.device)?,
        };
        if o.ema > 0.0 {
            params.keep_average(&self.device, o.ema)?;
        }
        Ok(params)
    }

    /// The training pairs of the super-resolution stage, if it shifts the degradation.
    fn shifted_sampler(&self) -> Result<Option<Sampler>> {
        let s = &self.config.sft_data;
        if s.blur_max == 0.0 && s.noise_max == 0.0 {
            return Ok(None);
        }
        let Degradation::Light(mut d) = self.sampler.degradation().clone() else { return Ok(None) };
        if s.blur_max > 0.0 {
            d.blur.1 = s.blur_max;
        }
        if s.noise_max > 0.0 {
            d.noise.1 = s.noise_max;
        }
        Ok(Some(self.sampler.with_degradation(Degradation::Light(d))?))
    }
}

impl Artifacts {
    /// Loads the base model at `path`, or in it, whose dimensions must be `config`'s, its matrices in `dtype`, with a table of
    /// modulations for what is `known`.
    pub fn load_base(
        &mut self,
        path: &Path,
        config: &FluxConfig,
        device: &Device,
        (dtype, known): (DType, Option<&Known>),
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<()> {
        let stored = BaseModel::open(path)?;
        if stored.config() != config {
            let differences = stored.config().differences(config);
            let detail = format!("another model than the options ask for: {differences}");
            return Err(Error::format(path.join("config.json"), detail));
        }
        self.base = Some(match known {
            None => stored.load(device, dtype, progress)?,
            Some(known) => stored.load_tabulated(device, dtype, known, progress)?,
        });
        Ok(())
    }

    /// Adds what an earlier run directory holds, of `names` (see [`layout`]): the base in f32, adapters in `dtype`.
    pub fn load(
        &mut self,
        run: &Path,
        names: &[&str],
        config: &FluxConfig,
        device: &Device,
        dtype: DType,
    ) -> Result<()> {
        if names.contains(&layout::BASE) {
            self.load_base(&run.join(layout::BASE), config, device, (DType::F32, None), &mut |_, _| ())?;
        }
        for &name in names.iter().filter(|n| **n != layout::BASE) {
            let dir = run.join(name);
            if dir.is_dir() {
                let file = AdapterFile::load(&dir, device)?;
                file.validate(config)?;
                self.adapters.insert(name.to_owned(), file.computing_in(dtype)?);
            }
        }
        Ok(())
    }
}

impl Artifacts {
    /// Adds what a stage would make of `params`, on its device, without writing it.
    pub(super) fn shadow(&mut self, plan: &Plan, context: &Context, params: &ParamSet) -> Result<()> {
        let Some(name) = plan.adapter else {
            self.base = Some(Weights::frozen(&context.device, params)?);
            return Ok(());
        };
        let alpha = context.config.stage(plan.stage).alpha;
        let modules = context.flux.lora_targets().into_iter().map(|(module, ..)| {
            let half = |which: &str| {
                let id = params.find(&format!("{name}.{module}.{which}.weight"));
                params.master(id.ok_or_else(|| missing(plan.stage, &module))?.0).copied()
            };
            let (a, b) = (half("lora_A")?, half("lora_B")?);
            Ok((module.clone(), LoraModule { a, b, alpha }))
        });
        let modules = modules.collect::<Result<_>>()?;
        let file = AdapterFile { name: name.to_owned(), modules, lq_resize: None, metadata: BTreeMap::new() };
        let file = file.computing_in(context.config.run.precision.dtype())?;
        self.adapters.insert(name.to_owned(), file);
        Ok(())
    }
}

/// What training and looking at held-out crops ask a frozen base for.
pub(super) fn known(config: &Config, codec: &Codec) -> Known {
    // A token is 2×2 latents.
    let side = config.data.crop / codec.block() / 2;
    Known::unprompted(known_sigmas(config.run.eval_steps, side * side))
}

pub(super) fn missing(stage: StageName, what: &str) -> Error {
    let stage = stage.name();
    Error::Usage(format!(
        "stage {stage} needs {what}: run the stage that makes it first, or name a run that has it with run.from"
    ))
}
