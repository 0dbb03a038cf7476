//! rules §14: a handover that goes wrong at any step costs nothing. One side is a process, the other
//! is played here and stops wherever a real one might hang or die.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use loadtest::mock::Mock;
use tokenring::testing::net::dial::Address;
use tokenring::testing::net::handover_socket::{Channel, ControlSocket, Name, Received, file_of};
use tokenring::testing::server::handover::{Meeting, Message, Passed, Role};

use super::handover::free_port;
use super::house::{LIMIT, mock, wait_until};
use super::process::Run;
use super::wire::{Client, chat};

/// How long each side waits for one step of the other.
const STEP: Duration = Duration::from_secs(5);

/// An address, and the server behind it.
struct Place {
    mock: Mock,
    port: u16,
    /// Of the listener.
    listener: &'static str,
    /// Whole tables.
    rest: String,
}

impl Place {
    fn new() -> Place {
        Place { mock: mock(), port: free_port(), listener: "", rest: String::new() }
    }

    fn text(&self) -> String {
        format!(
            "[process]\ncores = 2\ndrain = \"10s\"\n\
             [[listener]]\nname = \"main\"\nbind = \"127.0.0.1:{}\"\nauth = \"none\"\n{}\
             [[upstream]]\nname = \"a\"\nurl = \"{}\"\nmodels = [\"m\"]\n{}",
            self.port,
            self.listener,
            self.mock.url(),
            self.rest
        )
    }

    fn start(&self, name: &str) -> Run {
        let run = Run::start(name, &self.text());
        run.behind("models     m");
        wait_until("its control socket is there", || {
            Channel::connect(&self.name()).is_ok_and(|channel| channel.is_some())
        });
        run
    }

    fn addr(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    fn name(&self) -> Name {
        Meeting::ByAddress.names(&[Address::Tcp(self.addr())]).remove(0)
    }

    /// Sends one request on a new connection.
    #[track_caller]
    fn asks(&self) {
        let mut client = Client::connect(self.addr());
        assert_eq!(client.send(chat("", false)).answer().status, 200);
    }

    /// Another process takes over, as if nothing had been.
    #[track_caller]
    fn is_still_handed_over(&self, name: &str, mut serving: Run) {
        self.asks();
        let next = Run::start(name, &self.text());
        next.behind("took over  from process ");
        assert!(serving.child.wait().unwrap().success());
        self.asks();
    }
}

/// The other side of a conversation.
struct Peer(Channel);

impl Peer {
    #[track_caller]
    fn hears(&self) -> (Message, Vec<OwnedFd>) {
        match self.0.receive(LIMIT).unwrap() {
            Received::Message(bytes, files) => (Message::decode(&bytes).unwrap(), files),
            other => panic!("{other:?}"),
        }
    }

    fn says(&self, message: &Message) {
        self.0.send(&message.encode(), &[], LIMIT).unwrap();
    }

    fn says_with(&self, message: &Message, files: &[OwnedFd]) {
        let files: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
        self.0.send(&message.encode(), &files, LIMIT).unwrap();
    }

