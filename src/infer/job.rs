//! Files and folders of pictures restored one by one: where each result goes, what is there already, what went wrong.
//!
//! Every result says in itself what it was made of and how; one that says what is about to be done is kept as
//! it is. A picture that cannot be read or restored does not stop the others. Nothing is deleted, and nothing is written
//! into a folder of inputs.

use super::color::ColorFix;
use super::model::Model;
use super::upscale::{Settings, Watch, upscale};
use crate::data::folder::{pictures_below, pictures_of};
use crate::data::{Format, Image, Picture, pil_bicubic};
use crate::engine::Device;
use crate::files::{real, sha256, write_atomic};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

/// What is to be restored, and where to.
#[derive(Clone, Debug)]
pub struct Job {
    /// Files, and folders of them.
    pub inputs: Vec<PathBuf>,
    /// A file, if there is one input and that is a file; else a folder.
    pub output: PathBuf,
    /// Folders within folders, too.
    pub recursive: bool,
    /// What is written; `None`: what the input is, or what the output's name says.
    pub format: Option<Format>,
    /// Quality of a JPEG, 1 to 100.
    pub quality: u8,
    /// Results that were made otherwise are made again.
    pub overwrite: bool,
    /// Whose colours results have.
    pub color_fix: ColorFix,
    /// How pictures are restored.
    pub settings: Settings,
    /// Fingerprint of the model.
    pub model: String,
    /// Its adapters, for people.
    pub adapters: Vec<String>,
}

/// One picture of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// What is read.
    pub from: PathBuf,
    /// What is written.
    pub to: PathBuf,
    /// As what.
    pub format: Format,
}

/// Height and width of a picture that is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// The input's.
    pub before: [usize; 2],
    /// The result's.
    pub after: [usize; 2],
}

/// What came of a job.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Pictures restored.
    pub made: usize,
    /// Results that were there.
    pub kept: usize,
    /// Pictures that could not be restored.
    pub failed: Vec<Error>,
    /// Whether it was stopped before its end.
    pub stopped: bool,
}

/// What a result says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Record {
    engine: String,
    /// SHA-256 of the input.
    input: String,
    /// Fingerprint of the model and its adapters.
    model: String,
    adapters: Vec<String>,
    scale: f64,
    steps: usize,
    guidance: f32,
    seed: u64,
    tile: usize,
    overlap: usize,
    color_fix: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    quality: Option<u8>,
    /// How often tiles were halved, for want of memory.
    halved: u32,
}

impl Record {
    /// The text that a file keeps: ASCII, and none that means something in XML.
    fn text(&self) -> Result<String> {
        let text = serde_json::to_string(self).map_err(|e| Error::shape("record", e.to_string()))?;
        Ok(text.replace('&', "\\u0026").replace('<', "\\u003c").replace('>', "\\u003e"))
    }
}

impl Job {
    /// Every picture and where it goes; refuses what is not there and what must not be written.
    pub fn tasks(&self) -> Result<Vec<Task>> {
        let output = &self.output;
        if let Some(missing) = self.inputs.iter().find(|path| !path.exists()) {
            return refuse(missing, "does not exist");
        }
        let tasks = match &self.inputs[..] {
            [from] if !from.is_dir() && !output.is_dir() => vec![self.single(from)?],
            _ => self.mirrored()?,
        };
        let mut taken: HashMap<&Path, &Path> = HashMap::new();
        for Task { from, to, .. } in &tasks {
            if let Some(other) = taken.insert(to, from) {
                let (a, b, to) = (other.display(), from.display(), to.display());
                let remedy = "rename one, or give each its own output";
                return Err(Error::Usage(format!("{a} and {b} would both become {to}; {remedy}")));
            }
        }
        let inputs: HashMap<PathBuf, &Path> =
            tasks.iter().map(|task| (real(&task.from), &*task.from)).collect();
        let written = tasks.iter().filter_map(|task| task.to.canonicalize().ok());
        match written.into_iter().find_map(|to| inputs.get(&to)) {
            Some(input) => refuse(input, "would be overwritten by its own upscale"),
            None => Ok(tasks),
        }
    }

    /// One file to one file.
    fn single(&self, from: &Path) -> Result<Task> {
        let to = &self.output;
        let folder = to.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if !folder.is_dir() {
            return refuse(folder, "is no folder to write the result into; make it first");
        }
        let named = Format::of(to);
        match (named, self.format) {
            (Some(named), Some(format)) if named != format => refuse(
                to,
                &format!(
                    "would be a {} file by --format; give it that ending, or leave --format out",
                    format.ending()
                ),
            ),
            (Some(format), _) => Ok(Task { from: from.to_path_buf(), to: to.clone(), format }),
            (None, _) => refuse(to, "is neither a folder nor the name of a .png, .jpg or .webp file"),
        }
    }

    /// Everything to a folder, by the names that it has.
    fn mirrored(&self) -> Result<Vec<Task>> {
        let output = &self.output;
        if output.exists() && !output.is_dir() {
            return refuse(output, "is a file; several pictures need a folder to go to");
        }
        let mut tasks = Vec::new();
        for input in &self.inputs {
            if !input.is_dir() {
                tasks.push(self.task(input, Path::new(input.file_name().unwrap_or_default()))?);
                continue;
            }
            if real(output).starts_with(real(input)) {
                let (output, input) = (output.display(), input.display());
                return Err(Error::Usage(format!(
                    "{output} lies in {input}, and a folder of inputs is not written to; choose another place"
                )));
            }
            for from in if self.recursive { pictures_below(input)? } else { pictures_of(input)? } {
                let name = from.strip_prefix(input).unwrap_or(&from).to_path_buf();
                tasks.push(self.task(&from, &name)?);
            }
        }
        Ok(tasks)
    }

