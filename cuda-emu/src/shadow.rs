//! The record of who touched which cell of a block's shared memory. Knows no instruction.

use crate::error::Fault;

/// Four bytes of shared memory. An access is packed as clock << 9 | warp << 4 | which bytes; 0 is none.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cell {
    writer: u32,
    readers: [u32; 2],
    written: u8,
    in_flight: u8,
}

/// What each warp knows of every warp's progress: the barriers behind it.
pub(crate) type Clocks = [[u32; 32]; 32];

/// A block's shared memory as its warps see it.
#[derive(Debug)]
pub(crate) struct Shadow {
    pub cells: Vec<Cell>,
    pub clocks: Box<Clocks>,
}

impl Shadow {
    pub fn new(bytes: usize) -> Self {
        Self { cells: vec![Cell::default(); bytes.div_ceil(4)], clocks: Box::new([[0; 32]; 32]) }
    }

    pub fn reset(&mut self) {
        self.cells.fill(Cell::default());
        *self.clocks = [[0; 32]; 32];
        for w in 0..32 {
            self.clocks[w][w] = 1;
        }
    }

    /// A barrier joined by the warps of `who`: each now knows what all of them did.
    pub fn join(&mut self, who: u32) {
        let mut all = [0; 32];
        let members = || (0..32).filter(move |w| who >> w & 1 == 1);
        for w in members() {
            for (a, c) in all.iter_mut().zip(self.clocks[w]) {
                *a = c.max(*a);
            }
        }
        for w in members() {
            self.clocks[w] = all;
            self.clocks[w][w] += 1;
        }
    }

    /// Marks bytes as waiting for an asynchronous copy.
    pub fn issue(&mut self, at: usize, bytes: usize) {
        for b in at..at + bytes {
            self.cells[b / 4].in_flight |= 1 << (b % 4);
        }
    }

    /// Ends the wait for bytes.
    pub fn land(&mut self, at: usize, bytes: usize) {
        for b in at..at + bytes {
            self.cells[b / 4].in_flight &= !(1 << (b % 4));
        }
    }

    /// Records an access of `warp` to `bytes` bytes at `at` and says what is wrong with it.
    #[inline]
    pub fn touch(&mut self, at: usize, bytes: usize, warp: usize, write: bool, races: bool, init: bool) -> Option<Fault> {
        let clocks = &self.clocks[warp];
        let stamp = clocks[warp] << 9 | (warp as u32) << 4;
        let later = |a: u32, mask: u32| a & mask & 15 != 0 && clocks[(a >> 4 & 31) as usize] < a >> 9;
        let mut at = at;
        let end = at + bytes;
        while at < end {
            let next = (at / 4 * 4 + 4).min(end);
            let mask = ((1u32 << (next - at)) - 1) << (at % 4);
            let c = &mut self.cells[at / 4];
            at = next;
            if u32::from(c.in_flight) & mask != 0 {
                return Some(Fault::AsyncCopy);
            }
            if races && other(c.writer, stamp) && later(c.writer, mask) {
                return Some(Fault::SharedRace);
            }
            if write {
                if races && (other(c.readers[0], stamp) && later(c.readers[0], mask) || other(c.readers[1], stamp) && later(c.readers[1], mask)) {
                    return Some(Fault::SharedRace);
                }
                c.writer = stamp | mask | if (c.writer ^ stamp) >> 4 == 0 { c.writer & 15 } else { 0 };
                c.written |= mask as u8;
            } else {
                if init && u32::from(c.written) & mask != mask {
                    return Some(Fault::Uninitialised);
                }
                let slot = usize::from(other(c.readers[0], stamp) && later(c.readers[0], 15));
                let old = c.readers[slot];
                c.readers[slot] = stamp | mask | if (old ^ stamp) >> 4 == 0 { old & 15 } else { 0 };
            }
        }
        None
    }
}

/// Whether an access was another warp's.
#[inline(always)]
fn other(a: u32, stamp: u32) -> bool {
    (a ^ stamp) >> 4 & 31 != 0
}
