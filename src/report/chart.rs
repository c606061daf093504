//! Line charts as SVG: they scale to the width there is, take their colours from the page's style, and are drawn without
//! any script. What a script needs to read values back (the ranges of the axes) stands in `data-` attributes.

use super::gather::Curve;
use super::html::esc;
use std::fmt::Write;

/// Points that a curve is thinned to at most.
pub const MOST: usize = 1000;
/// Colours and dash patterns that the page's style has for series.
pub const STYLES: usize = 7;

const WIDTH: f64 = 360.0;
const HEIGHT: f64 = 216.0;
/// Room for the axes' labels: left, right, top, bottom.
const MARGIN: [f64; 4] = [46.0, 10.0, 8.0, 36.0];

/// One line of a chart.
pub struct Series {
    /// What it is called in the legend and beside the pointer.
    pub name: String,
    /// Which colour and dashes, 0…[`STYLES`]; by custom of the page.
    pub style: usize,
    /// Its points, left to right.
    pub points: Curve,
    /// Drawn thin, without dashes, and not in the legend: the raw values behind a smoothed curve.
    pub raw: bool,
}

/// Which scale an axis has.
#[derive(Clone, Copy, PartialEq)]
pub enum Scale {
    /// Equal differences, equal lengths.
    Linear,
    /// Equal ratios, equal lengths; points that are not above 0 are left out.
    Log,
}

/// A chart of some series over one abscissa.
pub struct Chart {
    /// Above the chart.
    pub title: String,
    /// Below it.
    pub abscissa: &'static str,
    /// Scales of abscissa and ordinate.
    pub scales: (Scale, Scale),
    /// A level to compare with, drawn across.
    pub level: Option<f64>,
    /// The lines.
    pub series: Vec<Series>,
}

/// One axis: its range, in the scale's own measure, and where that lies on the picture.
struct Axis {
    scale: Scale,
    range: (f64, f64),
    place: (f64, f64),
    /// Least distance of two marks: 1 where values between whole numbers mean nothing.
    least: f64,
}

impl Axis {
    fn new(scale: Scale, values: impl Iterator<Item = f64>, pad: f64, place: (f64, f64)) -> Option<Self> {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for v in values.map(|v| measure(scale, v)).filter(|v| v.is_finite()) {
            (low, high) = (low.min(v), high.max(v));
        }
        if low > high {
            return None;
        }
        // A flat curve gets some room, or rounding noise would fill the chart.
        let least = if scale == Scale::Log { 0.1 } else { 1e-6 * low.abs().max(high.abs()) };
        let spread = if high - low > least { pad * (high - low) } else { (0.1 * high.abs()).max(1e-9) };
        Some(Self { scale, range: (low - spread * f64::from(pad > 0.0), high + spread), place, least: 0.0 })
    }

    fn at(&self, value: f64) -> f64 {
        let ((low, high), (from, to)) = (self.range, self.place);
        from + (measure(self.scale, value) - low) / (high - low) * (to - from)
    }

    /// Values to mark, with their labels.
    fn ticks(&self) -> Vec<(f64, String)> {
        let (low, high) = self.range;
        if self.scale == Scale::Log {
            let inside = |v: &f64| (low..=high).contains(&v.log10());
            let decades = low.floor() as i32..=high.ceil() as i32;
            let of = |steps: &[f64]| -> Vec<f64> {
                let all = decades.clone().flat_map(|d| steps.iter().map(move |s| s * 10f64.powi(d)));
                all.filter(inside).collect()
            };
            let whole = of(&[1.0]);
            let every = whole.len().div_ceil(5).max(1);
            let marks = if whole.len() > 2 { whole } else { of(&[1.0, 2.0, 5.0]) };
            if marks.len() > 1 {
                return marks.into_iter().step_by(every).map(|v| (v, label(v, v))).collect();
            }
            let (low, high) = (10f64.powf(low), 10f64.powf(high));
            return linear_ticks(low, high, self.least);
        }
        linear_ticks(low, high, self.least)
    }
}

