//! Every case of every op that has CUDA kernels, forward and backward, in f32 and bf16, against the CPU's op.
//!
//! The tolerance is derived, not chosen: twice the error of a naive implementation in the same dtype, and the rounding of
//! the result to its dtype, in the 2-norm and at the worst element. What a naive implementation is off by is measured on
//! the CPU's op: by how much its results move when every input and incoming gradient is moved by an ulp of f32, in random directions, or, where
//! the op stores an intermediate (`Case::stores`), by one of the dtype it stores it in. A chain of K additions is off by
//! √K/(2√6) times what its terms' roundings are (`Case::chain`).

mod common;

use asasr_engine::engine::{DType, Device, Philox, Tensor};
use asasr_engine::losses;
use asasr_engine::ops::adamw::launch::{self, Arenas};
use asasr_engine::ops::adamw::{self, AdamW, Gradients};
use asasr_engine::ops::{self, Case, Save, Slot};
use half::bf16;

/// One of an op's results, on the host: an output or an input's gradient.
struct Value {
    what: String,
    dtype: DType,
    values: Vec<f32>,
}

fn normals(stream: u64, n: usize) -> Vec<f32> {
    let mut values = vec![0.0; n];
    Philox::new(99, stream).normals(0, &mut values);
    values
}

fn round(values: &mut [f32]) {
    values.iter_mut().for_each(|v| *v = bf16::from_f32(*v).to_f32());
}

/// A tensor of these values as `dtype`, which holds them exactly.
fn tensor(device: &Device, shape: &[usize], dtype: DType, values: &[f32]) -> Tensor {
    match dtype {
        DType::F32 => Tensor::from_slice(device, shape, values),
        DType::Bf16 => Tensor::bf16_from_f32(device, shape, values),
    }
    .unwrap_or_else(|e| panic!("{e}"))
}

/// A relative step in a random direction, one for each number.
type Nudge = Option<(f32, u64)>;

/// `values` moved, those of number `i`.
fn nudged(values: &[f32], i: u64, nudge: Nudge) -> Vec<f32> {
    let Some((step, direction)) = nudge else { return values.to_vec() };
    let signs = normals(2000 + 200 * direction + i, values.len());
    values.iter().zip(signs).map(|(v, s)| v * (1.0 + step * s.signum())).collect()
}

/// Runs `case` on `device` with inputs `values`, those of `case.half` in `dtype`; gradients are added to normals where
/// `accumulate`. Inputs and incoming gradients are moved by `nudge`.
fn run(
    case: &Case,
    device: &Device,
    dtype: DType,
    values: &[Vec<f32>],
    accumulate: bool,
    nudge: Nudge,
) -> Vec<Value> {
    let of = |i: usize| if case.half.contains(&i) { dtype } else { DType::F32 };
    let inputs: Vec<Tensor> = values
        .iter()
        .enumerate()
        .map(|(i, v)| tensor(device, case.inputs[i].shape(), of(i), &nudged(v, i as u64, nudge)))
        .collect();
    let inputs: Vec<&Tensor> = inputs.iter().collect();
    let mut save = Save::new(&case.differentiable);
    let outputs = case.op.forward(&inputs, &mut save).unwrap_or_else(|e| panic!("{}: {e}", case.name));
    let saved = save.into_kept();
    let gradient = |i: usize, shape: &[usize], dtype: DType| {
        let mut values = normals(1000 + i as u64, shape.iter().product());
        // The same on both devices, and exact in either dtype.
        round(&mut values);
        // What is added to is not moved: no rounding of the op's touches it but the last.
        let nudge = nudge.filter(|_| i < 100);
        tensor(device, shape, dtype, &nudged(&values, 100 + i as u64, nudge))
    };
    // Each output's gradient, of its dtype.
    let above: Vec<Tensor> =
        outputs.iter().enumerate().map(|(i, o)| gradient(i, o.shape(), o.dtype())).collect();
    let above: Vec<Option<&Tensor>> = above.iter().map(Some).collect();
    let mut slots: Vec<Option<Slot>> = (0..inputs.len())
        .map(|i| {
            let dtype = if case.parameters.contains(&i) { DType::F32 } else { of(i) };
            let grad = || gradient(100 + i, inputs[i].shape(), dtype);
            case.differentiable[i].then(|| Slot { grad: grad(), accumulate })
        })
        .collect();
    case.op.backward(&saved, &above, &mut slots).unwrap_or_else(|e| panic!("{}: {e}", case.name));
    let outputs = outputs.iter().enumerate().map(|(i, t)| (format!("output {i}"), t));
    let gradients = slots.iter().enumerate();
    let gradients =
        gradients.filter_map(|(i, s)| Some((format!("gradient of input {i}"), &s.as_ref()?.grad)));
    let value = |(what, t): (String, &Tensor)| {
        let values = t.values().unwrap_or_else(|e| panic!("{}: {e}", case.name));
        Value { what, dtype: t.dtype(), values }
    };
    outputs.chain(gradients).map(value).collect()
}

