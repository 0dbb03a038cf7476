//! A server that does by hand what a test says, connection by connection.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use super::house::LIMIT;

/// A plain answer that leaves the connection open.
pub(crate) const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// The server; dropped, its port refuses.
pub(crate) struct Scripted {
    addr: SocketAddr,
    stop: Arc<AtomicBool>,
    accepted: Arc<AtomicUsize>,
    open: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

/// One connection to it.
pub(crate) struct Conn {
    stream: TcpStream,
    input: Vec<u8>,
}

impl Scripted {
    /// Serves each connection by `script`, in a thread of its own.
    pub(crate) fn start(script: impl Fn(&mut Conn) + Send + Sync + 'static) -> Scripted {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let addr = listener.local_addr().unwrap();
        let (stop, accepted) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let open = Arc::new(AtomicUsize::new(0));
        let (told, count, script) = (stop.clone(), accepted.clone(), Arc::new(script));
        let living = open.clone();
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if told.load(Ordering::SeqCst) {
                    return;
                }
                let stream = stream.unwrap();
                stream.set_read_timeout(Some(LIMIT)).unwrap();
                stream.set_nodelay(true).unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                living.fetch_add(1, Ordering::SeqCst);
                let (script, living) = (script.clone(), living.clone());
                std::thread::spawn(move || {
                    script(&mut Conn { stream, input: Vec::new() });
                    living.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Scripted { addr, stop, accepted, open, thread: Some(thread) }
    }

    /// Its base URL.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Connections whose script has not ended.
    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    /// Connections so far.
    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.addr);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Conn {
    /// Reads once; `false` at the end.
    pub(crate) fn more(&mut self) -> bool {
        let mut buffer = [0; 1 << 16];
        match self.stream.read(&mut buffer) {
            Ok(n) if n > 0 => {
                self.input.extend_from_slice(&buffer[..n]);
                true
            }
            _ => false,
        }
    }

    /// Reads one head; `None` at the end.
    pub(crate) fn head(&mut self) -> Option<String> {
        loop {
            if let Some(at) = self.input.windows(4).position(|four| four == b"\r\n\r\n") {
                let head = self.input.drain(..at + 4).collect();
                return Some(String::from_utf8(head).unwrap());
            }
            if !self.more() {
                return None;
            }
        }
    }

    /// Reads one request whose body has a length; `None` at the end.
    pub(crate) fn request(&mut self) -> Option<(String, Vec<u8>)> {
        let head = self.head()?;
        let lower = head.to_ascii_lowercase();
        let length = lower.split("content-length:").nth(1);
        let length = length.map_or(0, |rest| rest.lines().next().unwrap().trim().parse().unwrap());
        while self.input.len() < length {
            if !self.more() {
                return None;
            }
        }
        Some((head, self.input.drain(..length).collect()))
    }

    /// What has been read and not used.
    pub(crate) fn input(&self) -> &[u8] {
        &self.input
    }

    /// Sends; who has gone does not matter.
    pub(crate) fn say(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.stream.write_all(bytes.as_ref());
    }

    /// Sends; `false` when the peer takes no more.
    pub(crate) fn try_say(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.stream.write_all(bytes.as_ref()).is_ok()
    }

    /// Says that nothing more will be sent.
    pub(crate) fn end(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Reads and throws away until the peer ends its side or resets.
    pub(crate) fn drain(&mut self) {
        while self.more() {
            self.input.clear();
        }
    }

    /// Makes the coming close a reset.
    pub(crate) fn reset(&mut self) {
        let _ = socket2::SockRef::from(&self.stream).set_linger(Some(std::time::Duration::ZERO));
    }
}
