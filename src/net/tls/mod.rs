//! TLS of both sides, with rustls.

pub mod stream;

pub use stream::TlsStream;
