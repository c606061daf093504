//! What methods score on folders of pictures, as one page: means, spectra, the worst pictures side by side, every figure.

mod pictures;

use super::chart::{Chart, STYLES, Scale, Series};
use super::figures::{INK, frequencies};
use super::html::{CHARTS, STYLE, document, esc, section, table};
use crate::Result;
use crate::eval::results::{Better, MEASURES};
use crate::eval::{Convention, Folders, Results};
use crate::files::write_atomic;
use std::path::Path;

/// Writes the page of `results` to the file `to`, with the `worst` worst pictures of each method, which are read again.
pub fn write(results: &Results, folders: &Folders, worst: usize, to: &Path) -> Result<()> {
    let mut body = format!("<h1>Evaluation on {}</h1>\n", esc(&folders.folder().display().to_string()));
    body += &format!("<p class=\"verdict\">{}</p>\n", esc(&verdict(results)));
    body += &section("Means", &means(results));
    body += &section("Spectra", &spectra(results));
    if worst > 0 {
        body += &section("Worst cases", &pictures::cases(results, folders, worst)?);
    }
    body += &section("Every picture", &every_picture(results));
    let scripts = [CHARTS, include_str!("panes.js"), include_str!("sort.js")];
    let page = document("Evaluation", &body, &[STYLE, include_str!("eval.css")], &scripts);
    write_atomic(to, page.as_bytes())
}

/// Which measures there are: not those of networks that were not given.
fn measured(results: &Results) -> Vec<usize> {
    (0..MEASURES.len()).filter(|&k| results.methods.iter().any(|m| m.mean.values()[k].is_some())).collect()
}

/// The head of a column, which breaks at blanks alone.
fn head(k: usize) -> String {
    MEASURES[k].head().replace('-', "\u{2011}")
}

/// A figure of measure `k` as a cell says it.
fn figure(k: usize, value: Option<f64>) -> String {
    value.map_or("–".to_owned(), |v| MEASURES[k].format(v))
}

/// Who is best in what, in one breath.
fn verdict(results: &Results) -> String {
    let n = results.names.len();
    let pictures = if n == 1 { "1 picture".to_owned() } else { format!("{n} pictures") };
    let best_in = |m: usize| {
        let titles = measured(results).into_iter().filter(|&k| results.best(k) == Some(m));
        titles.map(|k| MEASURES[k].title).collect::<Vec<_>>().join(", ")
    };
    let won: Vec<String> = (0..results.methods.len())
        .map(|m| (m, best_in(m)))
        .filter(|(_, titles)| !titles.is_empty())
        .map(|(m, titles)| format!("{} is best in {titles}", results.methods[m].name))
        .collect();
    if won.is_empty() { format!("{pictures}.") } else { format!("{pictures}: {}.", won.join("; ")) }
}

fn means(results: &Results) -> String {
    let shown = measured(results);
    let titles: Vec<String> = shown.iter().map(|&k| head(k)).collect();
    let head: Vec<&str> = [""].into_iter().chain(titles.iter().map(String::as_str)).collect();
    let row = |(m, method): (usize, &crate::eval::results::MethodResults)| {
        let cell = |&k: &usize| {
            let text = figure(k, method.mean.values()[k]);
            if results.best(k) == Some(m) { format!("<b class=\"best\">{text}</b>") } else { text }
        };
        std::iter::once(esc(&method.name)).chain(shown.iter().map(cell)).collect()
    };
    let rows: Vec<Vec<String>> = results.methods.iter().enumerate().map(row).collect();
    let tool = match results.convention {
        Convention::Pyiqa => "pyiqa",
        Convention::Basicsr => "basicsr",
    };
    let mut out = table("", &head, &rows);
    out += &format!(
        "<p class=\"note\">Means over the pictures; radial LSD and hf ratio are of the spectra summed over the set. PSNR and SSIM \
         on Y as {tool} computes them, no border cut off. Two sharp pictures with the right power at every frequency but \
         other phases are some 7.9 dB of LSD apart: read it beside the two on its right.</p>\n"
    );
    for method in results.methods.iter().filter(|m| m.resized > 0) {
        out += &format!(
            "<p class=\"note\"><b>{} of {} pictures of {} are of another size than the truth</b> and were resized to it \
             (Lanczos), as pyiqa does: its figures are not only its own.</p>\n",
            method.resized,
            results.names.len(),
            esc(&method.name)
        );
    }
    out
}

