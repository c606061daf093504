//! Planes as tokens and back, for frozen networks: `y[b, j, i] = x[b, i, j]`, f32. No op, for nothing of it is trained.

use super::conv2d::turned;
use super::{dims3, expect_f32};
use crate::Result;
use crate::engine::{Tensor, matmul};

const NAME: &str = "transpose";

/// `[batch, rows, columns]` as `[batch, columns, rows]`.
pub fn transposed(x: &Tensor) -> Result<Tensor> {
    let [batch, rows, columns] = dims3(NAME, "x", x)?;
    expect_f32(NAME, &[x])?;
    if let Some(gpu) = x.device().gpu() {
        return turned(gpu, NAME, x, [batch, rows, columns], rows);
    }
    let mut y = Tensor::empty(x.device(), &[batch, columns, rows])?;
    let each = (rows * columns).max(1);
    let samples = y.f32_mut().chunks_exact_mut(each).zip(x.f32().chunks_exact(each));
    samples.for_each(|(y, x)| matmul::transpose(x, columns, y));
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
