//! TLS towards an upstream: rustls's client config, made from ours.
//!
//! The server's certificate must be signed by one of Mozilla's roots, of the machine's roots (read
//! once), or of those in a file and no others. Sessions are kept in memory for all cores together;
//! a config belongs to one server (`Store`), since no other server can resume its sessions.

use std::io;
use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::SingleCertAndKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, InvalidMessage, OtherError,
    RootCertStore, SignatureScheme, version,
};

use crate::config::{Alpn, Authorities, UpstreamTls};
use crate::pki::provider;

use super::own_root::OwnRoots;
use super::server::alpn_id;

/// TLS 1.3 tickets that a config keeps; rustls keeps so many for one server name, and one session
/// of TLS 1.2 beside them.
const TICKETS_MAX: usize = 8;

/// The TLS config for an upstream, and the name that its certificate must have.
#[derive(Debug, Clone)]
pub struct TlsClient {
    /// Shared by all entries of the same server with the same settings.
    pub config: Arc<ClientConfig>,
    /// Sent as SNI, and verified unless `tls.verify` is off.
    pub name: ServerName<'static>,
}

impl PartialEq for TlsClient {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.config, &other.config) && self.name == other.name
    }
}

impl Eq for TlsClient {}

/// Makes the rustls config for one server; its name is not part of it. `http2` offers h2 by ALPN
/// before HTTP/1.1.
///
/// Errors: a text for the operator: this machine has no roots, or a key cannot be used.
pub fn client_config(tls: &UpstreamTls, http2: bool) -> Result<Arc<ClientConfig>, String> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&version::TLS13, &version::TLS12])
        .map_err(|why| why.to_string())?;
    let believing = |believes| Arc::new(Verifier { believes, provider: provider() });
    let builder = if tls.verify {
        let roots = match &tls.ca {
            Authorities::Mozilla => mozilla(),
            Authorities::System => system()?,
            Authorities::File(file) => file.roots.store().clone(),
        };
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider());
        let verifier = verifier.build().map_err(|why| why.to_string())?;
        match &tls.ca {
            Authorities::File(file) => {
                let own = OwnRoots(file.roots.store().clone());
                let verifier = believing(Believes::File(OfFile { own, verifier }));
                builder.dangerous().with_custom_certificate_verifier(verifier)
            }
            _ => builder.with_webpki_verifier(verifier),
        }
    } else {
        builder.dangerous().with_custom_certificate_verifier(believing(Believes::Anyone))
    };
    let mut config = match &tls.client {
        None => builder.with_no_client_auth(),
        Some(pair) => {
            let own = SingleCertAndKey::from(pair.loaded.certified().clone());
            builder.with_client_cert_resolver(Arc::new(own))
        }
    };
    let offered: &[Alpn] = if http2 { &[Alpn::H2, Alpn::Http11] } else { &[Alpn::Http11] };
    config.alpn_protocols = offered.iter().map(|protocol| alpn_id(*protocol).to_vec()).collect();
    config.resumption = Resumption::in_memory_sessions(TICKETS_MAX);
    config.enable_early_data = false;
    Ok(Arc::new(config))
}

/// A text for the log about an error of a read, write or handshake.
#[must_use]
pub fn explain(error: &io::Error) -> String {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    inner.map_or_else(|| error.to_string(), why)
}

/// A text for the operator about an error of rustls.
#[must_use]
pub fn why(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "the certificate is signed by nobody we trust (tls.ca)".to_owned()
        }
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            "what the other side speaks is no TLS".to_owned()
        }
        // The error's type belongs to a crate that we do not depend on, so its text is compared.
        Error::InvalidCertificate(CertificateError::Other(OtherError(why)))
            if why.to_string() == "CaUsedAsEndEntity" =>
        {
            "the certificate is an authority's own, and not in tls.ca".to_owned()
        }
        Error::InvalidCertificate(why) => format!("the certificate is refused: {why}"),
        Error::AlertReceived(alert) => format!("the other side refused: {alert:?}"),
        other => other.to_string(),
    }
}

/// As [`explain`], for clients, who must learn nothing of the server: no name, address or path.
#[must_use]
pub fn plainly(error: &io::Error) -> &'static str {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    match inner {
        Some(Error::InvalidCertificate(why)) => certificate_plainly(why),
        Some(Error::InvalidMessage(InvalidMessage::InvalidContentType)) => {
            "what the other side speaks is no TLS"
        }
        Some(Error::AlertReceived(_)) => "the other side refused",
        Some(_) => "the two sides do not agree",
        None if error.kind() == io::ErrorKind::UnexpectedEof => "the server closed the connection",
        None => "the connection broke",
    }
}

fn certificate_plainly(why: &CertificateError) -> &'static str {
    match why {
        CertificateError::UnknownIssuer => "the certificate is signed by nobody we trust",
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "the certificate has expired"
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "the certificate is not valid yet"
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "the certificate is not valid for name or address asked for"
        }
        _ => "the certificate is refused",
    }
}

fn mozilla() -> Arc<RootCertStore> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    let load = || {
        let roots = webpki_roots::TLS_SERVER_ROOTS.to_vec();
        Arc::new(RootCertStore { roots })
    };
    ROOTS.get_or_init(load).clone()
}

/// The machine's roots, read once, when first needed.
fn system() -> Result<Arc<RootCertStore>, String> {
    static ROOTS: OnceLock<Result<Arc<RootCertStore>, String>> = OnceLock::new();
    let load = || {
        let found = rustls_native_certs::load_native_certs();
        let mut store = RootCertStore::empty();
        // Certificates that cannot be parsed, as some machines have them, are left out.
        store.add_parsable_certificates(found.certs);
        match (store.is_empty(), found.errors.first()) {
            (false, _) => Ok(Arc::new(store)),
            (true, Some(why)) => Err(format!("ca = \"system\": {why}")),
            (true, None) => Err("ca = \"system\": this machine has no roots".to_owned()),
        }
    };
    ROOTS.get_or_init(load).clone()
}

/// Verifies servers where the operator's setting differs from rustls's own rule. In either case the
/// server must prove that it holds the key of its certificate.
#[derive(Debug)]
struct Verifier {
    believes: Believes,
    provider: Arc<CryptoProvider>,
}

/// Which certificates are accepted.
#[derive(Debug)]
enum Believes {
    /// `verify = false`: any certificate, under any name.
    Anyone,
    /// `ca` is a file: those that its authorities have signed, and the authorities themselves.
    File(OfFile),
}

/// rustls's own rule for the authorities of a file; beyond it a server whose own certificate is in
/// the file is accepted, if it has the name that was asked for.
#[derive(Debug)]
struct OfFile {
    own: OwnRoots,
    verifier: Arc<WebPkiServerVerifier>,
}

impl OfFile {
    fn verify(
        &self,
        cert: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verifier.verify_server_cert(cert, chain, name, ocsp, now).or_else(|refused| {
            self.own.believe(cert, now, refused)?;
            verify_server_name(&ParsedCertificate::try_from(cert)?, name)?;
            Ok(ServerCertVerified::assertion())
        })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        cert: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match &self.believes {
            Believes::Anyone => Ok(ServerCertVerified::assertion()),
            Believes::File(file) => file.verify(cert, chain, name, ocsp, now),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let known = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let known = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
