//! Every op that has CUDA kernels, forward and forward + backward, in f32 and bf16, on a CUDA device, by the device's own
//! clock; and, on a real GPU, the shapes of FLUX.1-dev's blocks.
//!
//! ```sh
//! cargo bench --bench kernels -- --device cuda [--json FILE]     # or cuda:N, emu; or ASASR_BENCH_DEVICE
//! ```
//!
//! Inputs are random; at least three sets of buffers take turns, on a GPU so many that none is still in a cache; outputs
//! are poisoned and looked at before anything is timed. A copy within the device is timed first and last: its rate is what
//! the others are compared with. Times of the emulator are those of an interpreter and say nothing of any GPU.
#![allow(missing_docs, reason = "a program")]

mod cases;
#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "wall time is the other benchmarks'")]
mod support;
mod time;
mod work;

use asasr_engine::engine::cuda::Driver;
use asasr_engine::engine::{DType, Device};
use asasr_engine::{Result, losses, ops};
use criterion::Criterion;
use serde_json::{Value, json};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::rc::Rc;
use std::time::{Duration, Instant};
use support::{Flops, Row, Table};
use time::DeviceTime;
use work::{Pass, Work};

const DEVICE: &str = "ASASR_BENCH_DEVICE";
const JSON: &str = "ASASR_BENCH_JSON";

/// Criterion takes the command line and refuses what it does not know: what is ours goes into the environment, and the
/// program begins anew.
fn take_options() {
    let mut ours = Vec::new();
    let (mut args, mut rest) = (std::env::args_os().skip(1), Vec::new());
    while let Some(arg) = args.next() {
        let name = match arg.to_str() {
            Some("--device") => DEVICE,
            Some("--json") => JSON,
            _ => {
                rest.push(arg);
                continue;
            }
        };
        let Some(value) = args.next() else {
            eprintln!("error: {} wants a value", arg.display());
            std::process::exit(2);
        };
        ours.push((name, value));
    }
    if !ours.is_empty() {
        let program = std::env::current_exe().expect("a program that runs");
        let why = Command::new(program).args(rest).envs(ours).exec();
        eprintln!("error: this program cannot be started again: {why}");
        std::process::exit(2);
    }
}

/// The device that is asked for, kept to the program's end; `None` where none is.
fn device() -> Result<Option<&'static Device>> {
    let Some(asked) = std::env::var(DEVICE).ok().filter(|v| !v.is_empty()) else { return Ok(None) };
    let device = match asked.split_once(':').unwrap_or((&asked, "0")) {
        ("emu", _) => Device::emu()?,
        ("cuda", n) if n.parse::<usize>().is_ok() => Device::cuda(n.parse().unwrap_or(0))?,
        _ => {
            let detail = format!("{DEVICE}: `{asked}` is none of cuda, cuda:N, emu");
            return Err(asasr_engine::Error::Usage(detail));
        }
    };
    Ok(Some(Box::leak(Box::new(device))))
}

struct Bench<'a> {
    criterion: &'a mut Criterion<Flops<DeviceTime>>,
    device: &'static Device,
    emulated: bool,
    /// Are times those of a GPU, each measured more than once?
    timing: bool,
    table: Table,
    /// Of each row: was the host slower at asking than the device at doing?
    host_bound: Vec<bool>,
    rotation: usize,
}

