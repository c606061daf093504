//! Bytes on the device: what the arena draws on, copies, constants.

use super::graph::RUN_ONCE;
use super::{Gpu, Session, lock};
use crate::engine::Tensor;
use crate::engine::arena::META;
use crate::{Error, Result};
use cudarc::driver::{CudaStream, result, sys};

impl Gpu {
    /// The stream that memory is asked of. What a captured stream is asked for is the graph's own, and cannot be freed
    /// outside it; since the compute stream was idle when the capture began, any other will do.
    fn memory_stream<'s>(&self, session: &'s Session) -> &'s CudaStream {
        if self.recording() { &session.copies } else { &session.stream }
    }

    /// Fresh memory, or `None` when the device has none left.
    pub(in crate::engine) fn allocate(&self, bytes: usize) -> Result<Option<u64>> {
        let session = self.bound("allocating memory")?;
        // SAFETY: the context is bound and the stream is alive.
        match unsafe { result::malloc_async(self.memory_stream(session).cu_stream(), bytes) } {
            Ok(ptr) if self.recording() => {
                // From here on it is any stream's.
                session.copies.synchronize().map_err(|e| self.error("allocating memory", e))?;
                Ok(Some(ptr))
            }
            Ok(ptr) => Ok(Some(ptr)),
            Err(e) if e.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => Ok(None),
            Err(e) => Err(self.error("allocating memory", e)),
        }
    }

    /// Gives memory back, once the stream has come so far.
    pub(in crate::engine) fn free(&self, ptr: u64) {
        let Some(session) = &self.session else { return };
        // Where the context is lost to a fault the memory is, too; that fault has been reported.
        let _ = session.context.bind_to_thread();
        // SAFETY: the caller got it from `allocate` and uses it no more.
        let _ = unsafe { result::free_async(ptr, self.memory_stream(session).cu_stream()) };
    }

    /// Bytes free and bytes in all, as the driver says.
    pub fn memory(&self) -> Result<(usize, usize)> {
        self.bound("asking for free memory")?;
        result::mem_get_info().map_err(|e| self.error("asking for free memory", e))
    }

    /// Whether every allocation is the driver's own, of its exact size.
    pub(in crate::engine) fn exact(&self) -> bool {
        self.exact
    }

    /// Sets `bytes` bytes to `value`.
    ///
    /// # Safety
    /// The range must lie inside an allocation nobody else writes or reads unordered with the stream.
    pub(in crate::engine) unsafe fn fill(&self, ptr: u64, value: u8, bytes: usize) -> Result<()> {
        if bytes == 0 || self.session.is_none() {
            return Ok(());
        }
        let stream = &self.bound("filling memory")?.stream;
        // SAFETY: the caller's promise.
        unsafe { result::memset_d8_async(ptr, value, bytes, stream.cu_stream()) }
            .map_err(|e| self.error("filling memory", e))
    }

    /// Sets `count` words to `value`.
    ///
    /// # Safety
    /// As for [`Gpu::fill`].
    pub(in crate::engine) unsafe fn fill_words(&self, ptr: u64, value: u32, count: usize) -> Result<()> {
        if count == 0 || self.session.is_none() {
            return Ok(());
        }
        let stream = &self.bound("filling memory")?.stream;
        // SAFETY: the caller's promise.
        unsafe { sys::cuMemsetD32Async(ptr, value, count, stream.cu_stream()) }
            .result()
            .map_err(|e| self.error("filling memory", e))
    }

    /// Copies to the device. Returns when `data` may change again.
    ///
    /// # Safety
    /// As for [`Gpu::fill`].
    pub(in crate::engine) unsafe fn upload(&self, ptr: u64, data: &[u8]) -> Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        self.outside_capture(
            &format!("copying {} bytes to the device", data.len()),
            "a replay would read the host's memory again; upload before, or feed it (`Feed`)",
        )?;
        if self.session.is_none() {
            return Ok(());
        }
        let stream = &self.bound("copying to the device")?.stream;
        // SAFETY: the caller's promise; pageable memory is staged by the driver before the call returns.
        unsafe { result::memcpy_htod_async(ptr, data, stream.cu_stream()) }
            .map_err(|e| self.error("copying to the device", e))
    }

    /// Copies from the device, after everything that was asked of it.
    ///
    /// # Safety
    /// The range must lie inside an allocation.
    pub(in crate::engine) unsafe fn download(&self, ptr: u64, out: &mut [u8]) -> Result<()> {
        if out.is_empty() {
            return Ok(());
        }
        self.outside_capture(
            &format!("copying {} bytes from the device", out.len()),
            "its work is not done yet; read after a replay, or later (`Readback`)",
        )?;
        if self.session.is_none() {
            return Ok(());
        }
        let stream = &self.bound("copying from the device")?.stream;
        // SAFETY: the caller's promise; `out` lives until the wait below is over.
        unsafe { result::memcpy_dtoh_async(out, ptr, stream.cu_stream()) }
            .map_err(|e| self.error("copying from the device", e))?;
        self.synchronize()
    }

    /// Copies within the device.
    ///
    /// # Safety
    /// Both ranges must lie inside allocations and not overlap; else as for [`Gpu::fill`].
    pub(in crate::engine) unsafe fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        if bytes == 0 || self.session.is_none() {
            return Ok(());
        }
        let stream = &self.bound("copying on the device")?.stream;
        // SAFETY: the caller's promise.
        unsafe { result::memcpy_dtod_async(to, from, bytes, stream.cu_stream()) }
            .map_err(|e| self.error("copying on the device", e))
    }

    /// The address of what `make` gives, uploaded when `name` is first asked for and kept as long as the device: for small
    /// things that repeat (a metric's weights, which sample reads which row). The name says all that they depend on.
    pub(crate) fn constant<T: bytemuck::NoUninit>(
        &self,
        name: String,
        make: impl FnOnce() -> Vec<T>,
    ) -> Result<u64> {
        // Nobody looks where a meta device's are.
        let Some(session) = &self.session else { return Ok(META as u64) };
        let mut constants = lock(&session.constants);
        if let Some(&ptr) = constants.get(&name) {
            return Ok(ptr);
        }
        self.outside_capture(&format!("uploading the constant `{name}`"), RUN_ONCE)?;
        let values = make();
        let bytes = bytemuck::cast_slice::<T, u8>(&values);
        let ptr = self.allocate(bytes.len().max(1))?.ok_or_else(|| {
            Error::cuda(&name, format!("no memory is left on the device for {} bytes", bytes.len()))
        })?;
        // SAFETY: fresh, and of this size.
        unsafe { self.upload(ptr, bytes) }?;
        constants.insert(name, ptr);
        Ok(ptr)
    }

    /// The address of a tensor that must be on this device, for a structure of addresses.
    pub(crate) fn address(&self, t: &Tensor) -> Result<u64> {
        if t.device().gpu().is_some_and(|gpu| std::ptr::eq(gpu, self)) {
            return Ok(t.address());
        }
        Err(Error::cuda("a launch", format!("{t:?} is not on {}", self.properties.name)))
    }
}
