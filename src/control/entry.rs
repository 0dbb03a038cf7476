//! An entry with `discover`: its targets, and which of them get requests while they change.
//!
//! New targets are not used at once. They replace the old ones when their host names have been
//! looked up, and an old target leaves when every new one has listed its models. In between both
//! are in force, so that a model that both have can be served all the while. A target of Kubernetes
//! leaves when any of the others has listed its models: its server has been told to end.
//!
//! That list is waited for `LEAVE_MAX` at most: an operator who takes a server out of discovery
//! wants no more requests there soon, whatever becomes of its successor. An old target that lists
//! no models itself, for example because it is dead, leaves at once: keeping it gains nothing. If
//! none of the new names has an address, discovery itself is taken to be wrong, and the old targets
//! stay until one of the new ones has an address.
//!
//! When discovery finds no target any more, requests go to none of them from then on. The models of
//! the last targets stay known, as those of a dead server do, until `discovery.grace` is over or a
//! new target serves: otherwise requests for them would be refused as unknown models.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;

use super::event::EntryNumber;
use super::observed::Observed;
use super::task::Task;
use crate::config::{Config, Discover, ModelsFrom, Target, Upstream, distinct_targets};
use crate::telemetry::prometheus::SourceRow;

/// Longest time that a target stays in force after discovery stopped naming it: longer than a new
/// server may take for its list without counting as late (`model_list::LATE_AFTER`), and no longer
/// than DNS answers are commonly cached.
pub const LEAVE_MAX: Duration = Duration::from_secs(10);

/// What is known of the models of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Listing {
    /// Its models are not known, or no longer.
    Unknown,
    /// Its models are known, but no requests go there.
    Away,
    /// Its models are known, and requests go there.
    Serves,
}

/// The targets of one entry of the file: the newest, those in force, those that leave.
pub(super) struct Entry {
    /// By which facts about it are told from those about another.
    pub(super) number: EntryNumber,
    /// The newest answer of discovery, in force or not.
    pub(super) targets: Observed<Vec<Target>>,
    /// The targets of the newest answer whose names have been looked up: in force.
    named: Vec<Target>,
    /// Targets of the answer before that are still in force, and until when at the latest.
    leaving: Vec<(Target, Instant)>,
    /// The last targets, since discovery finds none any more: only their models are known.
    departed: Vec<Target>,
}

impl Entry {
    /// An entry without targets, until `task` reports some.
    pub(super) fn by(number: EntryNumber, task: Task) -> Self {
        let (named, leaving, departed) = (Vec::new(), Vec::new(), Vec::new());
        Self { number, targets: Observed::by(task), named, leaving, departed }
    }

    /// How it does, once it has answered; `entry` is the entry of the file.
    pub(super) fn row(&self, entry: &Upstream) -> Option<SourceRow> {
        let (name, works) = (entry.name.clone(), !self.targets.failed);
        let targets = self.targets.value.len();
        self.targets.reported.then_some(SourceRow { name, works, targets })
    }

    /// The targets that requests go to.
    pub(super) fn in_force(&self) -> Vec<Target> {
        self.named.iter().chain(self.leaving.iter().map(|(target, _)| target)).cloned().collect()
    }

    /// The targets whose models stay known, though no requests go there.
    pub(super) fn departed(&self) -> &[Target] {
        &self.departed
    }

