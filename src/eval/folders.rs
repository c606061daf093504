//! Folders of pictures: the truth, and what each method made of it, matched by file name.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use rayon::prelude::*;

use crate::data::folder::pictures_of;
use crate::data::{Image, Photo, pil};
use crate::{Error, Result};

/// Faults that a refusal lists.
const LISTED: usize = 20;

/// A method: its name and its pictures, in the order of the truth's.
struct Method {
    name: String,
    pictures: Vec<PathBuf>,
    /// How many are of another size than the truth.
    resized: usize,
}

/// Matched pictures, all of which can be read.
pub struct Folders {
    folder: PathBuf,
    names: Vec<String>,
    truth: Vec<PathBuf>,
    methods: Vec<Method>,
    least_side: usize,
}

impl Folders {
    /// Matches the pictures of `truth` with those of each method's folder by their names without the ending, and reads
    /// every one of them once: what lacks a partner or cannot be used is refused, all of it in one list. `progress` is
    /// told pictures read and in all. A side must measure `least` pixels.
    pub fn open(
        truth: &Path,
        methods: &[(String, PathBuf)],
        least: usize,
        progress: &(dyn Fn(usize, usize) + Sync),
    ) -> Result<Self> {
        let mut faults = Vec::new();
        let by_name = list(truth, &mut faults)?;
        let mut found = Vec::new();
        for (name, folder) in methods {
            let theirs = list(folder, &mut faults)?;
            partners(&by_name, &theirs, (name, truth, folder), &mut faults);
            found.push((name, theirs));
        }
        let all: Vec<&PathBuf> = by_name.values().chain(found.iter().flat_map(|(_, m)| m.values())).collect();
        let done = AtomicUsize::new(0);
        let size = |path: &&PathBuf| {
            let size = Photo::load(path).and_then(|photo| usable(path, &photo, least));
            progress(1 + done.fetch_add(1, Relaxed), all.len());
            size
        };
        let mut sizes = BTreeMap::new();
        for (path, size) in all.iter().zip(all.par_iter().map(size).collect::<Vec<_>>()) {
            match size {
                Ok(size) => drop(sizes.insert(*path, size)),
                Err(why) => faults.push(why.to_string()),
            }
        }
        if !faults.is_empty() {
            return Err(Error::format(truth, refusal(&faults)));
        }
        // Nothing is missing: every look-up below finds what it asks for.
        let least_side = by_name.values().map(|path| sizes[path].0.min(sizes[path].1)).min().unwrap_or(0);
        let methods = found.iter().map(|(name, theirs)| Method {
            name: (*name).clone(),
            resized: by_name.iter().filter(|(stem, path)| sizes[path] != sizes[&theirs[*stem]]).count(),
            pictures: by_name.keys().map(|stem| theirs[stem].clone()).collect(),
        });
        Ok(Self {
            folder: truth.to_owned(),
            methods: methods.collect(),
            least_side,
            names: by_name.keys().cloned().collect(),
            truth: by_name.values().cloned().collect(),
        })
    }

    /// The folder of the truth, as it was given.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The pictures' names, without ending, in order.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The methods' names, as given.
    pub fn methods(&self) -> impl ExactSizeIterator<Item = &str> {
        self.methods.iter().map(|m| m.name.as_str())
    }

    /// How many pictures of method `m` are of another size than the truth, and brought to its own.
    pub fn resized(&self, m: usize) -> usize {
        self.methods[m].resized
    }

    /// The shortest side of any true picture.
    pub fn least_side(&self) -> usize {
        self.least_side
    }

    /// True picture `i`.
    pub fn truth(&self, i: usize) -> Result<Image> {
        Image::load(&self.truth[i])
    }

    /// What method `m` made of picture `i`. One of another size than the truth is resized to it, as pyiqa does: Lanczos,
    /// of 8 bits.
    pub fn restored(&self, m: usize, i: usize, truth: &Image) -> Result<Image> {
        let image = Image::load(&self.methods[m].pictures[i])?;
        if (image.height, image.width) == (truth.height, truth.width) {
            return Ok(image);
        }
        Ok(pil::resize(&image, truth.height, truth.width, pil::Filter::Lanczos))
    }
}

/// The pictures of a folder by their names without the ending.
fn list(folder: &Path, faults: &mut Vec<String>) -> Result<BTreeMap<String, PathBuf>> {
    let mut named: BTreeMap<String, PathBuf> = BTreeMap::new();
    for path in pictures_of(folder)? {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if let Some(other) = named.get(&stem) {
            let (path, other) = (path.display(), other.display());
            faults.push(format!("{path}: {other} has the same name but for the ending; keep one of them"));
        } else {
            named.insert(stem, path);
        }
    }
    Ok(named)
}

/// Says which pictures stand alone.
fn partners(
    truth: &BTreeMap<String, PathBuf>,
    theirs: &BTreeMap<String, PathBuf>,
    (name, gt, folder): (&str, &Path, &Path),
    faults: &mut Vec<String>,
) {
    let [a, b] = [truth, theirs].map(|names| names.keys().collect::<BTreeSet<_>>());
    if a.is_disjoint(&b) {
        let (folder, gt) = (folder.display(), gt.display());
        faults.push(format!(
            "{folder} ({name}): not one of its pictures ({}) is named as one of those ({}) in {gt}",
            b.len(),
            a.len()
        ));
        return;
    }
    for stem in a.difference(&b) {
        faults.push(format!(
            "{}: no picture of this name in {} ({name})",
            truth[*stem].display(),
            folder.display()
        ));
    }
    for stem in b.difference(&a) {
        faults.push(format!(
            "{} ({name}): no picture of this name in {}",
            theirs[*stem].display(),
            gt.display()
        ));
    }
}

/// Height and width of a picture that the metrics can do something with.
fn usable(path: &Path, photo: &Photo, least: usize) -> Result<(usize, usize)> {
    let (h, w) = (photo.height(), photo.width());
    if h.min(w) < least {
        return Err(Error::format(path, format!("{w}×{h} pixels; the metrics want {least} a side at least")));
    }
    Ok((h, w))
}

fn refusal(faults: &[String]) -> String {
    let lines: String = faults.iter().take(LISTED).map(|fault| format!("\n  {fault}")).collect();
    let more = match faults.len().saturating_sub(LISTED) {
        0 => String::new(),
        n => format!("\n  … and {n} more"),
    };
    format!(
        "nothing was compared; names count without their endings, and every picture wants its partner:{lines}{more}"
    )
}
