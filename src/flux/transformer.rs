//! FLUX's transformer with a condition branch.
//!
//! Two streams: `txt` `[B, T, D]`, and the image tokens followed by the condition tokens, `x` `[B, N + Nc, D]`, which share
//! their weights. Adapters act on condition tokens only, unless asked to act on all. What is exact and cheaper is done:
//! one text token may stand for many (`text_multiplicity`), the condition's modulation is computed once per adapter set,
//! and of the last single block only what reaches the output: keys and values of text and condition, everything of the
//! image.

use super::config::FluxConfig;
use super::modulation::{Levels, ModulationTable};
use super::params::{Adapter, Weights};
use crate::autograd::{Tape, Var};
use crate::engine::{DType, Tensor};
use crate::ops::attention::{Attention, GroupBias};
use crate::ops::blend::{Blend, Factor};
use crate::ops::cast::Cast;
use crate::ops::concat::{Concat, Narrow};
use crate::ops::embed::{NoiseLevels, RopeTable, sinusoid_constant};
use crate::ops::feed_forward::FeedForward;
use crate::ops::linear::{Epilogue, Linear, Lora};
use crate::ops::modulate::LnModulate;
use crate::ops::qk_norm_rope::QkNormRope;
use crate::ops::silu::Silu;
use crate::ops::{AdapterSet, ModSource, RowMap, TokenLayout};
use crate::{Error, Result};
use std::ops::Range;
use std::sync::Arc;

/// Text tokens of the reference's (zero) prompt in training: all equal, so one that counts 512 times is the same.
pub const TEXT_TOKENS: usize = 512;

/// Blocks that are computed again at a time. What is kept between blocks, k apart, and of those being computed again is
/// least where k² = blocks · (a stream in f32)/(what one block keeps): 57 · 74/530 MiB of FLUX.1-dev.
const SEGMENT: usize = 3;

/// The model: structure, weights and adapters, by reference.
#[derive(Clone, Copy)]
pub struct Flux<'a> {
    /// The structure.
    pub config: &'a FluxConfig,
    /// The base weights.
    pub weights: &'a Weights,
    /// The adapters that [`AdapterSet`]s index.
    pub adapters: &'a [Adapter],
}

/// What one forward pass is given. Times are σ and guidance as the reference passes them (×1000 inside).
pub struct Inputs {
    /// Noisy packed latents `[B, N, in_channels]`.
    pub img: Var,
    /// Packed condition latents `[B, Nc, in_channels]`, if the model is conditioned.
    pub cond: Option<Var>,
    /// Text embeddings `[B, T, joint]`.
    pub txt: Var,
    /// Pooled text embedding `[B, pooled]`.
    pub pooled: Var,
    /// The pooled embeddings of all samples are equal, as they are in training: the condition's modulation is then
    /// computed once for all that share adapters and guidance.
    pub same_text: bool,
    /// Noise level of each sample.
    pub sigma: NoiseLevels,
    /// Guidance of each sample.
    pub guidance: Vec<f32>,
    /// Position ids of the image tokens (the condition's are the same).
    pub img_ids: Arc<[[f32; 3]]>,
    /// Position ids of the text tokens.
    pub txt_ids: Arc<[[f32; 3]]>,
    /// How many equal text tokens each text token stands for (512 in training, with T = 1; 1 otherwise).
    pub text_multiplicity: f32,
    /// Bias between token groups, if any (condition strength, block masks).
    pub groups: Option<GroupBias>,
    /// Which adapters act on which sample.
    pub adapters: Arc<AdapterSet>,
    /// Adapters act on whatever runs through their layers: the condition, the image and, in the single blocks, the
    /// text. That is what diffusers and PEFT do. Without it they act on the condition alone.
    pub adapt_all: bool,
    /// Keep only every third block's inputs for backward, and compute the inside again.
    pub recompute: bool,
}

