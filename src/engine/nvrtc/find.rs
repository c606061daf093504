//! Where NVRTC lies on this machine.

use super::{Nvrtc, Version};
use crate::{Error, Result};
use std::env;
use std::path::{Path, PathBuf};

/// What to do when there is none.
pub(super) const REMEDY: &str = "install one with `pip install nvidia-cuda-nvrtc` (its version must not exceed the \
                                 driver's), or name its file or folder in ASASR_NVRTC";

/// The names the system's loader is asked for, newest first.
const SYSTEM: [&str; 3] = ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"];

/// Below a site-packages folder, newest first.
const PIP: [&str; 3] = ["nvidia/cu13/lib", "nvidia/cuda_nvrtc/lib", "nvidia/cu12/lib"];

/// Where to look, in order.
#[derive(Default)]
pub(super) struct Places {
    /// What a person named in `ASASR_NVRTC`: a file or a folder. Then nothing else is looked at.
    named: Option<PathBuf>,
    /// Names that the system's loader is asked for.
    system: Vec<PathBuf>,
    /// Folders that there are.
    folders: Vec<PathBuf>,
}

impl Places {
    pub(super) fn of_this_machine() -> Self {
        let named = env::var_os("ASASR_NVRTC").filter(|v| !v.is_empty()).map(PathBuf::from);
        Self { named, system: SYSTEM.map(PathBuf::from).to_vec(), folders: folders() }
    }
}

/// The first that loads and, if a driver's version is given, whose code that driver takes.
pub(super) fn nvrtc(places: &Places, driver: Option<Version>) -> Result<Nvrtc> {
    let load = |file: &Path| {
        let found = Nvrtc::load(file)?;
        driver.map_or(Ok(()), |driver| found.suits(driver))?;
        Ok(found)
    };
    if let Some(named) = &places.named {
        let file = if named.is_dir() { named_in(named) } else { Some(named.clone()) };
        return match file {
            Some(file) => load(&file),
            None => {
                let detail = format!("no libnvrtc.so below the folder that ASASR_NVRTC names; {REMEDY}");
                Err(Error::Nvrtc { path: named.clone(), detail })
            }
        };
    }
    let mut refused = None;
    for name in &places.system {
        // One that the system does not have is no news; one that it has and that does not suit is.
        let Ok(found) = Nvrtc::load(name) else { continue };
        match driver.map_or(Ok(()), |driver| found.suits(driver)) {
            Ok(()) => return Ok(found),
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    for file in places.folders.iter().filter_map(|f| in_folder(f)) {
        match load(&file) {
            Ok(found) => return Ok(found),
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    // A library that is there and is refused says more than a list of places where there is none.
    Err(refused.unwrap_or_else(|| {
        let looked: Vec<String> = places.folders.iter().map(|f| f.display().to_string()).collect();
        let looked = if looked.is_empty() { String::new() } else { format!(" nor in {}", looked.join(", ")) };
        let detail = format!("not found by the system's loader{looked}; {REMEDY}");
        Error::Nvrtc { path: "libnvrtc.so".into(), detail }
    }))
}

/// In a folder that a person named: beside it, or where pip or a toolkit puts it below.
fn named_in(dir: &Path) -> Option<PathBuf> {
    in_folder(dir).or_else(|| {
        let below = ["lib64", "lib"].iter().chain(&PIP);
        below.filter_map(|sub| in_folder(&dir.join(sub))).next()
    })
}

/// Every folder worth a look, in order, that exists.
fn folders() -> Vec<PathBuf> {
    let mut out = Vec::new();
    for root in ["CUDA_HOME", "CUDA_PATH"].iter().filter_map(env::var_os).map(PathBuf::from) {
        out.extend(["lib64", "lib"].map(|sub| root.join(sub)));
    }
    out.push("/usr/local/cuda/lib64".into());
    let mut packages = Vec::new();
    for prefix in ["VIRTUAL_ENV", "CONDA_PREFIX"].iter().filter_map(env::var_os).map(PathBuf::from) {
        packages.extend(site_packages(&prefix));
    }
    if let Some(home) = env::var_os("HOME") {
        packages.extend(site_packages(&Path::new(&home).join(".local")));
    }
    // A python on PATH stands in <prefix>/bin.
    for bin in env::var_os("PATH").iter().flat_map(env::split_paths) {
        if bin.join("python3").is_file() {
            packages.extend(bin.parent().map(site_packages).unwrap_or_default());
        }
    }
    if let Some(cache) = cache_folder() {
        packages.push(cache.join("nvrtc"));
    }
    out.extend(packages.iter().flat_map(|p| PIP.map(|sub| p.join(sub))));
    out.extend(cache_folder().map(|c| c.join("nvrtc")));
    out.retain(|f| f.is_dir());
    let mut seen = Vec::new();
    out.retain(|f| {
        !seen.contains(f) && {
            seen.push(f.clone());
            true
        }
    });
    out
}

/// Where what the engine can make anew is kept: `ASASR_CACHE`, else `asasr-engine` in the user's cache folder.
pub fn cache_folder() -> Option<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    set("ASASR_CACHE").or_else(|| {
        let user = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|h| h.join(".cache")));
        user.map(|dir| dir.join("asasr-engine"))
    })
}

/// The package folders of the pythons below `prefix`.
fn site_packages(prefix: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(prefix.join("lib")) else { return Vec::new() };
    let mut pythons: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
    pythons.retain(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("python3")));
    pythons.sort();
    pythons.iter().rev().flat_map(|p| ["site-packages", "dist-packages"].map(|sub| p.join(sub))).collect()
}

