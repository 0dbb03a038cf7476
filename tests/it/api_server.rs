//! An API server of Kubernetes that knows nothing but EndpointSlices of one Service.
//!
//! It answers lists and watches by hand, so that a test can say at which byte a connection breaks.
//! Every change has a version; a watch gets all changes after the one that it names.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

use super::certs::House;

const LIST: &str = "/apis/discovery.k8s.io/v1/namespaces/ml/endpointslices?";
const SERVICE: &str = "labelSelector=kubernetes.io%2Fservice-name%3Dvllm";
/// Whom the server knows, when it asks.
pub(crate) const TOKEN: &str = "CANARY-token";

/// What the server does.
#[derive(Default)]
struct State {
    version: u64,
    slices: BTreeMap<String, Value>,
    /// Changes in their order: version and event.
    log: Vec<(u64, Value)>,
    /// A watch from an earlier version is answered 410.
    oldest: u64,
    /// 410 is the answer itself, not an event of the watch.
    gone_by_status: bool,
    /// The answer to lists and watches, where they are not answered well.
    refuses: (Option<u16>, Option<u16>),
    /// Answers nothing at all.
    hangs: bool,
    /// `TOKEN` is wanted.
    asks: bool,
    /// Counts up when all watches are to end.
    round: u64,
    /// They end in the middle of the next event, or well.
    breaks: bool,
    stopped: bool,
    lists: u64,
    /// Requests of somebody who is not known.
    unknown: u64,
    /// The version that each watch named.
    watches: Vec<u64>,
    open: u64,
    /// The version of the last event that a watch was sent.
    sent: u64,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    tls: Option<Arc<ServerConfig>>,
}

/// The server; it ends with the test.
pub(crate) struct ApiServer {
    shared: Arc<Shared>,
    addr: SocketAddr,
    folder: House,
}

impl ApiServer {
    /// A server without TLS that believes everybody.
    pub(crate) fn start() -> ApiServer {
        ApiServer::start_with(House::new("api"), None, false)
    }

    /// A server with TLS, that wants `TOKEN` when it `asks`.
    pub(crate) fn start_with(
        folder: House,
        tls: Option<Arc<ServerConfig>>,
        asks: bool,
    ) -> ApiServer {
        let state = State { version: 1, asks, ..State::default() };
        let shared = Shared { state: Mutex::new(state), changed: Condvar::new(), tls };
        let mut server = ApiServer {
            shared: Arc::new(shared),
            addr: SocketAddr::from(([127, 0, 0, 1], 0)),
            folder,
        };
        server.listen();
        server.write_kubeconfig("cluster.yaml", "", &format!("token: {TOKEN}"));
        server
    }

