//! Peak signal-to-noise ratio.

/// `10·log₁₀(1 / (mean squared difference + 1e-8))` dB of two planes with peak 1; identical planes give 80 dB (pyiqa's
/// convention, which keeps means over a set finite).
///
/// # Panics
/// Where the planes differ in size.
pub fn psnr(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len(), "psnr: planes of different size");
    let mse = a.iter().zip(b).map(|(x, y)| (x - y).powi(2)).sum::<f64>() / a.len() as f64;
    -10.0 * (mse + 1e-8).log10()
}
