//! One launch: its checks, its blocks shared out over the threads, its first fault.

use crate::counters::Counters;
use crate::decode_ops::{LOCAL, PARAM, SHARED};
use crate::error::{Fault, Report};
use crate::exec::Cta;
use crate::ir::{Instr, Kernel, Preset};
use crate::memory::{Memory, View};
use crate::module::Module;
use std::collections::BTreeMap;
use std::io::Write;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

/// The most shared memory a block of sm_80 may have.
const MOST_SHARED: usize = 163 << 10;

/// Which checks a launch makes. Bounds, lifetime and alignment are always checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checks {
    /// Reads of global or shared bytes that nobody wrote.
    pub initialised: bool,
    /// Warps that touch one shared cell with no barrier between.
    pub shared_races: bool,
    /// Blocks that touch one global cell.
    pub global_races: bool,
    /// Barriers that some threads do not reach because they left.
    pub barriers: bool,
    /// Warp-instructions one block may run before it is taken to hang.
    pub limit: u64,
}

impl Default for Checks {
    /// All of them.
    fn default() -> Self {
        Self { initialised: true, shared_races: true, global_races: true, barriers: true, limit: 1 << 32 }
    }
}

/// A kernel launch.
#[derive(Debug, Clone, Copy)]
pub struct Launch<'a> {
    /// Blocks of the grid.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Bytes of shared memory beyond what the kernel declares.
    pub dynamic_shared: u32,
    /// The parameters, laid out as [`Kernel::params`] says.
    pub params: &'a [u8],
    /// What is checked.
    pub checks: Checks,
}

/// What the blocks of a launch have in common.
pub(crate) struct Run<'a> {
    pub kernel: &'a Kernel,
    pub module: &'a Module,
    pub memory: &'a Memory,
    pub launch: &'a Launch<'a>,
    pub views: Vec<View>,
    /// The first of this launch's ids in the records of who touched what.
    pub first: u32,
    pub params: Vec<u8>,
    /// What `printf` printed, by block.
    pub printed: Mutex<BTreeMap<u64, Vec<u8>>>,
    /// Blocks at work now, and those of them that only repeat themselves.
    pub working: AtomicUsize,
    pub spinning: AtomicUsize,
}

impl Run<'_> {
    /// At most 1024: the launch was refused otherwise.
    pub fn threads(&self) -> u32 {
        self.launch.block.iter().product()
    }

    pub fn shared_bytes(&self) -> usize {
        let (fixed, more) = (self.kernel.shared, self.launch.dynamic_shared);
        if more == 0 { fixed as usize } else { self.kernel.dynamic_at as usize + more as usize }
    }

    pub fn thread(&self, n: u32) -> [u32; 3] {
        let [x, y, _] = self.launch.block;
        [n % x, n / x % y, n / x / y]
    }

    /// The address and what is about it, in words.
    fn place(&self, addr: u64) -> String {
        match addr {
            a if a >> 40 == PARAM >> 40 => format!("parameters, {} bytes", self.params.len()),
            a if a >> 40 == LOCAL >> 40 => format!("local memory, {} bytes a thread", self.kernel.local),
            a if a >> 40 == SHARED >> 40 => {
                format!("byte {} of shared memory, {} bytes", a - SHARED, self.shared_bytes())
            }
            a => self.memory.near(a).1.trim_start_matches(", ").to_owned(),
        }
    }

    pub fn report(
        &self,
        i: &Instr,
        thread: [u32; 3],
        block: [u32; 3],
        fault: Fault,
        what: String,
        addr: Option<u64>,
    ) -> Box<Report> {
        let ptx = self.module.lines.get((i.line as usize).wrapping_sub(1));
        let ptx = ptx.map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).unwrap_or_default();
        let file = |(file, line): (u32, u32)| Some((self.module.files.get(&file)?.clone(), line));
        Box::new(Report {
            fault,
            what,
            kernel: self.kernel.name.clone(),
            ptx_line: i.line,
            ptx,
            source: file(i.loc),
            caller: self.module.callers.get(&i.line).copied().and_then(file),
            thread,
            block,
            address: addr,
            allocation: addr.map(|a| self.place(a)),
        })
    }

    /// Keeps what a block printed until all have run.
    pub fn print(&self, block: u64, text: &[u8]) {
        let mut all = self.printed.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(block).or_default().extend_from_slice(text);
    }
}

