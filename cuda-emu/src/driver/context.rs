//! Contexts: the primary one, counted; others, created and destroyed; and each thread's stack of them.

use std::ffi::{c_int, c_uint};

use super::abi::{In, Out, driver_api};
use super::error::{Answer, Code};
use super::state::{self, Handle, Leak, Owned, State};
use super::{core, device, work};

/// Ends a context: what it still holds is freed and reported as leaked.
fn end(ctx: Handle) {
    let mut state = state::lock();
    if let Some(ctx) = state.contexts.get_mut(&ctx) {
        ctx.alive = false;
        ctx.retained = 0;
    }
    let mut leaks = Vec::new();
    let mut leak = |what, name: &str, address: u64, bytes: u64| {
        leaks.push(Leak { what, name: name.into(), address, bytes });
    };
    let mut blocks = Vec::new();
    state.blocks.retain(|&addr, block| {
        let keep = block.ctx != ctx;
        if !keep {
            leak("allocation", &block.name, addr, block.bytes);
            blocks.push((addr, block.bytes));
        }
        keep
    });
    let mut pinned = Vec::new();
    state.pinned.retain(|&addr, block| {
        let keep = block.ctx != ctx;
        if !keep {
            leak("host memory", if block.owned { "pinned" } else { "registered" }, addr, block.bytes as u64);
            pinned.push((addr, block.bytes, block.owned));
        }
        keep
    });
    let handles = |table: &mut Vec<Handle>| table.sort_unstable();
    macro_rules! sweep {
        ($table:ident, $what:literal) => {
            let mut left: Vec<Handle> =
                state.$table.iter().filter(|(_, it)| it.ctx() == ctx).map(|(&handle, _)| handle).collect();
            handles(&mut left);
            for handle in &left {
                leak($what, "", *handle as u64, 0);
            }
        };
    }
    sweep!(streams, "stream");
    sweep!(events, "event");
    sweep!(modules, "module");
    sweep!(graphs, "graph");
    sweep!(execs, "executable graph");
    for (_, bytes) in &blocks {
        state.used -= super::memory::rounded(*bytes);
    }
    let modules: Vec<_> =
        state.modules.values().filter(|module| module.ctx == ctx).map(|m| m.core.clone()).collect();
    state.streams.retain(|_, it| it.ctx != ctx);
    state.events.retain(|_, it| it.ctx != ctx);
    state.modules.retain(|_, it| it.ctx != ctx);
    state.functions.retain(|_, it| it.ctx != ctx);
    state.graphs.retain(|_, it| it.ctx != ctx);
    state.execs.retain(|_, it| it.ctx != ctx);
    state.captures.retain(|_, it| it.ctx != ctx);
    for leak in &leaks {
        state::say(&format!("left by its context: {leak}"));
    }
    state.leaks.append(&mut leaks);
    drop(state);
    let device = work::device();
    for module in modules {
        core::unload(&module, &device);
    }
    for (addr, _) in blocks {
        let _ = device.free(addr);
    }
    drop(device);
    for (addr, bytes, owned) in pinned {
        if owned {
            super::memory::free_host(addr, bytes);
        }
    }
}

/// The primary context's state, active or not.
fn primary(state: &State) -> Option<&state::Context> {
    state.contexts.get(&state.primary)
}

fn create(out: Out<Handle>, flags: c_uint, device: c_int) -> Answer {
    let mut state = state::ready()?;
    device::check(device)?;
    let handle = state.open(false, flags);
    state::stack(|stack| stack.push(handle));
    out.set(handle)
}

