//! Means, summed in f64 in a fixed order.
//!
//! ```text
//! MeanSquare:  v [n, …], target [n, …] → e [n],    e_b = mean over the sample of (v_b − target_b)²
//! Mean:        x [n] → scalar,                      mean of x
//! ```
//! MeanSquare saves `v − target` and is differentiable in v alone: `dv_b = 2·(v_b − target_b)/N · de_b`, N values per
//! sample. Mean saves n: `dx_b = dy/n`.

mod launch;

use super::{Case, Op, Save, Slot, expect_constant, expect_f32, expect_inputs, random};
use crate::engine::{Device, Tensor, simd};
use crate::{Error, Result};
use rayon::prelude::*;

/// Mean squared error of each sample.
pub struct MeanSquare;

/// Mean of a vector.
pub struct Mean;

impl Op for MeanSquare {
    fn name(&self) -> &'static str {
        "mean_square"
    }
    fn cuda(&self) -> bool {
        true
    }
    fn forward(&self, inputs: &[&Tensor], save: &mut Save) -> Result<Vec<Tensor>> {
        expect_inputs("mean_square", inputs, 2)?;
        expect_f32("mean_square", inputs)?;
        expect_constant("mean_square", save, &[(1, "target")])?;
        let [v, target] = [inputs[0], inputs[1]];
        v.expect("mean_square", "v", target.shape())?;
        if target.is_empty() || target.shape().is_empty() {
            return Err(Error::shape("mean_square", format!("v has shape {:?}: no value", v.shape())));
        }
        let (n, each) = (target.shape()[0], target.stride0());
        let mut residual = Tensor::empty(v.device(), target.shape())?;
        let mut out = Tensor::empty(v.device(), &[n])?;
        if let Some(gpu) = v.device().gpu() {
            launch::mean_square(gpu, v, target, &mut residual, &mut out)?;
            save.keep(&residual);
            return Ok(vec![out]);
        }
        residual
            .f32_mut()
            .par_chunks_mut(each)
            .zip(v.f32().par_chunks(each).zip(target.f32().par_chunks(each)))
            .zip(out.f32_mut())
            .for_each(|((r, (v, t)), out)| {
                let mut sum = 0f64;
                for ((r, &v), &t) in r.iter_mut().zip(v).zip(t) {
                    *r = v - t;
                    sum += f64::from(*r) * f64::from(*r);
                }
                *out = (sum / each as f64) as f32;
            });
        save.keep(&residual);
        Ok(vec![out])
    }
    fn backward(
        &self,
        saved: &[Tensor],
        grads: &[Option<&Tensor>],
        slots: &mut [Option<Slot>],
    ) -> Result<()> {
        if let (Some(slot), Some(dy)) = (&mut slots[0], grads[0]) {
            if let Some(gpu) = dy.device().gpu() {
                return launch::mean_square_backward(gpu, &saved[0], dy, slot);
            }
            let each = slot.grad.stride0();
            let rows = slot.adding().par_chunks_mut(each).zip(saved[0].f32().par_chunks(each));
            rows.zip(dy.f32()).for_each(|((g, r), dy)| simd::axpy(2.0 / each as f32 * dy, r, g));
        }
        Ok(())
    }
}

impl Op for Mean {
    fn name(&self) -> &'static str {
        "mean"
    }
    fn cuda(&self) -> bool {
        true
    }
    fn forward(&self, inputs: &[&Tensor], save: &mut Save) -> Result<Vec<Tensor>> {
        expect_inputs("mean", inputs, 1)?;
        expect_f32("mean", inputs)?;
        let x = inputs[0];
        if x.shape().len() != 1 || x.is_empty() {
            return Err(Error::shape("mean", format!("the input has shape {:?}, wanted [n ≥ 1]", x.shape())));
        }
        save.keep(&Tensor::scalar(&Device::cpu(), x.len() as f32)?);
        if let Some(gpu) = x.device().gpu() {
            return Ok(vec![launch::mean(gpu, x)?]);
        }
        let sum: f64 = x.f32().iter().map(|&v| f64::from(v)).sum();
        Ok(vec![Tensor::scalar(x.device(), (sum / x.len() as f64) as f32)?])
    }
    fn backward(
        &self,
        saved: &[Tensor],
        grads: &[Option<&Tensor>],
        slots: &mut [Option<Slot>],
    ) -> Result<()> {
        if let (Some(slot), Some(dy)) = (&mut slots[0], grads[0]) {
            if let Some(gpu) = dy.device().gpu() {
                return launch::mean_backward(gpu, dy, saved[0].item(), slot);
            }
            let each = dy.item() / saved[0].item();
            slot.adding().iter_mut().for_each(|g| *g += each);
        }
        Ok(())
    }
}

/// Small ones for gradcheck; the velocities of one batch of the tiny preset.
pub fn cases(device: &Device) -> Vec<Case> {
    let square = |samples: usize, each: &[usize]| {
        let shape = [&[samples], each].concat();
        let inputs = vec![random(device, &shape, 1, 1.0), random(device, &shape, 2, 1.0)];
        let n = inputs[1].len();
        let mut case = Case::new(format!("mean_square/{n}"), MeanSquare, inputs).constant(&[1]);
        case.bytes = 8.0 * n as f64;
        case.cost(3.0 * n as f64, samples)
    };
    let mean =
        |n: usize| Case::new(format!("mean/{n}"), Mean, vec![random(device, &[n], 1, 1.0)]).cost(n as f64, 1);
    vec![
        square(3, &[2, 3, 4]),
        square(3, &[7]),
        square(6, &[16, 16, 16]).bench_only(),
        mean(5),
        mean(6).bench_only(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_its_own_mean_wherever_it_stands() {
        let d = Device::cpu_poisoned();
        let (v, t) = (random(&d, &[3, 3, 50], 1, 1.0), random(&d, &[3, 3, 50], 2, 1.0));
        let all = MeanSquare.forward(&[&v, &t], &mut Save::nothing()).unwrap().remove(0);
        for b in 0..3 {
            let rows = |x: &Tensor| x.rows(b..b + 1).unwrap();
            let one = MeanSquare.forward(&[&rows(&v), &rows(&t)], &mut Save::nothing()).unwrap().remove(0);
            assert_eq!(one.item().to_bits(), all.f32()[b].to_bits());
            let (v, t) = (rows(&v), rows(&t));
            let want: f64 =
                v.f32().iter().zip(t.f32()).map(|(v, t)| f64::from(v - t).powi(2)).sum::<f64>() / 150.0;
            assert!((f64::from(one.item()) - want).abs() < 1e-7 * want);
        }
        let more = random(&d, &[4, 3, 50], 1, 1.0);
        let e = MeanSquare.forward(&[&more, &t], &mut Save::nothing()).unwrap_err().to_string();
        assert!(e.contains("[3, 3, 50]") && e.contains("[4, 3, 50]"), "{e}");
        assert!(Mean.forward(&[&v], &mut Save::nothing()).is_err());
    }
}
