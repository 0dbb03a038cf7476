//! From a TOML file to a checked `Config`.

mod fault;
pub mod model;
mod names;
mod raw;
mod reader;
mod schema;
mod subst;

pub use fault::{Fault, Report};
pub use model::*;
pub use reader::Outside;
