//! AdamW with a global gradient-norm clip (Loshchilov & Hutter 2019), on flat f32 arenas.
//!
//! ```text
//! g ← clip·g;  w ← w·(1 − lr·λ);  m ← β₁m + (1−β₁)g;  v ← β₂v + (1−β₂)g²
//! w ← w − lr/(1−β₁ⁿ) · m / (√v/√(1−β₂ⁿ) + ε)            n = 1, 2, …
//! ```
//! The order of operations is that of `torch.optim.AdamW`. `clip = min(1, max_norm / (‖g‖ + 1e-6))`.

use rayon::prelude::*;

pub mod launch;

/// Elements per task; also the partition of the norm's sum, so its bits do not depend on the thread count.
const PIECE: usize = 1 << 14;

/// The optimizer's constants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled weight decay λ.
    pub weight_decay: f32,
}

impl Default for AdamW {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 }
    }
}

/// The scalars of one update.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    opt: AdamW,
    lr: f32,
    clip: f32,
    step_size: f32,
    root_correction: f32,
}

impl AdamW {
    /// Update number `n` (from 1) at learning rate `lr`, gradients scaled by `clip`. Bias corrections in f64.
    pub fn at(&self, n: u64, lr: f32, clip: f32) -> Step {
        let bias = |beta: f32| 1.0 - decimal(beta).powf(n as f64);
        Step {
            opt: *self,
            lr,
            clip,
            step_size: (f64::from(lr) / bias(self.beta1)) as f32,
            root_correction: bias(self.beta2).sqrt() as f32,
        }
    }
}

impl Step {
    /// What weight decay leaves of a weight.
    fn keep(&self) -> f32 {
        (1.0 - decimal(self.lr) * decimal(self.opt.weight_decay)) as f32
    }
}

/// The f64 a short decimal constant such as 0.999 stands for, rather than the f32 nearest to it.
fn decimal(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::from(x))
}

/// ‖g‖₂, accumulated in f64 piece by piece.
pub fn norm(g: &[f32]) -> f32 {
    let partial: Vec<f64> =
        g.par_chunks(PIECE).map(|c| c.iter().map(|&v| f64::from(v) * f64::from(v)).sum()).collect();
    partial.iter().sum::<f64>().sqrt() as f32
}

/// `min(1, max_norm / (norm + 1e-6))`; 1 when `max_norm` is 0 (no clipping).
pub fn clip_factor(norm: f32, max_norm: f32) -> f32 {
    if max_norm > 0.0 { (max_norm / (norm + 1e-6)).min(1.0) } else { 1.0 }
}

/// What an update is to make of the gradients it is given.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gradients {
    /// One over the number of micro-batches whose sum they are.
    pub share: f32,
    /// The norm of their mean is clipped to this; 0: not.
    pub max_norm: f32,
}

impl Gradients {
    /// Those of one micro-batch.
    pub const fn of_one(max_norm: f32) -> Self {
        Self { share: 1.0, max_norm }
    }
    /// The norm of their mean.
    pub fn norm(self, g: &[f32]) -> f32 {
        norm(g) * self.share
    }
    /// What they are multiplied by where that is `norm`.
    pub fn factor(self, norm: f32) -> f32 {
        clip_factor(norm, self.max_norm) * self.share
    }
}

/// One update of all parameters: `sizes` lists `(values, weight decay applies)` in arena order.
pub fn update(step: &Step, sizes: &[(usize, bool)], w: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
    let mut at = 0;
    for &(n, decays) in sizes {
        let range = at..at + n;
        at += n;
        let keep = if decays { step.keep() } else { 1.0 };
        w[range.clone()]
            .par_chunks_mut(PIECE)
            .zip(g[range.clone()].par_chunks(PIECE))
            .zip(m[range.clone()].par_chunks_mut(PIECE))
            .zip(v[range].par_chunks_mut(PIECE))
            .for_each(|(((w, g), m), v)| update_piece(step, keep, w, g, m, v));
    }
}

/// `average ← keep·average + (1 − keep)·w`: the running average of the parameters (EMA).
pub fn average(keep: f32, w: &[f32], average: &mut [f32]) {
    average.par_chunks_mut(PIECE).zip(w.par_chunks(PIECE)).for_each(|(a, w)| {
        a.iter_mut().zip(w).for_each(|(a, w)| *a = keep * *a + (1.0 - keep) * w);
    });
}

fn update_piece(step: &Step, keep: f32, w: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
    let AdamW { beta1, beta2, eps, .. } = step.opt;
    let (one_minus_1, one_minus_2) = ((1.0 - decimal(beta1)) as f32, (1.0 - decimal(beta2)) as f32);
    for (((w, &g), m), v) in w.iter_mut().zip(g).zip(m).zip(v) {
        let g = g * step.clip;
        *w *= keep;
        *m += one_minus_1 * (g - *m);
        *v = beta2 * *v + one_minus_2 * (g * g);
        *w -= step.step_size * (*m / (v.sqrt() / step.root_correction + eps));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The formula of the module doc, in f64, three updates, with and without decay and clip.
    #[test]
    fn follows_its_definition() {
        let opt = AdamW { weight_decay: 0.1, ..AdamW::default() };
        let g = [0.3f32, -2.0, 1e-4, 0.0, 5.0];
        let (mut w, mut m, mut v) = ([1.0f32, -1.0, 0.5, 2.0, 0.0], [0f32; 5], [0f32; 5]);
        let (mut w64, mut m64, mut v64) = (w.map(f64::from), [0f64; 5], [0f64; 5]);
        let clip = clip_factor(norm(&g), 1.0);
        assert!((f64::from(clip) - 1.0 / (5.393_514_f64 + 1e-6)).abs() < 1e-6);
        for n in 1..=3 {
            update(&opt.at(n, 0.01, clip), &[(4, true), (1, false)], &mut w, &g, &mut m, &mut v);
            for i in 0..5 {
                let gi = f64::from(g[i]) * f64::from(clip);
                w64[i] *= if i < 4 { 1.0 - 0.01 * 0.1 } else { 1.0 };
                m64[i] = 0.9 * m64[i] + 0.1 * gi;
                v64[i] = 0.999 * v64[i] + 0.001 * gi * gi;
                let (mh, vh) =
                    (m64[i] / (1.0 - 0.9f64.powi(n as i32)), v64[i] / (1.0 - 0.999f64.powi(n as i32)));
                w64[i] -= 0.01 * mh / (vh.sqrt() + 1e-8);
                assert!((f64::from(w[i]) - w64[i]).abs() < 1e-6, "{i}: {} vs {}", w[i], w64[i]);
            }
        }
    }
}
