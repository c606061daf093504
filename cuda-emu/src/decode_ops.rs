//! Decoding of what is not lane-wise: memory, atomics, warp and block synchronisation, matrices.

use crate::alu::{a1, a4, cmp};
use crate::decode::{Decoder, Sym};
use crate::error::Error;
use crate::ir::{Access, Class, Factor, NONE, Op, Preset, Rmw, Shuffle, Space, Ty, Vote};
use crate::parse::{Arg, Inst, type_bytes};

/// Generic addresses of a block's shared memory, of a thread's local memory and of parameters start here.
pub(crate) const SHARED: u64 = 0x100_0000_0000;
pub(crate) const LOCAL: u64 = 0x200_0000_0000;
pub(crate) const PARAM: u64 = 0x300_0000_0000;

fn space(op: &[&str]) -> Space {
    op.iter()
        .find_map(|m| {
            Some(match m.split("::").next().unwrap_or(m) {
                "global" => Space::Global,
                "shared" => Space::Shared,
                "local" => Space::Local,
                "param" => Space::Param,
                "const" => Space::Const,
                _ => return None,
            })
        })
        .unwrap_or(Space::Generic)
}

fn base(s: Space) -> u64 {
    match s {
        Space::Shared => SHARED,
        Space::Local => LOCAL,
        Space::Param => PARAM,
        _ => 0,
    }
}

fn ty(t: &str) -> Option<Ty> {
    Some(match t {
        "f32" => Ty::F32,
        "f64" => Ty::F64,
        "f16" => Ty::F16,
        "bf16" => Ty::Bf16,
        "f16x2" => Ty::F16x2,
        "bf16x2" => Ty::Bf16x2,
        _ if t.starts_with('s') => Ty::S(type_bytes(t)? as u8),
        _ => Ty::U(type_bytes(t)? as u8),
    })
}

fn rmw(op: &[&str]) -> Option<Rmw> {
    op.iter().skip(1).find_map(|m| {
        Some(match *m {
            "add" => Rmw::Add,
            "min" => Rmw::Min,
            "max" => Rmw::Max,
            "and" => Rmw::And,
            "or" => Rmw::Or,
            "xor" => Rmw::Xor,
            "exch" => Rmw::Exch,
            "cas" => Rmw::Cas,
            "inc" => Rmw::Inc,
            "dec" => Rmw::Dec,
            _ => return None,
        })
    })
}

/// The row and offset of an address, whether it is wide, and the space it names if it does.
fn address(d: &mut Decoder, a: &Arg, s: Space) -> Result<(u32, i64, bool, Space), Error> {
    let (base, off) = match a {
        Arg::Mem(b, off) => (&**b, *off),
        _ => return d.fail("expected an address in brackets", format!("{a:?}")),
    };
    if let Arg::Name(n, _) = base {
        match d.lookup(n)? {
            Sym::Reg(w, wide) => {
                let s = if s == Space::Param && d.inlined() { Space::Local } else { s };
                return Ok((w, off, wide, s));
            }
            Sym::Local(_) if s == Space::Param => return Ok((d.src(base, false)?, off, false, Space::Local)),
            Sym::Global(_) => return Ok((d.src(base, true)?, off, true, s)),
            _ => {}
        }
    }
    Ok((d.src(base, false)?, off, false, s))
}

fn access(d: &mut Decoder, i: &Inst, op: &[&str], at: &Arg) -> Result<(Access, u32, i64), Error> {
    let Some(bytes) = op.last().and_then(|t| type_bytes(t)).filter(|b| *b <= 8) else {
        return d.fail("unknown type", &i.op);
    };
    let strong = ["volatile", "relaxed", "acquire", "release", "mmio"].iter().any(|m| op.contains(m));
    let (row, off, wide, space) = address(d, at, space(&op[1..]))?;
    let signed = op.last().is_some_and(|t| t.starts_with('s'));
    Ok((Access { space, bytes: bytes as u8, signed, strong, wide }, row, off))
}

