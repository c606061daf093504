//! The device's global memory: allocations with guard gaps between them, whose addresses are never used twice,
//! each with a bitmap of the bytes that were written. Knows nothing of kernels.

use crate::error::Error;
use std::cell::UnsafeCell;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// Where addresses start. Above 32 bits, so that a truncated pointer is caught.
const FIRST: u64 = 0x7_0000_0000;
/// Bytes between allocations, at least.
const GAP: u64 = 64 << 10;
/// Every allocation starts at a multiple of this.
const ALIGN: u64 = 512;

/// A live allocation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allocation {
    /// Its first address.
    pub addr: u64,
    /// Its length.
    pub bytes: u64,
    /// The name it was given.
    pub name: String,
}

/// One allocation's bytes, and which of them were written.
pub(crate) struct Block {
    pub start: u64,
    pub bytes: u64,
    pub name: String,
    data: Box<[UnsafeCell<u64>]>,
    /// One bit per byte.
    written: Box<[AtomicU64]>,
    /// Who touched which cell; made at the first launch that looks.
    record: OnceLock<Record>,
}

// SAFETY: `data` is reached through raw pointers only. Kernels may race on it as they may on a device; the host and
// the launches order themselves.
unsafe impl Sync for Block {}
// SAFETY: as above; nothing in it belongs to a thread.
unsafe impl Send for Block {}

pub(crate) fn zeroed(n: usize) -> Box<[AtomicU64]> {
    let words = Box::into_raw(vec![0u64; n].into_boxed_slice());
    // SAFETY: AtomicU64 has the size, alignment and bits of u64, and the box is ours alone.
    unsafe { Box::from_raw(words as *mut [AtomicU64]) }
}

/// The bits of word `word` that the byte range covers.
fn bits(first: u64, end: u64, word: u64) -> u64 {
    let (lo, hi) = (first.max(word * 64) - word * 64, end.min(word * 64 + 64) - word * 64);
    (!0 >> (64 - (hi - lo))) << lo
}

impl Block {
    fn new(start: u64, bytes: u64, name: &str) -> Self {
        let words = bytes.div_ceil(8) as usize;
        let data = Box::into_raw(vec![0u64; words].into_boxed_slice());
        // SAFETY: UnsafeCell<u64> has the layout of u64, and the box is ours alone.
        let data = unsafe { Box::from_raw(data as *mut [UnsafeCell<u64>]) };
        Self {
            start,
            bytes,
            name: name.to_owned(),
            data,
            written: zeroed(bytes.div_ceil(64) as usize),
            record: OnceLock::new(),
        }
    }

    pub fn end(&self) -> u64 {
        self.start + self.bytes
    }

    /// The first of the block's bytes.
    pub fn ptr(&self) -> *mut u8 {
        self.data.as_ptr() as *mut u8
    }

    /// Whether all of `bytes` (not 0) bytes at offset `at` were written.
    #[inline]
    pub fn is_written(&self, at: u64, bytes: u64) -> bool {
        (at / 64..=(at + bytes - 1) / 64).all(|w| {
            let m = bits(at, at + bytes, w);
            self.written[w as usize].load(Relaxed) & m == m
        })
    }

    /// Which of the `n` bytes (1 to 64) from `at` on were written, the first in the lowest bit.
    fn written_at(&self, at: u64, n: u64) -> u64 {
        let (w, shift) = ((at / 64) as usize, at % 64);
        let low = self.written[w].load(Relaxed) >> shift;
        let high = if shift + n > 64 { self.written[w + 1].load(Relaxed) << (64 - shift) } else { 0 };
        (low | high) & (!0 >> (64 - n))
    }

    /// Makes it so that just those were.
    fn set_written(&self, at: u64, n: u64, bits: u64) {
        let (w, shift, mask) = ((at / 64) as usize, at % 64, !0u64 >> (64 - n));
        let set = |w: usize, bits: u64, mask: u64| {
            self.written[w].fetch_and(!mask | bits, Relaxed);
            self.written[w].fetch_or(mask & bits, Relaxed);
        };
        set(w, bits << shift, mask << shift);
        if shift + n > 64 {
            set(w + 1, bits >> (64 - shift), mask >> (64 - shift));
        }
    }

