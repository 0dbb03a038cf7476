//! A duplex byte stream in memory, between two tasks of one core.
//!
//! It stands in for a socket where an exchange has none of its own: a stream of HTTP/2. Each
//! direction holds at most `bytes_max`; a writer waits for room, so a reader that stalls holds one
//! window and no more. A buffer is taken when the first byte comes and given back when the last
//! one is read; a pipe without ends is used again. The memory of all pipes to one client, in the
//! direction to that client, can be counted together (`net::unsent`).
//!
//! A pipe ends as a socket does: a reader gets 0 bytes when the writer has ended, a writer gets
//! `BrokenPipe` when its bytes will not be read.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use super::buffers;
use super::rt::Part;
use super::sys::{Peek, Shut};
use super::unsent::{Charge, TIGHT_BYTES, Unsent};
use crate::base::free_list::FreeList;

/// Most pipes without ends that a thread keeps for its next streams.
const KEPT_MAX: usize = 256;

thread_local! {
    static FREE: FreeList<Rc<Pipe>, KEPT_MAX> = const { FreeList::new() };
}

/// Makes a pipe; each direction holds `bytes_max` bytes.
#[must_use]
pub fn pair(bytes_max: usize) -> (End, End) {
    let pipe = FREE.with(FreeList::take).unwrap_or_default();
    for side in &pipe.sides {
        side.holders.set(1);
        side.outgoing.borrow_mut().bytes_max = bytes_max;
    }
    (End { pipe: pipe.clone(), side: 0 }, End { pipe, side: 1 })
}

/// As `pair`; the memory of the bytes that the second end sends is counted in `unsent`.
#[must_use]
pub fn pair_counted(bytes_max: usize, unsent: Rc<Unsent>) -> (End, End) {
    let (near, far) = pair(bytes_max);
    far.outgoing().borrow_mut().unsent = Some(unsent);
    (near, far)
}

/// One end of a pipe; clones share it, the last one closes it.
pub struct End {
    pipe: Rc<Pipe>,
    side: usize,
}

/// What the ticker holds of an end: it can end the pipe but does not keep it open.
#[derive(Clone)]
pub struct WeakEnd {
    pipe: Rc<Pipe>,
    side: usize,
}

#[derive(Default)]
struct Pipe {
    sides: [Side; 2],
}

#[derive(Default)]
struct Side {
    /// How many clones of its end there are; 0 = closed.
    holders: Cell<usize>,
    /// The direction in which this side sends.
    outgoing: RefCell<Lane>,
}

/// One direction: its bytes, how far they may grow, and the tasks that wait for a change.
#[derive(Default)]
struct Lane {
    bytes: Vec<u8>,
    /// Where the unread bytes begin.
    from: usize,
    bytes_max: usize,
    /// The writer has ended: no bytes come behind those that are left.
    ended: bool,
    /// The reader has gone: no more bytes are taken.
    closed: bool,
    receiver: Option<Waker>,
    watcher: Option<Waker>,
    sender: Option<Waker>,
    /// Where its memory is counted, if anywhere, and how much is counted now.
    unsent: Option<Rc<Unsent>>,
    charge: Charge,
}

impl Lane {
    fn left(&self) -> usize {
        self.bytes.len() - self.from
    }

    /// How many bytes a writer may put in now.
    fn room(&self) -> usize {
        let bytes_max = match self.bytes.capacity() {
            0 if self.is_tight() => TIGHT_BYTES.min(self.bytes_max),
            1..=TIGHT_BYTES => TIGHT_BYTES.min(self.bytes_max),
            _ => self.bytes_max,
        };
        bytes_max - self.left()
    }

    /// Whether the connection's account has no room for a buffer of full size.
    fn is_tight(&self) -> bool {
        self.unsent.as_ref().is_some_and(|unsent| !unsent.try_reserve(self.bytes_max))
    }

    /// Corrects the count to the memory of the buffer that is there now.
    fn count(&mut self) {
        if let Some(unsent) = &self.unsent
            && self.charge.bytes() != self.bytes.capacity()
        {
            self.charge = match self.bytes.capacity() {
                0 => Charge::default(),
                bytes => unsent.charge(bytes),
            };
        }
    }

