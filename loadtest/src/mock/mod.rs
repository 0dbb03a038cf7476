//! A simulated model server, with faults on request.
//!
//! The one idea: what the server does is decided by the request that asks for it
//! (`x-mock: cut_after=3`), so that one running server serves every test, and two
//! tests cannot disturb each other's behaviour; a server as a whole can be given a mood
//! ([`Mock::behave`]), for tests of a server that falls ill and recovers. HTTP is written by hand on the
//! socket, because a proper library cannot be made to misbehave.
//!
//! Reading order: [`Mock`] here, `conn` (one connection), `wire` (the request),
//! `behave` (the `x-mock` keys), `answer` (which body), `dialect` (the shapes),
//! `send` (the bytes of the answer, and every fault), `stats` (what was seen).
//!
//! One thread and one current-thread runtime per server. It checks no JSON schema
//! and knows no model: any name is accepted and given back.

mod answer;
mod ask;
mod behave;
mod conn;
mod dialect;
mod send;
mod sock;
mod stats;
mod wire;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpSocket, UnixListener};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;

use sock::Sock;
pub use stats::{MockStats, SeenRequest};

/// Connections that may wait for `accept`.
const BACKLOG: u32 = 4096;

/// How a server treats connections after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeepAlive {
    /// Keeps them, without a limit of time or number.
    Normal,
    /// As llama-server (cpp-httplib) does: advertises `Keep-Alive: timeout=5, max=100`,
    /// closes after every streamed answer without saying so, after 100 plain
    /// requests, and after 5 s without a request.
    LlamaServer,
    /// Answers `Connection: close` and closes.
    CloseAlways,
    /// Keeps them and closes, without announcing it, when idle for this long.
    IdleClose(Duration),
}

/// What a simulated server is told at its start.
#[derive(Clone, Debug)]
pub struct MockConfig {
    /// Sent as `x-mock-server` with every answer.
    pub name: String,
    /// Where to listen; port 0 takes a free one.
    pub bind: SocketAddr,
    /// What `/v1/models` and `/api/tags` list. Other models are served as well.
    pub models: Vec<String>,
    /// Time between two tokens of a streamed answer.
    pub interval: Duration,
    /// Time before the first token, or before a plain answer.
    pub first_token: Duration,
    /// Length of a completion when the request does not shorten it, in tokens.
    pub tokens: u32,
    /// What every completion says, word by word, instead of the words of its seed: for people
    /// who read the answer. A client cannot check it, so no `x-mock-seed` is sent.
    pub says: Option<String>,
    /// Seed of the texts for requests that bring none.
    pub seed: u64,
    /// When set, requests without this key get a 401 (`/health` and `/mock/stats` excepted).
    pub api_key: Option<String>,
    /// What happens to a connection after an answer.
    pub keep_alive: KeepAlive,
    /// A Unix socket to listen on besides `bind`; replaced at the start, removed at the end.
    pub unix: Option<PathBuf>,
}

impl Default for MockConfig {
    /// A quick server on a free port of 127.0.0.1: 16 tokens, no waits, no key.
    fn default() -> MockConfig {
        MockConfig {
            name: "mock".to_owned(),
            bind: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            models: vec!["mock-model".to_owned()],
            interval: Duration::ZERO,
            first_token: Duration::ZERO,
            tokens: 16,
            says: None,
            seed: 1,
            api_key: None,
            keep_alive: KeepAlive::Normal,
            unix: None,
        }
    }
}

/// What all connections of one server share.
#[derive(Debug)]
struct Shared {
    config: MockConfig,
    addr: SocketAddr,
    counters: stats::Counters,
    /// What every request asks for before its own keys are added.
    mood: RwLock<behave::Behaviour>,
}

