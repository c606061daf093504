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
    let list: Vec<_> =
        params.split_whitespace().enumerate().map(|(n, t)| format!(".param .{t} p{n}")).collect();
    format!(
        ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k({})\n{{\n.reg .pred %p<16>;\n.reg .b16 %h<32>;\n\
         .reg .b32 %r<64>;\n.reg .f32 %f<64>;\n.reg .b64 %rd<32>;\n.reg .f64 %fd<32>;\n{body}\nret;\n}}\n",
        list.join(", ")
    )
}

/// Registers of a type in [`ptx`]'s kernels.
fn register(ty: &str, n: usize) -> String {
    let set = match ty {
        "pred" => "%p",
        "f32" => "%f",
        "f64" => "%fd",
        _ if ty.ends_with("64") => "%rd",
        _ if ty.ends_with("16") && ty != "x" || ty == "bf16" => "%h",
        _ => "%r",
    };
    format!("{set}{}", n + 8)
}

/// Executes `op` on each row of operands, given as bits: what it gives, as bits. `types` is the destination's and the
/// sources', such as `b32 b32 f32`; a source that begins with `=` is that text itself.
pub fn eval(op: &str, types: &str, rows: &[Vec<u64>]) -> Vec<u64> {
    let types: Vec<_> = types.split_whitespace().collect();
    let (to, sources) = types.split_first().expect("a destination");
    let mut body = String::from(
        "ld.param.u64 %rd0, [p0];\nld.param.u64 %rd1, [p1];\nmov.u32 %r0, %ctaid.x;\nmov.u32 %r1, %tid.x;\n\
         mad.lo.s32 %r0, %r0, 128, %r1;\nmul.wide.u32 %rd2, %r0, 64;\nadd.s64 %rd0, %rd0, %rd2;\n\
         mul.wide.u32 %rd2, %r0, 8;\nadd.s64 %rd1, %rd1, %rd2;\n",
    );
    let mut list = vec![register(to, 0)];
    let mut n = 0;
    for ty in sources {
        if let Some(text) = ty.strip_prefix('=') {
            list.push(text.to_owned());
            continue;
        }
        let r = register(ty, n + 1);
        if *ty == "pred" {
            body += &format!("ld.global.u32 %r7, [%rd0+{}];\nsetp.ne.u32 {r}, %r7, 0;\n", n * 8);
        } else {
            let bits = if ty.ends_with("64") {
                64
            } else if ty.ends_with("16") {
                16
            } else {
                32
            };
            body += &format!("ld.global.b{bits} {r}, [%rd0+{}];\n", n * 8);
        }
        list.push(r);
        n += 1;
    }
    body += &format!("{op} {};\n", list.join(", "));
    let d = &list[0];
    body += &match *to {
        "pred" => format!("selp.b64 %rd3, 1, 0, {d};\nst.global.u64 [%rd1], %rd3;\n"),
        t if t.ends_with("64") => format!("st.global.b64 [%rd1], {d};\n"),
        t if t.ends_with("16") => format!("st.global.b16 [%rd1], {d};\n"),
        _ => format!("st.global.b32 [%rd1], {d};\n"),
    };
    let device = Device::kernel("u64 u64", &body);
    let count = rows.len().next_multiple_of(128);
    let mut data = vec![0u32; count * 16];
    for (at, row) in rows.iter().enumerate() {
        for (j, v) in row.iter().enumerate() {
            data[at * 16 + 2 * j] = *v as u32;
            data[at * 16 + 2 * j + 1] = (*v >> 32) as u32;
        }
    }
    let (from, out) = (device.words("in", &data), device.words("out", &vec![0; count * 2]));
    device.ok(count as u32 / 128, 128, &Params::new().u64(from).u64(out));
    let words = device.read(out, rows.len() * 2);
    words.chunks(2).map(|w| u64::from(w[1]) << 32 | u64::from(w[0])).collect()
}

/// All tuples of the given values.
pub fn tuples(values: &[u64], arity: usize) -> Vec<Vec<u64>> {
    (0..arity).fold(vec![vec![]], |rows, _| {
        rows.iter().flat_map(|r| values.iter().map(move |v| [&r[..], &[*v]].concat())).collect()
    })
}

/// Checks an instruction on rows of operands against a function of them.
pub fn check(op: &str, types: &str, rows: &[Vec<u64>], want: impl Fn(&[u64]) -> u64) {
    for (row, got) in rows.iter().zip(eval(op, types, rows)) {
        assert_eq!(got, want(row), "{op} of {row:#x?}: {got:#x}, not {:#x}", want(row));
    }
}

/// Values that repeat no pattern.
pub fn random(n: usize, seed: u64) -> Vec<u64> {
    let mut s = seed;
    let mut next = || {
        s = s.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (s ^ (s >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    (0..n).map(|_| next()).collect()
}
