//! Atomics, and asynchronous copies: the accesses that are more than a load or a store.

use crate::access::{Lanes, addresses, conflicts, lanes};
use crate::error::Report;
use crate::exec::{Cta, Done, Pending, Warp};
use crate::ir::{Access, Instr, NONE, Rmw, Space, Ty};
use crate::num::{self, Round};
use crate::shadow::Kind;
use half::{bf16, f16};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};

/// The new value of a cell that held `old`.
fn apply(op: Rmw, ty: Ty, old: u64, b: u64, c: u64) -> u64 {
    let pair = |f: &dyn Fn(u64, u64) -> u64| {
        f(old & 0xffff, b & 0xffff) | f(old >> 16 & 0xffff, b >> 16 & 0xffff) << 16
    };
    match (op, ty) {
        (Rmw::Exch, _) => b,
        (Rmw::Cas, _) => {
            if old == b {
                c
            } else {
                old
            }
        }
        (Rmw::And, _) => old & b,
        (Rmw::Or, _) => old | b,
        (Rmw::Xor, _) => old ^ b,
        (Rmw::Inc, _) => {
            if old >= b {
                0
            } else {
                old + 1
            }
        }
        (Rmw::Dec, _) => {
            if old == 0 || old > b {
                b
            } else {
                old - 1
            }
        }
        (_, Ty::F32) => f32_op(op, old as u32, b as u32).into(),
        (_, Ty::F64) => (f64::from_bits(old) + f64::from_bits(b)).to_bits(),
        (_, Ty::F16) => f16_op(op, old, b),
        (_, Ty::Bf16) => bf16_op(op, old, b),
        (_, Ty::F16x2) => pair(&|a, b| f16_op(op, a, b)),
        (_, Ty::Bf16x2) => pair(&|a, b| bf16_op(op, a, b)),
        (Rmw::Add, _) => old.wrapping_add(b),
        (Rmw::Min, Ty::S(4)) => (old as i32).min(b as i32) as u32 as u64,
        (Rmw::Max, Ty::S(4)) => (old as i32).max(b as i32) as u32 as u64,
        (Rmw::Min, Ty::S(_)) => (old as i64).min(b as i64) as u64,
        (Rmw::Max, Ty::S(_)) => (old as i64).max(b as i64) as u64,
        (Rmw::Min, _) => old.min(b),
        (Rmw::Max, _) => old.max(b),
    }
}

fn f32_op(op: Rmw, a: u32, b: u32) -> u32 {
    let (x, y) = (f32::from_bits(a), f32::from_bits(b));
    match op {
        Rmw::Min => num::min(x, y, false),
        Rmw::Max => num::max(x, y, false),
        _ => num::canonical(x + y),
    }
    .to_bits()
}

fn f16_op(op: Rmw, a: u64, b: u64) -> u64 {
    let (x, y) = (f16::from_bits(a as u16).to_f64(), f16::from_bits(b as u16).to_f64());
    num::to_f16(half_op(op, x, y), Round::Nearest).to_bits().into()
}

fn bf16_op(op: Rmw, a: u64, b: u64) -> u64 {
    let (x, y) = (bf16::from_bits(a as u16).to_f64(), bf16::from_bits(b as u16).to_f64());
    num::to_bf16(half_op(op, x, y), Round::Nearest).to_bits().into()
}

fn half_op(op: Rmw, x: f64, y: f64) -> f64 {
    match op {
        Rmw::Min => num::min(x as f32, y as f32, false).into(),
        Rmw::Max => num::max(x as f32, y as f32, false).into(),
        _ => num::add_odd(x, y),
    }
}

/// Does the operation on memory that other threads may be doing theirs on, and gives the old value.
///
/// # Safety
/// `p` must point to `bytes` (2, 4 or 8) bytes, aligned to that, in memory that is a multiple of 8 bytes long.
unsafe fn update(p: *mut u8, bytes: u8, f: impl Fn(u64) -> u64) -> u64 {
    // SAFETY: the caller's promise; a 16-bit cell is part of an aligned 32-bit word of the same memory.
    unsafe {
        match bytes {
            8 => {
                let cell = AtomicU64::from_ptr(p.cast());
                cell.fetch_update(SeqCst, SeqCst, |old| Some(f(old))).unwrap_or_else(|old| old)
            }
            4 => {
                let cell = AtomicU32::from_ptr(p.cast());
                cell.fetch_update(SeqCst, SeqCst, |old| Some(f(old.into()) as u32))
                    .unwrap_or_else(|old| old)
                    .into()
            }
            _ => {
                let shift = (p as usize & 2) * 8;
                let cell = AtomicU32::from_ptr(p.sub(p as usize & 2).cast());
                let new = |old: u32| {
                    let half = f(u64::from(old >> shift & 0xffff)) as u32 & 0xffff;
                    Some(old & !(0xffff << shift) | half << shift)
                };
                u64::from(cell.fetch_update(SeqCst, SeqCst, new).unwrap_or_else(|old| old) >> shift & 0xffff)
            }
        }
    }
}

