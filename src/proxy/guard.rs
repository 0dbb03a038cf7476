//! A panic costs the connection or stream in which it happened, and is counted.

use std::future::Future;
use std::sync::atomic::Ordering;

use super::core::Core;
use crate::net::caught::caught;

/// Runs a future to its end or to its panic.
pub async fn guarded(core: &Core, serving: impl Future<Output = ()>) {
    if caught(serving).await.is_none() {
        core.shared.panics.fetch_add(1, Ordering::Relaxed);
    }
}
