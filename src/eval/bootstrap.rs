//! Is one method better than another, or did the crops happen to fall that way? A paired bootstrap over the crops.

use serde::{Deserialize, Serialize};

use super::{Metrics, Scores};
use crate::engine::Philox;
use crate::{Error, Result};

/// Resamples of the crops an interval rests on.
pub const RESAMPLES: usize = 2000;
/// The draws are always these: the same scores give the same interval.
const DRAWS: Philox = Philox::new(0, 0xB007);

/// What an interval of a difference says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The whole interval lies on the better side of 0.
    Better,
    /// The whole interval lies on the worse side of 0.
    Worse,
    /// The interval holds 0.
    NotDistinguishable,
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Better => "better",
            Self::Worse => "worse",
            Self::NotDistinguishable => "not distinguishable",
        })
    }
}

/// A quantity methods are compared in: its name, its value for a set, and whether more is better.
struct Quantity {
    name: &'static str,
    of: fn(&Metrics) -> f64,
    more_is_better: bool,
}

const QUANTITIES: [Quantity; 4] = [
    Quantity { name: "radial LSD, dB", of: |m| m.rlsd_db, more_is_better: false },
    Quantity { name: "|ln hf ratio|", of: |m| m.hf_ratio.ln().abs(), more_is_better: false },
    Quantity { name: "SSIM-Y", of: |m| m.ssim_y, more_is_better: true },
    Quantity { name: "PSNR-Y, dB", of: |m| m.psnr_y, more_is_better: true },
];

/// By how much one method differs from another in one quantity, with its 95 % interval.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// The quantity, with its unit.
    pub metric: String,
    /// The set's value of the one method minus that of the other.
    pub value: f64,
    /// 2.5th percentile of the difference over the resamples.
    pub low: f64,
    /// 97.5th percentile.
    pub high: f64,
    /// Whether that is better, worse or neither.
    pub verdict: Verdict,
}

/// `ours` − `theirs`, scored on the same crops in the same order: radial LSD, |ln hf ratio|, SSIM-Y and PSNR-Y of the
/// whole set, with percentile intervals over [`RESAMPLES`] resamples of the crops. Both methods are resampled with the
/// same indices, so what makes a crop hard for both cancels.
pub fn compare(ours: &Scores, theirs: &Scores) -> Result<Vec<Difference>> {
    let refuse = |detail| Error::shape("compare", detail);
    for (whose, scores) in [("ours", ours), ("theirs", theirs)] {
        if let Some(fault) = scores.fault() {
            return Err(refuse(format!("{whose}: {fault}")));
        }
    }
    let n = ours.len();
    if n != theirs.len() {
        let m = theirs.len();
        return Err(refuse(format!(
            "scores of {n} and of {m} crops; a paired comparison wants the same crops"
        )));
    }
    let differences = |a: &Metrics, b: &Metrics| QUANTITIES.map(|q| (q.of)(a) - (q.of)(b));
    let mut draws = DRAWS.reader();
    let mut crops = vec![0; n];
    let resampled: Vec<[f64; 4]> = (0..RESAMPLES)
        .map(|_| {
            crops.fill_with(|| draws.below(n));
            differences(&ours.metrics_over(&crops), &theirs.metrics_over(&crops))
        })
        .collect();
    let whole = differences(&ours.metrics(), &theirs.metrics());
    let difference = |(i, quantity): (usize, &Quantity)| {
        let mut values: Vec<f64> = resampled.iter().map(|r| r[i]).collect();
        values.sort_by(f64::total_cmp);
        let (low, high) = (percentile(&values, 0.025), percentile(&values, 0.975));
        let verdict = match (low > 0.0, high < 0.0) {
            (false, false) => Verdict::NotDistinguishable,
            (more, _) if more == quantity.more_is_better => Verdict::Better,
            _ => Verdict::Worse,
        };
        Difference { metric: quantity.name.to_owned(), value: whole[i], low, high, verdict }
    };
    Ok(QUANTITIES.iter().enumerate().map(difference).collect())
}

