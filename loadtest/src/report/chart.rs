//! Charts as SVG: a frame with its axes, and in it lines, dots or intervals.
//!
//! Colours come from the page's style (`s0`, `s1`, …), so that light and dark are its matter.

use std::fmt::Write;

use super::axis::Axis;
use super::escaped;

/// Classes of colours; more series begin again.
const COLOURS: usize = 3;
const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 300.0;
/// Room around the frame, for what is written beside it.
const LEFT: f64 = 76.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 48.0;
/// Height of a row of intervals, and room for what it is called.
const ROW: f64 = 22.0;
const NAMES: f64 = 230.0;

/// How the points of a series are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    /// Joined.
    Line,
    /// Each by itself.
    Dots,
}

/// The points of one series, in values of the axes.
pub(super) struct Points {
    /// What it is called.
    pub(super) name: String,
    /// Horizontal and vertical values.
    pub(super) points: Vec<(f64, f64)>,
}

/// A value and its interval, in values of the axis.
pub(super) struct Interval {
    /// What it is called.
    pub(super) name: String,
    /// The value, and both ends.
    pub(super) value: [f64; 3],
}

/// Draws series over two axes, with a legend.
pub(super) fn chart(out: &mut String, id: &str, x: &Axis, y: &Axis, mark: Mark, all: &[Points]) {
    legend(out, all);
    // Writing to a string cannot fail, here and below.
    let _ = writeln!(out, "<svg id=\"{id}\" role=\"img\" viewBox=\"0 0 {WIDTH} {HEIGHT}\">");
    let frame = Frame { left: LEFT, top: TOP, right: WIDTH - RIGHT, bottom: HEIGHT - BOTTOM };
    frame.grid(out, x, Some(y));
    for (index, series) in all.iter().enumerate() {
        let colour = index % COLOURS;
        let places =
            series.points.iter().map(|(h, v)| (frame.x(x.place(*h)), frame.y(y.place(*v))));
        match mark {
            Mark::Line => {
                let _ = write!(out, "<path class=\"line s{colour}\" d=\"");
                for (at, (h, v)) in places.enumerate() {
                    let _ = write!(out, "{}{h:.1} {v:.1}", if at == 0 { 'M' } else { 'L' });
                }
                out.push_str("\"/>\n");
            }
            Mark::Dots => {
                let _ = write!(out, "<path class=\"dots s{colour}\" d=\"");
                for (h, v) in places {
                    let _ = write!(out, "M{h:.1} {v:.1}h0");
                }
                out.push_str("\"/>\n");
            }
        }
    }
    out.push_str("</svg>\n");
}

/// Draws values with their intervals, one row each, and a line at zero.
pub(super) fn intervals(out: &mut String, id: &str, x: &Axis, all: &[Interval]) {
    let height = TOP + ROW * all.len() as f64 + BOTTOM;
    let _ = writeln!(out, "<svg id=\"{id}\" role=\"img\" viewBox=\"0 0 {WIDTH} {height}\">");
    let frame = Frame { left: NAMES, top: TOP, right: WIDTH - RIGHT, bottom: height - BOTTOM };
    frame.grid(out, x, None);
    let zero = frame.x(x.place(0.0));
    let (top, bottom) = (frame.top, frame.bottom);
    let _ = writeln!(out, "<path class=\"zero\" d=\"M{zero:.1} {top:.1}V{bottom:.1}\"/>");
    for (row, one) in all.iter().enumerate() {
        let y = TOP + ROW * (row as f64 + 0.5);
        let [value, low, high] = one.value.map(|value| frame.x(x.place(value)));
        let _ = writeln!(
            out,
            "<text class=\"name\" x=\"{:.1}\" y=\"{:.1}\">{}</text>\
             <path class=\"line s0\" d=\"M{low:.1} {y:.1}H{high:.1}M{low:.1} {:.1}v8M{high:.1} {:.1}v8\"/>\
             <circle class=\"s0\" cx=\"{value:.1}\" cy=\"{y:.1}\" r=\"4\"/>",
            NAMES - 10.0,
            y + 4.0,
            escaped(&one.name),
            y - 4.0,
            y - 4.0,
        );
    }
    out.push_str("</svg>\n");
}

fn legend(out: &mut String, all: &[Points]) {
    out.push_str("<p class=\"legend\">");
    for (index, series) in all.iter().enumerate() {
        let _ = write!(out, "<b class=\"s{}\">{}</b> ", index % COLOURS, escaped(&series.name));
    }
    out.push_str("</p>\n");
}

/// Where the axes are.
struct Frame {
    left: f64,
    top: f64,
    right: f64,
    bottom: f64,
}

impl Frame {
    fn x(&self, place: f64) -> f64 {
        self.left + (self.right - self.left) * place
    }

    fn y(&self, place: f64) -> f64 {
        self.bottom - (self.bottom - self.top) * place
    }

    /// Lines at the ticks, what is written beside them, and the titles.
    fn grid(&self, out: &mut String, x: &Axis, y: Option<&Axis>) {
        let &Frame { left, top, right, bottom } = self;
        for (at, text) in &x.ticks {
            let place = self.x(x.place(*at));
            let _ = writeln!(
                out,
                "<path class=\"grid\" d=\"M{place:.1} {top:.1}V{bottom:.1}\"/>\
                 <text class=\"tick\" x=\"{place:.1}\" y=\"{:.1}\">{}</text>",
                bottom + 16.0,
                escaped(text)
            );
        }
        let _ = writeln!(
            out,
            "<text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            (left + right) / 2.0,
            bottom + 38.0,
            escaped(&x.title)
        );
        let Some(y) = y else { return };
        for (at, text) in &y.ticks {
            let place = self.y(y.place(*at));
            let _ = writeln!(
                out,
                "<path class=\"grid\" d=\"M{left:.1} {place:.1}H{right:.1}\"/>\
                 <text class=\"name\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                left - 8.0,
                place + 4.0,
                escaped(text)
            );
        }
        let _ = writeln!(
            out,
            "<text class=\"tick\" transform=\"translate(14 {:.1}) rotate(-90)\">{}</text>",
            (top + bottom) / 2.0,
            escaped(&y.title)
        );
    }
}
