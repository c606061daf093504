//! Loads and stores in every space: find where the lanes point, check, move.

use crate::decode_ops::{LOCAL, PARAM, SHARED};
use crate::error::Fault;
use crate::exec::{Cta, Done, Warp};
use crate::ir::{Access, Instr, Op, Space};
use crate::shadow::Kind;

/// What 32 lanes address: absolute for global memory, offsets elsewhere.
pub(crate) type Lanes = [u64; 32];

/// Where a group of lanes points: a base, and each lane's offset from it.
struct Target {
    base: *mut u8,
    at: Lanes,
    mask: u32,
    /// The lanes' pieces lie one after another without a gap, and all lanes take part.
    row: bool,
}

#[inline(always)]
pub(crate) fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    let mut m = mask;
    std::iter::from_fn(move || {
        let l = m.trailing_zeros();
        m &= m.wrapping_sub(1);
        (l < 32).then_some(l as usize)
    })
}

/// The lanes' addresses, from an instruction's row and offset.
#[inline(always)]
pub(crate) fn addresses(w: &mut Warp, row: u32, off: i64, wide: bool) -> Lanes {
    let mut out = [0; 32];
    if wide {
        for (o, r) in out.iter_mut().zip(w.row64(row)) {
            *o = r.wrapping_add_signed(off);
        }
    } else {
        for (o, r) in out.iter_mut().zip(w.row32(row)) {
            *o = r.wrapping_add(off as u32).into();
        }
    }
    out
}

#[inline(always)]
pub(crate) fn contiguous(at: &Lanes, step: u64) -> bool {
    let mut same = true;
    for (l, a) in at.iter().enumerate() {
        same &= *a == at[0].wrapping_add((l as u64).wrapping_mul(step));
    }
    same
}

/// Groups the lanes of `mask` into runs whose pieces lie one after another: each run's first lane and length.
#[inline(always)]
pub(crate) fn runs(at: &Lanes, mask: u32, step: u64) -> impl Iterator<Item = (usize, u64)> {
    let mut m = mask;
    std::iter::from_fn(move || {
        let first = m.trailing_zeros() as usize;
        if first == 32 {
            return None;
        }
        let mut l = first;
        while l < 31 && m >> (l + 1) & 1 == 1 && at[l + 1] == at[l].wrapping_add(step) {
            l += 1;
        }
        m &= !(((2u64 << l) - 1) as u32);
        Some((first, (l - first + 1) as u64))
    })
}

