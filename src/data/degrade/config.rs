//! What Real-ESRGAN's second-order degradation draws from: every probability and range, under the names of its training
//! files (`blur_sigma`, `noise_range`, …).

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::jpeg::Codec;
use super::kernels::Kind;
use super::usm::Sharpen;
use crate::error::did_you_mean;
use crate::{Error, Result};

/// Low and high end, both included.
pub type Range = [f64; 2];

/// Sizes of kernels reach up to this.
const LARGEST_KERNEL: usize = 51;

/// The degradation: sharpen the target, then twice blur, resize, noise and JPEG, the second time at the end with a
/// low-pass that rings; or, by `light_prob`, only shrink and compress.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RealEsrgan {
    /// The bad picture is smaller by this factor on each side.
    pub scale: usize,
    /// How JPEG is done: "file" writes and reads one, "diff" is the arithmetic of basicsr's DiffJPEG.
    pub jpeg: Codec,
    /// Probability of the light path: shrink, JPEG, nothing else.
    pub light_prob: f64,
    /// JPEG quality of the light path.
    pub light_jpeg_range: Range,
    /// Probability that, at the end, the picture gets its size before JPEG and not after it.
    pub resize_first_prob: f64,
    /// Probability of the low-pass at the end.
    pub final_sinc_prob: f64,
    /// Sides of its kernel, odd.
    pub final_kernel_size: [usize; 2],
    /// The lowest of its cut-offs, radians a pixel; the highest is π.
    pub final_sinc_cutoff: f64,
    /// Unsharp masking of the target.
    pub sharpen: Sharpen,
    /// The first time.
    pub first: Stage,
    /// The second time.
    pub second: Stage,
}

/// Blur, resize, noise and JPEG, once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// Probability of a blur at all.
    pub blur_prob: f64,
    /// Sides of a kernel, odd.
    pub kernel_size: [usize; 2],
    /// Probability that the blur is a sinc.
    pub sinc_prob: f64,
    /// The lowest cut-off of sinc kernels below 13 taps a side, and from there; the highest is π.
    pub sinc_cutoff: [f64; 2],
    /// Probabilities of the other families: iso, aniso, generalized iso and aniso, plateau iso and aniso.
    pub kernel_prob: [f64; 6],
    /// σ, in pixels.
    pub blur_sigma: Range,
    /// β of the generalized ones: half of them between the low end and 1, half between 1 and the high end.
    pub betag_range: Range,
    /// β of the plateaus, likewise.
    pub betap_range: Range,
    /// Probabilities of enlarging and of shrinking.
    pub resize_prob: [f64; 2],
    /// The smallest and the largest factor of it.
    pub resize_range: Range,
    /// Probability that noise is Gaussian; else it is Poisson's.
    pub gaussian_noise_prob: f64,
    /// σ of the Gaussian noise, in 1/255.
    pub noise_range: Range,
    /// Strength of the Poisson noise; 1 is that of its photons.
    pub poisson_scale_range: Range,
    /// Probability that noise is the same in all channels.
    pub gray_noise_prob: f64,
    /// JPEG quality.
    pub jpeg_range: Range,
}

/// How strong each part is: 1 is the full degradation, 0 its mildest form.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Strengths {
    /// Width of the blurs.
    pub blur: f64,
    /// Everything of the second time, and how rare the light path is.
    pub second: f64,
    /// How frequent low-passes that ring are.
    pub ringing: f64,
    /// How frequent and how far the resizes before the last one are.
    pub resize: f64,
    /// Noise.
    pub noise: f64,
    /// JPEG.
    pub jpeg: f64,
}

impl Default for Strengths {
    fn default() -> Self {
        Self { blur: 1.0, second: 1.0, ringing: 1.0, resize: 1.0, noise: 1.0, jpeg: 1.0 }
    }
}

impl Strengths {
    /// The names, as they are written.
    pub const NAMES: [&str; 6] = ["blur", "second", "ringing", "resize", "noise", "jpeg"];

