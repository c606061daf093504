//! Conversions between numeric types, and of addresses between spaces.

use crate::alu::{Alu, Lane, a1, a2};
use crate::ir::Class;
use crate::num::{self, Round, ftz, sat};
use crate::select::Mods;
use half::{bf16, f16};

/// A type that converts through i128 or f64.
trait Int: Lane {
    fn wide(self) -> i128;
    fn cut(v: i128) -> Self;
    const BITS: u32;
    const SIGNED: bool;
}

macro_rules! int {
    ($($t:ty, $s:expr);*) => {
        $(impl Int for $t {
            #[inline(always)]
            fn wide(self) -> i128 {
                self as i128
            }
            #[inline(always)]
            fn cut(v: i128) -> Self {
                v as Self
            }
            const BITS: u32 = <$t>::BITS;
            const SIGNED: bool = $s;
        })*
    };
}
int!(u8, false; i8, true; u16, false; i16, true; u32, false; i32, true; u64, false; i64, true);

macro_rules! with_int {
    ($t:expr, $T:ident => $e:expr) => {
        match $t {
            "u8" | "b8" => {
                type $T = u8;
                $e
            }
            "s8" => {
                type $T = i8;
                $e
            }
            "u16" | "b16" => {
                type $T = u16;
                $e
            }
            "s16" => {
                type $T = i16;
                $e
            }
            "u32" | "b32" => {
                type $T = u32;
                $e
            }
            "s32" => {
                type $T = i32;
                $e
            }
            "u64" | "b64" => {
                type $T = u64;
                $e
            }
            "s64" => {
                type $T = i64;
                $e
            }
            _ => return None,
        }
    };
}

macro_rules! with_round {
    ($m:expr, $R:ident => $e:expr) => {
        match $m.round() {
            Round::Nearest => {
                const $R: Round = Round::Nearest;
                $e
            }
            Round::Zero => {
                const $R: Round = Round::Zero;
                $e
            }
            Round::Down => {
                const $R: Round = Round::Down;
                $e
            }
            Round::Up => {
                const $R: Round = Round::Up;
                $e
            }
        }
    };
}

fn is_int(t: &str) -> bool {
    matches!(t.as_bytes().first(), Some(b'u' | b's')) || matches!(t, "b8" | "b16" | "b32" | "b64")
}

/// The function for `cvt.<mods>.<to>.<from>`.
pub(crate) fn select(mods: &[&str], from: &str) -> Option<Alu> {
    let (&to, mods) = mods.split_last()?;
    let m = &Mods(mods);
    let alu = match (is_int(to), is_int(from)) {
        (true, true) => int_int(m.has("sat"), to, from)?,
        (true, false) => float_int(m, to, from)?,
        (false, true) => int_float(m, to, from)?,
        (false, false) => float_float(m, to, from)?,
    };
    Some(Alu { class: Class::Convert, ..alu })
}

fn int_int(saturate: bool, to: &str, from: &str) -> Option<Alu> {
    fn go<T: Int, A: Int>(saturate: bool) -> Alu {
        if !saturate {
            return a1(|a: A| T::cut(a.wide()));
        }
        a1(|a: A| {
            let (lo, hi) = match T::SIGNED {
                true => (-(1i128 << (T::BITS - 1)), (1i128 << (T::BITS - 1)) - 1),
                false => (0, (1i128 << T::BITS) - 1),
            };
            T::cut(a.wide().clamp(lo, hi))
        })
    }
    Some(with_int!(to, T => with_int!(from, A => go::<T, A>(saturate))))
}

fn float_int(m: &Mods, to: &str, from: &str) -> Option<Alu> {
    fn f32s<T: Int>(m: &Mods) -> Alu {
        with_round!(m, R => if m.has("ftz") {
            a1(|a: f32| T::cut(num::to_int(num::integral(ftz(a).into(), R), T::BITS, T::SIGNED, T::BITS == 64).into()))
        } else {
            a1(|a: f32| T::cut(num::to_int(num::integral(a.into(), R), T::BITS, T::SIGNED, T::BITS == 64).into()))
        })
    }
    fn f64s<T: Int>(m: &Mods) -> Alu {
        with_round!(m, R => a1(|a: f64| T::cut(num::to_int(num::integral(a, R), T::BITS, T::SIGNED, true).into())))
    }
    fn f16s<T: Int>(m: &Mods) -> Alu {
        with_round!(m, R => a1(|a: f16| T::cut(num::to_int(num::integral(a.to_f64(), R), T::BITS, T::SIGNED, T::BITS == 64).into())))
    }
    fn bf16s<T: Int>(m: &Mods) -> Alu {
        with_round!(m, R => a1(|a: bf16| T::cut(num::to_int(num::integral(a.to_f64(), R), T::BITS, T::SIGNED, T::BITS == 64).into())))
    }
    if (to, from, m.round()) == ("s32", "f32", Round::Zero) && !m.has("ftz") {
        return Some(a1(|a: f32| a as i32));
    }
    Some(match from {
        "f32" => with_int!(to, T => f32s::<T>(m)),
        "f64" => with_int!(to, T => f64s::<T>(m)),
        "f16" => with_int!(to, T => f16s::<T>(m)),
        "bf16" => with_int!(to, T => bf16s::<T>(m)),
        _ => return None,
    })
}

