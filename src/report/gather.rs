//! Reading a run directory, whatever of it is there: a run that died has no summary, an old one no validation.

use crate::eval::{Evaluation, Metrics};
use crate::train::read::{Record, each_record, picture};
use crate::{Error, Result};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Steps and values of one field.
pub type Curve = Vec<(f64, f64)>;

/// A PNG file and its height and width.
pub struct Picture {
    /// The file.
    pub png: Vec<u8>,
    /// Height and width, in pixels.
    pub size: (u32, u32),
}

/// What the logs hold of one stage.
#[derive(Default)]
pub struct Stage {
    /// Its name.
    pub name: String,
    /// The last step logged.
    pub last: u64,
    /// Steps logged.
    pub steps: usize,
    /// Their time, in seconds, where it was logged.
    pub seconds: f64,
    /// Every numeric field of the log.
    pub training: BTreeMap<String, Curve>,
    /// Every numeric field of the validations.
    pub validation: BTreeMap<String, Curve>,
    /// Steps and file names of the validations' pictures.
    pub pictures: Vec<(u64, String)>,
}

/// What a run directory holds.
pub struct Run {
    /// The folder's name.
    pub name: String,
    /// The folder.
    pub folder: std::path::PathBuf,
    /// Its options, as a file.
    pub config: Option<String>,
    /// The stages, as they were begun.
    pub stages: Vec<Stage>,
    /// Whether there is a summary: only a finished run writes one.
    pub summary: Option<Value>,
    /// Scores per crop.
    pub evaluation: Option<Evaluation>,
    /// What it ran on.
    pub environment: Vec<(String, String)>,
    /// What was warned of, by the run or while its files were read.
    pub warnings: Vec<String>,
    /// The final comparison picture.
    pub samples: Option<Picture>,
}

impl Run {
    /// Reads what there is in `folder`; a folder with nothing of a run in it is a usage error.
    pub fn read(folder: &Path) -> Result<Self> {
        const MARKS: [&str; 3] = ["config.toml", "log.jsonl", "summary.json"];
        if !MARKS.iter().any(|mark| folder.join(mark).is_file()) {
            let what = if folder.is_dir() { "there is no" } else { "no such folder, so no" };
            let marks = MARKS.join(", no ");
            return Err(Error::Usage(format!(
                "{} is not a run: {what} {marks}; name the folder that `train --out` wrote",
                folder.display()
            )));
        }
        let named =
            folder.canonicalize().ok().and_then(|f| Some(f.file_name()?.to_string_lossy().into_owned()));
        let mut run = Self {
            name: named.unwrap_or_else(|| folder.display().to_string()),
            folder: folder.to_owned(),
            config: None,
            stages: Vec::new(),
            summary: None,
            evaluation: None,
            environment: Vec::new(),
            warnings: Vec::new(),
            samples: picture(folder, "samples.png").map(|(png, size)| Picture { png, size }),
        };
        run.config = run.part("config.toml", |path| std::fs::read_to_string(path).map_err(Error::io(path)));
        run.summary = run.part("summary.json", json);
        run.evaluation = run.part("evaluation.json", |path| Evaluation::load(path));
        let environment = run.part("environment.json", json);
        run.environment = environment.as_ref().map(entries).unwrap_or_default();
        run.log("log.jsonl", Stage::train);
        run.log("validation.jsonl", Stage::validate);
        Ok(run)
    }

    /// Reads a file if it is there; one that cannot be read is warned of.
    fn part<T>(&mut self, name: &str, read: impl FnOnce(&Path) -> Result<T>) -> Option<T> {
        let path = self.folder.join(name);
        if !path.exists() {
            return None;
        }
        read(&path).map_err(|e| self.warnings.push(e.to_string())).ok()
    }

