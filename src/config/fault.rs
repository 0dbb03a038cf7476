//! What is wrong with a file, and how it is shown.
//!
//! The one idea: faults are gathered in a `Draft` with byte spans and turned into
//! text only at the end, when every secret's span is known too. A source line is
//! shown with all secrets on it replaced by `***`, whatever the fault is about.
//! Of a line that is not even TOML only what stands behind harmless keys is shown
//! (`harmless`), since nobody knows what the rest would have been.

use std::fmt;
use std::ops::Range;

use crate::config::harmless::{hidden, hidden_of_url};

/// Where a value stands and how it may be quoted.
#[derive(Debug, Clone, Default)]
pub(crate) struct Spot {
    /// Path such as `listener.main.route[3].group`.
    pub(crate) path: String,
    /// Bytes of the value in the file.
    pub(crate) span: Range<usize>,
    /// `${…}` was replaced in it: messages quote the source instead of the value.
    pub(crate) substituted: bool,
    /// Messages never quote it.
    pub(crate) secret: bool,
}

/// One complaint, ready to be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Path of the key, empty for a fault of syntax.
    pub path: String,
    /// What is wrong: thing, value, limit.
    pub message: String,
    /// Line in the file, 1-based.
    pub line: u32,
    /// Column in characters, 1-based.
    pub column: u32,
    /// The document that it stands in, where that is not the file of the report.
    pub document: Option<&'static str>,
    /// The source line with secrets masked.
    excerpt: String,
    /// Characters of `excerpt` before the caret.
    caret_at: usize,
    /// Carets, at least one.
    caret_len: usize,
}

/// All that was found in one file.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Name of the file, as shown.
    pub file: String,
    /// Faults for which the file is refused, in file order.
    pub errors: Vec<Fault>,
    /// What works but is likely not meant, in file order.
    pub warnings: Vec<Fault>,
}

impl Report {
    /// One complaint as text: place, path, message, source line, caret line.
    pub fn show(&self, fault: &Fault, kind: &str) -> String {
        let Fault { path, message, line, column, document, excerpt, caret_at, caret_len } = fault;
        let sep = if path.is_empty() { "" } else { ": " };
        let file = document.unwrap_or(&self.file);
        let at = format!("{file}:{line}:{column}: {kind}{path}{sep}{message}");
        let gutter = line.to_string();
        let pad = " ".repeat(gutter.len());
        let lead = " ".repeat(*caret_at);
        let carets = "^".repeat(*caret_len);
        format!("{at}\n {gutter} | {excerpt}\n {pad} | {lead}{carets}\n")
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for fault in &self.errors {
            f.write_str(&self.show(fault, ""))?;
        }
        for fault in &self.warnings {
            f.write_str(&self.show(fault, "warning: "))?;
        }
        Ok(())
    }
}

impl std::error::Error for Report {}

/// Faults while they are gathered.
#[derive(Debug)]
pub(crate) struct Draft<'a> {
    text: &'a str,
    /// Where each line begins: every model asks for its place.
    lines: Vec<usize>,
    errors: Vec<(Spot, String)>,
    warnings: Vec<(Spot, String)>,
    masked: Vec<Range<usize>>,
    /// The text is not TOML: of lines only harmless values are shown.
    broken: bool,
    /// Where a second document begins, and its name.
    second: Option<(usize, &'static str)>,
}

