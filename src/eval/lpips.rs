//! Learned perceptual image patch similarity (Zhang et al., 2018), version 0.1.
//!
//! ```text
//! d(a, b) = Σ_stages mean_positions Σ_c w_c·(â_c − b̂_c)²,   â = a / (√(Σ_c a_c²) + 1e-10) at every position
//! ```
//! a and b are a network's activations for the two pictures; AlexNet's or VGG16's, with the heads w that belong to it.

use std::path::Path;

use rayon::prelude::*;

use super::features::{Backbone, Features, plane};
use crate::Result;
use crate::data::Image;
use crate::engine::{Device, Tensor};
use crate::flux::weights::SafeFile;

/// Of the network's input, for a picture in [0, 1]: the published (−.030, −.088, −.188) and (.458, .448, .450) are for
/// one in [−1, 1].
const INPUT: ([f32; 3], [f32; 3]) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
const EPS: f64 = 1e-10;
/// Positions of a piece of the mean.
const PIECE: usize = 1024;

/// The metric with its weights.
pub struct Lpips {
    features: Features,
    /// w of each stage.
    heads: Vec<Vec<f32>>,
}

impl Lpips {
    /// Reads a safetensors file of torchvision's `features.N.weight`, `features.N.bias` and the heads `lin0.weight` …
    /// `lin4.weight`. Which network it is, its tensors say.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let file = SafeFile::open(path)?;
        let backbone = Backbone::of(&file)?;
        let features = Features::load(&file, backbone, INPUT, false)?;
        let head = |(k, channels): (usize, usize)| {
            let w = file.shaped(&format!("lin{k}.weight"), &[1, channels, 1, 1], &Device::cpu())?;
            Ok(w.f32().to_vec())
        };
        let heads = backbone.channels().into_iter().enumerate().map(head).collect::<Result<_>>()?;
        Ok(Self { features, heads })
    }

    /// The network.
    pub fn backbone(&self) -> Backbone {
        self.features.backbone()
    }

    /// How different two pictures of one size look; 0 for equal ones. Values are expected in [0, 1].
    pub fn distance(&self, a: &Image, b: &Image) -> Result<f64> {
        let mut sum = 0.0;
        self.features.each_stage([a, b], |k, x| {
            sum += stage(x, &self.heads[k]);
            Ok(())
        })?;
        Ok(sum)
    }
}

/// The mean over positions, piece by piece in their order.
fn stage(x: &Tensor, head: &[f32]) -> f64 {
    let n = x.shape()[2] * x.shape()[3];
    let piece = |first: usize| {
        let range = first..n.min(first + PIECE);
        let mut scale = [0, 1].map(|_| vec![0f64; range.len()]);
        for (s, scale) in scale.iter_mut().enumerate() {
            for c in 0..head.len() {
                let plane = &plane(x, s, c)[range.clone()];
                scale.iter_mut().zip(plane).for_each(|(q, &v)| *q += f64::from(v) * f64::from(v));
            }
            scale.iter_mut().for_each(|q| *q = 1.0 / (q.sqrt() + EPS));
        }
        let mut sum = 0.0;
        for (c, &w) in head.iter().enumerate() {
            let (a, b) = (&plane(x, 0, c)[range.clone()], &plane(x, 1, c)[range.clone()]);
            let terms = a.iter().zip(b).zip(scale[0].iter().zip(&scale[1]));
            let square = terms.map(|((&a, &b), (p, q))| (f64::from(a) * p - f64::from(b) * q).powi(2));
            sum += f64::from(w) * square.sum::<f64>();
        }
        sum
    };
    let pieces: Vec<f64> = (0..n.div_ceil(PIECE)).into_par_iter().map(|i| piece(i * PIECE)).collect();
    pieces.iter().sum::<f64>() / n as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flux::weights::write_safetensors;
    use crate::ops::random;
    use std::collections::BTreeMap;

    /// More positions than a piece has, against the formula as it stands.
    #[test]
    fn a_stage_is_the_formula() {
        let cpu = Device::cpu_poisoned();
        let (c, h, w) = (5, 37, 41);
        let x = random(&cpu, &[2, c, h, w], 1, 2.0);
        let head = [0.3, 0.0, 1.5, 0.25, 0.75];
        let at = |s: usize, k: usize, i: usize| f64::from(x.f32()[(s * c + k) * h * w + i]);
        let mut want = 0.0;
        for i in 0..h * w {
            let norm = |s: usize| (0..c).map(|k| at(s, k, i).powi(2)).sum::<f64>().sqrt() + 1e-10;
            let [p, q] = [0, 1].map(norm);
            for (k, &w) in head.iter().enumerate() {
                want += f64::from(w) * (at(0, k, i) / p - at(1, k, i) / q).powi(2);
            }
        }
        want /= (h * w) as f64;
        assert!((stage(&x, &head) / want - 1.0).abs() < 1e-12);
        // Where nothing is active nothing differs.
        let still = Tensor::zeros(&cpu, &[2, c, 3, 3]).unwrap();
        assert_eq!(stage(&still, &head), 0.0);
    }

    #[test]
    fn what_holds_no_network_is_refused_by_name() {
        let (cpu, dir) = (Device::cpu(), tempfile::tempdir().unwrap());
        let path = dir.path().join("w.safetensors");
        let refused = |name: &str| {
            let tensor = (name.to_owned(), Tensor::zeros(&cpu, &[256, 256, 3, 3]).unwrap());
            write_safetensors(&path, &BTreeMap::new(), &[tensor]).unwrap();
            Lpips::load(&path).err().expect("not a network").to_string()
        };
        let e = refused("lin0.weight");
        assert!(e.contains("`features.28.weight` (VGG16)") && e.contains("`features.10.weight`"), "{e}");
        assert!(refused("features.10.weight").contains("holds no tensor `features.0.weight`"));
    }
}
