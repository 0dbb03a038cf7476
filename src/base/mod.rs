//! Floor 0, pure: what every other floor leans on. Read in this order:
//! `units` (sizes and times as people write them), `clock` (points of time as values), `rng` (chance
//! as a value), `ids` (request ids), `listener_id` (what a listener is called across configs), `buf`
//! (receive buffers and their freelist), `free_list` (anything else that is used again),
//! `slab` (entries by index).

pub mod clock;
pub mod rng;
pub mod ids;
pub mod listener_id;
pub mod buf;
pub mod free_list;
pub mod slab;
pub mod units;
