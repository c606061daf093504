//! What can go wrong: PTX that is not understood, and kernels that misbehave.

use std::fmt;

/// PTX that could not be read, or a request the device refuses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// PTX that is malformed or that this emulator does not know.
    #[error("PTX line {line}: {what}: `{text}`")]
    Ptx {
        /// Line of the PTX text, from 1.
        line: u32,
        /// What was wrong.
        what: String,
        /// The offending text.
        text: String,
    },
    /// An address that is not the start of a live allocation, or a range outside it.
    #[error("{what}: address {addr:#x}, {bytes} bytes{near}")]
    Memory {
        /// What was attempted.
        what: &'static str,
        /// The address given.
        addr: u64,
        /// The bytes asked for.
        bytes: u64,
        /// The allocation nearby, in words, or nothing.
        near: String,
    },
}

impl Error {
    pub(crate) fn ptx(line: u32, what: impl Into<String>, text: impl Into<String>) -> Self {
        Self::Ptx { line, what: what.into(), text: text.into() }
    }
}

/// The kind of fault a launch stopped on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The launch itself was impossible: unknown kernel, block too large, too few parameter bytes.
    Launch,
    /// An access outside every live allocation, or outside shared, local or parameter memory.
    OutOfBounds,
    /// An access to memory that was freed.
    UseAfterFree,
    /// An address that is not a multiple of the access size.
    Misaligned,
    /// A read of bytes nobody wrote.
    Uninitialised,
    /// Two warps touched one shared cell, one of them writing, with no barrier between.
    SharedRace,
    /// Two blocks touched one global cell, one of them writing, in one launch.
    GlobalRace,
    /// A barrier, or a warp-wide instruction, that not all its threads can reach.
    Barrier,
    /// Shared memory read or written while a `cp.async` into it was still in flight.
    AsyncCopy,
    /// `trap`, or a failed device-side `assert`.
    Trap,
    /// A kernel that ran past the instruction limit.
    Hang,
}

/// Where and how a launch failed.
#[derive(Debug, Clone)]
pub struct Report {
    /// The kind of fault.
    pub fault: Fault,
    /// What happened, with its numbers.
    pub what: String,
    /// The kernel.
    pub kernel: String,
    /// Line of the PTX text, 0 if none applies.
    pub ptx_line: u32,
    /// The PTX statement.
    pub ptx: String,
    /// Source file and line, where the PTX carries `.loc`.
    pub source: Option<(String, u32)>,
    /// Source file and line from which the function that this is in was called, where it was inlined.
    pub caller: Option<(String, u32)>,
    /// The thread index.
    pub thread: [u32; 3],
    /// The block index.
    pub block: [u32; 3],
    /// The address, where one is involved.
    pub address: Option<u64>,
    /// The allocation at or next to the address, in words.
    pub allocation: Option<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} in kernel {}: {}", self.fault, self.kernel, self.what)?;
        if let Some(a) = self.address {
            write!(f, "; address {a:#x}")?;
        }
        if let Some(a) = &self.allocation {
            write!(f, " ({a})")?;
        }
        let ([tx, ty, tz], [bx, by, bz]) = (self.thread, self.block);
        if self.ptx_line != 0 {
            write!(f, "; thread ({tx},{ty},{tz}) of block ({bx},{by},{bz})")?;
            // Its own semicolon is the one that what follows wants.
            write!(f, "; PTX line {}: {}", self.ptx_line, self.ptx.trim_end_matches(';'))?;
        }
        if let Some((file, line)) = &self.source {
            write!(f, "; {file}:{line}")?;
        }
        if let Some((file, line)) = &self.caller {
            write!(f, ", called from {file}:{line}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Report {}
