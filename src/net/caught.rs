//! Catches a panic of one future, so that it ends that future alone: the runtime catches none, and
//! the panic would end the core's thread.

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::Poll;

/// Runs a future to its end; `None` when it panicked.
///
/// By reference: a future taken by value would be stored twice.
pub async fn caught<T>(mut future: Pin<&mut impl Future<Output = T>>) -> Option<T> {
    poll_fn(move |cx| {
        // `AssertUnwindSafe`: after a panic the future is only dropped, never polled again.
        match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(value)) => Poll::Ready(Some(value)),
            Err(_) => Poll::Ready(None),
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::race::poll_idle;
    use std::pin::pin;

    #[test]
    fn a_panic_is_an_end() {
        assert_eq!(poll_idle(pin!(caught(pin!(async { 7 })))), Poll::Ready(Some(7)));
        let panics = pin!(async { std::panic::resume_unwind(Box::new(())) });
        assert_eq!(poll_idle(pin!(caught(panics))), Poll::Ready(None::<()>));
    }
}
