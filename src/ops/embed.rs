//! What positions and noise levels are turned into before any weight sees them. Not ops: nothing here is trained.
//!
//! ```text
//! sinusoid(v)[j] = cos(v·ωⱼ) for j < 128, sin(v·ω₍ⱼ₋₁₂₈₎) after;   ωᵢ = exp(−ln 10⁴ · i / 128)
//! rope: angle of token n, pair j of axis a = ids[n][a] · θ^(−2j/dₐ), the axes' pairs one after the other
//! ```
//! The sinusoid takes every step in f32, in the order of the f32 reference (at v = 999 the frequencies' rounding moves
//! the angle by up to 3e-5); each elementary function is the f64 one rounded, so the bits do not depend on a platform's
//! f32 library. RoPE is f64 throughout and rounded once.

use crate::engine::{Device, Tensor};
use crate::{Error, Result};
use sha2::{Digest, Sha256};

/// Width of the sinusoid.
pub const WIDTH: usize = 256;

/// `[n, 256]`: the sinusoidal embedding of `n` values (1000·σ, 1000·guidance).
pub fn sinusoid(device: &Device, values: &[f32]) -> Result<Tensor> {
    Tensor::from_slice(device, &[values.len(), WIDTH], &sinusoids(values))
}

/// The same for values that do not change from step to step: a CUDA device keeps it.
pub fn sinusoid_constant(device: &Device, values: &[f32]) -> Result<Tensor> {
    Tensor::constant(device, format!("sinusoid {values:?}"), &[values.len(), WIDTH], || sinusoids(values))
}

/// The embeddings of `values`, one row of 256 each.
pub fn sinusoids(values: &[f32]) -> Vec<f32> {
    const HALF: usize = WIDTH / 2;
    let minus_ln = -(10_000f64.ln()) as f32;
    let frequencies: Vec<f32> =
        (0..HALF).map(|i| f64::from(minus_ln * i as f32 / HALF as f32).exp() as f32).collect();
    let mut out = vec![0.0; values.len() * WIDTH];
    for (row, &v) in out.chunks_exact_mut(WIDTH).zip(values) {
        let (cos, sin) = row.split_at_mut(HALF);
        for ((c, s), &f) in cos.iter_mut().zip(sin).zip(&frequencies) {
            let angle = f64::from(v * f);
            (*c, *s) = (angle.cos() as f32, angle.sin() as f32);
        }
    }
    out
}

/// The noise levels of a batch: as the flow wants them, and as the model is given them.
#[derive(Clone, Debug)]
pub struct NoiseLevels {
    /// σ of each sample, `[B]`.
    pub sigma: Tensor,
    /// The sinusoidal embedding of 1000·σ, `[B, 256]`.
    pub embedding: Tensor,
}

impl NoiseLevels {
    /// Those of `sigma`.
    pub fn new(device: &Device, sigma: &[f32]) -> Result<Self> {
        let embedding = sinusoid(device, &Self::times(sigma))?;
        Ok(Self { sigma: Tensor::from_slice(device, &[sigma.len()], sigma)?, embedding })
    }
    /// What the embedding is of: 1000·σ.
    pub fn times(sigma: &[f32]) -> Vec<f32> {
        sigma.iter().map(|v| v * 1000.0).collect()
    }
    /// Those of several batches, one after the other.
    pub fn stack(parts: &[&Self]) -> Result<Self> {
        let all = |f: fn(&Self) -> &Tensor| Tensor::stack(&parts.iter().map(|p| f(p)).collect::<Vec<_>>());
        Ok(Self { sigma: all(|p| &p.sigma)?, embedding: all(|p| &p.embedding)? })
    }
    /// How many samples.
    pub fn len(&self) -> usize {
        self.sigma.len()
    }
    /// True for no sample.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Cosines and sines of the rotary embedding, one row of `half` angles per token.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeTable {
    /// `[tokens, half]`.
    pub cos: Vec<f32>,
    /// `[tokens, half]`.
    pub sin: Vec<f32>,
    /// Angles per token: half the head's width.
    pub half: usize,
    /// What the table was made from, as a hash: equal tables have equal keys.
    pub(crate) key: String,
}

