//! Floor 7: THE TRUNK. Read in this order:
//!
//! `worker` (a core: tick, drain; `accept` takes connections and hands them over, `places` decides which connections are let in,
//! by the counts in `idle`; `leaving` wakes HTTP/2 connections in a drain) → `conn` (which protocol
//! a connection speaks) → `conn_h1` (one client connection) or `conn_h2` and `h2_stream` (one of
//! many streams) → `exchange` (the life of a request, station by station), and then the stations:
//! `admit` (head → permit), `limit` (what the key has left), `hold` (body → model, not too slowly:
//! `pace`), `route` (where to; `proven` for keys limited to some models, `rename` for another model
//! name, at each attempt anew), `dispatch` (attempts until one succeeds), `pick` (which member;
//! `gateway_choice`: as a trusted proxy wishes), `wait` (until a member has a slot), `attempt` (one try at one upstream), `upload` and `download`
//! (both directions of an attempt, which tell each other by `progress`), `call_guard` (what the
//! attempt reports of the upstream), `settle` (what is recorded). What these hand to each other:
//! `downstream` (the client and its connection), `permit`, `refusal`. `failure_report` tells the
//! operator of a failure, `unrouted` refuses a request that no route takes, `forward` and `respond`
//! write heads, `reply` writes our own answers, `body_filter` says what is done to an answer's
//! bytes (`tap` reads usage in them), `tunnel` relays an upgraded connection.
//! `plan` is the compiled config (`compile` makes it, `reaches` works out who may be sent where),
//! `before` what is known of a process that handed over to this one,
//! `traces` takes sampled exchanges to the control thread, `core` what a core owns (`listeners` finds a connection's listener in it, whatever plan
//! is in force).

pub mod accept;
pub mod admit;
pub mod attempt;
pub mod body_filter;
pub mod before;
pub mod bounds;
pub mod call_guard;
pub mod compile;
pub mod conn;
pub mod conn_h1;
pub mod conn_h2;
pub mod core;
pub mod dispatch;
pub mod download;
pub mod downstream;
pub mod exchange;
pub mod exchanges;
pub mod failure_report;
pub mod forward;
mod gateway_choice;
pub mod h2_stream;
pub mod hold;
pub mod idle;
pub mod leaving;
pub mod limit;
pub mod listeners;
pub mod pace;
pub mod permit;
pub mod pick;
pub mod places;
pub mod plan;
mod plan_slot;
pub mod progress;
mod proven;
mod reaches;
pub mod refusal;
pub mod rename;
pub mod reply;
pub mod respond;
pub mod route;
pub mod settle;
pub mod tap;
pub mod traces;
pub mod tunnel;
pub mod unrouted;
pub mod upload;
pub mod wait;
pub mod worker;