/// Ids of an `h × w` grid of tokens: (0, row, column).
pub fn grid_ids(h: usize, w: usize) -> Arc<[[f32; 3]]> {
    (0..h * w).map(|i| [0.0, (i / w) as f32, (i % w) as f32]).collect()
}

/// What every block needs to know; shapes and tables, no activations.
#[derive(Clone)]
struct Plan {
    layout: TokenLayout,
    /// Modulation of the stream, and of the text.
    stream: ModSource,
    text: ModSource,
    /// Their rows, where a table has them.
    rows: Option<Rows>,
    /// The tokens that adapters act on, of the stream and of the text; the condition's modulation is always adapted.
    lora_tokens: Range<usize>,
    lora_text: Range<usize>,
    set: Arc<AdapterSet>,
    row_set: Arc<AdapterSet>,
    rope: Arc<RopeTable>,
    rope_txt: Arc<RopeTable>,
    attention: Attention,
}

/// What a table has for a batch: the rows of its noise levels, and the condition's.
#[derive(Clone)]
struct Rows {
    table: Arc<ModulationTable>,
    image: Tensor,
    cond: Tensor,
}

/// The activations between blocks.
struct State {
    x: Var,
    txt: Var,
    /// SiLU of the time embedding; of the condition's.
    emb: Var,
    cond_emb: Option<Var>,
}

impl<'a> Flux<'a> {
    /// The velocity `[B, N, out_channels]`.
    pub fn forward(&'a self, tape: &Tape<'a>, inputs: &Inputs) -> Result<Var> {
        self.forward_observed(tape, inputs, &mut |_, _| {})
    }

    /// [`Flux::forward`], showing intermediate values to `observe` under the golden vectors' names: every block's, or where
    /// they are recomputed those that are kept.
    pub fn forward_observed(
        &'a self,
        tape: &Tape<'a>,
        inputs: &Inputs,
        observe: &mut dyn FnMut(&str, &Tensor),
    ) -> Result<Var> {
        let (plan, mut s) = self.begin(tape, inputs, observe)?;
        let (double, all) = (self.config.num_layers, self.config.num_layers + self.config.num_single_layers);
        let step = if inputs.recompute { SEGMENT } else { 1 };
        for first in (0..all).step_by(step) {
            let end = all.min(first + step);
            s = match inputs.recompute {
                true => self.blocks_again(tape, &plan, s, first..end)?,
                false => self.blocks(tape, &plan, s, first..end)?,
            };
            if end <= double {
                observe(&format!("mid.block{}_txt", end - 1), s.txt.value());
                observe(&format!("mid.block{}_img", end - 1), s.x.value());
            } else if end < all {
                observe(&format!("mid.single{}.txt", end - 1 - double), s.txt.value());
                observe(&format!("mid.single{}.img", end - 1 - double), s.x.value());
            }
        }
        let rows = plan.rows.as_ref().map(|r| &r.image);
        let modulation = self.modulation(tape, "norm_out.linear", &s.emb, rows, None)?;
        let source = ModSource::per_sample(inputs.sigma.len());
        let last = LnModulate { source, shift: 1, scale: 0, narrow: self.narrow() };
        let img = if s.x.value().shape()[1] > plan.layout.img {
            tape.one(Narrow { axis: 1, range: 0..plan.layout.img }, &[&s.x])?
        } else {
            s.x
        };
        let y = tape.one(last, &[&img, &modulation])?;
        self.wide(tape, "proj_out", &y, None)
    }

