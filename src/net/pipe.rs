//! A duplex byte stream in memory, between two tasks of one core.
//!
//! It stands in for a socket where the bytes of an exchange do not come from one of their own: a
//! stream of HTTP/2. Each direction holds at most `bytes_max`; a writer waits for room, so a
//! reader that stalls holds one window and no more. Memory is taken when the first byte comes
//! and given back when the last one has gone.
//!
//! Ends are told as a socket tells them: a reader gets 0 bytes when the writer has ended, a
//! writer gets `BrokenPipe` when nobody will read.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};

use super::buffers;
use super::rt::Part;
use super::sys::{Peek, Shut};

/// Makes a pipe; each direction holds `bytes_max` bytes.
#[must_use]
pub fn pair(bytes_max: usize) -> (End, End) {
    let lane = || RefCell::new(Lane { bytes_max, ..Lane::default() });
    let lanes = Rc::new([lane(), lane()]);
    let end = |side| End(Rc::new(Side { lanes: lanes.clone(), side }));
    (end(0), end(1))
}

/// One end; clones share it, the last one closes it.
#[derive(Clone)]
pub struct End(Rc<Side>);

/// What the ticker holds of an end.
#[derive(Clone, Default)]
pub struct WeakEnd(Weak<Side>);

struct Side {
    lanes: Rc<[RefCell<Lane>; 2]>,
    side: usize,
}

/// One direction.
#[derive(Default)]
struct Lane {
    bytes: Vec<u8>,
    /// Where the unread bytes begin.
    from: usize,
    bytes_max: usize,
    /// The writer has ended: what is left is the last.
    ended: bool,
    /// The reader has gone: nothing more is taken.
    closed: bool,
    receiver: Option<Waker>,
    watcher: Option<Waker>,
    sender: Option<Waker>,
}

impl Lane {
    fn left(&self) -> usize {
        self.bytes.len() - self.from
    }

    fn readable(&self) -> bool {
        self.left() > 0 || self.ended || self.closed
    }

    fn wake_reader(&mut self) {
        self.receiver.take().into_iter().chain(self.watcher.take()).for_each(Waker::wake);
    }

    fn wake_writer(&mut self) {
        self.sender.take().into_iter().for_each(Waker::wake);
    }

    /// Takes what fits into the spare capacity; 0 at the end, `None` while nothing has come.
    fn take(&mut self, buffer: &mut Vec<u8>) -> Option<usize> {
        if self.closed {
            return Some(0);
        }
        let n = self.left().min(buffer.capacity() - buffer.len());
        if self.left() == 0 {
            return self.ended.then_some(0);
        }
        buffer.extend_from_slice(&self.bytes[self.from..self.from + n]);
        self.from += n;
        if self.left() == 0 {
            self.from = 0;
            buffers::give_back(std::mem::take(&mut self.bytes));
        }
        self.wake_writer();
        Some(n)
    }

    /// Puts in what there is room for; 0 means that there is none.
    fn put(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.ended || self.closed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let n = bytes.len().min(self.bytes_max - self.left());
        if n > 0 {
            if self.bytes.capacity() == 0 {
                self.bytes = buffers::take(n);
            } else if self.from > 0 && self.bytes.len() + n > self.bytes.capacity() {
                self.bytes.drain(..self.from);
                self.from = 0;
            }
            self.bytes.extend_from_slice(&bytes[..n]);
            self.wake_reader();
        }
        Ok(n)
    }

    fn end(&mut self) {
        self.ended = true;
        self.wake_reader();
        self.wake_writer();
    }

    fn close(&mut self) {
        self.closed = true;
        self.from = 0;
        buffers::give_back(std::mem::take(&mut self.bytes));
        self.wake_reader();
        self.wake_writer();
    }
}

impl End {
    /// Receives into the spare capacity of `buffer`; 0 bytes is the end.
    pub fn recv(
        &self,
        buffer: Vec<u8>,
    ) -> impl Future<Output = (io::Result<usize>, Vec<u8>)> + use<> {
        let (end, mut buffer) = (self.clone(), Some(buffer));
        poll_fn(move |cx| {
            let mut taken = buffer.take().unwrap_or_default();
            match end.poll_recv(cx, &mut taken) {
                Poll::Ready(n) => Poll::Ready((Ok(n), taken)),
                Poll::Pending => {
                    buffer = Some(taken);
                    Poll::Pending
                }
            }
        })
    }

