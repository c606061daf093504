//! A folder of good pictures made into pairs: `gt/` and `lr/`, the same names in both, and a manifest of how each came
//! about.
//!
//! ```text
//! settings.toml      what the folder was made with; marks it as one of these
//! gt/  lr/           00000_kodim01.png, …
//! manifest.jsonl     one object per pair: source, crop, every drawn parameter, hashes
//! contact.png        the first pairs side by side
//! ```
//!
//! Pair `i` is a pure function of the seed, `i` and its source. What is there is kept if the manifest says what it must and
//! the files are those it speaks of.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use toml::Table;

use super::chain::Step;
use super::config::RealEsrgan;
use super::filter::reflect;
use crate::data::folder::pictures_of;
use crate::data::{Domain, Image, Photo, draws, montage};
use crate::files::{real, remove_leftovers, sha256, sha256_file, write_atomic};
use crate::{Error, Result};

/// The good pictures, sharpened.
pub const GT: &str = "gt";
/// The bad ones.
pub const LR: &str = "lr";
const SETTINGS: &str = "settings.toml";
const MANIFEST: &str = "manifest.jsonl";
const CONTACT: &str = "contact.png";
/// Pairs on the contact sheet, and in one of its rows.
const SHOWN: usize = 8;
const SHOWN_IN_A_ROW: usize = 2;
/// Differences of settings that a refusal names.
const DIFFERENCES: usize = 4;

/// What is to be made.
#[derive(Clone, Debug)]
pub struct Job {
    /// The folder of good pictures.
    pub hq: PathBuf,
    /// The folder that is made.
    pub out: PathBuf,
    /// Seed of every draw.
    pub seed: u64,
    /// Side of a good picture of a pair, pixels; a multiple of the scale.
    pub crop: usize,
    /// Pairs of each picture.
    pub repeats: usize,
    /// How bad pictures are made.
    pub degradation: RealEsrgan,
}

/// What came of a [`Job`].
#[derive(Debug, Default)]
pub struct Outcome {
    /// Pairs made.
    pub made: usize,
    /// Pairs that were there.
    pub kept: usize,
    /// Pictures left out, with the reason.
    pub skipped: Vec<String>,
    /// Pictures that cannot be used.
    pub failed: Vec<Error>,
    /// Whether it was stopped before its end.
    pub stopped: bool,
}

/// A line of the manifest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Line {
    index: usize,
    /// Name in `gt/` and in `lr/`.
    file: String,
    source: String,
    source_sha256: String,
    /// Height and width.
    source_size: [usize; 2],
    /// Row and column of the crop's top left corner.
    crop_at: [usize; 2],
    steps: Vec<Step>,
    gt_sha256: String,
    lr_sha256: String,
}

/// What the folder was made with.
#[derive(Serialize)]
struct Settings<'a> {
    seed: u64,
    crop: usize,
    repeats: usize,
    pictures: usize,
    /// SHA-256 of their names.
    names: String,
    degradation: &'a RealEsrgan,
}

impl Job {
    /// Makes what is not there yet. `progress` is told how many pairs there are to be, and of each when it is there; `stop`
    /// ends the job between two pairs. A picture that cannot be used is no error, a pair that cannot be written is.
    pub fn run(&self, progress: &(dyn Fn(usize, usize) + Sync), stop: &AtomicBool) -> Result<Outcome> {
        self.check()?;
        let pictures = pictures_of(&self.hq)?;
        self.claim(&pictures)?;
        let run = Run {
            job: self,
            before: manifest(&self.out.join(MANIFEST)),
            all: pictures.len() * self.repeats,
            progress,
            stop,
            done: Mutex::default(),
        };
        pictures.par_iter().enumerate().for_each(|(i, path)| run.picture(i, path));
        let done = run.done.into_inner().unwrap_or_else(PoisonError::into_inner);
        let saved = write_manifest(&self.out, &done.lines);
        done.fatal.map_or(Ok(()), Err).and(saved)?;
        let mut outcome = done.outcome;
        outcome.stopped = stop.load(Ordering::Relaxed);
        outcome.skipped.sort();
        outcome.failed.sort_by_key(ToString::to_string);
        if !outcome.stopped && !done.lines.is_empty() {
            self.contact_sheet(done.lines.values())?;
        }
        Ok(outcome)
    }

