//! The driver: libcuda's C functions over the interpreter.
//!
//! It knows contexts, streams, events, modules, graphs and the accounting of memory; of PTX and of how a kernel
//! runs it knows nothing (`core` is the seam). Streams execute eagerly: work is done when the call that
//! submits it returns, so a failed check is answered by the launch that failed it, and what waits never waits.
//!
//! Two locks, never held together by one thread in the other order: `work::device` (device work, one piece at
//! a time) before `state::lock` (the tables, held briefly).
#![allow(non_snake_case, reason = "the functions' names are the ABI's")]

mod abi;
mod capture;
mod context;
mod control;
mod copy;
mod core;
mod device;
mod error;
mod event;
mod function;
mod graph;
mod launch;
mod memory;
mod module;
mod query;
mod state;
mod stream;
mod unsupported;
mod work;

/// Every function that `cuGetProcAddress` finds.
fn symbols() -> impl Iterator<Item = (&'static str, usize)> {
    [
        context::symbols(),
        control::symbols(),
        copy::symbols(),
        device::symbols(),
        event::symbols(),
        function::symbols(),
        graph::symbols(),
        launch::symbols(),
        memory::symbols(),
        module::symbols(),
        query::symbols(),
        stream::symbols(),
    ]
    .into_iter()
    .flatten()
}
