//! What a launch did, counted.

use crate::ir::CLASSES;
use std::fmt;

/// Counts of one launch. Instructions are counted once per warp.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    /// Warp-instructions by class.
    pub classes: [u64; CLASSES.len()],
    /// Floating and integer operations of matrix products: 2·m·n·k each.
    pub mma_flops: u64,
    /// Bytes that threads read from global memory.
    pub global_read: u64,
    /// Bytes that threads wrote to global memory.
    pub global_written: u64,
    /// Warp-wide requests to global memory.
    pub requests: u64,
    /// 32-byte sectors those requests touched.
    pub sectors: u64,
    /// Warp-wide requests to shared memory.
    pub shared: u64,
    /// Extra passes over the shared-memory banks.
    pub bank_conflicts: u64,
    /// Barriers, counted once per warp that arrives.
    pub barriers: u64,
    /// Branches that split a warp.
    pub divergent: u64,
}

impl Counters {
    /// All warp-instructions.
    pub fn instructions(&self) -> u64 {
        self.classes.iter().sum()
    }

    /// Names and values, in a fixed order.
    pub fn items(&self) -> Vec<(&'static str, u64)> {
        let mut v = vec![("instructions", self.instructions())];
        v.extend(CLASSES.into_iter().zip(self.classes));
        v.extend([
            ("mma FLOPs", self.mma_flops),
            ("global bytes read", self.global_read),
            ("global bytes written", self.global_written),
            ("global requests", self.requests),
            ("global sectors", self.sectors),
            ("shared requests", self.shared),
            ("bank conflicts", self.bank_conflicts),
            ("barrier arrivals", self.barriers),
            ("divergent branches", self.divergent),
        ]);
        v
    }

    /// The counts as a JSON object.
    pub fn to_json(&self) -> String {
        let items: Vec<_> =
            self.items().iter().map(|(k, v)| format!("\"{}\":{v}", k.replace(' ', "_"))).collect();
        format!("{{{}}}", items.join(","))
    }

    /// Adds another launch's counts.
    pub fn add(&mut self, o: &Self) {
        for (a, b) in self.classes.iter_mut().zip(o.classes) {
            *a += b;
        }
        self.mma_flops += o.mma_flops;
        self.global_read += o.global_read;
        self.global_written += o.global_written;
        self.requests += o.requests;
        self.sectors += o.sectors;
        self.shared += o.shared;
        self.bank_conflicts += o.bank_conflicts;
        self.barriers += o.barriers;
        self.divergent += o.divergent;
    }
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (k, v) in self.items().iter().filter(|(_, v)| *v > 0) {
            writeln!(f, "{k:<22}{v:>16}")?;
        }
        Ok(())
    }
}
