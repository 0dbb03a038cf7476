//! Accepts a peer whose own certificate is one of the trusted authorities.
//!
//! rustls refuses a peer's certificate that is marked as an authority (CA:TRUE), as those are that
//! `openssl req -x509` makes by default. OpenSSL accepts it when it is in the file of authorities,
//! and operators count on that, for servers and for clients.

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::{CertificateError, Error, RootCertStore};

use crate::pki::facts;

/// Authorities that may also show their own certificate as that of a peer.
#[derive(Debug)]
pub(super) struct OwnRoots(pub(super) Arc<RootCertStore>);

impl OwnRoots {
    /// Accepts a certificate that rustls has refused, if it is one of these authorities and within
    /// its dates.
    ///
    /// It is compared by name and key, like any authority. Its extended key usage is ignored: the
    /// holder of an authority's key could sign a certificate for any purpose. An authority limited
    /// to certain names (RFC 5280 §4.2.1.10) is not accepted. The caller verifies the name that was
    /// asked for; the handshake proves that the peer holds the key.
    ///
    /// Errors: `refused` when the certificate is none of these; else which of its dates is wrong.
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
