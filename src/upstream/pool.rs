//! The idle connections of one core, last in first out per address of an upstream.
//!
//! The most recently used connection is the least likely to be stale. Each idle connection has a
//! receive armed; a receive that completed while idle (an end, a reset, an unasked byte) makes the
//! connection unfit. `Keep-Alive: timeout=, max=` is honoured one second and one request early. A
//! connection past its time is shut down by `sweep` and dropped when its receive has come back, so
//! that no live operation is ever dropped. So is a connection to an address that is in no plan any
//! more.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::task::Poll;
use std::time::{Duration, Instant};

use super::conn::UpConn;
use super::endpoint::PoolId;
use crate::base::buf::Buffers;
use crate::net::sys::Shut;

/// Idle connections kept per address and core.
pub const IDLE_MAX: usize = 1024;
/// How much earlier than `Keep-Alive: timeout` says a connection is given up.
pub const TIMEOUT_MARGIN: Duration = Duration::from_secs(1);

/// The idle connections of one core, and those whose receive is still to come back.
#[derive(Default)]
pub struct Pool {
    idle: RefCell<BTreeMap<PoolId, Vec<UpConn>>>,
    dying: RefCell<Vec<UpConn>>,
}

impl Pool {
    /// Takes the most recently used fit connection.
    #[must_use]
    pub fn take(&self, pool: PoolId, idle_max: Duration, now: Instant) -> Option<UpConn> {
        loop {
            let mut conn = self.idle.borrow_mut().get_mut(&pool)?.pop()?;
            if fit(&mut conn, idle_max, now) {
                return Some(conn);
            }
            self.bury(conn);
        }
    }

    /// Puts a connection back after a complete answer, with a receive armed into `buffer`; beyond
    /// `IDLE_MAX` the connection is ended.
    pub fn put(&self, mut conn: UpConn, buffer: Vec<u8>, now: Instant) {
        conn.idle_since = Some(now);
        conn.arm(buffer);
        let mut idle = self.idle.borrow_mut();
        let mates = idle.entry(conn.pool).or_default();
        if mates.len() < IDLE_MAX {
            mates.push(conn);
        } else {
            drop(idle);
            self.bury(conn);
        }
    }

    /// Ends a connection, and keeps it until its receive has come back.
    pub fn bury(&self, conn: UpConn) {
        conn.socket().shutdown(Shut::Both);
        if conn.is_armed() {
            self.dying.borrow_mut().push(conn);
        }
    }

    /// Ends connections that are stale or past their time, and drops ended ones whose receive has
    /// come back; called at every tick.
    ///
    /// Shape: `idle_max` is `None` for a pool that is in no plan any more.
    pub fn sweep(
        &self,
        idle_max: impl Fn(PoolId) -> Option<Duration>,
        buffers: &Buffers,
        now: Instant,
    ) {
        let mut unfit = Vec::new();
        self.idle.borrow_mut().retain(|pool, idle| {
            let Some(idle_max) = idle_max(*pool) else {
                unfit.append(idle);
                return false;
            };
            let mut at = 0;
            while at < idle.len() {
                if fit(&mut idle[at], idle_max, now) {
                    at += 1;
                } else {
                    unfit.push(idle.remove(at));
                }
            }
            true
        });
        unfit.into_iter().for_each(|conn| self.bury(conn));
        self.dying.borrow_mut().retain_mut(|conn| match conn.poll_stale() {
            Poll::Pending => conn.is_armed(),
            Poll::Ready((_, buffer)) => {
                buffers.give_back(buffer);
                false
            }
        });
    }

    /// Ends every idle connection: the core is leaving.
    pub fn close_all(&self) {
        let idle = std::mem::take(&mut *self.idle.borrow_mut());
        idle.into_values().flatten().for_each(|conn| self.bury(conn));
    }

    /// How many connections idle.
    #[must_use]
    pub fn idle_all(&self) -> u32 {
        u32::try_from(self.idle.borrow().values().map(Vec::len).sum::<usize>()).unwrap_or(u32::MAX)
    }

    /// How many connections to one address idle.
    #[must_use]
    pub fn idle(&self, pool: PoolId) -> usize {
        self.idle.borrow().get(&pool).map_or(0, Vec::len)
    }
}

fn fit(conn: &mut UpConn, idle_max: Duration, now: Instant) -> bool {
    let idle_until = conn.idle_since.and_then(|since| since.checked_add(idle_max));
    let in_time = [idle_until, conn.lifetime.until].into_iter().flatten().all(|until| now < until);
    // Polled last and always, so that a completed receive is taken out of its block.
    conn.poll_stale().is_pending() && in_time
}
