//! What is said of a run in words and numbers.

use super::gather::{Run, Stage};
use super::html::{duration, esc, figures, number, table};
use crate::Result;
use crate::eval::{Difference, Evaluation, Metrics, Verdict, bootstrap::RESAMPLES, compare};

/// Below so many crops a percentile interval is known to be too narrow.
const FEW: usize = 20;
/// Warnings shown of a run; the number of the others is said.
const WARNINGS: usize = 50;

/// The label of a run in its own cell, where there are two.
fn with_label(name: &str, label: &str) -> String {
    if label.is_empty() { esc(name) } else { format!("{} · {}", esc(name), esc(label)) }
}

/// The held-out table: what alignment is for on the left, what it costs on the right.
pub fn metrics(runs: &[(String, Run)]) -> Option<String> {
    let all: Vec<(&str, Vec<(String, Metrics)>)> =
        runs.iter().map(|(label, run)| (label.as_str(), run.metrics())).collect();
    let mut methods: Vec<&str> = Vec::new();
    for (name, _) in all.iter().flat_map(|(_, rows)| rows) {
        if !methods.contains(&name.as_str()) {
            methods.push(name);
        }
    }
    let mut rows = Vec::new();
    for method in &methods {
        for (label, metrics) in &all {
            let Some((name, m)) = metrics.iter().find(|(name, _)| name == method) else { continue };
            rows.push(vec![
                with_label(name, label),
                format!("{:.2}", m.rlsd_db),
                format!("{:.3}", m.hf_ratio),
                format!("{:.2}", m.lsd_db),
                format!("{:.2}", m.psnr_y),
                format!("{:.4}", m.ssim_y),
            ]);
        }
    }
    if rows.is_empty() {
        return None;
    }
    let head = [
        "",
        "<small>gain</small><br>radial LSD, dB ↓",
        "<small>gain</small><br>hf ratio → 1",
        "<small>gain</small><br>LSD, dB ↓",
        "<small>cost</small><br>PSNR‑Y, dB ↑",
        "<small>cost</small><br>SSIM‑Y ↑",
    ];
    let mut out = table("", &head, &rows);
    for (label, metrics) in &all {
        let of = |name: &str| metrics.iter().find(|(n, _)| n == name).map(|(_, m)| m);
        if let (Some(before), Some(after)) = (of("sft"), of("asdpo")) {
            let who = if label.is_empty() { String::new() } else { format!("{}, ", esc(label)) };
            out += &format!("<p>{who}sft to asdpo: {}.</p>\n", in_words(before, after));
        }
    }
    let (first, rest) = runs.split_first()?;
    let crops = |run: &Run| run.evaluation.as_ref().map(|e| e.crops.clone());
    if rest.iter().any(|(_, run)| crops(run) != crops(&first.1)) {
        out += "<p class=\"note\">The runs were not, or not knowingly, evaluated on the same crops.</p>\n";
    }
    Some(out)
}

/// Gain and cost of the alignment in one breath.
fn in_words(before: &Metrics, after: &Metrics) -> String {
    format!(
        "radial LSD goes from {:.2} to {:.2} dB and the hf ratio from {:.3} to {:.3}; what it costs: PSNR-Y goes from \
         {:.2} to {:.2} dB, SSIM-Y from {:.4} to {:.4}",
        before.rlsd_db,
        after.rlsd_db,
        before.hf_ratio,
        after.hf_ratio,
        before.psnr_y,
        after.psnr_y,
        before.ssim_y,
        after.ssim_y
    )
}

/// What each stage changed beyond the luck of the crops, and what differs between two runs on the same ones.
pub fn comparisons(runs: &[(String, Run)]) -> Result<Option<String>> {
    let mut out = String::new();
    let mut crops = usize::MAX;
    if let [(a_label, a), (b_label, b)] = runs
        && let (Some(a), Some(b)) = (&a.evaluation, &b.evaluation)
    {
        for method in ["base", "sft", "asdpo"] {
            if let Some(found) = between(a, b, method)? {
                let title = format!("{method}: {} − {}", esc(b_label), esc(a_label));
                out += &differences(&title, &found);
            }
        }
    }
    for (label, run) in runs {
        let Some(evaluation) = &run.evaluation else { continue };
        crops = crops.min(evaluation.crops.len());
        for c in evaluation.comparisons()? {
            let title = with_label(&format!("{} − {}", c.ours, c.theirs), label);
            out += &differences(&title, &c.differences);
        }
    }
    if out.is_empty() {
        return Ok(None);
    }
    out = format!("<div class=\"tables\">{out}</div>");
    out += &format!(
        "<p class=\"note\">95 % percentile intervals of {RESAMPLES} paired resamples of the {crops} crops. Better or \
         worse is said only where the interval does not hold 0.{}</p>\n",
        if crops < FEW {
            " With so few crops the intervals are too narrow: more make a firmer word."
        } else {
            ""
        }
    );
    Ok(Some(out))
}