fn many(a: &Arg) -> &[Arg] {
    match a {
        Arg::Vector(v) => v,
        one => std::slice::from_ref(one),
    }
}

fn rows(d: &mut Decoder, list: &[Arg], wide_type: bool, store: bool) -> Result<(Box<[u32]>, u32), Error> {
    let (mut v, mut wides) = (Vec::new(), 0);
    if !matches!(list.len(), 1..=8) {
        return d.fail("a list of 1 to 8 registers", format!("{} given", list.len()));
    }
    for (n, a) in list.iter().enumerate() {
        let (w, wide) = match a {
            Arg::Name(x, _) if x == "_" => (d.row(true), wide_type),
            Arg::Name(..) if !store => d.any(a)?,
            Arg::Name(..) => d.src_any(a)?,
            _ => (d.src(a, wide_type)?, wide_type),
        };
        v.push(w);
        wides |= u32::from(wide) << n;
    }
    Ok((v.into(), wides))
}

/// Decodes an instruction of this file's kinds; false if it is none.
pub(crate) fn special(d: &mut Decoder, i: &Inst, op: &[&str]) -> Result<bool, Error> {
    let a = &i.args[..];
    let has = |m: &str| op.contains(&m);
    let need = |d: &Decoder, n: usize| -> Result<(), Error> {
        if a.len() < n { d.fail(format!("expected {n} operands"), &i.op) } else { Ok(()) }
    };
    match op[0] {
        "ld" | "ldu" | "st" => {
            need(d, 2)?;
            let load = op[0] != "st";
            let (acc, row, off) = access(d, i, op, &a[usize::from(load)])?;
            let (v, wides) = rows(d, many(&a[usize::from(!load)]), acc.bytes == 8, !load)?;
            if !v.len().is_power_of_two() {
                return d.fail("a vector of 1, 2, 4 or 8", &i.op);
            }
            let (kind, class) = if load { (Op::Ld(acc), Class::Load) } else { (Op::St(acc), Class::Store) };
            let at = d.emit(kind, class);
            (at.a, at.e, at.v, at.wides) = (row, off, v, wides);
        }
        "atom" | "red" => {
            let atom = op[0] == "atom";
            need(d, 2 + usize::from(atom))?;
            let (mut acc, row, off) = access(d, i, op, &a[usize::from(atom)])?;
            acc.strong = true;
            let (Some(r), Some(t)) = (rmw(op), op.last().and_then(|t| ty(t))) else {
                return d.fail("unknown instruction", &i.op);
            };
            let wide = acc.bytes == 8;
            let operands = &a[1 + usize::from(atom)..];
            let b = d.src(&operands[0], wide)?;
            let c = if r == Rmw::Cas { need(d, 4).and_then(|()| d.src(&operands[1], wide))? } else { NONE };
            let to = if atom { d.dest(&a[0], wide)? } else { d.row(wide) };
            let at = d.emit(Op::Atom(acc, r, t), Class::Atomic);
            (at.d, at.a, at.b, at.c, at.e) = (to, row, b, c, off);
        }
        "cvta" => {
            need(d, 2)?;
            let (s, to) = (base(space(op)), has("to"));
            let (r, w) = (d.src(&a[1], true)?, d.dest(&a[0], true)?);
            let k = d.preset(Preset::Row64(if to { s.wrapping_neg() } else { s }));
            d.alu(crate::alu::a2(|x: u64, k: u64| x.wrapping_add(k)), w, &[r, k]).class = Class::Move;
        }
        "isspacep" => {
            need(d, 2)?;
            let (p, r) = (d.pred(&a[0])?, d.src(&a[1], true)?);
            let alu = match space(op) {
                Space::Shared => cmp(|x: u64, _| x >> 40 == 1),
                Space::Local => cmp(|x: u64, _| x >> 40 == 2),
                Space::Param => cmp(|x: u64, _| x >> 40 == 3),
                _ => cmp(|x: u64, _| x >> 40 == 0),
            };
            d.alu(alu, p, &[r]).v = Box::new([0]);
        }
        "lop3" => {
            need(d, 5)?;
            let s = [d.src(&a[1], false)?, d.src(&a[2], false)?, d.src(&a[3], false)?, d.src(&a[4], false)?];
            let to = d.dest(&a[0], false)?;
            let lut = |a: u32, b: u32, c: u32, t: u32| {
                (0..8).filter(|n| t >> n & 1 == 1).fold(0, |r, n: u32| {
                    let pick = |x: u32, bit: u32| if n >> bit & 1 == 1 { x } else { !x };
                    r | pick(a, 2) & pick(b, 1) & pick(c, 0)
                })
            };
            d.alu(a4::<u32, _>(lut), to, &s);
        }
        "shfl" => {
            need(d, 5)?;
            let kind = match op.get(2) {
                Some(&"up") => Shuffle::Up,
                Some(&"down") => Shuffle::Down,
                Some(&"bfly") => Shuffle::Bfly,
                Some(&"idx") => Shuffle::Idx,
                _ => return d.fail("unknown instruction", &i.op),
            };
            let (to, p) = match &a[0] {
                Arg::Pair(x, p) => (d.dest(x, false)?, d.pred(p)?.into()),
                x => (d.dest(x, false)?, -1),
            };
            let s = [d.src(&a[1], false)?, d.src(&a[2], false)?, d.src(&a[3], false)?, d.src(&a[4], false)?];
            let at = d.emit(Op::Shfl(kind), Class::Shuffle);
            (at.d, at.e, at.a, at.b, at.c, at.v) = (to, p, s[0], s[1], s[2], Box::new([s[3]]));
        }
        "vote" => {
            need(d, 3)?;
            let kind = match op.get(2) {
                Some(&"all") => Vote::All,
                Some(&"any") => Vote::Any,
                Some(&"uni") => Vote::Uni,
                Some(&"ballot") => Vote::Ballot,
                _ => return d.fail("unknown instruction", &i.op),
            };
            let (p, m) = (d.pred(&a[1])?, d.src(&a[2], false)?);
            let to = if kind == Vote::Ballot { d.dest(&a[0], false)? } else { d.pred(&a[0])? };
            let at = d.emit(Op::Vote(kind), Class::Shuffle);
            (at.d, at.a, at.v, at.e) = (to, p, Box::new([m]), i64::from(matches!(a[1], Arg::Name(_, true))));
        }
        "match" => {
            need(d, 3)?;
            let kind = if has("all") { Vote::MatchAll } else { Vote::MatchAny };
            let wide = has("b64");
            let (x, m) = (d.src(&a[1], wide)?, d.src(&a[2], false)?);
            let (to, p) = match &a[0] {
                Arg::Pair(t, p) => (d.dest(t, false)?, i64::from(d.pred(p)?)),
                t => (d.dest(t, false)?, -1),
            };
            let at = d.emit(Op::Vote(kind), Class::Shuffle);
            (at.d, at.a, at.v, at.e, at.wides) = (to, x, Box::new([m]), p, wide.into());
        }
        "redux" => {
            need(d, 3)?;
            let Some(r) = rmw(op) else { return d.fail("unknown instruction", &i.op) };
            let (x, m, to) = (d.src(&a[1], false)?, d.src(&a[2], false)?, d.dest(&a[0], false)?);
            let at = d.emit(Op::Redux(r, has("s32")), Class::Shuffle);
            (at.d, at.a, at.v) = (to, x, Box::new([m]));
        }
        "activemask" => {
            need(d, 1)?;
            let to = d.dest(&a[0], false)?;
            d.emit(Op::Activemask, Class::Shuffle).d = to;
        }
        "bar" | "barrier" if has("warp") => {
            need(d, 1)?;
            let m = d.src(&a[0], false)?;
            d.emit(Op::WarpSync, Class::Barrier).v = Box::new([m]);
        }
        "bar" | "barrier" if has("cluster") => return d.fail("clusters are not supported", &i.op),
        "bar" | "barrier" => barrier(d, i, op)?,
        "membar" | "fence" => {
            let device = has("gl") || has("sys") || has("gpu");
            d.emit(Op::Fence { device }, Class::Barrier);
        }
        "nanosleep" | "prefetch" | "prefetchu" | "discard" | "applypriority" | "brkpt" | "griddepcontrol" => {
            d.emit(Op::Nop, Class::Control);
        }
        "trap" => {
            d.emit(Op::Trap, Class::Control);
        }
        "cp" => copy(d, i, op)?,
        "ldmatrix" | "stmatrix" => {
            need(d, 2)?;
            let load = op[0] == "ldmatrix";
            let (v, at) = if load { (&a[0], &a[1]) } else { (&a[1], &a[0]) };
            let (row, off, wide, _) = address(d, at, Space::Shared)?;
            let (v, _) = rows(d, many(v), false, !load)?;
            let (count, trans) = (v.len() as u8, has("trans"));
            if !has("b16") || !has("m8n8") || !matches!(count, 1 | 2 | 4) {
                return d.fail("unknown matrix shape", &i.op);
            }
            let kind =
                if load { Op::LdMatrix { count, trans, wide } } else { Op::StMatrix { count, trans, wide } };
            let at = d.emit(kind, if load { Class::Load } else { Class::Store });
            (at.a, at.e, at.v) = (row, off, v);
        }
        "movmatrix" => {
            need(d, 2)?;
            let (x, to) = (d.src(&a[1], false)?, d.dest(&a[0], false)?);
            let at = d.emit(Op::MovMatrix, Class::Shuffle);
            (at.d, at.a) = (to, x);
        }
        "mma" => mma(d, i, op)?,
        "mov" if has("pred") => return Ok(false),
        "mov" => match a {
            [_, Arg::Name(n, _)] if n == "%envreg0" => {
                let to = d.dest(&a[0], false)?;
                d.alu(crate::alu::a0(|| 0u32), to, &[]);
            }
            [x, Arg::Name(n, _)]
                if op.get(1).is_some_and(|t| t.ends_with("64"))
                    && matches!(d.lookup(n), Ok(Sym::Reg(_, false))) =>
            {
                let (s, to) = (d.src(&a[1], false)?, d.dest(x, true)?);
                d.alu(a1(|x: u32| u64::from(x)), to, &[s]);
            }
            _ => return Ok(false),
        },
        _ => return Ok(false),
    }
    Ok(true)
}