    /// Sets the one called `name`; `None` if there is none.
    pub fn set(&mut self, name: &str, value: f64) -> Option<()> {
        let all = [
            &mut self.blur,
            &mut self.second,
            &mut self.ringing,
            &mut self.resize,
            &mut self.noise,
            &mut self.jpeg,
        ];
        let (_, to) = Self::NAMES.iter().zip(all).find(|(n, _)| **n == name)?;
        *to = value;
        Some(())
    }
}

impl Default for RealEsrgan {
    fn default() -> Self {
        Self::at(&Strengths::default())
    }
}

impl RealEsrgan {
    /// The degradation at these strengths, ×4.
    pub fn at(strengths: &Strengths) -> Self {
        let Strengths { blur: b, second: s, ringing: g, resize: r, noise: n, jpeg: j } = *strengths;
        // From strength 0 to strength 1, to nine decimals: what is printed is what people wrote.
        let l = |strength: f64, mild: f64, full: f64| ((mild + (full - mild) * strength) * 1e9).round() / 1e9;
        let quality = |mild: Range, full: Range, apart: f64| {
            let lo = l(j, mild[0], full[0]);
            [lo, l(j, mild[1], full[1]).max(lo + apart)]
        };
        let final_jpeg = quality([78.0, 97.0], [52.0, 90.0], 3.0);
        let first = Stage {
            blur_prob: 1.0,
            kernel_size: [7, 21],
            sinc_prob: l(g, 0.0, 0.06),
            sinc_cutoff: [PI / 3.0, PI / 5.0],
            kernel_prob: [0.42, 0.26, 0.14, 0.05, 0.09, 0.04],
            blur_sigma: [0.2, l(b, 1.15, 2.35)],
            betag_range: [0.45, l(b, 2.0, 3.0)],
            betap_range: [1.0, l(b, 1.55, 2.0)],
            resize_prob: [l(r, 0.0, 0.28), l(r, 0.0, 0.38)],
            resize_range: [l(r, 0.55, 0.28), l(r, 1.25, 1.65)],
            gaussian_noise_prob: l(n, 0.03, 0.16),
            noise_range: [0.5, l(n, 1.5, 5.5)],
            poisson_scale_range: [0.01, l(n, 0.08, 0.5)],
            gray_noise_prob: l(n, 0.66, 0.90).min(0.88),
            jpeg_range: quality([74.0, 96.0], [48.0, 88.0], 4.0),
        };
        let second = Stage {
            blur_prob: l(s, 0.22, 0.55),
            sinc_prob: l(g, 0.0, 0.05),
            blur_sigma: [0.15, l(b * s, 0.85, 1.75)],
            resize_prob: [l(r * s, 0.0, 0.18), l(r * s, 0.0, 0.28)],
            resize_range: [l(r * s, 0.68, 0.48), l(r * s, 1.12, 1.32)],
            gaussian_noise_prob: l(n * s, 0.02, 0.10),
            noise_range: [0.5, l(n * s, 1.2, 4.0)],
            poisson_scale_range: [0.01, l(n * s, 0.06, 0.32)],
            gray_noise_prob: l(n * s, 0.606, 0.836).min(0.88),
            jpeg_range: final_jpeg,
            ..first.clone()
        };
        Self {
            scale: 4,
            jpeg: Codec::File,
            light_prob: l(s, 0.50, 0.20),
            light_jpeg_range: final_jpeg,
            resize_first_prob: 0.5,
            final_sinc_prob: l(g, 0.32, 0.78),
            final_kernel_size: [7, 21],
            final_sinc_cutoff: PI / 3.0,
            sharpen: Sharpen::default(),
            first,
            second,
        }
    }

