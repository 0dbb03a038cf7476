//! A page of a measurement: one HTML file with nothing outside of it.
//!
//! The one idea: whoever measured hands over plain lists, and the page draws them as
//! SVG, without a script. All text is escaped: URLs and errors come from elsewhere.

use std::fmt::Write;

/// What a page shows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Page {
    /// The heading.
    pub title: String,
    /// Names and values, in their order.
    pub facts: Vec<(String, String)>,
    /// The verdict in words.
    pub verdict: String,
    /// Whether the verdict is a good one.
    pub good: bool,
    /// The curves; none when the numbers do not stand.
    pub series: Vec<Series>,
    /// What differs, with intervals.
    pub differences: Vec<Difference>,
    /// The numbers.
    pub table: Table,
}

/// The samples of one target.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Series {
    /// Its name.
    pub name: String,
    /// Times to the end of the answer.
    pub latency: Vec<Sample>,
    /// Times to the first piece of text.
    pub first_token: Vec<Sample>,
}

/// One time of one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// When it was due, from the start of the run, in microseconds.
    pub at_us: u64,
    /// How long it took, in microseconds.
    pub us: u64,
}

/// A difference and its interval, in microseconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Difference {
    /// Of which time, such as `latency p50`.
    pub what: String,
    /// Between which targets, such as `b - a`.
    pub of: String,
    /// The difference.
    pub value_us: f64,
    /// Lower end of its interval.
    pub low_us: f64,
    /// Upper end of its interval.
    pub high_us: f64,
}

/// Cells with a head.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Names of the columns.
    pub head: Vec<String>,
    /// Rows of as many cells.
    pub rows: Vec<Vec<String>>,
}

/// The colours of the targets.
const COLOURS: [&str; 3] = ["#1f77b4", "#d62728", "#7f7f7f"];
/// Size of a chart.
const WIDTH: f64 = 800.0;
const HEIGHT: f64 = 240.0;
/// Points of a curve.
const POINTS: usize = 200;

const STYLE: &str = "body{font:14px sans-serif;max-width:60em;margin:2em auto}\
    table{border-collapse:collapse;margin:1em 0}td,th{padding:.2em .8em;text-align:right;\
    border-bottom:1px solid #ddd}td:first-child,th:first-child{text-align:left}\
    .good{color:#060}.bad{color:#a00}svg{width:100%;background:#fafafa}";

/// The page as HTML.
pub fn html(page: &Page) -> String {
    let title = escaped(&page.title);
    let class = if page.good { "good" } else { "bad" };
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\
         <style>{STYLE}</style></head>\n<body><h1>{title}</h1>\n<p class=\"{class}\">{}</p>\n",
        escaped(&page.verdict)
    );
    let facts = page.facts.iter().map(|(name, value)| vec![name.clone(), value.clone()]);
    push_table(&mut out, &[], facts);
    push_table(&mut out, &page.table.head, page.table.rows.iter().cloned());
    for (name, of) in [
        ("Latency", (|series| &series.latency) as fn(&Series) -> &Vec<Sample>),
        ("First token", |series| &series.first_token),
    ] {
        push_curves(&mut out, name, &page.series, of);
    }
    if !page.differences.is_empty() {
        out.push_str("<h2>Differences, with 95 % intervals</h2>\n");
        let head = ["what", "of", "ms", "from", "to"].map(str::to_owned);
        let ms = |us: f64| format!("{:+.3}", us / 1e3);
        let rows = page.differences.iter().map(|one| {
            let numbers = [one.value_us, one.low_us, one.high_us].map(ms);
            [one.what.clone(), one.of.clone()].into_iter().chain(numbers).collect()
        });
        push_table(&mut out, &head, rows);
    }
    out.push_str("</body></html>\n");
    out
}

/// Times by the share of requests that took no longer.
fn push_curves(out: &mut String, name: &str, all: &[Series], of: fn(&Series) -> &Vec<Sample>) {
    let most = all.iter().flat_map(of).map(|sample| sample.us).max();
    let Some(most) = most else { return };
    // Writing to a string cannot fail.
    let _ = writeln!(
        out,
        "<h2>{name}</h2><p>Milliseconds (0 to {:.3}) by share of requests (0 to 100 %):",
        most as f64 / 1e3
    );
    for (series, colour) in all.iter().zip(COLOURS.iter().cycle()) {
        let _ = write!(out, " <b style=\"color:{colour}\">{}</b>", escaped(&series.name));
    }
    let _ = writeln!(out, "</p>\n<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\">");
    for (series, colour) in all.iter().zip(COLOURS.iter().cycle()) {
        let mut times: Vec<u64> = of(series).iter().map(|sample| sample.us).collect();
        times.sort_unstable();
        let _ = write!(out, "<polyline fill=\"none\" stroke=\"{colour}\" points=\"");
        for point in 0..=POINTS {
            let share = point as f64 / POINTS as f64;
            let at = (share * times.len().saturating_sub(1) as f64).round() as usize;
            if let Some(us) = times.get(at) {
                let y = HEIGHT * (1.0 - *us as f64 / most.max(1) as f64);
                let _ = write!(out, "{:.1},{y:.1} ", WIDTH * share);
            }
        }
        out.push_str("\"/>\n");
    }
    out.push_str("</svg>\n");
}

fn push_table(out: &mut String, head: &[String], rows: impl Iterator<Item = Vec<String>>) {
    out.push_str("<table>\n");
    let push = |out: &mut String, cells: &[String], tag: &str| {
        out.push_str("<tr>");
        for cell in cells {
            let _ = write!(out, "<{tag}>{}</{tag}>", escaped(cell));
        }
        out.push_str("</tr>\n");
    };
    if !head.is_empty() {
        push(out, head, "th");
    }
    for row in rows {
        push(out, &row, "td");
    }
    out.push_str("</table>\n");
}

/// Text that cannot be taken for markup.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            letter => out.push(letter),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_from_elsewhere_is_text() {
        let page = Page {
            title: "<script>".to_owned(),
            verdict: "a & b".to_owned(),
            series: vec![Series {
                name: "'a'".to_owned(),
                latency: vec![Sample { at_us: 0, us: 0 }],
                ..Series::default()
            }],
            table: Table { head: vec!["\"x\"".to_owned()], rows: vec![vec!["</td>".to_owned()]] },
            ..Page::default()
        };
        let told = html(&page);
        for absent in ["<script>", "a & b", "'a'", "\"x\"", "</td></td>", "NaN", "First token"] {
            assert!(!told.contains(absent), "{absent} in {told}");
        }
        assert!(told.contains("&lt;/td&gt;") && told.contains("<polyline"), "{told}");
    }
}