fn barrier(d: &mut Decoder, i: &Inst, op: &[&str]) -> Result<(), Error> {
    let a = &i.args[..];
    if op.contains(&"red") {
        let [to, rest @ .., p] = a else { return d.fail("expected operands", &i.op) };
        let (kind, pred) =
            (["popc", "and", "or"].iter().position(|k| op.contains(k)), op.last() == Some(&"pred"));
        let Some(kind) = kind else { return d.fail("unknown instruction", &i.op) };
        let to = if pred { d.pred(to)? } else { d.dest(to, false)? };
        let id = d.src(rest.first().unwrap_or(&Arg::Int(0)), false)?;
        let n = rest.get(1).map_or(Ok(NONE), |x| d.src(x, false))?;
        let q = d.pred(p)?;
        let at = d.emit(Op::BarRed(kind as u8), Class::Barrier);
        (at.d, at.a, at.b, at.c, at.e) = (to, id, n, q, i64::from(matches!(p, Arg::Name(_, true))));
        return Ok(());
    }
    let id = d.src(a.first().unwrap_or(&Arg::Int(0)), false)?;
    let n = a.get(1).map_or(Ok(NONE), |x| d.src(x, false))?;
    let at = d.emit(Op::Bar { wait: !op.contains(&"arrive") }, Class::Barrier);
    (at.a, at.b) = (id, n);
    Ok(())
}

