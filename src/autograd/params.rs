//! Parameters: masters, gradients and both AdamW moments as four flat f32 arenas with one table name → range.

use super::tape::{LeafId, Leaves};
use crate::engine::{Device, FlatBuffer, Tensor};
use crate::ops::adamw::{self, AdamW};
use crate::{Error, Result};
use std::collections::HashMap;

/// The trainable parameters of a run.
pub struct ParamSet {
    names: Vec<String>,
    shapes: Vec<Vec<usize>>,
    index: HashMap<String, usize>,
    master: FlatBuffer,
    grad: FlatBuffer,
    m: FlatBuffer,
    v: FlatBuffer,
    accumulating: bool,
    /// Optimizer updates done so far.
    pub updates: u64,
}

impl ParamSet {
    /// Parameters with these names, shapes and initial values; gradients and moments are 0.
    pub fn new(device: &Device, params: Vec<(String, Vec<usize>, Vec<f32>)>) -> Result<Self> {
        let shapes: Vec<Vec<usize>> = params.iter().map(|p| p.1.clone()).collect();
        let flat = || FlatBuffer::zeros(device, &shapes);
        let (mut master, grad, m, v) = (flat(), flat(), flat(), flat());
        let mut at = 0;
        let mut index = HashMap::new();
        let mut names = Vec::new();
        let all = master.all_mut();
        for (i, (name, shape, values)) in params.into_iter().enumerate() {
            let n: usize = shape.iter().product();
            if values.len() != n {
                return Err(Error::shape(
                    "parameters",
                    format!("{name}: {} values for shape {shape:?}", values.len()),
                ));
            }
            all[at..at + n].copy_from_slice(&values);
            at += n;
            if index.insert(name.clone(), i).is_some() {
                return Err(Error::shape("parameters", format!("{name} is there twice")));
            }
            names.push(name);
        }
        Ok(Self { names, shapes, index, master, grad, m, v, accumulating: false, updates: 0 })
    }

    /// Names, in arena order.
    pub fn names(&self) -> &[String] {
        &self.names
    }
    /// Shape of parameter `i`.
    pub fn shape(&self, i: usize) -> &[usize] {
        &self.shapes[i]
    }
    /// Number of values in all.
    pub fn len(&self) -> usize {
        self.master.len()
    }
    /// True when there is nothing to train.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }
    /// Position of a parameter, which is also its leaf.
    pub fn find(&self, name: &str) -> Option<LeafId> {
        self.index.get(name).copied().map(LeafId)
    }
    /// A handle on the master of parameter `i`. Drop it before [`ParamSet::step`].
    pub fn master(&self, i: usize) -> Tensor {
        self.master.part(i)
    }
    /// All masters as one slice.
    pub fn masters(&self) -> &[f32] {
        self.master.all()
    }
    /// All masters, to be overwritten.
    pub fn masters_mut(&mut self) -> &mut [f32] {
        self.master.all_mut()
    }
    /// A handle on the gradient of parameter `i`.
    pub fn grad(&self, i: usize) -> Tensor {
        self.grad.part(i)
    }
    /// All gradients as one slice.
    pub fn grads_mut(&mut self) -> &mut [f32] {
        self.grad.all_mut()
    }

    /// Lends the gradient arena to a tape; [`ParamSet::take_back`] ends the loan. Gradients add to those there are
    /// since the last [`ParamSet::reset_grads`].
    pub fn leaves(&mut self) -> Leaves {
        let buffers = (0..self.names.len()).map(|i| self.grad.take(i)).collect();
        Leaves::into_buffers(buffers, self.accumulating)
    }
    /// The next backward overwrites the gradients.
    pub fn reset_grads(&mut self) {
        self.accumulating = false;
    }
    /// Takes the gradients back from [`Tape::into_leaves`](super::Tape::into_leaves); those nobody wrote become 0.
    pub fn take_back(&mut self, leaves: Leaves) {
        for (i, grad) in leaves.buffers(self.names.len()).into_iter().enumerate() {
            self.grad.put(i, grad);
        }
        self.accumulating = true;
    }

    /// The 2-norm of all gradients, summed in f64 in arena order.
    pub fn grad_norm(&self) -> f32 {
        adamw::norm(self.grad.all())
    }

    /// The first parameter whose gradient is not finite, and the value.
    pub fn non_finite(&self) -> Option<(&str, f32)> {
        (0..self.names.len()).find_map(|i| {
            let bad = self.grad.part(i).f32().iter().copied().find(|g| !g.is_finite())?;
            Some((self.names[i].as_str(), bad))
        })
    }

    /// One AdamW update of every parameter with the gradients scaled by `clip`; `decay(i)` says whether weight decay
    /// applies to parameter `i`.
    pub fn step(&mut self, opt: &AdamW, lr: f32, clip: f32, decay: impl Fn(usize) -> bool) {
        self.updates += 1;
        let sizes: Vec<(usize, bool)> =
            self.shapes.iter().enumerate().map(|(i, s)| (s.iter().product(), decay(i))).collect();
        let step = opt.at(self.updates, lr, clip);
        adamw::update(
            &step,
            &sizes,
            self.master.all_mut(),
            self.grad.all(),
            self.m.all_mut(),
            self.v.all_mut(),
        );
    }
}
