//! `clip_tiny` and `t5_tiny`: the text encoders, of ids, with the weights beside the fixtures. In f32 always.

use super::arithmetic::Run;
use super::fixture::Fixture;
use crate::Result;
use crate::engine::{DType, Tensor};
use crate::flux::text::{Clip, T5};

/// Prompts, as ids.
fn prompts(f: &Fixture, name: &str) -> Result<Vec<Vec<u32>>> {
    let &[_, tokens] = &f.shape(name)?[..] else {
        return Err(f.error(format!("{name}: wanted ids of [prompts, tokens]")));
    };
    let ids = f.f32s(name)?;
    if let Some(id) = ids.iter().find(|id| **id < 0.0) {
        return Err(f.error(format!("{name} holds {id}: no id")));
    }
    Ok(ids.chunks_exact(tokens.max(1)).map(|row| row.iter().map(|&id| id as u32).collect()).collect())
}

pub(super) fn clip(f: &mut Fixture, run: &Run) -> Result<()> {
    let clip = Clip::open(f.dir.join("tiny_flux/text_encoder"), run.device, DType::F32)?;
    let (tokens, pooled) = clip.encode(&prompts(f, "in.ids")?)?;
    f.check("out.last_hidden_state", &tokens.values()?)?;
    f.check("out.pooled", &pooled.values()?)
}

pub(super) fn t5(f: &mut Fixture, run: &Run) -> Result<()> {
    let t5 = T5::open(f.dir.join("tiny_flux/text_encoder_2"), run.device, DType::F32)?;
    for name in f.names() {
        let Some(key) = name.strip_prefix("in.") else { continue };
        let mut layers: Vec<Tensor> = Vec::new();
        let out = t5.encode(&prompts(f, &name)?, &mut |_, x| layers.push(x.clone()))?;
        f.check(&format!("out.{key}"), &out.values()?)?;
        // Recorded of one input alone.
        for (i, x) in layers.iter().enumerate().filter(|_| key == "ids") {
            f.check(&format!("mid.layer{i}"), &x.values()?)?;
        }
    }
    Ok(())
}
