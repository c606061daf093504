//! Folders of photographs: good pictures alone, or pairs in `gt/` and `lr/` with, if there are any, an upscaler's outputs in
//! `neg/`. Everything that headers tell is checked when a folder is opened; pixels are read when they are wanted.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rayon::prelude::*;

use crate::data::{Part, Photo, Source};
use crate::{Error, Result};

/// Pictures that a refusal of a folder names.
const REFUSALS: usize = 10;

/// What a folder must be.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'p> {
    /// Least rows and columns of a good picture.
    pub min_side: usize,
    /// How often a bad picture's sides go into the good one's.
    pub scale: usize,
    /// Where an upscaler's outputs are, if not in `neg/`.
    pub negatives: Option<&'p Path>,
    /// Bytes of memory for decoded pictures. Pictures that fit into it together are all decoded at once.
    pub memory: usize,
}

/// The PNG, JPEG and WebP files of one folder (not of its subfolders), in the order of their names; or those of its `gt/`,
/// each with its partners of the same name (whatever the extension) in `lr/` and `neg/`.
pub struct Folder {
    pictures: Vec<Picture>,
    /// Is there an `lr`, and a `neg`?
    beside: [bool; 2],
    cache: Cache,
}

/// A good picture and its partners.
struct Picture {
    gt: PathBuf,
    lr: Option<PathBuf>,
    neg: Option<PathBuf>,
    height: usize,
    width: usize,
}

impl Folder {
    /// Opens `folder`. Every picture that cannot be used, has no partner or is of another size than its partner asks for
    /// is the error, all of them at once.
    pub fn open(folder: impl AsRef<Path>, wanted: &Wanted) -> Result<Self> {
        let folder = folder.as_ref();
        let [good, bad, upscaled] = [Part::Gt, Part::Lr, Part::Neg].map(|part| folder.join(part.name()));
        let paired = good.is_dir();
        if paired && !bad.is_dir() {
            let remedy = "add the bad pictures, or name the folder gt itself to have them made";
            return Err(Error::Usage(format!("{} has gt/ but no lr/: {remedy}", folder.display())));
        }
        let neg_dir = wanted.negatives.or(Some(&*upscaled).filter(|dir| paired && dir.is_dir()));
        let gt = pictures_of(if paired { &good } else { folder })?;
        let (n, mut faults) = (gt.len(), Vec::new());
        let lr = paired.then(|| partners(&gt, &bad, &mut faults)).transpose()?;
        let neg = neg_dir.map(|dir| partners(&gt, dir, &mut faults)).transpose()?;
        let beside = [lr.is_some(), neg.is_some()];
        let at = |part: &Option<Vec<Option<PathBuf>>>, i: usize| part.as_ref().and_then(|p| p[i].clone());
        let named: Vec<Picture> = gt
            .into_iter()
            .enumerate()
            .map(|(i, gt)| Picture { gt, lr: at(&lr, i), neg: at(&neg, i), height: 0, width: 0 })
            .collect();
        let probed: Vec<Result<(Picture, usize)>> =
            named.into_par_iter().map(|picture| picture.probe(wanted)).collect();
        let (mut pictures, mut bytes) = (Vec::with_capacity(n), 0);
        for outcome in probed {
            match outcome {
                Ok((picture, size)) => {
                    bytes += size;
                    pictures.push(picture);
                }
                Err(why) => faults.push(why),
            }
        }
        none(faults, n, folder)?;
        let opened = Self { pictures, beside, cache: Cache::new(wanted.memory) };
        if bytes <= wanted.memory {
            opened.decode_all(folder)?;
        }
        Ok(opened)
    }

    /// Reads every picture into memory; those that are damaged are the error.
    fn decode_all(&self, folder: &Path) -> Result<()> {
        let parts = [Part::Gt, Part::Lr, Part::Neg].into_iter().filter(|&part| self.has(part));
        let all: Vec<(usize, Part)> = parts.flat_map(|p| (0..self.len()).map(move |i| (i, p))).collect();
        let damaged = all.into_par_iter().filter_map(|(i, part)| self.photo(i, part).err()).collect();
        none(damaged, self.len(), folder)
    }
}

impl Picture {
    fn path(&self, part: Part) -> Option<&Path> {
        match part {
            Part::Gt => Some(&self.gt),
            Part::Lr => self.lr.as_deref(),
            Part::Neg => self.neg.as_deref(),
        }
    }

    /// Itself with its size, and the bytes of it and its partners, if their sizes are as `wanted`.
    fn probe(mut self, wanted: &Wanted) -> Result<(Self, usize)> {
        let good = Photo::probe(&self.gt)?;
        let (h, w, side) = (good.height, good.width, wanted.min_side);
        if h.min(w) < side {
            let remedy = "remove it or train on smaller crops";
            let detail = format!("{w}×{h} pixels is smaller than the {side}×{side} crop; {remedy}");
            return Err(Error::format(&self.gt, detail));
        }
        let mut bytes = good.bytes;
        for (path, scale) in [(&self.lr, wanted.scale), (&self.neg, 1)] {
            let Some(path) = path else { continue };
            let partner = Photo::probe(path)?;
            let (ph, pw) = (partner.height, partner.width);
            if (scale * ph, scale * pw) != (h, w) {
                let of = self.gt.display();
                let times =
                    if scale == 1 { "as large as".to_owned() } else { format!("{scale} times smaller than") };
                let detail = format!("{pw}×{ph} pixels; wanted {times} {of}, which has {w}×{h}");
                return Err(Error::format(path, detail));
            }
            bytes += partner.bytes;
        }
        (self.height, self.width) = (h, w);
        Ok((self, bytes))
    }
}

