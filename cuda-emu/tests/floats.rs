//! Floating-point instructions against exact arithmetic in integers, bit for bit.

mod common;

use common::{check, eval, random, tuples};
use half::{bf16, f16};

/// A format: bits of significand with the hidden one, exponents of the smallest and largest normals.
#[derive(Clone, Copy)]
struct Format(u32, i32, i32);

const F16: Format = Format(11, -14, 15);
const BF16: Format = Format(8, -126, 127);
const F32: Format = Format(24, -126, 127);
const F64: Format = Format(53, -1022, 1023);

impl Format {
    fn bits(self) -> u32 {
        1 + self.0 - 1 + (2 * self.2 as u32 + 2).ilog2()
    }

    fn infinity(self) -> u64 {
        ((2 * self.2 + 1) as u64) << (self.0 - 1)
    }

    /// Sign, magnitude and exponent of a finite value.
    fn exact(self, x: u64) -> (bool, i128, i32) {
        let fraction = x & ((1 << (self.0 - 1)) - 1);
        let e = (x >> (self.0 - 1)) as i32 & (2 * self.2 + 1);
        let m = if e == 0 { fraction } else { fraction | 1 << (self.0 - 1) };
        (x >> (self.bits() - 1) & 1 == 1, m.into(), e.max(1) - self.2 - self.0 as i32 + 1)
    }

    fn nan(self, x: u64) -> bool {
        x & !(1 << (self.bits() - 1)) > self.infinity()
    }

    fn finite(self, x: u64) -> bool {
        x & !(1 << (self.bits() - 1)) < self.infinity()
    }

    /// The value m·2^e (and a little more away from zero if `more`) rounded; `minus` is its sign.
    fn round(self, minus: bool, mut m: i128, mut e: i32, more: bool, mode: &str) -> u64 {
        let sign = u64::from(minus) << (self.bits() - 1);
        if m == 0 && !more {
            return sign;
        }
        // Room below for the bits that rounding looks at.
        let grow = (126 - (128 - m.leading_zeros() as i32)).max(0);
        m <<= grow;
        e -= grow;
        m |= i128::from(more);
        let top = 127 - m.leading_zeros() as i32 + e;
        let last = (top.max(self.1)) - self.0 as i32 + 1;
        let cut = (last - e) as u32;
        let (mut q, rest, half) = match cut {
            0..=126 => (m >> cut, m & ((1 << cut) - 1), 1i128 << cut >> 1),
            _ => (0, 1, 2),
        };
        let up = match mode {
            "rz" => false,
            "rm" => minus && rest != 0,
            "rp" => !minus && rest != 0,
            _ => rest > half || rest == half && q & 1 == 1,
        };
        q += i128::from(up);
        // A carry out of the significand lands in the exponent by itself.
        let biased = i128::from(last - (self.1 - self.0 as i32 + 1));
        let body = if q >> (self.0 - 1) == 0 { q } else { (biased << (self.0 - 1)) + q };
        if body >= self.infinity().into() {
            let inward = mode == "rz" || mode == "rm" && !minus || mode == "rp" && minus;
            return sign | if inward { self.infinity() - 1 } else { self.infinity() };
        }
        sign | body as u64
    }

    /// a·b + c of finite values.
    fn fma(self, a: u64, b: u64, c: u64, mode: &str) -> u64 {
        let ((sa, ma, ea), (sb, mb, eb), (sc, mc, ec)) = (self.exact(a), self.exact(b), self.exact(c));
        self.sum((sa != sb, ma * mb, ea + eb), (sc, mc, ec), mode)
    }

