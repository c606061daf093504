//! What is timed: an op's case on buffers that rotate, its outputs poisoned and looked at beforehand.

use asasr_engine::Result;
use asasr_engine::engine::cuda::Driver;
use asasr_engine::engine::{DType, Device, Philox, Tensor};
use asasr_engine::ops::{Case, Save, Slot};
use std::rc::Rc;
use std::sync::LazyLock;

/// Something to run again and again, on the next set of buffers each time.
pub struct Work {
    /// Operations and bytes of one run, at least.
    pub cost: (f64, f64),
    /// Runs on set i (of [`Work::sets`]) and gives what was computed.
    pub run: Box<dyn FnMut(usize) -> Result<Vec<Tensor>>>,
    /// How many sets of buffers there are.
    pub sets: usize,
}

/// Which half of an op is run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// Forward, saving nothing.
    Forward,
    /// Forward, saving, and backward into gradients that are overwritten.
    Both,
}

impl Pass {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Both => "forward+backward",
        }
    }
}

/// So many sets of buffers that a GPU finds nothing of the last run in its cache, and never fewer than three.
fn sets(device: &Device, bytes: usize) -> usize {
    let gpu = device.gpu().is_some_and(|g| g.driver() == Driver::Nvidia);
    let cover = if gpu { (256usize << 20).div_ceil(bytes.max(1)) } else { 0 };
    cover.clamp(3, 16)
}

pub fn tensor(device: &Device, shape: &[usize], dtype: DType, values: &[f32]) -> Result<Tensor> {
    match dtype {
        DType::F32 => Tensor::from_slice(device, shape, values),
        DType::Bf16 => Tensor::bf16_from_f32(device, shape, values),
    }
}

/// `n` standard normals times `scale`, others for every `at`. Of a pool that repeats after some millions, because a
/// large case wants hundreds of millions and a GPU waits for them.
pub fn normals(n: usize, at: usize, scale: f32) -> Vec<f32> {
    static POOL: LazyLock<Vec<f32>> = LazyLock::new(|| {
        let mut pool = vec![0.0; 4_194_301];
        Philox::new(3, 0).normals(0, &mut pool);
        pool
    });
    let pool = POOL.as_slice();
    let begin = (at * 700_001) % pool.len();
    pool[begin..].iter().chain(pool.iter().cycle()).take(n).map(|v| v * scale).collect()
}

fn bytes(tensors: &[Tensor]) -> usize {
    tensors.iter().map(|t| t.len() * t.dtype().size()).sum()
}

/// A tensor of NaN.
fn poison(device: &Device, shape: &[usize], dtype: DType) -> Result<Tensor> {
    tensor(device, shape, dtype, &vec![f32::NAN; shape.iter().product()])
}

/// The case's inputs as set `i` has them: the same values, begun elsewhere, those of `case.half` in `dtype`.
fn inputs(case: &Case, device: &Device, dtype: DType, i: usize) -> Result<Vec<Tensor>> {
    let of = |(k, t): (usize, &Tensor)| {
        let mut values = t.f32().to_vec();
        let n = values.len().max(1);
        values.rotate_left((i * 7919 + i * (n / 3)) % n);
        tensor(device, t.shape(), if case.half.contains(&k) { dtype } else { DType::F32 }, &values)
    };
    case.inputs.iter().enumerate().map(of).collect()
}

struct Buffers {
    inputs: Vec<Tensor>,
    /// The gradients of the outputs.
    above: Vec<Tensor>,
    slots: Vec<Option<Slot>>,
}

/// `case` on `device`, whose inputs are on the CPU, in `dtype`. Its results have been looked at: every output and gradient
/// was poisoned, and is finite.
pub fn of_case(case: Rc<Case>, device: &'static Device, dtype: DType, pass: Pass) -> Result<Work> {
    let first = inputs(&case, device, dtype, 0)?;
    let halved: usize = case.half.iter().filter(|_| dtype == DType::Bf16).map(|&i| 2 * first[i].len()).sum();
    let sets = sets(device, bytes(&first));
    let mut all: Vec<Buffers> = Vec::new();
    for i in 0..sets {
        let inputs = if i == 0 { first.clone() } else { inputs(&case, device, dtype, i)? };
        all.push(Buffers { inputs, above: Vec::new(), slots: Vec::new() });
    }
    drop(first);
    let outputs = forward(&case, &all[0], &mut Save::nothing())?;
    let wide: usize = outputs.iter().map(|t| (4 - t.dtype().size()) * t.len()).sum();
    let mut cost = (case.flops, case.bytes - (halved + wide) as f64);
    if pass == Pass::Both {
        let mut save = Save::new(&case.differentiable);
        forward(&case, &all[0], &mut save)?;
        let saved = save.into_kept();
        for (i, buffers) in all.iter_mut().enumerate() {
            for (k, o) in outputs.iter().enumerate() {
                let values = normals(o.len(), i * 16 + k, 1.0);
                buffers.above.push(tensor(device, o.shape(), o.dtype(), &values)?);
            }
            for (k, t) in buffers.inputs.iter().enumerate() {
                let of = if case.parameters.contains(&k) { DType::F32 } else { t.dtype() };
                let slot = case.differentiable[k].then(|| poison(device, t.shape(), of)).transpose()?;
                buffers.slots.push(slot.map(|grad| Slot { grad, accumulate: false }));
            }
        }
        // Backward reads what was saved and what comes in, and writes the gradients; of a matrix product it is two more.
        let grads = all[0].slots.iter().flatten().map(|s| s.grad.len() * s.grad.dtype().size());
        cost.1 += (bytes(&saved) + bytes(&all[0].above) + grads.sum::<usize>()) as f64;
        cost.0 *= if matches!(case.op.name(), "linear" | "feed_forward" | "attention") { 3.0 } else { 1.0 };
    }
    // A block that is given back is the next that is given out.
    let shapes: Vec<(Vec<usize>, DType)> = outputs.iter().map(|t| (t.shape().to_vec(), t.dtype())).collect();
    drop(outputs);
    let poisoned: Result<Vec<Tensor>> = shapes.iter().map(|(s, d)| poison(device, s, *d)).collect();
    drop(poisoned?);
    let name = case.name.clone();
    let mut run = move |i: usize| {
        let buffers = &mut all[i];
        if pass == Pass::Forward {
            return forward(&case, buffers, &mut Save::nothing());
        }
        let mut save = Save::new(&case.differentiable);
        let mut computed = forward(&case, buffers, &mut save)?;
        let above: Vec<Option<&Tensor>> = buffers.above.iter().map(Some).collect();
        case.op.backward(&save.into_kept(), &above, &mut buffers.slots)?;
        computed.extend(buffers.slots.iter().flatten().map(|s| s.grad.clone()));
        Ok(computed)
    };
    let computed = run(0)?;
    for t in &computed {
        assert!(t.values()?.iter().all(|v| v.is_finite()), "{name}: {t:?} was not written, or is not finite");
    }
    Ok(Work { cost, run: Box::new(run), sets })
}

