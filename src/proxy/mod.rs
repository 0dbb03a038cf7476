//! Floor 6: THE TRUNK. Read in this order:
//!
//! `worker` (a core: accept, hand over, tick, drain) → `conn_h1` (one client connection) →
//! `exchange` (the life of a request, station by station), and then the stations: `admit`
//! (head → permit), `hold` (body → model), `route` (where to), `dispatch` (attempts until one
//! succeeds), `pick` (which member), `wait` (until one has a slot), `attempt` (one try at one upstream), `upload` and `download`
//! (both directions of it), `judge` (what it says of the upstream), `settle` (what is recorded).
//! `forward` and `respond` write heads, `reply` writes our own answers, `tap` reads usage in
//! passing, `tunnel` relays an upgraded connection. `plan` is the compiled config
//! (`compile` makes it), `core` what a
//! core owns.

pub mod admit;
pub mod attempt;
pub mod compile;
pub mod conn_h1;
pub mod core;
pub mod dispatch;
pub mod download;
pub mod exchange;
pub mod forward;
pub mod hold;
pub mod judge;
pub mod limit;
pub mod pick;
pub mod plan;
pub mod reply;
pub mod respond;
pub mod route;
pub mod settle;
pub mod tap;
pub mod tunnel;
pub mod upload;
pub mod wait;
pub mod worker;
