//! Running one block: warps in turn, each at the lowest of its lanes' instructions, until all have left.

use crate::access::Strides;
use crate::counters::Counters;
use crate::error::{Fault, Report};
use crate::ir::{Instr, NONE, Op, Preset, Special};
use crate::launch::Run;
use crate::shadow::Shadow;
use std::cell::RefCell;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::Ordering::Relaxed;

/// Instructions a warp runs before the next has its turn.
const TURN: u32 = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Ready,
    Barrier(usize),
    Done,
}

/// An asynchronous copy of a warp: the lanes for which it has not landed, the group each of them put it in, where it
/// goes and what goes there.
pub(crate) struct Pending {
    pub mask: u32,
    pub group: [u32; 32],
    pub to: [u32; 32],
    pub bytes: u8,
    pub data: [[u8; 16]; 32],
}

pub(crate) struct Warp {
    pub index: usize,
    regs: Vec<u64>,
    pub pc: u32,
    pub mask: u32,
    /// Lanes at other instructions: where, which, and whether they wait there for the rest of the warp.
    pub others: Vec<(u32, u32, bool)>,
    pub lanes: u32,
    pub exited: u32,
    pub state: State,
    pub local: Vec<u8>,
    pub view: usize,
    #[allow(clippy::vec_box, reason = "a copy of a warp is large, and the list is thinned at every wait")]
    pub pending: Vec<Box<Pending>>,
    pub groups: [u32; 32],
}

#[derive(Default, Clone, Copy)]
struct Barrier {
    who: u32,
    waiting: u32,
    need: u32,
    popc: u32,
    all: bool,
}

/// One block at work.
pub(crate) struct Cta<'a> {
    pub run: &'a Run<'a>,
    pub id: u64,
    pub block: [u32; 3],
    pub warps: Vec<Warp>,
    pub shared: Vec<u64>,
    pub shared_bytes: usize,
    pub shadow: Shadow,
    barriers: [Barrier; 16],
    pub counters: Counters,
    /// Fenced for the device, and then did an atomic: what it reads now was released to it.
    pub fenced: bool,
    pub synced: bool,
    steps: u64,
    /// Whether anything changed but registers since the last round of turns: memory, barriers, who has left.
    pub moved: bool,
    repeats: Repeats,
    pub strides: Strides,
    /// Whether this machine has AVX2 and FMA.
    pub fast: bool,
}

/// Warp-instructions of a block before it is watched for repeating itself.
const QUIET: u64 = 64 * TURN as u64;

/// Brent's search for a cycle: the state is compared with one that is remembered for twice as long each time.
#[derive(Default)]
struct Repeats {
    seen: Option<u64>,
    rounds: u32,
    power: u32,
    alone: u32,
    spinning: bool,
}

impl Repeats {
    fn again(&mut self, state: u64) -> bool {
        if self.seen == Some(state) {
            self.rounds = 0;
            return true;
        }
        self.rounds += 1;
        if self.seen.is_none() || self.rounds >= self.power {
            (self.seen, self.rounds, self.power) = (Some(state), 0, (self.power * 2).max(1));
        }
        false
    }
}

thread_local! {
    /// Register files of launches that are over, for this thread's next: they are large, and mapping memory is slow.
    static SPARE: RefCell<Vec<Vec<u64>>> = const { RefCell::new(Vec::new()) };
}

fn registers(n: usize) -> Vec<u64> {
    let mut regs = SPARE.with_borrow_mut(Vec::pop).unwrap_or_default();
    regs.resize(n, 0);
    regs
}

impl Drop for Cta<'_> {
    fn drop(&mut self) {
        // A thread that ends has no use for them.
        let _ = SPARE.try_with(|s| {
            if let Ok(mut s) = s.try_borrow_mut() {
                let room = 32usize.saturating_sub(s.len());
                s.extend(self.warps.drain(..).map(|w| w.regs).filter(|r| !r.is_empty()).take(room));
            }
        });
    }
}

pub(crate) type Done = Result<(), Box<Report>>;

impl Warp {
    #[inline(always)]
    pub fn regs(&mut self) -> *mut u32 {
        self.regs.as_mut_ptr().cast()
    }

    /// A word of the registers.
    #[inline(always)]
    pub fn word(&mut self, at: u32) -> u32 {
        debug_assert!((at as usize) < self.regs.len() * 2);
        // SAFETY: decoding hands out only words within the kernel's, and `regs` has that many.
        unsafe { *self.regs().add(at as usize) }
    }

