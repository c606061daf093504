//! A device to run PTX on, and the few helpers the tests share.
#![allow(dead_code)]

use cuda_emu::{Checks, Counters, Launch, Memory, Module, Report, launch_to};

/// A kernel's parameters, each at a multiple of its size.
#[derive(Default, Clone)]
pub struct Params(pub Vec<u8>);

impl Params {
    pub fn new() -> Self {
        Self::default()
    }

    fn put(mut self, bytes: &[u8]) -> Self {
        self.0.resize(self.0.len().next_multiple_of(bytes.len()), 0);
        self.0.extend_from_slice(bytes);
        self
    }

    pub fn u64(self, v: u64) -> Self {
        self.put(&v.to_le_bytes())
    }

    pub fn u32(self, v: u32) -> Self {
        self.put(&v.to_le_bytes())
    }

    pub fn f32(self, v: f32) -> Self {
        self.put(&v.to_le_bytes())
    }
}

/// A module with its memory.
pub struct Device {
    pub memory: Memory,
    pub module: Module,
    pub dynamic_shared: u32,
}

impl Device {
    pub fn new(ptx: &str) -> Self {
        let memory = Memory::new();
        let mut module = Module::parse(ptx).unwrap_or_else(|e| panic!("{e}"));
        module.place(&memory);
        Self { memory, module, dynamic_shared: 0 }
    }

    /// A module of one kernel `k` of no more than a `%p`, `%r`, `%rd`, `%f`, `%fd`, `%h` register set, whose one
    /// parameter is at `out`.
    pub fn kernel(params: &str, body: &str) -> Self {
        Self::new(&ptx(params, body))
    }

    pub fn words(&self, name: &str, data: &[u32]) -> u64 {
        self.bytes(name, bytemuck_words(data))
    }

    pub fn floats(&self, name: &str, data: &[f32]) -> u64 {
        let words: Vec<u32> = data.iter().map(|x| x.to_bits()).collect();
        self.words(name, &words)
    }

    pub fn halves(&self, name: &str, data: &[u16]) -> u64 {
        self.bytes(name, data.iter().flat_map(|x| x.to_le_bytes()).collect())
    }

    pub fn bytes(&self, name: &str, data: Vec<u8>) -> u64 {
        let at = self.memory.alloc(data.len() as u64, name);
        self.memory.write(at, &data).expect("just allocated");
        at
    }

    pub fn empty(&self, name: &str, bytes: u64) -> u64 {
        self.memory.alloc(bytes, name)
    }

    pub fn read(&self, at: u64, n: usize) -> Vec<u32> {
        let mut out = vec![0; n * 4];
        self.memory.read(at, &mut out).expect("an allocation of the test's");
        out.chunks_exact(4).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect()
    }

    pub fn read_floats(&self, at: u64, n: usize) -> Vec<f32> {
        self.read(at, n).into_iter().map(f32::from_bits).collect()
    }

    pub fn read_halves(&self, at: u64, n: usize) -> Vec<u16> {
        let mut out = vec![0; n * 2];
        self.memory.read(at, &mut out).expect("an allocation of the test's");
        out.chunks_exact(2).map(|c| u16::from_le_bytes([c[0], c[1]])).collect()
    }

    /// Runs kernel `name`, giving what it counted and printed.
    pub fn print(
        &self,
        name: &str,
        grid: u32,
        block: u32,
        params: &Params,
    ) -> Result<(Counters, String), Box<Report>> {
        let checks = Checks { limit: 1 << 24, ..Checks::default() };
        let launch = Launch {
            grid: [grid, 1, 1],
            block: [block, 1, 1],
            dynamic_shared: self.dynamic_shared,
            params: &params.0,
            checks,
        };
        let mut out = Vec::new();
        let counters = launch_to(&self.module, name, &self.memory, &launch, &mut out)?;
        Ok((counters, String::from_utf8_lossy(&out).into_owned()))
    }

    pub fn run(&self, name: &str, grid: u32, block: u32, params: &Params) -> Result<Counters, Box<Report>> {
        self.print(name, grid, block, params).map(|r| r.0)
    }

    /// Runs kernel `k`, which must not be faulted.
    pub fn ok(&self, grid: u32, block: u32, params: &Params) -> Counters {
        self.run("k", grid, block, params).unwrap_or_else(|r| panic!("{r}"))
    }
}

fn bytemuck_words(data: &[u32]) -> Vec<u8> {
    data.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// The text of a module of one kernel `k`.
pub fn ptx(params: &str, body: &str) -> String {
    let list: Vec<_> = params.split_whitespace().enumerate().map(|(n, t)| format!(".param .{t} p{n}")).collect();
    format!(
        ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k({})\n{{\n.reg .pred %p<16>;\n.reg .b16 %h<32>;\n\
         .reg .b32 %r<64>;\n.reg .f32 %f<64>;\n.reg .b64 %rd<32>;\n.reg .f64 %fd<32>;\n{body}\nret;\n}}\n",
        list.join(", ")
    )
}