    fn task(&self, from: &Path, name: &Path) -> Result<Task> {
        let own = Format::of(from);
        let Some(format) = self.format.or(own) else {
            return refuse(from, "does not say by its ending what to write; say --format png, jpg or webp");
        };
        let name =
            if own == Some(format) { name.to_path_buf() } else { name.with_extension(format.ending()) };
        Ok(Task { from: from.to_path_buf(), to: self.output.join(name), format })
    }

    /// Does what is not done. The model is opened when there is something to do; `done` is told of each picture. A result that cannot be written is an error, a picture that cannot be restored is not.
    pub fn run(
        &self,
        tasks: &[Task],
        open: impl FnOnce() -> Result<Model>,
        device: &Device,
        watch: &Watch,
        done: &dyn Fn(&Task, Sizes),
    ) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        let mut left = Vec::new();
        for task in tasks {
            match self.is_done(task) {
                Ok(true) => outcome.kept += 1,
                Ok(false) => left.push(task),
                Err(why) => outcome.failed.push(why),
            }
        }
        if left.is_empty() {
            return Ok(outcome);
        }
        let model = open()?;
        self.settings.check(&model)?;
        for task in left {
            if watch.stop.load(Ordering::Relaxed) {
                outcome.stopped = true;
                break;
            }
            match self.restored(task, &model, device, watch) {
                Ok((bytes, sizes)) => {
                    if let Some(folder) = task.to.parent().filter(|p| !p.as_os_str().is_empty()) {
                        fs::create_dir_all(folder).map_err(Error::io(folder))?;
                    }
                    write_atomic(&task.to, &bytes)?;
                    outcome.made += 1;
                    done(task, sizes);
                }
                Err(Error::Interrupted { .. }) => outcome.stopped = true,
                Err(why) => outcome.failed.push(why),
            }
        }
        Ok(outcome)
    }

    /// Whether the result is there, made of this input in this way; an error if something else is there.
    fn is_done(&self, task: &Task) -> Result<bool> {
        if !task.to.exists() {
            return Ok(false);
        }
        let there = fs::read(&task.to).map_err(Error::io(&task.to))?;
        let there: Option<Record> =
            crate::data::picture::note(&there).and_then(|text| serde_json::from_str(&text).ok());
        let input = fs::read(&task.from).map_err(Error::io(&task.from))?;
        match there {
            Some(there) if there == (Record { halved: there.halved, ..self.record(task, &input) }) => {
                Ok(true)
            }
            _ if self.overwrite => Ok(false),
            Some(_) => Err(Error::format(
                &task.to,
                "is there, made of another picture or with another model or settings; --overwrite makes it again",
            )),
            None => Err(Error::format(
                &task.to,
                "is there and not of this command's making; --overwrite replaces it",
            )),
        }
    }

    fn record(&self, task: &Task, input: &[u8]) -> Record {
        let Settings { scale, steps, guidance, seed, tile, overlap } = self.settings;
        Record {
            engine: env!("CARGO_PKG_VERSION").to_owned(),
            input: sha256(input),
            model: self.model.clone(),
            adapters: self.adapters.clone(),
            scale,
            steps,
            guidance,
            seed,
            tile,
            overlap,
            color_fix: self.color_fix.name().to_owned(),
            quality: (task.format == Format::Jpeg).then_some(self.quality),
            halved: 0,
        }
    }

    /// The bytes of a task's result, and the sizes of both pictures.
    fn restored(
        &self,
        task: &Task,
        model: &Model,
        device: &Device,
        watch: &Watch,
    ) -> Result<(Vec<u8>, Sizes)> {
        let input = fs::read(&task.from).map_err(Error::io(&task.from))?;
        let wrong = |why: String| Error::format(&task.from, why);
        let lq = Picture::decode(&input).map_err(wrong)?;
        let mut record = self.record(task, &input);
        drop(input);
        let before = [lq.color.height, lq.color.width];
        let (color, halved) = {
            let seen: Cow<Image> = lq.filled();
            let made = upscale(model, &seen, &self.settings, device, watch)?;
            (self.color_fix.apply(made.image, &seen), made.halved)
        };
        record.halved = halved;
        let after = [color.height, color.width];
        let alpha = lq.alpha.as_ref().map(|alpha| resized(alpha, before, after));
        let hq = lq.replaced(color, alpha);
        let bytes = hq.encode(task.format, self.quality, &record.text()?).map_err(wrong)?;
        Ok((bytes, Sizes { before, after }))
    }
}

/// One plane enlarged as Pillow does (bicubic).
fn resized(plane: &[f32], [h, w]: [usize; 2], [to_h, to_w]: [usize; 2]) -> Vec<f32> {
    let image = Image { height: h, width: w, data: plane.repeat(3) };
    let mut out = pil_bicubic(&image, to_h, to_w).clamped().data;
    out.truncate(to_h * to_w);
    out
}

fn refuse<T>(path: &Path, why: &str) -> Result<T> {
    Err(Error::Usage(format!("{} {why}", path.display())))
}
