//! The listeners as one core knows them, and those that have gone while connections of theirs are
//! still there.
//!
//! A connection holds its listener, not a position in a plan: positions change with every plan, and
//! a plan may leave the listener out. Then its connections end in order. What has arrived on them
//! by then is served under the last plan that knew the listener, kept here until the last of them
//! has gone; after that answer, or once it idles, each is closed.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::idle::IDLE_GRACE;
use super::plan::{ListenerPlan, LocalPlan};
use crate::base::listener_id::ListenerId;

/// How long a listener that has gone is known although it has no connection here: one that another
/// core has accepted may still be in the mailbox.
const GONE_KEPT: Duration = Duration::from_secs(1);

/// A listener on one core; its connections share it.
pub struct CoreListener {
    id: ListenerId,
    /// Its position in this core's plan, or in `last` once it has gone.
    number: Cell<usize>,
    gone: Cell<bool>,
    /// The last plan that knew it; none while it is in the core's plan.
    last: RefCell<Option<Gone>>,
}

struct Gone {
    plan: LocalPlan,
    since: Instant,
}

impl CoreListener {
    /// Which listener it is.
    #[must_use]
    pub fn id(&self) -> ListenerId {
        self.id
    }

    /// Whether the plan in force has no such listener: its connections are to end.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.gone.get()
    }

    /// The plan for an exchange that begins, and the listener's position in that plan: `now`, or
    /// the last one that knew it.
    pub(super) fn plan(&self, now: &LocalPlan) -> (LocalPlan, usize) {
        match self.gone.get() {
            false => (now.clone(), self.number.get()),
            true => self.last_plan(now),
        }
    }

    #[cold]
    fn last_plan(&self, now: &LocalPlan) -> (LocalPlan, usize) {
        let last = self.last.borrow();
        (last.as_ref().map_or(now, |gone| &gone.plan).clone(), self.number.get())
    }

    /// Calls `ask` with what `now` says of it, or the last plan that knew it.
    pub(super) fn with<T>(&self, now: &LocalPlan, ask: impl FnOnce(&ListenerPlan) -> T) -> T {
        if self.gone.get() {
            let (plan, number) = self.last_plan(now);
            return ask(&plan.listeners[number]);
        }
        ask(&now.listeners[self.number.get()])
    }
}

/// All listeners that one core knows.
#[derive(Default)]
pub struct CoreListeners {
    known: RefCell<Vec<Rc<CoreListener>>>,
    any_gone: Cell<bool>,
}

impl CoreListeners {
    /// The listener of this id; `None` when the core's plan has none and it has not just gone.
    #[must_use]
    pub fn find(&self, id: ListenerId) -> Option<Rc<CoreListener>> {
        self.known.borrow().iter().find(|listener| listener.id == id).cloned()
    }

    /// Follows the core from one plan to the next, in the same turn in which the core takes it.
    ///
    /// Shape: whether a listener went that the plan before had.
    pub(super) fn follow(&self, before: &LocalPlan, next: &LocalPlan, now: Instant) -> bool {
        let mut known = self.known.borrow_mut();
        let mut went = false;
        for listener in known.iter() {
            match next.listeners.iter().position(|plan| plan.id == listener.id) {
                Some(number) => {
                    listener.number.set(number);
                    listener.gone.set(false);
                    listener.last.replace(None);
                }
                None if listener.gone.replace(true) => {}
                None => {
                    went = true;
                    listener.last.replace(Some(Gone { plan: before.clone(), since: now }));
                }
            }
        }
        for (number, plan) in next.listeners.iter().enumerate() {
            if !known.iter().any(|listener| listener.id == plan.id) {
                known.push(Rc::new(CoreListener {
                    id: plan.id,
                    number: Cell::new(number),
                    gone: Cell::new(false),
                    last: RefCell::default(),
                }));
            }
        }
        self.any_gone.set(known.iter().any(|listener| listener.gone.get()));
        went
    }

