//! One client connection in HTTP/1.1: idle, exchange, idle, … until either side ends it.
//!
//! While idle it holds a readiness poll and nothing else: no buffer, no exchange. The
//! exchange's future lives in a pooled block for as long as the request lasts.

use std::rc::Rc;

use super::core::Core;
use super::downstream::{Downstream, linger};
use super::exchange;
use super::refusal::Next;
use crate::net::pooled_future::PooledFuture;

/// Serves a connection to its end.
pub async fn serve(core: &Rc<Core>, down: &mut Downstream) {
    let next = loop {
        if down.recv.is_empty() {
            core.buffers.give_back(std::mem::take(&mut down.recv));
            let timeouts = core.with_listener(&down.listener, |plan| plan.timeouts);
            down.write_idle = timeouts.write_idle;
            let timeout = if down.served == 0 { timeouts.head } else { timeouts.keepalive };
            down.timer.arm_idle(down.socket.handle(), timeout, down.listener.id());
            down.watch.readable().await;
            down.timer.disarm();
        }
        match PooledFuture::with(|| exchange::run(core, down)).await {
            Next::KeepAlive => down.served += 1,
            next => break next,
        }
    };
    if next == Next::Linger {
        PooledFuture::with(|| linger(&down.socket, &down.timer)).await;
    }
    core.buffers.give_back(std::mem::take(&mut down.recv));
}
