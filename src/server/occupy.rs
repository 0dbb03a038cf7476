//! How a server that is built comes to its listening sockets: from a process that serves, from the
//! service manager, or by binding them.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use super::handover::successor::{Calls, Given, NotGiven, Outcome, Session, ask};
use super::handover::{self, Meeting, STEP, addresses_of};
use super::running::Server;
use crate::base::listener_id::ListenerId;
use crate::base::units::counted;
use crate::config::{Bind, Config};
use crate::control::admin::AdminListener;
use crate::net::handover_socket::Name;
use crate::net::listener_set::Change;
use crate::net::mailbox::Message;

/// How long an address may stay taken: a process that ends still has it for a moment.
const TAKEN_MAX: Duration = Duration::from_secs(2);
/// Time between two tries.
const PAUSE: Duration = Duration::from_millis(50);
/// Time between two looks at the queues while the process before hangs.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// What a new process asks itself before it takes a client's request.
const TO_ITSELF: &[u8] = b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\n\
    user-agent: tokenring-handover\r\nconnection: close\r\n\r\n";

/// The other processes of this machine.
pub struct Others {
    /// Where one that serves is found.
    pub meeting: Meeting,
    /// Listening sockets of the service manager, each with its name.
    pub passed: Vec<(String, OwnedFd)>,
    /// Tells the edits of the admin API that were read (`Overlay::digest`).
    pub edits: String,
    /// Whether this process has been told to end meanwhile.
    pub cancelled: Box<dyn Fn() -> bool>,
    /// Told why, if this process is to leave after it has begun to serve.
    pub leave: Arc<dyn Fn(String) + Send + Sync>,
}

/// What came of it.
pub(super) struct Occupied {
    /// The operator's interface, not yet open.
    pub(super) admin: Option<AdminListener>,
    /// The process from which it took over.
    pub(super) took_over: Option<String>,
    /// Lines for the operator.
    pub(super) warnings: Vec<String>,
}

/// Has a server listen on all addresses of its config.
///
/// Errors: an address cannot be had, or a process that serves goes on by itself; whatever this
/// server has accepted by then is served to its end.
pub(super) fn occupy(
    server: &mut Server,
    config: &Config,
    others: Option<Others>,
) -> Result<Occupied, String> {
    let Some(Others { meeting, passed, edits, cancelled, leave }) = others else {
        let bound = bind_all(server, config, Vec::new());
        let (change, admin) = bound.map_err(|error| error.to_string())?;
        server.listeners.begin(change).map_err(|error| error.to_string())?;
        return Ok(Occupied { admin, took_over: None, warnings: Vec::new() });
    };
    let mut passed_admin = Vec::new();
    let names: Vec<String> = passed.iter().map(|(name, _)| name.clone()).collect();
    for (index, (name, socket)) in passed.into_iter().enumerate() {
        let told = |error| format!("socket {name:?} of the service manager: {error}");
        match is_of_admin(config, &socket) {
            true => passed_admin.push(socket),
            false => server.listeners.adopt(index, socket).map_err(told)?,
        }
    }
    let mut warnings = Vec::new();
    let hello = Hello {
        names: meeting.names(&addresses_of(config)),
        message: handover::message::Message::Hello {
            program: env!("CARGO_PKG_VERSION").to_owned(),
            cores: server.shared.mailboxes.len(),
            edits,
        },
        cancelled,
    };
    let (change, admin, given) = find_sockets(server, config, &hello, passed_admin, &mut warnings)?;
    let unclaimed: Vec<String> =
        server.listeners.unclaimed().iter().map(ToString::to_string).collect();
    if !unclaimed.is_empty() {
        let whose = match &given {
            Some((session, _)) => session.name(),
            None => format!("the service manager ({})", names.join(", ")),
        };
        let unclaimed = unclaimed.join(", ");
        warnings.push(format!(
            "no address of the config: {unclaimed} of {whose}; nobody listens there now"
        ));
    }
    let Some((session, edits_lost)) = given else {
        server.listeners.begin(change).map_err(|error| error.to_string())?;
        return Ok(Occupied { admin, took_over: None, warnings });
    };
    if edits_lost {
        warnings.push(format!(
            "edits of the admin API were in the memory of {} alone and are lost: admin.persist keeps them",
            session.name()
        ));
    }
    let took_over = take_over(server, session, change, leave, &mut warnings)?;
    for (address, count) in server.listeners.shared_ports() {
        let sockets = counted(count, "socket");
        warnings.push(format!(
            "{sockets} of another program on {address}: it gets a part of the connections, which may be lost"
        ));
    }
    Ok(Occupied { admin, took_over: Some(took_over), warnings })
}

