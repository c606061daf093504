//! Which driver this process uses, and where it and its companions lie.
//!
//! cudarc looks for `libcuda.so` by name, once per process. The emulator's library has that SONAME, so opening its file
//! first makes it what cudarc finds; its file is called otherwise, because cargo and others put build folders on the
//! loader's path, and a file `libcuda.so` there would take the place of a real driver.

use super::said;
use crate::engine::nvrtc::loader_says;
use crate::{Error, Result};
use cudarc::driver::sys;
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use std::ffi::c_char;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Whose CUDA this process uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// NVIDIA's.
    Nvidia,
    /// `cuda-emu`: the CPU, interpreting PTX under checks.
    Emulator,
}

const DRIVER_FILE: &str = "libcuda_emu.so";
const FFT_FILE: &str = "libcufft_emu.so";
/// Where the emulator's libraries are, if not beside the program.
const FOLDER: &str = "ASASR_CUDA_EMU";

/// Opens `driver`'s library. The first call decides for the whole process.
pub fn load(driver: Driver) -> Result<()> {
    static CHOSEN: Mutex<Option<Driver>> = Mutex::new(None);
    let mut chosen = CHOSEN.lock().unwrap_or_else(PoisonError::into_inner);
    match *chosen {
        Some(other) if other != driver => {
            let detail =
                "this process already uses the other one; a process has one CUDA driver, start another";
            return Err(Error::Usage(format!("CUDA, {driver:?}: {detail}")));
        }
        Some(_) => return Ok(()),
        None => {}
    }
    if driver == Driver::Emulator {
        open(DRIVER_FILE)?;
    }
    // SAFETY: the initialisers of a CUDA driver have no preconditions.
    if !unsafe { sys::is_culib_present() } {
        return Err(no_driver());
    }
    *chosen = Some(driver);
    Ok(())
}

/// Where a driver is and what it supports, in words; does not decide which one this process uses where it is the
/// machine's own.
pub fn find_driver(driver: Driver) -> Result<String> {
    match driver {
        Driver::Emulator => locate(DRIVER_FILE).map(|path| path.display().to_string()),
        Driver::Nvidia => {
            let library = ["libcuda.so.1", "libcuda.so"].iter().find_map(|name| {
                // SAFETY: the initialisers of a CUDA driver have no preconditions.
                unsafe { Library::open(Some(*name), RTLD_NOW) }.ok()
            });
            let library = library.ok_or_else(no_driver)?;
            let mut version = 0;
            // SAFETY: the function's type is that of cuda.h; a pointer to an integer that lives through the call.
            let code = unsafe {
                let ask = library.get::<unsafe extern "C" fn(*mut i32) -> u32>(b"cuDriverGetVersion");
                ask.map_err(|e| Error::cuda("the driver", e.to_string()))?(&mut version)
            };
            if code != 0 {
                return Err(Error::cuda("the driver", format!("does not say its version (code {code})")));
            }
            Ok(format!("supports CUDA {}.{}", version / 1000, version % 1000 / 10))
        }
    }
}

fn no_driver() -> Error {
    Error::cuda(
        "the driver",
        "there is no libcuda.so on this machine: install the NVIDIA driver (570 or later), or use --device cpu, or \
         --device emu to interpret the kernels",
    )
}

/// Makes cuFFT available: the machine's own, or the emulator's.
pub(super) fn load_fft(driver: Driver) -> Result<()> {
    if driver == Driver::Emulator {
        open(FFT_FILE)?;
    }
    // SAFETY: the initialisers of cuFFT have no preconditions.
    if unsafe { cudarc::cufft::sys::is_culib_present() } {
        return Ok(());
    }
    Err(Error::cuda(
        "cuFFT",
        "there is no libcufft.so on this machine: install it with `pip install nvidia-cufft` and put its folder on \
         LD_LIBRARY_PATH, or use planes of at most 64×64, which need none",
    ))
}

