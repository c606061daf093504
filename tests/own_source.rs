//! CUDA C++ of the caller's own, through the engine's compiler, loader and launches.
#![allow(missing_docs, reason = "tests")]

#[allow(dead_code, reason = "this test asks for no emulator in particular")]
#[path = "common/cuda.rs"]
mod cuda;

use asasr_engine::engine::nvrtc::Source;
use asasr_engine::engine::{Tensor, kernels};

const SOURCE: &str = r#"
#include "common/types.cuh"
extern "C" __global__ void __launch_bounds__(64) twice(const float* x, float* y, u32 n) {
    u32 i = blockIdx.x * 64 + threadIdx.x;
    if (i < n) y[i] = 2.0f * x[i];
}
"#;

#[test]
fn it_runs_and_may_include_the_engines_headers() {
    let Some(device) = cuda::device() else { return };
    let gpu = device.gpu().expect("a CUDA device");
    let headers = kernels::headers_of(SOURCE).unwrap();
    let source = Source { name: "mine.cu", text: SOURCE, headers: &headers };
    let kernel = gpu.compile(&source, "twice").unwrap();
    let values: Vec<f32> = (0..100).map(|i| i as f32 - 3.5).collect();
    let x = Tensor::from_slice(&device, &[100], &values).unwrap();
    let mut y = Tensor::empty(&device, &[100]).unwrap();
    gpu.launch(&kernel, [2, 1, 1], 64).read(&x).write(&mut y).value(100u32).run().unwrap();
    let wanted: Vec<f32> = values.iter().map(|v| 2.0 * v).collect();
    assert_eq!(y.values().unwrap(), wanted);

    let e = kernels::headers_of("#include \"common/typos.cuh\"").unwrap_err().to_string();
    assert!(e.contains("did you mean `common/types.cuh`"), "{e}");
}