    fn listen(&mut self) {
        let listener = TcpListener::bind(self.addr).unwrap();
        self.addr = listener.local_addr().unwrap();
        let shared = self.shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.state.lock().unwrap().stopped {
                    return;
                }
                let (shared, stream) = (shared.clone(), stream.unwrap());
                std::thread::spawn(move || shared.serve(stream));
            }
        });
    }

    /// Writes a kubeconfig beside the certificates of the test.
    pub(crate) fn write_kubeconfig(&self, name: &str, cluster: &str, user: &str) {
        let scheme = if self.shared.tls.is_some() { "https" } else { "http" };
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: here\n\
             contexts:\n- name: here\n  context: {{ cluster: c, user: u }}\n\
             clusters:\n- name: c\n  cluster:\n    server: {scheme}://localhost:{}\n    {cluster}\n\
             users:\n- name: u\n  user:\n    {user}\n",
            self.addr.port()
        );
        self.folder.write(name, &text);
    }

    pub(crate) fn folder(&self) -> &House {
        &self.folder
    }

    /// The path of its kubeconfig.
    pub(crate) fn kubeconfig(&self) -> String {
        self.folder.path("cluster.yaml")
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap()
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.shared.changed.notify_all();
    }

    /// Adds or changes a slice with one endpoint.
    pub(crate) fn put(&self, name: &str, at: SocketAddr, conditions: Value) {
        let kind = if at.is_ipv4() { "IPv4" } else { "IPv6" };
        let slice = json!({
            "metadata": { "name": name, "namespace": "ml" },
            "addressType": kind,
            "ports": [
                { "name": "http", "port": at.port(), "protocol": "TCP" },
                { "name": "metrics", "port": 1, "protocol": "TCP" },
            ],
            "endpoints": [{ "addresses": [at.ip().to_string()], "conditions": conditions }],
        });
        self.change(|state| {
            let event = match state.slices.contains_key(name) {
                true => "MODIFIED",
                false => "ADDED",
            };
            state.record(event, name, slice);
        });
    }

    /// Adds or changes a slice with one endpoint that is ready.
    pub(crate) fn ready(&self, name: &str, at: SocketAddr) {
        self.put(name, at, json!({ "ready": true, "serving": true, "terminating": false }));
    }

    /// Tells that the pod of a slice is about to end.
    pub(crate) fn terminates(&self, name: &str, at: SocketAddr) {
        self.put(name, at, json!({ "ready": false, "serving": true, "terminating": true }));
    }

    /// Deletes a slice.
    pub(crate) fn delete(&self, name: &str) {
        self.change(|state| {
            let slice = state.slices.get(name).cloned().expect("it is there");
            state.record("DELETED", name, slice);
            state.slices.remove(name);
        });
    }

    /// Tells watches a version at which nothing has changed.
    pub(crate) fn bookmark(&self) {
        self.change(|state| {
            state.version += 1;
            let version = state.version;
            let event = json!({ "type": "BOOKMARK", "object": {
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": { "resourceVersion": version.to_string() },
            }});
            state.log.push((version, event));
        });
    }

    /// Ends all watches, as the server does after some minutes.
    pub(crate) fn end_watches(&self) {
        self.change(|state| state.round += 1);
    }

    /// Breaks all watches in the middle of the next event.
    pub(crate) fn break_watches(&self) {
        self.change(|state| state.breaks = true);
    }

    /// Forgets all changes: who watches from now on has to list first.
    pub(crate) fn forget(&self, by_status: bool) {
        self.change(|state| {
            state.version += 1;
            (state.oldest, state.gone_by_status) = (state.version, by_status);
            state.log.clear();
        });
    }

    /// Answers lists and watches with these from now on.
    pub(crate) fn refuse(&self, list: Option<u16>, watch: Option<u16>) {
        self.change(|state| state.refuses = (list, watch));
    }

    pub(crate) fn hang(&self) {
        self.change(|state| state.hangs = true);
    }

    /// Closes the port and all connections.
    pub(crate) fn stop(&self) {
        self.change(|state| state.stopped = true);
        // Wakes the accept, which then ends.
        let _ = TcpStream::connect(self.addr);
        super::house::wait_until("its port is closed", || TcpStream::connect(self.addr).is_err());
    }

    /// Goes on where it was stopped.
    pub(crate) fn go_on(&mut self) {
        self.change(|state| state.stopped = false);
        self.listen();
    }

    /// Requests that were answered 401.
    pub(crate) fn unknown(&self) -> u64 {
        self.state().unknown
    }

    pub(crate) fn lists(&self) -> u64 {
        self.state().lists
    }

    /// The version that each watch named, in the order they came.
    pub(crate) fn watches(&self) -> Vec<u64> {
        self.state().watches.clone()
    }

    /// Watches that are open.
    pub(crate) fn open(&self) -> u64 {
        self.state().open
    }

    /// The version that it has now, once a watch has been sent it.
    pub(crate) fn sent(&self) -> u64 {
        super::house::wait_until("it is sent", || {
            let state = self.state();
            state.sent == state.version
        });
        self.state().version
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.change(|state| state.stopped = true);
        let _ = TcpStream::connect(self.addr);
    }
}

impl State {
    fn record(&mut self, event: &str, name: &str, mut slice: Value) {
        self.version += 1;
        slice["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let mut object = slice.clone();
        object["apiVersion"] = json!("discovery.k8s.io/v1");
        object["kind"] = json!("EndpointSlice");
        self.log.push((self.version, json!({ "type": event, "object": object })));
        self.slices.insert(name.to_owned(), slice);
    }
}

trait Stream: Read + Write + Send {}

impl<S: Read + Write + Send> Stream for S {}

impl Shared {
    fn serve(&self, stream: TcpStream) {
        let closer = stream.try_clone().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let stream: Box<dyn Stream> = match &self.tls {
            None => Box::new(stream),
            Some(tls) => {
                let connection = ServerConnection::new(tls.clone()).unwrap();
                Box::new(StreamOwned::new(connection, stream))
            }
        };
        let mut stream = BufReader::new(stream);
        // A client that leaves or refuses us is none of our faults.
        let _ = self.answer(&mut stream, &closer);
        let _ = closer.shutdown(std::net::Shutdown::Both);
    }

