//! The record of who touched which cell of a block's shared memory. Knows no instruction.
//!
//! An access is stamped with the number of barriers the block had passed (the tick), the warp, and which bytes of the
//! cell it touched. A warp that joined a barrier of the whole block is ordered after everything stamped earlier: one
//! comparison with its floor. Barriers of fewer warps are told apart by vector clocks, on the slow path.

use crate::error::Fault;

/// A stamp is tick << 9 | warp << 4 | which bytes.
const TICK: u32 = 9;
/// Ticks before everything is cleared, so that a stamp never overflows.
const LAST_TICK: u32 = 1 << 22;

/// Flags of a cell: which bytes were written, which are in flight, whether the last writer was an atomic.
const WRITTEN: u16 = 0x0f;
const FLYING: u16 = 0xf0;
const ATOMIC: u16 = 0x100;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
    Atomic,
}

/// A block's shared memory as its warps see it, in cells of four bytes.
#[derive(Debug)]
pub(crate) struct Shadow {
    writer: Vec<u32>,
    readers: [Vec<u32>; 2],
    flags: Vec<u16>,
    /// What each warp knows of every warp's progress: the tick up to which it is ordered after that warp.
    clocks: Box<[[u32; 32]; 32]>,
    /// Every access stamped below this is ordered before the warp.
    floor: [u32; 32],
    tick: u32,
    pub races: bool,
    pub init: bool,
}

impl Shadow {
    pub fn new(bytes: usize, races: bool, init: bool) -> Self {
        let n = bytes.div_ceil(4);
        Self {
            writer: vec![0; n],
            readers: [vec![0; n], vec![0; n]],
            flags: vec![0; n],
            clocks: Box::new([[0; 32]; 32]),
            floor: [0; 32],
            tick: 0,
            races,
            init,
        }
    }

    /// Forgets everything: a new block begins.
    pub fn reset(&mut self) {
        self.flags.fill(0);
        if self.tick >= LAST_TICK {
            self.clear();
        }
        self.tick += 1;
        self.floor = [self.tick; 32];
        for (w, clocks) in self.clocks.iter_mut().enumerate() {
            *clocks = [self.tick - 1; 32];
            clocks[w] = self.tick;
        }
    }

    fn clear(&mut self) {
        self.writer.fill(0);
        self.readers.iter_mut().for_each(|r| r.fill(0));
        self.tick = 0;
    }

    /// A barrier joined by the warps of `who`, perhaps all there are: each now knows what all of them did.
    pub fn join(&mut self, who: u32, whole: bool) {
        if self.tick >= LAST_TICK && whole {
            self.clear();
            self.floor = [0; 32];
            *self.clocks = [[0; 32]; 32];
        }
        self.tick += 1;
        let mut all = [0; 32];
        let members = || (0..32).filter(move |w| who >> w & 1 == 1);
        for w in members() {
            for (a, c) in all.iter_mut().zip(self.clocks[w]) {
                *a = c.max(*a);
            }
        }
        for w in members() {
            self.clocks[w] = all;
            self.clocks[w][w] = self.tick;
            if whole {
                self.floor[w] = self.tick;
            }
        }
    }

    /// Marks cells as waiting for an asynchronous copy.
    pub fn issue(&mut self, cell: usize, n: usize) {
        self.flags[cell..cell + n].iter_mut().for_each(|f| *f |= FLYING);
    }

    /// Ends the wait for cells.
    pub fn land(&mut self, cell: usize, n: usize) {
        self.flags[cell..cell + n].iter_mut().for_each(|f| *f &= !FLYING);
    }

    /// Records an access of `warp` to whole cells and says what is wrong with it. The checks of all cells come first
    /// and vectorise; only where one fails are they gone through one by one.
    #[inline(always)]
    pub fn cells(&mut self, cell: usize, n: usize, warp: usize, kind: Kind) -> Option<Fault> {
        let stamp = self.tick_of(warp) << TICK | (warp as u32) << 4 | u32::from(WRITTEN);
        let (floor, me) = (self.floor[warp] << TICK, (warp as u32) << 4);
        let range = cell..cell + n;
        let (writer, flags) = (&mut self.writer[range.clone()], &mut self.flags[range.clone()]);
        let [r0, r1] = &mut self.readers;
        let (r0, r1) = (&mut r0[range.clone()], &mut r1[range]);
        let fine = |a: u32| a < floor || a & 0x1f0 == me;
        let mut ok = true;
        match kind {
            Kind::Read => {
                let flag = if self.init { WRITTEN } else { 0 };
                for (&w, &f) in writer.iter().zip(flags.iter()) {
                    ok &= (fine(w) || !self.races) & (f & (FLYING | flag) == flag);
                }
                if ok {
                    for (a, b) in r0.iter_mut().zip(r1.iter_mut()) {
                        let first = fine(*a);
                        *b = if first { *b } else { stamp };
                        *a = if first { stamp } else { *a };
                    }
                    return None;
                }
            }
            Kind::Write => {
                for (((&w, &f), &a), &b) in writer.iter().zip(flags.iter()).zip(r0.iter()).zip(r1.iter()) {
                    ok &= (fine(w) & fine(a) & fine(b) || !self.races) & (f & FLYING == 0);
                }
                if ok {
                    writer.fill(stamp);
                    flags.fill(WRITTEN);
                    return None;
                }
            }
            Kind::Atomic => {}
        }
        self.touch(cell * 4, n * 4, warp, kind)
    }

