//! Certificates that are trusted to vouch for others.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use rustls::RootCertStore;
use sha2::{Digest as _, Sha256};

use super::pair::{certificates, plain};

/// Authorities, at least one; equal when the bytes are.
#[derive(Clone)]
pub struct Roots {
    store: Arc<RootCertStore>,
    digest: [u8; 32],
}

impl Roots {
    /// Reads every certificate of a PEM text.
    ///
    /// Errors: there is none, or one that cannot be an authority; the text is for a person.
    pub fn from_pem(text: &str) -> Result<Self, String> {
        let found = certificates(text).map_err(|why| format!("no good certificate: {why}"))?;
        if found.is_empty() {
            return Err("no certificate in it (PEM)".to_owned());
        }
        let (mut store, mut sum) = (RootCertStore::empty(), Sha256::new());
        for (index, cert) in found.into_iter().enumerate() {
            sum.update((cert.len() as u64).to_be_bytes());
            sum.update(&cert);
            let refused = |why| format!("certificate {} is no good: {}", index + 1, plain(&why));
            store.add(cert).map_err(refused)?;
        }
        Ok(Self { store: Arc::new(store), digest: sum.finalize().into() })
    }

    /// The form in which rustls uses them.
    #[must_use]
    pub fn store(&self) -> &Arc<RootCertStore> {
        &self.store
    }

    /// SHA-256 over all of them.
    #[must_use]
    pub fn digest(&self) -> &[u8; 32] {
        &self.digest
    }
}

impl PartialEq for Roots {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl Eq for Roots {}

impl Hash for Roots {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.digest.hash(state);
    }
}

impl fmt::Debug for Roots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Roots({})", self.store.len())
    }
}
