//! How a server that is built comes to its listening sockets: from a process that serves, from the
//! service manager, or by binding them.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use super::handover::successor::{Given, NotGiven, Outcome, Session, ask};
use super::handover::{Meeting, STEP, addresses_of};
use super::running::Server;
use crate::base::listener_id::ListenerId;
use crate::base::units::counted;
use crate::config::{Bind, Config};
use crate::control::admin::AdminListener;
use crate::net::listener_set::Change;
use crate::net::mailbox::Message;

/// How long an address may stay taken: a process that ends still has it for a moment.
const TAKEN_MAX: Duration = Duration::from_secs(2);
/// Time between two tries.
const PAUSE: Duration = Duration::from_millis(50);
/// What a new process asks itself before it takes a client's request.
const TO_ITSELF: &[u8] = b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\n\
    user-agent: tokenring-handover\r\nconnection: close\r\n\r\n";

/// The other processes of this machine.
pub struct Others {
    /// Where one that serves is found.
    pub meeting: Meeting,
    /// Listening sockets of the service manager, each with its name.
    pub passed: Vec<(String, OwnedFd)>,
    /// Told why, if this process is to leave after it has begun to serve.
    pub leave: Box<dyn Fn(String) + Send>,
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
    let Some(Others { meeting, passed, leave }) = others else {
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
    let by = Instant::now() + TAKEN_MAX;
    let names_of_others = meeting.names(&addresses_of(config));
    let cores = server.shared.mailboxes.len();
    let (change, admin, session) = loop {
        let given = match ask(&names_of_others, cores) {
            Ok(given) => given,
            Err(NotGiven { again: true, .. }) if Instant::now() < by => {
                std::thread::sleep(PAUSE);
                continue;
            }
            Err(NotGiven { why, .. }) => return Err(why),
        };
        if let Some(given) = given {
            break take_given(server, config, given)?;
        }
        let own = passed_admin.iter().map(OwnedFd::try_clone).collect::<io::Result<Vec<_>>>();
        match own.and_then(|own| bind_all(server, config, own)) {
            Ok((change, admin)) => break (change, admin, None),
            Err(error) if error.kind() != io::ErrorKind::AddrInUse || Instant::now() >= by => {
                return Err(error.to_string());
            }
            Err(_) => std::thread::sleep(PAUSE),
        }
    };
    let mut warnings = Vec::new();
    let unclaimed: Vec<String> =
        server.listeners.unclaimed().iter().map(ToString::to_string).collect();
    if !unclaimed.is_empty() && session.is_none() {
        warnings.push(format!(
            "sockets of the service manager on {} (of {}) are on no address of the config: closed",
            unclaimed.join(", "),
            names.join(", ")
        ));
    }
    match session {
        None => {
            server.listeners.begin(change).map_err(|error| error.to_string())?;
            Ok(Occupied { admin, took_over: None, warnings })
        }
        Some(session) => {
            let took_over = take_over(server, session, change, leave, &mut warnings)?;
            for (address, count) in server.listeners.shared_ports() {
                warnings.push(format!(
                    "{} of another program on {address}: it gets a part of the connections, which may be lost",
                    counted(count, "socket")
                ));
            }
            Ok(Occupied { admin, took_over: Some(took_over), warnings })
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
) -> Result<(Change, Option<AdminListener>, Option<Session>), String> {
    let Given { listeners, admin, session } = given;
    let adopted = || -> Result<Bound, String> {
        for (index, socket) in listeners {
            server.listeners.adopt(index, socket).map_err(|error| error.to_string())?;
        }
        let bound = bind_all(server, config, admin).map_err(|error| error.to_string())?;
        serve_itself(server, config)?;
        Ok(bound)
    };
    match adopted() {
        Ok((change, admin)) => Ok((change, admin, Some(session))),
        Err(why) => {
            session.give_up(&why);
            Err(why)
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
    leave: Box<dyn Fn(String) + Send>,
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
    let (takes, ends) = (taker.clone(), taker.clone());
    let take = Box::new(move |state: &[u8]| takes.take(state));
    let outcome =
        session.conclude(take, Box::new(move || ends.end())).map_err(|error| error.to_string())?;
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
            warnings.push(format!("{name} ended in the handover: what it had counted is lost"));
            Ok(name)
        }
        Err(_) => {
            // Clients of limited keys have waited long enough.
            taker.give_up();
            warnings.push(format!(
                "{name} does not answer: this one serves beside it, and takes over when it does"
            ));
            wait_longer(server, outcome, name.clone(), leave);
            Ok(name)
        }
    }
}

/// Leaves if the process before comes back and goes on by itself.
fn wait_longer(
    server: &Server,
    outcome: mpsc::Receiver<Outcome>,
    name: String,
    leave: Box<dyn Fn(String) + Send>,
) {
    let (shared, listeners) = (server.shared.clone(), server.listeners.clone());
    let thread = std::thread::Builder::new().name("handover-late".to_owned());
    // If it cannot start, both serve.
    let _ = thread.spawn(move || match outcome.recv() {
        Ok(Outcome::WentOn(why)) => leave(format!("{name} goes on: {why}")),
        Ok(Outcome::Alone(_) | Outcome::Died) => {
            shared.handovers.done.fetch_add(1, Ordering::Relaxed);
            listeners.own_files();
        }
        // The process before has ended, and the thread that listened to it too.
        Err(_) => {}
    });
}