    /// Marks `bytes` bytes at offset `at` as written.
    #[inline]
    pub fn mark(&self, at: u64, bytes: u64) {
        if bytes == 0 {
            return;
        }
        for w in at / 64..=(at + bytes - 1) / 64 {
            let (m, cell) = (bits(at, at + bytes, w), &self.written[w as usize]);
            if cell.load(Relaxed) & m != m {
                cell.fetch_or(m, Relaxed);
            }
        }
    }
}

#[derive(Default)]
struct Table {
    next: u64,
    /// Ids of blocks given out.
    ids: u64,
    live: BTreeMap<u64, Arc<Block>>,
    freed: BTreeMap<u64, (u64, String)>,
}

/// The device's address space, shared by all launches.
#[derive(Default)]
pub struct Memory(Mutex<Table>);

impl Memory {
    /// An empty address space.
    pub fn new() -> Self {
        Self::default()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reserves `bytes` bytes, aligned to 512, uninitialised; `name` is what reports call them.
    ///
    /// # Panics
    /// Where [`Memory::try_alloc`] is an error.
    pub fn alloc(&self, bytes: u64, name: &str) -> u64 {
        self.try_alloc(bytes, name).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// The same, with an error where this machine cannot hold so much: the bytes, and an eighth for what was written.
    pub fn try_alloc(&self, bytes: u64, name: &str) -> Result<u64, Error> {
        let whole = bytes.checked_add(bytes / 8).and_then(|n| usize::try_from(n).ok());
        if whole.is_none_or(|n| Vec::<u8>::new().try_reserve_exact(n).is_err()) {
            let what = "allocation of more than this machine can hold";
            return Err(Error::Memory { what, addr: 0, bytes, near: String::new() });
        }
        let mut t = self.table();
        let addr = t.next.max(FIRST);
        t.next = (addr + bytes + GAP).next_multiple_of(ALIGN);
        t.live.insert(addr, Arc::new(Block::new(addr, bytes, name)));
        Ok(addr)
    }

    /// Gives an allocation back. Its address must be one that `alloc` returned, and not freed yet.
    pub fn free(&self, addr: u64) -> Result<(), Error> {
        let mut t = self.table();
        match t.live.remove(&addr) {
            Some(b) => {
                t.freed.insert(addr, (b.bytes, b.name.clone()));
                Ok(())
            }
            None => {
                let what =
                    if t.freed.contains_key(&addr) { "double free" } else { "free of an unknown address" };
                Err(Error::Memory { what, addr, bytes: 0, near: t.near(addr) })
            }
        }
    }

    fn block(&self, what: &'static str, addr: u64, bytes: u64) -> Result<Arc<Block>, Error> {
        let t = self.table();
        t.live
            .range(..=addr)
            .next_back()
            .map(|b| b.1)
            .filter(|b| addr.checked_add(bytes).is_some_and(|end| end <= b.end()))
            .cloned()
            .ok_or_else(|| Error::Memory { what, addr, bytes, near: t.near(addr) })
    }

    /// Copies host bytes to the device.
    pub fn write(&self, addr: u64, data: &[u8]) -> Result<(), Error> {
        let b = self.block("write outside every allocation", addr, data.len() as u64)?;
        let at = addr - b.start;
        // SAFETY: `block` proved the range inside the allocation.
        unsafe { b.ptr().add(at as usize).copy_from(data.as_ptr(), data.len()) };
        b.mark(at, data.len() as u64);
        Ok(())
    }

    /// Copies device bytes to the host. Uninitialised bytes read as they happen to be.
    pub fn read(&self, addr: u64, out: &mut [u8]) -> Result<(), Error> {
        let b = self.block("read outside every allocation", addr, out.len() as u64)?;
        // SAFETY: `block` proved the range inside the allocation.
        unsafe { b.ptr().add((addr - b.start) as usize).copy_to(out.as_mut_ptr(), out.len()) };
        Ok(())
    }

    /// Copies within the device, as if through a buffer between. What was never written stays so where it arrives.
    pub fn copy(&self, to: u64, from: u64, bytes: u64) -> Result<(), Error> {
        let source = self.block("copy from outside every allocation", from, bytes)?;
        let target = self.block("copy to outside every allocation", to, bytes)?;
        let (from, to) = (from - source.start, to - target.start);
        // SAFETY: `block` proved both ranges inside their allocations; they may overlap.
        unsafe { target.ptr().add(to as usize).copy_from(source.ptr().add(from as usize), bytes as usize) };
        // All is read before any is changed: the two may be one allocation.
        let pieces: Vec<u64> =
            (0..bytes).step_by(64).map(|at| source.written_at(from + at, (bytes - at).min(64))).collect();
        for (at, piece) in (0..bytes).step_by(64).zip(pieces) {
            target.set_written(to + at, (bytes - at).min(64), piece);
        }
        Ok(())
    }

    /// Sets `bytes` bytes to `value`.
    pub fn fill(&self, addr: u64, value: u8, bytes: u64) -> Result<(), Error> {
        let b = self.block("fill outside every allocation", addr, bytes)?;
        // SAFETY: `block` proved the range inside the allocation.
        unsafe { b.ptr().add((addr - b.start) as usize).write_bytes(value, bytes as usize) };
        b.mark(addr - b.start, bytes);
        Ok(())
    }

    /// What is allocated now, by address.
    pub fn live(&self) -> Vec<Allocation> {
        let t = self.table();
        t.live.values().map(|b| Allocation { addr: b.start, bytes: b.bytes, name: b.name.clone() }).collect()
    }

    /// The allocations a launch of so many blocks may touch, and the first of the ids that are its own.
    pub(crate) fn views(&self, blocks: u64) -> (Vec<View>, u32) {
        let mut t = self.table();
        if t.ids + blocks + 1 > IDS {
            // Once in 268 million blocks everything is forgotten.
            for r in t.live.values().filter_map(|b| b.record.get()) {
                r.writers.iter().chain(&r.readers).for_each(|c| c.store(0, Relaxed));
            }
            t.ids = 0;
        }
        let first = t.ids + 1;
        t.ids = (first + blocks).min(IDS - 1);
        (t.live.values().map(|b| View { block: b.clone() }).collect(), first as u32)
    }

    /// Whether `addr` was freed, and the allocations about it in words.
    pub(crate) fn near(&self, addr: u64) -> (bool, String) {
        let t = self.table();
        let freed = t.freed.range(..=addr).next_back().is_some_and(|(s, (n, _))| addr < s + n.max(&1));
        (freed, t.near(addr))
    }
}

impl Table {
    fn near(&self, addr: u64) -> String {
        let live = self.live.range(..=addr).next_back().map(|(s, b)| (*s, b.bytes, b.name.as_str(), ""));
        let freed = self.freed.range(..=addr).next_back().map(|(s, b)| (*s, b.0, b.1.as_str(), "freed "));
        let below = live.into_iter().chain(freed).max();
        match below {
            None => match self.live.range(addr..).next() {
                None => ", no allocation near".into(),
                Some((s, b)) => {
                    format!(", {} bytes before \"{}\" ({} bytes at {s:#x})", s - addr, b.name, b.bytes)
                }
            },
            Some((s, n, name, freed)) if addr < s + n => {
                format!(", byte {} of {freed}\"{name}\" ({n} bytes at {s:#x})", addr - s)
            }
            Some((s, n, name, freed)) => {
                format!(", {} bytes past the end of {freed}\"{name}\" ({n} bytes at {s:#x})", addr - s - n)
            }
        }
    }
}

/// An allocation as one launch sees it.
pub(crate) struct View {
    pub block: Arc<Block>,
}

/// Who touched what, in cells of four bytes, each an id above four bits of which bytes. Every launch has ids of its own:
/// its first stands for several readers, the next for its first block and so on. Lower ones are of launches before it, so
/// that nothing need be cleared between launches.
struct Record {
    writers: Box<[AtomicU32]>,
    readers: Box<[AtomicU32]>,
    /// One lock per [`LINE`] cells: a lock is dearer than the few cells it lets us change at leisure.
    locks: Box<[AtomicBool]>,
}

/// Cells under one lock.
const LINE: u64 = 128;
/// Ids there are.
const IDS: u64 = 1 << 28;

/// The lock of one line, held.
struct Held<'a>(&'a AtomicBool);

impl<'a> Held<'a> {
    #[inline(always)]
    fn take(lock: &'a AtomicBool) -> Self {
        while lock.swap(true, Acquire) {
            std::hint::spin_loop();
        }
        Self(lock)
    }
}

impl Drop for Held<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        self.0.store(false, Release);
    }
}

