//! Preference losses on energy gaps: DPO (s = 0), S-DPO (s > 0), AS-DPO (a second, adversarial loser); paper §3 and §4.1.
//!
//! ```text
//! gaps [(1+L)·b]: the winners', then those of L = 1 or 2 kinds of losers;  gap = E(v_θ − v*) − E(v_ref − v*)
//! argument_{l,i} = −β_eff·(gap_w,i − ω·gap_l,i)               β_eff = β/2;  ω = `loser_weight`, 1 in the paper
//! loss = Σ_l mean_i −log sigmoid(argument_{l,i})              −log sigmoid(a) = max(−a, 0) + ln(1 + e^{−|a|})
//! ∂loss/∂gap_w,i = Σ_l β_eff·σ(−argument)/b,   ∂loss/∂gap_l,i = −ω·β_eff·σ(−argument)/b
//! ```
//! The losers share the winner, which receives both gradients. All in f64, rounded once. Saves the gaps' gradient. At
//! the first step policy and reference agree, every gap is 0, and each of the L losses is ln 2.

use crate::engine::cuda::Gpu;
use crate::engine::{DType, Device, Tensor};
use crate::ops::{Case, Op, Save, Slot, cuda, random};
use crate::{Error, Result};

const NAME: &str = "preference";

/// The loss; one input, the gaps; one output, a scalar.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Preference {
    /// Half of β: what multiplies the difference of the gaps.
    pub beta_eff: f32,
    /// Kinds of losers: 1 (the dataset's) or 2 (and the adversary's).
    pub losers: usize,
    /// Weight of the losers' gaps against the winner's; 1 in the paper.
    pub loser_weight: f32,
}

/// What a step's log says of its preference losses.
#[derive(Clone, Debug, PartialEq)]
pub struct Stats {
    /// Mean loss against the dataset losers.
    pub loss_data: f32,
    /// Mean loss against the adversarial losers.
    pub loss_adv: Option<f32>,
    /// −β_eff·(gap_w − ω·gap_l): dataset losers, then adversarial ones.
    pub arguments: Vec<f32>,
    /// Mean argument: by how many nats the policy prefers the winner more than the reference does.
    pub margin: f32,
    /// Share of pairs with a positive argument.
    pub implicit_accuracy: f32,
    /// Mean of σ(−argument), the factor on the gradient: ½ at the start, 0 when there is nothing left to learn.
    pub mean_coefficient: f32,
    /// Share of pairs with a negative argument.
    pub negative_margin_share: f32,
    /// Mean gap of the winners.
    pub gap_w: f32,
    /// Mean gap of the dataset losers.
    pub gap_l: f32,
    /// Mean gap of the adversarial losers.
    pub gap_a: Option<f32>,
}

/// −log sigmoid(x).
fn neg_log_sigmoid(x: f64) -> f64 {
    (-x).max(0.0) + (-x.abs()).exp().ln_1p()
}

/// sigmoid(x).
fn sigmoid(x: f64) -> f64 {
    if x >= 0.0 { 1.0 / (1.0 + (-x).exp()) } else { x.exp() / (1.0 + x.exp()) }
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let n = values.len() as f64;
    values.sum::<f64>() / n
}

impl Preference {
    /// The paper's loss at `beta_eff` with `losers` kinds of losers.
    pub const fn new(beta_eff: f32, losers: usize) -> Self {
        Self { beta_eff, losers, loser_weight: 1.0 }
    }

    /// Pairs per kind of loser.
    fn pairs(&self, gaps: usize) -> Result<usize> {
        let kinds = self.losers + 1;
        if !(1..=2).contains(&self.losers) {
            return Err(Error::shape(NAME, format!("{} kinds of losers, wanted 1 or 2", self.losers)));
        }
        if gaps == 0 || !gaps.is_multiple_of(kinds) {
            return Err(Error::shape(
                NAME,
                format!("{gaps} gaps are not winners and {} kinds of losers in equal parts", self.losers),
            ));
        }
        Ok(gaps / kinds)
    }

    /// The arguments, loser kind by loser kind.
    fn arguments(&self, gaps: &[f32], b: usize) -> Vec<f64> {
        let (winners, losers) = gaps.split_at(b);
        let (beta, weight) = (f64::from(self.beta_eff), f64::from(self.loser_weight));
        let argument = |(&l, &w): (&f32, &f32)| -beta * (f64::from(w) - weight * f64::from(l));
        losers.iter().zip(winners.iter().cycle()).map(argument).collect()
    }