fn copy(d: &mut Decoder, i: &Inst, op: &[&str]) -> Result<(), Error> {
    let a = &i.args[..];
    if op.get(1) != Some(&"async") || op.contains(&"bulk") || op.contains(&"mbarrier") {
        return d.fail("unknown instruction", &i.op);
    }
    match op.get(2).copied().unwrap_or_default() {
        "commit_group" => d.emit(Op::CpCommit, Class::AsyncCopy),
        "wait_all" => d.emit(Op::CpWait { all: true }, Class::AsyncCopy),
        "wait_group" => {
            let Some(Arg::Int(n)) = a.first() else { return d.fail("expected a number", &i.op) };
            let at = d.emit(Op::CpWait { all: false }, Class::AsyncCopy);
            at.e = *n;
            at
        }
        "ca" | "cg" => {
            let [to, from, Arg::Int(size @ (4 | 8 | 16)), rest @ ..] = a else {
                return d.fail("expected [to], [from], 4, 8 or 16", &i.op);
            };
            let (dst, off, wide, _) = address(d, to, Space::Shared)?;
            let (src, from_off, _, _) = address(d, from, Space::Global)?;
            let n = match rest.first() {
                None => d.preset(Preset::Row32(*size as u32)),
                Some(x) => d.src(x, false)?,
            };
            let acc = Access { space: Space::Global, bytes: *size as u8, signed: false, strong: false, wide };
            let at = d.emit(Op::CpAsync(acc), Class::AsyncCopy);
            (at.d, at.e, at.a, at.b, at.v) = (dst, off, src, n, Box::new([from_off as u32]));
            at
        }
        _ => return d.fail("unknown instruction", &i.op),
    };
    Ok(())
}