/// Half an ulp of 1 in `dtype`.
fn unit(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => 2f64.powi(-24),
        DType::Bf16 => 2f64.powi(-8),
    }
}

/// The 2-norm and the largest size of a − b.
fn distance(a: &[f32], b: &[f32]) -> [f64; 2] {
    assert_eq!(a.len(), b.len());
    let off = || a.iter().zip(b).map(|(&a, &b)| (f64::from(a) - f64::from(b)).abs());
    [off().map(|v| v * v).sum::<f64>().sqrt(), off().fold(0.0, f64::max)]
}

/// The share of the tolerance that `got` uses, 1 being its edge, where the naive implementation is off by `naive`.
fn share(got: &Value, want: &Value, naive: [f64; 2]) -> f64 {
    if got.values.iter().any(|g| !g.is_finite()) {
        return f64::INFINITY;
    }
    let (off, size) =
        (distance(&got.values, &want.values), distance(&want.values, &vec![0.0; want.values.len()]));
    let allowed = |i: usize| 2.0 * naive[i] + unit(got.dtype) * size[i] + f64::from(f32::MIN_POSITIVE);
    (off[0] / allowed(0)).max(off[1] / allowed(1))
}

/// What moving the inputs moves each result by, at most, over a few directions.
fn moved(case: &Case, dtype: DType, values: &[Vec<f32>], want: &[Value], accumulate: bool) -> Vec<[f64; 2]> {
    let step = if case.stores { 2.0 * unit(dtype) } else { 2.0 * unit(DType::F32) };
    let chain = ((case.chain as f64).sqrt() / 24f64.sqrt()).max(1.0);
    let mut most = vec![[0f64; 2]; want.len()];
    for direction in 0..3 {
        let near = run(case, &Device::cpu(), DType::F32, values, accumulate, Some((step as f32, direction)));
        for ((most, near), want) in most.iter_mut().zip(&near).zip(want) {
            let by = distance(&near.values, &want.values);
            *most = [0, 1].map(|i| most[i].max(chain * by[i]));
        }
    }
    most
}

#[test]
fn kernels_agree_with_the_cpu() {
    let Some(device) = common::cuda::device() else { return };
    let cpu = Device::cpu();
    let mut failures = Vec::new();
    let mut rows = 0;
    let cases = [ops::cases(&cpu), losses::cases(&cpu)];
    for case in cases.iter().flatten().filter(|c| c.op.cuda()) {
        if case.long() && format!("{device:?}") == "emu" {
            println!("{:44} left out: {:.1e} FLOPs take the emulator too long", case.name, case.flops);
            continue;
        }
        for dtype in [DType::F32, DType::Bf16] {
            if dtype == DType::Bf16 && case.half.is_empty() {
                continue;
            }
            let mut values: Vec<Vec<f32>> = case.inputs.iter().map(|t| t.f32().to_vec()).collect();
            if dtype == DType::Bf16 {
                case.half.iter().for_each(|&i| round(&mut values[i]));
            }
            for accumulate in [false, true] {
                let want = run(case, &cpu, DType::F32, &values, accumulate, None);
                let naive = moved(case, dtype, &values, &want, accumulate);
                let got = run(case, &device, dtype, &values, accumulate, None);
                let again = run(case, &device, dtype, &values, accumulate, None);
                let mut worst: f64 = 0.0;
                for (((got, again), want), naive) in got.iter().zip(&again).zip(&want).zip(naive) {
                    let share = share(got, want, naive);
                    let title = || format!("{} {dtype:?}, accumulate {accumulate}, {}", case.name, got.what);
                    if share > 1.0 {
                        failures.push(format!("{}: {share:.2} of the tolerance", title()));
                    }
                    let bits = |v: &Value| v.values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                    if bits(got) != bits(again) {
                        failures.push(format!("{}: other bits the second time", title()));
                    }
                    worst = worst.max(share);
                }
                rows += 1;
                println!(
                    "{:44} {:5} {:10} {worst:.3}",
                    case.name,
                    dtype.name(),
                    if accumulate { "accumulate" } else { "" }
                );
            }
        }
    }
    assert!(rows > 0 && failures.is_empty(), "of {rows}:\n{}", failures.join("\n"));
}