impl<'a> Draft<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        let breaks = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        let lines = std::iter::once(0).chain(breaks.map(|(at, _)| at + 1)).collect();
        let (errors, warnings, masked) = (Vec::new(), Vec::new(), Vec::new());
        Self { text, lines, errors, warnings, masked, broken: false, second: None }
    }

    /// Says that from this byte on, where a line begins, the text is another document.
    pub(crate) fn overlay(&mut self, at: usize, name: &'static str) {
        self.second = Some((at, name));
    }

    /// The second document, if a byte is of that.
    pub(crate) fn document(&self, at: usize) -> Option<&'static str> {
        self.second.filter(|(from, _)| at >= *from).map(|(_, name)| name)
    }

    /// The file is refused because of this.
    pub(crate) fn fault(&mut self, spot: &Spot, message: impl Into<String>) {
        self.errors.push((spot.clone(), message.into()));
    }

    /// The file is odd because of this.
    pub(crate) fn warn(&mut self, spot: &Spot, message: impl Into<String>) {
        self.warnings.push((spot.clone(), message.into()));
    }

    /// The file is not TOML because of this.
    pub(crate) fn syntax(&mut self, span: Range<usize>, message: impl Into<String>) {
        self.broken = true;
        self.fault(&Spot { span, ..Spot::default() }, message);
    }

    /// Bytes of the file that are never shown.
    pub(crate) fn mask(&mut self, span: Range<usize>) {
        self.masked.push(span);
    }

    /// As `mask`, of a URL that may hold a secret: what else it says is shown.
    pub(crate) fn mask_url(&mut self, span: Range<usize>) {
        let Some(source) = self.text.get(span.clone()) else { return self.mask(span) };
        let hidden = hidden_of_url(source);
        self.masked.extend(hidden.into_iter().map(|h| span.start + h.start..span.start + h.end));
    }

    pub(crate) fn has_errors(&self) -> bool {
        !self.errors.is_empty()
    }

    /// Forgets the complaints and keeps the masks.
    pub(crate) fn keep_masks_only(&mut self) {
        self.errors.clear();
        self.warnings.clear();
    }

    /// `"value"` as a message may show it.
    pub(crate) fn quote(&self, spot: &Spot, value: &str) -> String {
        if spot.secret {
            return "***".to_owned();
        }
        if spot.substituted {
            return self.text.get(spot.span.clone()).unwrap_or("***").to_owned();
        }
        format!("{value:?}")
    }

    /// Line and column of a byte, both 1-based, the column in characters.
    pub(crate) fn position(&self, at: usize) -> (u32, u32) {
        let before = self.text.get(..at.min(self.text.len())).unwrap_or(self.text);
        let line = self.lines.partition_point(|start| *start <= before.len());
        let start = line.checked_sub(1).and_then(|at| self.lines.get(at)).copied().unwrap_or(0);
        let column = 1 + before[start..].chars().count();
        // Each document counts its own lines.
        let lines_before = match self.second {
            Some((from, _)) if at >= from => self.lines.partition_point(|start| *start < from),
            _ => 0,
        };
        (clamp(line - lines_before), clamp(column))
    }

    /// Line of a value, for a message that names another place.
    pub(crate) fn line_of(&self, spot: &Spot) -> u32 {
        self.position(spot.span.start).0
    }

    /// Turns the gathered complaints into a report, in file order.
    pub(crate) fn finish(mut self, file: &str) -> Report {
        let errors = std::mem::take(&mut self.errors);
        let warnings = std::mem::take(&mut self.warnings);
        Report {
            file: file.to_owned(),
            errors: self.render(errors),
            warnings: self.render(warnings),
        }
    }

    fn render(&self, mut found: Vec<(Spot, String)>) -> Vec<Fault> {
        found.sort_by_key(|(spot, _)| spot.span.start);
        found.into_iter().map(|(spot, message)| self.render_one(spot, message)).collect()
    }

    fn render_one(&self, spot: Spot, message: String) -> Fault {
        let start = floor_char(self.text, spot.span.start);
        let (line, column) = self.position(start);
        let from = self.text[..start].rfind('\n').map_or(0, |i| i + 1);
        let to = self.text[start..].find('\n').map_or(self.text.len(), |i| start + i);
        let line_span = from..to;
        let masks = if self.broken {
            let hidden = hidden(&self.text[line_span.clone()]);
            hidden.into_iter().map(|h| from + h.start..from + h.end).collect()
        } else {
            self.on_line(&line_span)
        };
        let (excerpt, caret_at, caret_end) =
            masked_line(self.text, line_span, &masks, start..spot.span.end.max(start));
        let caret_len = caret_end.saturating_sub(caret_at).max(1);
        let document = self.document(start);
        Fault { path: spot.path, message, line, column, document, excerpt, caret_at, caret_len }
    }

    /// Masks that touch a line, sorted, and with them the comment behind a secret:
    /// it may hold the old one.
    fn on_line(&self, line: &Range<usize>) -> Vec<Range<usize>> {
        let touches = |m: &&Range<usize>| m.start < line.end && m.end > line.start;
        let mut masks: Vec<_> = self.masked.iter().filter(touches).cloned().collect();
        masks.sort_by_key(|m| (m.start, m.end));
        if let Some(end) = masks.iter().map(|m| m.end.min(line.end)).max() {
            let end = floor_char(self.text, end);
            if let Some(hash) = self.text[end..line.end].find('#') {
                masks.push(end + hash..line.end);
            }
        }
        masks
    }
}

