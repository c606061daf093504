//! cuFFT's result codes, and what is said beside them.

use std::io::Write;
use std::sync::LazyLock;

/// What every function answers, before it becomes a `cufftResult`.
pub type Answer<T = ()> = Result<T, Code>;

/// The failures of `cufftResult` that are given here, without their prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Code {
    InvalidPlan = 1,
    InvalidType = 3,
    InvalidValue = 4,
    InternalError = 5,
    ExecFailed = 6,
    SetupFailed = 7,
    InvalidSize = 8,
    NotSupported = 16,
}

impl Code {
    /// This code, with a line on stderr that says why. `CUDA_EMU_QUIET=1` keeps it silent.
    pub fn because(self, why: &str) -> Self {
        static QUIET: LazyLock<bool> =
            LazyLock::new(|| std::env::var_os("CUDA_EMU_QUIET").is_some_and(|v| v == "1"));
        if !*QUIET {
            let _ = std::io::stderr().write_all(format!("cufft-emu: {why}\n").as_bytes());
        }
        self
    }
}
