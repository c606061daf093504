//! The one error type of the library.
//!
//! Every message names the thing, the numbers and, where there is one, the remedy; a caller can print it as it is.

use std::path::{Path, PathBuf};

/// What can go wrong, anywhere in the engine.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Shapes or fields handed to an op do not fit each other.
    #[error("{op}: {detail}")]
    Shape {
        /// The op that refused.
        op: &'static str,
        /// What was given, what was wanted.
        detail: String,
    },
    /// The caller asked for something that does not exist or contradicts itself (exit code 2).
    #[error("{0}")]
    Usage(String),
    /// The operating system refused.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file or folder concerned.
        path: PathBuf,
        /// The system's own word.
        source: std::io::Error,
    },
    /// A file is there but is not what it should be.
    #[error("{path}: {detail}", path = path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what was expected.
        detail: String,
    },
    /// There is not enough room to write what has to be written.
    #[error("{path}: {detail}", path = path.display())]
    Disk {
        /// Where it was to be written.
        path: PathBuf,
        /// What it needs, what there is, what to do.
        detail: String,
    },
    /// NVRTC, which compiles the CUDA kernels, is missing or does not do as it should.
    #[error("NVRTC, {path}: {detail}", path = path.display())]
    Nvrtc {
        /// The library, or where it was looked for.
        path: PathBuf,
        /// What is wrong, and what to do.
        detail: String,
    },
    /// A CUDA source does not compile.
    #[error("{name} does not compile for {arch}: {log}")]
    Compile {
        /// The source.
        name: String,
        /// The architecture it was compiled for.
        arch: String,
        /// What the compiler said.
        log: String,
    },
    /// The CUDA driver, a device, or something asked of them.
    #[error("CUDA, {doing}: {detail}")]
    Cuda {
        /// The thing, or what was being done.
        doing: String,
        /// What the driver says, the numbers, and what to do.
        detail: String,
    },
    /// A device has no memory left.
    #[error("out of memory on {device}: {detail}")]
    Memory {
        /// The device.
        device: String,
        /// What was wanted, what there is, what to do.
        detail: String,
    },
    /// A loss, gradient or weight stopped being a number.
    #[error(
        "stage {stage}, step {step}: {tensor} is not finite ({value}); lower {stage}.lr or look at the data of this step. {saved}"
    )]
    NonFinite {
        /// Training stage.
        stage: String,
        /// Optimizer step, counted from 0.
        step: usize,
        /// The first offending tensor.
        tensor: String,
        /// The value met.
        value: f32,
        /// What was kept.
        saved: String,
    },
    /// Ctrl-C: the run stopped between two steps.
    #[error("interrupted at stage {stage}, step {step}; {saved}")]
    Interrupted {
        /// Training stage.
        stage: String,
        /// Optimizer step, counted from 0.
        step: usize,
        /// What was kept.
        saved: String,
    },
}

/// The library's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A shape error of `op`.
    pub fn shape(op: &'static str, detail: impl Into<String>) -> Self {
        Self::Shape { op, detail: detail.into() }
    }
    /// An I/O error at `path`; made for `map_err(Error::io(path))`.
    pub fn io(path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::Io { path, source }
    }
    /// Something asked of CUDA.
    pub fn cuda(doing: &str, detail: impl Into<String>) -> Self {
        Self::Cuda { doing: doing.into(), detail: detail.into() }
    }
    /// A malformed file.
    pub fn format(path: impl AsRef<Path>, detail: impl Into<String>) -> Self {
        Self::Format { path: path.as_ref().to_path_buf(), detail: detail.into() }
    }
    /// Process exit code: 2 for a usage error, 130 for an interrupt, 1 otherwise.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Interrupted { .. } => 130,
            _ => 1,
        }
    }
}

/// "; did you mean `x`?" for the candidate nearest to `name`, or nothing when none is near.
pub(crate) fn did_you_mean<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    candidates
        .into_iter()
        .map(|c| (strsim::damerau_levenshtein(name, c), c))
        .min()
        .filter(|&(distance, _)| distance <= (name.len() / 3).max(2))
        .map(|(_, c)| format!("; did you mean `{c}`?"))
        .unwrap_or_default()
}
