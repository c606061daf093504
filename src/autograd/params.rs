//! Parameters: masters, gradients, both AdamW moments and, if wanted, the masters' running average as flat f32 arenas
//! with one table name → range.

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
    average: Option<Average>,
    accumulating: bool,
    /// Optimizer updates done so far.
    pub updates: u64,
}

/// The running average of the masters (EMA).
struct Average {
    decay: f32,
    values: FlatBuffer,
}

impl ParamSet {
    /// Parameters with these names, shapes and initial values; gradients and moments are 0.
    pub fn new(device: &Device, params: Vec<(String, Vec<usize>, Vec<f32>)>) -> Result<Self> {
        let shapes: Vec<Vec<usize>> = params.iter().map(|p| p.1.clone()).collect();
        let flat = || FlatBuffer::zeros(device, &shapes);
        let (mut master, grad, m, v) = (flat()?, flat()?, flat()?, flat()?);
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
        Ok(Self { names, shapes, index, master, grad, m, v, average: None, accumulating: false, updates: 0 })
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
        if let Some(average) = &mut self.average {
            let n = self.updates as f32;
            let keep = average.decay.min((1.0 + n) / (10.0 + n));
            adamw::average(keep, self.master.all(), average.values.all_mut());
        }
    }

    /// Keeps a running average of the masters from now on: after update n it is `d·average + (1 − d)·master` with
    /// `d = min(decay, (1 + n)/(10 + n))`, so that a short run is not averaged with its beginning.
    pub fn keep_average(&mut self, device: &Device, decay: f32) -> Result<()> {
        let mut values = FlatBuffer::zeros(device, &self.shapes)?;
        values.all_mut().copy_from_slice(self.master.all());
        self.average = Some(Average { decay, values });
        Ok(())
    }

    /// Runs `with` while the masters are their running average, if one is kept.
    pub fn averaged<T>(&mut self, with: impl FnOnce(&Self) -> T) -> T {
        self.swap_average();
        let outcome = with(self);
        self.swap_average();
        outcome
    }

    fn swap_average(&mut self) {
        if let Some(average) = &mut self.average {
            std::mem::swap(&mut self.master, &mut average.values);
        }
    }

    /// Everything the optimizer remembers, as tensors `master/<name>`, `m/<name>`, `v/<name>` and, with a running
    /// average, `average/<name>`: what a checkpoint holds.
    pub fn tensors(&self) -> Vec<(String, Tensor)> {
        let average = self.average.as_ref().map(|a| ("average", &a.values));
        let arenas = [("master", &self.master), ("m", &self.m), ("v", &self.v)].into_iter().chain(average);
        arenas
            .flat_map(|(arena, values)| {
                let named = move |(i, name): (usize, &String)| (format!("{arena}/{name}"), values.part(i));
                self.names.iter().enumerate().map(named)
            })
            .collect()
    }

    /// Overwrites what [`ParamSet::tensors`] lists with what `read` gives for each name and shape, and the number of
    /// updates.
    pub fn restore(&mut self, updates: u64, read: impl Fn(&str, &[usize]) -> Result<Tensor>) -> Result<()> {
        let average = self.average.as_mut().map(|a| ("average", &mut a.values));
        let arenas = [("master", &mut self.master), ("m", &mut self.m), ("v", &mut self.v)];
        for (arena, values) in arenas.into_iter().chain(average) {
            for (i, name) in self.names.iter().enumerate() {
                let stored = read(&format!("{arena}/{name}"), &self.shapes[i])?;
                let mut part = values.take(i);
                part.f32_mut().copy_from_slice(stored.f32());
                values.put(i, part);
            }
        }
        self.updates = updates;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(average: bool) -> ParamSet {
        let device = Device::cpu();
        let list = vec![("a".to_owned(), vec![2], vec![1.0, -1.0]), ("b".to_owned(), vec![1], vec![4.0])];
        let mut p = ParamSet::new(&device, list).unwrap();
        if average {
            p.keep_average(&device, 0.5).unwrap();
        }
        p
    }

    fn update(p: &mut ParamSet, n: usize) {
        for i in 0..n {
            p.grads_mut().copy_from_slice(&[1.0, -2.0, 0.5 * i as f32]);
            p.step(&AdamW::default(), 0.1, 1.0, |_| true);
        }
    }

    #[test]
    fn restored_parameters_go_on_as_the_others() {
        let mut a = params(true);
        update(&mut a, 3);
        let stored: HashMap<String, Tensor> = a.tensors().into_iter().collect();
        let mut b = params(true);
        let copy =
            |name: &str, shape: &[usize]| Tensor::from_slice(&Device::cpu(), shape, stored[name].f32());
        b.restore(a.updates, copy).unwrap();
        drop(stored);
        update(&mut a, 2);
        update(&mut b, 2);
        let values = |p: &ParamSet| -> Vec<_> {
            p.tensors().into_iter().map(|(n, t)| (n, t.f32().to_vec())).collect()
        };
        assert_eq!(values(&a), values(&b));
        assert_eq!((a.updates, b.updates, values(&a).len()), (5, 5, 8));
    }

    #[test]
    fn the_average_follows_its_definition() {
        let mut p = params(true);
        let mut want = [1.0f32, -1.0, 4.0];
        for n in 1..=4 {
            update(&mut p, 1);
            let keep = 0.5f32.min((1.0 + n as f32) / (10.0 + n as f32));
            want.iter_mut().zip(p.masters()).for_each(|(a, w)| *a = keep * *a + (1.0 - keep) * w);
        }
        let live = p.masters().to_vec();
        p.averaged(|p| {
            for (a, w) in p.masters().iter().zip(want) {
                assert!((a - w).abs() < 1e-6, "{a} {w}");
            }
        });
        assert_eq!(p.masters(), live);
        assert_eq!(params(false).averaged(|p| p.masters().to_vec()), [1.0, -1.0, 4.0]);
    }
}
