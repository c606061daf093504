//! Criterion with throughput in FLOP/s and byte/s, and a table of all results at the end.

use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use criterion::{BenchmarkGroup, Criterion, Throughput};
use std::time::{Duration, Instant};

/// Wall time; elements are floating-point operations.
pub struct Flops(WallTime);

/// Short runs: the whole of `cargo bench` is minutes.
pub fn criterion() -> Criterion<Flops> {
    Criterion::default()
        .with_measurement(Flops(WallTime))
        .sample_size(10)
        .nresamples(1_000)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(250))
        .configure_from_args()
}

/// What was measured: name, seconds (median), FLOPs and bytes.
#[derive(Default)]
pub struct Table(Vec<(String, f64, f64, f64)>);

impl Table {
    /// Measures `f`, which does `flops` and moves `bytes`, as `name` of `group`; gives its median time, if it was run
    /// (criterion's filter may leave it out).
    pub fn measure(
        &mut self,
        group: &mut BenchmarkGroup<Flops>,
        (of, name): (&str, &str),
        (flops, bytes): (f64, f64),
        mut f: impl FnMut(),
    ) -> Option<f64> {
        let mut seconds = Vec::new();
        group.throughput(throughput(flops, bytes));
        group.bench_function(name, |b| {
            b.iter_custom(|n| {
                let begun = Instant::now();
                (0..n).for_each(|_| f());
                let time = begun.elapsed();
                seconds.push(time.as_secs_f64() / n as f64);
                time
            });
        });
        seconds.sort_by(f64::total_cmp);
        let median = seconds.get(seconds.len() / 2).copied()?;
        self.0.push((format!("{of} {name}"), median, flops, bytes));
        Some(median)
    }

    /// Prints everything, one line each.
    pub fn print(&self) {
        println!("\n{:<64} {:>10} {:>10} {:>10}", "", "µs", "GFLOP/s", "GB/s");
        for (name, seconds, flops, bytes) in &self.0 {
            let rate = |v: f64| if v > 0.0 { format!("{:.2}", v / seconds / 1e9) } else { "-".to_owned() };
            println!("{name:<64} {:>10.1} {:>10} {:>10}", 1e6 * seconds, rate(*flops), rate(*bytes));
        }
        println!();
    }
}

/// FLOPs and bytes of one iteration; an op that only moves values has no FLOPs.
fn throughput(flops: f64, bytes: f64) -> Throughput {
    let (elements, bytes) = (flops.round() as u64, bytes.round() as u64);
    if elements == 0 {
        Throughput::BytesDecimal(bytes)
    } else {
        Throughput::ElementsAndBytes { elements, bytes }
    }
}

impl Measurement for Flops {
    type Intermediate = Instant;
    type Value = Duration;

    fn start(&self) -> Instant {
        self.0.start()
    }
    fn end(&self, begun: Instant) -> Duration {
        self.0.end(begun)
    }
    fn add(&self, a: &Duration, b: &Duration) -> Duration {
        self.0.add(a, b)
    }
    fn zero(&self) -> Duration {
        self.0.zero()
    }
    fn to_f64(&self, value: &Duration) -> f64 {
        self.0.to_f64(value)
    }
    fn formatter(&self) -> &dyn ValueFormatter {
        self
    }
}

impl ValueFormatter for Flops {
    fn scale_values(&self, typical: f64, values: &mut [f64]) -> &'static str {
        self.0.formatter().scale_values(typical, values)
    }
    fn scale_throughputs(&self, typical: f64, throughput: &Throughput, values: &mut [f64]) -> &'static str {
        let (amount, units) = match *throughput {
            Throughput::Elements(n) | Throughput::ElementsAndBytes { elements: n, .. } => {
                (n, ["MFLOP/s", "GFLOP/s"])
            }
            Throughput::Bytes(n) | Throughput::BytesDecimal(n) => (n, ["MB/s", "GB/s"]),
            Throughput::Bits(n) => (n, ["Mbit/s", "Gbit/s"]),
        };
        // Values are nanoseconds: amount over them is billions a second.
        let giga = amount as f64 >= typical;
        let scale = if giga { 1.0 } else { 1e3 };
        values.iter_mut().for_each(|v| *v = scale * amount as f64 / *v);
        units[usize::from(giga)]
    }
    fn scale_for_machines(&self, values: &mut [f64]) -> &'static str {
        self.0.formatter().scale_for_machines(values)
    }
}
