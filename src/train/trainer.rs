//! One stage from its first step, or from a checkpoint, to its exported result: the optimizer loop, its guards, its
//! checkpoints and its looks at held-out images.

use super::checkpoint::{self, Beside, Checkpoint, TrainState};
use super::export;
use super::log::{Logs, StageSummary};
use super::monitor::{Coefficients, Monitor, steer_beta};
use super::options::{Named, StageName};
use super::stages::{Artifacts, Context, Plan};
use super::validation::Policy;
use crate::autograd::ParamSet;
use crate::ops::adamw::{AdamW, clip_factor};
use crate::{Error, Result};
use serde_json::{Map, Value, json};
use std::sync::atomic::Ordering;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// What one update gave: its loss and what to log beside it, averaged over its micro-batches.
struct Update {
    loss: f64,
    norm: f32,
    lr: f32,
    fields: Vec<(&'static str, f64)>,
    preference: Option<Coefficients>,
}

impl Context<'_> {
    /// Trains `stage`, from `start` if there is one, exports what it made and adds it to `made`.
    pub fn run(
        &self,
        stage: StageName,
        start: Option<&Checkpoint>,
        made: &mut Artifacts,
        logs: &mut Logs,
    ) -> Result<()> {
        let (o, name) = (self.config.stage(stage), stage.name());
        let plan = self.plan(stage, made)?;
        let params = self.parameters(&plan)?;
        let mut state = match start {
            Some(checkpoint) => checkpoint.restore(params, &self.device)?,
            None => {
                let beta = self.config.preference.beta;
                TrainState { stage, step: 0, params, monitor: Monitor::default(), beta }
            }
        };
        self.progress.stage(name, o.steps, state.step);
        if state.step == 0 {
            self.look(&plan, &mut state, logs)?;
        }
        let (begun, first) = (Instant::now(), state.step);
        while state.step < o.steps {
            let before = Instant::now();
            let update = self.update(&plan, &mut state)?;
            let samples = ((state.step - first) * o.batch * o.accumulation) as f64;
            let rate = samples / begun.elapsed().as_secs_f64();
            self.log(&mut state, &update, (before, rate), logs)?;
            self.progress.step(update.loss, rate);
            let last = state.step == o.steps;
            if last || (o.validate_every > 0 && state.step.is_multiple_of(o.validate_every)) {
                self.look(&plan, &mut state, logs)?;
            }
            if last {
                break;
            }
            let stop = self.stop.load(Ordering::Relaxed);
            let every = [o.checkpoint_every, self.config.run.keep_every];
            if stop || every.iter().any(|&n| n > 0 && state.step.is_multiple_of(n)) {
                self.save(&state, made, logs)?;
            }
            if stop {
                return Err(self.interrupted(&state));
            }
        }
        export::export(self, &plan, &mut state.params, made)?;
        self.save(&state, made, logs)?;
        if let Some(summary) = StageSummary::of_run(self.out)?.into_iter().find(|s| s.name == name) {
            self.progress.done(&summary);
        }
        if self.stop.load(Ordering::Relaxed) { Err(self.interrupted(&state)) } else { Ok(()) }
    }

