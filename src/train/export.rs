//! Writing what a stage made, and proving it: the files are read back as any user would read them, and the model they
//! make must give the same bits as the one in memory.

use super::stages::{Artifacts, Context, Plan};
use super::validation::Policy;
use crate::autograd::ParamSet;
use crate::engine::{DType, Tensor};
use crate::files::{expect_space, sha256_file};
use crate::flux::lora::{AdapterFile, CONFIG, LoraModule, WEIGHTS};
use crate::flux::params::{Adapter, Weights};
use crate::flux::weights::write_safetensors;
use crate::infer::model::layout;
use crate::{Error, Result};
use std::collections::BTreeMap;

/// The base's weights, as diffusers calls them.
const BASE_WEIGHTS: &str = "diffusion_pytorch_model.safetensors";

/// Writes the stage's result (its running average, if one is kept), reads it back into `made`, and compares.
pub(super) fn export(
    context: &Context,
    plan: &Plan,
    params: &mut ParamSet,
    made: &mut Artifacts,
) -> Result<()> {
    let bytes = 4 * params.len() as u64 + (1 << 20);
    expect_space(context.out, bytes, "what this stage made", "resume when there is room")?;
    params.averaged(|params| match plan.adapter {
        None => base(context, plan, params, made),
        Some(name) => adapter(context, plan, name, params, made),
    })
}

fn base(context: &Context, plan: &Plan, params: &ParamSet, made: &mut Artifacts) -> Result<()> {
    let dir = context.out.join(layout::BASE);
    std::fs::create_dir_all(&dir).map_err(Error::io(&dir))?;
    let tensors: Vec<(String, Tensor)> =
        params.names().iter().enumerate().map(|(i, n)| (n.clone(), params.master(i))).collect();
    write_safetensors(dir.join(BASE_WEIGHTS), &BTreeMap::new(), &tensors)?;
    context.flux.save(&dir)?;
    made.load(context.out, &[layout::BASE], &context.flux, &context.device, dtype(context))?;
    let weights = made.base.clone().ok_or_else(|| Error::format(&dir, "was written and is not there"))?;
    let (live, _) = plan.model(context.config, params)?;
    let weights = weights.computing_in(live.activations())?;
    same(context, (&live, &[], Vec::new()), (&weights, &[], Vec::new()), layout::BASE)?;
    keep(context, made, &[layout::BASE], &[BASE_WEIGHTS, "config.json"])
}

fn adapter(
    context: &Context,
    plan: &Plan,
    name: &str,
    params: &ParamSet,
    made: &mut Artifacts,
) -> Result<()> {
    let o = context.config.stage(plan.stage);
    let mut modules = BTreeMap::new();
    for (module, ..) in context.flux.lora_targets() {
        let half = |which: &str| {
            let full = format!("{name}.{module}.{which}.weight");
            let id = params.find(&full);
            id.map(|id| params.master(id.0))
                .ok_or_else(|| Error::Usage(format!("there is no parameter {full}")))
        };
        modules.insert(module.clone(), LoraModule { a: half("lora_A")?, b: half("lora_B")?, alpha: o.alpha });
    }
    let file = AdapterFile {
        name: name.to_owned(),
        modules,
        lq_resize: Some(context.config.data.lq_resize.name().to_owned()),
        metadata: BTreeMap::new(),
    };
    file.save(context.out.join(name))?;
    drop(file);
    made.load(context.out, &[name], &context.flux, &context.device, dtype(context))?;
    let Some(reopened) = made.adapters.get(name) else {
        return Err(Error::format(context.out.join(name), "was written and is not there"));
    };
    let (weights, live) = plan.model(context.config, params)?;
    let acting = plan.policy();
    let own = acting.len() - 1;
    let mut stored = live.clone();
    stored[own] = Adapter::frozen(reopened, 1.0);
    let model = (&weights, &stored[..], acting.clone());
    same(context, (&weights, &live, acting.clone()), model.clone(), name)?;
    let (with, without) =
        (velocities(context, model)?, velocities(context, (&weights, &live, acting[..own].to_vec()))?);
    if with.values()? == without.values()? {
        let text =
            format!("warning: {name} changes nothing: with it and without it the model gives the same");
        context.progress.say(&text);
    }
    keep(context, made, &[name], &[WEIGHTS, CONFIG])
}

fn dtype(context: &Context) -> DType {
    context.config.run.precision.dtype()
}

type Parts<'m> = (&'m Weights, &'m [Adapter], Vec<usize>);

fn velocities(context: &Context, (weights, adapters, acting): Parts) -> Result<Tensor> {
    context.validation.velocities(&Policy { config: &context.flux, weights, adapters, acting })
}

/// Refuses an export that, read back, is not the model that was trained.
fn same(context: &Context, live: Parts, stored: Parts, name: &str) -> Result<()> {
    let (live, stored) = (velocities(context, live)?.values()?, velocities(context, stored)?.values()?);
    let differ = live.iter().zip(&stored).filter(|(a, b)| a.to_bits() != b.to_bits());
    let worst = differ.map(|(a, b)| (a - b).abs()).max_by(f32::total_cmp);
    match worst {
        None => Ok(()),
        Some(error) => Err(Error::format(
            context.out.join(name),
            format!(
                "read back, the model's velocities differ by up to {error:e} from the trained one's; it was not exported rightly"
            ),
        )),
    }
}

/// Notes the hashes of files that now count.
fn keep(context: &Context, made: &mut Artifacts, folders: &[&str], files: &[&str]) -> Result<()> {
    for folder in folders {
        for file in files {
            let name = format!("{folder}/{file}");
            made.files.insert(name.clone(), sha256_file(&context.out.join(&name))?);
        }
    }
    Ok(())
}
