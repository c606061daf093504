//! A whole run: where it starts, data, stages, evaluation and summary.

use super::checkpoint::{self, CHECKPOINTS, Checkpoint, prune};
use super::config::Config;
use super::log::{Logs, StageSummary, Summary, peak_rss_mb};
use super::objective::Adversary;
use super::options::{Precision, StageName};
use super::planner::{self, StageMemory};
use super::stages::{Artifacts, Context, Progress, Silent, known, missing};
use super::validation::Validation;
use super::{data, environment, evaluation, tensorboard};
use crate::data::{Codec, Part, Sampler, Source, Split};
use crate::engine::Device;
use crate::files::{expect_space, remove_leftovers, write_atomic};
use crate::flux::base::{BaseModel, pace};
use crate::flux::config::FluxConfig;
use crate::infer::model::{SCALE, layout, load_codec};
use crate::infer::parts::Runs;
use crate::{Error, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

/// The configuration of a run, in its directory.
const CONFIG: &str = "config.toml";
/// What a finished run leaves.
const SUMMARY: &str = "summary.json";

/// Structure of the model that `config` trains from nothing.
pub(super) fn flux_config(config: &Config, channels: usize) -> Result<FluxConfig> {
    let m = &config.model;
    let flux = FluxConfig {
        patch_size: 1,
        in_channels: 4 * channels,
        out_channels: None,
        num_layers: m.double,
        num_single_layers: m.single,
        attention_head_dim: m.dim / m.heads,
        num_attention_heads: m.heads,
        // Prompt and pooled embedding are all zero in training; their width is free.
        joint_attention_dim: 8,
        pooled_projection_dim: 8,
        guidance_embeds: false,
        axes_dims_rope: m.axes,
        rope_theta: f64::from(m.theta),
        mlp_ratio: f64::from(m.mlp_ratio),
    };
    flux.validate()?;
    Ok(flux)
}

/// Where a run begins.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Start {
    /// At the beginning, in a directory that holds no run yet.
    #[default]
    New,
    /// Where an earlier session stopped.
    Resume {
        /// The checkpoint to go on from; `None`: the newest that is intact.
        checkpoint: Option<PathBuf>,
        /// Go on although the configuration is not the one the checkpoint was written under.
        change_config: bool,
    },
}

/// Runs the stages `config` lists on `device` and writes everything into `out`.
pub fn run(
    config: &Config,
    out: &Path,
    start: &Start,
    device: &Device,
    progress: &dyn Progress,
    stop: &AtomicBool,
) -> Result<Summary> {
    let begun = Instant::now();
    expect_possible(config, device)?;
    let config = &resolved(config)?;
    let resumed = match start {
        Start::New => {
            vacant(out)?;
            None
        }
        Start::Resume { checkpoint, change_config } => {
            if checkpoint.is_none() && out.join(SUMMARY).exists() {
                progress.say(&format!("{}: this run is finished", out.display()));
                return Summary::load(out.join(SUMMARY));
            }
            resume(config, out, checkpoint.as_deref(), *change_config, progress)?
        }
    };
    let overrides = config.overrides();
    if !overrides.is_empty() {
        progress.say(&format!("on top of preset {}: {}", config.run.preset, overrides.join(", ")));
    }
    let theirs = || Ok::<_, Error>((out, Codec::load(out.join(layout::CODEC), &Device::cpu().meta())?));
    let given = Given::new(config, resumed.as_ref().map(|_| theirs()).transpose()?, progress)?;
    let finished = finished(config, resumed.as_ref())?;
    let mine = resumed.as_ref().map(|c| (out, c));
    let load = |device: &Device| given.artifacts(config, mine, &finished, device, &Silent);
    if let Some(checkpoint) = &resumed {
        checkpoint.expect_files(out)?;
    }
    room(config, &given.flux, out)?;
    let left: Vec<StageName> = config.run.stages.iter().copied().filter(|s| !finished.contains(s)).collect();
    given
        .plan(config, &left, device, &load, planner::available(device))?
        .iter()
        .for_each(|m| progress.say(&m.line()));
    let mut made = given.artifacts(config, mine, &finished, device, progress)?;
    let codec = given.codec.to(device)?;
    std::fs::create_dir_all(out).map_err(Error::io(out))?;
    if *start != Start::New {
        rewind(out, config, resumed.as_ref(), progress)?;
    }
    remove_all_leftovers(out)?;
    write_atomic(out.join(CONFIG), config.to_toml().as_bytes())?;
    write_atomic(out.join(layout::CODEC), codec.to_json()?.as_bytes())?;
    environment::note_session(out)?;
    let lines = resumed.as_ref().map_or((0, 0), |c| (c.record.log_lines, c.record.validation_lines));
    let mut logs = Logs::open(out, lines)?;
    let earlier: f64 = StageSummary::of_run(out)?.iter().map(|s| s.seconds).sum();
    let names = given.names.clone();
    let context = given.context(config, codec, device, Validation::new)?;
    let context = Context { out, progress, stop, ..context };
    for &stage in &left {
        let start = resumed.as_ref().filter(|c| c.stage == stage);
        context.run(stage, start, &mut made, &mut logs)?;
    }
    tensorboard::export(out)?;
    let eval = evaluation::evaluate(&context, made)?;
    let summary = Summary {
        stages: StageSummary::of_run(out)?,
        eval,
        held_out: names,
        peak_rss_mb: peak_rss_mb(),
        wall_s: earlier + begun.elapsed().as_secs_f64(),
        seed: config.run.seed,
        version: Summary::VERSION.to_owned(),
    };
    summary.save(out.join(SUMMARY))?;
    Ok(summary)
}

