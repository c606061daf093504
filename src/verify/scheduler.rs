//! `scheduler`: training and sampling noise levels, warm-up, one Euler step.

use super::arithmetic::Run;
use super::fixture::Fixture;
use crate::Result;
use crate::engine::Tensor;
use crate::flux::schedule::{euler, logit_normal, sampling_sigmas, shift_mu, sigma_of, warmup_lr};

pub(super) fn replay(f: &mut Fixture, run: &Run) -> Result<()> {
    let device = run.device;
    let steps = 1000;
    let train: Vec<f32> = (0..steps).map(|i| sigma_of((i as f32 + 0.5) / steps as f32)).collect();
    f.check("train.sigmas", &train)?;
    f.check("train.timesteps", &train.iter().map(|s| s * 1000.0).collect::<Vec<_>>())?;
    for name in f.names() {
        let Some((n, tokens)) = name.strip_prefix("infer.sigmas_n").and_then(|r| r.split_once("_L")) else {
            continue;
        };
        let key = format!("n{n}_L{tokens}");
        let parse = |v: &str| {
            v.parse::<usize>().map_err(|_| f.error(format!("{name} does not end in n<steps>_L<tokens>")))
        };
        let (n, tokens) = (parse(n)?, parse(tokens)?);
        let sigmas = sampling_sigmas(n, tokens);
        f.check(&name, &sigmas)?;
        f.check(
            &format!("infer.timesteps_{key}"),
            &sigmas[..n].iter().map(|s| s * 1000.0).collect::<Vec<_>>(),
        )?;
        f.check(&format!("infer.mu_{key}"), &[shift_mu(tokens) as f32])?;
    }
    let u = f.f32s("logit.u")?;
    let from_z: Vec<f32> = f.f32s("logit.z")?.into_iter().map(logit_normal).collect();
    let worst = from_z.iter().zip(&u).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    if worst > 1e-6 {
        return Err(f.error(format!("sigmoid of logit.z differs from logit.u by {worst:e}")));
    }
    let sigma: Vec<f32> = u.iter().map(|&u| sigma_of(u)).collect();
    f.check("logit.sigma", &sigma)?;
    f.check("logit.timestep", &sigma.iter().map(|s| s * 1000.0).collect::<Vec<_>>())?;
    f.check("logit.index", &sigma.iter().map(|s| 1000.0 - s * 1000.0).collect::<Vec<_>>())?;
    f.leave_out("the reference rounds noise levels to bf16, the engine does not", |n| n.ends_with("_bf16"));
    for name in f.names() {
        if let Some(warmup) = name.strip_prefix("lr.constant_with_warmup_").and_then(|w| w.parse().ok()) {
            let n = f.shape(&name)?[0];
            let got: Vec<f64> = (0..n).map(|i| warmup_lr(1e-5, i, warmup)).collect();
            f.check_f64(&name, &got)?;
        }
    }
    let whole = |t: Tensor| {
        let n = t.len();
        t.reshape(&[1, n])
    };
    let (x, v) = (whole(f.tensor("step.sample", device)?)?, whole(f.tensor("step.model_output", device)?)?);
    let sigmas = sampling_sigmas(4, 1024);
    let x = euler(&x, &v, &Tensor::from_slice(device, &[1], &sigmas[..1])?, sigmas[1])?;
    f.check("step.prev_sample", &x.values()?)
}