    /// Embeddings, tables, and the plan of the blocks.
    fn begin(
        &self,
        tape: &Tape<'a>,
        inputs: &Inputs,
        observe: &mut dyn FnMut(&str, &Tensor),
    ) -> Result<(Plan, State)> {
        let c = self.config;
        let plan = self.plan(inputs)?;
        let stream = match &inputs.cond {
            Some(cond) => tape.one(Concat { axis: 1 }, &[&inputs.img, cond])?,
            None => inputs.img.clone(),
        };
        let lora = Some((plan.lora_tokens.clone(), &plan.set));
        let x = self.wide(tape, "x_embedder", &self.cast(tape, &stream)?, lora)?;
        let txt = self.wide(tape, "context_embedder", &self.cast(tape, &inputs.txt)?, None)?;
        if let Some(Rows { table, image, cond }) = &plan.rows {
            let [emb, cond] = [image, cond].map(|rows| table.embedding(rows).map(Var::constant));
            let cond_emb = inputs.cond.is_some().then_some(cond).transpose()?;
            return Ok((plan, State { x, txt, emb: emb?, cond_emb }));
        }
        let levels = &inputs.sigma.embedding;
        let emb = self.time_embedding(tape, levels, &inputs.guidance, &inputs.pooled)?;
        observe("mid.temb", emb.value());
        let emb = tape.one(Silu, &[&emb])?;
        let cond_emb = match &inputs.cond {
            None => None,
            Some(_) => {
                let rows = plan.row_set.of_sample.len();
                let pooled = Var::constant(inputs.pooled.value().leading(rows));
                let pooled = if rows == inputs.sigma.len() { inputs.pooled.clone() } else { pooled };
                let clean = sinusoid_constant(pooled.value().device(), &vec![0.0; rows])?;
                Some(self.time_modulation(tape, &clean, &inputs.guidance[..rows], &pooled)?)
            }
        };
        debug_assert_eq!(x.value().width(), c.dim());
        Ok((plan, State { x, txt, emb, cond_emb }))
    }

    fn plan(&self, inputs: &Inputs) -> Result<Plan> {
        const OP: &str = "flux";
        let c = self.config;
        let tokens = |v: &Var| v.value().shape().get(1).copied().unwrap_or(0);
        let (batch, img, cond) =
            (inputs.sigma.len(), tokens(&inputs.img), inputs.cond.as_ref().map_or(0, tokens));
        let layout = TokenLayout { txt: tokens(&inputs.txt), img, cond };
        inputs.img.value().expect(OP, "the noisy latents", &[batch, img, c.in_channels])?;
        inputs.txt.value().expect(OP, "the text embedding", &[batch, layout.txt, c.joint_attention_dim])?;
        inputs.pooled.value().expect(OP, "the pooled embedding", &[batch, c.pooled_projection_dim])?;
        if let Some(v) = &inputs.cond {
            v.value().expect(OP, "the condition", &[batch, img, c.in_channels])?;
        }
        if inputs.img_ids.len() != img || inputs.txt_ids.len() != layout.txt || inputs.guidance.len() != batch
        {
            let detail = format!(
                "{} image ids for {img} tokens, {} text ids for {} tokens, {} guidance values for batch {batch}",
                inputs.img_ids.len(),
                inputs.txt_ids.len(),
                layout.txt,
                inputs.guidance.len()
            );
            return Err(Error::shape(OP, detail));
        }
        // The condition's modulation depends on the sample only through its adapters, unless guidance or text differ.
        let same = inputs.same_text && inputs.guidance.windows(2).all(|g| g[0] == g[1]);
        let shared = same && !inputs.pooled.tracked() && inputs.adapters.sets.len() <= batch;
        let set = inputs.adapters.clone();
        let (row_set, map): (Arc<AdapterSet>, RowMap) = if shared {
            let each = AdapterSet { sets: set.sets.clone(), of_sample: (0..set.sets.len()).collect() };
            (Arc::new(each), set.of_sample.clone().into())
        } else {
            (set.clone(), (0..batch).collect())
        };
        let mut ids = inputs.img_ids.to_vec();
        if cond > 0 {
            ids.extend_from_slice(&inputs.img_ids);
        }
        let text = ModSource::per_sample(batch);
        let stream = ModSource { split: img, image: (0..batch).collect(), cond: (cond > 0).then_some(map) };
        let rows = match self.weights.levels() {
            Levels::Sinusoid => None,
            Levels::Table(table) if inputs.guidance.iter().any(|&g| g != table.guidance()) => {
                let (made, asked) = (table.guidance(), &inputs.guidance);
                let detail = format!("the model's modulation is a table for guidance {made}, not {asked:?}");
                return Err(Error::shape(OP, detail));
            }
            Levels::Table(table) => Some(Rows {
                table: table.clone(),
                image: table.batch(&inputs.sigma.embedding)?,
                cond: table.clean(row_set.of_sample.len())?,
            }),
        };
        let log_m = inputs.text_multiplicity.ln();
        let log_multiplicity = (log_m != 0.0)
            .then(|| (0..layout.total()).map(|i| if i < layout.txt { log_m } else { 0.0 }).collect());
        Ok(Plan {
            layout,
            stream,
            text,
            rows,
            lora_tokens: if inputs.adapt_all { 0..layout.stream() } else { img..layout.stream() },
            lora_text: if inputs.adapt_all { 0..layout.txt } else { 0..0 },
            set,
            row_set,
            rope: Arc::new(RopeTable::new(&ids, &c.axes_dims_rope, c.rope_theta)?),
            rope_txt: Arc::new(RopeTable::new(&inputs.txt_ids, &c.axes_dims_rope, c.rope_theta)?),
            attention: Attention {
                heads: c.num_attention_heads,
                layout,
                log_multiplicity,
                groups: inputs.groups,
            },
        })
    }

