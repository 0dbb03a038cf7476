//! tokenring: the proxy that stands in front of GPUs.
//!
//! It reads the `model` of each request, picks a server and splices bytes. `docs/rules.md` says
//! what it holds itself to; comments point there as `rules §9`.
//!
//! # The map
//!
//! A folder imports only from floors below its own. The number is the floor; `FLOORS` in
//! `tests/walls.rs` holds it, and a test there compares this map with it.
//!
//! ```text
//! error      0  pure  every fault, with its status, retry, blame and log level
//! base       0  pure  sizes and times, chance, ids, buffers
//! http       1  pure  RFC 9110: heads as spans, fields, methods
//! pki        1  pure  certificates and keys: PEM, do they match, what they say
//! http1      2  pure  RFC 9112: parse, framing, body, encode
//! llm        2  pure  model scan, SSE, usage, error dialects
//! http2      3  pure  RFC 9113 ↔ 9112: heads both ways, trailers, counters against floods
//! policy     3  pure  auth, routes, models, balance, retry; `now` and chance are arguments
//! telemetry  3  pure  outcome, counters, Prometheus text
//! config     4        the file → Config, every fault with its place
//! net        5  io    runtime, sockets, ticker, listeners, splice
//! upstream   6  io    shared state, pool, connections, who is known across plans
//! proxy      7  io    THE TRUNK: worker, connection, exchange, relay
//! control    7  io    what is off the data plane: discovery, probes, admin, signals
//! load       8        the config meets the environment and the file system
//! server     8        boot order, `serve`, `demo`
//! cli        8        the command line
//! ```
//!
//! # The line of a request
//!
//! ```text
//! accept → read head → admit → hold, scan → route → pick → acquire → forward → relay → settle
//! ```
//!
//! `proxy::exchange` tells it. Two back edges only: keep-alive and retry.
//!
//! # What is not here
//!
//! No lock, no channel and, in steady state, no allocation on the path of a request. Nothing
//! below `net` knows a socket, a file or a clock. A body is never parsed into a tree, never
//! re-serialised, never read ahead of a client that does not read.

pub mod error;
pub mod base;
pub mod pki;
pub mod http;
pub mod http1;
pub mod llm;
pub mod http2;
pub mod policy;
pub mod telemetry;
pub mod config;
pub mod net;
pub mod upstream;
pub mod proxy;
pub mod control;
pub mod load;
pub mod server;
pub mod cli;