    fn answer(&self, stream: &mut BufReader<Box<dyn Stream>>, tcp: &TcpStream) -> io::Result<()> {
        let (mut head, mut line) = (String::new(), String::new());
        while stream.read_line(&mut line)? > 2 {
            head += &std::mem::take(&mut line);
        }
        let stream = stream.get_mut();
        if self.state.lock().unwrap().hangs {
            std::thread::sleep(Duration::from_secs(30));
            return Ok(());
        }
        let path = head.split(' ').nth(1).unwrap_or_default();
        let is_ours = path.starts_with(LIST) && path.contains(SERVICE);
        let knows = head.to_lowercase().contains(&format!("bearer {TOKEN}").to_lowercase());
        let asks = self.state.lock().unwrap().asks;
        if asks && !knows {
            self.state.lock().unwrap().unknown += 1;
            return refuse(stream, 401);
        }
        if !is_ours || !head.starts_with("GET ") {
            return refuse(stream, 404);
        }
        match path.contains("watch=true") {
            false => self.list(stream),
            true => self.watch(stream, path, tcp),
        }
    }

    fn list(&self, stream: &mut dyn Stream) -> io::Result<()> {
        let (text, refused) = {
            let mut state = self.state.lock().unwrap();
            state.lists += 1;
            let items: Vec<&Value> = state.slices.values().collect();
            let list = json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSliceList",
                "metadata": { "resourceVersion": state.version.to_string() }, "items": items,
            });
            (list.to_string(), state.refuses.0)
        };
        match refused {
            Some(code) => refuse(stream, code),
            None => send(stream, 200, &text),
        }
    }

    fn watch(&self, stream: &mut dyn Stream, path: &str, tcp: &TcpStream) -> io::Result<()> {
        assert!(path.contains("allowWatchBookmarks=true") && path.contains("timeoutSeconds="));
        let version = path.split("resourceVersion=").nth(1).unwrap_or_default();
        let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
        let mut from: u64 = digits.parse().expect("a version");
        let mut state = self.state.lock().unwrap();
        state.watches.push(from);
        let is_gone = from < state.oldest;
        let refused = state.refuses.1.or((is_gone && state.gone_by_status).then_some(410));
        if let Some(code) = refused {
            drop(state);
            return refuse(stream, code);
        }
        stream.write_all(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n",
        )?;
        if is_gone {
            drop(state);
            let status = status(410);
            chunk(stream, &json!({ "type": "ERROR", "object": status }).to_string())?;
            return stream.write_all(b"0\r\n\r\n");
        }
        state.open += 1;
        let round = state.round;
        let result = loop {
            let next = state.log.iter().find(|(version, _)| *version > from).cloned();
            if state.stopped {
                break Ok(());
            }
            match next {
                Some((_, event)) if state.breaks => {
                    state.breaks = false;
                    let line = format!("{event}\n");
                    let half = &line.as_bytes()[..line.len() / 2];
                    break write!(stream, "{:x}\r\n", line.len())
                        .and_then(|()| stream.write_all(half))
                        .and_then(|()| stream.flush());
                }
                Some((version, event)) => {
                    from = version;
                    drop(state);
                    let sent = chunk(stream, &event.to_string());
                    state = self.state.lock().unwrap();
                    state.sent = version;
                    if sent.is_err() {
                        break sent;
                    }
                }
                None if state.round != round => break stream.write_all(b"0\r\n\r\n"),
                None => {
                    // Looks now and then whether the client has left.
                    let wait = self.changed.wait_timeout(state, Duration::from_millis(20));
                    state = wait.unwrap().0;
                    if has_left(tcp) {
                        break Ok(());
                    }
                }
            }
        };
        state.open -= 1;
        result
    }
}

fn has_left(tcp: &TcpStream) -> bool {
    tcp.set_nonblocking(true).unwrap();
    let seen = tcp.peek(&mut [0]);
    tcp.set_nonblocking(false).unwrap();
    match seen {
        Ok(count) => count == 0,
        Err(error) => error.kind() != io::ErrorKind::WouldBlock,
    }
}

fn chunk(stream: &mut dyn Stream, line: &str) -> io::Result<()> {
    write!(stream, "{:x}\r\n{line}\n\r\n", line.len() + 1)?;
    stream.flush()
}

fn status(code: u16) -> Value {
    let reason = match code {
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "NotFound",
        410 => "Expired",
        _ => "InternalError",
    };
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": format!("said with {code}"), "reason": reason, "code": code,
    })
}

fn refuse(stream: &mut dyn Stream, code: u16) -> io::Result<()> {
    send(stream, code, &status(code).to_string())
}

fn send(stream: &mut dyn Stream, code: u16, text: &str) -> io::Result<()> {
    write!(
        stream,
        "HTTP/1.1 {code} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{text}",
        text.len()
    )?;
    stream.flush()
}
