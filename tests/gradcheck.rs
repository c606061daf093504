//! Every op's small cases against finite differences.

use asasr_engine::autograd::gradcheck::{TOLERANCE, check};
use asasr_engine::engine::Device;
use asasr_engine::ops;

#[test]
fn every_op_agrees_with_finite_differences() {
    let mut failures = Vec::new();
    let mut seen = 0;
    for case in ops::cases(&Device::cpu_poisoned()).iter().filter(|c| c.check) {
        for f in check(&case.op, &case.inputs, &case.differentiable).expect(&case.name) {
            seen += 1;
            println!("{:<44} input {:<2} {:.1e}", case.name, f.input, f.error);
            if f.error.is_nan() || f.error > TOLERANCE {
                failures.push(format!("{} input {}: {:.2e}", case.name, f.input, f.error));
            }
        }
    }
    assert!(seen > 0 && failures.is_empty(), "{seen} gradients, wrong: {failures:#?}");
}