/// `method` of `b` against that of `a`, where both were scored on the same crops.
fn between(a: &Evaluation, b: &Evaluation, method: &str) -> Result<Option<Vec<Difference>>> {
    let (Some(theirs), Some(ours)) = (a.method(method), b.method(method)) else { return Ok(None) };
    let near = |(x, y): (&f64, &f64)| (x - y).abs() <= 1e-6 * x.abs().max(y.abs());
    let same = a.crops == b.crops
        && ours.spectra.iter().zip(&theirs.spectra).all(|(o, t)| {
            let (o, t) = (o.rings().1, t.rings().1);
            o.len() == t.len() && o.iter().zip(t).all(near)
        });
    if same { compare(ours, theirs).map(Some) } else { Ok(None) }
}

fn differences(title: &str, differences: &[Difference]) -> String {
    let row = |d: &Difference| {
        let class = match d.verdict {
            Verdict::Better => "better",
            Verdict::Worse => "worse",
            Verdict::NotDistinguishable => "same",
        };
        let verdict = format!("<span class=\"{class}\">{}</span>", d.verdict);
        vec![esc(&d.metric), signed(d.value), verdict, format!("{} … {}", signed(d.low), signed(d.high))]
    };
    let rows: Vec<_> = differences.iter().map(row).collect();
    table("", &[title, "difference", "verdict", "95 % interval"], &rows)
}

/// A difference: its sign and three figures.
fn signed(value: f64) -> String {
    let text = figures(value.abs(), 3);
    if value < 0.0 { format!("−{text}") } else { format!("+{text}") }
}

/// What was warned of, or "none".
pub fn warnings(runs: &[(String, Run)]) -> String {
    let mut out = String::new();
    for (label, run) in runs {
        if !label.is_empty() {
            out += &format!("<h3>{}</h3>\n", esc(label));
        }
        if run.warnings.is_empty() {
            out += "<p>none</p>\n";
            continue;
        }
        let shown: String =
            run.warnings.iter().take(WARNINGS).map(|w| format!("<li>{}</li>\n", esc(w))).collect();
        out += &format!("<ul class=\"warnings\">\n{shown}</ul>\n");
        if run.warnings.len() > WARNINGS {
            out += &format!("<p>and {} more</p>\n", run.warnings.len() - WARNINGS);
        }
    }
    out
}

/// The stages, a row each.
pub fn stages(runs: &[(String, Run)]) -> Option<String> {
    let mut rows = Vec::new();
    for (label, run) in runs {
        for stage in run.stages.iter().filter(|s| s.steps > 0) {
            rows.push(stage_row(stage, label));
        }
    }
    let head = ["stage", "steps", "time", "samples/s", "first loss", "last loss"];
    (!rows.is_empty()).then(|| table("", &head, &rows))
}

fn stage_row(stage: &Stage, label: &str) -> Vec<String> {
    let values = |field: &str| stage.training.get(field).map_or(&[][..], Vec::as_slice);
    let loss = |point: Option<&(f64, f64)>| point.map_or("–".into(), |p| number(p.1));
    let rate = values("samples_per_s");
    let mean = rate.iter().map(|p| p.1).sum::<f64>() / rate.len() as f64;
    vec![
        with_label(&stage.name, label),
        stage.steps.to_string(),
        if stage.seconds > 0.0 { duration(stage.seconds) } else { "–".into() },
        if rate.is_empty() { "–".into() } else { number(mean) },
        loss(values("loss").first()),
        loss(values("loss").last()),
    ]
}

/// A table of what the runs' lists of names and values hold, a column per run; `only` picks the rows.
fn side_by_side(
    runs: &[(String, Run)],
    of: fn(&Run) -> Vec<(String, String)>,
    only: fn(&[Option<&String>]) -> bool,
) -> Option<String> {
    let all: Vec<Vec<(String, String)>> = runs.iter().map(|(_, run)| of(run)).collect();
    let mut keys: Vec<&String> = Vec::new();
    for (key, _) in all.iter().flatten() {
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    let mut rows = Vec::new();
    for key in keys {
        let values: Vec<Option<&String>> =
            all.iter().map(|list| list.iter().find(|(k, _)| k == key).map(|(_, v)| v)).collect();
        if only(&values) {
            let cells = values.iter().map(|v| v.map_or("–".into(), |v| esc(v)));
            rows.push(std::iter::once(esc(key)).chain(cells).collect());
        }
    }
    let labels: Vec<String> = runs.iter().map(|(label, _)| esc(label)).collect();
    let head: Vec<&str> = std::iter::once("").chain(labels.iter().map(String::as_str)).collect();
    (!rows.is_empty()).then(|| table("values", &head, &rows))
}

/// The options two runs differ in.
pub fn differing_options(runs: &[(String, Run)]) -> Option<String> {
    side_by_side(runs, Run::options, |values| values.iter().any(|v| *v != values[0]))
}

/// What the runs ran on.
pub fn environment(runs: &[(String, Run)]) -> Option<String> {
    side_by_side(runs, |run| run.environment.clone(), |_| true)
}
