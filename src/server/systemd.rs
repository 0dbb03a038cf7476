//! What the service manager is told: that the process is ready, reloads, or ends.
//!
//! Without a service manager (`NOTIFY_SOCKET` is not set) nothing is said. What cannot be said is no
//! reason to stop: the manager finds out by its own deadlines.

use std::os::fd::OwnedFd;
use std::sync::mpsc;
use std::time::Duration;

use sd_notify::NotifyState;

use crate::net::sys;

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

/// Another process serves from now on; this one is no longer the service.
///
/// The manager believes it only of a process within the service's control group.
pub fn replaced_by(pid: i32) {
    if let Ok(pid) = u32::try_from(pid) {
        say(&[NotifyState::MainPid(pid), NotifyState::Status("handed over")]);
    }
}

/// The listening sockets that the service manager has opened (`LISTEN_FDS`), each with its name.
///
/// Shape: to be called once, before anything else may have those numbers.
/// Errors: the variables contradict each other.
pub fn sockets() -> Result<Vec<(String, OwnedFd)>, String> {
    let told = |error| format!("LISTEN_FDS: {error}");
    let sockets = sd_notify::listen_fds_with_names().map_err(told)?;
    Ok(sockets.map(|(fd, name)| (name, sys::own(fd))).collect())
}

/// Tells the service manager that the process lives, as often as it wants to know
/// (`WATCHDOG_USEC`), for as long as the result lives.
///
/// Shape: `pulse` says whether it lives, within this time; none = nobody wants to know.
pub fn watch(pulse: impl Fn(Duration) -> bool + Send + 'static) -> Option<mpsc::Sender<()>> {
    // Twice within the limit, so that one late turn does not end the process.
    let every = sd_notify::watchdog_enabled()? / 2;
    let (until, ended) = mpsc::channel::<()>();
    let thread = std::thread::Builder::new().name("watchdog".to_owned());
    let beat = move || {
        loop {
            if pulse(every) {
                say(&[NotifyState::Watchdog]);
            }
            if ended.recv_timeout(every) != Err(mpsc::RecvTimeoutError::Timeout) {
                return;
            }
        }
    };
    // If it cannot start the manager restarts the process, which is what it asked for.
    thread.spawn(beat).ok()?;
    Some(until)
}

fn say(states: &[NotifyState<'_>]) {
    let _ = sd_notify::notify(states);
}
