//! A model server whose list, health and name can change while it runs, and a name server.
//!
//! Both answer by hand from values that a test sets. The mock of `loadtest` stays the one that
//! misbehaves on the way of a request; these two are what the control thread asks.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// What a server says now.
#[derive(Clone, Debug)]
pub(crate) struct Says {
    /// The names in its list of models.
    pub models: Vec<String>,
    /// Status of `/v1/models`, `/v1beta/models` and `/api/tags`.
    pub models_status: u16,
    /// Status of `/health`.
    pub health: u16,
    /// How long any answer takes.
    pub delay: Duration,
}

struct Inner {
    name: String,
    says: Mutex<Says>,
    stop: AtomicBool,
    /// Requests that were no questions of the control thread.
    served: AtomicU64,
    probes: Mutex<Vec<String>>,
    open: Mutex<Vec<TcpStream>>,
}

/// A model server; dropped, it is dead: its port refuses and its connections are closed.
pub(crate) struct Fake {
    inner: Arc<Inner>,
    addr: SocketAddr,
    thread: Option<JoinHandle<()>>,
}

impl Fake {
    /// A server on any port.
    pub(crate) fn start(name: &str, models: &[&str]) -> Fake {
        Fake::start_at(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), name, models)
    }

    /// A server where one was before.
    pub(crate) fn start_at(addr: SocketAddr, name: &str, models: &[&str]) -> Fake {
        let listener = TcpListener::bind(addr).unwrap();
        let addr = listener.local_addr().unwrap();
        let says = Says {
            models: models.iter().map(|m| (*m).to_owned()).collect(),
            models_status: 200,
            health: 200,
            delay: Duration::ZERO,
        };
        let inner = Arc::new(Inner {
            name: name.to_owned(),
            says: Mutex::new(says),
            stop: AtomicBool::new(false),
            served: AtomicU64::new(0),
            probes: Mutex::default(),
            open: Mutex::default(),
        });
        let shared = inner.clone();
        let thread = std::thread::spawn(move || {
            loop {
                let accepted = listener.accept();
                if shared.stop.load(Ordering::SeqCst) {
                    return;
                }
                let Ok((stream, _)) = accepted else {
                    // One connection is lost, not the server.
                    eprintln!("{}: {accepted:?}", shared.name);
                    continue;
                };
                shared.open.lock().unwrap().push(stream.try_clone().unwrap());
                let shared = shared.clone();
                std::thread::spawn(move || shared.serve(stream));
            }
        });
        Fake { inner, addr, thread: Some(thread) }
    }

    /// Where it listens.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its base URL.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Changes what it says.
    pub(crate) fn say(&self, change: impl FnOnce(&mut Says)) {
        change(&mut self.inner.says.lock().unwrap());
    }

    /// Requests of clients so far.
    pub(crate) fn served(&self) -> u64 {
        self.inner.served.load(Ordering::SeqCst)
    }

    /// Heads of the questions of the control thread, with their bodies.
    pub(crate) fn probes(&self) -> Vec<String> {
        self.inner.probes.lock().unwrap().clone()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.inner.stop.store(true, Ordering::SeqCst);
        // Wakes the accept; nobody there is fine too.
        let _ = TcpStream::connect(self.addr);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        for stream in self.inner.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

impl Inner {
    fn serve(&self, stream: TcpStream) {
        let mut writer = stream.try_clone().unwrap();
        let mut reader = BufReader::new(stream);
        while let Some((head, body)) = read_request(&mut reader) {
            let says = self.says.lock().unwrap().clone();
            std::thread::sleep(says.delay);
            let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
            let path = path.split('?').next().unwrap_or_default();
            if path == "/health" || path.ends_with("/models") || path == "/api/tags" {
                self.probes.lock().unwrap().push(format!("{head}{body}"));
            } else {
                self.served.fetch_add(1, Ordering::SeqCst);
            }
            let listed = |open: &str, close: &str| {
                let names = says.models.iter().map(|name| format!("{open}{name:?}{close}"));
                names.collect::<Vec<_>>().join(",")
            };
            let (status, text) = match path {
                "/health" => (says.health, "{}".to_owned()),
                "/v1/models" => (
                    says.models_status,
                    format!("{{\"object\":\"list\",\"data\":[{}]}}", listed("{\"id\":", "}")),
                ),
                "/v1beta/models" => {
                    // One a page, and the token is the place of the next.
                    let token = head.split("pageToken=").nth(1).unwrap_or("0");
                    let digits: String = token.chars().take_while(char::is_ascii_digit).collect();
                    let at: usize = digits.parse().unwrap_or(0);
                    let name = says.models.get(at).map_or("", String::as_str);
                    let next = match at + 1 < says.models.len() {
                        true => format!(",\"nextPageToken\":\"{}\"", at + 1),
                        false => String::new(),
                    };
                    let page = format!("{{\"models\":[{{\"name\":\"models/{name}\"}}]{next}}}");
                    (says.models_status, page)
                }
                "/api/tags" => {
                    (says.models_status, format!("{{\"models\":[{}]}}", listed("{\"name\":", "}")))
                }
                _ => (200, format!("{{\"served_by\":{:?}}}", self.name)),
            };
            let answer = format!(
                "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nX-Server: {}\r\n\
                 Content-Length: {}\r\n\r\n{text}",
                self.name,
                text.len()
            );
            if writer.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    }
}

fn read_request(reader: &mut BufReader<TcpStream>) -> Option<(String, String)> {
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        head.push_str(&line);
        if line == "\r\n" {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((head, String::from_utf8_lossy(&body).into_owned()))
}

/// One service record: priority, weight, port, host.
pub(crate) type Service = (u16, u16, u16, &'static str);

/// The records of a name server.
#[derive(Default)]
pub(crate) struct Records {
    /// Addresses by name, without the dot at the end.
    pub addresses: Vec<(&'static str, Vec<Ipv4Addr>)>,
    /// Services by name.
    pub services: Vec<(&'static str, Vec<Service>)>,
    /// Answers with a server failure.
    pub fails: bool,
    /// Pause before each answer; questions that come meanwhile wait.
    pub delay: Duration,
}

/// A name server on UDP, whose answers hold for no time at all.
pub(crate) struct NameServer {
    addr: SocketAddr,
    records: Arc<Mutex<Records>>,
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl NameServer {
    /// Starts one.
    pub(crate) fn start(records: Records) -> NameServer {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let (records, stop) = (Arc::new(Mutex::new(records)), Arc::new(AtomicBool::new(false)));
        let asked = Arc::new(AtomicU64::new(0));
        let addr = socket.local_addr().unwrap();
        let (shared, over, count) = (records.clone(), stop.clone(), asked.clone());
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 1500];
            while !over.load(Ordering::SeqCst) {
                let Ok((bytes, peer)) = socket.recv_from(&mut buffer) else { continue };
                count.fetch_add(1, Ordering::SeqCst);
                let (answer, delay) = {
                    let records = shared.lock().unwrap();
                    (records.answer(&buffer[..bytes]), records.delay)
                };
                std::thread::sleep(delay);
                let _ = socket.send_to(&answer, peer);
            }
        });
        NameServer { addr, records, stop, asked, thread: Some(thread) }
    }

    /// Where it listens.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Changes its records.
    pub(crate) fn set(&self, change: impl FnOnce(&mut Records)) {
        change(&mut self.records.lock().unwrap());
    }

    /// Questions so far.
    pub(crate) fn asked(&self) -> u64 {
        self.asked.load(Ordering::SeqCst)
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

const A: u16 = 1;
const SRV: u16 = 33;

impl Records {
    /// Answers one question (RFC 1035 §4.1); what is not known has no records.
    fn answer(&self, question: &[u8]) -> Vec<u8> {
        let (mut name, mut at) = (Vec::new(), 12);
        while question[at] != 0 {
            let length = usize::from(question[at]);
            name.push(String::from_utf8_lossy(&question[at + 1..=at + length]).to_lowercase());
            at += length + 1;
        }
        let name = name.join(".");
        let kind = u16::from_be_bytes([question[at + 1], question[at + 2]]);
        let data: Vec<Vec<u8>> = match kind {
            A => of(&self.addresses, &name).iter().map(|ip| ip.octets().to_vec()).collect(),
            SRV => of(&self.services, &name)
                .iter()
                .map(|(priority, weight, port, host)| {
                    let mut data = [*priority, *weight, *port].map(u16::to_be_bytes).concat();
                    for label in host.split('.') {
                        data.push(u8::try_from(label.len()).unwrap());
                        data.extend_from_slice(label.as_bytes());
                    }
                    data.push(0);
                    data
                })
                .collect(),
            _ => Vec::new(),
        };
        let mut out = question[..2].to_vec();
        // A response, recursion available; 2 = server failure.
        out.extend_from_slice(&[0x85, if self.fails { 0x82 } else { 0x80 }]);
        let count = if self.fails { 0 } else { data.len() };
        for count in [1, u16::try_from(count).unwrap(), 0, 0] {
            out.extend_from_slice(&u16::to_be_bytes(count));
        }
        out.extend_from_slice(&question[12..at + 5]);
        for data in data.iter().take(count) {
            // A pointer to the question's name, the class IN, a TTL of 0.
            out.extend_from_slice(&[0xc0, 12]);
            out.extend_from_slice(&kind.to_be_bytes());
            out.extend_from_slice(&[0, 1, 0, 0, 0, 0]);
            out.extend_from_slice(&u16::try_from(data.len()).unwrap().to_be_bytes());
            out.extend_from_slice(data);
        }
        out
    }
}

fn of<'r, T>(records: &'r [(&'static str, Vec<T>)], name: &str) -> &'r [T] {
    records.iter().find(|(known, _)| *known == name).map_or(&[], |(_, found)| found)
}