/// How another process is asked.
struct Hello {
    names: Vec<Name>,
    message: handover::message::Message,
    cancelled: Box<dyn Fn() -> bool>,
}

/// Addresses, the operator's interface, and the process before with whether edits are lost with it.
type Found = (Change, Option<AdminListener>, Option<(Session, bool)>);

/// Takes the sockets of a process that serves, or binds; tries again while either is in the way for a
/// moment.
fn find_sockets(
    server: &Server,
    config: &Config,
    hello: &Hello,
    passed_admin: Vec<OwnedFd>,
    warnings: &mut Vec<String>,
) -> Result<Found, String> {
    let begun = Instant::now();
    let is_over = |most: Duration| begun.elapsed() >= most;
    loop {
        if (hello.cancelled)() {
            return Err("told to end before it served".to_owned());
        }
        let given = match ask(&hello.names, &hello.message, warnings) {
            Ok(given) => given,
            // A reload that is under way there may take as long.
            Err(NotGiven { again: true, .. }) if !is_over(2 * STEP) => {
                std::thread::sleep(PAUSE);
                continue;
            }
            Err(NotGiven { why, .. }) => return Err(why),
        };
        if let Some(given) = given {
            return take_given(server, config, given, &hello.cancelled);
        }
        let own = passed_admin.iter().map(OwnedFd::try_clone).collect::<io::Result<Vec<_>>>();
        match own.and_then(|own| bind_all(server, config, own)) {
            Ok((change, admin)) => return Ok((change, admin, None)),
            Err(error) if error.kind() != io::ErrorKind::AddrInUse || is_over(TAKEN_MAX) => {
                return Err(error.to_string());
            }
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}

type Bound = (Change, Option<AdminListener>);

fn bind_all(server: &Server, config: &Config, admin: Vec<OwnedFd>) -> io::Result<Bound> {
    // First what may fail without a trace.
    let admin = bind_admin(config, admin)?;
    Ok((server.listeners.bind()?, admin))
}

fn bind_admin(config: &Config, adopted: Vec<OwnedFd>) -> io::Result<Option<AdminListener>> {
    config.admin.as_ref().map(|admin| AdminListener::bind(admin, adopted)).transpose()
}

/// Whether a socket is on the address of the operator's interface.
fn is_of_admin(config: &Config, socket: &OwnedFd) -> bool {
    let address = socket2::SockRef::from(socket).local_addr().ok();
    match (config.admin.as_ref().map(|admin| &admin.bind), address) {
        (Some(Bind::Tcp(wanted)), Some(address)) => address.as_socket() == Some(*wanted),
        (Some(Bind::Unix(path)), Some(address)) => address.as_pathname() == Some(path),
        _ => false,
    }
}

/// Binds what the process before does not have, and proves that this one can serve.
fn take_given(
    server: &Server,
    config: &Config,
    given: Given,
    cancelled: &dyn Fn() -> bool,
) -> Result<Found, String> {
    let Given { listeners, admin, edits_lost, session } = given;
    let adopted = || -> Result<Bound, String> {
        for (index, socket) in listeners {
            server.listeners.adopt(index, socket).map_err(|error| error.to_string())?;
        }
        let of_theirs = server.listeners.unclaimed().len();
        let bound = bind_all(server, config, admin).map_err(|error| error.to_string())?;
        if of_theirs > 0 && server.listeners.unclaimed().len() == of_theirs {
            return Err("it has another one's admin address, and no listener in common: \
                        that is another instance, which needs an address of its own"
                .to_owned());
        }
        serve_itself(server, config)?;
        match cancelled() {
            true => Err("told to end before it served".to_owned()),
            false => Ok(bound),
        }
    };
    match adopted() {
        Ok((change, admin)) => Ok((change, admin, Some((session, edits_lost)))),
        Err(why) => {
            let told = format!("{}: {why}", session.name());
            session.give_up(&why);
            Err(told)
        }
    }
}

/// Serves one request to itself.
fn serve_itself(server: &Server, config: &Config) -> Result<(), String> {
    // By a listener without TLS; where there is none, each core has said that its loop runs.
    let plain = config.listeners.iter().find(|listener| listener.tls.is_none());
    let Some(listener) = plain else { return Ok(()) };
    let failed = |error: io::Error| format!("this process cannot serve a request: {error}");
    let (mut ours, theirs) = UnixStream::pair().map_err(failed)?;
    ours.set_read_timeout(Some(STEP / 2)).map_err(failed)?;
    server.shared.count_connection(0, 1);
    let listener = ListenerId::of(&listener.name);
    let message = Message::Connection { listener, fd: theirs.into(), peer: None };
    if server.shared.mailboxes[0].send(message).is_err() {
        return Err("this process cannot serve a request: its first core takes none".to_owned());
    }
    ours.write_all(TO_ITSELF).map_err(failed)?;
    let mut answer = Vec::new();
    ours.take(64 << 10).read_to_end(&mut answer).map_err(failed)?;
    match answer.starts_with(b"HTTP/1.1 ") {
        true => Ok(()),
        false => Err("this process cannot serve a request: no answer".to_owned()),
    }
}

/// Begins to serve beside the process before, and takes over from it.
///
/// Shape: the process before, for people.
/// Errors: it goes on by itself; what was accepted here is served to its end.
fn take_over(
    server: &mut Server,
    session: Session,
    change: Change,
    leave: Arc<dyn Fn(String) + Send + Sync>,
    warnings: &mut Vec<String>,
) -> Result<String, String> {
    let name = session.name();
    // Before the first client can come.
    let taker = Arc::new(server.taker());
    if let Err(error) = server.listeners.begin(change) {
        session.give_up(&error.to_string());
        server.leave();
        return Err(error.to_string());
    }
    let (takes, ends, goes) = (taker.clone(), taker.clone(), leave.clone());
    let of = name.clone();
    let calls = Calls {
        take: Box::new(move |state| takes.take(state).inspect_err(|_| takes.go_without())),
        ended: Box::new(move || ends.end()),
        went_on: Box::new(move |why| goes(format!("{of} goes on: {why}"))),
    };
    let outcome = session.conclude(calls).map_err(|error| error.to_string())?;
    match outcome.recv_timeout(STEP) {
        Ok(Outcome::Alone(taken)) => {
            server.shared.handovers.done.fetch_add(1, Ordering::Relaxed);
            if let Err(why) = server.listeners.widen() {
                warnings.push(format!("handover: {why}"));
            }
            Ok(if taken.is_empty() { name } else { format!("{name}: {taken}") })
        }
        Ok(Outcome::WentOn(why)) => {
            server.leave();
            Err(format!("{name} goes on, and this one leaves: {why}"))
        }
        Ok(Outcome::Died) => {
            server.shared.handovers.done.fetch_add(1, Ordering::Relaxed);
            server.listeners.own_files();
            // The process serves on with what it could take up again.
            let _ = server.listeners.look_at_queues();
            warnings.push(format!("{name} ended in the handover: what it had counted is lost"));
            Ok(name)
        }
        Err(mpsc::RecvTimeoutError::Timeout) => {
            // Clients of limited keys have waited long enough.
            taker.give_up();
            warnings.push(format!(
                "{name} does not answer: this one serves beside it, and takes over when it does"
            ));
            wait_longer(server, outcome, name.clone(), leave);
            Ok(name)
        }
        Err(mpsc::RecvTimeoutError::Disconnected) => {
            server.leave();
            Err(format!("{name}: the handover has failed here"))
        }
    }
}

/// Waits for the process before without limit: takes over, or leaves if it goes on by itself.
fn wait_longer(
    server: &Server,
    outcome: mpsc::Receiver<Outcome>,
    name: String,
    leave: Arc<dyn Fn(String) + Send + Sync>,
) {
    let (shared, listeners) = (server.shared.clone(), server.listeners.clone());
    let thread = std::thread::Builder::new().name("handover-late".to_owned());
    // If it cannot start, both serve.
    let _ = thread.spawn(move || {
        loop {
            // The next look tries again.
            let _ = listeners.look_at_queues();
            match outcome.recv_timeout(LOOK_AGAIN) {
                Err(mpsc::RecvTimeoutError::Timeout) if shared.draining.load(Ordering::Relaxed) => {
                    return;
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Ok(Outcome::WentOn(why)) => return leave(format!("{name} goes on: {why}")),
                Ok(Outcome::Alone(_) | Outcome::Died) => {
                    shared.handovers.done.fetch_add(1, Ordering::Relaxed);
                    // Cores that share a queue serve all the same.
                    let _ = listeners.widen();
                    let _ = listeners.look_at_queues();
                    return;
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    return leave(format!("{name}: the handover has failed here"));
                }
            }
        }
    });
}
