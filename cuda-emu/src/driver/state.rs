//! The driver's tables. A handle is a number that is never given twice and never a valid address: a stale or
//! invented one is told as such.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io::Write;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::abi::Host;
use super::capture::{Capture, Clock};
use super::error::{Answer, Code};
use super::function::Function;
use super::work::Op;
use super::{core, device};

/// A handle as C sees it: a pointer that is never dereferenced.
pub type Handle = usize;

/// The stream of a context that every call without a stream uses.
pub const LEGACY: [Handle; 2] = [0, 1];
/// The default stream of each thread.
pub const PER_THREAD: Handle = 2;

/// A context.
pub struct Context {
    pub primary: bool,
    pub retained: u32,
    pub alive: bool,
    pub flags: u32,
    pub cache: i32,
    pub limits: BTreeMap<i32, usize>,
    /// A failed check leaves a context unusable, as on hardware, until it ends.
    pub sticky: Option<Code>,
}

/// A stream.
pub struct Stream {
    pub ctx: Handle,
    pub flags: u32,
    pub priority: i32,
    pub capture: Option<Handle>,
}

/// An event.
pub struct Event {
    pub ctx: Handle,
    pub flags: u32,
    pub at: Option<Instant>,
    /// The capture it was last recorded in, and what that stream had seen by then.
    pub captured: Option<(Handle, Clock)>,
}

/// A loaded module.
pub struct Module {
    pub ctx: Handle,
    pub core: Arc<core::Module>,
    pub functions: BTreeMap<String, Handle>,
}

/// A graph, or an executable one.
pub struct Graph {
    pub ctx: Handle,
    pub nodes: Arc<Vec<Op>>,
}

/// An allocation on the device.
pub struct Block {
    pub ctx: Handle,
    pub bytes: u64,
    pub name: String,
    pub id: u64,
}

/// Host memory that the driver allocated or was told of.
pub struct Pinned {
    pub ctx: Handle,
    pub bytes: usize,
    pub flags: u32,
    pub owned: bool,
}

/// What a context left behind.
pub struct Leak {
    pub what: &'static str,
    pub name: String,
    pub address: u64,
    pub bytes: u64,
}

impl fmt::Display for Leak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)?;
        if !self.name.is_empty() {
            write!(f, " {}", self.name)?;
        }
        write!(f, " at {:#x}", self.address)?;
        if self.bytes > 0 { write!(f, " ({} bytes)", self.bytes) } else { Ok(()) }
    }
}

/// A kernel's launches since the last reset.
#[derive(Default)]
pub struct Tally {
    pub launches: u64,
    pub counts: BTreeMap<&'static str, u64>,
}

/// All of it.
pub struct State {
    pub initialized: bool,
    next: usize,
    pub capacity: u64,
    pub used: u64,
    pub peak: u64,
    pub allocations: u64,
    pub primary: Handle,
    pub contexts: HashMap<Handle, Context>,
    pub streams: HashMap<Handle, Stream>,
    pub events: HashMap<Handle, Event>,
    pub modules: HashMap<Handle, Module>,
    pub functions: HashMap<Handle, Arc<Function>>,
    pub graphs: HashMap<Handle, Graph>,
    pub execs: HashMap<Handle, Graph>,
    pub captures: HashMap<Handle, Capture>,
    pub blocks: BTreeMap<u64, Block>,
    pub pinned: BTreeMap<u64, Pinned>,
    pub tallies: BTreeMap<String, Tally>,
    pub report: String,
    pub leaks: Vec<Leak>,
}

static STATE: LazyLock<Mutex<State>> = LazyLock::new(|| {
    Mutex::new(State {
        initialized: false,
        next: 0,
        capacity: device::capacity(),
        used: 0,
        peak: 0,
        allocations: 0,
        primary: 0,
        contexts: HashMap::new(),
        streams: HashMap::new(),
        events: HashMap::new(),
        modules: HashMap::new(),
        functions: HashMap::new(),
        graphs: HashMap::new(),
        execs: HashMap::new(),
        captures: HashMap::new(),
        blocks: BTreeMap::new(),
        pinned: BTreeMap::new(),
        tallies: BTreeMap::new(),
        report: String::new(),
        leaks: Vec::new(),
    })
});

thread_local! {
    static CURRENT: RefCell<Vec<Handle>> = const { RefCell::new(Vec::new()) };
    static IN_HOST_FUNCTION: Cell<bool> = const { Cell::new(false) };
}

/// The tables, whether or not the driver was initialised.
pub fn lock() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The tables of an initialised driver.
pub fn ready() -> Answer<MutexGuard<'static, State>> {
    if IN_HOST_FUNCTION.try_with(Cell::get).unwrap_or(false) {
        return Err(Code::NOT_PERMITTED);
    }
    let state = lock();
    if state.initialized { Ok(state) } else { Err(Code::NOT_INITIALIZED) }
}

/// Refuses a call before the driver is initialised.
pub fn initialized() -> Answer {
    ready().map(drop)
}

