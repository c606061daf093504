//! Proves that gradcheck sees a wrong gradient: every gradient of every op, made wrong by one percent, one at a time.
#![cfg(feature = "mutate")]

use asasr_engine::autograd::gradcheck::{TOLERANCE, check};
use asasr_engine::autograd::tape::mutation;
use asasr_engine::engine::Device;
use asasr_engine::losses;
use asasr_engine::ops::{self, Case};
use std::collections::BTreeMap;

/// Every op's cases that gradcheck runs, and those of the losses that are ops.
fn cases() -> Vec<Case> {
    let device = Device::cpu_poisoned();
    let mut cases = ops::cases(&device);
    cases.extend(losses::cases(&device));
    cases.retain(|c| c.check);
    cases
}

/// The error gradcheck finds for input `input` of `case` while that gradient of its op is wrong, or none is.
fn error(case: &Case, input: usize, wrong: bool) -> f64 {
    mutation::set(wrong.then(|| (case.op.name(), input)));
    let findings = check(&case.op, &case.inputs, &case.differentiable).expect(&case.name);
    mutation::set(None);
    findings.iter().find(|f| f.input == input).expect("it is differentiable").error
}

#[test]
fn gradcheck_catches_every_gradient_that_is_wrong_by_a_percent() {
    println!("{:<18} {:>5}  {:<44} {:>9} {:>9}", "op", "input", "case", "right", "× 1.01");
    let (mut caught, mut missed, mut red) = (0, Vec::new(), Vec::new());
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for case in cases() {
        for input in (0..case.inputs.len()).filter(|&i| case.differentiable[i]) {
            let (right, wrong) = (error(&case, input, false), error(&case, input, true));
            let ok = wrong > TOLERANCE;
            let name = case.op.name();
            let verdict = if ok { "CAUGHT" } else { "missed" };
            println!("{name:<18} {input:>5}  {:<44} {right:>9.1e} {wrong:>9.1e}  {verdict}", case.name);
            *seen.entry(name).or_default() += 1;
            caught += usize::from(ok);
            if !ok {
                missed.push(format!("{} input {input}: {wrong:.1e}", case.name));
            }
            if right.is_nan() || right > TOLERANCE {
                red.push(format!("{} input {input}: {right:.1e}", case.name));
            }
        }
    }
    println!(
        "\n{caught} caught, {} missed, over {} ops; tolerance {TOLERANCE:.0e}",
        missed.len(),
        seen.len()
    );
    assert!(red.is_empty(), "wrong without a mutation: {red:#?}");
    assert!(missed.is_empty(), "not noticed: {missed:#?}");
    let written = ops_in_the_source();
    assert_eq!(
        seen.len(),
        written.len(),
        "ops with a gradient that was checked: {seen:?}; written: {written:?}"
    );
}

/// Ops that only make constants, or only take them.
const WITHOUT_GRADIENT: [&str; 6] =
    ["Activation", "Conv2d", "GroupNorm", "NegativeFromNoise", "Norm", "Sdpa"];

/// The types of `src/ops` and `src/losses` that are ops: none must be without a case.
fn ops_in_the_source() -> Vec<String> {
    let mut found = Vec::new();
    for floor in ["src/ops", "src/losses"] {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(floor);
        let entries =
            std::fs::read_dir(dir).expect("the source is here").map(|e| e.expect("readable").path());
        // An op's folder holds how it is launched; the op itself is the file beside it.
        for file in entries.filter(|path| path.is_file()) {
            let text = std::fs::read_to_string(file).expect("a source file");
            found.extend(text.lines().filter_map(|l| {
                Some(l.trim().strip_prefix("impl Op for ")?.trim_end_matches(" {").to_owned())
            }));
        }
    }
    found.retain(|op| !WITHOUT_GRADIENT.contains(&op.as_str()));
    found.sort();
    found
}
