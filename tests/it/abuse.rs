//! Random and mutated bytes on both sides: no panic, no hang, nothing left behind.
//!
//! Every case comes from a seed and its number, so a failure can be replayed alone:
//! `TOKENRING_ABUSE_SEED=… TOKENRING_ABUSE_FROM=… TOKENRING_ABUSE_CASES=1`. The long form is
//! `TOKENRING_ABUSE_CASES=10000`; the default is what fits into every run.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokenring::testing::base::rng::Rng;

use super::house::{LIMIT, Setup, house, wait_until};
use super::wire::{chat, get, post, post_chunked};

/// Longest life of one case, far above every timeout of the proxy below.
const CASE_LIMIT: Duration = Duration::from_secs(15);
/// Client and upstream limits of a case, so that what stalls ends within it.
const LISTENER: &str = "timeouts = { client_head = \"400ms\", client_body_idle = \"400ms\", \
    client_keepalive = \"400ms\", client_write_idle = \"1s\" }";
const GROUP: &str = "timeouts = { first_byte = \"500ms\", stream_idle = \"500ms\" }";

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// The cases of a run: seed, first number, count.
fn cases() -> (u64, u64, u64) {
    let from = number("TOKENRING_ABUSE_FROM", 0);
    (number("TOKENRING_ABUSE_SEED", 1), from, number("TOKENRING_ABUSE_CASES", 500))
}

/// What mutations put in: the bytes that mean something.
const SPICES: &[&[u8]] = &[
    b"\r\n",
    b"\n",
    b"\r",
    b"\r\n\r\n",
    b"\0",
    b" ",
    b"\t",
    b":",
    b",",
    b";",
    b"0",
    b"0\r\n\r\n",
    b"ffffffffffffffff",
    b"-1",
    b"Content-Length: 5\r\n",
    b"Content-Length: 0\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: gzip\r\n",
    b"Connection: close\r\n",
    b"Connection: upgrade\r\nUpgrade: websocket\r\n",
    b"Expect: 100-continue\r\n",
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.0",
    b"\xff\xfe",
    b"\"",
    b"\\",
    b"{",
    b"}",
    b"\\u0000",
    b"\"model\":\"m\"",
    b"%",
    b"?",
    b"//",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"x-mock: stall\r\n",
];

/// Changes a few places of a message.
fn mutate(rng: &mut Rng, message: &mut Vec<u8>) {
    for _ in 0..rng.below(6) {
        let at = rng.below(message.len() as u64 + 1) as usize;
        let spice = SPICES[rng.below(SPICES.len() as u64) as usize];
        let until = (at + rng.below(12) as usize).min(message.len());
        match rng.below(7) {
            0 if at < message.len() => message[at] = rng.next_u64() as u8,
            1 if at < message.len() => message[at] ^= 1 << rng.below(8),
            2 => drop(message.splice(at..at, spice.iter().copied())),
            3 => drop(message.splice(at..until, spice.iter().copied())),
            4 => drop(message.drain(at..until)),
            5 => message.truncate(at),
            _ => {
                let again = message[at..until].to_vec();
                drop(message.splice(at..at, again));
            }
        }
    }
}

/// One connection's bytes: good requests in a row, then harmed.
fn requests(rng: &mut Rng) -> Vec<u8> {
    let mut out = Vec::new();
    for _ in 0..=rng.below(3) {
        let request = match rng.below(9) {
            0 => chat("", true),
            1 => chat("x-mock: chunked\r\n", false),
            2 => get("/v1/models", ""),
            3 => get("/echo?mock=big=100000", ""),
            4 => post("/echo", "", vec![b'x'; rng.below(40_000) as usize]),
            5 => post_chunked("/v1/chat/completions", "", &[b"{\"mod", b"el\":\"m\"}"]),
            6 => get("/echo", "Connection: Upgrade\r\nUpgrade: websocket\r\n"),
            7 => post("/v1/chat/completions", "Expect: 100-continue\r\n", r#"{"model":"m"}"#),
            _ => (0..rng.below(200)).map(|_| rng.next_u64() as u8).collect(),
        };
        out.extend_from_slice(&request);
    }
    mutate(rng, &mut out);
    out
}

/// Sends bytes in random pieces and leaves in a random way.
fn play(rng: &mut Rng, addr: SocketAddr, bytes: &[u8]) {
    let mut stream = TcpStream::connect(addr).expect("the proxy listens");
    stream.set_read_timeout(Some(CASE_LIMIT)).unwrap();
    stream.set_write_timeout(Some(CASE_LIMIT)).unwrap();
    let mut rest = bytes;
    while !rest.is_empty() {
        let (piece, later) = rest.split_at((1 + rng.below(4000) as usize).min(rest.len()));
        if stream.write_all(piece).is_err() {
            break;
        }
        rest = later;
    }
    match rng.below(6) {
        0 => {}
        1 => drop(socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))),
        2 => drop(stream.read(&mut [0; 100])),
        // To the end: the proxy's own deadlines bring it.
        kind => {
            if kind < 5 {
                let _ = stream.shutdown(Shutdown::Write);
            }
            let mut sink = [0; 16_384];
            while matches!(stream.read(&mut sink), Ok(n) if n > 0) {}
        }
    }
}

/// Plays all cases on a few threads; each failure says how to play it again.
fn run(side: &str, case: impl Fn(&mut Rng) + Sync) {
    let (seed, from, count) = cases();
    let next = AtomicU64::new(from);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= from + count {
                        return;
                    }
                    let replay = || {
                        format!(
                            "{side}: TOKENRING_ABUSE_SEED={seed} TOKENRING_ABUSE_FROM={number} \
                             TOKENRING_ABUSE_CASES=1"
                        )
                    };
                    let begun = Instant::now();
                    let mut rng = Rng::new(seed ^ number.wrapping_mul(0x9E37_79B9_7F4A_7C15));
                    let played = std::panic::AssertUnwindSafe(|| case(&mut rng));
                    assert!(std::panic::catch_unwind(played).is_ok(), "{}", replay());
                    assert!(begun.elapsed() < CASE_LIMIT, "a hang: {}", replay());
                }
            });
        }
    });
}

