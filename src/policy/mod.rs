//! (floor policy)
