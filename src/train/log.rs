//! What a run leaves to read: one JSON object per step, a summary at the end, and the memory it took.

use super::read::Record;
use super::tensorboard::EventFile;
use super::validation::Look;
use crate::eval::{Evaluation, Metrics, Scores};
use crate::files::{Disk, write_atomic};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

/// A log of one JSON object per line, appended to; each line is handed to the system whole before the call returns.
///
/// Numbers that are not finite become `null`: JSON has no word for them.
pub struct JsonlLog {
    path: PathBuf,
    file: Disk,
    lines: usize,
}

impl JsonlLog {
    /// Opens `path` to append after its first `lines` lines, making it if absent; what comes after them is cut off: a
    /// line that a kill left torn, and those of steps that a resumed run takes again.
    pub fn append(path: impl AsRef<Path>, lines: usize) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        let (file, found) = open(&path, lines).map_err(Error::io(&path))?;
        if found < lines {
            let detail = format!("holds {found} lines, and the checkpoint was written after {lines}");
            return Err(Error::format(&path, detail));
        }
        Ok(Self { path, file: Disk(file), lines })
    }

    /// Appends `entry` as one line.
    pub fn write(&mut self, entry: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(entry)
            .map_err(|e| Error::format(&self.path, format!("the entry is not JSON: {e}")))?;
        line.push(b'\n');
        self.file.write_all(&line).map_err(Error::io(&self.path))?;
        self.lines += 1;
        Ok(())
    }

    /// Lines written so far, those of earlier sessions included.
    pub fn lines(&self) -> usize {
        self.lines
    }

    /// Waits until every line is on the disk.
    pub fn sync(&self) -> Result<()> {
        self.file.0.sync_all().map_err(Error::io(&self.path))
    }
}

/// The file, cut after `lines` lines, and how many of those it has.
fn open(path: &Path, lines: usize) -> std::io::Result<(File, usize)> {
    let file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
    let mut reader = BufReader::new(&file);
    let (mut found, mut end, mut line) = (0, 0, Vec::new());
    while found < lines {
        line.clear();
        if reader.read_until(b'\n', &mut line)? == 0 || line.last() != Some(&b'\n') {
            break;
        }
        end += line.len() as u64;
        found += 1;
    }
    if found == lines {
        file.set_len(end)?;
    }
    Ok((file, found))
}

/// The run's logs: a line per step, a line per validation, and both as TensorBoard events.
pub struct Logs {
    steps: JsonlLog,
    looks: JsonlLog,
    events: EventFile,
}

impl Logs {
    /// Opens `log.jsonl` and `validation.jsonl` in `run`, after these numbers of lines.
    pub fn open(run: &Path, (steps, looks): (usize, usize)) -> Result<Self> {
        Ok(Self {
            steps: JsonlLog::append(run.join(LOG), steps)?,
            looks: JsonlLog::append(run.join("validation.jsonl"), looks)?,
            events: EventFile::begin(run)?,
        })
    }

    /// Writes the line of an update.
    pub fn step(&mut self, line: &Record) -> Result<()> {
        self.steps.write(line)?;
        self.events.add(line, false)
    }

    /// Writes the line of a validation.
    pub fn look(&mut self, look: &Look) -> Result<()> {
        self.looks.write(look)?;
        match serde_json::to_value(look) {
            Ok(Value::Object(line)) => self.events.add(&line, true),
            _ => Ok(()),
        }
    }

    /// Waits until both logs are on the disk, and gives their numbers of lines.
    pub fn sync(&self) -> Result<(usize, usize)> {
        self.steps.sync()?;
        self.looks.sync()?;
        Ok((self.steps.lines(), self.looks.lines()))
    }
}

/// The log of updates, in the run directory.
const LOG: &str = "log.jsonl";

/// One finished stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageSummary {
    /// Its name.
    pub name: String,
    /// Optimizer updates done.
    pub steps: usize,
    /// Time its updates took, in seconds, over all sessions.
    pub seconds: f64,
    /// Loss of the first step.
    pub first_loss: f64,
    /// Loss of the last step.
    pub last_loss: f64,
}

impl StageSummary {
    /// The stages of which `run` has a log, in the order they ran.
    pub fn of_run(run: &Path) -> Result<Vec<Self>> {
        let path = run.join(LOG);
        let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
        let mut stages: Vec<Self> = Vec::new();
        for line in text.lines() {
            let line: LogLine =
                serde_json::from_str(line).map_err(|e| Error::format(&path, e.to_string()))?;
            match stages.last_mut().filter(|s| s.name == line.stage) {
                Some(stage) => {
                    stage.steps += 1;
                    stage.seconds += line.seconds;
                    stage.last_loss = line.loss;
                }
                None => stages.push(Self {
                    name: line.stage,
                    steps: 1,
                    seconds: line.seconds,
                    first_loss: line.loss,
                    last_loss: line.loss,
                }),
            }
        }
        Ok(stages)
    }
}

/// What a stage's summary takes from a line of `log.jsonl`.
#[derive(Deserialize)]
struct LogLine {
    stage: String,
    loss: f64,
    seconds: f64,
}

