//! Waiting for the first of two futures, without dropping either.
//!
//! Both are borrowed pinned: the loser stays in flight and is awaited later, because a live
//! receive or send must not be dropped (`rt::socket`).

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;

/// Which of two futures was first.
#[derive(Debug, PartialEq, Eq)]
pub enum First<A, B> {
    /// The left one, with its output.
    Left(A),
    /// The right one, with its output.
    Right(B),
}

/// Polls both, the left one first, until one is done.
///
/// The winner must not be polled again; the loser may be.
pub async fn race<A, B>(
    mut left: Pin<&mut A>,
    mut right: Pin<&mut B>,
) -> First<A::Output, B::Output>
where
    A: Future + ?Sized,
    B: Future + ?Sized,
{
    poll_fn(move |cx| {
        if let Poll::Ready(value) = left.as_mut().poll(cx) {
            return Poll::Ready(First::Left(value));
        }
        right.as_mut().poll(cx).map(First::Right)
    })
    .await
}

/// Lets the other tasks of this core run; done when polled again.
pub async fn yield_now() {
    let mut yielded = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Polls a future once with a waker that does nothing.
///
/// For operations that stay armed while no task waits for them (an idle connection's receive): the
/// first poll submits them, later polls look whether they are done.
pub fn poll_idle<F: Future + ?Sized>(future: Pin<&mut F>) -> Poll<F::Output> {
    let waker = std::task::Waker::noop();
    future.poll(&mut std::task::Context::from_waker(waker))
}
