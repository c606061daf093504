//! Kernels compiled on the machine they run on, once: NVRTC behind a cache on disk.
//!
//! An entry's name is the SHA-256 of everything its content follows from: source, headers, options, architecture and
//! NVRTC's version. It is one file, complete or absent, that carries its own hash; one that was damaged is made anew.
//! However many threads and processes ask for the same kernel at once, one compiles and the others wait: the lock is
//! the operating system's, so that a killed process leaves none. Must not know what the kernels compute, or load them.

mod entry;
pub mod report;

use super::kernels;
use super::nvrtc::{Nvrtc, Source, Version, cache_folder};
use crate::{Error, Result, files};
use report::KernelReport;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// With which every kernel is compiled. Rounding is IEEE's: division and square root correctly rounded, denormals kept.
/// Line information changes no instruction; with it the emulator, compute-sanitizer and profilers name the source's line.
pub const OPTIONS: [&str; 3] = ["--std=c++17", "--ptxas-options=-v", "-lineinfo"];

/// A compiled source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    /// Code for the architecture asked for.
    pub cubin: Vec<u8>,
    /// The same for a driver that does not take the cubin.
    pub ptx: String,
    /// The resources of each kernel, by name.
    pub kernels: Vec<KernelReport>,
}

/// The compiler and its cache. Threads may share it.
pub struct Jit {
    nvrtc: Nvrtc,
    dir: PathBuf,
    compiled: AtomicUsize,
}

impl Jit {
    /// The NVRTC of this machine and the user's cache.
    pub fn open() -> Result<Self> {
        let folder = cache_folder().ok_or_else(Self::no_folder)?;
        Self::new(Nvrtc::find()?, folder.join("kernels"))
    }

    /// There is nowhere to keep compiled kernels.
    pub fn no_folder() -> Error {
        let detail = "neither ASASR_CACHE, XDG_CACHE_HOME nor HOME names a folder for compiled kernels";
        Error::Usage(format!("{detail}; set ASASR_CACHE to one that can be written"))
    }

    /// The same, with the first NVRTC whose code a driver of this version can load.
    pub fn open_for(driver: Version) -> Result<Self> {
        let folder = cache_folder().ok_or_else(Self::no_folder)?;
        Self::new(Nvrtc::find_for(driver)?, folder.join("kernels"))
    }

    /// `nvrtc` with its results kept in `dir`, which is made if need be.
    pub fn new(nvrtc: Nvrtc, dir: impl Into<PathBuf>) -> Result<Self> {
        let dir = dir.into();
        std::fs::create_dir_all(&dir).map_err(unwritable(&dir))?;
        Ok(Self { nvrtc, dir, compiled: AtomicUsize::new(0) })
    }

    /// The compiler.
    pub fn nvrtc(&self) -> &Nvrtc {
        &self.nvrtc
    }

    /// How many sources this handle has compiled, rather than found.
    pub fn compiled(&self) -> usize {
        self.compiled.load(Ordering::Relaxed)
    }

    /// The embedded source `name` (`gelu.cu`) for `arch` (`sm_80`).
    pub fn kernel(&self, name: &str, arch: &str) -> Result<Compiled> {
        let text = kernels::text(name)?;
        self.get(&Source { name, text, headers: &kernels::headers(name)? }, arch, &OPTIONS)
    }

    /// `source` for `arch` with `options`: from the cache, or compiled and put there.
    pub fn get(&self, source: &Source, arch: &str, options: &[&str]) -> Result<Compiled> {
        let key = key(source, arch, options, self.nvrtc.version());
        let path = self.dir.join(format!("{key}.kernel"));
        if let Some(found) = entry::read(&path) {
            return Ok(found);
        }
        // One compiles, the others wait here and find its entry. 256 locks serve all keys, so the folder does not fill
        // with them; two sources that share one wait for each other for nothing, now and then.
        let lock_path = self.dir.join(format!("{}.lock", &key[..2]));
        let open = || File::options().create(true).truncate(false).write(true).open(&lock_path);
        let lock = open().map_err(unwritable(&lock_path))?;
        lock.lock().map_err(unwritable(&lock_path))?;
        if let Some(found) = entry::read(&path) {
            return Ok(found);
        }
        let output = self.nvrtc.compile(source, arch, options)?;
        self.compiled.fetch_add(1, Ordering::Relaxed);
        let kernels = report::parse(&output.log, &output.ptx);
        let made = Compiled { cubin: output.cubin, ptx: output.ptx, kernels };
        files::write_atomic(&path, &entry::bytes(&made)?).map_err(|e| unkept(&path, e))?;
        Ok(made)
    }
}