driver_api! {
    /// Retains the device's primary context, made at the first call.
    fn cuDevicePrimaryCtxRetain(out: Out<Handle>, device: c_int) {
        let mut state = state::ready()?;
        device::check(device)?;
        if state.primary == 0 {
            state.primary = state.open(true, 0);
            let handle = state.primary;
            return out.set(handle);
        }
        let handle = state.primary;
        if let Some(ctx) = state.contexts.get_mut(&handle) {
            ctx.retained += 1;
            if !ctx.alive {
                (ctx.alive, ctx.sticky) = (true, None);
            }
        }
        out.set(handle)
    }

    /// Releases the primary context; the last release ends it.
    fn cuDevicePrimaryCtxRelease_v2(device: c_int) {
        let mut state = state::ready()?;
        device::check(device)?;
        let handle = state.primary;
        let ctx = state.contexts.get_mut(&handle).filter(|ctx| ctx.alive && ctx.retained > 0);
        let ctx = ctx.ok_or(Code::INVALID_CONTEXT)?;
        ctx.retained -= 1;
        if ctx.retained == 0 {
            drop(state);
            end(handle);
        }
        Ok(())
    }

    /// Ends the primary context, whoever retains it.
    fn cuDevicePrimaryCtxReset_v2(device: c_int) {
        let state = state::ready()?;
        device::check(device)?;
        let handle = state.primary;
        let retained = primary(&state).map_or(0, |ctx| ctx.retained);
        drop(state);
        end(handle);
        if let Some(ctx) = state::lock().contexts.get_mut(&handle) {
            (ctx.alive, ctx.retained, ctx.sticky) = (retained > 0, retained, None);
        }
        Ok(())
    }

    /// The primary context's flags, and whether it is active.
    fn cuDevicePrimaryCtxGetState(device: c_int, flags: Out<c_uint>, active: Out<c_int>) {
        let state = state::ready()?;
        device::check(device)?;
        flags.set(primary(&state).map_or(0, |ctx| ctx.flags))?;
        active.set(primary(&state).is_some_and(|ctx| ctx.alive).into())
    }

    /// Sets the primary context's flags.
    fn cuDevicePrimaryCtxSetFlags_v2(device: c_int, flags: c_uint) {
        let mut state = state::ready()?;
        device::check(device)?;
        if state.primary == 0 {
            state.primary = state.open(true, flags);
            let handle = state.primary;
            let ctx = state.context(handle)?;
            (ctx.alive, ctx.retained) = (false, 0);
        }
        let handle = state.primary;
        if let Some(ctx) = state.contexts.get_mut(&handle) {
            ctx.flags = flags;
        }
        Ok(())
    }

    /// Creates a context and makes it current.
    fn cuCtxCreate_v2(out: Out<Handle>, flags: c_uint, device: c_int) {
        create(out, flags, device)
    }

    /// Creates a context and makes it current; execution affinity is not supported.
    fn cuCtxCreate_v3(out: Out<Handle>, affinity: In<u8>, count: c_int, flags: c_uint, device: c_int) {
        if count != 0 || !affinity.is_null() {
            return Err(Code::NOT_SUPPORTED);
        }
        create(out, flags, device)
    }

    /// Creates a context and makes it current; creation parameters are not supported.
    fn cuCtxCreate_v4(out: Out<Handle>, parameters: In<u8>, flags: c_uint, device: c_int) {
        if !parameters.is_null() {
            return Err(Code::NOT_SUPPORTED);
        }
        create(out, flags, device)
    }

    /// Destroys a context that `cuCtxCreate` made.
    fn cuCtxDestroy_v2(ctx: Handle) {
        let mut state = state::ready()?;
        if state.context(ctx)?.primary {
            return Err(Code::INVALID_CONTEXT);
        }
        drop(state);
        end(ctx);
        state::stack(|stack| {
            if stack.last() == Some(&ctx) {
                stack.pop();
            }
        });
        Ok(())
    }

    /// This thread's context, or null.
    fn cuCtxGetCurrent(out: Out<Handle>) {
        state::initialized()?;
        out.set(state::stack(|stack| stack.last().copied().unwrap_or(0)))
    }

    /// Makes a context this thread's; null takes away the one it has.
    fn cuCtxSetCurrent(ctx: Handle) {
        let mut state = state::ready()?;
        if ctx != 0 {
            state.context(ctx)?;
        }
        state::stack(|stack| {
            stack.pop();
            stack.extend((ctx != 0).then_some(ctx));
        });
        Ok(())
    }

    /// Makes a context this thread's, over the one it has.
    fn cuCtxPushCurrent_v2(ctx: Handle) {
        state::ready()?.context(ctx)?;
        state::stack(|stack| stack.push(ctx));
        Ok(())
    }

    /// Takes this thread's context from its stack.
    fn cuCtxPopCurrent_v2(out: Out<Handle>) {
        state::initialized()?;
        let top = state::stack(Vec::pop).ok_or(Code::INVALID_CONTEXT)?;
        out.offer(top);
        Ok(())
    }

    /// The device of this thread's context.
    fn cuCtxGetDevice(device: Out<c_int>) {
        state::ready()?.current()?;
        device.set(device::ORDINAL)
    }

    /// Waits for all work of this thread's context: it is done, or failed.
    fn cuCtxSynchronize() {
        let mut state = state::ready()?;
        state.healthy()?;
        state.unsafe_call()
    }

    /// The flags of this thread's context.
    fn cuCtxGetFlags(flags: Out<c_uint>) {
        let mut state = state::ready()?;
        let ctx = state.current()?;
        flags.set(state.context(ctx)?.flags)
    }

    /// Sets the flags of this thread's context.
    fn cuCtxSetFlags(flags: c_uint) {
        let mut state = state::ready()?;
        let ctx = state.current()?;
        state.context(ctx)?.flags = flags;
        Ok(())
    }

    /// The version of the API that a context was made with.
    fn cuCtxGetApiVersion(ctx: Handle, version: Out<c_uint>) {
        let mut state = state::ready()?;
        let ctx = if ctx == 0 { state.current()? } else { ctx };
        state.context(ctx)?;
        version.set(3020)
    }

    /// A limit of this thread's context.
    fn cuCtxGetLimit(value: Out<usize>, limit: c_int) {
        let mut state = state::ready()?;
        let ctx = state.current()?;
        value.set(*state.context(ctx)?.limits.get(&limit).ok_or(Code::UNSUPPORTED_LIMIT)?)
    }

    /// Sets a limit of this thread's context; nothing here depends on it.
    fn cuCtxSetLimit(limit: c_int, value: usize) {
        let mut state = state::ready()?;
        let ctx = state.current()?;
        *state.context(ctx)?.limits.get_mut(&limit).ok_or(Code::UNSUPPORTED_LIMIT)? = value;
        Ok(())
    }

    /// The preferred split between L1 and shared memory.
    fn cuCtxGetCacheConfig(config: Out<c_int>) {
        let mut state = state::ready()?;
        let ctx = state.current()?;
        config.set(state.context(ctx)?.cache)
    }

    /// Sets the preferred split between L1 and shared memory; nothing here depends on it.
    fn cuCtxSetCacheConfig(config: c_int) {
        let mut state = state::ready()?;
        let ctx = state.current()?;
        state.context(ctx)?.cache = config;
        Ok(())
    }

    /// The range of streams' priorities.
    fn cuCtxGetStreamPriorityRange(least: Out<c_int>, greatest: Out<c_int>) {
        state::ready()?.current()?;
        least.offer(0);
        greatest.offer(super::stream::GREATEST_PRIORITY);
        Ok(())
    }
}
