//! Slice primitives compiled for several instruction sets and chosen at run time. No fused multiply-add is written
//! anywhere, so the bits are the same on every one of them.

use multiversion::multiversion;

/// e^x in f32, |error| ≤ 2 ulp; 0 below −87.3; saturates above 88.7.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // x = n·ln 2 + r, |r| ≤ ln 2 / 2; degree-6 minimax of e^r (Cephes' coefficients), scaled by 2^n in two halves.
    let small = x < -87.336_54;
    let x = x.clamp(-87.336_54, 88.722_83);
    let n = (x * std::f32::consts::LOG2_E + 12_582_912.0) - 12_582_912.0;
    let r = (x - n * 0.693_359_4) + n * 2.121_944_4e-4;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_6e-1;
    let p = p * r + 0.5;
    let y = p * r * r + r + 1.0;
    let n = n as i32;
    let half = n >> 1;
    let y = y * f32::from_bits(((half + 127) << 23) as u32) * f32::from_bits(((n - half + 127) << 23) as u32);
    if small { 0.0 } else { y }
}

/// tanh in f32 through e^{−2|x|}; absolute error below 2e-7.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let e = exp(-2.0 * x.abs());
    ((1.0 - e) / (1.0 + e)).copysign(x)
}

/// √(2/π)
const GELU_A: f32 = 0.797_884_6;
const GELU_B: f32 = 0.044_715;

#[inline(always)]
fn gelu1(x: f32) -> f32 {
    0.5 * x * (1.0 + tanh(GELU_A * (x + GELU_B * x * x * x)))
}

#[inline(always)]
fn gelu_slope1(x: f32) -> f32 {
    let t = tanh(GELU_A * (x + GELU_B * x * x * x));
    0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * GELU_A * (1.0 + 3.0 * GELU_B * x * x)
}

