//! (floor proxy)
