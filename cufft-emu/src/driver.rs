//! The driver that the process has open. Nothing is known of it but its public functions.

use std::ffi::{c_int, c_void};
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_NOW, Symbol};

use crate::error::{Answer, Code};

/// glibc's flag: find a library that is open already, open none.
const RTLD_NOLOAD: c_int = 4;
/// The SONAMEs that a driver has: an emulator's, and the real one's.
const NAMES: [&str; 2] = ["libcuda.so", "libcuda.so.1"];
/// `CU_STREAM_CAPTURE_STATUS_ACTIVE`.
const ACTIVE: c_int = 1;

/// A stream's handle.
pub type Stream = usize;
/// A host function, as `cuLaunchHostFunc` takes it.
pub type HostFn = unsafe extern "C" fn(*mut c_void);

/// The functions that are used.
pub struct Driver {
    to_host: unsafe extern "C" fn(*mut c_void, u64, usize, Stream) -> c_int,
    to_device: unsafe extern "C" fn(u64, *const c_void, usize, Stream) -> c_int,
    synchronize: unsafe extern "C" fn(Stream) -> c_int,
    is_capturing: unsafe extern "C" fn(Stream, *mut c_int) -> c_int,
    host_function: unsafe extern "C" fn(Stream, HostFn, *mut c_void) -> c_int,
    /// Keeps the functions above where they are.
    _library: Library,
}

/// The driver, or why there is none.
pub fn driver() -> Answer<&'static Driver> {
    static DRIVER: OnceLock<Driver> = OnceLock::new();
    if let Some(driver) = DRIVER.get() {
        return Ok(driver);
    }
    let none = || Code::SetupFailed.because(&format!("no driver is open: none of {}", NAMES.join(", ")));
    let driver = open().ok_or_else(none)?;
    Ok(DRIVER.get_or_init(|| driver))
}

fn open() -> Option<Driver> {
    // SAFETY: the flag finds a library that is open already, so no initialiser runs.
    let find = |name: &&str| unsafe { Library::open(Some(*name), RTLD_NOW | RTLD_NOLOAD) }.ok();
    let library = NAMES.iter().find_map(find)?;
    /// A function of the library, of the type that the driver's header gives it.
    fn function<T: Copy>(library: &Library, name: &str) -> Option<T> {
        // SAFETY: every `T` below is the function's type in the driver's header.
        let symbol: Option<Symbol<T>> = unsafe { library.get(name.as_bytes()) }.ok();
        symbol.map(|symbol| *symbol)
    }
    Some(Driver {
        to_host: function(&library, "cuMemcpyDtoHAsync_v2")?,
        to_device: function(&library, "cuMemcpyHtoDAsync_v2")?,
        synchronize: function(&library, "cuStreamSynchronize")?,
        is_capturing: function(&library, "cuStreamIsCapturing")?,
        host_function: function(&library, "cuLaunchHostFunc")?,
        _library: library,
    })
}

fn check(code: c_int, what: &str) -> Answer {
    match code {
        0 => Ok(()),
        _ => Err(Code::ExecFailed.because(&format!("{what} failed: the driver answers {code}"))),
    }
}

impl Driver {
    /// Copies device memory to the values, in the stream's order.
    ///
    /// # Safety
    /// `to` must have room for `count` values until the stream is done.
    pub unsafe fn read(&self, to: *mut f32, from: u64, count: usize, stream: Stream) -> Answer {
        // SAFETY: the caller's promise; whether `from` is device memory the driver tells.
        check(
            unsafe { (self.to_host)(to.cast(), from, count * size_of::<f32>(), stream) },
            "reading the input",
        )
    }

    /// Copies the values to device memory, in the stream's order.
    ///
    /// # Safety
    /// `from` must hold `count` values until the stream is done.
    pub unsafe fn write(&self, to: u64, from: *const f32, count: usize, stream: Stream) -> Answer {
        // SAFETY: the caller's promise; whether `to` is device memory the driver tells.
        check(
            unsafe { (self.to_device)(to, from.cast(), count * size_of::<f32>(), stream) },
            "writing the output",
        )
    }

    /// Waits for the stream.
    pub fn synchronize(&self, stream: Stream) -> Answer {
        // SAFETY: it takes a handle, which the driver checks.
        check(unsafe { (self.synchronize)(stream) }, "waiting for the stream")
    }

    /// Whether the stream is captured.
    pub fn is_capturing(&self, stream: Stream) -> Answer<bool> {
        let mut status = 0;
        // SAFETY: the status is ours; the handle is checked by the driver.
        check(unsafe { (self.is_capturing)(stream, &mut status) }, "asking for the stream's capture")?;
        Ok(status == ACTIVE)
    }

    /// Runs a host function in the stream's order.
    ///
    /// # Safety
    /// `run` may be called with `data` whenever the stream, or a graph captured from it, comes to it.
    pub unsafe fn host_function(&self, stream: Stream, run: HostFn, data: *mut c_void) -> Answer {
        // SAFETY: the caller's promise.
        check(unsafe { (self.host_function)(stream, run, data) }, "queueing the transform")
    }
}