    fn check(&self) -> Result<()> {
        self.degradation.check()?;
        let (crop, scale) = (self.crop, self.degradation.scale);
        if crop == 0 || !crop.is_multiple_of(scale) {
            return Err(Error::Usage(format!(
                "a crop of {crop} pixels is not a multiple of the scale, {scale}"
            )));
        }
        if self.repeats == 0 {
            return Err(Error::Usage("0 pairs of each picture: wanted one at least".into()));
        }
        let (hq, out) = (real(&self.hq), real(&self.out));
        if out.starts_with(&hq) || hq.starts_with(&out) {
            let (hq, out) = (self.hq.display(), self.out.display());
            return Err(Error::Usage(format!(
                "{out} and {hq}: one lies in the other, and the folder of good pictures is not written to; choose another place"
            )));
        }
        Ok(())
    }

    /// Makes the folder, or finds that it is one this job made.
    fn claim(&self, pictures: &[PathBuf]) -> Result<()> {
        let out = &self.out;
        let names: Vec<String> = pictures.iter().map(|p| name(p)).collect();
        let settings = Settings {
            seed: self.seed,
            crop: self.crop,
            repeats: self.repeats,
            pictures: names.len(),
            names: sha256(names.join("\n").as_bytes()),
            degradation: &self.degradation,
        };
        let bad = |why: String| Error::format(out.join(SETTINGS), why);
        let settings = Table::try_from(settings).map_err(|e| bad(e.to_string()))?;
        match std::fs::read_to_string(out.join(SETTINGS)) {
            Ok(text) => {
                let before: Table = text
                    .parse()
                    .map_err(|e: toml::de::Error| bad(format!("{}; choose another --out", e.message())))?;
                if before != settings {
                    let mut all = differences("", &before, &settings);
                    // the job's own before the degradation's, which may be many
                    all.sort_by_key(|d| d.starts_with("degradation"));
                    let more = all.len().saturating_sub(DIFFERENCES);
                    all.truncate(DIFFERENCES);
                    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
                    return Err(Error::Usage(format!(
                        "{}: made with other settings ({}{more}); choose another --out, or give those",
                        out.display(),
                        all.join(", ")
                    )));
                }
            }
            Err(_) => {
                vacant(out)?;
                std::fs::create_dir_all(out).map_err(Error::io(out))?;
                write_atomic(out.join(SETTINGS), settings.to_string().as_bytes())?;
            }
        }
        remove_leftovers(out)?;
        for folder in [GT, LR].map(|f| out.join(f)) {
            std::fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
            remove_leftovers(&folder)?;
        }
        Ok(())
    }

    /// Pixels that a picture must have: three quarters of a crop's side, squared.
    fn least_pixels(&self) -> usize {
        (self.crop * 3 / 4).pow(2)
    }

    fn contact_sheet<'a>(&self, lines: impl Iterator<Item = &'a Line>) -> Result<()> {
        let mut pictures = Vec::new();
        for line in lines.take(SHOWN) {
            for folder in [GT, LR] {
                pictures.push(Image::load(self.out.join(folder).join(&line.file))?);
            }
        }
        let rows: Vec<Vec<&Image>> =
            pictures.chunks(2 * SHOWN_IN_A_ROW).map(|row| row.iter().collect()).collect();
        let labels: Vec<&str> = rows[0].iter().zip([GT, LR].into_iter().cycle()).map(|(_, l)| l).collect();
        montage(&rows, &labels, 4, 1)?.save_png(self.out.join(CONTACT))
    }
}

/// A job while it runs.
struct Run<'a> {
    job: &'a Job,
    before: HashMap<usize, Line>,
    all: usize,
    progress: &'a (dyn Fn(usize, usize) + Sync),
    stop: &'a AtomicBool,
    done: Mutex<Done>,
}

