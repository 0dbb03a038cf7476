//! The HTTP/2 connections of one core, by address of an upstream.
//!
//! Such a connection is called a link. A link carries many exchanges at once, so it is not taken
//! and put back as a pooled connection is: an exchange gets a slot on it. New exchanges go to the
//! first link with room, so that links which a burst has opened beyond need idle and end. While one
//! exchange dials, the others for the same address wait for its outcome: fifty exchanges do not
//! make fifty connections.
//!
//! A task of its own runs each connection. It ends when the last slot and the list have let go of
//! the link: GOAWAY and close are then the `h2` crate's. A link that its server has told to go
//! leaves the list at once, and the exchanges on it end in peace.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use h2::Reason;
use h2::client::{Builder, SendRequest};
use http::uri::Scheme;

use super::connect::DialError;
use super::endpoint::PoolId;
use super::pulse::Pulse;
use crate::http1::parse::HeadLimits;
use crate::http2::flood::{FloodLimits, FrameCounter};
use crate::net::caught::caught;
use crate::net::h2io::{Chunk, H2Io};
use crate::net::pooled_future::PooledFuture;
use crate::net::rt;
use crate::net::stream::Stream;
use crate::net::ticker::Timer;

/// Most exchanges on one link at once; the server may allow fewer.
pub const STREAMS_MAX: usize = 128;
/// Most links per address and core. Beyond them exchanges share links, and wait for the server to
/// let their streams begin.
pub const LINKS_MAX: usize = 64;
/// Bytes that a stream may receive before its exchange has taken them.
const STREAM_WINDOW_BYTES: u32 = 256 << 10;
/// The same for all streams of a link: as much as they may hold together, since with less a few
/// clients that do not read would stop all others.
const LINK_WINDOW_BYTES: u32 = STREAM_WINDOW_BYTES * STREAMS_MAX as u32;
/// Bytes that a stream may have waiting to be sent.
const SEND_BUFFER_BYTES: usize = 64 << 10;
/// Bytes that each field of a head counts beside its own (RFC 9113 §6.5.2).
const FIELD_EXTRA_BYTES: usize = 32;
/// Streams that we have cancelled and whose last frames are still on their way.
const CANCELLED_MAX: usize = 1024;
/// How long a server may read nothing of what is sent.
const WRITE_IDLE: Duration = Duration::from_secs(30);

/// The links of one core.
#[derive(Default)]
pub struct H2Pool {
    entries: RefCell<BTreeMap<PoolId, Entry>>,
    panics: Cell<u64>,
}

/// The links to one address, and the dial for another one.
#[derive(Default)]
struct Entry {
    live: Vec<Rc<Link>>,
    pending: Option<Rc<PendingDial>>,
}

/// One HTTP/2 connection.
pub struct Link {
    requests: SendRequest<Chunk>,
    scheme: Scheme,
    streams: Cell<usize>,
    served: Cell<u64>,
    idle_since: Cell<Instant>,
    pulse: Option<Rc<Pulse>>,
}

/// One exchange's place on a link, until it is dropped.
pub struct StreamSlot {
    link: Rc<Link>,
    fresh: bool,
}

/// What an exchange has to do to get a slot.
pub enum Find {
    /// Nothing: here it is.
    StreamSlot(StreamSlot),
    /// Dial, and tell the others how that ended.
    Dial(DialLeader),
    /// Wait for the exchange that dials.
    Wait(Rc<PendingDial>),
}

/// A dial in progress, for which others wait.
#[derive(Default)]
pub struct PendingDial {
    ended: RefCell<Option<DialOutcome>>,
    waiting: RefCell<Vec<Waker>>,
}

/// How a dial ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DialOutcome {
    /// There is a link, or the exchange that dialled has left: ask again.
    AskAgain,
    /// The server speaks HTTP/1.1: each exchange dials a connection of its own.
    Http1,
    /// There is no connection.
    Failed(DialError),
}

/// The right to dial for all exchanges that wait; dropped without `tell`, one of them dials next.
pub struct DialLeader {
    h2_pool: Rc<H2Pool>,
    pool: PoolId,
    pending: Rc<PendingDial>,
    outcome: DialOutcome,
}

impl H2Pool {
    /// Looks for a slot; with `fresh`, not on a link that exists already (but where there are
    /// `LINKS_MAX`).
    pub fn find(self: &Rc<Self>, pool: PoolId, fresh: bool) -> Find {
        let mut entries = self.entries.borrow_mut();
        let entry = entries.entry(pool).or_default();
        entry.live.retain(|link| link.is_usable());
        if let Some(link) = entry.live.iter().find(|link| !fresh && link.has_room()) {
            return Find::StreamSlot(link.slot());
        }
        if let Some(pending) = &entry.pending {
            return Find::Wait(pending.clone());
        }
        if entry.live.len() >= LINKS_MAX
            && let Some(link) = entry.live.iter().min_by_key(|link| link.streams.get())
        {
            return Find::StreamSlot(link.slot());
        }
        let pending = Rc::new(PendingDial::default());
        entry.pending = Some(pending.clone());
        Find::Dial(DialLeader {
            h2_pool: self.clone(),
            pool,
            pending,
            outcome: DialOutcome::AskAgain,
        })
    }

