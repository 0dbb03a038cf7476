//! rules §2, §9: servers behind TLS, and what is wrong with some of them.

use std::io::Read;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokenring::testing::net::dial::Address;

use super::h2_server::{H2Server, Ways};
use super::house::{LIMIT, Proxy, Setup, wait_until};
use super::wire::{get, noise, post, sha256};

/// Who signs the certificates of a test.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Authority { issuer: Issuer::new(params, key), pem }
    }

    /// What a server of this name speaks, with a certificate until this year.
    fn server(&self, name: &str, year: i32, alpn: &[&str]) -> Arc<rustls::ServerConfig> {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(year, 1, 1);
        let cert = params.signed_by(&key, &self.issuer).unwrap().pem();
        let cert = CertificateDer::from_pem_slice(cert.as_bytes()).unwrap();
        let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(provider);
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        let mut config = builder.with_no_client_auth().with_single_cert(vec![cert], key).unwrap();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }

    pub(crate) fn start(&self, name: &str, year: i32, alpn: &[&str]) -> H2Server {
        H2Server::start(Ways { tls: Some(self.server(name, year, alpn)), ..Ways::default() })
    }

    /// A proxy that believes this authority alone.
    pub(crate) fn proxy(&self, setup: Setup<'_>, urls: &[String]) -> Proxy {
        Proxy::start_beside(&setup.text(urls), &[("ca.pem", &self.pem)])
    }
}

pub(crate) const CA: &str = "tls = { ca = \"ca.pem\" }\n";
pub(crate) const CA_H2: &str = "tls = { ca = \"ca.pem\" }\nhttp2 = true\n";
pub(crate) const BOTH: &[&str] = &["h2", "http/1.1"];

fn check(alpn: &[&str], upstream: &str, version: &str) {
    let authority = Authority::new("ours");
    let server = authority.start("localhost", 2099, alpn);
    let proxy = authority.proxy(Setup { upstream, ..Setup::default() }, &[server.url()]);
    let mut client = proxy.client();
    for _ in 0..5 {
        let answer = client.send(get("/echo", "")).answer();
        let got = (answer.status, answer.field("x-version"), answer.text());
        assert_eq!(got, (200, Some(version), "ok".to_owned()));
    }
    assert_eq!((server.connections(), server.requests()), (1, 5));
}

#[test]
fn https_is_spoken_in_http1_unless_http2_is_asked_for() {
    check(BOTH, CA, "1");
    check(&[], CA, "1");
}

#[test]
fn the_server_chooses_the_version() {
    check(BOTH, CA_H2, "2");
    check(&["http/1.1"], CA_H2, "1");
    check(&[], CA_H2, "1");
}

#[test]
fn bodies_pass_tls_and_http2() {
    let authority = Authority::new("ours");
    let server = authority.start("localhost", 2099, BOTH);
    let setup = Setup { upstream: CA_H2, ..Setup::default() };
    let proxy = authority.proxy(setup, &[server.url()]);
    let body = noise(9, 8 << 20);
    let mut client = proxy.client();
    let mut writer = client.stream();
    let request = post("/echo", "x-do: echo\r\n", &body);
    let answer = std::thread::scope(|scope| {
        scope.spawn(|| std::io::Write::write_all(&mut writer, &request).unwrap());
        client.answer()
    });
    assert_eq!(sha256(&answer.body), sha256(&body));
    assert_eq!(server.seen.heads.lock().unwrap()[0].uri.scheme_str(), Some("https"));
}

#[test]
fn a_crowd_shares_what_the_server_speaks() {
    for (alpn, most) in [(BOTH, 1), (&["http/1.1"][..], 30)] {
        let authority = Authority::new("ours");
        let server = authority.start("localhost", 2099, alpn);
        let setup = Setup { upstream: CA_H2, ..Setup::default() };
        let proxy = authority.proxy(setup, &[server.url()]);
        let mut clients: Vec<_> = (0..30).map(|_| proxy.client()).collect();
        clients.iter_mut().for_each(|client| {
            client.send(get("/echo", ""));
        });
        for client in &mut clients {
            assert_eq!(client.answer().text(), "ok");
        }
        assert!(server.connections() <= most, "{}", server.connections());
    }
}

/// A certificate that is refused: a 502 that says why.
fn refused(server: &H2Server, authority: &Authority, upstream: &str, why: &str) {
    let proxy = authority.proxy(Setup { upstream, ..Setup::default() }, &[server.url()]);
    let mut client = proxy.client();
    for _ in 0..2 {
        let answer = client.send(get("/echo", "")).answer();
        assert_eq!(answer.status, 502);
        let message = answer.message();
        assert!(message.starts_with("The TLS handshake with the upstream failed: "), "{message}");
        assert!(message.contains(why), "{message}");
        // Which server that is, is nobody's business.
        assert!(!message.contains("localhost") && !message.contains("example.org"), "{message}");
    }
    assert_eq!(server.requests(), 0);
}

