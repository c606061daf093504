//! A device and its caching arena: size classes, free lists, exact accounting.
//!
//! Blocks are never returned to the system while the device lives, so from the second training step on every request
//! is served from a free list and addresses repeat. The same size-class logic serves every kind of device; on the
//! emulator each block is nevertheless an allocation of its own, of its exact size, so that its checks see where a
//! buffer ends and when its life does. Blocks that a captured graph may touch are the graph's as long as it lives
//! (`pool.rs`). A meta device has the same arena and no memory: what a run will need is counted by running it there.

use super::cuda::{Driver, Gpu};
use super::pool::Pool;
use crate::{Error, Result};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Alignment of every block: a cache line, and enough for any vector load.
pub const ALIGN: usize = 64;

/// Alignment of a meta device's blocks, which is that of a driver's.
pub(super) const META: usize = 512;

/// A handle on a device; cheap to clone. There is no global device: two engines can live in one process.
#[derive(Clone)]
pub struct Device(Arc<Inner>);

struct Inner {
    poison: bool,
    /// Is memory counted and never touched?
    meta: bool,
    /// Bytes that may be obtained from the system.
    limit: usize,
    arena: Mutex<Arena>,
    /// `None`: the CPU.
    gpu: Option<Gpu>,
}

#[derive(Default)]
struct Arena {
    free: BTreeMap<usize, Vec<NonNull<u8>>>,
    stats: ArenaStats,
    /// The living graphs' blocks; a capture in progress is the last.
    pools: Vec<Pool>,
    /// How many there were.
    graphs: u64,
    /// Where a meta device's next block begins.
    next: usize,
}

// SAFETY: the pointers in the free lists are owned by the arena alone and carry no thread affinity.
unsafe impl Send for Arena {}

/// What the arena holds, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ArenaStats {
    /// In use now (rounded to size classes): what tensors hold, and what is kept for captured graphs.
    pub live: usize,
    /// Most ever in use at once.
    pub peak: usize,
    /// Obtained from the system so far.
    pub reserved: usize,
}

/// Rounds a request up to its size class: 64-byte steps to 1 KiB, then four classes per power of two (≤ 25 % waste), from
/// 1 MiB on 32 (≤ 3.2 %): there are gigabytes of these, and they come in few sizes.
pub fn size_class(bytes: usize) -> usize {
    if bytes <= 1024 {
        return bytes.max(1).next_multiple_of(ALIGN);
    }
    let classes = if bytes < 1 << 20 { 2 } else { 5 };
    let step = 1usize << (bytes.ilog2() - classes);
    bytes.next_multiple_of(step)
}

impl Device {
    fn new(poison: bool, gpu: Option<Gpu>) -> Self {
        Self::with(poison, false, gpu)
    }

    fn with(poison: bool, meta: bool, gpu: Option<Gpu>) -> Self {
        Self(Arc::new(Inner { poison, meta, limit: usize::MAX, arena: Mutex::default(), gpu }))
    }

    /// A device like this one that has no memory and computes nothing (PyTorch's meta device): its arena counts what it is
    /// asked for, so that a run there, which takes no time, tells what the same run needs here. Tensors have no values: where
    /// host code wants some, they are zeros, or none at all in [`Tensor::f32`](super::Tensor::f32).
    pub fn meta(&self) -> Self {
        Self::with(false, true, self.gpu().map(Gpu::meta))
    }

    /// The [`Device::meta`] of a GPU that this machine has not; wants neither driver nor compiler.
    pub fn absent_gpu() -> Self {
        Self::with(false, true, Some(Gpu::absent()))
    }

    /// Is it a [`Device::meta`]?
    pub fn is_meta(&self) -> bool {
        self.0.meta
    }

    /// The CPU, with an arena of its own.
    pub fn cpu() -> Self {
        Self::new(cfg!(debug_assertions), None)
    }

    /// A CPU device that fills every fresh f32 buffer with NaN, so that a result nobody wrote is seen. For tests.
    pub fn cpu_poisoned() -> Self {
        Self::new(true, None)
    }

    /// A CPU device of so little memory: what goes beyond is refused as a GPU refuses it. For tests.
    pub fn cpu_within(bytes: usize) -> Self {
        Self(Arc::new(Inner { poison: true, meta: false, limit: bytes, arena: Mutex::default(), gpu: None }))
    }

    /// CUDA device `ordinal` of this machine.
    pub fn cuda(ordinal: usize) -> Result<Self> {
        Ok(Self::new(cfg!(debug_assertions), Some(Gpu::open(Driver::Nvidia, ordinal)?)))
    }

    /// `cuda-emu`: the CUDA kernels, interpreted on the CPU under checks. It sees for itself what was never written.
    pub fn emu() -> Result<Self> {
        Ok(Self::new(false, Some(Gpu::open(Driver::Emulator, 0)?)))
    }

