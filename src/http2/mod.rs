//! HTTP/2 (RFC 9113) where it meets HTTP/1.1: translation both ways, and counters against floods.
//!
//! Frames, HPACK and flow control are the `h2` crate's. What is here is what that crate leaves to
//! its user: each stream becomes one HTTP/1.1 message and back, so that every rule of the proxy is
//! written once; and nothing passes that would mean something else in HTTP/1.1 than it did before.
//!
//! Reading order: `fault` (why a message is refused), `framing` (how its body is delimited on the
//! other side), `fields` (which fields pass), `request` and `response` (a client that speaks
//! HTTP/2), `outgoing` (a server that speaks HTTP/2), `trailers`, `flood` (frames counted where
//! they stand), `fragment` (the one thing of a head that is lost before we see it). Nothing here knows a socket, a stream or the `h2` crate: types are those of `http`.

pub mod fault;
pub mod framing;
mod fields;
mod head;
pub mod request;
pub mod response;
pub mod outgoing;
pub mod trailers;
pub mod flood;
pub mod fragment;

pub use fault::Fault;
pub use framing::{BodyFraming, Ends};
