//! A translation unit, decoded: its kernels and its variables.

use crate::decode;
use crate::error::Error;
use crate::ir::Kernel;
use crate::memory::Memory;
use crate::parse;
use std::collections::{BTreeMap, HashMap};

/// A `.global` or `.const` variable.
#[derive(Debug, Clone)]
pub struct Global {
    /// Its name.
    pub name: String,
    /// Its address, 0 until [`Module::place`].
    pub addr: u64,
    /// Its size.
    pub bytes: u64,
    /// Whether it is in constant memory.
    pub constant: bool,
    /// The first bytes it starts with; the rest are zero.
    pub init: Vec<u8>,
}

/// A module: PTX read and decoded.
#[derive(Debug)]
pub struct Module {
    kernels: BTreeMap<String, Kernel>,
    globals: Vec<Global>,
    /// Source files by the number `.loc` gives them.
    pub(crate) files: HashMap<u32, String>,
    pub(crate) lines: Vec<String>,
    /// Where an inlined function was called from, by the line of the PTX.
    pub(crate) callers: BTreeMap<u32, (u32, u32)>,
}

impl Module {
    /// Reads and decodes PTX. An unknown instruction is an error that names its line.
    pub fn parse(ptx: &str) -> Result<Self, Error> {
        let ptx = ptx.trim_end_matches('\0');
        let unit = parse::parse(ptx)?;
        if let Some(v) = unit.vars.iter().find(|v| v.bytes > 1 << 32) {
            return Err(Error::ptx(0, "a variable of more than 4 GB", &v.name));
        }
        let mut kernels = BTreeMap::new();
        for f in unit.functions.iter().filter(|f| f.entry && f.body.is_some()) {
            kernels.insert(f.name.clone(), decode::kernel(&unit, f)?);
        }
        let globals = unit.vars.iter().map(|v| Global {
            name: v.name.clone(),
            addr: 0,
            bytes: if v.space == ".shared" { 0 } else { v.bytes },
            constant: v.space == ".const",
            init: v.init.clone(),
        });
        let lines = ptx.lines().map(|l| l.trim().to_owned()).collect();
        Ok(Self { kernels, globals: globals.collect(), files: unit.files, lines, callers: unit.callers })
    }

    /// The kernel of this name.
    pub fn kernel(&self, name: &str) -> Option<&Kernel> {
        self.kernels.get(name)
    }

    /// The kernels' names.
    pub fn kernels(&self) -> impl Iterator<Item = &str> {
        self.kernels.keys().map(String::as_str)
    }

    /// The module's variables. (Module-wide shared variables are listed with no bytes.)
    pub fn globals(&self) -> &[Global] {
        &self.globals
    }

    /// Gives every variable memory and its initial value; needed once before the first launch that uses one.
    ///
    /// # Panics
    /// Where [`Module::try_place`] is an error.
    pub fn place(&mut self, memory: &Memory) {
        self.try_place(memory).unwrap_or_else(|e| panic!("{e}"));
    }

    /// The same, with an error where this machine cannot hold so much.
    pub fn try_place(&mut self, memory: &Memory) -> Result<(), Error> {
        for g in self.globals.iter_mut().filter(|g| g.bytes > 0 && g.addr == 0) {
            g.addr = memory.try_alloc(g.bytes, &g.name)?;
            memory.fill(g.addr, 0, g.bytes)?;
            memory.write(g.addr, &g.init)?;
        }
        Ok(())
    }
}
