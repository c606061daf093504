//! Which function executes which opcode: integers, floats, comparisons, moves. Conversions are in `cvt`.

use crate::alu::{Alu, Lane, a1, a2, a3, a4, cmp, logic, sel};
use crate::ir::Class;
use crate::num::{self, Round, ftz, sat};
use half::{bf16, f16};

/// The opcode's modifiers after the first word, without the type.
pub(crate) struct Mods<'a>(pub &'a [&'a str]);

impl Mods<'_> {
    pub fn has(&self, m: &str) -> bool {
        self.0.contains(&m)
    }

    pub fn round(&self) -> Round {
        match () {
            () if self.has("rz") || self.has("rzi") => Round::Zero,
            () if self.has("rm") || self.has("rmi") => Round::Down,
            () if self.has("rp") || self.has("rpi") => Round::Up,
            () => Round::Nearest,
        }
    }
}

/// One closure per combination of `.ftz` and `.sat`, so that the plain one stays plain.
macro_rules! modded {
    ($m:expr, $a:ident, |$($x:ident),*| $e:expr) => {
        match ($m.has("ftz"), $m.has("sat")) {
            (false, false) => $a(|$($x: f32),*| -> f32 { $e }),
            (true, false) => $a(|$($x: f32),*| -> f32 { $(let $x = ftz($x);)* ftz($e) }),
            (false, true) => $a(|$($x: f32),*| -> f32 { sat($e) }),
            (true, true) => $a(|$($x: f32),*| -> f32 { $(let $x = ftz($x);)* sat(ftz($e)) }),
        }
    };
}

/// A directed f32 operation: `$e` rounded to nearest by f32 itself, `$dir` from the operands as f64 and a mode.
macro_rules! directed {
    ($m:expr, $a:ident, |$($x:ident),*| $e:expr, |$r:ident| $dir:expr) => {
        match $m.round() {
            Round::Nearest => modded!($m, $a, |$($x),*| num::canonical($e)),
            Round::Zero => directed!(@one $m, $a, |$($x),*| $r = Round::Zero => $dir),
            Round::Down => directed!(@one $m, $a, |$($x),*| $r = Round::Down => $dir),
            Round::Up => directed!(@one $m, $a, |$($x),*| $r = Round::Up => $dir),
        }
    };
    (@one $m:expr, $a:ident, |$($x:ident),*| $r:ident = $mode:expr => $dir:expr) => {
        modded!($m, $a, |$($x),*| {
            $(let $x = f64::from($x);)*
            let $r = $mode;
            num::canonical($dir)
        })
    };
}

/// A directed f64 operation from its nearest result, that one's error, and whether finite operands give a finite value.
macro_rules! directed64 {
    ($m:expr, $a:ident, |$($x:ident),*| $e:expr, $err:expr, $exact:expr) => {
        match $m.round() {
            Round::Nearest => $a(|$($x: f64),*| -> f64 { $e }),
            Round::Zero => $a(|$($x: f64),*| -> f64 { num::direct($e, $err, Round::Zero, true $(&& $x.is_finite())* && $exact) }),
            Round::Down => $a(|$($x: f64),*| -> f64 { num::direct($e, $err, Round::Down, true $(&& $x.is_finite())* && $exact) }),
            Round::Up => $a(|$($x: f64),*| -> f64 { num::direct($e, $err, Round::Up, true $(&& $x.is_finite())* && $exact) }),
        }
    };
}

fn h(x: f64) -> f16 {
    num::to_f16(x, Round::Nearest)
}

fn b(x: f64) -> bf16 {
    num::to_bf16(x, Round::Nearest)
}

#[inline(always)]
fn lo_hi<T>(f: impl Fn(u16) -> T, x: u32) -> (T, T) {
    (f(x as u16), f((x >> 16) as u16))
}

