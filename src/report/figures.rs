//! What is drawn of a run: curves over its steps, radial spectra, pictures.

use super::chart::{Chart, STYLES, Scale, Series, smooth};
use super::gather::{Curve, Picture, Run, Stage};
use super::html::esc;
use crate::eval::RadialSpectra;
use crate::train::read::picture;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::collections::BTreeMap;

/// Curves shorter than this are drawn as they are.
const WORTH_SMOOTHING: usize = 50;
/// What a run sets and does not measure: drawn as it is.
const SET: [&str; 2] = ["lr", "beta"];
/// Validation pictures shown of each stage; of more, as many are taken at equal distances.
const PICTURES: usize = 12;
/// The style of what all is compared with: ink, not a colour.
pub const INK: usize = STYLES - 1;

/// A chart over the steps of a stage: its title, the fields it shows with their names, its scale and level.
struct Plot {
    title: &'static str,
    fields: &'static [(&'static str, &'static str)],
    scale: Scale,
    level: Option<f64>,
}

const fn plot(
    title: &'static str,
    fields: &'static [(&'static str, &'static str)],
    level: Option<f64>,
) -> Plot {
    Plot { title, fields, scale: Scale::Linear, level }
}

/// What is drawn of `log.jsonl`; a chart whose fields a stage does not log is left out.
const TRAINING: [Plot; 10] = [
    plot("Loss", &[("loss", "loss")], None),
    plot("Learning rate", &[("lr", "learning rate")], None),
    Plot {
        title: "Gradient norm",
        fields: &[("grad_norm", "gradient norm")],
        scale: Scale::Log,
        level: None,
    },
    plot("Loss by kind of loser", &[("loss_data", "dataset"), ("loss_adv", "adversarial")], None),
    plot("Margin (above 0 the winner is preferred)", &[("margin", "margin")], Some(0.0)),
    plot("Coefficient of the gradient", &[("coefficient", "coefficient")], None),
    plot(
        "Energy gaps to the reference (below 0 is better than it)",
        &[("gap_winner", "winner"), ("gap_loser", "dataset loser"), ("gap_adv", "adversarial loser")],
        Some(0.0),
    ),
    plot("Implicit accuracy (½ is chance)", &[("implicit_accuracy", "accuracy")], Some(0.5)),
    plot("β", &[("beta", "β")], None),
    plot("Riesz cosine", &[("riesz_cosine", "cosine")], None),
];

/// What is drawn of `validation.jsonl`.
const VALIDATION: [Plot; 4] = [
    plot("Validation: loss", &[("loss", "loss")], None),
    plot("Validation: high-frequency ratio (1 is right)", &[("hf_ratio", "hf ratio")], Some(1.0)),
    plot("Validation: PSNR-Y, dB", &[("psnr_y", "PSNR-Y")], None),
    plot("Validation: radial LSD, dB", &[("rlsd_db", "radial LSD")], None),
];

/// `name`, and of which run it is where there are two.
fn of_run(name: &str, label: &str) -> String {
    if label.is_empty() { name.to_owned() } else { format!("{name} · {label}") }
}

/// The charts of every stage that any of the runs has.
pub fn curves(runs: &[(String, Run)]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for stage in runs.iter().flat_map(|(_, run)| &run.stages) {
        if !names.contains(&stage.name.as_str()) {
            names.push(&stage.name);
        }
    }
    let mut out = String::new();
    for name in names {
        let stages: Vec<(&str, &Stage)> = runs
            .iter()
            .filter_map(|(label, run)| Some((label.as_str(), run.stages.iter().find(|s| s.name == name)?)))
            .collect();
        out += &format!("<h3>{}</h3>\n<div class=\"charts\">\n", esc(name));
        TRAINING.iter().filter_map(|p| over_steps(p, &stages, |s| &s.training)).for_each(|f| out += &f);
        VALIDATION.iter().filter_map(|p| over_steps(p, &stages, |s| &s.validation)).for_each(|f| out += &f);
        out += "</div>\n";
    }
    out
}

type Curves = BTreeMap<String, Curve>;

fn over_steps(plot: &Plot, stages: &[(&str, &Stage)], of: fn(&Stage) -> &Curves) -> Option<String> {
    let mut series = Vec::new();
    for (style, ((label, stage), (field, name))) in
        stages.iter().flat_map(|s| plot.fields.iter().map(move |f| (s, f))).enumerate()
    {
        let Some(points) = of(stage).get(*field) else { continue };
        let name = of_run(name, label);
        if points.len() < WORTH_SMOOTHING || SET.contains(field) {
            series.push(Series { name, style, points: points.clone(), raw: false });
        } else {
            series.push(Series {
                name: format!("{name}, each step"),
                style,
                points: points.clone(),
                raw: true,
            });
            series.push(Series { name, style, points: smooth(points), raw: false });
        }
    }
    let scales = (Scale::Linear, plot.scale);
    Chart { title: plot.title.into(), abscissa: "step", scales, level: plot.level, series }.figure()
}

