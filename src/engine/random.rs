//! Counter-based noise: Philox 4×32-10 (Salmon et al., SC'11) and normals whose every bit is defined.
//!
//! A draw is a pure function of `(seed, stream, index)`; "the same noise" is the same counter, never a stored copy.
//! The normals (Box–Muller) use a logarithm and a sine/cosine built from correctly rounded `+ − × ÷ √` alone, in a
//! written order and without contraction, so any IEEE-754 device that follows the same steps draws the same bits.

use super::arena::Device;
use super::tensor::{DType, Tensor};
use crate::{Error, Result};
use rayon::prelude::*;

/// Normals that one thread draws at a time on the CPU.
const PIECE: usize = 1 << 16;

const M0: u32 = 0xD251_1F53;
const M1: u32 = 0xCD9E_8D57;
const W0: u32 = 0x9E37_79B9;
const W1: u32 = 0xBB67_AE85;

/// Ten rounds of Philox 4×32 on `counter` under `key`.
#[inline]
pub fn philox4x32_10(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let p0 = u64::from(M0) * u64::from(counter[0]);
        let p1 = u64::from(M1) * u64::from(counter[2]);
        counter = [
            (p1 >> 32) as u32 ^ counter[1] ^ key[0],
            p1 as u32,
            (p0 >> 32) as u32 ^ counter[3] ^ key[1],
            p0 as u32,
        ];
        key = [key[0].wrapping_add(W0), key[1].wrapping_add(W1)];
    }
    counter
}

/// A stream of noise: one `(seed, stream)` pair, addressed by index. `stream` keeps independent uses of a seed apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Philox {
    seed: u64,
    stream: u64,
}

impl Philox {
    /// The stream `stream` of `seed`.
    pub const fn new(seed: u64, stream: u64) -> Self {
        Self { seed, stream }
    }

    /// Four random words at `block`.
    #[inline]
    pub fn words(&self, block: u64) -> [u32; 4] {
        philox4x32_10(
            [block as u32, (block >> 32) as u32, self.stream as u32, (self.stream >> 32) as u32],
            [self.seed as u32, (self.seed >> 32) as u32],
        )
    }

    /// Fills `out` with the standard normals number `first..first + out.len()` of this stream.
    pub fn normals(&self, first: u64, out: &mut [f32]) {
        let mut i = 0;
        while i < out.len() {
            let index = first + i as u64;
            let four = self.four_normals(index / 4);
            let lane = (index % 4) as usize;
            let n = (4 - lane).min(out.len() - i);
            out[i..i + n].copy_from_slice(&four[lane..lane + n]);
            i += n;
        }
    }

    #[inline]
    fn four_normals(&self, block: u64) -> [f32; 4] {
        let w = self.words(block);
        let (a, b) = box_muller(w[0], w[1]);
        let (c, d) = box_muller(w[2], w[3]);
        [a, b, c, d]
    }

    /// Where to begin to draw, for the device's memory: seed, stream and the number of the first normal.
    pub const fn counter(&self, first: u64) -> [u64; 3] {
        [self.seed, self.stream, first]
    }

    /// A [`Philox::counter`] as a tensor [3, 2], each word in the place of two f32.
    pub fn on(&self, device: &Device, first: u64) -> Result<Tensor> {
        Tensor::of_words(device, &self.counter(first))
    }

    /// The standard normals from `counter` on ([`Philox::on`]) into `out`, f32 on the same device; the same bits on every
    /// device. The counter is read where it stands, so a captured graph draws what its caller has put there since.
    pub fn fill_from(counter: &Tensor, out: &mut Tensor) -> Result<()> {
        counter.expect("philox", "the counter", &[3, 2])?;
        if [counter.dtype(), out.dtype()] != [DType::F32; 2] || counter.device() != out.device() {
            return Err(Error::shape(
                "philox",
                format!("from {counter:?} into {out:?}: both f32 on one device"),
            ));
        }
        let (device, n) = (out.device().clone(), out.len());
        let Some(gpu) = device.gpu() else {
            if device.is_meta() {
                return Ok(());
            }
            let words = bytemuck::pod_collect_to_vec::<f32, u64>(counter.f32());
            let stream = Self::new(words[0], words[1]);
            out.f32_mut().par_chunks_mut(PIECE).enumerate().for_each(|(i, piece)| {
                stream.normals(words[2] + (i * PIECE) as u64, piece);
            });
            return Ok(());
        };
        let kernel = gpu.kernel("philox.cu", "philox_normal_f32")?;
        let blocks = (n / 4 + 2).div_ceil(256).min(8 * gpu.properties().multiprocessors.max(1) as usize);
        gpu.launch(&kernel, [blocks, 1, 1], 256).read(counter).write(out).value(n as i64).run()
    }

    /// The standard normals number `first..` of this stream as a tensor; the same bits on every device.
    pub fn tensor(&self, device: &Device, shape: &[usize], first: u64) -> Result<Tensor> {
        let mut out = Tensor::empty(device, shape)?;
        Self::fill_from(&self.on(device, first)?, &mut out)?;
        Ok(out)
    }

    /// A sequential reader of this stream, for host-side draws (crops, parameters).
    pub const fn reader(self) -> Reader {
        Reader { philox: self, next: 0, words: [0; 4] }
    }
}

/// Reads a [`Philox`] stream word by word.
#[derive(Clone, Debug)]
pub struct Reader {
    philox: Philox,
    next: u64,
    words: [u32; 4],
}