    fn sum(self, x: (bool, i128, i32), y: (bool, i128, i32), mode: &str) -> u64 {
        let strip = |(s, m, e): (bool, i128, i32)| match m {
            0 => (s, 0, e),
            m => (s, m >> m.trailing_zeros(), e + m.trailing_zeros() as i32),
        };
        let (x, y) = (strip(x), strip(y));
        let (hi, lo) = if y.1 == 0 || x.1 != 0 && x.2 >= y.2 { (x, y) } else { (y, x) };
        let signed = |(s, m, _): (bool, i128, i32)| if s { -m } else { m };
        let zero = if x.0 == y.0 { x.0 } else { mode == "rm" };
        // Bits far below the larger one only break ties: they become the `more` (or a whole less, and more).
        let shift = hi.2 - lo.2;
        let width = 128 - hi.1.leading_zeros() as i32;
        let (m, e, more) = if lo.1 == 0 {
            (signed(hi), hi.2, false)
        } else if shift + width < 125 {
            ((signed(hi) << shift) + signed(lo), lo.2, false)
        } else {
            let up = (self.0 as i32 + 4 - width).max(0);
            assert!(lo.2 + 128 - (lo.1.leading_zeros() as i32) < hi.2 - up, "the oracle's room is too small");
            let less = lo.1 != 0 && hi.0 != lo.0;
            let sign = if hi.0 { -1 } else { 1 };
            ((signed(hi) << up) - if less { sign } else { 0 }, hi.2 - up, lo.1 != 0)
        };
        if m == 0 && !more {
            return self.round(zero, 0, 0, false, mode);
        }
        self.round(m < 0, m.abs(), e, more, mode)
    }
}

const MODES: [&str; 4] = ["rn", "rz", "rm", "rp"];

/// f32s where rounding goes wrong first, and some anywhere.
fn singles() -> Vec<u64> {
    let mut v: Vec<u64> =
        vec![0, 1, 0x007f_ffff, 0x0080_0000, 0x3f80_0000, 0x3f80_0001, 0x3f7f_ffff, 0x7f7f_ffff];
    v.extend([0x3380_0000, 0x3380_0001, 0x4b80_0000, 0x0000_1000, 0x2000_0001]);
    v.extend(random(6, 5).iter().map(|x| x & 0x7f7f_ffff));
    v.extend(random(6, 6).iter().map(|x| 0x3f00_0000 | x & 0x01ff_ffff));
    v.iter().flat_map(|x| [*x, x | 0x8000_0000]).collect()
}

fn doubles() -> Vec<u64> {
    let mut v = vec![0, 1, 0x000f_ffff_ffff_ffff, 1 << 52, 0x3ff0_0000_0000_0000, 0x3ff0_0000_0000_0001];
    v.extend([0x7fef_ffff_ffff_ffff, 0x3ca0_0000_0000_0000, 0x4340_0000_0000_0001]);
    v.extend(random(5, 8).iter().map(|x| 0x3fe0_0000_0000_0000 | x & 0x003f_ffff_ffff_ffff));
    v.iter().flat_map(|x| [*x, x | 1 << 63]).collect()
}

#[test]
fn sums_and_products_in_every_rounding_mode() {
    let two = tuples(&singles(), 2);
    for mode in MODES {
        check(&format!("add.{mode}.f32"), "f32 f32 f32", &two, |r| {
            F32.sum(F32.exact(r[0]), F32.exact(r[1]), mode)
        });
        check(&format!("sub.{mode}.f32"), "f32 f32 f32", &two, |r| {
            F32.sum(F32.exact(r[0]), F32.exact(r[1] ^ 0x8000_0000), mode)
        });
        check(&format!("mul.{mode}.f32"), "f32 f32 f32", &two, |r| {
            let ((sa, ma, ea), (sb, mb, eb)) = (F32.exact(r[0]), F32.exact(r[1]));
            F32.round(sa != sb, ma * mb, ea + eb, false, mode)
        });
        let three = tuples(&singles()[..24], 3);
        check(&format!("fma.{mode}.f32"), "f32 f32 f32 f32", &three, |r| F32.fma(r[0], r[1], r[2], mode));
    }
}