impl Cta<'_> {
    /// Executes `ld` or `st`.
    #[inline(always)]
    pub(crate) fn load_store(&mut self, w: &mut Warp, i: &Instr, acc: Access, m: u32) -> Done {
        let write = matches!(i.op, Op::St(_));
        self.moved |= write;
        let size = u64::from(acc.bytes) * i.v.len() as u64;
        let at = addresses(w, i.a, i.e, acc.wide);
        let odd = at.iter().fold(0, |o, a| o | a) & (size - 1);
        if odd != 0 {
            self.aligned(w, i, &at, m, size, acc.space)?;
        }
        if acc.space == Space::Generic {
            return self.generic(w, i, acc, at, m, size, write);
        }
        self.within(w, i, acc, acc.space, &at, m, size, write)
    }

    /// Lanes that all point into `space`: allocation after allocation.
    #[inline(always)]
    #[allow(clippy::too_many_arguments, reason = "an access has as many")]
    fn within(
        &mut self,
        w: &mut Warp,
        i: &Instr,
        acc: Access,
        space: Space,
        at: &Lanes,
        mut rest: u32,
        size: u64,
        write: bool,
    ) -> Done {
        while rest != 0 {
            let t = self.target(w, i, acc, space, at, rest, size, write)?;
            transfer(w, i, acc, &t, write);
            rest &= !t.mask;
        }
        Ok(())
    }

    /// Lanes that point into spaces of their own each: space after space.
    #[inline(never)]
    #[allow(clippy::too_many_arguments)]
    fn generic(
        &mut self,
        w: &mut Warp,
        i: &Instr,
        acc: Access,
        mut at: Lanes,
        m: u32,
        size: u64,
        write: bool,
    ) -> Done {
        let mut rest = m;
        while rest != 0 {
            let kind = at[rest.trailing_zeros() as usize] >> 40;
            let space = match kind {
                1 => Space::Shared,
                2 => Space::Local,
                3 => Space::Param,
                _ => Space::Global,
            };
            let group: u32 = lanes(rest).filter(|&l| at[l] >> 40 == kind).map(|l| 1 << l).sum();
            rest &= !group;
            if space != Space::Global {
                lanes(group).for_each(|l| at[l] &= (1 << 40) - 1);
            }
            self.within(w, i, acc, space, &at, group, size, write)?;
        }
        Ok(())
    }

    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    fn target(
        &mut self,
        w: &mut Warp,
        i: &Instr,
        acc: Access,
        space: Space,
        at: &Lanes,
        m: u32,
        size: u64,
        write: bool,
    ) -> Result<Target, Box<crate::error::Report>> {
        match space {
            Space::Global | Space::Const | Space::Generic => self.global(w, i, acc, at, m, size, write),
            Space::Shared => self.shared(w, i, acc, at, m, size, write),
            Space::Local | Space::Param => self.private(w, i, space, at, m, size, write),
        }
    }

    /// Reports the first lane whose address is not a multiple of the access.
    pub(crate) fn aligned(&self, w: &Warp, i: &Instr, at: &Lanes, m: u32, size: u64, space: Space) -> Done {
        match lanes(m).find(|&l| at[l] & (size - 1) != 0) {
            None => Ok(()),
            Some(l) => {
                let what =
                    format!("an access of {size} bytes at an address that is not a multiple of {size}");
                Err(self.fault(w, i, l, Fault::Misaligned, what, Some(at[l] + base(space))))
            }
        }
    }

    /// The view that holds `bytes` bytes at `addr`, found from the one the warp used last.
    #[inline]
    pub(crate) fn find(&self, w: &mut Warp, addr: u64, bytes: u64) -> bool {
        let inside = |n: usize| {
            self.run.views.get(n).is_some_and(|v| {
                addr.checked_sub(v.block.start).is_some_and(|o| o.saturating_add(bytes) <= v.block.bytes)
            })
        };
        if inside(w.view) {
            return true;
        }
        w.view = self.run.views.partition_point(|v| v.block.start <= addr).wrapping_sub(1);
        inside(w.view)
    }

    /// What to say of an address outside every allocation.
    #[cold]
    pub(crate) fn outside(
        &self,
        w: &Warp,
        i: &Instr,
        l: usize,
        addr: u64,
        size: u64,
        write: bool,
    ) -> Box<crate::error::Report> {
        let (freed, _) = self.run.memory.near(addr);
        let how = if write { "write" } else { "read" };
        let (fault, what) = match freed {
            true => (Fault::UseAfterFree, format!("{how} of {size} bytes of memory that was freed")),
            false => (Fault::OutOfBounds, format!("{how} of {size} bytes outside every allocation")),
        };
        self.fault(w, i, l, fault, what, Some(addr))
    }

    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    fn global(
        &mut self,
        w: &mut Warp,
        i: &Instr,
        acc: Access,
        at: &Lanes,
        m: u32,
        size: u64,
        write: bool,
    ) -> Result<Target, Box<crate::error::Report>> {
        let first = m.trailing_zeros() as usize;
        if !self.find(w, at[first], size) {
            return Err(self.outside(w, i, first, at[first], size, write));
        }
        let run = self.run;
        let view = &run.views[w.view];
        let (start, last) = (view.block.start, view.block.bytes - size);
        let mut off = [0; 32];
        for (o, a) in off.iter_mut().zip(at) {
            *o = a.wrapping_sub(start);
        }
        let row = m == u32::MAX && contiguous(&off, size) && off[0] <= last && off[31] <= last;
        let mask = if row { m } else { lanes(m).filter(|&l| off[l] <= last).map(|l| 1 << l).sum() };
        let count = u64::from(mask.count_ones()) * size;
        *(if write { &mut self.counters.global_written } else { &mut self.counters.global_read }) += count;
        self.counters.requests += 1;
        self.counters.sectors += sectors(&off, mask, size, row);
        let races = run.launch.checks.global_races && acc.space != Space::Const && !acc.strong;
        let races = races && (write || !self.synced);
        let init = run.launch.checks.initialised && !write;
        if row {
            self.check_global(w, i, 0, off[0], size * 32, size, write, races, init)?;
        } else {
            for (l, n) in runs(&off, mask, size) {
                self.check_global(w, i, l, off[l], n * size, size, write, races, init)?;
            }
        }
        Ok(Target { base: view.block.ptr(), at: off, mask, row })
    }

    /// Checks and records a piece of global memory; `lane` is its first, and each has `size` bytes of it.
    #[allow(clippy::too_many_arguments)]
    #[inline(always)]
    pub(crate) fn check_global(
        &self,
        w: &Warp,
        i: &Instr,
        lane: usize,
        at: u64,
        bytes: u64,
        size: u64,
        write: bool,
        races: bool,
        init: bool,
    ) -> Done {
        let view = &self.run.views[w.view];
        if init && !view.block.is_written(at, bytes) {
            return Err(self.uninitialised(w, i, lane, at, bytes, size));
        }
        if races && let Some(other) = view.touch(at, bytes, self.run.first, self.id, write) {
            return Err(self.global_race(w, i, lane, at, bytes, size, write, other));
        }
        if write {
            view.block.mark(at, bytes);
        }
        Ok(())
    }

    #[cold]
    fn uninitialised(
        &self,
        w: &Warp,
        i: &Instr,
        lane: usize,
        at: u64,
        bytes: u64,
        size: u64,
    ) -> Box<crate::error::Report> {
        let block = &self.run.views[w.view].block;
        let n = (0..bytes).find(|n| !block.is_written(at + n, 1)).unwrap_or(0);
        let what = format!("read of {size} bytes of which some were never written");
        self.fault(w, i, lane + (n / size) as usize, Fault::Uninitialised, what, Some(block.start + at + n))
    }

    #[cold]
    #[allow(clippy::too_many_arguments)]
    fn global_race(
        &self,
        w: &Warp,
        i: &Instr,
        lane: usize,
        at: u64,
        bytes: u64,
        size: u64,
        write: bool,
        other: (Option<u64>, bool),
    ) -> Box<crate::error::Report> {
        let view = &self.run.views[w.view];
        // The lane is the first whose own piece clashes; those before it are recorded a second time, which is harmless.
        let pieces = (0..bytes / size)
            .find_map(|n| Some((n, view.touch(at + n * size, size, self.run.first, self.id, write)?)));
        let (n, (who, wrote)) = pieces.unwrap_or((0, other));
        let did = if wrote { "wrote" } else { "read" };
        let who = who.map_or("another block".to_owned(), |b| {
            let [x, y, _] = self.run.launch.grid.map(u64::from);
            format!("block ({},{},{})", b % x, b / x % y, b / x / y)
        });
        let how = if write { "write to" } else { "read of" };
        let what = format!("{how} a cell that {who} {did} in the same launch");
        self.fault(w, i, lane + n as usize, Fault::GlobalRace, what, Some(view.block.start + at + n * size))
    }

    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    fn shared(
        &mut self,
        w: &mut Warp,
        i: &Instr,
        acc: Access,
        at: &Lanes,
        m: u32,
        size: u64,
        write: bool,
    ) -> Result<Target, Box<crate::error::Report>> {
        let bytes = self.shared_bytes as u64;
        let row = m == u32::MAX && contiguous(at, size) && size >= 4;
        if row {
            if at[31].saturating_add(size) > bytes || at[0] > at[31] {
                let l = lanes(m).find(|&l| at[l].saturating_add(size) > bytes).unwrap_or(0);
                return Err(self.beyond_shared(w, i, l, at[l], size));
            }
        } else if at.iter().fold(false, |any, a| any | (a.saturating_add(size) > bytes))
            && let Some(l) = lanes(m).find(|&l| at[l].saturating_add(size) > bytes)
        {
            return Err(self.beyond_shared(w, i, l, at[l], size));
        }
        self.counters.shared += 1;
        let kind = if write { Kind::Write } else { Kind::Read };
        let base = self.shared.as_mut_ptr().cast();
        if row {
            if !acc.strong
                && let Some(f) = self.shadow.cells(at[0] as usize / 4, size as usize * 8, w.index, kind)
            {
                return Err(self.shared_fault(w, i, at, m, size, kind, f));
            }
            return Ok(Target { base, at: *at, mask: m, row });
        }
        self.counters.bank_conflicts += self.strides.conflicts(at, m, size);
        if size >= 4 && !acc.strong {
            let bad = self.shadow.scattered(at, m, size as usize / 4, w.index, kind);
            for l in lanes(bad) {
                if let Some(f) = self.shadow.touch(at[l] as usize, size as usize, w.index, kind) {
                    return Err(self.shared_fault(w, i, at, 1 << l, size, kind, f));
                }
            }
            return Ok(Target { base, at: *at, mask: m, row });
        }
        for l in lanes(m) {
            let (a, n) = (at[l] as usize, size as usize);
            let f = match acc.strong {
                true => self.strong(a, n, w.index, kind),
                false => self.shadow.touch(a, n, w.index, kind),
            };
            if let Some(f) = f {
                return Err(self.shared_fault(w, i, at, 1 << l, size, kind, f));
            }
        }
        Ok(Target { base, at: *at, mask: m, row })
    }

    /// A volatile access is ordered by those who make it; it still reads only what was written.
    fn strong(&mut self, at: usize, bytes: usize, warp: usize, kind: Kind) -> Option<Fault> {
        let races = std::mem::replace(&mut self.shadow.races, false);
        let fault = self.shadow.touch(at, bytes, warp, kind);
        self.shadow.races = races;
        fault
    }

    #[cold]
    pub(crate) fn beyond_shared(
        &self,
        w: &Warp,
        i: &Instr,
        l: usize,
        at: u64,
        size: u64,
    ) -> Box<crate::error::Report> {
        let what = format!("an access of {size} bytes past the end of shared memory");
        self.fault(w, i, l, Fault::OutOfBounds, what, Some(SHARED + at))
    }

    /// Reports a fault in shared memory, of the first lane that has it.
    #[cold]
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn shared_fault(
        &mut self,
        w: &Warp,
        i: &Instr,
        at: &Lanes,
        m: u32,
        size: u64,
        kind: Kind,
        fault: Fault,
    ) -> Box<crate::error::Report> {
        let l = lanes(m)
            .find(|&l| self.shadow.touch(at[l] as usize, size as usize, w.index, kind) == Some(fault))
            .unwrap_or(m.trailing_zeros() as usize);
        let how = if kind == Kind::Read { "read" } else { "write" };
        let what = match fault {
            Fault::AsyncCopy => {
                format!("{how} of shared memory into which a cp.async is still in flight: no wait_group")
            }
            Fault::SharedRace => {
                format!("{how} of shared memory that another warp touched with no barrier between")
            }
            _ => format!("read of {size} bytes of shared memory of which some were never written"),
        };
        self.fault(w, i, l, fault, what, Some(SHARED + at[l]))
    }

    /// Local memory and parameters.
    #[allow(clippy::too_many_arguments)]
    fn private(
        &mut self,
        w: &mut Warp,
        i: &Instr,
        space: Space,
        at: &Lanes,
        m: u32,
        size: u64,
        write: bool,
    ) -> Result<Target, Box<crate::error::Report>> {
        let param = space == Space::Param;
        let bytes = if param { self.run.params.len() as u64 } else { self.run.kernel.local.into() };
        let bad = lanes(m).find(|&l| at[l].saturating_add(size) > bytes || param && write);
        if let Some(l) = bad {
            let (which, base) = if param { ("the parameters", PARAM) } else { ("local memory", LOCAL) };
            let what = match param && write {
                true => "a write to a parameter".to_owned(),
                false => format!("an access of {size} bytes past the end of {which}"),
            };
            return Err(self.fault(w, i, l, Fault::OutOfBounds, what, Some(base + at[l])));
        }
        let mut at = *at;
        if !param {
            for (l, a) in at.iter_mut().enumerate() {
                *a += l as u64 * bytes;
            }
        }
        let base = if param { self.run.params.as_ptr().cast_mut() } else { w.local.as_mut_ptr() };
        Ok(Target { base, at, mask: m, row: false })
    }
}

