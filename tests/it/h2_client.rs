//! A client that speaks HTTP/2: the `h2` crate over tokio, asked step by step.
//!
//! The connection is driven by a thread of its own, as a client's runtime would; a test waits
//! for one thing after the other, each with `house::LIMIT`.

use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;

use bytes::Bytes;
use h2::client::{Builder, ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use rustls::ClientConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;

use super::house::LIMIT;
use super::secure::server_name;

/// A connection.
pub(crate) struct H2Client {
    send: SendRequest<Bytes>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    over: Mutex<mpsc::Receiver<Result<(), h2::Error>>>,
}

/// One stream.
pub(crate) struct Stream {
    send: SendStream<Bytes>,
    response: ResponseFuture,
    body: Option<RecvStream>,
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub status: u16,
    pub head: HeaderMap,
    pub body: Vec<u8>,
    pub trailers: HeaderMap,
}

/// Waits for what a future has to say.
pub(crate) fn wait<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let limited = runtime.block_on(async { tokio::time::timeout(LIMIT, future).await });
    limited.unwrap_or_else(|_| panic!("nothing within {LIMIT:?}"))
}

impl H2Client {
    /// By prior knowledge, or by ALPN where there is TLS.
    pub(crate) fn connect(addr: SocketAddr, tls: Option<&Arc<ClientConfig>>) -> H2Client {
        H2Client::with(addr, tls, &Builder::new())
    }

    /// With windows and settings of its own.
    pub(crate) fn with(
        addr: SocketAddr,
        tls: Option<&Arc<ClientConfig>>,
        builder: &Builder,
    ) -> H2Client {
        let (builder, tls) = (builder.clone(), tls.cloned());
        let (ready, is_ready) = mpsc::channel();
        let (ended, over) = mpsc::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async move {
                let socket = tokio::net::TcpStream::connect(addr).await.unwrap();
                socket.set_nodelay(true).unwrap();
                let driven = async {
                    match tls {
                        None => drive(socket, &builder, &ready).await,
                        Some(config) => {
                            let connector = tokio_rustls::TlsConnector::from(config);
                            let tls = connector.connect(server_name(), socket).await.unwrap();
                            assert_eq!(tls.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
                            drive(tls, &builder, &ready).await
                        }
                    }
                };
                tokio::select! {
                    end = driven => drop(ended.send(end)),
                    _ = stopped => {}
                }
            });
        });
        let send = is_ready.recv().expect("a connection");
        H2Client { send, stop: Some(stop), thread: Some(thread), over: Mutex::new(over) }
    }

    /// Opens a stream once the peer lets one be opened; `ends` without a body.
    pub(crate) fn open(
        &self,
        method: &str,
        path: &str,
        fields: &[(&str, &str)],
        ends: bool,
    ) -> Stream {
        self.try_open(method, path, fields, ends).expect("the connection is open")
    }

    pub(crate) fn try_open(
        &self,
        method: &str,
        path: &str,
        fields: &[(&str, &str)],
        ends: bool,
    ) -> Result<Stream, h2::Error> {
        let uri = format!("http://proxy{path}");
        let request = Request::builder().method(method).uri(uri);
        let request = fields.iter().fold(request, |all, (name, value)| all.header(*name, *value));
        let mut send = wait(self.send.clone().ready())?;
        let (response, send) = send.send_request(request.body(()).unwrap(), ends)?;
        Ok(Stream { send, response, body: None })
    }

    /// A request without a body.
    pub(crate) fn get(&self, path: &str, fields: &[(&str, &str)]) -> Stream {
        self.open("GET", path, fields, true)
    }

    /// A request with a body that is there at once.
    pub(crate) fn post(&self, path: &str, fields: &[(&str, &str)], body: &str) -> Stream {
        let mut stream = self.open("POST", path, fields, false);
        stream.send(Bytes::copy_from_slice(body.as_bytes()), true).expect("it is taken");
        stream
    }

    /// A chat completion of the model `m`.
    pub(crate) fn chat(&self, mock: &str, stream: bool) -> Stream {
        let body = format!("{{\"messages\":[],\"model\":\"m\",\"stream\":{stream},\"seed\":7}}");
        self.post("/v1/chat/completions", &[("x-mock", mock)], &body)
    }

    /// Waits for the peer to end the connection; how it did.
    pub(crate) fn end(&self) -> Result<(), h2::Error> {
        self.over.lock().unwrap().recv_timeout(LIMIT).expect("the connection ends")
    }
}

impl Drop for H2Client {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the client's thread panicked");
        }
    }
}

async fn drive(
    io: impl AsyncRead + AsyncWrite + Unpin,
    builder: &Builder,
    ready: &mpsc::Sender<SendRequest<Bytes>>,
) -> Result<(), h2::Error> {
    let (send, connection) = builder.handshake(io).await?;
    ready.send(send).unwrap();
    connection.await
}

