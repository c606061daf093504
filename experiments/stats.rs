//! Means over held-out crops and their intervals. Crops of one photograph are alike, so that photographs are what a
//! bootstrap draws, all crops of each at once; and methods are compared on the same draws.

use asasr_engine::engine::Philox;
use asasr_engine::eval::RadialSpectra;
use serde::{Deserialize, Serialize};

/// Resamples of the photographs that an interval rests on.
const RESAMPLES: usize = 2000;

/// What one method scored on one held-out crop.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Crop {
    /// The photograph it is of.
    pub photo: String,
    /// Where: column, row.
    pub at: (usize, usize),
    /// As [`asasr_engine::eval::Metrics`].
    pub psnr_y: f64,
    /// As [`asasr_engine::eval::Metrics`].
    pub ssim_y: f64,
    /// LPIPS (AlexNet), where its weights were given.
    pub lpips: Option<f64>,
    /// As [`asasr_engine::eval::Metrics`].
    pub lsd_db: f64,
    /// Of which radial LSD and high-frequency ratio of a set are made.
    pub spectra: RadialSpectra,
}

/// A quantity of a set of crops.
#[derive(Clone, Copy)]
pub struct Quantity {
    /// With its unit, and which way is better.
    pub name: &'static str,
    /// Digits after the point.
    pub digits: usize,
    /// Its value; NaN where it was not measured.
    pub of: fn(&[&Crop]) -> f64,
}

fn mean(crops: &[&Crop], f: impl Fn(&Crop) -> f64) -> f64 {
    crops.iter().map(|c| f(c)).sum::<f64>() / crops.len() as f64
}

fn spectra(crops: &[&Crop]) -> RadialSpectra {
    let mut sum = RadialSpectra::new(crops[0].spectra.side());
    crops.iter().for_each(|c| sum.add(&c.spectra));
    sum
}

/// What the tables show.
pub const QUANTITIES: [Quantity; 6] = [
    Quantity { name: "PSNR-Y ↑", digits: 2, of: |c| mean(c, |c| c.psnr_y) },
    Quantity { name: "SSIM-Y ↑", digits: 4, of: |c| mean(c, |c| c.ssim_y) },
    Quantity { name: "LPIPS ↓", digits: 4, of: |c| mean(c, |c| c.lpips.unwrap_or(f64::NAN)) },
    Quantity { name: "LSD, dB ↓", digits: 2, of: |c| mean(c, |c| c.lsd_db) },
    Quantity { name: "radial LSD, dB ↓", digits: 2, of: |c| spectra(c).rlsd_db() },
    Quantity { name: "hf ratio → 1", digits: 3, of: |c| spectra(c).hf_ratio() },
];

/// A value with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Of the whole set.
    pub value: f64,
    /// 2.5th percentile over the resamples.
    pub low: f64,
    /// 97.5th percentile over the resamples.
    pub high: f64,
}

impl Interval {
    /// Does it leave out 0?
    pub fn is_clear(&self) -> bool {
        self.low > 0.0 || self.high < 0.0
    }
}

/// `f` of a set drawn from photographs, and its interval. `sets` are methods' crops, the same crops in the same order.
pub fn interval(sets: &[&[Crop]], f: impl Fn(&[Vec<&Crop>]) -> f64) -> Interval {
    let photos: Vec<&str> = sets[0].iter().fold(Vec::new(), |mut seen, crop| {
        if !seen.contains(&crop.photo.as_str()) {
            seen.push(&crop.photo);
        }
        seen
    });
    let of = |photo: &str| -> Vec<usize> {
        sets[0].iter().enumerate().filter(|(_, c)| c.photo == photo).map(|(i, _)| i).collect()
    };
    let groups: Vec<Vec<usize>> = photos.iter().map(|photo| of(photo)).collect();
    let take = |drawn: &[usize]| -> Vec<Vec<&Crop>> {
        let crops: Vec<usize> = drawn.iter().flat_map(|&g| groups[g].iter().copied()).collect();
        sets.iter().map(|set| crops.iter().map(|&i| &set[i]).collect()).collect()
    };
    let whole: Vec<usize> = (0..groups.len()).collect();
    let mut draws = Philox::new(0, 0xe4b).reader();
    let mut values: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let drawn: Vec<usize> = (0..groups.len()).map(|_| draws.below(groups.len())).collect();
            f(&take(&drawn))
        })
        .collect();
    values.sort_by(f64::total_cmp);
    let at = |q: f64| values[(q * (RESAMPLES - 1) as f64).round() as usize];
    Interval { value: f(&take(&whole)), low: at(0.025), high: at(0.975) }
}

/// The difference of two methods in a quantity, ours − theirs.
pub fn difference(quantity: Quantity, ours: &[Crop], theirs: &[Crop]) -> Interval {
    interval(&[ours, theirs], |sets| (quantity.of)(&sets[0]) - (quantity.of)(&sets[1]))
}

/// Where the polyline through `curve` (x ascending or not) is at `x`; `None` beyond its ends.
pub fn interpolate(curve: &[(f64, f64)], x: f64) -> Option<f64> {
    let mut sorted = curve.to_vec();
    sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
    sorted.windows(2).find(|w| (w[0].0..=w[1].0).contains(&x)).map(|w| {
        let share = if w[1].0 > w[0].0 { (x - w[0].0) / (w[1].0 - w[0].0) } else { 0.5 };
        w[0].1 + share * (w[1].1 - w[0].1)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crops(psnr: &[(&str, f64)]) -> Vec<Crop> {
        let crop = |&(photo, psnr_y): &(&str, f64)| Crop {
            photo: photo.to_owned(),
            at: (0, 0),
            psnr_y,
            ssim_y: 0.5,
            lpips: None,
            lsd_db: 1.0,
            spectra: RadialSpectra::new(8),
        };
        psnr.iter().map(crop).collect()
    }

    #[test]
    fn a_paired_difference_does_not_see_what_photographs_share() {
        let theirs = crops(&[("a", 20.0), ("a", 22.0), ("b", 35.0), ("b", 36.0), ("c", 27.0)]);
        let mut ours = theirs.clone();
        ours.iter_mut().for_each(|c| c.psnr_y += 0.5);
        let d = difference(QUANTITIES[0], &ours, &theirs);
        assert!((d.value - 0.5).abs() < 1e-9 && (d.low - 0.5).abs() < 1e-9 && (d.high - 0.5).abs() < 1e-9);
        assert!(d.is_clear());
        let own = interval(&[&ours], |s| (QUANTITIES[0].of)(&s[0]));
        assert!(own.low < 24.0 && own.high > 33.0, "{own:?}");
    }

    /// With crops of one photograph alike, the interval is that of three photographs and not of thirty crops.
    #[test]
    fn photographs_are_drawn_whole() {
        let many: Vec<(&str, f64)> = [("a", 20.0), ("b", 25.0), ("c", 30.0)].repeat(10);
        let i = interval(&[&crops(&many)], |s| (QUANTITIES[0].of)(&s[0]));
        assert!((i.low, i.high) == (20.0, 30.0), "{i:?}");
        assert!((QUANTITIES[2].of)(&crops(&many).iter().collect::<Vec<_>>()).is_nan());
    }

    #[test]
    fn polylines() {
        let curve = [(3.0, 30.0), (1.0, 10.0), (2.0, 40.0)];
        assert_eq!(interpolate(&curve, 1.5), Some(25.0));
        assert_eq!(interpolate(&curve, 2.5), Some(35.0));
        assert_eq!(interpolate(&curve, 0.5), None);
    }
}
