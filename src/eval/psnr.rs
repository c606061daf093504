//! Peak signal-to-noise ratio.

use super::Convention;

/// PSNR in dB of two planes with peak 1. Of identical planes it is 80 dB as pyiqa computes it (1e-8 is added to the mean
/// squared difference, which keeps means over a set finite), infinite as basicsr does.
///
/// # Panics
/// Where the planes differ in size.
pub fn psnr(a: &[f64], b: &[f64], convention: Convention) -> f64 {
    assert_eq!(a.len(), b.len(), "psnr: planes of different size");
    let mse = a.iter().zip(b).map(|(x, y)| (x - y).powi(2)).sum::<f64>() / a.len() as f64;
    let error = match convention {
        Convention::Pyiqa => mse + 1e-8,
        Convention::Basicsr => mse,
    };
    -10.0 * error.log10()
}
