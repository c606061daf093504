//! Arithmetic as PTX defines it where Rust's differs: directed rounding, flushing, NaN rules, narrow floats.

use half::{bf16, f16};

/// A rounding mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Round {
    Nearest,
    Zero,
    Down,
    Up,
}

/// Subnormals to zero, keeping the sign.
#[inline(always)]
pub(crate) fn ftz(x: f32) -> f32 {
    if x.to_bits() & 0x7f80_0000 == 0 { f32::from_bits(x.to_bits() & 0x8000_0000) } else { x }
}

/// What the approximations in f64 read of a number and give: its upper 32 bits, a subnormal as zero.
pub(crate) fn upper_half(x: f64) -> f64 {
    let kept = f64::from_bits(x.to_bits() & !0xffff_ffff);
    if kept.is_subnormal() { 0.0f64.copysign(kept) } else { kept }
}

/// The NaN that single-precision instructions give.
#[inline(always)]
pub(crate) fn canonical(x: f32) -> f32 {
    if x.is_nan() { f32::from_bits(0x7fff_ffff) } else { x }
}

/// `[0, 1]`, NaN to 0.
#[inline(always)]
pub(crate) fn sat(x: f32) -> f32 {
    if x > 0.0 { x.min(1.0) } else { 0.0 }
}

/// Moves a sum or quotient whose exact value is `x + err`'s side to the odd neighbour, so that a second rounding to
/// fewer bits is as if there had been one.
#[inline(always)]
fn odd(x: f64, err: f64) -> f64 {
    if err == 0.0 || err.is_nan() || !x.is_finite() || x.to_bits() & 1 == 1 {
        x
    } else if (err > 0.0) == (x > 0.0) {
        f64::from_bits(x.to_bits() + 1)
    } else {
        f64::from_bits(x.to_bits() - 1)
    }
}

#[inline(always)]
fn two_sum_err(a: f64, b: f64, s: f64) -> f64 {
    let t = s - a;
    (a - (s - t)) + (b - t)
}

/// `a + b` rounded to odd.
#[inline(always)]
pub(crate) fn add_odd(a: f64, b: f64) -> f64 {
    let s = a + b;
    odd(s, two_sum_err(a, b, s))
}

/// `a + b` rounded to f32. An exact zero is -0 downwards, unless both are +0.
#[inline(always)]
pub(crate) fn add_narrow(a: f64, b: f64, mode: Round) -> f32 {
    let s = add_odd(a, b);
    let minus = mode == Round::Down && s == 0.0 && (a.is_sign_negative() || b.is_sign_negative());
    if minus { -0.0 } else { narrow(s, mode) }
}

/// a·b + c in the given direction. An exact zero is -0 downwards, unless both terms are +0.
pub(crate) fn fma_dir(a: f64, b: f64, c: f64, mode: Round) -> f64 {
    let (r, p) = (a.mul_add(b, c), a * b);
    // What `r` lacks of the exact value; its sign is right.
    let low = a.mul_add(b, -p);
    let s = p + c;
    let (d, e) = (s - r, two_sum_err(p, c, s));
    let u = d + e;
    let sum = u + low;
    let err = if sum == 0.0 { two_sum_err(d, e, u) } else { sum };
    if r == 0.0 && err == 0.0 && mode == Round::Down && (p.is_sign_negative() || c.is_sign_negative()) {
        return -0.0;
    }
    direct(r, err, mode, a.is_finite() && b.is_finite() && c.is_finite())
}

