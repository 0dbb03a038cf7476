//! A listener over TLS and its clients: an authority of the test's own, nothing on disk.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use tokenring::testing::net::tls::provider;

use super::house::{Proxy, Setup};

/// Who signs, and the certificate of the proxy.
pub(crate) struct Secure {
    issuer: Issuer<'static, KeyPair>,
    ca: String,
    cert: String,
    key: String,
}

impl Secure {
    pub(crate) fn new() -> Secure {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let ca = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        let (cert, key) = sign(&issuer, "proxy");
        Secure { issuer, ca, cert, key }
    }

    /// A proxy whose first listener speaks TLS; `tls` stands in its table.
    pub(crate) fn proxy(&self, tls: &str, setup: Setup<'_>, urls: &[String]) -> Proxy {
        let listener =
            format!("tls = {{ cert = \"cert.pem\", key = \"key.pem\"{tls} }}\n{}", setup.listener);
        let text = Setup { listener: &listener, ..setup }.text(urls);
        let files = [("ca.pem", &*self.ca), ("cert.pem", &self.cert), ("key.pem", &self.key)];
        Proxy::start_beside(&text, &files)
    }

    /// Writes the certificate and its key into a folder, for a process of its own.
    pub(crate) fn write(&self, folder: &Path) {
        std::fs::write(folder.join("cert.pem"), &self.cert).unwrap();
        std::fs::write(folder.join("key.pem"), &self.key).unwrap();
    }

    /// A client that offers these protocols.
    pub(crate) fn client(&self, alpn: &[&str]) -> Arc<ClientConfig> {
        self.client_named(alpn, None)
    }

    /// The same with a certificate of this common name.
    pub(crate) fn client_named(&self, alpn: &[&str], name: Option<&str>) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.ca.as_bytes()).unwrap()).unwrap();
        let config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match name {
            None => config.with_no_client_auth(),
            Some(name) => {
                let (cert, key) = sign(&self.issuer, name);
                let chain = vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()];
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
                config.with_client_auth_cert(chain, key).unwrap()
            }
        };
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }
}

/// Certificate and key, PEM.
fn sign(issuer: &Issuer<'_, KeyPair>, common_name: &str) -> (String, String) {
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name.push(DnType::CommonName, common_name);
    let key = KeyPair::generate().unwrap();
    (params.signed_by(&key, issuer).unwrap().pem(), key.serialize_pem())
}

/// The client's side of a connection, before its handshake.
pub(crate) fn session(config: &Arc<ClientConfig>) -> ClientConnection {
    ClientConnection::new(config.clone(), server_name()).unwrap()
}

/// The name by which the proxy is known.
pub(crate) fn server_name() -> ServerName<'static> {
    ServerName::try_from("localhost").unwrap()
}

/// Shakes hands at once, so that ALPN is known.
pub(crate) fn shake(addr: SocketAddr, config: &Arc<ClientConfig>) -> (TcpStream, ClientConnection) {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(super::house::LIMIT)).unwrap();
    let mut session = session(config);
    while session.is_handshaking() {
        session.complete_io(&mut stream).unwrap();
    }
    (stream, session)
}
