//! `full_blocks`: diffusers' forward and backward at FLUX.1-dev's real width, one block of each kind.
//!
//! The weights are too many to keep, so both sides draw them from a counter: a weight's stream is its place among the
//! names in order. Of each weight's gradient the recorder has some entries, evenly spaced, and the 2-norm.

use super::arithmetic::Run;
use super::fixture::Fixture;
use super::flux;
use crate::Result;
use crate::autograd::Leaves;
use crate::engine::{Philox, Tensor};
use crate::flux::config::FluxConfig;
use crate::flux::params::Weights;
use rayon::prelude::*;

/// Values that one thread draws at a time: whole blocks of the counter.
const PIECE: usize = 1 << 16;

pub(super) fn replay(f: &mut Fixture, run: &Run) -> Result<()> {
    let config = FluxConfig::parse(&f.value("/transformer")?.to_string()).map_err(|e| f.error(e))?;
    let (seed, probes) = (f.number("/seed")? as u64, f.number("/probes")? as usize);
    let mut parameters = config.parameters();
    parameters.sort();
    let (mut weights, mut grads) = (Vec::new(), Vec::new());
    for (i, (name, shape)) in parameters.iter().enumerate() {
        let values = run.trained(drawn(name, shape, Philox::new(seed, i as u64)));
        weights.push((name.clone(), Tensor::from_slice(run.device, shape, &values)?));
        grads.push(Tensor::empty(run.device, shape)?);
    }
    let leaves = Leaves::into_buffers(grads, false);
    let leaves = flux::plain_pass(f, run, config, Weights::leaves(weights), leaves)?;
    for ((name, _), grad) in parameters.iter().zip(leaves.buffers(parameters.len())?) {
        let grad = grad.values()?;
        let spread = |j: usize| grad[j * (grad.len() - 1) / (probes - 1).max(1)];
        f.check(&format!("grad.weights.{name}"), &(0..probes).map(spread).collect::<Vec<_>>())?;
        let norm = grad.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
        f.check_f64(&format!("norm.weights.{name}"), &[norm])?;
    }
    Ok(())
}

/// A weight, uniform: a matrix keeps the variance of what it multiplies, a bias is small, a norm's weight near 1.
fn drawn(name: &str, shape: &[usize], stream: Philox) -> Vec<f32> {
    let (centre, scale) = match *shape {
        [_, width] => (0.0, (3.0 / width as f32).sqrt()),
        _ if name.ends_with("weight") => (1.0, 0.1),
        _ => (0.0, 0.1),
    };
    let mut values = vec![0.0; shape.iter().product()];
    values.par_chunks_mut(PIECE).enumerate().for_each(|(i, piece)| {
        for (j, four) in piece.chunks_mut(4).enumerate() {
            let words = stream.words((i * PIECE / 4 + j) as u64);
            for (value, word) in four.iter_mut().zip(words) {
                *value = centre + scale * ((word >> 8) as f32 / (1 << 23) as f32 - 1.0);
            }
        }
    });
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `drawn` of `tests/interop/full_blocks.py` gives: more than a piece of a matrix, its last value, a norm, a bias.
    #[test]
    fn weights_are_the_recorders() {
        let of = |name: &str, shape: &[usize]| drawn(name, shape, Philox::new(20_260_131, 5));
        let matrix = of("a.weight", &[40, 3072]);
        assert_eq!(
            [matrix[0], matrix[PIECE + 1], matrix[40 * 3072 - 1]],
            [-0.016_853_191, -0.011_867_791, 0.030_031_9]
        );
        assert_eq!(of("a.norm_q.weight", &[6])[4..], [1.052_601_9, 0.950_100_7]);
        assert_eq!(of("a.bias", &[7])[5..], [-0.049_899_306, 0.069_050_804]);
    }
}
