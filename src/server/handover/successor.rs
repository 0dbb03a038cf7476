//! The new side of a handover: it asks the process that serves for its sockets, and takes over.

use std::os::fd::OwnedFd;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::message::{Message, Role};
use super::{Heard, STEP, hear, tell};
use crate::net::handover_socket::{Channel, Name, bytes_of, is_alive};
use crate::net::sys;

/// How long an ended process may take until the kernel says so: its sockets are closed first.
const DIES_WITHIN: Duration = Duration::from_secs(1);

/// What a process before has given.
pub struct Given {
    /// Listening sockets, each with its position among those of its address.
    pub listeners: Vec<(usize, OwnedFd)>,
    /// Sockets of the operator's interface.
    pub admin: Vec<OwnedFd>,
    /// It has edits of the admin API that are nowhere else.
    pub edits_lost: bool,
    /// The rest of the conversation.
    pub session: Session,
}

/// Why a process that serves has not given its sockets.
#[derive(Debug)]
pub struct NotGiven {
    /// For the operator.
    pub why: String,
    /// It said so itself, and may do so in a moment.
    pub again: bool,
}

/// Asks whoever is found by one of these names; `None` = nobody is there, or it has just ended.
///
/// Shape: `hello` is what this process says; lines for the operator go to `warnings`.
/// Errors: the process that serves is busy, hangs, or speaks another version.
pub fn ask(
    names: &[Name],
    hello: &Message,
    warnings: &mut Vec<String>,
) -> Result<Option<Given>, NotGiven> {
    for name in names {
        let channel = match Channel::connect(name) {
            Ok(Some(channel)) => channel,
            Ok(None) => continue,
            Err(error) => {
                let again = error.kind() == std::io::ErrorKind::WouldBlock;
                return Err(NotGiven { why: format!("handover at {name}: {error}"), again });
            }
        };
        if channel.peer.uid != sys::user() {
            // Anybody may have bound the name: it is no reason not to start.
            let uid = channel.peer.uid;
            let told =
                format!("handover: a process of user {uid} has the name {name}, and is left alone");
            if !warnings.contains(&told) {
                warnings.push(told);
            }
            continue;
        }
        return receive_sockets(channel, hello);
    }
    Ok(None)
}

fn receive_sockets(channel: Channel, hello: &Message) -> Result<Option<Given>, NotGiven> {
    let pid = channel.peer.pid;
    if tell(&channel, hello).is_err() {
        return Ok(None);
    }
    let (mut listeners, mut admin) = (Vec::new(), Vec::new());
    loop {
        let heard = hear(&channel, STEP);
        let (program, sockets, more, edits_lost, descriptors) = match heard {
            Heard::Message(
                Message::Sockets { program, sockets, more, edits_lost },
                descriptors,
            ) if sockets.len() == descriptors.len() => {
                (program, sockets, more, edits_lost, descriptors)
            }
            Heard::Ended => return Ok(None),
            other => {
                let again = matches!(other, Heard::Message(Message::Refused { .. }, _));
                let why = other.instead_of("sockets");
                // It is told if it listens; it has lost nothing.
                let _ = tell(&channel, &Message::Refused { why: why.clone() });
                let why = format!("process {pid} serves and gave no sockets: {why}");
                return Err(NotGiven { why, again });
            }
        };
        for (passed, socket) in sockets.iter().zip(descriptors) {
            match passed.role {
                Role::Listener => listeners.push((passed.index, socket)),
                Role::Admin => admin.push(socket),
            }
        }
        if !more {
            let session = Session { channel, program };
            return Ok(Some(Given { listeners, admin, edits_lost, session }));
        }
    }
}

/// How a handover came out, for the new process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It serves alone; what it took over, for the operator.
    Alone(String),
    /// The process before has ended meanwhile; its state is lost.
    Died,
    /// The process before goes on by itself, for this reason: this one is to leave.
    WentOn(String),
}

/// A conversation with the process before, which has given its sockets.
pub struct Session {
    channel: Channel,
    program: String,
}

/// Takes a message with state. Returns a line for the operator. Errors: why it cannot be taken.
pub type Take = Box<dyn FnMut(&[u8]) -> Result<String, String> + Send>;

