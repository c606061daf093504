//! Deep image structure and texture similarity (Ding et al., 2020).
//!
//! ```text
//! D(a, b) = 1 − Σ_stages Σ_c (α_c·l(ā, b̄) + β_c·s(a, b)) / Σ(α + β)
//! l = (2·ā·b̄ + 1e-6) / (ā² + b̄² + 1e-6)          of the means of a channel: texture
//! s = (2·cov(a, b) + 1e-6) / (var a + var b + 1e-6)   of its population moments: structure
//! ```
//! a and b are the two pictures themselves and the activations of VGG16 for them, its poolings smooth. Pictures are not
//! resized.

use std::path::Path;

use rayon::prelude::*;

use super::features::{Backbone, Features, plane};
use crate::data::Image;
use crate::engine::{Device, Tensor};
use crate::flux::weights::SafeFile;
use crate::{Error, Result};

/// ImageNet's mean and deviation.
const INPUT: ([f32; 3], [f32; 3]) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
const C: f64 = 1e-6;

/// The metric with its weights.
pub struct Dists {
    features: Features,
    /// α and β of every channel: the picture's, then each stage's; together 1.
    weights: Vec<[f64; 2]>,
}

impl Dists {
    /// Reads one safetensors file of torchvision's VGG16 (`features.N.weight`, `features.N.bias`) with `alpha` and `beta`.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let file = SafeFile::open(path)?;
        let backbone = Backbone::of(&file)?;
        if backbone != Backbone::Vgg16 {
            let detail = format!("holds the weights of {}; DISTS is made of VGG16", backbone.name());
            return Err(Error::format(file.path(), detail));
        }
        let features = Features::load(&file, backbone, INPUT, true)?;
        let channels = 3 + backbone.channels().iter().sum::<usize>();
        let read = |name: &str| file.shaped(name, &[1, channels, 1, 1], &Device::cpu());
        let (alpha, beta) = (read("alpha")?, read("beta")?);
        let pairs = alpha.f32().iter().zip(beta.f32()).map(|(&a, &b)| [f64::from(a), f64::from(b)]);
        let sum: f64 = pairs.clone().flatten().sum();
        if sum <= 0.0 {
            return Err(Error::format(
                file.path(),
                format!("`alpha` and `beta` sum to {sum}, wanted above 0"),
            ));
        }
        Ok(Self { features, weights: pairs.map(|p| p.map(|v| v / sum)).collect() })
    }

    /// How different two pictures of one size look; 0 for equal ones. Values are expected in [0, 1].
    pub fn distance(&self, a: &Image, b: &Image) -> Result<f64> {
        let mut similar = 0.0;
        for (c, weights) in self.weights[..3].iter().enumerate() {
            similar += similarity(a.plane(c), b.plane(c), weights);
        }
        let mut first = 3;
        self.features.each_stage([a, b], |_, x| {
            let channels = x.shape()[1];
            similar += stage(x, &self.weights[first..first + channels]);
            first += channels;
            Ok(())
        })?;
        Ok(1.0 - similar)
    }
}

fn stage(x: &Tensor, weights: &[[f64; 2]]) -> f64 {
    let of = |(c, w): (usize, &[f64; 2])| similarity(plane(x, 0, c), plane(x, 1, c), w);
    let channels: Vec<f64> = weights.par_iter().enumerate().map(of).collect();
    channels.iter().sum()
}

/// α·l + β·s of one channel.
fn similarity(a: &[f32], b: &[f32], [alpha, beta]: &[f64; 2]) -> f64 {
    let n = a.len() as f64;
    let mean = |x: &[f32]| x.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
    let (ma, mb) = (mean(a), mean(b));
    let mut moments = [0f64; 3];
    for (&a, &b) in a.iter().zip(b) {
        let (a, b) = (f64::from(a) - ma, f64::from(b) - mb);
        moments[0] += a * a;
        moments[1] += b * b;
        moments[2] += a * b;
    }
    let [va, vb, cov] = moments.map(|m| m / n);
    let texture = (2.0 * ma * mb + C) / (ma * ma + mb * mb + C);
    alpha * texture + beta * (2.0 * cov + C) / (va + vb + C)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(n: usize, step: f32, around: f32) -> Vec<f32> {
        (0..n).map(|i| around + (step * i as f32).sin()).collect()
    }

    #[test]
    fn a_channel_is_compared_by_mean_and_by_moments() {
        let weights = [0.25, 0.5];
        let (a, b) = (wave(1000, 0.3, 2.0), wave(1000, 0.3, -1.0));
        assert!((similarity(&a, &a, &weights) - 0.75).abs() < 1e-12);
        // The same structure about another mean: 2·2·(−1) / (4 + 1), but for the waves' own means.
        let [texture, structure] = [similarity(&a, &b, &[1.0, 0.0]), similarity(&a, &b, &[0.0, 1.0])];
        assert!((texture + 0.8).abs() < 1e-2 && (structure - 1.0).abs() < 1e-5, "{texture}, {structure}");
        // Upside down about the same mean: the structure's opposite.
        let c: Vec<f32> = a.iter().map(|v| 4.0 - v).collect();
        assert!((similarity(&a, &c, &[0.0, 1.0]) + 1.0).abs() < 1e-5);
        // Nothing is like nothing.
        assert_eq!(similarity(&[0.0; 9], &[0.0; 9], &weights), 0.75);
    }
}