#[test]
fn quotients_and_roots_in_every_rounding_mode() {
    let two: Vec<_> = tuples(&singles(), 2).into_iter().filter(|r| r[1] << 1 & 0xffff_ffff != 0).collect();
    let quotient = |f: Format, a: u64, b: u64, mode: &str| {
        let ((sa, ma, ea), (sb, mb, eb)) = (f.exact(a), f.exact(b));
        let up = ma << (if f.0 == 53 { 70 } else { 90 });
        let e = ea - eb - (if f.0 == 53 { 70 } else { 90 });
        f.round(sa != sb, up / mb, e, up % mb != 0, mode)
    };
    for mode in MODES {
        check(&format!("div.{mode}.f32"), "f32 f32 f32", &two, |r| quotient(F32, r[0], r[1], mode));
        check(&format!("rcp.{mode}.f32"), "f32 f32", &two[..60], |r| {
            if r[0] << 1 & 0xffff_ffff == 0 {
                r[0] | 0x7f80_0000
            } else {
                quotient(F32, 0x3f80_0000, r[0], mode)
            }
        });
        let one: Vec<_> = singles().iter().filter(|x| **x < 0x7f80_0000).map(|x| vec![*x]).collect();
        check(&format!("sqrt.{mode}.f32"), "f32 f32", &one, |r| {
            let (_, m, e) = F32.exact(r[0]);
            let (m, e) = if e % 2 == 0 { (m << 90, e - 90) } else { (m << 91, e - 91) };
            let root = m.isqrt();
            F32.round(false, root, e / 2, root * root != m, mode)
        });
    }
}

#[test]
fn doubles_in_every_rounding_mode() {
    let two = tuples(&doubles(), 2);
    for mode in MODES {
        check(&format!("add.{mode}.f64"), "f64 f64 f64", &two, |r| {
            F64.sum(F64.exact(r[0]), F64.exact(r[1]), mode)
        });
        // Within the normal range, where the error of a product is a double itself.
        let near: Vec<u64> =
            doubles().into_iter().filter(|x| (0x3ca..0x435).contains(&(x >> 52 & 0x7ff))).collect();
        let two = tuples(&near, 2);
        check(&format!("mul.{mode}.f64"), "f64 f64 f64", &two, |r| {
            let ((sa, ma, ea), (sb, mb, eb)) = (F64.exact(r[0]), F64.exact(r[1]));
            F64.round(sa != sb, ma * mb, ea + eb, false, mode)
        });
        let near: Vec<u64> =
            near.into_iter().filter(|x| (0x3fe..0x401).contains(&(x >> 52 & 0x7ff))).collect();
        check(&format!("fma.{mode}.f64"), "f64 f64 f64 f64", &tuples(&near, 3), |r| {
            F64.fma(r[0], r[1], r[2], mode)
        });
    }
}

#[test]
fn halves_and_pairs() {
    for (name, f) in [("f16", F16), ("bf16", BF16)] {
        let top = f.infinity() as u32;
        let mut v: Vec<u64> = vec![0, 1, u64::from(top) - 1, 1 << (f.0 - 1), (1 << (f.0 - 1)) - 1];
        v.extend(random(14, 9).iter().map(|x| x & 0xffff).filter(|x| f.finite(*x)));
        v.extend(v.clone().iter().map(|x| x ^ 0x8000));
        let two = tuples(&v, 2);
        let fma = |a: u64, b: u64, c: u64| f.fma(a, b, c, "rn");
        let ty = |n: usize| vec!["b16"; n].join(" ");
        check(&format!("fma.rn.{name}"), &ty(4), &tuples(&v[..16], 3), |r| fma(r[0], r[1], r[2]));
        if name == "f16" {
            check("add.f16", &ty(3), &two, |r| f.sum(f.exact(r[0]), f.exact(r[1]), "rn"));
            check("mul.f16", &ty(3), &two, |r| {
                let ((sa, ma, ea), (sb, mb, eb)) = (f.exact(r[0]), f.exact(r[1]));
                f.round(sa != sb, ma * mb, ea + eb, false, "rn")
            });
        }
        let pairs = tuples(&random(8, 11).iter().map(|x| x & 0x3fff_3fff).collect::<Vec<_>>(), 3);
        check(&format!("fma.rn.{name}x2"), "b32 b32 b32 b32", &pairs, |r| {
            let lo = fma(r[0] & 0xffff, r[1] & 0xffff, r[2] & 0xffff);
            lo | fma(r[0] >> 16, r[1] >> 16, r[2] >> 16) << 16
        });
        check(&format!("neg.{name}x2"), "b32 b32", &pairs, |r| r[0] ^ 0x8000_8000);
    }
}

