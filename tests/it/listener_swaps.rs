//! rules §12, §14: listeners that come, go, change places and addresses while requests run.
//!
//! Each listener has a key, a route, a group and a server of its own name, and nothing is shared:
//! whatever answers says which listener it was reached by.

use std::io::ErrorKind::{ConnectionReset, UnexpectedEof};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use loadtest::mock::Mock;
use tokenring::testing::base::listener_id::ListenerId;
use tokenring::testing::net::dial::Address;
use tokenring::testing::proxy::plan::Plan;
use tokenring::testing::server::listeners::Applied;

use super::h2_client::{self, H2Client};
use super::house::{LIMIT, Proxy, mock_with, wait_until};
use super::planner::Planner;
use super::wire::{Broken, Client, chat};

const NAMES: [&str; 3] = ["a", "b", "c"];
const ANY: &str = "127.0.0.1:0";

/// The servers, and plans as the control thread makes them.
struct House {
    mocks: Vec<Mock>,
    planner: Mutex<Planner>,
}

impl House {
    fn new() -> House {
        let named = |name: &str| mock_with(|config| config.name = name.to_owned());
        House { mocks: NAMES.map(named).into(), planner: Mutex::new(Planner::new(2)) }
    }

    /// Listeners by name and address, in this order; so are keys, and the rest begins with theirs.
    fn text(&self, listeners: &[(&str, &str)]) -> String {
        let mut text = "[process]\ncores = 2\n".to_owned();
        for (name, bind) in listeners {
            text += &format!(
                "[[listener]]\nname = \"{name}\"\nbind = \"{bind}\"\nauth = \"keys\"\n\
                 [[listener.route]]\npath = \"/v1/*\"\ngroup = \"of-{name}\"\n\
                 [[key]]\nname = \"{name}\"\nkey = \"sk-{name}\"\nlisteners = [\"{name}\"]\n"
            );
        }
        let mut names: Vec<&str> = listeners.iter().map(|(name, _)| *name).collect();
        names.extend(NAMES.iter().filter(|name| !listeners.iter().any(|(one, _)| one == *name)));
        for name in names {
            let at = NAMES.iter().position(|one| *one == name).unwrap();
            text += &format!(
                "[[upstream]]\nname = \"gpu-{name}\"\nurl = \"{}\"\nmodels = []\n\
                 breaker = {{ consecutive = 1000000, calls_min = 1000000 }}\n\
                 [[group]]\nname = \"of-{name}\"\nmembers = [{{ upstream = \"gpu-{name}\" }}]\n",
                self.mocks[at].url()
            );
        }
        text
    }

    fn plan(&self, listeners: &[(&str, &str)]) -> Plan {
        self.planner.lock().unwrap().plan(&self.text(listeners))
    }

    fn start(&self, listeners: &[(&str, &str)]) -> Proxy {
        self.planner.lock().unwrap().start(&self.text(listeners))
    }

    fn apply(&self, proxy: &Proxy, listeners: &[(&str, &str)]) {
        assert_eq!(proxy.apply(self.plan(listeners)).unwrap(), Applied::default());
    }
}

/// Where a listener listens now.
fn addr_of(proxy: &Proxy, name: &str) -> Option<SocketAddr> {
    let id = ListenerId::of(name);
    let found = proxy.addresses().into_iter().find(|(one, _)| *one == id);
    match found {
        Some((_, Address::Tcp(addr))) => Some(addr),
        _ => None,
    }
}

fn bearer(key: &str) -> String {
    format!("Authorization: Bearer sk-{key}\r\n")
}

fn server_of(client: &mut Client, key: &str) -> Result<String, u16> {
    let answer = client.send(chat(&bearer(key), false)).answer();
    match answer.status {
        200 => Ok(answer.field("x-mock-server").expect("of the mock").to_owned()),
        status => Err(status),
    }
}

/// Whether a key is not this listener's: one that the plan knows is told so.
fn is_refusal(status: u16) -> bool {
    matches!(status, 401 | 403)
}