/// 2^x, to less than 2^-28 of itself, without a branch or a call so that it vectorises.
#[inline(always)]
pub(crate) fn exp2(x: f32) -> f32 {
    // Beyond these all is 0 or infinite; a NaN goes through.
    let x = f64::from(x.clamp(-160.0, 140.0));
    // The nearest integer, by the f64 whose last bit is worth one.
    let magic = 6_755_399_441_055_744.0;
    let shifted = x + magic;
    let t = (x - (shifted - magic)) * std::f64::consts::LN_2;
    // The Taylor series of e^t, |t| < 0.35.
    let p = [1.0 / 40320.0, 1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0]
        .into_iter()
        .fold(1.0 / 362_880.0, |p: f64, c| p.mul_add(t, c));
    let power = f64::from_bits((shifted.to_bits().wrapping_sub(magic.to_bits()).wrapping_add(1023)) << 52);
    canonical((p * power) as f32)
}

/// `a / b` rounded to odd.
#[inline(always)]
pub(crate) fn div_odd(a: f64, b: f64) -> f64 {
    let q = a / b;
    let r = (-q).mul_add(b, a);
    odd(q, if b < 0.0 { -r } else { r })
}

/// The square root rounded to odd.
#[inline(always)]
pub(crate) fn sqrt_odd(a: f64) -> f64 {
    let s = a.sqrt();
    odd(s, (-s).mul_add(s, a))
}

/// Rounds to f32 in the given direction.
#[inline(always)]
pub(crate) fn narrow(x: f64, mode: Round) -> f32 {
    let y = x as f32;
    let back = f64::from(y);
    match mode {
        Round::Nearest => y,
        Round::Zero if back.abs() > x.abs() => {
            if x > 0.0 {
                y.next_down()
            } else {
                y.next_up()
            }
        }
        Round::Down if back > x => y.next_down(),
        Round::Up if back < x => y.next_up(),
        _ => y,
    }
}

/// The sum of two f64 in the given direction. An exact zero of unlike signs is -0 only downwards.
pub(crate) fn add_dir(a: f64, b: f64, mode: Round) -> f64 {
    let s = a + b;
    if s == 0.0 && (a != 0.0 || a.is_sign_negative() != b.is_sign_negative()) && mode == Round::Down {
        return -0.0;
    }
    direct(s, two_sum_err(a, b, s), mode, a.is_finite() && b.is_finite())
}

/// Nudges the nearest result `x`, whose exact value is `x + err`, in the given direction. `finite`: so is the exact value,
/// and an infinite `x` overflowed.
pub(crate) fn direct(x: f64, err: f64, mode: Round, finite: bool) -> f64 {
    if x.is_infinite() && finite {
        let inward = mode == Round::Zero || mode == Round::Down && x > 0.0 || mode == Round::Up && x < 0.0;
        return if inward { f64::MAX.copysign(x) } else { x };
    }
    match mode {
        Round::Zero if err != 0.0 && (err < 0.0) == (x > 0.0) => {
            if x > 0.0 {
                x.next_down()
            } else {
                x.next_up()
            }
        }
        Round::Down if err < 0.0 => x.next_down(),
        Round::Up if err > 0.0 => x.next_up(),
        _ => x,
    }
}

/// Rounds to a float of `digits` significant bits whose normal exponents are `emin ..= emax`.
pub(crate) fn round_to(x: f64, digits: i32, emin: i32, emax: i32, mode: Round) -> f64 {
    if x == 0.0 || !x.is_finite() {
        return x;
    }
    let e = ((x.to_bits() >> 52 & 0x7ff) as i32 - 1023).max(emin);
    let ulp = f64::from_bits(((e - digits + 1 + 1023) as u64) << 52);
    let q = x / ulp;
    let q = match mode {
        Round::Nearest => q.round_ties_even(),
        Round::Zero => q.trunc(),
        Round::Down => q.floor(),
        Round::Up => q.ceil(),
    };
    let y = (q * ulp).copysign(x);
    let max = (2.0 - f64::from_bits(((1 - digits + 1023) as u64) << 52))
        * f64::from_bits(((emax + 1023) as u64) << 52);
    if y.abs() <= max {
        return y;
    }
    let inward = match mode {
        Round::Nearest => false,
        Round::Zero => true,
        Round::Down => x > 0.0,
        Round::Up => x < 0.0,
    };
    if inward { max.copysign(x) } else { f64::INFINITY.copysign(x) }
}

