//! (floor control)