#[track_caller]
fn assert_refused(answer: Result<String, u16>) {
    assert!(answer.as_ref().is_err_and(|status| is_refusal(*status)), "{answer:?}");
}

/// Asserts that a connection was ended in order, before it had been told anything.
#[track_caller]
fn assert_unanswered(broken: &Broken) {
    let ended = matches!(broken.why, UnexpectedEof | ConnectionReset);
    assert!(ended && broken.head.is_empty(), "{broken:?}");
}

fn h2_chat(client: &H2Client, key: &str, mock: &str) -> Option<h2_client::Stream> {
    let body = "{\"messages\":[],\"model\":\"m\",\"stream\":true,\"seed\":7}";
    let key = format!("Bearer sk-{key}");
    let fields = [("authorization", key.as_str()), ("x-mock", mock)];
    let mut stream = client.try_open("POST", "/v1/chat/completions", &fields, false).ok()?;
    let _ = stream.send(body.into(), true);
    Some(stream)
}

/// Ends what runs beside, also when a test fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// Calls `ask` over and over until `over`, and counts in `turns`; if it fails, all is over.
fn repeat(over: &AtomicBool, turns: &AtomicU64, mut ask: impl FnMut()) {
    let _over = Over(over);
    while !over.load(Relaxed) {
        ask();
        turns.fetch_add(1, Relaxed);
    }
}

#[test]
fn one_that_stays_notices_nothing_of_those_that_come_and_go() {
    let house = House::new();
    let proxy = house.start(&[("a", ANY), ("b", ANY)]);
    let (over, turns) = (AtomicBool::new(false), [const { AtomicU64::new(0) }; 5]);
    let a = addr_of(&proxy, "a").unwrap();
    std::thread::scope(|scope| {
        let _over = Over(&over);
        let (proxy, over, turns, mocks) = (&proxy, &over, &turns, &house.mocks);
        // Keep-alive connections of the listener that stays.
        for turns in &turns[..2] {
            scope.spawn(move || {
                let mut client = Client::connect(a);
                repeat(over, turns, || {
                    assert_eq!(server_of(&mut client, "a").as_deref(), Ok("a"));
                    assert_refused(server_of(&mut client, "b"));
                });
            });
        }
        scope.spawn(move || {
            let client = H2Client::connect(a, None);
            repeat(over, &turns[2], || {
                let two = ["", "delay=5ms"].map(|mock| h2_chat(&client, "a", mock).unwrap());
                for stream in two {
                    let answer = stream.answer();
                    assert_eq!((answer.status, answer.field("x-mock-server")), (200, Some("a")));
                    assert!(answer.text().ends_with("data: [DONE]\n\n"));
                }
                assert_refused(Err(h2_chat(&client, "c", "").unwrap().answer().status));
            });
        });
        scope.spawn(move || {
            let mut client = Client::connect(a);
            repeat(over, &turns[3], || {
                client.send(chat(
                    &format!("{}x-mock: interval=4ms,tokens=30\r\n", bearer("a")),
                    true,
                ));
                let answer = client.answer();
                assert!(answer.text().ends_with("data: [DONE]\n\n"));
            });
        });
        // New connections to whichever others there are: they are served by their own, or closed.
        scope.spawn(move || {
            repeat(over, &turns[4], || {
                for (name, mock) in NAMES.iter().zip(mocks).skip(1) {
                    let Some(addr) = addr_of(proxy, name) else { continue };
                    let Ok(stream) = TcpStream::connect(addr) else { continue };
                    let mut client = Client::of(stream);
                    for _ in 0..3 {
                        let _ = client.try_send(&chat(&bearer(name), false));
                        match client.try_answer() {
                            // The port may be another listener's by now; then the key is not.
                            Ok(answer) if is_refusal(answer.status) => break,
                            Ok(answer) => {
                                assert_eq!(answer.status, 200);
                                assert_eq!(answer.field("x-mock-server"), Some(*name));
                                if answer.field("connection") == Some("close") {
                                    client.expect_end();
                                    break;
                                }
                            }
                            Err(broken) => {
                                assert_unanswered(&broken);
                                break;
                            }
                        }
                    }
                    assert_eq!(mock.stats().aborted_total, 0);
                }
            });
        });
        let sets: [&[&str]; 7] = [
            &["b", "a"],
            &["a"],
            &["c", "b", "a"],
            &["a", "c"],
            &["c", "a"],
            &["b", "a", "c"],
            &["a", "b"],
        ];
        for turn in 0..70 {
            let before = turns.each_ref().map(|turn| turn.load(Relaxed));
            let names = sets[turn % sets.len()];
            let listeners: Vec<_> = names.iter().map(|name| (*name, ANY)).collect();
            house.apply(proxy, &listeners);
            assert_eq!(addr_of(proxy, "a"), Some(a), "it keeps its sockets");
            if turn % 7 == 0 {
                let on = || (0..5).all(|at| turns[at].load(Relaxed) > before[at]);
                wait_until("all go on", || on() || over.load(Relaxed));
            }
        }
    });
    let aborted: u64 = house.mocks.iter().map(|mock| mock.stats().aborted_total).sum();
    assert_eq!(aborted, 0);
}

