//! The configuration of a run: defaults, then a preset, then a file, then `--set section.key=value`, then the checks
//! that no single option can make.

use super::options::{
    AdversaryOptions, DataOptions, DegradationKind, Group, ModelOptions, Named, OptionInfo,
    PreferenceOptions, RunOptions, Section, SftOptions, StageName, StageOptions,
};
use crate::data::Strengths;
use crate::error::did_you_mean;
use crate::flux::config::FluxConfig;
use crate::{Error, Result};
use std::fmt::Write;
use std::path::Path;
use toml::{Table, Value};

/// The presets: name and text. What they leave out stays at its default.
pub const PRESETS: [(&str, &str); 5] = [
    ("nano", include_str!("../../configs/nano.toml")),
    ("tiny", include_str!("../../configs/tiny.toml")),
    ("paper-sft", include_str!("../../configs/paper-sft.toml")),
    ("paper-adversary", include_str!("../../configs/paper-adversary.toml")),
    ("paper-asdpo", include_str!("../../configs/paper-asdpo.toml")),
];

/// All options of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `[run]`
    pub run: RunOptions,
    /// `[data]`
    pub data: DataOptions,
    /// `[model]`
    pub model: ModelOptions,
    /// `[base]`
    pub base: StageOptions,
    /// `[sft]`, what every stage has.
    pub sft: StageOptions,
    /// `[adversary]`
    pub adversary: StageOptions,
    /// `[asdpo]`, what every stage has.
    pub asdpo: StageOptions,
    /// `[sft]`, what only it has.
    pub sft_data: SftOptions,
    /// `[adversary]`, what only it has.
    pub adversary_data: AdversaryOptions,
    /// `[asdpo]`, what only it has.
    pub preference: PreferenceOptions,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            run: RunOptions::defaults(Section::Run),
            data: DataOptions::defaults(Section::Data),
            model: ModelOptions::defaults(Section::Model),
            base: StageOptions::defaults(Section::Base),
            sft: StageOptions::defaults(Section::Sft),
            adversary: StageOptions::defaults(Section::Adversary),
            asdpo: StageOptions::defaults(Section::Asdpo),
            sft_data: SftOptions::defaults(Section::Sft),
            adversary_data: AdversaryOptions::defaults(Section::Adversary),
            preference: PreferenceOptions::defaults(Section::Asdpo),
        }
    }
}