impl Source for Folder {
    fn len(&self) -> usize {
        self.pictures.len()
    }
    fn name(&self, i: usize) -> String {
        let path = &self.pictures[i].gt;
        path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
    }
    fn size(&self, i: usize) -> (usize, usize) {
        (self.pictures[i].height, self.pictures[i].width)
    }
    fn has(&self, part: Part) -> bool {
        match part {
            Part::Gt => true,
            Part::Lr => self.beside[0],
            Part::Neg => self.beside[1],
        }
    }
    fn photo(&self, i: usize, part: Part) -> Result<Arc<Photo>> {
        let path = self.pictures[i]
            .path(part)
            .ok_or_else(|| Error::Usage(format!("{} has no partner in {}/", self.name(i), part.name())))?;
        self.cache.get((i, part), || Photo::load(path))
    }
}

/// The picture files of a folder (not of its subfolders) in the order of their names, at least one.
pub fn pictures_of(folder: &Path) -> Result<Vec<PathBuf>> {
    if !folder.is_dir() {
        let what = if folder.exists() { "is a file" } else { "does not exist" };
        let wanted = "wanted a folder of .png, .jpg and .webp pictures";
        return Err(Error::Usage(format!("{} {what}; {wanted}", folder.display())));
    }
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        if is_photo(&path) && path.is_file() {
            paths.push(path);
        }
    }
    if paths.is_empty() {
        let detail = "no .png, .jpg, .jpeg or .webp file in this folder (subfolders are not searched)";
        return Err(Error::format(folder, detail));
    }
    paths.sort();
    Ok(paths)
}

/// The picture files of a folder and of all folders in it, in the order of their paths, at least one. Hidden folders and
/// links to folders are passed over.
pub fn pictures_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let (mut folders, mut paths) = (vec![folder.to_path_buf()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).map_err(Error::io(&folder))? {
            let entry = entry.map_err(Error::io(&folder))?;
            let (path, hidden) = (entry.path(), entry.file_name().to_string_lossy().starts_with('.'));
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) && !hidden {
                folders.push(path);
            } else if is_photo(&path) && path.is_file() {
                paths.push(path);
            }
        }
    }
    if paths.is_empty() {
        return Err(Error::format(folder, "no .png, .jpg, .jpeg or .webp file in this folder or below it"));
    }
    paths.sort();
    Ok(paths)
}

fn is_photo(path: &Path) -> bool {
    let hidden = path.file_name().is_none_or(|n| n.to_string_lossy().starts_with('.'));
    let kind = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
    !hidden && matches!(kind.as_deref(), Some("png" | "jpg" | "jpeg" | "webp"))
}

/// The file of `folder` that is called as each of `gt`.
fn partners(gt: &[PathBuf], folder: &Path, faults: &mut Vec<Error>) -> Result<Vec<Option<PathBuf>>> {
    let stem = |path: &Path| path.file_stem().map(ToOwned::to_owned);
    let mut by_stem = BTreeMap::new();
    for path in pictures_of(folder)? {
        if let Some(twin) = by_stem.insert(stem(&path), path.clone()) {
            faults.push(Error::format(&path, format!("{} has the same name; remove one", twin.display())));
        }
    }
    let mut partner = |path: &PathBuf| {
        let found = by_stem.remove(&stem(path));
        if found.is_none() {
            let none = format!("no picture of this name in {}; add it, or remove this one", folder.display());
            faults.push(Error::format(path, none));
        }
        found
    };
    let found = gt.iter().map(&mut partner).collect();
    let alone = "no good picture of this name; add it, or remove this one";
    faults.extend(by_stem.into_values().map(|path| Error::format(path, alone)));
    Ok(found)
}

/// Several refusals in one message: all of them at once, or there is a run for each.
fn none(mut faults: Vec<Error>, pictures: usize, folder: &Path) -> Result<()> {
    let n = faults.len();
    match n {
        0 => return Ok(()),
        1 => return Err(faults.remove(0)),
        _ => {}
    }
    let lines: String = faults.iter().take(REFUSALS).map(|why| format!("\n  {why}")).collect();
    let more = if n > REFUSALS { format!("\n  … and {} more", n - REFUSALS) } else { String::new() };
    Err(Error::format(folder, format!("{n} faults in its {pictures} pictures:{lines}{more}")))
}

type Key = (usize, Part);

/// Decoded pictures up to a number of bytes; the first to come goes first.
struct Cache {
    budget: usize,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    photos: HashMap<Key, Arc<Photo>>,
    order: VecDeque<Key>,
    bytes: usize,
}

impl Cache {
    fn new(budget: usize) -> Self {
        Self { budget, held: Mutex::default() }
    }

    fn get(&self, key: Key, load: impl FnOnce() -> Result<Photo>) -> Result<Arc<Photo>> {
        let held = || self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(photo) = held().photos.get(&key) {
            return Ok(photo.clone());
        }
        // Not under the lock: two that want the same picture at once both read it.
        let photo = Arc::new(load()?);
        let mut held = held();
        if held.photos.insert(key, photo.clone()).is_none() {
            held.order.push_back(key);
            held.bytes += photo.bytes();
        }
        while held.bytes > self.budget {
            let Some(oldest) = held.order.pop_front() else { break };
            held.bytes -= held.photos.remove(&oldest).map_or(0, |p| p.bytes());
        }
        Ok(photo)
    }
}