fn measure(scale: Scale, value: f64) -> f64 {
    if scale == Scale::Log { value.log10() } else { value }
}

fn linear_ticks(low: f64, high: f64, least: f64) -> Vec<(f64, String)> {
    let rough = ((high - low) / 4.5).max(least);
    let unit = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * unit).find(|s| *s >= rough).unwrap_or(unit);
    let first = (low / step).ceil() as i64;
    let marks = (first..first.saturating_add(12)).map(|k| k as f64 * step).take_while(|v| *v <= high);
    marks.map(|v| (v, label(v, step))).collect()
}

/// `value` as short as the distance `step` to the next mark allows.
fn label(value: f64, step: f64) -> String {
    let digits = step.abs().log10().floor() as i32;
    if value == 0.0 {
        "0".into()
    } else if value.abs() >= 1e6 || (digits < -3 && value.abs() < 0.1) {
        let kept = (value.abs().log10().floor() as i32 - digits).max(0);
        format!("{value:.*e}", usize::try_from(kept).unwrap_or(0))
    } else if value.abs() >= 1e4 && digits >= 2 {
        format!("{}k", value / 1e3)
    } else {
        format!("{value:.*}", usize::try_from(-digits).unwrap_or(0))
    }
}

impl Chart {
    /// The chart with its title and legend; `None` where there is no point to draw.
    pub fn figure(&self) -> Option<String> {
        let points = || self.series.iter().flat_map(|s| &s.points).filter(|p| self.shows(**p));
        let [left, right, top, bottom] = MARGIN;
        let x = Axis::new(self.scales.0, points().map(|p| p.0), 0.0, (left, WIDTH - right))?;
        let y =
            Axis::new(self.scales.1, points().map(|p| p.1).chain(self.level), 0.05, (HEIGHT - bottom, top))?;
        let x = Axis { least: if self.abscissa == "step" { 1.0 } else { 0.0 }, ..x };
        let title = esc(&self.title);
        let mut out =
            format!("<figure class=\"chart\"><figcaption>{title}</figcaption>\n<svg viewBox=\"0 0 ");
        let _ = write!(
            out,
            "{WIDTH} {HEIGHT}\" role=\"img\" data-abscissa=\"{}\" aria-label=\"{title}\"{}{}>",
            self.abscissa,
            data("x", &x),
            data("y", &y)
        );
        let floor = HEIGHT - bottom;
        for (value, label) in y.ticks() {
            let at = y.at(value);
            let _ = write!(out, "<path class=\"grid\" d=\"M{left} {at:.1}H{:.1}\"/>", WIDTH - right);
            let _ = write!(
                out,
                "<text x=\"{:.1}\" y=\"{:.1}\" class=\"end\">{label}</text>",
                left - 5.0,
                at + 4.0
            );
        }
        for (value, label) in x.ticks() {
            let at = x.at(value);
            let _ = write!(out, "<path class=\"grid\" d=\"M{at:.1} {top}V{floor}\"/>");
            let _ = write!(out, "<text x=\"{at:.1}\" y=\"{:.1}\" class=\"mid\">{label}</text>", floor + 14.0);
        }
        let middle = (left + WIDTH - right) / 2.0;
        let _ =
            write!(out, "<text x=\"{middle}\" y=\"{}\" class=\"mid\">{}</text>", HEIGHT - 5.0, self.abscissa);
        if let Some(level) = self.level {
            let _ =
                write!(out, "<path class=\"level\" d=\"M{left} {:.1}H{:.1}\"/>", y.at(level), WIDTH - right);
        }
        for series in &self.series {
            self.draw(series, (&x, &y), &mut out);
        }
        out += "</svg>\n<div class=\"legend\">";
        for s in self.series.iter().filter(|s| !s.raw && s.points.iter().any(|p| self.shows(*p))) {
            let (style, name) = (s.style % STYLES, esc(&s.name));
            let line =
                format!("<svg viewBox=\"0 0 34 8\"><path class=\"line s{style}\" d=\"M1 4H33\"/></svg>");
            let _ = write!(out, "<span>{line}{name}</span>");
        }
        Some(out + "</div></figure>\n")
    }