    #[track_caller]
    fn is_refused(&self, why: &str) {
        loop {
            match self.hears().0 {
                Message::Refused { why: told } if told.contains(why) => return,
                Message::Refused { why: told } => panic!("{told:?}, not {why:?}"),
                _ => {}
            }
        }
    }
}

fn hello() -> Message {
    Message::Hello { program: "0.0.9".to_owned(), cores: 1, edits: String::new() }
}

fn sockets_of(sockets: Vec<Passed>) -> Message {
    Message::Sockets { program: "0.0.9".to_owned(), sockets, more: false, edits_lost: false }
}

/// A new process that has connected and says nothing yet.
fn new_one(place: &Place) -> Peer {
    Peer(Channel::connect(&place.name()).unwrap().expect("the process is found"))
}

/// One that has come as far as this step; its sockets.
fn come_to(place: &Place, step: &str) -> (Peer, Vec<OwnedFd>) {
    let peer = new_one(place);
    peer.says(&hello());
    let (message, sockets) = peer.hears();
    let Message::Sockets { sockets: told, more: false, .. } = message else { panic!() };
    assert_eq!((told.len(), sockets.len()), (2, 2), "one for each core");
    if step != "sockets" {
        peer.says(&Message::Ready);
        let (message, state) = peer.hears();
        assert_eq!((message, state.len()), (Message::Stopped, 1));
    }
    (peer, sockets)
}

#[test]
fn a_new_process_that_dies_at_any_step_costs_nothing() {
    let place = Place::new();
    let serving = place.start("handover-dies");
    drop(new_one(&place));
    place.asks();
    for step in ["sockets", "stopped"] {
        let (peer, sockets) = come_to(&place, step);
        // Its descriptors go with it.
        drop((peer, sockets));
        place.asks();
        place.asks();
        let pid = std::process::id();
        serving.behind(&format!("nothing was given to process {pid}, this one goes on: "));
    }
    place.is_still_handed_over("handover-dies-2", serving);
}

#[test]
fn a_new_process_that_hangs_before_it_is_ready_costs_nothing() {
    let place = Place::new();
    let serving = place.start("handover-hangs");
    let silent = new_one(&place);
    place.asks();
    silent.is_refused("no \"hello\" for 5 s");
    let (with_sockets, _sockets) = come_to(&place, "sockets");
    let begun = Instant::now();
    while begun.elapsed() < STEP / 4 {
        place.asks();
    }
    with_sockets.is_refused("no \"ready\" for 5 s");
    place.is_still_handed_over("handover-hangs-2", serving);
}

#[test]
fn a_new_process_that_hangs_when_the_old_one_has_stopped_is_left() {
    let place = Place::new();
    let serving = place.start("handover-stops");
    let (peer, _sockets) = come_to(&place, "stopped");
    // Nobody accepts now; this one waits, and is served by the old one again.
    place.asks();
    peer.is_refused("no \"taken\" for 5 s");
    place.is_still_handed_over("handover-stops-2", serving);
}

#[test]
fn a_process_that_cannot_be_understood_is_told_so() {
    let place = Place::new();
    let serving = place.start("handover-wrong");
    let wrong: [(&[u8], &str); 4] = [
        (b"GET / HTTP/1.1\r\n\r\n", "no JSON"),
        (b"{\"tokenring\":2,\"kind\":\"hello\"}", "version 2 of the handover, not 1"),
        (b"{\"tokenring\":1,\"kind\":\"hullo\"}", "\"hullo\" is not known"),
        (b"{\"tokenring\":1,\"kind\":\"ready\"}", "\"ready\" instead of \"hello\""),
    ];
    for (bytes, why) in wrong {
        let peer = new_one(&place);
        peer.0.send(bytes, &[], LIMIT).unwrap();
        peer.is_refused(why);
        place.asks();
    }
    place.is_still_handed_over("handover-wrong-2", serving);
}

#[test]
fn one_handover_at_a_time_and_no_reload_meanwhile() {
    let place = Place::new();
    let serving = place.start("handover-one");
    let (first, sockets) = come_to(&place, "sockets");
    let second = new_one(&place);
    second.says(&hello());
    second.is_refused("another handover is under way");
    serving.signal("HUP");
    serving.behind("error: a handover to another process is under way");
    drop((first, sockets));
    serving.behind("this one goes on: ");
    place.is_still_handed_over("handover-one-2", serving);
}

/// The old side, played here: it has the address.
struct Old {
    control: ControlSocket,
    listener: TcpListener,
}

impl Old {
    fn new(place: &Place) -> Old {
        let listener = TcpListener::bind(place.addr()).unwrap();
        Old { control: ControlSocket::open(place.name()).unwrap(), listener }
    }

