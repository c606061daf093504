//! Watches a stage's numbers and says when they look wrong: loss spikes, and the ways a preference stage is known to
//! fail (METHOD §5). It warns and never stops a run; what it has seen is part of the checkpoint.

use crate::eval::Metrics;
use crate::losses::dpo::Stats;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Weight of the newest value in the running means.
const NEW: f64 = 0.1;
/// Updates before running means are believed.
const SETTLED: usize = 20;
/// Updates during which a warning is not repeated.
const QUIET: usize = 100;
/// Standard deviations above the running mean, and times the mean, that make a loss a spike.
const SPIKE: (f64, f64) = (8.0, 2.0);
/// Mean coefficient below which there is nothing left to learn.
const SATURATED: f64 = 0.02;
/// Share of negative margins above which the policy has learned the wrong way round.
const REVERSED: f64 = 0.6;
/// Growth of the held-out flow-matching error that says the policy flees the winners too.
const FLEEING: f64 = 1.25;
/// High-frequency energy over the truth's beyond which textures are invented.
const STIPPLED: f64 = 1.5;

/// What has been seen of a stage so far.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Monitor {
    updates: usize,
    loss: Running,
    coefficient: Running,
    negative_margins: Running,
    /// Flow-matching error and high-frequency energy of the first validation.
    first_validation: Option<(f64, f64)>,
    /// When each kind of warning may be given again.
    quiet_until: BTreeMap<String, usize>,
}

/// An exponentially weighted mean and variance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Running {
    seen: usize,
    mean: f64,
    variance: f64,
}

impl Running {
    fn add(&mut self, value: f64) {
        self.seen += 1;
        // A plain mean at first, so that the start does not weigh too much.
        let new = NEW.max(1.0 / self.seen as f64);
        let delta = value - self.mean;
        self.mean += new * delta;
        self.variance = (1.0 - new) * (self.variance + new * delta * delta);
    }
    fn settled(&self) -> bool {
        self.seen >= SETTLED
    }
}

impl Monitor {
    /// An update was made at this loss; what there is to say about it.
    pub fn update(&mut self, loss: f64, preference: Option<&Coefficients>) -> Vec<String> {
        self.updates += 1;
        let mut said = Vec::new();
        let (mean, deviation) = (self.loss.mean, self.loss.variance.sqrt());
        if self.loss.settled() && loss > mean + SPIKE.0 * deviation && loss > SPIKE.1 * mean {
            let text = format!("loss spike: {loss:.4} after a running mean of {mean:.4} ± {deviation:.4}");
            said.extend(self.once("spike", text));
        }
        self.loss.add(loss);
        let Some(p) = preference else { return said };
        self.coefficient.add(p.coefficient);
        self.negative_margins.add(p.negative_margins);
        let (coefficient, negative) = (self.coefficient.mean, self.negative_margins.mean);
        if self.coefficient.settled() && coefficient < SATURATED {
            let text = format!(
                "the preference is saturated: the mean coefficient is {coefficient:.4}, nearly every pair is decided, and \
                 AdamW goes on with the little that is left; choose the step by the validation pictures, or hold the \
                 coefficient up with asdpo.auto_beta"
            );
            said.extend(self.once("saturated", text));
        }
        if self.negative_margins.settled() && negative > REVERSED {
            let text = format!(
                "the policy prefers the losers in {:.0} % of pairs; lower asdpo.lr or raise asdpo.beta",
                100.0 * negative
            );
            said.extend(self.once("reversed", text));
        }
        said
    }

    /// Validation samples were restored; what there is to say about them. `loss` is the flow-matching error on held-out
    /// images.
    pub fn validation(&mut self, loss: f64, metrics: &Metrics, preference: bool) -> Vec<String> {
        let (first, first_hf) = *self.first_validation.get_or_insert((loss, metrics.hf_ratio));
        let mut said = Vec::new();
        if !preference {
            return said;
        }
        if loss > FLEEING * first {
            let text = format!(
                "the policy flees: its flow-matching error on held-out images grew from {first:.4} to {loss:.4}; raise \
                 asdpo.beta, or hold it with asdpo.anchor, asdpo.sft_mix or asdpo.loser_weight below 1"
            );
            said.extend(self.once("fleeing", text));
        }
        if metrics.hf_ratio > STIPPLED.max(first_hf) {
            let text = format!(
                "restored images hold {:.2} times the originals' high frequencies, {first_hf:.2} at the stage's beginning: \
                 textures are being invented; look at samples/, raise asdpo.beta or stop earlier",
                metrics.hf_ratio
            );
            said.extend(self.once("stippled", text));
        }
        said
    }