/// The option groups, each with a line for the help text.
fn groups() -> [(&'static str, Vec<OptionInfo>); 7] {
    [
        ("The run as a whole", RunOptions::table()),
        ("Images and their degradation", DataOptions::table()),
        ("The transformer", ModelOptions::table()),
        ("Every training stage", StageOptions::table()),
        ("The super-resolution adapter's stage besides", SftOptions::table()),
        ("The adversary's stage besides", AdversaryOptions::table()),
        ("The preference stage besides", PreferenceOptions::table()),
    ]
}

impl Config {
    /// Builds and validates a configuration.
    ///
    /// The preset is `preset`, else what `sets` or the file say under `run.preset`, else "tiny". `sets` holds
    /// `section.key=value` texts; later ones win. Text values need no quotes there, lists no brackets.
    pub fn load(preset: Option<&str>, file: Option<&Path>, sets: &[String]) -> Result<Self> {
        let table = file.map(read_file).transpose()?;
        let sets = sets.iter().map(|s| split_set(s)).collect::<Result<Vec<_>>>()?;
        let set_preset = sets.iter().rev().find(|s| (s.0, s.1) == ("run", "preset"));
        let set_preset = set_preset.map(|s| s.2.trim_matches('"'));
        if let (Some(a), Some(b)) = (preset, set_preset)
            && a != b
        {
            return Err(Error::Usage(format!(
                "preset {a} and run.preset={b} contradict each other; give one"
            )));
        }
        let file_preset = table.as_ref().and_then(|t| t.get("run")?.get("preset")?.as_str());
        let name = preset.or(set_preset).or(file_preset).unwrap_or("tiny");
        let mut config = Self::preset(name)?;
        if let (Some(path), Some(table)) = (file, &table) {
            config.apply(&path.display().to_string(), table)?;
        }
        for (section, key, text) in sets {
            config.set_text(section, key, text)?;
        }
        config.run.preset = name.to_owned();
        config.validate()?;
        Ok(config)
    }

    /// A preset as it stands, not yet validated.
    fn preset(name: &str) -> Result<Self> {
        let Some((_, text)) = PRESETS.iter().find(|(n, _)| *n == name) else {
            let names: Vec<&str> = PRESETS.iter().map(|p| p.0).collect();
            return Err(Error::Usage(format!(
                "there is no preset `{name}`; there are: {}{}",
                names.join(", "),
                did_you_mean(name, names.iter().copied())
            )));
        };
        let origin = format!("configs/{name}.toml");
        let mut config = Self::default();
        config.apply(&origin, &parse(Path::new(&origin), text)?)?;
        config.run.preset = name.to_owned();
        Ok(config)
    }

    /// Overwrites what `table` holds.
    fn apply(&mut self, origin: &str, table: &Table) -> Result<()> {
        for (section, body) in table {
            let Value::Table(body) = body else {
                let known = full_names().into_iter().filter(|n| n.ends_with(&format!(".{section}")));
                let hint = known.map(|n| format!("; did you mean `{n}`?")).next().unwrap_or_default();
                return Err(Error::Usage(format!("{origin}: `{section}` stands outside a [section]{hint}")));
            };
            for (key, value) in body {
                self.set(section, key, value).map_err(|why| Error::Usage(format!("{origin}: {why}")))?;
            }
            find_section(section).map_err(|why| Error::Usage(format!("{origin}: {why}")))?;
        }
        Ok(())
    }

    /// `--set section.key=text`: the text is read as TOML where that fits the option, else as it stands.
    fn set_text(&mut self, section: &str, key: &str, text: &str) -> Result<()> {
        let bare = Value::String(text.to_owned());
        let value = parse(Path::new("--set"), &format!("v = {text}")).ok().and_then(|mut t| t.remove("v"));
        let first = self.set(section, key, value.as_ref().unwrap_or(&bare));
        let outcome = match (first, value) {
            // A folder called 2024, say: TOML's number is the option's text.
            (Err(why), Some(v)) if !v.is_str() => self.set(section, key, &bare).map_err(|_| why),
            (outcome, _) => outcome,
        };
        outcome.map_err(|why| Error::Usage(format!("--set {section}.{key}={text}: {why}")))
    }

    fn set(&mut self, section: &str, key: &str, value: &Value) -> Result<(), String> {
        let place = find_section(section)?;
        let owners: Vec<Section> = groups()
            .into_iter()
            .flat_map(|(_, table)| table)
            .filter(|o| o.key == key)
            .flat_map(|o| o.sections.into_iter().map(|s| s.0))
            .collect();
        if !owners.contains(&place) {
            let name = format!("{section}.{key}");
            // The very key in another section says more than a similar one in this.
            let hint = if owners.is_empty() {
                let here: Vec<String> =
                    full_names().into_iter().filter(|n| n.starts_with(&format!("{section}."))).collect();
                did_you_mean(&name, here.iter().map(String::as_str))
            } else {
                let all: Vec<String> = owners.iter().map(|s| format!("`{}.{key}`", s.name())).collect();
                format!("; there is {}", all.join(", "))
            };
            return Err(format!("unknown option `{name}`{hint}"));
        }
        let Some(group) = self.groups_mut(place).into_iter().find(|g| g.get(key).is_some()) else {
            return Err(format!("unknown option `{section}.{key}`"));
        };
        group.set(key, value).map_err(|why| format!("{section}.{key} = {value}: {why}"))
    }

    fn groups_mut(&mut self, section: Section) -> Vec<&mut dyn Group> {
        match section {
            Section::Run => vec![&mut self.run],
            Section::Data => vec![&mut self.data],
            Section::Model => vec![&mut self.model],
            Section::Base => vec![&mut self.base],
            Section::Sft => vec![&mut self.sft, &mut self.sft_data],
            Section::Adversary => vec![&mut self.adversary, &mut self.adversary_data],
            Section::Asdpo => vec![&mut self.asdpo, &mut self.preference],
        }
    }

    fn get(&self, section: Section, key: &str) -> Option<Value> {
        match section {
            Section::Run => self.run.get(key),
            Section::Data => self.data.get(key),
            Section::Model => self.model.get(key),
            Section::Base => self.base.get(key),
            Section::Sft => self.sft.get(key).or_else(|| self.sft_data.get(key)),
            Section::Adversary => self.adversary.get(key).or_else(|| self.adversary_data.get(key)),
            Section::Asdpo => self.asdpo.get(key).or_else(|| self.preference.get(key)),
        }
    }

    /// Where this configuration differs from `other`: `section.key: its value → the other's`.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let keys = groups()
            .into_iter()
            .flat_map(|g| g.1)
            .flat_map(|o| o.sections.into_iter().map(move |(section, _)| (section, o.key)));
        keys.filter_map(|(section, key)| {
            let (mine, theirs) = (self.get(section, key)?, other.get(section, key)?);
            (mine != theirs).then(|| format!("{}.{key}: {mine} → {theirs}", section.name()))
        })
        .collect()
    }

    /// Where this configuration differs from its preset: `section.key: the preset's value → its own`.
    pub fn overrides(&self) -> Vec<String> {
        Self::preset(&self.run.preset).map_or_else(|_| Vec::new(), |preset| preset.differences(self))
    }

    /// Reads a configuration from the text [`Config::to_toml`] made; `origin` is where the text was.
    pub fn from_toml(origin: &Path, text: &str) -> Result<Self> {
        let table = parse(origin, text)?;
        let name = table.get("run").and_then(|r| r.get("preset")?.as_str()).unwrap_or("tiny").to_owned();
        let mut config = Self::preset(&name)?;
        config.apply(&origin.display().to_string(), &table)?;
        config.validate()?;
        Ok(config)
    }

    /// What every stage has, of stage `name`.
    pub fn stage(&self, name: StageName) -> &StageOptions {
        match name {
            StageName::Base => &self.base,
            StageName::Sft => &self.sft,
            StageName::Adversary => &self.adversary,
            StageName::Asdpo => &self.asdpo,
        }
    }

    /// The same, to be changed.
    pub(super) fn stage_mut(&mut self, name: StageName) -> &mut StageOptions {
        match name {
            StageName::Base => &mut self.base,
            StageName::Sft => &mut self.sft,
            StageName::Adversary => &mut self.adversary,
            StageName::Asdpo => &mut self.asdpo,
        }
    }

    /// Refuses options that contradict each other; the message names both and what to change.
    pub fn validate(&self) -> Result<()> {
        self.contradiction().map_or(Ok(()), |why| Err(Error::Usage(why)))
    }

    /// Puts a base model's dimensions in the place of those written here.
    pub(super) fn set_dimensions(&mut self, of: &FluxConfig) {
        self.model = ModelOptions {
            base: self.model.base.clone(),
            dim: of.dim(),
            heads: of.num_attention_heads,
            double: of.num_layers,
            single: of.num_single_layers,
            mlp_ratio: of.mlp_ratio as f32,
            axes: of.axes_dims_rope,
            theta: of.rope_theta as f32,
        };
    }

    fn contradiction(&self) -> Option<String> {
        let (d, m) = (&self.data, &self.model);
        let checks = [
            (
                !m.base.is_empty() && self.run.stages.contains(&StageName::Base),
                format!(
                    "run.stages trains a base, but model.base = {:?} names one: leave base out, or model.base empty",
                    m.base
                ),
            ),
            (
                !d.crop.is_multiple_of(8),
                format!("data.crop = {} is not a multiple of 8, the side of a token", d.crop),
            ),
            (
                !d.crop.is_multiple_of(d.scale),
                format!("data.crop = {} is not a multiple of data.scale = {}", d.crop, d.scale),
            ),
            (
                d.source == "dead-leaves" && d.crop > d.image_size,
                format!(
                    "data.crop = {} does not fit into data.image_size = {}; enlarge the image",
                    d.crop, d.image_size
                ),
            ),
            (
                d.source == "dead-leaves" && d.images == 0,
                "data.images = 0 (every one) needs a folder, and data.source = \"dead-leaves\"".to_owned(),
            ),
            (
                d.images != 0 && d.held_out >= d.images,
                format!(
                    "data.held_out = {} leaves none of data.images = {} to train on",
                    d.held_out, d.images
                ),
            ),
            (
                !d.latent_cache.is_empty() && d.pool == 0,
                "data.latent_cache without data.pool: there is no end of samples to keep; say how many there are".to_owned(),
            ),
            (
                !d.held_out_names.is_empty() && d.source == "dead-leaves",
                "data.held_out_names is for a folder of pictures, data.source = \"dead-leaves\"; use data.held_out".to_owned(),
            ),
            reversed("data.blur_min", d.blur_min, "data.blur_max", d.blur_max),
            reversed("data.jpeg_min", d.jpeg_min, "data.jpeg_max", d.jpeg_max),
            (
                d.jpeg_min == 0 && d.jpeg_max != 0,
                format!(
                    "data.jpeg_min = 0 with data.jpeg_max = {}: set both, or both to 0 for no JPEG",
                    d.jpeg_max
                ),
            ),
            (
                d.degradation == DegradationKind::Light && d.strengths() != Strengths::default(),
                "data.*_strength below 1 with data.degradation = \"light\": they are of \"real-esrgan\""
                    .to_owned(),
            ),
            (
                d.degradation == DegradationKind::RealEsrgan
                    && (self.sft_data.blur_max != 0.0 || self.sft_data.noise_max != 0.0),
                format!(
                    "sft.blur_max = {} and sft.noise_max = {} with data.degradation = \"real-esrgan\": they are of \"light\"; leave them at 0",
                    self.sft_data.blur_max, self.sft_data.noise_max
                ),
            ),
            (
                self.sft_data.blur_max != 0.0 && self.sft_data.blur_max < d.blur_min,
                format!("sft.blur_max = {} is below data.blur_min = {}", self.sft_data.blur_max, d.blur_min),
            ),
            (
                !m.dim.is_multiple_of(m.heads),
                format!("model.dim = {} is not a multiple of model.heads = {}", m.dim, m.heads),
            ),
            (
                m.axes.iter().sum::<usize>() * m.heads != m.dim,
                format!(
                    "model.axes = {:?} sum to {}, wanted model.dim / model.heads = {} / {} = {}",
                    m.axes,
                    m.axes.iter().sum::<usize>(),
                    m.dim,
                    m.heads,
                    m.dim / m.heads
                ),
            ),
            (
                m.axes.iter().any(|a| a % 2 != 0),
                format!("model.axes = {:?} has an odd number; values are turned in pairs", m.axes),
            ),
            (
                (m.dim as f32 * m.mlp_ratio).fract() != 0.0 || (m.dim as f32 * m.mlp_ratio) < 1.0,
                format!(
                    "model.mlp_ratio = {} times model.dim = {} is not a whole number",
                    m.mlp_ratio, m.dim
                ),
            ),
            (
                self.run.stages.is_empty() || !self.run.stages.is_sorted_by(|a, b| a < b),
                format!(
                    "run.stages = [{}] must name some of base, sft, adversary, asdpo, in that order, once each",
                    self.run.stages.iter().map(|s| s.name()).collect::<Vec<_>>().join(", ")
                ),
            ),
        ];
        let stages = StageName::ALL.iter().map(|&(name, stage)| {
            let s = self.stage(stage);
            (
                s.warmup > s.steps,
                format!(
                    "{name}.warmup = {} is longer than {name}.steps = {}; shorten the warm-up",
                    s.warmup, s.steps
                ),
            )
        });
        checks.into_iter().chain(stages).find_map(|(wrong, why)| wrong.then_some(why))
    }

    /// The whole configuration as a commented file that loads to the same values.
    pub fn to_toml(&self) -> String {
        let mut out = String::from("# Every option of the run, as used. Loads as it is.\n");
        for &(name, section) in Section::ALL {
            let _ = write!(out, "\n[{name}]\n");
            for option in groups().iter().flat_map(|g| &g.1) {
                let Some((_, default)) = option.sections.iter().find(|s| s.0 == section) else { continue };
                let Some(value) = self.get(section, option.key) else { continue };
                let _ = writeln!(out, "# {} ({}; default {default})", option.doc, option.limits());
                let _ = writeln!(out, "{} = {value}", option.key);
            }
        }
        out
    }

    /// A table of every option, for people: key, type and range, defaults by section, description.
    pub fn help() -> String {
        let mut out = String::new();
        for (title, table) in groups() {
            let sections = |o: &OptionInfo| o.sections.iter().map(|s| s.0.name()).collect::<Vec<_>>();
            let every = table.first().map(&sections).unwrap_or_default();
            let heads: Vec<String> = every.iter().map(|s| format!("[{s}]")).collect();
            let _ = writeln!(out, "{title}: {}", heads.join(" "));
            for option in &table {
                let mut defaults: Vec<String> =
                    option.sections.iter().map(|(s, v)| format!("{} {v}", s.name())).collect();
                if option.sections.iter().all(|(_, v)| *v == option.sections[0].1) {
                    let only = if sections(option) == every {
                        ""
                    } else {
                        &format!(" in {}", sections(option).join(", "))
                    };
                    defaults = vec![format!("{}{only}", option.sections[0].1)];
                }
                let _ = writeln!(
                    out,
                    "  {:<13} {}; default {}",
                    option.key,
                    option.limits(),
                    defaults.join(", ")
                );
                let _ = writeln!(out, "  {:<13} {}", "", option.doc);
            }
            out.push('\n');
        }
        out
    }
}

