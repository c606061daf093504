//! Stream capture: who records what, and the rules that hardware's driver enforces meanwhile.

use std::collections::HashMap;
use std::thread::{self, ThreadId};

use super::error::{Answer, Code};
use super::state::{Handle, PER_THREAD, State};
use super::work::Op;

/// How far each stream of a capture had come.
pub type Clock = HashMap<Handle, u64>;

/// The mode in which other threads, too, may make no unsafe call.
pub const GLOBAL: i32 = 0;
/// The mode in which only the capturing thread may not.
pub const THREAD_LOCAL: i32 = 1;
/// The mode in which every call is allowed.
pub const RELAXED: i32 = 2;

/// The flag of a stream that does not synchronise with the legacy stream.
pub const NON_BLOCKING: u32 = 1;

/// A capture in progress.
pub struct Capture {
    pub ctx: Handle,
    pub origin: Handle,
    pub mode: i32,
    pub thread: ThreadId,
    pub valid: bool,
    pub nodes: Vec<Op>,
    /// What each stream of the capture has seen of each.
    pub clocks: HashMap<Handle, Clock>,
}

impl Capture {
    /// Counts a step of a stream.
    fn step(&mut self, stream: Handle) {
        *self.clocks.entry(stream).or_default().entry(stream).or_default() += 1;
    }

    /// Whether the origin has waited for all that the other streams did.
    fn joined(&self) -> bool {
        let seen = self.clocks.get(&self.origin);
        self.clocks.iter().all(|(stream, clock)| {
            let done = clock.get(stream).copied().unwrap_or(0);
            seen.and_then(|seen| seen.get(stream).copied()).unwrap_or(0) >= done
        })
    }
}

impl State {
    /// The capture that a stream takes part in.
    pub fn capture_of(&self, stream: Handle) -> Option<Handle> {
        self.streams.get(&stream).and_then(|stream| stream.capture)
    }

    /// Ends a capture's usefulness: every call on it fails until it is ended.
    pub fn invalidate(&mut self, capture: Handle, code: Code) -> Code {
        if let Some(capture) = self.captures.get_mut(&capture) {
            capture.valid = false;
        }
        code
    }

    /// Keeps an operation if its stream is captured; whether it did.
    pub fn keep(&mut self, ctx: Handle, stream: Handle, op: &Op) -> Answer<bool> {
        let Some(id) = self.capture_of(stream) else {
            self.legacy(ctx, stream)?;
            return Ok(false);
        };
        let capture = self.captures.get_mut(&id).ok_or(Code::STREAM_CAPTURE_INVALIDATED)?;
        if !capture.valid {
            return Err(Code::STREAM_CAPTURE_INVALIDATED);
        }
        capture.step(stream);
        capture.nodes.push(op.clone());
        Ok(true)
    }

    /// The legacy stream waits for every blocking stream: it may not while one of them is captured.
    pub fn legacy(&mut self, ctx: Handle, stream: Handle) -> Answer {
        if stream != 0 {
            return Ok(());
        }
        let blocked = |stream: &&super::state::Stream| stream.ctx == ctx && stream.flags & NON_BLOCKING == 0;
        match self.streams.values().filter(blocked).find_map(|stream| stream.capture) {
            Some(capture) => Err(self.invalidate(capture, Code::STREAM_CAPTURE_IMPLICIT)),
            None => Ok(()),
        }
    }

    /// Refuses a call that might synchronise (an allocation, say) while a capture forbids it.
    pub fn unsafe_call(&mut self) -> Answer {
        let me = thread::current().id();
        let forbids = |capture: &Capture| {
            capture.mode == GLOBAL || capture.mode == THREAD_LOCAL && capture.thread == me
        };
        let found = self.captures.iter().find(|(_, capture)| forbids(capture)).map(|(&id, _)| id);
        found.map_or(Ok(()), |id| Err(self.invalidate(id, Code::STREAM_CAPTURE_UNSUPPORTED)))
    }

    /// Refuses to wait for a stream that is captured.
    pub fn wait_for(&mut self, stream: Handle) -> Answer {
        match self.capture_of(stream) {
            Some(id) => Err(self.invalidate(id, Code::STREAM_CAPTURE_UNSUPPORTED)),
            None => Ok(()),
        }
    }

