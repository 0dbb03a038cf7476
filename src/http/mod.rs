//! What RFC 9110 says about a message, whatever the version that carries it.
//!
//! Reading order: `method` (what is asked), `name` (the fields that this house reads, told apart
//! once), `head` (a message head as spans into the bytes of its receiver), `fields` (lists,
//! `Connection`, `Keep-Alive`, hop-by-hop), `date` (the dates in them), `path` (the one form of a
//! path). Nothing here reads a wire: `http1` does.

pub mod date;
pub mod fields;
pub mod head;
pub mod method;
pub mod name;
pub mod path;
