//! The transforms, on dense arrays: unnormalised, as cuFFT's are.

use std::sync::Arc;

use rustfft::num_complex::Complex32;
use rustfft::{Fft, FftPlanner};

/// What is transformed into what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    C2C,
    R2C,
    C2R,
}

/// A transform of given dimensions.
pub struct Transform {
    kind: Kind,
    n: Vec<usize>,
    /// Each axis's transform, forward and inverse.
    axes: Vec<[Arc<dyn Fft<f32>>; 2]>,
}

impl Transform {
    /// Plans a transform; no dimension is 0.
    pub fn new(kind: Kind, n: &[usize]) -> Self {
        let mut planner = FftPlanner::new();
        let axes = n.iter().map(|&n| [planner.plan_fft_forward(n), planner.plan_fft_inverse(n)]).collect();
        Self { kind, n: n.to_vec(), axes }
    }

    /// What is transformed into what.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Transforms every array of the input: f32 values, complex ones interleaved.
    pub fn run(&self, inverse: bool, input: &[f32], output: &mut [f32]) {
        let last = self.n.len() - 1;
        let (n, half) = (self.n[last], self.n[last] / 2 + 1);
        match self.kind {
            Kind::C2C => {
                let mut data = complex(input);
                (0..=last).rev().for_each(|axis| self.along(axis, n, inverse, &mut data));
                interleave(&data, output);
            }
            Kind::R2C => {
                let mut rows: Vec<_> = input.iter().map(|&re| Complex32::new(re, 0.0)).collect();
                self.along(last, n, false, &mut rows);
                let mut data: Vec<_> = rows.chunks_exact(n).flat_map(|row| &row[..half]).copied().collect();
                (0..last).rev().for_each(|axis| self.along(axis, half, false, &mut data));
                interleave(&data, output);
            }
            Kind::C2R => {
                let mut data = complex(input);
                (0..last).for_each(|axis| self.along(axis, half, true, &mut data));
                let mut rows: Vec<_> = data.chunks_exact(half).flat_map(|row| hermitian(row, n)).collect();
                self.along(last, n, true, &mut rows);
                output.iter_mut().zip(&rows).for_each(|(out, value)| *out = value.re);
            }
        }
    }

    /// Transforms along one axis of arrays whose rows have `row` elements.
    fn along(&self, axis: usize, row: usize, inverse: bool, data: &mut [Complex32]) {
        let (fft, n, last) = (&self.axes[axis][usize::from(inverse)], self.n[axis], self.n.len() - 1);
        if axis == last {
            return fft.process(data);
        }
        let inner = self.n[axis + 1..last].iter().product::<usize>() * row;
        let mut line = vec![Complex32::default(); n];
        for block in data.chunks_exact_mut(n * inner) {
            for at in 0..inner {
                line.iter_mut().zip(block[at..].iter().step_by(inner)).for_each(|(to, from)| *to = *from);
                fft.process(&mut line);
                block[at..].iter_mut().step_by(inner).zip(&line).for_each(|(to, from)| *to = *from);
            }
        }
    }
}

/// A row's whole spectrum. What a real row cannot have, an imaginary part of the mean, is ignored as by cuFFT.
fn hermitian(row: &[Complex32], n: usize) -> impl Iterator<Item = Complex32> + use<'_> {
    (0..n).map(move |k| match k {
        k if k == 0 || 2 * k == n => Complex32::new(row[k].re, 0.0),
        k if 2 * k < n => row[k],
        k => row[n - k].conj(),
    })
}

fn complex(values: &[f32]) -> Vec<Complex32> {
    values.chunks_exact(2).map(|pair| Complex32::new(pair[0], pair[1])).collect()
}

fn interleave(data: &[Complex32], output: &mut [f32]) {
    for (pair, value) in output.chunks_exact_mut(2).zip(data) {
        pair.copy_from_slice(&[value.re, value.im]);
    }
}