fn mma(d: &mut Decoder, i: &Inst, op: &[&str]) -> Result<(), Error> {
    let [to, x, y, z] = &i.args[..] else { return d.fail("expected 4 operands", &i.op) };
    let factor = |t: &str| {
        Some(match t {
            "f16" => (Factor::F16, 16),
            "bf16" => (Factor::Bf16, 16),
            "tf32" => (Factor::Tf32, 32),
            "s8" => (Factor::S8, 8),
            "u8" => (Factor::U8, 8),
            _ => return None,
        })
    };
    let n = op.len();
    if n < 5 {
        return d.fail("unknown matrix product", &i.op);
    }
    let shape = op.iter().find_map(|m| m.strip_prefix("m16n8k")).and_then(|k| k.parse::<u8>().ok());
    let (Some(k), Some((fa, bits)), Some((fb, _))) = (shape, factor(op[n - 3]), factor(op[n - 2])) else {
        return d.fail("unknown matrix product", &i.op);
    };
    let half = op[n - 1] == "f16";
    let (to, _) = rows(d, many(to), false, false)?;
    let mut v = to.to_vec();
    let mut counts = [v.len(), 0, 0, 0];
    for (n, s) in [x, y, z].into_iter().enumerate() {
        let (s, _) = rows(d, many(s), false, true)?;
        counts[n + 1] = s.len();
        v.extend_from_slice(&s);
    }
    let per = usize::from(k) * bits / 128;
    let acc = if half { 2 } else { 4 };
    if !matches!(k, 4 | 8 | 16 | 32) || counts != [acc, per * 2, per, acc] || per == 0 {
        return d.fail("unknown matrix product", &i.op);
    }
    d.emit(Op::Mma { a: fa, b: fb, k, half, sat: op.contains(&"satfinite") }, Class::Mma).v = v.into();
    Ok(())
}
