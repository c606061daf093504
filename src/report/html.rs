//! Text into HTML: everything a run directory holds is untrusted and passes through [`esc`].

/// The style of every page.
pub const STYLE: &str = include_str!("page.css");
/// Shows a chart's values under the pointer.
pub const CHARTS: &str = include_str!("charts.js");

/// A whole page that asks nothing of any network: its title (HTML already), what is in it, its styles and scripts.
pub fn document(title: &str, body: &str, styles: &[&str], scripts: &[&str]) -> String {
    let (styles, scripts) = (styles.concat(), scripts.iter().map(|s| format!("<script>\n{s}</script>\n")));
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'; \
         script-src 'unsafe-inline'\">\n<title>{title}</title>\n<style>\n{styles}</style>\n</head>\n<body>\n{body}{}</body>\n</html>\n",
        scripts.collect::<String>()
    )
}

/// `text` so that it is text in HTML, in an element or a quoted attribute.
pub fn esc(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            c => out.push(c),
        }
    }
    out
}

/// A table in a box of its own that scrolls sideways; cells are HTML already. The first cell of a row heads it. `class`
/// is the box's, beside its own.
pub fn table(class: &str, head: &[&str], rows: &[Vec<String>]) -> String {
    let mut out = format!("<div class=\"scroll {class}\" tabindex=\"0\"><table><thead><tr>");
    head.iter().for_each(|cell| out += &format!("<th scope=\"col\">{cell}</th>"));
    out += "</tr></thead><tbody>";
    for row in rows {
        out += "<tr>";
        for (i, cell) in row.iter().enumerate() {
            out +=
                &if i == 0 { format!("<th scope=\"row\">{cell}</th>") } else { format!("<td>{cell}</td>") };
        }
        out += "</tr>\n";
    }
    out + "</tbody></table></div>\n"
}

/// A section under a heading.
pub fn section(heading: &str, body: &str) -> String {
    format!("<section><h2>{}</h2>\n{body}</section>\n", esc(heading))
}

/// A span of time as one reads it: `42 s`, `7 min`, `3 h 20 min`.
pub fn duration(seconds: f64) -> String {
    let minutes = (seconds / 60.0).round() as u64;
    match minutes {
        0..2 => format!("{seconds:.0} s"),
        2..120 => format!("{minutes} min"),
        _ => format!("{} h {} min", minutes / 60, minutes % 60),
    }
}

/// A number with four figures that count.
pub fn number(value: f64) -> String {
    figures(value, 4)
}

/// A number with `kept` figures that count.
pub fn figures(value: f64, kept: i32) -> String {
    if value == 0.0 || !value.is_finite() {
        return format!("{value}");
    }
    let digits = value.abs().log10().floor() as i32;
    match digits {
        -3..=5 => format!("{value:.*}", usize::try_from(kept - 1 - digits).unwrap_or(0)),
        _ => format!("{value:.2e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_stays_text() {
        assert_eq!(
            esc("<script>\"a\" & 'b'</script>"),
            "&lt;script&gt;&quot;a&quot; &amp; &#39;b&#39;&lt;/script&gt;"
        );
    }

    #[test]
    fn numbers_and_times_are_short() {
        let numbers = [0.0, 0.25, -21.944, 1234.56, 0.0031, 1.5e-7, 2e9, f64::NAN].map(number);
        assert_eq!(numbers, ["0", "0.2500", "-21.94", "1235", "0.003100", "1.50e-7", "2.00e9", "NaN"]);
        assert_eq!([42.4, 400.0, 12_000.0].map(duration), ["42 s", "7 min", "3 h 20 min"]);
    }
}