/// Radial power spectra of the truth and of the methods, and how far each method's is from the truth's.
fn spectra(results: &Results) -> String {
    let n = results.names.len();
    let (mut power, mut apart) = (Vec::new(), Vec::new());
    for (m, method) in results.methods.iter().enumerate() {
        let (style, name) = (m % (STYLES - 1), method.name.clone());
        let (restored, truth) = method.spectra.rings();
        if m == 0 {
            let points = frequencies(&method.spectra, truth, n);
            power.push(Series { name: "original".to_owned(), style: INK, points, raw: false });
        }
        let points = frequencies(&method.spectra, restored, n);
        let decibels = |(&(f, p), q): (&(f64, f64), f64)| (f, 10.0 * (p / q).log10());
        let against = frequencies(&method.spectra, truth, n).into_iter().map(|p| p.1);
        let difference = points.iter().zip(against).map(decibels).collect();
        apart.push(Series { name: name.clone(), style, points: difference, raw: false });
        power.push(Series { name, style, points, raw: false });
    }
    let chart = |title: &str, scale, level, series| {
        let (title, scales) = (title.to_owned(), (Scale::Log, scale));
        Chart { title, abscissa: "cycles per pixel", scales, level, series }.figure().unwrap_or_default()
    };
    format!(
        "<div class=\"charts halves\">{}{}</div><p class=\"note\">Power of all frequencies in a ring; the last ring holds the \
         corners of the spectrum besides. Below the original is blur, above it noise.</p>\n",
        chart("Power by radial frequency, mean of the pictures", Scale::Log, None, power),
        chart("Power over the original's, dB", Scale::Linear, Some(0.0), apart)
    )
}

/// Every figure of every picture, the worst first; a script sorts it by any column.
fn every_picture(results: &Results) -> String {
    let (shown, judge) = (measured(results), results.judge());
    let several = results.methods.len() > 1;
    let mut out = String::new();
    if several {
        out += "<p class=\"choice\"><label>method <select><option value=\"\">all</option>";
        for method in &results.methods {
            out += &format!("<option>{}</option>", esc(&method.name));
        }
        out += "</select></label></p>\n";
    }
    out += "<div class=\"scroll tall\" tabindex=\"0\"><table class=\"sortable\"><thead><tr><th scope=\"col\">picture</th>";
    out += if several { "<th scope=\"col\">method</th>" } else { "" };
    for &k in &shown {
        let sort = if k == judge { " aria-sort=\"descending\"" } else { "" };
        let way = match MEASURES[k].better {
            Better::More => "more",
            Better::Less => "less",
            Better::One => "one",
        };
        out += &format!("<th scope=\"col\" data-better=\"{way}\"{sort}>{}</th>", head(k));
    }
    out += "</tr></thead><tbody>\n";
    let badness = |&(m, i): &(usize, usize)| {
        let value = results.methods[m].images[i].values()[judge];
        value.map_or(f64::NEG_INFINITY, |v| MEASURES[judge].badness(v))
    };
    let mut rows: Vec<(usize, usize)> =
        (0..results.names.len()).flat_map(|i| (0..results.methods.len()).map(move |m| (m, i))).collect();
    rows.sort_by(|a, b| badness(b).total_cmp(&badness(a)));
    for (m, i) in rows {
        let method = &results.methods[m];
        out += &format!("<tr><th scope=\"row\">{}</th>", esc(&results.names[i]));
        if several {
            out += &format!("<td>{}</td>", esc(&method.name));
        }
        let values = method.images[i].values();
        shown.iter().for_each(|&k| out += &format!("<td>{}</td>", figure(k, values[k])));
        out += "</tr>\n";
    }
    out + "</tbody></table></div>\n"
}
