//! Writing files and folders so that they are complete or absent. Below every floor but the error type.

use crate::{Error, Result, faults};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// How the names of temporary files and folders end; those a killed process left may be removed.
pub(crate) const TEMPORARY: &str = ".tmp";

/// Writes `bytes` to `path` so that it holds either all of them or what it held before: a temporary file in the same
/// folder, fsync, rename, fsync of the folder. The folder must exist.
pub fn write_atomic(path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
    replace(path.as_ref(), |out| out.write_all(bytes))
}

/// [`write_atomic`] for what is written piece by piece.
pub(crate) fn replace(path: &Path, write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<()> {
    let temp = temporary(path)?;
    let write_temp = || -> std::io::Result<()> {
        let mut out = BufWriter::new(Disk(File::create(&temp)?));
        write(&mut out)?;
        let disk = out.into_inner().map_err(|e| e.into_error())?;
        faults::point();
        disk.0.sync_all()?;
        faults::point();
        std::fs::rename(&temp, path)
    };
    if let Err(error) = write_temp() {
        // Best effort: the error that matters is the first one.
        let _ = std::fs::remove_file(&temp);
        return Err(Error::io(path)(error));
    }
    faults::point();
    sync_folder(path)
}

/// Makes the folder `path`, which must not exist, with what `fill` writes into the folder it is given: all of it or
/// nothing. What `fill` writes must be synced, as [`replace`] does.
pub(crate) fn create_folder(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let temp = temporary(path)?;
    let write = || {
        std::fs::create_dir(&temp).map_err(Error::io(&temp))?;
        fill(&temp)?;
        faults::point();
        std::fs::rename(&temp, path).map_err(Error::io(path))
    };
    if let Err(error) = write() {
        let _ = std::fs::remove_dir_all(&temp);
        return Err(error);
    }
    faults::point();
    sync_folder(path)
}

/// A name beside `path` that no other write uses.
fn temporary(path: &Path) -> Result<PathBuf> {
    /// Keeps two writers of one process apart.
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let Some(name) = path.file_name() else {
        return Err(Error::Usage(format!("{} is not a file name", path.display())));
    };
    let id = NEXT.fetch_add(1, Ordering::Relaxed);
    Ok(path.with_file_name(format!(".{}.{}-{id}{TEMPORARY}", name.to_string_lossy(), std::process::id())))
}

/// The folder `path` stands in.
fn folder(path: &Path) -> &Path {
    path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn sync_folder(path: &Path) -> Result<()> {
    let dir = folder(path);
    if cfg!(unix) {
        File::open(dir).and_then(|d| d.sync_all()).map_err(Error::io(dir))?;
    }
    Ok(())
}

/// Removes the temporary files and folders that a killed process left in `dir`.
pub(crate) fn remove_leftovers(dir: &Path) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Ok(()) };
    for path in entries.flatten().map(|e| e.path()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with('.') && name.ends_with(TEMPORARY) {
            let removed =
                if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            removed.map_err(Error::io(&path))?;
        }
    }
    Ok(())
}

/// A file whose disk can be made to fill up; see [`faults`].
pub(crate) struct Disk(pub(crate) File);

impl Write for Disk {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        faults::write(bytes.len())?;
        self.0.write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

/// `path` without links and detours; what does not exist yet, below what does.
pub(crate) fn real(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let existing = path.ancestors().find_map(|a| Some((a, a.canonicalize().ok()?)));
    let Some((ancestor, real)) = existing else { return path };
    path.strip_prefix(ancestor).map_or(real.clone(), |rest| real.join(rest))
}

/// SHA-256 of `bytes`, in hexadecimal.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// SHA-256 of a file, in hexadecimal.
pub(crate) fn sha256_file(path: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    let copied = File::open(path).and_then(|mut f| std::io::copy(&mut f, &mut hash));
    copied.map_err(Error::io(path))?;
    Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect())
}

/// Refuses when less than `bytes` are free where `dir` (or the nearest folder above it that exists) lies.
pub(crate) fn expect_space(dir: &Path, bytes: u64, what: &str, remedy: &str) -> Result<()> {
    let mib = |b: u64| b.div_ceil(1 << 20);
    match dir.ancestors().find_map(free_space) {
        Some(free) if free < bytes => Err(Error::Disk {
            path: dir.to_path_buf(),
            detail: format!(
                "{what} needs {} MiB and {} MiB are free; free some, or {remedy}",
                mib(bytes),
                free >> 20
            ),
        }),
        _ => Ok(()),
    }
}

/// Bytes this user may still write where `path` lies; `None` where the system does not say.
fn free_space(path: &Path) -> Option<u64> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    #[cfg(unix)]
    return rustix::fs::statvfs(path).ok().map(|s| s.f_bavail.saturating_mul(s.f_frsize));
    #[cfg(not(unix))]
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        write_atomic(&path, b"old").unwrap();
        let torn = |out: &mut dyn Write| {
            out.write_all(b"ne")?;
            Err(std::io::Error::other("disk full"))
        };
        assert!(replace(&path, torn).unwrap_err().to_string().contains("disk full"));
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1);
        assert!(write_atomic(dir.path().join("none/x"), b"").unwrap_err().to_string().contains("none"));
    }

    #[test]
    fn a_folder_is_there_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let fill = |ok: bool| {
            move |at: &Path| {
                write_atomic(at.join("a"), b"1")?;
                if ok { Ok(()) } else { write_atomic(at.join("none/b"), b"2") }
            }
        };
        assert!(create_folder(&path, fill(false)).is_err());
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
        create_folder(&path, fill(true)).unwrap();
        assert_eq!(std::fs::read(path.join("a")).unwrap(), b"1");
        std::fs::create_dir(dir.path().join(".y.1-2.tmp")).unwrap();
        remove_leftovers(dir.path()).unwrap();
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1);
    }

    #[test]
    fn a_full_disk_is_seen_before_it_is_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("not/there/yet");
        expect_space(&at, 1, "a run", "wait").unwrap();
        if cfg!(unix) {
            let e = expect_space(&at, u64::MAX, "a run", "lower run.keep_last").unwrap_err().to_string();
            assert!(e.contains("MiB are free") && e.contains("run.keep_last"), "{e}");
        }
    }

    /// The published test vector of FIPS 180-4.
    #[test]
    fn hashes() {
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256(b"abc"), abc);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, b"abc").unwrap();
        assert_eq!(sha256_file(file.path()).unwrap(), abc);
    }
}