impl OptionInfo {
    /// Type and range in words.
    fn limits(&self) -> String {
        if self.range.is_empty() { self.kind.clone() } else { format!("{}, {}", self.kind, self.range) }
    }
}

fn reversed<T: PartialOrd + std::fmt::Display>(lo: &str, a: T, hi: &str, b: T) -> (bool, String) {
    (a > b, format!("{lo} = {a} is more than {hi} = {b}; lower the first or raise the second"))
}

/// Every option as `section.key`.
fn full_names() -> Vec<String> {
    let options = groups().into_iter().flat_map(|(_, table)| table);
    options
        .flat_map(|o| o.sections.into_iter().map(move |(s, _)| format!("{}.{}", s.name(), o.key)))
        .collect()
}

fn find_section(name: &str) -> Result<Section, String> {
    Section::ALL.iter().find(|(n, _)| *n == name).map(|&(_, s)| s).ok_or_else(|| {
        let names: Vec<&str> = Section::ALL.iter().map(|s| s.0).collect();
        let hint = did_you_mean(name, names.iter().copied());
        format!("unknown section `[{name}]`; there are: {}{hint}", names.join(", "))
    })
}

/// `section.key=value` into its three parts.
fn split_set(text: &str) -> Result<(&str, &str, &str)> {
    let parts = text.split_once('=').and_then(|(name, value)| {
        let (section, key) = name.trim().split_once('.')?;
        Some((section, key, value.trim()))
    });
    parts.ok_or_else(|| Error::Usage(format!("--set {text}: wanted section.key=value, as in asdpo.lr=5e-4")))
}

