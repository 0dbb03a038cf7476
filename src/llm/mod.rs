//! What the proxy knows of the language that clients and model servers speak.
//!
//! Pure machines over bytes in passing: none of them builds a tree, keeps a body or
//! changes what it does not own. `content` tells by its type how a body will be read. On the
//! way in the model is found (`scan` in JSON, `multipart` in forms, `path` in the target) and,
//! when its name changes, only the bytes of its value are replaced (`proxy::rename`). On the way out
//! events are told apart (`sse`) and tokens counted: from the end of a body (`usage`), or from
//! all of it where they are paid for (`meter`, by `counts`; `messages` in a
//! WebSocket). `api` tells a path that means
//! something to a model server. `reply` writes the few answers that are our own, in the
//! caller's dialect; `quote` is how text becomes a JSON string.
//!
//! Reading order: scan (with `simd_scan` and `unescape` below it), quote, content,
//! multipart, path, sse (with `lines`), usage, counts, meter, messages, reply. `oracle` is what
//! tests hold `counts` against.

pub mod api;
pub mod content;
mod counts;
mod lines;
pub mod messages;
pub mod meter;
pub mod multipart;
mod oracle;
pub mod path;
pub mod quote;
pub mod reply;
pub mod scan;
mod scan_fault;
mod simd_scan;
pub mod sse;
mod unescape;
pub mod usage;
