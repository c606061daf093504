//! What a captured graph holds on to, so that no replay touches memory that has become somebody else's.
//!
//! A graph's launches have addresses baked in. Two kinds of blocks are therefore the graph's as long as it lives: those
//! acquired while it was captured, and those whose address was taken meanwhile. When the tensors that hold them go, the
//! blocks come here instead of to the arena's free lists.

use std::collections::{BTreeMap, BTreeSet};
use std::ptr::NonNull;

/// A graph's blocks.
#[derive(Default)]
pub(super) struct Pool {
    pub id: u64,
    /// Every address that was given out or taken while capturing.
    touched: BTreeSet<usize>,
    /// Blocks acquired by the capture that is in progress: only these may be handed out again, and only to it. What came
    /// from outside holds values that a replay reads.
    own: BTreeSet<usize>,
    /// Such blocks that are idle, by size class.
    idle: BTreeMap<usize, Vec<NonNull<u8>>>,
    /// Blocks that no tensor holds any more, and their bytes.
    kept: Vec<(NonNull<u8>, usize)>,
}

impl Pool {
    pub fn new(id: u64) -> Self {
        Self { id, ..Self::default() }
    }

    /// An idle block of the class, for the capture that released it.
    pub fn again(&mut self, class: usize) -> Option<NonNull<u8>> {
        self.idle.get_mut(&class)?.pop()
    }

    /// A block that the capture acquires.
    pub fn acquired(&mut self, ptr: NonNull<u8>) {
        self.own.insert(ptr.as_ptr() as usize);
        self.note(ptr.as_ptr() as usize);
    }

    /// An address that the capture takes.
    pub fn note(&mut self, address: usize) {
        self.touched.insert(address);
    }

    /// Whether a replay may touch the block.
    pub fn touches(&self, ptr: NonNull<u8>, bytes: usize) -> bool {
        let first = ptr.as_ptr() as usize;
        self.touched.range(first..first + bytes.max(1)).next().is_some()
    }

    /// Takes a block that no tensor holds any more; where `reuse`, the capture may have it again.
    pub fn keep(&mut self, ptr: NonNull<u8>, bytes: usize, class: usize, reuse: bool) {
        if reuse && self.own.contains(&(ptr.as_ptr() as usize)) {
            self.idle.entry(class).or_default().push(ptr);
        } else {
            self.kept.push((ptr, bytes));
        }
    }

    /// The capture is over: from here on nothing is handed out.
    pub fn seal(&mut self) {
        self.own.clear();
        let idle = std::mem::take(&mut self.idle);
        // A class is a size of its own class.
        self.kept
            .extend(idle.into_iter().flat_map(|(class, list)| list.into_iter().map(move |p| (p, class))));
    }

    /// All blocks that no tensor holds, with their bytes: the graph is no more.
    pub fn end(mut self) -> Vec<(NonNull<u8>, usize)> {
        self.seal();
        self.kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What memory that is not the emulator's does: a capture gets its own blocks again, never one from outside.
    #[test]
    fn a_capture_reuses_its_own_blocks_alone() {
        let at = |address: usize| NonNull::new(address as *mut u8).unwrap();
        let mut pool = Pool::new(1);
        pool.acquired(at(1024));
        pool.note(4096 + 40);
        assert!(pool.touches(at(1024), 0) && pool.touches(at(4096), 41));
        assert!(!pool.touches(at(4096), 40) && !pool.touches(at(4160), 64));
        pool.keep(at(1024), 60, 64, true);
        pool.keep(at(4096), 64, 64, true);
        assert_eq!((pool.again(128), pool.again(64), pool.again(64)), (None, Some(at(1024)), None));
        pool.keep(at(1024), 64, 64, true);
        pool.seal();
        assert_eq!(pool.again(64), None);
        pool.acquired(at(8192));
        pool.keep(at(8192), 10, 64, false);
        assert_eq!(pool.end(), [(at(4096), 64), (at(1024), 64), (at(8192), 10)]);
    }
}