fn read_file(path: &Path) -> Result<Table> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| Error::Usage(format!("{}: {e}; wanted a TOML file of options", path.display())))?;
    parse(path, &text)
}

fn parse(path: &Path, text: &str) -> Result<Table> {
    text.parse().map_err(|e: toml::de::Error| {
        let line = e.span().map(|s| text[..s.start.min(text.len())].matches('\n').count() + 1);
        let line = line.map(|n| format!("line {n}: ")).unwrap_or_default();
        Error::Usage(format!("{}: {line}{}", path.display(), e.message()))
    })
}

#[cfg(test)]
mod tests {
    use super::super::objective::Adversary;
    use super::super::options::LoserNoise;
    use super::*;
    use crate::flux::LrSchedule;
    use crate::ops::sobolev::{Spectrum, Weight};

    fn load(sets: &[&str]) -> Result<Config> {
        Config::load(None, None, &sets.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>())
    }
    fn error(sets: &[&str]) -> String {
        let e = load(sets).unwrap_err();
        assert_eq!(e.exit_code(), 2);
        e.to_string()
    }

    #[test]
    fn tiny_is_the_recipe() {
        let c = load(&[]).unwrap();
        assert_eq!(c, Config::default());
        let row = |s: &StageOptions| (s.steps, s.batch, s.lr, s.rank, s.alpha);
        assert_eq!(row(&c.base), (2570, 8, 3e-3, 0, 0.0));
        assert_eq!(row(&c.sft), (340, 8, 1e-3, 16, 16.0));
        assert_eq!(row(&c.adversary), (310, 8, 2e-3, 16, 16.0));
        assert_eq!(row(&c.asdpo), (80, 4, 5e-4, 16, 16.0));
        assert_eq!((c.base.beta1, c.base.beta2, c.base.weight_decay, c.base.clip), (0.9, 0.99, 0.01, 1.0));
        assert_eq!((c.base.warmup, c.asdpo.warmup, c.asdpo.schedule), (50, 20, LrSchedule::DecayHalf));
        let p = &c.preference;
        assert_eq!((p.beta, p.s, p.lambda), (500.0, 1.5, 1.0));
        assert_eq!((p.spectrum, p.weight, p.loser_noise), (Spectrum::Full, Weight::MeanOne, LoserNoise::Own));
    }

