//! What copies beside the compute stream need: pinned host memory, and fences between streams.

use super::Gpu;
use crate::Result;
use cudarc::driver::{CudaContext, CudaStream, result, sys};
use std::ptr::NonNull;
use std::sync::Arc;

/// Host memory that the device copies from and to by itself.
pub(super) struct Pinned {
    ptr: NonNull<u8>,
    bytes: usize,
    context: Arc<CudaContext>,
}

// SAFETY: plain memory, written through `&mut` alone.
unsafe impl Send for Pinned {}

impl Pinned {
    pub fn new(gpu: &Gpu, bytes: usize) -> Result<Self> {
        let context = gpu.bound("pinning host memory")?.context.clone();
        // SAFETY: at least a byte; the memory is initialised below.
        let ptr = unsafe { result::malloc_host(bytes.max(1), 0) }
            .map_err(|e| gpu.error(&format!("pinning {bytes} bytes of host memory"), e))?;
        let ptr = NonNull::new(ptr.cast::<u8>()).expect("the driver gave memory");
        // SAFETY: fresh, and of this size.
        unsafe { ptr.write_bytes(0, bytes) };
        Ok(Self { ptr, bytes, context })
    }

    pub fn all(&self) -> &[u8] {
        // SAFETY: initialised above; the holder waits for the device's copies before it looks.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.bytes) }
    }

    pub fn all_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let _ = self.context.bind_to_thread();
        // SAFETY: ours alone; the holder waited for the device's copies.
        let _ = unsafe { result::free_host(self.ptr.as_ptr().cast()) };
    }
}

/// A point in a stream that another stream, or the host, waits for. Before it is first set nobody waits.
pub(super) struct Fence {
    event: sys::CUevent,
    context: Arc<CudaContext>,
}

// SAFETY: an event may be used from every thread whose context is its own.
unsafe impl Send for Fence {}

impl Fence {
    pub fn new(gpu: &Gpu) -> Result<Self> {
        let context = gpu.bound("making an event")?.context.clone();
        let event = result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)
            .map_err(|e| gpu.error("making an event", e))?;
        Ok(Self { event, context })
    }

    /// Stands where `stream` is now.
    pub fn set(&self, gpu: &Gpu, stream: &CudaStream) -> Result<()> {
        gpu.bound("recording an event")?;
        // SAFETY: event and stream are alive and of one context.
        unsafe { result::event::record(self.event, stream.cu_stream()) }
            .map_err(|e| gpu.error("recording an event", e))
    }

    /// What `stream` is asked for from now on waits for it.
    pub fn hold(&self, gpu: &Gpu, stream: &CudaStream) -> Result<()> {
        gpu.bound("waiting for an event")?;
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: as above.
        unsafe { result::stream::wait_event(stream.cu_stream(), self.event, flags) }
            .map_err(|e| gpu.error("waiting for an event", e))
    }

    /// The host waits for it.
    pub fn wait(&self, gpu: &Gpu) -> Result<()> {
        gpu.bound("waiting for an event")?;
        // SAFETY: the event is alive.
        unsafe { result::event::synchronize(self.event) }.map_err(|e| gpu.error("waiting for an event", e))
    }
}

impl Drop for Fence {
    fn drop(&mut self) {
        let _ = self.context.bind_to_thread();
        // SAFETY: ours alone.
        let _ = unsafe { result::event::destroy(self.event) };
    }
}
