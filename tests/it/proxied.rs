//! rules §2 `upstream.proxy`: servers behind an outbound proxy.
//!
//! The proxy is written here and knows names of its own: nobody else could look `model.test` up.
//! It keeps every head that it was sent, and strips what is meant for it, as RFC 9110 §11.7.2
//! wants.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokenring::testing::control;

use super::fake::{Fake, NameServer, Records};
use super::h2_server::{H2Server, Ways};
use super::house::{LIMIT, Proxy, Setup, mock, wait_until};
use super::tls_upstream::{Authority, BOTH, CA, CA_H2};
use super::wire::{Answer, chat, get, post};

/// What a hop does with a request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mood {
    /// Passes it on; CONNECT becomes a tunnel.
    Passes,
    /// Answers with this status.
    Refuses(u16),
    /// Says nothing.
    Stalls,
    /// Closes without a word.
    Closes,
}

/// A proxy that passes requests on to `model.test`, whatever their port.
struct Hop {
    addr: SocketAddr,
    inner: Arc<Inner>,
    thread: Option<JoinHandle<()>>,
}

struct Inner {
    server: SocketAddr,
    mood: Mutex<Mood>,
    heads: Mutex<Vec<String>>,
    connections: AtomicU64,
    open: Mutex<Vec<TcpStream>>,
    over: Mutex<bool>,
}

