//! A page of a measurement: one HTML file with nothing outside of it.
//!
//! The one idea: whoever measured hands over plain lists, and the page draws them as
//! SVG, without a script. All text is escaped: URLs and errors come from elsewhere.

mod axis;
mod chart;

use std::fmt::Write;

use axis::Axis;
use chart::{Interval, Mark, Points, chart, intervals};

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

/// Points of a curve, and of a chart over time.
const POINTS: usize = 400;

const STYLE: &str = ":root{color-scheme:light dark;--ink:#1a1a1a;--paper:#fff;--rule:#d5d5d5;\
    --s0:#0072b2;--s1:#d55e00;--s2:#00845f;--good:#006b3c;--bad:#b00020}\
    @media(prefers-color-scheme:dark){:root{--ink:#e6e6e6;--paper:#16181c;--rule:#3a3f47;\
    --s0:#56b4e9;--s1:#f0a13a;--s2:#3ecf9c;--good:#4cc38a;--bad:#ff7b7b}}\
    body{font:14px/1.45 system-ui,sans-serif;max-width:62em;margin:2em auto;padding:0 1em;\
    color:var(--ink);background:var(--paper)}.wide{overflow-x:auto}\
    table{border-collapse:collapse;margin:1em 0}td,th{padding:.2em .8em;text-align:right;\
    border-bottom:1px solid var(--rule);white-space:nowrap}\
    td:first-child,th:first-child{text-align:left}\
    .good{color:var(--good)}.bad{color:var(--bad)}.legend b{margin-right:1em}\
    svg{width:100%;height:auto}svg text{fill:var(--ink);font-size:12px}\
    .tick{text-anchor:middle}.name{text-anchor:end}.grid{stroke:var(--rule);stroke-width:1}\
    .zero{stroke:var(--ink);stroke-width:1.5}.line{fill:none;stroke-width:1.8}\
    .dots{fill:none;stroke-width:3;stroke-linecap:round;opacity:.6}\
    b.s0{color:var(--s0)}b.s1{color:var(--s1)}b.s2{color:var(--s2)}\
    path.s0{stroke:var(--s0)}path.s1{stroke:var(--s1)}path.s2{stroke:var(--s2)}\
    circle.s0{fill:var(--s0)}";

/// The page as HTML.
pub fn html(page: &Page) -> String {
    let title = escaped(&page.title);
    let class = if page.good { "good" } else { "bad" };
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/>\
         <meta name=\"viewport\" content=\"width=device-width\"/><title>{title}</title>\
         <style>{STYLE}</style></head>\n<body><h1>{title}</h1>\n<p class=\"{class}\">{}</p>\n",
        escaped(&page.verdict)
    );
    let facts = page.facts.iter().map(|(name, value)| vec![name.clone(), value.clone()]);
    push_table(&mut out, &[], facts);
    push_table(&mut out, &page.table.head, page.table.rows.iter().cloned());
    for (what, id, of) in [
        ("Latency", "latency", (|series| &series.latency) as fn(&Series) -> &Vec<Sample>),
        ("First token", "first-token", |series| &series.first_token),
    ] {
        push_charts(&mut out, what, id, &page.series, of);
    }
    push_differences(&mut out, &page.differences);
    out.push_str("</body></html>\n");
    out
}