    fn accepts(&self) -> Peer {
        let begun = Instant::now();
        loop {
            if let Some(channel) = self.control.accept().unwrap() {
                return Peer(channel);
            }
            assert!(begun.elapsed() < LIMIT, "nobody asks");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// A new process that has come as far as to be ready.
    fn ready(&self, place: &Place) -> Peer {
        let peer = self.greeted();
        self.gives(&peer, place);
        assert_eq!(peer.hears().0, Message::Ready);
        peer
    }

    /// A new process that has asked.
    fn greeted(&self) -> Peer {
        let peer = self.accepts();
        assert!(matches!(peer.hears().0, Message::Hello { .. }));
        peer
    }

    fn gives(&self, peer: &Peer, place: &Place) {
        let address = place.addr().to_string();
        let sockets = vec![Passed { role: Role::Listener, index: 0, address }];
        let socket = OwnedFd::from(self.listener.try_clone().unwrap());
        let message = sockets_of(sockets);
        peer.says_with(&message, &[socket]);
    }
}

#[test]
fn an_old_process_that_ends_before_it_gave_anything_is_replaced() {
    let place = Place::new();
    let old = Old::new(&place);
    let next = Run::start("handover-ended", &place.text());
    let peer = old.accepts();
    assert!(matches!(peer.hears().0, Message::Hello { .. }));
    drop((peer, old));
    next.behind("models     m");
    place.asks();
}

#[test]
fn an_old_process_that_hangs_before_it_gave_anything_is_named() {
    let place = Place::new();
    let old = Old::new(&place);
    let mut next = Run::start("handover-silent", &place.text());
    let peer = old.accepts();
    next.behind(&format!(
        "error: process {} serves and gave no sockets: no \"sockets\" for 5 s",
        std::process::id()
    ));
    assert_eq!(next.child.wait().unwrap().code(), Some(1));
    peer.is_refused("no \"sockets\"");
    TcpStream::connect(old.listener.local_addr().unwrap()).expect("the old one was left alone");
}

#[test]
fn an_old_process_that_hangs_when_the_new_one_is_ready_is_served_beside() {
    let place = Place::new();
    let old = Old::new(&place);
    let next = Run::start("handover-beside", &place.text());
    let peer = old.ready(&place);
    // Nobody accepts here, so the new one serves all.
    place.asks();
    next.behind("does not answer: this one serves beside it");
    next.behind("models     m");
    place.asks();
    // It runs again.
    peer.says_with(&Message::Stopped, &[file_of(b"{}").unwrap()]);
    assert_eq!(peer.hears().0, Message::Taken);
    peer.says(&Message::Draining);
    peer.says(&Message::Later { last: true });
    drop((peer, old));
    place.asks();
}

#[test]
fn a_new_process_leaves_when_the_old_one_goes_on_and_ends_what_it_has_accepted() {
    for late in [false, true] {
        let place = Place::new();
        let old = Old::new(&place);
        let mut next = Run::start(&format!("handover-leaves-{late}"), &place.text());
        let peer = old.ready(&place);
        let mut client = Client::connect(place.addr());
        client.send(chat("x-mock: interval=20ms,tokens=20\r\n", true));
        client.through(b"\n\n").expect("the new one has accepted it");
        if late {
            next.behind("does not answer: this one serves beside it");
        }
        peer.says(&Message::Refused { why: "I go on".to_owned() });
        client.through(b"data: [DONE]\n\n").expect("it ends well");
        next.behind("goes on");
        assert_eq!(next.child.wait().unwrap().code(), Some(i32::from(!late)));
        TcpStream::connect(place.addr()).expect("the old one listens");
    }
}

#[test]
fn sockets_that_are_none_and_state_that_is_none_are_told() {
    let place = Place::new();
    let old = Old::new(&place);
    let mut next = Run::start("handover-none", &place.text());
    let peer = old.accepts();
    assert!(matches!(peer.hears().0, Message::Hello { .. }));
    let passed = Passed { role: Role::Listener, index: 0, address: String::new() };
    let message = |sockets| sockets_of(sockets);
    // More are told than come.
    peer.says(&message(vec![passed.clone()]));
    peer.is_refused("sockets");
    assert_eq!(next.child.wait().unwrap().code(), Some(1));
    // No socket at all, but a file.
    let mut next = Run::start("handover-none-2", &place.text());
    let peer = old.accepts();
    assert!(matches!(peer.hears().0, Message::Hello { .. }));
    peer.says_with(&message(vec![passed]), &[file_of(b"x").unwrap()]);
    peer.is_refused("");
    assert_eq!(next.child.wait().unwrap().code(), Some(1));
    TcpStream::connect(place.addr()).expect("the old one was left alone");
}

#[test]
fn state_that_cannot_be_taken_holds_no_client_up() {
    for state in [&b"nonsense"[..], b"", b"{}"] {
        let place =
            Place { listener: "ratelimit = { per_second = 1000, burst = 1000 }\n", ..Place::new() };
        let old = Old::new(&place);
        let next = Run::start("handover-nonsense", &place.text());
        let peer = old.ready(&place);
        peer.says_with(&Message::Stopped, &[file_of(state).unwrap()]);
        assert_eq!(peer.hears().0, Message::Taken);
        peer.says(&Message::Draining);
        next.behind("models     m");
        // The old one lives on, and says no more.
        let begun = Instant::now();
        place.asks();
        assert!(begun.elapsed() < STEP, "{:?}", begun.elapsed());
        drop(peer);
    }
}

/// How often the thread of a process that waits for signals has begun to wait; `None` = it runs.
fn turns_of_signals(run: &Run) -> Option<u64> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", run.child.id())).unwrap();
    let read = |name: &str, task: &std::fs::DirEntry| {
        std::fs::read_to_string(task.path().join(name)).unwrap_or_default()
    };
    let task = tasks.flatten().find(|task| read("comm", task).trim() == "signals").unwrap();
    let status = read("status", &task);
    let value =
        |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim();
    let waits = value("State:").starts_with('S');
    waits.then(|| value("voluntary_ctxt_switches:").parse().unwrap())
}

#[test]
fn a_process_that_is_told_to_end_while_it_starts_takes_nothing() {
    let place = Place::new();
    let old = Old::new(&place);
    let mut next = Run::start("handover-cancelled", &place.text());
    let peer = old.greeted();
    wait_until("its thread for signals waits", || turns_of_signals(&next).is_some());
    let turns = turns_of_signals(&next);
    next.signal("INT");
    wait_until("it has taken one, and waits again", || turns_of_signals(&next) > turns);
    old.gives(&peer, &place);
    peer.is_refused("told to end before it served");
    assert_eq!(next.child.wait().unwrap().code(), Some(1));
    TcpStream::connect(place.addr()).expect("the old one was left alone");
}

#[test]
fn another_instance_with_the_same_admin_address_is_told_so() {
    let admin = format!("[admin]\nbind = \"127.0.0.1:{}\"\n", free_port());
    let [one, other] = [(); 2].map(|()| Place { rest: admin.clone(), ..Place::new() });
    let serving = one.start("handover-one-of-two");
    let mut second = Run::start("handover-two-of-two", &other.text());
    second.behind("no listener in common");
    assert_eq!(second.child.wait().unwrap().code(), Some(1));
    one.is_still_handed_over("handover-one-of-two-2", serving);
}

#[test]
fn what_is_taken_over_by_nobody_is_told() {
    let mut place = Place::new();
    let serving = place.start("handover-unclaimed");
    let (kept, gone) = (place.port, free_port());
    let second =
        format!("[[listener]]\nname = \"b\"\nbind = \"127.0.0.1:{gone}\"\nauth = \"none\"\n");
    place.rest = second;
    let both = Run::start("handover-unclaimed-2", &place.text());
    both.behind("took over  from process ");
    place.rest.clear();
    let last = Run::start("handover-unclaimed-3", &place.text());
    last.behind(&format!("no address of the config: 127.0.0.1:{gone}"));
    assert_eq!(kept, place.port);
    place.asks();
    drop((serving, both));
}

#[test]
fn one_that_drains_is_not_asked() {
    let place = Place::new();
    let serving = place.start("handover-drains");
    let mut client = Client::connect(place.addr());
    client.send(chat("x-mock: interval=50ms,tokens=60\r\n", true));
    client.through(b"\n\n").expect("it has begun");
    serving.signal("TERM");
    serving.behind("SIGTERM: draining");
    let next = Run::start("handover-drains-2", &place.text());
    next.behind("models     m");
    assert!(!next.lines().iter().any(|line| line.contains("took over")), "{:?}", next.lines());
    place.asks();
    client.through(b"data: [DONE]\n\n").expect("it ends well");
}