#[test]
fn an_unfit_certificate_is_a_502_with_its_reason() {
    let (authority, other) = (Authority::new("ours"), Authority::new("another"));
    for upstream in [CA, CA_H2] {
        let expired = authority.start("localhost", 2021, BOTH);
        refused(&expired, &authority, upstream, "expired");
        let elsewhere = authority.start("example.org", 2099, BOTH);
        refused(&elsewhere, &authority, upstream, "not valid for name");
        let unknown = other.start("localhost", 2099, BOTH);
        refused(&unknown, &authority, upstream, "signed by nobody we trust");
    }
    // Mozilla's authorities do not know it either.
    let server = authority.start("localhost", 2099, BOTH);
    refused(&server, &authority, "", "signed by nobody we trust");
}

#[test]
fn another_name_can_be_verified_or_none() {
    let authority = Authority::new("ours");
    let server = authority.start("example.org", 2021, BOTH);
    for (upstream, status) in [
        ("tls = { verify = false }\n", 200),
        ("tls = { ca = \"ca.pem\", server_name = \"example.org\" }\n", 502),
    ] {
        let proxy = authority.proxy(Setup { upstream, ..Setup::default() }, &[server.url()]);
        assert_eq!(proxy.client().send(get("/echo", "")).answer().status, status, "{upstream}");
    }
    let server = authority.start("example.org", 2099, BOTH);
    let upstream = "tls = { ca = \"ca.pem\", server_name = \"example.org\" }\n";
    let proxy = authority.proxy(Setup { upstream, ..Setup::default() }, &[server.url()]);
    assert_eq!(proxy.client().send(get("/echo", "")).answer().status, 200);
}

#[test]
fn a_server_without_tls_is_a_502() {
    let mock = super::house::mock();
    let url = mock.url().replace("http:", "https:");
    let authority = Authority::new("ours");
    let proxy = authority.proxy(Setup { upstream: CA, ..Setup::default() }, &[url]);
    let answer = proxy.client().send(get("/echo", "")).answer();
    assert_eq!(answer.status, 502);
    let message = answer.message();
    assert!(message.contains("TLS handshake") && message.contains("is no TLS"), "{message}");
}

#[test]
fn a_handshake_that_hangs_ends_with_the_connect_timeout_or_the_client() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://localhost:{}", silent.local_addr().unwrap().port());
    let rest = "[timeouts]\nconnect = \"1s\"\n";
    for upstream in [CA, CA_H2] {
        let setup = Setup { upstream, rest, ..Setup::default() };
        let proxy = Authority::new("ours").proxy(setup, std::slice::from_ref(&url));
        let begun = Instant::now();
        assert_eq!(proxy.client().send(get("/echo", "")).answer().status, 504);
        let took = begun.elapsed();
        assert!(took > Duration::from_millis(900) && took < Duration::from_secs(3), "{took:?}");
        // A client that leaves ends it at once.
        let (stream, _) = silent.accept().unwrap();
        drop(stream);
        let mut client = proxy.client();
        client.send(get("/echo", ""));
        let (mut stream, _) = silent.accept().unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let mut hello = Vec::new();
        stream.by_ref().take(5).read_to_end(&mut hello).unwrap();
        assert_eq!(hello[0], 22, "a handshake record");
        let left = Instant::now();
        drop(client);
        let _ = stream.read_to_end(&mut hello);
        assert!(left.elapsed() < Duration::from_millis(500), "{:?}", left.elapsed());
        proxy.wait_until_empty();
    }
}

#[test]
fn the_operator_reads_why() {
    let authority = Authority::new("ours");
    let server = authority.start("localhost", 2021, BOTH);
    let rest = "[admin]\nbind = \"127.0.0.1:0\"\n";
    let setup = Setup { upstream: CA, rest, ..Setup::default() };
    let proxy = authority.proxy(setup, &[server.url()]);
    assert_eq!(proxy.client().send(get("/echo", "")).answer().status, 502);
    let Some(Address::Tcp(admin)) = proxy.admin() else { panic!("no admin listener") };
    wait_until("the record says why", || {
        let mut client = super::wire::Client::connect(*admin);
        let health = client.send(get("/health", "")).answer().json();
        let why = health["endpoints"]["gpu0"]["lastError"].as_str().unwrap_or_default().to_owned();
        why.contains("tls handshake failed") && why.contains("expired")
    });
}