    /// `time(1000σ) + guidance(1000g) + pooled`, each an MLP with SiLU; the first is given as its sinusoid. `[rows, D]`
    fn time_embedding(&self, tape: &Tape<'a>, sigma: &Tensor, guidance: &[f32], pooled: &Var) -> Result<Var> {
        let mlp = |name: &str, x: &Var, sum: Option<&Var>| {
            let (first, second) = (format!("{name}.linear_1"), format!("{name}.linear_2"));
            let [first, second] = [first, second].map(|n| format!("time_text_embed.{n}"));
            let h = self.linear(tape, &first, &self.cast(tape, x)?, Epilogue::None, &[], None)?;
            let h = tape.one(Silu, &[&h])?;
            match sum {
                Some(sum) => self.linear(tape, &second, &h, Epilogue::Add, &[sum], None),
                None => self.wide(tape, &second, &h, None),
            }
        };
        let mut e = mlp("timestep_embedder", &Var::constant(sigma.clone()), None)?;
        if self.config.guidance_embeds {
            let guidance = sinusoid_constant(pooled.value().device(), &NoiseLevels::times(guidance))?;
            e = mlp("guidance_embedder", &Var::constant(guidance), Some(&e))?;
        }
        mlp("text_embedder", pooled, Some(&e))
    }

    /// SiLU of that: what modulations are computed from.
    pub(super) fn time_modulation(
        &self,
        tape: &Tape<'a>,
        sigma: &Tensor,
        guidance: &[f32],
        pooled: &Var,
    ) -> Result<Var> {
        tape.one(Silu, &[&self.time_embedding(tape, sigma, guidance, pooled)?])
    }

    /// Runs blocks, the double ones counted before the single ones, to be computed again in backward.
    fn blocks_again(&'a self, tape: &Tape<'a>, plan: &Plan, s: State, blocks: Range<usize>) -> Result<State> {
        let (plan, emb, cond_emb) = (plan.clone(), s.emb.clone(), s.cond_emb.clone());
        let inputs: Vec<&Var> = [&s.x, &s.txt, &s.emb].into_iter().chain(&s.cond_emb).collect();
        let mut out = tape.recompute(&inputs, move |tape, v| {
            let [x, txt, emb] = [0, 1, 2].map(|i| v[i].clone());
            let s = State { x, txt, emb, cond_emb: v.get(3).cloned() };
            let s = self.blocks(tape, &plan, s, blocks.clone())?;
            Ok(vec![s.x, s.txt])
        })?;
        let txt = out.pop().expect("two outputs");
        Ok(State { x: out.pop().expect("two outputs"), txt, emb, cond_emb })
    }

