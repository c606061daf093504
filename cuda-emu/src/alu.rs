//! Lane-wise instructions: each opcode becomes one function over rows of 32 lanes, compiled for AVX2 where there is.

use crate::ir::{AluFn, Class, Instr};
use half::{bf16, f16};
use std::ptr::NonNull;
use std::sync::LazyLock;

/// A register's value in one lane of a row.
pub(crate) trait Lane: Copy {
    const WIDE: bool;
    const ZERO: Self;
    /// # Safety
    /// `p` must start a row of this width.
    unsafe fn get(p: *const u32, lane: usize) -> Self;
    /// # Safety
    /// `p` must start a row of this width.
    unsafe fn put(p: *mut u32, lane: usize, v: Self);
}

macro_rules! lane {
    ($t:ty, $wide:expr, $zero:expr, $word:ty, |$r:ident| $get:expr, |$v:ident| $put:expr) => {
        impl Lane for $t {
            const WIDE: bool = $wide;
            const ZERO: Self = $zero;
            #[inline(always)]
            unsafe fn get(p: *const u32, lane: usize) -> Self {
                // SAFETY: the caller's row has 32 lanes of this width.
                let $r = unsafe { *p.cast::<$word>().add(lane) };
                $get
            }
            #[inline(always)]
            unsafe fn put(p: *mut u32, lane: usize, $v: Self) {
                // SAFETY: the caller's row has 32 lanes of this width.
                unsafe { *p.cast::<$word>().add(lane) = $put }
            }
        }
    };
}
lane!(u32, false, 0, u32, |r| r, |v| v);
lane!(i32, false, 0, u32, |r| r as i32, |v| v as u32);
lane!(u16, false, 0, u32, |r| r as u16, |v| u32::from(v));
lane!(i16, false, 0, u32, |r| r as i16, |v| u32::from(v as u16));
lane!(u8, false, 0, u32, |r| r as u8, |v| u32::from(v));
lane!(i8, false, 0, u32, |r| r as i8, |v| v as i32 as u32);
lane!(f32, false, 0.0, u32, |r| f32::from_bits(r), |v| v.to_bits());
lane!(f16, false, f16::ZERO, u32, |r| f16::from_bits(r as u16), |v| u32::from(v.to_bits()));
lane!(bf16, false, bf16::ZERO, u32, |r| bf16::from_bits(r as u16), |v| u32::from(v.to_bits()));
lane!(u64, true, 0, u64, |r| r, |v| v);
lane!(i64, true, 0, u64, |r| r as i64, |v| v as u64);
lane!(f64, true, 0.0, u64, |r| f64::from_bits(r), |v| v.to_bits());

/// A chosen function and what it wants of its operands.
#[derive(Clone)]
pub(crate) struct Alu {
    pub f: AluFn,
    /// Width of the destination (`None`: a predicate), and of each source (`None`: a predicate).
    pub d: Option<bool>,
    pub s: Vec<Option<bool>>,
    pub class: Class,
}

/// Whether this machine has what the vectorised functions are compiled for.
///
/// `CUDA_EMU_PLAIN=1` says no, so that a test can compare the two; looked at once.
pub(crate) fn fast() -> bool {
    static FAST: LazyLock<bool> =
        LazyLock::new(|| std::env::var_os("CUDA_EMU_PLAIN").is_none_or(|v| v != "1") && able());
    *FAST
}

fn able() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("lzcnt")
            && is_x86_feature_detected!("popcnt")
            && is_x86_feature_detected!("f16c")
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Defines `$name`, which turns a closure without captures into an [`AluFn`] for this machine.
macro_rules! rows {
    ($name:ident, $d:expr, [$($s:expr),*], <$($t:ident: $tb:ident),*>, $fnty:path, |$f:ident, $x:ident, $i:ident, $mask:ident| $body:block) => {
        pub(crate) fn $name<$($t: $tb,)* F: $fnty + Copy>(_: F) -> Alu {
            #[inline(always)]
            unsafe fn body<$($t: $tb,)* F: $fnty + Copy>($x: *mut u32, $i: &Instr, $mask: u32) {
                const { assert!(size_of::<F>() == 0) };
                // SAFETY: a closure without captures has no bytes, and one exists: it was passed to the outer function.
                let $f = unsafe { NonNull::<F>::dangling().as_ref() };
                $body
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt,f16c")]
            unsafe fn wide<$($t: $tb,)* F: $fnty + Copy>(x: *mut u32, i: &Instr, mask: u32) {
                // SAFETY: the caller's promise.
                unsafe { body::<$($t,)* F>(x, i, mask) }
            }
            unsafe fn plain<$($t: $tb,)* F: $fnty + Copy>(x: *mut u32, i: &Instr, mask: u32) {
                // SAFETY: the caller's promise.
                unsafe { body::<$($t,)* F>(x, i, mask) }
            }
            #[cfg(target_arch = "x86_64")]
            let f: AluFn = if fast() { wide::<$($t,)* F> } else { plain::<$($t,)* F> };
            #[cfg(not(target_arch = "x86_64"))]
            let f: AluFn = plain::<$($t,)* F>;
            Alu { f, d: $d, s: vec![$($s),*], class: Class::Int }
        }
    };
}

/// Writes a row under a mask.
///
/// # Safety
/// `d` must start a row of `R`'s width.
#[inline(always)]
unsafe fn store<R: Lane>(d: *mut u32, t: [R; 32], mask: u32) {
    if mask == u32::MAX {
        for (l, &v) in t.iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { R::put(d, l, v) }
        }
    } else {
        for (l, &v) in t.iter().enumerate() {
            if mask >> l & 1 == 1 {
                // SAFETY: the caller's promise.
                unsafe { R::put(d, l, v) }
            }
        }
    }
}

