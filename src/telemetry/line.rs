//! One line of the log: when, how grave, what, and the facts beside it.
//!
//! As text for people (`2026-01-31T12:00:00.000Z warn: what request_id=… reason="…"`), or as one
//! JSON object. Whatever a client chose is escaped in both: no value makes a second line.

use super::access::write_time;
use crate::base::clock::WallTime;
use crate::error::Level;
use crate::llm::quote::quote;

/// What a line tells.
#[derive(Clone, Copy, Debug)]
pub struct Line<'l> {
    /// When it happened.
    pub at: WallTime,
    /// How grave it is.
    pub level: Level,
    /// What happened.
    pub message: &'l str,
    /// Names and values; those without a value are left out.
    pub facts: &'l [(&'l str, &'l str)],
}

impl Line<'_> {
    /// Appends the line for people, line break included.
    pub fn write_text(&self, out: &mut Vec<u8>) {
        write_time(self.at, out);
        out.push(b' ');
        out.extend_from_slice(level_name(self.level).as_bytes());
        out.extend_from_slice(b": ");
        let clean = self.message.chars().map(|c| if c.is_control() { ' ' } else { c });
        out.extend_from_slice(clean.collect::<String>().as_bytes());
        for (name, value) in self.facts.iter().filter(|(_, value)| !value.is_empty()) {
            out.push(b' ');
            out.extend_from_slice(name.as_bytes());
            out.push(b'=');
            let plain = |byte: u8| byte.is_ascii_graphic() && byte != b'"' && byte != b'=';
            match value.bytes().all(plain) {
                true => out.extend_from_slice(value.as_bytes()),
                false => quote(value, out),
            }
        }
        out.push(b'\n');
    }

    /// Appends the line as one JSON object, line break included.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"ts\":\"");
        write_time(self.at, out);
        out.extend_from_slice(b"\",\"level\":");
        quote(level_name(self.level), out);
        out.extend_from_slice(b",\"msg\":");
        quote(self.message, out);
        for (name, value) in self.facts.iter().filter(|(_, value)| !value.is_empty()) {
            out.push(b',');
            quote(name, out);
            out.push(b':');
            quote(value, out);
        }
        out.extend_from_slice(b"}\n");
    }
}

fn level_name(level: Level) -> &'static str {
    match level {
        Level::Debug => "debug",
        Level::Info => "info",
        Level::Warn => "warn",
        Level::Error => "error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_line_in_both_forms() {
        let line = Line {
            at: WallTime::default(),
            level: Level::Warn,
            message: "a\nb",
            facts: &[("key", "k"), ("model", "m \"1\"\n"), ("upstream", "")],
        };
        let (mut text, mut json) = (Vec::new(), Vec::new());
        line.write_text(&mut text);
        line.write_json(&mut json);
        let text = String::from_utf8(text).unwrap();
        assert_eq!(text, "1970-01-01T00:00:00.000Z warn: a b key=k model=\"m \\\"1\\\"\\n\"\n");
        let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
        assert_eq!((&json["level"], &json["msg"]), (&"warn".into(), &"a\nb".into()));
        assert_eq!((&json["model"], json.get("upstream")), (&"m \"1\"\n".into(), None));
    }
}