    fn forward_cuda(&self, gpu: &Gpu, gaps: &Tensor, b: usize, save: &mut Save) -> Result<Vec<Tensor>> {
        let mut gradient = Tensor::empty(gaps.device(), gaps.shape())?;
        let mut loss = Tensor::empty(gaps.device(), &[])?;
        let kernel = gpu.kernel("dpo.cu", "preference_fwd_f32")?;
        let launch = gpu.launch(&kernel, [1, 1, 1], cuda::THREADS).read(gaps);
        let launch = launch.write(&mut gradient).write(&mut loss);
        let launch = launch.value(cuda::int(NAME, b)?).value(cuda::int(NAME, self.losers)?);
        launch.value(f64::from(self.beta_eff)).value(f64::from(self.loser_weight)).run()?;
        save.keep(&gradient);
        Ok(vec![loss])
    }

    /// What the log says of these gaps.
    pub fn stats(&self, gaps: &[f32]) -> Result<Stats> {
        let b = self.pairs(gaps.len())?;
        let arguments = self.arguments(gaps, b);
        let loss = |a: &[f64]| mean(a.iter().map(|&a| neg_log_sigmoid(a))) as f32;
        let gap = |g: &[f32]| mean(g.iter().map(|&g| f64::from(g))) as f32;
        let share =
            |f: fn(f64) -> bool| arguments.iter().filter(|a| f(**a)).count() as f32 / arguments.len() as f32;
        Ok(Stats {
            loss_data: loss(&arguments[..b]),
            loss_adv: arguments.get(b..2 * b).map(loss),
            margin: mean(arguments.iter().copied()) as f32,
            implicit_accuracy: share(|a| a > 0.0),
            mean_coefficient: mean(arguments.iter().map(|&a| sigmoid(-a))) as f32,
            negative_margin_share: share(|a| a < 0.0),
            gap_w: gap(&gaps[..b]),
            gap_l: gap(&gaps[b..2 * b]),
            gap_a: gaps.get(2 * b..3 * b).map(gap),
            arguments: arguments.iter().map(|&a| a as f32).collect(),
        })
    }
}

impl Op for Preference {
    fn name(&self) -> &'static str {
        NAME
    }
    fn cuda(&self) -> bool {
        true
    }
    fn forward(&self, inputs: &[&Tensor], save: &mut Save) -> Result<Vec<Tensor>> {
        let &[gaps] = inputs else {
            return Err(Error::shape(NAME, format!("{} inputs were given, 1 is wanted", inputs.len())));
        };
        if gaps.shape().len() != 1 || gaps.dtype() != DType::F32 {
            return Err(Error::shape(NAME, format!("the gaps are {gaps:?}, wanted F32 of one dimension")));
        }
        let b = self.pairs(gaps.len())?;
        if let Some(gpu) = gaps.device().gpu() {
            return self.forward_cuda(gpu, gaps, b, save);
        }
        let arguments = self.arguments(&gaps.values()?, b);
        let loss: f64 = arguments.chunks(b).map(|a| mean(a.iter().map(|&a| neg_log_sigmoid(a)))).sum();
        let mut gradient = vec![0f64; gaps.len()];
        for (i, &a) in arguments.iter().enumerate() {
            let coefficient = f64::from(self.beta_eff) * sigmoid(-a) / b as f64;
            gradient[i % b] += coefficient;
            gradient[b + i] = -f64::from(self.loser_weight) * coefficient;
        }
        let gradient: Vec<f32> = gradient.into_iter().map(|g| g as f32).collect();
        save.keep(&Tensor::from_slice(gaps.device(), gaps.shape(), &gradient)?);
        Ok(vec![Tensor::scalar(gaps.device(), loss as f32)?])
    }
    fn backward(
        &self,
        saved: &[Tensor],
        grads: &[Option<&Tensor>],
        slots: &mut [Option<Slot>],
    ) -> Result<()> {
        if let (Some(slot), Some(dy)) = (&mut slots[0], grads[0]) {
            if let Some(gpu) = dy.device().gpu() {
                return cuda::add_scaled(gpu, dy, &saved[0], slot);
            }
            let dy = dy.item();
            slot.put(&saved[0].f32().iter().map(|g| dy * g).collect::<Vec<_>>());
        }
        Ok(())
    }
}