/// What the stages of `config` will ask of `device`, which may have `memory` bytes instead of its own: [`run`] up to its first
/// step, with nothing computed and nothing written. A stage that does not fit is an error that names what would.
pub fn plan(
    config: &Config,
    device: &Device,
    memory: Option<usize>,
    progress: &dyn Progress,
) -> Result<Vec<StageMemory>> {
    expect_possible(config, device)?;
    let config = &resolved(config)?;
    let given = Given::new(config, None, progress)?;
    let load = |device: &Device| given.artifacts(config, None, &[], device, &Silent);
    given.plan(config, &config.run.stages, device, &load, memory.or_else(|| planner::available(device)))
}

/// Refuses what no stage can do.
fn expect_possible(config: &Config, device: &Device) -> Result<()> {
    if config.data.scale != SCALE {
        return Err(Error::Usage(format!(
            "data.scale = {}: this codec's models are ×{SCALE}; set it to that",
            config.data.scale
        )));
    }
    if config.run.precision == Precision::Bf16 && device.gpu().is_none() {
        return Err(Error::Usage(format!(
            "run.precision = \"bf16\" is for a GPU, the device is {device:?}: say --device cuda, or --set run.precision=f32"
        )));
    }
    Ok(())
}

/// What a run is given: data and the structure of its model.
struct Given {
    pictures: Pictures,
    imitated: Option<Pictures>,
    /// Held-out images.
    names: Vec<String>,
    /// Its weights not read yet, where it is a network.
    codec: Codec,
    flux: FluxConfig,
}

/// Where pictures come from, and which of them train.
type Pictures = (Arc<dyn Source>, Split);

impl Given {
    /// Looks at all data; the codec is `theirs`, or that of `run.from`, if there is one.
    fn new(config: &Config, theirs: Option<(&Path, Codec)>, progress: &dyn Progress) -> Result<Self> {
        let (source, split) = data::source(config)?;
        let names: Vec<String> = split.held_out.iter().map(|&i| source.name(i)).collect();
        progress.say(&format!("{} images to train on, {} held out", split.train.len(), names.len()));
        let imitated = data::adversary(config, &names)?;
        if let Some((source, split)) = &imitated {
            let kind = if source.has(Part::Neg) { "an upscaler's outputs" } else { "made worse here" };
            let (n, held) = (split.train.len(), split.held_out.len());
            progress.say(&format!("{n} images for the adversary, {held} held out, {kind}"));
        }
        let from = from(config).filter(|_| theirs.is_none());
        let from =
            from.map(|run| Ok::<_, Error>((run, load_codec(run, &Device::cpu().meta())?))).transpose()?;
        let codec = data::codec(config, theirs.or(from), &*source, &split)?;
        if let Some(said) = data::expect_room(config, &codec)? {
            progress.say(&said);
        }
        let flux = match elsewhere(config)? {
            Some(base) => {
                let flux = base.config().clone();
                let (tokens, name, channels) = (flux.in_channels, codec.name(), codec.channels());
                if tokens != 4 * channels {
                    return Err(Error::Usage(format!(
                        "the tokens of model.base = {:?} have {tokens} channels; the codec {name} has {channels}, and a \
                         token four times as many: name FLUX.1's autoencoder (its vae folder, or ae.safetensors) or \
                         TAEF1's weights with data.codec",
                        config.model.base
                    )));
                }
                flux
            }
            None => flux_config(config, codec.channels())?,
        };
        Ok(Self { pictures: (source, split), imitated, names, codec, flux })
    }

