//! The results as a page of Markdown and its pictures (SVG).

use crate::arms::{Arm, METHODS};
use crate::quantum::Preferences;
use crate::stats::{Crop, Interval, QUANTITIES, Quantity, difference, interpolate};
use asasr_engine::eval::RadialSpectra;
use asasr_engine::{Error, Result};
use plotters::coord::Shift;
use plotters::prelude::*;
use std::fmt::Write;
use std::path::Path;

/// What one method scored over all folds, with its folds beside each other.
pub struct Scored {
    /// As it is called.
    pub name: String,
    /// Crops of every fold, in the order of the folds.
    pub crops: Vec<Crop>,
    /// Crops of each fold.
    pub folds: Vec<usize>,
}

impl Scored {
    fn fold(&self, k: usize) -> &[Crop] {
        let first: usize = self.folds[..k].iter().sum();
        &self.crops[first..first + self.folds[k]]
    }
}

/// Everything that was measured.
pub struct Results {
    /// What there is without a preference stage: bicubic, the codec alone, base, SFT, SFT continued.
    pub plain: Vec<Scored>,
    /// Every arm.
    pub arms: Vec<(Arm, Scored)>,
    /// The β of the methods, rising.
    pub betas: Vec<f32>,
    /// Preferences after rounding: the arm, the strength of its adapter, and they.
    pub rounded: Vec<(String, f32, Preferences)>,
    /// What was used, line by line.
    pub setting: Vec<String>,
}

/// The name of the method that every arm starts from.
pub const REFERENCE: &str = "SFT";

impl Results {
    fn reference(&self) -> &Scored {
        self.plain.iter().find(|s| s.name == REFERENCE).expect("the reference is always scored")
    }

    fn arms_of<'a>(&'a self, method: &'a str) -> impl Iterator<Item = &'a (Arm, Scored)> {
        self.arms.iter().filter(move |(arm, _)| arm.method == method)
    }

    fn middle(&self) -> f32 {
        self.betas[self.betas.len() / 2]
    }

    /// The page.
    pub fn markdown(&self) -> String {
        let mut page: String = self.setting.iter().map(|line| format!("- {line}\n")).collect();
        page.push('\n');
        let mut table = |title: &str, text: &str, rows: String| {
            let _ = writeln!(page, "## {title}\n\n{}\n\n{rows}", text.trim());
        };
        let all: Vec<&Scored> = self.plain.iter().chain(self.arms.iter().map(|(_, s)| s)).collect();
        table(
            "Everything",
            "Means over the held-out crops; in brackets the standard deviation between folds, which differ in their \
             held-out photographs and in every random draw. Radial LSD and hf ratio are of a fold's set of crops.",
            rows(&all, with_folds),
        );
        let methods: Vec<&(Arm, Scored)> = METHODS.iter().flat_map(|(m, _)| self.arms_of(m)).collect();
        table(
            "Against the reference",
            "Arm − SFT on the same crops, with 95 % intervals of a bootstrap that draws whole photographs; **bold** where \
             the interval leaves out 0.",
            rows(&methods.iter().map(|(_, s)| s).collect::<Vec<_>>(), |q, s| {
                shown(q, difference(q, &s.crops, &self.reference().crops))
            }),
        );
        table("At equal steps and equal β", "Differences between methods, as above.", self.equal_budget());
        table(
            "At matched strength",
            "AS-DPO sums two losses, so that at equal β it pulls harder. Here S-DPO is taken where it has moved the hf ratio \
             as far from SFT's as the other method has, between its own values of β (fold by fold; mean and standard \
             deviation of the difference, and the folds in which a comparison was possible).",
            self.matched(QUANTITIES[5]),
        );
        table(
            "At matched fidelity",
            "The same where S-DPO has given up as much PSNR-Y as the other method has.",
            self.matched(QUANTITIES[0]),
        );
        let sweeps: Vec<&Scored> =
            self.arms_of("AS-DPO").filter(|(a, _)| a.beta == self.middle()).map(|(_, s)| s).collect();
        let swept =
            self.arms.iter().filter(|(a, _)| METHODS.iter().all(|(m, _)| *m != a.method)).map(|(_, s)| s);
        let base = sweeps[0];
        table(
            "One option at a time",
            &format!("Arm − AS-DPO at β = {} on the same crops, intervals as above.", self.middle()),
            rows(&swept.collect::<Vec<_>>(), |q, s| shown(q, difference(q, &s.crops, &base.crops))),
        );
        table(
            "What bf16 energies leave of a preference",
            "The preference of a pair is the winner's gap − the loser's, a gap being the policy's energy − the reference's. \
             The public reference rounds energies to bf16 before it subtracts. Adapters at a share of their trained strength \
             stand for the course of training.",
            self.quantum(),
        );
        page
    }

