//! (floor http1)
