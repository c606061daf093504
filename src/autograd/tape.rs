//! A minimal tape.
//!
//! A [`Var`] is a value plus where it came from. In no-grad mode, or when no input needs a gradient, nothing is
//! recorded and values die with their last handle. Backward walks the nodes in reverse; each op writes or adds to a
//! slot per input. Leaf gradients live in [`Leaves`], which outlive the tape, so they accumulate over micro-batches.

use crate::engine::{DType, Device, Tensor};
use crate::ops::{Op, Save, Slot};
use crate::{Error, Result};
use std::cell::RefCell;

/// Names a leaf (a parameter or an input) across tapes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LeafId(pub usize);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Constant,
    Leaf(LeafId),
    Node { node: usize, output: usize },
}

/// A value on the tape; cheap to clone.
#[derive(Clone, Debug)]
pub struct Var {
    value: Tensor,
    source: Source,
}

impl Var {
    /// A value without a gradient.
    pub fn constant(value: Tensor) -> Self {
        Self { value, source: Source::Constant }
    }
    /// The value.
    pub fn value(&self) -> &Tensor {
        &self.value
    }
    /// Does a gradient flow here?
    pub fn tracked(&self) -> bool {
        self.source != Source::Constant
    }
    fn edge(&self) -> Edge {
        let (dtype, device) = (self.value.dtype(), self.value.device().clone());
        Edge { source: self.source, shape: self.value.shape().to_vec(), dtype, device }
    }
}

/// Where a gradient, of the value's dtype, goes, without holding the value.
struct Edge {
    source: Source,
    shape: Vec<usize>,
    dtype: DType,
    device: Device,
}

impl Edge {
    fn tracked(&self) -> bool {
        self.source != Source::Constant
    }
    fn fresh(&self) -> Result<Tensor> {
        Tensor::empty_as(&self.device, &self.shape, self.dtype)
    }
}

#[derive(Default)]
struct Leaf {
    grad: Option<Tensor>,
    written: bool,
}

/// The gradients of leaves, kept across tapes.
#[derive(Default)]
pub struct Leaves {
    entries: Vec<Leaf>,
}

impl Leaves {
    /// A store whose leaf `i` writes to `grads[i]` (views of a gradient arena, say), or adds to what is there.
    pub fn into_buffers(grads: Vec<Tensor>, accumulate: bool) -> Self {
        Self { entries: grads.into_iter().map(|g| Leaf { grad: Some(g), written: accumulate }).collect() }
    }
    /// The first `n` buffers back, zeroed where no gradient arrived.
    pub fn buffers(self, n: usize) -> Result<Vec<Tensor>> {
        self.entries
            .into_iter()
            .take(n)
            .map(|leaf| {
                let mut grad = leaf.grad.expect("every leaf of `into_buffers` has one");
                if !leaf.written {
                    grad.zero()?;
                }
                Ok(grad)
            })
            .collect()
    }
}

enum Action<'a> {
    Op(Box<dyn Op + 'a>),
    Recompute(Block<'a>, Vec<Var>),
}

/// What a [`Tape::rewriting`] tape has just made.
pub enum Seen<'t> {
    /// An output of an op.
    Output {
        /// The op.
        op: &'t dyn Op,
        /// What it was given.
        inputs: &'t [&'t Tensor],
    },
    /// The gradient of an op's input, with what it was added to.
    Gradient {
        /// The op.
        op: &'static str,
        /// Which of its inputs.
        input: usize,
    },
}

/// Gives back what it is given or another tensor of the same shape; a gradient, which may lie in an arena, in its place.
pub type Rewrite<'a> = dyn Fn(&Seen, Tensor) -> Result<Tensor> + 'a;

type Block<'a> = Box<dyn Fn(&Tape<'a>, &[Var]) -> Result<Vec<Var>> + 'a>;

struct Node<'a> {
    action: Action<'a>,
    inputs: Vec<Edge>,
    saved: Vec<Tensor>,
    outputs: usize,
}