#[test]
fn one_that_has_gone_takes_nothing_new_and_ends_what_it_has_in_order() {
    let house = House::new();
    let proxy = house.start(&[("b", ANY), ("a", ANY)]);
    let b = addr_of(&proxy, "b").unwrap();
    let mut silent = Client::connect(b);
    let (mut idle, mut streaming) = (Client::connect(b), Client::connect(b));
    let mut thinking = Client::connect(b);
    assert_eq!(server_of(&mut idle, "b").as_deref(), Ok("b"));
    streaming.send(chat(&format!("{}x-mock: interval=20ms,tokens=30\r\n", bearer("b")), true));
    streaming.through(b"\n\n").expect("it has begun");
    thinking.send(chat(&format!("{}x-mock: delay=400ms\r\n", bearer("b")), false));
    house.mocks[1].wait_until(LIMIT, |stats| stats.in_flight == 2).expect("begun");

    house.apply(&proxy, &[("a", ANY)]);
    assert!(TcpStream::connect(b).is_err(), "nobody listens any more");
    idle.expect_end();
    silent.expect_end();
    // An answer that begins now says so, one that had begun ends well.
    let answer = thinking.answer();
    assert_eq!((answer.status, answer.field("x-mock-server")), (200, Some("b")));
    assert_eq!(answer.field("connection"), Some("close"));
    thinking.expect_end();
    streaming.through(b"data: [DONE]\n\n\r\n0\r\n\r\n").expect("it ends well");
    streaming.expect_end();
    proxy.wait_until_empty();
    assert_eq!(house.mocks[1].stats().aborted_total, 0);
    let a = addr_of(&proxy, "a").unwrap();
    assert_eq!(server_of(&mut Client::connect(a), "a").as_deref(), Ok("a"));
}

#[test]
fn a_request_behind_the_last_one_is_answered_by_the_listener_it_was_sent_to() {
    let house = House::new();
    let proxy = house.start(&[("b", ANY), ("a", ANY)]);
    let mut client = Client::connect(addr_of(&proxy, "b").unwrap());
    // Both at once: the second begins when the listener, its key and its route have gone.
    let slow = chat(&format!("{}x-mock: interval=20ms,tokens=20\r\n", bearer("b")), true);
    client.send([slow, chat(&bearer("b"), false)].concat());
    house.mocks[1].wait_until(LIMIT, |stats| stats.in_flight == 1).expect("begun");
    client.through(b"\n\n").expect("it has begun");
    house.apply(&proxy, &[("a", ANY), ("c", ANY)]);
    client.through(b"data: [DONE]\n\n\r\n0\r\n\r\n").expect("it ends well");
    let answer = client.answer();
    assert_eq!((answer.status, answer.field("x-mock-server")), (200, Some("b")));
    assert_eq!(answer.field("connection"), Some("close"));
    client.expect_end();
}

