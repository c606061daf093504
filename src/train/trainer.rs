//! One stage from its first step, or from a checkpoint, to its exported result: the optimizer loop, its guards, its
//! checkpoints and its looks at held-out images.

use super::checkpoint::{self, Beside, Checkpoint, TrainState};
use super::export;
use super::log::{Logs, StageSummary};
use super::micro::{Coming, Loader, Micro, Micros, Prepared, first_step_is_ln2};
use super::monitor::{Coefficients, Monitor, steer_beta};
use super::options::{Named, StageName};
use super::stages::{Artifacts, Context, Plan};
use super::validation::{Policy, Validation};
use crate::data::Image;
use crate::ops::adamw::{AdamW, Gradients};
use crate::{Error, Result};
use serde_json::{Map, Value, json};
use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::mpsc::sync_channel;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// An update that was asked for, and whose numbers are on their way.
struct Pending {
    step: usize,
    lr: f32,
    beta: f32,
    micros: Vec<Coming>,
    begun: Instant,
}

/// What one update gave: its loss and what to log beside it, averaged over its micro-batches.
struct Update {
    loss: f64,
    norm: f32,
    fields: Vec<(&'static str, f64)>,
    preference: Option<Coefficients>,
}

/// A stage under way: its micro-batches, where they come from, and the updates whose numbers are not read yet.
pub(super) struct Underway<'c> {
    micros: Micros<'c>,
    batches: Box<dyn FnMut() -> Option<Result<Prepared>> + 'c>,
    pending: VecDeque<Pending>,
    /// When this session began, and after how many steps.
    begun: (Instant, usize),
}

impl<'c> Underway<'c> {
    /// After `done` steps; the next micro-batches are what `batches` gives.
    pub fn new(
        micros: Micros<'c>,
        batches: Box<dyn FnMut() -> Option<Result<Prepared>> + 'c>,
        done: usize,
    ) -> Self {
        Self { micros, batches, pending: VecDeque::new(), begun: (Instant::now(), done) }
    }

    /// Bytes in use when the last forward pass was done.
    pub fn kept(&self) -> usize {
        self.micros.kept()
    }

    /// Takes the numbers of all pending updates, which nobody wants.
    pub fn discard(&mut self) -> Result<()> {
        for pending in std::mem::take(&mut self.pending) {
            for micro in pending.micros {
                self.micros.read(micro)?;
            }
            self.micros.take()?;
        }
        Ok(())
    }

    /// Sends the next micro-batch to the device, if there is one.
    pub fn send(&mut self) -> Result<()> {
        (self.batches)().map_or(Ok(()), |batch| self.micros.send(&batch?))
    }
}

