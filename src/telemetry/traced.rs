//! A sampled exchange at its end, and the ring that takes it from its core to the control thread.
//!
//! Texts are copied, since only few are sampled. A ring is as that of the access log: one writer, one
//! reader, no lock.

use std::net::IpAddr;
use std::time::Duration;

use rtrb::{Consumer, Producer, RingBuffer};

use super::finished::Finished;
use super::outcome::Outcome;
use super::trace::Trace;
use crate::base::clock::{Moment, WallTime};

/// A sampled exchange at its end, on its way to the control thread.
#[derive(Clone, Debug)]
pub struct TracedExchange {
    /// Its spans.
    pub trace: Trace,
    /// When the head had been read.
    pub begun: Moment,
    /// The same by the wall's clock.
    pub begun_wall: WallTime,
    /// The exchange's id.
    pub request_id: String,
    /// The client's address.
    pub client: Option<IpAddr>,
    /// The listener's name.
    pub listener: String,
    /// The method.
    pub method: String,
    /// The path, without its query.
    pub path: String,
    /// The group at work last.
    pub group: String,
    /// The model, as the client named it.
    pub model: String,
    /// The model, as the server read it.
    pub model_sent: String,
    /// The upstream of the last attempt.
    pub upstream: String,
    /// What happened, in numbers.
    pub outcome: Outcome,
}

impl TracedExchange {
    /// Copies what the spans tell; the name of the key is not among it.
    #[must_use]
    pub fn new(
        finished: &Finished<'_>,
        trace: Trace,
        begun: Moment,
        begun_wall: WallTime,
    ) -> TracedExchange {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let end = memchr::memchr2(b'?', b'#', finished.path).unwrap_or(finished.path.len());
        TracedExchange {
            trace,
            begun,
            begun_wall,
            request_id: finished.request_id.to_owned(),
            client: finished.client,
            listener: finished.listener.to_owned(),
            method: text(finished.method),
            path: text(&finished.path[..end]),
            group: finished.group.to_owned(),
            model: text(finished.model),
            model_sent: text(finished.model_sent),
            upstream: finished.upstream.to_owned(),
            outcome: *finished.outcome,
        }
    }

    /// How long the exchange took.
    #[must_use]
    pub fn duration(&self) -> Duration {
        Duration::from_micros(self.outcome.duration_us)
    }
}

/// Exchanges that are exported together; boxed as they come out of the rings.
#[allow(clippy::vec_box)]
pub type TracedBatch = Vec<Box<TracedExchange>>;
/// A core's end of a ring of exchanges.
pub type TraceWriter = Producer<Box<TracedExchange>>;
/// The control thread's end.
pub type TraceReader = Consumer<Box<TracedExchange>>;

/// Makes a ring for so many exchanges; what finds no room is left out, and whoever pushed it counts
/// that.
#[must_use]
pub fn trace_ring(exchanges: usize) -> (TraceWriter, TraceReader) {
    RingBuffer::new(exchanges)
}
