//! Joining and cutting streams `[B, T, W]` along tokens (axis 1) or features (axis 2).
//!
//! ```text
//! Concat:  [B, T₁, W], [B, T₂, W], …  → [B, ΣTᵢ, W]        or        [B, T, W₁], [B, T, W₂], … → [B, T, ΣWᵢ]
//! Narrow:  [B, T, W] → [B, range, W]                       or        [B, T, W] → [B, T, range]
//! ```
//! Concat saves the parts' extents, Narrow nothing. Backward cuts the gradient into the parts; Narrow's gradient is 0
//! outside of its range.

use super::{Case, Op, Save, Slot, dims3, expect_dtypes, expect_inputs, random};
use crate::engine::{Device, Tensor, simd};
use crate::{Error, Result};
use launch::{Block, copy};
use rayon::prelude::*;
use std::ops::Range;

mod launch;

/// Joins two or more tensors along `axis`.
pub struct Concat {
    /// 1: tokens, 2: features.
    pub axis: usize,
}

/// Keeps entries `range` of `axis`.
pub struct Narrow {
    /// 1: tokens, 2: features.
    pub axis: usize,
    /// The entries kept.
    pub range: Range<usize>,
}

/// Contiguous values per entry of the axis.
fn unit(op: &'static str, axis: usize, [_, _, w]: [usize; 3]) -> Result<usize> {
    match axis {
        1 => Ok(w),
        2 => Ok(1),
        _ => Err(Error::shape(op, format!("axis is {axis}, wanted 1 (tokens) or 2 (features)"))),
    }
}

/// Tensors with the same batch and tokens, feature by feature one after the other.
pub(super) fn join(parts: &[&Tensor]) -> Result<Tensor> {
    Ok(Concat { axis: 2 }.forward(parts, &mut Save::nothing())?.remove(0))
}

/// The way back: a gradient of what was joined to the slots of its parts, whose rows are `widths` values.
pub(super) fn split(dy: &Tensor, widths: &[usize], slots: &mut [Option<Slot>]) -> Result<()> {
    let total: usize = widths.iter().sum();
    let mut at = 0;
    for (slot, &n) in slots.iter_mut().zip(widths) {
        if let (Some(slot), Some(_)) = (slot.as_mut(), dy.device().gpu()) {
            let block = Block { rows: dy.len() / total.max(1), width: n, from: [total, at], to: [n, 0] };
            copy(dy, &mut slot.grad, &block, slot.accumulate)?;
        } else if let Some(slot) = slot {
            cut(dy.f32(), total, at, slot.adding(), n);
        }
        at += n;
    }
    Ok(())
}

/// Adds columns `at..at + width` of every `total`-wide row of `wide` to the rows of `part`.
fn cut(wide: &[f32], total: usize, at: usize, part: &mut [f32], width: usize) {
    if width > 0 {
        let rows = part.par_chunks_mut(width).zip(wide.par_chunks(total)).with_min_len(64);
        rows.for_each(|(p, row)| simd::axpy(1.0, &row[at..at + width], p));
    }
}

