//! rules §6: a key that pays by the token pays for every answer, however it comes and ends.
//!
//! The server here says exactly what a test puts into its mouth. Its key earns one token a
//! second, and has none to spare; so the debt, in seconds, is what an exchange has cost.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokenring::testing::base::clock::{Moment, seconds_up};

use super::house::{LIMIT, Proxy, Setup, mock, wait_until};
use super::wire::{Client, get, post};

const MINE: &str = "x-api-key: sk-a\r\n";
/// Tokens a minute of the key, and all that it has at first.
const PER_MINUTE: u64 = 60;
/// Bytes of a prompt for one token, while nothing has been learned.
const TEXT: u64 = 4;

/// What the server does with the connection behind its words.
#[derive(Clone, Copy)]
enum Then {
    Keep,
    Close,
    Wait,
}

/// A server that reads a request and says what it was told to say.
struct Scripted {
    addr: SocketAddr,
    said: Arc<Mutex<(Vec<u8>, Then)>>,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Scripted {
    fn start() -> Scripted {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let addr = listener.local_addr().unwrap();
        let said = Arc::new(Mutex::new((Vec::new(), Then::Keep)));
        let heads: Arc<Mutex<Vec<String>>> = Arc::default();
        let shared = (said.clone(), heads.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                let (said, heads) = shared.clone();
                std::thread::spawn(move || serve(&stream, &said, &heads));
            }
        });
        Scripted { addr, said, heads }
    }

    fn say(&self, answer: impl Into<Vec<u8>>, then: Then) {
        *self.said.lock().unwrap() = (answer.into(), then);
    }

    fn last_head(&self) -> String {
        self.heads.lock().unwrap().last().cloned().unwrap_or_default()
    }

    /// A proxy before it, and a key that pays.
    fn proxy(&self, more: &str) -> Proxy {
        with_key(&[format!("http://{}", self.addr)], more)
    }
}

fn with_key(urls: &[String], more: &str) -> Proxy {
    let rest = format!("[[key]]\nname = \"a\"\nkey = \"sk-a\"\ntpm = {PER_MINUTE}\n{more}");
    Setup { listener: "auth = \"keys\"", rest: &rest, ..Setup::default() }.start_on(urls)
}

fn serve(stream: &TcpStream, said: &Mutex<(Vec<u8>, Then)>, heads: &Mutex<Vec<String>>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut writer = stream;
    loop {
        let mut head = String::new();
        let mut length = 0;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            head.push_str(&line);
            if line == "\r\n" {
                break;
            }
        }
        heads.lock().unwrap().push(head);
        if reader.read_exact(&mut vec![0; length]).is_err() {
            return;
        }
        let (answer, then) = said.lock().unwrap().clone();
        if writer.write_all(&answer).is_err() {
            return;
        }
        match then {
            Then::Keep => {}
            Then::Close => return,
            Then::Wait => {
                let _ = reader.read(&mut [0; 1]);
                return;
            }
        }
    }
}

