//! (floor base)