/// One and two kinds of losers, with and without a weight.
pub fn cases(device: &Device) -> Vec<Case> {
    let case = |(losers, loser_weight, b): (usize, f32, usize)| {
        let op = Preference { beta_eff: 2.5, losers, loser_weight };
        let gaps = random(device, &[(losers + 1) * b], 4, 0.6);
        Case::new(format!("preference/{losers}x{b}"), op, vec![gaps])
    };
    [(1, 0.5, 4), (2, 1.0, 3)].map(case).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::gradcheck::{TOLERANCE, check};
    use std::f32::consts::LN_2;

    fn loss(op: Preference, gaps: &[f32]) -> f32 {
        let t = Tensor::from_slice(&Device::cpu_poisoned(), &[gaps.len()], gaps).unwrap();
        op.forward(&[&t], &mut Save::nothing()).unwrap()[0].item()
    }

    #[test]
    fn gradient_agrees_with_finite_differences() {
        let d = Device::cpu_poisoned();
        for (losers, loser_weight, b) in [(1, 1.0, 1), (1, 0.5, 4), (2, 1.0, 3), (2, 0.8, 2)] {
            let op: Box<dyn Op> = Box::new(Preference { beta_eff: 2.5, losers, loser_weight });
            let n = (losers + 1) * b;
            for f in check(&op, &[random(&d, &[n], 4, 0.6)], &[true]).unwrap() {
                println!("{losers} kinds of {b} losers, weight {loser_weight}: {:.1e}", f.error);
                assert!(f.error < TOLERANCE, "{f:?}");
            }
        }
    }

    /// Policy = reference: every loss is ln 2, to the bit.
    #[test]
    fn first_step() {
        for b in [1, 2, 3, 5, 7, 64] {
            for zero in [0.0, -0.0] {
                let op = Preference::new(2000.0, 2);
                let s = op.stats(&vec![zero; 3 * b]).unwrap();
                assert_eq!((s.loss_data, s.loss_adv), (LN_2, Some(LN_2)));
                assert_eq!(
                    (s.mean_coefficient, s.implicit_accuracy, s.negative_margin_share),
                    (0.5, 0.0, 0.0)
                );
                assert_eq!(loss(op, &vec![zero; 3 * b]), 2.0 * LN_2);
                assert_eq!(loss(Preference::new(2000.0, 1), &vec![zero; 2 * b]), LN_2);
            }
        }
    }

    #[test]
    fn the_log_says_what_the_formula_says() {
        let op = Preference { beta_eff: 2.0, losers: 2, loser_weight: 1.0 };
        let gaps = [-0.5, 0.25, 1.0, 0.0, -0.5, -0.75];
        let s = op.stats(&gaps).unwrap();
        assert_eq!(s.arguments, [3.0, -0.5, 0.0, -2.0]);
        assert_eq!((s.implicit_accuracy, s.negative_margin_share), (0.25, 0.5));
        assert_eq!((s.gap_w, s.gap_l, s.gap_a, s.margin), (-0.125, 0.5, Some(-0.625), 0.125));
        let want = |a: f64| (1.0 + (-a).exp()).ln();
        let (data, adv) = ((want(3.0) + want(-0.5)) / 2.0, (want(0.0) + want(-2.0)) / 2.0);
        assert!((f64::from(s.loss_data) - data).abs() < 1e-7);
        assert!((f64::from(s.loss_adv.unwrap()) - adv).abs() < 1e-7);
        assert!((f64::from(loss(op, &gaps)) - data - adv).abs() < 1e-6);
        let coefficient: f64 =
            [3.0f64, -0.5, 0.0, -2.0].iter().map(|a| 1.0 / (1.0 + a.exp())).sum::<f64>() / 4.0;
        assert!((f64::from(s.mean_coefficient) - coefficient).abs() < 1e-7);
    }

    #[test]
    fn extreme_margins_stay_finite() {
        for (gap, want) in [(1e6, 2e9), (-1e6, 0.0)] {
            let op = Preference::new(2000.0, 1);
            assert_eq!(loss(op, &[gap, 0.0]), want);
            assert!(op.stats(&[gap, 0.0]).unwrap().mean_coefficient.is_finite());
        }
    }

    #[test]
    fn refusals_carry_the_numbers() {
        let e = Preference::new(1.0, 2).stats(&[0.0; 4]).unwrap_err().to_string();
        assert!(e.contains("4 gaps") && e.contains("2 kinds"), "{e}");
        assert!(Preference::new(1.0, 3).stats(&[0.0; 4]).unwrap_err().to_string().contains("3 kinds"));
        assert!(Preference::new(1.0, 1).stats(&[]).is_err());
    }
}
