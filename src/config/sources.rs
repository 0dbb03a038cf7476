//! A config as it was said: the text of a file, and the edits upon it.
//!
//! The two are put together as trees, not as texts: every value keeps its place in the document that
//! it comes from, so a fault names a line of the file or of the overlay. To that end the overlay is read
//! from behind as many blanks as the file has bytes: places of the two never meet, and the text that
//! faults quote is simply both, one behind the other.

use std::collections::HashMap;

use sha2::{Digest, Sha256};
use toml::de::{DeArray, DeTable, DeValue};
use toml::{Spanned, Table};

use super::fault::{Draft, Report, Spot};
use super::overlay::{Edit, EntryId, Overlay, Section, digest, entries_of, short};
use super::reader::{Outside, Reader};
use super::{Loaded, finish, load};

/// What a config is made of.
#[derive(Clone, Debug)]
pub struct Sources {
    /// Name of the file, as faults show it.
    pub file: String,
    /// What the file holds.
    pub text: String,
    /// The edits upon it.
    pub overlay: Overlay,
    /// What the file holds, as values; empty where it is no TOML, which `load_sources` tells.
    table: Table,
}

/// What faults call the overlay.
pub(super) const OVERLAY_NAME: &str = "overlay";

impl Sources {
    /// A file without edits.
    #[must_use]
    pub fn new(file: String, text: String) -> Self {
        let table = text.parse().unwrap_or_default();
        Self { file, text, overlay: Overlay::default(), table }
    }

    /// The same edits upon another text of the file; those that it has taken over are none any more.
    #[must_use]
    pub fn upon(&self, file: String, text: String) -> Self {
        let mut sources = Self { overlay: self.overlay.clone(), ..Self::new(file, text) };
        sources.settle();
        sources
    }

    /// The file with these edits, without those that it says itself.
    #[must_use]
    pub fn with(mut self, overlay: Overlay) -> Self {
        self.overlay = overlay;
        self.settle();
        self
    }

    /// Tells states of the config apart: 32 hexadecimal digits.
    #[must_use]
    pub fn version(&self) -> String {
        let mut hash = Sha256::new();
        hash.update((self.text.len() as u64).to_le_bytes());
        hash.update(&self.text);
        hash.update(self.overlay.to_string());
        short(&hash.finalize())
    }

    /// The entry as it is meant; `None` where there is none.
    #[must_use]
    pub fn entry(&self, id: &EntryId) -> Option<&Table> {
        match self.overlay.find(id) {
            Some(edit) => edit.entry.as_ref(),
            None => self.of_file(id),
        }
    }

    /// The entries of a kind, each with its name: those of the file in its order, then added ones.
    #[must_use]
    pub fn entries(&self, section: Section) -> Vec<(&str, &Table)> {
        let mut all = Vec::new();
        for (name, entry) in self.all_of_file(section) {
            match self.overlay.find(&EntryId::new(section, name)) {
                None => all.push((name, entry)),
                Some(edit) => all.extend(edit.entry.as_ref().map(|entry| (name, entry))),
            }
        }
        let edits = self.overlay.edits.iter().filter(|edit| edit.id.section == section);
        let added = edits.filter(|edit| self.of_file(&edit.id).is_none());
        all.extend(added.filter_map(|edit| Some((edit.id.name.as_str(), edit.entry.as_ref()?))));
        all
    }

    /// Whether an entry is an edit and not the file's.
    #[must_use]
    pub fn is_edited(&self, id: &EntryId) -> bool {
        self.overlay.find(id).is_some()
    }

    /// Has an entry be as given, or not be there at all.
    pub fn edit(&mut self, id: EntryId, entry: Option<Table>) {
        let of_file = self.of_file(&id);
        if of_file == entry.as_ref() {
            return self.overlay.forget(&id);
        }
        let upon = of_file.map(digest);
        self.overlay.put(Edit { id, entry, upon });
    }

    /// Drops the edit of an entry, so that it is what the file says.
    pub fn revert(&mut self, id: &EntryId) {
        self.overlay.forget(id);
    }

    /// Drops the edits that the file says itself by now.
    fn settle(&mut self) {
        let mut overlay = std::mem::take(&mut self.overlay);
        overlay.edits.retain(|edit| self.of_file(&edit.id) != edit.entry.as_ref());
        self.overlay = overlay;
    }

    fn all_of_file(&self, section: Section) -> Vec<(&str, &Table)> {
        self.table.get(section.key()).map_or_else(Vec::new, |value| entries_of(section, value))
    }

    fn of_file(&self, id: &EntryId) -> Option<&Table> {
        let mut all = self.all_of_file(id.section).into_iter();
        all.find(|(name, _)| *name == id.name).map(|(_, entry)| entry)
    }

    /// The edits whose entry the file says otherwise than when they were made.
    fn conflicts(&self) -> Vec<&Edit> {
        let has_moved = |edit: &&Edit| self.of_file(&edit.id).map(digest) != edit.upon;
        self.overlay.edits.iter().filter(has_moved).collect()
    }
}

