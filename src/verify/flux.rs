//! `flux_tiny` (plain diffusers forward, weight gradients) and `flux_cond` (condition branch, LoRA gradients).

use super::arithmetic::{Model, Run};
use super::fixture::Fixture;
use crate::Result;
use crate::autograd::{Leaves, ParamSet, Tape, Var};
use crate::engine::{Device, Tensor};
use crate::flux::config::FluxConfig;
use crate::flux::params::{Adapter, Weights, adapter_params};
use crate::flux::transformer::Inputs;
use crate::flux::weights::Folder;
use crate::ops::AdapterSet;
use crate::ops::embed::{NoiseLevels, RopeTable};
use crate::ops::reduce::{Mean, MeanSquare};
use std::collections::HashMap;
use std::sync::Arc;

/// The model's parameters, all trainable.
pub(super) fn base_params(f: &Fixture, config: &FluxConfig, device: &Device) -> Result<ParamSet> {
    let folder = Folder::open(f.model_dir())?;
    let load = |(name, shape): (String, Vec<usize>)| {
        let values = folder.tensor(&name, &Device::cpu())?.f32().to_vec();
        Ok((name, shape, values))
    };
    ParamSet::new(device, config.parameters().into_iter().map(load).collect::<Result<_>>()?)
}

/// mean((v − target)²), as the recorder's scalar loss.
fn mse<'a>(tape: &Tape<'a>, v: &Var, target: &Tensor) -> Result<Var> {
    let per_sample = tape.one(MeanSquare, &[v, &Var::constant(target.clone())])?;
    tape.one(Mean, &[&per_sample])
}

pub(super) fn plain(f: &mut Fixture, run: &Run) -> Result<()> {
    let config = FluxConfig::load(f.model_dir())?;
    let mut params = base_params(f, &config, run.device)?;
    run.train(&mut params, |params| {
        let (weights, leaves) = (Weights::trainable(params), params.leaves());
        params.take_back(plain_pass(f, run, config, weights, leaves)?)
    })?;
    for name in f.names() {
        if let Some(weight) = name.strip_prefix("grad.weights.") {
            let id = params.find(weight).ok_or_else(|| f.error(format!("{name}: no such weight")))?;
            f.check(&name, &params.grad(id.0).values()?)?;
        }
    }
    Ok(())
}

/// A pass on the recorded inputs: everything is compared but the gradients of `weights`, which are left in the leaves.
pub(super) fn plain_pass(
    f: &mut Fixture,
    run: &Run,
    config: FluxConfig,
    weights: Weights,
    leaves: Leaves,
) -> Result<Leaves> {
    let device = run.device;
    let target = f.tensor("in.target", device)?;
    let (img_ids, txt_ids) = (f.ids("in.img_ids")?, f.ids("in.txt_ids")?);
    let sigma = f.f32s("in.timestep")?;
    let batch = sigma.len();

    let joint: Vec<[f32; 3]> = txt_ids.iter().chain(img_ids.iter()).copied().collect();
    let rope = RopeTable::new(&joint, &config.axes_dims_rope, config.rope_theta)?;
    let twice = |x: &[f32]| x.iter().flat_map(|&v| [v, v]).collect::<Vec<_>>();
    f.check("mid.rope_cos", &twice(&rope.cos))?;
    f.check("mid.rope_sin", &twice(&rope.sin))?;

    let model = Model::of(config, weights, run)?;
    let flux = model.flux(&[]);
    let tape = model.on(Tape::new(leaves));
    let img = tape.input(f.tensor("in.hidden_states", device)?);
    let txt = tape.input(f.tensor("in.encoder_hidden_states", device)?);
    let inputs = Inputs {
        img: img.clone(),
        cond: None,
        txt: txt.clone(),
        pooled: Var::constant(f.tensor("in.pooled_projections", device)?),
        same_text: false,
        sigma: NoiseLevels::new(device, &sigma)?,
        guidance: f.f32s("in.guidance")?,
        img_ids,
        txt_ids,
        text_multiplicity: 1.0,
        groups: None,
        adapters: Arc::new(AdapterSet::uniform(vec![], batch)),
        adapt_all: false,
        recompute: false,
    };
    let mut seen: HashMap<String, Tensor> = HashMap::new();
    let v = flux.forward_observed(&tape, &inputs, &mut |name, t| {
        seen.insert(name.to_owned(), t.clone());
    })?;
    for name in f.names().iter().filter(|n| n.starts_with("mid.") && !n.starts_with("mid.rope")) {
        match seen.get(name) {
            Some(t) => f.check(name, &t.values()?)?,
            None => {
                // Recorded after a single block: text and image in one sequence.
                let part = |half: &str| {
                    seen.get(&format!("{name}.{half}"))
                        .ok_or_else(|| f.error(format!("{name} is not computed")))
                };
                let (txt, img) = (part("txt")?, part("img")?);
                let (a, b) = (txt.stride0(), img.stride0());
                let (txt, img) = (txt.values()?, img.values()?);
                let rows = txt.chunks_exact(a).zip(img.chunks_exact(b));
                let joint: Vec<f32> = rows.flat_map(|(t, i)| t.iter().chain(i)).copied().collect();
                f.check(name, &joint)?;
            }
        }
    }
    f.check("out.sample", &v.value().values()?)?;
    let loss = mse(&tape, &v, &target)?;
    f.check_mse("out.loss", &loss.value().values()?, v.value(), "out.sample", &target)?;
    tape.backward(&loss, None)?;
    for (name, var) in [("grad.hidden_states", &img), ("grad.encoder_hidden_states", &txt)] {
        let g = tape.grad(var).ok_or_else(|| f.error(format!("{name}: no gradient arrived")))?;
        f.check(name, &g.values()?)?;
    }
    Ok(tape.into_leaves())
}

