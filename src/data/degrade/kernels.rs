//! Blur kernels, computed in f64: bivariate Gaussians and their two generalisations, and the circular low-pass ("sinc")
//! that makes ringing.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

/// The six families a blur is drawn from. With `q = gᵀ Σ⁻¹ g` at the offset `g` from the centre:
/// `exp(−q/2)`, generalized `exp(−q^β/2)`, plateau `1/(1 + q^β)`; isotropic ones have one σ and no angle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the names say it")]
pub enum Kind {
    Iso,
    Aniso,
    GeneralizedIso,
    GeneralizedAniso,
    PlateauIso,
    PlateauAniso,
}

impl Kind {
    /// All of them, in the order of their probabilities in a configuration.
    pub const ALL: [Self; 6] = [
        Self::Iso,
        Self::Aniso,
        Self::GeneralizedIso,
        Self::GeneralizedAniso,
        Self::PlateauIso,
        Self::PlateauAniso,
    ];

    /// Whether one σ says it all.
    pub fn isotropic(self) -> bool {
        matches!(self, Self::Iso | Self::GeneralizedIso | Self::PlateauIso)
    }
}

/// A kernel, by the numbers that make it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Blur {
    /// Its family.
    pub kind: Kind,
    /// Taps on a side, odd.
    pub size: usize,
    /// σ along the first axis, pixels.
    pub sigma_x: f64,
    /// σ along the second axis, pixels; that of the first where the family is isotropic.
    pub sigma_y: f64,
    /// Angle from the picture's x axis to the first one, radians.
    pub theta: f64,
    /// The exponent, where the family has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beta: Option<f64>,
}

impl Blur {
    /// The taps, `size`×`size` row by row, summing to 1.
    pub fn weights(&self) -> Vec<f64> {
        let (sin, cos) = if self.kind.isotropic() { (0.0, 1.0) } else { self.theta.sin_cos() };
        let (a, b) = (self.sigma_x.powi(-2), self.second_sigma().powi(-2));
        // Σ⁻¹ = R diag(σx⁻², σy⁻²) Rᵀ
        let (xx, yy, xy) =
            (a * cos * cos + b * sin * sin, a * sin * sin + b * cos * cos, (a - b) * sin * cos);
        let beta = self.beta.unwrap_or(1.0);
        let tap = |y: f64, x: f64| {
            let q = xx * x * x + 2.0 * xy * x * y + yy * y * y;
            match self.kind {
                Kind::Iso | Kind::Aniso => (-0.5 * q).exp(),
                Kind::GeneralizedIso | Kind::GeneralizedAniso => (-0.5 * q.powf(beta)).exp(),
                Kind::PlateauIso | Kind::PlateauAniso => 1.0 / (1.0 + q.powf(beta)),
            }
        };
        normalised(square(self.size, tap))
    }

    /// The taps of one axis, where the kernel is their product with themselves: a round Gaussian.
    pub fn axis(&self) -> Option<Vec<f64>> {
        let round = self.kind == Kind::Iso;
        round.then(|| gaussian(self.size, self.sigma_x))
    }

    fn second_sigma(&self) -> f64 {
        if self.kind.isotropic() { self.sigma_x } else { self.sigma_y }
    }
}

/// The ideal circular low-pass, cut off by its square: it rings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sinc {
    /// Taps on a side, odd.
    pub size: usize,
    /// The highest frequency that passes, radians a pixel; π lets everything along an axis pass.
    pub cutoff: f64,
}

impl Sinc {
    /// The taps `ω·J₁(ω·r)/(2π·r)`, `size`×`size` row by row, summing to 1.
    pub fn weights(&self) -> Vec<f64> {
        let cutoff = self.cutoff;
        normalised(square(self.size, |y, x| {
            let r = y.hypot(x);
            if r == 0.0 {
                cutoff * cutoff / (4.0 * PI)
            } else {
                cutoff * libm::j1(cutoff * r) / (2.0 * PI * r)
            }
        }))
    }
}

/// `size` taps of a Gaussian about their middle, summing to 1.
pub fn gaussian(size: usize, sigma: f64) -> Vec<f64> {
    let middle = 0.5 * (size as f64 - 1.0);
    normalised((0..size).map(|i| (-0.5 * ((i as f64 - middle) / sigma).powi(2)).exp()).collect())
}

