//! The old side of a handover: it lets a next process find it, hands over, and goes back to work
//! when that process does not carry it through.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::message::{Message, Passed, Role};
use super::{Heard, Meeting, STEP, hear, tell, tell_with};
use crate::control::admin_socket::AdminSocket;
use crate::control::socket_lock::{HeldSocketLock, Holder, SocketLock};
use crate::net::dial::Address;
use crate::net::handover_socket::{Channel, ControlSocket, FDS_MAX, file_of, wait_readable};
use crate::net::sys;
use crate::server::listeners::Listeners;

/// How often the addresses are looked at, which a reload may have changed.
const LOOK: Duration = Duration::from_millis(100);
/// How often what the last exchanges have counted is sent.
const LATER: Duration = Duration::from_millis(100);

/// Most processes that are listened to at a time.
const CONVERSATIONS_MAX: usize = 8;

/// What travels with the sockets.
pub trait Gift: Send {
    /// What has changed since it was last asked; empty = nothing. `last`: nothing comes after it.
    fn later(&mut self, last: bool) -> Vec<u8>;

    /// It stays with this process after all.
    fn keep(self: Box<Self>);
}

/// Writes the state of this process, which accepts no more.
pub type Give = Box<dyn Fn() -> (Box<dyn Gift>, Vec<u8>) + Send + Sync>;

/// What this process has to hand over.
pub struct Estate {
    /// Its listening sockets.
    pub listeners: Arc<Listeners>,
    /// The operator's interface.
    pub admin: AdminSocket,
    /// No reload and no other handover meanwhile.
    pub socket_lock: SocketLock,
    /// Counts a handover that was begun and not carried through.
    pub count_failed: Box<dyn Fn() + Send + Sync>,
    /// Writes its state.
    pub give: Give,
    /// What else it takes.
    pub hooks: EstateHooks,
}

/// Where a process is found, and what it does when another one comes.
pub struct EstateHooks {
    /// Where it can be found.
    pub meeting: Meeting,
    /// Told a line for the operator.
    pub say: Box<dyn Fn(&str) + Send + Sync>,
    /// Told the process that has taken over, and a line for the operator: this one is to drain.
    pub leave: Box<dyn Fn(i32, String) + Send + Sync>,
}

/// Lets the next process find this one, until it is dropped.
pub struct HandoverServer {
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl HandoverServer {
    /// Opens the sockets.
    ///
    /// Errors: no thread can be started.
    pub fn open(estate: Estate) -> std::io::Result<Self> {
        let end = Arc::new(AtomicBool::new(false));
        let until = end.clone();
        let thread = std::thread::Builder::new().name("doorkeeper".to_owned());
        let thread = thread.spawn(move || keep_sockets(&Arc::new(estate), &until))?;
        Ok(Self { end, thread: Some(thread) })
    }
}

impl Drop for HandoverServer {
    /// Closes the sockets; a process that has taken over is told the last numbers first.
    fn drop(&mut self) {
        self.end.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // A panic there has ended the handover; this process goes its own way.
            let _ = thread.join();
        }
    }
}

/// A conversation with another process.
struct Running {
    thread: JoinHandle<()>,
    /// The other process has taken over.
    handed: Arc<AtomicBool>,
    /// Dropped when this process ends.
    until: mpsc::Sender<()>,
}

/// All conversations; who says hello first is handed to, the others are refused.
#[derive(Default)]
struct Conversations(Vec<Running>);

impl Conversations {
    fn begin(&mut self, estate: &Arc<Estate>, channel: Channel) {
        self.0.retain(|one| !one.thread.is_finished());
        if self.0.len() >= CONVERSATIONS_MAX {
            return refuse(&channel, "too many processes ask");
        }
        let (until, ended) = mpsc::channel();
        let handed = Arc::new(AtomicBool::new(false));
        let (of, told) = (estate.clone(), handed.clone());
        let thread = std::thread::Builder::new().name("handover".to_owned());
        // If it cannot start, the other process sees the end of the connection.
        if let Ok(thread) = thread.spawn(move || hand_over(&of, &channel, &told, &ended)) {
            self.0.push(Running { thread, handed, until });
        }
    }

