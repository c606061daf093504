//! Instructions that a warp's lanes execute together: shuffles, votes, matches, reductions.

use crate::access::lanes;
use crate::exec::{Cta, Warp};
use crate::ir::{Instr, Op, Rmw, Shuffle, Vote};

impl Cta<'_> {
    /// Executes one for the lanes of `m`.
    pub(crate) fn warp_op(&mut self, w: &mut Warp, i: &Instr, m: u32) {
        match i.op {
            Op::Shfl(kind) => shuffle(w, i, kind, m),
            Op::Vote(kind @ (Vote::MatchAny | Vote::MatchAll)) => matching(w, i, kind, m),
            Op::Vote(kind) => vote(w, i, kind, m),
            Op::Redux(op, signed) => redux(w, i, op, signed, m),
            _ => {}
        }
    }
}

/// `shfl`: `a` the value, `b` the lane or distance, `c` the clamp and the segments' mask.
fn shuffle(w: &mut Warp, i: &Instr, kind: Shuffle, m: u32) {
    let (a, b, c) = (*w.row32(i.a), *w.row32(i.b), *w.row32(i.c));
    let (mut out, mut inside) = ([0; 32], 0u32);
    for l in 0..32u32 {
        let n = l as usize;
        let (b, clamp, segment) = (b[n] & 31, c[n] & 31, c[n] >> 8 & 31);
        let (first, last) = (l & segment, (l & segment) | (clamp & !segment));
        let (from, good) = match kind {
            Shuffle::Up => (l.wrapping_sub(b), l as i64 - i64::from(b) >= i64::from(last)),
            Shuffle::Down => (l + b, l + b <= last),
            Shuffle::Bfly => (l ^ b, l ^ b <= last),
            Shuffle::Idx => (first | (b & !segment), first | (b & !segment) <= last),
        };
        let from = if good { from } else { l };
        out[n] = a[(from & 31) as usize];
        inside |= u32::from(good) << l;
    }
    let d = w.row32_mut(i.d);
    for l in lanes(m) {
        d[l] = out[l];
    }
    if i.e >= 0 {
        w.set_bits(i.e as u32, inside, m);
    }
}

/// `vote.sync`: of the lanes that take part, by their predicate.
fn vote(w: &mut Warp, i: &Instr, kind: Vote, m: u32) {
    let p = w.word(i.a) ^ if i.e == 1 { u32::MAX } else { 0 };
    for l in lanes(m) {
        let who = w.row32(i.v[0])[l] & m;
        let yes = match kind {
            Vote::All => p & who == who,
            Vote::Any => p & who != 0,
            Vote::Uni => p & who == 0 || p & who == who,
            _ => {
                w.row32_mut(i.d)[l] = p & who;
                continue;
            }
        };
        w.set_bits(i.d, if yes { u32::MAX } else { 0 }, 1 << l);
    }
}

/// `match.sync`: which lanes hold the same value.
fn matching(w: &mut Warp, i: &Instr, kind: Vote, m: u32) {
    let wide = i.wides == 1;
    for l in lanes(m) {
        let (mine, who) = (w.get(i.a, wide, l), w.row32(i.v[0])[l] & m);
        let same: u32 = lanes(who).filter(|&n| w.get(i.a, wide, n) == mine).map(|n| 1 << n).sum();
        let all = same == who;
        w.row32_mut(i.d)[l] = if kind == Vote::MatchAny || all { same } else { 0 };
        if kind == Vote::MatchAll && i.e >= 0 {
            w.set_bits(i.e as u32, if all { u32::MAX } else { 0 }, 1 << l);
        }
    }
}

fn redux(w: &mut Warp, i: &Instr, op: Rmw, signed: bool, m: u32) {
    for l in lanes(m) {
        let who = w.row32(i.v[0])[l] & m;
        let a = *w.row32(i.a);
        let fold = |f: &dyn Fn(u32, u32) -> u32| lanes(who).map(|n| a[n]).reduce(f).unwrap_or(0);
        let r = match op {
            Rmw::Add => fold(&u32::wrapping_add),
            Rmw::And => fold(&|x, y| x & y),
            Rmw::Or => fold(&|x, y| x | y),
            Rmw::Xor => fold(&|x, y| x ^ y),
            Rmw::Min if signed => fold(&|x, y| (x as i32).min(y as i32) as u32),
            Rmw::Max if signed => fold(&|x, y| (x as i32).max(y as i32) as u32),
            Rmw::Min => fold(&|x, y| x.min(y)),
            _ => fold(&|x, y| x.max(y)),
        };
        w.row32_mut(i.d)[l] = r;
    }
}
