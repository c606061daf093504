//! Opcodes that become several instructions: arithmetic with the carry flag, and `set`.

use crate::alu::{Alu, a2, cmp, logic, sel};
use crate::decode::Decoder;
use crate::error::Error;
use crate::ir::{Class, NONE, Preset};
use crate::parse::{Arg, Inst};
use crate::select;

/// `add`, `sub`, `mad` with `.cc`, and `addc`, `subc`, `madc`: the flag is a predicate that no register names.
pub(crate) fn carry(d: &mut Decoder, i: &Inst, op: &[&str]) -> Result<(), Error> {
    let (takes, gives) = (op[0].ends_with('c'), op.contains(&"cc"));
    let (base, ty) = (op[0].trim_end_matches('c'), op.last().copied().unwrap_or_default());
    let wide = match ty {
        "u32" | "s32" | "b32" => false,
        "u64" | "s64" | "b64" => true,
        _ => return d.fail("carries are of 32 or 64 bits", &i.op),
    };
    let product = base == "mad";
    let want = if product { 4 } else { 3 };
    if i.args.len() != want || product && !(op.contains(&"lo") || op.contains(&"hi")) {
        return d.fail(format!("expected {want} operands, and .lo or .hi of a product"), &i.op);
    }
    let to = d.dest(&i.args[0], wide)?;
    let s = i.args[1..].iter().map(|a| d.src(a, wide)).collect::<Result<Vec<_>, _>>()?;
    let (a, b) = if product {
        let half = if op.contains(&"hi") { "hi" } else { "lo" };
        let Some(mul) = select::select(&["mul", half, ty]) else {
            return d.fail("unknown instruction", &i.op);
        };
        let t = d.row(wide);
        d.alu(mul, t, &s[..2]).class = Class::Int;
        (t, s[2])
    } else {
        (s[0], s[1])
    };
    let minus = base == "sub";
    let (sum, less): (Alu, fn() -> Alu) = match (wide, minus) {
        (false, false) => (a2(|a: u32, b: u32| a.wrapping_add(b)), || cmp(|a: u32, b| a < b)),
        (false, true) => (a2(|a: u32, b: u32| a.wrapping_sub(b)), || cmp(|a: u32, b| a < b)),
        (true, false) => (a2(|a: u64, b: u64| a.wrapping_add(b)), || cmp(|a: u64, b| a < b)),
        (true, true) => (a2(|a: u64, b: u64| a.wrapping_sub(b)), || cmp(|a: u64, b| a < b)),
    };
    let flag = d.carry_flag();
    let mut out = d.pred_word();
    let first = d.row(wide);
    d.alu(sum.clone(), first, &[a, b]);
    // A sum that carried is below its terms; a difference that borrowed had the smaller term first.
    let (x, y) = if minus { (a, b) } else { (first, a) };
    d.alu(less(), out, &[x, y]).v = Box::new([0]);
    let mut result = first;
    if takes {
        let (one, zero) = match wide {
            true => (d.preset(Preset::Row64(1)), d.preset(Preset::Row64(0))),
            false => (d.preset(Preset::Row32(1)), d.preset(Preset::Row32(0))),
        };
        let (more, second, again, both) = (d.row(wide), d.row(wide), d.pred_word(), d.pred_word());
        d.alu(if wide { sel(|a: u64| a) } else { sel(|a: u32| a) }, more, &[one, zero, flag]);
        d.alu(sum, second, &[first, more]);
        let (x, y) = if minus { (first, more) } else { (second, first) };
        d.alu(less(), again, &[x, y]).v = Box::new([0]);
        d.alu(logic(|a, b| a | b), both, &[out, again]);
        (result, out) = (second, both);
    }
    if gives {
        d.alu(logic(|a, b| a | b), flag, &[out, out]);
    }
    let copy = if wide { a2(|a: u64, _: u64| a) } else { a2(|a: u32, _: u32| a) };
    d.alu(copy, to, &[result, result]).class = Class::Move;
    Ok(())
}

/// `set`: a comparison as all ones or 1.0, and as 0.
pub(crate) fn set(d: &mut Decoder, i: &Inst, op: &[&str]) -> Result<(), Error> {
    let [.., to_type, from_type] = op else { return d.fail("unknown instruction", &i.op) };
    let yes = match *to_type {
        "u32" | "s32" => u32::MAX,
        "f32" => 1f32.to_bits(),
        _ => return d.fail("a result of 32 bits", &i.op),
    };
    let mut as_setp = op[..op.len() - 2].to_vec();
    as_setp[0] = "setp";
    as_setp.push(from_type);
    let Some((to, rest)) = i.args.split_first() else { return d.fail("expected 3 operands", &i.op) };
    let p = d.pred_word();
    d.compare(p, NONE, rest, &as_setp, &i.op)?;
    let (to, one, zero) = (d.dest(to, false)?, d.preset(Preset::Row32(yes)), d.preset(Preset::Row32(0)));
    d.alu(sel(|a: u32| a), to, &[one, zero, p]).class = Class::Int;
    Ok(())
}

/// The operands of a `setp`'s destination: one predicate, or two.
pub(crate) fn targets(d: &mut Decoder, a: &Arg) -> Result<(u32, u32), Error> {
    Ok(match a {
        Arg::Pair(p, q) => (d.pred(p)?, d.pred(q)?),
        p => (d.pred(p)?, NONE),
    })
}
