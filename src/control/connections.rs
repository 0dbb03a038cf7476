//! The connections to the operator's address, and which one is closed when there are too many.
//!
//! Their number is bounded. A new connection does not wait for another one to end by itself: a
//! client that opens connections and sends nothing would keep the operator and the probes of an
//! orchestrator out. It replaces the connection that has idled longest; a connection with a request
//! under way is not closed. Only the control thread uses this, so the lock is never waited for.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

/// The open connections, at most `max`.
pub(super) struct Connections {
    max: usize,
    taken: Mutex<Vec<Arc<Connection>>>,
    /// A counter in the place of time: only the order in which connections were used matters.
    clock: AtomicU64,
}

/// What is remembered of an open connection.
struct Connection {
    busy: AtomicBool,
    /// When the connection was opened or a request on it ended, by `Connections::clock`.
    used: AtomicU64,
    leave: Notify,
    finish: Notify,
}

/// One open connection; dropping this makes room for another.
pub(super) struct OpenConnection {
    connections: Arc<Connections>,
    connection: Arc<Connection>,
}

/// A request under way; until this is dropped its connection is not closed for another.
pub(super) struct Busy {
    connections: Arc<Connections>,
    connection: Arc<Connection>,
}

impl Connections {
    /// Room for `max` connections.
    pub(super) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max, taken: Mutex::default(), clock: AtomicU64::new(0) })
    }

    /// Adds a connection; when there are `max`, the one that has idled longest is told to leave.
    /// `None` when all of them have a request under way.
    pub(super) fn open(self: &Arc<Self>) -> Option<OpenConnection> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.len() >= self.max {
            let idle = taken.iter().enumerate().filter(|(_, s)| !s.busy.load(Ordering::Relaxed));
            let (at, _) =
                idle.min_by_key(|(_, connection)| connection.used.load(Ordering::Relaxed))?;
            taken.swap_remove(at).leave.notify_one();
        }
        let connection = Arc::new(Connection {
            busy: AtomicBool::new(false),
            used: AtomicU64::new(self.tick()),
            leave: Notify::new(),
            finish: Notify::new(),
        });
        taken.push(connection.clone());
        Some(OpenConnection { connections: self.clone(), connection })
    }

    /// Tells each connection to end after the request that it is at.
    pub(super) fn finish_all(&self) {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.iter().for_each(|connection| connection.finish.notify_one());
    }

    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::Relaxed)
    }
}

impl OpenConnection {
    /// Waits until another connection needs the place of this one.
    pub(super) async fn must_leave(&self) {
        self.connection.leave.notified().await;
    }

    /// Waits until this connection is to end after the request that it is at.
    pub(super) async fn must_finish(&self) {
        self.connection.finish.notified().await;
    }

    /// Returns a function to call at the begin of each request; its result is dropped at the end.
    pub(super) fn requests(&self) -> impl Fn() -> Busy + Clone + Send + Sync + 'static {
        let (connections, connection) = (self.connections.clone(), self.connection.clone());
        move || {
            connection.busy.store(true, Ordering::Relaxed);
            Busy { connections: connections.clone(), connection: connection.clone() }
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.connection.used.store(self.connections.tick(), Ordering::Relaxed);
        self.connection.busy.store(false, Ordering::Relaxed);
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        let mut taken = self.connections.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.retain(|connection| !Arc::ptr_eq(connection, &self.connection));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(seated: &OpenConnection) -> bool {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let soon = std::time::Duration::from_millis(1);
        runtime.block_on(async { tokio::time::timeout(soon, seated.must_leave()).await }).is_ok()
    }

    #[test]
    fn the_longest_idle_one_gives_way_and_the_busy_one_stays() {
        let connections = Connections::new(3);
        let [a, b, c] = [0; 3].map(|_| connections.open().unwrap());
        let working = a.requests()();
        // `b` has been used since `c` came.
        drop(b.requests()());
        let d = connections.open().unwrap();
        assert_eq!([&a, &b, &c, &d].map(told), [false, false, true, false]);
        drop(c);
        drop(working);
        let e = connections.open().unwrap();
        assert_eq!([&a, &b, &d, &e].map(told), [false, true, false, false]);
    }

    #[test]
    fn nobody_is_let_in_while_all_are_busy() {
        let connections = Connections::new(2);
        let (a, b) = (connections.open().unwrap(), connections.open().unwrap());
        let working = (a.requests()(), b.requests()());
        assert!(connections.open().is_none());
        drop(working.0);
        assert!(connections.open().is_some());
        assert!(told(&a) && !told(&b));
    }

    #[test]
    fn who_leaves_gives_its_place_back() {
        let connections = Connections::new(1);
        for _ in 0..3 {
            let one = connections.open().unwrap();
            assert!(!told(&one));
        }
        assert!(connections.taken.lock().unwrap().is_empty());
    }
}
