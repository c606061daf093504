//! Points in the device's time.

use super::Gpu;
use crate::Result;
use cudarc::driver::{result, sys};

/// A point on the compute stream.
pub struct Event<'a> {
    gpu: &'a Gpu,
    event: sys::CUevent,
}

impl Gpu {
    /// Marks where the stream is now.
    pub fn mark(&self) -> Result<Event<'_>> {
        self.outside_capture("marking a time", "time replays")?;
        let session = self.bound("marking a time")?;
        let event = result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT)
            .map_err(|e| self.error("making an event", e))?;
        let event = Event { gpu: self, event };
        // SAFETY: event and stream are alive and of this context.
        unsafe { result::event::record(event.event, session.stream.cu_stream()) }
            .map_err(|e| self.error("recording an event", e))?;
        Ok(event)
    }
}

impl Event<'_> {
    /// Seconds of the device's time from `earlier` to this; waits for this.
    pub fn seconds_since(&self, earlier: &Event<'_>) -> Result<f64> {
        // SAFETY: both events are alive and were recorded.
        let milliseconds = unsafe {
            result::event::synchronize(self.event)
                .and_then(|()| result::event::elapsed(earlier.event, self.event))
        };
        Ok(f64::from(milliseconds.map_err(|e| self.gpu.error("reading an event", e))?) / 1e3)
    }
}

impl Drop for Event<'_> {
    fn drop(&mut self) {
        let _ = self.gpu.bound("dropping an event");
        // SAFETY: ours alone; the driver waits with its end where it is still to come.
        let _ = unsafe { result::event::destroy(self.event) };
    }
}
