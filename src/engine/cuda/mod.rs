//! A CUDA device: the driver's context, one compute stream and one for copies, kernels compiled and loaded, launches,
//! transforms, graphs of them.
//!
//! Reached through cudarc. The driver is the machine's own, or `cuda-emu`, which interprets the same PTX on the CPU
//! under checks; a process uses one of the two. Every missing piece is an error with its remedy. Must not know what the
//! kernels compute.

pub mod event;
mod feed;
pub mod fft;
mod graph;
pub mod launch;
mod ledger;
pub mod library;
mod memory;
mod module;
mod pinned;
mod readback;

pub use event::Event;
pub use feed::Feed;
pub use graph::Graph;
pub use launch::Launch;
pub use ledger::Need;
pub use library::Driver;
pub use module::Kernel;
pub use readback::Readback;

use super::jit::Jit;
use crate::{Error, Result};
use cudarc::driver::sys::CUdevice_attribute_enum as Attribute;
use cudarc::driver::{CudaContext, CudaStream, DriverError};
use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a device can do, as its driver says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Properties {
    /// Its name.
    pub name: String,
    /// Its number among the driver's devices.
    pub ordinal: usize,
    /// Compute capability, major and minor.
    pub capability: (u32, u32),
    /// The CUDA version that the driver supports, major and minor.
    pub driver: (u32, u32),
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of memory.
    pub memory: usize,
    /// Most bytes of shared memory that a block may have, when it asks.
    pub shared_limit: u32,
}

impl Properties {
    /// The architecture that kernels are compiled for, as `sm_80`.
    pub fn arch(&self) -> String {
        format!("sm_{}{}", self.capability.0, self.capability.1)
    }
}

/// A CUDA device: open, or one that computes nothing and touches no memory ([`Device::meta`](super::Device::meta)).
pub struct Gpu {
    driver: Driver,
    properties: Properties,
    /// One for a device and those that stand for it.
    ledger: Arc<Mutex<ledger::Ledger>>,
    /// Whether the compute stream is captured: what it is asked for is recorded, not done.
    recording: AtomicBool,
    /// Is every allocation the driver's own, of its exact size? So that the emulator's checks see where a buffer ends and when
    /// its life does.
    exact: bool,
    /// `None`: it computes nothing.
    session: Option<Session>,
}

/// What an open device has of its machine.
struct Session {
    jit: Jit,
    // Dropped in this order: what lives in the context before the context.
    /// Loaded sources: the embedded ones by name, others by all they are.
    modules: Mutex<HashMap<String, Arc<module::Module>>>,
    plans: Mutex<fft::Plans>,
    /// Uploaded once, by name: see [`Gpu::constant`].
    constants: Mutex<HashMap<String, u64>>,
    stream: Arc<CudaStream>,
    /// Brings what the next step needs while the compute stream is at this one.
    copies: Arc<CudaStream>,
    context: Arc<CudaContext>,
    /// Waits after every launch, so that a fault is reported by the kernel that caused it.
    synchronous: bool,
}

impl Gpu {
    /// Opens device `ordinal` of `driver`, with the machine's NVRTC.
    pub fn open(driver: Driver, ordinal: usize) -> Result<Self> {
        library::load(driver)?;
        let version = library::version(driver)?;
        let count = CudaContext::device_count().map_err(said("counting devices"))?;
        if ordinal >= count as usize {
            let detail = format!("there is no device {ordinal}: the driver shows {count}, counted from 0");
            return Err(Error::Usage(format!("CUDA: {detail}; see `nvidia-smi` and CUDA_VISIBLE_DEVICES")));
        }
        let jit = Jit::open_for(version)?;
        let context = CudaContext::new(ordinal).map_err(said("opening the device"))?;
        // Its events order streams that share a buffer; here `Feed` does where there is one.
        // SAFETY: no buffer of cudarc's own is ever made, so none loses its events.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().map_err(said("making a stream"))?;
        let copies = context.new_stream().map_err(said("making a stream"))?;
        let properties = properties(&context, ordinal, version)?;
        if properties.capability < (8, 0) {
            let (major, minor) = properties.capability;
            return Err(Error::cuda(
                &properties.name,
                format!(
                    "has compute capability {major}.{minor}; 8.0 (Ampere) or later is wanted: use --device cpu"
                ),
            ));
        }
        let session = Session {
            jit,
            modules: Mutex::default(),
            plans: Mutex::default(),
            constants: Mutex::default(),
            stream,
            copies,
            context,
            synchronous: std::env::var_os("ASASR_CUDA_SYNC").is_some(),
        };
        let exact = driver == Driver::Emulator;
        Ok(Self { session: Some(session), ..Self::without_session(driver, properties, exact) })
    }

