//! Streams. Work is done when it is submitted: to wait for a stream is to ask whether its context is well.

use std::ffi::{c_int, c_uint};

use super::abi::{Host, Out, driver_api};
use super::error::{Answer, Code};
use super::state::{self, Handle, LEGACY, PER_THREAD, Stream};
use super::work::{self, Callback, HostFn, Op};

/// The smallest number is the greatest priority.
pub const GREATEST_PRIORITY: c_int = -5;
/// What `cuStreamIsCapturing` answers of a stream that is captured, and of one whose capture was invalidated.
const ACTIVE: c_int = 1;
const INVALIDATED: c_int = 2;

fn create(out: Out<Handle>, flags: c_uint, priority: c_int) -> Answer {
    let mut state = state::ready()?;
    let ctx = state.healthy()?;
    if flags > 1 {
        return Err(Code::INVALID_VALUE);
    }
    let handle = state.handle();
    let priority = priority.clamp(GREATEST_PRIORITY, 0);
    state.streams.insert(handle, Stream { ctx, flags, priority, capture: None });
    out.set(handle)
}

/// A stream's properties: the default streams have none of their own.
fn properties<T>(stream: Handle, default: T, of: impl FnOnce(&Stream) -> T) -> Answer<T> {
    let state = state::ready()?;
    let ctx = state.current()?;
    let stream = state.stream(ctx, stream)?;
    Ok(state.streams.get(&stream).map_or(default, of))
}

driver_api! {
    /// Creates a stream.
    fn cuStreamCreate(out: Out<Handle>, flags: c_uint) {
        create(out, flags, 0)
    }

    /// Creates a stream; its priority is kept and changes nothing.
    fn cuStreamCreateWithPriority(out: Out<Handle>, flags: c_uint, priority: c_int) {
        create(out, flags, priority)
    }

    /// Destroys a stream.
    fn cuStreamDestroy_v2(stream: Handle) {
        let mut state = state::ready()?;
        let ctx = state.current()?;
        if LEGACY.contains(&stream) || stream == PER_THREAD {
            return Err(Code::INVALID_HANDLE);
        }
        state.stream(ctx, stream)?;
        if let Some(capture) = state.capture_of(stream) {
            let _ = state.invalidate(capture, Code::STREAM_CAPTURE_INVALIDATED);
        }
        state.streams.remove(&stream);
        state.sticky(ctx)
    }

    /// Waits for a stream: its work is done, or failed.
    fn cuStreamSynchronize(stream: Handle) {
        let mut state = state::ready()?;
        let ctx = state.healthy()?;
        let stream = state.stream(ctx, stream)?;
        state.wait_for(stream)?;
        state.legacy(ctx, stream)
    }

    /// Whether a stream's work is done: it is, or failed.
    fn cuStreamQuery(stream: Handle) {
        let mut state = state::ready()?;
        let ctx = state.healthy()?;
        let stream = state.stream(ctx, stream)?;
        state.wait_for(stream)?;
        state.legacy(ctx, stream)
    }

    /// Makes a stream wait for an event: in a capture, a dependency; else it has happened.
    fn cuStreamWaitEvent(stream: Handle, event: Handle, _flags: c_uint) {
        let mut state = state::ready()?;
        let ctx = state.healthy()?;
        let stream = state.stream(ctx, stream)?;
        state.wait(stream, event)
    }

    /// Runs a host function in a stream, on this thread, before this call returns.
    fn cuLaunchHostFunc(stream: Handle, function: Option<HostFn>, data: Host) {
        let run = function.ok_or(Code::INVALID_VALUE)?;
        work::submit(stream, Op::HostFunction { run, data })
    }

    /// Runs a callback in a stream, on this thread, before this call returns.
    fn cuStreamAddCallback(stream: Handle, callback: Option<Callback>, data: Host, flags: c_uint) {
        let run = callback.ok_or(Code::INVALID_VALUE)?;
        if flags != 0 {
            return Err(Code::INVALID_VALUE);
        }
        let mut state = state::ready()?;
        let ctx = state.healthy()?;
        let own = state.stream(ctx, stream)?;
        state.wait_for(own)?;
        drop(state);
        work::submit(stream, Op::Callback { run, stream, data })
    }

    /// Attaches managed memory to a stream: there is none.
    fn cuStreamAttachMemAsync(_stream: Handle, _address: u64, _bytes: usize, _flags: c_uint) {
        Err(Code::NOT_SUPPORTED)
    }

    /// A stream's flags.
    fn cuStreamGetFlags(stream: Handle, flags: Out<c_uint>) {
        flags.set(properties(stream, 0, |stream| stream.flags)?)
    }

    /// A stream's priority.
    fn cuStreamGetPriority(stream: Handle, priority: Out<c_int>) {
        priority.set(properties(stream, 0, |stream| stream.priority)?)
    }

    /// A stream's number.
    fn cuStreamGetId(stream: Handle, id: Out<u64>) {
        properties(stream, (), |_| ())?;
        id.set(stream as u64)
    }

    /// A stream's context.
    fn cuStreamGetCtx(stream: Handle, out: Out<Handle>) {
        let current = state::ready()?.current()?;
        out.set(properties(stream, current, |stream| stream.ctx)?)
    }

    /// Whether a stream is captured.
    fn cuStreamIsCapturing(stream: Handle, status: Out<c_int>) {
        let mut state = state::ready()?;
        let ctx = state.current()?;
        let stream = state.stream(ctx, stream)?;
        state.legacy(ctx, stream)?;
        let capture = state.capture_of(stream).and_then(|id| state.captures.get(&id));
        status.set(capture.map_or(0, |capture| if capture.valid { ACTIVE } else { INVALIDATED }))
    }
}
