//! Whether the server at the other end of a link still lives.
//!
//! A connection that ends says so; one whose path is gone (a power cut, a firewall that forgot it)
//! says nothing, and every new exchange on it would hang. So a link in use is asked by PING now and
//! then, and a link that does not answer is ended: its exchanges fail, and the next exchange dials.
//!
//! Source: RFC 9113 §6.7. The rhythm is slower than what servers take for a flood.

use std::cell::{Cell, RefCell};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use h2::{Ping, PingPong};

/// From one PING to the next.
pub const ASK_EVERY: Duration = Duration::from_secs(30);
/// How long the answer to a PING may take.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(15);

/// Whether the server of one link still answers PING.
pub struct Pulse {
    ping: RefCell<PingPong>,
    asked: Cell<Instant>,
    /// The last PING has no answer yet.
    waiting: Cell<bool>,
    dead: Cell<bool>,
    watcher: RefCell<Option<Waker>>,
}

impl Pulse {
    /// The pulse of a link that lives; the first PING comes `ASK_EVERY` after `now`.
    #[must_use]
    pub fn new(ping: PingPong, now: Instant) -> Self {
        Self {
            ping: RefCell::new(ping),
            asked: Cell::new(now),
            waiting: Cell::default(),
            dead: Cell::default(),
            watcher: RefCell::default(),
        }
    }

    /// Sends a PING when it is time to, and calls the link dead when an answer is late; called at
    /// every tick while the link is in use.
    pub fn beat(&self, now: Instant) {
        let mut ping = self.ping.borrow_mut();
        let since = now.saturating_duration_since(self.asked.get());
        if self.waiting.get() {
            // An error is the connection's, whose task learns it by itself.
            let answer = ping.poll_pong(&mut Context::from_waker(Waker::noop()));
            self.waiting.set(answer.is_pending());
            if self.waiting.get() && since >= ANSWER_WITHIN {
                self.dead.set(true);
                self.watcher.take().into_iter().for_each(Waker::wake);
            }
        } else if since >= ASK_EVERY {
            self.asked.set(now);
            self.waiting.set(ping.send_ping(Ping::opaque()).is_ok());
        }
    }

    /// Done when the server has not answered a PING in time.
    pub fn poll_dead(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.dead.get() {
            return Poll::Ready(());
        }
        *self.watcher.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    use bytes::Bytes;

    use crate::http2::flood::{FloodLimits, FrameCounter};
    use crate::net::h2io::H2Io;
    use crate::net::pipe::{self, End};
    use crate::net::rt::{self, Wanted};
    use crate::net::stream::Stream;
    use crate::net::ticker::Ticker;

    fn io(end: End) -> H2Io {
        let (now, limits) = (Instant::now(), FloodLimits::default());
        let frames = FrameCounter::upstream(limits, now);
        H2Io::new(Stream::Pipe(end), Vec::new(), frames, Ticker::new(now).timer(), Duration::ZERO)
    }

    /// The pulse of a link whose server answers, or does not, after so many beats.
    fn check(answers: bool, seconds: &[u64], dead: bool) {
        rt::block_on(Wanted::Auto.with_environment(), |driver| {
            rt::note_driver(driver);
            let seconds = seconds.to_vec();
            async move {
                let (ours, theirs) = pipe::pair(1 << 16);
                let (requests, mut link) = h2::client::handshake(io(ours)).await.unwrap();
                let now = Instant::now();
                let pulse = Pulse::new(link.ping_pong().unwrap(), now);
                rt::spawn(async move { drop(link.await) });
                let silent = (!answers).then(|| theirs.clone());
                if answers {
                    rt::spawn(async move {
                        let mut server = h2::server::handshake::<_>(io(theirs)).await.unwrap();
                        let _: Option<Result<(_, h2::server::SendResponse<Bytes>), _>> =
                            server.accept().await;
                    });
                }
                for second in seconds {
                    pulse.beat(now + Duration::from_secs(second));
                    // The other tasks run between two beats.
                    rt::sleep(Duration::from_millis(5)).await;
                }
                let told = poll_fn(|cx| Poll::Ready(pulse.poll_dead(cx).is_ready())).await;
                assert_eq!(told, dead);
                drop((requests, silent));
            }
        })
        .unwrap();
    }

    #[test]
    fn a_server_that_does_not_answer_is_dead() {
        check(false, &[29, 44], false);
        check(false, &[31, 45], false);
        check(false, &[31, 46], true);
    }

    #[test]
    fn a_server_that_answers_lives() {
        check(true, &[31, 46, 60, 61, 62, 76, 300], false);
    }
}
