//! A panic costs the connection or stream in which it happened, and is counted.

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::task::Poll;

use super::core::Core;

/// Runs a future to its end or to its panic.
pub async fn guarded(core: &Core, serving: impl Future<Output = ()>) {
    let mut serving = pin!(serving);
    let whole = poll_fn(move |cx| {
        // What the future held is dropped after a panic, not looked at again.
        match catch_unwind(AssertUnwindSafe(|| serving.as_mut().poll(cx))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(())) => Poll::Ready(true),
            Err(_) => Poll::Ready(false),
        }
    })
    .await;
    if !whole {
        core.shared.panics.fetch_add(1, Ordering::Relaxed);
    }
}
