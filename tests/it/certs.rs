//! TLS as an operator sees it: certificates that change, clients known by theirs, servers whose
//! certificate is not to be trusted.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};
use rustls::{HandshakeKind, StreamOwned};
use tokenring::testing::control;
use tokenring::testing::control::reload::{FileText, ReloadHooks};
use tokenring::testing::load;
use tokenring::testing::net::dial::Address;
use tokenring::testing::net::tls::{client_name, provider};
use tokenring::testing::server::{self, Started};

use super::house::{LIMIT, Proxy, wait_until};
use super::wire::{Client, get};

/// An authority, and the folder in which its files are.
pub(crate) struct House {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) ca: String,
    folder: PathBuf,
}

impl House {
    pub(crate) fn new(name: &str) -> House {
        static HOUSES: AtomicU64 = AtomicU64::new(0);
        let number = HOUSES.fetch_add(1, Ordering::Relaxed);
        let folder = format!("tokenring-certs-{name}-{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(folder);
        std::fs::create_dir_all(&folder).unwrap();
        let mut params = params(name, &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let ca = params.self_signed(&key).unwrap().pem();
        let house = House { issuer: Issuer::new(params, key), ca, folder };
        house.write("ca.pem", &house.ca);
        house
    }

    /// Puts a file in place as a whole.
    pub(crate) fn write(&self, name: &str, text: &str) {
        let (new, path) = (self.folder.join("new"), self.folder.join(name));
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, path).unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    /// Certificate and key, PEM.
    pub(crate) fn sign(&self, common_name: &str, names: &[&str]) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let cert = params(common_name, names).signed_by(&key, &self.issuer).unwrap();
        (cert.pem(), key.serialize_pem())
    }

    /// Writes `c.pem` and `k.pem`.
    pub(crate) fn renew(&self, common_name: &str) {
        let (cert, key) = self.sign(common_name, &["localhost", "127.0.0.1"]);
        self.write("c.pem", &cert);
        self.write("k.pem", &key);
    }

    fn listener(&self, more: &str) -> String {
        let (cert, key) = (self.path("c.pem"), self.path("k.pem"));
        format!(
            "[process]\ncores = 2\n[[listener]]\nname = \"l\"\nbind = \"127.0.0.1:0\"\n\
             tls = {{ cert = \"{cert}\", key = \"{key}\"{more} }}\n"
        )
    }

    /// A client that trusts the authority and may show a certificate.
    fn client(&self, own: Option<(String, String)>) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.ca.as_bytes()).unwrap()).unwrap();
        let config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        Arc::new(match own {
            None => config.with_no_client_auth(),
            Some((cert, key)) => {
                let chain = vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()];
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
                config.with_client_auth_cert(chain, key).unwrap()
            }
        })
    }
}

impl Drop for House {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn params(common_name: &str, names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params
}

/// A client connection over TLS.
struct Secure(StreamOwned<ClientConnection, TcpStream>);

impl Secure {
    fn connect(addr: SocketAddr, config: &Arc<ClientConfig>) -> Secure {
        let stream = TcpStream::connect(addr).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        Secure(StreamOwned::new(ClientConnection::new(config.clone(), name).unwrap(), stream))
    }

    /// The status of an answer, or why there is none.
    fn ask(&mut self, path: &str, fields: &str) -> Result<u16, String> {
        let told = |why: std::io::Error| why.to_string();
        self.0.write_all(&get(path, fields)).map_err(told)?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            self.0.read_exact(&mut byte).map_err(told)?;
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
        let length = head.split("content-length: ").nth(1).expect("it has a length");
        let length = length.split("\r\n").next().unwrap().parse().unwrap();
        self.0.read_exact(&mut vec![0; length]).map_err(told)?;
        Ok(head[9..12].parse().unwrap())
    }