    /// With the values of `table` in the place of its own; `Err` names the first that is unknown or of the wrong type.
    pub fn overwritten(&self, table: &Table) -> Result<Self, String> {
        let own = Table::try_from(self).map_err(|e| e.to_string())?;
        let known = leaves("", &own);
        let mut out = self.clone();
        for (name, value) in leaves("", table) {
            if !known.iter().any(|(n, _)| *n == name) {
                let hint = did_you_mean(&name, known.iter().map(|(n, _)| n.as_str()));
                return Err(format!("unknown key `{name}`{hint}"));
            }
            let mut all = Table::try_from(&out).map_err(|e| e.to_string())?;
            place(&mut all, &name, value.clone());
            out = all.try_into().map_err(|e: toml::de::Error| {
                format!("{name} = {value}: {}", e.message().lines().next().unwrap_or_default())
            })?;
        }
        Ok(out)
    }

    /// Refuses ranges that are reversed or beyond what the operations accept, and probabilities that are none.
    pub fn check(&self) -> Result<()> {
        self.wrong().map_or(Ok(()), |why| Err(Error::Usage(format!("degradation: {why}"))))
    }

    fn wrong(&self) -> Option<String> {
        let usm = &self.sharpen;
        if !(1..=16).contains(&self.scale) {
            return Some(format!("scale = {} is outside 1…16", self.scale));
        }
        if !(1..=255).contains(&usm.radius) {
            return Some(format!("sharpen.radius = {} is outside 1…255", usm.radius));
        }
        [("first", &self.first), ("second", &self.second)]
            .into_iter()
            .find_map(|(name, stage)| stage.wrong().map(|why| format!("{name}.{why}")))
            .or_else(|| probability("light_prob", &[self.light_prob]))
            .or_else(|| probability("resize_first_prob", &[self.resize_first_prob]))
            .or_else(|| probability("final_sinc_prob", &[self.final_sinc_prob]))
            .or_else(|| range("light_jpeg_range", self.light_jpeg_range, [1.0, 100.0]))
            .or_else(|| sizes("final_kernel_size", self.final_kernel_size))
            .or_else(|| range("final_sinc_cutoff", [self.final_sinc_cutoff, PI], [0.1, PI]))
            .or_else(|| range("sharpen.amount", [usm.amount; 2], [0.0, 10.0]))
            .or_else(|| range("sharpen.threshold", [usm.threshold; 2], [0.0, 255.0]))
    }
}

impl Stage {
    fn wrong(&self) -> Option<String> {
        let [small, large] = self.sinc_cutoff;
        probability("blur_prob", &[self.blur_prob])
            .or_else(|| sizes("kernel_size", self.kernel_size))
            .or_else(|| probability("sinc_prob", &[self.sinc_prob]))
            .or_else(|| range("sinc_cutoff", [small, PI], [0.1, PI]))
            .or_else(|| range("sinc_cutoff", [large, PI], [0.1, PI]))
            .or_else(|| families(&self.kernel_prob))
            .or_else(|| range("blur_sigma", self.blur_sigma, [0.05, 50.0]))
            .or_else(|| about_one("betag_range", self.betag_range))
            .or_else(|| about_one("betap_range", self.betap_range))
            .or_else(|| probability("resize_prob", &self.resize_prob))
            .or_else(|| about_one("resize_range", self.resize_range))
            .or_else(|| probability("gaussian_noise_prob", &[self.gaussian_noise_prob]))
            .or_else(|| range("noise_range", self.noise_range, [0.0, 255.0]))
            .or_else(|| range("poisson_scale_range", self.poisson_scale_range, [0.0, 100.0]))
            .or_else(|| probability("gray_noise_prob", &[self.gray_noise_prob]))
            .or_else(|| range("jpeg_range", self.jpeg_range, [1.0, 100.0]))
    }
}

/// Every value below `table`, by its dotted name.
fn leaves(above: &str, table: &Table) -> Vec<(String, Value)> {
    let named = |key: &String| if above.is_empty() { key.clone() } else { format!("{above}.{key}") };
    let below = |(key, value): (&String, &Value)| match value {
        Value::Table(inner) => leaves(&named(key), inner),
        other => vec![(named(key), other.clone())],
    };
    table.iter().flat_map(below).collect()
}