/// An operation on f16, bf16 and their pairs, from one on f64 whose result rounds correctly.
macro_rules! halves {
    (@go $t:expr, $a:ident, |$($x:ident),*| $e:expr) => {
        match $t {
            "f16" => $a(|$($x: f16),*| -> f16 { $(let $x = $x.to_f64();)* h($e) }),
            "bf16" => $a(|$($x: bf16),*| -> bf16 { $(let $x = $x.to_f64();)* b($e) }),
            "f16x2" => $a(|$($x: u32),*| -> u32 {
                $(let $x = lo_hi(|v| f16::from_bits(v).to_f64(), $x);)*
                let lo = { $(let $x = $x.0;)* h($e) };
                let hi = { $(let $x = $x.1;)* h($e) };
                u32::from(lo.to_bits()) | u32::from(hi.to_bits()) << 16
            }),
            "bf16x2" => $a(|$($x: u32),*| -> u32 {
                $(let $x = lo_hi(|v| bf16::from_bits(v).to_f64(), $x);)*
                let lo = { $(let $x = $x.0;)* b($e) };
                let hi = { $(let $x = $x.1;)* b($e) };
                u32::from(lo.to_bits()) | u32::from(hi.to_bits()) << 16
            }),
            _ => return None,
        }
    };
    ($t:expr, $m:expr, $a:ident, |$($x:ident),*| $e:expr) => {{
        let relu = $m.has("relu") || $m.has("sat");
        if relu && !$m.has("sat") {
            halves!(@go $t, $a, |$($x),*| { let r: f64 = $e; if r.is_nan() { r } else { r.max(0.0) } })
        } else if relu {
            halves!(@go $t, $a, |$($x),*| { let r: f64 = $e; if r > 0.0 { r.min(1.0) } else { 0.0 } })
        } else {
            halves!(@go $t, $a, |$($x),*| $e)
        }
    }};
}

/// One integer closure for 16, 32 and 64 bits, signed or not as the type says.
macro_rules! ints {
    ($t:expr, $a:ident, |$($x:ident),*| $e:expr) => {
        match $t {
            "u16" | "b16" => $a(|$($x: u16),*| $e),
            "s16" => $a(|$($x: i16),*| $e),
            "u32" | "b32" => $a(|$($x: u32),*| $e),
            "s32" => $a(|$($x: i32),*| $e),
            "u64" | "b64" => $a(|$($x: u64),*| $e),
            "s64" => $a(|$($x: i64),*| $e),
            _ => return None,
        }
    };
}

macro_rules! bits {
    ($t:expr, $a:ident, |$($x:ident),*| $e:expr) => {
        match $t {
            "b16" | "u16" | "s16" => $a(|$($x: u16),*| $e),
            "b32" | "u32" | "s32" | "f32" => $a(|$($x: u32),*| $e),
            "b64" | "u64" | "s64" | "f64" => $a(|$($x: u64),*| $e),
            _ => return None,
        }
    };
}

macro_rules! wides {
    ($t:expr, $a:ident, |$x:ident, $y:ident $(, $z:ident)?| $e:expr) => {
        match $t {
            "u16" => $a(|$x: u16, $y: u16 $(, $z: u32)?| -> u32 { let ($x, $y) = (u32::from($x), u32::from($y)); $e }),
            "s16" => $a(|$x: i16, $y: i16 $(, $z: i32)?| -> i32 { let ($x, $y) = (i32::from($x), i32::from($y)); $e }),
            "u32" => $a(|$x: u32, $y: u32 $(, $z: u64)?| -> u64 { let ($x, $y) = (u64::from($x), u64::from($y)); $e }),
            "s32" => $a(|$x: i32, $y: i32 $(, $z: i64)?| -> i64 { let ($x, $y) = (i64::from($x), i64::from($y)); $e }),
            _ => return None,
        }
    };
}

macro_rules! highs {
    ($t:expr, $a:ident, |$x:ident, $y:ident $(, $z:ident)?| $e:expr) => {
        match $t {
            "u16" => $a(|$x: u16, $y: u16 $(, $z: u16)?| { let hi = (u32::from($x) * u32::from($y) >> 16) as u16; $e(hi $(, $z)?) }),
            "s16" => $a(|$x: i16, $y: i16 $(, $z: i16)?| { let hi = (i32::from($x) * i32::from($y) >> 16) as i16; $e(hi $(, $z)?) }),
            "u32" => $a(|$x: u32, $y: u32 $(, $z: u32)?| { let hi = (u64::from($x) * u64::from($y) >> 32) as u32; $e(hi $(, $z)?) }),
            "s32" => $a(|$x: i32, $y: i32 $(, $z: i32)?| { let hi = (i64::from($x) * i64::from($y) >> 32) as i32; $e(hi $(, $z)?) }),
            "u64" => $a(|$x: u64, $y: u64 $(, $z: u64)?| { let hi = (u128::from($x) * u128::from($y) >> 64) as u64; $e(hi $(, $z)?) }),
            "s64" => $a(|$x: i64, $y: i64 $(, $z: i64)?| { let hi = (i128::from($x) * i128::from($y) >> 64) as i64; $e(hi $(, $z)?) }),
            _ => return None,
        }
    };
}

