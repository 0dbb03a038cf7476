//! Noticing that a client leaves while nothing is read from it.
//!
//! One readiness poll is kept armed per client connection: while the upstream works it tells that
//! the client has gone, and between requests it tells that the next request has begun. It is the
//! same poll, so a request costs one. Without it the upstream would never learn that the client
//! has left, and its GPU would go on.
//!
//! Readiness may also mean pipelined bytes. Then the poll can tell nothing more, and the ticker
//! looks for the end behind those bytes.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};

use super::pooled_future::PooledFuture;
use super::stream::Stream;
use super::sys::Peek;
use super::ticker::Timer;

/// The armed readiness poll of one connection.
pub struct Watch {
    socket: Stream,
    armed: Option<PooledFuture<'static, ()>>,
    /// Unread bytes wait: the next request has begun before the last one ended.
    pipelined: bool,
}

impl Watch {
    /// Watches a connection; nothing is armed yet.
    #[must_use]
    pub fn new(socket: Stream) -> Self {
        Self { socket, armed: None, pipelined: false }
    }

    /// Waits until bytes can be received or the peer has ended.
    pub async fn readable(&mut self) {
        if std::mem::take(&mut self.pipelined) {
            return;
        }
        poll_fn(|cx| self.poll_armed(cx)).await;
    }

    /// Done when the peer has left; unread bytes alone do not count.
    ///
    /// Shape: `timer` is used to look for an end behind unread bytes.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>, timer: &Timer) -> Poll<()> {
        loop {
            if self.pipelined {
                if timer.hung_up() {
                    return Poll::Ready(());
                }
                // Each time anew: `arm` and `disarm` drop the watcher.
                timer.watch_hang_up(self.socket.handle(), cx.waker());
                return Poll::Pending;
            }
            if self.poll_armed(cx).is_pending() {
                return Poll::Pending;
            }
            match self.socket.peek() {
                Peek::Gone => return Poll::Ready(()),
                Peek::Data => self.pipelined = true,
                Peek::Nothing => {}
            }
        }
    }

    /// Waits until the peer has left (`poll_gone`). Free to drop.
    pub async fn gone(&mut self, timer: &Timer) {
        poll_fn(|cx| self.poll_gone(cx, timer)).await;
    }

    /// To be called when the unread bytes have been received: the poll may be armed again.
    pub fn received(&mut self) {
        self.pipelined = false;
    }

    fn poll_armed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let armed = self.armed.get_or_insert_with(|| self.socket.readable_pooled());
        let done = Pin::new(armed).poll(cx);
        if done.is_ready() {
            self.armed = None;
        }
        done
    }
}
