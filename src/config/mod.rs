//! (floor config)
