//! Floor 6: the servers behind us. Read in this order: `state` (what all cores share about one
//! server, and the lease that counts a request in flight), `slots` (how many may be in flight),
//! `wait_queue` (requests that wait for a slot), `conn` (one connection and its armed receive),
//! `connect` (TLS), `via` (the tunnel through an outbound proxy), `pool` (a core's idle
//! connections), `h2_pool` (a core's HTTP/2 connections, called links), `pulse` (whether a link
//! still lives), `bridge` (one exchange on a link), `held` (the process-wide budget of held
//! bodies), `endpoint` (where a server is), `identity` (what makes two things in two plans the same),
//! `registry` (all that outlives a plan).

pub mod bridge;
pub mod conn;
pub mod connect;
pub mod endpoint;
pub mod h2_pool;
pub mod held;
pub mod identity;
pub mod pool;
pub mod pulse;
pub mod registry;
pub mod slots;
pub mod state;
pub mod via;
pub mod wait_queue;