    /// Begins HTTP/2 on a connection, waits for the server's SETTINGS, and takes the first slot.
    ///
    /// Shape: `timer` bounds sends to a server that does not read. A link that is not `listed`
    /// serves this slot alone.
    /// Errors: the connection broke or ended before the server's SETTINGS.
    pub async fn begin(
        self: &Rc<Self>,
        pool: PoolId,
        stream: Stream,
        timer: Timer,
        listed: bool,
        head: &HeadLimits,
    ) -> Result<StreamSlot, h2::Error> {
        let scheme = match stream {
            Stream::Tls(_) => Scheme::HTTPS,
            Stream::Plain(_) | Stream::Pipe(_) => Scheme::HTTP,
        };
        let frames = FrameCounter::upstream(FloodLimits::default(), Instant::now());
        let io = H2Io::new(stream, Vec::new(), frames, timer, WRITE_IDLE);
        let flooded = io.flooded();
        let (requests, mut connection) = settings(head).handshake::<_, Chunk>(io).await?;
        // How many streams the server takes is known only when its SETTINGS have come.
        poll_fn(|cx| match Pin::new(&mut connection).poll(cx) {
            _ if requests.current_max_send_streams() > 0 => Poll::Ready(Ok(())),
            Poll::Ready(ended) => Poll::Ready(ended.and(Err(Reason::NO_ERROR.into()))),
            Poll::Pending => Poll::Pending,
        })
        .await?;
        let pulse = connection.ping_pong().map(|ping| Rc::new(Pulse::new(ping, Instant::now())));
        let link = Rc::new(Link {
            requests,
            scheme,
            streams: Cell::new(0),
            served: Cell::new(0),
            idle_since: Cell::new(Instant::now()),
            pulse: pulse.clone(),
        });
        if listed {
            self.entries.borrow_mut().entry(pool).or_default().live.push(link.clone());
        }
        let (h2_pool, of) = (self.clone(), Rc::downgrade(&link));
        self.spawn(async move {
            // The connection's error reaches each of its streams. A connection that floods us, or
            // whose server is dead, is dropped, which ends its streams.
            poll_fn(|cx| {
                let dead = pulse.as_ref().is_some_and(|pulse| pulse.poll_dead(cx).is_ready());
                match flooded.by() {
                    Some(_) => Poll::Ready(()),
                    None if dead => Poll::Ready(()),
                    None => Pin::new(&mut connection).poll(cx).map(drop),
                }
            })
            .await;
            drop(connection);
            h2_pool.forget(pool, &of);
        });
        Ok(link.slot())
    }

    /// Runs a task of a link; a panic costs that task alone.
    pub fn spawn(self: &Rc<Self>, task: impl Future<Output = ()> + 'static) {
        let h2_pool = self.clone();
        rt::spawn(PooledFuture::with(move || async move {
            if caught(pin!(task)).await.is_none() {
                h2_pool.panics.set(h2_pool.panics.get() + 1);
            }
        }));
    }

    fn forget(&self, pool: PoolId, link: &Weak<Link>) {
        if let Some(entry) = self.entries.borrow_mut().get_mut(&pool) {
            entry.live.retain(|live| !std::ptr::eq(Rc::as_ptr(live), link.as_ptr()));
        }
    }

    /// Ends links that have idled too long, or whose address is in no plan any more, and asks links
    /// in use by PING; called at every tick.
    ///
    /// Shape: `idle_max` is `None` for a pool that is in no plan any more.
    pub fn sweep(&self, idle_max: impl Fn(PoolId) -> Option<Duration>, now: Instant) {
        self.entries.borrow_mut().retain(|pool, entry| {
            let idle_max = idle_max(*pool);
            entry.live.retain(|link| {
                if let Some(pulse) = link.pulse.as_ref().filter(|_| link.streams.get() > 0) {
                    pulse.beat(now);
                }
                let idled = now.saturating_duration_since(link.idle_since.get());
                let idles = link.streams.get() == 0;
                link.is_usable() && idle_max.is_some_and(|max| !idles || idled < max)
            });
            !entry.live.is_empty() || entry.pending.is_some()
        });
    }

    /// Ends every link as soon as its last exchange has: the core is leaving.
    ///
    /// Shape: returns whether there were any; their tasks send GOAWAY when they run next.
    pub fn close_all(&self) -> bool {
        let mut entries = self.entries.borrow_mut();
        entries
            .values_mut()
            .fold(false, |any, entry| any | !std::mem::take(&mut entry.live).is_empty())
    }

    /// Panics since the last call.
    #[must_use]
    pub fn take_panics(&self) -> u64 {
        self.panics.take()
    }
}

