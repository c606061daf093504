//! GELU, tanh form: `y = 0.5·x·(1 + tanh(√(2/π)·(x + 0.044715·x³)))`, elementwise, any shape with a batch first.
//!
//! Saves x. Backward: `dx = dy ⊙ GELU′(x)`. [`Linear`](super::linear::Linear) has it as an epilogue.

use super::{Case, Op, Save, Slot, cuda, expect_inputs, random};
use crate::Result;
use crate::engine::{Device, Tensor, simd};
use rayon::prelude::*;

/// Elements per task.
const PIECE: usize = 1 << 14;

/// The op; one input, one output of the same shape.
pub struct Gelu;

/// out = GELU(x).
pub fn forward(x: &[f32], out: &mut [f32]) {
    out.par_chunks_mut(PIECE).zip(x.par_chunks(PIECE)).for_each(|(o, x)| simd::gelu(x, o));
}

/// grad *= GELU′(x).
pub fn backward(x: &[f32], grad: &mut [f32]) {
    grad.par_chunks_mut(PIECE).zip(x.par_chunks(PIECE)).for_each(|(g, x)| simd::mul_gelu_slope(x, g));
}

impl Op for Gelu {
    fn name(&self) -> &'static str {
        "gelu"
    }
    fn cuda(&self) -> bool {
        true
    }
    fn forward(&self, inputs: &[&Tensor], save: &mut Save) -> Result<Vec<Tensor>> {
        expect_inputs("gelu", inputs, 1)?;
        let x = inputs[0];
        let mut y = Tensor::empty_as(x.device(), x.shape(), x.dtype())?;
        match x.device().gpu() {
            None => forward(x.f32(), y.f32_mut()),
            Some(gpu) => cuda::map(gpu, "gelu.cu", "gelu_fwd", x, &mut y)?,
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
                return cuda::slope(gpu, "gelu", ["gelu.cu", "gelu_bwd"], &saved[0], dy, slot);
            }
            let mut g = dy.f32().to_vec();
            backward(saved[0].f32(), &mut g);
            slot.put(&g);
        }
        Ok(())
    }
}

/// A small one for gradcheck; the hidden layer of one batch of the tiny preset.
pub fn cases(device: &Device) -> Vec<Case> {
    let case = |shape: &[usize]| {
        let n: usize = shape.iter().product();
        Case::new(format!("gelu/{n}"), Gelu, vec![random(device, shape, 1, 1.5)])
            .half(&[0])
            .cost(14.0 * n as f64, n)
    };
    vec![case(&[3, 5, 7]), case(&[12, 128, 512]).bench_only()]
}
