//! One server as the reconciler knows it: the tasks that ask it, and what they have found out.
//!
//! The one idea: the last list of models that a server gave holds until it gives another. While it
//! is away (dead, down by its probes, or no longer named by discovery) its models stay known though
//! no requests go there, until `discovery.grace` is over.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::entry::Listing;
use super::event::Listed;
use super::monitored::{Monitored, is_asked};
use super::recheck::{BreakerClock, Recheck};
use super::task::Task;
use crate::config::ModelsFrom;
use crate::policy::breaker::StateName;

/// Least time between two lines for the operator about complaints of the cores, per upstream.
const COMPLAINT_PAUSE: Duration = Duration::from_secs(30);

/// A server of the config in force, its last list of models and its tasks.
pub(super) struct Server {
    pub(super) monitored: Arc<Monitored>,
    models: Option<Vec<String>>,
    /// It was asked for its models at least once, and answered or failed to.
    pub(super) reported: bool,
    failed: bool,
    /// When last asked for its models it could not be reached.
    dead: bool,
    /// Discovery no longer names it: only its models are known.
    pub(super) departed: bool,
    /// Since when it is away: dead, departed, or down by its probes.
    away_since: Option<Instant>,
    /// When it came into the config in force.
    since: Instant,
    /// When the operator was last told of a complaint of the cores.
    complained_at: Option<Instant>,
    /// The counts of changes of its breaker when the operator was last told of one.
    breaker_seen: [[u64; 3]; 3],
    /// The rechecks of the current outage, while its breaker is not closed.
    recheck: Option<Recheck>,
    /// Asks for its models, at this interval.
    pub(super) asker: Option<(Duration, Task)>,
    /// Probes it.
    pub(super) prober: Option<Task>,
}

impl Server {
    /// A server of which nothing is known yet, without tasks.
    pub(super) fn new(monitored: Arc<Monitored>) -> Self {
        Self {
            models: None,
            reported: false,
            failed: false,
            dead: false,
            departed: false,
            away_since: None,
            since: Instant::now(),
            complained_at: None,
            breaker_seen: monitored.state.breaker_changes(),
            recheck: None,
            asker: None,
            prober: None,
            monitored,
        }
    }

    /// Takes other settings: what was found out stays, and its tasks end, to be begun anew.
    pub(super) fn renew(&mut self, monitored: Arc<Monitored>) {
        self.monitored = monitored;
        (self.asker, self.prober) = (None, None);
        if !is_asked(&self.monitored.upstream) {
            (self.dead, self.failed) = (false, false);
        }
        self.monitored.state.set_away(self.dead || self.departed);
        self.note_away(Instant::now());
    }

    /// Takes the outcome of a request for its models, and sets `changed` when the config follows
    /// from it. Returns the first failure in a row, for the operator.
    pub(super) fn record(&mut self, listed: Listed, changed: &mut bool) -> Option<String> {
        self.reported = true;
        let (models, why) = match listed {
            Listed::Models(models) => {
                self.dead = false;
                (Some(models), None)
            }
            Listed::NoList(why) | Listed::NotNow(why) => (self.models.clone(), Some(why)),
            Listed::Dead(why) => {
                self.dead = true;
                (self.models.clone(), Some(why))
            }
        };
        *changed |= models != self.models;
        self.models = models;
        self.monitored.state.set_away(self.dead || self.departed);
        *changed |= self.note_away(Instant::now());
        let before = std::mem::replace(&mut self.failed, why.is_some());
        why.filter(|_| !before)
    }

    /// Whether no requests go there, while its models stay known for a time.
    pub(super) fn is_away(&self) -> bool {
        self.dead || self.departed || !self.monitored.state.healthy()
    }

    /// Discovery no longer names it: ends its tasks, and no requests go there from now on.
    pub(super) fn depart(&mut self) {
        self.departed = true;
        (self.asker, self.prober, self.recheck) = (None, None, None);
        self.monitored.state.set_away(true);
        self.note_away(Instant::now());
    }

    /// Discovery names it again: what was known when it departed holds until it is asked.
    pub(super) fn come_back(&mut self) {
        self.departed = false;
        self.monitored.state.set_away(self.dead);
        self.note_away(Instant::now());
    }

    /// Brings `away_since` up to date; returns whether it has changed.
    pub(super) fn note_away(&mut self, now: Instant) -> bool {
        let before = self.away_since;
        self.away_since = self.is_away().then(|| before.unwrap_or(now));
        before != self.away_since
    }

    /// After `grace`, forgets the models of a server that is away, and no longer marks a server
    /// that never listed any as unheard. Returns whether models were forgotten.
    pub(super) fn forget(&mut self, grace: Duration, now: Instant) -> bool {
        if now.saturating_duration_since(self.since) >= grace {
            self.monitored.state.set_unheard(false);
        }
        let gone = |since: Instant| now.saturating_duration_since(since) >= grace;
        let forgets = self.models.is_some() && self.away_since.is_some_and(gone);
        if forgets {
            self.models = None;
        }
        forgets
    }

    /// Starts a recheck if its breaker awaits a trial and one is due.
    pub(super) fn recheck(&mut self, clock: &BreakerClock, now: Instant) {
        if !self.departed {
            Recheck::step(&mut self.recheck, &self.monitored, clock, now);
        }
    }

    /// A line for the operator when its breaker has changed since the last call, and why.
    pub(super) fn breaker_word(&mut self) -> Option<String> {
        let state = &self.monitored.state;
        let changes = state.breaker_changes();
        if std::mem::replace(&mut self.breaker_seen, changes) == changes {
            return None;
        }
        let name = &self.monitored.upstream.name;
        let why = || state.last_failure().unwrap_or_else(|| "failures".to_owned());
        Some(match state.breaker.state().name() {
            StateName::Open => format!("upstream {name}: breaker open: {}", why()),
            StateName::HalfOpen => format!("upstream {name}: breaker half open: it is tried"),
            StateName::Closed => format!("upstream {name}: breaker closed: it works"),
        })
    }