    fn equal_budget(&self) -> String {
        let pairs = [("S-DPO", "DPO"), ("AS-DPO", "S-DPO"), ("AS-DPO", "DPO"), ("AS-DPO (Riesz)", "S-DPO")];
        let mut out = header("");
        for (ours, theirs) in pairs {
            for beta in &self.betas {
                let at = |m: &str| {
                    let found = self.arms.iter().find(|(a, _)| a.method == m && a.beta == *beta);
                    &found.expect("every method has every β").1.crops
                };
                let cells = QUANTITIES.map(|q| shown(q, difference(q, at(ours), at(theirs))));
                let _ = writeln!(out, "| {ours} − {theirs}, β = {beta} | {} |", cells.join(" | "));
            }
        }
        out
    }

    /// Every method against S-DPO at an equal value of `by`.
    fn matched(&self, by: Quantity) -> String {
        let of = |q: Quantity, crops: &[Crop]| (q.of)(&crops.iter().collect::<Vec<_>>());
        let mut out = header("folds");
        for method in ["DPO", "AS-DPO", "AS-DPO (Riesz)"] {
            for (arm, scored) in self.arms_of(method) {
                let mut differences = vec![Vec::new(); QUANTITIES.len()];
                for fold in 0..scored.folds.len() {
                    let reached = of(by, scored.fold(fold));
                    for (q, found) in QUANTITIES.iter().zip(&mut differences) {
                        let start = [self.reference()].into_iter();
                        let curve: Vec<(f64, f64)> = start
                            .chain(self.arms_of("S-DPO").map(|(_, s)| s))
                            .map(|s| (of(by, s.fold(fold)), of(*q, s.fold(fold))))
                            .collect();
                        found.extend(interpolate(&curve, reached).map(|at| of(*q, scored.fold(fold)) - at));
                    }
                }
                let cells = QUANTITIES.iter().zip(&differences).map(|(q, d)| match mean_and_sd(d) {
                    Some((mean, sd)) => format!("{mean:+.0$} ({sd:.0$})", q.digits),
                    None => "–".to_owned(),
                });
                let (cells, n) = (cells.collect::<Vec<_>>().join(" | "), differences[0].len());
                let _ = writeln!(out, "| {} − S-DPO | {cells} | {n} |", arm.name());
            }
        }
        out
    }

    fn quantum(&self) -> String {
        let mut out =
            "| arm | strength | preferences that are 0 | of the wrong sign | relative error (rms) |\n"
                .to_owned();
        out += "|---|---|---|---|---|\n";
        for (arm, strength, p) in &self.rounded {
            let (lost, turned) = p.lost_and_turned();
            let (lost, turned, error) = (100.0 * lost, 100.0 * turned, p.relative_error());
            let _ = writeln!(out, "| {arm} | {strength} | {lost:.0} % | {turned:.0} % | {error:.2} |");
        }
        out
    }

    /// Writes the pictures into `dir`.
    pub fn pictures(&self, dir: &Path) -> Result<()> {
        let failed = |why: String| Error::format(dir, format!("cannot draw: {why}"));
        let draw = |name: &str, f: &dyn Fn(&Panel) -> Drawn| -> Result<()> {
            let path = dir.join(name);
            let area = SVGBackend::new(&path, (900, 560)).into_drawing_area();
            let outcome = area.fill(&WHITE).map_err(|e| e.to_string()).and_then(|()| f(&area));
            outcome.and_then(|()| area.present().map_err(|e| e.to_string())).map_err(failed)
        };
        draw("frontier.svg", &|area| self.frontier(area))?;
        draw("spectra.svg", &|area| self.spectra(area))
    }

    /// What radial LSD each method reaches at which PSNR.
    fn frontier(&self, area: &Panel) -> Drawn {
        let at = |s: &Scored| {
            let crops: Vec<&Crop> = s.crops.iter().collect();
            ((QUANTITIES[0].of)(&crops), (QUANTITIES[4].of)(&crops))
        };
        let mut lines: Vec<(String, Vec<(f64, f64)>)> = METHODS
            .iter()
            .map(|(m, _)| {
                let start = at(self.reference());
                (m.to_string(), [start].into_iter().chain(self.arms_of(m).rev_by_beta().map(at)).collect())
            })
            .collect();
        lines.extend(
            // The others are far from all of these.
            self.plain
                .iter()
                .filter(|s| s.name.starts_with(REFERENCE))
                .map(|s| (s.name.clone(), vec![at(s)])),
        );
        chart(
            area,
            "Fidelity and spectrum: each line starts at SFT, β falls along it",
            ("PSNR-Y, dB", "radial LSD, dB"),
            &lines,
        )
    }

    /// Mean radial power against the truth's.
    fn spectra(&self, area: &Panel) -> Drawn {
        let line = |name: &str, s: &Scored| {
            let mut sum = RadialSpectra::new(s.crops[0].spectra.side());
            s.crops.iter().for_each(|c| sum.add(&c.spectra));
            let side = sum.side() as f64;
            let (ours, truth) = sum.rings();
            let ratio = ours.iter().zip(truth).enumerate().skip(1);
            let points = ratio.map(|(k, (a, b))| (k as f64 / side, 10.0 * (a / b).log10())).collect();
            (name.to_owned(), points)
        };
        let shown = self.plain.iter().filter(|s| !["base", "SFT continued"].contains(&&*s.name));
        let mut lines: Vec<_> = shown.map(|s| line(&s.name, s)).collect();
        let arms = METHODS.iter().flat_map(|(m, _)| self.arms_of(m)).filter(|(a, _)| a.beta == self.middle());
        lines.extend(arms.map(|(arm, s)| line(&arm.name(), s)));
        lines.push(("truth".to_owned(), vec![(0.0, 0.0), (0.5, 0.0)]));
        chart(area, "Radial power against the truth's", ("cycles per pixel", "dB"), &lines)
    }
}

