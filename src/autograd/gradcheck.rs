//! Gradients against finite differences.
//!
//! The outputs are followed by a non-linear scalar function, so the incoming gradient is nowhere constant. Derivatives
//! are fourth-order central differences of that scalar, summed in f64, along (a) the gradient itself, which sees any
//! error of scale, (b) random directions, (c) single coordinates, which see errors (a) is blind to.

use super::tape::{Leaves, Tape, Var};
use crate::engine::{Philox, Tensor};
use crate::ops::{Op, Save};
use crate::{Error, Result};

/// Relative error that is still rounding: f32 forward passes differenced at the steps used here stay well below it,
/// and a gradient that is wrong by one percent is well above.
pub const TOLERANCE: f64 = 2e-3;

/// What a check found, for one input.
#[derive(Debug, Clone, Copy)]
pub struct Finding {
    /// The input.
    pub input: usize,
    /// Worst of the relative errors along the directions tried.
    pub error: f64,
}

/// Something that maps inputs to outputs on a tape: an op, or a composition.
pub trait Function {
    /// Runs it on `inputs`, recorded on `tape`.
    fn run<'a>(&'a self, tape: &Tape<'a>, inputs: &[Var]) -> Result<Vec<Var>>;
}

impl Function for Box<dyn Op> {
    fn run<'a>(&'a self, tape: &Tape<'a>, inputs: &[Var]) -> Result<Vec<Var>> {
        tape.apply(Borrowed(&**self), &inputs.iter().collect::<Vec<_>>())
    }
}

/// An op by reference, so that it can be recorded more than once.
struct Borrowed<'a>(&'a dyn Op);

impl Op for Borrowed<'_> {
    fn name(&self) -> &'static str {
        self.0.name()
    }
    fn forward(&self, inputs: &[&Tensor], save: &mut Save) -> Result<Vec<Tensor>> {
        self.0.forward(inputs, save)
    }
    fn backward(
        &self,
        saved: &[Tensor],
        grads: &[Option<&Tensor>],
        slots: &mut [Option<crate::ops::Slot>],
    ) -> Result<()> {
        self.0.backward(saved, grads, slots)
    }
}

/// Checks the gradient of every differentiable input.
pub fn check(f: &impl Function, inputs: &[Tensor], differentiable: &[bool]) -> Result<Vec<Finding>> {
    let grads = analytic(f, inputs, differentiable)?;
    let mut findings = Vec::new();
    for (i, grad) in grads.iter().enumerate() {
        if let Some(grad) = grad {
            findings.push(Finding { input: i, error: check_input(f, inputs, i, grad)? });
        }
    }
    Ok(findings)
}

/// L = Σ w·(y + y²/2) with fixed random w over the outputs; and dL/dy = w·(1 + y).
fn scalar(outputs: &[Tensor]) -> f64 {
    let mut total = 0.0;
    for (k, y) in outputs.iter().enumerate() {
        let w = weights(k, y.len());
        total += y
            .f32()
            .iter()
            .zip(&w)
            .map(|(&y, &w)| f64::from(w) * f64::from(y) * (1.0 + 0.5 * f64::from(y)))
            .sum::<f64>();
    }
    total
}

fn weights(output: usize, n: usize) -> Vec<f32> {
    let mut w = vec![0.0; n];
    Philox::new(11, output as u64).normals(0, &mut w);
    w
}

/// The end of the check's graph: one scalar from all outputs.
struct Tail;

impl Op for Tail {
    fn name(&self) -> &'static str {
        "gradcheck-tail"
    }
    fn forward(&self, inputs: &[&Tensor], save: &mut Save) -> Result<Vec<Tensor>> {
        let outputs: Vec<Tensor> = inputs.iter().map(|&t| t.clone()).collect();
        inputs.iter().for_each(|t| save.keep(t));
        Ok(vec![Tensor::scalar(inputs[0].device(), scalar(&outputs) as f32)?])
    }
    fn backward(
        &self,
        saved: &[Tensor],
        _: &[Option<&Tensor>],
        slots: &mut [Option<crate::ops::Slot>],
    ) -> Result<()> {
        for (k, (y, slot)) in saved.iter().zip(slots).enumerate() {
            if let Some(slot) = slot {
                let g: Vec<f32> =
                    y.f32().iter().zip(weights(k, y.len())).map(|(y, w)| w * (1.0 + y)).collect();
                slot.put(&g);
            }
        }
        Ok(())
    }
}