    #[inline(always)]
    pub fn set_word(&mut self, at: u32, v: u32) {
        debug_assert!((at as usize) < self.regs.len() * 2);
        // SAFETY: as for `word`.
        unsafe { *self.regs().add(at as usize) = v }
    }

    /// A row of 32-bit registers.
    #[inline(always)]
    pub fn row32(&mut self, row: u32) -> &[u32; 32] {
        debug_assert!(row as usize + 32 <= self.regs.len() * 2);
        // SAFETY: decoding hands out only rows within the kernel's words, and `regs` has 64 words more.
        unsafe { &*self.regs().add(row as usize).cast() }
    }

    #[inline(always)]
    pub fn row32_mut(&mut self, row: u32) -> &mut [u32; 32] {
        debug_assert!(row as usize + 32 <= self.regs.len() * 2);
        // SAFETY: as for `row32`.
        unsafe { &mut *self.regs().add(row as usize).cast() }
    }

    /// A row of 64-bit registers.
    #[inline(always)]
    pub fn row64(&mut self, row: u32) -> &[u64; 32] {
        debug_assert!(row as usize + 64 <= self.regs.len() * 2);
        // SAFETY: as for `row32`; 64-bit rows start at even words, which are aligned.
        unsafe { &*self.regs().add(row as usize).cast() }
    }

    /// Sets the bits of `mask` in a word to those of `bits`.
    #[inline(always)]
    pub fn set_bits(&mut self, at: u32, bits: u32, mask: u32) {
        let old = self.word(at);
        self.set_word(at, old & !mask | bits & mask);
    }

    /// Lane `l` of a row.
    #[inline(always)]
    pub fn get(&mut self, row: u32, wide: bool, l: usize) -> u64 {
        if wide { self.regs[row as usize / 2 + l] } else { self.word(row + l as u32).into() }
    }

    #[inline(always)]
    pub fn put(&mut self, row: u32, wide: bool, l: usize, v: u64) {
        if wide { self.regs[row as usize / 2 + l] = v } else { self.set_word(row + l as u32, v as u32) }
    }

    /// Picks the lowest group of lanes that can run, or says that none can.
    fn pick(&mut self) -> bool {
        match self.others.iter().enumerate().filter(|(_, o)| !o.2).min_by_key(|(_, o)| o.0).map(|(n, _)| n) {
            None => false,
            Some(n) => {
                let (pc, mask, _) = self.others.swap_remove(n);
                (self.pc, self.mask) = (pc, mask);
                self.merge();
                true
            }
        }
    }

    /// Takes in the lanes at this instruction; gives way to lanes at a lower one.
    #[inline]
    fn merge(&mut self) {
        let (pc, mut n) = (self.pc, 0);
        while n < self.others.len() {
            if self.others[n].0 == pc {
                self.mask |= self.others.swap_remove(n).1;
            } else {
                n += 1;
            }
        }
        if let Some(n) = self.others.iter().position(|o| !o.2 && o.0 < self.pc) {
            self.others.push((self.pc, self.mask, false));
            let (pc, mask, _) = self.others.swap_remove(n);
            (self.pc, self.mask) = (pc, mask);
            self.merge();
        }
    }

    /// Puts the running lanes to wait here for others of their warp. False if no lane is left to run.
    fn park(&mut self) -> bool {
        self.others.push((self.pc, self.mask, true));
        self.mask = 0;
        self.pick()
    }
}

impl<'a> Cta<'a> {
    pub fn new(run: &'a Run<'a>) -> Self {
        let k = run.kernel;
        let threads = run.threads();
        let warps = (0..threads.div_ceil(32) as usize).map(|index| {
            let n = (threads - index as u32 * 32).min(32);
            Warp {
                index,
                regs: registers(k.words / 2 + 32),
                pc: 0,
                mask: 0,
                others: Vec::new(),
                lanes: (!0u64 >> (64 - n)) as u32,
                exited: 0,
                state: State::Ready,
                local: vec![0; k.local as usize * 32],
                view: 0,
                pending: Vec::new(),
                groups: [0; 32],
            }
        });
        let shared = run.shared_bytes();
        let mut cta = Self {
            run,
            id: 0,
            block: [0; 3],
            warps: warps.collect(),
            shared: vec![0; shared.div_ceil(8) + 2],
            shared_bytes: shared,
            shadow: Shadow::new(shared, run.launch.checks.shared_races, run.launch.checks.initialised),
            barriers: [Barrier::default(); 16],
            counters: Counters::default(),
            fenced: false,
            synced: false,
            steps: 0,
            moved: false,
            repeats: Repeats::default(),
            strides: Strides::default(),
            fast: crate::alu::fast(),
        };
        for w in 0..cta.warps.len() {
            for (p, at) in &k.presets {
                cta.preset(w, *p, *at);
            }
        }
        cta
    }

