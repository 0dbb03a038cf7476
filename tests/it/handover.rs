//! rules §14: a second process takes over, and no client notices.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use loadtest::mock::Mock;
use rustls::ClientConfig;

use super::h2_client::H2Client;
use super::house::{LIMIT, mock, wait_until};
use super::process::{Run, folder};
use super::secure::Secure;
use super::wire::{Client, chat, get};

/// Handovers of the test under load; a longer run sets the variable.
const HANDOVERS: &str = "TOKENRING_TEST_HANDOVERS";

/// A port that is free for the moment.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A folder of one test, with the certificate of its listener.
struct Site {
    name: &'static str,
    mock: Mock,
    secure: Secure,
    plain: u16,
    tls: u16,
    admin: u16,
    started: u32,
}

impl Site {
    fn new(name: &'static str) -> Site {
        let [plain, tls, admin] = [(); 3].map(|()| free_port());
        let secure = Secure::new();
        std::fs::create_dir_all(folder(name)).unwrap();
        secure.write(&folder(name));
        Site { name, mock: mock(), secure, plain, tls, admin, started: 0 }
    }

    fn dir(&self) -> PathBuf {
        folder(self.name)
    }

    fn unix(&self) -> PathBuf {
        self.dir().join("proxy.sock")
    }

    /// Starts a process with this many cores; `more` stands at the end of the config.
    fn start(&mut self, cores: usize, more: &str) -> Run {
        self.started += 1;
        let Site { mock, plain, tls, admin, .. } = &*self;
        let (dir, unix) = (self.dir(), self.unix());
        let text = format!(
            "[process]\ncores = {cores}\ndrain = \"20s\"\n\
             [[listener]]\nname = \"plain\"\nbind = [\"127.0.0.1:{plain}\", \"unix:{}\"]\nauth = \"none\"\n\
             [[listener]]\nname = \"tls\"\nbind = \"127.0.0.1:{tls}\"\nauth = \"none\"\n\
             tls = {{ cert = \"{1}/cert.pem\", key = \"{1}/key.pem\" }}\n\
             [[upstream]]\nname = \"a\"\nurl = \"{2}\"\nmodels = [\"m\"]\n\
             [admin]\nbind = \"127.0.0.1:{admin}\"\n{more}",
            unix.display(),
            dir.display(),
            mock.url()
        );
        Run::start(&format!("{}-{}", self.name, self.started), &text)
    }

    /// The next process, once it has taken over and the one before drains.
    fn next(&mut self, before: &Run, cores: usize, more: &str) -> Run {
        let next = self.start(cores, more);
        let from = next.behind("took over  from process ");
        assert!(from.starts_with(&format!("{} ", before.child.id())), "{from}");
        let to = before.behind("handed over to process ");
        assert!(to.starts_with(&format!("{} ", next.child.id())), "{to}");
        next
    }

    fn addr(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.plain))
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(self.dir());
    }
}

/// What clients do over and over until it is over.
struct Load<'a> {
    over: &'a AtomicBool,
    turns: AtomicU64,
}

impl Load<'_> {
    fn repeat(&self, mut ask: impl FnMut()) {
        let _over = OverAtLast(self.over);
        while !self.over.load(Relaxed) {
            ask();
            self.turns.fetch_add(1, Relaxed);
        }
    }
}

/// If one client fails, all is over.
struct OverAtLast<'a>(&'a AtomicBool);

impl Drop for OverAtLast<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

fn ask_anew(addr: SocketAddr) {
    let stream = TcpStream::connect(addr).expect("it listens");
    let answer = Client::of(stream).send(chat("", false)).try_answer();
    assert_eq!(answer.expect("a new connection is answered").status, 200);
}

/// Asks again and again on connections that stay, until told that one ends.
fn ask_kept(load: &Load<'_>, connect: impl Fn() -> Client) {
    let mut client = connect();
    load.repeat(|| {
        client.try_send(&chat("", false)).expect("a kept connection takes a request");
        let answer = client.try_answer().expect("a kept connection answers");
        assert_eq!(answer.status, 200);
        if answer.field("connection") == Some("close") {
            client = connect();
        }
    });
}

fn stream_whole(addr: SocketAddr) {
    let mut client = Client::connect(addr);
    client.send(chat("x-mock: interval=15ms,tokens=20\r\n", true));
    let answer = client.try_answer().expect("a stream comes whole");
    assert!(answer.text().ends_with("data: [DONE]\n\n"), "{}", answer.text());
}