fn base(space: Space) -> u64 {
    match space {
        Space::Shared => SHARED,
        Space::Local => LOCAL,
        Space::Param => PARAM,
        _ => 0,
    }
}

/// 32-byte sectors that a request touches.
pub(crate) fn sectors(off: &Lanes, mask: u32, size: u64, row: bool) -> u64 {
    if row {
        return (off[0] + size * 32 - 1) / 32 - off[0] / 32 + 1;
    }
    let (mut list, mut n) = ([0; 32], 0);
    for l in lanes(mask) {
        let s = off[l] / 32;
        if n == 0 || list[n - 1] != s {
            list[n] = s;
            n += 1;
        }
    }
    let list = &mut list[..n];
    if !list.is_sorted() {
        list.sort_unstable();
    }
    1.min(n as u64) + list.windows(2).filter(|p| p[0] != p[1]).count() as u64
}

/// Bank conflicts of full warps whose lanes are a constant distance apart, which depend on that distance and the size
/// alone: the last few are remembered.
#[derive(Default)]
pub(crate) struct Strides([(u64, u64, u64); 16]);

impl Strides {
    #[inline(always)]
    pub fn conflicts(&mut self, at: &Lanes, mask: u32, size: u64) -> u64 {
        let stride = at[1].wrapping_sub(at[0]);
        if mask != u32::MAX || size < 4 || !contiguous(at, stride) {
            return conflicts(at, mask, size);
        }
        let slot = &mut self.0[((stride / 4 + size / 4 * 5) % 16) as usize];
        if (slot.0, slot.1) != (stride, size) {
            *slot = (stride, size, conflicts(at, mask, size));
        }
        slot.2
    }
}