fn place(table: &mut Table, name: &str, value: Value) {
    match name.split_once('.') {
        Some((key, rest)) => {
            if let Some(Value::Table(inner)) = table.get_mut(key) {
                place(inner, rest, value);
            }
        }
        None => {
            table.insert(name.to_owned(), value);
        }
    }
}

fn range(name: &str, [lo, hi]: Range, [least, most]: Range) -> Option<String> {
    let fits = least <= lo && lo <= hi && hi <= most;
    (!fits).then(|| format!("{name} = [{lo}, {hi}] is not a range low…high within {least}…{most}"))
}

/// A range that both shrinks and enlarges.
fn about_one(name: &str, [lo, hi]: Range) -> Option<String> {
    let fits = (0.05..=1.0).contains(&lo) && (1.0..=20.0).contains(&hi);
    (!fits).then(|| format!("{name} = [{lo}, {hi}]: wanted a low end within 0.05…1, a high end within 1…20"))
}

/// Probabilities of things that exclude each other.
fn probability(name: &str, all: &[f64]) -> Option<String> {
    // A sum in f64 may miss one by its rounding.
    let fits = all.iter().all(|p| (0.0..=1.0).contains(p)) && all.iter().sum::<f64>() <= 1.0 + 1e-9;
    (!fits).then(|| match all {
        [one] => format!("{name} = {one} is not a probability, 0…1"),
        _ => format!("{name} = {all:?}: wanted probabilities, 0…1, with a sum of 1 at most"),
    })
}

fn families(all: &[f64; Kind::ALL.len()]) -> Option<String> {
    let sum: f64 = all.iter().sum();
    let fits = all.iter().all(|p| (0.0..=1.0).contains(p)) && (sum - 1.0).abs() < 1e-6;
    (!fits).then(|| format!("kernel_prob = {all:?} with a sum of {sum}: wanted probabilities that sum to 1"))
}