    fn once(&mut self, kind: &str, text: String) -> Option<String> {
        let until = self.quiet_until.entry(kind.to_owned()).or_default();
        if self.updates < *until {
            return None;
        }
        *until = self.updates + QUIET;
        Some(text)
    }
}

/// What of a step's preference statistics is watched, averaged over its micro-batches.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Coefficients {
    /// Mean of σ(−argument).
    pub coefficient: f64,
    /// Share of pairs with a negative argument.
    pub negative_margins: f64,
}

impl Coefficients {
    /// Those of one micro-batch.
    pub fn of(stats: &Stats) -> Self {
        Self {
            coefficient: f64::from(stats.mean_coefficient),
            negative_margins: f64::from(stats.negative_margin_share),
        }
    }
}

/// β after a step with this mean coefficient, steered so that the coefficient settles at `target`: a larger β makes
/// margins larger and their coefficients smaller. It moves by at most 28 % a step and stays within a factor 16 of
/// `initial`.
pub fn steer_beta(beta: f32, initial: f32, coefficient: f64, target: f32) -> f32 {
    let push = (coefficient - f64::from(target)).clamp(-0.5, 0.5) as f32;
    (beta * (0.5 * push).exp()).clamp(initial / 16.0, initial * 16.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fine() -> Coefficients {
        Coefficients { coefficient: 0.4, negative_margins: 0.3 }
    }

    #[test]
    fn a_spike_is_said_once() {
        let mut m = Monitor::default();
        for i in 0..200 {
            assert_eq!(m.update(1.0 + 0.1 * f64::from(i % 7), None), Vec::<String>::new());
        }
        let said = m.update(9.0, None);
        assert!(said.len() == 1 && said[0].contains("loss spike: 9.0000"), "{said:?}");
        assert!(m.update(50.0, None).is_empty(), "not again at once");
        let noisy = (0..500).map(|i| 0.1 + f64::from(i * 7919 % 101) / 20.0);
        let mut m = Monitor::default();
        assert!(noisy.into_iter().all(|l| m.update(l, None).is_empty()), "noise is no spike");
    }

    #[test]
    fn collapse_is_said() {
        let mut m = Monitor::default();
        assert!((0..60).all(|_| m.update(0.6, Some(&fine())).is_empty()));
        let said = |c: Coefficients| {
            let mut m = Monitor::default();
            (0..60).flat_map(|_| m.update(0.6, Some(&c))).collect::<Vec<_>>()
        };
        let saturated = said(Coefficients { coefficient: 0.01, ..fine() });
        assert!(saturated.len() == 1 && saturated[0].contains("saturated"), "{saturated:?}");
        let reversed = said(Coefficients { negative_margins: 0.8, ..fine() });
        assert!(reversed.len() == 1 && reversed[0].contains("80 %"), "{reversed:?}");
    }

    #[test]
    fn validation_is_compared_with_the_stages_beginning() {
        let metrics =
            |hf_ratio: f64| Metrics { psnr_y: 22.0, ssim_y: 0.6, lsd_db: 8.0, rlsd_db: 1.0, hf_ratio };
        let mut m = Monitor::default();
        assert!(m.validation(1.0, &metrics(0.9), true).is_empty());
        assert!(m.validation(1.1, &metrics(1.2), true).is_empty());
        assert!(m.validation(1.4, &metrics(1.2), true)[0].contains("from 1.0000 to 1.4000"));
        assert!(m.validation(1.0, &metrics(1.7), true)[0].contains("1.70 times"));
        assert!(Monitor::default().validation(1.0, &metrics(1.7), false).is_empty());
        assert!(Monitor::default().validation(1.0, &metrics(1.7), true).is_empty(), "it began so");
    }

    /// With margins proportional to β the coefficient reaches its target.
    #[test]
    fn beta_is_steered_to_the_target() {
        for (start, gap) in [(500.0, 0.01), (500.0, 0.0005)] {
            let mut beta = start;
            let mut coefficient = 0.0;
            for _ in 0..400 {
                coefficient = 1.0 / (1.0 + f64::from(0.5 * beta * gap).exp());
                beta = steer_beta(beta, start, coefficient, 0.2);
            }
            assert!((coefficient - 0.2).abs() < 0.01, "{coefficient} at β {beta}");
        }
        assert_eq!(steer_beta(500.0 * 16.0, 500.0, 0.5, 0.2), 500.0 * 16.0);
    }
}
