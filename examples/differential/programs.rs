//! The programs, what they are given, and how far two devices may differ.

use asasr_engine::engine::Philox;

/// Threads of every launch; each reads four words.
pub const THREADS: usize = 1 << 14;

/// What the threads are given.
#[derive(Clone, Copy)]
pub enum Inputs {
    /// Any bits, every 8th word an integer at an edge.
    Bits,
    /// Any f32, denormals, infinities and NaN among them; every other of an ordinary size.
    Floats,
    /// The same as f64, in two words each.
    Doubles,
    /// Pairs of 16 bits: every value there is.
    Halves,
    /// Normals of standard deviation 3.
    Normals,
}

/// How two devices' words compare.
#[derive(Clone, Copy, Debug)]
pub enum Wanted {
    /// Bit for bit.
    Exact,
    /// f32 that differ by at most `relative` of the larger, or by `absolute`.
    Close { relative: f64, absolute: f64 },
    /// Pairs of f32, value and scale: values that differ by at most this share of the scale.
    Share(f64),
}

pub struct Program {
    pub file: &'static str,
    pub text: &'static str,
    /// Of the kernel, and of what is written.
    pub name: &'static str,
    pub inputs: Inputs,
    /// Words that each thread writes.
    pub words: usize,
    /// Words of the output where it is not a thread's own.
    pub cells: Option<usize>,
    pub wanted: Wanted,
}

macro_rules! source {
    ($file:literal) => {
        (concat!("differential/", $file), include_str!(concat!("kernels/", $file)))
    };
}

type Source = (&'static str, &'static str);

const INTEGERS: Source = source!("integers.cu");
const FLOATS: Source = source!("floats.cu");
const WARPS: Source = source!("warps.cu");
const APPROXIMATIONS: Source = source!("approximations.cu");
const MATRICES: Source = source!("matrices.cu");

const fn exact(from: Source, name: &'static str, inputs: Inputs, words: usize) -> Program {
    let (file, text) = from;
    Program { file, text, name, inputs, words, cells: None, wanted: Wanted::Exact }
}

/// A function of hardware's own: how far its manual lets it be off, on both sides together.
const fn close(name: &'static str, relative: f64, absolute: f64) -> Program {
    let (file, text) = APPROXIMATIONS;
    let wanted = Wanted::Close { relative, absolute };
    Program { file, text, name, inputs: Inputs::Normals, words: 2, cells: None, wanted }
}

/// A product of matrices: hardware adds up in an order and with guard bits of its own.
const fn sums(name: &'static str) -> Program {
    let (file, text) = MATRICES;
    Program {
        file,
        text,
        name,
        inputs: Inputs::Normals,
        words: 8,
        cells: None,
        wanted: Wanted::Share(U * 8.0),
    }
}

/// The same of small whole numbers, whose sums are exact in any order.
const fn whole(name: &'static str) -> Program {
    exact(MATRICES, name, Inputs::Bits, 8)
}

/// An ulp of 1.
const U: f64 = 1.0 / (1 << 23) as f64;

