//! What the assembler says of each kernel, and how much of a multiprocessor it leaves idle.

use serde::{Deserialize, Serialize};

/// One kernel's resources.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelReport {
    /// Its name.
    pub name: String,
    /// Registers per thread.
    pub registers: u32,
    /// Bytes written to local memory because registers ran out.
    pub spill_stores: u32,
    /// Bytes read back.
    pub spill_loads: u32,
    /// Bytes of local memory per thread, spills included.
    pub stack: u32,
    /// Bytes of shared memory that the source declares; what is asked for at launch comes on top.
    pub static_shared: u32,
    /// The most threads a block may have, if the source says (`__launch_bounds__`).
    pub threads: Option<u32>,
    /// Blocks that are to fit a multiprocessor at once, if the source says (the bounds' second number).
    pub min_blocks: Option<u32>,
}

/// Reads the log of `--ptxas-options=-v`, and the launch bounds from the PTX; in the order of names.
pub fn parse(log: &str, ptx: &str) -> Vec<KernelReport> {
    let mut kernels: Vec<KernelReport> = Vec::new();
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let name = rest.split('\'').next().unwrap_or_default().to_string();
            let head = entry(ptx, &name).unwrap_or_default();
            let (threads, min_blocks) = (bound(head, ".maxntid "), bound(head, ".minnctapersm "));
            kernels.push(KernelReport { name, threads, min_blocks, ..KernelReport::default() });
        }
        let Some(kernel) = kernels.last_mut() else { continue };
        // Device functions that were not inlined have a stack line too, without an entry of their own: the sum is kept.
        kernel.stack += before(line, " bytes stack frame").unwrap_or(0);
        kernel.spill_stores += before(line, " bytes spill stores").unwrap_or(0);
        kernel.spill_loads += before(line, " bytes spill loads").unwrap_or(0);
        kernel.registers = before(line, " registers").unwrap_or(kernel.registers);
        kernel.static_shared = before(line, " bytes smem").unwrap_or(kernel.static_shared);
    }
    kernels.sort_by(|a, b| a.name.cmp(&b.name));
    kernels
}

/// The number that stands right before `words`.
fn before(line: &str, words: &str) -> Option<u32> {
    let head = &line[..line.find(words)?];
    let digits = head.rfind(|c: char| !c.is_ascii_digit()).map_or(0, |i| i + 1);
    head.get(digits..)?.parse().ok()
}

/// What stands between an entry's name and its body.
fn entry<'p>(ptx: &'p str, name: &str) -> Option<&'p str> {
    let (_, rest) = ptx.split_once(&format!(".entry {name}("))?;
    Some(rest.split_once('{')?.0)
}

/// The product of the numbers of a directive of an entry, as in `.maxntid 256, 1, 1`.
fn bound(head: &str, directive: &str) -> Option<u32> {
    let numbers = head.split_once(directive)?.1.lines().next()?;
    numbers.split(',').map(|n| n.trim().parse::<u32>().ok()).product()
}

/// What a multiprocessor has.
#[derive(Clone, Copy, Debug)]
struct Limits {
    warps: u32,
    blocks: u32,
    registers: u32,
    shared: u32,
}

/// By `sm_XX`; `None` for an architecture this table does not know. From the CUDA C++ Programming Guide's table of
/// compute capabilities.
fn limits(arch: &str) -> Option<Limits> {
    let number: u32 =
        arch.strip_prefix("sm_")?.trim_end_matches(|c: char| c.is_ascii_alphabetic()).parse().ok()?;
    let (warps, blocks, shared) = match number {
        80 => (64, 32, 164),
        86 => (48, 16, 100),
        87 => (48, 16, 164),
        89 => (48, 24, 100),
        90 | 100 | 103 => (64, 32, 228),
        120 | 121 => (48, 24, 100),
        _ => return None,
    };
    Some(Limits { warps, blocks, registers: 65_536, shared: shared << 10 })
}

impl KernelReport {
    /// Blocks of `threads` threads with `dynamic` bytes of shared memory that fit a multiprocessor of `arch` at once,
    /// and the share of its warps they are. Registers are given out by 256 per warp, shared memory by 128 bytes and
    /// 1 KB more per block.
    pub fn occupancy(&self, arch: &str, threads: u32, dynamic: u32) -> Option<(u32, f64)> {
        let limits = limits(arch)?;
        let warps = threads.div_ceil(32).max(1);
        let per_warp = self.registers_per_warp();
        let shared = (self.static_shared + dynamic).next_multiple_of(128) + 1024;
        let blocks = (limits.warps / warps)
            .min(limits.blocks)
            .min(limits.registers / per_warp / warps)
            .min(limits.shared / shared);
        Some((blocks, f64::from(blocks * warps) / f64::from(limits.warps)))
    }