    fn shows(&self, point: (f64, f64)) -> bool {
        measure(self.scales.0, point.0).is_finite() && measure(self.scales.1, point.1).is_finite()
    }

    fn draw(&self, series: &Series, (x, y): (&Axis, &Axis), out: &mut String) {
        let points: Curve = series.points.iter().filter(|p| self.shows(**p)).copied().collect();
        let places: Vec<_> = thin(&points, MOST).into_iter().map(|p| (x.at(p.0), y.at(p.1))).collect();
        let class = if series.raw { "raw" } else { "line" };
        let (style, name) = (series.style % STYLES, esc(&series.name));
        let _ = write!(out, "<path class=\"{class} s{style}\" data-name=\"{name}\" d=\"");
        for (i, (px, py)) in places.iter().enumerate() {
            let _ = write!(out, "{}{px:.1} {py:.2}", if i == 0 { 'M' } else { 'L' });
        }
        *out += "\"/>";
        // A few points are shown as such; a line alone would hide where they are.
        if places.len() <= 30 && !series.raw {
            for (px, py) in places {
                let _ = write!(out, "<circle class=\"s{style}\" cx=\"{px:.1}\" cy=\"{py:.2}\" r=\"2\"/>");
            }
        }
    }
}

/// An axis' range and place for the page's script: `data-x="low high from to scale"`.
fn data(name: &str, axis: &Axis) -> String {
    let scale = if axis.scale == Scale::Log { "log" } else { "linear" };
    let ((low, high), (from, to)) = (axis.range, axis.place);
    format!(" data-{name}=\"{low} {high} {from} {to} {scale}\"")
}

/// At most `most` of the points: the first, the last, and the lowest and highest of equal pieces between, so that no
/// spike is lost.
pub fn thin(points: &[(f64, f64)], most: usize) -> Curve {
    let [first, inner @ .., last] = points else { return points.to_vec() };
    if points.len() <= most {
        return points.to_vec();
    }
    let piece = inner.len().div_ceil((most.max(4) - 2) / 2);
    let mut kept = vec![*first];
    for part in inner.chunks(piece) {
        let by = |i: &usize, j: &usize| part[*i].1.total_cmp(&part[*j].1);
        let (low, high) = ((0..part.len()).min_by(by), (0..part.len()).max_by(by));
        let (low, high) = (low.unwrap_or(0), high.unwrap_or(0));
        kept.push(part[low.min(high)]);
        if low != high {
            kept.push(part[low.max(high)]);
        }
    }
    kept.push(*last);
    kept
}