fn zeroed32(n: usize) -> Box<[AtomicU32]> {
    let words = Box::into_raw(vec![0u32; n].into_boxed_slice());
    // SAFETY: AtomicU32 has the size, alignment and bits of u32, and the box is ours alone.
    unsafe { Box::from_raw(words as *mut [AtomicU32]) }
}

impl View {
    fn record(&self) -> &Record {
        self.block.record.get_or_init(|| {
            let cells = self.block.bytes.div_ceil(4);
            let locks = (0..cells.div_ceil(LINE)).map(|_| AtomicBool::new(false)).collect();
            Record { writers: zeroed32(cells as usize), readers: zeroed32(cells as usize), locks }
        })
    }

    /// Records an access of block number `cta`, of a launch whose ids start at `first`, to the `bytes` bytes at offset
    /// `at`. Where another block touched one of them so that the two are not ordered, says which block, and whether that
    /// one wrote.
    #[inline(always)]
    pub fn touch(
        &self,
        at: u64,
        bytes: u64,
        first: u32,
        cta: u64,
        write: bool,
    ) -> Option<(Option<u64>, bool)> {
        let r = self.record();
        let me = [first, (u64::from(first) + 1 + cta).min(IDS - 1) as u32];
        let (mut at, end) = (at, at + bytes);
        while at < end {
            let line = at / (LINE * 4);
            let stop = end.min((line + 1) * LINE * 4);
            let _held = Held::take(&r.locks[line as usize]);
            let cells = (at / 4) as usize..stop.div_ceil(4) as usize;
            let (writers, readers) = (&r.writers[cells.clone()], &r.readers[cells]);
            let whole = at % 4 == 0 && stop % 4 == 0;
            // SAFETY: the line's lock is held.
            let fine = whole && unsafe { touch_whole(writers, readers, me, write) };
            if !fine && let Some(other) = touch_parts(writers, readers, at, stop, me, write) {
                return Some(other);
            }
            at = stop;
        }
        None
    }
}