impl Shared {
    fn mood(&self) -> behave::Behaviour {
        // It is replaced whole: whoever panicked with the lock broke nothing.
        self.mood.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A running simulated server. Dropping it closes its sockets and ends its thread.
#[derive(Debug)]
pub struct Mock {
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Mock {
    /// Starts a server on its own thread; it listens when this returns.
    ///
    /// Errors: those of binding, and of starting a thread.
    pub fn start(config: MockConfig) -> io::Result<Mock> {
        let runtime = Builder::new_current_thread().enable_io().enable_time().build()?;
        let (listener, unix) = {
            let _entered = runtime.enter();
            (listen(config.bind)?, config.unix.as_ref().map(listen_unix).transpose()?)
        };
        let addr = listener.local_addr()?;
        let shared = Arc::new(Shared {
            config,
            addr,
            counters: stats::Counters::default(),
            mood: RwLock::default(),
        });
        let (stop, stopped) = oneshot::channel();
        let thread = {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new()
                .name(format!("mock-{}", addr.port()))
                .spawn(move || work(runtime, listener, unix, shared, stopped))?
        };
        Ok(Mock { shared, stop: Some(stop), thread: Some(thread) })
    }

    /// Makes every coming request, on any connection, behave as if it brought `x-mock: LIST`.
    ///
    /// Shape: the words of `x-mock`; an empty list is normal again. What a request asks for
    /// itself comes on top. Requests under way go on as they began, and `/mock/stats` always
    /// answers as usual.
    /// Errors: a list that is not understood is a fault of the test, which panics.
    pub fn behave(&self, list: &str) {
        if let Err(why) = self.try_behave(list) {
            panic!("{why}");
        }
    }

    /// As `behave`, for lists that somebody has typed.
    ///
    /// Errors: the key or value that is not understood; the mood stays as it was.
    pub fn try_behave(&self, list: &str) -> Result<(), String> {
        let mut mood = behave::Behaviour::default();
        mood.add(list)?;
        *self.shared.mood.write().unwrap_or_else(PoisonError::into_inner) = mood;
        Ok(())
    }

    /// The TCP address it listens on, with the port that was given.
    pub fn addr(&self) -> SocketAddr {
        self.shared.addr
    }

    /// `http://` and the address.
    pub fn url(&self) -> String {
        format!("http://{}", self.shared.addr)
    }

    /// The counters as they are now.
    pub fn stats(&self) -> MockStats {
        self.shared.counters.snapshot()
    }

    /// Waits until `met` holds for the counters, asking every millisecond.
    ///
    /// Errors: the last counters, when `limit` passes before `met` holds.
    pub fn wait_until(
        &self,
        limit: Duration,
        met: impl Fn(&MockStats) -> bool,
    ) -> Result<MockStats, MockStats> {
        let started = Instant::now();
        loop {
            let stats = self.stats();
            if met(&stats) {
                return Ok(stats);
            }
            if started.elapsed() > limit {
                return Err(stats);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The last 4096 requests (fewer when their bodies are large), oldest first.
    ///
    /// A request is entered before its answer begins.
    pub fn seen(&self) -> Vec<SeenRequest> {
        self.shared.counters.seen()
    }

    /// Forgets the requests seen so far; the counters stay.
    pub fn forget_seen(&self) {
        self.shared.counters.forget_seen();
    }
}

impl Drop for Mock {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // The thread may be gone already; then there is nothing to stop.
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        if let Some(path) = &self.shared.config.unix {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn listen(bind: SocketAddr) -> io::Result<TcpListener> {
    let socket = if bind.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(bind)?;
    socket.listen(BACKLOG)
}

fn listen_unix(path: &PathBuf) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => UnixListener::bind(path),
    }
}

/// The thread: accepts until told to stop; leaving drops every connection.
fn work(
    runtime: Runtime,
    listener: TcpListener,
    unix: Option<UnixListener>,
    shared: Arc<Shared>,
    stopped: oneshot::Receiver<()>,
) {
    runtime.block_on(async move {
        tokio::select! {
            _ = stopped => {}
            () = accept(&listener, &shared) => {}
            () = accept_unix(unix, &shared) => {}
        }
    });
}

async fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // A socket without it works too, only later.
                let _ = stream.set_nodelay(true);
                tokio::spawn(conn::serve(Sock::Tcp(stream), Arc::clone(shared)));
            }
            // Out of descriptors: the ones in use must come back first.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

async fn accept_unix(listener: Option<UnixListener>, shared: &Arc<Shared>) {
    let Some(listener) = listener else { return std::future::pending().await };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(conn::serve(Sock::Unix(stream), Arc::clone(shared)));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}