/// Reads and checks a file with the edits upon it.
///
/// Errors: as `load`; an edit whose entry the file has changed since is a fault at that entry.
pub fn load_sources(sources: &Sources, outside: &Outside<'_>) -> Result<Loaded, Report> {
    let (file, text) = (&sources.file, &sources.text);
    if sources.overlay.is_empty() || !DeTable::parse_recoverable(text).1.is_empty() {
        return load(file, text, outside);
    }
    let edits = sources.overlay.to_string();
    let both = Both::new(text, &edits);
    let (mut root, overlay) = both.trees();
    let mut r = Reader::new(&both.text, *outside);
    r.draft.overlay(both.at, OVERLAY_NAME);
    for edit in sources.conflicts() {
        let spot = spot_of(&edit.id, &root).or_else(|| spot_of(&edit.id, &overlay));
        r.draft.fault(&spot.unwrap_or_default(), conflict(edit));
    }
    merge(&mut root, overlay, &sources.overlay);
    finish(file, &Spanned::new(0..text.len(), DeValue::Table(root)), r)
}

/// Calls with the tree of both documents, and with what knows the places in them.
pub(super) fn with_tree<T>(
    sources: &Sources,
    see: impl FnOnce(&Spanned<DeValue<'_>>, &Draft<'_>) -> T,
) -> T {
    let edits = sources.overlay.to_string();
    let both = Both::new(&sources.text, &edits);
    let (mut root, overlay) = both.trees();
    merge(&mut root, overlay, &sources.overlay);
    let mut draft = Draft::new(&both.text);
    draft.overlay(both.at, OVERLAY_NAME);
    see(&Spanned::new(0..sources.text.len(), DeValue::Table(root)), &draft)
}

/// A file and the edits upon it as one text.
struct Both {
    text: String,
    /// Where the edits begin.
    at: usize,
    /// The edits behind as many blanks.
    edits: String,
}

impl Both {
    fn new(file: &str, edits: &str) -> Self {
        let at = file.len() + 1;
        Self { text: format!("{file}\n{edits}"), at, edits: " ".repeat(at) + edits }
    }

    /// The two as trees, their places in the one text.
    fn trees(&self) -> (DeTable<'_>, DeTable<'_>) {
        let file = self.text.get(..self.at).unwrap_or_default();
        let tree = |text| DeTable::parse_recoverable(text).0.into_inner();
        (tree(file), tree(&self.edits))
    }
}

/// Why it is not known whether the file or an edit is meant.
fn conflict(edit: &Edit) -> String {
    let id = &edit.id;
    let did = match (&edit.entry, &edit.upon) {
        (Some(_), Some(_)) => "changed",
        (Some(_), None) => "added",
        (None, _) => "removed",
    };
    format!(
        "{did} over the admin API, and changed in the file since: say which is meant. For the file's, \
         DELETE /api/v1/overlay/{id} (or take it out of overlay.toml while nothing runs); for the \
         edit, put the file back as it was, or write the edit into it"
    )
}

/// Where an entry stands, by its name.
fn spot_of(id: &EntryId, root: &DeTable<'_>) -> Option<Spot> {
    let section = root.get(id.section.key())?.get_ref();
    let path = format!("{}.{}", id.section.key(), id.name);
    if id.section == Section::Model {
        let (key, _) = section.as_table()?.get_key_value(id.name.as_str())?;
        return Some(Spot { path, span: key.span(), ..Spot::default() });
    }
    let name = |one: &'_ Spanned<DeValue<'_>>| {
        let name = one.get_ref().as_table()?.get("name")?;
        (name.get_ref().as_str()? == id.name).then(|| name.span())
    };
    let span = section.as_array()?.iter().find_map(name)?;
    Some(Spot { path, span, ..Spot::default() })
}

/// Puts the entries of an overlay where those of the same name stand, the others behind them.
fn merge<'i>(root: &mut DeTable<'i>, overlay: DeTable<'i>, edits: &Overlay) {
    let mut sections: HashMap<Section, (Spanned<_>, Spanned<DeValue<'i>>)> = HashMap::new();
    for (key, value) in overlay {
        let name: &str = key.get_ref();
        if let Some(section) = Section::ALL.into_iter().find(|section| section.key() == name) {
            sections.insert(section, (key, value));
        }
    }
    for section in Section::ALL {
        let is_edited = |name: &str| edits.find(&EntryId::new(section, name)).is_some();
        let added = sections.remove(&section);
        let Some(had) = root.get_mut(section.key()) else {
            if let Some((key, value)) = added {
                root.insert(key, value);
            }
            continue;
        };
        let added = added.map(|(_, value)| value.into_inner());
        match (had.get_mut(), added) {
            (DeValue::Table(had), added) if section == Section::Model => {
                let kept = std::mem::take(had).into_iter();
                *had = kept.filter(|(name, _)| !is_edited(name.get_ref())).collect();
                if let Some(DeValue::Table(added)) = added {
                    had.extend(added);
                }
            }
            (DeValue::Array(had), added) => {
                let mut added: Vec<_> = match added {
                    Some(DeValue::Array(added)) => added.into_iter().collect(),
                    _ => Vec::new(),
                };
                let mut merged = Vec::new();
                for one in std::mem::replace(had, DeArray::new()) {
                    let name = name_of(&one).map(str::to_owned);
                    let at = added.iter().position(|new| name_of(new) == name.as_deref());
                    match at.filter(|_| name.is_some()) {
                        Some(at) => merged.push(added.remove(at)),
                        None if name.as_deref().is_some_and(is_edited) => {}
                        None => merged.push(one),
                    }
                }
                merged.extend(added);
                *had = merged.into_iter().collect();
            }
            // The file says something there that is refused.
            _ => {}
        }
    }
}

fn name_of<'v>(one: &'v Spanned<DeValue<'_>>) -> Option<&'v str> {
    one.get_ref().as_table()?.get("name")?.get_ref().as_str()
}
