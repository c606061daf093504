//! Which registers a kernel may read before it writes them. Those start every block as 0, so that a result does not
//! depend on what ran before; the rest need no clearing. Hardware leaves them as they are, and compilers count on never
//! looking at what they hold, so reading one is no fault.

use crate::ir::{Instr, NONE, Op};
use std::collections::HashMap;

/// Bits of all sets together beyond which every register is cleared instead.
const MOST_BITS: usize = 1 << 28;

/// The registers an instruction may read, and those it writes whatever its lanes hold. An operand that is no register
/// is told apart by the caller; a read too many only clears a register too many.
fn reads_and_writes(i: &Instr) -> (Vec<u32>, Vec<u32>) {
    let e = u32::try_from(i.e).unwrap_or(NONE);
    let (mut reads, mut writes) = (vec![i.guard, i.a, i.b, i.c], Vec::new());
    match i.op {
        Op::Ld(_) | Op::LdMatrix { .. } => writes.extend_from_slice(&i.v),
        Op::Mma { half, .. } => {
            let (to, from) = i.v.split_at(if half { 2 } else { 4 });
            writes.extend_from_slice(to);
            reads.extend_from_slice(from);
        }
        Op::Alu(_)
        | Op::Shfl(_)
        | Op::Vote(_)
        | Op::Redux(..)
        | Op::Atom(..)
        | Op::BarRed(_)
        | Op::MovMatrix
        | Op::Activemask
        | Op::Clock { .. } => {
            writes.push(i.d);
            reads.push(e);
            reads.extend_from_slice(&i.v);
        }
        Op::Bra | Op::Printf | Op::AssertFail => {}
        _ => {
            reads.extend([i.d, e]);
            reads.extend_from_slice(&i.v);
        }
    }
    if i.guard != NONE {
        writes.clear();
    }
    (reads, writes)
}

/// Of the registers `all` (their first word, and how many words), those that some path may read before it writes them.
pub(crate) fn unwritten(code: &[Instr], all: &HashMap<u32, u32>) -> Vec<(u32, u32)> {
    let mut named: Vec<(u32, u32)> = all.iter().map(|(w, n)| (*w, *n)).collect();
    named.sort_unstable();
    let number: HashMap<u32, usize> = named.iter().enumerate().map(|(n, r)| (r.0, n)).collect();
    // Straight pieces of code: one begins at every branch's target and after every branch.
    let mut starts = vec![false; code.len() + 1];
    starts[0] = true;
    for (n, i) in code.iter().enumerate() {
        if matches!(i.op, Op::Bra) {
            starts[i.d as usize] = true;
        }
        if matches!(i.op, Op::Bra | Op::Exit) {
            starts[n + 1] = true;
        }
    }
    let starts: Vec<usize> = (0..code.len()).filter(|&n| starts[n]).collect();
    let words = named.len().div_ceil(64);
    if starts.len() * words * 64 > MOST_BITS / 2 {
        return named;
    }
    let piece_at: HashMap<usize, usize> = starts.iter().enumerate().map(|(p, s)| (*s, p)).collect();
    // What each piece reads before it writes it, and what it writes.
    let (mut live, mut kills) = (vec![0u64; starts.len() * words], vec![0u64; starts.len() * words]);
    let mut next: Vec<Vec<usize>> = Vec::new();
    for (p, &start) in starts.iter().enumerate() {
        let end = starts.get(p + 1).copied().unwrap_or(code.len());
        let (live, kills) = (&mut live[p * words..][..words], &mut kills[p * words..][..words]);
        for i in &code[start..end] {
            let (reads, writes) = reads_and_writes(i);
            for n in reads.iter().filter_map(|r| number.get(r)) {
                live[n / 64] |= (1 << (n % 64)) & !kills[n / 64];
            }
            for n in writes.iter().filter_map(|r| number.get(r)) {
                kills[n / 64] |= 1 << (n % 64);
            }
        }
        let last = &code[end - 1];
        let falls = !matches!(last.op, Op::Bra | Op::Exit) || last.guard != NONE;
        let mut to: Vec<usize> = piece_at.get(&end).filter(|_| falls).copied().into_iter().collect();
        if matches!(last.op, Op::Bra) {
            to.extend(piece_at.get(&(last.d as usize)));
        }
        next.push(to);
    }
    // Backwards until nothing changes: what the pieces after it want and it does not write, it wants too.
    let mut changed = true;
    while changed {
        changed = false;
        for p in (0..starts.len()).rev() {
            for &q in &next[p] {
                for w in 0..words {
                    let more = live[q * words + w] & !kills[p * words + w] & !live[p * words + w];
                    changed |= more != 0;
                    live[p * words + w] |= more;
                }
            }
        }
    }
    named.into_iter().enumerate().filter(|(n, _)| live[n / 64] >> (n % 64) & 1 == 1).map(|(_, r)| r).collect()
}
