//! What makes a listener the same one in every config of this process: its name, as a number.
//!
//! A config that is loaded again may list its listeners in another order, leave some out and add
//! others, so a position in it says nothing about the next one. Connections, listening sockets and
//! messages to a core hold this number instead. Names are never forgotten: an operator has given
//! each of them, and a number must not come to mean another listener.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// A listener, whatever config it stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListenerId(pub u32);

/// The names that have an id; the position is the number.
static NAMES: Mutex<Vec<Arc<str>>> = Mutex::new(Vec::new());

impl ListenerId {
    /// The id of the listener of this name: always the same in one process, and no other name's.
    #[must_use]
    pub fn of(name: &str) -> Self {
        // A name is pushed whole, so a thread that panicked meanwhile left nothing half done.
        let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
        let known = names.iter().position(|known| **known == *name);
        let at = known.unwrap_or_else(|| {
            names.push(name.into());
            names.len() - 1
        });
        Self(u32::try_from(at).unwrap_or(u32::MAX))
    }

    /// The name that it stands for; empty for a number that `of` has not given.
    #[must_use]
    pub fn name(self) -> Arc<str> {
        let names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
        names.get(self.0 as usize).cloned().unwrap_or_default()
    }
}

impl fmt::Display for ListenerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_one_id_and_no_other_name_has_it() {
        let [a, b] = ["listener id a", "listener id b"].map(ListenerId::of);
        assert_ne!(a, b);
        assert_eq!(ListenerId::of("listener id a"), a);
        assert_eq!(&*b.name(), "listener id b");
        assert_eq!(&*ListenerId(u32::MAX).name(), "");
    }
}