impl RopeTable {
    /// The table of tokens at positions `ids`; `axes` says how much of the head's width each of the three id
    /// components rotates (16, 56, 56 in FLUX).
    pub fn new(ids: &[[f32; 3]], axes: &[usize], theta: f64) -> Result<Self> {
        if axes.len() != 3 || axes.iter().any(|d| d % 2 != 0) {
            return Err(Error::shape("rope", format!("axes are {axes:?}, wanted three even widths")));
        }
        if !(theta > 0.0 && theta.is_finite()) {
            return Err(Error::shape("rope", format!("theta is {theta}, wanted a positive number")));
        }
        let frequencies: Vec<(usize, f64)> = axes
            .iter()
            .enumerate()
            .flat_map(|(a, &d)| (0..d / 2).map(move |i| (a, 1.0 / theta.powf(2.0 * i as f64 / d as f64))))
            .collect();
        let angles = ids.iter().flat_map(|id| frequencies.iter().map(|&(a, f)| f64::from(id[a]) * f));
        let (cos, sin) = angles.map(|x| (x.cos() as f32, x.sin() as f32)).unzip();
        let mut made_from = Sha256::new();
        made_from.update(format!("{axes:?} {theta}"));
        ids.iter().flatten().for_each(|v| made_from.update(v.to_le_bytes()));
        let key = made_from.finalize().iter().map(|b| format!("{b:02x}")).collect();
        Ok(Self { cos, sin, half: frequencies.len(), key })
    }

    /// The table of the first `tokens` tokens.
    pub fn leading(&self, tokens: usize) -> Self {
        let n = tokens * self.half;
        let key = format!("{} of {}", tokens, self.key);
        Self { cos: self.cos[..n].to_vec(), sin: self.sin[..n].to_vec(), half: self.half, key }
    }

    /// Tokens it covers.
    pub fn tokens(&self) -> usize {
        self.cos.len() / self.half.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The angle's error: half an ulp of the exponent (≤ 9.3) and of the frequency, and of the product.
    #[test]
    fn the_sinusoid_is_the_formula_within_its_rounding() {
        let values = [0.0, 1.0, 3.5, 250.0, 999.0, 1000.0];
        let t = sinusoid(&Device::cpu_poisoned(), &values).unwrap();
        assert_eq!(t.shape(), [6, 256]);
        let mut worst = 0f64;
        for (row, &v) in t.f32().chunks_exact(256).zip(&values) {
            for i in 0..128 {
                let exponent = -(10_000f64.ln()) * i as f64 / 128.0;
                let angle = f64::from(v) * exponent.exp();
                let e = f64::from(f32::EPSILON);
                let tolerance = angle * e * (exponent.abs() + 2.0) + e;
                let error = (f64::from(row[i]) - angle.cos())
                    .abs()
                    .max((f64::from(row[128 + i]) - angle.sin()).abs());
                assert!(error <= tolerance, "value {v}, frequency {i}: {error:e} > {tolerance:e}");
                worst = worst.max(error);
            }
        }
        assert!(worst > 1e-6 && worst < 1e-4, "f32 frequencies are not exact: {worst:e}");
    }

    #[test]
    fn rope_angles_are_the_formula_rounded_once() {
        let ids = [[0.0, 0.0, 0.0], [0.0, 3.0, 61.0], [1.0, 63.0, 5.0]];
        let t = RopeTable::new(&ids, &[16, 56, 56], 1e4).unwrap();
        assert_eq!((t.half, t.tokens(), t.cos.len()), (64, 3, 192));
        for (n, id) in ids.iter().enumerate() {
            for j in 0..64 {
                let (axis, i, d) = match j {
                    0..8 => (0, j, 16.0),
                    8..36 => (1, j - 8, 56.0),
                    _ => (2, j - 36, 56.0),
                };
                let angle = f64::from(id[axis]) / 10_000f64.powf(2.0 * i as f64 / d);
                assert!((f64::from(t.cos[n * 64 + j]) - angle.cos()).abs() < 7e-8);
                assert!((f64::from(t.sin[n * 64 + j]) - angle.sin()).abs() < 7e-8);
            }
        }
        assert!(RopeTable::new(&ids, &[16, 55, 56], 1e4).unwrap_err().to_string().contains("[16, 55, 56]"));
        assert!(RopeTable::new(&ids, &[16, 56], 1e4).is_err());
        assert!(RopeTable::new(&ids, &[16, 56, 56], 0.0).is_err());
    }
}
