//! The page: its sections in order, one file with nothing outside it.

use super::gather::Run;
use super::html::{CHARTS, STYLE, document, esc, section};
use super::{figures, tables};
use crate::Result;
use crate::train::Config;
use std::path::Path;

/// The whole page of one run, or of two side by side, each with the label that tells it from the other.
pub fn page(runs: &[(String, Run)]) -> Result<String> {
    let name = runs.iter().map(|(_, run)| esc(&run.name)).collect::<Vec<_>>().join(" and ");
    let mut out = format!("<h1>{name}</h1>\n");
    for (label, run) in runs {
        let class = if run.summary.is_some() { "verdict" } else { "verdict unfinished" };
        let who = if label.is_empty() { String::new() } else { format!("<b>{}</b>: ", esc(label)) };
        out += &format!("<p class=\"{class}\">{who}{}</p>\n", esc(&run.verdict()));
    }
    let absent = |what: &str| format!("<p class=\"note\">There is no {what}.</p>\n");
    let held_out =
        tables::metrics(runs).unwrap_or_else(|| absent("evaluation: a run makes it when it finishes"));
    out += &section("Held-out crops", &held_out);
    if let Some(body) = tables::comparisons(runs)? {
        out += &section("Beyond chance", &body);
    }
    if let Some(body) = figures::samples(runs) {
        out += &section("Samples", &body);
    }
    out += &section("Warnings", &tables::warnings(runs));
    let stages = tables::stages(runs).unwrap_or_else(|| absent("step in the log"));
    out += &section("Stages", &stages);
    if let Some(body) = figures::spectra(runs) {
        out += &section("Spectra", &body);
    }
    out += &section("Curves", &figures::curves(runs));
    if let Some(body) = figures::validations(runs) {
        out += &section("Validation pictures", &body);
    }
    out += &section("Options", &options(runs));
    out += &section("Environment", &tables::environment(runs).unwrap_or_else(|| absent("environment.json")));
    Ok(document(&name, &out, &[STYLE], &[CHARTS, include_str!("dialog.js")]))
}

/// What the runs differ in, and each one's options in full, folded away.
fn options(runs: &[(String, Run)]) -> String {
    let mut out = String::new();
    if runs.len() > 1 {
        out += &tables::differing_options(runs)
            .unwrap_or_else(|| "<p>Both runs have the same options.</p>\n".into());
    }
    for (label, run) in runs {
        let summary =
            if label.is_empty() { "all options".into() } else { format!("all options of {}", esc(label)) };
        let read = run.config.as_deref().map(|text| Config::from_toml(Path::new("config.toml"), text));
        if let Some(Ok(config)) = read {
            let (preset, overrides) = (esc(&config.run.preset), esc(&config.overrides().join(", ")));
            let what = if overrides.is_empty() { "as it stands" } else { &overrides };
            out += &format!("<p>Preset {preset}: {what}</p>\n");
        }
        let config = run.config.as_deref().map_or("there is no config.toml".into(), esc);
        out += &format!("<details><summary>{summary}</summary><pre>{config}</pre></details>\n");
    }
    out
}