impl Hop {
    fn start(server: SocketAddr) -> Hop {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let inner = Arc::new(Inner {
            server,
            mood: Mutex::new(Mood::Passes),
            heads: Mutex::default(),
            connections: AtomicU64::new(0),
            open: Mutex::default(),
            over: Mutex::new(false),
        });
        let shared = inner.clone();
        let thread = std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                if *shared.over.lock().unwrap() {
                    return;
                }
                shared.connections.fetch_add(1, Ordering::SeqCst);
                shared.keep(&stream);
                let shared = shared.clone();
                std::thread::spawn(move || shared.serve(stream));
            }
        });
        Hop { addr, inner, thread: Some(thread) }
    }

    /// The line of an upstream that goes through it.
    fn line(&self) -> String {
        format!("proxy = \"http://user:CANARY@{}\"", self.addr)
    }

    fn set(&self, mood: Mood) {
        *self.inner.mood.lock().unwrap() = mood;
    }

    fn heads(&self) -> Vec<String> {
        self.inner.heads.lock().unwrap().clone()
    }

    fn connections(&self) -> u64 {
        self.inner.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Hop {
    fn drop(&mut self) {
        *self.inner.over.lock().unwrap() = true;
        // Wakes the accept.
        let _ = TcpStream::connect(self.addr);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        for stream in self.inner.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Inner {
    /// Ends the connection when the hop goes.
    fn keep(&self, stream: &TcpStream) {
        self.open.lock().unwrap().push(stream.try_clone().unwrap());
    }

    fn serve(&self, client: TcpStream) -> Option<()> {
        let mut reader = BufReader::new(client.try_clone().ok()?);
        let mut writer = client.try_clone().ok()?;
        let mut server = None;
        loop {
            let head = read_head(&mut reader)?;
            self.heads.lock().unwrap().push(head.clone());
            let mood = *self.mood.lock().unwrap();
            match mood {
                Mood::Passes => {}
                Mood::Refuses(status) => {
                    let answer = format!(
                        "HTTP/1.1 {status} X\r\nProxy-Authenticate: Basic realm=\"x\"\r\n\
                         Content-Length: 2\r\n\r\nno"
                    );
                    writer.write_all(answer.as_bytes()).ok()?;
                    return client.shutdown(Shutdown::Write).ok();
                }
                Mood::Stalls => {
                    let _ = reader.read(&mut [0; 1]);
                    return None;
                }
                Mood::Closes => return client.shutdown(Shutdown::Both).ok(),
            }
            let server = match &mut server {
                Some(server) => server,
                none => {
                    let stream = TcpStream::connect(self.server).ok()?;
                    self.keep(&stream);
                    let (mut from, mut to) = (stream.try_clone().ok()?, client.try_clone().ok()?);
                    if head.starts_with("CONNECT ") {
                        to.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").ok()?;
                    }
                    std::thread::spawn(move || {
                        let _ = std::io::copy(&mut from, &mut to);
                        let _ = to.shutdown(Shutdown::Both);
                    });
                    none.insert(stream)
                }
            };
            if head.starts_with("CONNECT ") {
                std::io::copy(&mut reader, server).ok()?;
                return server.shutdown(Shutdown::Write).ok();
            }
            server.write_all(passed_on(&head).as_bytes()).ok()?;
            let length = field(&head, "content-length").map_or(0, |text| text.parse().unwrap());
            std::io::copy(&mut (&mut reader).take(length), server).ok()?;
        }
    }
}

fn read_head(reader: &mut impl BufRead) -> Option<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    Some(head)
}

fn field<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    let lines = head.split("\r\n").filter_map(|line| line.split_once(": "));
    lines.into_iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

/// The head as the server gets it: the target without its origin, nothing of the proxy's.
fn passed_on(head: &str) -> String {
    let (method, rest) = head.split_once(" http://").expect("a whole URL");
    let (authority, rest) = rest.split_at(rest.find(['/', ' ']).unwrap());
    assert!(authority.starts_with("model.test:"), "{authority}");
    let target = if rest.starts_with(' ') { "*" } else { "" };
    let lines = rest.split_inclusive("\r\n");
    let kept = lines.filter(|line| !line.to_ascii_lowercase().starts_with("proxy-authorization:"));
    format!("{method} {target}{}", kept.collect::<String>())
}

/// `user:CANARY`, coded.
const OURS: &str = "Basic dXNlcjpDQU5BUlk=";

/// One server behind one hop.
fn through(hop: &Hop, more: Setup<'_>) -> Proxy {
    let upstream = format!("{}\n{}", hop.line(), more.upstream);
    Setup { upstream: &upstream, ..more }.start_on(&["http://model.test:8000".to_owned()])
}

/// Checks an answer about the proxy, not of it.
#[track_caller]
fn check(answer: &Answer, status: u16, words: &str) {
    assert_eq!(answer.status, status, "{}", answer.text());
    let message = answer.message();
    assert!(message.contains(words), "{message}");
    assert!(!answer.head.contains("CANARY") && !message.contains("CANARY"));
    assert_eq!(answer.field("proxy-authenticate"), None);
}

#[test]
fn asks_for_the_whole_url_with_our_credentials_once() {
    let mock = mock();
    let hop = Hop::start(mock.addr());
    let proxy = through(&hop, Setup::default());
    let theirs = "Proxy-Authorization: Basic Y2xpZW50\r\nProxy-Connection: keep-alive\r\n";
    let request = post("/v1/chat/completions?a=1", theirs, "{\"model\":\"m\"}");
    let answer = proxy.client().send(request).answer();
    assert_eq!(answer.status, 200, "{}", answer.text());
    let heads = hop.heads();
    let line = "POST http://model.test:8000/v1/chat/completions?a=1 HTTP/1.1\r\n";
    assert!(heads[0].starts_with(line), "{}", heads[0]);
    assert_eq!(heads[0].to_ascii_lowercase().matches("proxy-").count(), 1, "{}", heads[0]);
    assert_eq!(field(&heads[0], "proxy-authorization"), Some(OURS));
    assert_eq!(field(&heads[0], "host"), Some("model.test:8000"));
    let seen = mock.seen();
    assert_eq!(seen[0].field("proxy-authorization"), None);
    assert_eq!(seen[0].field("host").as_deref(), Some("model.test:8000"));
}

#[test]
fn says_nothing_of_credentials_when_there_are_none() {
    let mock = mock();
    let hop = Hop::start(mock.addr());
    let upstream = format!("proxy = \"http://{}\"", hop.addr);
    let setup = Setup { upstream: &upstream, ..Setup::default() };
    let proxy = setup.start_on(&["http://model.test:8000".to_owned()]);
    let theirs = "Proxy-Authorization: Basic Y2xpZW50\r\n";
    assert_eq!(proxy.client().send(chat(theirs, false)).answer().status, 200);
    assert_eq!(field(&hop.heads()[0], "proxy-authorization"), None);
}

#[test]
fn asks_about_a_server_as_a_whole_without_a_path() {
    let mock = mock();
    let hop = Hop::start(mock.addr());
    let proxy = through(&hop, Setup { listener: "default_group = \"chat\"", ..Setup::default() });
    proxy.client().send("OPTIONS * HTTP/1.1\r\nHost: proxy\r\n\r\n").answer();
    let heads = hop.heads();
    assert!(heads[0].starts_with("OPTIONS http://model.test:8000 HTTP/1.1\r\n"), "{}", heads[0]);
}

#[test]
fn uses_one_connection_to_the_proxy_again_and_again() {
    let mock = mock();
    let hop = Hop::start(mock.addr());
    let proxy = through(&hop, Setup::default());
    for turn in 0..10 {
        let answer = proxy.client().send(chat("", turn % 2 == 0)).answer();
        assert_eq!(answer.status, 200, "turn {turn}");
    }
    assert_eq!((hop.connections(), hop.heads().len()), (1, 10));
    assert!(hop.heads().iter().all(|head| field(head, "proxy-authorization") == Some(OURS)));
}

#[test]
fn upstreams_with_different_proxies_share_no_connection() {
    let mocks = [mock(), mock()];
    let hops: Vec<Hop> = mocks.iter().map(|mock| Hop::start(mock.addr())).collect();
    let mut text = "[process]\ncores = 1\n[[listener]]\nname = \"l\"\nbind = \"127.0.0.1:0\"\n\
                    auth = \"none\"\n"
        .to_owned();
    for (at, hop) in hops.iter().enumerate() {
        text += &format!(
            "[[upstream]]\nname = \"u{at}\"\nurl = \"http://model.test:8000\"\nmodels = [\"m{at}\"]\n{}\n",
            hop.line()
        );
    }
    let proxy = Proxy::start(&text);
    for turn in 0..20 {
        let at = turn * 7 % 3 % 2;
        let body = format!("{{\"model\":\"m{at}\"}}");
        let answer = proxy.client().send(post("/v1/chat/completions", "", body)).answer();
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    for (mock, at) in mocks.iter().zip(0..) {
        let seen = mock.seen();
        let own = format!("\"m{at}\"");
        assert!(!seen.is_empty());
        assert!(seen.iter().all(|request| String::from_utf8_lossy(&request.body).contains(&own)));
    }
    assert_eq!((hops[0].connections(), hops[1].connections()), (1, 1));
}

#[test]
fn a_407_of_the_proxy_is_our_trouble_and_not_the_clients() {
    let mock = mock();
    let hop = Hop::start(mock.addr());
    let proxy = through(&hop, Setup::default());
    hop.set(Mood::Refuses(407));
    let answer = proxy.client().send(chat("", false)).answer();
    check(&answer, 502, &format!("proxy {} wants other credentials: status 407", hop.addr));
    // Any other status may as well be the server's.
    hop.set(Mood::Refuses(403));
    let answer = proxy.client().send(chat("", false)).answer();
    assert_eq!((answer.status, answer.text().as_str()), (403, "no"));
    assert_eq!(answer.field("proxy-authenticate"), None);
    assert_eq!(mock.stats().requests_total, 0);
}

#[test]
fn a_407_of_a_server_without_a_proxy_passes() {
    let (mock, proxy) = super::house::house();
    mock.behave("status=407");
    assert_eq!(proxy.client().send(chat("", false)).answer().status, 407);
}

#[test]
fn a_proxy_that_is_down_is_502_and_named() {
    let mock = mock();
    let hop = Hop::start(mock.addr());
    let addr = hop.addr;
    let proxy = through(&hop, Setup::default());
    drop(hop);
    let answer = proxy.client().send(chat("", false)).answer();
    check(&answer, 502, &format!("proxy {addr} could not be connected"));
}

#[test]
fn another_member_is_tried_when_a_proxy_fails() {
    let mocks = [mock(), mock()];
    let hop = Hop::start(mocks[0].addr());
    let mut text = Setup::default().text(&["http://model.test:8000".to_owned(), mocks[1].url()]);
    text = text.replacen("[[upstream]]\n", &format!("[[upstream]]\n{}\n", hop.line()), 1);
    let proxy = Proxy::start(&text);
    for mood in [Mood::Refuses(407), Mood::Closes] {
        hop.set(mood);
        let asked = hop.heads().len();
        for _ in 0..4 {
            assert_eq!(proxy.client().send(chat("", false)).answer().status, 200);
        }
        assert!(hop.heads().len() > asked);
    }
    assert_eq!((mocks[0].stats().requests_total, mocks[1].stats().requests_total), (0, 8));
}

#[test]
fn questions_of_the_control_thread_go_through_it_too() {
    let fake = Fake::start("a", &["x"]);
    let hop = Hop::start(fake.addr());
    let said: Arc<Mutex<Vec<String>>> = Arc::default();
    let told = said.clone();
    let text = format!(
        "[process]\ncores = 1\n[[listener]]\nname = \"l\"\nbind = \"127.0.0.1:0\"\nauth = \"none\"\n\
         [discovery]\nttl = \"1s\"\n\
         [[upstream]]\nname = \"a\"\nurl = \"http://model.test:8000\"\n{}\n\
         health = {{ path = \"/health\", interval = \"1s\", fall = 1 }}\n\
         breaker = {{ cooldown = \"1s\" }}\n",
        hop.line()
    );
    let options = control::Options {
        say: Arc::new(move |line| told.lock().unwrap().push(line.to_owned())),
        ..control::Options::default()
    };
    let proxy = Proxy::start_with(&text, options);
    let ask = || {
        let body = "{\"model\":\"x\"}";
        proxy.client().send(post("/v1/chat/completions", "", body)).answer().status
    };
    assert_eq!(ask(), 200);
    wait_until("it was probed", || hop.heads().iter().any(|head| head.contains("/health ")));
    for head in hop.heads() {
        assert!(head.contains(" http://model.test:8000/"), "{head}");
        assert_eq!(field(&head, "proxy-authorization"), Some(OURS));
        assert_eq!(field(&head, "host"), Some("model.test:8000"));
    }
    // Behind a proxy that refuses nobody is reached, and the operator is told by whom.
    hop.set(Mood::Refuses(407));
    wait_until("its models are away", || ask() == 503);
    let why = format!("outbound proxy {} wants other credentials: status 407", hop.addr);
    let heard = || said.lock().unwrap().clone();
    wait_until("it was said", || heard().iter().any(|line| line.ends_with(&why)));
    assert!(heard().iter().all(|line| !line.contains("CANARY")), "{:?}", heard());
    hop.set(Mood::Passes);
    wait_until("it is back", || ask() == 200);
}

#[test]
fn the_name_that_is_looked_up_is_the_proxys() {
    let mock = mock();
    let hop = Hop::start(mock.addr());
    let names = NameServer::start(Records {
        addresses: vec![("proxy.test", vec![[127, 0, 0, 1].into()])],
        ..Records::default()
    });
    let upstream = format!("proxy = \"http://proxy.test:{}\"", hop.addr.port());
    let setup = Setup { upstream: &upstream, ..Setup::default() };
    let text = setup.text(&["http://model.test:8000".to_owned()]);
    let said: Arc<Mutex<Vec<String>>> = Arc::default();
    let told = said.clone();
    let options = control::Options {
        name_server: Some(names.addr()),
        say: Arc::new(move |line| told.lock().unwrap().push(line.to_owned())),
        ..control::Options::default()
    };
    let proxy = Proxy::start_with(&text, options);
    assert_eq!(proxy.client().send(get("/echo", "")).answer().status, 200);
    // The server's own name is unknown here, and nobody has missed it.
    assert!(said.lock().unwrap().is_empty(), "{:?}", said.lock().unwrap());
}

/// One server of which the URL says `https`, behind one hop.
fn through_a_tunnel(hop: &Hop, more: Setup<'_>) -> Proxy {
    let upstream = format!("{}\n{}", hop.line(), more.upstream);
    Setup { upstream: &upstream, ..more }.start_on(&["https://model.test:8443".to_owned()])
}

#[test]
fn a_refused_tunnel_is_502_with_the_proxys_status() {
    let mock = mock();
    let hop = Hop::start(mock.addr());
    let proxy = through_a_tunnel(&hop, Setup::default());
    for (status, words) in [
        (407, "wants other credentials: status 407"),
        (403, "refused: status 403"),
        (503, "refused: status 503"),
    ] {
        hop.set(Mood::Refuses(status));
        let answer = proxy.client().send(chat("", false)).answer();
        check(&answer, 502, &format!("proxy {} {words}", hop.addr));
    }
    for head in hop.heads() {
        let line = "CONNECT model.test:8443 HTTP/1.1\r\nHost: model.test:8443\r\n";
        assert_eq!(head, format!("{line}Proxy-Authorization: {OURS}\r\n\r\n"));
    }
    assert_eq!(mock.stats().connections_total, 0);
}

#[test]
fn a_tunnel_that_does_not_open_in_time_is_504() {
    let mock = mock();
    let hop = Hop::start(mock.addr());
    let rest = "[timeouts]\nproxy_connect = \"1s\"\n";
    let proxy = through_a_tunnel(&hop, Setup { rest, ..Setup::default() });
    hop.set(Mood::Stalls);
    let begun = Instant::now();
    let answer = proxy.client().send(chat("", false)).answer();
    check(&answer, 504, &format!("proxy {} did not answer in time", hop.addr));
    assert!(
        (Duration::from_secs(1)..LIMIT / 2).contains(&begun.elapsed()),
        "{:?}",
        begun.elapsed()
    );
}

#[test]
fn a_proxy_that_leaves_before_the_tunnel_is_502() {
    let mock = mock();
    let hop = Hop::start(mock.addr());
    let proxy = through_a_tunnel(&hop, Setup::default());
    hop.set(Mood::Closes);
    let answer = proxy.client().send(chat("", false)).answer();
    check(&answer, 502, &format!("proxy {} ended the connection before its answer", hop.addr));
}

#[test]
fn a_client_that_leaves_ends_the_wait_for_a_tunnel() {
    let mock = mock();
    let hop = Hop::start(mock.addr());
    let proxy = through_a_tunnel(&hop, Setup::default());
    hop.set(Mood::Stalls);
    let mut client = proxy.client();
    client.send(chat("", false));
    wait_until("the tunnel was asked for", || hop.heads().len() == 1);
    drop(client);
    proxy.wait_until_empty();
}

/// What the hop is sent for a tunnel.
fn connect_head(authority: &str) -> String {
    format!(
        "CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\nProxy-Authorization: {OURS}\r\n\r\n"
    )
}

#[test]
fn tls_and_http2_pass_a_tunnel_that_is_opened_once() {
    let authority = Authority::new("ours");
    for (upstream, version) in [(CA, "1"), (CA_H2, "2")] {
        let server = authority.start("model.test", 2099, BOTH);
        let hop = Hop::start(server.addr());
        let upstream = format!("{}\n{upstream}", hop.line());
        let setup = Setup { upstream: &upstream, ..Setup::default() };
        let proxy = authority.proxy(setup, &["https://model.test:8443".to_owned()]);
        for _ in 0..5 {
            let answer = proxy.client().send(get("/echo", "")).answer();
            let got = (answer.status, answer.field("x-version"));
            assert_eq!(got, (200, Some(version)), "{}", answer.text());
        }
        assert_eq!(hop.heads(), [connect_head("model.test:8443")]);
        assert_eq!((hop.connections(), server.connections(), server.requests()), (1, 1, 5));
        for head in server.seen.heads.lock().unwrap().iter() {
            assert_eq!(head.uri.authority().unwrap(), "model.test:8443");
            assert!(!head.headers.contains_key("proxy-authorization"));
        }
    }
}

#[test]
fn http2_in_clear_needs_a_tunnel_too() {
    let server = H2Server::start(Ways::default());
    let hop = Hop::start(server.addr());
    let proxy = through(&hop, Setup { upstream: "http2 = true", ..Setup::default() });
    for _ in 0..3 {
        let answer = proxy.client().send(get("/echo", "")).answer();
        assert_eq!((answer.status, answer.field("x-version")), (200, Some("2")));
    }
    assert_eq!(hop.heads(), [connect_head("model.test:8000")]);
}

#[test]
fn what_is_wrong_inside_the_tunnel_is_the_servers_trouble() {
    let authority = Authority::new("ours");
    let server = authority.start("other.test", 2099, BOTH);
    let hop = Hop::start(server.addr());
    let upstream = format!("{}\n{CA}", hop.line());
    let setup = Setup { upstream: &upstream, ..Setup::default() };
    let proxy = authority.proxy(setup, &["https://model.test:8443".to_owned()]);
    check(&proxy.client().send(get("/echo", "")).answer(), 502, "not valid for name");
}

#[test]
fn probes_pass_the_tunnel() {
    let authority = Authority::new("ours");
    let server = authority.start("model.test", 2099, BOTH);
    let hop = Hop::start(server.addr());
    let health = "health = { path = \"/health\", interval = \"1s\", fall = 1 }";
    let upstream = format!("{}\n{health}\n{CA}", hop.line());
    let setup = Setup { upstream: &upstream, ..Setup::default() };
    let proxy = authority.proxy(setup, &["https://model.test:8443".to_owned()]);
    wait_until("it was probed", || server.requests() > 0);
    let state = || proxy.plan().upstreams[0].state.healthy();
    assert!(state());
    hop.set(Mood::Refuses(407));
    wait_until("it is down", || !state());
    hop.set(Mood::Passes);
    wait_until("it is up", state);
    assert!(hop.heads().iter().all(|head| *head == connect_head("model.test:8443")));
}