impl Context<'_> {
    /// Trains `stage`, from `start` if there is one, exports what it made and adds it to `artifacts`.
    pub fn run(
        &self,
        stage: StageName,
        start: Option<&Checkpoint>,
        artifacts: &mut Artifacts,
        logs: &mut Logs,
    ) -> Result<()> {
        let (o, name) = (self.config.stage(stage), stage.name());
        self.device.reset_peak();
        let plan = self.plan(stage, artifacts)?;
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
        let loader = Loader::new(self, &plan);
        std::thread::scope(|scope| {
            let numbers = (state.step * o.accumulation) as u64..(o.steps * o.accumulation) as u64;
            let making = loader.clone();
            let mut made = numbers.map(move |index| making.prepare(index));
            // While a device computes one micro-batch the next is on its way there and the one after it is made. The CPU
            // would compute no less meanwhile; and this thread, which waits, is one of the pool's.
            let ahead = self.device.gpu().is_some() && rayon::current_num_threads() > 1;
            let batches: Box<dyn FnMut() -> Option<Result<Prepared>>> = if ahead {
                let (sender, batches) = sync_channel(1);
                scope.spawn(move || made.try_for_each(|batch| sender.send(batch)));
                Box::new(move || batches.recv().ok())
            } else {
                Box::new(move || made.next())
            };
            let mut underway = Underway::new(Micros::new(self, &plan, &loader)?, batches, state.step);
            underway.send()?;
            self.steps(&plan, &mut state, &mut underway, artifacts, logs)
        })?;
        export::export(self, &plan, &mut state.params, artifacts)?;
        self.save(&state, artifacts, logs)?;
        if let Some(summary) = StageSummary::of_run(self.out)?.into_iter().find(|s| s.name == name) {
            self.progress.done(&summary);
        }
        if self.stop.load(Ordering::Relaxed) { Err(self.interrupted(&state)) } else { Ok(()) }
    }

    /// The updates that are left, with the looks and checkpoints between them.
    fn steps(
        &self,
        plan: &Plan,
        state: &mut TrainState,
        underway: &mut Underway,
        made: &Artifacts,
        logs: &mut Logs,
    ) -> Result<()> {
        let o = self.config.stage(plan.stage);
        // A device is given a step before the numbers of the one before are read; but the first step's are looked at
        // at once, and where β follows them they are waited for.
        let ahead = self.device.gpu().is_some() && !self.steers_beta(plan.stage);
        while state.step < o.steps {
            self.launch(plan, state, underway)?;
            let keep = usize::from(ahead && state.step > 1);
            self.finish(state, underway, keep, logs)?;
            let last = state.step == o.steps;
            let stop = self.stop.load(Ordering::Relaxed);
            let due = |every: usize| every > 0 && state.step.is_multiple_of(every);
            let look = last || due(o.validate_every);
            let save = !last && (stop || due(o.checkpoint_every) || due(self.config.run.keep_every));
            if look || save {
                self.finish(state, underway, 0, logs)?;
            }
            if look {
                self.look(plan, state, logs)?;
            }
            if save {
                self.save(state, made, logs)?;
            }
            if stop && !last {
                return Err(self.interrupted(state));
            }
        }
        Ok(())
    }

    /// Asks for one update: micro-batches, clip, AdamW.
    pub(super) fn launch(&self, plan: &Plan, state: &mut TrainState, underway: &mut Underway) -> Result<()> {
        let o = self.config.stage(plan.stage);
        let (begun, beta) = (Instant::now(), state.beta);
        let params = &mut state.params;
        params.begin(o.accumulation)?;
        let mut micros = Vec::with_capacity(o.accumulation);
        for k in 0..o.accumulation {
            let index = (state.step * o.accumulation + k) as u64;
            micros.push(underway.micros.next(params, index, beta)?);
            underway.send()?;
        }
        let lr = o.lr_at(state.step);
        let opt = AdamW { beta1: o.beta1, beta2: o.beta2, eps: o.eps, weight_decay: o.weight_decay };
        let decays = plan.decays(params);
        let gradients = Gradients { share: 1.0 / o.accumulation as f32, max_norm: o.clip };
        let norm = params.step(&opt, lr, gradients, |i| decays[i])?;
        underway.micros.push(&norm)?;
        underway.pending.push_back(Pending { step: state.step, lr, beta, micros, begun });
        state.step += 1;
        Ok(())
    }

    /// Reads and logs the numbers of all pending updates but the last `keep`. An update that is not finite has changed
    /// nothing, and ends the run here.
    fn finish(
        &self,
        state: &mut TrainState,
        underway: &mut Underway,
        keep: usize,
        logs: &mut Logs,
    ) -> Result<()> {
        while underway.pending.len() > keep {
            let Some(mut pending) = underway.pending.pop_front() else { break };
            let first = pending.step == 0;
            let micros = std::mem::take(&mut pending.micros);
            let micros = micros.into_iter().map(|c| underway.micros.read(c)).collect::<Result<Vec<_>>>()?;
            if first {
                first_step_is_ln2(&micros[0])?;
            }
            let mut update = Update::of(micros, underway.micros.take()?[0]);
            if !update.loss.is_finite() || !update.norm.is_finite() {
                return Err(self.not_finite(state, &pending, &update)?);
            }
            let p = &self.config.preference;
            if let (Some(c), true) = (update.preference, p.auto_beta > 0.0) {
                update.fields.push(("beta", f64::from(pending.beta)));
                state.beta = steer_beta(state.beta, p.beta, c.coefficient, p.auto_beta);
            }
            let (o, (begun, from)) = (self.config.stage(state.stage), underway.begun);
            let samples = ((pending.step + 1 - from) * o.batch * o.accumulation) as f64;
            let rate = samples / begun.elapsed().as_secs_f64();
            self.log(state, &pending, &update, rate, logs)?;
            self.progress.step(update.loss, rate);
        }
        Ok(())
    }

    /// Writes the line of an update whose numbers are here. `time`, `seconds` and `samples_per_s` are the only fields that
    /// are not a function of the configuration.
    fn log(
        &self,
        state: &mut TrainState,
        pending: &Pending,
        update: &Update,
        rate: f64,
        logs: &mut Logs,
    ) -> Result<()> {
        let warnings = state.monitor.update(update.loss, update.preference.as_ref());
        let step = pending.step;
        let mut line = Map::new();
        line.insert("stage".into(), state.stage.name().into());
        line.insert("step".into(), step.into());
        line.insert("loss".into(), update.loss.into());
        line.insert("lr".into(), decimal(pending.lr));
        line.insert("grad_norm".into(), decimal(update.norm));
        line.extend(update.fields.iter().map(|&(name, value)| (name.to_owned(), Value::from(value))));
        if !warnings.is_empty() {
            line.insert("warnings".into(), json!(warnings));
        }
        line.insert("seconds".into(), pending.begun.elapsed().as_secs_f64().into());
        line.insert("samples_per_s".into(), rate.into());
        line.insert("time".into(), now().into());
        logs.step(&line)?;
        self.warn(state.stage, step, &warnings);
        Ok(())
    }

    /// The validation crops of `plan`'s stage, and whether what they should become is bad.
    fn validation(&self, plan: &Plan) -> (&Validation, bool) {
        let towards_bad = plan.stage == StageName::Adversary;
        let imitated = self.imitated.as_ref().filter(|_| towards_bad);
        (imitated.map_or(&self.validation, |(_, validation)| validation), towards_bad)
    }

    /// Restores the validation crops as training stands.
    pub(super) fn restore(&self, plan: &Plan, state: &mut TrainState) -> Result<(f64, Vec<Image>)> {
        let (validation, towards_bad) = self.validation(plan);
        state.params.averaged(|params| {
            let (weights, adapters) = plan.model(self.config, params)?;
            let policy =
                Policy { config: &self.flux, weights: &weights, adapters: &adapters, acting: plan.policy() };
            validation.restore(&policy, towards_bad)
        })
    }

    /// Restores the validation crops as training stands and writes what came of it.
    fn look(&self, plan: &Plan, state: &mut TrainState, logs: &mut Logs) -> Result<()> {
        if self.config.stage(plan.stage).validate_every == 0 {
            return Ok(());
        }
        let (validation, towards_bad) = self.validation(plan);
        let (restored, at) = (self.restore(plan, state)?, (plan.stage.name(), state.step));
        let mut look = validation.look(restored, towards_bad, self.out, at)?;
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
    fn not_finite(&self, state: &TrainState, pending: &Pending, update: &Update) -> Result<Error> {
        // Where a later update was asked for, the gradients are that one's, from the same weights.
        let (tensor, value) = match state.params.non_finite()? {
            _ if !update.loss.is_finite() => ("the loss".to_owned(), update.loss as f32),
            Some((name, value)) => (format!("the gradient of {name}"), value),
            None => ("the norm of the gradient".to_owned(), update.norm),
        };
        let saved = match checkpoint::newest(self.out) {
            Some(path) => format!("The last good checkpoint is {}", path.display()),
            None => "There is no checkpoint yet".to_owned(),
        };
        let stage = state.stage.name().to_owned();
        Ok(Error::NonFinite { stage, step: pending.step, tensor, value, saved })
    }
}

impl Update {
    /// The means over its micro-batches; a field that only some have is averaged over those.
    fn of(micros: Vec<Micro>, norm: f32) -> Self {
        let share = 1.0 / micros.len() as f64;
        let (mut loss, mut preference) = (0.0, None::<Coefficients>);
        let mut fields: Vec<(&'static str, f64, usize)> = Vec::new();
        for micro in micros {
            loss += f64::from(micro.loss) * share;
            for (name, value) in micro.fields {
                match fields.iter_mut().find(|f| f.0 == name) {
                    Some(field) => (field.1, field.2) = (field.1 + value, field.2 + 1),
                    None => fields.push((name, value, 1)),
                }
            }
            if let Some(c) = micro.preference {
                let sum = preference.get_or_insert(Coefficients { coefficient: 0.0, negative_margins: 0.0 });
                sum.coefficient += share * c.coefficient;
                sum.negative_margins += share * c.negative_margins;
            }
        }
        let fields = fields.into_iter().map(|(name, sum, n)| (name, sum / n as f64)).collect();
        Self { loss, norm, fields, preference }
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

#[cfg(test)]
mod tests;
