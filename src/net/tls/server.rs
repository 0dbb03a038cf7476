//! TLS of a listener: rustls's server config, made from ours.
//!
//! The certificate is chosen by the name the client asks for (RFC 6066 §3): the first pair that has
//! the name and whose signatures the client can verify, an exact name before a wildcard; for an
//! unknown name or none, the first pair of the list whose signatures it can verify. A pair has the
//! names that are in its certificate. Resumption is by tickets alone, so that nothing is kept per
//! session; early data (0-RTT) is never taken, since it can be replayed.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{
    ClientHello, NoServerSessionStorage, ProducesTickets, ResolvesServerCert, WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme,
    SupportedProtocolVersion, version,
};

use crate::config::{Alpn, CertPair, ClientAuth, ListenerTls, TlsVersion};
use crate::pki::{facts, provider};

use super::own_root::OwnRoots;

static FROM_12: [&SupportedProtocolVersion; 2] = [&version::TLS13, &version::TLS12];
static FROM_13: [&SupportedProtocolVersion; 1] = [&version::TLS13];

/// Makes the rustls config of a listener.
///
/// Shape: `tickets` must seal sessions for this listener's demands on clients only
/// (`Tickets::for_context`), or a client could bring a ticket from a listener that demands less.
/// Errors: a text for the operator; a config that was checked leaves few.
pub fn server_config(
    tls: &ListenerTls,
    tickets: Arc<dyn ProducesTickets>,
) -> Result<Arc<ServerConfig>, String> {
    let versions: &[_] = match tls.min_version {
        TlsVersion::V12 => &FROM_12,
        TlsVersion::V13 => &FROM_13,
    };
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)
        .map_err(|why| why.to_string())?;
    let builder = match &tls.client_ca {
        None => builder.with_no_client_auth(),
        Some(file) => {
            let roots = file.roots.store().clone();
            let own = OwnRoots(roots.clone());
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider());
            let verifier = match tls.client_auth {
                ClientAuth::Require => verifier,
                ClientAuth::Request => verifier.allow_unauthenticated(),
            };
            let named = |why| format!("{}: {why}", file.path.display());
            let verifier = verifier.build().map_err(named)?;
            builder.with_client_cert_verifier(Arc::new(ClientVerifier { verifier, own }))
        }
    };
    let resolver = BySni::new(&tls.pairs).ok_or("no certificate")?;
    let mut config = builder.with_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = tls.alpn.iter().map(|protocol| alpn_id(*protocol).to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.ticketer = tickets;
    // A second ticket helps clients that open connections in bursts, and costs every handshake.
    config.send_tls13_tickets = 1;
    config.max_early_data_size = 0;
    config.ignore_client_order = true;
    Ok(Arc::new(config))
}

/// The identifier of a protocol in ALPN (RFC 7301).
pub(super) fn alpn_id(protocol: Alpn) -> &'static [u8] {
    match protocol {
        Alpn::H2 => b"h2",
        Alpn::Http11 => b"http/1.1",
    }
}

/// Accepts clients whose certificate an authority has signed, and clients whose own certificate is
/// one of the authorities (`own_root`).
#[derive(Debug)]
struct ClientVerifier {
    verifier: Arc<dyn ClientCertVerifier>,
    own: OwnRoots,
}

impl ClientCertVerifier for ClientVerifier {
    fn verify_client_cert(
        &self,
        cert: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verifier.verify_client_cert(cert, chain, now).or_else(|refused| {
            self.own.believe(cert, now, refused)?;
            Ok(ClientCertVerified::assertion())
        })
    }

    fn client_auth_mandatory(&self) -> bool {
        self.verifier.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.verifier.root_hint_subjects()
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

/// The certificates of a listener, found by the name that a client asks for.
#[derive(Debug)]
struct BySni {
    pairs: Vec<Arc<CertifiedKey>>,
    /// Names in lower case to indexes of `pairs`; `wild` has the part behind `*.`.
    exact: HashMap<Box<str>, Vec<usize>>,
    wild: HashMap<Box<str>, Vec<usize>>,
}

impl BySni {
    fn new(list: &[CertPair]) -> Option<Self> {
        let mut all = Self { pairs: Vec::new(), exact: HashMap::new(), wild: HashMap::new() };
        for (index, pair) in list.iter().enumerate() {
            all.pairs.push(pair.loaded.certified().clone());
            let facts = pair.loaded.own().and_then(|cert| facts(cert));
            for name in facts.into_iter().flat_map(|facts| facts.dns_names) {
                match name.strip_prefix("*.") {
                    Some(rest) => all.wild.entry(rest.into()).or_default().push(index),
                    None => all.exact.entry(name.into()).or_default().push(index),
                }
            }
        }
        (!all.pairs.is_empty()).then_some(all)
    }

    fn choose(&self, name: Option<&str>, schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let usable = |index: &&usize| {
            let pair = self.pairs.get(**index);
            pair.is_some_and(|pair| pair.key.choose_scheme(schemes).is_some())
        };
        let found = name.and_then(|name| {
            let name = name.to_ascii_lowercase();
            // The host of a URL may end in a dot, which RFC 6066 leaves out; some clients send it.
            let name = name.strip_suffix('.').unwrap_or(&name);
            let mut exact = self.exact.get(name).into_iter().flatten();
            let rest = name.split_once('.').map(|(_, rest)| rest);
            let mut wild = rest.and_then(|rest| self.wild.get(rest)).into_iter().flatten();
            exact.find(usable).or_else(|| wild.find(usable))
        });
        let usual = || (0..self.pairs.len()).find(|index| usable(&index));
        // A client that can verify none gets the first one: its alert says more than ours would.
        self.pairs.get(found.copied().or_else(usual).unwrap_or(0)).cloned()
    }
}

impl ResolvesServerCert for BySni {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.choose(hello.server_name(), hello.signature_schemes())
    }
}

/// The rustls config of a listener; read once per handshake, replaced when its files change.
///
/// A connection keeps the config with which its handshake began.
#[derive(Debug)]
pub struct ReloadableServer(RwLock<Current>);

#[derive(Debug)]
struct Current {
    of: ListenerTls,
    config: Arc<ServerConfig>,
}

impl ReloadableServer {
    pub(super) fn new(of: ListenerTls, config: Arc<ServerConfig>) -> Self {
        Self(RwLock::new(Current { of, config }))
    }

    /// The config for the next handshake.
    #[must_use]
    pub fn config(&self) -> Arc<ServerConfig> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).config.clone()
    }

    /// Whether the config in force was made from these settings with the same content of files.
    pub(super) fn is_of(&self, tls: &ListenerTls) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).of == *tls
    }

    pub(super) fn put(&self, of: ListenerTls, config: Arc<ServerConfig>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Current { of, config };
    }
}
