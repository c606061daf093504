//! Plans, and their execution: the input is read, transformed and written, all in the order of the plan's stream.

use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use crate::driver::{Driver, Stream, driver};
use crate::error::{Answer, Code};
use crate::layout::{Embedding, Run, Side, sides};
use crate::transform::{Kind, Transform};

/// A plan that was made.
pub struct Plan {
    transform: Arc<Transform>,
    sides: [Side; 2],
}

/// A plan's handle, made or not.
#[derive(Clone, Default)]
struct Entry {
    stream: Stream,
    plan: Option<Arc<Plan>>,
}

#[derive(Default)]
struct Table {
    next: c_int,
    plans: HashMap<c_int, Entry>,
}

fn table() -> MutexGuard<'static, Table> {
    static TABLE: LazyLock<Mutex<Table>> = LazyLock::new(Mutex::default);
    TABLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A new handle, without a plan. None is given twice, so a stale one is told.
pub fn create() -> c_int {
    let mut table = table();
    table.next += 1;
    let handle = table.next;
    table.plans.insert(handle, Entry::default());
    handle
}

/// Whether the handle is one.
pub fn check(handle: c_int) -> Answer {
    table().plans.get(&handle).map(drop).ok_or(Code::InvalidPlan)
}

/// Forgets a handle and its plan.
pub fn destroy(handle: c_int) -> Answer {
    table().plans.remove(&handle).map(drop).ok_or(Code::InvalidPlan)
}

/// Sets the stream that a plan is executed in.
pub fn set_stream(handle: c_int, stream: Stream) -> Answer {
    table().plans.get_mut(&handle).ok_or(Code::InvalidPlan)?.stream = stream;
    Ok(())
}

/// Makes a handle's plan, once.
pub fn make(
    handle: c_int,
    kind: Kind,
    n: &[usize],
    batch: usize,
    embeddings: Option<[Embedding; 2]>,
) -> Answer {
    if table().plans.get(&handle).is_none_or(|entry| entry.plan.is_some()) {
        return Err(Code::InvalidPlan);
    }
    let plan =
        Plan { sides: sides(kind, n, batch, embeddings)?, transform: Arc::new(Transform::new(kind, n)) };
    table().plans.get_mut(&handle).ok_or(Code::InvalidPlan)?.plan = Some(Arc::new(plan));
    Ok(())
}

/// One execution: its values on the host.
struct Job {
    transform: Arc<Transform>,
    inverse: bool,
    input: Vec<f32>,
    output: Vec<f32>,
}

impl Job {
    fn run(&mut self) -> Answer {
        let run = || self.transform.run(self.inverse, &self.input, &mut self.output);
        let panicked = |_| Code::InternalError.because("a transform panicked");
        catch_unwind(AssertUnwindSafe(run)).map_err(panicked)
    }
}

/// The transform as a host function of a captured stream. Of a failure only the line on stderr tells.
unsafe extern "C" fn run_job(job: *mut c_void) {
    // SAFETY: `exec` leaks the job that it passes here, and one stream runs its graph's nodes one after another.
    let job = unsafe { &mut *job.cast::<Job>() };
    let _ = job.run();
}

/// Executes a plan.
pub fn exec(handle: c_int, kind: Kind, inverse: bool, input: u64, output: u64) -> Answer {
    let Entry { stream, plan } = table().plans.get(&handle).cloned().ok_or(Code::InvalidPlan)?;
    let plan = plan.ok_or(Code::InvalidPlan)?;
    if plan.transform.kind() != kind {
        return Err(
            Code::InvalidType.because(&format!("a {:?} plan is executed as {kind:?}", plan.transform.kind()))
        );
    }
    let alignment = |complex: bool| if complex { 8 } else { 4 };
    let aligned = input.is_multiple_of(alignment(kind != Kind::R2C))
        && output.is_multiple_of(alignment(kind != Kind::C2R));
    if input == 0 || output == 0 || !aligned {
        let why = format!("input {input:#x}, output {output:#x}: null, or not aligned to their values");
        return Err(Code::InvalidValue.because(&why));
    }
    let driver = driver()?;
    let [from, to] = plan.sides.each_ref().map(|side| side.runs(input == output));
    let values = plan.sides.each_ref().map(|side| vec![0f32; side.values]);
    let [read, write] = values;
    let mut job = Job { transform: plan.transform.clone(), inverse, input: read, output: write };
    if driver.is_capturing(stream)? {
        // The job belongs to the graph, of whose end nobody tells: it stays for good.
        let job = Box::leak(Box::new(job));
        get(driver, stream, input, from, &mut job.input)?;
        // SAFETY: the job is leaked, and one stream runs its graph's nodes one after another.
        unsafe { driver.host_function(stream, run_job, (&raw mut *job).cast()) }?;
        return put(driver, stream, output, to, &job.output);
    }
    // Whatever comes of a copy, the stream is waited for before the job is dropped.
    let read = get(driver, stream, input, from, &mut job.input);
    read.and(driver.synchronize(stream))?;
    job.run()?;
    let written = put(driver, stream, output, to, &job.output);
    written.and(driver.synchronize(stream))
}

/// Reads a side's runs into a dense array that stays until the stream is done.
fn get(driver: &Driver, stream: Stream, device: u64, runs: &[Run], values: &mut [f32]) -> Answer {
    let mut rest = values;
    for &(place, count) in runs {
        let (run, after) = rest.split_at_mut(count);
        // SAFETY: the run has this length; `exec` keeps it until the stream is done.
        unsafe { driver.read(run.as_mut_ptr(), device + 4 * place as u64, count, stream) }?;
        rest = after;
    }
    Ok(())
}

/// Writes a side's runs from a dense array that stays until the stream is done.
fn put(driver: &Driver, stream: Stream, device: u64, runs: &[Run], values: &[f32]) -> Answer {
    let mut rest = values;
    for &(place, count) in runs {
        let (run, after) = rest.split_at(count);
        // SAFETY: the run has this length; `exec` keeps it until the stream is done.
        unsafe { driver.write(device + 4 * place as u64, run.as_ptr(), count, stream) }?;
        rest = after;
    }
    Ok(())
}
