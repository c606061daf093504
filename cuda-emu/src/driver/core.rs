//! The seam to the interpreter: the only file of the driver that names its types.

use super::error::Code;
use crate::{Checks, Fault, Launch, Report};
pub use crate::{Kernel, Memory, Module};

/// One kernel launch, as the driver has checked it.
pub struct Request<'a> {
    /// The kernel's name in its module.
    pub kernel: &'a str,
    /// Blocks of the grid.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub dynamic_shared: u32,
    /// The parameters, laid out as the kernel's declaration says.
    pub params: &'a [u8],
}

/// Counters of a launch, by name.
pub type Counts = Vec<(&'static str, u64)>;

/// Runs a kernel: its counters, or the check that failed as a code and a text.
pub fn launch(module: &Module, memory: &Memory, request: &Request<'_>) -> Result<Counts, (Code, String)> {
    let Request { kernel, grid, block, dynamic_shared, params } = *request;
    let launch = Launch { grid, block, dynamic_shared, params, checks: Checks::default() };
    crate::launch(module, kernel, memory, &launch)
        .map(|counters| counters.items())
        .map_err(|report| (code(&report), report.to_string()))
}

/// What hardware would call a fault. Those that it would not notice are failed launches.
fn code(report: &Report) -> Code {
    match report.fault {
        Fault::OutOfBounds | Fault::UseAfterFree => Code::ILLEGAL_ADDRESS,
        Fault::Misaligned => Code::MISALIGNED_ADDRESS,
        Fault::Trap if report.what.contains("assert") => Code::ASSERT,
        Fault::Launch => Code::INVALID_VALUE,
        _ => Code::LAUNCH_FAILED,
    }
}

/// A module's global variable: its address and bytes.
pub fn global(module: &Module, name: &str) -> Option<(u64, u64)> {
    module
        .globals()
        .iter()
        .find(|global| global.name == name && global.addr != 0)
        .map(|global| (global.addr, global.bytes))
}

/// Reads PTX and places its global variables.
pub fn load(ptx: &str, memory: &Memory) -> Result<Module, String> {
    let mut module = Module::parse(ptx).map_err(|error| error.to_string())?;
    module.try_place(memory).map_err(|error| error.to_string())?;
    Ok(module)
}

/// Frees what `load` placed.
pub fn unload(module: &Module, memory: &Memory) {
    for global in module.globals().iter().filter(|global| global.addr != 0) {
        let _ = memory.free(global.addr);
    }
}

/// Repeats a pattern of 1, 2 or 4 bytes.
pub fn fill(memory: &Memory, addr: u64, pattern: &[u8], count: usize) -> Result<(), String> {
    if let [byte] = *pattern {
        return memory.fill(addr, byte, count as u64).map_err(|error| error.to_string());
    }
    let piece = pattern.repeat(count.min(PIECE / pattern.len()));
    pieces(count * pattern.len(), |at, bytes| {
        memory.write(addr + at as u64, &piece[..bytes]).map_err(|error| error.to_string())
    })
}

/// Copies within the device.
pub fn copy(memory: &Memory, to: u64, from: u64, bytes: usize) -> Result<(), String> {
    memory.copy(to, from, bytes as u64).map_err(|error| error.to_string())
}

/// Bytes moved at once where a copy needs a buffer between: a multiple of every pattern.
const PIECE: usize = 1 << 20;

fn pieces(bytes: usize, mut each: impl FnMut(usize, usize) -> Result<(), String>) -> Result<(), String> {
    (0..bytes).step_by(PIECE).try_for_each(|at| each(at, PIECE.min(bytes - at)))
}