fn float_class(t: &str) -> Class {
    match t {
        "f32" => Class::F32,
        "f64" => Class::F64,
        "f16" | "f16x2" | "bf16" | "bf16x2" => Class::Half,
        _ => Class::Int,
    }
}

/// The function for an opcode split at its dots, if it is a lane-wise one.
pub(crate) fn select(op: &[&str]) -> Option<Alu> {
    let (&name, rest) = op.split_first()?;
    let (&t, mods) = rest.split_last()?;
    let m = &Mods(mods);
    let mut alu = match (name, t) {
        ("setp", _) => compare(m, mods.first()?, t)?,
        ("slct", _) => slct(m, mods.last()?, t)?,
        ("cvt", _) => return crate::cvt::select(mods, t),
        // The one opcode whose mode comes after its type.
        ("prmt", mode) if mode != "b32" => prmt(&Mods(&[mode]))?,
        (_, "pred") => predicate(name)?,
        (_, "f32") if name != "mov" && name != "selp" => float(name, m)?,
        (_, "f64") if name != "mov" && name != "selp" => double(name, m)?,
        (_, "f16" | "bf16" | "f16x2" | "bf16x2") => narrow(name, m, t)?,
        _ => integer(name, m, t)?,
    };
    alu.class = match name {
        "mov" | "selp" | "slct" | "cvta" => Class::Move,
        "ex2" | "lg2" | "sin" | "cos" | "rsqrt" | "tanh" | "rcp" | "sqrt" => Class::Special,
        _ => float_class(t),
    };
    Some(alu)
}

/// The first where the third is not negative, else the second.
fn slct(m: &Mods, t: &str, by: &str) -> Option<Alu> {
    macro_rules! go {
        ($t:ty) => {
            match by {
                "s32" => a3(|a: $t, b: $t, c: i32| if c >= 0 { a } else { b }),
                "f32" if m.has("ftz") => a3(|a: $t, b: $t, c: f32| if ftz(c) >= 0.0 { a } else { b }),
                "f32" => a3(|a: $t, b: $t, c: f32| if c >= 0.0 { a } else { b }),
                _ => return None,
            }
        };
    }
    Some(match t {
        "b16" | "u16" | "s16" => go!(u16),
        "b32" | "u32" | "s32" | "f32" => go!(u32),
        "b64" | "u64" | "s64" | "f64" => go!(u64),
        _ => return None,
    })
}

fn predicate(name: &str) -> Option<Alu> {
    Some(match name {
        "and" => logic(|a, b| a & b),
        "or" => logic(|a, b| a | b),
        "xor" => logic(|a, b| a ^ b),
        "not" => Alu { s: vec![None], ..logic(|a, _| !a) },
        "mov" => Alu { s: vec![None], ..logic(|a, _| a) },
        _ => return None,
    })
}