    fn have_handed(&self) -> bool {
        self.0.iter().any(|one| one.handed.load(Ordering::Acquire))
    }

    /// Waits for the one that has handed over: it tells the last numbers.
    fn end(self) {
        for Running { thread, handed, until } in self.0 {
            drop(until);
            if handed.load(Ordering::Acquire) {
                // A panic there has ended the conversation; the other process has what came.
                let _ = thread.join();
            }
        }
    }
}

fn keep_sockets(estate: &Arc<Estate>, end: &AtomicBool) {
    let (mut sockets, mut amiss_since) = (ControlSockets::default(), None);
    let mut complained = false;
    let mut conversations = Conversations::default();
    while !end.load(Ordering::Acquire) {
        if conversations.have_handed() {
            // Whoever comes now finds the next process.
            sockets = ControlSockets::default();
            std::thread::sleep(LOOK);
            continue;
        }
        match sockets.follow(estate) {
            Ok(()) => amiss_since = None,
            Err(why) => {
                let since = *amiss_since.get_or_insert_with(Instant::now);
                // A process that has just handed over still has its names for a moment.
                if since.elapsed() > STEP && !std::mem::replace(&mut complained, true) {
                    (estate.hooks.say)(&format!("no process can take over from this one: {why}"));
                }
            }
        }
        sockets.wait().into_iter().for_each(|channel| conversations.begin(estate, channel));
    }
    // After a handover there are none: a path is the next process's by then.
    sockets.0.iter().for_each(ControlSocket::remove_file);
    conversations.end();
}

/// The sockets by which this process is found.
#[derive(Default)]
struct ControlSockets(Vec<ControlSocket>);

impl ControlSockets {
    /// Has a socket for each address there is now.
    ///
    /// Errors: a name that another process has; the others are open.
    fn follow(&mut self, estate: &Estate) -> Result<(), String> {
        let listeners = estate.listeners.addresses().into_iter().map(|(_, address)| address);
        let admin = estate.admin.address();
        let addresses: Vec<Address> = listeners.chain(admin).collect();
        let names = estate.hooks.meeting.names(&addresses);
        self.0.retain(|socket| names.contains(&socket.name));
        let mut amiss = Ok(());
        for name in names {
            if !self.0.iter().any(|socket| socket.name == name) {
                match ControlSocket::open(name.clone()) {
                    Ok(socket) => self.0.push(socket),
                    Err(error) => amiss = Err(format!("{name}: {error}")),
                }
            }
        }
        amiss
    }

    /// Waits a little for processes that connect.
    fn wait(&self) -> Vec<Channel> {
        let all: Vec<BorrowedFd<'_>> = self.0.iter().map(AsFd::as_fd).collect();
        let ready = wait_readable(&all, LOOK);
        let ready = self.0.iter().zip(ready).filter(|(_, ready)| *ready);
        // Without descriptors the other one waits, and comes again.
        ready.filter_map(|(socket, _)| socket.accept().ok().flatten()).collect()
    }
}

fn refuse(channel: &Channel, why: &str) {
    // It finds out by the end of the connection otherwise.
    let _ = tell(channel, &Message::Refused { why: why.to_owned() });
}

/// One handover, from hello to the end of this process or back to work.
fn hand_over(estate: &Estate, channel: &Channel, handed: &AtomicBool, ended: &mpsc::Receiver<()>) {
    let pid = channel.peer.pid;
    let program = match greet(channel) {
        Ok(program) => program,
        Err(why) => return turn_away(estate, channel, &why),
    };
    let _held = match wait_lock(&estate.socket_lock) {
        Ok(held) => held,
        Err(why) => return give_up(estate, channel, why),
    };
    (estate.hooks.say)(&format!(
        "handover: process {pid} (tokenring {program}) asks for the sockets"
    ));
    if let Err(why) = send_sockets(estate, channel) {
        return give_up(estate, channel, &why);
    }
    match hear(channel, STEP) {
        Heard::Message(Message::Ready, _) => {}
        other => {
            give_up(estate, channel, &other.instead_of("ready"));
            // It may have been told of a connection that it did not accept: all are looked at.
            estate.listeners.pause();
            return resume(estate);
        }
    }
    estate.admin.pause();
    if let Err(amiss) = estate.listeners.pause().complete() {
        (estate.hooks.say)(&format!("handover: {amiss}"));
    }
    let (mut gift, state) = (estate.give)();
    if let Err(why) = agree(channel, &state) {
        gift.keep();
        resume(estate);
        return give_up(estate, channel, &why);
    }
    estate.listeners.leave_files();
    handed.store(true, Ordering::Release);
    (estate.hooks.leave)(pid, format!("handed over to process {pid} (tokenring {program})"));
    loop {
        let last = ended.recv_timeout(LATER) != Err(mpsc::RecvTimeoutError::Timeout);
        let state = gift.later(last);
        let told = match (state.is_empty(), file_of(&state)) {
            (true, _) if !last => Ok(()),
            (false, Ok(file)) => tell_with(channel, &Message::Later { last }, &[file]),
            _ => tell(channel, &Message::Later { last }),
        };
        if last || told.is_err() {
            return;
        }
    }
}

