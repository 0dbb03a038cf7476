//! The proxy as both its neighbours see it: bytes in, bytes out.
//!
//! One binary, one module for each behaviour; every test starts a proxy in this process on port
//! 0 and, behind it, the simulated model server of `loadtest`. Clients are raw sockets with a
//! codec of their own (`wire`), so that no bug of the proxy's codec can hide on both sides.
//! Nothing sleeps and hopes: every wait has a condition and a deadline (`house::LIMIT`).
//!
//! All of it passes with `MONOIO_FORCE_LEGACY_DRIVER=1` (epoll) too.

// In a test a panic is the report.
#![allow(clippy::unwrap_used)]

mod abort;
mod abuse;
mod access_log;
mod api;
mod api_docs;
mod api_exchanges;
mod api_kept;
mod api_keys;
mod api_live;
mod api_objects;
#[cfg(feature = "kubernetes")]
mod api_server;
mod api_versions;
mod auth;
mod blame;
mod bodies;
mod certs;
mod clock;
mod connections;
mod cors;
mod cuts;
mod differential;
mod discovery;
mod drain;
mod duplex;
mod errors;
mod fake;
mod fallback;
mod fleet;
mod forwarding;
mod framing;
mod fuzz;
mod gateway_choice;
mod h2;
mod h2_client;
mod h2_ends;
mod h2_frames;
mod h2_probes;
mod h2_server;
mod h2_upstream;
mod handover;
mod handover_faults;
mod health;
mod house;
mod import;
mod kept;
#[cfg(feature = "kubernetes")]
mod kubernetes;
mod late;
mod limits;
mod listener_swaps;
mod listeners;
mod meters;
mod metrics;
mod models;
mod paths;
mod planner;
mod pool;
mod process;
mod proxied;
mod queue;
mod ratelimits;
mod reach;
mod readers;
mod records;
mod redis_store;
mod redis_tls;
mod reload;
mod replaced;
mod retry;
mod rights;
mod scripted;
mod secure;
mod shapes;
mod swap;
mod tls;
mod tls_upstream;
mod told;
mod travel;
mod traces;
mod tunnel;
mod uploads;
mod wire;