fn integer(name: &str, m: &Mods, t: &str) -> Option<Alu> {
    Some(match name {
        "mov" => bits!(t, a1, |a| a),
        "selp" => match t {
            "b64" | "u64" | "s64" | "f64" => sel(|a: u64| a),
            "b16" | "u16" | "s16" | "b32" | "u32" | "s32" | "f32" => sel(|a: u32| a),
            _ => return None,
        },
        "add" if m.has("sat") => a2(|a: i32, b: i32| a.saturating_add(b)),
        "sub" if m.has("sat") => a2(|a: i32, b: i32| a.saturating_sub(b)),
        "add" => bits!(t, a2, |a, b| a.wrapping_add(b)),
        "sub" => bits!(t, a2, |a, b| a.wrapping_sub(b)),
        "neg" => bits!(t, a1, |a| a.wrapping_neg()),
        "abs" => match t {
            "s16" => a1(i16::wrapping_abs),
            "s32" => a1(i32::wrapping_abs),
            "s64" => a1(i64::wrapping_abs),
            _ => return None,
        },
        "mul" if m.has("wide") => wides!(t, a2, |a, b| a.wrapping_mul(b)),
        "mul" if m.has("hi") => highs!(t, a2, |a, b| |hi| hi),
        "mul" => bits!(t, a2, |a, b| a.wrapping_mul(b)),
        "mad" if m.has("wide") => wides!(t, a3, |a, b, c| a.wrapping_mul(b).wrapping_add(c)),
        "mad" if m.has("hi") => match t {
            "u32" => {
                a3(|a: u32, b: u32, c: u32| ((u64::from(a) * u64::from(b) >> 32) as u32).wrapping_add(c))
            }
            "s32" => {
                a3(|a: i32, b: i32, c: i32| ((i64::from(a) * i64::from(b) >> 32) as i32).wrapping_add(c))
            }
            "u64" => {
                a3(|a: u64, b: u64, c: u64| ((u128::from(a) * u128::from(b) >> 64) as u64).wrapping_add(c))
            }
            "s64" => {
                a3(|a: i64, b: i64, c: i64| ((i128::from(a) * i128::from(b) >> 64) as i64).wrapping_add(c))
            }
            _ => return None,
        },
        "mad" => bits!(t, a3, |a, b, c| a.wrapping_mul(b).wrapping_add(c)),
        "mul24" => match t {
            "u32" => a2(|a: u32, b: u32| (a & 0xff_ffff).wrapping_mul(b & 0xff_ffff)),
            _ => a2(|a: i32, b: i32| (a << 8 >> 8).wrapping_mul(b << 8 >> 8)),
        },
        "sad" => match t {
            "u32" => a3(|a: u32, b: u32, c: u32| c.wrapping_add(a.abs_diff(b))),
            "s32" => a3(|a: i32, b: i32, c: u32| c.wrapping_add(a.abs_diff(b))),
            _ => return None,
        },
        "div" => ints!(t, a2, |a, b| if b == 0 { !0 } else { a.wrapping_div(b) }),
        "rem" => ints!(t, a2, |a, b| if b == 0 { a } else { a.wrapping_rem(b) }),
        "min" => ints!(t, a2, |a, b| a.min(b)),
        "max" => ints!(t, a2, |a, b| a.max(b)),
        "and" => bits!(t, a2, |a, b| a & b),
        "or" => bits!(t, a2, |a, b| a | b),
        "xor" => bits!(t, a2, |a, b| a ^ b),
        "not" => bits!(t, a1, |a| !a),
        "cnot" => bits!(t, a1, |a| if a == 0 { 1 } else { 0 }),
        "shl" => match t {
            "b16" => a2(|a: u16, n: u32| if n > 15 { 0 } else { a << n }),
            "b32" => a2(|a: u32, n: u32| if n > 31 { 0 } else { a << n }),
            "b64" => a2(|a: u64, n: u32| if n > 63 { 0 } else { a << n }),
            _ => return None,
        },
        "shr" => match t {
            "b16" | "u16" => a2(|a: u16, n: u32| if n > 15 { 0 } else { a >> n }),
            "s16" => a2(|a: i16, n: u32| a >> n.min(15)),
            "b32" | "u32" => a2(|a: u32, n: u32| if n > 31 { 0 } else { a >> n }),
            "s32" => a2(|a: i32, n: u32| a >> n.min(31)),
            "b64" | "u64" => a2(|a: u64, n: u32| if n > 63 { 0 } else { a >> n }),
            "s64" => a2(|a: i64, n: u32| a >> n.min(63)),
            _ => return None,
        },
        "shf" => match (m.has("l"), m.has("wrap")) {
            (true, true) => {
                a3(|a: u32, b: u32, n: u32| (((u64::from(b) << 32 | u64::from(a)) << (n & 31)) >> 32) as u32)
            }
            (true, false) => {
                a3(|a: u32, b: u32, n: u32| (((u64::from(b) << 32 | u64::from(a)) << n.min(32)) >> 32) as u32)
            }
            (false, true) => {
                a3(|a: u32, b: u32, n: u32| ((u64::from(b) << 32 | u64::from(a)) >> (n & 31)) as u32)
            }
            (false, false) => {
                a3(|a: u32, b: u32, n: u32| ((u64::from(b) << 32 | u64::from(a)) >> n.min(32)) as u32)
            }
        },
        "popc" => {
            if t == "b64" {
                a1(|a: u64| a.count_ones())
            } else {
                a1(|a: u32| a.count_ones())
            }
        }
        "clz" => {
            if t == "b64" {
                a1(|a: u64| a.leading_zeros())
            } else {
                a1(|a: u32| a.leading_zeros())
            }
        }
        "brev" => {
            if t == "b64" {
                a1(|a: u64| a.reverse_bits())
            } else {
                a1(|a: u32| a.reverse_bits())
            }
        }
        "bfind" => bfind(m.has("shiftamt"), t)?,
        "bfe" => match t {
            "u32" => a3(|a: u32, p: u32, n: u32| bfe(a.into(), p, n, 32, false) as u32),
            "s32" => a3(|a: i32, p: u32, n: u32| bfe(a as i64 as u64, p, n, 32, true) as u32),
            "u64" => a3(|a: u64, p: u32, n: u32| bfe(a, p, n, 64, false)),
            "s64" => a3(|a: u64, p: u32, n: u32| bfe(a, p, n, 64, true)),
            _ => return None,
        },
        "bfi" => match t {
            "b32" => a4(|a: u32, b: u32, p, n| bfi(a.into(), b.into(), p, n, 32) as u32),
            "b64" => a4(|a: u64, b: u64, p, n| bfi(a, b, p, n, 64)),
            _ => return None,
        },
        "prmt" => prmt(m)?,
        "lop3" => return None,
        "dp4a" => match (m.0.last()?, t) {
            (&"u32", "u32") => a3(|a: u32, b: u32, c: u32| dot4(a, b, c, i64::from, i64::from)),
            (&"s32", "s32") => {
                a3(|a: u32, b: u32, c: u32| dot4(a, b, c, |x| i64::from(x as i8), |y| i64::from(y as i8)))
            }
            (&"s32", "u32") => a3(|a: u32, b: u32, c: u32| dot4(a, b, c, |x| i64::from(x as i8), i64::from)),
            (&"u32", "s32") => a3(|a: u32, b: u32, c: u32| dot4(a, b, c, i64::from, |y| i64::from(y as i8))),
            _ => return None,
        },
        _ => return None,
    })
}

