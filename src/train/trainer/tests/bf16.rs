//! The updates of every stage in bf16 on a CUDA device, each from the state that the CPU's f32 run is in then, and beside
//! them what a naive bf16 implementation, emulated on the CPU, makes of the very same update.

use super::*;
use crate::flux::rounding::{INSIDE, NAIVE, rounded, rounded_adapter, rounded_matrices, rounding};

/// The frozen parts as bf16 has them.
fn halved(made: &Artifacts) -> Artifacts {
    let base = made.base.as_ref().map(|base| rounded_matrices(base, &Device::cpu()).unwrap());
    let adapters = made.adapters.iter().map(|(n, f)| (n.clone(), rounded_adapter(f).unwrap())).collect();
    Artifacts { base, adapters, files: BTreeMap::new() }
}

/// The angle between two gradients.
fn angle(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    (dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()).min(1.0).acos()
}

/// The 2-norm.
fn norm(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |sum, v| sum + v * v).sqrt()
}

/// What one implementation is off by from the CPU's f32, update by update.
#[derive(Default)]
struct Off {
    angles: Vec<f64>,
    losses: Vec<f64>,
    /// Of the means over winners and losers, their 2-norm.
    gaps: Vec<f64>,
}

impl Off {
    fn turned(&mut self, got: &Session, want: &Session) {
        let grads = |s: &Session| s.state.params.grads().unwrap();
        self.angles.push(angle(&grads(got), &grads(want)));
    }

    fn read(&mut self, got: &Session, want: &Session) {
        let (got, want) = (got.log(), want.log());
        let off = |name: &str, i: usize| f64::from(got[name][i]) - f64::from(want[name][i]);
        let gaps: Vec<&str> = want.keys().map(|n| &**n).filter(|n| n.starts_with("gap_")).collect();
        for i in 0..want["loss"].len() {
            self.losses.push(off("loss", i).abs());
            self.gaps.push(norm(&gaps.iter().map(|name| off(name, i)).collect::<Vec<_>>()));
        }
    }
}

/// Ten updates of each stage, each from the state that the CPU's run is in then. Each update's gradient is turned by no
/// more than the naive one, which spares nothing. Losses and gaps are a few numbers of which a single update's may by
/// chance be right, so all updates' are held together; and to what spares velocities and gaps: where those are bf16 too,
/// a small gap is lost, which looks like an error no larger than the gap.
#[test]
fn bf16_costs_no_update_more_than_a_naive_one() {
    let Some(device) = cuda::device() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (f32s, bf16s) = (config(TEN), config(&format!("{TEN} run.precision=bf16")));
    let (cpu, gpu) = (context(&f32s, &Device::cpu(), folder.path()), context(&bf16s, &device, folder.path()));
    let policies = [NAIVE, INSIDE].map(|classes| rounding(&cpu.flux, classes));
    let (mut made, mut on_device) = (Artifacts::default(), Artifacts::default());
    let mut failures = Vec::new();
    for (stage, exported) in STAGES.into_iter().zip(EXPORTED) {
        let (steps, name) = (f32s.stage(stage).steps, stage.name());
        let plan = cpu.plan(stage, &made).unwrap();
        let (far, rough) = (gpu.plan(stage, &on_device).unwrap(), halved(&made));
        let rough = cpu.plan(stage, &rough).unwrap().computing_modulation(&rough);
        let mut here = Session::new(&cpu, &plan, 0..steps, |_, _| ());
        let mut others = vec![Session::new(&gpu, &far, 0..steps, |_, _| ())];
        for policy in &policies {
            let mut session = Session::new(&cpu, &rough, 0..steps, |_, _| ());
            session.underway.micros.rewriting(policy);
            others.push(session);
        }
        let mut off = [(); 3].map(|()| Off::default());
        for step in 0..steps {
            let before = remembered(&here.state.params);
            here.update();
            for (i, other) in others.iter_mut().enumerate() {
                remember(&mut other.state.params, &before, step, |name, values| {
                    if i > 0 && name.starts_with("master/") {
                        values.iter_mut().for_each(|v| *v = rounded(*v));
                    }
                });
                other.update();
                off[i].turned(other, &here);
            }
        }
        off.iter_mut().zip(&others).for_each(|(off, other)| off.read(other, &here));
        let [kernels, naive, spared] = &off;
        println!(
            "{name}: gradient turned by, loss and gaps off by: kernels | naive | naive but for velocity and gap"
        );
        for i in 0..steps {
            let of = |o: &Off| format!("{:.1e} {:.1e} {:.1e}", o.angles[i], o.losses[i], o.gaps[i]);
            println!("  {i} {} | {} | {}", of(kernels), of(naive), of(spared));
            if kernels.angles[i] > naive.angles[i] {
                failures.push(format!("{name}, update {i}: the gradient, {} | {}", of(kernels), of(naive)));
            }
        }
        let of = |off: &Off| [("losses", norm(&off.losses)), ("gaps", norm(&off.gaps))];
        for ((what, ours), (_, theirs)) in of(kernels).into_iter().zip(of(spared)) {
            if ours > theirs {
                failures.push(format!("{name}: {what}, {ours:.1e} off, {theirs:.1e} naively"));
            }
        }
        export::export(&cpu, &plan, &mut here.state.params, &mut made).unwrap();
        on_device.load(folder.path(), &[exported], &gpu.flux, &device, DType::Bf16).unwrap();
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