impl Op for Concat {
    fn name(&self) -> &'static str {
        "concat"
    }
    fn cuda(&self) -> bool {
        true
    }
    fn forward(&self, inputs: &[&Tensor], save: &mut Save) -> Result<Vec<Tensor>> {
        if inputs.len() < 2 {
            return Err(Error::shape(
                "concat",
                format!("{} inputs were given, at least 2 are wanted", inputs.len()),
            ));
        }
        expect_dtypes("concat", inputs[0].dtype(), inputs)?;
        let mut shape = dims3("concat", "input 0", inputs[0])?;
        let unit = unit("concat", self.axis, shape)?;
        let mut extents = Vec::new();
        for (i, t) in inputs.iter().enumerate() {
            let mut want = shape;
            want[self.axis] = dims3("concat", &format!("input {i}"), t)?[self.axis];
            t.expect("concat", &format!("input {i}"), &want)?;
            extents.push(want[self.axis]);
        }
        shape[self.axis] = extents.iter().sum();
        let widths: Vec<usize> = extents.iter().map(|n| n * unit).collect();
        // Backward sees no inputs; extents are small integers, exact in f32.
        let extents: Vec<f32> = widths.iter().map(|&n| n as f32).collect();
        save.keep(&Tensor::from_slice(&Device::cpu(), &[extents.len()], &extents)?);
        let mut out = Tensor::empty_as(inputs[0].device(), &shape, inputs[0].dtype())?;
        let total: usize = widths.iter().sum();
        if out.device().gpu().is_some() {
            let mut at = 0;
            for (t, &n) in inputs.iter().zip(&widths) {
                let rows = t.len().checked_div(n).unwrap_or(0);
                copy(t, &mut out, &Block { rows, width: n, from: [n, 0], to: [total, at] }, false)?;
                at += n;
            }
            return Ok(vec![out]);
        }
        out.f32_mut().par_chunks_mut(total.max(1)).enumerate().with_min_len(64).for_each(|(r, row)| {
            let mut at = 0;
            for (t, &n) in inputs.iter().zip(&widths) {
                row[at..at + n].copy_from_slice(&t.f32()[r * n..(r + 1) * n]);
                at += n;
            }
        });
        Ok(vec![out])
    }
    fn backward(
        &self,
        saved: &[Tensor],
        grads: &[Option<&Tensor>],
        slots: &mut [Option<Slot>],
    ) -> Result<()> {
        let Some(dy) = grads[0] else { return Ok(()) };
        let widths: Vec<usize> = saved[0].f32().iter().map(|&n| n as usize).collect();
        split(dy, &widths, slots)
    }
}

impl Op for Narrow {
    fn name(&self) -> &'static str {
        "narrow"
    }
    fn cuda(&self) -> bool {
        true
    }
    fn forward(&self, inputs: &[&Tensor], _: &mut Save) -> Result<Vec<Tensor>> {
        expect_inputs("narrow", inputs, 1)?;
        let mut shape = dims3("narrow", "the input", inputs[0])?;
        let unit = unit("narrow", self.axis, shape)?;
        let Range { start, end } = self.range;
        if start > end || end > shape[self.axis] {
            return Err(Error::shape(
                "narrow",
                format!("{start}..{end} of axis {} of shape {shape:?}", self.axis),
            ));
        }
        let total = shape[self.axis] * unit;
        shape[self.axis] = end - start;
        if inputs[0].device().gpu().is_some() {
            let mut out = Tensor::empty_as(inputs[0].device(), &shape, inputs[0].dtype())?;
            let width = (end - start) * unit;
            let rows = inputs[0].len() / total.max(1);
            copy(
                inputs[0],
                &mut out,
                &Block { rows, width, from: [total, start * unit], to: [width, 0] },
                false,
            )?;
            return Ok(vec![out]);
        }
        let mut out = Tensor::zeros(inputs[0].device(), &shape)?;
        cut(inputs[0].f32(), total.max(1), start * unit, out.f32_mut(), (end - start) * unit);
        Ok(vec![out])
    }
    fn backward(&self, _: &[Tensor], grads: &[Option<&Tensor>], slots: &mut [Option<Slot>]) -> Result<()> {
        let (Some(slot), Some(dy)) = (&mut slots[0], grads[0]) else { return Ok(()) };
        let shape = dims3("narrow", "the gradient", &slot.grad)?;
        let unit = unit("narrow", self.axis, shape)?;
        let (total, at, n) = (shape[self.axis] * unit, self.range.start * unit, self.range.len() * unit);
        if dy.device().gpu().is_some() {
            if !slot.accumulate {
                slot.grad.zero()?;
            }
            let rows = slot.grad.len() / total.max(1);
            return copy(
                dy,
                &mut slot.grad,
                &Block { rows, width: n, from: [n, 0], to: [total, at] },
                slot.accumulate,
            );
        }
        let g = slot.adding();
        if n > 0 {
            let rows = g.par_chunks_mut(total).zip(dy.f32().par_chunks(n)).with_min_len(64);
            rows.for_each(|(row, d)| simd::axpy(1.0, d, &mut row[at..at + n]));
        }
        Ok(())
    }
}