/// Over HTTP/2, on a connection that stays until it is told to go.
fn ask_h2(load: &Load<'_>, addr: SocketAddr, tls: &Arc<ClientConfig>) {
    let mut client = H2Client::connect(addr, Some(tls));
    load.repeat(|| {
        let body = "{\"messages\":[],\"model\":\"m\",\"seed\":7}";
        loop {
            // After GOAWAY no stream can be opened, and one that it has crossed was not begun (RFC
            // 9113 §6.8): the client comes anew, as any does.
            if let Ok(mut stream) = client.try_open("POST", "/v1/chat/completions", &[], false)
                && stream.send(body.into(), true).is_ok()
            {
                match stream.try_answer() {
                    Ok(answer) => {
                        assert_eq!(answer.status, 200);
                        break;
                    }
                    Err(error) => {
                        assert!(error.is_go_away() && error.is_remote(), "{error:?}");
                        assert_eq!(error.reason(), Some(h2::Reason::NO_ERROR));
                    }
                }
            }
            client = H2Client::connect(addr, Some(tls));
        }
    });
}

#[test]
fn no_client_notices_that_a_process_takes_over() {
    let mut site = Site::new("handover");
    let count: usize = std::env::var(HANDOVERS).map_or(4, |count| count.parse().unwrap());
    let mut serving = site.start(2, "");
    serving.behind("models     m");
    let over = AtomicBool::new(false);
    let loads: [Load<'_>; 6] =
        std::array::from_fn(|_| Load { over: &over, turns: AtomicU64::new(0) });
    let [anew, kept, unix, streams, h2, tls] = &loads;
    let (addr, secure_addr) = (site.addr(), SocketAddr::from(([127, 0, 0, 1], site.tls)));
    let socket = site.unix();
    let [http1, http2] = [["http/1.1"], ["h2"]].map(|alpn| site.secure.client(&alpn));
    std::thread::scope(|scope| {
        let _over = OverAtLast(&over);
        for _ in 0..2 {
            scope.spawn(|| anew.repeat(|| ask_anew(addr)));
            scope.spawn(|| ask_kept(kept, || Client::connect(addr)));
        }
        scope.spawn(|| ask_kept(unix, || Client::connect_unix(&socket)));
        for _ in 0..4 {
            scope.spawn(|| streams.repeat(|| stream_whole(addr)));
        }
        scope.spawn(|| ask_h2(h2, secure_addr, &http2));
        scope.spawn(|| {
            tls.repeat(|| {
                let mut client = Client::connect_tls(secure_addr, &http1);
                client.send(chat("", false));
                assert_eq!(client.try_answer().expect("a TLS connection is answered").status, 200);
            })
        });
        for at in 0..count {
            let before: Vec<u64> = loads.iter().map(|load| load.turns.load(Relaxed)).collect();
            // The config may differ: other cores, another limit.
            let cores = [4, 2, 8, 1][at % 4];
            let more = ["", "[limits]\nbody = \"1MiB\"\n"][at % 2];
            let mut next = site.next(&serving, cores, more);
            std::mem::swap(&mut serving, &mut next);
            // The one before ends by itself once its streams have.
            assert!(next.child.wait().unwrap().success());
            wait_until("every kind of client goes on", || {
                let gone = loads
                    .iter()
                    .zip(&before)
                    .all(|(load, turns)| load.turns.load(Relaxed) > turns + 2);
                gone || over.load(Relaxed)
            });
        }
        over.store(true, Relaxed);
    });
    // Nothing was begun and cut, and nothing was asked twice.
    let asked: u64 = loads.iter().map(|load| load.turns.load(Relaxed)).sum();
    let stats = site.mock.stats();
    assert_eq!((stats.aborted_total, stats.requests_total), (0, asked));
    assert!(site.unix().exists(), "the last process has the path");
    serving.signal("TERM");
    assert!(serving.child.wait().unwrap().success());
    assert!(!site.unix().exists(), "and removes it");
}

#[test]
fn the_operators_address_moves_with_it() {
    let mut site = Site::new("handover-admin");
    let first = site.start(1, "");
    first.behind("models     m");
    let admin = SocketAddr::from(([127, 0, 0, 1], site.admin));
    // A connection that a scraper keeps.
    let mut scraper = Client::connect(admin);
    assert_eq!(scraper.send(get("/metrics", "")).answer().status, 200);
    // Held so that the first goes on for a while.
    let mut stream = Client::connect(site.addr());
    stream.send(chat("x-mock: interval=50ms,tokens=100\r\n", true));
    stream.through(b"\n\n").expect("it has begun");
    let mut next = site.next(&first, 1, "");
    scraper.expect_end();
    let connections = |admin| {
        let text = Client::connect(admin).send(get("/metrics", "")).answer().text();
        let line =
            text.lines().find(|line| line.starts_with("tokenring_client_connections ")).unwrap();
        line.to_owned()
    };
    for _ in 0..20 {
        // The stream is the first's; the second has no client.
        assert_eq!(connections(admin), "tokenring_client_connections 0");
    }
    assert_eq!(Client::connect(admin).send(get("/ready", "")).answer().status, 200);
    stream.through(b"data: [DONE]\n\n").expect("it ends well");
    next.signal("TERM");
    assert!(next.child.wait().unwrap().success());
}

#[test]
fn a_kept_connection_has_time_for_the_request_that_is_on_its_way() {
    let mut site = Site::new("handover-grace");
    let mut first = site.start(1, "");
    first.behind("models     m");
    let mut client = Client::connect(site.addr());
    assert_eq!(client.send(chat("", false)).answer().status, 200);
    let _next = site.next(&first, 1, "");
    let answer = client.send(chat("", false)).answer();
    assert_eq!((answer.status, answer.field("connection")), (200, Some("close")));
    // One that asks nothing is closed after the grace.
    let begun = Instant::now();
    assert!(first.child.wait().unwrap().success());
    assert!(begun.elapsed() < LIMIT);
}

#[test]
fn addresses_may_come_and_go_with_the_config() {
    let mut site = Site::new("handover-moves");
    let first = site.start(2, "");
    first.behind("models     m");
    let old = site.addr();
    let kept = site.tls;
    site.plain = free_port();
    let _next = site.next(&first, 2, "");
    ask_anew(site.addr());
    assert_eq!(kept, site.tls);
    wait_until("nobody listens on what went", || TcpStream::connect(old).is_err());
}

#[test]
fn a_start_by_mistake_takes_over_and_both_say_so() {
    let mut site = Site::new("handover-twice");
    let mut first = site.start(1, "");
    first.behind("models     m");
    let next = site.next(&first, 1, "");
    assert!(first.child.wait().unwrap().success());
    assert!(first.behind("ended after ").starts_with("0 exchanges"), "none but its own");
    drop(next);
}

#[test]
fn a_signal_has_the_program_started_anew() {
    let mut site = Site::new("handover-usr2");
    let mut first = site.start(1, "");
    first.behind("models     m");
    first.signal("USR2");
    let next: i32 =
        first.behind("SIGUSR2: started process ").split(',').next().unwrap().parse().unwrap();
    first.behind(&format!("handed over to process {next} "));
    assert!(first.child.wait().unwrap().success());
    ask_anew(site.addr());
    // It is no child of this test: it ends by a signal, and is gone when nobody listens.
    let killed = std::process::Command::new("kill").arg(next.to_string()).status().unwrap();
    assert!(killed.success());
    wait_until("nobody listens", || TcpStream::connect(site.addr()).is_err());
}

#[test]
fn who_wants_no_handover_gets_the_old_error() {
    let (port, mock) = (free_port(), mock());
    let text = format!(
        "[process]\ncores = 1\ncontrol_socket = \"off\"\n\
         [[listener]]\nname = \"main\"\nbind = \"127.0.0.1:{port}\"\nauth = \"none\"\n\
         [[upstream]]\nname = \"a\"\nurl = \"{}\"\nmodels = [\"m\"]\n",
        mock.url()
    );
    let first = Run::start("handover-off-1", &text);
    first.behind("models     m");
    let mut second = Run::start("handover-off-2", &text);
    assert_eq!(second.child.wait().unwrap().code(), Some(1));
    second.behind(&format!("listener.main: cannot listen on 127.0.0.1:{port}: "));
    ask_anew(SocketAddr::from(([127, 0, 0, 1], port)));
}

#[test]
fn a_path_can_be_the_place_to_meet() {
    let (port, mock, dir) = (free_port(), mock(), folder("handover-path"));
    std::fs::create_dir_all(&dir).unwrap();
    let path = dir.join("control");
    let text = format!(
        "[process]\ncores = 1\ncontrol_socket = \"{}\"\n\
         [[listener]]\nname = \"main\"\nbind = \"127.0.0.1:{port}\"\nauth = \"none\"\n\
         [[upstream]]\nname = \"a\"\nurl = \"{}\"\nmodels = [\"m\"]\n",
        path.display(),
        mock.url()
    );
    let mut serving = Run::start("handover-path-1", &text);
    for at in 2..5 {
        serving.behind("models     m");
        let mut next = Run::start(&format!("handover-path-{at}"), &text);
        next.behind("took over  from process ");
        std::mem::swap(&mut serving, &mut next);
        assert!(next.child.wait().unwrap().success());
        wait_until("its socket is there", || Path::new(&path).exists());
    }
    serving.signal("TERM");
    assert!(serving.child.wait().unwrap().success());
    assert!(!path.exists(), "the last one removes it");
    std::fs::remove_dir_all(&dir).unwrap();
}