    /// The common name of the other side.
    fn server(&self) -> String {
        let chain = self.0.conn.peer_certificates().unwrap();
        client_name(chain.first().unwrap()).unwrap()
    }
}

/// Lines for the operator.
pub(crate) fn listening() -> (control::Options, Arc<Mutex<Vec<String>>>) {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let heard = lines.clone();
    let say = Arc::new(move |line: &str| heard.lock().unwrap().push(line.to_owned()));
    (control::Options { say, ..control::Options::default() }, lines)
}

fn metric(proxy: &Proxy, name: &str) -> String {
    let Some(Address::Tcp(addr)) = proxy.admin() else { panic!("no admin listener") };
    let text = Client::connect(*addr).send(get("/metrics", "")).answer().text();
    let line = text.lines().find(|line| line.starts_with(&format!("tokenring_{name} ")));
    line.unwrap_or_else(|| panic!("no {name}")).to_owned()
}

#[test]
fn a_new_certificate_is_in_force_and_nobody_is_dropped() {
    let house = House::new("reload");
    house.renew("first");
    let text = format!("{}auth = \"none\"\n[admin]\nbind = \"127.0.0.1:0\"\n", house.listener(""));
    let (options, lines) = listening();
    let proxy = Proxy::start_with(&text, options);
    let client = house.client(None);
    let mut old = Secure::connect(proxy.addr(), &client);
    assert_eq!(old.ask("/health", ""), Ok(200));
    assert_eq!(old.server(), "first");
    let told = |part: &str| lines.lock().unwrap().iter().any(|line| line.contains(part));

    let labels =
        format!("{{side=\"listener\",name=\"l\",certificate=\"{}\"}}", house.path("c.pem"));
    let left = metric(&proxy, &format!("certificate_remaining_seconds{labels}"));
    assert!(left.rsplit(' ').next().unwrap().parse::<i64>().unwrap() > 86_400, "{left}");

    // A certificate whose key has not come yet.
    let (cert, key) = house.sign("second", &["localhost"]);
    house.write("c.pem", &cert);
    proxy.reload();
    wait_until("the failure is told", || told("k.pem: the key belongs to another certificate"));
    assert_eq!(
        metric(&proxy, "tls_reload_failures_total"),
        "tokenring_tls_reload_failures_total 1"
    );
    let mut between = Secure::connect(proxy.addr(), &client);
    assert_eq!(between.ask("/health", ""), Ok(200));
    assert_eq!(between.server(), "first", "what was in force stays");

    house.write("k.pem", &key);
    proxy.reload();
    wait_until("the next client sees it", || {
        let mut fresh = Secure::connect(proxy.addr(), &house.client(None));
        assert_eq!(fresh.ask("/health", ""), Ok(200));
        fresh.server() == "second"
    });
    assert!(told("listener l: new certificates are in force"));
    assert_eq!(metric(&proxy, "tls_reloads_total"), "tokenring_tls_reloads_total 1");
    for connection in [&mut old, &mut between] {
        assert_eq!(connection.ask("/health", ""), Ok(200), "still there");
    }
    // Nothing is undone when the plan is made anew, and nothing has changed since.
    proxy.reload();
    wait_until("it was looked at", || told("certificates: none has changed"));
    let mut fresh = Secure::connect(proxy.addr(), &house.client(None));
    assert_eq!((fresh.ask("/health", ""), fresh.server()), (Ok(200), "second".to_owned()));
}

#[test]
fn a_changed_file_is_seen_without_being_asked() {
    let house = House::new("watch");
    house.renew("first");
    let proxy = Proxy::start(&format!("{}auth = \"none\"\n", house.listener("")));
    house.renew("second");
    wait_until("the next client sees it", || {
        std::thread::sleep(Duration::from_millis(100));
        let mut fresh = Secure::connect(proxy.addr(), &house.client(None));
        assert_eq!(fresh.ask("/health", ""), Ok(200));
        fresh.server() == "second"
    });
}

#[test]
fn a_client_is_the_key_that_its_certificate_names() {
    let (house, strangers) = (House::new("mutual"), House::new("strangers"));
    house.renew("server");
    let ca = house.path("ca.pem");
    let keys = "[[key]]\nname = \"app\"\n[[key]]\nname = \"other\"\nkey = \"0123456789abcdef\"\n";
    let with = |auth: &str| {
        let more = format!(", client_ca = \"{ca}\", client_auth = \"{auth}\"");
        Proxy::start(&format!("{}{keys}", house.listener(&more)))
    };
    let ask = |proxy: &Proxy, own: Option<(String, String)>, fields: &str| {
        Secure::connect(proxy.addr(), &house.client(own)).ask("/v1/models", fields)
    };
    let (request, require) = (with("request"), with("require"));
    for proxy in [&request, &require] {
        assert_eq!(ask(proxy, Some(house.sign("app", &["c"])), ""), Ok(200));
        assert_eq!(ask(proxy, Some(house.sign("other", &["c"])), ""), Ok(200));
        assert_eq!(ask(proxy, Some(house.sign("nobody", &["c"])), ""), Ok(401));
        // A credential that is sent counts, good or not.
        let sent = |key: &str| format!("Authorization: Bearer {key}\r\n");
        assert_eq!(ask(proxy, Some(house.sign("app", &["c"])), &sent("wrong")), Ok(401));
        let good = sent("0123456789abcdef");
        assert_eq!(ask(proxy, Some(house.sign("nobody", &["c"])), &good), Ok(200));
        assert!(ask(proxy, Some(strangers.sign("app", &["c"])), "").is_err());
    }
    assert_eq!(ask(&request, None, ""), Ok(401));
    assert!(ask(&require, None, "").is_err());
    // Who resumes is still known.
    let client = house.client(Some(house.sign("app", &["c"])));
    for kind in [HandshakeKind::Full, HandshakeKind::Resumed] {
        let mut connection = Secure::connect(require.addr(), &client);
        assert_eq!(connection.ask("/v1/models", ""), Ok(200));
        assert_eq!(connection.0.conn.handshake_kind(), Some(kind));
    }
}

/// A server over TLS that lists the model `m`; ends with the process.
fn lister(house: &House, common_name: &str, names: &[&str]) -> SocketAddr {
    let (cert, key) = house.sign(common_name, names);
    let chain = vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            let session = ServerConnection::new(config.clone()).unwrap();
            std::thread::spawn(move || list(StreamOwned::new(session, stream)));
        }
    });
    addr
}

