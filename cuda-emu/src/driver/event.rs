//! Events: a moment in a stream, by the host's clock.

use std::ffi::c_uint;

use super::abi::{Out, driver_api};
use super::error::{Answer, Code};
use super::state::{self, Event, Handle};
use super::work::{self, Op};

/// The flag of an event that keeps no time.
const DISABLE_TIMING: c_uint = 2;
/// All flags that an event may have.
const FLAGS: c_uint = 7;

fn record(event: Handle, stream: Handle) -> Answer {
    let mut state = state::ready()?;
    let ctx = state.healthy()?;
    let own = state.stream(ctx, stream)?;
    state.events.get(&event).filter(|event| event.ctx == ctx).ok_or(Code::INVALID_HANDLE)?;
    if state.mark(own, event)? {
        return Ok(());
    }
    drop(state);
    work::submit(stream, Op::Record { event })
}

/// Whether an event has happened: always, unless it belongs to a capture.
fn settled(event: Handle) -> Answer {
    let mut state = state::ready()?;
    let event = state.events.get(&event).ok_or(Code::INVALID_HANDLE)?;
    let (ctx, captured) = (event.ctx, event.captured.as_ref().map(|captured| captured.0));
    if let Some(capture) = captured {
        return Err(state.invalidate(capture, Code::CAPTURED_EVENT));
    }
    state.sticky(ctx)
}

fn elapsed(milliseconds: Out<f32>, start: Handle, end: Handle) -> Answer {
    let state = state::ready()?;
    let at = |event| {
        let event: &Event = state.events.get(&event).ok_or(Code::INVALID_HANDLE)?;
        state.sticky(event.ctx)?;
        event.at.filter(|_| event.flags & DISABLE_TIMING == 0).ok_or(Code::INVALID_HANDLE)
    };
    let (start, end) = (at(start)?, at(end)?);
    let seconds = |duration: std::time::Duration| (duration.as_secs_f64() * 1e3) as f32;
    milliseconds.set(match end.checked_duration_since(start) {
        Some(after) => seconds(after),
        None => -seconds(start - end),
    })
}

driver_api! {
    /// Creates an event.
    fn cuEventCreate(out: Out<Handle>, flags: c_uint) {
        let mut state = state::ready()?;
        let ctx = state.healthy()?;
        if flags & !FLAGS != 0 {
            return Err(Code::INVALID_VALUE);
        }
        let handle = state.handle();
        state.events.insert(handle, Event { ctx, flags, at: None, captured: None });
        out.set(handle)
    }

    /// Destroys an event.
    fn cuEventDestroy_v2(event: Handle) {
        let mut state = state::ready()?;
        let event = state.events.remove(&event).ok_or(Code::INVALID_HANDLE)?;
        state.sticky(event.ctx)
    }

    /// Records an event in a stream.
    fn cuEventRecord(event: Handle, stream: Handle) {
        record(event, stream)
    }

    /// Records an event in a stream; with the external flag, as a node of a captured graph.
    fn cuEventRecordWithFlags(event: Handle, stream: Handle, flags: c_uint) {
        match flags {
            0 => record(event, stream),
            1 => work::submit(stream, Op::Record { event }),
            _ => Err(Code::INVALID_VALUE),
        }
    }

    /// Whether an event has happened.
    fn cuEventQuery(event: Handle) {
        settled(event)
    }

    /// Waits for an event.
    fn cuEventSynchronize(event: Handle) {
        settled(event)
    }

    /// Milliseconds between two events.
    fn cuEventElapsedTime(milliseconds: Out<f32>, start: Handle, end: Handle) {
        elapsed(milliseconds, start, end)
    }

    /// Milliseconds between two events.
    fn cuEventElapsedTime_v2(milliseconds: Out<f32>, start: Handle, end: Handle) {
        elapsed(milliseconds, start, end)
    }
}