    /// The host names that have to be looked up before the newest targets can serve.
    ///
    /// Shape: `entry` is the entry of the file. Behind an outbound proxy there are none: the proxy
    /// looks the names up.
    pub(super) fn awaited<'a>(
        &'a self,
        entry: &Upstream,
    ) -> impl Iterator<Item = &'a String> + use<'a> {
        let waits = self.targets.value != self.named && entry.enabled && entry.proxy.is_none();
        let hosts = self.targets.value.iter().map(|target| &target.host);
        hosts.filter(move |host| waits && is_name(host))
    }

    /// Whether a target that leaves has stayed for its longest time.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.leaving.iter().any(|(_, until)| *until <= now)
    }

    /// Puts new targets in force when their names have been looked up, and removes those that have
    /// left.
    ///
    /// Shape: `entry` is the entry of the file; `listing` tells what is known of a target's models.
    pub(super) fn advance(
        &mut self,
        entry: &Upstream,
        names: &HashMap<String, Observed<Vec<IpAddr>>>,
        listing: impl Fn(&Target) -> Listing,
        now: Instant,
    ) {
        let serves = |target: &Target| listing(target) == Listing::Serves;
        if self.targets.value != self.named && self.is_named(entry, names) {
            let before = std::mem::replace(&mut self.named, self.targets.value.clone());
            self.leaving.extend(before.into_iter().map(|target| (target, now + LEAVE_MAX)));
        }
        if self.leaving.is_empty() && self.departed.is_empty() {
            return;
        }
        let named = distinct_targets(&self.named);
        let is_named = |target: &Target| named.iter().any(|one| target.is_at(&one.host, one.port));
        let asked = entry.enabled && entry.models == ModelsFrom::Discover;
        if asked && named.is_empty() {
            self.departed.extend(self.leaving.drain(..).map(|(target, _)| target));
        }
        // An endpoint that Kubernetes takes out is about to end, so one successor is enough.
        let is_replaced = match entry.discover {
            Some(Discover::K8s(_)) => named.iter().any(|target| serves(target)),
            _ => named.iter().all(|target| serves(target)),
        };
        if !asked || is_replaced {
            self.leaving.clear();
        }
        self.leaving.retain(|(target, until)| now < *until && serves(target) && !is_named(target));
        let has_successor = named.iter().any(|target| serves(target));
        self.departed.retain(|target| {
            !has_successor && listing(target) != Listing::Unknown && !is_named(target)
        });
    }

    /// Whether each name of the newest targets has been looked up, and at least one target has an
    /// address. Always true while no targets are in force: there are none to keep meanwhile.
    fn is_named(&self, entry: &Upstream, names: &HashMap<String, Observed<Vec<IpAddr>>>) -> bool {
        let (mut reported, mut vain) = (true, 0);
        for known in self.awaited(entry).map(|name| names.get(name)) {
            reported &= known.is_some_and(|known| known.reported);
            vain += usize::from(known.is_none_or(|known| known.value.is_empty()));
        }
        let serve = vain == 0 || vain < self.targets.value.len();
        self.named.is_empty() || (reported && serve)
    }
}

/// Whether an entry of a config and one of the next are one, whose targets are looked for in the same
/// place.
pub(super) fn is_found_alike(
    had: &Upstream,
    now: &Upstream,
    before: &Config,
    next: &Config,
) -> bool {
    let is_of_kubernetes = matches!(now.discover, Some(Discover::K8s(_)));
    (&had.name, &had.discover, had.url.port) == (&now.name, &now.discover, now.url.port)
        && (!is_of_kubernetes || before.discovery.kubeconfig == next.discovery.kubeconfig)
}

