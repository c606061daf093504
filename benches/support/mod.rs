//! Criterion with throughput in FLOP/s and byte/s, and a table of all results at the end.

use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use criterion::{BenchmarkGroup, Criterion, Throughput};
use std::time::{Duration, Instant};

/// Time by the clock `T`; elements are floating-point operations.
pub struct Flops<T = WallTime>(pub T);

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

/// What was measured.
pub struct Row {
    /// Of what, and which pass.
    pub name: [String; 2],
    /// Seconds of one iteration, one figure per sample, sorted.
    pub seconds: Vec<f64>,
    /// Operations and bytes of one iteration.
    pub cost: (f64, f64),
}

impl Row {
    /// The time that this share of the samples stays below; 0.5 is the median.
    pub fn quantile(&self, share: f64) -> f64 {
        self.seconds[((self.seconds.len() - 1) as f64 * share).round() as usize]
    }
}

/// Everything that was measured.
#[derive(Default)]
pub struct Table(pub Vec<Row>);

impl Table {
    /// Measures `f`, which does `flops` and moves `bytes`, as `name` of `group`; gives its median time, if it was run
    /// (criterion's filter may leave it out).
    pub fn measure(
        &mut self,
        group: &mut BenchmarkGroup<Flops>,
        names: (&str, &str),
        cost: (f64, f64),
        mut f: impl FnMut(),
    ) -> Option<f64> {
        self.measure_by(group, names, cost, |n| {
            let begun = Instant::now();
            (0..n).for_each(|_| f());
            begun.elapsed()
        })
    }

    /// The same where `time` says how long so many iterations took.
    pub fn measure_by<T: Measurement<Value = Duration>>(
        &mut self,
        group: &mut BenchmarkGroup<Flops<T>>,
        (of, name): (&str, &str),
        cost: (f64, f64),
        mut time: impl FnMut(u64) -> Duration,
    ) -> Option<f64> {
        let mut seconds = Vec::new();
        group.throughput(throughput(cost.0, cost.1));
        group.bench_function(name, |b| {
            b.iter_custom(|n| {
                let time = time(n);
                seconds.push(time.as_secs_f64() / n as f64);
                time
            });
        });
        if seconds.is_empty() {
            return None;
        }
        seconds.sort_by(f64::total_cmp);
        let row = Row { name: [of.into(), name.into()], seconds, cost };
        let median = row.quantile(0.5);
        self.0.push(row);
        Some(median)
    }

    /// Prints everything, one line each.
    pub fn print(&self) {
        println!("\n{:<64} {:>10} {:>10} {:>10}", "", "µs", "GFLOP/s", "GB/s");
        for row in &self.0 {
            let seconds = row.quantile(0.5);
            let rate = |v: f64| if v > 0.0 { format!("{:.2}", v / seconds / 1e9) } else { "-".to_owned() };
            let (name, (flops, bytes)) = (row.name.join(" "), row.cost);
            println!("{name:<64} {:>10.1} {:>10} {:>10}", 1e6 * seconds, rate(flops), rate(bytes));
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

impl<T: Measurement> Measurement for Flops<T> {
    type Intermediate = T::Intermediate;
    type Value = T::Value;

    fn start(&self) -> T::Intermediate {
        self.0.start()
    }
    fn end(&self, begun: T::Intermediate) -> T::Value {
        self.0.end(begun)
    }
    fn add(&self, a: &T::Value, b: &T::Value) -> T::Value {
        self.0.add(a, b)
    }
    fn zero(&self) -> T::Value {
        self.0.zero()
    }
    fn to_f64(&self, value: &T::Value) -> f64 {
        self.0.to_f64(value)
    }
    fn formatter(&self) -> &dyn ValueFormatter {
        self
    }
}

impl<T: Measurement> ValueFormatter for Flops<T> {
    fn scale_values(&self, typical: f64, values: &mut [f64]) -> &'static str {
        self.0.formatter().scale_values(typical, values)
    }
    fn scale_throughputs(&self, typical: f64, throughput: &Throughput, values: &mut [f64]) -> &'static str {
        let (amount, units) = match *throughput {
            Throughput::Elements(n) | Throughput::ElementsAndBytes { elements: n, .. } => {
                (n, ["MFLOP/s", "GFLOP/s", "TFLOP/s"])
            }
            Throughput::Bytes(n) | Throughput::BytesDecimal(n) => (n, ["MB/s", "GB/s", "TB/s"]),
            Throughput::Bits(n) => (n, ["Mbit/s", "Gbit/s", "Tbit/s"]),
        };
        // Values are nanoseconds: amount over them is billions a second.
        let rate = amount as f64 / typical;
        let (unit, scale) = match rate {
            r if r >= 1e3 => (2, 1e-3),
            r if r >= 1.0 => (1, 1.0),
            _ => (0, 1e3),
        };
        values.iter_mut().for_each(|v| *v = scale * amount as f64 / *v);
        units[unit]
    }
    fn scale_for_machines(&self, values: &mut [f64]) -> &'static str {
        self.0.formatter().scale_for_machines(values)
    }
}