    /// Records an access to `words` whole cells from each lane's address on, and says which lanes it did not record
    /// because something may be wrong with theirs.
    #[inline(always)]
    pub fn scattered(&mut self, at: &[u64; 32], mask: u32, words: usize, warp: usize, kind: Kind) -> u32 {
        let stamp = self.tick_of(warp) << TICK | (warp as u32) << 4 | u32::from(WRITTEN);
        let (floor, me) = (self.floor[warp] << TICK, (warp as u32) << 4);
        let flag = if self.init { WRITTEN } else { 0 };
        let free = !self.races;
        let fine = |a: u32| (a < floor) | (a & 0x1f0 == me) | free;
        let n = self.writer.len() as u64;
        let past = |a: &u64| (a / 4 + words as u64 > n) as u32;
        if at.iter().enumerate().fold(0, |p, (l, a)| p | (past(a) & mask >> l)) & 1 == 1 {
            return mask;
        }
        let [r0, r1] = &mut self.readers;
        let (writer, flags) = (self.writer.as_mut_ptr(), self.flags.as_mut_ptr());
        let (r0, r1) = (r0.as_mut_ptr(), r1.as_mut_ptr());
        let mut bad = 0;
        let mut one = |l: usize, c: usize| {
            // SAFETY: `c` is below the length of all four, as was checked for every lane of the mask.
            unsafe {
                let (w, f, a) = (*writer.add(c), *flags.add(c), *r0.add(c));
                if kind == Kind::Read {
                    if fine(w) & (f & (FLYING | flag) == flag) {
                        *(if fine(a) { r0.add(c) } else { r1.add(c) }) = stamp;
                    } else {
                        bad |= 1 << l;
                    }
                } else if fine(w) & fine(a) & fine(*r1.add(c)) & (f & FLYING == 0) {
                    *writer.add(c) = stamp;
                    *flags.add(c) = WRITTEN;
                } else {
                    bad |= 1 << l;
                }
            }
        };
        if mask == u32::MAX && words == 1 {
            at.iter().enumerate().for_each(|(l, a)| one(l, (a / 4) as usize));
        } else {
            for (l, a) in at.iter().enumerate().filter(|(l, _)| mask >> l & 1 == 1) {
                (0..words).for_each(|n| one(l, (a / 4) as usize + n));
            }
        }
        bad
    }

    fn tick_of(&self, warp: usize) -> u32 {
        self.clocks[warp][warp]
    }

    /// Records an access of `warp` to `bytes` bytes at `at` and says what is wrong with it.
    pub fn touch(&mut self, at: usize, bytes: usize, warp: usize, kind: Kind) -> Option<Fault> {
        let clocks = &self.clocks[warp];
        let stamp = clocks[warp] << TICK | (warp as u32) << 4;
        let floor = self.floor[warp] << TICK;
        let later = |a: u32, mask: u32| {
            a >= floor
                && a & mask & 15 != 0
                && (a ^ stamp) & 0x1f0 != 0
                && clocks[(a >> 4 & 31) as usize] < a >> TICK
        };
        let merge = |old: u32, mask: u32| stamp | mask | if (old ^ stamp) >> 4 == 0 { old & 15 } else { 0 };
        let (mut at, end) = (at, at + bytes);
        while at < end {
            let (c, next) = (at / 4, (at / 4 * 4 + 4).min(end));
            let mask = ((1u32 << (next - at)) - 1) << (at % 4);
            at = next;
            if u32::from(self.flags[c] >> 4) & 15 & mask != 0 {
                return Some(Fault::AsyncCopy);
            }
            let writer = self.writer[c];
            let atomics = kind == Kind::Atomic && self.flags[c] & ATOMIC != 0;
            if self.races && !atomics && later(writer, mask) {
                return Some(Fault::SharedRace);
            }
            if kind != Kind::Write && self.init && u32::from(self.flags[c]) & mask != mask {
                return Some(Fault::Uninitialised);
            }
            let [r0, r1] = [self.readers[0][c], self.readers[1][c]];
            if kind == Kind::Read {
                let slot = usize::from(later(r0, 15));
                self.readers[slot][c] = merge([r0, r1][slot], mask);
            } else {
                if self.races && (later(r0, mask) || later(r1, mask)) {
                    return Some(Fault::SharedRace);
                }
                self.writer[c] = merge(writer, mask);
                let atomic = if kind == Kind::Atomic { ATOMIC } else { 0 };
                self.flags[c] = self.flags[c] & !ATOMIC | mask as u16 | atomic;
            }
        }
        None
    }
}
