//! The socket of the operator's interface: bound or taken over, its connections accepted, paused and
//! taken up again while a next process takes it over.

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::middleware::{self, Next};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, UnixListener};

use super::connections::{Connections, OpenConnection};
use super::task::Task;
use crate::config::Bind;
use crate::net::dial::Address;
use crate::net::listener::{self, Listening};

/// Most connections at a time; a further one replaces the connection that has idled longest.
const CONNECTIONS_MAX: usize = 256;
/// Longest time for a request's head, the idle time before it included.
const HEAD_TIMEOUT: Duration = Duration::from_secs(15);
/// Pause after an accept failed for lack of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Whether a client of this address may connect.
pub(super) type Allows = Arc<dyn Fn(IpAddr) -> bool + Send + Sync>;

/// The bound and listening socket, before any connection is accepted.
pub struct BoundSocket {
    /// Where it listens, the port resolved.
    pub address: Address,
    wanted: Bind,
    listening: Listening,
}

impl BoundSocket {
    /// Binds the address of `[admin]`.
    ///
    /// Shape: `adopted` are sockets of a process before; one that has this address is used.
    /// Errors: the address cannot be bound.
    pub fn bind(bind: &Bind, adopted: Vec<OwnedFd>) -> io::Result<Self> {
        let wanted = Address::from(bind);
        let told = |error: io::Error| io::Error::new(error.kind(), format!("admin: {error}"));
        let adopted = adopted.into_iter().find_map(|socket| {
            let (address, listening) = Listening::of(socket).ok()?;
            (address == wanted).then_some((address, listening))
        });
        let (address, listening) = match adopted {
            Some(adopted) => adopted,
            None => {
                let (address, mut listening) = listener::bind(&wanted, 1).map_err(told)?;
                let first = listening.pop();
                (address, first.ok_or_else(|| io::Error::other("admin: nothing was bound"))?)
            }
        };
        listening.set_nonblocking().map_err(told)?;
        Ok(Self { address, wanted: bind.clone(), listening })
    }

    /// Whether web pages can make a browser send requests to it.
    pub(super) fn is_tcp(&self) -> bool {
        matches!(self.listening, Listening::Tcp(_))
    }

    /// Accepts and answers until the result is dropped; called within the control thread's runtime.
    pub(super) fn open(self, allows: Allows, router: Router) -> Open {
        let accepting = Accepting {
            listening: Arc::new(self.listening),
            connections: Connections::new(CONNECTIONS_MAX),
            allows,
            router,
            runtime: tokio::runtime::Handle::current(),
        };
        let task = Some(accepting.begin());
        Open { wanted: self.wanted, address: self.address, accepting, task }
    }
}

/// An interface that answers, until this is dropped.
pub(super) struct Open {
    /// The address of the config.
    pub(super) wanted: Bind,
    /// The address obtained.
    address: Address,
    accepting: Accepting,
    /// None while it is paused.
    task: Option<Task>,
}

/// The socket of the operator's interface, whichever it is at the time; clones are the same.
#[derive(Clone, Default)]
pub struct AdminSocket(pub(super) Arc<Mutex<Option<Open>>>);

impl AdminSocket {
    /// Duplicates the socket for a process that comes next; `None` = there is no interface.
    ///
    /// Errors: no descriptors are left.
    pub fn export(&self) -> io::Result<Option<(Address, OwnedFd)>> {
        let open = lock(&self.0);
        let Some(open) = open.as_ref() else { return Ok(None) };
        Ok(Some((open.address.clone(), open.accepting.listening.duplicate()?)))
    }

    /// Where it is; none = there is no interface.
    #[must_use]
    pub fn address(&self) -> Option<Address> {
        lock(&self.0).as_ref().map(|open| open.address.clone())
    }

    /// Accepts no more; each open connection ends after the request that it is at.
    pub fn pause(&self) {
        if let Some(open) = lock(&self.0).as_mut() {
            open.task = None;
            open.accepting.connections.finish_all();
        }
    }

    /// Gives the socket up: the next process has it.
    pub fn close(&self) {
        *lock(&self.0) = None;
    }

    /// Accepts again after `pause`.
    pub fn resume(&self) {
        if let Some(open) = lock(&self.0).as_mut() {
            open.task = Some(open.accepting.begin());
        }
    }
}

/// What it takes to accept connections of the interface.
#[derive(Clone)]
struct Accepting {
    listening: Arc<Listening>,
    connections: Arc<Connections>,
    allows: Allows,
    router: Router,
    runtime: tokio::runtime::Handle,
}

impl Accepting {
    fn begin(&self) -> Task {
        Task::of(self.runtime.spawn(accept(self.clone())))
    }
}

pub(super) fn lock(open: &Mutex<Option<Open>>) -> MutexGuard<'_, Option<Open>> {
    // Stored whole: a thread that panicked meanwhile left nothing half done.
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Accepts connections; those of TCP from where none may are closed at once.
async fn accept(accepting: Accepting) {
    let Accepting { listening, connections, allows, router, .. } = accepting;
    let listener = match &*listening {
        Listening::Tcp(socket) => {
            socket.try_clone().and_then(TcpListener::from_std).map(Either::Tcp)
        }
        Listening::Unix(socket) => {
            socket.try_clone().and_then(UnixListener::from_std).map(Either::Unix)
        }
    };
    // Fails only without descriptors at the start; then nothing is answered.
    let Ok(listener) = listener else { return };
    loop {
        let router = router.clone();
        let accepted = match &listener {
            Either::Tcp(listener) => listener.accept().await.map(|(stream, peer)| {
                if allows(peer.ip().to_canonical())
                    && let Some(connection) = connections.open()
                {
                    tokio::spawn(serve(TokioIo::new(stream), router, connection));
                }
            }),
            Either::Unix(listener) => listener.accept().await.map(|(stream, _)| {
                if let Some(connection) = connections.open() {
                    tokio::spawn(serve(TokioIo::new(stream), router, connection));
                }
            }),
        };
        if accepted.is_err() {
            tokio::time::sleep(ACCEPT_PAUSE).await;
        }
    }
}

enum Either {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// Serves one connection until it ends, or until a new connection needs its place.
async fn serve<S>(stream: S, router: Router, connection: OpenConnection)
where
    S: hyper::rt::Read + hyper::rt::Write + Unpin + 'static,
{
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    let begin = connection.requests();
    let busy = middleware::from_fn(move |request: Request, next: Next| {
        let busy = begin();
        async move {
            let answer = next.run(request).await;
            drop(busy);
            answer
        }
    });
    let service = TowerToHyperService::new(router.layer(busy));
    let mut serving = pin!(http.serve_connection(stream, service));
    tokio::select! {
        // An error means that the client spoke no HTTP or has left: nothing can be answered.
        _ = serving.as_mut() => return,
        () = connection.must_leave() => return,
        () = connection.must_finish() => {}
    }
    serving.as_mut().graceful_shutdown();
    tokio::select! {
        _ = serving => {}
        () = connection.must_leave() => {}
    }
}
