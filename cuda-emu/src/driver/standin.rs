//! A stand-in for the interpreter: real memory, PTX read for its signatures only, and kernels known by name.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};

/// What could not be done.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Error(String);

/// A kernel parameter.
pub struct Param {
    pub offset: usize,
    pub size: usize,
}

/// A kernel's signature.
pub struct Kernel {
    params: Vec<Param>,
    shared: u32,
    max_threads: u32,
}

impl Kernel {
    pub fn params(&self) -> &[Param] {
        &self.params
    }
    pub fn static_shared(&self) -> u32 {
        self.shared
    }
    pub fn registers(&self) -> u32 {
        16
    }
    pub fn local(&self) -> u32 {
        0
    }
    pub fn max_threads(&self) -> u32 {
        self.max_threads
    }
}

/// A global variable.
pub struct Global {
    pub name: String,
    pub addr: u64,
    pub bytes: u64,
}

/// A module's signatures.
pub struct Module {
    kernels: BTreeMap<String, Kernel>,
    globals: Vec<Global>,
}

fn width(token: &str) -> Option<usize> {
    token.strip_prefix(['u', 'b', 's', 'f'])?.parse::<usize>().ok().map(|bits| bits / 8)
}

impl Module {
    pub fn parse(ptx: &str) -> Result<Self, Error> {
        if !ptx.trim_start().starts_with(".version") {
            return Err(Error("line 1: a module begins with .version".into()));
        }
        let (mut kernels, mut globals) = (BTreeMap::new(), Vec::new());
        for piece in ptx.split(".entry ").skip(1) {
            let (name, rest) = piece.split_once('(').ok_or_else(|| Error(".entry without (".into()))?;
            let (list, rest) = rest.split_once(')').ok_or_else(|| Error(".entry without )".into()))?;
            let (mut params, mut end) = (Vec::new(), 0usize);
            for param in list.split(',').filter(|param| !param.trim().is_empty()) {
                let size = param.split(['.', ' ']).find_map(width).ok_or_else(|| Error(param.into()))?;
                let offset = end.next_multiple_of(size);
                params.push(Param { offset, size });
                end = offset + size;
            }
            let number = |key: &str, stop: &[char]| {
                let text = rest.split_once(key)?.1.split(stop).next()?.trim();
                text.parse::<u32>().ok()
            };
            let shared = number("cell[", &[']']).unwrap_or(0);
            let max_threads = number(".maxntid", &[',', '{', '\n']).unwrap_or(1024);
            kernels.insert(name.trim().into(), Kernel { params, shared, max_threads });
        }
        for line in ptx.lines().filter(|line| line.starts_with(".visible .global")) {
            let name = line.trim_end_matches(';').rsplit(' ').next().unwrap_or_default();
            globals.push(Global { name: name.into(), addr: 0, bytes: 4 });
        }
        Ok(Self { kernels, globals })
    }

    pub fn place(&mut self, memory: &Memory) {
        for global in &mut self.globals {
            global.addr = memory.alloc(global.bytes, &global.name);
            let _ = memory.write(global.addr, &[0; 4]);
        }
    }

    pub fn kernel(&self, name: &str) -> Option<&Kernel> {
        self.kernels.get(name)
    }

    pub fn globals(&self) -> &[Global] {
        &self.globals
    }
}

/// Device memory: a table of allocations whose addresses are never used twice.
pub struct Memory(Mutex<Table>);

struct Table {
    next: u64,
    blocks: BTreeMap<u64, Vec<u8>>,
}

impl Memory {
    pub fn new() -> Self {
        Self(Mutex::new(Table { next: 0x2_0000_0000, blocks: BTreeMap::new() }))
    }

    fn table(&self) -> std::sync::MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn alloc(&self, bytes: u64, _name: &str) -> u64 {
        let mut table = self.table();
        let addr = table.next;
        table.next += (bytes + 511).next_multiple_of(512);
        table.blocks.insert(addr, vec![0xcd; bytes as usize]);
        addr
    }