/// Why a launch cannot begin.
fn refusal(module: &Module, kernel: &Kernel, launch: &Launch<'_>) -> Option<String> {
    let (g, b) = (launch.grid, launch.block);
    let threads = b.iter().fold(1u64, |n, &d| n.saturating_mul(d.into()));
    let shared = u64::from(kernel.dynamic_at) + u64::from(launch.dynamic_shared);
    if threads == 0 || threads > u64::from(kernel.max_threads) || b[2] > 64 {
        return Some(format!("a block of {b:?} threads; 1 to {} and at most 64 along z", kernel.max_threads));
    }
    if g.contains(&0) || g[0] > i32::MAX as u32 || g[1] > 65535 || g[2] > 65535 {
        return Some(format!("a grid of {g:?} blocks; 1 to 2147483647, 65535, 65535"));
    }
    if launch.params.len() < kernel.param_bytes {
        return Some(format!(
            "{} bytes of parameters; the kernel takes {}",
            launch.params.len(),
            kernel.param_bytes
        ));
    }
    if shared > MOST_SHARED as u64 {
        return Some(format!("{shared} bytes of shared memory; at most {MOST_SHARED}"));
    }
    kernel.presets.keys().find_map(|p| match p {
        Preset::Global(n, _) if module.globals()[*n].addr == 0 => Some(format!(
            "variable \"{}\" has no memory; call Module::place first",
            module.globals()[*n].name
        )),
        _ => None,
    })
}

/// Runs a kernel over a grid: its counters, or the first fault of the lowest block that had one. What it prints goes to
/// standard output, block after block.
#[allow(clippy::result_large_err, reason = "a launch has one result")]
pub fn launch(module: &Module, name: &str, memory: &Memory, launch: &Launch<'_>) -> Result<Counters, Report> {
    launch_to(module, name, memory, launch, &mut std::io::stdout())
}

/// [`launch`], printing to `out`.
#[allow(clippy::result_large_err, reason = "a launch has one result")]
pub fn launch_to(
    module: &Module,
    name: &str,
    memory: &Memory,
    launch: &Launch<'_>,
    out: &mut dyn Write,
) -> Result<Counters, Report> {
    let refuse = |what: String| Report {
        fault: Fault::Launch,
        what,
        kernel: name.to_owned(),
        ptx_line: 0,
        ptx: String::new(),
        source: None,
        caller: None,
        thread: [0; 3],
        block: [0; 3],
        address: None,
        allocation: None,
    };
    let Some(kernel) = module.kernel(name) else {
        let all: Vec<_> = module.kernels().collect();
        return Err(refuse(format!("no such kernel in the module; it has: {}", all.join(", "))));
    };
    if let Some(what) = refusal(module, kernel, launch) {
        return Err(refuse(what));
    }
    let begin = || {
        let (views, first) = memory.views(launch.grid.iter().map(|&n| u64::from(n)).product());
        Run {
            kernel,
            module,
            memory,
            launch,
            views,
            first,
            params: launch.params[..kernel.param_bytes].to_vec(),
            printed: Mutex::default(),
            working: AtomicUsize::new(0),
            spinning: AtomicUsize::new(0),
        }
    };
    let run = begin();
    let mut result = blocks(&run, rayon::current_num_threads());
    // Which of two blocks that race comes second is chance. Memory is spoiled now anyway: one block after another
    // shows the race that comes first in that order, if it shows there at all.
    if let Err(report) = &mut result
        && report.fault == Fault::GlobalRace
        && let Err(first) = blocks(&begin(), 1)
        && first.fault == Fault::GlobalRace
    {
        *report = first;
    }
    for text in run.printed.into_inner().unwrap_or_else(PoisonError::into_inner).values() {
        // What a kernel prints is for people: a closed pipe is no fault of the kernel's.
        let _ = out.write_all(text);
    }
    result
}

#[allow(clippy::result_large_err, reason = "a launch has one result")]
fn blocks(run: &Run<'_>, threads: usize) -> Result<Counters, Report> {
    let total: u64 = run.launch.grid.iter().map(|&n| u64::from(n)).product();
    let (next, worst) = (AtomicU64::new(0), AtomicU64::new(u64::MAX));
    let (sum, first) = (Mutex::new(Counters::default()), Mutex::new(None::<(u64, Box<Report>)>));
    let work = || {
        let mut cta = Cta::new(run);
        loop {
            let id = next.fetch_add(1, Relaxed);
            // Blocks are claimed in order, so whatever is below the lowest fault is done or being done.
            if id >= total || id > worst.load(Relaxed) {
                break;
            }
            run.working.fetch_add(1, Relaxed);
            let result = cta.block(id);
            cta.leave();
            if let Err(report) = result {
                worst.fetch_min(id, Relaxed);
                let mut first = first.lock().unwrap_or_else(PoisonError::into_inner);
                if first.as_ref().is_none_or(|(n, _)| id < *n) {
                    *first = Some((id, report));
                }
                break;
            }
        }
        sum.lock().unwrap_or_else(PoisonError::into_inner).add(&cta.counters);
    };
    let workers = (threads as u64).min(total);
    if workers == 1 {
        work();
    } else {
        rayon::scope(|s| (0..workers).for_each(|_| s.spawn(|_| work())));
    }
    match first.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some((_, report)) => Err(*report),
        None => Ok(sum.into_inner().unwrap_or_else(PoisonError::into_inner)),
    }
}
