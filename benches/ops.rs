//! Every op's cases, forward, and forward + backward where there is a gradient: time, FLOP/s, byte/s.
//!
//! FLOPs and bytes are what the case states for forward: the least the op must do and move. Backward of a matrix product
//! or of attention is counted as two more; of every other op it is not counted, so those rates are floors.
#![allow(missing_docs, reason = "criterion's macros")]

mod support;

use asasr_engine::autograd::gradcheck::Function;
use asasr_engine::autograd::{Leaves, Tape, Var};
use asasr_engine::engine::{Device, Tensor};
use asasr_engine::ops::{Case, Save, cases, random};
use criterion::{Criterion, criterion_group, criterion_main};
use std::hint::black_box;
use support::{Flops, Table};

fn forward(case: &Case) -> Vec<Tensor> {
    let inputs: Vec<&Tensor> = case.inputs.iter().collect();
    case.op.forward(&inputs, &mut Save::nothing()).expect("a case runs")
}

/// Forward on a tape and backward from the first output, with the incoming gradient `seed`.
fn forward_backward(case: &Case, seed: &Tensor) {
    let tape = Tape::new(Leaves::default());
    let vars: Vec<Var> = case
        .inputs
        .iter()
        .zip(&case.differentiable)
        .map(|(t, &d)| if d { tape.input(t.clone()) } else { Var::constant(t.clone()) })
        .collect();
    let outputs = case.op.run(&tape, &vars).expect("a case runs");
    tape.backward(&outputs[0], Some(seed.clone())).expect("a case has a gradient");
    black_box(tape.into_leaves());
}

fn ops(c: &mut Criterion<Flops>) {
    let device = Device::cpu();
    let (mut used, mut table) = (Vec::new(), Table::default());
    for case in cases(&device) {
        // Two cases of one name differ in what is not in it.
        used.push(case.name.clone());
        let again = used.iter().filter(|n| **n == case.name).count();
        let name = if again == 1 { case.name.clone() } else { format!("{} #{again}", case.name) };
        let mut group = c.benchmark_group(&name);
        let cost = (case.flops, case.bytes);
        table.measure(&mut group, (&name, "forward"), cost, || drop(black_box(forward(&case))));
        if case.differentiable.contains(&true) {
            let output = forward(&case).swap_remove(0);
            let seed = random(&device, output.shape(), 50, 1.0);
            let times =
                if matches!(case.op.name(), "linear" | "feed_forward" | "attention") { 3.0 } else { 1.0 };
            let cost = (times * case.flops, times * case.bytes);
            table.measure(&mut group, (&name, "forward+backward"), cost, || forward_backward(&case, &seed));
        }
        group.finish();
    }
    table.print();
}

criterion_group! { name = benches; config = support::criterion(); targets = ops }
criterion_main!(benches);
