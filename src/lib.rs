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
//! base       0  pure  sizes, times and clocks, chance, ids, buffers
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
//! server     8        boot order, `serve`, `demo`, what a handover takes along (`travel`)
//! import     8        another proxy's config as one of ours
//! cli        8        the command line
//! testing    8        what tests, benches and fuzz targets reach of all this
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
//! # The words
//!
//! One word, one meaning. `RETIRED` in `tests/walls/words.rs` keeps out those that had several.
//!
//! ```text
//! downstream     the client and its connection; an upstream is one server, a group a balanced set
//! exchange       one request and its answer; ExchangeState is what its attempts use in turn
//! admit          what the head alone decides; what passes is a Permit
//! hold           keeping a body until its model is known, and for a retry
//! route          where a request goes, and under which name
//! pick           the choice of a member, with a Lease: its count in flight; CallGuard: its breaker
//! WaitQueue      those for whom no member has a slot; a Waiter has a WaitSlot, a plan a GroupQueue
//! attempt        one try at one upstream; an H2Pool or a Pool has the connection, or it is dialled
//! DialError      no connection; TunnelError: none through an outbound proxy, used in a ProxyMode
//! relay          passing a body on as it comes; a tap reads the usage in passing
//! truncated      ended before its framing said so; to abort is to end what is under way
//! back_off       leaving an upstream alone for as long as it asked (Retry-After)
//! settle         the record of an exchange, made once however it ends
//! drain          no new exchanges, and an end for those that are there
//! PooledFuture   a future in memory that is used again
//! Notify         waits for another thread; a Notifier wakes it by its WakeToken
//! Moment         steady time since the process began; WallTime is since 1970, a Timestamp both
//! Plan           the config compiled for the cores; refresh_plan takes the newest
//! ListenerSet    all that this process listens on; a ListenerId is one listener in every plan
//! Reconciler     makes the config in force of the file and what is Observed of Monitored upstreams
//! Registry       all that outlives a plan, by identity; carry hands it to the next plan
//! ServerHooks    what the control thread may ask of the server
//! AdminListener  the operator's interface, over the UpstreamTable
//! ```
//!
//! # What is not here
//!
//! No lock, no channel and, in steady state, no allocation on the path of a request in HTTP/1.1
//! that need not queue. Nothing
//! below `net` knows a socket, a file or a clock. A body is never parsed into a tree, never
//! re-serialised, never read ahead of a client that does not read.

// The modules are private, so that the compiler finds what nobody calls; `pub` on an item says
// that other files use it, which `unreachable_pub` would have spelled `pub(crate)` everywhere.
#![allow(unreachable_pub)]

mod base;
pub mod cli;
mod config;
mod control;
mod error;
mod http;
mod http1;
mod http2;
mod import;
mod llm;
mod load;
mod net;
mod pki;
mod policy;
mod proxy;
mod server;
mod telemetry;
pub mod testing;
mod upstream;

pub use server::{demo::demo, serve::serve};