fn sizes(name: &str, [lo, hi]: [usize; 2]) -> Option<String> {
    let fits = 3 <= lo && lo <= hi && hi <= LARGEST_KERNEL && lo % 2 == 1 && hi % 2 == 1;
    (!fits).then(|| format!("{name} = [{lo}, {hi}]: wanted odd sides, low…high within 3…{LARGEST_KERNEL}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The published defaults, and the mildest form, number by number.
    #[test]
    fn strengths_reach_from_mild_to_full() {
        let close = |got: &[f64], want: &[f64]| {
            assert!(got.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-12), "{got:?} {want:?}");
        };
        let numbers = |c: &RealEsrgan| -> Vec<f64> {
            let stage = |s: &Stage| {
                let ranges = [
                    s.blur_sigma,
                    s.resize_prob,
                    s.resize_range,
                    s.noise_range,
                    s.poisson_scale_range,
                    s.jpeg_range,
                ];
                let single = [s.blur_prob, s.sinc_prob, s.gaussian_noise_prob, s.gray_noise_prob];
                [ranges.concat(), single.to_vec(), vec![s.betag_range[1], s.betap_range[1]]].concat()
            };
            [stage(&c.first), stage(&c.second), vec![c.light_prob, c.final_sinc_prob]].concat()
        };
        let full = [
            0.2, 2.35, 0.28, 0.38, 0.28, 1.65, 0.5, 5.5, 0.01, 0.5, 48.0, 88.0, 1.0, 0.06, 0.16, 0.88, 3.0,
            2.0, 0.15, 1.75, 0.18, 0.28, 0.48, 1.32, 0.5, 4.0, 0.01, 0.32, 52.0, 90.0, 0.55, 0.05, 0.10,
            0.836, 3.0, 2.0, 0.20, 0.78,
        ];
        close(&numbers(&RealEsrgan::default()), &full);
        let none = Strengths { blur: 0.0, second: 0.0, ringing: 0.0, resize: 0.0, noise: 0.0, jpeg: 0.0 };
        let mild = [
            0.2, 1.15, 0.0, 0.0, 0.55, 1.25, 0.5, 1.5, 0.01, 0.08, 74.0, 96.0, 1.0, 0.0, 0.03, 0.66, 2.0,
            1.55, 0.15, 0.85, 0.0, 0.0, 0.68, 1.12, 0.5, 1.2, 0.01, 0.06, 78.0, 97.0, 0.22, 0.0, 0.02, 0.606,
            2.0, 1.55, 0.50, 0.32,
        ];
        close(&numbers(&RealEsrgan::at(&none)), &mild);
        assert!(RealEsrgan::default().check().is_ok() && RealEsrgan::at(&none).check().is_ok());
    }

    #[test]
    fn refusals_carry_name_and_numbers() {
        let refused = |spoil: fn(&mut RealEsrgan), words: &[&str]| {
            let mut config = RealEsrgan::default();
            spoil(&mut config);
            let error = config.check().unwrap_err();
            let text = error.to_string();
            assert!(error.exit_code() == 2 && words.iter().all(|w| text.contains(w)), "{text}");
        };
        refused(|c| c.first.blur_sigma = [2.0, 1.0], &["first.blur_sigma", "[2, 1]"]);
        refused(|c| c.second.jpeg_range = [0.0, 90.0], &["second.jpeg_range", "1…100"]);
        refused(|c| c.first.noise_range = [f64::NAN, 1.0], &["noise_range", "NaN"]);
        refused(|c| c.first.resize_prob = [0.7, 0.7], &["resize_prob", "sum"]);
        refused(|c| c.first.resize_range = [1.2, 1.5], &["resize_range", "1.2"]);
        refused(|c| c.second.kernel_prob = [0.5; 6], &["second.kernel_prob", "sum of 3"]);
        refused(|c| c.first.kernel_size = [7, 20], &["kernel_size", "odd"]);
        refused(|c| c.first.sinc_cutoff = [0.0, 1.0], &["sinc_cutoff", "0.1"]);
        refused(|c| c.final_sinc_cutoff = 4.0, &["final_sinc_cutoff", "4"]);
        refused(|c| c.light_prob = 1.5, &["light_prob", "1.5"]);
        refused(|c| c.scale = 0, &["scale = 0"]);
        refused(|c| c.sharpen.radius = 0, &["sharpen.radius = 0"]);
        refused(|c| c.sharpen.amount = -1.0, &["sharpen.amount", "-1"]);
    }

    #[test]
    fn it_is_written_and_read() {
        let text = toml::to_string(&RealEsrgan::default()).unwrap();
        assert_eq!(toml::from_str::<RealEsrgan>(&text).unwrap(), RealEsrgan::default());
    }

    #[test]
    fn values_are_overwritten_by_name() {
        let with = |text: &str| RealEsrgan::default().overwritten(&text.parse().unwrap());
        let got = with("light_prob = 1\njpeg = \"diff\"\nfirst.noise_range = [1, 2]").unwrap();
        assert_eq!((got.light_prob, got.jpeg, got.first.noise_range), (1.0, Codec::Diff, [1.0, 2.0]));
        assert_eq!(got.second, RealEsrgan::default().second);
        let refused = |text: &str, words: &[&str]| {
            let why = with(text).unwrap_err();
            assert!(words.iter().all(|w| why.contains(w)), "{why}");
        };
        refused("[first]\nnoise_rang = 1", &["first.noise_rang", "did you mean `first.noise_range`"]);
        refused("first = 3", &["unknown key `first`"]);
        refused("[second]\njpeg_range = [50]", &["second.jpeg_range = [50]"]);
        refused("jpeg = \"webp\"", &["jpeg", "webp", "file"]);
    }
}