    /// Hands each record of a log to its stage.
    fn log(&mut self, name: &str, take: fn(&mut Stage, u64, &Record)) {
        let (mut stages, mut warnings) = (std::mem::take(&mut self.stages), Vec::new());
        let read = |path: &Path| {
            each_record(path, |record| {
                let text = |key: &str| record.get(key).and_then(Value::as_str);
                let (Some(stage), Some(step)) = (text("stage"), record.get("step").and_then(Value::as_u64))
                else {
                    return;
                };
                for warning in record.get("warnings").and_then(Value::as_array).into_iter().flatten() {
                    warnings.push(format!("{stage}, step {step}: {}", plain(warning)));
                }
                for field in
                    ["loss", "grad_norm"].iter().filter(|f| record.get(**f).is_some_and(Value::is_null))
                {
                    warnings.push(format!("{stage}, step {step}: {field} is not finite"));
                }
                let at = stages.iter().position(|s: &Stage| s.name == stage).unwrap_or_else(|| {
                    stages.push(Stage { name: stage.to_owned(), ..Stage::default() });
                    stages.len() - 1
                });
                take(&mut stages[at], step, record);
            })
        };
        let damaged = self.part(name, read).unwrap_or_default();
        if let Some(first) = damaged.first() {
            let n = damaged.len();
            warnings.push(format!(
                "{name}: lines that are no JSON objects, left out: {n}, the first is line {first}"
            ));
        }
        self.stages = stages;
        self.warnings.append(&mut warnings);
    }

    /// The metrics of the methods there are, by name: from the evaluation, else from the summary.
    pub fn metrics(&self) -> Vec<(String, Metrics)> {
        if let Some(evaluation) = &self.evaluation {
            return evaluation.methods.iter().map(|(name, s)| (name.clone(), s.metrics())).collect();
        }
        let rows = self.summary.as_ref().and_then(|s| s.get("eval")?.as_object());
        let row =
            |(name, m): (&String, &Value)| Some((name.clone(), serde_json::from_value(m.clone()).ok()?));
        rows.into_iter().flatten().filter_map(row).collect()
    }

    /// How far the run got, in a few words.
    pub fn verdict(&self) -> String {
        if let Some(summary) = &self.summary {
            let time = summary.get("wall_s").and_then(Value::as_f64);
            return time.map_or("finished".into(), |s| format!("finished in {}", super::html::duration(s)));
        }
        let Some(stage) = self.stages.iter().rfind(|s| s.steps > 0) else {
            return "not finished: no step was logged".into();
        };
        let asked = self.asked(&stage.name).map_or(String::new(), |n| format!(" ({n} steps asked for)"));
        format!(
            "stopped at stage {}, step {}{asked}, or still running: there is no summary",
            stage.name, stage.last
        )
    }

    /// Steps that the configuration asks of a stage.
    fn asked(&self, stage: &str) -> Option<i64> {
        let config: toml::Table = self.config.as_ref()?.parse().ok()?;
        config.get(stage)?.get("steps")?.as_integer()
    }

    /// The options as `section.key` and value, empty if the file is not there or no TOML.
    pub fn options(&self) -> Vec<(String, String)> {
        fn flatten(prefix: &str, table: &toml::Table, to: &mut Vec<(String, String)>) {
            for (key, value) in table {
                match value {
                    toml::Value::Table(inner) => flatten(&format!("{prefix}{key}."), inner, to),
                    value => to.push((format!("{prefix}{key}"), value.to_string())),
                }
            }
        }
        let mut all = Vec::new();
        if let Some(config) = self.config.as_ref().and_then(|c| c.parse().ok()) {
            flatten("", &config, &mut all);
        }
        all
    }
}

impl Stage {
    fn train(&mut self, step: u64, record: &Record) {
        self.last = step;
        self.steps += 1;
        self.seconds += record.get("seconds").and_then(Value::as_f64).unwrap_or(0.0);
        numbers(&mut self.training, step, record);
    }

    fn validate(&mut self, step: u64, record: &Record) {
        numbers(&mut self.validation, step, record);
        if let Some(name) = record.get("picture").and_then(Value::as_str) {
            self.pictures.push((step, name.to_owned()));
        }
    }
}

/// Adds every number of a record to its field's curve.
fn numbers(curves: &mut BTreeMap<String, Curve>, step: u64, record: &Record) {
    for (key, value) in record {
        if let Some(value) = value.as_f64() {
            match curves.get_mut(key) {
                Some(curve) => curve.push((step as f64, value)),
                None => drop(curves.insert(key.clone(), vec![(step as f64, value)])),
            }
        }
    }
}

fn json(path: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    serde_json::from_str(&text).map_err(|e| Error::format(path, format!("not JSON: {e}")))
}

/// The entries of a JSON object as text.
fn entries(object: &Value) -> Vec<(String, String)> {
    object.as_object().into_iter().flatten().map(|(key, value)| (key.clone(), plain(value))).collect()
}

/// A text as it is, anything else as JSON.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
