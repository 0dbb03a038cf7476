//! Certificates and keys as bytes: from PEM to what TLS uses, and what may be said of them.
//!
//! The one idea: a `Pair` or a set of `Roots` that exists has been checked — it parses, the key
//! is not encrypted and belongs to the certificate — and is equal to another when its content
//! is, so that a reload can tell a change and a pool can tell two servers apart. Reading order:
//! this file, `pair`, `roots`, `facts`.
//!
//! Source: RFC 7468 (PEM), RFC 5280 (certificates). It opens no file, knows no clock, and
//! verifies no chain: that is rustls's, at each handshake.

mod facts;
mod pair;
mod roots;

pub use facts::{Facts, client_name, facts};
pub use pair::Pair;
pub use roots::Roots;

use std::sync::{Arc, OnceLock};

use rustls::crypto::CryptoProvider;

#[cfg(not(any(feature = "aws-lc-rs", feature = "ring")))]
compile_error!("choose one of the features aws-lc-rs and ring");

/// The cryptography that everything here uses; aws-lc-rs when both were chosen at build time.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    let make = || {
        #[cfg(feature = "aws-lc-rs")]
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        #[cfg(not(feature = "aws-lc-rs"))]
        let provider = rustls::crypto::ring::default_provider();
        Arc::new(provider)
    };
    PROVIDER.get_or_init(make).clone()
}

#[cfg(test)]
pub(crate) mod tests;
