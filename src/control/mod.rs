//! Floor 7: what is off the data plane, on the main thread. Read in this order:
//! `learn` (addresses and models of the upstreams, before the start), `signals`.

pub mod learn;
pub mod signals;