fn whole(fields: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

/// In chunks of these sizes; without the last one when it is cut.
fn chunked(fields: &str, body: &[u8], size: usize, ends: bool) -> Vec<u8> {
    let mut out =
        format!("HTTP/1.1 200 OK\r\n{fields}Transfer-Encoding: chunked\r\n\r\n").into_bytes();
    for piece in body.chunks(size.max(1)) {
        out.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
        out.extend_from_slice(piece);
        out.extend_from_slice(b"\r\n");
    }
    if ends {
        out.extend_from_slice(b"0\r\n\r\n");
    }
    out
}

fn now(proxy: &Proxy) -> Moment {
    proxy.shared().notifier.clock.at(Instant::now())
}

/// What the key owes, in tokens; `None` when it owes nothing.
fn debt(proxy: &Proxy) -> Option<u64> {
    let plan = proxy.plan();
    let owed = plan.limits[0].state.balance.check(now(proxy)).err()?;
    Some(seconds_up(owed))
}

/// Leaves the key with nothing, and no debt.
fn empty(proxy: &Proxy) {
    let plan = proxy.plan();
    assert_eq!(debt(proxy), None, "a fresh key");
    plan.limits[0].state.balance.charge(PER_MINUTE, PER_MINUTE, now(proxy));
}

/// What `exchange` costs a fresh key.
fn cost(proxy: &Proxy, exchange: impl FnOnce(&mut Client)) -> u64 {
    empty(proxy);
    exchange(&mut proxy.client());
    wait_until("it is charged", || debt(proxy).is_some());
    debt(proxy).unwrap()
}

fn check(what: &str, cost: u64, want: std::ops::RangeInclusive<u64>) {
    // A test may be slow: each second has earned a token.
    let want = want.start().saturating_sub(3)..=*want.end() + 1;
    assert!(want.contains(&cost), "{what}: cost {cost}, not within {want:?}");
}

fn prompt(bytes: usize) -> Vec<u8> {
    let body = format!("{{\"model\":\"m\",\"prompt\":\"{}\"}}", "x".repeat(bytes - 25));
    post("/v1/completions", MINE, body)
}

const JSON: &str = "Content-Type: application/json\r\n";
const SSE: &str = "Content-Type: text/event-stream\r\n";
const USAGE: &str = r#""usage":{"prompt_tokens":100,"completion_tokens":200}"#;

/// What the server says to a prompt of 4,000 bytes, and what that must cost.
fn costs(what: &str, answer: impl Into<Vec<u8>>, want: std::ops::RangeInclusive<u64>) {
    costs_then(what, answer, Then::Keep, want);
}

fn costs_then(
    what: &str,
    answer: impl Into<Vec<u8>>,
    then: Then,
    want: std::ops::RangeInclusive<u64>,
) {
    let server = Scripted::start();
    let proxy = server.proxy("");
    server.say(answer, then);
    let cost = cost(&proxy, |client| {
        client.send(prompt(4_000));
        let _ = client.try_answer();
    });
    check(what, cost, want);
}

#[test]
fn the_count_is_found_wherever_and_however_it_comes() {
    let far = "7,".repeat(30_000);
    let body = format!(r#"{{"choices":[],{USAGE},"prompt_token_ids":[{far}0]}}"#);
    for fields in [JSON, "Content-Type: text/json\r\n", "Content-Type: text/plain\r\n", ""] {
        costs(fields, whole(fields, body.as_bytes()), 300..=300);
        costs(fields, chunked(fields, body.as_bytes(), 1000, true), 300..=300);
    }
    let event = format!(
        "data: {{\"type\":\"response.completed\",\"response\":{{{USAGE},\"metadata\":{{\"a\":\"{far}\"}}}}}}\n\n"
    );
    costs("an event of 60 KB", chunked(SSE, event.as_bytes(), 4096, true), 300..=300);
    let shadow = r#""message":{"tool_calls":[{"function":{"arguments":{"usage":{"prompt_tokens":1,"completion_tokens":1}}}}]}"#;
    for body in [format!("{{{USAGE},{shadow}}}"), format!("{{{shadow},{USAGE}}}")] {
        costs("a shadow", whole(JSON, body.as_bytes()), 300..=300);
    }
    let identity = format!("{JSON}Content-Encoding: identity\r\n");
    costs("identity", whole(&identity, body.as_bytes()), 300..=300);
    let until_close = format!("HTTP/1.1 200 OK\r\n{JSON}\r\n{{{USAGE}}}");
    costs_then("until close", until_close, Then::Close, 300..=300);
}

#[test]
fn no_coding_is_asked_for_and_one_that_comes_is_paid_by_its_bytes() {
    let server = Scripted::start();
    let proxy = server.proxy("[[key]]\nname = \"b\"\nkey = \"sk-b\"\n");
    server.say(whole(JSON, b"{}"), Then::Keep);
    let asked = |key: &str| {
        let fields = format!("x-api-key: {key}\r\nAccept-Encoding: gzip, br\r\n");
        proxy.client().send(post("/v1/completions", &fields, "{\"model\":\"m\"}")).answer();
        let head = server.last_head().to_lowercase();
        let lines = head.lines().filter(|line| line.starts_with("accept-encoding:"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(asked("sk-a"), ["accept-encoding: identity"]);
    assert_eq!(asked("sk-b"), ["accept-encoding: gzip, br"]);
    for kind in [JSON, SSE] {
        let fields = format!("{kind}Content-Encoding: gzip\r\n");
        costs("gzip", whole(&fields, &[7; 400]), 1100..=1100);
        costs("gzip", chunked(&fields, &[7; 400], 50, true), 1100..=1100);
    }
}

/// A stream of `count` pieces.
fn pieces(count: usize) -> String {
    "data: {\"choices\":[{\"delta\":{\"content\":\"word \"}}]}\n\n".repeat(count)
}

#[test]
fn without_a_count_the_prompt_and_what_was_relayed_are_paid() {
    let done = pieces(50) + "data: [DONE]\n\n";
    costs("no include_usage", chunked(SSE, done.as_bytes(), 100, true), 1050..=1050);
    let cut = chunked(SSE, pieces(50).as_bytes(), 100, false);
    costs_then("a cut stream", cut, Then::Close, 1050..=1050);
    let lines = "{\"message\":{\"content\":\"word \"},\"done\":false}\n".repeat(50);
    let kind = "Content-Type: application/x-ndjson\r\n";
    costs("lines", chunked(kind, lines.as_bytes(), 100, true), 1050..=1050);
    let running =
        format!("data: {{{USAGE}}}\n\n{}", pieces(7)).replace("completion_tokens\":200", "x\":0");
    costs("the prompt alone", chunked(SSE, running.as_bytes(), 100, true), 107..=107);
    let text = format!("{{\"choices\":[{{\"text\":\"{}\"}}]}}", "y".repeat(800));
    costs("a document", whole(JSON, text.as_bytes()), 1200..=1200);
    let short = format!("HTTP/1.1 200 OK\r\n{JSON}Content-Length: 5000\r\n\r\n{{\"choices\":[");
    costs_then("a cut document", short, Then::Close, 1000..=1010);
}

#[test]
fn every_end_is_paid_for() {
    let ask = |server: &Scripted, what: &str, want: std::ops::RangeInclusive<u64>| {
        let proxy = server.proxy("");
        let paid = cost(&proxy, |client| {
            client.send(prompt(4_000));
            let _ = client.try_answer();
        });
        check(what, paid, want);
    };
    let server = Scripted::start();
    server.say("", Then::Close);
    ask(&server, "no answer", 1000..=1000);
    server.say("garbage\r\n\r\n", Then::Close);
    ask(&server, "no HTTP", 1000..=1000);
    server.say("HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n", Then::Keep);
    ask(&server, "500", 1000..=1000);
    server.say("HTTP/1.1 204 No\r\n\r\n", Then::Keep);
    ask(&server, "204", 1000..=1000);
    // The client leaves: before an answer, and in the middle of one.
    for kind in [SSE, "Content-Type: application/x-ndjson\r\n", JSON] {
        let stream = match kind {
            SSE => pieces(50),
            JSON => format!("{{\"choices\":[{{\"text\":\"{}", "y".repeat(200)),
            _ => "{\"message\":{\"content\":\"word \"},\"done\":false}\n".repeat(50),
        };
        for answer in [Vec::new(), chunked(kind, stream.as_bytes(), 1000, false)] {
            let want = if answer.is_empty() { 1000 } else { 1050 };
            server.say(answer.clone(), Then::Wait);
            // What was asked before is no sign that this is.
            server.heads.lock().unwrap().clear();
            let proxy = server.proxy("");
            let paid = cost(&proxy, |client| {
                client.send(prompt(4_000));
                if answer.is_empty() {
                    wait_until("it is asked", || server.last_head().contains("completions"));
                } else {
                    // All of it has been relayed.
                    let mut got = Vec::new();
                    while got.len() < answer.len() {
                        got.extend(client.some());
                    }
                }
            });
            check(kind, paid, want..=want);
        }
    }
}

#[test]
fn what_no_server_has_taken_costs_nothing() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let nobody = format!("http://{}", taken.local_addr().unwrap());
    drop(taken);
    let proxy = with_key(&[nobody], "");
    empty(&proxy);
    for (request, status) in [
        (prompt(4_000), 502),
        (post("/v1/completions", MINE, r#"{"model":"unknown"}"#), 404),
        (post("/v1/completions", MINE, "{"), 400),
        (get("/v1/models", MINE), 200),
    ] {
        assert_eq!(proxy.client().send(request).answer().status, status);
    }
    proxy.wait_until_empty();
    assert_eq!(debt(&proxy), None);
    // A server that says that it has no time.
    let server = Scripted::start();
    let proxy = server.proxy("");
    for status in [429, 503, 529] {
        server.say(format!("HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n"), Then::Keep);
        assert_eq!(proxy.client().send(prompt(4_000)).answer().status, status);
    }
    proxy.wait_until_empty();
    assert_eq!(debt(&proxy), None);
}

#[test]
fn what_a_token_takes_is_learned_from_answers_with_a_count() {
    let server = Scripted::start();
    let proxy = server.proxy("");
    // 40 bytes a token. Its minute's tokens pay for it, and it is not in debt.
    let count = "{\"usage\":{\"prompt_tokens\":40,\"completion_tokens\":1}}";
    server.say(whole(JSON, count.as_bytes()), Then::Keep);
    assert_eq!(proxy.client().send(prompt(1_600)).answer().status, 200);
    proxy.wait_until_empty();
    let learned = |proxy: &Proxy| {
        let plan = proxy.plan();
        plan.limits[0].state.balance.check(now(proxy))
    };
    assert_eq!(learned(&proxy), Ok(()));
    let plan = proxy.plan();
    plan.limits[0].state.balance.charge(PER_MINUTE - 41, PER_MINUTE, now(&proxy));
    server.say("", Then::Close);
    let mut client = proxy.client();
    client.send(prompt(4_000));
    let _ = client.try_answer();
    wait_until("it is charged", || debt(&proxy).is_some());
    let paid = debt(&proxy).unwrap();
    assert!(paid < 4_000 / TEXT / 2, "{paid}");
}

#[test]
fn a_streamed_upload_and_a_tunnel_are_paid() {
    // Over `body_held` (2 MiB), on its way before it is complete, moved by the kernel.
    let server = Scripted::start();
    let proxy = server.proxy("");
    let megabytes = 3 << 20;
    server.say("", Then::Close);
    let paid = cost(&proxy, |client| {
        // Behind the route that needs no model.
        client.send(post("/echo", MINE, vec![b'x'; megabytes]));
        let _ = client.try_answer();
    });
    // A day is the most that one exchange can cost.
    check("an upload", paid, 86_399..=86_400);
    let mock = mock();
    let proxy = with_key(&[mock.url()], "");
    let paid = cost(&proxy, |client| {
        let upgrade = format!(
            "GET /echo HTTP/1.1\r\nHost: a\r\n{MINE}Connection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Key: abc\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
        );
        assert_eq!(client.send(upgrade).answer().status, 101);
        client.send([7; 51_200]);
        let mut got = 0;
        while got < 51_200 {
            got += client.some().len();
        }
    });
    check("a tunnel", paid, 400..=400);
    assert_eq!(mock.seen()[0].field("sec-websocket-extensions"), None);
}

#[test]
fn a_tunnel_pays_each_count_when_it_comes() {
    let server = Scripted::start();
    let proxy = server.proxy("");
    let delta = r#"{"type":"response.output_text.delta","delta":"word "}"#;
    let done =
        r#"{"type":"response.done","response":{"usage":{"input_tokens":60,"output_tokens":40}}}"#;
    let upgraded = "HTTP/1.1 101 Now\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let mut answer = upgraded.as_bytes().to_vec();
    for text in [delta, delta, done, delta, delta, delta] {
        answer.extend_from_slice(&[0x81, text.len() as u8]);
        answer.extend_from_slice(text.as_bytes());
    }
    let length = answer.len() - upgraded.len();
    server.say(answer, Then::Wait);
    empty(&proxy);
    let mut client = proxy.client();
    let upgrade = format!(
        "GET /echo HTTP/1.1\r\nHost: a\r\n{MINE}Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    );
    assert_eq!(client.send(upgrade).answer().status, 101);
    let mut got = 0;
    while got < length {
        got += client.some().len();
    }
    // The tunnel is still open.
    wait_until("the count is paid", || debt(&proxy).is_some());
    check("its count", debt(&proxy).unwrap(), 100..=100);
    drop(client);
    proxy.wait_until_empty();
    check("the rest", debt(&proxy).unwrap(), 103..=103);
}

#[test]
fn every_core_charges_the_same_key() {
    let server = Scripted::start();
    let rest = "[[key]]\nname = \"a\"\nkey = \"sk-a\"\ntpm = 60\n";
    let proxy =
        Setup { process: "cores = 4\n", listener: "auth = \"keys\"", rest, ..Setup::default() }
            .start_on(&[format!("http://{}", server.addr)]);
    server.say(chunked(SSE, pieces(5).as_bytes(), 100, false), Then::Wait);
    empty(&proxy);
    let mut clients: Vec<Client> = (0..16).map(|_| proxy.client()).collect();
    for client in &mut clients {
        client.send(prompt(400));
    }
    for client in &mut clients {
        let mut got = Vec::new();
        while got.windows(5).filter(|part| *part == b"word ").count() < 5 {
            got.extend(client.some());
        }
    }
    drop(clients);
    wait_until("all are charged", || debt(&proxy).is_some_and(|owed| owed >= 16 * 105 - 20));
    check("sixteen", debt(&proxy).unwrap(), 16 * 105 - 10..=16 * 105);
}

#[test]
fn metrics_count_what_passed() {
    let server = Scripted::start();
    let proxy = server.proxy("[[key]]\nname = \"b\"\nkey = \"sk-b\"\n");
    server.say(whole(JSON, b"{}"), Then::Keep);
    let mut client = proxy.client();
    // Ends when the head is refused; the status is counted.
    client.send("GET / HTTP/1.1\r\nbad head\r\n\r\n");
    assert_eq!(client.answer().status, 400);
    let body = vec![b'x'; 3 << 20];
    let answer = proxy.client().send(post("/echo", "x-api-key: sk-b\r\n", &body)).answer();
    assert_eq!(answer.status, 200);
    let begun = Instant::now();
    loop {
        let sum = proxy.shared().counters_sum();
        if sum.by_class[4] == 1 && sum.request_bytes == 3 << 20 && sum.response_bytes == 2 {
            assert_eq!(sum.by_class[0], 0);
            break;
        }
        let told = (sum.by_class, sum.request_bytes, sum.response_bytes);
        assert!(begun.elapsed() < LIMIT, "{told:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