/// Means over a window of a twentieth of the curve, centred; narrower towards the ends, so that they do not lag.
pub fn smooth(points: &[(f64, f64)]) -> Curve {
    let n = points.len();
    let mut sums = vec![0.0];
    for p in points {
        sums.push(sums[sums.len() - 1] + p.1);
    }
    let mean = |i: usize| {
        let half = (n / 40).min(i).min(n - 1 - i);
        (points[i].0, (sums[i + half + 1] - sums[i - half]) / (2 * half + 1) as f64)
    };
    (0..n).map(mean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thinning_keeps_ends_and_spikes() {
        let mut points: Curve = (0..100_000).map(|i| (f64::from(i), f64::from(i % 7))).collect();
        points[77_777].1 = 1e6;
        points[12_345].1 = -1e6;
        let thinned = thin(&points, MOST);
        assert!(thinned.len() <= MOST && thinned.len() > MOST / 2, "{}", thinned.len());
        for kept in [points[0], points[99_999], points[77_777], points[12_345]] {
            assert!(thinned.contains(&kept), "{kept:?}");
        }
        assert!(thinned.windows(2).all(|w| w[0].0 < w[1].0));
        for n in 0..5 {
            assert_eq!(thin(&points[..n], 2).len().min(4), n.min(4));
        }
        assert_eq!(thin(&points[..MOST], MOST), points[..MOST]);
    }

    #[test]
    fn smoothing_is_a_centred_mean() {
        let line: Curve = (0..400).map(|i| (f64::from(i), 3.0 * f64::from(i))).collect();
        assert!(smooth(&line).iter().all(|p| (p.1 - 3.0 * p.0).abs() < 1e-9), "a line is kept, to its ends");
        let spike: Curve = (0..400).map(|i| (f64::from(i), if i == 200 { 21.0 } else { 0.0 })).collect();
        assert_eq!(smooth(&spike).iter().filter(|p| (p.1 - 1.0).abs() < 1e-9).count(), 21);
        assert!(smooth(&[]).is_empty());
    }

    fn chart(points: Curve, scales: (Scale, Scale)) -> Option<String> {
        let series = vec![Series { name: "a<b".into(), style: 1, points, raw: false }];
        Chart { title: "t".into(), abscissa: "step", scales, level: Some(1.0), series }.figure()
    }

    #[test]
    fn a_chart_puts_points_where_its_axes_say() {
        let svg = chart(vec![(0.0, 0.0), (50.0, 1.0), (100.0, 2.0)], (Scale::Linear, Scale::Linear)).unwrap();
        // the middle of the plot, to a tenth: x from 46 to 350, y from 180 to 8
        assert!(svg.contains("M46.0 172.18L198.0 94.00L350.0 15.82"), "{svg}");
        assert!(
            svg.contains(">50<") && svg.contains(">1.5<") && svg.contains("a&lt;b") && !svg.contains("a<b")
        );
        let log =
            chart(vec![(0.01, 1e-4), (0.1, 1.0), (0.5, 1e4), (0.0, 3.0)], (Scale::Log, Scale::Log)).unwrap();
        assert!(log.contains(">0.1<") && log.contains(">1e-4<") && log.contains(">1<"), "{log}");
        assert!(!log.contains("NaN") && !log.contains("inf"));
    }

    #[test]
    fn odd_curves_are_drawn_or_left_out() {
        let linear = (Scale::Linear, Scale::Linear);
        assert!(chart(vec![], linear).is_none());
        assert!(chart(vec![(1.0, f64::NAN)], linear).is_none());
        assert!(chart(vec![(1.0, -1.0)], (Scale::Linear, Scale::Log)).is_none());
        for v in [0.0, 5.0, 1e-30, -1e30, 0.1 + 0.2] {
            let svg = chart(vec![(3.0, v), (4.0, v)], linear).unwrap();
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{v}: {svg}");
            let one = chart(vec![(3.0, v)], linear).unwrap();
            assert!(!one.contains("NaN") && !one.contains("inf"), "{v}: {one}");
        }
    }

    #[test]
    fn ticks_are_round_and_few() {
        let labels =
            |low, high| linear_ticks(low, high, 0.0).into_iter().map(|t| t.1).collect::<Vec<_>>().join(" ");
        assert_eq!(linear_ticks(0.0, 2.0, 1.0).into_iter().map(|t| t.1).collect::<Vec<_>>(), ["0", "1", "2"]);
        assert_eq!(labels(0.0, 40.0), "0 10 20 30 40");
        assert_eq!(labels(0.0, 100_000.0), "0 50k 100k");
        assert_eq!(labels(0.0, 2.5e-5), "0 1e-5 2e-5");
        assert_eq!(labels(-0.27, 1.3), "0 0.5 1.0");
        assert_eq!(labels(0.69311, 0.69489), "0.6935 0.6940 0.6945");
    }
}