/// Three updates, clipped, with and without decay: the CPU's bits; a gradient that is not finite changes nothing.
#[test]
fn the_optimizer_has_the_cpus_bits() {
    let Some(device) = common::cuda::device() else { return };
    let gpu = device.gpu().expect("a CUDA device");
    let opt = AdamW { weight_decay: 0.1, ..AdamW::default() };
    let sizes = [(20_001, true), (37, false), (2, false), (16_384, true)];
    let n: usize = sizes.iter().map(|s| s.0).sum();
    let (mut w, mut m, mut v, mut average) = (normals(1, n), vec![0.0; n], vec![0.0; n], normals(2, n));
    let on = |values: &[f32]| tensor(&device, &[values.len()], DType::F32, values);
    let (mut w2, mut m2, mut v2, mut average2) = (on(&w), on(&m), on(&v), on(&average));
    let mut half = tensor(&device, &[n], DType::Bf16, &vec![0.0; n]);
    let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    for step in 1..=3 {
        let mut g = normals(10 + step, n);
        let mean = Gradients { share: 0.5, max_norm: 50.0 };
        let (norm, clip) = (mean.norm(&g), mean.factor(mean.norm(&g)));
        assert!(clip < 0.5);
        adamw::update(&opt.at(step, 1e-2, clip), &sizes, &mut w, &g, &mut m, &mut v);
        adamw::average(0.9, &w, &mut average);
        let update = |g: &[f32], w: &mut Tensor, m: &mut Tensor, v: &mut Tensor, half: &mut Tensor| {
            let arenas = Arenas { w, g: &on(g), m, v, half: Some(half) };
            launch::update(gpu, &opt, (step, 1e-2), mean, &sizes, arenas).unwrap_or_else(|e| panic!("{e}"))
        };
        let found = update(&g, &mut w2, &mut m2, &mut v2, &mut half).values().unwrap();
        assert_eq!(found, [norm]);
        launch::average(gpu, 0.9, &w2, &mut average2).unwrap();
        let same = [(&w, &w2), (&m, &m2), (&v, &v2), (&average, &average2)];
        for (i, (cpu, cuda)) in same.into_iter().enumerate() {
            assert!(bits(cpu) == bits(&cuda.values().unwrap()), "step {step}, arena {i}");
        }
        let mut rounded = w.clone();
        round(&mut rounded);
        assert!(bits(&rounded) == bits(&half.values().unwrap()));
        g[n / 2] = f32::NAN;
        assert!(update(&g, &mut w2, &mut m2, &mut v2, &mut half).values().unwrap()[0].is_nan());
        assert!(bits(&w) == bits(&w2.values().unwrap()));
    }
}

/// The noise is a counter: the same bits wherever a draw begins.
#[test]
fn noise_has_the_cpus_bits() {
    let Some(device) = common::cuda::device() else { return };
    for (stream, first, n) in [(0, 0, 1000), (7, 3, 1), (1 << 40, (1 << 34) + 5, 4099), (9, 8, 16_384)] {
        let philox = Philox::new(0x1234_5678_9abc_def0, stream);
        let on = |device: &Device| philox.tensor(device, &[n], first).unwrap().values().unwrap();
        let (cpu, cuda) = (on(&Device::cpu()), on(&device));
        assert!(cpu.iter().zip(&cuda).all(|(a, b)| a.to_bits() == b.to_bits()), "{stream} {first} {n}");
    }
}
