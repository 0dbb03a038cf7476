//! In steady state a proxied request costs no allocation: plain, large or streamed.
//!
//! A counting allocator counts what each thread named `core-…` asks for; the mock and the client
//! allocate as they like. The proxy is warmed up first: buffers, pools and frames find their
//! sizes then.

// In a test a panic is the report.
#![allow(clippy::unwrap_used, unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use loadtest::mock::{Mock, MockConfig};
use tokenring::testing::config::Config;
use tokenring::testing::net::dial::Address;

/// Requests for memory by the cores while counting is on.
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static COUNTING: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// Whether this thread is a core; `None` = not asked yet.
    static IS_CORE: Cell<Option<bool>> = const { Cell::new(None) };
}

struct Counting;

fn count() {
    if !COUNTING.load(Ordering::Relaxed) {
        return;
    }
    // A thread that is ending has no thread-locals any more, and is no core at work.
    let core = IS_CORE.try_with(|known| match known.get() {
        Some(core) => core,
        None => {
            // Asking for the name may allocate: not a core until the answer is there.
            known.set(Some(false));
            let name = std::thread::current().name().map(str::to_owned);
            let core = name.is_some_and(|name| name.starts_with("core-"));
            known.set(Some(core));
            core
        }
    });
    if core.unwrap_or(false) {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: every call goes to the system's allocator unchanged; counting touches no memory of it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: `at` came from the system's allocator with this layout.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as in `dealloc`; the caller keeps the contract of `realloc`.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const REQUESTS: u32 = 1_000;

/// Sends a request so many times on one connection and reads each answer to its end.
fn drive(stream: &mut TcpStream, request: &[u8], times: u32) {
    let mut answer = vec![0; 1 << 20];
    for _ in 0..times {
        stream.write_all(request).unwrap();
        let mut filled = 0;
        while !is_whole(&answer[..filled]) {
            let count = stream.read(&mut answer[filled..]).unwrap();
            assert_ne!(count, 0, "the connection goes on");
            filled += count;
        }
        let text = String::from_utf8_lossy(&answer[..filled]);
        assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    }
}

/// Whether an answer has come to its end, by its length or its last chunk.
fn is_whole(answer: &[u8]) -> bool {
    let Some(head) = memchr::memmem::find(answer, b"\r\n\r\n") else { return false };
    let text = String::from_utf8_lossy(&answer[..head]).to_lowercase();
    match text.split("content-length: ").nth(1) {
        Some(rest) => {
            let length = rest.split("\r\n").next().map(str::parse::<usize>);
            answer.len() >= head + 4 + length.unwrap().unwrap()
        }
        None => answer.ends_with(b"\r\n0\r\n\r\n"),
    }
}

/// Allocations of the cores during so many requests, after as many to warm up.
fn counted(stream: &mut TcpStream, request: &str, times: u32) -> u64 {
    drive(stream, request.as_bytes(), times.min(300));
    ALLOCATIONS.store(0, Ordering::SeqCst);
    COUNTING.store(true, Ordering::SeqCst);
    drive(stream, request.as_bytes(), times);
    COUNTING.store(false, Ordering::SeqCst);
    ALLOCATIONS.load(Ordering::SeqCst)
}

#[test]
fn a_proxied_request_allocates_nothing() {
    let mock = Mock::start(MockConfig::default()).unwrap();
    let text = format!(
        "[process]\ncores = 1\n\
         [[listener]]\nname = \"main\"\nbind = \"127.0.0.1:0\"\nauth = \"keys\"\n\
         ratelimit = {{ per_second = 10000, burst = 20000 }}\n\
         [[upstream]]\nname = \"gpu\"\nurl = \"{}\"\nmodels = []\n\
         auth = {{ type = \"bearer\", token = \"up\" }}\n\
         [models.m]\nupstream = \"gpu\"\n[[key]]\nname = \"a\"\nkey = \"sk-a\"\n\
         rpm = 1000000\nrpd = 1000000\ntpm = 1000000000\nper_second = 10000\nburst = 20000\n\
         concurrency = 10\n[[key]]\nname = \"b\"\nkey = \"sk-b\"\n",
        mock.url()
    );
    let config = Config::from_toml_str(&text, &|_| None).unwrap_or_else(|why| panic!("{why}"));
    let server = tokenring::testing::server::start(&config).unwrap().server;
    let Some(Address::Tcp(addr)) = server.address() else { panic!("no TCP listener") };
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.set_nodelay(true).unwrap();
    let request = |key: &str, body: &str, mock: &str| {
        format!(
            "POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {key}\r\n\
             User-Agent: test\r\nAccept: */*\r\nContent-Type: application/json\r\n\
             x-mock: {mock}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let body = |bytes: usize, more: &str| {
        format!("{{\"messages\":[\"{}\"],{more}\"model\":\"m\"}}", "x".repeat(bytes))
    };
    // One test, one after the other: the count is the process's. The first key pays by the token.
    for key in ["sk-a", "sk-b"] {
        let stream_body = body(990, "\"stream\":true,");
        for (what, request, times) in [
            ("plain", request(key, &body(990, ""), "size=1000"), REQUESTS),
            ("large", request(key, &body(100_000, ""), "size=1000"), REQUESTS / 4),
            ("streamed", request(key, &stream_body, "tokens=20,interval=0"), REQUESTS / 4),
        ] {
            let count = counted(&mut stream, &request, times);
            assert_eq!(count, 0, "{key}, {what}: in {times} requests");
        }
    }
}