    /// A line for the operator about a complaint of the cores, once per `COMPLAINT_PAUSE` at most;
    /// all complaints are counted in the record.
    pub(super) fn complaint(&mut self, now: Instant) -> Option<String> {
        let why = self.monitored.state.take_complaint()?;
        self.monitored.note(Some(&why));
        let due = self.complained_at.is_none_or(|at| now.duration_since(at) >= COMPLAINT_PAUSE);
        due.then(|| {
            self.complained_at = Some(now);
            format!("upstream {}: {why}", self.monitored.upstream.name)
        })
    }

    /// The models that it listed last; `None` when it listed none, or has them in the config.
    pub(super) fn models(&self) -> Option<Vec<String>> {
        let asked = self.monitored.upstream.models == ModelsFrom::Discover;
        self.models.clone().filter(|_| asked)
    }

    /// What is known of its models, and whether requests go there.
    pub(super) fn listing(&self) -> Listing {
        match self.models() {
            Some(_) if !self.is_away() => Listing::Serves,
            Some(models) if !models.is_empty() => Listing::Away,
            Some(_) | None => Listing::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::policy::breaker::BreakerPolicy;
    use crate::upstream::state::UpstreamState;
    use tokio::sync::mpsc;

    /// A server that is asked for its models, without the tasks.
    fn server() -> Server {
        let text = "[[listener]]\nname = \"l\"\nbind = \"127.0.0.1:0\"\nauth = \"none\"\n\
                    [[upstream]]\nname = \"u\"\nurl = \"http://h\"\n";
        let config = Config::from_toml_str(text, &|_| None).unwrap_or_else(|why| panic!("{why}"));
        let upstream = config.upstreams[0].clone();
        let breaker: BreakerPolicy = upstream.breaker;
        let state = Arc::new(UpstreamState::new(breaker, upstream.concurrency));
        let (events, _) = mpsc::channel(1);
        Server::new(Monitored::new(upstream, Ok(None), state, Vec::new(), events))
    }

    #[test]
    fn what_the_cores_complain_of_is_recorded_and_told_now_and_then() {
        let mut server = server();
        let now = Instant::now();
        assert_eq!(server.complaint(now), None);
        for (after, told) in [(0, true), (1, false), (40, true)] {
            server.monitored.state.complain(format!("broken {after}"));
            let line = server.complaint(now + Duration::from_secs(after));
            assert_eq!(line, told.then(|| format!("upstream u: broken {after}")));
            assert_eq!(server.monitored.checked().last_error, Some(format!("broken {after}")));
        }
    }

    fn models(names: &[&str]) -> Listed {
        Listed::Models(names.iter().map(|name| (*name).to_owned()).collect())
    }

    /// What is told, whether anything changed, how many models are known, whether it serves them.
    fn record(server: &mut Server, listed: Listed) -> (Option<String>, bool, Option<usize>, bool) {
        let mut changed = false;
        let told = server.record(listed, &mut changed);
        let models = server.models().map(|models| models.len());
        (told, changed, models, server.listing() == Listing::Serves)
    }

    #[test]
    fn a_list_holds_until_the_next_one_and_nobody_is_sent_to_the_dead() {
        let mut server = server();
        let no_list = || Listed::NoList("status 503".to_owned());
        let dead = || Listed::Dead("refused".to_owned());
        assert_eq!(record(&mut server, models(&["a", "b"])), (None, true, Some(2), true));
        assert_eq!(record(&mut server, models(&["a", "b"])), (None, false, Some(2), true));
        let told = Some("status 503".to_owned());
        assert_eq!(record(&mut server, no_list()), (told, false, Some(2), true));
        assert_eq!(record(&mut server, no_list()), (None, false, Some(2), true), "told once");
        assert_eq!(record(&mut server, dead()), (None, true, Some(2), false));
        assert_eq!(record(&mut server, dead()), (None, false, Some(2), false));
        assert_eq!(record(&mut server, no_list()), (None, false, Some(2), false), "it is not back");
        assert_eq!(record(&mut server, models(&["a"])), (None, true, Some(1), true));
        assert_eq!(record(&mut server, dead()).0, Some("refused".to_owned()), "told anew");
        assert!(!server.monitored.state.usable());
    }

    #[test]
    fn discovery_grace_bounds_how_long_the_models_of_the_dead_are_known() {
        let (mut server, grace) = (server(), Duration::from_secs(600));
        server.monitored.state.set_unheard(true);
        record(&mut server, models(&["a"]));
        record(&mut server, Listed::Dead("refused".to_owned()));
        let now = Instant::now();
        assert!(!server.forget(grace, now + Duration::from_secs(590)));
        assert!(server.monitored.state.unheard());
        assert!(server.forget(grace, now + Duration::from_secs(601)));
        assert_eq!(server.models(), None);
        assert!(!server.monitored.state.unheard(), "nor may an unknown name be one of its");
        assert!(!server.forget(grace, now + Duration::from_secs(602)), "once");
    }

    #[test]
    fn what_probes_say_is_down_serves_no_models() {
        let mut server = server();
        record(&mut server, models(&["a"]));
        server.monitored.state.set_healthy(false);
        assert_eq!(server.listing(), Listing::Away);
        server.monitored.state.set_healthy(true);
        assert_eq!(server.listing(), Listing::Serves);
    }
}
