//! Slice primitives compiled for several instruction sets and chosen at run time. No fused multiply-add is written
//! anywhere, so the bits are the same on every one of them.

use multiversion::multiversion;

/// e^x for |x| below 700: computed in f64 to 1e-13, because a bias of an ulp, shared by all elements of a softmax or a
/// GELU, adds up to more than all other rounding in the difference of two policies.
#[inline(always)]
fn exp_wide(x: f64) -> f64 {
    // x = n·ln 2 + r, |r| ≤ ln 2 / 2. Adding 1.5·2⁵² leaves n in the low bits, ready to be shifted into an exponent.
    const MAGIC: f64 = 6_755_399_441_055_744.0;
    let t = x * std::f64::consts::LOG2_E + MAGIC;
    let n = t - MAGIC;
    let r = x - n * std::f64::consts::LN_2;
    let p = 1.0 / 3_628_800.0;
    let p = p * r + 1.0 / 362_880.0;
    let p = p * r + 1.0 / 40_320.0;
    let p = p * r + 1.0 / 5_040.0;
    let p = p * r + 1.0 / 720.0;
    let p = p * r + 1.0 / 120.0;
    let p = p * r + 1.0 / 24.0;
    let p = p * r + 1.0 / 6.0;
    let p = p * r + 0.5;
    let p = p * r + 1.0;
    let p = p * r + 1.0;
    p * f64::from_bits(t.to_bits().wrapping_add(1023) << 52)
}

/// e^x in f32, rounded once; 0 below −104 (also for −∞), saturating above 88.7.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let y = exp_wide(f64::from(x.clamp(-104.0, 88.722_83))) as f32;
    if x < -104.0 { 0.0 } else { y }
}

/// tanh in f32 through e^{−2|x|}, rounded once up to |x| ≈ 350.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let e = exp_wide(-2.0 * f64::from(x.abs().min(300.0)));
    (((1.0 - e) / (1.0 + e)) as f32).copysign(x)
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
pub(super) use targets;

targets! {
    /// out = tanh-GELU(x): `0.5·x·(1 + tanh(√(2/π)·(x + 0.044715·x³)))`.
    pub fn gelu(x: &[f32], out: &mut [f32]) {
        for (o, &v) in out.iter_mut().zip(x) {
            *o = gelu1(v);
        }
    }
}

targets! {
    /// x = GELU(x).
    pub fn gelu_in_place(x: &mut [f32]) {
        for v in x {
            *v = gelu1(*v);
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
    /// x = e^{x − shift}. To sum them is a second pass: together the compiler vectorises neither.
    pub fn exp_shift(x: &mut [f32], shift: f32) {
        for v in x {
            *v = exp(*v - shift);
        }
    }
}

targets! {
    /// x *= a.
    pub fn scale(a: f32, x: &mut [f32]) {
        for v in x {
            *v *= a;
        }
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

/// 1/√(mean(x²) + eps), summed in order.
#[inline(always)]
pub fn rrms(x: &[f32], eps: f32) -> f32 {
    let mut sum = 0.0;
    for v in x {
        sum += v * v;
    }
    1.0 / (sum / x.len() as f32 + eps).sqrt()
}

targets! {
    /// Of every head (as wide as `w`): y = x / rms(x) ⊙ w, its pairs (2i, 2i+1) turned by the angle with cosine `cos[i]`
    /// and sine `sin[i]`.
    pub fn norm_rotate(x: &[f32], w: &[f32], eps: f32, cos: &[f32], sin: &[f32], y: &mut [f32]) {
        let w2 = w.as_chunks::<2>().0;
        for (y, x) in y.chunks_exact_mut(w.len()).zip(x.chunks_exact(w.len())) {
            let r = rrms(x, eps);
            let pairs = y.as_chunks_mut::<2>().0.iter_mut().zip(x.as_chunks::<2>().0).zip(w2);
            for (((y, x), w), (c, s)) in pairs.zip(cos.iter().zip(sin)) {
                let (a, b) = (x[0] * r * w[0], x[1] * r * w[1]);
                *y = [a * c - b * s, b * c + a * s];
            }
        }
    }
}

targets! {
    /// dx (+)= the gradient of [`norm_rotate`] in x, `g` being room for one head.
    #[allow(clippy::too_many_arguments, reason = "what forward had, and two gradients")]
    pub fn norm_rotate_back(
        x: &[f32],
        w: &[f32],
        eps: f32,
        cos: &[f32],
        sin: &[f32],
        dy: &[f32],
        g: &mut [f32],
        dx: &mut [f32],
        add: bool,
    ) {
        let n = w.len();
        let w2 = w.as_chunks::<2>().0;
        for ((dx, x), dy) in dx.chunks_exact_mut(n).zip(x.chunks_exact(n)).zip(dy.chunks_exact(n)) {
            let r = rrms(x, eps);
            // g = dy turned back, times the weight; its projection on x falls out of the norm.
            let pairs = g.as_chunks_mut::<2>().0.iter_mut().zip(dy.as_chunks::<2>().0).zip(w2);
            for (((g, d), w), (c, s)) in pairs.zip(cos.iter().zip(sin)) {
                *g = [(d[0] * c + d[1] * s) * w[0], (d[1] * c - d[0] * s) * w[1]];
            }
            let mut along = 0.0;
            for (g, x) in g.iter().zip(x) {
                along += g * x;
            }
            let along = along * r * r / n as f32;
            for ((dx, x), g) in dx.iter_mut().zip(x).zip(&*g) {
                let v = r * (g - x * along);
                *dx = if add { *dx + v } else { v };
            }
        }
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

targets! {
    /// Place of the first infinity or NaN.
    pub fn first_non_finite(x: &[f32]) -> Option<usize> {
        // Whole pieces without a way out are what the compiler makes vectors of.
        let mut pieces = x.chunks(4096);
        let at = pieces.position(|p| p.iter().fold(false, |bad, v| bad | !v.is_finite()))? * 4096;
        x[at..].iter().position(|v| !v.is_finite()).map(|i| at + i)
    }
}

/// Halves added onto halves; spelled out, because a loop over widths becomes scalar code.
#[inline(always)]
fn fold(l: [f32; 16]) -> f32 {
    let l: [f32; 8] = std::array::from_fn(|i| l[i] + l[i + 8]);
    let l: [f32; 4] = std::array::from_fn(|i| l[i] + l[i + 4]);
    (l[0] + l[2]) + (l[1] + l[3])
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
        assert!(worst_exp < 6.1e-8, "{worst_exp:e}");
        assert!(worst_tanh < 3.1e-8, "{worst_tanh:e}");
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
            let mut e = vec![3f32; n];
            exp_shift(&mut e, 3.0);
            assert_eq!(sum(&e), n as f32);
        }
    }
}