fn greet(channel: &Channel) -> Result<String, String> {
    let uid = channel.peer.uid;
    if uid != sys::user() {
        return Err(format!("it runs as user {uid}, this process as user {}", sys::user()));
    }
    match hear(channel, STEP) {
        Heard::Message(Message::Hello { program, .. }, _) => Ok(program),
        other => Err(other.instead_of("hello")),
    }
}

fn wait_lock(lock: &SocketLock) -> Result<HeldSocketLock, &'static str> {
    // Half a step, so that the other one still waits for the answer.
    let by = Instant::now() + STEP / 2;
    loop {
        match lock.take(Holder::Handover) {
            Ok(held) => return Ok(held),
            Err(Holder::Handover) => return Err("another handover is under way"),
            Err(Holder::Reload) if Instant::now() >= by => {
                return Err("a reload of the config is under way");
            }
            Err(Holder::Reload) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

fn send_sockets(estate: &Estate, channel: &Channel) -> Result<(), String> {
    let text = |error: std::io::Error| error.to_string();
    let mut all: Vec<(Passed, OwnedFd)> = Vec::new();
    for one in estate.listeners.export().map_err(text)? {
        let address = one.address.to_string();
        all.push((Passed { role: Role::Listener, index: one.index, address }, one.socket));
    }
    if let Some((address, socket)) = estate.admin.export().map_err(text)? {
        let address = address.to_string();
        all.push((Passed { role: Role::Admin, index: 0, address }, socket));
    }
    let program = env!("CARGO_PKG_VERSION").to_owned();
    loop {
        let rest = all.split_off(all.len().min(FDS_MAX));
        let (sockets, descriptors): (Vec<_>, Vec<_>) = all.into_iter().unzip();
        let more = !rest.is_empty();
        let message = Message::Sockets { program: program.clone(), sockets, more };
        tell_with(channel, &message, &descriptors).map_err(text)?;
        if !more {
            return Ok(());
        }
        all = rest;
    }
}

/// Tells that this process has stopped, and waits until the other one has taken over.
fn agree(channel: &Channel, state: &[u8]) -> Result<(), String> {
    let text = |error: std::io::Error| error.to_string();
    let file = file_of(state).map_err(text)?;
    tell_with(channel, &Message::Stopped, &[file]).map_err(text)?;
    match hear(channel, STEP) {
        Heard::Message(Message::Taken, _) => tell(channel, &Message::Draining).map_err(text),
        other => Err(other.instead_of("taken")),
    }
}

/// Accepts again on everything.
fn resume(estate: &Estate) {
    if let Err(why) = estate.listeners.resume() {
        (estate.hooks.say)(&format!(
            "handover: this process cannot accept again everywhere: {why}"
        ));
    }
    estate.admin.resume();
}

fn give_up(estate: &Estate, channel: &Channel, why: &str) {
    (estate.count_failed)();
    turn_away(estate, channel, why);
}

fn turn_away(estate: &Estate, channel: &Channel, why: &str) {
    let pid = channel.peer.pid;
    refuse(channel, why);
    (estate.hooks.say)(&format!(
        "handover: nothing was given to process {pid}, this one goes on: {why}"
    ));
}
