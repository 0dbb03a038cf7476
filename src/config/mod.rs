//! From a TOML file to a checked `Config`.

pub mod model;

pub use model::*;