#[inline(always)]
fn dot4(a: u32, b: u32, c: u32, f: impl Fn(u8) -> i64, g: impl Fn(u8) -> i64) -> u32 {
    (0..4).fold(c, |c, i| c.wrapping_add((f((a >> (8 * i)) as u8) * g((b >> (8 * i)) as u8)) as u32))
}

fn bfind(shift: bool, t: &str) -> Option<Alu> {
    Some(match (t, shift) {
        ("u32", false) => a1(|a: u32| 31u32.wrapping_sub(a.leading_zeros())),
        ("u32", true) => a1(|a: u32| if a == 0 { !0 } else { a.leading_zeros() }),
        ("s32", false) => a1(|a: i32| 31u32.wrapping_sub((if a < 0 { !a } else { a }).leading_zeros())),
        ("s32", true) => a1(|a: i32| match (if a < 0 { !a } else { a }).leading_zeros() {
            32 => !0,
            n => n,
        }),
        ("u64", false) => a1(|a: u64| 63u32.wrapping_sub(a.leading_zeros())),
        ("u64", true) => a1(|a: u64| if a == 0 { !0 } else { a.leading_zeros() }),
        ("s64", false) => a1(|a: i64| 63u32.wrapping_sub((if a < 0 { !a } else { a }).leading_zeros())),
        ("s64", true) => a1(|a: i64| match (if a < 0 { !a } else { a }).leading_zeros() {
            64 => !0,
            n => n,
        }),
        _ => return None,
    })
}