fn square(size: usize, tap: impl Fn(f64, f64) -> f64) -> Vec<f64> {
    let middle = 0.5 * (size as f64 - 1.0);
    (0..size * size).map(|i| tap((i / size) as f64 - middle, (i % size) as f64 - middle)).collect()
}

fn normalised(mut taps: Vec<f64>) -> Vec<f64> {
    let sum: f64 = taps.iter().sum();
    taps.iter_mut().for_each(|t| *t /= sum);
    taps
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blur(kind: Kind, sigma_x: f64, sigma_y: f64, theta: f64) -> Blur {
        Blur { kind, size: 21, sigma_x, sigma_y, theta, beta: Some(1.0) }
    }

    /// Σ w·y², Σ w·x², Σ w·x·y.
    fn moments(weights: &[f64]) -> [f64; 3] {
        let mut m = [0.0; 3];
        for (i, w) in weights.iter().enumerate() {
            let (y, x) = ((i / 21) as f64 - 10.0, (i % 21) as f64 - 10.0);
            m.iter_mut().zip([y * y, x * x, x * y]).for_each(|(m, v)| *m += w * v);
        }
        m
    }

    /// A Gaussian's second moments are its covariance, R diag(σx², σy²) Rᵀ.
    #[test]
    fn a_gaussian_has_its_covariance() {
        let (sx, sy, theta) = (2.0f64, 1.0f64, 0.7f64);
        let (s, c) = theta.sin_cos();
        let [yy, xx, xy] = moments(&blur(Kind::Aniso, sx, sy, theta).weights());
        assert!((xx - (sx * sx * c * c + sy * sy * s * s)).abs() < 1e-4, "{xx}");
        assert!((yy - (sx * sx * s * s + sy * sy * c * c)).abs() < 1e-4, "{yy}");
        assert!((xy - (sx * sx - sy * sy) * s * c).abs() < 1e-4, "{xy}");
    }

    #[test]
    fn families_meet_where_they_must() {
        // β = 1 of the generalised one is the Gaussian, and equal σ make the angle void
        let plain = blur(Kind::Aniso, 1.5, 1.5, 0.3).weights();
        for other in [blur(Kind::Iso, 1.5, 0.1, 1.0), blur(Kind::GeneralizedAniso, 1.5, 1.5, -2.0)] {
            let worst = plain.iter().zip(other.weights()).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(worst < 1e-15, "{other:?}: {worst:e}");
        }
        // the plateau's tap beside the centre, 1/(1 + 1/σ²), against the centre's 1
        let plateau = blur(Kind::PlateauIso, 2.0, 0.0, 0.0).weights();
        assert!((plateau[220 + 1] / plateau[220] - 0.8).abs() < 1e-12);
        // a round Gaussian is the product of its axes
        let round = blur(Kind::Iso, 1.5, 1.5, 0.0);
        let axis = round.axis().unwrap();
        let product = (0..441).map(|i| axis[i / 21] * axis[i % 21]);
        assert!(round.weights().iter().zip(product).all(|(a, b)| (a - b).abs() < 1e-16));
        assert!(blur(Kind::PlateauIso, 1.0, 1.0, 0.0).axis().is_none());
    }

    /// What a sinc passes: everything well below the cut-off, next to nothing well above. Its square cuts it short, so
    /// the bounds are those of a series cut at ten samples.
    #[test]
    fn a_sinc_is_a_low_pass() {
        let weights = Sinc { size: 21, cutoff: PI / 2.0 }.weights();
        let gain = |omega: f64| -> f64 {
            weights.iter().enumerate().map(|(i, w)| w * (omega * ((i % 21) as f64 - 10.0)).cos()).sum()
        };
        assert!((gain(0.0) - 1.0).abs() < 1e-12);
        assert!((gain(0.6) - 1.0).abs() < 0.1 && gain(2.6).abs() < 0.1, "{} {}", gain(0.6), gain(2.6));
        assert!(weights.iter().any(|w| *w < 0.0));
    }
}
