//! (floor upstream)