/// One time of all targets: by percentile, as a distribution, and over the run.
fn push_charts(
    out: &mut String,
    what: &str,
    id: &str,
    all: &[Series],
    of: fn(&Series) -> &Vec<Sample>,
) {
    let times: Vec<Vec<u64>> = all.iter().map(|series| sorted(of(series))).collect();
    let ends = || times.iter().filter(|times| !times.is_empty());
    let (Some(low), Some(high)) =
        (ends().map(|times| times[0]).min(), ends().map(|times| times[times.len() - 1]).max())
    else {
        return;
    };
    let named = |points: Vec<Vec<(f64, f64)>>| -> Vec<Points> {
        let names = all.iter().map(|series| series.name.clone());
        names.zip(points).map(|(name, points)| Points { name, points }).collect()
    };
    let time = Axis::of_times(what, low as f64, high as f64);
    let nines = Axis::of_nines(times.iter().map(Vec::len).max().unwrap_or(0));
    let _ = writeln!(out, "<h2>{what} by percentile</h2>");
    let points = times.iter().map(|times| by_percentile(times, nines.high)).collect();
    chart(out, &format!("{id}-percentiles"), &nines, &time, Mark::Line, &named(points));
    // The slowest hundredth would press all others into a corner.
    let most = ends().map(|times| quantile(times, 0.99)).max().unwrap_or(high);
    let most_of = Axis::of_times(what, low as f64, most as f64);
    let _ = writeln!(out, "<h2>{what}, distribution up to p99</h2>");
    let points = times.iter().map(|times| by_share(times, most_of.high)).collect();
    let shares = Axis::of_shares();
    chart(out, &format!("{id}-distribution"), &most_of, &shares, Mark::Line, &named(points));
    let last = all.iter().flat_map(of).map(|sample| sample.at_us).max().unwrap_or(0);
    let run = Axis::of_times("into the run", 0.0, last.max(1) as f64);
    let _ = writeln!(out, "<h2>{what} over the run</h2>");
    let points = all.iter().map(|series| over_time(of(series), last)).collect();
    chart(out, &format!("{id}-over-time"), &run, &time, Mark::Dots, &named(points));
}

fn sorted(samples: &[Sample]) -> Vec<u64> {
    let mut times: Vec<u64> = samples.iter().map(|sample| sample.us).collect();
    times.sort_unstable();
    times
}

/// The time that a share of all requests did not exceed (nearest rank); 0 of nothing.
fn quantile(times: &[u64], share: f64) -> u64 {
    let rank = (share * times.len() as f64).ceil() as usize;
    times.get(rank.max(1) - 1).or(times.last()).copied().unwrap_or(0)
}

fn by_percentile(times: &[u64], nines_max: f64) -> Vec<(f64, f64)> {
    if times.is_empty() {
        return Vec::new();
    }
    let place = |point: usize| nines_max * point as f64 / POINTS as f64;
    let told = |nines: f64| (nines, quantile(times, 1.0 - 10f64.powf(-nines)) as f64);
    (0..=POINTS).map(place).map(told).collect()
}

fn by_share(times: &[u64], most: f64) -> Vec<(f64, f64)> {
    let every = times.len().div_ceil(POINTS).max(1);
    let shares = times.iter().enumerate().step_by(every);
    let told = shares.map(|(at, us)| (*us as f64, (at + 1) as f64 / times.len() as f64));
    told.take_while(|(us, _)| *us <= most).collect()
}

/// The slowest request of each of many short times.
fn over_time(samples: &[Sample], last_us: u64) -> Vec<(f64, f64)> {
    let mut worst: Vec<Option<Sample>> = vec![None; POINTS];
    for sample in samples {
        let at = (sample.at_us as f64 / (last_us as f64 + 1.0) * POINTS as f64) as usize;
        let slot = &mut worst[at.min(POINTS - 1)];
        if slot.is_none_or(|known| known.us < sample.us) {
            *slot = Some(*sample);
        }
    }
    worst.iter().flatten().map(|sample| (sample.at_us as f64, sample.us as f64)).collect()
}