/// Arms from the weakest pull to the strongest.
trait ByBeta<'a> {
    fn rev_by_beta(self) -> std::vec::IntoIter<&'a Scored>;
}
impl<'a, I: Iterator<Item = &'a (Arm, Scored)>> ByBeta<'a> for I {
    fn rev_by_beta(self) -> std::vec::IntoIter<&'a Scored> {
        let mut arms: Vec<_> = self.collect();
        arms.sort_by(|a, b| b.0.beta.total_cmp(&a.0.beta));
        arms.into_iter().map(|(_, s)| s).collect::<Vec<_>>().into_iter()
    }
}

fn header(last: &str) -> String {
    let names = QUANTITIES.map(|q| q.name).join(" | ");
    let (last, rule) = if last.is_empty() { (String::new(), "") } else { (format!(" {last} |"), "---|") };
    format!("| | {names} |{last}\n|---{}|{rule}\n", "|---".repeat(QUANTITIES.len()))
}

fn rows(methods: &[&Scored], cell: impl Fn(Quantity, &Scored) -> String) -> String {
    let mut out = header("");
    for s in methods {
        let cells = QUANTITIES.map(|q| cell(q, s)).join(" | ");
        let _ = writeln!(out, "| {} | {cells} |", s.name);
    }
    out
}

fn with_folds(q: Quantity, s: &Scored) -> String {
    let whole = interval_free(q, &s.crops);
    let each: Vec<f64> = (0..s.folds.len()).map(|k| interval_free(q, s.fold(k))).collect();
    match mean_and_sd(&each) {
        _ if whole.is_nan() => "–".to_owned(),
        Some((_, sd)) => format!("{whole:.0$} ({sd:.0$})", q.digits),
        None => format!("{whole:.0$}", q.digits),
    }
}

fn interval_free(q: Quantity, crops: &[Crop]) -> f64 {
    (q.of)(&crops.iter().collect::<Vec<_>>())
}

fn shown(q: Quantity, i: Interval) -> String {
    if i.value.is_nan() {
        return "–".to_owned();
    }
    let bold = if i.is_clear() { "**" } else { "" };
    format!("{bold}{:+.3$}{bold} ({:+.3$} … {:+.3$})", i.value, i.low, i.high, q.digits)
}

fn mean_and_sd(values: &[f64]) -> Option<(f64, f64)> {
    let n = values.len() as f64;
    if values.len() < 2 || values.iter().any(|v| v.is_nan()) {
        return None;
    }
    let mean = values.iter().sum::<f64>() / n;
    Some((mean, (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt()))
}

type Panel<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), String>;

/// Colours that are told apart with any kind of sight (Okabe and Ito's).
const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(90, 90, 90),
    RGBColor(86, 180, 233),
    RGBColor(150, 110, 0),
    RGBColor(0, 0, 0),
];

/// Lines with points, or points alone where there is one.
fn chart(area: &Panel, title: &str, (x, y): (&str, &str), lines: &[(String, Vec<(f64, f64)>)]) -> Drawn {
    let range = |of: fn(&(f64, f64)) -> f64| {
        let all = lines.iter().flat_map(|(_, points)| points.iter().map(of)).filter(|v| v.is_finite());
        let (low, high) = all.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
        let pad = 0.04 * (high - low).max(1e-9);
        low - pad..high + pad
    };
    let said = |e: &dyn std::fmt::Display| e.to_string();
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 20))
        .margin(14)
        .x_label_area_size(46)
        .y_label_area_size(60)
        .build_cartesian_2d(range(|p| p.0), range(|p| p.1))
        .map_err(|e| said(&e))?;
    let mesh = chart
        .configure_mesh()
        .x_desc(x)
        .y_desc(y)
        .label_style(("sans-serif", 15))
        .light_line_style(WHITE)
        .draw();
    mesh.map_err(|e| said(&e))?;
    for (i, (name, points)) in lines.iter().enumerate() {
        let colour = COLOURS[i % COLOURS.len()];
        let style = ShapeStyle::from(&colour).stroke_width(2);
        let points: Vec<(f64, f64)> = points.iter().copied().filter(|p| p.1.is_finite()).collect();
        let line = chart.draw_series(LineSeries::new(points.iter().copied(), style)).map_err(|e| said(&e))?;
        line.label(name).legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
        if points.len() < 8 {
            let dots = points.iter().map(|&p| Circle::new(p, 4, colour.filled()));
            chart.draw_series(dots).map_err(|e| said(&e))?;
        }
    }
    let legend = chart
        .configure_series_labels()
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .label_font(("sans-serif", 14))
        .draw();
    legend.map_err(|e| said(&e))
}
