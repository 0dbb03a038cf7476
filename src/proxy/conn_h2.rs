//! One client connection that speaks HTTP/2: each of its streams is an exchange of its own.
//!
//! Frames, HPACK and windows are the `h2` crate's. Here is what belongs to a connection: how long
//! it may idle, how it ends in a drain or when its listener goes (GOAWAY, then the streams that are open end in peace), and
//! what happens to a client that floods it.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::task::{Poll, Waker};
use std::time::Instant;

use h2::Reason;
use h2::server::{Builder, Connection};

use super::core::Core;
use super::downstream::{Client, LINGER, linger};
use super::h2_stream;
use super::places;
use super::plan::ClientTimeouts;
use crate::base::buf::FRAME_BYTES;
use crate::config::H2Limits;
use crate::http2::Fault;
use crate::http2::flood::FrameCounter;
use crate::net::caught::caught;
use crate::net::h2io::{Chunk, Flooded, Fragments, H2Io};
use crate::net::pooled_future::PooledFuture;
use crate::net::rt;
use crate::net::stream::Handle;
use crate::net::sys::Shut;
use crate::net::ticker::Timer;
use crate::net::unsent::Unsent;

/// Bytes that a stream may have waiting to be sent: as many as its pipe gives at a time. A client
/// that opens all its streams and reads none costs this for each of them.
const SEND_BUFFER_BYTES: usize = FRAME_BYTES;

/// What the streams of a connection share.
struct Shared {
    /// The client, and the listener that accepted it.
    client: Client,
    /// Client-side timeouts, as of the connection's beginning.
    timeouts: ClientTimeouts,
    /// Counts the bytes of this connection's answers that wait to be sent.
    unsent: Rc<Unsent>,
    timer: Timer,
    streams: Cell<usize>,
    leaving: Cell<bool>,
    /// The connection's task, which sends the GOAWAY.
    task: Waker,
}

/// Counts a stream for as long as it lives.
struct Open {
    shared: Rc<Shared>,
    core: Rc<Core>,
}

impl Shared {
    /// Begins a stream: the connection idles no more.
    ///
    /// Shape: `None` when the process has as many connections and streams as it may. The first
    /// stream counts with its connection.
    fn open(self: &Rc<Self>, core: &Rc<Core>) -> Option<Open> {
        let others = self.streams.get();
        if others > 0 {
            if !places::make_place(core) {
                return None;
            }
            core.shared.streams.fetch_add(1, Ordering::Relaxed);
        }
        self.streams.set(others + 1);
        self.timer.disarm();
        Some(Open { shared: self.clone(), core: core.clone() })
    }

    /// No stream is open: arms the deadline of the connection, `LINGER` when it is leaving, else
    /// the keep-alive timeout.
    fn arm_idle(&self) {
        match self.leaving.get() {
            true => self.timer.arm(self.handle(), Shut::Both, LINGER),
            false => {
                self.timer.arm_idle_owned(self.task.clone(), self.timeouts.keepalive);
            }
        }
    }

    /// Whether the connection has idled for longer than the keep-alive timeout.
    fn is_tired(&self) -> bool {
        !self.leaving.get() && self.streams.get() == 0 && self.timer.expired()
    }

    fn handle(&self) -> Handle {
        self.client.stream.handle()
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let shared = &self.shared;
        let others = shared.streams.get() - 1;
        shared.streams.set(others);
        match others {
            0 => shared.arm_idle(),
            _ => {
                self.core.shared.streams.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }
}

/// Serves a connection to its end; `first` has been received on it already.
pub async fn serve(core: Rc<Core>, client: Client, first: Vec<u8>) {
    let timeouts = core.with_listener(&client.listener, |plan| plan.timeouts);
    let (timer, streams) = (core.ticker.timer(), Cell::new(0));
    let task = poll_fn(|cx| Poll::Ready(cx.waker().clone())).await;
    let leaving = Cell::new(false);
    let limits = core.plan().h2;
    // Its answers may hold as many bytes as the client may send before we have read them.
    let unsent = Unsent::new(core.shared.unsent.clone(), limits.connection_window as usize);
    let shared = Rc::new(Shared { client, timeouts, unsent, timer, streams, leaving, task });
    let stream = shared.client.stream.clone();
    let frames = FrameCounter::downstream(limits.flood(), Instant::now());
    let mut io = H2Io::new(stream, first, frames, core.ticker.timer(), timeouts.write_idle);
    let (flooded, fragments) = (io.flooded(), io.fragments());
    shared.timer.arm(shared.handle(), Shut::Both, timeouts.head);
    if let Ok(connection) = settings(&limits).handshake::<_, Chunk>(io).await {
        shared.arm_idle();
        accept(&core, &shared, connection, &flooded, &fragments).await;
        // The client may still be sending window updates, or opening a stream.
        linger(&shared.client.stream, &shared.timer).await;
    }
}

fn settings(limits: &H2Limits) -> Builder {
    let mut settings = Builder::new();
    settings
        .max_concurrent_streams(limits.streams)
        .initial_window_size(limits.window)
        .initial_connection_window_size(limits.connection_window)
        .max_header_list_size(limits.header_list)
        .max_send_buffer_size(SEND_BUFFER_BYTES);
    settings
}

/// Takes streams until the connection is over.
async fn accept(
    core: &Rc<Core>,
    shared: &Rc<Shared>,
    mut connection: Connection<H2Io, Chunk>,
    flooded: &Flooded,
    fragments: &Fragments,
) {
    let leave = core.leaving.enroll();
    let mut ended = false;
    loop {
        let accepted = poll_fn(|cx| {
            if core.is_leaving(&shared.client.listener) && !shared.leaving.replace(true) {
                connection.graceful_shutdown();
                if shared.streams.get() == 0 {
                    shared.arm_idle();
                }
            }
            if flooded.by().is_some() && !std::mem::replace(&mut ended, true) {
                connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                shared.timer.arm(shared.handle(), Shut::Both, LINGER);
            }
            if shared.is_tired() {
                // A request that crosses this GOAWAY has not been served, and the GOAWAY tells the
                // client so.
                shared.leaving.set(true);
                connection.abrupt_shutdown(Reason::NO_ERROR);
                shared.arm_idle();
            }
            leave.wake_by(cx.waker());
            connection.poll_accept(cx)
        })
        .await;
        // An error of the connection is the client's: `h2` has sent the GOAWAY for it.
        let Some(Ok((request, mut respond))) = accepted else { break };
        if fragments.take(respond.stream_id().as_u32()) {
            let asked = (request.method().as_str(), request.uri().path());
            h2_stream::refuse(core, &shared.client, Fault::TargetBad, asked, &mut respond);
            continue;
        }
        let Some(open) = shared.open(core) else {
            let asked = (request.method().as_str(), request.uri().path());
            h2_stream::turn_away(core, &shared.client, asked, &mut respond);
            core.shared.refused.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        let (core, shared) = (core.clone(), shared.clone());
        rt::spawn(async move {
            let serving = pin!(PooledFuture::with(|| {
                let (client, unsent) = (&shared.client, &shared.unsent);
                let write_idle = shared.timeouts.write_idle;
                h2_stream::serve(&core, client, write_idle, unsent, request, respond)
            }));
            core.count_panic(caught(serving).await.is_none());
            drop(open);
        });
    }
}