    /// The CUDA device behind the handle; `None` on the CPU.
    pub fn gpu(&self) -> Option<&Gpu> {
        self.0.gpu.as_ref()
    }

    /// Memory accounting so far.
    pub fn stats(&self) -> ArenaStats {
        self.arena().stats
    }

    /// Counts the peak anew, from what is in use now.
    pub fn reset_peak(&self) {
        let stats = &mut self.arena().stats;
        stats.peak = stats.live;
    }

    pub(super) fn poison(&self) -> bool {
        self.0.poison
    }

    fn arena(&self) -> MutexGuard<'_, Arena> {
        // The arena's invariants hold between any two statements, so a panic elsewhere does not spoil it.
        self.0.arena.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A block of at least `bytes`, holding zeros or what its last user left (on a CUDA device anything); give it back
    /// with [`Device::release`] and the same `bytes`.
    pub(super) fn acquire(&self, bytes: usize) -> Result<NonNull<u8>> {
        let class = size_class(bytes);
        let mut arena = self.arena();
        if let Some(ptr) = self.recording(&mut arena).and_then(|pool| pool.again(class)) {
            return Ok(ptr);
        }
        let found = arena.free.get_mut(&class).and_then(Vec::pop);
        let ptr = match found {
            Some(ptr) => ptr,
            None => {
                let ptr = match self.0.obtain(&mut arena, bytes)? {
                    Some(ptr) => ptr,
                    // What lies idle in other classes may be enough.
                    None => {
                        arena.give_back(&self.0);
                        self.0
                            .obtain(&mut arena, bytes)?
                            .ok_or_else(|| self.out_of_memory(bytes, arena.stats))?
                    }
                };
                arena.stats.reserved += class;
                ptr
            }
        };
        arena.stats.live += class;
        arena.stats.peak = arena.stats.peak.max(arena.stats.live);
        if let Some(pool) = self.recording(&mut arena) {
            pool.acquired(ptr);
        }
        Ok(ptr)
    }

    pub(super) fn release(&self, ptr: NonNull<u8>, bytes: usize) {
        self.settle(&mut self.arena(), ptr, bytes);
    }

    /// A block that no tensor holds any more goes to the graph that may still touch it, else to who asks next.
    fn settle(&self, arena: &mut Arena, ptr: NonNull<u8>, bytes: usize) {
        let class = size_class(bytes);
        let exact = self.gpu().filter(|gpu| gpu.exact());
        if let Some(pool) = arena.pools.iter_mut().find(|pool| pool.touches(ptr, bytes)) {
            // On the emulator a capture gets no block twice: each keeps its exact size, and the first replay finds what
            // is read before it was written, which another's left-over values would hide.
            return pool.keep(ptr, bytes, class, exact.is_none());
        }
        arena.stats.live -= class;
        if let Some(gpu) = exact {
            if !self.0.meta {
                gpu.free(ptr.as_ptr() as u64);
            }
            arena.stats.reserved -= class;
        } else {
            arena.free.entry(class).or_default().push(ptr);
        }
    }

    /// The pool of the capture in progress.
    fn recording<'a>(&self, arena: &'a mut Arena) -> Option<&'a mut Pool> {
        self.gpu().filter(|gpu| gpu.recording()).and_then(|_| arena.pools.last_mut())
    }

    /// Tells a capture in progress that an address is taken.
    pub(super) fn note(&self, address: u64) {
        if self.gpu().is_some_and(Gpu::recording)
            && let Some(pool) = self.recording(&mut self.arena())
        {
            pool.note(address as usize);
        }
    }

    /// A pool for a capture that begins.
    pub(super) fn open_pool(&self) -> PoolHandle {
        let mut arena = self.arena();
        arena.graphs += 1;
        let id = arena.graphs;
        arena.pools.push(Pool::new(id));
        PoolHandle { device: self.clone(), id }
    }

    fn out_of_memory(&self, bytes: usize, stats: ArenaStats) -> Error {
        let mib = |bytes: usize| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
        let free = match self.gpu().and_then(|gpu| gpu.memory().ok()) {
            Some((free, total)) => format!("{} of {} are free", mib(free), mib(total)),
            None if self.0.limit < usize::MAX => format!("{} may be used", mib(self.0.limit)),
            None => "the system has no more".into(),
        };
        Error::Memory {
            device: format!("{self:?}"),
            detail: format!(
                "{} are wanted; {free}, {} are in use here (at most {} so far); a smaller batch or `recompute` needs less",
                mib(bytes),
                mib(stats.live),
                mib(stats.peak)
            ),
        }
    }
}

/// A graph's hold on its blocks; they go back to the arena with it.
pub(super) struct PoolHandle {
    pub(super) device: Device,
    id: u64,
}