    fn preset(&mut self, w: usize, p: Preset, at: u32) {
        let (run, block) = (self.run, self.block);
        let warp = &mut self.warps[w];
        match p {
            Preset::Word(v) => warp.set_word(at, v),
            Preset::Row32(v) => (0..32).for_each(|l| warp.put(at, false, l, v.into())),
            Preset::Row64(v) => (0..32).for_each(|l| warp.put(at, true, l, v)),
            Preset::Global(g, off) => {
                let v = run.module.globals()[g].addr.wrapping_add_signed(off);
                (0..32).for_each(|l| warp.put(at, true, l, v));
            }
            Preset::Special(s, axis) => {
                for l in 0..32u32 {
                    let v = match s {
                        Special::Tid => run.thread(w as u32 * 32 + l)[usize::from(axis)],
                        Special::Ntid => run.launch.block[usize::from(axis)],
                        Special::Ctaid => block[usize::from(axis)],
                        Special::Nctaid => run.launch.grid[usize::from(axis)],
                        Special::Lane => l,
                        Special::Warp => w as u32,
                        Special::Nwarp => run.threads().div_ceil(32),
                        Special::LaneMask => match axis {
                            0 => 1 << l,
                            1 => (2u64 << l).wrapping_sub(1) as u32,
                            2 => (1 << l) - 1,
                            3 => !((1 << l) - 1),
                            _ => !((2u64 << l).wrapping_sub(1) as u32),
                        },
                        Special::DynamicShared => run.launch.dynamic_shared,
                        Special::TotalShared => run.shared_bytes() as u32,
                        Special::Zero => 0,
                    };
                    warp.put(at, false, l as usize, v.into());
                }
            }
        }
    }

    /// Runs block number `id` from its start to its end.
    pub fn block(&mut self, id: u64) -> Done {
        let [x, y, _] = self.run.launch.grid.map(u64::from);
        (self.id, self.block) = (id, [(id % x) as u32, (id / x % y) as u32, (id / x / y) as u32]);
        self.shadow.reset();
        self.barriers = [Barrier::default(); 16];
        (self.fenced, self.synced, self.steps) = (false, false, 0);
        self.repeats = Repeats::default();
        let run = self.run;
        for w in 0..self.warps.len() {
            for (p, at) in
                run.kernel.presets.iter().filter(|(p, _)| matches!(p, Preset::Special(Special::Ctaid, _)))
            {
                self.preset(w, *p, *at);
            }
            let warp = &mut self.warps[w];
            for &(first, words) in &run.kernel.unwritten {
                (first..first + words).for_each(|at| warp.set_word(at, 0));
            }
            (warp.pc, warp.mask, warp.exited, warp.state, warp.groups) =
                (0, warp.lanes, 0, State::Ready, [0; 32]);
            warp.others.clear();
            warp.pending.clear();
        }
        loop {
            let mut ran = false;
            for w in 0..self.warps.len() {
                if self.warps[w].state == State::Ready {
                    ran = true;
                    // The warp is taken out so that it and the block can be borrowed apart.
                    let mut warp = std::mem::replace(&mut self.warps[w], Warp::hollow());
                    let result = self.turn(&mut warp);
                    self.warps[w] = warp;
                    result?;
                    self.release();
                }
            }
            if !ran {
                return if self.warps.iter().all(|w| w.state == State::Done) { Ok(()) } else { self.stuck() };
            }
            if self.steps > QUIET {
                self.watch()?;
            }
            self.moved = false;
        }
    }