/// Answers one question; a client that does not trust us is no concern of ours.
fn list(mut stream: StreamOwned<ServerConnection, TcpStream>) {
    let asked = BufReader::new(&mut stream).lines().map_while(Result::ok).find(String::is_empty);
    if asked.is_some() {
        let body = "{\"data\":[{\"id\":\"m\"}]}";
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        let _ = stream.write_all((head + body).as_bytes());
        stream.conn.send_close_notify();
        let _ = stream.flush();
    }
}

#[test]
fn servers_are_asked_over_tls_and_must_be_who_they_are() {
    let house = House::new("probes");
    let by_name = lister(&house, "by name", &["gpu.test"]);
    let by_address = lister(&house, "by address", &["127.0.0.1"]);
    let ca = house.path("ca.pem");
    let mut text = "[process]\ncores = 1\n[[listener]]\nname = \"l\"\nbind = \"127.0.0.1:0\"\n\
                    auth = \"none\"\n[admin]\nbind = \"127.0.0.1:0\"\n"
        .to_owned();
    for (name, addr, tls) in [
        ("good", by_address, format!("ca = \"{ca}\"")),
        ("named", by_name, format!("ca = \"{ca}\", server_name = \"gpu.test\"")),
        ("unverified", by_name, "verify = false".to_owned()),
        ("wrong-host", by_name, format!("ca = \"{ca}\"")),
        ("stranger", by_address, String::new()),
    ] {
        text += &format!(
            "[[upstream]]\nname = \"{name}\"\nurl = \"https://{addr}\"\ntls = {{ {tls} }}\n\
             health = {{ path = \"/health\", interval = \"1s\", timeout = \"900ms\", fall = 1 }}\n"
        );
    }
    // Each is probed before the start is over, so the first word on it is one of the start.
    let config = load::load_text("config.toml", &text).unwrap_or_else(|why| panic!("{why}")).config;
    let started = server::start_with(&config, control::Options::default());
    let Started { server, warnings, .. } = started.unwrap_or_else(|why| panic!("{why}"));
    let proxy = Proxy::of(server);
    let down = "upstream stranger is down: tls: the certificate is signed by nobody we trust";
    assert!(warnings.iter().any(|line| line.starts_with(down)), "{warnings:#?}");
    let Some(Address::Tcp(admin)) = proxy.admin() else { panic!("no admin listener") };
    let post = "POST /health/force-check HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n";
    let told = Client::connect(*admin).send(post).answer().json();
    for (name, healthy, error) in [
        ("good", true, ""),
        ("named", true, ""),
        ("unverified", true, ""),
        ("wrong-host", false, "tls: the certificate is refused: certificate not valid for name"),
        ("stranger", false, "tls: the certificate is signed by nobody we trust"),
    ] {
        let row = &told["endpoints"][name];
        assert_eq!(row["healthy"], healthy, "{name}: {row}");
        let last = row["lastError"].as_str().unwrap_or_default();
        assert!(last.starts_with(error) && last.is_empty() == error.is_empty(), "{name}: {last}");
    }
    let plan = proxy.plan();
    assert!(plan.models.known("m").is_some(), "models were discovered");
    assert!(plan.upstreams.iter().all(|upstream| upstream.tls.is_some() && !upstream.http2));
}

/// A config that is only tried touches no settings that are in force.
#[test]
fn a_reload_that_is_refused_leaves_tls_as_it_was() {
    let house = House::new("refused");
    house.renew("first");
    let rest = "auth = \"none\"\n";
    let first = house.listener("") + rest;
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let ca = format!(", client_ca = \"{}\", client_auth = \"require\"", house.path("ca.pem"));
    let second = format!(
        "{}{rest}[[listener]]\nname = \"x\"\nbind = \"{}\"\nauth = \"none\"\n",
        house.listener(&ca),
        taken.local_addr().unwrap()
    );
    let (told, hears) = mpsc::channel();
    let told = Mutex::new(told);
    let hooks = ReloadHooks {
        read: Arc::new(move || {
            Ok(FileText { name: "config.toml".to_owned(), text: second.clone() })
        }),
        check: Arc::new(load::load_sources),
        prepare: Arc::new(|_| Ok(Box::new(|| {}))),
        told: Arc::new(move |how| told.lock().unwrap().send(how.clone()).unwrap()),
    };
    let options = control::Options { reload: Some(hooks), ..control::Options::default() };
    let proxy = Proxy::start_with(&first, options);
    let client = house.client(None);
    assert_eq!(Secure::connect(proxy.addr(), &client).ask("/v1/models", ""), Ok(200));
    proxy.reload();
    let why = hears.recv_timeout(LIMIT).unwrap().expect_err("its address is taken");
    assert!(why.contains("cannot listen on"), "{why}");
    let answer = Secure::connect(proxy.addr(), &client).ask("/v1/models", "");
    assert_eq!(answer, Ok(200), "no certificate is asked for");
}