    /// Begins a capture in a stream.
    pub fn begin_capture(&mut self, ctx: Handle, stream: Handle, mode: i32) -> Answer {
        if !(GLOBAL..=RELAXED).contains(&mode) {
            return Err(Code::INVALID_VALUE);
        }
        if stream == 0 || stream == PER_THREAD {
            return Err(Code::STREAM_CAPTURE_UNSUPPORTED);
        }
        if self.capture_of(stream).is_some() {
            return Err(Code::ILLEGAL_STATE);
        }
        let id = self.handle();
        let clocks = HashMap::from([(stream, Clock::new())]);
        let thread = thread::current().id();
        let capture = Capture { ctx, origin: stream, mode, thread, valid: true, nodes: Vec::new(), clocks };
        self.captures.insert(id, capture);
        self.streams.get_mut(&stream).ok_or(Code::INVALID_HANDLE)?.capture = Some(id);
        Ok(())
    }

    /// Ends a capture: what it recorded.
    pub fn end_capture(&mut self, stream: Handle) -> Answer<Vec<Op>> {
        let id = self.capture_of(stream).ok_or(Code::ILLEGAL_STATE)?;
        let capture = self.captures.get(&id).ok_or(Code::ILLEGAL_STATE)?;
        if capture.origin != stream {
            return Err(self.invalidate(id, Code::STREAM_CAPTURE_UNMATCHED));
        }
        if capture.mode != RELAXED && capture.thread != thread::current().id() {
            return Err(Code::STREAM_CAPTURE_WRONG_THREAD);
        }
        for stream in self.streams.values_mut().filter(|stream| stream.capture == Some(id)) {
            stream.capture = None;
        }
        let capture = self.captures.remove(&id).ok_or(Code::ILLEGAL_STATE)?;
        match (capture.valid, capture.joined()) {
            (false, _) => Err(Code::STREAM_CAPTURE_INVALIDATED),
            (_, false) => Err(Code::STREAM_CAPTURE_UNJOINED),
            _ => Ok(capture.nodes),
        }
    }

    /// Records an event in a captured stream; whether the stream is one.
    pub fn mark(&mut self, stream: Handle, event: Handle) -> Answer<bool> {
        let Some(id) = self.capture_of(stream) else { return Ok(false) };
        let capture = self.captures.get(&id).filter(|capture| capture.valid);
        let clock = capture.ok_or(Code::STREAM_CAPTURE_INVALIDATED)?.clocks.get(&stream).cloned();
        let event = self.events.get_mut(&event).ok_or(Code::INVALID_HANDLE)?;
        event.captured = Some((id, clock.unwrap_or_default()));
        Ok(true)
    }

    /// Makes a stream wait for an event, as far as captures are concerned.
    pub fn wait(&mut self, stream: Handle, event: Handle) -> Answer {
        let captured = self.events.get(&event).ok_or(Code::INVALID_HANDLE)?.captured.clone();
        let (id, mark) = match (self.capture_of(stream), captured) {
            (None, None) => return Ok(()),
            (Some(mine), None) => return Err(self.invalidate(mine, Code::STREAM_CAPTURE_ISOLATION)),
            (Some(mine), Some((other, _))) if mine != other => {
                self.invalidate(other, Code::STREAM_CAPTURE_MERGE);
                return Err(self.invalidate(mine, Code::STREAM_CAPTURE_MERGE));
            }
            (_, Some(captured)) => captured,
        };
        let capture = self.captures.get_mut(&id).ok_or(Code::CAPTURED_EVENT)?;
        if !capture.valid {
            return Err(Code::STREAM_CAPTURE_INVALIDATED);
        }
        let clock = capture.clocks.entry(stream).or_default();
        for (stream, seen) in mark {
            let known = clock.entry(stream).or_default();
            *known = seen.max(*known);
        }
        match self.streams.get_mut(&stream) {
            Some(stream) => stream.capture = Some(id),
            None => return Err(self.invalidate(id, Code::STREAM_CAPTURE_UNSUPPORTED)),
        }
        Ok(())
    }
}
