//! What the service manager is told: that the process is ready, reloads, or ends.
//!
//! Without a service manager (`NOTIFY_SOCKET` is not set) nothing is said. What cannot be said is no
//! reason to stop: the manager finds out by its own deadlines.

use std::time::Duration;

use sd_notify::NotifyState;

/// What a drain may take beyond its limit: the last answers, the log.
const END_SPARE: Duration = Duration::from_secs(5);

/// It serves.
pub fn ready(status: &str) {
    say(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// It reads its config again; `ready` ends that.
pub fn reloading() {
    // The manager matches it with its own request by the time (systemd.service(5), notify-reload).
    if let Ok(now) = NotifyState::monotonic_usec_now() {
        say(&[NotifyState::Reloading, now]);
    }
}

/// It takes no more connections and ends within this time, or somewhat later.
pub fn stopping(within: Duration) {
    let status = format!("draining, at most {} s", within.as_secs());
    let limit = u32::try_from((within + END_SPARE).as_micros()).unwrap_or(u32::MAX);
    say(&[
        NotifyState::Stopping,
        NotifyState::Status(&status),
        NotifyState::ExtendTimeoutUsec(limit),
    ]);
}

fn say(states: &[NotifyState<'_>]) {
    let _ = sd_notify::notify(states);
}
