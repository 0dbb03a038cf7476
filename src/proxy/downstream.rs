//! A client and its connection, as every station sees them.

use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use super::core::{Core, Scratch};
use super::listeners::CoreListener;
use crate::net::stream::Stream;
use crate::net::sys::Shut;
use crate::net::ticker::Timer;
use crate::net::watch::Watch;

/// How long a client that is still sending may go on after our last answer.
pub(super) const LINGER: Duration = Duration::from_secs(2);

/// Most bytes read and thrown away while lingering.
pub(super) const LINGER_BYTES_MAX: usize = 16 << 20;

/// The address of a client.
#[derive(Clone, Debug)]
pub struct Peer {
    /// The address.
    pub ip: IpAddr,
    /// The same as text: written into every request, so made once per connection.
    pub text: Rc<str>,
}

/// A connection as it was accepted.
#[derive(Clone)]
pub struct Client {
    /// The connection itself.
    pub stream: Stream,
    /// The address of the other end; `None` where it has none (a Unix socket).
    pub peer: Option<Peer>,
    /// The listener it came in by.
    pub listener: Rc<CoreListener>,
    /// The name in the client's verified TLS certificate, if it showed one.
    pub certified: Option<Rc<str>>,
}

impl Client {
    /// The same client on another stream: one of the many that its connection carries.
    #[must_use]
    pub fn with_stream(&self, stream: Stream) -> Self {
        Self { stream, ..self.clone() }
    }
}

/// A client connection.
pub struct Downstream {
    /// The connection itself.
    pub socket: Stream,
    /// Tells when the client leaves or the next request begins.
    pub watch: Watch,
    /// The deadline of whatever the client has to do next.
    pub timer: Timer,
    /// The client's address, if it has one.
    pub peer: Option<Peer>,
    /// The name in the client's verified TLS certificate, if it showed one.
    pub certified: Option<Rc<str>>,
    /// The listener it came in by.
    pub listener: Rc<CoreListener>,
    /// Bytes received and not consumed; a message begins at 0.
    pub recv: Vec<u8>,
    /// The parsed head of the request at the front of `recv`, where `h2_stream` wrote that head and
    /// so knows its parts.
    pub parsed: Option<Box<Scratch>>,
    /// The last request body on it was over `SMALL_BYTES`: the next may be, too.
    pub bulky: bool,
    /// Requests served on it after which it was kept open.
    pub served: u64,
    /// How long the client may read nothing of an answer.
    pub write_idle: Duration,
}

impl Downstream {
    /// A connection before its first request, of which `recv` may hold the beginning.
    #[must_use]
    pub fn new(core: &Core, client: Client, recv: Vec<u8>) -> Self {
        let Client { stream: socket, peer, listener, certified } = client;
        let write_idle = core.with_listener(&listener, |plan| plan.timeouts.write_idle);
        Self {
            watch: Watch::new(socket.clone()),
            timer: core.ticker.timer(),
            peer,
            certified,
            listener,
            recv,
            parsed: None,
            bulky: false,
            served: 0,
            write_idle,
            socket,
        }
    }
}

/// Gives the client up to `LINGER` to read our last answer and to end its side.
pub(super) async fn linger(stream: &Stream, timer: &Timer) {
    timer.arm(stream.handle(), Shut::Both, LINGER);
    stream.linger(LINGER_BYTES_MAX).await;
}