    #[test]
    fn paper_presets_hold_the_papers_numbers() {
        let of = |name: &str| Config::load(Some(name), None, &[]).unwrap();
        let stages = [StageName::Sft, StageName::Adversary, StageName::Asdpo];
        for (name, stage) in ["paper-sft", "paper-adversary", "paper-asdpo"].into_iter().zip(stages) {
            let c = of(name);
            assert_eq!((&*c.run.preset, &c.run.stages[..], c.data.crop), (name, &[stage][..], 512));
            let o = c.stage(stage);
            assert_eq!((o.batch * o.accumulation, o.steps, o.beta2), (512, 1000, 0.999));
            assert_eq!((o.schedule, o.rank as f32), (LrSchedule::Constant, o.alpha));
        }
        let adversary = of("paper-adversary").adversary;
        assert_eq!((adversary.lr, adversary.warmup, adversary.rank), (5e-5, 100, 16));
        let c = of("paper-asdpo");
        assert_eq!(
            (c.asdpo.lr, c.asdpo.warmup, c.asdpo.rank, of("paper-sft").sft.rank),
            (1e-5, 200, 16, 128)
        );
        let p = &c.preference;
        assert_eq!((p.beta, p.lambda, p.spectrum, p.weight), (4000.0, 0.1, Spectrum::Half, Weight::Raw));
        assert_eq!(c.data.lq_resize, crate::data::LqResize::TorchBilinear);
    }

