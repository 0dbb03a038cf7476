//! Edits upon a config file, kept apart from it: the overlay.
//!
//! The one idea: an edit replaces a whole entry (an upstream, a group, a key, a listener, a model),
//! adds one, or removes one; it never changes a part of an entry, so what is in force can be read off
//! two documents of the same shape. Each edit remembers a digest of the file's entry that it was made
//! upon. When the file says something else there later, nobody knows which of the two is meant:
//! that is a conflict, and it is told (`sources`).
//!
//! As text it is a TOML file like the config itself, with two more keys: `removed`, and `upon` with the
//! digests. An entry that is not in `upon` was in no file.

use std::fmt;

use sha2::{Digest, Sha256};
use toml::{Table, Value};

use crate::base::units::hex;

/// The kinds of entries that can be edited, each with the section of the file that lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Section {
    /// `[[listener]]`.
    Listener,
    /// `[[key]]`.
    Key,
    /// `[[upstream]]`.
    Upstream,
    /// `[[group]]`.
    Group,
    /// `[models.NAME]`.
    Model,
}

impl Section {
    /// All of them, in the order in which they are written.
    pub const ALL: [Section; 5] =
        [Section::Listener, Section::Key, Section::Upstream, Section::Group, Section::Model];

    /// The key of the file's root that holds them.
    #[must_use]
    pub fn key(self) -> &'static str {
        match self {
            Section::Listener => "listener",
            Section::Key => "key",
            Section::Upstream => "upstream",
            Section::Group => "group",
            Section::Model => "models",
        }
    }

    /// What one of them is called.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Section::Model => "model",
            other => other.key(),
        }
    }

    fn of_word(word: &str) -> Option<Section> {
        Section::ALL.into_iter().find(|section| section.word() == word)
    }
}

/// Which entry: shown as `upstream/gpu0`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EntryId {
    /// Its kind.
    pub section: Section,
    /// Its name, unique among its kind.
    pub name: String,
}

impl EntryId {
    /// The entry of that kind and name.
    pub fn new(section: Section, name: impl Into<String>) -> Self {
        Self { section, name: name.into() }
    }

    /// Reads `upstream/gpu0`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (word, name) = text.split_once('/')?;
        Some(Self::new(Section::of_word(word)?, name))
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.section.word(), self.name)
    }
}

/// One edit.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Edit {
    pub(super) id: EntryId,
    /// The entry as it is meant; none = there is to be none.
    pub(super) entry: Option<Table>,
    /// Digest of the file's entry that it was made upon; none = the file had none.
    pub(super) upon: Option<String>,
}

/// All edits, in the order in which their entries were first edited.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Overlay {
    pub(super) edits: Vec<Edit>,
}

impl Overlay {
    /// Whether nothing is edited.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.edits.is_empty()
    }

    /// Tells these edits from others; empty for none.
    #[must_use]
    pub fn digest(&self) -> String {
        match self.is_empty() {
            true => String::new(),
            false => hex(&Sha256::digest(self.to_string())),
        }
    }

    /// The entries that are edited, each with whether it was removed.
    pub fn entries(&self) -> impl Iterator<Item = (&EntryId, bool)> {
        self.edits.iter().map(|edit| (&edit.id, edit.entry.is_none()))
    }

    pub(super) fn find(&self, id: &EntryId) -> Option<&Edit> {
        self.edits.iter().find(|edit| edit.id == *id)
    }

    /// Puts an edit in the place of the one of the same entry, or at the end.
    pub(super) fn put(&mut self, edit: Edit) {
        match self.edits.iter_mut().find(|one| one.id == edit.id) {
            Some(one) => *one = edit,
            None => self.edits.push(edit),
        }
    }

    pub(super) fn forget(&mut self, id: &EntryId) {
        self.edits.retain(|edit| edit.id != *id);
    }

    /// Reads the text of an overlay.
    ///
    /// Errors: a line that says why this is none.
    pub fn parse(text: &str) -> Result<Overlay, String> {
        let root: Table = text.parse().map_err(|why: toml::de::Error| why.to_string())?;
        let upon = root.get("upon").and_then(Value::as_table);
        let upon =
            |id: &EntryId| upon?.get(&id.to_string()).and_then(Value::as_str).map(str::to_owned);
        let mut overlay = Overlay::default();
        for (key, value) in &root {
            let Some(section) = Section::ALL.into_iter().find(|section| section.key() == key)
            else {
                match key.as_str() {
                    "upon" | "removed" => continue,
                    _ => return Err(format!("unknown key {key:?}")),
                }
            };
            for (name, entry) in entries_of(section, value) {
                let id = EntryId::new(section, name);
                overlay.put(Edit { upon: upon(&id), id, entry: Some(entry.clone()) });
            }
        }
        for removed in root.get("removed").and_then(Value::as_array).into_iter().flatten() {
            let text = removed.as_str().unwrap_or_default();
            let id = EntryId::parse(text)
                .ok_or_else(|| format!("removed: {text:?} is no entry such as upstream/gpu0"))?;
            overlay.put(Edit { upon: upon(&id), id, entry: None });
        }
        Ok(overlay)
    }
}