/// To f16; a NaN becomes the canonical one.
#[inline(always)]
pub(crate) fn to_f16(x: f64, mode: Round) -> f16 {
    if x.is_nan() { f16::from_bits(0x7fff) } else { f16::from_f64(round_to(x, 11, -14, 15, mode)) }
}

/// To bf16; a NaN becomes the canonical one.
#[inline(always)]
pub(crate) fn to_bf16(x: f64, mode: Round) -> bf16 {
    if x.is_nan() { bf16::from_bits(0x7fff) } else { bf16::from_f64(round_to(x, 8, -126, 127, mode)) }
}

/// f32 to the bits of bf16, to nearest even: the conversion every kernel makes, so written to vectorise.
#[inline(always)]
pub(crate) fn bf16_bits(x: f32) -> u32 {
    let b = x.to_bits();
    if x.is_nan() { 0x7fff } else { (b.wrapping_add(0x7fff + (b >> 16 & 1))) >> 16 }
}

/// f32 to tf32: 10 bits of mantissa, ties away from zero.
#[inline(always)]
pub(crate) fn tf32(x: f32) -> u32 {
    if x.is_nan() {
        0x7fff_ffff
    } else if x.is_infinite() {
        x.to_bits()
    } else {
        (x.to_bits() + 0x1000) & !0x1fff
    }
}

/// The smaller; a NaN loses unless both are, or unless `nan` lets it win. -0 is below +0.
#[inline(always)]
pub(crate) fn min(a: f32, b: f32, nan: bool) -> f32 {
    if a.is_nan() || b.is_nan() {
        if nan || (a.is_nan() && b.is_nan()) {
            f32::from_bits(0x7fff_ffff)
        } else if a.is_nan() {
            b
        } else {
            a
        }
    } else if a < b || (a == b && a.is_sign_negative()) {
        a
    } else {
        b
    }
}

/// The larger, by the same rules.
#[inline(always)]
pub(crate) fn max(a: f32, b: f32, nan: bool) -> f32 {
    if a.is_nan() || b.is_nan() {
        if nan || (a.is_nan() && b.is_nan()) {
            f32::from_bits(0x7fff_ffff)
        } else if a.is_nan() {
            b
        } else {
            a
        }
    } else if a > b || (a == b && b.is_sign_negative()) {
        a
    } else {
        b
    }
}

/// A float to an integer of `bits` bits, saturating; NaN is 0, or the sign bit where f64 or 64 bits are involved.
#[inline(always)]
pub(crate) fn to_int(x: f64, bits: u32, signed: bool, wide: bool) -> u64 {
    if x.is_nan() {
        return if wide { 1 << (bits - 1) } else { 0 };
    }
    match (signed, bits) {
        (true, 64) => x as i64 as u64,
        (false, 64) => x as u64,
        (true, n) => (x as i64).clamp(-(1 << (n - 1)), (1 << (n - 1)) - 1) as u64,
        (false, n) => (x as u64).min((1 << n) - 1),
    }
}

/// Rounds to an integral value.
#[inline(always)]
pub(crate) fn integral(x: f64, mode: Round) -> f64 {
    match mode {
        Round::Nearest => x.round_ties_even(),
        Round::Zero => x.trunc(),
        Round::Down => x.floor(),
        Round::Up => x.ceil(),
    }
}

/// An integer to f64 such that a further rounding to f32 or less is correct: to odd.
#[inline(always)]
pub(crate) fn int_odd(v: i128) -> f64 {
    let x = v as f64;
    odd(x, (v - x as i128) as f64)
}

/// An integer to f64 in the given direction.
pub(crate) fn int_f64(v: i128, mode: Round) -> f64 {
    let x = v as f64;
    direct(x, (v - x as i128) as f64, mode, true)
}
