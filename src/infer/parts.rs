//! Where the parts of a model are: in a run directory and those it was built from, or in a folder of weights as diffusers
//! keeps it.

use super::model::layout;
use crate::files::sha256;
use crate::{Error, Result};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Blocks of a file that its fingerprint looks at, and their size.
const BLOCKS: u64 = 256;
const BLOCK: u64 = 16 << 10;

/// The files of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Parts {
    /// The folder of the base's weights.
    pub base: PathBuf,
    /// A run's `codec.json`, or a network's weights.
    pub codec: PathBuf,
    /// Adapters and their strengths; all of them act.
    pub adapters: Vec<(PathBuf, f32)>,
    /// An encoded prompt; without one the text is all zeros, as in training.
    pub prompt: Option<PathBuf>,
}

impl Parts {
    /// The parts of `model`, a run directory or a folder of weights. `loras` are adapters of the run by name, or paths, each
    /// with its strength; `None`: the super-resolution and the preference adapter of the run, those that there are.
    /// `codec` is taken instead of the run's.
    pub fn find(model: &Path, loras: Option<&[(String, f32)]>, codec: Option<&Path>) -> Result<Self> {
        if let Some(base) = weights(model) {
            let codec = codec.map(Path::to_path_buf).or(Some(model.join("vae")).filter(|p| p.exists()));
            let codec = codec.ok_or_else(|| {
                Error::Usage(format!("{}: weights without a codec; name one with --codec", model.display()))
            })?;
            let path = |(path, strength): &(String, f32)| lora(path, *strength, &[]);
            let adapters = loras.unwrap_or_default().iter().map(path).collect::<Result<_>>()?;
            return Ok(Self { base, codec, adapters, prompt: None });
        }
        let runs = Runs::of(model)?;
        let codec = codec.map_or_else(|| runs.part(layout::CODEC), |path| Ok(path.to_path_buf()));
        let base = runs.base()?;
        let adapters = match loras {
            None => [layout::SFT, layout::ASDPO]
                .into_iter()
                .filter_map(|name| Some((runs.find(name)?, 1.0)))
                .collect(),
            Some(all) => all.iter().map(|(name, k)| lora(name, *k, &runs.0)).collect::<Result<_>>()?,
        };
        Ok(Self { base, codec: codec?, adapters, prompt: None })
    }

    /// The adapters' names and strengths.
    pub fn names(&self) -> Vec<String> {
        let name = |path: &Path| path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        self.adapters.iter().map(|(path, strength)| format!("{}:{strength}", name(path))).collect()
    }

    /// A hash that tells these parts from others: of the adapters' strengths and the sizes and contents of all files, of
    /// large ones 256 places.
    pub fn fingerprint(&self) -> Result<String> {
        let mut all = Vec::new();
        let adapters = self.adapters.iter().map(|(path, _)| path);
        for part in [&self.base, &self.codec].into_iter().chain(&self.prompt).chain(adapters) {
            for file in files_of(part)? {
                all.extend(sample(&file).map_err(Error::io(&file))?.into_bytes());
            }
        }
        for (_, strength) in &self.adapters {
            all.extend(strength.to_le_bytes());
        }
        Ok(sha256(&all))
    }
}

/// Where a folder that is no run holds its weights; a single file is its own.
fn weights(model: &Path) -> Option<PathBuf> {
    let places = [model.join("transformer"), model.to_path_buf()];
    let held = |place: &PathBuf| place.join("config.json").is_file() || place.is_file();
    places.into_iter().find(held)
}

/// An adapter of one of `runs` by its name, or one by its path.
fn lora(name: &str, strength: f32, runs: &[PathBuf]) -> Result<(PathBuf, f32)> {
    let all = [layout::SFT, layout::ASDPO, layout::ADVERSARY];
    let own = runs.iter().map(|run| run.join(name)).find(|path| all.contains(&name) && path.is_dir());
    if let Some(path) = own.or_else(|| Some(PathBuf::from(name)).filter(|path| path.exists())) {
        return Ok((path, strength));
    }
    let has = |adapter: &&str| runs.iter().any(|run| run.join(adapter).is_dir());
    let known: Vec<&str> = all.into_iter().filter(has).collect();
    let known = if known.is_empty() {
        "which has none".to_owned()
    } else {
        format!("which has {}", known.join(", "))
    };
    Err(Error::Usage(format!("--lora {name}: neither a file or folder nor an adapter of the model, {known}")))
}

