//! A meta device asks its arena for what the real one does, and touches nothing: every op, forward and backward.

use asasr_engine::engine::{ArenaStats, DType, Device, Tensor};
use asasr_engine::losses;
use asasr_engine::ops::{self, Case, Save, Slot};

/// What the arena of `device` has seen after `case`, whose inputs are held by another.
fn counted(case: &Case, device: &Device, dtype: DType) -> asasr_engine::Result<ArenaStats> {
    let inputs = case.inputs.iter().enumerate().map(|(i, t)| {
        let half = dtype == DType::Bf16 && case.half.contains(&i);
        match half {
            true => Tensor::bf16_from_f32(device, t.shape(), &t.values()?),
            false => Tensor::from_slice(device, t.shape(), &t.values()?),
        }
    });
    let inputs = inputs.collect::<asasr_engine::Result<Vec<_>>>()?;
    let inputs: Vec<&Tensor> = inputs.iter().collect();
    let mut save = Save::new(&case.differentiable);
    let outputs = case.op.forward(&inputs, &mut save)?;
    let saved = save.into_kept();
    if case.differentiable.contains(&true) {
        let grads = outputs.iter().map(|y| y.copied());
        let grads = grads.collect::<asasr_engine::Result<Vec<_>>>()?;
        let grads: Vec<Option<&Tensor>> = grads.iter().map(Some).collect();
        let mut slots = Vec::new();
        for (i, (x, wanted)) in inputs.iter().zip(&case.differentiable).enumerate() {
            let dtype = if case.parameters.contains(&i) { DType::F32 } else { x.dtype() };
            let grad = wanted.then(|| Tensor::zeros_as(device, x.shape(), dtype)).transpose()?;
            slots.push(grad.map(|grad| Slot { grad, accumulate: true }));
        }
        case.op.backward(&saved, &grads, &mut slots)?;
    }
    Ok(device.stats())
}

fn all(device: &Device) -> Vec<Case> {
    [ops::cases(device), losses::cases(device)].into_iter().flatten().filter(|c| !c.long()).collect()
}

/// The cases whose arenas differ, on `device` and a meta device like it.
fn differing(device: impl Fn() -> Device, dtype: DType) -> Vec<String> {
    let mut differing = Vec::new();
    for case in all(&Device::cpu()).iter().filter(|c| dtype == DType::F32 || !c.half.is_empty()) {
        let real = counted(case, &device(), dtype).unwrap_or_else(|e| panic!("{}: {e}", case.name));
        let like = device();
        let meta =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| counted(case, &like.meta(), dtype)));
        match meta {
            Ok(Ok(meta)) if meta == real => {}
            other => differing.push(format!("{}: {real:?} {other:?}", case.name)),
        }
    }
    differing
}

#[test]
fn a_meta_cpu_counts_what_the_cpu_takes() {
    let none: [String; 0] = [];
    assert_eq!(differing(Device::cpu, DType::F32), none);
}

#[test]
fn a_meta_cuda_device_counts_what_the_kernels_take() {
    let Ok(_) = Device::emu() else { return };
    let none: [String; 0] = [];
    for dtype in [DType::F32, DType::Bf16] {
        assert_eq!(differing(|| Device::emu().expect("opened before"), dtype), none);
    }
}