    /// One update: micro-batches, guards, clip, AdamW.
    fn update(&self, plan: &Plan, state: &mut TrainState) -> Result<Update> {
        let o = self.config.stage(plan.stage);
        let params = &mut state.params;
        let (mut loss, mut preference) = (0.0, None::<Coefficients>);
        let mut fields: Vec<(&'static str, f64, usize)> = Vec::new();
        params.reset_grads();
        for k in 0..o.accumulation {
            let index = (state.step * o.accumulation + k) as u64;
            let micro = self.micro(plan, params, index, state.beta)?;
            loss += f64::from(micro.loss) / o.accumulation as f64;
            for (name, value) in micro.fields {
                match fields.iter_mut().find(|f| f.0 == name) {
                    Some(field) => (field.1, field.2) = (field.1 + value, field.2 + 1),
                    None => fields.push((name, value, 1)),
                }
            }
            if let Some(c) = micro.preference {
                let share = 1.0 / o.accumulation as f64;
                let sum = preference.get_or_insert(Coefficients { coefficient: 0.0, negative_margins: 0.0 });
                sum.coefficient += share * c.coefficient;
                sum.negative_margins += share * c.negative_margins;
            }
        }
        let share = 1.0 / o.accumulation as f32;
        let norm = params.grad_norm() * share;
        if !loss.is_finite() || !norm.is_finite() {
            return Err(self.not_finite(plan.stage, state.step, loss, &state.params));
        }
        let lr = o.lr_at(state.step);
        let opt = AdamW { beta1: o.beta1, beta2: o.beta2, eps: o.eps, weight_decay: o.weight_decay };
        let decays = plan.decays(params);
        params.step(&opt, lr, clip_factor(norm, o.clip) * share, |i| decays[i]);
        state.step += 1;
        let p = &self.config.preference;
        if let (Some(c), true) = (preference, p.auto_beta > 0.0) {
            state.beta = steer_beta(state.beta, p.beta, c.coefficient, p.auto_beta);
        }
        let fields = fields.into_iter().map(|(name, sum, n)| (name, sum / n as f64)).collect();
        Ok(Update { loss, norm, lr, fields, preference })
    }

    /// Writes the line of the update that was just made. `time`, `seconds` and `samples_per_s` are the only fields that
    /// are not a function of the configuration.
    fn log(
        &self,
        state: &mut TrainState,
        update: &Update,
        (before, rate): (Instant, f64),
        logs: &mut Logs,
    ) -> Result<()> {
        let warnings = state.monitor.update(update.loss, update.preference.as_ref());
        let step = state.step - 1;
        let mut line = Map::new();
        line.insert("stage".into(), state.stage.name().into());
        line.insert("step".into(), step.into());
        line.insert("loss".into(), update.loss.into());
        line.insert("lr".into(), decimal(update.lr));
        line.insert("grad_norm".into(), decimal(update.norm));
        line.extend(update.fields.iter().map(|&(name, value)| (name.to_owned(), Value::from(value))));
        if !warnings.is_empty() {
            line.insert("warnings".into(), json!(warnings));
        }
        line.insert("seconds".into(), before.elapsed().as_secs_f64().into());
        line.insert("samples_per_s".into(), rate.into());
        line.insert("time".into(), now().into());
        logs.step(&line)?;
        self.warn(state.stage, step, &warnings);
        Ok(())
    }

    /// Restores the validation crops as training stands and writes what came of it.
    fn look(&self, plan: &Plan, state: &mut TrainState, logs: &mut Logs) -> Result<()> {
        if self.config.stage(plan.stage).validate_every == 0 {
            return Ok(());
        }
        let at = (plan.stage.name(), state.step);
        let towards_bad = plan.stage == StageName::Adversary;
        let mut look = state.params.averaged(|params| {
            let (weights, adapters) = plan.model(self.config, params)?;
            let policy =
                Policy { config: &self.flux, weights: &weights, adapters: &adapters, acting: plan.policy() };
            self.validation.look(&policy, towards_bad, self.out, at)
        })?;
        let preference = plan.stage == StageName::Asdpo;
        look.warnings = state.monitor.validation(look.loss, &look.metrics, preference);
        logs.look(&look)?;
        self.warn(plan.stage, state.step, &look.warnings);
        Ok(())
    }

    fn warn(&self, stage: StageName, step: usize, warnings: &[String]) {
        for text in warnings {
            self.progress.say(&format!("warning: {}, step {step}: {text}", stage.name()));
        }
    }

    fn save(&self, state: &TrainState, made: &Artifacts, logs: &Logs) -> Result<()> {
        let beside = Beside { lines: logs.sync()?, artifacts: &made.files };
        state.save(self.out, self.config, &beside).map(|_| ())
    }

    fn interrupted(&self, state: &TrainState) -> Error {
        let saved = format!("saved; go on with --resume --out {}", self.out.display());
        Error::Interrupted { stage: state.stage.name().to_owned(), step: state.step, saved }
    }

    /// The error that names what stopped being a number, and the checkpoint that is still good.
    fn not_finite(&self, stage: StageName, step: usize, loss: f64, params: &ParamSet) -> Error {
        let (tensor, value) = match params.non_finite() {
            _ if !loss.is_finite() => ("the loss".to_owned(), loss as f32),
            Some((name, value)) => (format!("the gradient of {name}"), value),
            None => ("the norm of the gradient".to_owned(), f32::INFINITY),
        };
        let saved = match checkpoint::newest(self.out) {
            Some(path) => format!("The last good checkpoint is {}", path.display()),
            None => "There is no checkpoint yet".to_owned(),
        };
        Error::NonFinite { stage: stage.name().to_owned(), step, tensor, value, saved }
    }
}

/// An f32 as its shortest decimal: 0.001, not 0.0010000000474974513.
fn decimal(x: f32) -> Value {
    x.to_string().parse::<f64>().map_or(Value::Null, Value::from)
}

/// Seconds since 1970.
pub(super) fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}
