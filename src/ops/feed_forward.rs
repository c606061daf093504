//! Two linear layers with GELU between them.
//!
//! ```text
//! h = GELU(up(x));   y = down(h)   |   down([beside | h])        the latter where `down` is `joined`
//! ```
//! Inputs, in order: up's, that is x first; then down's without h, that is `beside` first where there is one.
//!
//! Saves what the two layers save but h, the widest activation of all: a gradient of down's weights takes it from what
//! went into GELU once more. What it gains beside the two as ops: that, nothing is copied to stand beside h, and the
//! gradient of h is never written; down's product multiplies it with GELU′ on the way.

use super::gelu::Gelu;
use super::linear::{Epilogue, Linear, empty, gate, layer};
use super::{Case, Op, Save, Slot, expect_inputs};
use crate::Result;
use crate::engine::{Device, Tensor};

/// The op.
#[derive(Clone, Debug)]
pub struct FeedForward {
    up: Linear,
    down: Linear,
}

impl FeedForward {
    /// `up`, GELU in the place of its epilogue, then `down`.
    pub fn new(up: Linear, down: Linear) -> Self {
        Self { up: Linear { epilogue: Epilogue::Gelu, ..up }, down }
    }

    /// Where h stands among down's inputs.
    fn hidden(&self) -> usize {
        usize::from(self.down.joined)
    }
}

impl Op for FeedForward {
    fn name(&self) -> &'static str {
        "feed_forward"
    }

    fn cuda(&self) -> bool {
        self.down.cuda()
    }

    fn forward(&self, inputs: &[&Tensor], save: &mut Save) -> Result<Vec<Tensor>> {
        let n = self.up.inputs();
        expect_inputs("feed_forward", inputs, n + self.down.inputs() - 1)?;
        let (first, second) = inputs.split_at(n);
        let needs: Vec<bool> = (0..inputs.len()).map(|i| save.needs(i)).collect();
        let mut of_up = Save::new(&needs[..n]);
        let h = self.up.forward(first, &mut of_up)?.remove(0);
        let (mut second, mut needs) = (second.to_vec(), needs[n..].to_vec());
        second.insert(self.hidden(), &h);
        needs.insert(self.hidden(), of_up.wanted());
        let mut of_down = Save::new(&needs);
        let y = self.down.forward(&second, &mut of_down)?;
        let (again, mut of_down) = (of_up.wanted(), of_down.into_kept());
        if let (true, Some(kept)) = (again, of_down.get_mut(self.hidden())) {
            *kept = empty(&h)?;
        }
        of_up.into_kept().iter().chain(&of_down).for_each(|t| save.keep(t));
        Ok(y)
    }

    fn backward(
        &self,
        saved: &[Tensor],
        grads: &[Option<&Tensor>],
        slots: &mut [Option<Slot>],
    ) -> Result<()> {
        let Some(dy) = grads[0] else { return Ok(()) };
        let (first, second) = slots.split_at_mut(self.up.inputs());
        // What up saved is one more than its inputs, or nothing where it has no gradient to find.
        let wanted = first.iter().any(Option::is_some);
        let (of_up, of_down) = saved.split_at(if wanted { first.len() + 1 } else { 0 });
        let z = of_up.get(self.up.tensors());
        let dz = z.map(|z| Tensor::empty_as(z.device(), z.shape(), z.dtype())).transpose()?;
        let mut inner: Vec<Option<Slot>> = second.iter_mut().map(Option::take).collect();
        inner.insert(self.hidden(), dz.map(|grad| Slot { grad, accumulate: false }));
        let mut of_down = of_down.to_vec();
        if let Some(z) = z.filter(|_| self.down.reads_x(|i| inner[i].is_some())) {
            of_down[self.hidden()] = Gelu.forward(&[z], &mut Save::nothing())?.remove(0);
        }
        self.down.backward_through(&of_down, dy, z, &mut inner)?;
        drop(of_down);
        let dz = inner.remove(self.hidden());
        second.iter_mut().zip(inner).for_each(|(slot, inner)| *slot = inner);
        let Some(dz) = dz else { return Ok(()) };
        let straight = Linear { epilogue: Epilogue::None, ..self.up.clone() };
        straight.backward(of_up, &[Some(&dz.grad)], first)
    }
}

/// Both forms, with adapters; then those of the tiny preset's blocks, and widths that the GPU's pieces
/// of 16 bytes rule out.
pub fn cases(device: &Device) -> Vec<Case> {
    // From `d` features to `hidden` and back to `d`; with `beside` as many as it takes to make h four fifths.
    let make = |name: &str, [b, t, d, hidden]: [usize; 4], beside: bool, ranks: &[usize]| {
        let tokens = t / 2..t;
        let up = layer(device, [b, t, d, hidden], Linear::plain(), ranks, tokens.clone());
        let form = Linear { joined: beside, epilogue: gate(b, t), ..Linear::plain() };
        let into = if beside { hidden + hidden / 4 } else { hidden };
        let mut down = layer(device, [b, t, into, d], form, ranks, tokens);
        let op = FeedForward::new(up.op, down.op);
        down.inputs.remove(op.hidden());
        let n = up.inputs.len();
        // Without h, what stood behind it stands one place earlier.
        let moved = |at: Vec<usize>| {
            let at = at.into_iter().filter(|&i| i != op.hidden());
            at.map(|i| n + i - usize::from(i > op.hidden())).collect::<Vec<_>>()
        };
        let (parameters, half) = (moved(down.parameters), moved(down.half));
        Case::new(format!("feed_forward/{name}"), op, [up.inputs, down.inputs].concat())
            .chain((b * t).max(into))
            .stores(true)
            .half(&[up.half, half].concat())
            .parameters(&[up.parameters, parameters].concat())
            .cost(up.flops + down.flops, b * t * d)
    };
    vec![
        make("small", [2, 3, 5, 8], false, &[]),
        make("small, beside", [2, 3, 5, 8], true, &[]),
        make("lora", [4, 4, 10, 8], false, &[2, 3]),
        make("lora, beside", [4, 4, 7, 16], true, &[2, 3]),
        make("3x128 128→512 +lora", [3, 128, 128, 512], false, &[16, 16]).bench_only(),
        make("3x129 128→512 beside +lora", [3, 129, 128, 512], true, &[16, 16]).bench_only(),
        make("3x70 37→68 beside", [3, 70, 37, 68], true, &[]).bench_only(),
        make("3x70 37→67", [3, 70, 37, 67], false, &[3]).bench_only(),
    ]
}
