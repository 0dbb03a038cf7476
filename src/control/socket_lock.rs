//! Who may change what the process listens on: a reload or a handover, never both at a time.

use std::sync::{Arc, Mutex, PoisonError};

/// The lock of one process; clones are the same.
#[derive(Clone, Default)]
pub struct SocketLock(Arc<Mutex<Option<Holder>>>);

/// What changes the sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// A reload of the config.
    Reload,
    /// A handover to another process.
    Handover,
}

/// Somebody holds the lock, until this is dropped.
pub struct HeldSocketLock(SocketLock);

impl SocketLock {
    /// Takes the lock.
    ///
    /// Errors: who holds it.
    pub fn take(&self, holder: Holder) -> Result<HeldSocketLock, Holder> {
        let mut held = self.lock();
        match *held {
            None => *held = Some(holder),
            Some(other) => return Err(other),
        }
        drop(held);
        Ok(HeldSocketLock(self.clone()))
    }

    /// Whether it is held for this.
    #[must_use]
    pub fn is_held_by(&self, holder: Holder) -> bool {
        *self.lock() == Some(holder)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Holder>> {
        // Stored whole: a thread that panicked meanwhile left nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for HeldSocketLock {
    fn drop(&mut self) {
        *self.0.lock() = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holds_it_at_a_time() {
        let lock = SocketLock::default();
        let held = lock.take(Holder::Reload).ok().unwrap();
        assert_eq!(lock.clone().take(Holder::Handover).err(), Some(Holder::Reload));
        drop(held);
        assert!(lock.take(Holder::Handover).is_ok());
    }
}
