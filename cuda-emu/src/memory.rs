//! The device's global memory: allocations with guard gaps between them, whose addresses are never used twice,
//! each with a bitmap of the bytes that were written. Knows nothing of kernels.

use crate::error::Error;
use std::cell::UnsafeCell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
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
        Self { start, bytes, name: name.to_owned(), data, written: zeroed(bytes.div_ceil(64) as usize) }
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
    pub fn alloc(&self, bytes: u64, name: &str) -> u64 {
        let mut t = self.table();
        let addr = t.next.max(FIRST);
        t.next = (addr + bytes + GAP).next_multiple_of(ALIGN);
        t.live.insert(addr, Arc::new(Block::new(addr, bytes, name)));
        addr
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
                let what = if t.freed.contains_key(&addr) { "double free" } else { "free of an unknown address" };
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

    /// The allocations a launch may touch.
    pub(crate) fn views(&self) -> Vec<View> {
        self.table().live.values().map(|b| View { block: b.clone(), cells: OnceLock::new() }).collect()
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
                Some((s, b)) => format!(", {} bytes before \"{}\" ({} bytes at {s:#x})", s - addr, b.name, b.bytes),
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

/// An allocation as one launch sees it: with a record of which blocks touched which cell.
pub(crate) struct View {
    pub block: Arc<Block>,
    cells: OnceLock<Box<[AtomicU64]>>,
}

/// A cell's reader when several blocks read it.
const MANY: u64 = (1 << 28) - 1;

impl View {
    /// Records an access of block number `cta` to the `bytes` bytes at offset `at`, and says whether another block
    /// touched one of them so that the two are not ordered: `Some(true)` if that one wrote.
    #[inline]
    pub fn touch(&self, at: u64, bytes: u64, cta: u64, write: bool) -> Option<bool> {
        let cells = self.cells.get_or_init(|| zeroed(self.block.bytes.div_ceil(4) as usize));
        let me = (cta + 1).min(MANY - 1);
        let end = at + bytes;
        for c in at / 4..end.div_ceil(4) {
            let mask = ((1u64 << (end.min(c * 4 + 4) - c * 4)) - 1) & !((1u64 << (at.max(c * 4) - c * 4)) - 1);
            let cell = &cells[c as usize];
            // Two halves, writer above reader: 28 bits of block number + 1, 4 bits of which bytes.
            let old = cell.load(Relaxed);
            let (writer, wrote, reader, read) =
                (old >> 36, old >> 32 & 15, old >> 4 & MANY, old & 15);
            if writer != 0 && writer != me && wrote & mask != 0 {
                return Some(true);
            }
            if write && reader != 0 && reader != me && read & mask != 0 {
                return Some(false);
            }
            let new = if write {
                let wrote = if writer == me { wrote | mask } else { mask };
                (old & 0xffff_ffff) | me << 36 | wrote << 32
            } else {
                let reader = if reader == 0 || reader == me { me } else { MANY };
                (old & !0xffff_ffff) | reader << 4 | read | mask
            };
            if new != old && cell.compare_exchange(old, new, Relaxed, Relaxed).is_err() {
                return self.touch(at, bytes, cta, write);
            }
        }
        None
    }
}
