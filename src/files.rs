//! Writing files so that they are complete or absent. Below every floor but the error type.

use crate::{Error, Result};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// Writes `bytes` to `path` so that it holds either all of them or what it held before: a temporary file in the same
/// folder, fsync, rename, fsync of the folder. The folder must exist.
pub fn write_atomic(path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
    replace(path.as_ref(), |out| out.write_all(bytes))
}

/// [`write_atomic`] for what is written piece by piece.
pub(crate) fn replace(path: &Path, write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<()> {
    /// Keeps two writers of one process apart.
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let Some(name) = path.file_name() else {
        return Err(Error::Usage(format!("{} is not a file name", path.display())));
    };
    let dir = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let id = NEXT.fetch_add(1, Ordering::Relaxed);
    let temp = dir.join(format!(".{}.{}-{id}.tmp", name.to_string_lossy(), std::process::id()));
    let write_temp = || -> std::io::Result<()> {
        let mut out = BufWriter::new(File::create(&temp)?);
        write(&mut out)?;
        out.into_inner().map_err(|e| e.into_error())?.sync_all()?;
        std::fs::rename(&temp, path)
    };
    if let Err(error) = write_temp() {
        // Best effort: the error that matters is the first one.
        let _ = std::fs::remove_file(&temp);
        return Err(Error::io(path)(error));
    }
    if cfg!(unix) {
        File::open(dir).and_then(|d| d.sync_all()).map_err(Error::io(dir))?;
    }
    Ok(())
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
}
