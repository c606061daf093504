//! How fast kernels are interpreted, with every check on, on one thread: warp-instructions a second, and mma a second for
//! the matrix product; the 256³ product is also timed on two threads.

#![allow(missing_docs)]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use cuda_emu::{Checks, Counters, Launch, Memory, Module, launch};

/// One kernel with its arguments, ready to be launched again and again.
struct Case {
    name: &'static str,
    module: Module,
    memory: Memory,
    grid: u32,
    block: u32,
    shared: u32,
    params: Vec<u8>,
}

impl Case {
    fn new(name: &'static str, ptx: &str, grid: u32, block: u32) -> Self {
        let memory = Memory::new();
        let mut module = Module::parse(ptx).expect("committed PTX");
        module.place(&memory);
        Self { name, module, memory, grid, block, shared: 0, params: Vec::new() }
    }

    fn arg(&mut self, bytes: &[u8]) {
        self.params.resize(self.params.len().next_multiple_of(bytes.len()), 0);
        self.params.extend_from_slice(bytes);
    }

    /// An argument that points to `bytes` bytes of values near one.
    fn buffer(&mut self, name: &str, bytes: usize, half: bool) {
        let at = self.memory.alloc(bytes as u64, name);
        let value = |n: usize| 0.5 + (n * 7919 % 1000) as f32 / 1000.0;
        let data: Vec<u8> = match half {
            true => (0..bytes / 2).flat_map(|n| ((value(n).to_bits() >> 16) as u16).to_le_bytes()).collect(),
            false => (0..bytes / 4).flat_map(|n| value(n).to_le_bytes()).collect(),
        };
        self.memory.write(at, &data).expect("just allocated");
        self.arg(&at.to_le_bytes());
    }

    fn ints(&mut self, values: &[u32]) {
        values.iter().for_each(|v| self.arg(&v.to_le_bytes()));
    }

    fn run(&self) -> Counters {
        let launch_ = Launch {
            grid: [self.grid, 1, 1],
            block: [self.block, 1, 1],
            dynamic_shared: self.shared,
            params: &self.params,
            checks: Checks::default(),
        };
        launch(&self.module, self.name, &self.memory, &launch_).expect("a clean kernel")
    }
}

fn gelu(name: &'static str, half: bool) -> Case {
    let n = 1 << 18;
    let mut c = Case::new(name, include_str!("ptx/gelu.ptx"), 128, 256);
    let bytes = if half { 2 * n } else { 4 * n };
    c.buffer("x", bytes, half);
    c.buffer("y", bytes, half);
    c.arg(&(n as u64).to_le_bytes());
    c
}

fn layer_norm(name: &'static str, half: bool) -> Case {
    let (rows, width) = (64, 3072);
    let mut c = Case::new(name, include_str!("ptx/ln_modulate.ptx"), rows / 4, 128);
    let size = if half { 2 } else { 4 };
    let bytes = (rows * width * size) as usize;
    c.buffer("x", bytes, half);
    c.buffer("table", (3 * width * size) as usize, half);
    c.arg(&[0; 8]);
    let row = c.memory.alloc(4, "rows");
    c.memory.write(row, &[0; 4]).expect("just allocated");
    c.arg(&row.to_le_bytes());
    c.arg(&[0; 8]);
    c.ints(&[3 * width, 0, 1 << 30]);
    c.buffer("y", bytes, half);
    c.ints(&[rows, rows, width, 0, 2]);
    c
}

fn sobolev() -> Case {
    let (planes, n) = (16, 64);
    let mut c = Case::new("sobolev_gap_fwd_64_f32", include_str!("ptx/sobolev.ptx"), planes, 256);
    let bytes = (planes * n * n * 4) as usize;
    ["v", "v_ref", "target"].iter().for_each(|name| c.buffer(name, bytes, false));
    c.buffer("weight", (n * n * 4) as usize, false);
    c.buffer("dot", planes as usize * 8, false);
    c.buffer("partial", bytes, false);
    c.ints(&[planes, 1.0f32.to_bits()]);
    c
}

fn linear(n: u32) -> Case {
    let tiles = n.div_ceil(128);
    let mut c = Case::new("linear_fwd_bf16", include_str!("ptx/linear.ptx"), tiles * tiles, 256);
    c.shared = 65536;
    let bytes = (n * n * 2) as usize;
    c.buffer("a", bytes, true);
    c.buffer("b", bytes, true);
    c.buffer("bias", n as usize * 2, true);
    c.buffer("c", bytes, true);
    c.ints(&[n, n, n, n, n, n, 1.0f32.to_bits(), 0]);
    c
}

/// Nothing but products: 8 warps of 4096 rounds of 8.
fn products() -> Case {
    let mma = "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f1,%f2,%f3,%f4},{%r1,%r1,%r1,%r1},{%r1,%r1},{%f1,%f2,%f3,%f4};\n";
    let ptx = format!(
        ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k()\n{{\n.reg .b32 %r<4>; .reg .f32 %f<5>;\n\
         .reg .pred %p<2>; mov.b32 %r1, 0x3f803f80; mov.u32 %r2, 0;\nL:\n{}add.u32 %r2, %r2, 1;\n\
         setp.lt.u32 %p1, %r2, 4096; @%p1 bra L; ret; }}",
        mma.repeat(8)
    );
    Case::new("k", &ptx, 1, 256)
}

fn threads(n: usize) -> rayon::ThreadPool {
    rayon::ThreadPoolBuilder::new().num_threads(n).build().expect("threads")
}

fn benches(criterion: &mut Criterion) {
    let one = threads(1);
    let mut group = criterion.benchmark_group("warp-instructions");
    let cases = [
        gelu("gelu_fwd_f32", false),
        gelu("gelu_fwd_bf16", true),
        layer_norm("ln_modulate_fwd_f32", false),
        layer_norm("ln_modulate_fwd_bf16", true),
        sobolev(),
        linear(256),
    ];
    for c in &cases {
        group.throughput(Throughput::Elements(one.install(|| c.run()).instructions()));
        group.bench_function(c.name, |b| b.iter(|| one.install(|| c.run())));
    }
    group.finish();
    let mut group = criterion.benchmark_group("mma");
    let c = linear(256);
    let flops = one.install(|| c.run()).mma_flops;
    group.throughput(Throughput::Elements(flops / 4096));
    for n in [1, 2] {
        let pool = threads(n);
        group.bench_function(BenchmarkId::new("linear_256_cubed, threads", n), |b| {
            b.iter(|| pool.install(|| c.run()))
        });
    }
    let c = products();
    group.throughput(Throughput::Elements(one.install(|| c.run()).mma_flops / 4096));
    group.bench_function("m16n8k16_bf16", |b| b.iter(|| one.install(|| c.run())));
    group.finish();
}

criterion_group!(all, benches);
criterion_main!(all);
