//! HTTP/1.1 on the wire (RFC 9112), as pure functions over bytes.
//!
//! Reading order: `parse` (bytes → head, or its `head_fault`), `target` (whom a request asks),
//! `framing` (head → how the body ends), `body` (wire bytes → which of them are body, and where the
//! message ends), `encode` (head → bytes), `reparse` (bytes that `encode` wrote → head), `connect`
//! (a tunnel through an outbound proxy); `smuggling` is the table of attacks that all of them are
//! held to. None of them knows a socket: each takes what has arrived and says what it means or that
//! more is needed. Whatever could be read in two ways is refused, in both directions.

pub mod body;
pub mod connect;
pub mod encode;
pub mod framing;
pub mod head_fault;
pub mod parse;
pub mod reparse;
pub mod target;

#[cfg(test)]
mod smuggling;
