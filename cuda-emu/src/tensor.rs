//! Matrices in a warp's registers: `ldmatrix`, `stmatrix`, `movmatrix`, `mma.sync`.
//!
//! A register row of a fragment is an 8-row tile of 16 bytes a row, in order: lane 4·r + c holds bytes 4·c .. 4·c + 4 of
//! row r. That is why moving a tile is a copy, and why one routine serves every factor type.

use crate::access::{addresses, conflicts, lanes};
use crate::exec::{Cta, Done, Warp};
use crate::ir::{Factor, Instr, Op, Space};
use crate::num::{self, Round};
use crate::shadow::Kind;
use half::f16;

/// The rows and columns of a product.
const M: usize = 16;
const N: usize = 8;

impl Cta<'_> {
    /// Executes one; all lanes are here.
    pub(crate) fn matrix_op(&mut self, w: &mut Warp, i: &Instr) -> Done {
        match i.op {
            Op::LdMatrix { count, trans, wide } => self.matrix_memory(w, i, count, trans, wide, Kind::Read),
            Op::StMatrix { count, trans, wide } => self.matrix_memory(w, i, count, trans, wide, Kind::Write),
            Op::MovMatrix => {
                let t = transpose(*w.row32(i.a));
                *w.row32_mut(i.d) = t;
                Ok(())
            }
            Op::Mma { a, b, k, half, sat } => {
                self.counters.mma_flops += 2 * (M * N) as u64 * u64::from(k);
                match a {
                    Factor::S8 | Factor::U8 => integers(w, i, a, b, k.into(), sat),
                    #[cfg(target_arch = "x86_64")]
                    // SAFETY: `fast` says that this machine has these instructions.
                    _ if self.fast => unsafe { floats_fast(w, i, a, k.into(), half) },
                    _ => floats(w, i, a, k.into(), half, turned),
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn matrix_memory(
        &mut self,
        w: &mut Warp,
        i: &Instr,
        count: u8,
        trans: bool,
        wide: bool,
        kind: Kind,
    ) -> Done {
        let mut at = addresses(w, i.a, i.e, wide);
        if at[0] >> 40 == 1 {
            at.iter_mut().for_each(|a| *a &= (1 << 40) - 1);
        }
        // Matrix n has its rows' addresses in lanes 8·n .. 8·n + 8.
        let used = (!0u64 >> (64 - 8 * u32::from(count))) as u32 & w.lanes;
        self.aligned(w, i, &at, used, 16, Space::Shared)?;
        for l in lanes(used) {
            if at[l].saturating_add(16) > self.shared_bytes as u64 {
                return Err(self.beyond_shared(w, i, l, at[l], 16));
            }
            if let Some(f) = self.shadow.cells(at[l] as usize / 4, 4, w.index, kind) {
                return Err(self.shared_fault(w, i, &at, 1 << l, 16, kind, f));
            }
        }
        self.counters.shared += 1;
        self.counters.bank_conflicts += conflicts(&at, used, 16);
        let base = self.shared.as_mut_ptr().cast::<u8>();
        for n in 0..usize::from(count) {
            let mut tile = [0u32; 32];
            if kind == Kind::Write {
                tile = *w.row32(i.v[n]);
                tile = if trans { transpose(tile) } else { tile };
            }
            for (row, words) in tile.chunks_exact_mut(4).enumerate() {
                // SAFETY: the loop above checked the address of every row.
                unsafe {
                    let p = base.add(at[n * 8 + row] as usize).cast::<u32>();
                    if kind == Kind::Write {
                        p.copy_from(words.as_ptr(), 4);
                    } else {
                        p.copy_to(words.as_mut_ptr(), 4);
                    }
                }
            }
            if kind == Kind::Read {
                *w.row32_mut(i.v[n]) = if trans { transpose(tile) } else { tile };
            }
        }
        Ok(())
    }
}

/// Transposes an 8×8 tile of 16-bit values.
fn transpose(tile: [u32; 32]) -> [u32; 32] {
    let mut out = [0; 32];
    for r in 0..8 {
        for c in 0..4 {
            let get = |row: usize| tile[row * 4 + r / 2] >> (16 * (r % 2)) & 0xffff;
            out[r * 4 + c] = get(2 * c) | get(2 * c + 1) << 16;
        }
    }
    out
}

/// The 32 · 16 / bytes values of a tile, row after row.
#[inline(always)]
fn values(tile: &[u32; 32], t: Factor, out: &mut [f32; 64]) {
    match t {
        Factor::Bf16 => {
            for (l, &x) in tile.iter().enumerate() {
                out[2 * l] = f32::from_bits(x << 16);
                out[2 * l + 1] = f32::from_bits(x & 0xffff_0000);
            }
        }
        Factor::F16 => {
            for (l, &x) in tile.iter().enumerate() {
                out[2 * l] = f16_to_f32(x & 0xffff);
                out[2 * l + 1] = f16_to_f32(x >> 16);
            }
        }
        // The 13 bits that tf32 lacks are not looked at.
        _ => {
            for (l, &x) in tile.iter().enumerate() {
                out[l] = f32::from_bits(x & 0xffff_e000);
            }
        }
    }
}

/// Exact, without a branch: the exponent is moved by a product, which also makes subnormals normal.
#[inline(always)]
fn f16_to_f32(h: u32) -> f32 {
    let body = f32::from_bits((h & 0x7fff) << 13) * f32::from_bits(0x7780_0000);
    let special = h & 0x7c00 == 0x7c00;
    let bits = if special { 0x7f80_0000 | (h & 0x3ff) << 13 } else { body.to_bits() };
    f32::from_bits(bits | (h & 0x8000) << 16)
}

/// The B of an 8-column tile of 8 factors a column: `out[k][n]`.
#[inline(always)]
fn turned(v: &[f32; 64], out: &mut [[f32; N]; 8]) {
    for (k, row) in out.iter_mut().enumerate() {
        for (n, x) in row.iter_mut().enumerate() {
            *x = v[n * 8 + k];
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn turned_fast(v: &[f32; 64], out: &mut [[f32; N]; 8]) {
    use std::arch::x86_64::*;
    // SAFETY: every load and store is of 8 of the 64 values.
    unsafe {
        let r: [__m256; 8] = std::array::from_fn(|n| _mm256_loadu_ps(v.as_ptr().add(n * 8)));
        let pair = |n: usize| (_mm256_unpacklo_ps(r[n], r[n + 1]), _mm256_unpackhi_ps(r[n], r[n + 1]));
        let ((a0, a1), (a2, a3), (a4, a5), (a6, a7)) = (pair(0), pair(2), pair(4), pair(6));
        let four = |x, y| (_mm256_shuffle_ps::<0x44>(x, y), _mm256_shuffle_ps::<0xee>(x, y));
        let ((b0, b1), (b2, b3)) = (four(a0, a2), four(a1, a3));
        let ((b4, b5), (b6, b7)) = (four(a4, a6), four(a5, a7));
        for (n, (x, y)) in [(b0, b4), (b1, b5), (b2, b6), (b3, b7)].into_iter().enumerate() {
            _mm256_storeu_ps(out[n].as_mut_ptr(), _mm256_permute2f128_ps::<0x20>(x, y));
            _mm256_storeu_ps(out[n + 4].as_mut_ptr(), _mm256_permute2f128_ps::<0x31>(x, y));
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2,lzcnt,popcnt")]
fn floats_fast(w: &mut Warp, i: &Instr, t: Factor, k: usize, half: bool) {
    floats(w, i, t, k, half, |v, out| turned_fast(v, out));
}

/// A product of floats: every product is exact, and is added with one rounding to f32, in the order of k. (The hardware's
/// order and rounding within a group of k are not documented.)
#[inline(always)]
fn floats(
    w: &mut Warp,
    i: &Instr,
    t: Factor,
    k: usize,
    half: bool,
    turn: impl Fn(&[f32; 64], &mut [[f32; N]; 8]),
) {
    let per = if t == Factor::Tf32 { 4 } else { 8 };
    let blocks = k / per;
    let c0 = if half { 2 } else { 4 };
    let (va, vb) = (c0, c0 + 2 * blocks);
    let vc = vb + blocks;
    // The accumulators' rows, one after another: the two registers of a half interleave to 8 whole rows.
    let mut c = [[0f32; 64]; 2];
    accumulators(w, i, vc, half, &mut c);
    let (mut a, mut v, mut b) = ([0f32; 64], [0f32; 64], [[0f32; N]; 8]);
    for n in 0..blocks {
        values(w.row32(i.v[vb + n]), t, &mut v);
        if per == 8 {
            turn(&v, &mut b);
        } else {
            for (at, x) in v[..32].iter().enumerate() {
                b[at % 4][at / 4] = *x;
            }
        }
        for (high, c) in c.iter_mut().enumerate() {
            values(w.row32(i.v[va + 2 * n + high]), t, &mut a);
            for (c, a) in c.chunks_exact_mut(4 * N).zip(a.chunks_exact(4 * per)) {
                if per == 8 { rows::<8>(c, a, &b) } else { rows::<4>(c, a, &b) }
            }
        }
    }
    for (n, c) in c.iter().enumerate() {
        if half {
            let d = w.row32_mut(i.v[n]);
            for (d, pair) in d.iter_mut().zip(c.chunks_exact(2)) {
                let [x, y] = [pair[0], pair[1]].map(|x| num::to_f16(x.into(), Round::Nearest));
                *d = u32::from(x.to_bits()) | u32::from(y.to_bits()) << 16;
            }
        } else {
            for side in 0..2 {
                let d = w.row32_mut(i.v[2 * n + side]);
                for (l, d) in d.iter_mut().enumerate() {
                    *d = c[2 * l + side].to_bits();
                }
            }
        }
    }
}

/// Four rows of C gain `PER` products each, side by side so that none waits for another's.
#[inline(always)]
fn rows<const PER: usize>(c: &mut [f32], a: &[f32], b: &[[f32; N]; 8]) {
    let mut sum = [[0f32; N]; 4];
    for (s, c) in sum.iter_mut().zip(c.chunks_exact(N)) {
        s.copy_from_slice(c);
    }
    for k in 0..PER {
        for (r, s) in sum.iter_mut().enumerate() {
            let x = a[r * PER + k];
            for (s, y) in s.iter_mut().zip(&b[k]) {
                *s = x.mul_add(*y, *s);
            }
        }
    }
    for (s, c) in sum.iter().zip(c.chunks_exact_mut(N)) {
        c.copy_from_slice(s);
    }
}

#[inline(always)]
fn accumulators(w: &mut Warp, i: &Instr, vc: usize, half: bool, c: &mut [[f32; 64]; 2]) {
    for (n, c) in c.iter_mut().enumerate() {
        if half {
            for (pair, &x) in c.chunks_exact_mut(2).zip(w.row32(i.v[vc + n])) {
                pair[0] = f16::from_bits(x as u16).to_f32();
                pair[1] = f16::from_bits((x >> 16) as u16).to_f32();
            }
        } else {
            for side in 0..2 {
                let r = w.row32(i.v[vc + 2 * n + side]);
                for (l, &x) in r.iter().enumerate() {
                    c[2 * l + side] = f32::from_bits(x);
                }
            }
        }
    }
}

/// A product of 8-bit integers, exact in i64 before it wraps or saturates.
fn integers(w: &mut Warp, i: &Instr, ta: Factor, tb: Factor, k: usize, sat: bool) {
    let blocks = k / 16;
    let (va, vb) = (4, 4 + 2 * blocks);
    let vc = vb + blocks;
    let value = |x: u32, byte: usize, t: Factor| {
        let b = (x >> (8 * byte)) as u8;
        if t == Factor::S8 { i64::from(b as i8) } else { i64::from(b) }
    };
    let mut out = [[0u32; 32]; 4];
    for (n, out) in out.iter_mut().enumerate() {
        for (l, out) in out.iter_mut().enumerate() {
            let (high, r, c) = (n / 2, l / 4, l % 4 * 2 + n % 2);
            let mut sum = i64::from(w.row32(i.v[vc + n])[l] as i32);
            for at in 0..k {
                let (block, word, byte) = (at / 16, at % 16 / 4, at % 4);
                let x = w.row32(i.v[va + 2 * block + high])[r * 4 + word];
                let y = w.row32(i.v[vb + block])[c * 4 + word];
                sum += value(x, byte, ta) * value(y, byte, tb);
            }
            *out = if sat { sum.clamp(i32::MIN.into(), i32::MAX.into()) as u32 } else { sum as u32 };
        }
    }
    for (n, row) in out.into_iter().enumerate() {
        *w.row32_mut(i.v[n]) = row;
    }
}