/// Differences as intervals: medians and tails apart, whose sizes differ.
fn push_differences(out: &mut String, all: &[Difference]) {
    if all.is_empty() {
        return;
    }
    let tail = |one: &Difference| one.what.ends_with("p99");
    for (name, id, wanted) in [
        ("Differences", "differences", false),
        ("Differences of the tail", "differences-p99", true),
    ] {
        let rows: Vec<Interval> = all
            .iter()
            .filter(|one| tail(one) == wanted && one.value_us.is_finite())
            .map(|one| Interval {
                name: format!("{}, {}", one.what, one.of),
                value: [one.value_us, one.low_us, one.high_us],
            })
            .collect();
        let ends = || rows.iter().flat_map(|row| row.value).filter(|end| end.is_finite());
        let (low, high) = (ends().fold(0.0, f64::min), ends().fold(0.0, f64::max));
        if !rows.is_empty() {
            let _ = writeln!(out, "<h2>{name}, with 95 % intervals</h2>");
            intervals(out, id, &Axis::of_times("difference", low, high), &rows);
        }
    }
    let head = ["what", "of", "ms", "from", "to"].map(str::to_owned);
    let ms = |us: f64| if us.is_finite() { format!("{:+.3}", us / 1e3) } else { String::new() };
    let rows = all.iter().map(|one| {
        let numbers = [one.value_us, one.low_us, one.high_us].map(ms);
        [one.what.clone(), one.of.clone()].into_iter().chain(numbers).collect()
    });
    push_table(out, &head, rows);
}

fn push_table(out: &mut String, head: &[String], rows: impl Iterator<Item = Vec<String>>) {
    out.push_str("<div class=\"wide\"><table>\n");
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
    out.push_str("</table></div>\n");
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
        assert!(
            told.contains("&lt;/td&gt;") && told.contains("id=\"latency-percentiles\""),
            "{told}"
        );
    }

    fn page(samples: usize) -> Page {
        let sample = |n: usize| Sample { at_us: n as u64 * 10, us: (n as u64 * 7919) % 100_000 };
        let of = |name: &str| Series {
            name: name.to_owned(),
            latency: (0..samples).map(sample).collect(),
            first_token: (0..samples / 2).map(sample).collect(),
        };
        let difference = |what: &str| Difference {
            what: what.to_owned(),
            of: "b - a".to_owned(),
            value_us: 5.0,
            low_us: -1.0,
            high_us: 9.0,
        };
        Page {
            series: vec![of("a"), of("b")],
            differences: vec![difference("latency p50"), difference("latency p99")],
            ..Page::default()
        }
    }

    /// Tags that are opened and not closed, or closed and not opened.
    fn unbalanced(html: &str) -> Vec<String> {
        let mut open = Vec::new();
        let mut wrong = Vec::new();
        for part in html.split('<').skip(1) {
            let tag = part.split('>').next().unwrap_or_default();
            let name = tag.trim_start_matches('/').split([' ', '/']).next().unwrap_or_default();
            match tag {
                _ if tag.starts_with('!') || tag.ends_with('/') => {}
                _ if tag.starts_with('/') => {
                    if open.pop().as_deref() != Some(name) {
                        wrong.push(tag.to_owned());
                    }
                }
                _ => open.push(name.to_owned()),
            }
        }
        wrong.extend(open);
        wrong
    }

    #[test]
    fn any_number_of_samples_makes_a_page() {
        for samples in [0, 1, 2, 100_000] {
            let told = html(&page(samples));
            assert_eq!(unbalanced(&told), Vec::<String>::new(), "{samples} samples");
            for absent in ["NaN", "inf"] {
                assert!(!told.contains(absent), "{absent} with {samples} samples");
            }
            assert!(told.len() < 300_000, "{} bytes of {samples} samples", told.len());
        }
    }

    #[test]
    fn each_chart_has_its_curves() {
        let told = html(&page(1000));
        for id in ["percentiles", "distribution", "over-time"] {
            for what in ["latency", "first-token"] {
                let from = told.find(&format!("id=\"{what}-{id}\"")).expect(id);
                let chart = &told[from..from + told[from..].find("</svg>").expect("its end")];
                for series in ["s0", "s1"] {
                    assert!(chart.contains(&format!("{series}\" d=\"M")), "{what}-{id} {series}");
                }
            }
        }
        assert!(told.contains("id=\"differences\"") && told.contains("id=\"differences-p99\""));
    }

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let times: Vec<u64> = (1..=100).collect();
        for (share, want) in [(0.0, 1), (0.5, 50), (0.99, 99), (1.0, 100)] {
            assert_eq!(quantile(&times, share), want);
        }
        assert_eq!(quantile(&[], 0.5), 0);
    }
}