/// The evaluation, a row per method; rows of stages that did not run are absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Eval {
    /// Plain bicubic upscaling.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bicubic: Option<Metrics>,
    /// The base model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base: Option<Metrics>,
    /// With the super-resolution adapter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sft: Option<Metrics>,
    /// With the preference adapter besides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub asdpo: Option<Metrics>,
}

impl Eval {
    /// The set metrics of every method of `evaluation`.
    pub fn of(evaluation: &Evaluation) -> Self {
        let of = |name: &str| evaluation.method(name).map(Scores::metrics);
        Self { bicubic: of("bicubic"), base: of("base"), sft: of("sft"), asdpo: of("asdpo") }
    }

    /// The rows there are, in order, with their names.
    pub fn rows(&self) -> impl Iterator<Item = (&'static str, Metrics)> {
        [("bicubic", self.bicubic), ("base", self.base), ("sft", self.sft), ("asdpo", self.asdpo)]
            .into_iter()
            .filter_map(|(name, row)| Some((name, row?)))
    }
}

/// What a run did and what came of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The stages, in the order they ran.
    pub stages: Vec<StageSummary>,
    /// The evaluation.
    pub eval: Eval,
    /// Names of the images kept out of training.
    pub held_out: Vec<String>,
    /// Most resident memory, in MiB; see [`peak_rss_mb`].
    pub peak_rss_mb: Option<f64>,
    /// Wall time of the session that finished the run, and the updates of those before it, in seconds.
    pub wall_s: f64,
    /// The run's seed.
    pub seed: u64,
    /// The engine's version.
    pub version: String,
}

impl Summary {
    /// The version to record: this crate's.
    pub const VERSION: &str = env!("CARGO_PKG_VERSION");

    /// Writes the summary as indented JSON, complete or not at all.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let text = serde_json::to_string_pretty(self).map_err(|e| Error::format(path, e.to_string()))?;
        write_atomic(path, format!("{text}\n").as_bytes())
    }

    /// Reads a summary.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        serde_json::from_str(&text).map_err(|e| Error::format(path, format!("not a run's summary: {e}")))
    }
}

/// The most memory this process ever had resident, in MiB (Linux's `VmHWM`); `None` where the system does not say.
pub fn peak_rss_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_appended_after_those_that_count() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.jsonl");
        let text = || std::fs::read_to_string(&path).unwrap();
        let mut log = JsonlLog::append(&path, 0).unwrap();
        log.write(&serde_json::json!({"step": 0, "loss": 0.5})).unwrap();
        assert_eq!(text(), "{\"step\":0,\"loss\":0.5}\n", "on disk before the log is dropped");
        drop(log);
        for more in ["{\"step\":1,\"lo".to_owned(), "x".repeat(10_000), "{\"step\":1}\n{}\n".to_owned()] {
            std::fs::write(&path, format!("{{\"step\":0,\"loss\":0.5}}\n{more}")).unwrap();
            let mut log = JsonlLog::append(&path, 1).unwrap();
            log.write(&serde_json::json!({"loss": f32::NAN})).unwrap();
            log.sync().unwrap();
            assert_eq!((text().as_str(), log.lines()), ("{\"step\":0,\"loss\":0.5}\n{\"loss\":null}\n", 2));
        }
        std::fs::write(&path, "one\ntorn").unwrap();
        let e = JsonlLog::append(&path, 2).err().expect("a line is missing").to_string();
        assert!(e.contains("1 lines") && e.contains("after 2"), "{e}");
        let e = JsonlLog::append(dir.path().join("no/log"), 0).err().expect("no folder").to_string();
        assert!(e.contains("log"), "{e}");
    }

    #[test]
    fn a_summary_has_exactly_these_keys() {
        let row = Metrics { psnr_y: 22.8, ssim_y: 0.656, lsd_db: 21.2, rlsd_db: 6.91, hf_ratio: 0.17 };
        let stage =
            StageSummary { name: "base".into(), steps: 3, seconds: 1.5, first_loss: 2.0, last_loss: 1.0 };
        let eval = Eval { bicubic: Some(row), base: Some(row), ..Eval::default() };
        let s = Summary {
            stages: vec![stage],
            eval,
            held_out: vec!["leaf-1".into()],
            peak_rss_mb: peak_rss_mb(),
            wall_s: 2.0,
            seed: 7,
            version: Summary::VERSION.into(),
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("summary.json");
        s.save(&path).unwrap();
        assert_eq!(Summary::load(&path).unwrap(), s);
        let json: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        let keys =
            |v: &serde_json::Value| v.as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ");
        assert_eq!(keys(&json), "stages eval held_out peak_rss_mb wall_s seed version");
        assert_eq!(keys(&json["stages"][0]), "name steps seconds first_loss last_loss");
        assert_eq!(keys(&json["eval"]), "bicubic base");
        assert_eq!(keys(&json["eval"]["base"]), "psnr_y ssim_y lsd_db rlsd_db hf_ratio");
        assert_eq!(s.eval.rows().map(|r| r.0).collect::<Vec<_>>(), ["bicubic", "base"]);
        assert!(Summary::load(dir.path().join("none")).unwrap_err().to_string().contains("none"));
    }

    #[test]
    fn memory_is_reported_on_linux() {
        if cfg!(target_os = "linux") {
            assert!(peak_rss_mb().is_some_and(|mb| mb > 1.0));
        }
    }
}