    #[test]
    fn file_then_sets_and_back_to_text() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run.toml");
        std::fs::write(&path, "[asdpo]\nlr = 1e-4\nbeta = 20\n[run]\npreset = \"paper-asdpo\"\n").unwrap();
        let sets = [
            "asdpo.beta=7",
            "data.source=2024",
            "run.stages=adversary, asdpo",
            "model.axes=[8,12,12]",
            "asdpo.adversary=riesz",
            "sft.recompute=false",
            "run.seed=\"9\"",
        ];
        let sets = sets.map(str::to_owned);
        let load = |sets: &[String]| Config::load(None, Some(&path), sets);
        assert!(load(&sets).unwrap_err().to_string().contains("run.seed"));
        let c = load(&sets[..6]).unwrap();
        assert_eq!((c.asdpo.lr, c.preference.beta, c.data.source.as_str()), (1e-4, 7.0, "2024"));
        assert_eq!(c.run.stages, [StageName::Adversary, StageName::Asdpo]);
        assert_eq!((c.model.axes, c.preference.adversary), ([8, 12, 12], Adversary::Riesz));
        assert_eq!((c.run.preset.as_str(), c.data.crop), ("paper-asdpo", 512));

        std::fs::write(&path, c.to_toml()).unwrap();
        assert_eq!(load(&[]).unwrap(), c);
        let e = Config::load(Some("tiny"), None, &["run.preset=paper-asdpo".into()]).unwrap_err().to_string();
        assert!(e.contains("tiny") && e.contains("paper-asdpo"), "{e}");
    }

    #[test]
    fn unknown_names_suggest_the_nearest() {
        assert!(error(&["asdpo.lamda=1"]).contains("did you mean `asdpo.lambda`"));
        assert!(error(&["adpo.lambda=1"]).contains("did you mean `asdpo`"));
        assert!(error(&["base.beta=1"]).contains("unknown option `base.beta`"));
        assert!(error(&["base.rank=4"]).contains("`sft.rank`"));
        assert!(error(&["data.steps=4"]).contains("`base.steps`, `sft.steps`"));
        assert!(error(&["run.zzzzzz=4"]).contains("`run.zzzzzz`"));
        assert!(error(&["lr=4"]).contains("section.key=value"));
        assert!(error(&["run.preset=tine"]).contains("did you mean `tiny`"));
        assert!(error(&["asdpo.spectrum=ful"]).contains("did you mean `full`"));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        let file = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Config::load(None, Some(&path), &[]).unwrap_err().to_string()
        };
        let e = file("[sft]\nstep = 3\n");
        assert!(e.contains("c.toml") && e.contains("did you mean `sft.steps`"), "{e}");
        assert!(file("[stf]\n").contains("did you mean `sft`"));
        assert!(file("seed = 3\n").contains("did you mean `run.seed`"));
        assert!(file("[run]\nseed = = 3\n").contains("line 2"));
        assert!(file("[run]\nseed = 3\nseed = 4\n").contains("line 3"));
        std::fs::remove_file(&path).unwrap();
        let e = Config::load(None, Some(&path), &[]).unwrap_err().to_string();
        assert!(e.contains("c.toml"), "{e}");
    }

    #[test]
    fn types_and_ranges() {
        assert!(error(&["base.steps=many"]).contains("wanted a whole number"));
        assert!(error(&["base.steps=-3"]).contains("whole number from 0"));
        assert!(error(&["base.steps=0"]).contains("1 to"));
        assert!(error(&["base.steps=1.5"]).contains("whole number"));
        assert!(error(&["base.lr=nan"]).contains("0 to 1"));
        assert!(error(&["base.lr=fast"]).contains("wanted a number"));
        assert!(error(&["asdpo.lambda=0"]).contains("more than 0"));
        assert!(error(&["sft.recompute=yes"]).contains("true or false"));
        assert!(error(&["model.axes=[4,14]"]).contains("3 values, these are 2"));
        assert!(error(&["model.axes=[4,14,99999]"]).contains("each 0 to 4096"));
        assert!(error(&["data.lq_resize=nearest"]).contains("torch_bilinear"));
        assert!(error(&["run.stages=base,stf"]).contains("did you mean `sft`"));
        assert!(error(&["sft.rank=0"]).contains("1 to 4096"));
        assert!(error(&["run.stages="]).contains("wanted"));
    }

    #[test]
    fn contradictions_name_both_keys() {
        for (sets, names) in [
            (&["data.crop=60"][..], ["data.crop = 60", "multiple of 8"]),
            (&["data.crop=64", "data.scale=3"], ["data.crop", "data.scale"]),
            (&["data.crop=256"], ["data.crop", "data.image_size"]),
            (&["data.images=0"], ["data.images", "data.source"]),
            (&["data.images=24"], ["data.images", "data.held_out"]),
            (&["data.blur_min=2"], ["data.blur_min", "data.blur_max"]),
            (&["data.jpeg_min=90", "data.jpeg_max=50"], ["data.jpeg_min", "data.jpeg_max"]),
            (&["data.jpeg_max=50"], ["data.jpeg_min", "data.jpeg_max"]),
            (&["sft.blur_max=0.1"], ["sft.blur_max", "data.blur_min"]),
            (&["data.noise_strength=0.5"], ["data.*_strength", "real-esrgan"]),
            (&["data.degradation=real-esrgan", "sft.noise_max=5"], ["sft.noise_max", "data.degradation"]),
            (&["model.heads=3"], ["model.dim", "model.heads"]),
            (&["model.axes=[4,14,16]"], ["model.axes", "model.dim / model.heads"]),
            (&["model.axes=[4,13,15]"], ["model.axes", "odd"]),
            (&["model.mlp_ratio=1.001"], ["model.mlp_ratio", "model.dim"]),
            (&["asdpo.steps=10"], ["asdpo.warmup", "asdpo.steps"]),
            (&["run.stages=sft,base"], ["run.stages", "order"]),
            (&["run.stages=[]"], ["run.stages", "some of"]),
            (&["run.stages=sft,sft"], ["run.stages", "once"]),
        ] {
            let e = error(sets);
            assert!(names.iter().all(|n| e.contains(n)), "{sets:?}: {e}");
        }
    }

    /// Every default lies in its own range, every option has words, and the help names all of them.
    #[test]
    fn the_table_is_sound() {
        let (mut config, help) = (Config::default(), Config::help());
        for option in groups().into_iter().flat_map(|g| g.1) {
            assert!(option.doc.len() > 10 && help.contains(option.key) && help.contains(&option.doc));
            for (section, default) in &option.sections {
                config.set(section.name(), option.key, default).unwrap();
                assert_eq!(config.get(*section, option.key).as_ref(), Some(default), "{}", option.key);
            }
        }
        assert_eq!(config, Config::default());
        assert!(PRESETS.iter().all(|(name, _)| Config::load(Some(name), None, &[]).is_ok()));
    }
}