fn forward(case: &Case, buffers: &Buffers, save: &mut Save) -> Result<Vec<Tensor>> {
    case.op.forward(&buffers.inputs.iter().collect::<Vec<_>>(), save)
}

/// A copy within the device of `n` f32.
pub fn copy(device: &'static Device, n: usize) -> Result<Work> {
    let sets = 3;
    let from: Result<Vec<Tensor>> =
        (0..sets).map(|i| Philox::new(4, i as u64).tensor(device, &[n], 0)).collect();
    let from = from?;
    let run = move |i: usize| Ok(vec![Tensor::stack(&[&from[i]])?]);
    Ok(Work { cost: (0.0, 8.0 * n as f64), run: Box::new(run), sets })
}

/// AdamW over `n` parameters: norm, clip, update, and the bf16 copy.
pub fn adamw(device: &'static Device, n: usize) -> Result<Work> {
    const SOURCE: &str = "adamw.cu";
    let gpu = device.gpu().expect("a CUDA device");
    let [partial, norm, update] =
        ["adamw_partial_f32", "adamw_norm_f32", "adamw_update_f32"].map(|k| gpu.kernel(SOURCE, k));
    let (partial, norm, update) = (partial?, norm?, update?);
    let blocks = n.div_ceil(1 << 14);
    struct Set {
        w: Tensor,
        g: Tensor,
        m: Tensor,
        v: Tensor,
        half: Tensor,
        partial: Tensor,
        step: Tensor,
    }
    // `Step` of the source at a first update: lr 1e-4, β 0.9 and 0.999, λ 0.01, clip at 1.
    let step = [1e-3, 0.001f32.sqrt(), 1.0 - 1e-6, 0.1, 0.999, 0.001, 1e-8, 1.0, 0.0, 0.0, 0.0, 0.0];
    let set = |i: u64| -> Result<Set> {
        let random = |stream: u64| Philox::new(5 + i, stream).tensor(device, &[n], 0);
        // A second moment is not negative: its square root would be NaN, which is no slower, but is no AdamW.
        let v: Vec<f32> = random(2)?.values()?.iter().map(|v| v * v).collect();
        Ok(Set {
            w: random(0)?,
            g: random(1)?,
            m: random(3)?,
            v: Tensor::from_slice(device, &[n], &v)?,
            half: poison(device, &[n], DType::Bf16)?,
            partial: poison(device, &[blocks, 2], DType::F32)?,
            step: Tensor::from_slice(device, &[step.len()], &step)?,
        })
    };
    let mut all = (0..3).map(set).collect::<Result<Vec<_>>>()?;
    let sets = all.len();
    let grid = (n / 4 + 1).div_ceil(256).min(8 * gpu.properties().multiprocessors as usize);
    let mut run = move |i: usize| {
        let s = &mut all[i];
        gpu.launch(&partial, [blocks, 1, 1], 256).read(&s.g).write(&mut s.partial).value(n as i64).run()?;
        gpu.launch(&norm, [1, 1, 1], 256).read(&s.partial).value(blocks as i32).write(&mut s.step).run()?;
        gpu.launch(&update, [grid, 1, 1], 256)
            .write(&mut s.w)
            .read(&s.g)
            .write(&mut s.m)
            .write(&mut s.v)
            .write(&mut s.half)
            .read(&s.step)
            .value(0i64)
            .value(n as i64)
            .value(1i32)
            .run()?;
        Ok(vec![s.half.clone()])
    };
    let computed = run(0)?;
    assert!(computed[0].values()?.iter().all(|v| v.is_finite()), "AdamW: not finite");
    drop(computed);
    // The norm reads the gradient once more.
    Ok(Work { cost: (16.0 * n as f64, 34.0 * n as f64), run: Box::new(run), sets })
}
