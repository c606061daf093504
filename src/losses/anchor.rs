//! What holds a preference policy back, added to its loss: an anchor to the reference, and flow matching on the winners.
//!
//! ```text
//! v [n, …], v_ref [n, …], target [n, …], loss [] → loss + ω_a·mean_n |v − v_ref|² + ω_m·mean_b |v − target|²
//! ```
//! The second mean is over the first b samples, the winners. `|·|²` is the mean square of a sample. Saves the gradient
//! in v: `2/N·(ω_a/n·(v − v_ref) + [sample < b]·ω_m/b·(v − target))`, N values per sample. Differentiable in v and in
//! the loss.

use crate::engine::cuda::Gpu;
use crate::engine::{Device, Tensor, simd};
use crate::ops::reduce::{Mean, MeanSquare};
use crate::ops::{Case, Op, Save, Slot, cuda, random};
use crate::{Error, Result};
use rayon::prelude::*;

const NAME: &str = "anchor";
const SOURCE: &str = "anchor.cu";
/// Values of a sample that a block of the kernel takes.
const PIECE: usize = 4096;

/// The weights; inputs v, v_ref, target, loss; one output, a scalar.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Anchor {
    /// ω_a: weight of the distance to the reference.
    pub reference: f32,
    /// ω_m: weight of flow matching on the winners.
    pub flow_matching: f32,
    /// b: how many samples, from the first, are winners.
    pub winners: usize,
}

impl Anchor {
    /// The two means, each a scalar: distance of all samples to the reference, and of the winners to their targets.
    pub fn errors(&self, v: &Tensor, v_ref: &Tensor, target: &Tensor) -> Result<[Tensor; 2]> {
        let mean = |v: &Tensor, target: &Tensor| {
            let op = |op: &dyn Op, inputs: &[&Tensor]| {
                let out = op.forward(inputs, &mut Save::nothing())?.pop();
                out.ok_or_else(|| Error::shape(NAME, "a mean gave no output"))
            };
            op(&Mean, &[&op(&MeanSquare, &[v, target])?])
        };
        Ok([mean(v, v_ref)?, mean(&v.leading(self.winners), &target.leading(self.winners))?])
    }

    /// The same in f64, on the CPU.
    fn means(&self, v: &Tensor, v_ref: &Tensor, target: &Tensor) -> (f64, f64) {
        if v.device().is_meta() {
            return (0.0, 0.0);
        }
        let n = v_ref.len();
        let winners = self.winners * v_ref.stride0();
        let mean = |a: &[f32], b: &[f32]| {
            let each = v_ref.stride0().max(1);
            let of = |(a, b): (&[f32], &[f32])| {
                a.iter().zip(b).map(|(a, b)| f64::from(a - b) * f64::from(a - b)).sum::<f64>()
            };
            let sums: Vec<f64> = a.par_chunks(each).zip(b.par_chunks(each)).map(of).collect();
            sums.iter().sum::<f64>() / a.len() as f64
        };
        let (v, target) = (v.f32(), target.f32());
        (mean(&v[..n], v_ref.f32()), mean(&v[..winners], &target[..winners]))
    }

    /// The loss and the gradient in v, by `kernels/anchor.cu`.
    fn forward_cuda(&self, gpu: &Gpu, inputs: [&Tensor; 4], gradient: &mut Tensor) -> Result<Tensor> {
        let [v, v_ref, target, loss] = inputs;
        let (samples, each) = (v_ref.shape()[0], v_ref.stride0());
        let pieces = each.div_ceil(PIECE);
        // f64: two f32 each.
        let mut partial = Tensor::empty(v.device(), &[samples * pieces * 2, 2])?;
        let [a, m] = self.slopes(samples, each);
        let int = |n| cuda::int(NAME, n);
        let kernel = gpu.kernel(SOURCE, "anchor_fwd_f32")?;
        let launch = gpu.launch(&kernel, [pieces, samples, 1], cuda::THREADS);
        let launch = launch.read(v).read(v_ref).read(target).write(gradient);
        let launch = launch.write(&mut partial).value(cuda::long(each)).value(int(self.winners)?);
        launch.value(a).value(m).run()?;
        let mut out = Tensor::empty(v.device(), &[])?;
        let kernel = gpu.kernel(SOURCE, "anchor_fwd_sum_f32")?;
        let launch = gpu.launch(&kernel, [1, 1, 1], 32).read(&partial).read(loss).write(&mut out);
        let launch = launch.value(int(samples)?).value(int(self.winners)?).value(int(pieces)?);
        let launch = launch.value(each as f64).value(f64::from(self.reference));
        launch.value(f64::from(self.flow_matching)).run()?;
        Ok(out)
    }

    /// What the two differences are multiplied by in the gradient, of `n` samples of `each` values.
    fn slopes(&self, n: usize, each: usize) -> [f32; 2] {
        [2.0 * self.reference / (n * each) as f32, 2.0 * self.flow_matching / (self.winners * each) as f32]
    }
}