/// The `q`-quantile of sorted values, linear between two of them.
fn percentile(sorted: &[f64], q: f64) -> f64 {
    let at = q * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    below + (above - below) * at.fract()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::RadialSpectra;

    /// Scores whose crops differ in PSNR and in the power of every ring, `power` times the truth's.
    fn scores(psnr: &[f64], power: &[f64]) -> Scores {
        let spectrum = |&power: &f64| {
            let mut s = RadialSpectra::new(8);
            s.add_pair(&[power; 64], &[1.0; 64], (8, 8));
            s
        };
        Scores {
            psnr_y: psnr.to_vec(),
            ssim_y: psnr.iter().map(|p| p / 100.0).collect(),
            lsd_db: psnr.to_vec(),
            spectra: power.iter().map(spectrum).collect(),
        }
    }

    #[test]
    fn each_metric_has_its_direction() {
        // ours: 1 dB more on each crop and too much power by 2; theirs: too little by 4
        let (a, b) = (scores(&[21.0, 31.0, 26.0], &[2.0; 3]), scores(&[20.0, 30.0, 25.0], &[0.25; 3]));
        let rows = compare(&a, &b).unwrap();
        let wanted = [-10.0 * 2f64.log10(), -(2f64.ln()), 0.01, 1.0];
        for (row, want) in rows.iter().zip(wanted) {
            assert!((row.value - want).abs() < 1e-6, "{row:?}");
            // the same difference on every crop: an interval without width
            assert!((row.low - want).abs() < 1e-6 && (row.high - want).abs() < 1e-6, "{row:?}");
            assert_eq!(row.verdict, Verdict::Better, "{row:?}");
        }
        assert!(compare(&b, &a).unwrap().iter().all(|r| r.verdict == Verdict::Worse));
        assert!(compare(&a, &a).unwrap().iter().all(|r| r.verdict == Verdict::NotDistinguishable));
        let words = [Verdict::Better, Verdict::Worse, Verdict::NotDistinguishable].map(|v| v.to_string());
        assert_eq!(words, ["better", "worse", "not distinguishable"]);
    }

    /// Power is summed over the set before the ratio is taken: crops at ½ and at 3/2 make a right set, and resamples of
    /// two crops are (½, ½), (½, 3/2) twice as often, and (3/2, 3/2).
    #[test]
    fn spectra_are_judged_over_the_set() {
        let (a, right) = (scores(&[20.0; 2], &[0.5, 1.5]), scores(&[20.0; 2], &[1.0; 2]));
        let rows = compare(&a, &right).unwrap();
        assert!(rows[0].value.abs() < 1e-9 && rows[1].value.abs() < 1e-9);
        assert!((rows[0].low - 0.0).abs() < 1e-9 && (rows[0].high - 10.0 * 2f64.log10()).abs() < 1e-6);
        assert!((rows[1].high - 2f64.ln()).abs() < 1e-6);
        assert_eq!(rows[1].verdict, Verdict::NotDistinguishable);
    }

    /// Of a mean of many differences the bootstrap's interval is the normal theory's.
    #[test]
    fn the_interval_of_a_mean_is_the_normal_one() {
        const N: usize = 64;
        let mut noise = Philox::new(5, 0).reader();
        let theirs: Vec<f64> = (0..N).map(|_| 25.0 + 4.0 * f64::from(noise.normal())).collect();
        let d: Vec<f64> = (0..N).map(|_| 0.1 + 0.3 * f64::from(noise.normal())).collect();
        let ours: Vec<f64> = theirs.iter().zip(&d).map(|(t, d)| t + d).collect();
        let rows = compare(&scores(&ours, &[1.0; N]), &scores(&theirs, &[1.0; N])).unwrap();
        let psnr = &rows[3];
        let mean = d.iter().sum::<f64>() / N as f64;
        let sd = (d.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (N - 1) as f64).sqrt();
        let half = 1.96 * sd / (N as f64).sqrt();
        assert!((psnr.value - mean).abs() < 1e-9, "{psnr:?}, mean {mean}");
        // a percentile of 2000 draws is itself known to some 3 % of the half-width
        for (got, want) in [(psnr.low, mean - half), (psnr.high, mean + half)] {
            assert!((got - want).abs() < 0.08 * half, "{psnr:?}, normal theory {want}");
        }
        assert_eq!(compare(&scores(&ours, &[1.0; N]), &scores(&theirs, &[1.0; N])).unwrap(), rows);
    }

    #[test]
    fn quantiles_are_linear_between_values() {
        let v: Vec<f64> = (0..=10).map(f64::from).collect();
        assert_eq!((percentile(&v, 0.0), percentile(&v, 0.25), percentile(&v, 1.0)), (0.0, 2.5, 10.0));
        assert_eq!(percentile(&[7.0], 0.975), 7.0);
    }

    #[test]
    fn scores_that_do_not_match_are_refused() {
        let (two, three) = (scores(&[20.0; 2], &[1.0; 2]), scores(&[20.0; 3], &[1.0; 3]));
        assert!(compare(&two, &three).unwrap_err().to_string().contains("2 and of 3 crops"));
        let torn = Scores { psnr_y: vec![1.0], ..two.clone() };
        assert!(compare(&two, &torn).unwrap_err().to_string().contains("theirs: lists of [1, 2, 2, 2]"));
        assert!(compare(&Scores::default(), &two).is_err());
    }
}
