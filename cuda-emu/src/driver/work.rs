//! Device work: what a stream is given, and how it is done. One piece at a time, on the thread that submits it.

use std::ffi::c_void;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::abi::Host;
use super::core::{self, Memory};
use super::error::{Answer, Code};
use super::function::Function;
use super::state::{self, Handle};

/// A host function, as `cuLaunchHostFunc` takes it.
pub type HostFn = unsafe extern "C" fn(*mut c_void);
/// A callback, as `cuStreamAddCallback` takes it.
pub type Callback = unsafe extern "C" fn(Handle, i32, *mut c_void);

/// One piece of work.
#[derive(Clone)]
pub enum Op {
    Kernel { function: Arc<Function>, grid: [u32; 3], block: [u32; 3], dynamic_shared: u32, params: Vec<u8> },
    ToDevice { to: u64, from: Host, bytes: usize },
    ToHost { to: Host, from: u64, bytes: usize },
    OnDevice { to: u64, from: u64, bytes: usize },
    Fill { to: u64, pattern: Vec<u8>, count: usize },
    Record { event: Handle },
    HostFunction { run: HostFn, data: Host },
    Callback { run: Callback, stream: Handle, data: Host },
}

static DEVICE: LazyLock<Mutex<Memory>> = LazyLock::new(|| Mutex::new(Memory::new()));

/// The device, for as long as it is worked on.
pub fn device() -> MutexGuard<'static, Memory> {
    DEVICE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gives work to a stream: a captured stream keeps it, any other does it now.
pub fn submit(stream: Handle, op: Op) -> Answer {
    let mut state = state::ready()?;
    let ctx = state.healthy()?;
    let stream = state.stream(ctx, stream)?;
    if state.keep(ctx, stream, &op)? {
        return Ok(());
    }
    drop(state);
    run(ctx, &op)
}

/// Does work.
pub fn run(ctx: Handle, op: &Op) -> Answer {
    match op {
        Op::Kernel { function, grid, block, dynamic_shared, params } => {
            return kernel(ctx, function, (*grid, *block, *dynamic_shared), params);
        }
        Op::ToDevice { to, from, bytes } => {
            let source = from.bytes(*bytes)?;
            device().write(*to, source).map_err(|error| error.to_string())
        }
        Op::ToHost { to, from, bytes } => {
            let target = to.bytes_mut(*bytes)?;
            device().read(*from, target).map_err(|error| error.to_string())
        }
        Op::OnDevice { to, from, bytes } => core::copy(&device(), *to, *from, *bytes),
        Op::Fill { to, pattern, count } => core::fill(&device(), *to, pattern, *count),
        Op::Record { event } => {
            let mut state = state::lock();
            let event = state.events.get_mut(event).ok_or(Code::INVALID_HANDLE)?;
            event.at = Some(Instant::now());
            event.captured = None;
            Ok(())
        }
        Op::HostFunction { run, data } => {
            // SAFETY: the caller of cuLaunchHostFunc promises that the function may be called with its data.
            state::in_host_function(|| unsafe { run(data.pointer()) });
            Ok(())
        }
        Op::Callback { run, stream, data } => {
            // SAFETY: as above, of cuStreamAddCallback.
            state::in_host_function(|| unsafe { run(*stream, 0, data.pointer()) });
            Ok(())
        }
    }
    .map_err(|report| state::lock().refuse(Code::INVALID_VALUE, report))
}

fn kernel(
    ctx: Handle,
    function: &Function,
    (grid, block, dynamic_shared): ([u32; 3], [u32; 3], u32),
    params: &[u8],
) -> Answer {
    if !state::lock().modules.contains_key(&function.module_handle) {
        let report = format!("kernel {} is launched after its module was unloaded", function.name);
        return Err(state::lock().refuse(Code::INVALID_HANDLE, report));
    }
    let request = core::Request { kernel: &function.name, grid, block, dynamic_shared, params };
    let outcome = core::launch(&function.module, &device(), &request);
    match outcome {
        Ok(counts) => {
            state::lock().tally(&function.name, counts);
            Ok(())
        }
        // A launch that could not begin did nothing that a context would have to be ended for.
        Err((code @ Code::INVALID_VALUE, report)) => Err(state::lock().refuse(code, report)),
        Err((code, report)) => Err(state::lock().stick(ctx, code, report)),
    }
}