/// Passes over the 32 banks beyond those the bytes need. Lanes go in as many phases as make 128 bytes each.
pub(crate) fn conflicts(at: &Lanes, mask: u32, size: u64) -> u64 {
    let per = (128 / size.max(4)) as usize;
    (0..32).step_by(per).map(|p| phase(&at[p..p + per], mask >> p, size)).sum()
}

#[inline(always)]
fn phase(at: &[u64], mask: u32, size: u64) -> u64 {
    let words = size.div_ceil(4) as u32;
    let ones = ((1u64 << words) - 1) as u32;
    // Most phases touch every bank once.
    let (mut seen, mut clash) = (0u32, 0u32);
    for (l, a) in at.iter().enumerate() {
        let active = (mask >> l & 1).wrapping_neg();
        let bits = ones.rotate_left((a / 4 % 32) as u32) & active;
        clash |= seen & bits;
        seen |= bits;
    }
    if clash == 0 { 0 } else { crowded(at, mask, words) }
}

/// The most distinct words that share a bank, less one. Words of a bank are chained; a chain is as long as the answer.
fn crowded(at: &[u64], mask: u32, words: u32) -> u64 {
    let (mut head, mut next, mut word, mut count) = ([u8::MAX; 32], [0u8; 32], [0u64; 32], [0u8; 32]);
    let mut n = 0;
    for a in at.iter().enumerate().filter(|(l, _)| mask >> l & 1 == 1).map(|(_, a)| *a) {
        for w in a / 4..a / 4 + u64::from(words) {
            let bank = (w % 32) as usize;
            let mut at = head[bank];
            while at != u8::MAX && word[usize::from(at)] != w {
                at = next[usize::from(at)];
            }
            if at == u8::MAX {
                (word[n], next[n], head[bank]) = (w, head[bank], n as u8);
                count[bank] += 1;
                n += 1;
            }
        }
    }
    count.iter().max().map_or(0, |&most| u64::from(most.saturating_sub(1)))
}