impl Cta<'_> {
    /// Executes `atom` or `red`, lane after lane.
    pub(crate) fn atomic(&mut self, w: &mut Warp, i: &Instr, acc: Access, op: Rmw, ty: Ty, m: u32) -> Done {
        let mut at = addresses(w, i.a, i.e, acc.wide);
        let size = u64::from(acc.bytes);
        self.aligned(w, i, &at, m, size, acc.space)?;
        let wide = acc.bytes == 8;
        let mut shared = 0u32;
        for l in lanes(m) {
            if acc.space == Space::Shared || acc.space == Space::Generic && at[l] >> 40 == 1 {
                at[l] &= (1 << 40) - 1;
                shared |= 1 << l;
            }
        }
        if shared != 0 {
            self.counters.shared += 1;
            self.counters.bank_conflicts += conflicts(&at, shared, size);
        }
        if m & !shared != 0 {
            self.counters.requests += 1;
            let mut list: Vec<_> = lanes(m & !shared).map(|l| at[l] / 32).collect();
            list.sort_unstable();
            list.dedup();
            self.counters.sectors += list.len() as u64;
        }
        for l in lanes(m) {
            let p = match shared >> l & 1 == 1 {
                true => self.atomic_shared(w, i, &at, l, size)?,
                false => self.atomic_global(w, i, at[l], l, size)?,
            };
            let b = w.get(i.b, wide, l);
            let c = if i.c == NONE { 0 } else { w.get(i.c, wide, l) };
            // SAFETY: the two functions above checked the address.
            let old = unsafe { update(p, acc.bytes, |old| apply(op, ty, old, b, c)) };
            self.moved |= apply(op, ty, old, b, c) != old;
            w.put(i.d, wide, l, old);
        }
        // Having fenced, a block that then took its turn by an atomic reads what the others released.
        self.synced |= self.fenced;
        Ok(())
    }

    fn atomic_shared(
        &mut self,
        w: &Warp,
        i: &Instr,
        at: &Lanes,
        l: usize,
        size: u64,
    ) -> Result<*mut u8, Box<Report>> {
        if at[l].saturating_add(size) > self.shared_bytes as u64 {
            return Err(self.beyond_shared(w, i, l, at[l], size));
        }
        if let Some(f) = self.shadow.touch(at[l] as usize, size as usize, w.index, Kind::Atomic) {
            return Err(self.shared_fault(w, i, at, 1 << l, size, Kind::Atomic, f));
        }
        // SAFETY: the offset lies within the block's shared memory.
        Ok(unsafe { self.shared.as_mut_ptr().cast::<u8>().add(at[l] as usize) })
    }

    fn atomic_global(
        &mut self,
        w: &mut Warp,
        i: &Instr,
        addr: u64,
        l: usize,
        size: u64,
    ) -> Result<*mut u8, Box<Report>> {
        if !self.find(w, addr, size) {
            return Err(self.outside(w, i, l, addr, size, true));
        }
        let block = &self.run.views[w.view].block;
        let at = addr - block.start;
        self.check_global(w, i, l, at, size, size, false, false, self.run.launch.checks.initialised)?;
        self.counters.global_read += size;
        self.counters.global_written += size;
        // SAFETY: the range lies within the allocation.
        Ok(unsafe { block.ptr().add(at as usize) })
    }

    /// Issues a `cp.async`: the bytes are taken now and land at the wait that covers them.
    pub(crate) fn copy_async(&mut self, w: &mut Warp, i: &Instr, acc: Access, m: u32) -> Done {
        let size = u64::from(acc.bytes);
        let to = addresses(w, i.d, i.e, acc.wide);
        let from = addresses(w, i.a, (i.v[0] as i32).into(), true);
        self.aligned(w, i, &to, m, size, Space::Shared)?;
        self.aligned(w, i, &from, m, size, Space::Global)?;
        let mut p = Pending { mask: m, group: w.groups, to: [0; 32], bytes: acc.bytes, data: [[0; 16]; 32] };
        let checks = self.run.launch.checks;
        let (mut off, mut reading) = ([0; 32], 0u32);
        for l in lanes(m) {
            if to[l].saturating_add(size) > self.shared_bytes as u64 {
                return Err(self.beyond_shared(w, i, l, to[l], size));
            }
            let n = u64::from(w.row32(i.b)[l]).min(size);
            if n > 0 {
                if !self.find(w, from[l], n) {
                    return Err(self.outside(w, i, l, from[l], n, false));
                }
                let block = &self.run.views[w.view].block;
                let at = from[l] - block.start;
                // SAFETY: the range lies within the allocation.
                unsafe { block.ptr().add(at as usize).copy_to(p.data[l].as_mut_ptr(), n as usize) };
                off[l] = from[l];
                reading |= 1 << l;
                self.counters.global_read += n;
            }
            if let Some(f) = self.shadow.cells(to[l] as usize / 4, size as usize / 4, w.index, Kind::Write) {
                return Err(self.shared_fault(w, i, &to, 1 << l, size, Kind::Write, f));
            }
            self.shadow.issue(to[l] as usize / 4, size as usize / 4);
            p.to[l] = to[l] as u32;
        }
        let races = checks.global_races && !self.synced;
        for (l, n) in crate::access::runs(&off, reading, size) {
            // A run lies within one allocation: its neighbours are far away. A piece cut short ends its run.
            let last = u64::from(w.row32(i.b)[l + n as usize - 1]).min(size);
            let whole = lanes(reading)
                .skip_while(|k| *k < l)
                .take(n as usize - 1)
                .all(|k| u64::from(w.row32(i.b)[k]) >= size);
            if whole && self.find(w, off[l], 1) {
                let at = off[l] - self.run.views[w.view].block.start;
                self.check_global(
                    w,
                    i,
                    l,
                    at,
                    (n - 1) * size + last,
                    size,
                    false,
                    races,
                    checks.initialised,
                )?;
                continue;
            }
            for (k, &from) in off.iter().enumerate().skip(l).take(n as usize) {
                let part = u64::from(w.row32(i.b)[k]).min(size);
                if self.find(w, from, part) {
                    let at = from - self.run.views[w.view].block.start;
                    self.check_global(w, i, k, at, part, part, false, races, checks.initialised)?;
                }
            }
        }
        if reading != 0 {
            self.counters.requests += 1;
            self.counters.sectors += crate::access::sectors(&off, reading, size, false);
        }
        self.counters.shared += 1;
        self.counters.bank_conflicts += conflicts(&to, m, size);
        w.pending.push(Box::new(p));
        Ok(())
    }

    /// Lands what the lanes of `m` wait for: all but their last `keep` committed groups, or everything.
    pub(crate) fn wait_async(&mut self, w: &mut Warp, i: &Instr, keep: Option<u32>, m: u32) -> Done {
        let mut pending = std::mem::take(&mut w.pending);
        let mut result = Ok(());
        pending.retain_mut(|p| {
            let due = |l: usize| keep.is_none_or(|n| p.group[l].saturating_add(n) < w.groups[l]);
            let landing: u32 = lanes(p.mask & m).filter(|&l| due(l)).map(|l| 1 << l).sum();
            self.moved |= landing != 0;
            for l in lanes(landing) {
                let (to, n) = (p.to[l] as usize, usize::from(p.bytes));
                self.shadow.land(to / 4, n / 4);
                // The landing is a write too: whoever read the cells since the copy was issued raced with it.
                if let Some(f) = self.shadow.cells(to / 4, n / 4, w.index, Kind::Write)
                    && result.is_ok()
                {
                    let mut at = [0; 32];
                    at[l] = to as u64;
                    result = Err(self.shared_fault(w, i, &at, 1 << l, n as u64, Kind::Write, f));
                }
                // SAFETY: the issue checked that these bytes lie within shared memory.
                unsafe {
                    let d = self.shared.as_mut_ptr().cast::<u8>().add(to);
                    d.copy_from(p.data[l].as_ptr(), n);
                }
            }
            p.mask &= !landing;
            p.mask != 0
        });
        w.pending = pending;
        result
    }
}