impl Stream {
    /// Sends all of it as the windows allow.
    pub(crate) fn send(&mut self, data: Bytes, ends: bool) -> Result<(), h2::Error> {
        self.send_counted(data, ends, &AtomicU64::new(0))
    }

    /// The same, counting what has been let go.
    pub(crate) fn send_counted(
        &mut self,
        mut data: Bytes,
        ends: bool,
        sent: &AtomicU64,
    ) -> Result<(), h2::Error> {
        wait(pour(&mut self.send, &mut data, ends, sent))
    }

    /// Sends all and reads the body of the answer at the same time.
    pub(crate) fn both_ways(&mut self, mut data: Bytes) -> Vec<u8> {
        let (send, sent) = (&mut self.send, AtomicU64::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| wait(pour(send, &mut data, true, &sent)).expect("it is taken"));
            self.body = Some(wait(&mut self.response).expect("an answer").into_body());
            let body = self.body.as_mut().expect("just put there");
            let mut all = Vec::new();
            while let Some(data) = wait(body.data()) {
                let data = data.expect("the stream is open");
                let _ = body.flow_control().release_capacity(data.len());
                all.extend_from_slice(&data);
            }
            all
        })
    }

    pub(crate) fn send_trailers(&mut self, trailers: HeaderMap) {
        self.send.send_trailers(trailers).expect("they are taken");
    }

    /// Gives the stream up.
    pub(crate) fn reset(&mut self) {
        self.send.send_reset(Reason::CANCEL);
    }

    /// Waits until the peer gives the stream up, without reading from it.
    pub(crate) fn reset_by_peer(&mut self) -> Reason {
        wait(poll_fn(|cx| self.send.poll_reset(cx))).expect("the connection is open")
    }

    /// The next interim answer.
    pub(crate) fn interim(&mut self) -> Response<()> {
        let next = wait(poll_fn(|cx| self.response.poll_informational(cx)));
        next.expect("there is one").expect("the stream is open")
    }

    /// The head of the answer.
    pub(crate) fn head(&mut self) -> Result<Response<()>, h2::Error> {
        let (parts, body) = wait(&mut self.response)?.into_parts();
        self.body = Some(body);
        Ok(Response::from_parts(parts, ()))
    }

    /// Some bytes of the body, for which the window is opened again; `None` at the end.
    pub(crate) fn data(&mut self) -> Option<Result<Bytes, h2::Error>> {
        let body = self.body.as_mut().expect("the head was read");
        let data = wait(body.data());
        if let Some(Ok(data)) = &data {
            let _ = body.flow_control().release_capacity(data.len());
        }
        data
    }

    /// Reads through `mark`, which must be where some bytes end.
    pub(crate) fn through(&mut self, mark: &str) -> String {
        let mut text = String::new();
        while !text.ends_with(mark) {
            let data = self.data().unwrap_or_else(|| panic!("no {mark:?} in {text:?}"));
            text += std::str::from_utf8(&data.expect("the stream is open")).unwrap();
        }
        text
    }

    /// The body to its end, or what came of it and why it was no end.
    pub(crate) fn rest(&mut self) -> Result<Vec<u8>, (Vec<u8>, h2::Error)> {
        let mut all = Vec::new();
        while let Some(data) = self.data() {
            match data {
                Ok(data) => all.extend_from_slice(&data),
                Err(why) => return Err((all, why)),
            }
        }
        Ok(all)
    }

    /// The whole answer.
    pub(crate) fn answer(mut self) -> Answer {
        self.try_answer().unwrap_or_else(|why| panic!("broken answer: {why}"))
    }

    pub(crate) fn try_answer(&mut self) -> Result<Answer, h2::Error> {
        let head = self.head()?;
        let body = self.rest().map_err(|(_, why)| why)?;
        let (status, head) = (head.status().as_u16(), head.headers().clone());
        Ok(Answer { status, head, body, trailers: self.trailers()? })
    }

    /// What came behind the body.
    pub(crate) fn trailers(&mut self) -> Result<HeaderMap, h2::Error> {
        let body = self.body.as_mut().expect("the head was read");
        Ok(wait(body.trailers())?.unwrap_or_default())
    }
}

async fn pour(
    send: &mut SendStream<Bytes>,
    data: &mut Bytes,
    ends: bool,
    sent: &AtomicU64,
) -> Result<(), h2::Error> {
    loop {
        send.reserve_capacity(data.len());
        if send.capacity() == 0 && !data.is_empty() {
            match poll_fn(|cx| send.poll_capacity(cx)).await {
                Some(capacity) => drop(capacity?),
                None => return Err(Reason::CANCEL.into()),
            }
            continue;
        }
        let n = send.capacity().min(data.len());
        let piece = data.split_to(n);
        send.send_data(piece, ends && data.is_empty())?;
        sent.fetch_add(n as u64, SeqCst);
        if data.is_empty() {
            return Ok(());
        }
    }
}

impl Answer {
    /// The value of a field.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.head.get(name).and_then(|value| value.to_str().ok())
    }

    /// The body as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}
