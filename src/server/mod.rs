//! Boot order: the control thread and its first answers, the plan, a worker a core, then the sockets.
//!
//! Read in this order: `start` (all of it), `running` (the `Server`), `occupy` (how it comes to its
//! sockets) with `listeners` (a plan and its sockets, put in force together) and `handover` (from
//! one process to the next; `travel`: what it takes along); `access_log` with `log_sink`, `log`, `banner` (the start-up block),
//! `systemd`, `live` (`check --live`) by `question`. `serve` and `demo` are the commands that run it.

pub mod access_log;
pub mod banner;
pub mod demo;
pub mod handover;
pub mod listeners;
pub mod live;
pub mod log;
pub mod log_sink;
mod occupy;
pub mod question;
pub mod running;
pub mod serve;
pub mod start;
pub mod systemd;
pub mod travel;
