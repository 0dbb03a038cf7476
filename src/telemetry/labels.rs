//! Numbers for the names that become labels of metrics.
//!
//! A core counts under numbers; names are put in their place at a scrape. A name keeps its number
//! for as long as each config has it, whatever its place there, and a number is never given twice:
//! what was counted for a name that is gone cannot turn up under another. Only names of the config
//! in force (those of discovered servers and models included) have numbers, `NAMES_MAX` of each
//! kind; the rest are `other`.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Most names of one kind that are told apart in metrics.
pub const NAMES_MAX: usize = 1000;

/// The number of a name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LabelId(pub u32);

impl LabelId {
    /// There is none, such as no key: an empty label.
    pub const NONE: LabelId = LabelId(0);
    /// A name that has no number.
    pub const OTHER: LabelId = LabelId(1);
    /// The first number that is given to a name.
    const FIRST: u32 = 2;
}

/// What a name stands for; one name may be several of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LabelKind {
    /// A listener.
    Listener,
    /// A group.
    Group,
    /// An upstream.
    Upstream,
    /// A client's key.
    Key,
    /// A model.
    Model,
}

const KINDS: usize = LabelKind::Model as usize + 1;

impl LabelKind {
    /// Every kind, in the order of their numbers.
    pub const ALL: [LabelKind; KINDS] = [
        LabelKind::Listener,
        LabelKind::Group,
        LabelKind::Upstream,
        LabelKind::Key,
        LabelKind::Model,
    ];
}

/// All names that have numbers; it outlives configs.
#[derive(Debug, Default)]
pub struct LabelNames {
    known: [HashMap<Arc<str>, LabelId>; KINDS],
    given: u32,
}

impl LabelNames {
    /// Gives each of these names its number and puts it into `labels`; forgets the other names of
    /// that kind that no plan has any more.
    ///
    /// Shape: numbers in the order of `names`.
    pub fn label<'n>(
        &mut self,
        kind: LabelKind,
        names: impl Iterator<Item = &'n str>,
        labels: &mut PlanLabels,
    ) -> Vec<LabelId> {
        let known = &mut self.known[kind as usize];
        // A plan in force or in use holds its names.
        let names: Vec<&str> = names.collect();
        let wanted: HashSet<&str> = names.iter().copied().collect();
        known.retain(|name, _| wanted.contains(&**name) || Arc::strong_count(name) > 1);
        let mut ids = Vec::with_capacity(names.len());
        for name in names {
            let (name, id) = match known.get_key_value(name) {
                Some((name, id)) => (name.clone(), *id),
                None if known.len() >= NAMES_MAX => {
                    ids.push(LabelId::OTHER);
                    continue;
                }
                None => {
                    let (name, id) = (Arc::<str>::from(name), LabelId(LabelId::FIRST + self.given));
                    self.given += 1;
                    known.insert(name.clone(), id);
                    (name, id)
                }
            };
            labels.names.insert(id, name);
            ids.push(id);
        }
        ids
    }
}

/// The labels of one plan; each list is in the order of the plan's own.
#[derive(Debug, Default)]
pub struct PlanLabels {
    /// Listeners.
    pub listeners: Vec<LabelId>,
    /// Groups.
    pub groups: Vec<LabelId>,
    /// Upstreams.
    pub upstreams: Vec<LabelId>,
    /// Keys.
    pub keys: Vec<LabelId>,
    /// Models, as the config lists them.
    pub models: Vec<LabelId>,
    /// Of each upstream the name of the first group that has it.
    pub group_of: HashMap<String, String>,
    names: HashMap<LabelId, Arc<str>>,
}

impl PlanLabels {
    /// The names of one kind, with their numbers.
    pub fn named(&self, kind: LabelKind) -> impl Iterator<Item = (&str, LabelId)> {
        let list = match kind {
            LabelKind::Listener => &self.listeners,
            LabelKind::Group => &self.groups,
            LabelKind::Upstream => &self.upstreams,
            LabelKind::Key => &self.keys,
            LabelKind::Model => &self.models,
        };
        list.iter().filter_map(|id| Some((&**self.names.get(id)?, *id)))
    }

    /// Whether a name of these labels is not among `next`.
    #[must_use]
    pub fn loses_to(&self, next: &PlanLabels) -> bool {
        self.names.keys().any(|id| !next.names.contains_key(id))
    }

    /// The name behind a number; `None` = it is gone.
    #[must_use]
    pub fn name(&self, id: LabelId) -> Option<&str> {
        match id {
            LabelId::NONE => Some(""),
            LabelId::OTHER => Some("other"),
            _ => self.names.get(&id).map(|name| &**name),
        }
    }
}

/// The label at a place in one of a plan's lists; a place that is not there is `other`.
#[must_use]
pub fn label_at(list: &[LabelId], at: usize) -> LabelId {
    list.get(at).copied().unwrap_or(LabelId::OTHER)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers of these names in a plan, and its labels.
    fn plan(
        names: &mut LabelNames,
        kind: LabelKind,
        wanted: &[&str],
    ) -> (Vec<LabelId>, PlanLabels) {
        let mut labels = PlanLabels::default();
        let ids = names.label(kind, wanted.iter().copied(), &mut labels);
        (ids, labels)
    }

    #[test]
    fn a_name_keeps_its_number_while_a_plan_has_it_and_none_is_given_twice() {
        let mut names = LabelNames::default();
        let upstreams = LabelKind::Upstream;
        let (first, before) = plan(&mut names, upstreams, &["a", "b"]);
        let (second, after) = plan(&mut names, upstreams, &["c", "b"]);
        assert_eq!(first[1], second[1]);
        assert!(!first.contains(&second[0]));
        assert_eq!((before.name(first[0]), after.name(first[0])), (Some("a"), None));
        assert_eq!((after.name(second[0]), after.name(second[1])), (Some("c"), Some("b")));
        assert!(before.loses_to(&after) && !after.loses_to(&after));
        drop(after);
        // A plan that is refused takes nothing from the one in force.
        let (third, _) = plan(&mut names, upstreams, &["a"]);
        assert_eq!(third[0], first[0]);
        drop(before);
        drop(plan(&mut names, upstreams, &[]));
        let (fourth, _) = plan(&mut names, upstreams, &["a"]);
        assert_ne!(fourth[0], first[0], "no plan had it any more");
        let (model, _) = plan(&mut names, LabelKind::Model, &["a"]);
        assert_ne!(fourth[0], model[0], "a model is no upstream");
    }

    #[test]
    fn names_beyond_names_max_are_other_and_those_within_stay() {
        let mut names = LabelNames::default();
        let all: Vec<String> = (0..NAMES_MAX + 5).map(|at| at.to_string()).collect();
        let mut all: Vec<&str> = all.iter().map(String::as_str).collect();
        let (forward, labels) = plan(&mut names, LabelKind::Model, &all);
        assert!(forward[..NAMES_MAX].iter().all(|id| *id > LabelId::OTHER));
        assert!(forward[NAMES_MAX..].iter().all(|id| *id == LabelId::OTHER));
        assert_eq!(labels.name(LabelId::OTHER), Some("other"));
        all.reverse();
        let (mut backward, _) = plan(&mut names, LabelKind::Model, &all);
        backward.reverse();
        assert_eq!(forward, backward);
    }
}