    /// Looks for a block that goes round in circles: its registers are as they were, and nothing else changed in between.
    /// Where all blocks at work do so, nobody is left to end it.
    fn watch(&mut self) -> Done {
        if self.steps > self.run.launch.checks.limit {
            let n = self.warps.iter().position(|w| w.state != State::Done).unwrap_or(0);
            return Err(self.hang(
                n,
                format!("still running after some {} warp-instructions of this block", self.steps),
            ));
        }
        let was = self.repeats.spinning;
        let circles = !self.moved && {
            let mut h = DefaultHasher::new();
            for w in self.warps.iter().filter(|w| w.state == State::Ready) {
                (w.index, w.pc, w.mask, &w.others, &w.regs).hash(&mut h);
            }
            self.repeats.again(h.finish())
        };
        if self.moved {
            self.repeats = Repeats::default();
        }
        self.repeats.spinning = circles || was && !self.moved;
        let all = match (was, self.repeats.spinning) {
            (false, true) => self.run.spinning.fetch_add(1, Relaxed) + 1,
            (true, false) => self.run.spinning.fetch_sub(1, Relaxed) - 1,
            _ => self.run.spinning.load(Relaxed),
        };
        if !circles {
            return Ok(());
        }
        if all < self.run.working.load(Relaxed) {
            self.repeats.alone = 0;
            std::thread::yield_now();
            return Ok(());
        }
        // Another block may have ended the wait just before it left: a few more rounds would show it.
        self.repeats.alone += 1;
        if self.repeats.alone < 3 {
            return Ok(());
        }
        let n = self.warps.iter().position(|w| w.state == State::Ready).unwrap_or(0);
        let what =
            "a loop that never ends: its registers repeat, and nothing that runs writes what it waits for";
        Err(self.hang(n, what.into()))
    }

    fn hang(&mut self, n: usize, what: String) -> Box<Report> {
        let warp = std::mem::replace(&mut self.warps[n], Warp::hollow());
        let i = &self.run.kernel.code[warp.pc as usize];
        self.fault(&warp, i, warp.mask.trailing_zeros() as usize, Fault::Hang, what, None)
    }

    /// Takes leave of the launch: no block waits for this one any more.
    pub fn leave(&mut self) {
        if std::mem::take(&mut self.repeats.spinning) {
            self.run.spinning.fetch_sub(1, Relaxed);
        }
        self.run.working.fetch_sub(1, Relaxed);
    }

    /// Nobody can run: some wait at a barrier that the others passed, left, or wait for elsewhere.
    fn stuck(&mut self) -> Done {
        let at = |s: &dyn Fn(State) -> bool| {
            let v: Vec<_> = self.warps.iter().filter(|w| s(w.state)).map(|w| w.index.to_string()).collect();
            v.join(", ")
        };
        let waiting = at(&|s| matches!(s, State::Barrier(_)));
        let left = at(&|s| s == State::Done);
        let places: Vec<_> = (0..16)
            .filter(|n| self.barriers[*n].who != 0)
            .map(|n| {
                format!(
                    "barrier {n}: {} of {} threads",
                    self.barriers[n].who.count_ones() * 32,
                    self.barriers[n].need
                )
            })
            .collect();
        let what = format!("deadlock: warps {waiting} wait; {}; exited: {left}", places.join("; "));
        let w = self.warps.iter().position(|w| w.state != State::Done).unwrap_or(0);
        let warp = std::mem::replace(&mut self.warps[w], Warp::hollow());
        let i = &self.run.kernel.code[(warp.pc as usize).saturating_sub(1)];
        Err(self.fault(&warp, i, warp.mask.trailing_zeros() as usize, Fault::Barrier, what, None))
    }

    pub fn fault(
        &self,
        w: &Warp,
        i: &Instr,
        lane: usize,
        fault: Fault,
        what: impl Into<String>,
        addr: Option<u64>,
    ) -> Box<Report> {
        let thread = self.run.thread((w.index * 32 + lane.min(31)) as u32);
        self.run.report(i, thread, self.block, fault, what.into(), addr)
    }

    /// Lanes of a warp-wide instruction: true when all that must take part are here, else the others run first.
    #[inline]
    fn gathered(&mut self, w: &mut Warp, i: &Instr, want: u32) -> Result<bool, Box<Report>> {
        let missing = want & w.lanes & !w.mask;
        if missing == 0 {
            return Ok(true);
        }
        let strict = self.run.launch.checks.barriers;
        if missing & !w.exited == 0 && !strict {
            return Ok(true);
        }
        let (lane, pc) = (w.mask.trailing_zeros() as usize, w.pc);
        if missing & !w.exited != 0 && w.park() {
            return Ok(false);
        }
        if w.mask == 0 && matches!(i.op, Op::WarpSync) && self.free_warp_sync(w, pc) {
            return Ok(false);
        }
        let what = format!("lanes {missing:#010x} of the warp never reach this instruction");
        Err(self.fault(w, i, lane, Fault::Barrier, what, None))
    }