    /// What was made before, on `device`: by the run that `run.from` names, and by this one's finished stages.
    fn artifacts(
        &self,
        config: &Config,
        mine: Option<(&Path, &Checkpoint)>,
        finished: &[StageName],
        device: &Device,
        progress: &dyn Progress,
    ) -> Result<Artifacts> {
        let mut made = Artifacts::default();
        let runs = from(config).map(Runs::of).transpose()?;
        let base = match &config.model.base[..] {
            "" => runs.as_ref().map(Runs::base).transpose()?,
            base => Some(PathBuf::from(base)),
        };
        let dtype = config.run.precision.dtype();
        if let Some(base) = base {
            let begun = Instant::now();
            let mut bytes = 0;
            let known = known(config, &self.codec);
            made.load_base(&base, &self.flux, device, (dtype, Some(&known)), &mut |done, all| {
                progress.loading(done, all);
                bytes = all;
            })?;
            if let Some(pace) = pace(bytes, begun.elapsed()) {
                progress.say(&format!("{}: {pace}", base.display()));
            }
        }
        for name in [layout::SFT, layout::ADVERSARY, layout::ASDPO] {
            if let Some(dir) = runs.as_ref().and_then(|runs| runs.find(name)) {
                made.load(dir.parent().unwrap_or(Path::new("")), &[name], &self.flux, device, dtype)?;
            }
        }
        stages_have_what_they_need(config, &made)?;
        if let Some((out, checkpoint)) = mine {
            let mine: Vec<&str> = finished.iter().map(|&s| makes(s)).collect();
            made.load(out, &mine, &self.flux, device, dtype)?;
            made.files = checkpoint.record.artifacts.clone();
        }
        Ok(made)
    }

    /// The memory of `stages`, on top of what `load` gives; `there` bytes may be had.
    fn plan(
        &self,
        config: &Config,
        stages: &[StageName],
        device: &Device,
        load: &dyn Fn(&Device) -> Result<Artifacts>,
        there: Option<usize>,
    ) -> Result<Vec<StageMemory>> {
        let meta = device.meta();
        let mut made = load(&meta)?;
        let needs = |config: &Config, stage: StageName, made: &mut Artifacts| {
            let before = meta.stats().live;
            let codec = self.codec.to(&meta)?;
            let weights = meta.stats().live - before;
            planner::stage(&self.context(config, codec, &meta, Validation::blank)?, weights, stage, made)
        };
        let mut all = Vec::new();
        for &stage in stages {
            let memory = needs(config, stage, &mut made)?;
            if let Some(there) = there.filter(|&there| memory.peak > there) {
                let mut remedy = None;
                for (config, sets) in planner::thriftier(config, stage) {
                    let less = needs(&config, stage, &mut made)?.peak;
                    if less <= there {
                        remedy = Some((sets, less));
                        break;
                    }
                }
                return Err(planner::too_much(&memory, there, device, remedy));
            }
            all.push(memory);
        }
        Ok(all)
    }

    /// The context of stages on `device`, where `codec` is, too; nobody watches, stops or reads them.
    fn context<'r>(
        &self,
        config: &'r Config,
        codec: Codec,
        device: &Device,
        look: impl Fn(&Sampler, usize, usize, &Device) -> Result<Validation>,
    ) -> Result<Context<'r>> {
        static NEVER: AtomicBool = AtomicBool::new(false);
        let look = |s: &Sampler| look(s, config.run.validation_crops, config.run.eval_steps, device);
        let sampler =
            |(source, split): &Pictures| data::sampler(config, source.clone(), split.clone(), codec.clone());
        let imitated = self.imitated.as_ref().map(|pictures| {
            let sampler = sampler(pictures)?;
            Ok::<_, Error>((sampler.clone(), look(&sampler)?))
        });
        let imitated = imitated.transpose()?;
        let sampler = sampler(&self.pictures)?;
        let validation = look(&sampler)?;
        Ok(Context {
            config,
            flux: self.flux.clone(),
            device: device.clone(),
            sampler,
            validation,
            imitated,
            out: Path::new(""),
            progress: &Silent,
            stop: &NEVER,
        })
    }
}