    fn free(&mut self) {
        self.from = 0;
        buffers::give_back(std::mem::take(&mut self.bytes));
        self.count();
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

    /// Moves bytes into the spare capacity of `buffer`; 0 at the end, `None` while there are none.
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
            self.free();
        }
        self.wake_writer();
        Some(n)
    }

    /// Takes the whole buffer without a copy; an empty one at the end, `None` while it is empty.
    fn take_whole(&mut self) -> Option<Vec<u8>> {
        if self.closed || self.left() == 0 {
            return (self.closed || self.ended).then(Vec::new);
        }
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.drain(..std::mem::take(&mut self.from));
        self.count();
        self.wake_writer();
        Some(bytes)
    }

    /// Appends as many bytes as there is room for, and returns how many; 0 means no room.
    fn put(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.ended || self.closed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let room = self.room();
        let n = bytes.len().min(room);
        if n > 0 {
            if self.bytes.capacity() == 0 {
                self.bytes = match room <= TIGHT_BYTES {
                    true => Vec::with_capacity(room),
                    false => buffers::take(n),
                };
            } else if self.from > 0 && self.bytes.len() + n > self.bytes.capacity() {
                self.bytes.drain(..self.from);
                self.from = 0;
            }
            self.bytes.extend_from_slice(&bytes[..n]);
            self.count();
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
        self.free();
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

    /// As `recv`, for use within a poll.
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

    /// Receives all bytes that are there, in a buffer of `net::buffers`; an empty one is the end.
    pub fn poll_recv_whole(&self, cx: &mut Context<'_>) -> Poll<Vec<u8>> {
        let mut lane = self.incoming().borrow_mut();
        match lane.take_whole() {
            Some(bytes) => Poll::Ready(bytes),
            None => {
                lane.receiver = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Waits for bytes and takes none; returns how many there are, 0 at the end.
    pub fn poll_left(&self, cx: &mut Context<'_>) -> Poll<usize> {
        let mut lane = self.incoming().borrow_mut();
        if lane.readable() {
            return Poll::Ready(lane.left());
        }
        lane.receiver = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Calls `look` with the bytes that wait to be received, and takes none.
    pub fn with_unread<T>(&self, look: impl FnOnce(&[u8]) -> T) -> T {
        let lane = self.incoming().borrow();
        look(&lane.bytes[lane.from..])
    }

    /// Takes at most `bytes_max` of the bytes that are there; all of them go without a copy.
    #[must_use]
    pub fn take_now(&self, bytes_max: usize) -> Vec<u8> {
        let mut lane = self.incoming().borrow_mut();
        if lane.left() <= bytes_max {
            return lane.take_whole().unwrap_or_default();
        }
        let end = lane.from + bytes_max;
        let mut some = buffers::take_fitting(bytes_max);
        some.extend_from_slice(&lane.bytes[lane.from..end]);
        lane.from = end;
        lane.wake_writer();
        some
    }

    /// How many bytes a send would take now.
    #[must_use]
    pub fn room(&self) -> usize {
        self.outgoing().borrow().room()
    }

    /// How many bytes were sent here and have not been read at the other end.
    #[must_use]
    pub fn unread(&self) -> usize {
        self.outgoing().borrow().left()
    }

    /// Waits until fewer than `before` of the bytes sent are unread, and returns how many; `None`
    /// when one of the two ends has closed this direction.
    pub fn poll_read_on(&self, cx: &mut Context<'_>, before: usize) -> Poll<Option<usize>> {
        let mut lane = self.outgoing().borrow_mut();
        if lane.closed || lane.ended {
            return Poll::Ready(None);
        }
        if lane.left() < before {
            return Poll::Ready(Some(lane.left()));
        }
        lane.sender = Some(cx.waker().clone());
        Poll::Pending
    }

    /// As `recv` without waiting; `None` when it would have to wait.
    #[must_use]
    pub fn recv_now(&self, buffer: &mut Vec<u8>) -> Option<usize> {
        self.incoming().borrow_mut().take(buffer)
    }

    /// Waits for room and sends as much of a part as there is room for; returns how many bytes.
    pub fn send(&self, part: Part) -> impl Future<Output = (io::Result<usize>, Part)> + use<> {
        let (end, mut part) = (self.clone(), Some(part));
        poll_fn(move |cx| {
            let bytes = part.as_ref().map_or(&[][..], Part::bytes);
            let sent = std::task::ready!(end.poll_send(cx, bytes));
            Poll::Ready((sent, part.take().unwrap_or_else(|| Part::whole(Vec::new()))))
        })
    }

    /// As `send`, for use within a poll.
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

    /// As `send` without waiting; 0 when there is no room.
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

    /// Done when the other end reads no more: bytes sent from then on are lost.
    pub fn poll_unread(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut lane = self.outgoing().borrow_mut();
        if lane.closed {
            return Poll::Ready(());
        }
        lane.sender = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Done when this end has been shut down for reading, for example by the ticker.
    pub fn poll_shut(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut lane = self.incoming().borrow_mut();
        if lane.closed {
            return Poll::Ready(());
        }
        lane.watcher = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Tells what a receive would find, and takes nothing.
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
        self.pipe.shutdown(self.side, how);
    }

    /// A handle that can end the pipe but does not keep it open.
    #[must_use]
    pub fn downgrade(&self) -> WeakEnd {
        WeakEnd { pipe: self.pipe.clone(), side: self.side }
    }

    fn incoming(&self) -> &RefCell<Lane> {
        self.pipe.lane(1 - self.side)
    }

    fn outgoing(&self) -> &RefCell<Lane> {
        self.pipe.lane(self.side)
    }
}

impl WeakEnd {
    /// Ends one or both directions, if the end still exists.
    pub fn shutdown(&self, how: Shut) {
        if self.pipe.sides[self.side].holders.get() > 0 {
            self.pipe.shutdown(self.side, how);
        }
    }

    /// Whether the other end has ended, perhaps behind unread bytes; true when this end is gone.
    #[must_use]
    pub fn hung_up(&self) -> bool {
        self.pipe.sides[self.side].holders.get() == 0
            || self.pipe.lane(1 - self.side).borrow().ended
    }
}

impl Pipe {
    fn lane(&self, side: usize) -> &RefCell<Lane> {
        &self.sides[side].outgoing
    }

    fn shutdown(&self, side: usize, how: Shut) {
        if how != Shut::Read {
            self.lane(side).borrow_mut().end();
        }
        if how != Shut::Write {
            self.lane(1 - side).borrow_mut().close();
        }
    }

    /// Whether both ends are closed.
    fn is_free(&self) -> bool {
        self.sides.iter().all(|side| side.holders.get() == 0)
    }
}

impl Clone for End {
    fn clone(&self) -> Self {
        let holders = &self.pipe.sides[self.side].holders;
        holders.set(holders.get() + 1);
        Self { pipe: self.pipe.clone(), side: self.side }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let holders = &self.pipe.sides[self.side].holders;
        holders.set(holders.get() - 1);
        if holders.get() > 0 {
            return;
        }
        self.shutdown(Shut::Both);
        // Not while a weak end exists: it would act on the next pair that uses this memory.
        if self.pipe.is_free() && Rc::strong_count(&self.pipe) == 1 {
            for side in &self.pipe.sides {
                side.outgoing.take();
            }
            // `try_with`: ends may be dropped while the thread's own storage is torn down.
            let _ = FREE.try_with(|free| free.give_back(self.pipe.clone()));
        }
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

    #[test]
    fn all_that_is_there_is_taken_without_a_copy() {
        let (a, b) = pair(10);
        let whole = |end: &End| match poll_idle(pin!(poll_fn(|cx| end.poll_recv_whole(cx)))) {
            Poll::Ready(bytes) => Some(bytes),
            Poll::Pending => None,
        };
        assert_eq!(whole(&b), None);
        a.send_now(b"abcd").unwrap();
        let mut one = Vec::with_capacity(1);
        assert_eq!(b.recv_now(&mut one), Some(1));
        let at = b.incoming().borrow().bytes.as_ptr();
        let rest = whole(&b).unwrap();
        assert_eq!((rest.as_slice(), rest.as_ptr()), (&b"bcd"[..], at));
        assert_eq!(a.send_now(b"0123456789a").unwrap(), 10, "there is room for all again");
        drop(a);
        assert_eq!(whole(&b).unwrap(), b"0123456789");
        assert_eq!(whole(&b), Some(Vec::new()));
    }

    #[test]
    fn an_end_closes_with_its_last_clone() {
        let (a, b) = pair(10);
        let clone = a.clone();
        drop(a);
        assert!(b.send_now(b"x").is_ok());
        drop(clone);
        assert!(b.send_now(b"x").is_err());
    }

    #[test]
    fn the_next_pipe_takes_the_memory_unless_someone_may_still_end_it() {
        let (a, b) = pair(10);
        let (memory, weak) = (Rc::as_ptr(&a.pipe), a.downgrade());
        a.send_now(b"unread").unwrap();
        drop((a, b));
        let (c, d) = pair(10);
        assert_ne!(Rc::as_ptr(&c.pipe), memory);
        weak.shutdown(Shut::Both);
        assert!(weak.hung_up() && c.peek() == Peek::Nothing);
        let memory = Rc::as_ptr(&c.pipe);
        c.send_now(b"unread").unwrap();
        d.shutdown(Shut::Both);
        drop((d, c));
        let (e, f) = pair(4);
        assert_eq!(Rc::as_ptr(&e.pipe), memory);
        assert_eq!((e.peek(), f.peek()), (Peek::Nothing, Peek::Nothing));
        assert_eq!(e.send_now(b"abcdef").unwrap(), 4);
        assert_eq!(received(&f).unwrap(), b"abcd");
    }
}
