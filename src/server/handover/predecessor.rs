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
use crate::net::handover_socket::{
    Channel, ControlSocket, FDS_MAX, file_of, is_alive, wait_readable,
};
use crate::net::sys;
use crate::server::listeners::Listeners;

/// How often the addresses are looked at, which a reload may have changed.
const LOOK: Duration = Duration::from_millis(100);
/// How often what the last exchanges have counted is sent.
const LATER: Duration = Duration::from_millis(100);

/// How often and how many times the queues are looked at while a process that did not take over lives.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
const LOOKS_MAX: u32 = 60;
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
    /// Tells the edits of the admin API, and whether they are kept in a file.
    pub edits: Box<dyn Fn() -> (String, bool) + Send + Sync>,
    /// Whether this process is ending, and has nothing to hand over.
    pub draining: Box<dyn Fn() -> bool + Send + Sync>,
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
        if conversations.have_handed() || (estate.draining)() {
            // Whoever comes now finds the next process, or nobody.
            sockets
                .0
                .iter()
                .filter(|_| !conversations.have_handed())
                .for_each(|one| one.remove_file());
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
        let accept = |(socket, _): (&ControlSocket, bool)| match socket.accept() {
            Ok(channel) => channel,
            Err(_) => {
                // Without descriptors the other one waits; it is no reason to spin.
                std::thread::sleep(LOOK);
                None
            }
        };
        ready.filter_map(accept).collect()
    }
}

fn refuse(channel: &Channel, why: &str) {
    // It finds out by the end of the connection otherwise.
    let _ = tell(channel, &Message::Refused { why: why.to_owned() });
}

/// This process accepts no more; unless it hands over, it goes back to work when this is dropped.
struct Paused<'a> {
    estate: &'a Estate,
    gift: Option<Box<dyn Gift>>,
    handed: bool,
}

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        if !self.handed {
            if let Some(gift) = self.gift.take() {
                gift.keep();
            }
            resume(self.estate);
        }
    }
}

/// One handover, from hello to the end of this process or back to work.
fn hand_over(estate: &Estate, channel: &Channel, handed: &AtomicBool, ended: &mpsc::Receiver<()>) {
    let pid = channel.peer.pid;
    let (program, edits) = match greet(channel) {
        Ok(told) => told,
        Err(why) => return turn_away(estate, channel, &why),
    };
    let held = match wait_lock(&estate.socket_lock) {
        Ok(held) => held,
        Err(why) => return give_up(estate, channel, why),
    };
    (estate.hooks.say)(&format!(
        "handover: process {pid} (tokenring {program}) asks for the sockets"
    ));
    if let Err(why) = check(estate, &edits).and_then(|lost| send_sockets(estate, channel, lost)) {
        return give_up(estate, channel, &why);
    }
    match stop(estate, channel) {
        Ok(mut paused) => {
            paused.handed = true;
            let gift = paused.gift.take();
            estate.listeners.leave_files();
            estate.admin.close();
            handed.store(true, Ordering::Release);
            let told = format!("handed over to process {pid} (tokenring {program})");
            (estate.hooks.leave)(pid, told);
            gift.into_iter().for_each(|gift| tell_later(channel, gift, ended));
            drop(held);
        }
        Err(why) => {
            give_up(estate, channel, &why);
            drop(held);
            look_again(estate, pid);
        }
    }
}

/// Whether it may be given the sockets; then, whether edits of the admin API are lost with this one.
///
/// Errors: this process is ending, or was edited since the other one has read its config.
fn check(estate: &Estate, edits: &str) -> Result<bool, String> {
    if (estate.draining)() {
        return Err("it is ending".to_owned());
    }
    match (estate.edits)() {
        (own, _) if own == edits => Ok(false),
        (_, true) => Err("it was edited over the admin API meanwhile: start once more".to_owned()),
        (_, false) => Ok(true),
    }
}

/// Waits until the other one is ready, accepts no more, and agrees.
///
/// Errors: why the other one is not to take over; this process accepts again by then.
fn stop<'a>(estate: &'a Estate, channel: &Channel) -> Result<Paused<'a>, String> {
    let ready = match hear(channel, STEP) {
        Heard::Message(Message::Ready, _) => Ok(()),
        other => Err(other.instead_of("ready")),
    };
    let mut paused = Paused { estate, gift: None, handed: false };
    if ready.is_ok() {
        estate.admin.pause();
    }
    // Otherwise the other one may have been told of a connection that it did not accept: all queues
    // are looked at once.
    if let Err(amiss) = estate.listeners.pause().complete() {
        (estate.hooks.say)(&format!("handover: {amiss}"));
    }
    let agreed = ready.and_then(|()| {
        let (gift, state) = (estate.give)();
        paused.gift = Some(gift);
        agree(channel, &state)
    });
    // First the word, so that the other one does not wait while this one resumes.
    agreed.inspect_err(|why| refuse(channel, why))?;
    Ok(paused)
}

/// Sends what the last exchanges still count, until this process ends.
fn tell_later(channel: &Channel, mut gift: Box<dyn Gift>, ended: &mpsc::Receiver<()>) {
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

/// Looks at all queues now and then while the other process lives: one that was stopped is told of
/// connections that it does not accept.
fn look_again(estate: &Estate, pid: i32) {
    for _ in 0..LOOKS_MAX {
        std::thread::sleep(LOOK_AGAIN);
        if is_alive(pid) != Some(true) || (estate.draining)() {
            return;
        }
        let Ok(_held) = estate.socket_lock.take(Holder::Handover) else { return };
        if estate.listeners.look_at_queues().is_err() {
            return;
        }
    }
}

fn greet(channel: &Channel) -> Result<(String, String), String> {
    let uid = channel.peer.uid;
    if uid != sys::user() {
        return Err(format!("it runs as user {uid}, this process as user {}", sys::user()));
    }
    match hear(channel, STEP) {
        Heard::Message(Message::Hello { program, edits, .. }, _) => Ok((program, edits)),
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

fn send_sockets(estate: &Estate, channel: &Channel, edits_lost: bool) -> Result<(), String> {
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
        let message = Message::Sockets { program: program.clone(), sockets, more, edits_lost };
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
