//! What the emulator counts while every op's cases run, forward and backward, beside what the launches needed; and the
//! gate.
//!
//! Bytes are those of the 32-byte sectors that requests touch, which is what memory moves: a value that a whole warp asks
//! for is one. They are judged where there is much to move: in a small case the rounding to sectors is all there is.

use crate::direct;
use asasr_engine::engine::cuda::{Gpu, Need, library};
use asasr_engine::engine::{DType, Device, Tensor, kernels};
use asasr_engine::losses;
use asasr_engine::ops::{self, Case, Save, Slot};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Bytes that are much to move.
const LARGE: u64 = 64 << 10;
/// Most that a kernel may move, as a multiple of its need.
const BYTES: f64 = 1.15;
/// Most conflicts, as a share of the accesses to shared memory.
const CONFLICTS: f64 = 0.01;
/// How far the matrix products may be from the need of whole tiles.
const MMA: f64 = 0.02;
/// Fewer accesses to shared memory than this say nothing of a kernel's conflicts.
const FEW: u64 = 1000;

type Any = Box<dyn std::error::Error>;

/// What one kernel did in one pass of one case.
#[derive(Clone, Default)]
pub struct Sample {
    /// Case and pass.
    pub at: String,
    pub need: Need,
    /// The emulator's counters, by name.
    pub counts: BTreeMap<String, u64>,
}

impl Sample {
    pub fn count(&self, name: &str) -> u64 {
        self.counts.get(name).copied().unwrap_or(0)
    }
    /// Bytes that threads asked for, as a multiple of the need.
    pub fn asked(&self) -> f64 {
        let bytes = self.count("global_bytes_read") + self.count("global_bytes_written");
        bytes as f64 / self.need.bytes as f64
    }
    /// Bytes of the sectors that their requests touched, likewise.
    pub fn moved(&self) -> f64 {
        32.0 * self.count("global_sectors") as f64 / self.need.bytes as f64
    }
    pub fn sectors_per_request(&self) -> f64 {
        self.count("global_sectors") as f64 / self.count("global_requests").max(1) as f64
    }
    /// Conflicts by access to shared memory.
    pub fn conflicts(&self) -> f64 {
        self.count("bank_conflicts") as f64 / self.count("shared_requests").max(1) as f64
    }
    /// What was multiplied, as a multiple of the need; 1 where neither is.
    pub fn multiplied(&self) -> f64 {
        match (self.count("mma_FLOPs"), self.need.mma_flops) {
            (0, 0) => 1.0,
            (done, need) => done as f64 / need as f64,
        }
    }
}

/// A kernel's samples, as far as the gate looks at them.
#[derive(Default)]
pub struct Judged {
    /// Where it moved most beside its need, among the cases that have much to move; else where it had most to.
    pub bytes: Sample,
    /// Where its shared memory met most conflicts.
    pub crowded: Sample,
    /// Where its products were furthest from the need.
    pub far: Sample,
}

impl Judged {
    fn take(&mut self, sample: Sample) {
        if sample.count("shared_requests") >= FEW && sample.conflicts() > self.crowded.conflicts() {
            self.crowded = sample.clone();
        }
        let far = |s: &Sample| (s.multiplied() - 1.0).abs();
        if self.far.at.is_empty() || far(&sample) > far(&self.far) {
            self.far = sample.clone();
        }
        // A large one before a small one; of large ones that which moves most, of small ones the largest.
        let better = match (sample.need.bytes >= LARGE, self.bytes.need.bytes >= LARGE) {
            (true, true) => sample.moved() > self.bytes.moved(),
            (false, false) => sample.need.bytes > self.bytes.need.bytes,
            (large, _) => large,
        };
        if better || self.bytes.at.is_empty() {
            self.bytes = sample;
        }
    }

