//! Whose slots those who wait would take: the members of a queue, as several plans see them.
//!
//! A queue outlives plans, and the plans before the newest one are there as long as an exchange of
//! theirs is. So a queue gives each upstream a number of its own, and each plan's group is a *view*:
//! it says which of these numbers its members have. A member leaves with the last view that has it.
//!
//! Counted here is also who would take a slot of which member, so that an upstream whose slot came
//! free asks only queues in which somebody does. Nearly all who wait take any member's, so that a
//! busy queue seldom changes the upstreams' counts.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::base::clock::Moment;
use crate::policy::balance::Tried;
use crate::upstream::state::UpstreamState;

/// Which members' slots a waiter takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepts {
    /// Not these members, by their index in the group.
    pub tried: Tried,
    /// This member alone; `None` = any.
    pub only: Option<usize>,
}

impl Accepts {
    /// Slots of any member.
    pub const ALL: Accepts = Accepts { tried: Tried::NONE, only: None };

    /// Tells whether the waiter takes a slot of this member.
    #[must_use]
    pub fn has(&self, member: usize) -> bool {
        self.only.is_none_or(|only| only == member) && !self.tried.has(member)
    }
}

/// The members of all views.
#[derive(Default)]
pub(super) struct Members {
    /// By number. None is given twice: whoever still offers a slot of a member that has left must
    /// not mean another one.
    members: BTreeMap<usize, Member>,
    numbers_given: usize,
    views: Vec<Option<View>>,
}

/// One upstream.
struct Member {
    state: Arc<UpstreamState>,
    /// Views that have it.
    views: u32,
    /// Who would take its slots: waiters with a choice of members, and views in which somebody
    /// takes any member's.
    wanted_by: u32,
}

/// The members of one plan's group.
struct View {
    /// Their numbers, in the group's order.
    numbers: Vec<usize>,
    /// Those who wait and take any member's slot.
    in_all: u32,
    /// Whether one of them admitted calls when `note_admissions` looked.
    admits: bool,
}

impl Members {
    /// Adds a view. Returns its number, and the numbers of members that are new in the queue.
    pub(super) fn bind(&mut self, states: &[Arc<UpstreamState>]) -> (usize, Vec<usize>) {
        let mut new = Vec::new();
        let numbers = states.iter().map(|state| self.number_of(state, &mut new)).collect();
        let view = View { numbers, in_all: 0, admits: false };
        let free = self.views.iter().position(Option::is_none);
        let at = free.unwrap_or(self.views.len());
        match free {
            Some(at) => self.views[at] = Some(view),
            None => self.views.push(Some(view)),
        }
        (at, new)
    }

    /// Removes a view in which nobody waits. Returns the members that only this view had.
    pub(super) fn unbind(&mut self, view: usize) -> Vec<(usize, Arc<UpstreamState>)> {
        let Some(View { numbers, .. }) = self.views[view].take() else { return Vec::new() };
        let mut gone = Vec::new();
        for number in numbers {
            let Some(member) = self.members.get_mut(&number) else { continue };
            member.views -= 1;
            if member.views == 0 {
                gone.extend(self.members.remove(&number).map(|member| (number, member.state)));
            }
        }
        gone
    }

    /// The upstream of this number.
    pub(super) fn state(&self, number: usize) -> Option<&Arc<UpstreamState>> {
        Some(&self.members.get(&number)?.state)
    }

    /// The number of a group's member.
    pub(super) fn number(&self, view: usize, member: usize) -> Option<usize> {
        self.view(view)?.numbers.get(member).copied()
    }

    /// The place in the group of a member that a waiter of this view takes slots of.
    pub(super) fn accepted(&self, view: usize, accepts: &Accepts, number: usize) -> Option<usize> {
        let numbers = &self.view(view)?.numbers;
        let member = numbers.iter().position(|known| *known == number)?;
        accepts.has(member).then_some(member)
    }

    /// Whether somebody would take a slot of this member.
    pub(super) fn is_wanted(&self, number: usize) -> bool {
        self.members.get(&number).is_some_and(|member| member.wanted_by > 0)
    }

    /// Looks for each view whether one of its members admits calls, for `admits`.
    #[cold]
    pub(super) fn note_admissions(&mut self, now: Moment) {
        let Self { members, views, .. } = self;
        let is_open = |number: &usize| members.get(number).is_some_and(|one| one.state.admits(now));
        for view in views.iter_mut().flatten() {
            view.admits = view.numbers.iter().any(is_open);
        }
    }

    /// What `note_admissions` found of a view.
    pub(super) fn admits(&self, view: usize) -> bool {
        self.view(view).is_some_and(|view| view.admits)
    }

    /// Counts a waiter in.
    pub(super) fn add(&mut self, view: usize, accepts: &Accepts) {
        let Self { members, views, .. } = self;
        let Some(view) = &mut views[view] else { return };
        if *accepts == Accepts::ALL {
            view.in_all += 1;
            if view.in_all > 1 {
                return;
            }
        }
        for number in view.accepted(accepts) {
            let Some(member) = members.get_mut(&number) else { continue };
            member.wanted_by += 1;
            if member.wanted_by == 1 {
                member.state.slots.want();
            }
        }
    }

    /// Counts a waiter out.
    pub(super) fn remove(&mut self, view: usize, accepts: &Accepts) {
        let Self { members, views, .. } = self;
        let Some(view) = &mut views[view] else { return };
        if *accepts == Accepts::ALL {
            view.in_all -= 1;
            if view.in_all > 0 {
                return;
            }
        }
        for number in view.accepted(accepts) {
            let Some(member) = members.get_mut(&number) else { continue };
            member.wanted_by -= 1;
            if member.wanted_by == 0 {
                member.state.slots.unwant();
            }
        }
    }

    fn view(&self, view: usize) -> Option<&View> {
        self.views.get(view)?.as_ref()
    }

    /// The number of an upstream, with one view more that has it.
    fn number_of(&mut self, state: &Arc<UpstreamState>, new: &mut Vec<usize>) -> usize {
        let known = self.members.iter_mut().find(|(_, one)| Arc::ptr_eq(&one.state, state));
        if let Some((number, member)) = known {
            member.views += 1;
            return *number;
        }
        let number = self.numbers_given;
        self.numbers_given += 1;
        self.members.insert(number, Member { state: state.clone(), views: 1, wanted_by: 0 });
        new.push(number);
        number
    }
}

impl View {
    /// The numbers of the members whose slots a waiter takes.
    fn accepted(&self, accepts: &Accepts) -> impl Iterator<Item = usize> {
        let all = self.numbers.iter().enumerate();
        all.filter(|(member, _)| accepts.has(*member)).map(|(_, number)| *number)
    }
}