    fn without_session(driver: Driver, properties: Properties, exact: bool) -> Self {
        let (ledger, recording) = (Arc::default(), AtomicBool::new(false));
        Self { driver, properties, ledger, recording, exact, session: None }
    }

    /// The same device, computing nothing. What it is asked to launch is in the ledger of both.
    pub(super) fn meta(&self) -> Self {
        let meta = Self::without_session(self.driver, self.properties.clone(), self.exact);
        Self { ledger: self.ledger.clone(), ..meta }
    }

    /// A GPU that is not here, computing nothing: of the first architecture that there are kernels for, an A100.
    pub(super) fn absent() -> Self {
        let properties = Properties {
            name: "a GPU that is not here".into(),
            ordinal: 0,
            capability: (8, 0),
            driver: (0, 0),
            multiprocessors: 108,
            memory: 0,
            shared_limit: 163 << 10,
        };
        Self::without_session(Driver::Nvidia, properties, false)
    }

    /// Whose device it is.
    pub fn driver(&self) -> Driver {
        self.driver
    }

    /// What it can do.
    pub fn properties(&self) -> &Properties {
        &self.properties
    }

    /// The compiler, and the cache of what it made; `None` on a meta device.
    pub fn jit(&self) -> Option<&Jit> {
        self.session.as_ref().map(|session| &session.jit)
    }

    /// Waits for everything that was asked of the compute stream.
    pub fn synchronize(&self) -> Result<()> {
        self.outside_capture("waiting for the device", "nothing is done before a replay")?;
        let Some(session) = &self.session else { return Ok(()) };
        session.stream.synchronize().map_err(|e| self.error("waiting for the device", e))
    }

    /// What it has of its machine, whose context is that of this thread from here on, as every call of the driver's wants.
    fn bound(&self, doing: &str) -> Result<&Session> {
        let session = self.session.as_ref();
        let session = session.ok_or_else(|| Error::cuda(doing, "a meta device has nothing to do it with"))?;
        session.context.bind_to_thread().map_err(|e| self.error("entering the context", e))?;
        Ok(session)
    }

    /// An error with the driver's word, and the emulator's report where it made one.
    fn error(&self, doing: &str, error: DriverError) -> Error {
        let report = (self.driver == Driver::Emulator).then(library::report).flatten();
        Error::cuda(
            doing,
            format!("{}{}", describe(error), report.map_or(String::new(), |r| format!("\n{r}"))),
        )
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // What the fields free while they are dropped wants the context current on this thread; if it cannot be made
        // so, the device is lost and its memory with it.
        let _ = self.context.bind_to_thread();
        for (_, ptr) in lock(&self.constants).drain() {
            // SAFETY: `constant` allocated it, nobody else frees it, and no launch can come any more.
            let _ = unsafe { cudarc::driver::result::free_async(ptr, self.stream.cu_stream()) };
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these maps hold is whole between any two statements.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn properties(context: &CudaContext, ordinal: usize, driver: (u32, u32)) -> Result<Properties> {
    let attribute = |a| context.attribute(a).map(i32::unsigned_abs).map_err(said("asking the device"));
    Ok(Properties {
        name: context.name().map_err(said("asking the device"))?,
        ordinal,
        capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        driver,
        multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        memory: context.total_mem().map_err(said("asking the device"))?,
        shared_limit: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
    })
}

/// The driver's name for an error, and what it says of it.
fn describe(error: DriverError) -> String {
    let text =
        |t: Result<&std::ffi::CStr, DriverError>| t.map_or("?".into(), |t| t.to_string_lossy().into_owned());
    format!("{} ({})", text(error.error_string()), text(error.error_name()))
}

fn said(doing: &str) -> impl Fn(DriverError) -> Error + '_ {
    move |e| Error::cuda(doing, describe(e))
}