#[test]
fn conversions_to_narrow_floats_agree_with_half() {
    let mut v = singles();
    v.extend(random(200, 12).iter().map(|x| x & 0xffff_ffff));
    // Ties of bf16 and f16, both ways.
    v.extend([
        0x3f80_8000,
        0x3f81_8000,
        0x3f80_1000,
        0x3f80_3000,
        0x477f_f000,
        0x477f_efff,
        0x3300_0000,
        0x3300_0001,
    ]);
    let one: Vec<_> = v.into_iter().filter(|x| !F32.nan(*x)).map(|x| vec![x]).collect();
    let x = |r: &[u64]| f32::from_bits(r[0] as u32);
    check("cvt.rn.bf16.f32", "b16 f32", &one, |r| bf16::from_f32(x(r)).to_bits().into());
    check("cvt.rn.f16.f32", "b16 f32", &one, |r| f16::from_f32(x(r)).to_bits().into());
    for (name, f) in [("f16", F16), ("bf16", BF16)] {
        for mode in ["rn", "rz"] {
            check(&format!("cvt.{mode}.{name}.f32"), "b16 f32", &one, |r| match F32.finite(r[0]) {
                true => single_to(f, r[0], mode),
                false => r[0] >> 16 & 0x8000 | f.infinity(),
            });
        }
        let two: Vec<_> = one.windows(2).map(|w| vec![w[0][0], w[1][0]]).collect();
        check(&format!("cvt.rn.{name}x2.f32"), "b32 f32 f32", &two, |r| {
            let to =
                |v: u64| if F32.finite(v) { single_to(f, v, "rn") } else { v >> 16 & 0x8000 | f.infinity() };
            to(r[0]) << 16 | to(r[1])
        });
    }
    check("cvt.rna.tf32.f32", "b32 f32", &one, |r| {
        if F32.finite(r[0]) { (r[0] + 0x1000) & 0xffff_e000 } else { r[0] }
    });
    // Every f16 there is, and its way back; NaN becomes the canonical one.
    let all: Vec<_> = (0..0x1_0000u64).map(|x| vec![x]).collect();
    for (row, got) in all.iter().zip(eval("cvt.f32.f16", "f32 b16", &all)) {
        let want = f16::from_bits(row[0] as u16).to_f32();
        assert!(
            want.is_nan() && f32::from_bits(got as u32).is_nan() || got == u64::from(want.to_bits()),
            "{row:x?}"
        );
    }
    assert_eq!(eval("cvt.rn.bf16.f32", "b16 f32", &[vec![0x7f80_0001]]), [0x7fff]);
    assert_eq!(eval("cvt.rn.f16.f32", "b16 f32", &[vec![0xffff_ffff]]), [0x7fff]);
}

fn single_to(f: Format, x: u64, mode: &str) -> u64 {
    let (s, m, e) = F32.exact(x);
    f.round(s, m, e, false, mode)
}

