//! Graphs: what a captured stream was given, to be done again at each launch.

use std::ffi::c_int;
use std::sync::Arc;

use super::abi::{Out, driver_api};
use super::error::{Answer, Code};
use super::state::{self, Graph, Handle};
use super::work;

/// All flags of an instantiation.
const FLAGS: u64 = 15;

fn instantiate(out: Out<Handle>, graph: Handle, flags: u64) -> Answer {
    let mut state = state::ready()?;
    state.healthy()?;
    if flags & !FLAGS != 0 {
        return Err(Code::INVALID_VALUE);
    }
    let found = state.graphs.get(&graph).ok_or(Code::INVALID_HANDLE)?;
    let exec = Graph { ctx: found.ctx, nodes: found.nodes.clone() };
    let handle = state.handle();
    state.execs.insert(handle, exec);
    out.set(handle)
}

driver_api! {
    /// Begins to capture a stream.
    fn cuStreamBeginCapture_v2(stream: Handle, mode: c_int) {
        let mut state = state::ready()?;
        let ctx = state.healthy()?;
        let stream = state.stream(ctx, stream)?;
        state.begin_capture(ctx, stream, mode)
    }

    /// Ends a capture in the stream where it began.
    fn cuStreamEndCapture(stream: Handle, out: Out<Handle>) {
        let mut state = state::ready()?;
        let ctx = state.current()?;
        out.set(0)?;
        let stream = state.stream(ctx, stream)?;
        let nodes = Arc::new(state.end_capture(stream)?);
        let handle = state.handle();
        state.graphs.insert(handle, Graph { ctx, nodes });
        out.set(handle)
    }

    /// Makes a graph executable.
    fn cuGraphInstantiateWithFlags(out: Out<Handle>, graph: Handle, flags: u64) {
        instantiate(out, graph, flags)
    }

    /// Prepares an executable graph: it is.
    fn cuGraphUpload(exec: Handle, stream: Handle) {
        let state = state::ready()?;
        let ctx = state.healthy()?;
        state.stream(ctx, stream)?;
        state.execs.get(&exec).map(drop).ok_or(Code::INVALID_HANDLE)
    }

    /// Does a graph's work, in the order in which it was captured.
    fn cuGraphLaunch(exec: Handle, stream: Handle) {
        let state = state::ready()?;
        let ctx = state.healthy()?;
        state.stream(ctx, stream)?;
        let nodes = state.execs.get(&exec).ok_or(Code::INVALID_HANDLE)?.nodes.clone();
        drop(state);
        nodes.iter().try_for_each(|op| work::submit(stream, op.clone()))
    }

    /// Destroys an executable graph.
    fn cuGraphExecDestroy(exec: Handle) {
        let mut state = state::ready()?;
        let exec = state.execs.remove(&exec).ok_or(Code::INVALID_HANDLE)?;
        state.sticky(exec.ctx)
    }

    /// Destroys a graph; what was made executable of it stays.
    fn cuGraphDestroy(graph: Handle) {
        let mut state = state::ready()?;
        let graph = state.graphs.remove(&graph).ok_or(Code::INVALID_HANDLE)?;
        state.sticky(graph.ctx)
    }

    /// How many nodes a graph has; their handles are not given out.
    fn cuGraphGetNodes(graph: Handle, nodes: Out<Handle>, count: Out<usize>) {
        let state = state::ready()?;
        let graph = state.graphs.get(&graph).ok_or(Code::INVALID_HANDLE)?;
        if nodes.is_null() { count.set(graph.nodes.len()) } else { Err(Code::NOT_SUPPORTED) }
    }
}