impl Bench<'_> {
    /// Times `work`, made only if criterion's filter wants it, on its buffers in turn; gives the median.
    fn measure(&mut self, of: &str, name: &str, make: impl FnOnce() -> Result<Work>) -> Option<f64> {
        // Criterion asks for the cost before it says whether it wants the benchmark at all.
        if !wanted(&format!("{of}/{name}")) {
            return None;
        }
        let mut work = make().unwrap_or_else(|e| panic!("{of} {name}: {e}"));
        let gpu = self.device.gpu().expect("a CUDA device");
        let (mut asked, mut done) = (Duration::ZERO, Duration::ZERO);
        let (cost, rotation) = (work.cost, &mut self.rotation);
        let mut group = self.criterion.benchmark_group(of);
        let median = self.table.measure_by(&mut group, (of, name), cost, |n| {
            // Nothing of before is in the time.
            gpu.synchronize().expect("the device");
            let begun = gpu.mark().expect("an event");
            let began = Instant::now();
            for _ in 0..n {
                *rotation += 1;
                drop((work.run)(*rotation % work.sets).expect("it ran before"));
            }
            asked = began.elapsed();
            let ended = gpu.mark().expect("an event");
            done = Duration::from_secs_f64(ended.seconds_since(&begun).expect("two events in order"));
            done
        });
        group.finish();
        if median.is_some() {
            self.host_bound.push(!self.emulated && asked.as_secs_f64() > 0.9 * done.as_secs_f64());
        }
        median
    }

    fn copy(&mut self, when: &str) -> Option<f64> {
        let n = if self.emulated { 1 << 18 } else { 1 << 27 };
        let device = self.device;
        let median = self.measure("copy", when, || work::copy(device, n))?;
        Some(8.0 * n as f64 / median)
    }

    fn ops(&mut self) {
        let device = self.device;
        let mut used = Vec::new();
        let cases = [ops::cases(&Device::cpu()), losses::cases(&Device::cpu())];
        for case in cases.into_iter().flatten().filter(|c| c.op.cuda()).map(Rc::new) {
            used.push(case.name.clone());
            let again = used.iter().filter(|n| **n == case.name).count();
            let name = if again == 1 { case.name.clone() } else { format!("{}#{again}", case.name) };
            let passes = passes(case.differentiable.contains(&true));
            let dtypes = if case.half.is_empty() { &[DType::F32][..] } else { &[DType::F32, DType::Bf16] };
            for (&dtype, &pass) in dtypes.iter().flat_map(|d| passes.iter().map(move |p| (d, p))) {
                let title = format!("{} {}", dtype.name(), pass.name());
                self.measure(&name, &title, || work::of_case(case.clone(), device, dtype, pass));
            }
        }
    }

    fn large(&mut self) {
        let device = self.device;
        for large in cases::large() {
            for (&dtype, pass) in
                large.dtypes.iter().flat_map(|d| [Pass::Forward, Pass::Both].map(|p| (d, p)))
            {
                let title = format!("{} {}", dtype.name(), pass.name());
                self.measure(&large.name, &title, || {
                    work::of_case(Rc::new((large.make)()), device, dtype, pass)
                });
            }
        }
    }

    /// Everything as JSON, rates as shares of the copy's.
    fn report(&self, copies: [Option<f64>; 2]) -> Value {
        let p = self.device.gpu().expect("a CUDA device").properties();
        let rows = self.table.0.iter().zip(&self.host_bound).map(|(row, host_bound)| {
            let [of, pass] = &row.name;
            let (median, (flops, bytes)) = (row.quantile(0.5), row.cost);
            let rate = |v: f64| if self.timing { json!(v) } else { Value::Null };
            json!({
                "name": of, "pass": pass, "seconds": median, "low": row.quantile(0.1), "high": row.quantile(0.9),
                "samples": row.seconds.len(), "flops": flops, "bytes": bytes,
                "tflop_per_s": rate(flops / median / 1e12), "gb_per_s": rate(bytes / median / 1e9),
                "share_of_copy": copies[0].map(|c| rate(bytes / median / c)), "host_bound": host_bound,
            })
        });
        let rows: Vec<Value> = rows.collect();
        json!({
            "by": "asasr-engine", "device": p.name, "capability": format!("{}.{}", p.capability.0, p.capability.1),
            "cuda": format!("{}.{}", p.driver.0, p.driver.1), "gpu_timing": self.timing,
            "copy_gb_per_s": copies.map(|c| c.filter(|_| self.timing).map(|c| c / 1e9)), "rows": rows,
        })
    }

    fn print(&self, copies: [Option<f64>; 2]) {
        println!("\n{:<72} {:>10} {:>8} {:>9} {:>9} {:>7}", "", "µs", "spread", "TFLOP/s", "GB/s", "of copy");
        for (row, host_bound) in self.table.0.iter().zip(&self.host_bound) {
            let Row { name, cost: (flops, bytes), .. } = row;
            let median = row.quantile(0.5);
            print!("{:<72} {:>10.1}", name.join(" "), 1e6 * median);
            if !self.timing {
                println!();
                continue;
            }
            let spread = 100.0 * (row.quantile(0.9) - row.quantile(0.1)) / median;
            let share = copies[0].map_or("-".into(), |c| format!("{:.0} %", 100.0 * bytes / median / c));
            let (tera, giga) = (flops / median / 1e12, bytes / median / 1e9);
            let note = if *host_bound { "  host-bound" } else { "" };
            println!(" {spread:>6.0} % {tera:>9.3} {giga:>9.1} {share:>7}{note}");
        }
        if self.host_bound.contains(&true) {
            println!("\nhost-bound: asking took longer than doing, so the time is that of the launches");
        }
    }
}