/// Records what was computed and differentiates it.
///
/// A tape belongs to one thread at a time and is neither `Send` nor `Sync`; ops spread their own work over threads. What
/// goes in and comes out (tensors, [`Var`]s, [`Leaves`]) may move between threads, each of which can have a tape.
///
/// ```compile_fail,E0277
/// fn send<T: Send>() {}
/// send::<asasr_engine::autograd::Tape<'static>>();
/// ```
/// ```compile_fail,E0277
/// fn sync<T: Sync>() {}
/// sync::<asasr_engine::autograd::Tape<'static>>();
/// ```
pub struct Tape<'a> {
    recording: bool,
    rewrite: Option<&'a Rewrite<'a>>,
    nodes: RefCell<Vec<Node<'a>>>,
    leaves: RefCell<Leaves>,
}

impl<'a> Tape<'a> {
    /// A recording tape whose leaf gradients go to `leaves`.
    pub fn new(leaves: Leaves) -> Self {
        Self { recording: true, rewrite: None, nodes: RefCell::default(), leaves: RefCell::new(leaves) }
    }

    /// A tape that records nothing.
    pub fn no_grad() -> Self {
        Self { recording: false, rewrite: None, nodes: RefCell::default(), leaves: RefCell::default() }
    }

    /// A tape that records nothing and rewrites what this one does: for what is computed beside a pass.
    pub fn aside(&self) -> Self {
        Self { rewrite: self.rewrite, ..Self::no_grad() }
    }

    /// A tape whose values and gradients pass through `f`: an instrument, to measure what another precision would do to
    /// them. What ops keep inside (a product's partial sums, the activations saved for a slope) it does not see.
    pub fn rewriting(mut self, f: &'a Rewrite<'a>) -> Self {
        self.rewrite = Some(f);
        self
    }

    /// Is it [`Tape::rewriting`]? Ops that are a composition of smaller ones are then recorded as those, so that what passes
    /// between them is seen; their CPU forms have the same bits.
    pub fn rewrites(&self) -> bool {
        self.rewrite.is_some()
    }

    /// A parameter: the whole of `value` gets a gradient, in leaf `id` of the store.
    ///
    /// # Panics
    /// When the store of a recording tape has no such leaf: it was made for other parameters.
    pub fn param(&self, value: Tensor, id: LeafId) -> Var {
        if !self.recording {
            return Var::constant(value);
        }
        let leaves = self.leaves.borrow().entries.len();
        assert!(id.0 < leaves, "parameter {} on a tape whose store has {leaves} leaves", id.0);
        Var { value, source: Source::Leaf(id) }
    }

    /// A new leaf; read its gradient with [`Tape::grad`].
    pub fn input(&self, value: Tensor) -> Var {
        if !self.recording {
            return Var::constant(value);
        }
        let mut leaves = self.leaves.borrow_mut();
        leaves.entries.push(Leaf::default());
        let id = LeafId(leaves.entries.len() - 1);
        Var { value, source: Source::Leaf(id) }
    }

    /// Runs `op`; records it when an input is tracked.
    pub fn apply(&self, op: impl Op + 'a, inputs: &[&Var]) -> Result<Vec<Var>> {
        let values: Vec<&Tensor> = inputs.iter().map(|v| &v.value).collect();
        if !op.cuda() && values.iter().any(|t| t.device().gpu().is_some()) {
            return Err(Error::shape(op.name(), "has no CUDA kernels: give it tensors on the CPU"));
        }
        let needs: Vec<bool> = inputs.iter().map(|v| v.tracked()).collect();
        if !self.recording || !needs.contains(&true) {
            let outputs = self.rewritten(&op, &values, op.forward(&values, &mut Save::nothing())?)?;
            return Ok(outputs.into_iter().map(Var::constant).collect());
        }
        let mut save = Save::new(&needs);
        let outputs = op.forward(&values, &mut save)?;
        let outputs = self.rewritten(&op, &values, outputs)?;
        let saved = save.into_kept();
        Ok(self.record(Action::Op(Box::new(op)), inputs, saved, outputs))
    }