    fn registers_per_warp(&self) -> u32 {
        (self.registers.max(1) * 32).next_multiple_of(256)
    }

    /// What no kernel may do: spill, keep an array in local memory (as slow), need more registers than its launch bounds
    /// leave it, or not fit a multiprocessor of `arch` with its `dynamic` bytes of shared memory.
    pub fn faults(&self, arch: &str, dynamic: u32) -> Vec<String> {
        let mut faults = Vec::new();
        let spills = self.spill_stores + self.spill_loads;
        if spills + self.stack > 0 {
            faults.push(format!("{spills} bytes of spills and {} of local memory", self.stack));
        }
        let Some(threads) = self.threads else {
            faults.push("no launch bounds".to_string());
            return faults;
        };
        let (warps, blocks) = (threads.div_ceil(32), self.min_blocks.unwrap_or(1).max(1));
        if let Some(limits) = limits(arch)
            && warps * blocks * self.registers_per_warp() > limits.registers
        {
            let (have, registers) = (limits.registers, self.registers);
            faults.push(format!(
                "{registers} registers for {blocks} blocks of {threads} threads; there are {have}"
            ));
        }
        if self.occupancy(arch, threads, dynamic).is_some_and(|(blocks, _)| blocks == 0) {
            let shared = self.static_shared + dynamic;
            faults.push(format!("no block of {threads} threads with {shared} bytes of shared memory fits"));
        }
        faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'k2' for 'sm_80'
ptxas info    : Function properties for k2
ptxas         .     8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers, 8 bytes cumulative stack size, 360 bytes cmem[0]
ptxas info    : Compiling entry function 'k' for 'sm_80'
ptxas info    : Function properties for k
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 100 registers, used 1 barriers, 1200 bytes smem, 360 bytes cmem[0]
";
    const PTX: &str = ".visible .entry k(\n\t.param .u64 k_param_0\n)\n.maxntid 128, 2, 1\n.minnctapersm 2\n{\n}\n.visible .entry k2()\n{\n}";

    #[test]
    fn reads_the_log_and_the_bounds() {
        let kernels = parse(LOG, PTX);
        let k = KernelReport {
            name: "k".into(),
            registers: 100,
            static_shared: 1200,
            threads: Some(256),
            min_blocks: Some(2),
            ..KernelReport::default()
        };
        let k2 = KernelReport {
            name: "k2".into(),
            registers: 8,
            spill_stores: 4,
            spill_loads: 12,
            stack: 8,
            ..KernelReport::default()
        };
        assert_eq!(kernels, [k, k2]);
        assert_eq!(parse("", ""), []);
    }

    #[test]
    fn occupancy_is_the_tightest_limit() {
        let k =
            |registers, static_shared| KernelReport { registers, static_shared, ..KernelReport::default() };
        assert_eq!(k(32, 0).occupancy("sm_80", 256, 0), Some((8, 1.0)));
        assert_eq!(k(128, 0).occupancy("sm_80", 256, 0), Some((2, 0.25)));
        assert_eq!(k(32, 0).occupancy("sm_80", 256, 65_536), Some((2, 0.25)));
        assert_eq!(k(32, 0).occupancy("sm_90a", 256, 65_536), Some((3, 0.375)));
        assert_eq!(k(255, 0).occupancy("sm_89", 32, 0), Some((8, 8.0 / 48.0)));
        assert_eq!(k(32, 0).occupancy("sm_12", 32, 0), None);
    }
    #[test]
    fn a_fault_carries_its_numbers() {
        let good = KernelReport {
            registers: 128,
            threads: Some(256),
            min_blocks: Some(2),
            ..KernelReport::default()
        };
        assert_eq!(good.faults("sm_80", 65_536), [""; 0]);
        let says = |kernel: &KernelReport, dynamic: u32, what: &str| {
            let faults = kernel.faults("sm_89", dynamic);
            assert!(faults.len() == 1 && faults[0].contains(what), "{faults:?}");
        };
        says(&KernelReport { spill_loads: 8, stack: 16, ..good.clone() }, 0, "8 bytes of spills and 16 of");
        says(
            &KernelReport { registers: 129, ..good.clone() },
            0,
            "129 registers for 2 blocks of 256 threads",
        );
        says(&KernelReport { threads: None, ..good.clone() }, 0, "no launch bounds");
        says(&good, 110_000, "110000 bytes of shared memory");
    }
}