    /// What exceeds its limit: in words, and the word in the kernel's heading that introduces a reason for it, if one
    /// would do.
    pub fn excesses(&self) -> Vec<(String, Option<&'static str>)> {
        let mut found = Vec::new();
        let moved = self.bytes.moved();
        if moved.is_nan() || moved > BYTES {
            found.push((
                format!("moves {moved:.2} times what it needs ({})", self.bytes.at),
                Some("Traffic: "),
            ));
        }
        let share = self.crowded.conflicts();
        if share > CONFLICTS {
            let what = format!("meets {:.1} % bank conflicts ({})", 100.0 * share, self.crowded.at);
            found.push((what, Some("Conflicts: ")));
        }
        let mma = self.far.multiplied();
        if (mma - 1.0).abs() > MMA {
            found.push((format!("multiplies {mma:.3} times what it needs ({})", self.far.at), None));
        }
        found
    }
}

/// What stands behind `word` in a heading, its lines joined, until the next such word or the end.
pub fn reason(heading: &str, word: &str) -> Option<String> {
    let mut lines = heading.lines().map(|l| l.trim_start_matches('/').trim());
    let mut text = lines.find_map(|l| l.strip_prefix(word))?.to_owned();
    let opens = |l: &str| {
        l.split_once(": ").is_some_and(|(w, _)| {
            w == "Dynamic shared" || w.starts_with(char::is_uppercase) && !w.contains(' ')
        })
    };
    for line in lines.take_while(|l| !opens(l)) {
        text.push(' ');
        text.push_str(line);
    }
    Some(text)
}

/// What was counted since the last call, by kernel.
fn collect(gpu: &Gpu, at: &str, judged: &mut BTreeMap<String, Judged>) -> Result<(), Any> {
    gpu.synchronize()?;
    let all: Value = serde_json::from_str(&library::counters().ok_or("the emulator counts nothing")?)?;
    library::reset_counters();
    let mut needs = gpu.take_needs();
    for (kernel, counts) in all["kernels"].as_object().ok_or("the emulator's counters have no kernels")? {
        let need = needs.remove(kernel).unwrap_or_default();
        let counts: BTreeMap<String, u64> = serde_json::from_value(counts.clone())?;
        judged.entry(kernel.clone()).or_default().take(Sample { at: at.into(), need, counts });
    }
    Ok(())
}

/// Runs `case` with its halves in `dtype`: forward, backward, backward that accumulates.
fn run(
    case: &Case,
    device: &Device,
    dtype: DType,
    mut each: impl FnMut(&str) -> Result<(), Any>,
) -> Result<(), Any> {
    let filled = |shape: &[usize], dtype, values: &[f32]| match dtype {
        DType::F32 => Tensor::from_slice(device, shape, values),
        DType::Bf16 => Tensor::bf16_from_f32(device, shape, values),
    };
    let of = |i: usize| if case.half.contains(&i) { dtype } else { DType::F32 };
    let inputs = case.inputs.iter().enumerate().map(|(i, t)| filled(t.shape(), of(i), t.f32()));
    let inputs = inputs.collect::<Result<Vec<Tensor>, _>>()?;
    let mut save = Save::new(&case.differentiable);
    let outputs = case.op.forward(&inputs.iter().collect::<Vec<_>>(), &mut save)?;
    each("forward")?;
    let saved = save.into_kept();
    let halves = |t: &Tensor, dtype| filled(t.shape(), dtype, &vec![0.5; t.len()]);
    let above = outputs.iter().map(|o| halves(o, o.dtype()));
    let above = above.collect::<Result<Vec<Tensor>, _>>()?;
    let above: Vec<Option<&Tensor>> = above.iter().map(Some).collect();
    for (accumulate, pass) in [(false, "backward"), (true, "backward, accumulating")] {
        let slot = |i: usize| {
            let grad = halves(&inputs[i], if case.parameters.contains(&i) { DType::F32 } else { of(i) });
            case.differentiable[i].then(|| grad.map(|grad| Slot { grad, accumulate })).transpose()
        };
        let mut slots = (0..inputs.len()).map(slot).collect::<Result<Vec<_>, _>>()?;
        case.op.backward(&saved, &above, &mut slots)?;
        each(pass)?;
    }
    Ok(())
}