impl Op for Anchor {
    fn name(&self) -> &'static str {
        NAME
    }
    fn cuda(&self) -> bool {
        true
    }
    fn forward(&self, inputs: &[&Tensor], save: &mut Save) -> Result<Vec<Tensor>> {
        let &[v, v_ref, target, loss] = inputs else {
            return Err(Error::shape(NAME, format!("{} inputs were given, 4 are wanted", inputs.len())));
        };
        let (n, shape) = (v_ref.shape().first().copied().unwrap_or(0), v.shape());
        let fits = shape.len() > 1 && shape == v_ref.shape();
        if !fits || v_ref.shape() != target.shape() || !(1..=n).contains(&self.winners) {
            return Err(Error::shape(
                NAME,
                format!(
                    "v {shape:?}, v_ref {:?} and target {:?} of {} winners do not fit each other",
                    v_ref.shape(),
                    target.shape(),
                    self.winners
                ),
            ));
        }
        let mut gradient = Tensor::empty(v.device(), v_ref.shape())?;
        if let Some(gpu) = v.device().gpu() {
            let out = self.forward_cuda(gpu, [v, v_ref, target, loss], &mut gradient)?;
            save.keep(&gradient);
            return Ok(vec![out]);
        }
        let (anchor, mix) = self.means(v, v_ref, target);
        let each = v_ref.stride0();
        let [a, m] = self.slopes(n, each);
        let rows = gradient.f32_mut().par_chunks_mut(each).enumerate();
        rows.for_each(|(i, g)| {
            let [v, r, t] = [v, v_ref, target].map(|x| &x.f32()[i * each..][..each]);
            let m = if i < self.winners { m } else { 0.0 };
            for (k, g) in g.iter_mut().enumerate() {
                *g = a * (v[k] - r[k]) + m * (v[k] - t[k]);
            }
        });
        save.keep(&gradient);
        let held = f64::from(self.reference) * anchor + f64::from(self.flow_matching) * mix;
        Ok(vec![Tensor::scalar(v.device(), (f64::from(loss.item()) + held) as f32)?])
    }
    fn backward(
        &self,
        saved: &[Tensor],
        grads: &[Option<&Tensor>],
        slots: &mut [Option<Slot>],
    ) -> Result<()> {
        let Some(dy) = grads[0] else { return Ok(()) };
        if let Some(gpu) = dy.device().gpu() {
            if let Some(slot) = &mut slots[0] {
                cuda::add_scaled(gpu, dy, &saved[0], slot)?;
            }
            return slots[3].as_mut().map_or(Ok(()), |slot| slot.add(dy));
        }
        if let Some(slot) = &mut slots[0] {
            let gradient = saved[0].f32();
            simd::axpy(dy.item(), gradient, slot.adding());
        }
        if let Some(slot) = &mut slots[3] {
            slot.put(dy.f32());
        }
        Ok(())
    }
}

/// Some winners among some samples.
pub fn cases(device: &Device) -> Vec<Case> {
    let planes = |seed| random(device, &[3, 2, 3, 2], seed, 1.0);
    let op = Anchor { reference: 0.5, flow_matching: 0.25, winners: 2 };
    let inputs = vec![planes(2), planes(3), planes(4), random(device, &[], 1, 1.0)];
    vec![Case::new("anchor/3", op, inputs).constant(&[1, 2])]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::gradcheck::{TOLERANCE, check};

    fn inputs() -> [Tensor; 4] {
        let d = Device::cpu_poisoned();
        let planes = |seed| random(&d, &[3, 2, 3, 2], seed, 1.0);
        [planes(1), planes(2), planes(3), Tensor::scalar(&d, 0.7).unwrap()]
    }

    #[test]
    fn gradient_agrees_with_finite_differences() {
        for (winners, reference, flow_matching) in [(1, 0.5, 0.25), (2, 0.0, 1.5), (3, 2.0, 0.0)] {
            let op: Box<dyn Op> = Box::new(Anchor { reference, flow_matching, winners });
            for f in check(&op, &inputs(), &[true, false, false, true]).unwrap() {
                println!("{winners} winners, {reference}, {flow_matching}: {:.1e}", f.error);
                assert!(f.error < TOLERANCE, "{f:?}");
            }
        }
    }

    #[test]
    fn follows_its_formula() {
        let op = Anchor { reference: 0.5, flow_matching: 2.0, winners: 2 };
        let t = inputs();
        let out = op.forward(&t.each_ref(), &mut Save::nothing()).unwrap()[0].item();
        let square = |a: &Tensor, b: &Tensor, n: usize| -> f64 {
            (0..n * 12).map(|i| f64::from(a.f32()[i] - b.f32()[i]).powi(2)).sum::<f64>() / (n * 12) as f64
        };
        let want = f64::from(0.7f32) + 0.5 * square(&t[0], &t[1], 3) + 2.0 * square(&t[0], &t[2], 2);
        assert!((f64::from(out) - want).abs() < 1e-6, "{out} {want}");
        let e =
            Anchor { winners: 4, ..op }.forward(&t.each_ref(), &mut Save::nothing()).unwrap_err().to_string();
        assert!(e.contains("4 winners"), "{e}");
    }
}