macro_rules! targets {
    ($(#[$doc:meta])* pub fn $name:ident $args:tt $(-> $ret:ty)? $body:block) => {
        $(#[$doc])*
        #[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2", "aarch64+neon"))]
        pub fn $name $args $(-> $ret)? $body
    };
}

targets! {
    /// out = tanh-GELU(x): `0.5·x·(1 + tanh(√(2/π)·(x + 0.044715·x³)))`.
    pub fn gelu(x: &[f32], out: &mut [f32]) {
        for (o, &v) in out.iter_mut().zip(x) {
            *o = gelu1(v);
        }
    }
}

targets! {
    /// grad *= GELU′(x).
    pub fn mul_gelu_slope(x: &[f32], grad: &mut [f32]) {
        for (g, &v) in grad.iter_mut().zip(x) {
            *g *= gelu_slope1(v);
        }
    }
}

targets! {
    /// out = x·sigmoid(x).
    pub fn silu(x: &[f32], out: &mut [f32]) {
        for (o, &v) in out.iter_mut().zip(x) {
            *o = v / (1.0 + exp(-v));
        }
    }
}

targets! {
    /// grad *= SiLU′(x).
    pub fn mul_silu_slope(x: &[f32], grad: &mut [f32]) {
        for (g, &v) in grad.iter_mut().zip(x) {
            let s = 1.0 / (1.0 + exp(-v));
            *g *= s * (1.0 + v * (1.0 - s));
        }
    }
}

targets! {
    /// x = e^{x − shift}; returns the sum, in a fixed order of sixteen lanes.
    pub fn exp_shift_sum(x: &mut [f32], shift: f32) -> f32 {
        let mut lanes = [0f32; 16];
        let mut chunks = x.chunks_exact_mut(16);
        for c in &mut chunks {
            for (v, l) in c.iter_mut().zip(&mut lanes) {
                *v = exp(*v - shift);
                *l += *v;
            }
        }
        for (v, l) in chunks.into_remainder().iter_mut().zip(&mut lanes) {
            *v = exp(*v - shift);
            *l += *v;
        }
        fold(lanes)
    }
}

targets! {
    /// The largest element, −∞ for none.
    pub fn max(x: &[f32]) -> f32 {
        let mut lanes = [f32::NEG_INFINITY; 16];
        let mut chunks = x.chunks_exact(16);
        for c in &mut chunks {
            for (l, &v) in lanes.iter_mut().zip(c) {
                *l = if v > *l { v } else { *l };
            }
        }
        for (l, &v) in lanes.iter_mut().zip(chunks.remainder()) {
            *l = if v > *l { v } else { *l };
        }
        lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
}

targets! {
    /// Σ x, in a fixed order of sixteen lanes.
    pub fn sum(x: &[f32]) -> f32 {
        let mut lanes = [0f32; 16];
        let mut chunks = x.chunks_exact(16);
        for c in &mut chunks {
            for (l, &v) in lanes.iter_mut().zip(c) {
                *l += v;
            }
        }
        for (l, &v) in lanes.iter_mut().zip(chunks.remainder()) {
            *l += v;
        }
        fold(lanes)
    }
}

targets! {
    /// Σ x·y, in a fixed order of sixteen lanes.
    pub fn dot(x: &[f32], y: &[f32]) -> f32 {
        let mut lanes = [0f32; 16];
        let (mut xs, mut ys) = (x.chunks_exact(16), y.chunks_exact(16));
        for (a, b) in (&mut xs).zip(&mut ys) {
            for ((l, &v), &w) in lanes.iter_mut().zip(a).zip(b) {
                *l += v * w;
            }
        }
        for ((l, &v), &w) in lanes.iter_mut().zip(xs.remainder()).zip(ys.remainder()) {
            *l += v * w;
        }
        fold(lanes)
    }
}

targets! {
    /// Σ (x − mean)², in a fixed order of sixteen lanes.
    pub fn sum_sq_dev(x: &[f32], mean: f32) -> f32 {
        let mut lanes = [0f32; 16];
        let mut chunks = x.chunks_exact(16);
        for c in &mut chunks {
            for (l, &v) in lanes.iter_mut().zip(c) {
                *l += (v - mean) * (v - mean);
            }
        }
        for (l, &v) in lanes.iter_mut().zip(chunks.remainder()) {
            *l += (v - mean) * (v - mean);
        }
        fold(lanes)
    }
}

targets! {
    /// y += a·x.
    pub fn axpy(a: f32, x: &[f32], y: &mut [f32]) {
        for (o, &v) in y.iter_mut().zip(x) {
            *o += a * v;
        }
    }
}

targets! {
    /// y += a ⊙ x.
    pub fn mul_add(a: &[f32], x: &[f32], y: &mut [f32]) {
        for ((o, &v), &w) in y.iter_mut().zip(x).zip(a) {
            *o += w * v;
        }
    }
}

#[inline(always)]
fn fold(lanes: [f32; 16]) -> f32 {
    let mut l = lanes;
    for width in [8, 4, 2, 1] {
        for i in 0..width {
            l[i] += l[i + width];
        }
    }
    l[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponential_and_tanh_agree_with_f64() {
        let (mut worst_exp, mut worst_tanh) = (0f64, 0f64);
        for i in -870_000..880_000 {
            let x = i as f32 * 1e-4;
            let want = f64::from(x).exp();
            worst_exp = worst_exp.max((f64::from(exp(x)) - want).abs() / want);
            worst_tanh = worst_tanh.max((f64::from(tanh(x * 0.1)) - (f64::from(x * 0.1)).tanh()).abs());
        }
        assert!(worst_exp < 2.5e-7, "{worst_exp:e}");
        assert!(worst_tanh < 2e-7, "{worst_tanh:e}");
    }

    #[test]
    fn sums_cover_every_element() {
        for n in [0, 1, 15, 16, 17, 100] {
            let x: Vec<f32> = (1..=n).map(|v| v as f32).collect();
            let y: Vec<f32> = x.iter().map(|v| -v).collect();
            let s = (n * (n + 1) / 2) as f32;
            assert_eq!(sum(&x), s);
            assert_eq!(dot(&x, &x), -dot(&x, &y));
            assert_eq!(max(&x), if n == 0 { f32::NEG_INFINITY } else { n as f32 });
            let mut e = vec![0f32; n];
            assert_eq!(exp_shift_sum(&mut e, 0.0), n as f32);
        }
    }
}
