//! Planes as tokens and back, for frozen networks: `y[b, j, i] = x[b, i, j]`, f32. No op, for nothing of it is trained.

use super::{cuda, dims3, expect_f32};
use crate::Result;
use crate::engine::{Tensor, matmul};

const NAME: &str = "transpose";

/// `[batch, rows, columns]` as `[batch, columns, rows]`.
pub fn transposed(x: &Tensor) -> Result<Tensor> {
    let [batch, rows, columns] = dims3(NAME, "x", x)?;
    expect_f32(NAME, &[x])?;
    let mut y = Tensor::empty(x.device(), &[batch, columns, rows])?;
    if y.is_empty() {
        return Ok(y);
    }
    let Some(gpu) = x.device().gpu() else {
        let each = rows * columns;
        let samples = y.f32_mut().chunks_exact_mut(each).zip(x.f32().chunks_exact(each));
        samples.for_each(|(y, x)| matmul::transpose(x, columns, y));
        return Ok(y);
    };
    let kernel = gpu.kernel("conv2d.cu", "conv2d_fwd_turn_f32")?;
    gpu.launch(&kernel, [columns.div_ceil(32), rows.div_ceil(32), batch], cuda::THREADS)
        .read(x)
        .write(&mut y)
        .value(cuda::int(NAME, rows)?)
        .value(cuda::int(NAME, rows)?)
        .value(cuda::int(NAME, columns)?)
        .run()?;
    Ok(y)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Device;
    use crate::ops::given;

    #[test]
    fn every_sample_is_turned() {
        let cpu = Device::cpu_poisoned();
        let x = given(&cpu, &[2, 2, 3], &[1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12.]);
        let y = transposed(&x).unwrap();
        assert_eq!(y.shape(), [2, 3, 2]);
        assert_eq!(y.f32(), [1., 4., 2., 5., 3., 6., 7., 10., 8., 11., 9., 12.]);
        assert!(transposed(&given(&cpu, &[2, 3], &[0.0; 6])).is_err());
    }
}