/// Runs every case of every op that has kernels, but for those too long for an emulator, and the launches that no op makes.
fn measure(device: &Device) -> Result<BTreeMap<String, Judged>, Any> {
    let gpu = device.gpu().ok_or("the emulator is no GPU")?;
    let mut judged = BTreeMap::new();
    gpu.take_needs();
    library::reset_counters();
    let cases = [ops::cases(&Device::cpu()), losses::cases(&Device::cpu())];
    for case in cases.iter().flatten().filter(|c| c.op.cuda() && !c.long()) {
        for dtype in [DType::F32, DType::Bf16] {
            if dtype == DType::F32 || !case.half.is_empty() {
                run(case, device, dtype, |pass| {
                    collect(gpu, &format!("{}, {pass}", case.name), &mut judged)
                })?;
            }
        }
    }
    direct::run(device, gpu, |what| collect(gpu, what, &mut judged))?;
    Ok(judged)
}

/// Prints a kernel's line of the table, or, for none, the table's head.
fn print_line(line: Option<(&str, &Judged)>) {
    let cells = match line {
        None => [
            "counters",
            "launches",
            "instr.",
            "KB need",
            "moved",
            "asked",
            "sec/req",
            "mma MF",
            "of need",
            "shared",
            "conflicts",
            "barriers",
            "diverge",
            "at",
        ]
        .map(String::from),
        Some((name, judged)) => {
            let s = &judged.bytes;
            let count = |of| s.count(of).to_string();
            let of_need =
                if s.count("mma_FLOPs") > 0 { format!("{:.3}", judged.far.multiplied()) } else { "-".into() };
            [
                name.into(),
                count("launches"),
                count("instructions"),
                format!("{:.1}", s.need.bytes as f64 / 1e3),
                format!("{:.3}", s.moved()),
                format!("{:.3}", s.asked()),
                format!("{:.2}", s.sectors_per_request()),
                format!("{:.1}", s.count("mma_FLOPs") as f64 / 1e6),
                of_need,
                count("shared_requests"),
                format!("{:.2} %", 100.0 * judged.crowded.conflicts()),
                count("barrier_arrivals"),
                count("divergent_branches"),
                format!("{}{}", s.at, if s.need.bytes < LARGE { " (small)" } else { "" }),
            ]
        }
    };
    let [
        name,
        launches,
        instructions,
        need,
        moved,
        asked,
        per,
        mma,
        of,
        shared,
        conflicts,
        barriers,
        diverge,
        at,
    ] = cells;
    println!(
        "{name:<30} {launches:>8} {instructions:>8} {need:>8} {moved:>6} {asked:>6} {per:>7} {mma:>7} {of:>7} \
         {shared:>7} {conflicts:>9} {barriers:>8} {diverge:>7}  {at}"
    );
}