#[test]
fn an_http2_connection_of_one_that_has_gone_is_told_and_its_streams_end_well() {
    let house = House::new();
    let proxy = house.start(&[("b", ANY), ("a", ANY)]);
    let (a, b) = (addr_of(&proxy, "a").unwrap(), addr_of(&proxy, "b").unwrap());
    let idle = H2Client::connect(b, None);
    let busy = H2Client::connect(b, None);
    let stays = H2Client::connect(a, None);
    assert_eq!(h2_chat(&idle, "b", "").unwrap().answer().status, 200);
    let mut stream = h2_chat(&busy, "b", "interval=20ms,tokens=30").unwrap();
    assert_eq!(stream.head().unwrap().status(), 200);
    assert!(stream.data().is_some());

    house.apply(&proxy, &[("c", ANY), ("a", ANY)]);
    idle.end().expect("GOAWAY without an error");
    assert!(h2_chat(&idle, "b", "").is_none(), "it takes no further stream");
    let rest = stream.rest().expect("it ends well");
    assert!(String::from_utf8_lossy(&rest).ends_with("data: [DONE]\n\n"));
    busy.end().expect("GOAWAY without an error");
    let answer = h2_chat(&stays, "a", "").unwrap().answer();
    assert_eq!((answer.status, answer.field("x-mock-server")), (200, Some("a")));
    assert_eq!(house.mocks[1].stats().aborted_total, 0);
}

#[test]
fn an_address_that_cannot_be_had_leaves_everything_as_it_was() {
    let house = House::new();
    let proxy = house.start(&[("a", ANY), ("b", ANY)]);
    let (a, b) = (addr_of(&proxy, "a").unwrap(), addr_of(&proxy, "b").unwrap());
    let other = House::new().start(&[("a", ANY)]);
    let taken = other.addr().to_string();
    let mut client = Client::connect(b);
    assert_eq!(server_of(&mut client, "b").as_deref(), Ok("b"));
    let why = proxy.apply(house.plan(&[("c", &taken), ("a", ANY)])).unwrap_err();
    assert!(why.starts_with(&format!("listener.c: cannot listen on {taken}: ")), "{why}");
    assert_eq!(addr_of(&proxy, "a"), Some(a));
    assert_eq!(server_of(&mut client, "b").as_deref(), Ok("b"), "it is still there");
    assert_eq!(server_of(&mut Client::connect(b), "b").as_deref(), Ok("b"));
    // Once the address is free, the same change passes.
    other.drain();
    other.join();
    house.apply(&proxy, &[("c", &taken), ("a", ANY)]);
    let c = addr_of(&proxy, "c").unwrap();
    assert_eq!(server_of(&mut Client::connect(c), "c").as_deref(), Ok("c"));
    client.expect_end();
}

#[test]
fn an_address_moves_to_another_listener_and_refuses_nobody() {
    let house = House::new();
    let proxy = house.start(&[("a", ANY)]);
    let addr = addr_of(&proxy, "a").unwrap();
    let bind = addr.to_string();
    let (over, turns) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let _over = Over(&over);
        scope.spawn(|| {
            repeat(&over, &turns, || {
                let mut client = Client::of(TcpStream::connect(addr).expect("it listens on"));
                let _ = client.try_send(&chat(&bearer("a"), false));
                match client.try_answer() {
                    Ok(answer) if is_refusal(answer.status) => {}
                    Ok(answer) => assert_eq!(answer.field("x-mock-server"), Some("a")),
                    // One that was accepted for the listener that has gone has time to ask.
                    Err(broken) => panic!("{broken:?}"),
                }
            });
        });
        for turn in 0..6 {
            let (one, other) = if turn % 2 == 0 { ("b", "a") } else { ("a", "b") };
            let mut kept = Client::connect(addr);
            assert_eq!(server_of(&mut kept, other).as_deref(), Ok(other));
            house.apply(&proxy, &[(one, &bind)]);
            let mut client = Client::connect(addr);
            assert_eq!(server_of(&mut client, one).as_deref(), Ok(one));
            assert_refused(server_of(&mut client, other));
            kept.expect_end();
            let before = turns.load(Relaxed);
            wait_until("the load goes on", || turns.load(Relaxed) > before);
        }
    });
    assert_eq!(proxy.addresses(), [(ListenerId::of("a"), Address::Tcp(addr))]);
}

