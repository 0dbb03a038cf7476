//! (floor http)