rows!(a0, Some(R::WIDE), [], <R: Lane>, Fn() -> R, |f, x, i, mask| {
    // SAFETY: decoding made `d` a row of this width.
    unsafe { store(x.add(i.d as usize), [f(); 32], mask) }
});
rows!(a1, Some(R::WIDE), [Some(A::WIDE)], <R: Lane, A: Lane>, Fn(A) -> R, |f, x, i, mask| {
    let mut t = [R::ZERO; 32];
    // SAFETY: decoding made the operands rows of these widths.
    unsafe {
        let a = x.add(i.a as usize);
        for (l, t) in t.iter_mut().enumerate() {
            *t = f(A::get(a, l));
        }
        store(x.add(i.d as usize), t, mask);
    }
});
rows!(a2, Some(R::WIDE), [Some(A::WIDE), Some(B::WIDE)], <R: Lane, A: Lane, B: Lane>, Fn(A, B) -> R, |f, x, i, mask| {
    let mut t = [R::ZERO; 32];
    // SAFETY: decoding made the operands rows of these widths.
    unsafe {
        let (a, b) = (x.add(i.a as usize), x.add(i.b as usize));
        for (l, t) in t.iter_mut().enumerate() {
            *t = f(A::get(a, l), B::get(b, l));
        }
        store(x.add(i.d as usize), t, mask);
    }
});
rows!(a3, Some(R::WIDE), [Some(A::WIDE), Some(B::WIDE), Some(C::WIDE)], <R: Lane, A: Lane, B: Lane, C: Lane>, Fn(A, B, C) -> R, |f, x, i, mask| {
    let mut t = [R::ZERO; 32];
    // SAFETY: decoding made the operands rows of these widths.
    unsafe {
        let (a, b, c) = (x.add(i.a as usize), x.add(i.b as usize), x.add(i.c as usize));
        for (l, t) in t.iter_mut().enumerate() {
            *t = f(A::get(a, l), B::get(b, l), C::get(c, l));
        }
        store(x.add(i.d as usize), t, mask);
    }
});
// Four sources (bfi), the fourth's row in `e`.
rows!(a4, Some(R::WIDE), [Some(R::WIDE), Some(R::WIDE), Some(false), Some(false)], <R: Lane>, Fn(R, R, u32, u32) -> R, |f, x, i, mask| {
    let mut t = [R::ZERO; 32];
    // SAFETY: decoding made the operands rows of these widths.
    unsafe {
        let (a, b, c, e) = (x.add(i.a as usize), x.add(i.b as usize), x.add(i.c as usize), x.add(i.e as usize));
        for (l, t) in t.iter_mut().enumerate() {
            *t = f(R::get(a, l), R::get(b, l), *c.add(l), *e.add(l));
        }
        store(x.add(i.d as usize), t, mask);
    }
});
rows!(sel, Some(R::WIDE), [Some(R::WIDE), Some(R::WIDE), None], <R: Lane>, Fn(R) -> R, |f, x, i, mask| {
    let mut t = [R::ZERO; 32];
    // SAFETY: decoding made `a` and `b` rows of this width and `c` a predicate's word.
    unsafe {
        let (a, b, p) = (x.add(i.a as usize), x.add(i.b as usize), *x.add(i.c as usize));
        for (l, t) in t.iter_mut().enumerate() {
            *t = f(if p >> l & 1 == 1 { R::get(a, l) } else { R::get(b, l) });
        }
        store(x.add(i.d as usize), t, mask);
    }
});
// A comparison. `v[0]`: 0 none, 1 and, 2 or, 3 xor with `c`'s word, 4 more if that is negated; `e`: the second destination.
rows!(cmp, None, [Some(A::WIDE), Some(A::WIDE)], <A: Lane>, Fn(A, A) -> bool, |f, x, i, mask| {
    // SAFETY: decoding made `a` and `b` rows of this width, and the rest predicates' words.
    unsafe {
        let (a, b) = (x.add(i.a as usize), x.add(i.b as usize));
        let mut t = [0u32; 32];
        for (l, t) in t.iter_mut().enumerate() {
            *t = if f(A::get(a, l), A::get(b, l)) { 1 << l } else { 0 };
        }
        let r = t.iter().fold(0, |m, t| m | t);
        let (mut p, mut q) = (r, !r);
        if i.v[0] != 0 {
            let c = *x.add(i.c as usize) ^ if i.v[0] & 4 != 0 { u32::MAX } else { 0 };
            (p, q) = match i.v[0] & 3 {
                1 => (p & c, q & c),
                2 => (p | c, q | c),
                _ => (p ^ c, q ^ c),
            };
        }
        let d = x.add(i.d as usize);
        *d = *d & !mask | p & mask;
        if i.e >= 0 {
            let e = x.add(i.e as usize);
            *e = *e & !mask | q & mask;
        }
    }
});
// Logic on predicates' words.
rows!(logic, None, [None, None], <>, Fn(u32, u32) -> u32, |f, x, i, mask| {
    // SAFETY: decoding made all operands predicates' words.
    unsafe {
        let r = f(*x.add(i.a as usize), *x.add(i.b as usize));
        let d = x.add(i.d as usize);
        *d = *d & !mask | r & mask;
    }
});