fn unkept(path: &Path, why: impl std::fmt::Display) -> Error {
    let detail = format!(
        "compiled kernels cannot be kept here ({why}); set ASASR_CACHE to a folder that can be written"
    );
    Error::Disk { path: path.to_path_buf(), detail }
}

fn unwritable(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_path_buf();
    move |e| unkept(&path, e)
}

/// The name of an entry. Every part is preceded by its length, so that no two lists of parts run together.
fn key(source: &Source, arch: &str, options: &[&str], version: (u32, u32)) -> String {
    let version = format!("{}.{}", version.0, version.1);
    let mut parts = vec![entry::MAGIC, &version, arch, source.name, source.text];
    parts.extend(source.headers.iter().flat_map(|h| [h.0, h.1]));
    parts.push("options");
    parts.extend(options);
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::nvrtc::tests::nvrtc;
    use std::process::Command;

    const SOURCE: Source = Source {
        name: "k.cu",
        text: "extern \"C\" __global__ void __launch_bounds__(64) k(float* x) { x[threadIdx.x] *= 2.f; }",
        headers: &[],
    };

    #[test]
    fn the_second_start_compiles_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let Some(first) = nvrtc() else { return };
        let first = Jit::new(first, dir.path().join("a/b")).unwrap();
        let made = first.get(&SOURCE, "sm_80", &OPTIONS).unwrap();
        assert_eq!(first.compiled(), 1);
        assert_eq!((made.kernels.len(), made.kernels[0].threads), (1, Some(64)));
        assert!(made.kernels[0].registers > 0 && made.cubin.starts_with(b"\x7fELF"));

        let second = Jit::new(nvrtc().unwrap(), dir.path().join("a/b")).unwrap();
        assert_eq!(second.get(&SOURCE, "sm_80", &OPTIONS).unwrap(), made);
        assert_eq!(second.compiled(), 0);
        // Anything it depends on makes another entry.
        let other = Source { headers: &[("h.cuh", "")], ..SOURCE };
        second.get(&other, "sm_80", &OPTIONS).unwrap();
        second.get(&SOURCE, "sm_90", &OPTIONS).unwrap();
        second.get(&SOURCE, "sm_80", &OPTIONS[..1]).unwrap();
        assert_eq!(second.compiled(), 3);
    }

    #[test]
    fn a_damaged_entry_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let Some(nvrtc) = nvrtc() else { return };
        let jit = Jit::new(nvrtc, dir.path()).unwrap();
        let made = jit.get(&SOURCE, "sm_80", &OPTIONS).unwrap();
        let path = std::fs::read_dir(&dir).unwrap().flatten().map(|e| e.path());
        let path = { path }.find(|p| p.extension().is_some_and(|e| e == "kernel")).unwrap();
        let whole = std::fs::read(&path).unwrap();
        let mut flipped = whole.clone();
        flipped[whole.len() / 2] ^= 1;
        for (i, damaged) in [&whole[..whole.len() - 1], &flipped, b""].into_iter().enumerate() {
            std::fs::write(&path, damaged).unwrap();
            assert_eq!(jit.get(&SOURCE, "sm_80", &OPTIONS).unwrap(), made);
            assert_eq!(jit.compiled(), i + 2);
            assert_eq!(std::fs::read(&path).unwrap(), whole);
        }
    }

    #[test]
    fn threads_with_handles_of_their_own_compile_once() {
        let dir = tempfile::tempdir().unwrap();
        if nvrtc().is_none() {
            return;
        }
        let counts: Vec<usize> = std::thread::scope(|scope| {
            let work = || {
                let jit = Jit::new(nvrtc().unwrap(), dir.path()).unwrap();
                jit.get(&SOURCE, "sm_80", &OPTIONS).unwrap();
                jit.compiled()
            };
            let all: Vec<_> = (0..4).map(|_| scope.spawn(work)).collect();
            all.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert_eq!(counts.iter().sum::<usize>(), 1, "{counts:?}");
    }

    /// Set in the processes that the next test starts: the folder they share.
    const CHILD: &str = "ASASR_TEST_JIT_CHILD";

    #[test]
    fn processes_at_once_compile_once() {
        if nvrtc().is_none() {
            return;
        }
        if let Some(dir) = std::env::var_os(CHILD) {
            let jit = Jit::new(nvrtc().unwrap(), PathBuf::from(dir)).unwrap();
            jit.get(&SOURCE, "sm_80", &OPTIONS).unwrap();
            println!("compiled={}", jit.compiled());
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let name = "engine::jit::tests::processes_at_once_compile_once";
        let start = || {
            let mut child = Command::new(std::env::current_exe().unwrap());
            child.args([name, "--exact", "--nocapture"]).env(CHILD, dir.path());
            child.stdout(std::process::Stdio::piped()).spawn().unwrap()
        };
        let children = [start(), start(), start()];
        let outputs = children.map(|c| c.wait_with_output().unwrap());
        let all: String = outputs.iter().map(|o| String::from_utf8_lossy(&o.stdout)).collect();
        assert!(outputs.iter().all(|o| o.status.success()), "{all}");
        assert_eq!((all.matches("compiled=1").count(), all.matches("compiled=0").count()), (1, 2), "{all}");
    }

    #[test]
    fn every_part_is_in_the_key() {
        let base = key(&SOURCE, "sm_80", &OPTIONS, (13, 0));
        let others = [
            key(&SOURCE, "sm_80", &OPTIONS, (13, 1)),
            key(&SOURCE, "sm_90", &OPTIONS, (13, 0)),
            key(&SOURCE, "sm_80", &[], (13, 0)),
            key(&Source { text: "", ..SOURCE }, "sm_80", &OPTIONS, (13, 0)),
            key(&Source { name: "l.cu", ..SOURCE }, "sm_80", &OPTIONS, (13, 0)),
            key(&Source { headers: &[("a", "b")], ..SOURCE }, "sm_80", &OPTIONS, (13, 0)),
            key(&Source { headers: &[("ab", "")], ..SOURCE }, "sm_80", &OPTIONS, (13, 0)),
        ];
        let mut all: Vec<&String> = others.iter().chain([&base]).collect();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 8);
        assert_eq!(base, key(&SOURCE, "sm_80", &OPTIONS, (13, 0)));
    }

    #[test]
    fn a_folder_that_cannot_be_made_says_what_to_do() {
        let Some(nvrtc) = nvrtc() else { return };
        let file = tempfile::NamedTempFile::new().unwrap();
        let e = Jit::new(nvrtc, file.path().join("x")).err().expect("a file is in the way").to_string();
        assert!(e.contains("ASASR_CACHE"), "{e}");
    }
    /// Where the entry of [`SOURCE`] and its lock are.
    fn files_of(jit: &Jit) -> [PathBuf; 2] {
        let key = key(&SOURCE, "sm_80", &OPTIONS, jit.nvrtc().version());
        [jit.dir.join(format!("{key}.kernel")), jit.dir.join(format!("{}.lock", &key[..2]))]
    }

    /// Folders stand where files should be: what even root can neither read nor write.
    #[test]
    fn a_cache_that_cannot_be_read_or_written_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let Some(nvrtc) = nvrtc() else { return };
        let jit = Jit::new(nvrtc, dir.path()).unwrap();
        let [entry, lock] = files_of(&jit);
        let refused = || jit.get(&SOURCE, "sm_80", &OPTIONS).unwrap_err().to_string();
        std::fs::create_dir(&lock).unwrap();
        let e = refused();
        assert!(e.contains(&lock.display().to_string()) && e.contains("ASASR_CACHE"), "{e}");
        std::fs::remove_dir(&lock).unwrap();
        std::fs::create_dir(&entry).unwrap();
        let e = refused();
        assert!(e.contains(&entry.display().to_string()) && e.contains("ASASR_CACHE"), "{e}");
        std::fs::remove_dir(&entry).unwrap();
        jit.get(&SOURCE, "sm_80", &OPTIONS).unwrap();
    }

    #[test]
    fn a_full_cache_need_not_be_writable() {
        let dir = tempfile::tempdir().unwrap();
        let Some(nvrtc) = nvrtc() else { return };
        let jit = Jit::new(nvrtc, dir.path()).unwrap();
        let made = jit.get(&SOURCE, "sm_80", &OPTIONS).unwrap();
        let [_, lock] = files_of(&jit);
        std::fs::remove_file(&lock).unwrap();
        std::fs::create_dir(&lock).unwrap();
        assert_eq!(jit.get(&SOURCE, "sm_80", &OPTIONS).unwrap(), made);
    }
}
