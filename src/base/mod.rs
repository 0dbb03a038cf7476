//! Floor 0, pure: what every other floor leans on. Read in this order.

pub mod buf;
