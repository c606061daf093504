//! SiLU: `y = x·sigmoid(x)`, elementwise, any shape with a batch first.
//!
//! Saves x. Backward: `dx = dy ⊙ SiLU′(x)`, `SiLU′ = s·(1 + x·(1 − s))` with `s = sigmoid(x)`.

use super::{Case, Op, Save, Slot, cuda, expect_inputs, random};
use crate::Result;
use crate::engine::{Device, Tensor, simd};
use rayon::prelude::*;

/// Elements per task.
const PIECE: usize = 1 << 14;

/// The op; one input, one output of the same shape.
pub struct Silu;

/// out = SiLU(x).
pub fn forward(x: &[f32], out: &mut [f32]) {
    out.par_chunks_mut(PIECE).zip(x.par_chunks(PIECE)).for_each(|(o, x)| simd::silu(x, o));
}

/// grad *= SiLU′(x).
pub fn backward(x: &[f32], grad: &mut [f32]) {
    grad.par_chunks_mut(PIECE).zip(x.par_chunks(PIECE)).for_each(|(g, x)| simd::mul_silu_slope(x, g));
}

impl Op for Silu {
    fn name(&self) -> &'static str {
        "silu"
    }
    fn cuda(&self) -> bool {
        true
    }
    fn forward(&self, inputs: &[&Tensor], save: &mut Save) -> Result<Vec<Tensor>> {
        expect_inputs("silu", inputs, 1)?;
        let x = inputs[0];
        let mut y = Tensor::empty_as(x.device(), x.shape(), x.dtype())?;
        match x.device().gpu() {
            None => forward(x.f32(), y.f32_mut()),
            Some(gpu) => cuda::map(gpu, "silu.cu", "silu_fwd", x, &mut y)?,
        }
        save.keep(inputs[0]);
        Ok(vec![y])
    }
    fn backward(
        &self,
        saved: &[Tensor],
        grads: &[Option<&Tensor>],
        slots: &mut [Option<Slot>],
    ) -> Result<()> {
        if let (Some(slot), Some(dy)) = (&mut slots[0], grads[0]) {
            if let Some(gpu) = dy.device().gpu() {
                return cuda::slope(gpu, "silu", ["silu.cu", "silu_bwd"], &saved[0], dy, slot);
            }
            let mut g = dy.f32().to_vec();
            backward(saved[0].f32(), &mut g);
            slot.put(&g);
        }
        Ok(())
    }
}

/// Small ones for gradcheck; the embeddings of one batch of the tiny preset.
pub fn cases(device: &Device) -> Vec<Case> {
    let case = |shape: &[usize]| {
        let n: usize = shape.iter().product();
        Case::new(format!("silu/{n}"), Silu, vec![random(device, shape, 1, 1.5)])
            .half(&[0])
            .cost(5.0 * n as f64, n)
    };
    vec![case(&[3, 5, 7]), case(&[12, 128]).bench_only()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_and_slope_agree_with_f64() {
        let x: Vec<f32> = (-4000..4000).map(|i| i as f32 * 0.025).collect();
        let (mut y, mut slope) = (vec![0.0; x.len()], vec![1.0; x.len()]);
        forward(&x, &mut y);
        backward(&x, &mut slope);
        for ((&x, y), slope) in x.iter().zip(y).zip(slope) {
            let x = f64::from(x);
            let s = 1.0 / (1.0 + (-x).exp());
            assert!((f64::from(y) - x * s).abs() <= 1e-6 * x.abs().max(1e-6), "SiLU({x}) = {y}");
            assert!((f64::from(slope) - s * (1.0 + x * (1.0 - s))).abs() < 1e-6, "SiLU′({x}) = {slope}");
        }
    }
}