/// Radial power spectra of the truth and of the methods, log-log; nothing without an evaluation.
pub fn spectra(runs: &[(String, Run)]) -> Option<String> {
    let mut series = Vec::new();
    for (r, (label, run)) in runs.iter().enumerate() {
        let Some(evaluation) = &run.evaluation else { continue };
        for (m, method) in ["bicubic", "sft", "asdpo"].into_iter().enumerate() {
            let Some(scores) = evaluation.method(method) else { continue };
            let sum = scores.spectrum();
            let points = |rings: &[f64]| frequencies(&sum, rings, scores.len());
            // Truth and bicubic are the first run's: of the same crops they are the same.
            if series.is_empty() {
                let name = "original".to_owned();
                series.push(Series { name, style: INK, points: points(sum.rings().1), raw: false });
            } else if method == "bicubic" {
                continue;
            }
            let name = if method == "bicubic" { method.to_owned() } else { of_run(method, label) };
            series.push(Series { name, style: m + 2 * r, points: points(sum.rings().0), raw: false });
        }
    }
    let title = "Power by radial frequency, mean of the crops".to_owned();
    let scales = (Scale::Log, Scale::Log);
    let figure = Chart { title, abscissa: "cycles per pixel", scales, level: None, series }.figure()?;
    let note = "<p class=\"note\">Power of all frequencies in a ring; the last ring holds the corners of the spectrum besides. \
                A curve below the original is blur, above it noise.</p>\n";
    Some(format!("<div class=\"charts wide\">{figure}</div>{note}"))
}

/// Rings 1… as frequency and mean power.
pub fn frequencies(spectra: &RadialSpectra, rings: &[f64], crops: usize) -> Curve {
    let point = |(k, power): (usize, &f64)| (k as f64 / spectra.side() as f64, power / crops as f64);
    rings.iter().enumerate().skip(1).map(point).collect()
}

/// The final comparison pictures.
pub fn samples(runs: &[(String, Run)]) -> Option<String> {
    let shown =
        runs.iter().filter_map(|(label, run)| Some(image(run.samples.as_ref()?, &of_run("samples", label))));
    let all: String = shown.collect();
    (!all.is_empty()).then(|| format!("<div class=\"pictures large\">{all}</div>\n"))
}

/// The validations' pictures, a row per stage and run, in the order of time.
pub fn validations(runs: &[(String, Run)]) -> Option<String> {
    let mut out = String::new();
    for (label, run) in runs {
        for stage in &run.stages {
            let kept = evenly(stage.pictures.len(), PICTURES);
            let figures: String = kept
                .iter()
                .filter_map(|&i| {
                    let (step, name) = &stage.pictures[i];
                    let (png, size) = picture(&run.folder, name)?;
                    Some(image(&Picture { png, size }, &format!("{}, step {step}", stage.name)))
                })
                .collect();
            if figures.is_empty() {
                continue;
            }
            out += &format!("<h3>{}</h3>\n", esc(&of_run(&stage.name, label)));
            let (some, all) = (kept.len(), stage.pictures.len());
            if some < all {
                out += &format!("<p class=\"note\">{some} of {all} pictures.</p>\n");
            }
            out += &format!("<div class=\"pictures\">{figures}</div>\n");
        }
    }
    (!out.is_empty()).then_some(out)
}

/// At most `most` (at least 2) of `0..n`, the first and the last among them.
fn evenly(n: usize, most: usize) -> Vec<usize> {
    if n <= most { (0..n).collect() } else { (0..most).map(|i| i * (n - 1) / (most - 1)).collect() }
}

fn image(picture: &Picture, caption: &str) -> String {
    let (caption, (h, w)) = (esc(caption), picture.size);
    let data = STANDARD.encode(&picture.png);
    format!(
        "<figure><button type=\"button\" class=\"zoom\" title=\"enlarge\"><img width=\"{w}\" height=\"{h}\" alt=\"{caption}\" \
         src=\"data:image/png;base64,{data}\"></button><figcaption>{caption}</figcaption></figure>\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_are_taken_at_equal_distances() {
        assert_eq!(evenly(100, 12), [0, 9, 18, 27, 36, 45, 54, 63, 72, 81, 90, 99]);
        assert_eq!((evenly(0, 12), evenly(3, 12)), (vec![], vec![0, 1, 2]));
    }
}