/// `config` with the codec of `run.from` and the base model that it was given from elsewhere, and with the dimensions of one
/// from elsewhere.
fn resolved(config: &Config) -> Result<Config> {
    let mut config = config.clone();
    if config.model.base.is_empty()
        && !config.run.stages.contains(&StageName::Base)
        && let Some(run) = from(&config)
        && let Some(base) = Runs::of(run)?.elsewhere()?
    {
        config.model.base = base.display().to_string();
    }
    // The codec that latents of run.from's models are of.
    if config.data.codec == Codec::HAAR
        && let Some(run) = from(&config)
    {
        config.data.codec = load_codec(run, &Device::cpu().meta())?.option();
    }
    if let Some(base) = elsewhere(&config)? {
        config.set_dimensions(base.config());
        // So that it is found from anywhere; random weights are nowhere.
        if let Ok(whole) = Path::new(&config.model.base).canonicalize() {
            config.model.base = whole.display().to_string();
        }
    }
    Ok(config)
}

/// The base model that no run made.
fn elsewhere(config: &Config) -> Result<Option<BaseModel>> {
    let named = Some(&config.model.base).filter(|base| !base.is_empty());
    named.map(BaseModel::open).transpose()
}

/// The run that `run.from` names.
fn from(config: &Config) -> Option<&Path> {
    Some(Path::new(&config.run.from)).filter(|p| !p.as_os_str().is_empty())
}

/// Removes what killed writes left in a run and in its folders.
fn remove_all_leftovers(out: &Path) -> Result<()> {
    remove_leftovers(out)?;
    let entries = std::fs::read_dir(out).map_err(Error::io(out))?;
    entries.flatten().map(|e| e.path()).filter(|p| p.is_dir()).try_for_each(|dir| remove_leftovers(&dir))
}

/// Refuses a run directory that holds a run.
fn vacant(out: &Path) -> Result<()> {
    if out.join(CONFIG).exists() {
        let detail = "there is a run already; go on with it by --resume, choose another --out, or remove it";
        return Err(Error::Usage(format!("{}: {detail}", out.display())));
    }
    if out.exists() && !out.is_dir() {
        return Err(Error::Usage(format!("{} is a file; --out wants a folder", out.display())));
    }
    Ok(())
}

/// The checkpoint to go on from, now the newest of the run; `None` when the run was stopped before its first.
fn resume(
    config: &Config,
    out: &Path,
    chosen: Option<&Path>,
    change_config: bool,
    progress: &dyn Progress,
) -> Result<Option<Checkpoint>> {
    let stored = out.join(CONFIG);
    if !stored.is_file() {
        let detail = "holds no run to resume; leave --resume away to start one";
        return Err(Error::Usage(format!("{} {detail}", out.display())));
    }
    let checkpoint = match chosen {
        Some(path) => {
            if !path.exists() {
                let all: Vec<String> =
                    checkpoint::list(out).iter().map(|p| p.display().to_string()).collect();
                let there = if all.is_empty() { "none".to_owned() } else { all.join(", ") };
                return Err(Error::Usage(format!(
                    "there is no checkpoint {}; there are: {there}",
                    path.display()
                )));
            }
            let folder = |p: &Path| p.canonicalize().map_err(Error::io(p));
            if folder(path)?.parent() != Some(&folder(&out.join(CHECKPOINTS))?) {
                let detail = format!("is no checkpoint of {}", out.display());
                return Err(Error::Usage(format!("{} {detail}", path.display())));
            }
            Some(Checkpoint::open(path)?)
        }
        None => {
            let mut damaged = None;
            let found = Checkpoint::latest(out, |e| {
                progress.say(&format!("warning: {e}"));
                damaged.get_or_insert(e);
            });
            if let (None, Some(e)) = (&found, damaged) {
                return Err(e);
            }
            found
        }
    };
    let (origin, text) = match &checkpoint {
        Some(c) => (c.path.clone(), c.record.config.clone()),
        None => (stored.clone(), std::fs::read_to_string(&stored).map_err(Error::io(&stored))?),
    };
    let differences = Config::from_toml(&origin, &text)?.differences(config);
    if !differences.is_empty() && !change_config {
        return Err(Error::Usage(format!(
            "{} was written under another configuration:\n  {}\nresume with the old values, or say --change-config",
            origin.display(),
            differences.join("\n  ")
        )));
    }
    Ok(checkpoint)
}