impl PoolHandle {
    /// The capture is over.
    pub(super) fn seal(&self) {
        if let Some(pool) = self.device.arena().pools.iter_mut().find(|pool| pool.id == self.id) {
            pool.seal();
        }
    }
}

impl Drop for PoolHandle {
    fn drop(&mut self) {
        let mut arena = self.device.arena();
        if let Some(at) = arena.pools.iter().position(|pool| pool.id == self.id) {
            // Another graph may touch them, too.
            for (ptr, bytes) in arena.pools.remove(at).end() {
                self.device.settle(&mut arena, ptr, bytes);
            }
        }
    }
}

impl Inner {
    /// Fresh memory for `bytes`, or `None` when there is none left.
    fn obtain(&self, arena: &mut Arena, bytes: usize) -> Result<Option<NonNull<u8>>> {
        match &self.gpu {
            _ if size_class(bytes) > self.limit.saturating_sub(arena.stats.reserved) => Ok(None),
            _ if self.meta => {
                let first = arena.next.max(META);
                arena.next = first + size_class(bytes).next_multiple_of(META);
                Ok(NonNull::new(first as *mut u8))
            }
            Some(gpu) => {
                let bytes = if gpu.exact() { bytes.max(1) } else { size_class(bytes) };
                Ok(gpu.allocate(bytes)?.and_then(|ptr| NonNull::new(ptr as *mut u8)))
            }
            // SAFETY: the class, hence the layout's size, is at least 64.
            None => Ok(layout(size_class(bytes)).and_then(|l| NonNull::new(unsafe { alloc_zeroed(l) }))),
        }
    }
}

/// `None` for what no machine can hold.
fn layout(class: usize) -> Option<Layout> {
    Layout::from_size_align(class, ALIGN).ok()
}

impl Arena {
    /// Gives every idle block back to the system.
    fn give_back(&mut self, of: &Inner) {
        for (class, blocks) in std::mem::take(&mut self.free) {
            self.stats.reserved -= class * blocks.len();
            // Nobody's memory is nobody's to free.
            for ptr in blocks.into_iter().filter(|_| !of.meta) {
                match (&of.gpu, layout(class)) {
                    (Some(gpu), _) => gpu.free(ptr.as_ptr() as u64),
                    // SAFETY: every block in the list of `class` was allocated by `obtain` with this very layout.
                    (None, Some(layout)) => unsafe { dealloc(ptr.as_ptr(), layout) },
                    (None, None) => unreachable!("a block of {class} bytes was allocated"),
                }
            }
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let mut arena = std::mem::take(&mut *self.arena.lock().unwrap_or_else(PoisonError::into_inner));
        arena.give_back(self);
    }
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.is_meta() {
            f.write_str("meta ")?;
        }
        match self.gpu() {
            None => f.write_str("cpu"),
            Some(gpu) if gpu.driver() == Driver::Emulator => f.write_str("emu"),
            Some(gpu) => write!(f, "cuda:{}", gpu.properties().ordinal),
        }
    }
}

impl PartialEq for Device {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_classes_waste_at_most_a_quarter() {
        for bytes in (1..100_000).chain([1 << 20, (1 << 20) + 1, 3072 * 3072 * 2, 3 << 28]) {
            let class = size_class(bytes);
            assert!(class >= bytes && class.is_multiple_of(ALIGN));
            assert!(bytes <= 1024 || class * 4 <= bytes * 5, "{bytes} → {class}");
            assert!(bytes < 1 << 20 || class * 32 <= bytes * 33, "{bytes} → {class}");
        }
    }

    #[test]
    fn blocks_are_reused_and_counted() {
        let d = Device::cpu();
        let a = d.acquire(1000).unwrap();
        d.release(a, 1000);
        let b = d.acquire(1001).unwrap();
        assert_eq!(a, b);
        assert_eq!(d.stats(), ArenaStats { live: 1024, peak: 1024, reserved: 1024 });
        d.release(b, 1001);
        assert_eq!(d.stats().live, 0);
    }

    #[test]
    fn too_much_is_an_error_with_the_numbers() {
        let e = Device::cpu().acquire(1 << 60).unwrap_err().to_string();
        assert!(e.contains("cpu") && e.contains("1099511627776.0 MiB are wanted"), "{e}");
        let small = Device::cpu_within(3 << 20);
        let a = small.acquire(2 << 20).unwrap();
        let e = small.acquire(2 << 20).unwrap_err().to_string();
        assert!(e.contains("3.0 MiB may be used, 2.0 MiB are in use"), "{e}");
        small.release(a, 2 << 20);
        let b = small.acquire(3 << 20).expect("what lay idle was given back");
        small.release(b, 3 << 20);
    }
}