    /// `bar.warp.sync` may be met at different places: if every lane waits at one, all go on.
    fn free_warp_sync(&self, w: &mut Warp, _pc: u32) -> bool {
        let code = &self.run.kernel.code;
        if !w.others.iter().all(|o| matches!(code[o.0 as usize].op, Op::WarpSync)) {
            return false;
        }
        for o in &mut w.others {
            *o = (o.0 + 1, o.1, false);
        }
        w.pick()
    }

    /// A warp's turn: so many instructions, or up to a barrier or its end.
    fn turn(&mut self, w: &mut Warp) -> Done {
        #[cfg(target_arch = "x86_64")]
        if self.fast {
            // SAFETY: `fast` says that this machine has these instructions.
            return unsafe { self.turn_fast(w) };
        }
        self.turn_plain(w)
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt,f16c")]
    fn turn_fast(&mut self, w: &mut Warp) -> Done {
        self.turn_plain(w)
    }

    #[inline(always)]
    fn turn_plain(&mut self, w: &mut Warp) -> Done {
        let code = &self.run.kernel.code[..];
        for _ in 0..TURN {
            let i = &code[w.pc as usize];
            let mut m = w.mask;
            if i.guard != NONE {
                let p = w.word(i.guard);
                m &= if i.not { !p } else { p };
            }
            self.counters.classes[i.class as usize] += 1;
            match i.op {
                Op::Alu(f) => {
                    if m != 0 {
                        // SAFETY: decoding gave `i` only rows and words within the kernel's, and `regs` has that many.
                        unsafe { f(w.regs(), i, m) }
                    }
                }
                Op::Bra => {
                    let rest = w.mask & !m;
                    if m == w.mask {
                        w.pc = i.d;
                        if !w.others.is_empty() {
                            w.merge();
                        }
                        continue;
                    } else if m != 0 {
                        self.counters.divergent += 1;
                        w.others.push((i.d, m, false));
                        w.mask = rest;
                    }
                }
                Op::Exit => {
                    self.moved |= m != 0;
                    w.exited |= m;
                    w.mask &= !m;
                    if w.mask == 0 {
                        if !w.pick() {
                            if let Some(&(pc, mask, _)) = w.others.first() {
                                let i = &code[pc as usize];
                                let what = format!(
                                    "lanes {:#010x} left without reaching this instruction",
                                    w.exited
                                );
                                return Err(self.fault(
                                    w,
                                    i,
                                    mask.trailing_zeros() as usize,
                                    Fault::Barrier,
                                    what,
                                    None,
                                ));
                            }
                            w.state = State::Done;
                            return Ok(());
                        }
                        continue;
                    }
                }
                Op::Shfl(_) | Op::Vote(_) | Op::Redux(..) | Op::WarpSync => {
                    if m != 0 {
                        let want = w.word(i.v[0] + m.trailing_zeros());
                        if !self.gathered(w, i, want)? {
                            continue;
                        }
                        // A lane under a false guard takes no part; that the rest name it is theirs to answer for.
                        self.warp_op(w, i, m);
                    }
                }
                Op::LdMatrix { .. } | Op::StMatrix { .. } | Op::MovMatrix | Op::Mma { .. } => {
                    if m != 0 {
                        let lanes = w.lanes;
                        if !self.gathered(w, i, lanes)? {
                            continue;
                        }
                        self.matrix_op(w, i)?;
                    }
                }
                Op::Bar { .. } | Op::BarRed(_) => {
                    if m != 0 {
                        let lanes = w.lanes;
                        if !self.gathered(w, i, lanes)? {
                            continue;
                        }
                        if m != w.mask {
                            let what = "a barrier under a predicate on which the warp's lanes differ";
                            return Err(self.fault(
                                w,
                                i,
                                m.trailing_zeros() as usize,
                                Fault::Barrier,
                                what,
                                None,
                            ));
                        }
                        self.arrive(w, i)?;
                        w.pc += 1;
                        return Ok(());
                    }
                }
                Op::Nop => {}
                Op::Ld(acc) | Op::St(acc) => {
                    if m != 0 {
                        self.load_store(w, i, acc, m)?;
                    }
                }
                _ => {
                    if m != 0 {
                        self.other(w, i, m)?;
                    }
                }
            }
            w.pc += 1;
            if !w.others.is_empty() {
                w.merge();
            }
        }
        self.steps += u64::from(TURN);
        Ok(())
    }

    /// What is neither hot nor a matter of control.
    #[cold]
    #[inline(never)]
    fn other(&mut self, w: &mut Warp, i: &Instr, m: u32) -> Done {
        match i.op {
            Op::Atom(acc, op, ty) => self.atomic(w, i, acc, op, ty, m)?,
            Op::CpAsync(acc) => self.copy_async(w, i, acc, m)?,
            Op::CpCommit => crate::access::lanes(m).for_each(|l| w.groups[l] += 1),
            Op::CpWait { all } => self.wait_async(w, i, (!all).then_some(i.e as u32), m)?,
            Op::Fence { device } => self.fenced |= device,
            Op::Activemask => crate::access::lanes(m).for_each(|l| w.row32_mut(i.d)[l] = m),
            Op::Clock { wide } => {
                let now = self.counters.instructions();
                crate::access::lanes(m).for_each(|l| w.put(i.d, wide, l, now));
            }
            Op::Printf => self.printf(w, i, m)?,
            Op::AssertFail => return Err(self.assert_fail(w, i, m)),
            Op::Trap => {
                return Err(self.fault(w, i, m.trailing_zeros() as usize, Fault::Trap, "trap", None));
            }
            _ => {}
        }
        Ok(())
    }

    fn arrive(&mut self, w: &mut Warp, i: &Instr) -> Done {
        self.counters.barriers += 1;
        self.moved = true;
        // A turn that ends at a barrier is short, but a loop of barriers may be endless too.
        self.steps += 8;
        let lane = w.mask.trailing_zeros();
        let id = w.word(i.a + lane) as usize;
        let need = if i.b == NONE { 0 } else { w.word(i.b + lane) };
        if id > 15 || need % 32 != 0 {
            let what = format!("barrier {id} for {need} threads: ids are 0 to 15, counts multiples of 32");
            return Err(self.fault(w, i, lane as usize, Fault::Barrier, what, None));
        }
        let everyone = self.warps.len() as u32 * 32;
        let need = if need == 0 { everyone } else { need };
        let b = &mut self.barriers[id];
        if b.who != 0 && b.need != need || b.who >> w.index & 1 == 1 {
            let what = format!("barrier {id} for {need} threads, where others wait for {} threads", b.need);
            return Err(self.fault(w, i, lane as usize, Fault::Barrier, what, None));
        }
        if b.who == 0 {
            *b = Barrier { need, all: true, ..Barrier::default() };
        }
        b.who |= 1 << w.index;
        if let Op::BarRed(_) = i.op {
            let p = w.word(i.c) ^ if i.e == 1 { !0 } else { 0 };
            b.popc += (p & w.mask).count_ones();
            b.all &= p & w.mask == w.mask;
        }
        if !matches!(i.op, Op::Bar { wait: false }) {
            b.waiting |= 1 << w.index;
            w.state = State::Barrier(id);
        }
        Ok(())
    }

    /// Lets go of a barrier that warp `w` completed by arriving or by leaving.
    fn release(&mut self) {
        let lax = !self.run.launch.checks.barriers;
        let left: u32 = self.warps.iter().filter(|w| w.state == State::Done).map(|w| 1 << w.index).sum();
        for id in 0..16 {
            let b = self.barriers[id];
            let absent = if lax && b.need == self.warps.len() as u32 * 32 { left & !b.who } else { 0 };
            if b.who == 0 || (b.who | absent).count_ones() * 32 < b.need {
                continue;
            }
            let whole = b.who.count_ones() as usize == self.warps.len();
            self.shadow.join(b.who, whole);
            self.barriers[id] = Barrier::default();
            for n in 0..self.warps.len() {
                if b.waiting >> n & 1 == 0 {
                    continue;
                }
                let warp = &mut self.warps[n];
                warp.state = State::Ready;
                let i = &self.run.kernel.code[warp.pc as usize - 1];
                if let Op::BarRed(kind) = i.op {
                    let yes = if kind == 1 { b.all } else { b.popc > 0 };
                    match kind {
                        0 => crate::access::lanes(warp.mask).for_each(|l| warp.row32_mut(i.d)[l] = b.popc),
                        _ => warp.set_word(i.d, if yes { !0 } else { 0 }),
                    }
                }
            }
        }
    }
}

impl Warp {
    /// A placeholder while the real one is at work.
    fn hollow() -> Self {
        Self {
            index: 0,
            regs: Vec::new(),
            pc: 0,
            mask: 0,
            others: Vec::new(),
            lanes: 0,
            exited: 0,
            state: State::Ready,
            local: Vec::new(),
            view: 0,
            pending: Vec::new(),
            groups: [0; 32],
        }
    }
}
