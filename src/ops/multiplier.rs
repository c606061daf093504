//! Real Fourier multipliers on planes: `y = F⁻¹ w F x`, w real and even, x and y [H, W], F the 2-D DFT.
//!
//! Not an op: the plans and the weight of one plane size, shared by the ops and losses that filter planes. F is
//! orthonormal, so the operator is self-adjoint; because w is real and even it maps real planes to real planes, and two
//! real planes packed as `a + i·b` come out as `A a + i·A b`. Every plane is transformed by itself, in one order, so
//! its bits depend neither on its neighbours nor on the thread count.

use crate::{Error, Result};
use rayon::prelude::*;
use rustfft::num_complex::Complex32;
use rustfft::{Fft, FftPlanner};
use std::sync::Arc;

/// The operator for planes of one size.
pub struct Multiplier {
    height: usize,
    width: usize,
    /// Transposed, with the 1/(H·W) of the unnormalised transforms.
    weight: Vec<f32>,
    rows: [Arc<dyn Fft<f32>>; 2],
    columns: [Arc<dyn Fft<f32>>; 2],
}

/// A thread's working memory for one [`Multiplier`].
pub struct Scratch {
    plane: Vec<Complex32>,
    transposed: Vec<Complex32>,
    fft: Vec<Complex32>,
}

impl Multiplier {
    /// For planes of `height`×`width` with the weight `weight` [H, W], in the order of the DFT's frequencies. It must be
    /// even (equal at k and −k), and finite once rounded to f32.
    pub fn new(height: usize, width: usize, weight: &[f64]) -> Result<Self> {
        let area = height * width;
        if area == 0 || weight.len() != area {
            return Err(Error::shape(
                "multiplier",
                format!("{} weights for a plane of {height}×{width}", weight.len()),
            ));
        }
        let mut planner = FftPlanner::new();
        let weight: Vec<f32> =
            (0..area).map(|i| (weight[i % height * width + i / height] / area as f64) as f32).collect();
        if let Some(bad) = weight.iter().find(|w| !w.is_finite()) {
            return Err(Error::shape(
                "multiplier",
                format!(
                    "a weight of the {height}×{width} plane is {bad} in f32; a smaller exponent is needed"
                ),
            ));
        }
        let rows = [planner.plan_fft_forward(width), planner.plan_fft_inverse(width)];
        let columns = [planner.plan_fft_forward(height), planner.plan_fft_inverse(height)];
        Ok(Self { height, width, weight, rows, columns })
    }

    /// Values per plane.
    pub fn area(&self) -> usize {
        self.height * self.width
    }

    /// Working memory for [`Multiplier::apply`].
    pub fn scratch(&self) -> Scratch {
        let plans = self.rows.iter().chain(&self.columns);
        let fft = plans.map(|p| p.get_inplace_scratch_len()).max().unwrap_or(0);
        let zeros = |n| vec![Complex32::ZERO; n];
        Scratch { plane: zeros(self.area()), transposed: zeros(self.area()), fft: zeros(fft) }
    }

    /// The operator on the plane `value(i)`, i row-major; the result is valid until the scratch is used again.
    pub fn apply<'s>(&self, s: &'s mut Scratch, value: impl Fn(usize) -> Complex32) -> &'s [Complex32] {
        let Scratch { plane, transposed, fft } = s;
        plane.iter_mut().enumerate().for_each(|(i, z)| *z = value(i));
        self.rows[0].process_with_scratch(plane, fft);
        transpose(plane, self.width, transposed);
        self.columns[0].process_with_scratch(transposed, fft);
        transposed.iter_mut().zip(&self.weight).for_each(|(z, &w)| *z *= w);
        self.columns[1].process_with_scratch(transposed, fft);
        transpose(transposed, self.height, plane);
        self.rows[1].process_with_scratch(plane, fft);
        plane
    }

    /// out = the operator on every plane of `x`.
    pub fn apply_all(&self, x: &[f32], out: &mut [f32]) {
        let planes = out.par_chunks_mut(self.area()).zip(x.par_chunks(self.area()));
        planes.for_each_init(
            || self.scratch(),
            |s, (out, x)| {
                let y = self.apply(s, |i| Complex32::new(x[i], 0.0));
                out.iter_mut().zip(y).for_each(|(o, y)| *o = y.re);
            },
        );
    }

    /// ⟨a, A b⟩ of every plane, accumulated in f64.
    pub fn inner_all(&self, a: &[f32], b: &[f32]) -> Vec<f64> {
        let planes = a.par_chunks(self.area()).zip(b.par_chunks(self.area()));
        planes
            .map_init(
                || self.scratch(),
                |s, (a, b)| {
                    let y = self.apply(s, |i| Complex32::new(b[i], 0.0));
                    dot(a.iter().copied(), y.iter().map(|y| y.re))
                },
            )
            .collect()
    }
}

/// Σ a·b in f64, in order: each product of two f32 is exact.
pub fn dot(a: impl Iterator<Item = f32>, b: impl Iterator<Item = f32>) -> f64 {
    a.zip(b).map(|(a, b)| f64::from(a) * f64::from(b)).sum()
}

/// out [columns, rows] = the transpose of x [rows, columns].
fn transpose(x: &[Complex32], columns: usize, out: &mut [Complex32]) {
    let rows = x.len() / columns;
    for (c, out) in out.chunks_exact_mut(rows).enumerate() {
        out.iter_mut().zip(x[c..].iter().step_by(columns)).for_each(|(o, &v)| *o = v);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Philox;

    fn planes(n: usize, stream: u64) -> Vec<f32> {
        let mut x = vec![0.0; n];
        Philox::new(5, stream).normals(0, &mut x);
        x
    }

    #[test]
    fn a_weight_of_one_is_the_identity_and_the_operator_is_self_adjoint() {
        for (h, w) in [(1, 1), (1, 5), (4, 1), (6, 9), (16, 16)] {
            let one = Multiplier::new(h, w, &vec![1.0; h * w]).unwrap();
            let x = planes(3 * h * w, 1);
            let mut y = vec![f32::NAN; x.len()];
            one.apply_all(&x, &mut y);
            assert!(x.iter().zip(&y).all(|(x, y)| (x - y).abs() < 2e-6), "{h}×{w}");

            let even = |i: usize, n: usize| (i.min(n - i) as f64 + 1.0).powi(2);
            let weight: Vec<f64> = (0..h * w).map(|i| even(i / w, h) * even(i % w, w)).collect();
            let a = Multiplier::new(h, w, &weight).unwrap();
            let (x, z) = (planes(h * w, 2), planes(h * w, 3));
            let (xz, zx, xx) = (a.inner_all(&x, &z)[0], a.inner_all(&z, &x)[0], a.inner_all(&x, &x)[0]);
            assert!((xz - zx).abs() < 1e-5 * xx.abs(), "{h}×{w}: {xz} vs {zx}");
        }
    }

    #[test]
    fn refusals_carry_the_numbers() {
        let says = |r: Result<Multiplier>, what: &str| {
            let e = r.err().expect("refused").to_string();
            assert!(e.contains(what), "{e}");
        };
        says(Multiplier::new(2, 3, &[1.0; 5]), "5 weights for a plane of 2×3");
        says(Multiplier::new(1, 2, &[1.0, 1e300]), "inf in f32");
        says(Multiplier::new(0, 2, &[]), "0×2");
    }
}