    /// Calls `end` with each listener that has gone, and forgets those without a connection; called
    /// once per tick.
    pub(super) fn sweep(&self, now: Instant, end: impl Fn(ListenerId)) {
        if !self.any_gone.get() {
            return;
        }
        let mut known = self.known.borrow_mut();
        known.retain(|listener| {
            let last = listener.last.borrow();
            let Some(gone) = last.as_ref() else { return true };
            if now.saturating_duration_since(gone.since) >= IDLE_GRACE {
                end(listener.id);
            }
            let long = now.saturating_duration_since(gone.since) >= GONE_KEPT;
            Rc::strong_count(listener) > 1 || !long
        });
        self.any_gone.set(known.iter().any(|listener| listener.gone.get()));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::config::Config;
    use crate::net::tls::Store;
    use crate::proxy::compile::compile;
    use crate::proxy::core::Notifier;
    use crate::upstream::registry::Registry;

    fn plan(names: &[&str]) -> LocalPlan {
        let listener = |name: &&str| {
            format!("[[listener]]\nname = \"{name}\"\nbind = \"127.0.0.1:0\"\nauth = \"none\"\n")
        };
        let mut text: String = names.iter().map(listener).collect();
        text += "[[upstream]]\nname = \"u\"\nurl = \"http://127.0.0.1:9\"\nmodels = []\n";
        let config = Config::from_toml_str(&text, &|_| None).unwrap();
        let carried = Registry::new(Notifier::new(Vec::new())).carry(&config, &[]);
        Rc::new(Arc::new(compile(&config, carried, &Store::default(), 0).unwrap()))
    }

    fn names_of(listeners: &CoreListeners, now: &LocalPlan, names: &[&str]) {
        for name in names {
            let listener = listeners.find(ListenerId::of(name)).unwrap();
            assert_eq!(listener.with(now, |plan| plan.name.clone()), *name);
            let (plan, number) = listener.plan(now);
            assert_eq!(plan.listeners[number].name, *name);
            assert_eq!(usize::from(plan.listeners[number].number), number);
        }
    }

    #[test]
    fn each_is_found_in_its_own_plan_however_plans_are_ordered() {
        let listeners = CoreListeners::default();
        let start = Instant::now();
        let mut before = plan(&["a", "b", "c"]);
        assert!(!listeners.follow(&before, &before, start));
        names_of(&listeners, &before, &["a", "b", "c"]);
        // Held by a connection.
        let b = listeners.find(ListenerId::of("b")).unwrap();
        for (next, went) in
            [(&["c", "a", "b"][..], false), (&["d", "c", "a"], true), (&["a"], true)]
        {
            let next = plan(next);
            assert_eq!(listeners.follow(&before, &next, start), went);
            before = next;
            names_of(&listeners, &before, &["a", "b", "c"]);
        }
        assert!(b.is_gone());
        assert_eq!(b.plan(&before).0.listeners.len(), 3, "of the last plan that knew it");
        // One without a connection is forgotten after a while, one with a connection is not.
        let ended = RefCell::new(Vec::new());
        listeners.sweep(start, |id| panic!("{id} may have a request on its way"));
        listeners.sweep(start + IDLE_GRACE, |id| ended.borrow_mut().push(id));
        assert_eq!(*ended.borrow(), ["b", "c", "d"].map(ListenerId::of));
        listeners.sweep(start + GONE_KEPT, |_| {});
        assert!(listeners.find(ListenerId::of("c")).is_none());
        names_of(&listeners, &before, &["a", "b"]);
        drop(b);
        listeners.sweep(start + GONE_KEPT, |_| {});
        assert!(listeners.find(ListenerId::of("b")).is_none());
    }

    #[test]
    fn one_that_comes_back_is_current_again() {
        let listeners = CoreListeners::default();
        let start = Instant::now();
        let (with, without) = (plan(&["x", "a"]), plan(&["x"]));
        listeners.follow(&with, &with, start);
        let a = listeners.find(ListenerId::of("a")).unwrap();
        assert!(listeners.follow(&with, &without, start));
        assert!(!listeners.follow(&without, &with, start));
        assert!(!a.is_gone());
        names_of(&listeners, &with, &["a", "x"]);
        listeners.sweep(start + GONE_KEPT, |id| panic!("{id} has not gone"));
    }
}
