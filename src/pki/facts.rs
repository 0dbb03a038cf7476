//! What a certificate says of itself.
//!
//! Source: RFC 5280 §4.1.2.5 (dates), §4.1.2.6 (subject), §4.2.1.6 (names). What a certificate
//! says is worth what its signature is: who asks has had it verified, or does not care.

use rustls::pki_types::CertificateDer;
use x509_cert::Certificate;
use x509_cert::der::asn1::{Ia5StringRef, ObjectIdentifier, PrintableStringRef, Utf8StringRef};
use x509_cert::der::{Any, Decode as _, Tag, Tagged as _};
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

/// `commonName` of X.520.
const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");
/// Longest common name that counts, in bytes; `ub-common-name` is 64 characters.
const NAME_BYTES_MAX: usize = 128;

/// What a certificate says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The subject's common name, when it has exactly one.
    pub common_name: Option<String>,
    /// DNS names of the subject, in lower case; `*.example.com` among them.
    pub dns_names: Vec<String>,
    /// It names a host, by DNS name or address: without, no client takes it for a server's.
    pub names_a_host: bool,
    /// Unix second of the first moment at which it is good.
    pub not_before: u64,
    /// Unix second of the last.
    pub not_after: u64,
}

/// Reads a certificate; `None` when it is none.
#[must_use]
pub fn facts(cert: &CertificateDer<'_>) -> Option<Facts> {
    let parsed = Certificate::from_der(cert).ok()?.tbs_certificate;
    let names = parsed.get::<SubjectAltName>().ok().flatten();
    let dns = |name: &GeneralName| match name {
        GeneralName::DnsName(name) => Some(name.as_str().to_ascii_lowercase()),
        _ => None,
    };
    let host =
        |name: &GeneralName| matches!(name, GeneralName::DnsName(_) | GeneralName::IpAddress(_));
    let names = names.map_or_else(Vec::new, |(_, names)| names.0);
    let mut common = parsed
        .subject
        .0
        .iter()
        .flat_map(|set| set.0.iter())
        .filter(|attribute| attribute.oid == COMMON_NAME);
    let common_name = match (common.next(), common.next()) {
        (Some(only), None) => text(&only.value),
        // Of two names nobody could say which one counts.
        _ => None,
    };
    Some(Facts {
        common_name,
        dns_names: names.iter().filter_map(dns).collect(),
        names_a_host: names.iter().any(host),
        not_before: parsed.validity.not_before.to_unix_duration().as_secs(),
        not_after: parsed.validity.not_after.to_unix_duration().as_secs(),
    })
}

/// Whether one certificate says that it is of the issuer that the other is.
pub(super) fn issued(issuer: &CertificateDer<'_>, cert: &CertificateDer<'_>) -> bool {
    match (Certificate::from_der(issuer), Certificate::from_der(cert)) {
        (Ok(issuer), Ok(cert)) => issuer.tbs_certificate.subject == cert.tbs_certificate.issuer,
        _ => false,
    }
}

/// The name by which a client's certificate calls its owner: the common name of its subject.
///
/// Shape: a certificate that has been verified; `None` when it has no such name, several, or
/// one that could be no name of a key (not visible ASCII, too long).
#[must_use]
pub fn client_name(cert: &CertificateDer<'_>) -> Option<String> {
    let name = facts(cert)?.common_name?;
    let plain = !name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic());
    (plain && name.len() <= NAME_BYTES_MAX).then_some(name)
}

fn text(value: &Any) -> Option<String> {
    let text = match value.tag() {
        Tag::Utf8String => value.decode_as::<Utf8StringRef<'_>>().ok()?.as_str().to_owned(),
        Tag::PrintableString => {
            value.decode_as::<PrintableStringRef<'_>>().ok()?.as_str().to_owned()
        }
        Tag::Ia5String => value.decode_as::<Ia5StringRef<'_>>().ok()?.as_str().to_owned(),
        _ => return None,
    };
    Some(text)
}
