//! `full_blocks`: diffusers' forward and backward at FLUX.1-dev's real width, one block of each kind.
//!
//! The weights are too many to keep, so both sides draw them from a counter: a weight's stream is its place among the
//! names in order. Of each weight's gradient the recorder has some entries, evenly spaced, and the 2-norm.

use super::arithmetic::Run;
use super::fixture::Fixture;
use super::flux;
use crate::Result;
use crate::autograd::ParamSet;
use crate::engine::{Device, Philox};
use crate::flux::config::FluxConfig;
use rayon::prelude::*;

/// Values that one thread draws at a time: whole blocks of the counter.
const PIECE: usize = 1 << 16;

pub(super) fn replay(f: &mut Fixture, run: &Run) -> Result<()> {
    let config = FluxConfig::parse(&f.value("/transformer")?.to_string()).map_err(|e| f.error(e))?;
    let (seed, probes) = (f.number("/seed")? as u64, f.number("/probes")? as usize);
    let mut params = drawn(&config, seed, run.device)?;
    run.train(&mut params, |params| flux::plain_pass(f, run, config, params))?;
    for (i, name) in params.names().iter().enumerate() {
        let grad = params.grad(i).values()?;
        let spread = |j: usize| grad[j * (grad.len() - 1) / (probes - 1).max(1)];
        f.check(&format!("grad.weights.{name}"), &(0..probes).map(spread).collect::<Vec<_>>())?;
        let norm = grad.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
        f.check_f64(&format!("norm.weights.{name}"), &[norm])?;
    }
    Ok(())
}

/// The model's weights, uniform: a matrix keeps the variance of what it multiplies, a bias is small, a norm's weight near 1.
fn drawn(config: &FluxConfig, seed: u64, device: &Device) -> Result<ParamSet> {
    let mut parameters = config.parameters();
    parameters.sort();
    let draw = |(stream, (name, shape)): (usize, (String, Vec<usize>))| {
        let (centre, scale) = match shape[..] {
            [_, width] => (0.0, (3.0 / width as f32).sqrt()),
            _ if name.ends_with("weight") => (1.0, 0.1),
            _ => (0.0, 0.1),
        };
        let mut values = vec![0.0; shape.iter().product()];
        values.par_chunks_mut(PIECE).enumerate().for_each(|(i, piece)| {
            let stream = Philox::new(seed, stream as u64);
            for (j, four) in piece.chunks_mut(4).enumerate() {
                let words = stream.words((i * PIECE / 4 + j) as u64);
                for (value, word) in four.iter_mut().zip(words) {
                    *value = centre + scale * ((word >> 8) as f32 / (1 << 23) as f32 - 1.0);
                }
            }
        });
        (name, shape, values)
    };
    ParamSet::new(device, parameters.into_iter().enumerate().map(draw).collect())
}
