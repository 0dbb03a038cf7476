//! One stream of HTTP/2 as one exchange.
//!
//! ```text
//! headers → head of HTTP/1.1 → exchange ⇄ pipe → response head, body, trailers → stream
//! DATA    → body in the pipe ↗
//! ```
//! The exchange does not know that its client speaks HTTP/2: it reads a request of HTTP/1.1 from
//! the pipe and writes an answer into it. So routing, limits, retries, aborts and counting are the
//! same for every version. A client that resets its stream ends the pipe, which to the exchange is
//! a client that has left; an exchange that cannot end its answer ends the pipe before the framing
//! is complete, which resets the stream.

use std::cell::Cell;
use std::future::{Future as _, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{Request, Response, StatusCode};

use super::core::Core;
use super::downstream::{Client, Downstream, LINGER, LINGER_BYTES_MAX};
use super::exchange;
use super::settle::Settle;
use crate::base::buf::{FRAME_BYTES, SMALL_BYTES};
use crate::base::ids::RequestId;
use crate::error::Kind;
use crate::http::head::ResponseHead;
use crate::http::method::Method;
use crate::http1::body::BodyReader;
use crate::http1::framing::{Framing, response_framing};
use crate::http1::parse::Parse;
use crate::http1::reparse::reparse_response;
use crate::http2::{BodyFraming, Ends, Fault, request, response};
use crate::net::buffers;
use crate::net::h2body::{self, Broken, ToClient};
use crate::net::h2io::Chunk;
use crate::net::pipe::{self, End};
use crate::net::pooled_future::PooledFuture;
use crate::net::stream::{Handle, Stream};
use crate::net::sys::Shut;
use crate::net::unsent::Unsent;

/// Bytes that the pipe holds in each direction.
const PIPE_BYTES: usize = FRAME_BYTES;

/// Serves one stream to its end.
///
/// Shape: `write_idle` is how long the client may read nothing; `unsent` counts answers that wait.
pub async fn serve(
    core: &Rc<Core>,
    client: &Client,
    write_idle: Duration,
    unsent: &Rc<Unsent>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Chunk>,
) {
    let (parts, mut body) = request.into_parts();
    let mut head = core.buffers.take(SMALL_BYTES);
    let ends = Ends::of(body.is_end_stream());
    let (method, uri) = (&parts.method, &parts.uri);
    let limits = core.plan().head;
    let mut scratch = core.take_scratch();
    let parsed = &mut scratch.request;
    let written =
        request::write_head(&mut head, parsed, method, uri, &parts.headers, ends, &limits);
    let framing = match written {
        Ok(framing) => framing,
        Err(fault) => {
            core.give_back_scratch(scratch);
            core.buffers.give_back(head);
            refuse(core, client, fault, (parts.method.as_str(), parts.uri.path()), &mut respond);
            return discard_rest(core, &mut body).await;
        }
    };
    let method = scratch.request.method;
    drop(parts);
    // The part of a body that came with its head goes to the exchange in the same buffer.
    let ahead =
        poll_fn(|cx| Poll::Ready(h2body::take_ready(&mut body, framing, &mut head, cx))).await;
    let fed = ahead.ended && framing != BodyFraming::Chunked;
    let (ours, theirs) = pipe::pair_counted(PIPE_BYTES, unsent.clone());
    let mut down = Downstream::new(core, client.with_stream(Stream::Pipe(theirs)), head);
    down.parsed = Some(scratch);
    // The exchange owns its end of the pipe, so that the end closes with the exchange.
    let mut exchange = Some(PooledFuture::with(|| async move {
        exchange::run(core, &mut down).await;
        core.buffers.give_back(std::mem::take(&mut down.recv));
    }));
    let (taken, mut answered) = (Cell::default(), false);
    let mut feed = (!fed).then(|| {
        PooledFuture::with(|| h2body::into_pipe(&mut body, ahead.first, framing, &ours, &taken))
    });
    let to_client = ToClient::new(&core.ticker, &ours, write_idle, unsent);
    let mut answer = pin!(answer(core, &ours, method, &mut respond, &to_client));
    poll_fn(|cx| {
        if let Some(feeding) = &mut feed
            && let Poll::Ready(result) = Pin::new(feeding).poll(cx)
        {
            feed = None;
            if matches!(result, Err(Broken::Stream | Broken::Ours)) {
                ours.shutdown(Shut::Both);
            }
        }
        if let Some(running) = &mut exchange
            && Pin::new(running).poll(cx).is_ready()
        {
            exchange = None;
        }
        if !answered && answer.as_mut().poll(cx).is_ready() {
            answered = true;
            // Whole or not, nothing reads any more what the exchange may still write.
            ours.shutdown(Shut::Both);
        }
        if answered && exchange.is_none() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    drop(feed);
    if !ahead.ended {
        discard_rest(core, &mut body).await;
    }
}

/// Throws away what is still to come of a body, if anything is.
async fn discard_rest(core: &Core, body: &mut RecvStream) {
    if !body.is_end_stream() {
        PooledFuture::with(|| discard(core, body)).await;
    }
}

/// Reads the rest of a body for up to `LINGER` and throws it away: the client is still sending, and
/// to give its stream up now would reset it and destroy the answer on its way.
async fn discard(core: &Core, body: &mut RecvStream) {
    // This pipe carries nothing: the ticker shuts it when the time is over, which ends the loop.
    let (own, _far) = pipe::pair(1);
    let timer = core.ticker.timer();
    timer.arm(Handle::Pipe(own.downgrade()), Shut::Both, LINGER);
    let mut left = LINGER_BYTES_MAX;
    while left > 0 {
        let data = poll_fn(|cx| match own.poll_shut(cx) {
            Poll::Ready(()) => Poll::Ready(None),
            Poll::Pending => body.poll_data(cx),
        });
        let Some(Ok(data)) = data.await else { return };
        left = left.saturating_sub(data.len());
        let _ = body.flow_control().release_capacity(data.len());
    }
}

/// Refuses a head that cannot be written as HTTP/1.1: by a status, or by a reset if malformed.
///
/// Shape: `asked` is method and path, for the record.
pub(super) fn refuse(
    core: &Rc<Core>,
    client: &Client,
    fault: Fault,
    asked: (&str, &str),
    respond: &mut SendResponse<Chunk>,
) {
    let kind = match fault {
        Fault::MethodRefused => Kind::MethodRefused,
        Fault::HeadTooLarge => Kind::HeadTooLarge,
        Fault::TooManyFields => Kind::FieldsTooMany,
        Fault::TargetTooLong => Kind::TargetTooLong,
        _ => Kind::HeadMalformed,
    };
    let settle = begin_record(core, client, asked);
    settle.record.failed(kind);
    let status = kind.row().status.and_then(|status| StatusCode::from_u16(status).ok());
    let mut answer = Response::new(());
    *answer.status_mut() = status.unwrap_or(StatusCode::BAD_REQUEST);
    // RFC 9113 §8.1.1: a malformed request is a stream error.
    if kind == Kind::HeadMalformed || respond.send_response(answer, true).is_err() {
        respond.send_reset(Reason::PROTOCOL_ERROR);
    } else {
        settle.record.answered_here(kind.row().status.unwrap_or(0), 0);
    }
}

/// Refuses a stream because the process has as many as it may. The reason tells the client that
/// the request was not looked at and may be sent again.
#[cold]
pub(super) fn turn_away(
    core: &Rc<Core>,
    client: &Client,
    asked: (&str, &str),
    respond: &mut SendResponse<Chunk>,
) {
    let settle = begin_record(core, client, asked);
    settle.record.failed(Kind::ConnectionsReached);
    respond.send_reset(Reason::REFUSED_STREAM);
}

/// Begins the record of an exchange that ends with its head.
#[cold]
fn begin_record(core: &Rc<Core>, client: &Client, (method, path): (&str, &str)) -> Settle {
    let (plan, number) = core.plan_for(&client.listener);
    let number = plan.listeners[number].number;
    let settle = Settle::begin(core, &plan, number, client.peer.as_ref().map(|peer| peer.ip));
    settle.record.named(&RequestId::new(settle.begun_at().wall, core.random_u64()));
    let kind = Method::of(method.as_bytes());
    settle.record.head_read(kind, method.as_bytes(), path.as_bytes());
    settle
}

/// Relays the answer; resets the stream when it does not come to its end.
async fn answer(
    core: &Core,
    pipe: &End,
    method: Method,
    respond: &mut SendResponse<Chunk>,
    client: &ToClient<'_>,
) {
    let mut scratch = core.take_scratch();
    let head = &mut scratch.response;
    let begun = begin(pipe, method, respond, head).await;
    let reset = match begun {
        Ok(None) | Err(Broken::Stream | Broken::Ours) => None,
        Err(Broken::Pipe | Broken::Stalled) => Some(Reason::INTERNAL_ERROR),
        Ok(Some(Begun { mut stream, buffer, from, reader })) => {
            let body = h2body::into_stream(pipe, buffer, from, reader, &mut stream, Some(client));
            match body.await {
                Ok(()) | Err(Broken::Stream | Broken::Ours) => None,
                Err(Broken::Stalled) => Some(Reason::CANCEL),
                Err(Broken::Pipe) => {
                    // A reset throws away what waits to be sent, an event that tells of the
                    // error above all.
                    let _ = client.flush(&mut stream).await;
                    Some(Reason::INTERNAL_ERROR)
                }
            }
        }
    };
    core.give_back_scratch(scratch);
    if let Some(reason) = reset {
        respond.send_reset(reason);
    }
}

/// An answer whose head has been sent.
struct Begun {
    stream: SendStream<Chunk>,
    /// Bytes received from the exchange; the body begins at `from`.
    buffer: Vec<u8>,
    from: usize,
    reader: BodyReader,
}

/// Sends the head of the answer, and interim ones before it.
///
/// Shape: `None` when the answer has no body.
async fn begin(
    pipe: &End,
    method: Method,
    respond: &mut SendResponse<Chunk>,
    head: &mut ResponseHead,
) -> Result<Option<Begun>, Broken> {
    let mut buffer = Vec::new();
    loop {
        if buffer.is_empty() {
            buffer = receive(pipe, respond).await?;
        }
        match reparse_response(&buffer, head) {
            Err(_) => return Err(Broken::Pipe),
            Ok(Parse::More) => {
                let more = receive(pipe, respond).await?;
                buffer.extend_from_slice(&more);
                buffers::give_back(more);
            }
            Ok(Parse::Done) if head.status >= 200 => break,
            Ok(Parse::Done) => {
                let interim = response::read_head(head, &buffer).map_err(|_| Broken::Pipe)?;
                respond.send_informational(interim).map_err(|_| Broken::Stream)?;
                buffer.drain(..head.len as usize);
            }
        }
    }
    let response = response::read_head(head, &buffer).map_err(|_| Broken::Pipe)?;
    let framing = response_framing(method, head, &buffer).map_err(|_| Broken::Pipe)?;
    let bare = matches!(framing, Framing::None | Framing::Length(0));
    let stream = respond.send_response(response, bare).map_err(|_| Broken::Stream)?;
    if bare {
        buffers::give_back(buffer);
        return Ok(None);
    }
    let from = head.len as usize;
    Ok(Some(Begun { stream, buffer, from, reader: BodyReader::new(framing) }))
}

/// Receives more of the answer's head, unless the client resets the stream.
async fn receive(pipe: &End, respond: &mut SendResponse<Chunk>) -> Result<Vec<u8>, Broken> {
    let received = poll_fn(|cx| {
        if respond.poll_reset(cx).is_ready() {
            return Poll::Ready(Err(Broken::Stream));
        }
        pipe.poll_recv_whole(cx).map(Ok)
    });
    match received.await? {
        end if end.is_empty() => Err(Broken::Pipe),
        received => Ok(received),
    }
}
