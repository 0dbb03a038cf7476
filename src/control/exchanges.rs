//! Asks the cores for their exchanges in flight.
//!
//! A core answers by the message that it reads next; what one core owns no other thread reads. Who
//! asks waits without blocking, and a core that does not answer in time is left out.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::telemetry::in_flight::InFlight;

/// How long the cores may take to answer.
const ANSWER_MAX: Duration = Duration::from_millis(500);
/// From one look at the answers to the next.
const ANSWER_POLL: Duration = Duration::from_millis(1);

/// The functions of the server by which exchanges are seen and cancelled.
pub struct ExchangeHooks {
    /// Asks all cores; returns the number of the question.
    pub ask: Box<dyn Fn() -> u64 + Send + Sync>,
    /// What has been answered to that question, and whether all cores have.
    pub gather: Box<dyn Fn(u64) -> (Vec<InFlight>, bool) + Send + Sync>,
    /// Ends the exchange of that id as if its client had left; false when its core cannot be told.
    pub end: Box<dyn Fn([u32; 3]) -> bool + Send + Sync>,
}

impl ExchangeHooks {
    /// The exchanges in flight, the oldest first.
    pub async fn list(&self) -> Vec<InFlight> {
        let number = (self.ask)();
        let by = Instant::now() + ANSWER_MAX;
        loop {
            let (mut all, complete) = (self.gather)(number);
            if complete || Instant::now() >= by {
                all.sort_by_key(|one| std::cmp::Reverse(one.age));
                return all;
            }
            sleep(ANSWER_POLL).await;
        }
    }
}