/// Bits `p .. p + n` of a `width`-bit value, sign-extended from the field's last bit within the value if `signed`.
fn bfe(a: u64, p: u32, n: u32, width: u32, signed: bool) -> u64 {
    let (p, n) = (p & 255, n & 255);
    let value = if p >= width { 0 } else { (a & (!0 >> (64 - width))) >> p };
    let field = if n >= 64 { value } else { value & ((1 << n) - 1) };
    if !signed || n == 0 || a >> (p + n - 1).min(width - 1) & 1 == 0 || n >= 64 && p == 0 {
        return field;
    }
    let kept = n.min(width.saturating_sub(p));
    if kept >= 64 { field } else { field | !0 << kept }
}

fn bfi(a: u64, b: u64, p: u32, n: u32, width: u32) -> u64 {
    let (p, n) = (p & 255, (n & 255).min(width));
    if p >= width || n == 0 {
        return b;
    }
    let mask = (!0u64 >> (64 - n)) << p;
    b & !mask | a << p & mask
}

fn prmt(m: &Mods) -> Option<Alu> {
    fn byte(a: u32, b: u32, s: u32) -> u32 {
        (u64::from(b) << 32 | u64::from(a)).wrapping_shr((s & 7) * 8) as u32 & 255
    }
    macro_rules! modes {
        (|$s:ident, $i:ident| $e:expr) => {
            a3(|a: u32, b: u32, c: u32| {
                (0..4u32).fold(0, |r, $i| {
                    let $s = c & 3;
                    r | byte(a, b, $e) << (8 * $i)
                })
            })
        };
    }
    Some(match m.0.first() {
        None => a3(|a: u32, b: u32, c: u32| {
            (0..4).fold(0, |r, i| {
                let s = c >> (4 * i);
                let v = byte(a, b, s);
                r | (if s & 8 == 0 {
                    v
                } else if v & 128 == 0 {
                    0
                } else {
                    255
                }) << (8 * i)
            })
        }),
        Some(&"f4e") => modes!(|s, i| s + i),
        Some(&"b4e") => modes!(|s, i| s.wrapping_sub(i)),
        Some(&"rc8") => modes!(|s, _i| s),
        Some(&"ecl") => modes!(|s, i| s.max(i)),
        Some(&"ecr") => modes!(|s, i| s.min(i)),
        Some(&"rc16") => modes!(|s, i| (s & 1) * 2 + (i & 1)),
        _ => return None,
    })
}

fn float(name: &str, m: &Mods) -> Option<Alu> {
    Some(match name {
        "add" => directed!(m, a2, |a, b| a + b, |r| num::add_narrow(a, b, r)),
        "sub" => directed!(m, a2, |a, b| a - b, |r| num::add_narrow(a, -b, r)),
        "mul" => directed!(m, a2, |a, b| a * b, |r| num::narrow(a * b, r)),
        "fma" | "mad" => directed!(m, a3, |a, b, c| a.mul_add(b, c), |r| num::add_narrow(a * b, c, r)),
        "div" if m.has("approx") || m.has("full") => modded!(m, a2, |a, b| a / b),
        "div" => directed!(m, a2, |a, b| a / b, |r| num::narrow(num::div_odd(a, b), r)),
        "rcp" if m.has("approx") => modded!(m, a1, |a| 1.0 / a),
        "rcp" => directed!(m, a1, |a| 1.0 / a, |r| num::narrow(num::div_odd(1.0, a), r)),
        "sqrt" if m.has("approx") => modded!(m, a1, |a| a.sqrt()),
        "sqrt" => directed!(m, a1, |a| a.sqrt(), |r| num::narrow(num::sqrt_odd(a), r)),
        "rsqrt" => modded!(m, a1, |a| (1.0 / f64::from(a).sqrt()) as f32),
        "ex2" => modded!(m, a1, |a| num::exp2(a)),
        "lg2" => modded!(m, a1, |a| f64::from(a).log2() as f32),
        "sin" => modded!(m, a1, |a| f64::from(a).sin() as f32),
        "cos" => modded!(m, a1, |a| f64::from(a).cos() as f32),
        "tanh" => modded!(m, a1, |a| f64::from(a).tanh() as f32),
        "neg" => modded!(m, a1, |a| -a),
        "abs" => modded!(m, a1, |a| a.abs()),
        "min" if m.has("NaN") => modded!(m, a2, |a, b| num::min(a, b, true)),
        "max" if m.has("NaN") => modded!(m, a2, |a, b| num::max(a, b, true)),
        "min" => modded!(m, a2, |a, b| num::min(a, b, false)),
        "max" => modded!(m, a2, |a, b| num::max(a, b, false)),
        "copysign" => a2(|a: f32, b: f32| b.copysign(a)),
        "testp" => testp(m)?,
        _ => return None,
    })
}