pub(super) fn conditioned(f: &mut Fixture, run: &Run) -> Result<()> {
    let (device, model) = (run.device, Model::open(f, run)?);
    let config = &model.config;
    let names: Vec<String> =
        f.value("/lora")?.as_object().map(|o| o.keys().cloned().collect()).unwrap_or_default();
    let files = names.iter().map(|n| f.adapter(n, device)).collect::<Result<Vec<_>>>()?;
    let target = f.tensor("in.target", device)?;
    let trained: Vec<usize> = (0..names.len())
        .filter(|&i| f.names().iter().any(|n| n.starts_with(&format!("grad.{}.", names[i]))))
        .collect();
    let mut of_trained = String::new();
    // Forward under every recorded adapter set: its name joins the adapters' short names.
    for name in f.names() {
        let Some(key) = name.strip_prefix("out.").filter(|k| *k != "loss") else { continue };
        let set: Vec<usize> = match key {
            "none" => vec![],
            _ => key
                .split('_')
                .map(|short| names.iter().position(|n| n.split('_').any(|part| part == short)))
                .collect::<Option<_>>()
                .ok_or_else(|| f.error(format!("{name}: no adapter set of that name")))?,
        };
        if set == trained {
            of_trained.clone_from(&name);
        }
        let adapters = files.iter().map(|a| run.frozen(a, 1.0)).collect::<Result<Vec<_>>>()?;
        let flux = model.flux(&adapters);
        let inputs = cond_inputs(f, config, device, set, None)?;
        let v = flux.forward(&model.on(Tape::no_grad()), &inputs)?;
        f.check(&name, &v.value().values()?)?;
    }
    // Gradients of every adapter that has recorded ones.
    let mut params = adapter_params(device, &trained.iter().map(|&i| &files[i]).collect::<Vec<_>>())?;
    run.train(&mut params, |params| {
        let adapters = trained
            .iter()
            .map(|&i| {
                let scale = files[i].modules.values().next().map_or(1.0, |m| m.scaling());
                Adapter::trainable(&names[i], scale, params)
            })
            .collect::<Result<Vec<_>>>()?;
        let flux = model.flux(&adapters);
        let tape = model.on(Tape::new(params.leaves()));
        let img = tape.input(f.tensor("in.hidden_states", device)?);
        let cond = tape.input(f.tensor("in.condition", device)?);
        let set = (0..adapters.len()).collect();
        let inputs = cond_inputs(f, config, device, set, Some((img.clone(), cond.clone())))?;
        let v = flux.forward(&tape, &inputs)?;
        let loss = mse(&tape, &v, &target)?;
        f.check_mse("out.loss", &loss.value().values()?, v.value(), &of_trained, &target)?;
        tape.backward(&loss, None)?;
        for (name, var) in [("grad.hidden_states", &img), ("grad.condition", &cond)] {
            let g = tape.grad(var).ok_or_else(|| f.error(format!("{name}: no gradient arrived")))?;
            f.check(name, &g.values()?)?;
        }
        params.take_back(tape.into_leaves())
    })?;
    for name in f.names() {
        let Some(rest) = name.strip_prefix("grad.").filter(|r| r.contains(".transformer.")) else { continue };
        let full = rest.replacen(".transformer.", ".", 1);
        let id = params.find(&full).ok_or_else(|| f.error(format!("{name}: no such adapter parameter")))?;
        f.check(&name, &params.grad(id.0).values()?)?;
    }
    Ok(())
}

fn cond_inputs(
    f: &Fixture,
    config: &FluxConfig,
    device: &Device,
    set: Vec<usize>,
    leaves: Option<(Var, Var)>,
) -> Result<Inputs> {
    let sigma = f.f32s("in.timestep")?;
    let batch = sigma.len();
    let (img, cond) = match leaves {
        Some(pair) => pair,
        None => (
            Var::constant(f.tensor("in.hidden_states", device)?),
            Var::constant(f.tensor("in.condition", device)?),
        ),
    };
    Ok(Inputs {
        img,
        cond: Some(cond),
        txt: Var::constant(Tensor::zeros(device, &[batch, 1, config.joint_attention_dim])?),
        pooled: Var::constant(Tensor::zeros(device, &[batch, config.pooled_projection_dim])?),
        same_text: true,
        guidance: vec![0.0; batch],
        sigma: NoiseLevels::new(device, &sigma)?,
        img_ids: f.ids("in.img_ids")?,
        txt_ids: vec![[0.0; 3]].into(),
        text_multiplicity: 512.0,
        groups: f.group_bias()?,
        adapters: Arc::new(AdapterSet::uniform(set, batch)),
        adapt_all: false,
        recompute: false,
    })
}
