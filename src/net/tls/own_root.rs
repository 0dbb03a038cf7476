//! A certificate that itself stands among those who may vouch for others.
//!
//! rustls takes nobody's certificate that says of itself that it is an authority, as one does that
//! `openssl req -x509` made without more ado. OpenSSL takes it when it stands in the file of
//! authorities, and operators count on that: a server with such a certificate, a client with one.

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::{CertificateError, Error, RootCertStore};

use crate::pki::facts;

/// Authorities whose own certificates are believed, too.
#[derive(Debug)]
pub(super) struct OwnRoots(pub(super) Arc<RootCertStore>);

impl OwnRoots {
    /// Believes a certificate that rustls has refused, if it is a root and within its dates.
    ///
    /// By name and key, like any authority: whoever holds the key of an authority could sign as it
    /// likes, for any purpose, so what it says of its own (extended key usage) does not matter. One
    /// that is bound to names (RFC 5280 §4.2.1.10) does not count. The name that was asked for is
    /// the caller's to verify; whoever shows the certificate proves in the handshake that he holds
    /// its key.
    ///
    /// Errors: `refused` for one that is no root; else what is wrong with its dates.
    pub(super) fn believe(
        &self,
        cert: &CertificateDer<'_>,
        now: UnixTime,
        refused: Error,
    ) -> Result<(), Error> {
        if !self.holds(cert) {
            return Err(refused);
        }
        let Some(facts) = facts(cert) else { return Err(refused) };
        let at = |second| UnixTime::since_unix_epoch(Duration::from_secs(second));
        let (not_before, not_after) = (at(facts.not_before), at(facts.not_after));
        if now < not_before {
            return Err(CertificateError::NotValidYetContext { time: now, not_before }.into());
        }
        if now > not_after {
            return Err(CertificateError::ExpiredContext { time: now, not_after }.into());
        }
        Ok(())
    }

    fn holds(&self, cert: &CertificateDer<'_>) -> bool {
        let mut own = RootCertStore::empty();
        own.add_parsable_certificates([cert.clone().into_owned()]);
        let Some(own) = own.roots.first() else { return false };
        self.0.roots.iter().any(|root| {
            (&root.subject, &root.subject_public_key_info)
                == (&own.subject, &own.subject_public_key_info)
                && root.name_constraints.is_none()
        })
    }
}