/// The CUDA version that the driver supports, major and minor.
pub(super) fn version(driver: Driver) -> Result<(u32, u32)> {
    // A driver so old that it lacks a function makes cudarc panic; this one is in all.
    let ask = || {
        cudarc::driver::result::init()?;
        let mut version = 0;
        // SAFETY: a pointer to an integer that lives through the call.
        unsafe { sys::cuDriverGetVersion(&mut version) }.result().map(|()| version)
    };
    let version = std::panic::catch_unwind(ask)
        .map_err(|_| Error::cuda("the driver", format!("{driver:?}: lacks functions of CUDA 12; update it")))?
        .map_err(said("starting the driver"))?
        .unsigned_abs();
    Ok((version / 1000, version % 1000 / 10))
}

/// The emulator's library `file`.
fn locate(file: &str) -> Result<PathBuf> {
    find(file).ok_or_else(|| {
        Error::Usage(format!(
            "--device emu: there is no {file} beside this program; build it with `cargo build --release`, or name its \
             folder in {FOLDER}"
        ))
    })
}

/// Opens one of the emulator's libraries for the rest of the process.
fn open(file: &str) -> Result<()> {
    let path = locate(file)?;
    // SAFETY: the initialisers of our own library have no preconditions.
    let library = unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) };
    let library = library.map_err(|e| Error::cuda(&path.display().to_string(), loader_says(&e)))?;
    // Its functions are used from here on by whoever asks the loader for them.
    std::mem::forget(library);
    Ok(())
}

/// Beside the program, where cargo puts a build, a test's or a benchmark's; or in the folder that is named.
fn find(file: &str) -> Option<PathBuf> {
    if let Some(named) = std::env::var_os(FOLDER).filter(|v| !v.is_empty()) {
        return Some(Path::new(&named).join(file)).filter(|f| f.is_file());
    }
    let program = std::env::current_exe().ok()?;
    let beside = program.parent()?;
    let above = beside.parent();
    let folders = [Some(beside.to_owned()), Some(beside.join("deps")), above.map(Path::to_owned)];
    let above = above.map(|a| a.join("deps"));
    folders.into_iter().chain([above]).flatten().map(|folder| folder.join(file)).find(|f| f.is_file())
}

/// What the emulator says of the last check that failed, or call that it refused.
pub fn report() -> Option<String> {
    text("cudaEmuLastReport")
}

/// What the emulator counted since it was last asked to forget, as JSON: an object of counters for each kernel.
pub fn counters() -> Option<String> {
    text("cudaEmuCounters")
}

/// Makes the emulator forget its counters, its report, and the failed check that its context is stuck with.
pub fn reset_counters() {
    // SAFETY: `cudaEmuReset` takes nothing and gives nothing.
    if let Some(reset) = unsafe { function::<unsafe extern "C" fn()>("cudaEmuReset") } {
        // SAFETY: as above.
        unsafe { reset() };
    }
}

/// A text that the emulator writes into a buffer it is given, answering the bytes it wants.
fn text(name: &str) -> Option<String> {
    type Write = unsafe extern "C" fn(*mut c_char, usize) -> usize;
    // SAFETY: all of the emulator's texts have this type.
    let write = unsafe { function::<Write>(name) }?;
    // SAFETY: a null buffer of no bytes is only measured.
    let bytes = unsafe { write(std::ptr::null_mut(), 0) };
    let mut buffer = vec![0u8; bytes + 1];
    // SAFETY: the buffer has the bytes it is said to have.
    unsafe { write(buffer.as_mut_ptr().cast(), buffer.len()) };
    buffer.truncate(buffer.iter().position(|&b| b == 0)?);
    String::from_utf8(buffer).ok().filter(|t| !t.is_empty())
}

/// A function that only the emulator has.
///
/// # Safety
/// `F` must be the function's type.
unsafe fn function<F: Copy>(name: &str) -> Option<F> {
    let library = Library::this();
    // SAFETY: the caller's promise; the library is never closed.
    unsafe { library.get::<F>(name.as_bytes()) }.ok().map(|f| *f)
}