    /// Runs them, recorded in full.
    fn blocks(&self, tape: &Tape<'a>, plan: &Plan, mut s: State, blocks: Range<usize>) -> Result<State> {
        let double = self.config.num_layers;
        for block in blocks {
            let (emb, cond_emb) = (s.emb.clone(), s.cond_emb.clone());
            let (x, txt) = match block.checked_sub(double) {
                None => self.double_block(tape, plan, s, block)?,
                Some(block) => self.single_block(tape, plan, s, block)?,
            };
            s = State { x, txt, emb, cond_emb };
        }
        Ok(s)
    }

    fn double_block(&self, tape: &Tape<'a>, plan: &Plan, s: State, block: usize) -> Result<(Var, Var)> {
        let at = |name: &str| format!("transformer_blocks.{block}.{name}");
        let on_stream = Some((plan.lora_tokens.clone(), &plan.set));
        let m = self.stream_modulation(tape, plan, &at("norm1.linear"), &s)?;
        let rows = plan.rows.as_ref().map(|r| &r.image);
        let mt = self.modulation(tape, &at("norm1_context.linear"), &s.emb, rows, None)?;

        let n = self.ln(tape, &plan.stream, &s.x, &m, 0, 1)?;
        let nt = self.ln(tape, &plan.text, &s.txt, std::slice::from_ref(&mt), 0, 1)?;
        let turned = |[name, norm]: [&str; 2]| {
            self.norm_rope(tape, [&at(name), &at(norm)], &n, &plan.rope, on_stream.clone())
        };
        let turned_t =
            |[name, norm]: [&str; 2]| self.norm_rope(tape, [&at(name), &at(norm)], &nt, &plan.rope_txt, None);
        let q = turned(["attn.to_q", "attn.norm_q"])?;
        let k = turned(["attn.to_k", "attn.norm_k"])?;
        let v = self.linear(tape, &at("attn.to_v"), &n, Epilogue::None, &[], on_stream.clone())?;
        let qt = turned_t(["attn.add_q_proj", "attn.norm_added_q"])?;
        let kt = turned_t(["attn.add_k_proj", "attn.norm_added_k"])?;
        let vt = self.linear(tape, &at("attn.add_v_proj"), &nt, Epilogue::None, &[], None)?;
        let o = tape.apply(plan.attention.clone(), &[&q, &k, &v, &kt, &vt, &qt])?;

        let gate = |chunk| Epilogue::Gate { source: plan.stream.clone(), chunk };
        let gate_t = |chunk| Epilogue::Gate { source: plan.text.clone(), chunk };
        let with =
            |resid: &Var, m: &[Var]| -> Vec<Var> { std::iter::once(resid).chain(m).cloned().collect() };
        let mt = [mt];
        let x =
            self.linear_v(tape, &at("attn.to_out.0"), &o[0], gate(2), &with(&s.x, &m), on_stream.clone())?;
        let txt = self.linear_v(tape, &at("attn.to_add_out"), &o[1], gate_t(2), &with(&s.txt, &mt), None)?;

        let n = self.ln(tape, &plan.stream, &x, &m, 3, 4)?;
        let ff = |name: &str| [at(&format!("{name}.net.0.proj")), at(&format!("{name}.net.2"))];
        let x = self.feed_forward(tape, &ff("ff"), &n, None, gate(5), &with(&x, &m), on_stream)?;
        let nt = self.ln(tape, &plan.text, &txt, &mt, 3, 4)?;
        let extra = with(&txt, &mt);
        let txt = self.feed_forward(tape, &ff("ff_context"), &nt, None, gate_t(5), &extra, None)?;
        Ok((x, txt))
    }

