//! Two folders of results, word by word.

use super::Outcome;
use super::programs::{PROGRAMS, Program, Wanted};
use serde_json::{Value, json};
use std::path::Path;

/// Compares what `a` and `b` hold, prints a line for each program, writes the same as JSON; false where any differs by
/// more than it may, or is in one folder alone.
pub fn directories(a: &Path, b: &Path, to: Option<&Path>) -> Outcome<bool> {
    let about = |dir: &Path| -> Outcome<Value> {
        let file = dir.join("device.json");
        let bytes = std::fs::read(&file).map_err(|e| format!("{}: {e}", file.display()))?;
        Ok(serde_json::from_slice(&bytes)?)
    };
    let (of_a, of_b) = (about(a)?, about(b)?);
    println!("{} against {}\n", of_a["device"], of_b["device"]);
    println!("{:24} {:>9} {:>9} {:>10}  verdict", "program", "words", "differ", "of bound");
    let (mut rows, mut failed) = (Vec::new(), 0);
    for program in PROGRAMS {
        let read = |dir: &Path| {
            let bytes = std::fs::read(dir.join(format!("{}.bin", program.name))).ok()?;
            Some(bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect::<Vec<u32>>())
        };
        let (left, right) = (read(a), read(b));
        let (Some(left), Some(right)) = (&left, &right) else {
            let detail = if left.is_none() { a } else { b }.display().to_string();
            println!("{:24} {:>9} {:>9} {:>10}  MISSING in {detail}", program.name, "-", "-", "-");
            rows.push(json!({ "program": program.name, "verdict": "missing", "missing_in": detail }));
            failed += 1;
            continue;
        };
        let found = compare(program, left, right);
        let passed = found.worst <= 1.0 && left.len() == right.len();
        failed += usize::from(!passed);
        let verdict = if passed { "passed" } else { "FAILED" };
        let share = if found.worst.is_finite() { format!("{:.3}", found.worst) } else { "inf".into() };
        println!("{:24} {:>9} {:>9} {share:>10}  {verdict}", program.name, left.len(), found.differ);
        let at = found.at.filter(|_| !passed).map(|i| {
            let row = program.words.max(1);
            let (thread, word) = (i / row, i % row);
            println!("{:24} first at thread {thread}, word {word}: {:#010x} against {:#010x}", "", left[i], right[i]);
            json!({ "thread": thread, "word": word, "bits": [format!("{:#010x}", left[i]), format!("{:#010x}", right[i])] })
        });
        rows.push(json!({
            "program": program.name, "verdict": verdict.to_lowercase(), "words": left.len(), "differ": found.differ,
            "share_of_bound": if found.worst.is_finite() { json!(found.worst) } else { Value::Null },
            "bound": format!("{:?}", program.wanted), "first_failure": at,
        }));
    }
    println!("\n{} programs, {failed} failed", PROGRAMS.len());
    if let Some(to) = to {
        let all = json!({ "devices": [of_a, of_b], "passed": failed == 0, "programs": rows });
        std::fs::write(to, serde_json::to_vec_pretty(&all)?).map_err(|e| format!("{}: {e}", to.display()))?;
    }
    Ok(failed == 0)
}

struct Found {
    /// Values whose bits are not the same.
    differ: usize,
    /// The largest difference as a share of what is allowed.
    worst: f64,
    /// The first word that is off by more.
    at: Option<usize>,
}

fn compare(program: &Program, left: &[u32], right: &[u32]) -> Found {
    let mut found = Found { differ: 0, worst: 0.0, at: None };
    let step = if matches!(program.wanted, Wanted::Share(_)) { 2 } else { 1 };
    for i in (0..left.len().min(right.len())).step_by(step) {
        if left[i] == right[i] {
            continue;
        }
        found.differ += 1;
        let [a, b] = [left[i], right[i]].map(|w| f64::from(f32::from_bits(w)));
        let allowed = match program.wanted {
            Wanted::Exact => 0.0,
            Wanted::Close { relative, absolute } => absolute.max(relative * a.abs().max(b.abs())),
            Wanted::Share(share) => share * f64::from(f32::from_bits(left[i + 1])),
        };
        // Two NaN are the same result; one is not, nor is an infinity against a number.
        let off = match ((a - b).abs() / allowed, a.is_nan() && b.is_nan()) {
            (_, true) if !matches!(program.wanted, Wanted::Exact) => 0.0,
            (off, _) if off.is_nan() || matches!(program.wanted, Wanted::Exact) => f64::INFINITY,
            (off, _) => off,
        };
        found.worst = found.worst.max(off);
        if off > 1.0 {
            found.at.get_or_insert(i);
        }
    }
    found
}
