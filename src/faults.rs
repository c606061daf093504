//! Faults on demand: the process is killed, or the disk is full, at a chosen point of its writing.
//!
//! Only with the feature `faults`, for `cargo xtask soak` and the tests of bad weather; without it these calls are
//! nothing. `ASASR_KILL=n` kills the process, as `kill -9` would, at its n-th point (from 1); `ASASR_DISK=bytes` makes
//! every write after that many bytes fail as on a full disk.

#[cfg(feature = "faults")]
mod on {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicI64, Ordering};

    fn number(name: &str) -> AtomicI64 {
        AtomicI64::new(std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(i64::MAX))
    }
    static POINTS_LEFT: LazyLock<AtomicI64> = LazyLock::new(|| number("ASASR_KILL"));
    static BYTES_LEFT: LazyLock<AtomicI64> = LazyLock::new(|| number("ASASR_DISK"));

    /// A moment at which being killed is worth a test.
    pub fn point() {
        if POINTS_LEFT.fetch_sub(1, Ordering::Relaxed) == 1 {
            let myself = rustix::process::getpid();
            let _ = rustix::process::kill_process(myself, rustix::process::Signal::KILL);
        }
    }

    /// `bytes` are about to be written.
    pub fn write(bytes: usize) -> std::io::Result<()> {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        let left = BYTES_LEFT.load(Ordering::Relaxed);
        if left < bytes {
            return Err(rustix::io::Errno::NOSPC.into());
        }
        BYTES_LEFT.store(left - bytes, Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(not(feature = "faults"))]
mod on {
    #[inline(always)]
    pub fn point() {}
    #[inline(always)]
    pub fn write(_: usize) -> std::io::Result<()> {
        Ok(())
    }
}

pub use on::{point, write};