    /// [`Tape::apply`] for an op with one output.
    pub fn one(&self, op: impl Op + 'a, inputs: &[&Var]) -> Result<Var> {
        let name = op.name();
        self.apply(op, inputs)?.pop().ok_or_else(|| Error::shape(name, "gave no output"))
    }

    /// Runs `block` without recording its inside; backward runs it once more to get what it needs. Parameters may be
    /// used inside freely; every other tracked value must come in through `inputs`.
    pub fn recompute(
        &self,
        inputs: &[&Var],
        block: impl Fn(&Tape<'a>, &[Var]) -> Result<Vec<Var>> + 'a,
    ) -> Result<Vec<Var>> {
        let constants: Vec<Var> = inputs.iter().map(|v| Var::constant(v.value.clone())).collect();
        if !self.recording {
            return block(self, &constants);
        }
        let outputs = block(&self.aside(), &constants)?.into_iter().map(|v| v.value).collect();
        let vars = inputs.iter().map(|&v| v.clone()).collect();
        Ok(self.record(Action::Recompute(Box::new(block), vars), inputs, Vec::new(), outputs))
    }

    fn rewritten(&self, op: &dyn Op, inputs: &[&Tensor], outputs: Vec<Tensor>) -> Result<Vec<Tensor>> {
        let Some(f) = self.rewrite else { return Ok(outputs) };
        outputs.into_iter().map(|t| f(&Seen::Output { op, inputs }, t)).collect()
    }

    fn record(
        &self,
        action: Action<'a>,
        inputs: &[&Var],
        saved: Vec<Tensor>,
        outputs: Vec<Tensor>,
    ) -> Vec<Var> {
        let inputs = inputs.iter().map(|v| v.edge()).collect();
        let mut nodes = self.nodes.borrow_mut();
        let node = nodes.len();
        nodes.push(Node { action, inputs, saved, outputs: outputs.len() });
        outputs
            .into_iter()
            .enumerate()
            .map(|(output, value)| Var { value, source: Source::Node { node, output } })
            .collect()
    }

    /// Back-propagates from `root`, whose gradient is `seed` (ones when `None`: a loss). The recorded nodes are
    /// consumed; leaf gradients are added to what the store already holds.
    pub fn backward(&self, root: &Var, seed: Option<Tensor>) -> Result<()> {
        let seed = match seed {
            Some(seed) => {
                seed.expect("backward", "the seed gradient", &root.edge().shape)?;
                seed
            }
            None => Tensor::full(root.value.device(), &root.edge().shape, 1.0)?,
        };
        self.backward_many(vec![(root.clone(), seed)])
    }

    fn backward_many(&self, roots: Vec<(Var, Tensor)>) -> Result<()> {
        let mut nodes = std::mem::take(&mut *self.nodes.borrow_mut());
        let mut grads: Vec<Vec<Option<Tensor>>> = nodes.iter().map(|n| vec![None; n.outputs]).collect();
        let mut leaves = self.leaves.borrow_mut();
        for (root, seed) in roots {
            deposit(&root.edge(), seed, &mut grads, &mut leaves)?;
        }
        while let Some(node) = nodes.pop() {
            let out = grads.pop().expect("one entry per node");
            if out.iter().all(Option::is_none) {
                continue;
            }
            match node.action {
                Action::Op(op) => {
                    backward_op(&*op, &node.inputs, &node.saved, &out, &mut grads, &mut leaves, self.rewrite)?
                }
                Action::Recompute(block, inputs) => {
                    let inner = Tape { rewrite: self.rewrite, ..Tape::new(std::mem::take(&mut leaves)) };
                    let first = inner.leaves.borrow().entries.len();
                    let vars: Vec<Var> = inputs
                        .iter()
                        .map(|v| if v.tracked() { inner.input(v.value.clone()) } else { v.clone() })
                        .collect();
                    let outputs = block(&inner, &vars)?;
                    let seeds = outputs.into_iter().zip(out).filter_map(|(v, g)| g.map(|g| (v, g))).collect();
                    inner.backward_many(seeds)?;
                    *leaves = inner.leaves.into_inner();
                    let mut inside = leaves.entries.split_off(first).into_iter();
                    for v in node.inputs.iter().filter(|v| v.tracked()) {
                        let leaf = inside.next().expect("one leaf per tracked input");
                        if let (true, Some(grad)) = (leaf.written, leaf.grad) {
                            deposit(v, grad, &mut grads, &mut leaves)?;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// The gradient of a leaf made by [`Tape::input`], if one arrived.
    pub fn grad(&self, var: &Var) -> Option<Tensor> {
        match var.source {
            Source::Leaf(LeafId(i)) => {
                let leaves = self.leaves.borrow();
                let leaf = &leaves.entries[i];
                leaf.written.then(|| leaf.grad.clone()).flatten()
            }
            _ => None,
        }
    }

    /// The leaf store, to read gradients from or to go on accumulating with.
    pub fn into_leaves(self) -> Leaves {
        self.leaves.into_inner()
    }
}

/// Takes the slot of `var` out of where its gradient accumulates.
fn slot_of(var: &Edge, grads: &mut [Vec<Option<Tensor>>], leaves: &mut Leaves) -> Result<Slot> {
    Ok(match var.source {
        Source::Node { node, output } => match grads[node][output].take() {
            Some(grad) => Slot { grad, accumulate: true },
            None => Slot { grad: var.fresh()?, accumulate: false },
        },
        Source::Leaf(LeafId(i)) => {
            let leaf = &mut leaves.entries[i];
            match leaf.grad.take() {
                Some(grad) => Slot { grad, accumulate: leaf.written },
                None => Slot { grad: var.fresh()?, accumulate: false },
            }
        }
        Source::Constant => unreachable!("a constant has no slot"),
    })
}

fn put_back(var: &Edge, grad: Tensor, grads: &mut [Vec<Option<Tensor>>], leaves: &mut Leaves) {
    match var.source {
        Source::Node { node, output } => grads[node][output] = Some(grad),
        Source::Leaf(LeafId(i)) => leaves.entries[i] = Leaf { grad: Some(grad), written: true },
        Source::Constant => {}
    }
}

fn deposit(var: &Edge, grad: Tensor, grads: &mut [Vec<Option<Tensor>>], leaves: &mut Leaves) -> Result<()> {
    if var.tracked() {
        let mut slot = slot_of(var, grads, leaves)?;
        slot.add(&grad)?;
        put_back(var, slot.grad, grads, leaves);
    }
    Ok(())
}

fn backward_op(
    op: &dyn Op,
    inputs: &[Edge],
    saved: &[Tensor],
    out: &[Option<Tensor>],
    grads: &mut [Vec<Option<Tensor>>],
    leaves: &mut Leaves,
    rewrite: Option<&Rewrite>,
) -> Result<()> {
    let out: Vec<Option<&Tensor>> = out.iter().map(Option::as_ref).collect();
    // An input that appears twice gets a buffer of its own the second time, added afterwards.
    let private: Vec<bool> = inputs
        .iter()
        .enumerate()
        .map(|(i, v)| mutation::on() || inputs[..i].iter().any(|w| w.source == v.source))
        .collect();
    let mut slots: Vec<Option<Slot>> = inputs
        .iter()
        .zip(&private)
        .map(|(v, &private)| {
            Ok(match (v.tracked(), private) {
                (false, _) => None,
                (true, false) => Some(slot_of(v, grads, leaves)?),
                (true, true) => Some(Slot { grad: v.fresh()?, accumulate: false }),
            })
        })
        .collect::<Result<_>>()?;
    op.backward(saved, &out, &mut slots)?;
    for (i, (v, slot)) in inputs.iter().zip(slots).enumerate() {
        let Some(mut slot) = slot else { continue };
        if let Some(f) = rewrite {
            slot.grad = f(&Seen::Gradient { op: op.name(), input: i }, slot.grad)?;
        }
        if private[i] {
            mutation::scale(op.name(), i, slot.grad.f32_mut());
            deposit(v, slot.grad, grads, leaves)?;
        } else {
            put_back(v, slot.grad, grads, leaves);
        }
    }
    Ok(())
}

/// The hook of `cargo xtask mutate`: scales one op's gradient of one input by 1.01, to prove that gradcheck sees it.
#[cfg(feature = "mutate")]
pub mod mutation {
    use std::cell::RefCell;
    thread_local!(static TARGET: RefCell<Option<(&'static str, usize)>> = const { RefCell::new(None) });

    /// From now on, on this thread, gradients of input `target.1` of op `target.0` are wrong by one percent.
    pub fn set(target: Option<(&'static str, usize)>) {
        TARGET.with_borrow_mut(|t| *t = target);
    }
    pub(super) fn on() -> bool {
        TARGET.with_borrow(Option::is_some)
    }
    pub(super) fn scale(op: &str, input: usize, grad: &mut [f32]) {
        if TARGET.with_borrow(|t| t.is_some_and(|t| t == (op, input))) {
            grad.iter_mut().for_each(|g| *g *= 1.01);
        }
    }
}

#[cfg(not(feature = "mutate"))]
mod mutation {
    pub(super) const fn on() -> bool {
        false
    }
    pub(super) const fn scale(_: &str, _: usize, _: &mut [f32]) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::silu::Silu;

    /// Outputs doubled, gradients threefold: op by op, in a block run again, and on a tape that records nothing.
    #[test]
    fn a_rewriting_tape_rewrites_each_value_once() {
        let device = Device::cpu_poisoned();
        let x = Tensor::from_slice(&device, &[2, 3], &[-2.0, -0.5, 0.0, 0.25, 1.0, 3.0]).unwrap();
        let run = |rewrite: Option<&Rewrite>, recompute: bool| {
            let tape = Tape::new(Leaves::default());
            let tape = Tape { rewrite, ..tape };
            let input = tape.input(x.clone());
            let block = |tape: &Tape, v: &[Var]| Ok(vec![tape.one(Silu, &[&v[0]])?]);
            let y = match recompute {
                true => tape.recompute(&[&input], block).unwrap().remove(0),
                false => block(&tape, std::slice::from_ref(&input)).unwrap().remove(0),
            };
            tape.backward(&y, None).unwrap();
            [y.value().f32().to_vec(), tape.grad(&input).unwrap().f32().to_vec()]
        };
        let times = |t: Tensor, k: f32| {
            let values: Vec<f32> = t.f32().iter().map(|v| k * v).collect();
            Tensor::from_slice(t.device(), t.shape(), &values)
        };
        let rewrite = |seen: &Seen, t: Tensor| match seen {
            Seen::Output { op, inputs: [_] } if op.name() == "silu" => times(t, 2.0),
            Seen::Gradient { op: "silu", input: 0 } => times(t, 3.0),
            _ => Ok(t),
        };
        let [y, dy] = run(None, false);
        let want = [y.iter().map(|v| 2.0 * v).collect::<Vec<_>>(), dy.iter().map(|v| 3.0 * v).collect()];
        assert_eq!(run(Some(&rewrite), false), want);
        assert_eq!(run(Some(&rewrite), true), want);
        let beside = Tape::new(Leaves::default()).rewriting(&rewrite).aside();
        let y = beside.one(Silu, &[&Var::constant(x.clone())]).unwrap();
        assert_eq!(y.value().f32(), want[0]);
    }
}