/// Writes a line to stderr, in one piece: other threads write there too. `CUDA_EMU_QUIET=1` keeps it silent.
pub fn say(line: &str) {
    static QUIET: LazyLock<bool> =
        LazyLock::new(|| std::env::var_os("CUDA_EMU_QUIET").is_some_and(|v| v == "1"));
    if *QUIET {
        return;
    }
    let _ = std::io::stderr().write_all(format!("cuda-emu: {line}\n").as_bytes());
}

/// Runs a host function, in which the driver may not be called.
pub fn in_host_function(run: impl FnOnce()) {
    let _ = IN_HOST_FUNCTION.try_with(|flag| flag.set(true));
    run();
    let _ = IN_HOST_FUNCTION.try_with(|flag| flag.set(false));
}

/// This thread's stack of contexts. A thread that is ending has none.
pub fn stack<T: Default>(f: impl FnOnce(&mut Vec<Handle>) -> T) -> T {
    CURRENT.try_with(|stack| f(&mut stack.borrow_mut())).unwrap_or_default()
}

/// Something that belongs to a context.
pub trait Owned {
    /// The context's handle.
    fn ctx(&self) -> Handle;
}

macro_rules! owned {
    ($($type:ty),*) => { $(impl Owned for $type { fn ctx(&self) -> Handle { self.ctx } })* };
}
owned!(Stream, Event, Module, Graph, Block, Pinned);

impl Owned for Arc<Function> {
    fn ctx(&self) -> Handle {
        self.ctx
    }
}

impl State {
    /// A fresh handle: not a canonical address, so following one faults at once.
    pub fn handle(&mut self) -> Handle {
        self.next += 1;
        0x0c0d_a000_0000_0000 | (self.next << 4)
    }

    /// The current context, in whatever health.
    pub fn current(&self) -> Answer<Handle> {
        let top = stack(|stack| stack.last().copied()).ok_or(Code::INVALID_CONTEXT)?;
        match self.contexts.get(&top) {
            Some(ctx) if ctx.alive => Ok(top),
            Some(_) => Err(Code::CONTEXT_IS_DESTROYED),
            None => Err(Code::INVALID_CONTEXT),
        }
    }

    /// The current context, if no check failed in it.
    pub fn healthy(&self) -> Answer<Handle> {
        let ctx = self.current()?;
        self.sticky(ctx).map(|()| ctx)
    }

    /// The failure that a context is stuck with.
    pub fn sticky(&self, ctx: Handle) -> Answer {
        self.contexts.get(&ctx).and_then(|ctx| ctx.sticky).map_or(Ok(()), Err)
    }

    /// A living context by its handle.
    pub fn context(&mut self, ctx: Handle) -> Answer<&mut Context> {
        self.contexts.get_mut(&ctx).filter(|ctx| ctx.alive).ok_or(Code::INVALID_CONTEXT)
    }

    /// A new context; its handle.
    pub fn open(&mut self, primary: bool, flags: u32) -> Handle {
        let handle = self.handle();
        let limits = BTreeMap::from([(0, 1024), (1, 1 << 20), (2, 8 << 20), (5, 128), (6, 0)]);
        let ctx = Context { primary, retained: 1, alive: true, flags, cache: 0, limits, sticky: None };
        self.contexts.insert(handle, ctx);
        handle
    }

    /// Checks a stream's handle: 0 for the legacy stream of the context, or a living stream of it.
    pub fn stream(&self, ctx: Handle, stream: Handle) -> Answer<Handle> {
        if LEGACY.contains(&stream) {
            return Ok(0);
        }
        if stream == PER_THREAD {
            return Ok(PER_THREAD);
        }
        self.streams.get(&stream).filter(|found| found.ctx == ctx).map(|_| stream).ok_or(Code::INVALID_HANDLE)
    }

    /// Whether an address of the caller's lies in device memory instead.
    pub fn on_device(&self, host: Host) -> bool {
        self.block_at(host.address()).is_some()
    }

    /// The allocation that holds an address.
    pub fn block_at(&self, addr: u64) -> Option<(u64, &Block)> {
        let (&base, block) = self.blocks.range(..=addr).next_back()?;
        (addr - base < block.bytes).then_some((base, block))
    }

    /// The pinned host memory that holds an address.
    pub fn pinned_at(&self, addr: u64) -> Option<(u64, &Pinned)> {
        let (&base, pinned) = self.pinned.range(..=addr).next_back()?;
        (addr - base < pinned.bytes as u64).then_some((base, pinned))
    }

    /// Makes a failed check the context's error, prints its report and keeps it.
    pub fn stick(&mut self, ctx: Handle, code: Code, report: String) -> Code {
        if let Some(ctx) = self.contexts.get_mut(&ctx) {
            ctx.sticky.get_or_insert(code);
        }
        self.refuse(code, report)
    }

    /// Prints and keeps the reason of a refusal.
    pub fn refuse(&mut self, code: Code, report: String) -> Code {
        say(&report);
        self.report = report;
        code
    }

    /// Adds a launch to its kernel's tally.
    pub fn tally(&mut self, kernel: &str, counts: core::Counts) {
        if !self.tallies.contains_key(kernel) {
            self.tallies.insert(kernel.into(), Tally::default());
        }
        let tally = self.tallies.get_mut(kernel).expect("inserted above");
        tally.launches += 1;
        for (name, count) in counts {
            *tally.counts.entry(name).or_default() += count;
        }
    }
}
