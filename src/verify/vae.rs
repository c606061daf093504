//! `vae_tiny`: diffusers' `AutoencoderKL` with FLUX.1's structure, both ways, and what its middle blocks give.

use super::arithmetic::Run;
use super::fixture::Fixture;
use crate::Result;
use crate::flux::vae::Vae;

pub(super) fn replay(f: &mut Fixture, run: &Run) -> Result<()> {
    let vae = Vae::load(&f.vae_dir(), run.device)?;
    let (image, z) = (f.tensor("in.image", run.device)?, f.tensor("in.z", run.device)?);
    let [encoder, decoder] = vae.middles(&image, &z)?;
    f.check("out.enc_mid", &encoder.values()?)?;
    f.check("out.dec_mid", &decoder.values()?)?;
    let posterior = vae.encode(&image)?;
    f.check("out.mean", &posterior.mean)?;
    f.check("out.logvar", &posterior.logvar)?;
    let sample = posterior.sample(&f.f32s("in.eps")?);
    f.check("out.sample", &sample)?;
    f.check("out.latents", &vae.scaled(sample))?;
    f.check("out.decoded", &vae.decode(&z)?.values()?)
}
