//! The evaluation at a run's end: held-out crops restored by every policy there is, their scores and the picture.

use super::log::Eval;
use super::stages::{Artifacts, Context};
use crate::data::{EvalPair, Image, montage, nearest, torch_up};
use crate::eval::{Evaluation, Scores};
use crate::files::write_atomic;
use crate::flux::params::Adapter;
use crate::infer::model::{Model, layout};
use crate::{Error, Result};
use std::sync::atomic::Ordering;

/// Crops restored in one forward pass.
const BATCH: usize = 8;
/// Rows of the comparison picture.
const ROWS: usize = 6;

/// Scores bicubic and every policy; writes `evaluation.json` and the picture LQ | bicubic | sft | asdpo | HQ.
pub(super) fn evaluate(context: &Context, made: Artifacts) -> Result<Eval> {
    let pairs = context.sampler.held_out(context.config.run.eval_crops)?;
    let hq: Vec<Image> = pairs.iter().map(|p| p.hq.clone()).collect();
    let bicubic: Vec<Image> =
        pairs.iter().map(|p| torch_up(&p.lq, p.hq.height, p.hq.width).clamped()).collect();
    let mut restored = vec![("bicubic", bicubic)];
    if let Some(weights) = made.base {
        let mut model = Model {
            prompt: None,
            config: context.flux.clone(),
            codec: context.sampler.codec().clone(),
            lq_resize: context.config.data.lq_resize,
            weights,
            adapters: Vec::new(),
        };
        restored.push(("base", restore(context, &model, &pairs)?));
        for (name, adapter) in [("sft", layout::SFT), ("asdpo", layout::ASDPO)] {
            // The preference adapter stands on the super-resolution adapter.
            let Some(file) = made.adapters.get(adapter) else { break };
            model.adapters.push(Adapter::frozen(file, 1.0));
            restored.push((name, restore(context, &model, &pairs)?));
        }
    }
    let scores = |(name, images): &(&str, Vec<Image>)| Ok((name.to_string(), Scores::of(images, &hq)?));
    let evaluation = Evaluation {
        crops: pairs.iter().map(|p| format!("{} at {}, {}", p.name, p.x, p.y)).collect(),
        methods: restored.iter().map(scores).collect::<Result<_>>()?,
    };
    write_atomic(context.out.join("evaluation.json"), evaluation.to_json()?.as_bytes())?;
    picture(&pairs, &restored)?.save_png(context.out.join("samples.png"))?;
    Ok(Eval::of(&evaluation))
}

fn restore(context: &Context, model: &Model, pairs: &[EvalPair]) -> Result<Vec<Image>> {
    let mut all = Vec::new();
    for group in pairs.chunks(BATCH) {
        if context.stop.load(Ordering::Relaxed) {
            let saved = format!("training is saved; go on with --resume --out {}", context.out.display());
            return Err(Error::Interrupted { stage: "evaluation".to_owned(), step: all.len(), saved });
        }
        let lq: Vec<Image> = group.iter().map(|p| p.lq.clone()).collect();
        let corners = vec![(0, 0); lq.len()];
        all.extend(model.restore(&lq, &corners, context.config.run.eval_steps, &context.device)?);
    }
    Ok(all)
}

/// LQ, what each method made of it (the base only where nothing stands on it), HQ.
fn picture(pairs: &[EvalPair], restored: &[(&str, Vec<Image>)]) -> Result<Image> {
    let lq: Vec<Image> = pairs.iter().map(|p| nearest(&p.lq, p.hq.height, p.hq.width)).collect();
    let shown: Vec<&(&str, Vec<Image>)> =
        restored.iter().filter(|(name, _)| *name != "base" || restored.len() == 2).collect();
    let rows: Vec<Vec<&Image>> = (0..pairs.len().min(ROWS))
        .map(|i| [&lq[i]].into_iter().chain(shown.iter().map(|m| &m.1[i])).chain([&pairs[i].hq]).collect())
        .collect();
    let labels: Vec<&str> = ["LQ"].into_iter().chain(shown.iter().map(|m| m.0)).chain(["HQ"]).collect();
    montage(&rows, &labels, 4, 2)
}