/// A run directory and those it was built from (`run.from`), the nearest first.
pub(crate) struct Runs(Vec<PathBuf>);

impl Runs {
    pub(crate) fn of(run: &Path) -> Result<Self> {
        if !run.is_dir() {
            return Err(Error::Usage(format!("{}: no such folder; wanted a trained run", run.display())));
        }
        let (mut all, mut seen) = (vec![run.to_path_buf()], Vec::new());
        while let Some(last) = all.last() {
            let real = last.canonicalize().map_err(Error::io(last))?;
            if seen.contains(&real) {
                return Err(Error::format(last, "was built from itself, if run.from is to be believed"));
            }
            seen.push(real);
            match built_from(last)? {
                Some(from) => all.push(from),
                None => break,
            }
        }
        Ok(Self(all))
    }

    pub(crate) fn find(&self, part: &str) -> Option<PathBuf> {
        self.0.iter().map(|run| run.join(part)).find(|path| path.exists())
    }

    /// The base model: what one of them trained, or the nearest was given from elsewhere.
    pub(crate) fn base(&self) -> Result<PathBuf> {
        match self.elsewhere()? {
            Some(base) => Ok(base),
            None => self.part(layout::BASE),
        }
    }

    /// The base model that is none of theirs (`model.base`), if there is one.
    pub(crate) fn elsewhere(&self) -> Result<Option<PathBuf>> {
        for run in &self.0 {
            let options = options(run)?;
            let base = options.get("model").and_then(|model| model.get("base")?.as_str());
            if let Some(base) = base.filter(|base| !base.is_empty()) {
                return Ok(Some(PathBuf::from(base)));
            }
        }
        Ok(None)
    }

    pub(super) fn part(&self, part: &str) -> Result<PathBuf> {
        self.find(part).ok_or_else(|| {
            let below: Vec<String> = self.0[1..].iter().map(|run| run.display().to_string()).collect();
            let nor =
                if below.is_empty() { String::new() } else { format!(", nor does {}", below.join(", nor ")) };
            let detail = format!("holds no {part}{nor}: not a trained run, or one that has not finished");
            Error::format(&self.0[0], detail)
        })
    }
}

/// The options of a run; none where there is no file of them.
fn options(run: &Path) -> Result<toml::Table> {
    let path = run.join("config.toml");
    let Ok(text) = std::fs::read_to_string(&path) else { return Ok(toml::Table::new()) };
    text.parse().map_err(|e: toml::de::Error| Error::format(&path, e.message().to_owned()))
}

/// The run that `run` was built from: where its options say, else beside it.
fn built_from(run: &Path) -> Result<Option<PathBuf>> {
    let options = options(run)?;
    let from = options.get("run").and_then(|run| run.get("from")?.as_str()).filter(|from| !from.is_empty());
    let Some(from) = from.map(Path::new) else { return Ok(None) };
    let beside = run.parent().zip(from.file_name()).map(|(folder, name)| folder.join(name));
    let found = [Some(from.to_path_buf()), beside].into_iter().flatten().find(|path| path.is_dir());
    // A run that is gone lacks nothing if all parts are in those that are left.
    Ok(found)
}

/// A file, or the weights and descriptions in a folder, by name.
fn files_of(part: &Path) -> Result<Vec<PathBuf>> {
    if !part.is_dir() {
        return Ok(vec![part.to_path_buf()]);
    }
    let mut all = Vec::new();
    for entry in std::fs::read_dir(part).map_err(Error::io(part))? {
        all.push(entry.map_err(Error::io(part))?.path());
    }
    all.retain(|path| path.extension().is_some_and(|ending| ending == "safetensors" || ending == "json"));
    all.sort();
    Ok(all)
}