#[test]
fn two_listeners_change_addresses() {
    let house = House::new();
    let proxy = house.start(&[("a", ANY), ("b", ANY)]);
    let (one, two) = (addr_of(&proxy, "a").unwrap(), addr_of(&proxy, "b").unwrap());
    let mut old = Client::connect(one);
    assert_eq!(server_of(&mut old, "a").as_deref(), Ok("a"));
    house.apply(&proxy, &[("a", &two.to_string()), ("b", &one.to_string())]);
    assert_eq!(server_of(&mut Client::connect(one), "b").as_deref(), Ok("b"));
    assert_eq!(server_of(&mut Client::connect(two), "a").as_deref(), Ok("a"));
    assert_refused(server_of(&mut Client::connect(one), "a"));
    // Who has come in by a listener that is still there stays with it.
    assert_eq!(server_of(&mut old, "a").as_deref(), Ok("a"));
}

#[test]
fn a_socket_file_goes_and_comes_with_its_listener() {
    let house = House::new();
    let path: PathBuf =
        std::env::temp_dir().join(format!("tokenring-it-{}-swaps.sock", std::process::id()));
    let bind = format!("unix:{}", path.display());
    let proxy = house.start(&[("a", ANY)]);
    for _ in 0..5 {
        house.apply(&proxy, &[("b", &bind), ("a", ANY)]);
        let mut client = Client::connect_unix(&path);
        assert_eq!(server_of(&mut client, "b").as_deref(), Ok("b"));
        house.apply(&proxy, &[("c", &bind), ("a", ANY)]);
        assert_eq!(server_of(&mut Client::connect_unix(&path), "c").as_deref(), Ok("c"));
        client.expect_end();
        house.apply(&proxy, &[("a", ANY)]);
        assert!(!path.exists());
    }
}

#[test]
fn sockets_are_handed_to_a_next_server_and_refuse_nobody() {
    let house = House::new();
    let first = house.start(&[("a", ANY)]);
    let addr = addr_of(&first, "a").unwrap();
    let (over, turns) = (AtomicBool::new(false), AtomicU64::new(0));
    let ended = AtomicBool::new(false);
    let listeners = [("a", &*addr.to_string())];
    let text = house.text(&listeners);
    std::thread::scope(|scope| {
        let _over = Over(&over);
        scope.spawn(|| {
            let _ended = Over(&ended);
            repeat(&over, &turns, || {
                let mut client = Client::of(TcpStream::connect(addr).expect("it listens on"));
                let _ = client.try_send(&chat(&bearer("a"), false));
                match client.try_answer() {
                    Ok(answer) => assert_eq!(answer.field("x-mock-server"), Some("a")),
                    Err(broken) => assert_unanswered(&broken),
                }
            });
        });
        let exported = first.listeners().export().unwrap();
        assert_eq!(exported.len(), 2, "one for each core");
        let adopted = exported.into_iter().map(|one| (one.index, one.socket)).collect();
        let second = Planner::new(2).start_adopting(&text, adopted);
        assert_eq!(second.addresses(), first.addresses());
        first.drain();
        first.join();
        let before = turns.load(Relaxed);
        wait_until("the load goes on", || turns.load(Relaxed) > before + 10);
        let mut client = Client::connect(addr);
        assert_eq!(server_of(&mut client, "a").as_deref(), Ok("a"));
        // Before it ends, or nobody would listen.
        over.store(true, Relaxed);
        wait_until("the load has ended", || ended.load(Relaxed));
    });
}
