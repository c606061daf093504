//! A device and its caching arena: size classes, free lists, exact accounting.
//!
//! Blocks are never returned to the system while the device lives, so from the second training step on every request
//! is served from a free list and addresses repeat. The same size-class logic is meant for every device kind.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Alignment of every block: a cache line, and enough for any vector load.
pub const ALIGN: usize = 64;

/// A handle on a device; cheap to clone. There is no global device: two engines can live in one process.
#[derive(Clone)]
pub struct Device(Arc<Inner>);

struct Inner {
    poison: bool,
    arena: Mutex<Arena>,
}

#[derive(Default)]
struct Arena {
    free: BTreeMap<usize, Vec<NonNull<u8>>>,
    stats: ArenaStats,
}

// SAFETY: the pointers in the free lists are owned by the arena alone and carry no thread affinity.
unsafe impl Send for Arena {}

/// What the arena holds, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ArenaStats {
    /// In use now (rounded to size classes).
    pub live: usize,
    /// Most ever in use at once.
    pub peak: usize,
    /// Obtained from the system so far.
    pub reserved: usize,
}

/// Rounds a request up to its size class: 64-byte steps to 1 KiB, then four classes per power of two (≤ 25 % waste).
pub fn size_class(bytes: usize) -> usize {
    if bytes <= 1024 {
        return bytes.max(1).next_multiple_of(ALIGN);
    }
    let step = 1usize << (bytes.ilog2() - 2);
    bytes.next_multiple_of(step)
}

impl Device {
    /// The CPU, with an arena of its own.
    pub fn cpu() -> Self {
        Self(Arc::new(Inner { poison: cfg!(debug_assertions), arena: Mutex::default() }))
    }

    /// A CPU device that fills every fresh f32 buffer with NaN, so that a result nobody wrote is seen. For tests.
    pub fn cpu_poisoned() -> Self {
        Self(Arc::new(Inner { poison: true, arena: Mutex::default() }))
    }

    /// Memory accounting so far.
    pub fn stats(&self) -> ArenaStats {
        self.arena().stats
    }

    pub(super) fn poison(&self) -> bool {
        self.0.poison
    }

    fn arena(&self) -> MutexGuard<'_, Arena> {
        // The arena's invariants hold between any two statements, so a panic elsewhere does not spoil it.
        self.0.arena.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A block of at least `bytes`, holding zeros or what its last user left; give it back with [`Device::release`] and the same `bytes`.
    pub(super) fn acquire(&self, bytes: usize) -> NonNull<u8> {
        let class = size_class(bytes);
        let mut arena = self.arena();
        arena.stats.live += class;
        arena.stats.peak = arena.stats.peak.max(arena.stats.live);
        if let Some(ptr) = arena.free.get_mut(&class).and_then(Vec::pop) {
            return ptr;
        }
        arena.stats.reserved += class;
        drop(arena);
        let layout = layout(class);
        // SAFETY: the class, hence the layout's size, is at least 64.
        let ptr = unsafe { alloc_zeroed(layout) };
        NonNull::new(ptr).unwrap_or_else(|| handle_alloc_error(layout))
    }

    pub(super) fn release(&self, ptr: NonNull<u8>, bytes: usize) {
        let class = size_class(bytes);
        let mut arena = self.arena();
        arena.stats.live -= class;
        arena.free.entry(class).or_default().push(ptr);
    }
}

fn layout(class: usize) -> Layout {
    Layout::from_size_align(class, ALIGN).expect("a size class is far below isize::MAX")
}

impl Drop for Arena {
    fn drop(&mut self) {
        for (&class, blocks) in &self.free {
            for &ptr in blocks {
                // SAFETY: every block in the list of `class` was allocated by `acquire` with this very layout.
                unsafe { dealloc(ptr.as_ptr(), layout(class)) };
            }
        }
    }
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("cpu")
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
        for bytes in (1..100_000).chain([1 << 20, (1 << 20) + 1, 3 << 28]) {
            let class = size_class(bytes);
            assert!(class >= bytes && class.is_multiple_of(ALIGN));
            assert!(bytes <= 1024 || class * 4 <= bytes * 5, "{bytes} → {class}");
        }
    }

    #[test]
    fn blocks_are_reused_and_counted() {
        let d = Device::cpu();
        let a = d.acquire(1000);
        d.release(a, 1000);
        let b = d.acquire(1001);
        assert_eq!(a, b);
        assert_eq!(d.stats(), ArenaStats { live: 1024, peak: 1024, reserved: 1024 });
        d.release(b, 1001);
        assert_eq!(d.stats().live, 0);
    }
}