fn testp(m: &Mods) -> Option<Alu> {
    let one = |alu: Alu| Alu { s: vec![Some(false)], ..alu };
    Some(one(match *m.0.first()? {
        "finite" => cmp(|a: f32, _| a.is_finite()),
        "infinite" => cmp(|a: f32, _| a.is_infinite()),
        "number" => cmp(|a: f32, _| !a.is_nan()),
        "notanumber" => cmp(|a: f32, _| a.is_nan()),
        "normal" => cmp(|a: f32, _| a.is_normal()),
        "subnormal" => cmp(|a: f32, _| a.is_subnormal()),
        _ => return None,
    }))
}

fn double(name: &str, m: &Mods) -> Option<Alu> {
    Some(match name {
        "add" => match m.round() {
            Round::Nearest => a2(|a: f64, b: f64| a + b),
            Round::Zero => a2(|a, b| num::add_dir(a, b, Round::Zero)),
            Round::Down => a2(|a, b| num::add_dir(a, b, Round::Down)),
            Round::Up => a2(|a, b| num::add_dir(a, b, Round::Up)),
        },
        "sub" => match m.round() {
            Round::Nearest => a2(|a: f64, b: f64| a - b),
            Round::Zero => a2(|a, b: f64| num::add_dir(a, -b, Round::Zero)),
            Round::Down => a2(|a, b: f64| num::add_dir(a, -b, Round::Down)),
            Round::Up => a2(|a, b: f64| num::add_dir(a, -b, Round::Up)),
        },
        "mul" => directed64!(m, a2, |a, b| a * b, a.mul_add(b, -(a * b)), true),
        "fma" | "mad" => match m.round() {
            Round::Nearest => a3(f64::mul_add),
            Round::Zero => a3(|a, b, c| num::fma_dir(a, b, c, Round::Zero)),
            Round::Down => a3(|a, b, c| num::fma_dir(a, b, c, Round::Down)),
            Round::Up => a3(|a, b, c| num::fma_dir(a, b, c, Round::Up)),
        },
        "div" => directed64!(m, a2, |a, b| a / b, (-(a / b)).mul_add(b, a) * b.signum(), b != 0.0),
        "rcp" if m.has("approx") => a1(|a: f64| num::upper_half(1.0 / num::upper_half(a))),
        "rcp" => directed64!(m, a1, |a| 1.0 / a, (-(1.0 / a)).mul_add(a, 1.0) * a.signum(), a != 0.0),
        "sqrt" => directed64!(m, a1, |a| a.sqrt(), (-a.sqrt()).mul_add(a.sqrt(), a), true),
        "rsqrt" => a1(|a: f64| num::upper_half(1.0 / num::upper_half(a).sqrt())),
        "neg" => a1(|a: f64| -a),
        "abs" => a1(f64::abs),
        "min" => a2(|a: f64, b: f64| {
            if a.is_nan() {
                b
            } else if b.is_nan() || a < b || (a == b && a.is_sign_negative()) {
                a
            } else {
                b
            }
        }),
        "max" => a2(|a: f64, b: f64| {
            if a.is_nan() {
                b
            } else if b.is_nan() || a > b || (a == b && b.is_sign_negative()) {
                a
            } else {
                b
            }
        }),
        "copysign" => a2(|a: f64, b: f64| b.copysign(a)),
        _ => return None,
    })
}