pub const PROGRAMS: &[Program] = &[
    exact(INTEGERS, "integer_arithmetic", Inputs::Bits, 24),
    exact(INTEGERS, "integer_bits", Inputs::Bits, 24),
    exact(INTEGERS, "integer_wide", Inputs::Bits, 44),
    exact(FLOATS, "f32_arithmetic", Inputs::Floats, 37),
    exact(FLOATS, "f64_arithmetic", Inputs::Doubles, 45),
    exact(FLOATS, "half_arithmetic", Inputs::Halves, 18),
    exact(FLOATS, "float_conversions", Inputs::Floats, 42),
    exact(WARPS, "warp_shuffles", Inputs::Bits, 18),
    exact(WARPS, "warp_votes", Inputs::Bits, 16),
    Program { cells: Some(4096), ..exact(WARPS, "atomics", Inputs::Bits, 0) },
    exact(WARPS, "memory_widths", Inputs::Bits, 16),
    close("ex2_approx", 8.0 * U, 0.0),
    close("ex2_approx_ftz", 8.0 * U, 2e-38),
    close("lg2_approx", 8.0 * U, 8.0 * U),
    close("sin_approx", 0.0, 16.0 * U),
    close("cos_approx", 0.0, 16.0 * U),
    close("rsqrt_approx", 4.0 * U, 0.0),
    close("rcp_approx", 4.0 * U, 0.0),
    close("sqrt_approx", 4.0 * U, 0.0),
    close("tanh_approx", 0.002, 0.0),
    close("div_approx", 8.0 * U, 0.0),
    close("div_full", 8.0 * U, 0.0),
    close("library_exp", 8.0 * U, 0.0),
    close("library_log", 8.0 * U, 8.0 * U),
    close("library_sin", 8.0 * U, 8.0 * U),
    close("library_tanh", 16.0 * U, 0.0),
    close("library_erf", 16.0 * U, 0.0),
    close("library_pow", 32.0 * U, 0.0),
    sums("mma_bf16_k16"),
    sums("mma_bf16_k8"),
    sums("mma_f16_k16"),
    sums("mma_f16_k8"),
    sums("mma_tf32_k8"),
    sums("mma_tf32_k4"),
    whole("mma_bf16_k16_whole"),
    whole("mma_bf16_k8_whole"),
    whole("mma_f16_k16_whole"),
    whole("mma_f16_k8_whole"),
    whole("mma_tf32_k8_whole"),
    whole("mma_tf32_k4_whole"),
    exact(MATRICES, "mma_s8_k32", Inputs::Bits, 4),
    exact(MATRICES, "ldmatrix", Inputs::Bits, 15),
    exact(MATRICES, "cp_async", Inputs::Bits, 12),
];

const EDGES: [u32; 8] = [0, 1, 2, 0x7fff_ffff, 0x8000_0000, 0x8000_0001, 0xffff_fffe, u32::MAX];
/// Zeros, the smallest and largest of each class, infinities, NaN, ties of the conversions to 16 bits.
const FLOAT_EDGES: [u32; 16] = [
    0,
    0x8000_0000,
    1,
    0x8000_0001,
    0x007f_ffff,
    0x0080_0000,
    0x3f80_0000,
    0x3f80_8000,
    0x3f80_1000,
    0x7f7f_ffff,
    0x7f80_0000,
    0xff80_0000,
    0x7fc0_0000,
    0x7f80_0001,
    0x4f00_0000,
    0xcf00_0000,
];

impl Inputs {
    /// Four words for every thread: the same on every machine, others for every program.
    pub fn words(self, program: &str) -> Vec<u32> {
        let seed = program.bytes().fold(17u64, |h, b| h.wrapping_mul(257) ^ u64::from(b));
        let n = 4 * THREADS;
        if matches!(self, Self::Normals) {
            let mut values = vec![0.0; n];
            Philox::new(seed, 1).normals(0, &mut values);
            return values.iter().map(|v| (3.0 * v).to_bits()).collect();
        }
        let mut reader = Philox::new(seed, 0).reader();
        let mut all: Vec<u32> = (0..n).map(|_| reader.word()).collect();
        for word in &mut all {
            let choice = reader.word();
            let pick = (choice >> 8) as usize;
            match self {
                Self::Bits if choice.is_multiple_of(8) => *word = EDGES[pick % EDGES.len()],
                Self::Floats if choice.is_multiple_of(8) => *word = FLOAT_EDGES[pick % FLOAT_EDGES.len()],
                // An exponent near that of 1: sums that round, products that neither vanish nor overflow.
                Self::Floats if choice % 8 > 3 => {
                    *word = *word & 0x807f_ffff | (115 + pick as u32 % 26) << 23
                }
                _ => {}
            }
        }
        if let Self::Doubles = self {
            for high in all.iter_mut().skip(1).step_by(2) {
                let choice = reader.word();
                let pick = choice >> 8;
                match choice % 8 {
                    0 => {
                        *high = [0, 0x8000_0000, 0x7ff0_0000, 0xfff0_0000, 0x7ff8_0000, 0x000f_ffff]
                            [pick as usize % 6]
                    }
                    1..=5 => *high = *high & 0x800f_ffff | (1010 + pick % 26) << 20,
                    _ => {}
                }
            }
        }
        all
    }
}