    fn single_block(&self, tape: &Tape<'a>, plan: &Plan, s: State, block: usize) -> Result<(Var, Var)> {
        let at = |name: &str| format!("single_transformer_blocks.{block}.{name}");
        let last = block + 1 == self.config.num_single_layers;
        let m = self.stream_modulation(tape, plan, &at("norm.linear"), &s)?;
        let mt = &m[..1];
        let n = self.ln(tape, &plan.stream, &s.x, &m, 0, 1)?;
        let nt = self.ln(tape, &plan.text, &s.txt, mt, 0, 1)?;
        let lora = |tokens: Range<usize>| Some((tokens, &plan.set));
        let (all, text) = (plan.lora_tokens.clone(), &plan.lora_text);

        let value = |x: &Var, tokens: &Range<usize>| {
            self.linear(tape, &at("attn.to_v"), x, Epilogue::None, &[], lora(tokens.clone()))
        };
        let turned = |[name, norm]: [&str; 2], x: &Var, rope: &Arc<RopeTable>, tokens: &Range<usize>| {
            self.norm_rope(tape, [&at(name), &at(norm)], x, rope, lora(tokens.clone()))
        };
        let [to_q, to_k] = [["attn.to_q", "attn.norm_q"], ["attn.to_k", "attn.norm_k"]];
        let k = turned(to_k, &n, &plan.rope, &all)?;
        let v = value(&n, &all)?;
        let kt = turned(to_k, &nt, &plan.rope_txt, text)?;
        let vt = value(&nt, text)?;

        // Of the last block only image tokens go on.
        let l = plan.layout;
        let cut = last && l.cond > 0;
        let (n, resid, rope, tokens) = if cut {
            let img = || Narrow { axis: 1, range: 0..l.img };
            let tokens = all.start.min(l.img)..l.img;
            (tape.one(img(), &[&n])?, tape.one(img(), &[&s.x])?, Arc::new(plan.rope.leading(l.img)), tokens)
        } else {
            (n, s.x.clone(), plan.rope.clone(), all)
        };
        let q = turned(to_q, &n, &rope, &tokens)?;
        let out = |o: &Var,
                   n: &Var,
                   resid: &Var,
                   m: &[Var],
                   source: &ModSource,
                   lora: Option<(Range<usize>, &Arc<AdapterSet>)>| {
            let gate = Epilogue::Gate { source: source.clone(), chunk: 2 };
            let extra: Vec<Var> = std::iter::once(resid).chain(m).cloned().collect();
            self.feed_forward(tape, &[at("proj_mlp"), at("proj_out")], n, Some(o), gate, &extra, lora)
        };
        if last {
            let o = tape.one(plan.attention.clone(), &[&q, &k, &v, &kt, &vt])?;
            let (source, m) = if cut { (&plan.text, mt) } else { (&plan.stream, &m[..]) };
            return Ok((out(&o, &n, &resid, m, source, lora(tokens))?, s.txt));
        }
        let qt = turned(to_q, &nt, &plan.rope_txt, text)?;
        let o = tape.apply(plan.attention.clone(), &[&q, &k, &v, &kt, &vt, &qt])?;
        let x = out(&o[0], &n, &resid, &m, &plan.stream, lora(tokens))?;
        let txt = out(&o[1], &nt, &s.txt, mt, &plan.text, lora(text.clone()))?;
        Ok((x, txt))
    }

    /// The modulation tables of a block's stream: the image's, then the condition's.
    fn stream_modulation(&self, tape: &Tape<'a>, plan: &Plan, name: &str, s: &State) -> Result<Vec<Var>> {
        // Where the image is adapted, so is its modulation.
        let image_set = (plan.lora_tokens.start == 0).then_some(&*plan.set);
        let rows = plan.rows.as_ref();
        let mut m = vec![self.modulation(tape, name, &s.emb, rows.map(|r| &r.image), image_set)?];
        if let Some(e) = &s.cond_emb {
            m.push(self.modulation(tape, name, e, rows.map(|r| &r.cond), Some(&plan.row_set))?);
        }
        Ok(m)
    }

