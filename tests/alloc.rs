//! In steady state a proxied request of 1 KB costs no allocation.
//!
//! A counting allocator counts what each thread named `core-…` asks for; the mock and the client
//! allocate as they like. The proxy is warmed up first: buffers, pools and frames find their
//! sizes then. Small answers, large ones and streams each have their own promise.

// In a test a panic is the report.
#![allow(clippy::unwrap_used, unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use loadtest::mock::{Mock, MockConfig};
use tokenring::config::Config;
use tokenring::net::dial::Address;

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

/// Sends a request so many times on one connection and reads answers of `bytes` bytes each.
fn drive(stream: &mut TcpStream, request: &[u8], times: u32) -> u64 {
    let mut buffer = vec![0; 65_536];
    let mut bytes = 0;
    for _ in 0..times {
        stream.write_all(request).unwrap();
        let (mut filled, mut length) = (0, None);
        loop {
            let count = stream.read(&mut buffer[filled..]).unwrap();
            assert_ne!(count, 0, "the connection goes on");
            filled += count;
            let whole = *length.get_or_insert_with(|| length_of(&buffer[..filled]));
            if whole.is_some_and(|whole| filled >= whole) {
                break;
            }
            if whole.is_none() {
                length = None;
            }
        }
        assert!(
            buffer.starts_with(b"HTTP/1.1 200"),
            "{}",
            String::from_utf8_lossy(&buffer[..filled])
        );
        bytes += filled as u64;
    }
    bytes
}

/// The length of the whole answer, once its head is there.
fn length_of(answer: &[u8]) -> Option<usize> {
    let head = memchr::memmem::find(answer, b"\r\n\r\n")? + 4;
    let text = String::from_utf8_lossy(&answer[..head]).to_lowercase();
    let length = text.split("content-length: ").nth(1).expect("a length");
    Some(head + length.split("\r\n").next()?.parse::<usize>().ok()?)
}

#[test]
fn a_proxied_request_of_1_kb_allocates_nothing() {
    let mock = Mock::start(MockConfig::default()).unwrap();
    let text = format!(
        "[process]\ncores = 1\n\
         [[listener]]\nname = \"main\"\nbind = \"127.0.0.1:0\"\nauth = \"keys\"\n\
         ratelimit = {{ per_second = 10000, burst = 20000 }}\n\
         [[upstream]]\nname = \"gpu\"\nurl = \"{}\"\nmodels = []\n\
         auth = {{ type = \"bearer\", token = \"up\" }}\n\
         [models.m]\nupstream = \"gpu\"\n[[key]]\nname = \"a\"\nkey = \"sk-a\"\n\
         rpm = 1000000\nrpd = 1000000\ntpm = 1000000000\nper_second = 10000\nburst = 20000\n\
         concurrency = 10\n",
        mock.url()
    );
    let config = Config::from_toml_str(&text, &|_| None).unwrap_or_else(|why| panic!("{why}"));
    let server = tokenring::server::start(&config).unwrap().server;
    let Some(Address::Tcp(addr)) = server.address() else { panic!("no TCP listener") };
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.set_nodelay(true).unwrap();
    let body = format!("{{\"messages\":[\"{}\"],\"model\":\"m\"}}", "x".repeat(990));
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer sk-a\r\n\
         User-Agent: test\r\nAccept: */*\r\nContent-Type: application/json\r\n\
         x-mock: size=1000\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    drive(&mut stream, request.as_bytes(), 300);
    COUNTING.store(true, Ordering::SeqCst);
    drive(&mut stream, request.as_bytes(), REQUESTS);
    COUNTING.store(false, Ordering::SeqCst);
    let counted = ALLOCATIONS.load(Ordering::SeqCst);
    assert_eq!(counted, 0, "allocations in {REQUESTS} requests");
    assert!(mock.stats().requests_total >= u64::from(REQUESTS));
}