#[derive(Default)]
struct Done {
    lines: BTreeMap<usize, Line>,
    /// Lines when the manifest was last written.
    written: usize,
    outcome: Outcome,
    fatal: Option<Error>,
}

impl Run<'_> {
    fn picture(&self, i: usize, path: &Path) {
        if self.over() {
            return;
        }
        let source = name(path);
        let outcome = std::fs::read(path)
            .map_err(|e| Error::io(path)(e))
            .and_then(|bytes| Opened::new(path, bytes, self.before.get(&(i * self.job.repeats))));
        let mut opened = match outcome {
            Ok(opened) => opened,
            Err(why) => return self.done().outcome.failed.push(why),
        };
        let ([h, w], least) = (opened.size, self.job.least_pixels());
        if h * w < least {
            let side = self.job.crop * 3 / 4;
            return self
                .done()
                .outcome
                .skipped
                .push(format!("{source}: {w}×{h} pixels, less than {side}×{side}"));
        }
        for index in i * self.job.repeats..(i + 1) * self.job.repeats {
            if self.over() {
                return;
            }
            let line = self.line(index, &source, &opened);
            let kept = self.before.get(&index).filter(|old| self.is_there(old, &line));
            let made = match kept {
                Some(old) => Ok(old.clone()),
                None => match opened.photo() {
                    Ok(photo) => self.make(line, photo),
                    Err(why) => return self.done().outcome.failed.push(why),
                },
            };
            let kept = kept.is_some();
            let mut done = self.done();
            match made {
                Ok(line) => {
                    done.lines.insert(index, line);
                    *(if kept { &mut done.outcome.kept } else { &mut done.outcome.made }) += 1;
                    (self.progress)(done.lines.len(), self.all);
                    self.save_now_and_then(&mut done);
                }
                Err(why) => done.fatal = done.fatal.take().or(Some(why)),
            }
        }
    }

    fn over(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || self.done().fatal.is_some()
    }

    fn done(&self) -> MutexGuard<'_, Done> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The line of a pair, its files' hashes aside.
    fn line(&self, index: usize, source: &str, opened: &Opened) -> Line {
        let crop = self.job.crop;
        let mut rng = draws(self.job.seed, Domain::Pairs, index as u64, 0);
        let crop_at = opened.size.map(|side| rng.below((side + 1).saturating_sub(crop).max(1)));
        let steps = self.job.degradation.draw(crop, crop, &mut rng);
        let stem = Path::new(source).file_stem().unwrap_or_default().to_string_lossy();
        Line {
            index,
            file: format!("{index:05}_{stem}.png"),
            source: source.to_owned(),
            source_sha256: opened.sha256.clone(),
            source_size: opened.size,
            crop_at,
            steps,
            gt_sha256: String::new(),
            lr_sha256: String::new(),
        }
    }

    /// Whether `old` is what `wanted` is to be, and its files are there.
    fn is_there(&self, old: &Line, wanted: &Line) -> bool {
        let (gt_sha256, lr_sha256) = (old.gt_sha256.clone(), old.lr_sha256.clone());
        let same = *old == Line { gt_sha256, lr_sha256, ..wanted.clone() };
        let is = |folder: &str, hash: &str| {
            sha256_file(&self.job.out.join(folder).join(&old.file)).is_ok_and(|h| h == hash)
        };
        same && is(GT, &old.gt_sha256) && is(LR, &old.lr_sha256)
    }

    /// Makes the pair and writes it.
    fn make(&self, mut line: Line, photo: &Photo) -> Result<Line> {
        let job = self.job;
        let hq = window(photo, line.crop_at, job.crop)?;
        let (hq, lq) = job.degradation.follow(&line.steps, hq)?;
        let write = |folder: &str, img: &Image| {
            let path = job.out.join(folder).join(&line.file);
            img.save_png(&path)?;
            sha256_file(&path)
        };
        let hashes = (write(GT, &hq)?, write(LR, &lq)?);
        (line.gt_sha256, line.lr_sha256) = hashes;
        Ok(line)
    }

    /// Writes the manifest when it has grown by an eighth: of what a killed process made little is made again, and all of
    /// its writing together is a few times its size.
    fn save_now_and_then(&self, done: &mut Done) {
        if done.lines.len() < done.written + (done.written / 8).max(32) {
            return;
        }
        done.written = done.lines.len();
        if let Err(error) = write_manifest(&self.job.out, &done.lines) {
            done.fatal = Some(error);
        }
    }
}

