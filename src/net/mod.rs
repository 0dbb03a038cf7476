//! (floor net)