/// Whether a host is a name to be looked up, and not an IP address.
pub(super) fn is_name(host: &str) -> bool {
    host.parse::<IpAddr>().is_err()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An entry of the file and what is known of it, without the task.
    struct Case {
        upstream: Upstream,
        entry: Entry,
        now: Instant,
    }

    fn case(more: &str) -> Case {
        let source = if more.contains("discover") { "" } else { "discover = \"srv:x\"\n" };
        let text = format!(
            "[[listener]]\nname = \"l\"\nbind = \"127.0.0.1:0\"\nauth = \"none\"\n\
             [[upstream]]\nname = \"u\"\nurl = \"http://h\"\n{source}{more}"
        );
        let config = Config::from_toml_str(&text, &|_| None).unwrap_or_else(|why| panic!("{why}"));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let entry = Entry::by(EntryNumber(0), Task::of(runtime.spawn(async {})));
        Case { upstream: config.upstreams[0].clone(), entry, now: Instant::now() }
    }

    impl Case {
        /// What is in force at `after` seconds when discovery says `found` and only `listing`
        /// have models; each letter is a target.
        fn check(&mut self, after: u64, found: &str, listing: &str, expected: &str) {
            let target =
                |host: char| Target { host: format!("10.0.0.{}", host as u32), port: 1, weight: 1 };
            self.entry.targets.value = found.chars().map(target).collect();
            let of_target = |one: &Target| match listing.chars().any(|host| target(host) == *one) {
                true => Listing::Serves,
                false => Listing::Unknown,
            };
            let now = self.now + Duration::from_secs(after);
            self.entry.advance(&self.upstream, &HashMap::new(), of_target, now);
            let expected: Vec<Target> = expected.chars().map(target).collect();
            assert_eq!(self.entry.in_force(), expected, "at {after} s: {found}, {listing}");
        }
    }

    #[test]
    fn the_old_ones_stay_until_all_new_ones_have_listed_their_models() {
        let mut case = case("");
        case.check(0, "ab", "", "ab");
        case.check(1, "ab", "ab", "ab");
        case.check(2, "bcd", "ab", "bcda");
        case.check(3, "bcd", "abc", "bcda");
        case.check(4, "bcd", "abcd", "bcd");
        case.check(5, "bcd", "abc", "bcd");
        case.check(6, "c", "bc", "c");
    }

    #[test]
    fn leave_max_bounds_the_stay_from_when_each_left() {
        let mut case = case("");
        case.check(0, "a", "a", "a");
        case.check(1, "b", "a", "ba");
        case.check(2, "b", "ab", "b");
        case.check(3, "c", "ab", "cb");
        case.check(9, "d", "bc", "dbc");
        assert!(!case.entry.is_due(case.now + Duration::from_secs(12)));
        assert!(case.entry.is_due(case.now + Duration::from_secs(13)));
        case.check(13, "d", "bc", "dc");
        case.check(19, "d", "bc", "d");
        assert!(!case.entry.is_due(case.now + Duration::from_secs(99)));
    }

    #[test]
    fn who_lists_nothing_or_is_named_again_does_not_stay_as_one_that_leaves() {
        let mut case = case("");
        case.check(0, "a", "a", "a");
        case.check(1, "b", "a", "ba");
        case.check(2, "b", "", "b");
        case.check(3, "c", "", "c");
        case.check(4, "d", "c", "dc");
        case.check(5, "cd", "c", "cd");
        case.check(6, "", "c", "");
    }

    #[test]
    fn without_a_list_to_wait_for_the_old_ones_leave_at_once() {
        for more in ["models = []\n", "enabled = false\n"] {
            let mut case = case(more);
            case.check(0, "a", "a", "a");
            case.check(1, "b", "a", "b");
            case.check(2, "", "ab", "");
            assert_eq!(case.entry.departed(), []);
        }
    }

    #[cfg(feature = "kubernetes")]
    #[test]
    fn of_kubernetes_one_leaves_as_soon_as_another_serves() {
        let mut case = case("discover = \"k8s:a/b\"\n");
        case.check(0, "ab", "ab", "ab");
        case.check(1, "bc", "ab", "bc");
        case.check(2, "de", "bc", "debc");
        case.check(3, "de", "bcd", "de");
        case.check(4, "", "de", "");
    }

    #[test]
    fn the_last_ones_stay_known_until_they_are_forgotten_or_a_new_one_serves() {
        let departed = |case: &Case| case.entry.departed().len();
        let mut case = case("");
        case.check(0, "ab", "a", "ab");
        case.check(1, "", "a", "");
        assert_eq!(departed(&case), 1, "of the other no models are known");
        case.check(2, "c", "a", "c");
        assert_eq!(departed(&case), 1, "the new one has not listed its models yet");
        case.check(3, "c", "ac", "c");
        assert_eq!(departed(&case), 0);
        case.check(4, "", "c", "");
        assert_eq!(departed(&case), 1);
        case.check(5, "c", "c", "c");
        assert_eq!(departed(&case), 0, "it is back");
        case.check(6, "", "c", "");
        case.check(7, "", "", "");
        assert_eq!(departed(&case), 0, "its models are forgotten");
    }
}