#[test]
fn conversions_between_wide_floats_and_integers() {
    let one: Vec<_> =
        doubles().iter().chain(&random(60, 13)).filter(|x| F64.finite(**x)).map(|x| vec![*x]).collect();
    for mode in MODES {
        check(&format!("cvt.{mode}.f32.f64"), "f32 f64", &one, |r| {
            let (s, m, e) = F64.exact(r[0]);
            F32.round(s, m, e, false, mode)
        });
        check(&format!("cvt.{mode}.f32.u64"), "f32 b64", &one, |r| {
            F32.round(false, r[0].into(), 0, false, mode)
        });
        check(&format!("cvt.{mode}.f64.s64"), "f64 b64", &one, |r| {
            let v = i128::from(r[0] as i64);
            F64.round(v < 0, v.abs(), 0, false, mode)
        });
        check(&format!("cvt.{mode}.f32.s32"), "f32 b32", &one, |r| {
            let v = i128::from(r[0] as i32);
            F32.round(v < 0, v.abs(), 0, false, mode)
        });
    }
    let mut v: Vec<u64> = singles();
    for x in [
        0.5f32,
        1.5,
        2.5,
        -0.5,
        -1.5,
        0.4999,
        1e10,
        -1e10,
        2147483520.0,
        4294967040.0,
        f32::INFINITY,
        3.7,
        -3.7,
    ] {
        v.push(x.to_bits().into());
    }
    let one: Vec<_> = v.into_iter().map(|x| vec![x]).collect();
    let f = |r: &[u64]| f64::from(f32::from_bits(r[0] as u32));
    type Rounding = fn(f64) -> f64;
    let to: [(&str, Rounding); 4] =
        [("rni", f64::round_ties_even), ("rzi", f64::trunc), ("rmi", f64::floor), ("rpi", f64::ceil)];
    for (mode, round) in to {
        check(&format!("cvt.{mode}.s32.f32"), "b32 f32", &one, |r| u64::from(round(f(r)) as i32 as u32));
        check(&format!("cvt.{mode}.u32.f32"), "b32 f32", &one, |r| u64::from(round(f(r)) as u32));
        check(&format!("cvt.{mode}.s64.f32"), "b64 f32", &one, |r| round(f(r)) as i64 as u64);
        check(&format!("cvt.{mode}.f32.f32"), "f32 f32", &one, |r| u64::from((round(f(r)) as f32).to_bits()));
    }
    // What a NaN becomes depends on the widths.
    assert_eq!(eval("cvt.rzi.s32.f32", "b32 f32", &[vec![0x7fc0_0000]]), [0]);
    assert_eq!(eval("cvt.rzi.s64.f32", "b64 f32", &[vec![0x7fc0_0000]]), [1 << 63]);
    check("cvt.sat.f32.f32", "f32 f32", &one, |r| match f32::from_bits(r[0] as u32) {
        x if x > 0.0 => u64::from(x.min(1.0).to_bits()),
        _ => 0,
    });
}