/// The entries of a section, each with its name, in the order in which they stand.
pub(super) fn entries_of(section: Section, value: &Value) -> Vec<(&str, &Table)> {
    if section == Section::Model {
        let models = value.as_table().into_iter().flatten();
        return models.filter_map(|(name, one)| Some((name.as_str(), one.as_table()?))).collect();
    }
    let entry = |one| {
        let table = Value::as_table(one)?;
        Some((table.get("name")?.as_str()?, table))
    };
    value.as_array().into_iter().flatten().filter_map(entry).collect()
}

impl fmt::Display for Overlay {
    /// The text that `parse` reads.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "# Edits over the admin API, upon the config file. Written by tokenring: change it\n\
             # while it does not run, or not at all.\n",
        )?;
        let removed = self.edits.iter().filter(|edit| edit.entry.is_none());
        let removed: Vec<Value> = removed.map(|edit| edit.id.to_string().into()).collect();
        writeln!(f, "removed = {}", Value::Array(removed))?;
        let upon = self.edits.iter().filter_map(|edit| Some((edit, edit.upon.as_ref()?)));
        let mut upon = upon.peekable();
        if upon.peek().is_some() {
            f.write_str("\n[upon]\n")?;
        }
        for (edit, digest) in upon {
            writeln!(f, "{} = {digest:?}", Value::String(edit.id.to_string()))?;
        }
        for section in Section::ALL {
            let edits = self.edits.iter().filter(|edit| edit.id.section == section);
            for (id, entry) in edits.filter_map(|edit| Some((&edit.id, edit.entry.as_ref()?))) {
                match section {
                    Section::Model => {
                        let name = Value::String(id.name.clone());
                        writeln!(f, "\n[models.{name}]")?;
                    }
                    _ => writeln!(f, "\n[[{}]]", section.key())?,
                }
                // Every value on its own line, tables inline: no order of tables to go wrong.
                entry.iter().try_for_each(|(key, value)| writeln!(f, "{} = {value}", bare(key)))?;
            }
        }
        Ok(())
    }
}

/// A key as TOML writes it.
fn bare(key: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    match !key.is_empty() && key.chars().all(plain) {
        true => key.to_owned(),
        false => Value::String(key.to_owned()).to_string(),
    }
}

/// Tells entries apart by what they say: not by comments, blanks, or the order of keys.
pub(super) fn digest(entry: &Table) -> String {
    short(&Sha256::digest(Value::Table(entry.clone()).to_string()))
}

/// As much of a digest as tells two documents apart: 16 bytes, in hexadecimal.
pub(super) fn short(digest: &[u8]) -> String {
    hex(&digest[..16])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(text: &str) -> Option<Table> {
        Some(text.parse().unwrap())
    }

    fn id(text: &str) -> EntryId {
        EntryId::parse(text).unwrap()
    }

    #[test]
    fn what_is_written_is_read_again() {
        let edits = vec![
            Edit {
                id: id("upstream/a"),
                entry: entry(
                    "name = \"a\"\nurl = \"${X:-\\\"y\\\"}\"\nauth = { type = \"bearer\", token = \"t\" }\n\
                     headers = [{ op = \"remove\", key = \"x\" }]\n[health]\nbody = \"a\\nb\"\n",
                ),
                upon: Some("0123".to_owned()),
            },
            Edit { id: id("model/a/b \"c\""), entry: entry("group = \"g\""), upon: None },
            Edit { id: id("key/k"), entry: None, upon: Some("4567".to_owned()) },
            Edit {
                id: id("listener/l"),
                entry: entry("name = \"l\"\n[[route]]\npath = \"/a\"\ngroup = \"g\""),
                upon: None,
            },
        ];
        let mut overlay = Overlay { edits };
        let text = overlay.to_string();
        let mut again = Overlay::parse(&text).unwrap_or_else(|why| panic!("{why}\n{text}"));
        assert_eq!(again.to_string(), text);
        for overlay in [&mut overlay, &mut again] {
            overlay.edits.sort_by(|a, b| a.id.cmp(&b.id));
        }
        assert_eq!(again, overlay, "{text}");
    }

    #[test]
    fn what_is_none_is_refused() {
        for text in ["[[upstream", "removed = [\"x\"]", "[process]\ncores = 1\n"] {
            assert!(Overlay::parse(text).is_err(), "{text}");
        }
        assert!(Overlay::parse("").unwrap().is_empty());
    }

    #[test]
    fn a_digest_sees_what_is_said_and_not_how() {
        let of = |text: &str| digest(&text.parse().unwrap());
        let one = of("name = \"a\"\n[health]\npath = \"/x\"\nfall = 3");
        assert_eq!(one, of("# c\nhealth = { fall = 3, path = '/x' }\nname   = 'a'"));
        assert_ne!(one, of("name = \"a\"\n[health]\npath = \"/x\"\nfall = 4"));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,200}") {
            if let Ok(overlay) = Overlay::parse(&text) {
                let _ = overlay.to_string();
            }
        }
    }
}