/// Moves the lanes' bytes, which were checked.
#[inline(always)]
fn transfer(w: &mut Warp, i: &Instr, acc: Access, t: &Target, write: bool) {
    let n = i.v.len();
    if acc.bytes == 4 && i.wides == 0 && t.mask == u32::MAX {
        for (j, &v) in i.v.iter().enumerate() {
            let r = w.row32_mut(v);
            for (l, r) in r.iter_mut().enumerate() {
                let at = if t.row { t.at[0] as usize + (l * n + j) * 4 } else { t.at[l] as usize + j * 4 };
                // SAFETY: the access was checked to lie inside its memory.
                unsafe {
                    let p = t.base.add(at).cast::<u32>();
                    if write { p.write_unaligned(*r) } else { *r = p.read_unaligned() }
                }
            }
        }
        return;
    }
    for (j, &v) in i.v.iter().enumerate() {
        let wide = i.wides >> j & 1 == 1;
        for l in lanes(t.mask) {
            // SAFETY: the access was checked to lie inside its memory.
            unsafe {
                let p = t.base.add(t.at[l] as usize + j * usize::from(acc.bytes));
                if write {
                    let x = w.get(v, wide, l);
                    match acc.bytes {
                        1 => *p = x as u8,
                        2 => p.cast::<u16>().write_unaligned(x as u16),
                        4 => p.cast::<u32>().write_unaligned(x as u32),
                        _ => p.cast::<u64>().write_unaligned(x),
                    }
                } else {
                    let x = match (acc.bytes, acc.signed) {
                        (1, false) => u64::from(*p),
                        (1, true) => *p.cast::<i8>() as u64,
                        (2, false) => u64::from(p.cast::<u16>().read_unaligned()),
                        (2, true) => p.cast::<i16>().read_unaligned() as u64,
                        (4, false) => u64::from(p.cast::<u32>().read_unaligned()),
                        (4, true) => p.cast::<i32>().read_unaligned() as u64,
                        _ => p.cast::<u64>().read_unaligned(),
                    };
                    w.put(v, wide, l, x);
                }
            }
        }
    }
}
