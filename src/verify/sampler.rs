//! `sampler`: the reference's `generate()` on a tiny pipeline, latents of every step and the picture.

use super::arithmetic::{Model, Run};
use super::fixture::Fixture;
use crate::Result;
use crate::autograd::{Tape, Var};
use crate::engine::Tensor;
use crate::flux::sampler::{Conditions, sample};
use crate::flux::schedule::sampling_sigmas;
use crate::flux::vae::Vae;
use crate::ops::patch::Unpack;

pub(super) fn replay(f: &mut Fixture, run: &Run) -> Result<()> {
    let (device, model) = (run.device, Model::open(f, run)?);
    let strengths = f.value("/adapters")?.as_object().cloned().unwrap_or_default();
    let adapters = strengths
        .iter()
        .map(|(name, s)| run.frozen(&f.adapter(name, device)?, s.as_f64().unwrap_or(1.0) as f32))
        .collect::<Result<Vec<_>>>()?;
    let flux = model.flux(&adapters);
    let noise = f.tensor("in.noise", device)?;
    let steps = f.number("/steps")? as usize;
    let sigmas = sampling_sigmas(steps, noise.shape()[1]);
    f.check("mid.sigmas", &sigmas)?;
    f.check("mid.timesteps", &sigmas[..steps].iter().map(|s| s * 1000.0).collect::<Vec<_>>())?;
    let given = Conditions {
        cond: f.tensor("in.cond", device)?,
        txt: f.tensor("in.text", device)?,
        pooled: f.tensor("in.pooled", device)?,
        same_text: true,
        text_multiplicity: 1.0,
        img_ids: f.ids("in.ids")?,
        guidance: f.number("/guidance_scale")? as f32,
        adapters: (0..adapters.len()).collect(),
    };
    let mut seen: Vec<(String, Tensor)> = Vec::new();
    let tape = model.on(Tape::no_grad());
    let latents = sample(&flux, &tape, &noise, &given, steps, &mut |step, v: &Tensor, x: &Tensor| {
        seen.push((format!("step{step}.velocity"), v.clone()));
        seen.push((format!("step{step}.latents"), x.clone()));
    })?;
    seen.iter().try_for_each(|(name, got)| f.check(name, &got.values()?))?;
    let &[height, width] = &f.numbers("/lat_hw")?[..] else {
        return Err(f.error("lat_hw is not two numbers"));
    };
    let (height, width) = (height as usize, width as usize);
    let planes = Tape::no_grad().one(Unpack { height, width }, &[&Var::constant(latents)])?;
    let vae = Vae::load(&f.vae_dir(), device)?;
    f.check("out.image", &vae.decode(planes.value())?.values()?)
}