    /// See `recv`.
    pub fn poll_recv(&self, cx: &mut Context<'_>, buffer: &mut Vec<u8>) -> Poll<usize> {
        let mut lane = self.incoming().borrow_mut();
        match lane.take(buffer) {
            Some(n) => Poll::Ready(n),
            None => {
                lane.receiver = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Receives what is there, without waiting; `None` when nothing is.
    #[must_use]
    pub fn recv_now(&self, buffer: &mut Vec<u8>) -> Option<usize> {
        self.incoming().borrow_mut().take(buffer)
    }

    /// Sends one part, as much of it as there is room for.
    pub fn send(&self, part: Part) -> impl Future<Output = (io::Result<usize>, Part)> + use<> {
        let (end, mut part) = (self.clone(), Some(part));
        poll_fn(move |cx| {
            let bytes = part.as_ref().map_or(&[][..], Part::bytes);
            let sent = std::task::ready!(end.poll_send(cx, bytes));
            Poll::Ready((sent, part.take().unwrap_or_else(|| Part::whole(Vec::new()))))
        })
    }

    /// See `send`.
    pub fn poll_send(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut lane = self.outgoing().borrow_mut();
        match lane.put(bytes) {
            Ok(0) if !bytes.is_empty() => {
                lane.sender = Some(cx.waker().clone());
                Poll::Pending
            }
            result => Poll::Ready(result),
        }
    }

    /// Sends what there is room for, without waiting.
    pub fn send_now(&self, bytes: &[u8]) -> io::Result<usize> {
        self.outgoing().borrow_mut().put(bytes)
    }

    /// Waits until a receive would not wait. Free to drop.
    pub fn readable(&self) -> impl Future<Output = ()> + use<> {
        let end = self.clone();
        poll_fn(move |cx| {
            let mut lane = end.incoming().borrow_mut();
            if lane.readable() {
                return Poll::Ready(());
            }
            lane.watcher = Some(cx.waker().clone());
            Poll::Pending
        })
    }

    /// Done when the other end reads no more: what is sent now is lost.
    pub fn poll_unread(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut lane = self.outgoing().borrow_mut();
        if lane.closed {
            return Poll::Ready(());
        }
        lane.sender = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Done when this end has been shut for reading, by the ticker for one.
    pub fn poll_shut(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut lane = self.incoming().borrow_mut();
        if lane.closed {
            return Poll::Ready(());
        }
        lane.watcher = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Looks without taking.
    #[must_use]
    pub fn peek(&self) -> Peek {
        let lane = self.incoming().borrow();
        match lane.left() {
            1.. => Peek::Data,
            0 if lane.ended || lane.closed => Peek::Gone,
            0 => Peek::Nothing,
        }
    }

    /// Ends one or both directions.
    pub fn shutdown(&self, how: Shut) {
        self.0.shutdown(how);
    }

    /// For those who must not keep it open.
    #[must_use]
    pub fn downgrade(&self) -> WeakEnd {
        WeakEnd(Rc::downgrade(&self.0))
    }

    fn incoming(&self) -> &RefCell<Lane> {
        &self.0.lanes[1 - self.0.side]
    }

    fn outgoing(&self) -> &RefCell<Lane> {
        &self.0.lanes[self.0.side]
    }
}

impl WeakEnd {
    /// Ends one or both directions, if the end still exists.
    pub fn shutdown(&self, how: Shut) {
        if let Some(side) = self.0.upgrade() {
            side.shutdown(how);
        }
    }

    /// Whether the other end has ended, perhaps behind unread bytes.
    #[must_use]
    pub fn hung_up(&self) -> bool {
        self.0.upgrade().is_none_or(|side| side.lanes[1 - side.side].borrow().ended)
    }
}

impl Side {
    fn shutdown(&self, how: Shut) {
        if how != Shut::Read {
            self.lanes[self.side].borrow_mut().end();
        }
        if how != Shut::Write {
            self.lanes[1 - self.side].borrow_mut().close();
        }
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        self.shutdown(Shut::Both);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::race::poll_idle;
    use std::pin::pin;

    fn received(end: &End) -> Option<Vec<u8>> {
        let mut buffer = Vec::with_capacity(100);
        end.recv_now(&mut buffer).map(|_| buffer)
    }

    #[test]
    fn carries_bytes_both_ways_and_tells_the_end() {
        let (a, b) = pair(100);
        assert_eq!(a.send_now(b"ping").unwrap(), 4);
        assert_eq!(b.peek(), Peek::Data);
        assert_eq!(received(&b).unwrap(), b"ping");
        assert_eq!(b.peek(), Peek::Nothing);
        assert_eq!(received(&b), None);
        b.send_now(b"pong").unwrap();
        drop(b);
        assert_eq!(received(&a).unwrap(), b"pong", "what was sent before the end arrives");
        assert_eq!(a.peek(), Peek::Gone);
    }

    #[test]
    fn a_full_pipe_takes_no_more_until_it_is_read() {
        let (a, b) = pair(4);
        assert_eq!(a.send_now(b"abcdef").unwrap(), 4);
        assert_eq!(a.send_now(b"ef").unwrap(), 0);
        let mut sending = pin!(a.send(Part::whole(b"ef".to_vec())));
        assert!(poll_idle(sending.as_mut()).is_pending());
        let mut two = Vec::with_capacity(2);
        assert_eq!(b.recv_now(&mut two), Some(2));
        assert!(matches!(poll_idle(sending), Poll::Ready((Ok(2), _))));
        assert_eq!(received(&b).unwrap(), b"cdef");
    }

    #[test]
    fn a_writer_learns_that_nobody_reads() {
        let (a, b) = pair(4);
        let mut sending = pin!(a.send(Part::whole(b"abcdef".to_vec())));
        assert!(matches!(poll_idle(sending.as_mut()), Poll::Ready((Ok(4), _))));
        b.shutdown(Shut::Read);
        assert!(a.send_now(b"x").is_err());
    }

    #[test]
    fn an_end_learns_that_it_was_shut() {
        let (a, b) = pair(10);
        a.send_now(b"unread").unwrap();
        let mut shut = pin!(poll_fn(|cx| b.poll_shut(cx)));
        assert!(poll_idle(shut.as_mut()).is_pending());
        b.downgrade().shutdown(Shut::Both);
        assert!(poll_idle(shut).is_ready());
    }

    #[test]
    fn the_last_bytes_are_read_before_the_end() {
        let (a, b) = pair(10);
        a.send_now(b"last").unwrap();
        a.shutdown(Shut::Write);
        assert!(b.downgrade().hung_up());
        assert_eq!(b.peek(), Peek::Data);
        assert_eq!(received(&b).unwrap(), b"last");
        assert_eq!(b.peek(), Peek::Gone);
        assert_eq!(received(&b), Some(Vec::new()));
    }
}