fn passes(differentiable: bool) -> &'static [Pass] {
    if differentiable { &[Pass::Forward, Pass::Both] } else { &[Pass::Forward] }
}

/// Whether criterion's filter lets a benchmark of this name through: making one that is not wanted takes seconds and
/// gigabytes. In doubt it does; criterion has the last word.
fn wanted(name: &str) -> bool {
    let takes_value = |option: &str| {
        let flags =
            ["bench", "test", "quick", "list", "verbose", "quiet", "exact", "noplot", "discard-baseline"];
        option.strip_prefix("--").is_some_and(|o| !flags.contains(&o) && !o.contains('='))
    };
    let args: Vec<String> = std::env::args().collect();
    let words = args.windows(2).filter(|w| !takes_value(&w[0]) && !w[1].starts_with('-'));
    let mut filters = words.map(|w| w[1].as_str());
    let plain = |f: &str| !f.contains(['\\', '^', '$', '.', '|', '?', '*', '+', '(', '[', '{']);
    filters.next().is_none_or(|f| !plain(f) || name.contains(f))
}

fn main() {
    take_options();
    let device = match device() {
        Ok(Some(device)) => device,
        Ok(None) => {
            println!("skipped: no CUDA device is named; `-- --device cuda`, `-- --device emu`, or {DEVICE}");
            return;
        }
        Err(e) => {
            eprintln!("error: {e}");
            std::process::exit(1);
        }
    };
    let gpu = device.gpu().expect("a CUDA device");
    let emulated = gpu.driver() == Driver::Emulator;
    let warning = "emulated: these are times of an interpreter on the CPU, no GPU timing";
    println!(
        "{} ({device:?}){}",
        gpu.properties().name,
        if emulated { format!("\n{warning}") } else { String::new() }
    );
    let mut criterion = Criterion::default()
        .with_measurement(Flops(DeviceTime::of(device)))
        .sample_size(if emulated { 10 } else { 30 })
        .nresamples(1_000)
        .warm_up_time(Duration::from_millis(if emulated { 1 } else { 200 }))
        .measurement_time(Duration::from_millis(if emulated { 10 } else { 300 }))
        .configure_from_args();
    let mut bench = Bench {
        criterion: &mut criterion,
        device,
        emulated,
        timing: !emulated && !std::env::args().any(|a| a == "--test"),
        table: Table::default(),
        host_bound: Vec::new(),
        rotation: 0,
    };
    let first = bench.copy("first");
    bench.ops();
    let n = if emulated { 20_000 } else { cases::PARAMETERS };
    bench.measure(&format!("large/adamw/{n}"), "f32 update", || work::adamw(device, n));
    if emulated {
        println!("FLUX.1-dev's shapes are for a real GPU: left out");
    } else {
        bench.large();
    }
    let copies = [first, bench.copy("last")];
    bench.print(copies);
    if emulated {
        println!("{warning}");
    }
    if let Some(path) = std::env::var_os(JSON) {
        let text = serde_json::to_vec_pretty(&bench.report(copies)).expect("a value is JSON");
        if let Err(e) = std::fs::write(&path, text) {
            eprintln!("error: {}: {e}", path.display());
            std::process::exit(1);
        }
    }
}