/// What the thread of a handover calls.
pub struct Calls {
    /// Takes what the process before has sent: its state, then what changed since.
    pub take: Take,
    /// Nothing comes from the process before any more.
    pub ended: Box<dyn FnOnce() + Send>,
    /// It goes on by itself after all: this one is to leave.
    pub went_on: Box<dyn Fn(String) + Send>,
}

impl Session {
    /// The process before, for people.
    #[must_use]
    pub fn name(&self) -> String {
        format!("process {} (tokenring {})", self.channel.peer.pid, self.program)
    }

    /// Gives up: the process before goes on as if nothing had been.
    pub fn give_up(self, why: &str) {
        // It finds out by the end of the connection otherwise.
        let _ = tell(&self.channel, &Message::Refused { why: why.to_owned() });
    }

    /// Says that this process accepts on all sockets, and carries the handover through on a thread
    /// of its own.
    ///
    /// Shape: the outcome comes through the channel; it may be long in coming if the process before
    /// hangs.
    pub fn conclude(self, calls: Calls) -> std::io::Result<mpsc::Receiver<Outcome>> {
        let (outcome, told) = mpsc::channel();
        let thread = std::thread::Builder::new().name("handover".to_owned());
        thread.spawn(move || self.run(calls, &outcome))?;
        Ok(told)
    }

    fn run(self, mut calls: Calls, told: &mpsc::Sender<Outcome>) {
        let outcome = match tell(&self.channel, &Message::Ready) {
            Ok(()) => self.take_over(&mut calls),
            Err(_) => self.lost(),
        };
        let follows = matches!(outcome, Outcome::Alone(_));
        // Whoever started this may have given up meanwhile.
        let _ = told.send(outcome);
        if follows {
            self.follow(&mut calls);
        }
        (calls.ended)();
    }

    /// Takes what changes until the process before has ended.
    fn follow(&self, calls: &mut Calls) {
        loop {
            match hear(&self.channel, STEP) {
                Heard::Message(Message::Later { last }, files) => {
                    for file in files {
                        // What cannot be read is what was counted in its last moments.
                        let _ = bytes_of(file).map(|bytes| (calls.take)(&bytes));
                    }
                    if last {
                        return;
                    }
                }
                // It was stopped, has gone back to work, and the word for it came late.
                Heard::Message(Message::Refused { why }, _) => return (calls.went_on)(why),
                Heard::Message(Message::Draining, _) | Heard::Silent => {}
                _ => return,
            }
        }
    }

    fn take_over(&self, calls: &mut Calls) -> Outcome {
        let file = loop {
            match hear(&self.channel, STEP) {
                // However long it hangs: it stops accepting as soon as it runs again.
                Heard::Silent => {}
                Heard::Message(Message::Stopped, files) => break files.into_iter().next(),
                Heard::Message(Message::Refused { why }, _) => return Outcome::WentOn(why),
                Heard::Ended => return self.lost(),
                other => return Outcome::WentOn(other.instead_of("stopped")),
            }
        };
        // State that cannot be read is taken as none: whoever waits for it must be told.
        let bytes = file.and_then(|file| bytes_of(file).ok()).unwrap_or_default();
        let taken = match (calls.take)(&bytes) {
            Ok(taken) => taken,
            Err(why) => format!("its state could not be taken: {why}"),
        };
        if tell(&self.channel, &Message::Taken).is_err() {
            return self.lost();
        }
        match hear(&self.channel, STEP) {
            Heard::Message(Message::Draining, _) => Outcome::Alone(taken),
            Heard::Message(Message::Refused { why }, _) => Outcome::WentOn(why),
            Heard::Ended => self.lost(),
            // It has been told; it agrees as soon as it runs again.
            _ => Outcome::Alone(taken),
        }
    }

    /// The connection has ended without a word.
    fn lost(&self) -> Outcome {
        let by = Instant::now() + DIES_WITHIN;
        loop {
            // What is still to be read is a refusal.
            match hear(&self.channel, Duration::ZERO) {
                Heard::Message(Message::Refused { why }, _) => return Outcome::WentOn(why),
                Heard::Message(..) => continue,
                _ => {}
            }
            match is_alive(self.channel.peer.pid) {
                Some(true) if Instant::now() < by => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Some(true) => return Outcome::WentOn("it has closed the connection".to_owned()),
                // Of another PID namespace: one that goes on says so before it closes.
                Some(false) | None => return Outcome::Died,
            }
        }
    }
}