impl Reader {
    /// The next word.
    pub fn word(&mut self) -> u32 {
        let lane = (self.next % 4) as usize;
        if lane == 0 {
            self.words = self.philox.words(self.next / 4);
        }
        self.next += 1;
        self.words[lane]
    }
    /// Uniform in [0, 1), 24 bits.
    pub fn unit(&mut self) -> f32 {
        (self.word() >> 8) as f32 * (1.0 / 16_777_216.0)
    }
    /// Uniform in [lo, hi).
    pub fn uniform(&mut self, lo: f32, hi: f32) -> f32 {
        lo + (hi - lo) * self.unit()
    }
    /// Uniform integer in 0..n (multiply-shift; bias below n/2³²). `n` must not be 0.
    pub fn below(&mut self, n: usize) -> usize {
        ((u64::from(self.word()) * n as u64) >> 32) as usize
    }
    /// One standard normal (the second of the pair is dropped, so that draws stay easy to count: two words each).
    pub fn normal(&mut self) -> f32 {
        let (a, b) = (self.word(), self.word());
        box_muller(a, b).0
    }
}

/// Two independent standard normals from two words: radius from 23 bits of `a` (never 0), angle from 23 bits of `b`.
#[inline]
pub fn box_muller(a: u32, b: u32) -> (f32, f32) {
    let u = ((a >> 9) as f32 + 0.5) * (1.0 / 8_388_608.0);
    let v = (b >> 9) as f32 * (1.0 / 8_388_608.0);
    let r = (-2.0 * ln(u)).sqrt();
    let (s, c) = sin_cos_turn(v);
    (r * c, r * s)
}

/// Natural logarithm of a positive normal float (fdlibm's reduction and polynomial, evaluated in this order in f32).
#[inline]
fn ln(x: f32) -> f32 {
    // x = 2^k · m with m in [√½, √2)
    let bits = x.to_bits().wrapping_add(0x3f80_0000 - 0x3f35_04f3);
    let k = (bits >> 23) as i32 - 127;
    let m = f32::from_bits((bits & 0x007f_ffff).wrapping_add(0x3f35_04f3));
    let f = m - 1.0;
    let s = f / (2.0 + f);
    let z = s * s;
    let w = z * z;
    let t1 = w * (0.400_009_72 + w * 0.242_790_79);
    let t2 = z * (0.666_666_6 + w * 0.284_987_87);
    let r = t2 + t1;
    let half = 0.5 * f * f;
    let k = k as f32;
    s * (half + r) + k * 9.058_001e-6 - half + f + k * 0.693_138_1
}

/// Sine and cosine of `v` turns, `v` in [0, 1): an exact quadrant reduction, then Taylor polynomials on |angle| ≤ π/4.
#[inline]
fn sin_cos_turn(v: f32) -> (f32, f32) {
    let q = (4.0 * v + 0.5) as i32; // nearest quarter turn, 0..=4
    let x = (4.0 * v - q as f32) * std::f32::consts::FRAC_PI_2;
    let z = x * x;
    let s = x + x * z * (-1.666_666_7e-1 + z * (8.333_333e-3 + z * (-1.984_127e-4 + z * 2.755_731_9e-6)));
    let c = 1.0 - 0.5 * z + z * z * (4.166_666_8e-2 + z * (-1.388_888_9e-3 + z * 2.480_158_7e-5));
    match q & 3 {
        0 => (s, c),
        1 => (c, -s),
        2 => (-s, -c),
        _ => (-c, s),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known-answer vectors published with Random123 (kat_vectors, philox4x32 10).
    #[test]
    fn philox_known_answers() {
        assert_eq!(philox4x32_10([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox4x32_10([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox4x32_10([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn logarithm_and_circle_agree_with_f64() {
        let mut worst = 0f64;
        for i in 0..200_000u32 {
            let u = ((i * 41 % (1 << 23)) as f32 + 0.5) / 8_388_608.0;
            let want = f64::from(u).ln();
            worst = worst.max((f64::from(ln(u)) - want).abs() / want.abs().max(1e-3));
            let v = (i * 41 % (1 << 23)) as f32 / 8_388_608.0;
            let (s, c) = sin_cos_turn(v);
            let (ws, wc) = (std::f64::consts::TAU * f64::from(v)).sin_cos();
            worst = worst.max((f64::from(s) - ws).abs()).max((f64::from(c) - wc).abs());
        }
        assert!(worst < 4e-7, "worst error {worst:e}");
    }

    #[test]
    fn normals_have_the_moments_of_a_normal() {
        let mut x = vec![0f32; 1 << 20];
        Philox::new(7, 1).normals(0, &mut x);
        let n = x.len() as f64;
        let m = |p: i32| x.iter().map(|&v| f64::from(v).powi(p)).sum::<f64>() / n;
        assert!(
            m(1).abs() < 4e-3 && (m(2) - 1.0).abs() < 6e-3 && m(3).abs() < 2e-2 && (m(4) - 3.0).abs() < 5e-2
        );
    }

    #[test]
    fn any_window_of_a_stream_is_the_same_stream() {
        let p = Philox::new(3, 9);
        let mut whole = [0f32; 37];
        p.normals(0, &mut whole);
        for start in 0..20 {
            let mut part = [0f32; 11];
            p.normals(start, &mut part);
            assert_eq!(part, whole[start as usize..start as usize + 11]);
        }
    }

    /// The first normals of (seed 0, stream 0), as bits: a change here breaks every recorded run and every device.
    #[test]
    fn normals_are_bit_defined() {
        let mut x = [0f32; 8];
        Philox::new(0, 0).normals(0, &mut x);
        let bits = x.map(f32::to_bits);
        assert_eq!(bits, BITS, "{bits:#010x?}");
    }
    const BITS: [u32; 8] = [
        0x3f7d_bb29,
        0xbf6c_b6ba,
        0xbf1e_1ba4,
        0xbef6_d1a3,
        0xbe1d_534f,
        0x3e39_2a6b,
        0x3f54_ec98,
        0x3e4a_2d86,
    ];
}