/// The newest `libnvrtc.so*` of a folder.
fn in_folder(dir: &Path) -> Option<PathBuf> {
    newest(dir, "libnvrtc.so")
}

/// The builtins beside a library that is given by its path.
pub(super) fn builtins_beside(library: &Path) -> Option<PathBuf> {
    library.parent().filter(|d| !d.as_os_str().is_empty()).and_then(|d| newest(d, "libnvrtc-builtins.so"))
}

/// The file of `dir` called `name` or `name.<version>`, of the highest version.
fn newest(dir: &Path, name: &str) -> Option<PathBuf> {
    let version = |file: &str| -> Option<Vec<u32>> {
        let rest = file.strip_prefix(name)?;
        rest.split('.').skip(1).map(|part| part.parse().ok()).collect()
    };
    let files = std::fs::read_dir(dir).ok()?.flatten().filter_map(|entry| {
        let file = entry.file_name().to_string_lossy().into_owned();
        version(&file).map(|v| (v, entry.path()))
    });
    files.max().map(|(_, path)| path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(places: &Places, driver: Option<Version>) -> String {
        nvrtc(places, driver).err().expect("there is none that suits").to_string()
    }

    #[test]
    fn none_to_be_found_says_where_it_looked_and_what_to_do() {
        let e = refusal(&Places::default(), None);
        assert!(e.contains("not found") && e.contains("pip install nvidia-cuda-nvrtc"), "{e}");
        let dir = tempfile::tempdir().unwrap();
        let system = vec!["libnvrtc-that-is-not.so".into()];
        let e =
            refusal(&Places { system: system.clone(), folders: vec![dir.path().into()], named: None }, None);
        assert!(e.contains(&dir.path().display().to_string()), "{e}");
        let e = refusal(&Places { named: Some(dir.path().into()), ..Places::default() }, None);
        assert!(e.contains("ASASR_NVRTC") && e.contains(&dir.path().display().to_string()), "{e}");
        // One that is there and does not load is what the message speaks of.
        let file = dir.path().join("libnvrtc.so.13");
        std::fs::write(&file, b"not a library").unwrap();
        let e = refusal(&Places { system, folders: vec![dir.path().into()], named: None }, None);
        assert!(e.contains(&file.display().to_string()), "{e}");
    }

    #[test]
    fn one_that_is_too_new_for_the_driver_is_passed_over() {
        let Some(found) = crate::engine::nvrtc::tests::nvrtc() else { return };
        let (path, version) = (found.path().to_path_buf(), found.version());
        let places = [
            Places { named: Some(path.clone()), ..Places::default() },
            Places { system: vec![path.clone()], ..Places::default() },
            Places {
                folders: path.parent().map(Path::to_path_buf).into_iter().collect(),
                ..Places::default()
            },
        ];
        for places in &places {
            // A bare name has no folder to look in.
            if places.folders.iter().any(|f| f.as_os_str().is_empty()) {
                continue;
            }
            assert_eq!(nvrtc(places, Some(version)).map(|n| n.version()).ok(), Some(version));
            let older = (12, 8);
            if version > older {
                let e = refusal(places, Some(older));
                assert!(e.contains("newer than the driver, which speaks CUDA 12.8"), "{e}");
            }
        }
    }

    #[test]
    fn the_newest_library_of_a_folder() {
        let dir = tempfile::tempdir().unwrap();
        let touch = |name: &str| std::fs::write(dir.path().join(name), b"").unwrap();
        assert_eq!(in_folder(dir.path()), None);
        for name in
            ["libnvrtc.so.9.2", "libnvrtc.alt.so.13", "libnvrtc-builtins.so.13.2", "libnvrtc_static.a"]
        {
            touch(name);
        }
        assert_eq!(in_folder(dir.path()), Some(dir.path().join("libnvrtc.so.9.2")));
        touch("libnvrtc.so.13");
        let found = in_folder(dir.path()).unwrap();
        assert_eq!(found, dir.path().join("libnvrtc.so.13"));
        assert_eq!(builtins_beside(&found), Some(dir.path().join("libnvrtc-builtins.so.13.2")));
        assert_eq!(builtins_beside(Path::new("libnvrtc.so.13")), None);
    }

    #[test]
    fn a_folder_may_be_the_root_of_a_wheel_or_a_toolkit() {
        for sub in ["nvidia/cu13/lib", "nvidia/cuda_nvrtc/lib", "lib64"] {
            let dir = tempfile::tempdir().unwrap();
            std::fs::create_dir_all(dir.path().join(sub)).unwrap();
            assert_eq!(named_in(dir.path()), None);
            let file = dir.path().join(sub).join("libnvrtc.so.13");
            std::fs::write(&file, b"").unwrap();
            assert_eq!(named_in(dir.path()), Some(file));
        }
    }
}