#[test]
fn nan_infinity_and_zero() {
    const NAN: u64 = 0x7fff_ffff;
    let (inf, minus) = (0x7f80_0000, 0xff80_0000);
    let rows = |list: &[[u64; 3]]| list.iter().map(|r| r[..2].to_vec()).collect::<Vec<_>>();
    let table = |op: &str, list: &[[u64; 3]]| {
        for (row, got) in list.iter().zip(eval(op, "f32 f32 f32", &rows(list))) {
            assert_eq!(got, row[2], "{op} of {row:#x?}: {got:#x}");
        }
    };
    let (one, zero, neg) = (0x3f80_0000, 0, 0x8000_0000);
    table(
        "add.f32",
        &[[inf, minus, NAN], [0x7fc0_1234, one, NAN], [inf, one, inf], [neg, neg, neg], [zero, neg, zero]],
    );
    table("mul.f32", &[[inf, zero, NAN], [minus, one, minus], [neg, one, neg]]);
    table("div.rn.f32", &[[one, zero, inf], [one, neg, minus], [zero, zero, NAN], [one, inf, zero]]);
    table(
        "min.f32",
        &[[NAN, one, one], [one, NAN, one], [NAN, NAN, NAN], [zero, neg, neg], [neg, zero, neg]],
    );
    table(
        "max.f32",
        &[[NAN, one, one], [one, NAN, one], [NAN, NAN, NAN], [zero, neg, zero], [neg, zero, zero]],
    );
    table("min.NaN.f32", &[[NAN, one, NAN], [one, 0x7fc0_0000, NAN], [one, zero, zero]]);
    table("max.NaN.f32", &[[NAN, one, NAN], [minus, one, one]]);
    table("copysign.f32", &[[neg, one, 0xbf80_0000], [one, 0xbf80_0000, one]]);
    // Subnormals are kept, unless .ftz flushes what goes in and what comes out, signs kept.
    table("add.f32", &[[1, 1, 2], [0x8000_0001, zero, 0x8000_0001]]);
    table(
        "add.ftz.f32",
        &[[1, 1, 0], [0x8000_0001, 0x8000_0001, 0x8000_0000], [0x0080_0001, 0x8080_0000, 0]],
    );
    table("mul.ftz.f32", &[[0x0080_0000, 0x3f00_0000, 0], [0x007f_ffff, one, 0]]);
    table(
        "add.sat.f32",
        &[[one, one, one], [0xbf80_0000, zero, 0], [NAN, one, 0], [0x3e80_0000, 0x3e80_0000, 0x3f00_0000]],
    );

    let compare = |op: &str, list: &[(u64, u64, u64)]| {
        let rows: Vec<_> = list.iter().map(|r| vec![r.0, r.1]).collect();
        for (row, got) in list.iter().zip(eval(&format!("setp.{op}.f32"), "pred f32 f32", &rows)) {
            assert_eq!(got, row.2, "setp.{op} of {row:x?}");
        }
    };
    compare("eq", &[(NAN, NAN, 0), (zero, neg, 1), (one, one, 1)]);
    compare("ne", &[(NAN, one, 0), (zero, one, 1)]);
    compare("neu", &[(NAN, one, 1), (one, one, 0)]);
    compare("equ", &[(NAN, one, 1), (one, zero, 0)]);
    compare("lt", &[(NAN, one, 0), (zero, one, 1), (neg, zero, 0)]);
    compare("ltu", &[(NAN, one, 1), (one, zero, 0)]);
    compare("geu", &[(one, NAN, 1), (zero, one, 0)]);
    compare("num", &[(one, zero, 1), (one, NAN, 0)]);
    compare("nan", &[(one, zero, 0), (one, NAN, 1)]);
}

/// The ISA's bounds on what is called approximate.
#[test]
fn approximations_keep_their_bounds() {
    let relative = |op: &str, from: f32, to: f32, bound: f64, f: fn(f64) -> f64| {
        let rows: Vec<_> = (0..2000)
            .map(|n| from + (to - from) * n as f32 / 1999.0)
            .map(|x| vec![u64::from(x.to_bits())])
            .collect();
        for (row, got) in rows.iter().zip(eval(op, "f32 f32", &rows)) {
            let (x, y) = (f64::from(f32::from_bits(row[0] as u32)), f64::from(f32::from_bits(got as u32)));
            assert!((y - f(x)).abs() <= bound * f(x).abs().max(1e-30), "{op} of {x}: {y}, not {}", f(x));
        }
    };
    relative("ex2.approx.ftz.f32", -125.0, 127.9, 2f64.powi(-22), f64::exp2);
    relative("rsqrt.approx.f32", 0.01, 1e6, 2f64.powf(-22.9), |x| 1.0 / x.sqrt());
    relative("rcp.approx.ftz.f32", 0.01, 1e6, 2f64.powi(-23), |x| 1.0 / x);
    relative("tanh.approx.f32", -5.0, 5.0, 2f64.powi(-11), f64::tanh);
    relative("lg2.approx.f32", 2.5, 1e4, 2f64.powi(-22), f64::log2);
    let special =
        [(0xff80_0000u64, 0u64), (0x7f80_0000, 0x7f80_0000), (0x7fc0_0000, 0x7fff_ffff), (0, 0x3f80_0000)];
    for (x, want) in special {
        assert_eq!(eval("ex2.approx.f32", "f32 f32", &[vec![x]]), [want], "ex2 of {x:#x}");
    }
    for n in -149..128 {
        let want = 2f64.powi(n) as f32;
        assert_eq!(
            eval("ex2.approx.f32", "f32 f32", &[vec![(n as f32).to_bits().into()]]),
            [want.to_bits().into()]
        );
    }
}