    /// A modulation: the layer `module` of each row of `emb`, or what the table has of it in `rows`; and what those adapters
    /// of `set` add that the row has.
    pub(super) fn modulation(
        &self,
        tape: &Tape<'a>,
        module: &str,
        emb: &Var,
        rows: Option<&Tensor>,
        set: Option<&AdapterSet>,
    ) -> Result<Var> {
        let mut m = match (self.weights.levels(), rows) {
            (Levels::Table(table), Some(rows)) => Var::constant(table.of(module, rows)?),
            _ => self.wide(tape, module, &self.cast(tape, emb)?, None)?,
        };
        let Some(set) = set else { return Ok(m) };
        for (i, adapter) in self.adapters.iter().enumerate() {
            let has = |row: usize| set.of(row).contains(&i);
            let rows = 0..set.of_sample.len();
            if !rows.clone().any(has) {
                continue;
            }
            let Some((scale, a, b)) = adapter.on(tape, module) else { continue };
            let factors = rows.map(|row| if has(row) { scale } else { 0.0 }).collect();
            let x = self.cast(tape, &scaled(tape, emb, factors)?)?;
            let product = Linear { bias: false, ..Linear::plain() };
            let down = tape.one(product.clone(), &[&x, &a])?;
            m = tape.one(Linear { epilogue: Epilogue::Add, ..product }, &[&down, &b, &m])?;
        }
        Ok(m)
    }

    /// Queries or keys: the layer `module`, normed with the weight of `norm` and turned.
    fn norm_rope(
        &self,
        tape: &Tape<'a>,
        [module, norm]: [&str; 2],
        x: &Var,
        table: &Arc<RopeTable>,
        lora: Option<(Range<usize>, &Arc<AdapterSet>)>,
    ) -> Result<Var> {
        let (w, table) = (self.weights.var(tape, &format!("{norm}.weight"))?, table.clone());
        if tape.rewrites() {
            let z = self.linear(tape, module, x, Epilogue::None, &[], lora)?;
            return tape.one(QkNormRope { table }, &[&z, &w]);
        }
        self.linear(tape, module, x, Epilogue::NormRope { table }, &[&w], lora)
    }

    /// Are activations but the residual stream bf16?
    fn narrow(&self) -> bool {
        self.weights.activations() == DType::Bf16
    }

    /// What a layer beside the residual stream is given.
    fn cast(&self, tape: &Tape<'a>, x: &Var) -> Result<Var> {
        if self.narrow() { tape.one(Cast { to: DType::Bf16 }, &[x]) } else { Ok(x.clone()) }
    }

    fn ln(
        &self,
        tape: &Tape<'a>,
        source: &ModSource,
        x: &Var,
        m: &[Var],
        shift: usize,
        scale: usize,
    ) -> Result<Var> {
        let inputs: Vec<&Var> = std::iter::once(x).chain(m).collect();
        let op = LnModulate { source: source.clone(), shift, scale, narrow: self.narrow() };
        tape.one(op, &inputs)
    }

    /// A layer whose output is f32: the residual stream's beginning and end, and modulation.
    fn wide(
        &self,
        tape: &Tape<'a>,
        module: &str,
        x: &Var,
        lora: Option<(Range<usize>, &Arc<AdapterSet>)>,
    ) -> Result<Var> {
        self.layer(tape, module, x, Linear { wide: true, ..Linear::plain() }, &[], lora)
    }

    fn linear(
        &self,
        tape: &Tape<'a>,
        module: &str,
        x: &Var,
        epilogue: Epilogue,
        extra: &[&Var],
        lora: Option<(Range<usize>, &Arc<AdapterSet>)>,
    ) -> Result<Var> {
        let extra: Vec<Var> = extra.iter().map(|&v| v.clone()).collect();
        self.linear_v(tape, module, x, epilogue, &extra, lora)
    }