/// Prints the table; the rows as JSON, and what fails.
pub fn report(device: &Device) -> Result<(Vec<Value>, Vec<String>), Any> {
    let begun = std::time::Instant::now();
    let judged = measure(device)?;
    println!();
    print_line(None);
    let (mut rows, mut faulty) = (Vec::new(), Vec::new());
    let mut excused: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (file, source) in kernels::SOURCES.iter().filter(|s| s.0.ends_with(".cu")) {
        for name in kernels::names(source) {
            let Some(judged) = judged.get(name) else {
                faulty.push(format!("{name}: no case and no launch of the report runs it"));
                continue;
            };
            print_line(Some((name, judged)));
            let heading = kernels::heading(source, name).unwrap_or_default();
            let mut faults = Vec::new();
            for (what, word) in judged.excesses() {
                match word.and_then(|word| reason(heading, word)) {
                    Some(why) => excused.entry(why).or_default().push(format!("{name} {what}")),
                    None => faults.push(what),
                }
            }
            faulty.extend(faults.iter().map(|f| format!("{name} {f}")));
            let s = &judged.bytes;
            rows.push(json!({
                "kernel": name, "file": file, "case": s.at, "counters": s.counts, "needed_bytes": s.need.bytes,
                "moved": s.moved(), "asked": s.asked(), "sectors_per_request": s.sectors_per_request(),
                "needed_mma_flops": s.need.mma_flops, "mma": judged.far.multiplied(),
                "conflicts": judged.crowded.conflicts(), "conflicts_case": judged.crowded.at, "faults": faults,
            }));
        }
    }
    println!(
        "moved, asked: bytes of the sectors touched, and of the threads' requests, as multiples of the need, where the \
         kernel moves most beside it of all cases of {} KB or more; a (small) one has none such, and its bytes are \
         rounding. Limit {BYTES}. of need, conflicts: those of the worst case. Limits 1 ± {MMA} and {} %.",
        LARGE >> 10,
        100.0 * CONFLICTS
    );
    for (why, who) in excused {
        println!("over a limit, because {why}");
        who.iter().for_each(|who| println!("    {who}"));
    }
    println!("{:.1} s emulated", begun.elapsed().as_secs_f64());
    Ok((rows, faulty))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(need: u64, counts: &[(&str, u64)]) -> Sample {
        let counts = counts.iter().map(|&(name, n)| (name.to_owned(), n)).collect();
        let need = Need { launches: 1, bytes: need, mma_flops: 1000 };
        Sample { at: format!("{need:?}"), need, counts }
    }
    fn words(samples: Vec<Sample>) -> Vec<Option<&'static str>> {
        let mut judged = Judged::default();
        samples.into_iter().for_each(|s| judged.take(s));
        judged.excesses().into_iter().map(|e| e.1).collect()
    }

    #[test]
    fn what_exceeds_a_limit_is_noticed() {
        let sectors = |n: u64| ("global_sectors", n);
        let fair = || sample(64 << 10, &[sectors(2048), ("mma_FLOPs", 1010)]);
        let mma = ("mma_FLOPs", 1000);
        assert!(words(vec![fair()]).is_empty());
        assert_eq!(words(vec![fair(), sample(64 << 10, &[sectors(2400), mma])]), [Some("Traffic: ")]);
        // A small case is all rounding, unless there is no larger one.
        let small = || sample(100, &[sectors(10), mma]);
        assert!(words(vec![fair(), small()]).is_empty());
        assert_eq!(words(vec![small()]), [Some("Traffic: ")]);
        // What declares nothing, but moves something; and what declares nothing and moves nothing.
        assert_eq!(words(vec![sample(0, &[sectors(1), mma])]), [Some("Traffic: ")]);
        assert_eq!(words(vec![sample(0, &[mma])]), [Some("Traffic: ")]);
        let crowded = |all, conflicts| {
            let shared = [("shared_requests", all), ("bank_conflicts", conflicts)];
            sample(64 << 10, &[sectors(2048), mma, shared[0], shared[1]])
        };
        assert_eq!(words(vec![crowded(2000, 21), fair()]), [Some("Conflicts: ")]);
        assert!(words(vec![crowded(2000, 20), crowded(999, 999)]).is_empty());
        for flops in [0, 979, 1021] {
            assert_eq!(words(vec![fair(), sample(64 << 10, &[sectors(2048), ("mma_FLOPs", flops)])]), [None]);
        }
    }

    #[test]
    fn a_reason_is_read_to_the_next_word() {
        let heading =
            "// f: y\n// Traffic: again and\n//   again: twice\n// Dynamic shared: 8 bytes\n// Idea: none";
        assert_eq!(reason(heading, "Traffic: ").as_deref(), Some("again and again: twice"));
        assert_eq!(reason(heading, "Idea: ").as_deref(), Some("none"));
        assert_eq!(reason(heading, "Conflicts: "), None);
    }
}