fn analytic(f: &impl Function, inputs: &[Tensor], differentiable: &[bool]) -> Result<Vec<Option<Tensor>>> {
    let tape = Tape::new(Leaves::default());
    let vars: Vec<Var> = inputs
        .iter()
        .zip(differentiable)
        .map(|(t, &d)| if d { tape.input(t.clone()) } else { Var::constant(t.clone()) })
        .collect();
    let outputs = f.run(&tape, &vars)?;
    let loss = tape.one(Tail, &outputs.iter().collect::<Vec<_>>())?;
    tape.backward(&loss, None)?;
    vars.iter()
        .zip(differentiable)
        .map(|(v, &d)| match (d, tape.grad(v)) {
            (false, _) => Ok(None),
            (true, Some(g)) => Ok(Some(g)),
            (true, None) => Err(Error::shape("gradcheck", "a differentiable input got no gradient")),
        })
        .collect()
}

fn value_at(f: &impl Function, inputs: &[Tensor], i: usize, direction: &[f32], h: f64) -> Result<f64> {
    let mut moved: Vec<Tensor> = inputs.to_vec();
    let mut x = inputs[i].to_f32().into_owned();
    x.iter_mut().zip(direction).for_each(|(x, &d)| *x = (f64::from(*x) + h * f64::from(d)) as f32);
    moved[i] = Tensor::from_slice(inputs[i].device(), inputs[i].shape(), &x)?;
    let vars: Vec<Var> = moved.into_iter().map(Var::constant).collect();
    let outputs: Vec<Tensor> = f.run(&Tape::no_grad(), &vars)?.iter().map(|v| v.value().clone()).collect();
    Ok(scalar(&outputs))
}

fn check_input(f: &impl Function, inputs: &[Tensor], i: usize, grad: &Tensor) -> Result<f64> {
    let g = grad.f32();
    let n = g.len();
    let norm = g.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
    let size =
        (inputs[i].f32().iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / n as f64).sqrt().max(1e-3);
    let mut directions: Vec<Vec<f32>> =
        vec![g.iter().map(|&v| (f64::from(v) / norm.max(1e-30)) as f32).collect()];
    for k in 0..2 {
        let mut d = vec![0.0; n];
        Philox::new(13, k).normals(0, &mut d);
        let length = d.iter().map(|v| v * v).sum::<f32>().sqrt();
        d.iter_mut().for_each(|v| *v /= length);
        directions.push(d);
    }
    let peak = (0..n).max_by(|&a, &b| g[a].abs().total_cmp(&g[b].abs())).unwrap_or(0);
    let mut rng = Philox::new(17, i as u64).reader();
    for c in [peak, rng.below(n), rng.below(n), rng.below(n)] {
        let mut d = vec![0.0; n];
        d[c] = 1.0;
        directions.push(d);
    }
    let mut worst = 0f64;
    for d in &directions {
        // A unit direction moves each of many values a little; step so that they move by about 4 % of their size.
        let touched = d.iter().filter(|v| **v != 0.0).count() as f64;
        let h = 0.04 * size * touched.sqrt();
        let at = |k: f64| value_at(f, inputs, i, d, k * h);
        let fd = (8.0 * (at(1.0)? - at(-1.0)?) - (at(2.0)? - at(-2.0)?)) / (12.0 * h);
        let along: f64 = g.iter().zip(d).map(|(&g, &d)| f64::from(g) * f64::from(d)).sum();
        let scale = if touched > 1.0 { norm } else { f64::from(g[peak].abs()) };
        worst = worst.max((fd - along).abs() / scale.max(1e-12));
    }
    Ok(worst)
}
