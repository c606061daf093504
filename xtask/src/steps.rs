//! The steps of `cargo xtask test`, their times, and the table at the end.
//!
//! Everything that runs is built in the release profile, so that dependencies are compiled once; clippy, the library
//! alone and the documentation only type-check, and share those results.

use crate::{checks, kernels, smoke, soak};
use std::time::{Duration, Instant};

type Outcome = Result<(), String>;

/// Name, what it shows, how.
type Step = (&'static str, &'static str, fn() -> Outcome);

const STEPS: [Step; 12] = [
    ("fmt", "the code is formatted", checks::fmt),
    ("clippy", "no warning in any target with any feature", checks::clippy),
    ("lib", "the library alone compiles, and a program links it", checks::library),
    ("tree", "the library alone pulls nothing of the command line", checks::tree),
    ("doc", "the documentation has no warning", checks::doc),
    (
        "kernels",
        "every CUDA source compiles for sm_80 and sm_90; no kernel spills or does more than it must",
        || kernels::report(&[], false, None),
    ),
    ("test", "unit, integration and documentation tests", checks::test),
    ("verify", "golden vectors of the reference", checks::verify),
    ("smoke", "a short training run; same bits on 1 and 2 threads", smoke::run),
    ("soak", "a killed and resumed run ends with the same bytes", || soak::run(3, 1)),
    ("disk", "a full or read-only disk stops a run and breaks nothing", checks::disk),
    ("mutate", "gradcheck catches every wrong gradient", checks::mutate),
];

/// Runs all steps, or those named in `only`; a failure does not stop those after it.
pub fn run(only: &[String]) -> Outcome {
    if let Some(name) = only.iter().find(|n| STEPS.iter().all(|s| s.0 != n.as_str())) {
        let names: Vec<&str> = STEPS.iter().map(|s| s.0).collect();
        return Err(format!("there is no step `{name}`; there are: {}", names.join(", ")));
    }
    let mut rows: Vec<(&str, Duration, &str)> = Vec::new();
    let mut failures = Vec::new();
    let begun = Instant::now();
    for (name, what, step) in STEPS {
        if !(only.is_empty() || only.iter().any(|n| n == name)) {
            continue;
        }
        println!("\n=== {name}: {what}");
        let begun = Instant::now();
        let done = step();
        let verdict = if done.is_ok() { "passed" } else { "FAILED" };
        println!("=== {name} {verdict} in {:.1} s", begun.elapsed().as_secs_f64());
        rows.push((name, begun.elapsed(), verdict));
        failures.extend(done.err().map(|why| format!("{name}: {why}")));
    }
    rows.push(("total", begun.elapsed(), if failures.is_empty() { "passed" } else { "FAILED" }));
    println!("\n{:<8} {:>8}  verdict", "step", "seconds");
    for (name, time, verdict) in rows {
        println!("{name:<8} {:>8.1}  {verdict}", time.as_secs_f64());
    }
    if failures.is_empty() { Ok(()) } else { Err(failures.join("\n       ")) }
}
