//! Floor 5: sockets, the runtime, time. Read in this order: `sys` (syscalls std has no name for),
//! `rt` (the runtime; the only folder that names monoio), `pooled_future` (futures in reused
//! memory), `caught` (panics), `race` (two futures at once), `ticker` (coarse deadlines) with
//! `lines` (who has idled longest), `pipe` (a stream in memory) with `unsent` (what may wait in
//! it), `stream` (what the trunk calls a connection), `watch` (a peer that leaves), `dial`
//! (connecting), `listener`, `mailbox` (one core to another), `h2io` (a stream for the `h2` crate),
//! `h2body` (bodies between the two protocols), `tls`, `notify` (an exchange that waits for another
//! thread), `splice` (kernel-to-kernel bodies).

pub mod buffers;
pub mod caught;
pub mod dial;
mod discard;
pub mod h2body;
pub mod h2io;
mod lines;
pub mod listener;
pub mod mailbox;
pub mod notify;
pub mod pipe;
pub mod pooled_future;
pub mod race;
pub mod rt;
pub mod splice;
pub mod stream;
pub mod sys;
pub mod ticker;
pub mod tls;
pub mod unsent;
pub mod watch;
