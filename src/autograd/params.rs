//! Parameters: masters, gradients, both AdamW moments and, if wanted, the masters' running average as flat f32 arenas
//! with one table name → range.

use super::tape::{LeafId, Leaves};
use crate::engine::{Device, FlatBuffer, Tensor};
use crate::ops::adamw::{self, AdamW, Gradients, launch};
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
    /// Parameters with these names, shapes and initial values, which on a meta device may be none; gradients and moments are 0.
    pub fn new(device: &Device, params: Vec<(String, Vec<usize>, Vec<f32>)>) -> Result<Self> {
        let shapes: Vec<Vec<usize>> = params.iter().map(|p| p.1.clone()).collect();
        let flat = || FlatBuffer::zeros(device, &shapes);
        let (mut master, grad, m, v) = (flat()?, flat()?, flat()?, flat()?);
        let mut index = HashMap::new();
        let mut names = Vec::new();
        let mut all = Vec::with_capacity(master.len());
        for (i, (name, shape, values)) in params.into_iter().enumerate() {
            let n: usize = shape.iter().product();
            if values.len() != n && !device.is_meta() {
                return Err(Error::shape(
                    "parameters",
                    format!("{name}: {} values for shape {shape:?}", values.len()),
                ));
            }
            all.extend(values);
            if index.insert(name.clone(), i).is_some() {
                return Err(Error::shape("parameters", format!("{name} is there twice")));
            }
            names.push(name);
        }
        master.set(&all)?;
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
    /// A copy of all masters on the host, in arena order.
    pub fn masters(&self) -> Result<Vec<f32>> {
        self.master.values()
    }
    /// Overwrites all masters.
    pub fn set_masters(&mut self, values: &[f32]) -> Result<()> {
        self.master.set(values)
    }
    /// A handle on the gradient of parameter `i`.
    pub fn grad(&self, i: usize) -> Tensor {
        self.grad.part(i)
    }
    /// A copy of all gradients on the host, in arena order.
    pub fn grads(&self) -> Result<Vec<f32>> {
        self.grad.values()
    }
    /// Overwrites all gradients.
    pub fn set_grads(&mut self, values: &[f32]) -> Result<()> {
        self.grad.set(values)
    }

    /// Lends the gradient arena to a tape; [`ParamSet::take_back`] ends the loan. Gradients add to those there are
    /// since the last [`ParamSet::reset_grads`].
    pub fn leaves(&mut self) -> Leaves {
        let buffers = (0..self.names.len()).map(|i| self.grad.take(i)).collect();
        Leaves::into_buffers(buffers, self.accumulating)
    }
    /// Notes gradients that came by another way than a tape: a replayed graph's.
    pub(crate) fn accumulated(&mut self) {
        self.accumulating = true;
    }
    /// An update of so many micro-batches begins. One overwrites the gradients; of several each adds to them, the first to
    /// zeros, so that all are the same work.
    pub fn begin(&mut self, micro_batches: usize) -> Result<()> {
        self.reset_grads();
        if micro_batches > 1 {
            self.grad.zero()?;
            self.accumulating = true;
        }
        Ok(())
    }
    /// The next backward overwrites the gradients.
    pub fn reset_grads(&mut self) {
        self.accumulating = false;
    }
    /// Takes the gradients back from [`Tape::into_leaves`](super::Tape::into_leaves); those nobody wrote become 0.
    pub fn take_back(&mut self, leaves: Leaves) -> Result<()> {
        for (i, grad) in leaves.buffers(self.names.len())?.into_iter().enumerate() {
            self.grad.put(i, grad);
        }
        self.accumulating = true;
        Ok(())
    }

    /// The 2-norm of all gradients, summed in f64 in a fixed order. Waits for the device.
    pub fn grad_norm(&self) -> Result<f32> {
        Ok(adamw::norm(&self.grads()?))
    }

    /// The first parameter whose gradient is not finite, and the value. Waits for the device.
    pub fn non_finite(&self) -> Result<Option<(&str, f32)>> {
        let all = self.grads()?;
        let mut rest = &all[..];
        for (name, shape) in self.names.iter().zip(&self.shapes) {
            let (own, after) = rest.split_at(shape.iter().product());
            if let Some(&bad) = own.iter().find(|g| !g.is_finite()) {
                return Ok(Some((name, bad)));
            }
            rest = after;
        }
        Ok(None)
    }

    /// One AdamW update of every parameter at rate `lr`, with the gradients' sum over micro-batches as `gradients` says;
    /// `decay(i)` says whether weight decay applies to parameter `i`. Gives the mean gradient's norm before the clip, a
    /// number on the parameters' device; where it is not finite, nothing but the count of updates has changed.
    pub fn step(
        &mut self,
        opt: &AdamW,
        lr: f32,
        gradients: Gradients,
        decay: impl Fn(usize) -> bool,
    ) -> Result<Tensor> {
        self.updates += 1;
        let sizes: Vec<(usize, bool)> =
            self.shapes.iter().enumerate().map(|(i, s)| (s.iter().product(), decay(i))).collect();
        let norm = match self.master.whole_on_device() {
            Some(mut w) => {
                let device = w.device().clone();
                let gpu = device.gpu().expect("it gave a tensor of its own");
                let missing = "all four are on one device";
                let g = self.grad.whole_on_device().expect(missing);
                let (mut m, mut v) =
                    (self.m.whole_on_device().expect(missing), self.v.whole_on_device().expect(missing));
                let arenas = launch::Arenas { w: &mut w, g: &g, m: &mut m, v: &mut v, half: None };
                launch::update(gpu, opt, (self.updates, lr), gradients, &sizes, arenas)?
            }
            None if self.master.device().is_meta() => Tensor::scalar(self.master.device(), 0.0)?,
            None => {
                let (w, g) = (self.master.all_mut(), self.grad.all());
                let norm = gradients.norm(g);
                if norm.is_finite() {
                    let step = opt.at(self.updates, lr, gradients.factor(norm));
                    adamw::update(&step, &sizes, w, g, self.m.all_mut(), self.v.all_mut());
                }
                Tensor::scalar(self.master.device(), norm)?
            }
        };
        if let Some(average) = &mut self.average {
            let n = self.updates as f32;
            let keep = average.decay.min((1.0 + n) / (10.0 + n));
            match (self.master.whole_on_device(), average.values.whole_on_device()) {
                (Some(w), Some(mut values)) => {
                    let device = w.device().clone();
                    let gpu = device.gpu().expect("it gave a tensor of its own");
                    launch::average(gpu, keep, &w, &mut values)?;
                }
                _ => adamw::average(keep, self.master.all(), average.values.all_mut()),
            }
        }
        Ok(norm)
    }

    /// Keeps a running average of the masters from now on: after update n it is `d·average + (1 − d)·master` with
    /// `d = min(decay, (1 + n)/(10 + n))`, so that a short run is not averaged with its beginning.
    pub fn keep_average(&mut self, device: &Device, decay: f32) -> Result<()> {
        let mut values = FlatBuffer::zeros(device, &self.shapes)?;
        values.set(&self.masters()?)?;
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
            let mut all = Vec::with_capacity(values.len());
            for (name, shape) in self.names.iter().zip(&self.shapes) {
                all.extend(read(&format!("{arena}/{name}"), shape)?.values()?);
            }
            values.set(&all)?;
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
            p.set_grads(&[1.0, -2.0, 0.5 * i as f32]).unwrap();
            p.step(&AdamW::default(), 0.1, Gradients::of_one(0.0), |_| true).unwrap();
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
            want.iter_mut().zip(p.masters().unwrap()).for_each(|(a, w)| *a = keep * *a + (1.0 - keep) * w);
        }
        let live = p.masters().unwrap();
        p.averaged(|p| {
            for (a, w) in p.masters().unwrap().iter().zip(want) {
                assert!((a - w).abs() < 1e-6, "{a} {w}");
            }
        });
        assert_eq!(p.masters().unwrap(), live);
        assert_eq!(params(false).averaged(|p| p.masters().unwrap()), [1.0, -1.0, 4.0]);
    }
}
