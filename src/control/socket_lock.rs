//! Who may change what the process listens on: a reload or a handover, never both at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The lock of one process; clones are the same.
#[derive(Clone, Default)]
pub struct SocketLock(Arc<AtomicBool>);

/// Somebody holds the lock, until this is dropped.
pub struct HeldSocketLock(SocketLock);

impl SocketLock {
    /// Takes the lock; `None` while somebody holds it.
    #[must_use]
    pub fn take(&self) -> Option<HeldSocketLock> {
        let free = self.0.compare_exchange(false, true, Ordering::AcqRel, Ordering::Acquire);
        free.is_ok().then(|| HeldSocketLock(self.clone()))
    }
}

impl Drop for HeldSocketLock {
    fn drop(&mut self) {
        self.0.0.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holds_it_at_a_time() {
        let lock = SocketLock::default();
        let held = lock.take().unwrap();
        assert!(lock.clone().take().is_none());
        drop(held);
        assert!(lock.take().is_some());
    }
}