/// Makes the run directory what it was at `checkpoint`, now that nothing speaks against it.
fn rewind(
    out: &Path,
    config: &Config,
    checkpoint: Option<&Checkpoint>,
    progress: &dyn Progress,
) -> Result<()> {
    match checkpoint {
        Some(c) => {
            progress.say(&format!("going on from {}", c.path.display()));
            for moved in c.go_back(out)? {
                progress.say(&format!("set aside: {}", moved.display()));
            }
            prune(out, config)?;
        }
        None => progress.say("there is no checkpoint yet: starting over"),
    }
    let summary = out.join(SUMMARY);
    if summary.exists() {
        std::fs::remove_file(&summary).map_err(Error::io(&summary))?;
    }
    Ok(())
}

/// The stages a checkpoint has behind it.
fn finished(config: &Config, checkpoint: Option<&Checkpoint>) -> Result<Vec<StageName>> {
    let Some(c) = checkpoint else { return Ok(Vec::new()) };
    let Some(at) = config.run.stages.iter().position(|&s| s == c.stage) else {
        return Err(Error::Usage(format!(
            "{} is of stage {}, which run.stages does not list",
            c.path.display(),
            c.record.stage
        )));
    };
    let done = c.record.step >= config.stage(c.stage).steps;
    Ok(config.run.stages[..at + usize::from(done)].to_vec())
}

/// What a stage leaves in the run directory.
fn makes(stage: StageName) -> &'static str {
    match stage {
        StageName::Base => layout::BASE,
        StageName::Sft => layout::SFT,
        StageName::Adversary => layout::ADVERSARY,
        StageName::Asdpo => layout::ASDPO,
    }
}

/// Refuses to start where the run would not fit on the disk.
fn room(config: &Config, flux: &FluxConfig, out: &Path) -> Result<()> {
    let base: usize = flux.parameters().iter().map(|(_, s)| s.iter().product::<usize>()).sum();
    let (mut most, mut kept, mut results, mut logs) = (0, 0, 0, 0);
    for &stage in &config.run.stages {
        let o = config.stage(stage);
        let widths: usize = flux.lora_targets().iter().map(|(_, i, o)| i + o).sum();
        let values = if stage == StageName::Base { base } else { o.rank * widths };
        let one = checkpoint::size(values, o.ema > 0.0);
        most = most.max(one);
        kept += o.steps.checked_div(config.run.keep_every).unwrap_or(0) as u64 * one;
        results += 4 * values as u64;
        logs += 1000 * o.steps as u64;
    }
    // One more than are kept: the new one is there before an old one goes.
    let bytes = (config.run.keep_last as u64 + 1) * most + kept + results + logs + (16 << 20);
    expect_space(out, bytes, "this run", "lower run.keep_last or raise run.keep_every")
}

/// Refuses, before anything is trained or written, stages that build on what neither this run nor `run.from` makes.
fn stages_have_what_they_need(config: &Config, made: &Artifacts) -> Result<()> {
    let mut have: Vec<&str> = made.adapters.keys().map(String::as_str).collect();
    have.extend(made.base.is_some().then_some(layout::BASE));
    for &stage in &config.run.stages {
        let needs: &[&str] = match stage {
            StageName::Base => &[],
            StageName::Sft | StageName::Adversary => &[layout::BASE],
            StageName::Asdpo if config.preference.adversary == Adversary::Lora => {
                &[layout::BASE, layout::SFT, layout::ADVERSARY]
            }
            StageName::Asdpo => &[layout::BASE, layout::SFT],
        };
        if let Some(lacking) = needs.iter().find(|n| !have.contains(n)) {
            return Err(missing(stage, lacking));
        }
        have.push(makes(stage));
    }
    Ok(())
}
