//! What launches must at least move and multiply, summed by kernel, for the kernel report to compare with what the
//! emulator counts, and how large they are. Off until it is asked for.

use super::{Gpu, lock};
use std::collections::BTreeMap;

/// The least that launches of one kernel could do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Need {
    /// How many there were.
    pub launches: u64,
    /// Bytes of global memory: what is read once, what is written once.
    pub bytes: u64,
    /// FLOPs on tensor cores: 2·m·n·k, each extent rounded up to the kernel's tile.
    pub mma_flops: u64,
    /// The most blocks of a launch.
    pub blocks: u64,
    /// The most threads of a block.
    pub threads: u32,
    /// The most bytes of dynamic shared memory of a block.
    pub shared: u32,
}

impl Need {
    pub(super) fn add(&mut self, more: &Self) {
        self.launches += more.launches;
        self.bytes += more.bytes;
        self.mma_flops += more.mma_flops;
        self.blocks = self.blocks.max(more.blocks);
        self.threads = self.threads.max(more.threads);
        self.shared = self.shared.max(more.shared);
    }
}

/// The needs by kernel, if anybody asked.
pub(super) type Ledger = Option<BTreeMap<String, Need>>;

/// Adds one ledger's entries to another's.
pub(super) fn merge(into: &mut BTreeMap<String, Need>, from: &BTreeMap<String, Need>) {
    for (kernel, need) in from {
        into.entry(kernel.clone()).or_default().add(need);
    }
}

impl Gpu {
    /// What the launches since the last call needed, by kernel; the first call begins the keeping of it.
    pub fn take_needs(&self) -> BTreeMap<String, Need> {
        lock(&self.ledger).replace(BTreeMap::new()).unwrap_or_default()
    }
}