fn settings(head: &HeadLimits) -> Builder {
    let head_bytes = head.head_bytes_max + head.fields_max * FIELD_EXTRA_BYTES;
    let mut settings = Builder::new();
    settings
        .enable_push(false)
        .initial_max_send_streams(0)
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(LINK_WINDOW_BYTES)
        .max_header_list_size(u32::try_from(head_bytes).unwrap_or(u32::MAX))
        .max_send_buffer_size(SEND_BUFFER_BYTES)
        .max_concurrent_reset_streams(CANCELLED_MAX)
        // No limit: these are counted over the life of a connection, and clients that leave cause
        // some.
        .max_local_error_reset_streams(None);
    settings
}

impl Link {
    /// Whether streams can still be begun: no GOAWAY, no error, stream numbers left.
    fn is_usable(&self) -> bool {
        let polled = self.requests.clone().poll_ready(&mut Context::from_waker(Waker::noop()));
        !matches!(polled, Poll::Ready(Err(_)))
    }

    fn has_room(&self) -> bool {
        self.streams.get() < STREAMS_MAX.min(self.requests.current_max_send_streams())
    }

    fn slot(self: &Rc<Self>) -> StreamSlot {
        self.streams.set(self.streams.get() + 1);
        let served = self.served.replace(self.served.get() + 1);
        StreamSlot { link: self.clone(), fresh: served == 0 }
    }
}

impl StreamSlot {
    /// The handle by which streams are begun.
    #[must_use]
    pub fn requests(&self) -> SendRequest<Chunk> {
        self.link.requests.clone()
    }

    /// `http` or `https`.
    #[must_use]
    pub fn scheme(&self) -> Scheme {
        self.link.scheme.clone()
    }

    /// Whether no exchange has been on this connection before.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        self.fresh
    }
}

impl Drop for StreamSlot {
    fn drop(&mut self) {
        let link = &self.link;
        link.streams.set(link.streams.get() - 1);
        link.idle_since.set(Instant::now());
    }
}

impl PendingDial {
    /// Waits for the end of the dial. Free to drop.
    pub async fn ended(&self) -> DialOutcome {
        poll_fn(|cx| match &*self.ended.borrow() {
            Some(outcome) => Poll::Ready(outcome.clone()),
            None => {
                let mut waiting = self.waiting.borrow_mut();
                if !waiting.iter().any(|known| known.will_wake(cx.waker())) {
                    waiting.push(cx.waker().clone());
                }
                Poll::Pending
            }
        })
        .await
    }
}

impl DialLeader {
    /// Tells the exchanges that wait how the dial ended.
    pub fn tell(mut self, outcome: DialOutcome) {
        self.outcome = outcome;
    }
}

impl Drop for DialLeader {
    fn drop(&mut self) {
        if let Some(entry) = self.h2_pool.entries.borrow_mut().get_mut(&self.pool) {
            entry.pending = None;
        }
        *self.pending.ended.borrow_mut() = Some(self.outcome.clone());
        self.pending.waiting.take().into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::race::poll_idle;
    use std::pin::pin;

    const POOL: PoolId = PoolId(7);

    fn leader(h2_pool: &Rc<H2Pool>) -> DialLeader {
        match h2_pool.find(POOL, false) {
            Find::Dial(leader) => leader,
            Find::StreamSlot(_) | Find::Wait(_) => panic!("nobody has dialled"),
        }
    }

    fn wait(h2_pool: &Rc<H2Pool>) -> Rc<PendingDial> {
        match h2_pool.find(POOL, true) {
            Find::Wait(pending) => pending,
            Find::StreamSlot(_) | Find::Dial(_) => panic!("somebody dials"),
        }
    }

    #[test]
    fn one_dials_and_the_others_learn_how_it_ended() {
        let h2_pool = Rc::new(H2Pool::default());
        for told in
            [DialOutcome::AskAgain, DialOutcome::Http1, DialOutcome::Failed(DialError::Late)]
        {
            let dialling = leader(&h2_pool);
            let (first, second) = (wait(&h2_pool), wait(&h2_pool));
            let mut waiting = pin!(first.ended());
            assert!(poll_idle(waiting.as_mut()).is_pending());
            dialling.tell(told.clone());
            assert_eq!(poll_idle(waiting), Poll::Ready(told.clone()));
            assert_eq!(poll_idle(pin!(second.ended())), Poll::Ready(told));
        }
    }

    #[test]
    fn a_dial_that_is_given_up_passes_on() {
        let h2_pool = Rc::new(H2Pool::default());
        let dialling = leader(&h2_pool);
        let waiting = wait(&h2_pool);
        // A sweep and a drain leave those who wait alone.
        h2_pool.sweep(|_| None, Instant::now());
        assert!(!h2_pool.close_all());
        let still = wait(&h2_pool);
        assert!(Rc::ptr_eq(&waiting, &still));
        drop(dialling);
        assert_eq!(poll_idle(pin!(waiting.ended())), Poll::Ready(DialOutcome::AskAgain));
        drop(leader(&h2_pool));
        h2_pool.sweep(|_| None, Instant::now());
        assert!(h2_pool.entries.borrow().is_empty());
    }
}
