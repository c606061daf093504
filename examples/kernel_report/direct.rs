//! Launches of kernels that no op's case makes: the engine's own, the optimizer's, and forms of the matrix product that
//! nothing asks for yet. Extents are those of a small step; contents do not matter.

use asasr_engine::Error;
use asasr_engine::engine::cuda::Gpu;
use asasr_engine::engine::{DType, Device, Tensor, kernels};

type Any = Box<dyn std::error::Error>;
type Result<T, E = Error> = std::result::Result<T, E>;

/// Elements of the arrays.
const N: usize = 1 << 17;
/// Blocks of 256 of a kernel that takes any number.
const BLOCKS: [usize; 3] = [32, 1, 1];

/// An array of ones.
fn ones(device: &Device, shape: &[usize], dtype: DType) -> Result<Tensor> {
    let values = vec![1.0; shape.iter().product()];
    match dtype {
        DType::F32 => Tensor::from_slice(device, shape, &values),
        DType::Bf16 => Tensor::bf16_from_f32(device, shape, &values),
    }
}

/// Words, as they are, in an array of f32.
fn words(device: &Device, words: &[u32]) -> Result<Tensor> {
    let values: Vec<f32> = words.iter().map(|&w| f32::from_bits(w)).collect();
    Tensor::from_slice(device, &[words.len()], &values)
}

/// Calls `each` after every launch, with a word for what it was given.
pub fn run(device: &Device, gpu: &Gpu, mut each: impl FnMut(&str) -> Result<(), Any>) -> Result<(), Any> {
    let kernel = |source, name: &str| gpu.kernel(source, name);
    let all = format!("{N} values");
    for dtype in [DType::F32, DType::Bf16] {
        let make = || ones(device, &[N], dtype);
        let (x, mut y) = (make()?, make()?);
        let named = |name: &str| kernel("elementwise.cu", &format!("{name}_{}", dtype.name()));
        gpu.launch(&*named("fill")?, BLOCKS, 256).write(&mut y).value(2f32).value(N as i64).run()?;
        gpu.launch(&*named("add")?, BLOCKS, 256).read(&x).write_or_add(&mut y, true).value(N as i64).run()?;
        let at = ones(device, &[1], DType::F32)?;
        for (name, adds) in [("axpy", true), ("scale", false)] {
            let kernel = named(name)?;
            let launch = gpu.launch(&kernel, BLOCKS, 256).value(0.5f32).read(&at).read(&x);
            launch.write_or_add(&mut y, adds).value(N as i64).run()?;
        }
        let stream = words(device, &[5, 0, 6, 0, 8, 0])?;
        let normals = kernel("philox.cu", &format!("philox_normal_{}", dtype.name()))?;
        gpu.launch(&normals, BLOCKS, 256).read(&stream).write(&mut y).value(N as i64).run()?;
        each(&all)?;
    }
    adamw(device, gpu)?;
    each(&all)?;
    for (shape, what) in [([256, 256, 256], "256x256x256"), ([200, 136, 72], "200x136x72")] {
        products(device, gpu, shape)?;
        each(what)?;
    }
    Ok(())
}

/// One update of the optimizer, and the running average of its parameters.
fn adamw(device: &Device, gpu: &Gpu) -> Result<()> {
    let kernel = |name| gpu.kernel("adamw.cu", name);
    let make = || ones(device, &[N], DType::F32);
    let (g, mut w, mut m, mut v, mut half) =
        (make()?, make()?, make()?, make()?, ones(device, &[N], DType::Bf16)?);
    let pieces = N.div_ceil(1 << 14);
    // f64: two f32 each. More of them than those pieces, or the norm would move next to nothing.
    let (mut partial, many) = (Tensor::empty(device, &[pieces, 2])?, Tensor::zeros(device, &[8192, 2])?);
    gpu.launch(&*kernel("adamw_partial_f32")?, [pieces, 1, 1], 256)
        .read(&g)
        .write(&mut partial)
        .value(N as i64)
        .run()?;
    let mut step = [1.0f32.to_bits(); 12];
    step[10] = 1; // finite
    let mut step = words(device, &step)?;
    // Of the step it writes three words and reads one.
    gpu.launch(&*kernel("adamw_norm_f32")?, [1, 1, 1], 256)
        .read(&many)
        .value(8192i32)
        .write_part(&mut step, 12)
        .moves(4)
        .run()?;
    gpu.launch(&*kernel("adamw_update_f32")?, BLOCKS, 256)
        .write_or_add(&mut w, true)
        .read(&g)
        .write_or_add(&mut m, true)
        .write_or_add(&mut v, true)
        .write(&mut half)
        .read(&step)
        .value(0i64)
        .value(N as i64)
        .value(1i32)
        .run()?;
    gpu.launch(&*kernel("adamw_average_f32")?, BLOCKS, 256)
        .value(0.999f32)
        .read(&w)
        .write_or_add(&mut m, true)
        .value(N as i64)
        .run()
}

/// The products of bf16 with an f32 result, and those whose rows begin anywhere.
fn products(device: &Device, gpu: &Gpu, [m, n, k]: [usize; 3]) -> Result<()> {
    let source = kernels::text("linear.cu")?;
    let bias = ones(device, &[n], DType::Bf16)?;
    // Name, the dtype of what it makes, whether it makes it before GELU too, and the distances of A's and B's rows.
    let forms = [
        ("linear_fwd_wide", DType::F32, false, [k, k]),
        ("linear_fwd_wide_any", DType::F32, false, [k, k]),
        ("linear_fwd_any", DType::Bf16, false, [k, k]),
        ("linear_fwd_gelu_any", DType::Bf16, true, [k, k]),
        ("linear_bwd_dx_any", DType::Bf16, false, [k, n]),
        ("linear_bwd_dw_any", DType::F32, false, [m, n]),
    ];
    for (name, dtype, twice, [lda, ldb]) in forms {
        let name = format!("{name}_bf16");
        let (a, b) = (ones(device, &[m, k], DType::Bf16)?, ones(device, &[n, k], DType::Bf16)?);
        let make = || Tensor::empty_as(device, &[m, n], dtype);
        let (mut c, mut z) = (make()?, make()?);
        let kernel = gpu.kernel("linear.cu", &name)?;
        let launch = gpu.launch(&kernel, [m.div_ceil(128) * n.div_ceil(128), 1, 1], 256);
        let launch = launch.shared(kernels::dynamic_shared(source, &name) as usize).read(&a).read(&b);
        let launch = launch.read(&bias).write(&mut c);
        let launch = if twice { launch.write(&mut z) } else { launch };
        // `Problem` of the source: extents, distances of rows, α, whether to accumulate.
        let [m32, n32, k32, lda, ldb] = [m, n, k, lda, ldb].map(|n| n as u32);
        let problem = [m32, n32, k32, lda, ldb, n32, 1f32.to_bits(), 0];
        let tiled = |n: usize, by| n.next_multiple_of(by);
        launch.value(problem).multiplies(2 * tiled(m, 128) * tiled(n, 128) * tiled(k, 32)).run()?;
    }
    Ok(())
}
