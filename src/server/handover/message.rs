//! What two processes say to each other in a handover, as one JSON object a message.
//!
//! An old and a new version must be able to talk: fields that are not known are skipped, and a kind
//! that is not known is refused in words. Pure: descriptors travel beside the bytes.

use serde_json::{Map, Value, json};

/// The version of the conversation; another one is refused.
pub const VERSION: u64 = 1;

/// What a listening socket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Clients come by it.
    Listener,
    /// The operator's interface.
    Admin,
}

/// A listening socket whose descriptor travels beside the message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passed {
    /// What it is for.
    pub role: Role,
    /// Its position among the sockets of its address.
    pub index: usize,
    /// Its address, for people.
    pub address: String,
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// New: asks for the listening sockets.
    Hello {
        /// Its release, for people.
        program: String,
        /// How many cores it has.
        cores: usize,
        /// Tells the edits of the admin API that it has read (`Overlay::digest`).
        edits: String,
    },
    /// Old: listening sockets, in the order of the descriptors.
    Sockets {
        /// Its release, for people.
        program: String,
        /// The sockets.
        sockets: Vec<Passed>,
        /// Another such message follows.
        more: bool,
        /// It has edits of the admin API in its memory alone, which end with it.
        edits_lost: bool,
    },
    /// New: accepts on all that it wants.
    Ready,
    /// Old: accepts no more; its state is beside.
    Stopped,
    /// New: has taken the state, and serves alone from now on.
    Taken,
    /// Old: agrees, and ends when its exchanges have.
    Draining,
    /// Old: what has changed since, beside; `last` = it ends now.
    Later {
        /// Nothing comes after it.
        last: bool,
    },
    /// Either: goes no further; the other goes on by itself.
    Refused {
        /// Why, for people.
        why: String,
    },
}

impl Message {
    /// Writes it.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut object = match self {
            Message::Hello { program, cores, edits } => {
                json!({ "program": program, "cores": cores, "edits": edits })
            }
            Message::Sockets { program, sockets, more, edits_lost } => {
                let sockets: Vec<Value> = sockets.iter().map(write_passed).collect();
                let (program, lost) = (program, edits_lost);
                json!({ "program": program, "sockets": sockets, "more": more, "edits_lost": lost })
            }
            Message::Later { last } => json!({ "last": last }),
            Message::Refused { why } => json!({ "why": why }),
            Message::Ready | Message::Stopped | Message::Taken | Message::Draining => json!({}),
        };
        object["kind"] = json!(self.kind());
        object["tokenring"] = json!(VERSION);
        object.to_string().into_bytes()
    }

    /// Reads one.
    ///
    /// Errors: it is none, of another version, or of a kind that is not known.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let object: Value =
            serde_json::from_slice(bytes).map_err(|_| "it is no JSON".to_owned())?;
        let object = object.as_object().ok_or("it is no object")?;
        match object.get("tokenring").and_then(Value::as_u64) {
            Some(VERSION) => {}
            Some(other) => {
                return Err(format!("it speaks version {other} of the handover, not {VERSION}"));
            }
            None => return Err("it is none of a handover".to_owned()),
        }
        let text = |name: &str| {
            let text = object.get(name).and_then(Value::as_str).unwrap_or_default();
            printable(text)
        };
        let flag = |name: &str| object.get(name).and_then(Value::as_bool).unwrap_or_default();
        Ok(match object.get("kind").and_then(Value::as_str).unwrap_or_default() {
            "hello" => {
                let cores = object.get("cores").and_then(Value::as_u64).unwrap_or_default();
                Message::Hello {
                    program: text("program"),
                    cores: usize::try_from(cores).unwrap_or(usize::MAX),
                    edits: text("edits"),
                }
            }
            "sockets" => {
                let sockets = object.get("sockets").and_then(Value::as_array);
                let sockets = sockets.ok_or("it names no sockets")?;
                let sockets = sockets.iter().filter_map(Value::as_object).map(read_passed);
                Message::Sockets {
                    program: text("program"),
                    sockets: sockets.collect::<Result<_, _>>()?,
                    more: flag("more"),
                    edits_lost: flag("edits_lost"),
                }
            }
            "ready" => Message::Ready,
            "stopped" => Message::Stopped,
            "taken" => Message::Taken,
            "draining" => Message::Draining,
            "later" => Message::Later { last: flag("last") },
            "refused" => Message::Refused { why: text("why") },
            other => return Err(format!("its kind {:?} is not known", printable(other))),
        })
    }

    /// What it is called.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Message::Hello { .. } => "hello",
            Message::Sockets { .. } => "sockets",
            Message::Ready => "ready",
            Message::Stopped => "stopped",
            Message::Taken => "taken",
            Message::Draining => "draining",
            Message::Later { .. } => "later",
            Message::Refused { .. } => "refused",
        }
    }
}

fn write_passed(passed: &Passed) -> Value {
    let role = match passed.role {
        Role::Listener => "listener",
        Role::Admin => "admin",
    };
    json!({ "role": role, "index": passed.index, "address": passed.address })
}

fn read_passed(object: &Map<String, Value>) -> Result<Passed, String> {
    let role = match object.get("role").and_then(Value::as_str) {
        Some("listener") => Role::Listener,
        Some("admin") => Role::Admin,
        // Its descriptor is closed unused, but it cannot be left out of the order.
        _ => return Err("a socket is for something that is not known".to_owned()),
    };
    let index = object.get("index").and_then(Value::as_u64).unwrap_or_default();
    let address = object.get("address").and_then(Value::as_str).unwrap_or_default();
    let index = usize::try_from(index).unwrap_or_default();
    Ok(Passed { role, index, address: printable(address) })
}

/// What may stand in a line for the operator: no control characters, and not too long.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(1000).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn each() -> Vec<Message> {
        let passed = |role, index| Passed { role, index, address: "unix:/a".to_owned() };
        vec![
            Message::Hello { program: "0.1.0".to_owned(), cores: 64, edits: "0a".to_owned() },
            Message::Sockets {
                program: "0.1.0".to_owned(),
                sockets: vec![passed(Role::Listener, 3), passed(Role::Admin, 0)],
                more: true,
                edits_lost: true,
            },
            Message::Ready,
            Message::Stopped,
            Message::Taken,
            Message::Draining,
            Message::Later { last: true },
            Message::Refused { why: "no \"room\"".to_owned() },
        ]
    }

    #[test]
    fn each_comes_back_as_it_was() {
        for message in each() {
            assert_eq!(Message::decode(&message.encode()), Ok(message));
        }
    }

    #[test]
    fn what_a_later_version_adds_is_skipped() {
        for message in each() {
            let mut object: Value = serde_json::from_slice(&message.encode()).unwrap();
            object["added"] = json!({ "by": ["a", "later", "version"] });
            assert_eq!(Message::decode(object.to_string().as_bytes()), Ok(message));
        }
    }

    #[test]
    fn another_version_or_kind_is_named() {
        let why = |text: &str| Message::decode(text.as_bytes()).unwrap_err();
        assert!(why(r#"{"tokenring":2,"kind":"ready"}"#).contains("version 2"));
        assert!(why(r#"{"tokenring":1,"kind":"dance\u001b"}"#).contains("\"dance\""));
        assert!(
            why(r#"{"tokenring":1,"kind":"sockets","sockets":[{"role":"x"}]}"#).contains("for")
        );
        for text in ["", "1", "{}", "[]", r#"{"kind":"ready"}"#] {
            why(text);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Message::decode(&bytes);
        }
    }
}
