//! Floor 5: sockets, the runtime, time. Read in this order: `sys` (syscalls std has no name for),
//! `rt` (the runtime; the only folder that names monoio), `buffers` (the freelist of this thread),
//! `pooled_future` (futures in reused memory), `caught` (panics), `race` (two futures at once),
//! `ticker` (coarse deadlines) with `lines` (which connection has idled longest), `pipe` (a byte
//! stream in memory) with `unsent` (how much of the answers may wait in memory), `stream` (what the
//! trunk calls a connection) with `discard` (reading on before a close), `watch` (noticing that a
//! client leaves), `dial` (connecting), `listener`,
//! `listener_set` (all that the process listens on), `sharers` (who else does), `mailbox` (messages to a core) with `acknowledge` (which cores
//! have done what a message said), `handover_socket` (between this process and the next), `h2io` (a
//! stream for the `h2` crate), `h2body` (bodies between the two protocols), `tls`, `notify` (an
//! exchange that waits for another thread), `splice` (kernel-to-kernel bodies).

pub mod acknowledge;
pub mod buffers;
pub mod caught;
pub mod dial;
mod discard;
pub mod h2body;
pub mod h2io;
pub mod handover_socket;
mod lines;
pub mod listener;
pub mod listener_set;
pub mod mailbox;
pub mod notify;
pub mod pipe;
pub mod pooled_future;
pub mod race;
pub mod rt;
pub mod sharers;
pub mod splice;
pub mod stream;
pub mod sys;
pub mod ticker;
pub mod tls;
pub mod unsent;
pub mod watch;
