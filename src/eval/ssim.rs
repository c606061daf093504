//! Structural similarity (Wang et al., 2004).

use super::Convention;

/// Side of the Gaussian window.
pub const WINDOW: usize = 11;
const SIGMA: f64 = 1.5;
const C1: f64 = 0.01 * 0.01;
const C2: f64 = 0.03 * 0.03;

/// Mean SSIM of two `[h, w]` planes with peak 1: Gaussian window 11×11 with σ 1.5, only where it lies inside the plane,
/// population moments. pyiqa takes a contrast and structure term below 0 for 0 (and its planes are
/// [`rounded_luma`](super::luma::rounded_luma)s); basicsr does not.
///
/// # Panics
/// Where a plane is not `h·w` values, or a side is below [`WINDOW`].
pub fn ssim(a: &[f64], b: &[f64], size: (usize, usize), convention: Convention) -> f64 {
    assert!(a.len() == size.0 * size.1 && b.len() == a.len(), "ssim: planes of a size other than named");
    assert!(size.0.min(size.1) >= WINDOW, "ssim: a plane smaller than the window");
    let product = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).collect::<Vec<_>>();
    let [ma, mb, aa, bb, ab] =
        [a, b, &product(a, a), &product(b, b), &product(a, b)].map(|plane| smooth(plane, size));
    let mut sum = 0.0;
    for i in 0..ma.len() {
        let (va, vb, cov) = (aa[i] - ma[i] * ma[i], bb[i] - mb[i] * mb[i], ab[i] - ma[i] * mb[i]);
        let light = (2.0 * ma[i] * mb[i] + C1) / (ma[i] * ma[i] + mb[i] * mb[i] + C1);
        let texture = (2.0 * cov + C2) / (va + vb + C2);
        let clamped = convention == Convention::Pyiqa && texture < 0.0;
        sum += if clamped { 0.0 } else { light * texture };
    }
    sum / ma.len() as f64
}

/// The window's weighted mean at every place it fits: `[h − 10, w − 10]`.
fn smooth(plane: &[f64], (h, w): (usize, usize)) -> Vec<f64> {
    let half = (WINDOW / 2) as f64;
    let raw: [f64; WINDOW] =
        std::array::from_fn(|k| (-(k as f64 - half).powi(2) / (2.0 * SIGMA * SIGMA)).exp());
    let kernel = raw.map(|v| v / raw.iter().sum::<f64>());
    let (oh, ow) = (h + 1 - WINDOW, w + 1 - WINDOW);
    let mut across = Vec::with_capacity(h * ow);
    for row in plane.chunks_exact(w) {
        across.extend(row.windows(WINDOW).map(|v| kernel.iter().zip(v).map(|(k, x)| k * x).sum::<f64>()));
    }
    let mut out = vec![0.0; oh * ow];
    for (y, to) in out.chunks_exact_mut(ow).enumerate() {
        for (k, weight) in kernel.iter().enumerate() {
            let from = &across[(y + k) * ow..][..ow];
            to.iter_mut().zip(from).for_each(|(v, x)| *v += weight * x);
        }
    }
    out
}