/// All the cells whole: true if nothing is wrong, and then they are recorded.
///
/// # Safety
/// The caller must hold the lock of the cells' line.
#[inline(always)]
unsafe fn touch_whole(
    writers: &[AtomicU32],
    readers: &[AtomicU32],
    [many, me]: [u32; 2],
    write: bool,
) -> bool {
    // SAFETY: these words are only touched under their line's lock, which the caller holds; as plain words they vectorise.
    let (writers, readers) = unsafe {
        let (w, r) = (writers.as_ptr() as *mut u32, readers.as_ptr() as *mut u32);
        (std::slice::from_raw_parts_mut(w, writers.len()), std::slice::from_raw_parts_mut(r, readers.len()))
    };
    let other = |cell: u32| (cell >> 4 >= many) & (cell >> 4 != me);
    let mut bad = false;
    if write {
        for (&w, &r) in writers.iter().zip(readers.iter()) {
            bad |= other(w) | other(r);
        }
        if !bad {
            writers.fill(me << 4 | 15);
        }
    } else {
        for &w in writers.iter() {
            bad |= other(w);
        }
        if !bad {
            for r in readers {
                *r = if other(*r) { many << 4 | 15 } else { me << 4 | 15 };
            }
        }
    }
    !bad
}

/// The same cell by cell and byte by byte, under the lock.
fn touch_parts(
    writers: &[AtomicU32],
    readers: &[AtomicU32],
    at: u64,
    end: u64,
    [many, me]: [u32; 2],
    write: bool,
) -> Option<(Option<u64>, bool)> {
    for (n, (writer, reader)) in writers.iter().zip(readers).enumerate() {
        let c = at / 4 + n as u64;
        let (lo, hi) = (at.max(c * 4) - c * 4, end.min(c * 4 + 4) - c * 4);
        let mask = ((1u32 << hi) - 1) & !((1 << lo) - 1);
        let (w, r) = (writer.load(Relaxed), reader.load(Relaxed));
        let old = |cell: u32| cell >> 4 < many;
        let other = |cell: u32| !old(cell) && cell & mask != 0 && cell >> 4 != me;
        let who = |cell: u32| (cell >> 4 > many).then(|| u64::from(cell >> 4) - u64::from(many) - 1);
        if other(w) {
            return Some((who(w), true));
        }
        if write && other(r) {
            return Some((who(r), false));
        }
        if write {
            writer.store(me << 4 | mask | if w >> 4 == me { w & 15 } else { 0 }, Relaxed);
        } else {
            let by = if old(r) || r >> 4 == me { me } else { many };
            reader.store(by << 4 | mask | if old(r) { 0 } else { r & 15 }, Relaxed);
        }
    }
    None
}