fn narrow(name: &str, m: &Mods, t: &str) -> Option<Alu> {
    let flip = |f: fn() -> (Alu, Alu)| if t.ends_with("x2") { f().1 } else { f().0 };
    Some(match name {
        "neg" => flip(|| (a1(|a: u16| a ^ 0x8000), a1(|a: u32| a ^ 0x8000_8000))),
        "abs" => flip(|| (a1(|a: u16| a & 0x7fff), a1(|a: u32| a & 0x7fff_7fff))),
        "add" => halves!(t, m, a2, |a, b| num::add_odd(a, b)),
        "sub" => halves!(t, m, a2, |a, b| num::add_odd(a, -b)),
        "mul" => halves!(t, m, a2, |a, b| a * b),
        "fma" => halves!(t, m, a3, |a, b, c| num::add_odd(a * b, c)),
        "min" if m.has("NaN") => halves!(t, m, a2, |a, b| f64::from(num::min(a as f32, b as f32, true))),
        "max" if m.has("NaN") => halves!(t, m, a2, |a, b| f64::from(num::max(a as f32, b as f32, true))),
        "min" => halves!(t, m, a2, |a, b| f64::from(num::min(a as f32, b as f32, false))),
        "max" => halves!(t, m, a2, |a, b| f64::from(num::max(a as f32, b as f32, false))),
        "ex2" => halves!(t, m, a1, |a| a.exp2()),
        "tanh" => halves!(t, m, a1, |a| a.tanh()),
        _ => return None,
    })
}

#[allow(clippy::neg_cmp_op_on_partial_ord, clippy::double_comparisons, reason = "what is unordered matters")]
fn compare(m: &Mods, op: &str, t: &str) -> Option<Alu> {
    fn ordered<A: Lane + PartialOrd>(op: &str) -> Option<Alu> {
        Some(match op {
            "eq" => cmp(|a: A, b| a == b),
            "ne" => cmp(|a: A, b| a < b || a > b),
            "lt" | "lo" => cmp(|a: A, b| a < b),
            "le" | "ls" => cmp(|a: A, b| a <= b),
            "gt" | "hi" => cmp(|a: A, b| a > b),
            "ge" | "hs" => cmp(|a: A, b| a >= b),
            "equ" => cmp(|a: A, b| !(a < b || a > b)),
            "neu" => cmp(|a: A, b| a != b),
            "ltu" => cmp(|a: A, b| !(a >= b)),
            "leu" => cmp(|a: A, b| !(a > b)),
            "gtu" => cmp(|a: A, b| !(a <= b)),
            "geu" => cmp(|a: A, b| !(a < b)),
            "num" => cmp(|a: A, b| a.partial_cmp(&b).is_some()),
            "nan" => cmp(|a: A, b| a.partial_cmp(&b).is_none()),
            _ => return None,
        })
    }
    match t {
        "s16" => ordered::<i16>(op),
        "u16" | "b16" => ordered::<u16>(op),
        "s32" => ordered::<i32>(op),
        "u32" | "b32" => ordered::<u32>(op),
        "s64" => ordered::<i64>(op),
        "u64" | "b64" => ordered::<u64>(op),
        "f32" if m.has("ftz") => match op {
            "eq" => Some(cmp(|a, b| ftz(a) == ftz(b))),
            "neu" => Some(cmp(|a, b| ftz(a) != ftz(b))),
            "lt" => Some(cmp(|a, b| ftz(a) < ftz(b))),
            "le" => Some(cmp(|a, b| ftz(a) <= ftz(b))),
            "gt" => Some(cmp(|a, b| ftz(a) > ftz(b))),
            "ge" => Some(cmp(|a, b| ftz(a) >= ftz(b))),
            "ltu" => Some(cmp(|a, b| !(ftz(a) >= ftz(b)))),
            "leu" => Some(cmp(|a, b| !(ftz(a) > ftz(b)))),
            "gtu" => Some(cmp(|a, b| !(ftz(a) <= ftz(b)))),
            "geu" => Some(cmp(|a, b| !(ftz(a) < ftz(b)))),
            "ne" => Some(cmp(|a, b| ftz(a) < ftz(b) || ftz(a) > ftz(b))),
            _ => ordered::<f32>(op),
        },
        "f32" => ordered::<f32>(op),
        "f64" => ordered::<f64>(op),
        "f16" => ordered::<f16>(op),
        "bf16" => ordered::<bf16>(op),
        _ => None,
    }
}
