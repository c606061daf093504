//! `sobolev`: energies and gradients, half spectrum (`ref*`) and full, any plane and any s.

use super::arithmetic::Run;
use super::fixture::Fixture;
use crate::Result;
use crate::autograd::{Leaves, Tape, Var};
use crate::engine::{Device, Tensor};
use crate::ops::sobolev::{Metric, SobolevGap, Spectrum, Weight};

pub(super) fn replay(f: &mut Fixture, run: &Run) -> Result<()> {
    let device = run.device;
    for name in f.names() {
        if let Some(i) = name.strip_prefix("mse_") {
            let (energy, _) = energy(f, &format!("x_{i}"), Spectrum::Full, 0.0, device)?;
            f.check(&name, &energy)?;
            continue;
        }
        let Some((kind, rest)) = name.split_once('_') else { continue };
        let (spectrum, wide) = match kind {
            "ref" => (Spectrum::Half, false),
            "full" => (Spectrum::Full, false),
            "ref64" => (Spectrum::Half, true),
            "full64" => (Spectrum::Full, true),
            _ => continue,
        };
        let rest = rest.strip_suffix("_grad").map_or((rest, false), |r| (r, true));
        let Some((i, s)) = rest.0.split_once("_s") else { continue };
        let s: f64 = s.parse().map_err(|_| f.error(format!("{name} does not end in s<exponent>")))?;
        let (energy, grad) = energy(f, &format!("x_{i}"), spectrum, s, device)?;
        match (rest.1, wide) {
            (true, _) => f.check(&name, &grad.values()?)?,
            (false, false) => f.check(&name, &energy)?,
            // Recorded in float64 with no tolerance: that of its float32 twin.
            (false, true) => f.check_as(&name, &name.replacen("64", "", 1), &energy)?,
        }
    }
    Ok(())
}

/// E_s of each sample and its gradient: the gap to a reference without residual.
fn energy(f: &Fixture, x: &str, spectrum: Spectrum, s: f64, device: &Device) -> Result<(Vec<f32>, Tensor)> {
    let x = f.tensor(x, device)?;
    let zero = Var::constant(Tensor::zeros(device, x.shape())?);
    let tape = Tape::new(Leaves::default());
    let v = tape.input(x);
    let gap = tape.one(SobolevGap::new(Metric { s, spectrum, weight: Weight::Raw }), &[&v, &zero, &zero])?;
    tape.backward(&gap, None)?;
    let grad = tape.grad(&v).ok_or_else(|| f.error("no gradient arrived"))?;
    Ok((gap.value().values()?, grad))
}