    pub fn free(&self, addr: u64) -> Result<(), Error> {
        let block = self.table().blocks.remove(&addr);
        block.map(drop).ok_or_else(|| Error(format!("free of {addr:#x}, which is not allocated")))
    }

    fn with<T>(&self, addr: u64, bytes: usize, f: impl FnOnce(&mut [u8]) -> T) -> Result<T, Error> {
        let mut table = self.table();
        let outside = || Error(format!("{bytes} bytes at {addr:#x} are not inside an allocation"));
        let (base, block) = table.blocks.range_mut(..=addr).next_back().ok_or_else(outside)?;
        let at = (addr - base) as usize;
        let range = at..at.checked_add(bytes).ok_or_else(outside)?;
        block.get_mut(range).map(f).ok_or_else(outside)
    }

    pub fn fill(&self, addr: u64, value: u8, bytes: u64) -> Result<(), Error> {
        self.with(addr, bytes as usize, |block| block.fill(value))
    }

    pub fn write(&self, addr: u64, data: &[u8]) -> Result<(), Error> {
        self.with(addr, data.len(), |block| block.copy_from_slice(data))
    }

    pub fn read(&self, addr: u64, data: &mut [u8]) -> Result<(), Error> {
        self.with(addr, data.len(), |block| data.copy_from_slice(block))
    }
}

/// Which checks a launch makes; the stand-in makes those it makes.
#[derive(Clone, Copy, Default)]
pub struct Checks {
    pub races: bool,
}

/// A launch's shape and parameters.
pub struct Launch<'a> {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub dynamic_shared: u32,
    pub params: &'a [u8],
    pub checks: Checks,
}

/// What a launch did.
pub struct Counters(u64);

impl Counters {
    pub fn items(&self) -> Vec<(&'static str, u64)> {
        vec![("threads", self.0)]
    }
}

/// The kind of fault a launch stopped on.
#[allow(dead_code, reason = "the stand-in finds only some of the interpreter's")]
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    Launch,
    OutOfBounds,
    UseAfterFree,
    Misaligned,
    Trap,
    Hang,
}

/// A check that failed.
#[derive(Debug)]
pub struct Report {
    pub fault: Fault,
    what: String,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

pub fn launch(
    module: &Module,
    kernel: &str,
    memory: &Memory,
    launch: &Launch<'_>,
) -> Result<Counters, Report> {
    let _ = launch.checks.races;
    let signature = module.kernel(kernel).expect("the driver looked the kernel up");
    let value = |index: usize| {
        let Param { offset, size } = signature.params[index];
        let mut bytes = [0; 8];
        bytes[..size].copy_from_slice(&launch.params[offset..offset + size]);
        u64::from_le_bytes(bytes)
    };
    let threads = (launch.grid.iter().chain(&launch.block)).map(|&n| u64::from(n)).product();
    let report = |fault, what: &dyn fmt::Display| Report { fault, what: format!("{kernel}: {what}") };
    let failed = |error: Error| report(Fault::OutOfBounds, &error);
    match kernel {
        "add_one" => {
            for index in 0..value(1).min(threads) {
                let (addr, mut word) = (value(0) + 4 * index, [0; 4]);
                memory.read(addr, &mut word).map_err(failed)?;
                memory.write(addr, &(f32::from_le_bytes(word) + 1.0).to_le_bytes()).map_err(failed)?;
            }
        }
        "store_at" if !value(0).is_multiple_of(4) => {
            return Err(report(Fault::Misaligned, &"the address is no multiple of 4"));
        }
        "store_at" => memory.write(value(0), &[1, 0, 0, 0]).map_err(failed)?,
        "in_shared" | "bounded" if launch.dynamic_shared <= 163 << 10 => {}
        _ => return Err(report(Fault::Launch, &"the stand-in does not know this kernel")),
    }
    Ok(Counters(threads))
}