    fn linear_v(
        &self,
        tape: &Tape<'a>,
        module: &str,
        x: &Var,
        epilogue: Epilogue,
        extra: &[Var],
        lora: Option<(Range<usize>, &Arc<AdapterSet>)>,
    ) -> Result<Var> {
        self.layer(tape, module, x, Linear { epilogue, ..Linear::plain() }, extra, lora)
    }

    /// The layers `up` and `down` with GELU between them; `down` reads its output beside `beside`, if there is one.
    #[allow(
        clippy::too_many_arguments,
        reason = "two layers, what the second one's epilogue reads, adapters"
    )]
    fn feed_forward(
        &self,
        tape: &Tape<'a>,
        [up, down]: &[String; 2],
        x: &Var,
        beside: Option<&Var>,
        epilogue: Epilogue,
        extra: &[Var],
        lora: Option<(Range<usize>, &Arc<AdapterSet>)>,
    ) -> Result<Var> {
        if tape.rewrites() {
            let h = self.linear(tape, up, x, Epilogue::Gelu, &[], lora.clone())?;
            let h = match beside {
                Some(o) => tape.one(Concat { axis: 2 }, &[o, &h])?,
                None => h,
            };
            return self.linear_v(tape, down, &h, epilogue, extra, lora);
        }
        let (up, rest) = self.bound(tape, up, Linear::plain(), &[], lora.clone())?;
        let form = Linear { joined: beside.is_some(), epilogue, ..Linear::plain() };
        let (down, more) = self.bound(tape, down, form, extra, lora)?;
        let inputs: Vec<&Var> = std::iter::once(x).chain(&rest).chain(beside).chain(&more).collect();
        tape.one(FeedForward::new(up, down), &inputs)
    }

    /// The layer `module` as `form`, with what its epilogue reads (`extra`), and those of the adapters that act on it.
    fn layer(
        &self,
        tape: &Tape<'a>,
        module: &str,
        x: &Var,
        form: Linear,
        extra: &[Var],
        lora: Option<(Range<usize>, &Arc<AdapterSet>)>,
    ) -> Result<Var> {
        let (op, rest) = self.bound(tape, module, form, extra, lora)?;
        tape.one(op, &std::iter::once(x).chain(&rest).collect::<Vec<_>>())
    }

    /// That layer, and its inputs but for x.
    fn bound(
        &self,
        tape: &Tape<'a>,
        module: &str,
        form: Linear,
        extra: &[Var],
        lora: Option<(Range<usize>, &Arc<AdapterSet>)>,
    ) -> Result<(Linear, Vec<Var>)> {
        let w = self.weights.var(tape, &format!("{module}.weight"))?;
        let bias = self.weights.var(tape, &format!("{module}.bias"))?;
        let mut inputs = vec![w, bias];
        inputs.extend_from_slice(extra);
        let mut adapters = Vec::new();
        if let Some((_, set)) = lora.as_ref().filter(|(tokens, _)| !tokens.is_empty()) {
            let used = |i: usize| set.sets.iter().any(|s| s.contains(&i));
            for (i, adapter) in self.adapters.iter().enumerate().filter(|(i, _)| used(*i)) {
                if let Some((scale, a, b)) = adapter.on(tape, module) {
                    adapters.push((i, scale));
                    inputs.extend([a, b]);
                }
            }
        }
        let lora = lora.filter(|_| !adapters.is_empty()).map(|(tokens, set)| Lora {
            tokens,
            set: set.clone(),
            adapters,
        });
        Ok((Linear { lora, ..form }, inputs))
    }
}

/// Each row of `x` by its factor.
fn scaled(tape: &Tape, x: &Var, factors: Vec<f32>) -> Result<Var> {
    if factors.iter().all(|&f| f == 1.0) {
        return Ok(x.clone());
    }
    let name = format!("factors {factors:?}");
    let factors = Tensor::constant(x.value().device(), name, &[factors.len()], || factors.clone())?;
    let by_row = Blend { x: Factor::SIGMA, y: Factor::constant(0.0) };
    tape.one(by_row, &[x, x, &Var::constant(factors)])
}
