//! Graphs: the launches, copies and fills that a piece of work asks for, recorded once and replayed by one call.

use super::ledger::{Ledger, Need, merge};
use super::{Gpu, lock};
use crate::engine::Device;
use crate::engine::arena::PoolHandle;
use crate::{Error, Result};
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{result, sys};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

/// The remedy for what is made when it is first wanted.
pub(super) const RUN_ONCE: &str = "run the work once before it is captured";

/// Recorded work, to be done again with one call.
///
/// Addresses and numbers are those of the capture: what is to change between replays must stand in the device's memory,
/// in tensors that were there before. The graph holds every block that it may touch, so a tensor that it reads or writes
/// may be dropped; its memory is nobody else's until the graph is dropped, too.
pub struct Graph {
    exec: sys::CUgraphExec,
    nodes: usize,
    /// What a replay adds to the ledger.
    needs: BTreeMap<String, Need>,
    pool: PoolHandle,
}

// SAFETY: an executable graph may be used from every thread whose context is its own, by one at a time.
unsafe impl Send for Graph {}

impl Device {
    /// Records what `work` asks of the device instead of doing it; what `work` returns holds its values after a replay.
    ///
    /// Kernels must be loaded, transforms planned and constants uploaded, so `work` must have run before; uploads,
    /// downloads and waiting are refused. Nobody else may use the device meanwhile: it would be recorded.
    pub fn capture<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<(Graph, T)> {
        let gpu = self.gpu().ok_or_else(|| {
            Error::cuda("capturing a graph", format!("{self:?} has none; run the work itself"))
        })?;
        let recording = Recording::begin(self, gpu)?;
        let made = work()?;
        Ok((recording.end()?, made))
    }
}

impl Gpu {
    /// Whether a graph is being captured.
    pub(in crate::engine) fn recording(&self) -> bool {
        self.recording.load(Ordering::Relaxed)
    }

    /// Refuses what a graph cannot hold, while one is captured.
    pub(super) fn outside_capture(&self, doing: &str, remedy: &str) -> Result<()> {
        if !self.recording() {
            return Ok(());
        }
        Err(Error::cuda(doing, format!("a graph is being captured, which cannot hold this: {remedy}")))
    }
}

/// A capture in progress. Dropped, it leaves the stream as it was.
struct Recording<'a> {
    gpu: &'a Gpu,
    /// The ledger outside.
    ledger: Ledger,
    pool: Option<PoolHandle>,
}

impl<'a> Recording<'a> {
    fn begin(device: &Device, gpu: &'a Gpu) -> Result<Self> {
        gpu.outside_capture("capturing a graph", "one graph is captured at a time")?;
        // So that memory can be had and given back on another stream meanwhile.
        gpu.synchronize()?;
        // Relaxed: the arena may allocate, on the other stream.
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        if gpu.session.is_some() {
            let stream = &gpu.bound("beginning a capture")?.stream;
            // SAFETY: the stream is alive.
            unsafe { result::stream::begin_capture(stream.cu_stream(), mode) }
                .map_err(|e| gpu.error("beginning a capture", e))?;
        }
        let pool = Some(device.open_pool());
        let ledger = lock(&gpu.ledger).replace(BTreeMap::new());
        gpu.recording.store(true, Ordering::Relaxed);
        Ok(Self { gpu, ledger, pool })
    }

    /// Ends the stream's capture: the graph, and what its launches need.
    fn stop(&mut self) -> (Result<sys::CUgraph>, BTreeMap<String, Need>) {
        let gpu = self.gpu;
        let graph = match &gpu.session {
            None => Ok(std::ptr::null_mut()),
            Some(session) => {
                let _ = session.context.bind_to_thread();
                // SAFETY: the stream is alive.
                unsafe { result::stream::end_capture(session.stream.cu_stream()) }
            }
        };
        gpu.recording.store(false, Ordering::Relaxed);
        let needs = std::mem::replace(&mut *lock(&gpu.ledger), self.ledger.take());
        (graph.map_err(|e| gpu.error("ending a capture", e)), needs.unwrap_or_default())
    }

    fn end(mut self) -> Result<Graph> {
        let (graph, needs) = self.stop();
        let pool = self.pool.take().expect("it is taken once, here");
        pool.seal();
        let (gpu, graph) = (self.gpu, graph?);
        let mut nodes = 0;
        if gpu.session.is_none() {
            return Ok(Graph { exec: std::ptr::null_mut(), nodes, needs, pool });
        }
        // SAFETY: the graph is alive; without a place for the nodes only their number is written.
        let counted = unsafe { sys::cuGraphGetNodes(graph, std::ptr::null_mut(), &mut nodes) }.result();
        // SAFETY: the graph is alive.
        let exec = unsafe { result::graph::instantiate(graph, CUgraphInstantiate_flags(0)) };
        // SAFETY: what was instantiated does not need it any more.
        let _ = unsafe { result::graph::destroy(graph) };
        let exec = exec.map_err(|e| gpu.error("instantiating a graph", e))?;
        let made = Graph { exec, nodes, needs, pool };
        counted.map_err(|e| gpu.error("counting a graph's nodes", e))?;
        Ok(made)
    }
}

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        if self.pool.is_some()
            && let (Ok(graph), _) = self.stop()
            && !graph.is_null()
        {
            // SAFETY: ours alone.
            let _ = unsafe { result::graph::destroy(graph) };
        }
    }
}

impl Graph {
    /// How many pieces of work it has.
    pub fn nodes(&self) -> usize {
        self.nodes
    }

    /// Asks the compute stream for all of it, in the order in which it was recorded.
    pub fn replay(&self) -> Result<()> {
        let gpu = self.gpu();
        gpu.outside_capture("replaying a graph", "capture its work itself")?;
        if gpu.session.is_none() {
            self.enter();
            return Ok(());
        }
        let session = gpu.bound("replaying a graph")?;
        let doing = || format!("replaying a graph of {} nodes", self.nodes);
        // SAFETY: graph and stream are alive, and so is every block that the graph touches.
        unsafe { result::graph::launch(self.exec, session.stream.cu_stream()) }
            .map_err(|e| gpu.error(&doing(), e))?;
        self.enter();
        if session.synchronous {
            session.stream.synchronize().map_err(|e| gpu.error(&doing(), e))?;
        }
        Ok(())
    }

    /// Enters its launches into the ledger.
    fn enter(&self) {
        if let Some(ledger) = lock(&self.gpu().ledger).as_mut() {
            merge(ledger, &self.needs);
        }
    }

    fn gpu(&self) -> &Gpu {
        self.pool.device.gpu().expect("only a CUDA device makes graphs")
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        let gpu = self.gpu();
        let Some(session) = &gpu.session else { return };
        let _ = session.context.bind_to_thread();
        // A replay may be on its way; while another graph is captured none is, for the stream was idle when that began.
        if !gpu.recording() {
            let _ = session.stream.synchronize();
        }
        // SAFETY: ours alone, and nothing of it runs any more.
        let _ = unsafe { result::graph::exec_destroy(self.exec) };
    }
}
