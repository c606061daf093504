//! Launches of kernels that no op's case makes: the engine's own and the optimizer's. Extents are those of a small step;
//! contents do not matter.

use asasr_engine::Error;
use asasr_engine::engine::cuda::Gpu;
use asasr_engine::engine::{DType, Device, Tensor};
use asasr_engine::losses::riesz::Riesz;

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
    let g = ones(device, &[4, 16, 32, 32], DType::F32)?;
    Riesz::new(1.5).direction(&g, &[1.0; 4])?;
    each("4x16x32x32")?;
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