/// A good picture, decoded when it is first wanted.
struct Opened<'p> {
    path: &'p Path,
    bytes: Vec<u8>,
    sha256: String,
    size: [usize; 2],
    photo: Option<Photo>,
}

impl<'p> Opened<'p> {
    /// `before` is a line of the manifest that may be about the same picture, and then knows its size.
    fn new(path: &'p Path, bytes: Vec<u8>, before: Option<&Line>) -> Result<Self> {
        let sha256 = sha256(&bytes);
        let size = before.filter(|line| line.source_sha256 == sha256).map(|line| line.source_size);
        let mut opened = Self { path, bytes, sha256, size: size.unwrap_or_default(), photo: None };
        if size.is_none() {
            let photo = opened.photo()?;
            opened.size = [photo.height(), photo.width()];
        }
        Ok(opened)
    }

    fn photo(&mut self) -> Result<&Photo> {
        if self.photo.is_none() {
            let photo = Photo::decode(&self.bytes).map_err(|why| Error::format(self.path, why))?;
            self.photo = Some(photo);
        }
        Ok(self.photo.as_ref().expect("it was decoded above"))
    }
}

/// `side`×`side` pixels from `at` on; where the picture is smaller, reflected at its lower and right edge.
fn window(photo: &Photo, [y, x]: [usize; 2], side: usize) -> Result<Image> {
    let (h, w) = (photo.height().min(side), photo.width().min(side));
    let img = photo.crop(y, x, h, w)?;
    if (h, w) == (side, side) {
        return Ok(img);
    }
    let at = |y: usize, x: usize| reflect(y as i64, h) * w + reflect(x as i64, w);
    Ok(Image::from_fn(side, side, |c, y, x| img.plane(c)[at(y, x)]))
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Refuses a folder that holds something, and what is no folder.
fn vacant(out: &Path) -> Result<()> {
    let refuse = |why: &str| Err(Error::Usage(format!("{} {why}", out.display())));
    match std::fs::read_dir(out).map(Iterator::count) {
        Ok(0) => Ok(()),
        Ok(_) => refuse("is not empty and was not made by this command; choose another --out"),
        Err(_) if out.exists() => refuse("is no folder; choose another --out"),
        Err(_) => Ok(()),
    }
}

/// The lines of a manifest by their index; what cannot be read is made again.
fn manifest(path: &Path) -> HashMap<usize, Line> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines = text.lines().filter_map(|l| serde_json::from_str(l).ok());
    lines.map(|line: Line| (line.index, line)).collect()
}

fn write_manifest(out: &Path, lines: &BTreeMap<usize, Line>) -> Result<()> {
    let mut text = Vec::new();
    for line in lines.values() {
        serde_json::to_writer(&mut text, line)
            .map_err(|e| Error::format(out.join(MANIFEST), e.to_string()))?;
        text.push(b'\n');
    }
    write_atomic(out.join(MANIFEST), &text)
}

/// `key: its value → the other's`, for each that differs.
fn differences(above: &str, before: &Table, now: &Table) -> Vec<String> {
    let mut out = Vec::new();
    for (key, new) in now {
        let name = if above.is_empty() { key.clone() } else { format!("{above}.{key}") };
        match (before.get(key), new) {
            (Some(toml::Value::Table(a)), toml::Value::Table(b)) => out.extend(differences(&name, a, b)),
            (Some(old), new) if old == new => (),
            (Some(old), new) => out.push(format!("{name}: {old} → {new}")),
            (None, new) => out.push(format!("{name}: none → {new}")),
        }
    }
    out
}