/// A hash of a file's size and of its contents, all of them or as many evenly spaced blocks.
fn sample(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let size = file.seek(SeekFrom::End(0))?;
    let mut bytes = size.to_le_bytes().to_vec();
    if size <= BLOCKS * BLOCK {
        file.rewind()?;
        file.read_to_end(&mut bytes)?;
    } else {
        for i in 0..BLOCKS {
            file.seek(SeekFrom::Start((size - BLOCK) / (BLOCKS - 1) * i))?;
            file.by_ref().take(BLOCK).read_to_end(&mut bytes)?;
        }
    }
    Ok(sha256(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{create_dir_all, write};

    fn run(at: &Path, parts: &[&str], from: &str) {
        create_dir_all(at).unwrap();
        write(at.join("config.toml"), format!("[run]\nfrom = {from:?}\n")).unwrap();
        for part in parts {
            if part.ends_with(".json") {
                write(at.join(part), "{}").unwrap();
            } else {
                create_dir_all(at.join(part)).unwrap();
                write(at.join(part).join("x.safetensors"), part).unwrap();
            }
        }
    }

    #[test]
    fn what_a_run_lacks_comes_from_those_it_was_built_from() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b, c] = ["a", "b", "c"].map(|name| dir.path().join(name));
        run(&a, &["base", "codec.json", "base_sft"], "");
        run(&b, &["base_sft", "adv"], a.to_str().unwrap());
        // Where it was when it was named is gone: it is looked for beside the run.
        run(&c, &["train_dpo"], "/gone/b");
        let parts = Parts::find(&c, None, None).unwrap();
        assert_eq!((parts.base.clone(), parts.codec.clone()), (a.join("base"), a.join("codec.json")));
        assert_eq!(parts.adapters, [(b.join("base_sft"), 1.0), (c.join("train_dpo"), 1.0)]);

        let wanted = [("adv".to_owned(), 0.5), (a.join("base_sft").display().to_string(), 2.0)];
        let named = Parts::find(&c, Some(&wanted), None).unwrap();
        assert_eq!(named.adapters, [(b.join("adv"), 0.5), (a.join("base_sft"), 2.0)]);
        let e = Parts::find(&c, Some(&[("sft".to_owned(), 1.0)]), None).unwrap_err();
        assert!(e.exit_code() == 2 && e.to_string().contains("which has base_sft, train_dpo, adv"), "{e}");

        assert_eq!(named.names(), ["adv:0.5", "base_sft:2"]);
        let before = parts.fingerprint().unwrap();
        assert_ne!(named.fingerprint().unwrap(), before);
        write(c.join("train_dpo/x.safetensors"), "another").unwrap();
        assert_ne!(parts.fingerprint().unwrap(), before);

        std::fs::remove_dir_all(a.join("base")).unwrap();
        let e = Parts::find(&c, None, None).unwrap_err().to_string();
        assert!(e.contains("c: holds no base, nor does ") && e.contains("/b, nor "), "{e}");
        run(&a, &["base"], c.to_str().unwrap());
        assert!(Parts::find(&c, None, None).unwrap_err().to_string().contains("built from itself"));
    }

    #[test]
    fn a_folder_of_weights_wants_a_codec() {
        let dir = tempfile::tempdir().unwrap();
        let flux = dir.path().join("flux");
        create_dir_all(flux.join("transformer")).unwrap();
        write(flux.join("transformer/config.json"), "{}").unwrap();
        assert!(Parts::find(&flux, None, None).unwrap_err().to_string().contains("--codec"));
        let codec = dir.path().join("taef1");
        let parts = Parts::find(&flux, None, Some(&codec)).unwrap();
        assert_eq!(parts, Parts { base: flux.join("transformer"), codec, adapters: vec![], prompt: None });
        create_dir_all(flux.join("vae")).unwrap();
        assert_eq!(Parts::find(&flux, None, None).unwrap().codec, flux.join("vae"));
    }
}