/// Small ones for gradcheck, along both axes; the streams of one batch of the tiny preset.
pub fn cases(device: &Device) -> Vec<Case> {
    let concat = |axis: usize, shapes: &[[usize; 3]]| {
        let inputs: Vec<Tensor> =
            shapes.iter().zip(1..).map(|(s, stream)| random(device, s, stream, 1.0)).collect();
        let n = inputs.iter().map(Tensor::len).sum();
        Case::new(format!("concat/axis{axis}/{n}"), Concat { axis }, inputs.clone())
            .half(&(0..inputs.len()).collect::<Vec<_>>())
            .cost(0.0, n)
    };
    let narrow = |axis: usize, range: Range<usize>, shape: [usize; 3]| {
        let n = shape.iter().product::<usize>() / shape[axis] * range.len();
        let op = Narrow { axis, range };
        let mut case = Case::new(format!("narrow/axis{axis}/{n}"), op, vec![random(device, &shape, 1, 1.0)]);
        case.bytes = 4.0 * n as f64;
        case.half(&[0]).cost(0.0, n)
    };
    vec![
        concat(1, &[[3, 2, 5], [3, 4, 5], [3, 1, 5]]),
        concat(2, &[[3, 4, 5], [3, 4, 2]]),
        concat(1, &[[12, 1, 128], [12, 128, 128]]).bench_only(),
        concat(2, &[[12, 129, 128], [12, 129, 512]]).bench_only(),
        narrow(1, 1..4, [3, 6, 5]),
        narrow(2, 2..5, [3, 4, 6]),
        narrow(1, 1..65, [12, 129, 128]).bench_only(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counting(shape: &[usize], from: usize) -> Tensor {
        let n = shape.iter().product::<usize>();
        let values: Vec<f32> = (from..from + n).map(|v| v as f32).collect();
        Tensor::from_slice(&Device::cpu_poisoned(), shape, &values)
            .expect("as many values as the shape holds")
    }

    #[test]
    fn narrow_undoes_concat() {
        for (axis, sa, sb) in [(1, [2, 3, 4], [2, 2, 4]), (2, [2, 3, 4], [2, 3, 1])] {
            let (a, b) = (counting(&sa, 0), counting(&sb, 100));
            let joined = Concat { axis }.forward(&[&a, &b], &mut Save::nothing()).unwrap().remove(0);
            let n = sa[axis];
            for (range, part) in [(0..n, &a), (n..n + sb[axis], &b)] {
                let got = Narrow { axis, range }.forward(&[&joined], &mut Save::nothing()).unwrap().remove(0);
                assert_eq!((got.shape(), got.f32()), (part.shape(), part.f32()));
            }
        }
        let joined = Concat { axis: 2 }
            .forward(&[&counting(&[1, 2, 2], 0), &counting(&[1, 2, 1], 10)], &mut Save::nothing());
        assert_eq!(joined.unwrap()[0].f32(), [0., 1., 10., 2., 3., 11.]);
    }

    #[test]
    fn refusals_carry_the_numbers() {
        let (a, b) = (counting(&[2, 3, 4], 0), counting(&[2, 3, 5], 0));
        let says = |r: Result<Vec<Tensor>>, what: &str| {
            let e = r.expect_err("refused").to_string();
            assert!(e.contains(what), "{e}");
        };
        says(Concat { axis: 1 }.forward(&[&a, &b], &mut Save::nothing()), "input 1 has shape [2, 3, 5]");
        says(Concat { axis: 3 }.forward(&[&a, &b], &mut Save::nothing()), "axis is 3");
        says(Concat { axis: 1 }.forward(&[&a], &mut Save::nothing()), "1 inputs");
        says(Narrow { axis: 1, range: 2..4 }.forward(&[&a], &mut Save::nothing()), "2..4 of axis 1");
    }
}