fn int_float(m: &Mods, to: &str, from: &str) -> Option<Alu> {
    fn go<A: Int>(m: &Mods, to: &str) -> Option<Alu> {
        Some(with_round!(m, R => match to {
            "f32" => a1(|a: A| num::narrow(num::int_odd(a.wide()), R)),
            "f64" => a1(|a: A| num::int_f64(a.wide(), R)),
            "f16" => a1(|a: A| num::to_f16(num::int_odd(a.wide()), R)),
            "bf16" => a1(|a: A| num::to_bf16(num::int_odd(a.wide()), R)),
            _ => return None,
        }))
    }
    if m.round() == Round::Nearest && to == "f32" {
        match from {
            "s32" => return Some(a1(|a: i32| a as f32)),
            "u32" => return Some(a1(|a: u32| a as f32)),
            _ => {}
        }
    }
    with_int!(from, A => go::<A>(m, to))
}

fn float_float(m: &Mods, to: &str, from: &str) -> Option<Alu> {
    let (relu, is_sat, flush) = (m.has("relu"), m.has("sat"), m.has("ftz"));
    let to_integral = ["rni", "rzi", "rmi", "rpi"].iter().any(|r| m.has(r));
    Some(match (to, from) {
        ("f32", "f32") if to_integral => with_round!(m, R => match (flush, is_sat) {
            (false, false) => a1(|a: f32| num::integral(a.into(), R) as f32),
            (true, false) => a1(|a: f32| num::integral(ftz(a).into(), R) as f32),
            (false, true) => a1(|a: f32| sat(num::integral(a.into(), R) as f32)),
            (true, true) => a1(|a: f32| sat(num::integral(ftz(a).into(), R) as f32)),
        }),
        ("f32", "f32") => match (flush, is_sat) {
            (false, false) => a1(|a: f32| a),
            (true, false) => a1(ftz),
            (false, true) => a1(sat),
            (true, true) => a1(|a: f32| sat(ftz(a))),
        },
        ("f64", "f64") if to_integral => with_round!(m, R => a1(|a: f64| num::integral(a, R))),
        ("f64", "f64") => a1(|a: f64| a),
        ("f64", "f32") => {
            if flush {
                a1(|a: f32| f64::from(ftz(a)))
            } else {
                a1(|a: f32| f64::from(a))
            }
        }
        ("f32", "f64") => with_round!(m, R => match (flush, is_sat) {
            (false, false) => a1(|a: f64| num::narrow(a, R)),
            (true, false) => a1(|a: f64| ftz(num::narrow(a, R))),
            (true, true) => a1(|a: f64| sat(ftz(num::narrow(a, R)))),
            (false, true) => a1(|a: f64| sat(num::narrow(a, R))),
        }),
        ("f32", "f16") => a1(|a: f16| a.to_f32()),
        ("f32", "bf16") => a1(|a: bf16| a.to_f32()),
        ("f64", "f16") => a1(|a: f16| a.to_f64()),
        ("f64", "bf16") => a1(|a: bf16| a.to_f64()),
        ("f16", "f16") if to_integral => {
            with_round!(m, R => a1(|a: f16| f16::from_f64(num::integral(a.to_f64(), R))))
        }
        ("f16", "f16") => a1(|a: f16| a),
        ("f16", "f32") if relu => {
            with_round!(m, R => a1(|a: f32| num::to_f16(if a < 0.0 { 0.0 } else { a.into() }, R)))
        }
        ("f16", "f32") => with_round!(m, R => a1(|a: f32| num::to_f16(a.into(), R))),
        ("f16", "f64") => with_round!(m, R => a1(|a: f64| num::to_f16(a, R))),
        ("f16", "bf16") => with_round!(m, R => a1(|a: bf16| num::to_f16(a.to_f64(), R))),
        ("bf16", "f32") if !relu && m.round() == Round::Nearest => a1(num::bf16_bits),
        ("bf16", "f32") if relu => {
            with_round!(m, R => a1(|a: f32| num::to_bf16(if a < 0.0 { 0.0 } else { a.into() }, R)))
        }
        ("bf16", "f32") => with_round!(m, R => a1(|a: f32| num::to_bf16(a.into(), R))),
        ("bf16", "f64") => with_round!(m, R => a1(|a: f64| num::to_bf16(a, R))),
        ("bf16", "f16") => with_round!(m, R => a1(|a: f16| num::to_bf16(a.to_f64(), R))),
        ("bf16x2", "f32") if !relu && m.round() == Round::Nearest => {
            a2(|a: f32, b: f32| num::bf16_bits(a) << 16 | num::bf16_bits(b))
        }
        ("bf16x2", "f32") => pair_bf16(m, relu),
        ("f16x2", "f32") => pair_f16(m, relu),
        ("tf32", "f32") => a1(num::tf32),
        _ => return None,
    })
}

fn keep(relu: bool, x: f32) -> f64 {
    if relu && x < 0.0 { 0.0 } else { x.into() }
}

fn pair_bf16(m: &Mods, relu: bool) -> Alu {
    with_round!(m, R => {
        macro_rules! go { ($relu:expr) => { a2(|a: f32, b: f32| {
            u32::from(num::to_bf16(keep($relu, a), R).to_bits()) << 16 | u32::from(num::to_bf16(keep($relu, b), R).to_bits())
        }) } }
        if relu { go!(true) } else { go!(false) }
    })
}

fn pair_f16(m: &Mods, relu: bool) -> Alu {
    with_round!(m, R => {
        macro_rules! go { ($relu:expr) => { a2(|a: f32, b: f32| {
            u32::from(num::to_f16(keep($relu, a), R).to_bits()) << 16 | u32::from(num::to_f16(keep($relu, b), R).to_bits())
        }) } }
        if relu { go!(true) } else { go!(false) }
    })
}