/// The line with masks replaced, and where the caret's ends come to stand in it.
fn masked_line(
    text: &str,
    line: Range<usize>,
    masks: &[Range<usize>],
    caret: Range<usize>,
) -> (String, usize, usize) {
    let mut out = String::new();
    let (mut caret_at, mut caret_end) = (None, None);
    let mut at = line.start;
    let mut masks = masks.iter().peekable();
    let mut chars_out = 0;
    while at < line.end {
        while masks.next_if(|m| m.end <= at).is_some() {}
        let (step, shown) = match masks.peek() {
            Some(m) if m.start <= at => (m.end.min(line.end), "***"),
            _ => {
                let next = at + text[at..].chars().next().map_or(1, char::len_utf8);
                (next, &text[at..next])
            }
        };
        let step = ceil_char(text, step);
        if caret_at.is_none() && caret.start < step {
            caret_at = Some(chars_out);
        }
        // A tab would shift the caret, a control byte could drive the terminal.
        let clean = shown.chars().map(|c| if c.is_control() { ' ' } else { c });
        chars_out += clean.clone().count();
        out.extend(clean);
        if caret_end.is_none() && caret.end <= step {
            caret_end = Some(chars_out);
        }
        at = step;
    }
    let caret_at = caret_at.unwrap_or(chars_out);
    let trimmed = out.trim_end().to_owned();
    let end = caret_end.unwrap_or(chars_out).min(trimmed.chars().count());
    (trimmed, caret_at, end)
}

fn floor_char(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

fn ceil_char(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at += 1;
    }
    at
}

fn clamp(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// `, did you mean "chat"?` when one of the known names is close, else nothing.
pub(crate) fn did_you_mean<'n>(given: &str, known: impl IntoIterator<Item = &'n str>) -> String {
    closest(given, known).map_or(String::new(), |name| format!(", did you mean {name:?}?"))
}

/// The known name that is close to the one given.
pub(crate) fn closest<'n>(
    given: &str,
    known: impl IntoIterator<Item = &'n str>,
) -> Option<&'n str> {
    let limit = (given.chars().count() / 3).clamp(1, 4);
    let near = known.into_iter().map(|name| (strsim::damerau_levenshtein(given, name), name));
    near.filter(|(distance, _)| *distance <= limit).min().map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caret_stands_under_the_value() {
        let text = "a = 1\nkey = \"sécret\" ; group = \"chta\" # x\n";
        let mut draft = Draft::new(text);
        draft.mask(12..21);
        let at = text.find("\"chta\"").unwrap();
        let spot = Spot { path: "p.group".into(), span: at..at + 6, ..Spot::default() };
        draft.fault(&spot, "no group");
        let report = draft.finish("f.toml");
        let shown = report.to_string();
        assert_eq!(
            shown,
            "f.toml:2:26: p.group: no group\n 2 | key = *** ; group = \"chta\" ***\n   | \
             \u{20}                   ^^^^^^\n"
        );
    }

    #[test]
    fn broken_lines_hide_their_value() {
        let text = "key = \"sk-abc";
        let mut draft = Draft::new(text);
        draft.syntax(13..13, "unclosed");
        let shown = draft.finish("f").to_string();
        assert!(shown.contains("key =***"), "{shown}");
        assert!(!shown.contains("sk-abc"));
    }

    #[test]
    fn suggests_what_is_close_and_nothing_else() {
        assert_eq!(did_you_mean("chta", ["main", "chat"]), ", did you mean \"chat\"?");
        assert_eq!(did_you_mean("zzz", ["main", "chat"]), "");
    }
}