#[test]
fn mutated_requests_leave_nothing_behind() {
    let mock = super::house::mock();
    let proxy = Setup { listener: LISTENER, group: GROUP, ..Setup::default() }.start(&[&mock]);
    let addr = proxy.addr();
    run("client", |rng| {
        let bytes = requests(rng);
        play(rng, addr, &bytes);
    });
    proxy.wait_until_empty();
    assert_eq!(proxy.panics(), 0, "seed {}", cases().0);
    let stats = mock.wait_until(LIMIT, |stats| stats.in_flight == 0);
    assert!(stats.is_ok(), "seed {}: {stats:?}", cases().0);
    // What the proxy let through was HTTP.
    assert_eq!(mock.stats().malformed_total, 0, "seed {}", cases().0);
    assert_eq!(proxy.client().send(chat("", false)).answer().status, 200);
}

/// An upstream that sends what it is told to, to whoever asks.
struct Garbage {
    addr: SocketAddr,
    script: Arc<Mutex<Vec<Vec<u8>>>>,
    open: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
}

impl Garbage {
    fn start() -> Garbage {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let garbage = Garbage {
            addr: listener.local_addr().unwrap(),
            script: Arc::default(),
            open: Arc::default(),
            over: Arc::default(),
        };
        let (script, open, over) =
            (garbage.script.clone(), garbage.open.clone(), garbage.over.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                let (script, open) = (script.clone(), open.clone());
                open.fetch_add(1, Ordering::Relaxed);
                std::thread::spawn(move || {
                    answer(stream, &script);
                    open.fetch_sub(1, Ordering::Relaxed);
                });
            }
        });
        garbage
    }
}

impl Drop for Garbage {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        // Wakes the acceptor.
        let _ = TcpStream::connect(self.addr);
    }
}

/// Answers every read with the next piece of the script.
fn answer(mut stream: TcpStream, script: &Mutex<Vec<Vec<u8>>>) {
    stream.set_read_timeout(Some(CASE_LIMIT)).unwrap();
    let mut sink = [0; 65_536];
    while matches!(stream.read(&mut sink), Ok(n) if n > 0) {
        let Some(bytes) = script.lock().unwrap().pop() else { return };
        // The first byte tells the way of leaving.
        let Some((&way, bytes)) = bytes.split_first() else { return };
        let middle = bytes.len() / 2;
        let _ = stream.write_all(&bytes[..middle]);
        let _ = stream.write_all(&bytes[middle..]);
        match way % 4 {
            0 => return,
            1 => drop(socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))),
            _ => {}
        }
        if way % 4 == 1 {
            return;
        }
    }
}

fn responses(rng: &mut Rng) -> Vec<u8> {
    let event = "data: {\"choices\":[]}\n\n";
    let mut out = match rng.below(8) {
        0 => b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello".to_vec(),
        1 => format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n\
             {:x}\r\n{event}\r\n{:x}\r\n{event}\r\n0\r\n\r\n",
            event.len(),
            event.len()
        )
        .into_bytes(),
        2 => b"HTTP/1.0 200 OK\r\n\r\nuntil the end".to_vec(),
        3 => b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n".to_vec(),
        4 => b"HTTP/1.1 503 Busy\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n".to_vec(),
        5 => b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nx"
            .to_vec(),
        6 => {
            let mut big = b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n".to_vec();
            big.resize(big.len() + 300_000, b'y');
            big
        }
        _ => (0..rng.below(300)).map(|_| rng.next_u64() as u8).collect(),
    };
    mutate(rng, &mut out);
    out.insert(0, rng.next_u64() as u8);
    out
}

#[test]
fn mutated_responses_leave_nothing_behind() {
    let garbage = Garbage::start();
    let proxy = Setup { listener: LISTENER, group: GROUP, ..Setup::default() };
    let proxy = proxy.start_on(&[format!("http://{}", garbage.addr)]);
    let addr = proxy.addr();
    run("upstream", |rng| {
        garbage.script.lock().unwrap().push(responses(rng));
        let request = match rng.below(5) {
            0 => chat("", true),
            1 => get("/echo", "Connection: Upgrade\r\nUpgrade: websocket\r\n"),
            2 => b"HEAD /echo HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(),
            3 => b"GET /echo HTTP/1.0\r\n\r\n".to_vec(),
            _ => post("/echo", "", vec![b'x'; rng.below(100_000) as usize]),
        };
        play(rng, addr, &request);
    });
    proxy.wait_until_empty();
    assert_eq!(proxy.panics(), 0, "seed {}", cases().0);
    proxy.drain();
    proxy.join();
    let open = garbage.open.clone();
    wait_until("the upstream's connections are closed", || open.load(Ordering::Relaxed) == 0);
}

#[test]
fn a_proxy_that_has_been_abused_is_as_good_as_new() {
    let (mock, proxy) = house();
    let mut rng = Rng::new(7);
    for _ in 0..50 {
        let bytes = requests(&mut rng);
        let mut client = proxy.client();
        let _ = client.try_send(&bytes);
        client.reset();
    }
    proxy.wait_until_empty();
    mock.wait_until(LIMIT, |stats| stats.in_flight == 0).expect("let go");
    let mut client = proxy.client();
    for _ in 0..20 {
        assert_eq!(client.send(chat("", true)).answer().status, 200);
    }
}
