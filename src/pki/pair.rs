//! A certificate chain with its private key.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{Error, InconsistentKeys};
use sha2::{Digest as _, Sha256};

use super::facts::issued;
use super::provider;

/// A chain and the key that belongs to its first certificate; equal when the bytes are.
#[derive(Clone)]
pub struct Pair {
    certified: Arc<CertifiedKey>,
    digest: [u8; 32],
}

/// Why two texts are no pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PairFault {
    /// There is no certificate in the first.
    CertMissing,
    /// What is there is none.
    CertBroken(String),
    /// There is no private key in the second.
    KeyMissing,
    /// It is encrypted, and nobody is there to type a passphrase.
    KeyEncrypted,
    /// What is there cannot be read.
    KeyBroken(String),
    /// It is none, or of a kind or size that is not used.
    KeyUnfit,
    /// The key is another certificate's.
    Mismatch,
    /// The key is that of a certificate further down the chain.
    OwnNotFirst,
}

impl PairFault {
    /// Whether the text of the certificate is to blame, not that of the key.
    #[must_use]
    pub fn is_of_cert(&self) -> bool {
        matches!(self, Self::CertMissing | Self::CertBroken(_) | Self::OwnNotFirst)
    }
}

impl fmt::Display for PairFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CertMissing => f.write_str("no certificate in it (PEM)"),
            Self::CertBroken(why) => write!(f, "no good certificate: {why}"),
            Self::KeyMissing => f.write_str("no private key in it (PEM)"),
            Self::KeyEncrypted => f.write_str("the key is encrypted; write it without passphrase"),
            Self::KeyBroken(why) => write!(f, "no good private key: {why}"),
            Self::KeyUnfit => f.write_str(
                "no private key of a kind that is used: RSA of 2048 to 8192 bits, ECDSA on P-256, \
                 P-384 or P-521, Ed25519",
            ),
            Self::OwnNotFirst => f.write_str(
                "the certificate that the key belongs to must come first, its issuers after it",
            ),
            Self::Mismatch => f.write_str("the key belongs to another certificate"),
        }
    }
}

impl Pair {
    /// Reads a chain, the server's or client's own certificate first, and its key.
    ///
    /// Shape: other blocks of either text are skipped, so that one file may hold both; of
    /// several keys the first counts.
    pub fn from_pem(chain: &str, key: &str) -> Result<Self, PairFault> {
        let chain = certificates(chain).map_err(PairFault::CertBroken)?;
        let Some(own) = chain.first() else { return Err(PairFault::CertMissing) };
        let _: rustls::server::ParsedCertificate<'_> =
            own.try_into().map_err(|why: Error| PairFault::CertBroken(plain(&why)))?;
        let encrypted = key.contains("ENCRYPTED PRIVATE KEY") || key.contains("4,ENCRYPTED");
        let key = match PrivateKeyDer::from_pem_slice(key.as_bytes()) {
            Ok(_) | Err(_) if encrypted => return Err(PairFault::KeyEncrypted),
            Ok(key) => key,
            Err(pem::Error::NoItemsFound) => return Err(PairFault::KeyMissing),
            Err(why) => return Err(PairFault::KeyBroken(pem_why(&why))),
        };
        let mut sum = Sha256::new();
        for cert in &chain {
            sum.update((cert.len() as u64).to_be_bytes());
            sum.update(cert);
        }
        sum.update(key.secret_der());
        let belongs = |cert: &CertificateDer<'static>| {
            CertifiedKey::from_der(vec![cert.clone()], key.clone_key(), &provider()).map(drop)
        };
        match belongs(own) {
            Err(Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
                let another = chain.iter().skip(1).any(|cert| belongs(cert).is_ok());
                return Err(if another { PairFault::OwnNotFirst } else { PairFault::Mismatch });
            }
            Err(_) => return Err(PairFault::KeyUnfit),
            Ok(()) => {}
        }
        let certified = CertifiedKey::from_der(chain, key, &provider())
            .map_err(|why| PairFault::KeyBroken(plain(&why)))?;
        Ok(Self { certified: Arc::new(certified), digest: sum.finalize().into() })
    }

    /// The form in which rustls uses it.
    #[must_use]
    pub fn certified(&self) -> &Arc<CertifiedKey> {
        &self.certified
    }

    /// The chain's own certificate.
    #[must_use]
    pub fn own(&self) -> Option<&CertificateDer<'static>> {
        self.certified.cert.first()
    }

    /// The first certificate of the chain, counted from 1, that the next one has not issued.
    ///
    /// Source: RFC 5246 §7.4.2 demands the order; RFC 8446 §4.4.2 only advises it.
    #[must_use]
    pub fn broken_after(&self) -> Option<usize> {
        let links = self.certified.cert.windows(2);
        links.map(|link| issued(&link[1], &link[0])).position(|issued| !issued).map(|at| at + 1)
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl Eq for Pair {}

impl Hash for Pair {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.digest.hash(state);
    }
}

impl fmt::Debug for Pair {
    /// Neither key nor digest: of the same key two prints would be the same.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pair({} certificates)", self.certified.cert.len())
    }
}

/// All certificates of a PEM text; the error is for a person.
pub(super) fn certificates(text: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    found.map_err(|why| pem_why(&why))
}

fn pem_why(why: &pem::Error) -> String {
    match why {
        pem::Error::MissingSectionEnd { .. } => "a block without its end".to_owned(),
        pem::Error::IllegalSectionStart { .. } => "a block that begins badly".to_owned(),
        pem::Error::Base64Decode(_) => "not base64".to_owned(),
        other => other.to_string(),
    }
}

/// What rustls says of a certificate or key, without the frame around it.
pub(super) fn plain(why: &Error) -> String {
    match why {
        Error::InvalidCertificate(why) => format!("{why:?}"),
        Error::General(why) => why.clone(),
        other => other.to_string(),
    }
}
