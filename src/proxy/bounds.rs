//! How many connections and handshakes the process takes; a reload may change it.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// The bounds in force; the cores read them at every connection.
#[derive(Debug, Default)]
pub struct Bounds {
    connections_max: AtomicU32,
    per_ip_max: AtomicU32,
    handshakes_max: AtomicU32,
}

/// What the bounds are to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BoundsWanted {
    /// Most client connections.
    pub connections_max: u32,
    /// Most client connections of one address; 0 = any number.
    pub per_ip_max: u32,
    /// Most TLS handshakes under way at once.
    pub handshakes_max: u32,
}

impl Bounds {
    /// Puts bounds in force; what is open stays open.
    pub fn set(&self, wanted: BoundsWanted) {
        self.connections_max.store(wanted.connections_max, Relaxed);
        self.per_ip_max.store(wanted.per_ip_max, Relaxed);
        self.handshakes_max.store(wanted.handshakes_max, Relaxed);
    }

    /// Most client connections.
    pub fn connections_max(&self) -> u32 {
        self.connections_max.load(Relaxed)
    }

    /// Most client connections of one address; 0 = any number.
    pub fn per_ip_max(&self) -> u32 {
        self.per_ip_max.load(Relaxed)
    }

    /// Most TLS handshakes under way at once.
    pub fn handshakes_max(&self) -> u32 {
        self.handshakes_max.load(Relaxed)
    }
}

impl From<BoundsWanted> for Bounds {
    fn from(wanted: BoundsWanted) -> Bounds {
        let bounds = Bounds::default();
        bounds.set(wanted);
        bounds
    }
}
