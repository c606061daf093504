//! The two-dimensional Fourier transform of a plane, shared by the texture generator and the spectra of `eval`.

use rustfft::num_complex::Complex;
use rustfft::{FftDirection, FftNum, FftPlanner};

/// Transforms `data` (`[h, w]`, row-major) in place, unnormalised: rows, then columns.
pub(crate) fn fft2<T: FftNum>(
    planner: &mut FftPlanner<T>,
    data: &mut [Complex<T>],
    (h, w): (usize, usize),
    direction: FftDirection,
) {
    assert_eq!(data.len(), h * w, "fft2: the plane does not have the shape its caller names");
    planner.plan_fft(w, direction).process(data);
    let mut columns = vec![data[0]; h * w];
    transposed(data, &mut columns, h, w);
    planner.plan_fft(h, direction).process(&mut columns);
    transposed(&columns, data, w, h);
}

fn transposed<T: Copy>(from: &[T], to: &mut [T], h: usize, w: usize) {
    for y in 0..h {
        for x in 0..w {
            to[x * h + y] = from[y * w + x];
        }
    }
}

/// The frequency of bin `k` of `n` in cycles per sample, in [−½, ½) (numpy's `fftfreq`).
pub(crate) fn fftfreq(k: usize, n: usize) -> f64 {
    let signed = if k < n.div_ceil(2) { k as f64 } else { k as f64 - n as f64 };
    signed / n as f64
}
