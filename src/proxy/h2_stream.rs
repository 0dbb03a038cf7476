//! One stream of HTTP/2 as one exchange.
//!
//! ```text
//! headers → head of HTTP/1.1 → exchange ⇄ pipe → response head, body, trailers → stream
//! DATA    → body in the pipe ↗
//! ```
//! The exchange does not know: it reads a request and writes an answer. So routing, limits,
//! retries, aborts and counting are the same for every version. A client that resets its stream
//! ends the pipe, which to the exchange is a client that has left; an exchange that cannot end
//! its answer ends the pipe before the framing is complete, which resets the stream.

use std::cell::Cell;
use std::future::{Future as _, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Poll, ready};

use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{Request, Response, StatusCode};

use super::conn_h1::{Downstream, LINGER, LINGER_BYTES_MAX};
use super::conn_h2::Shared;
use super::core::Core;
use super::exchange;
use super::settle::Settle;
use crate::base::buf::SMALL_BYTES;
use crate::error::Kind;
use crate::http::head::ResponseHead;
use crate::http::method::Method;
use crate::http1::body::BodyReader;
use crate::http1::framing::{Framing, response_framing};
use crate::http1::parse::{HeadLimits, Parse, parse_response};
use crate::http2::{BodyFraming, Ends, Fault, request, response};
use crate::net::frame::Frame;
use crate::net::h2body::{self, Broken, Patience};
use crate::net::h2io::Chunk;
use crate::net::pipe::{self, End};
use crate::net::stream::{Handle, Stream};
use crate::net::sys::Shut;

/// What the pipe holds in each direction.
const PIPE_BYTES: usize = 16 * 1024;
/// Bounds of the head that the exchange writes: larger than any it lets through.
const ANSWER_HEAD: HeadLimits =
    HeadLimits { head_bytes_max: 512 * 1024, fields_max: 512, target_bytes_max: 0 };

/// Serves one stream.
pub async fn serve(
    core: &Rc<Core>,
    shared: &Shared,
    request: Request<RecvStream>,
    mut respond: SendResponse<Chunk>,
) {
    let (parts, mut body) = request.into_parts();
    let mut head = core.buffers.take(SMALL_BYTES);
    let ends = Ends::of(body.is_end_stream());
    let (method, uri) = (&parts.method, &parts.uri);
    let limits = core.plan().head;
    let framing = match request::write_head(&mut head, method, uri, &parts.headers, ends, &limits) {
        Ok(framing) => framing,
        Err(fault) => {
            core.buffers.give_back(head);
            refuse(core, fault, &mut respond);
            return Frame::with(|| discard(core, &mut body)).await;
        }
    };
    let method = Method::of(method.as_str().as_bytes());
    drop(parts);
    let (ours, theirs) = pipe::pair(PIPE_BYTES);
    let mut down = Downstream::new(core, shared.client.with_stream(Stream::Pipe(theirs)), head);
    // Its end of the pipe closes with the exchange.
    let mut exchange = Some(Frame::with(|| async move {
        exchange::run(core, &mut down).await;
        core.buffers.give_back(std::mem::take(&mut down.recv));
    }));
    let mut feed = Some(Frame::with(|| feed(&mut body, framing, &ours)));
    let timer = core.ticker.timer();
    let patience = Patience::new(&timer, &ours, shared.timeouts.write_idle);
    let mut answer = pin!(answer(core, &ours, method, &mut respond, &patience));
    let mut answered = false;
    poll_fn(|cx| {
        if let Some(feeding) = &mut feed
            && let Poll::Ready(result) = Pin::new(feeding).poll(cx)
        {
            feed = None;
            if result == Err(Broken::Stream) {
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
            // Whole or not, nobody reads what the exchange may still have to say.
            ours.shutdown(Shut::Both);
        }
        if answered && exchange.is_none() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    drop(feed);
    Frame::with(|| discard(core, &mut body)).await;
}

/// Reads on for a while and throws it away: the client is still sending, and to give its stream up
/// now would reset it and destroy the answer on its way.
async fn discard(core: &Core, body: &mut RecvStream) {
    if body.is_end_stream() {
        return;
    }
    // Only the ticker ends this pipe: it stands for the time that is left.
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

/// Answers a head that HTTP/1.1 has no words for.
fn refuse(core: &Rc<Core>, fault: Fault, respond: &mut SendResponse<Chunk>) {
    let kind = match fault {
        Fault::MethodRefused => Kind::MethodRefused,
        Fault::HeadTooLarge => Kind::HeadTooLarge,
        Fault::TooManyFields => Kind::FieldsTooMany,
        Fault::TargetTooLong => Kind::TargetTooLong,
        _ => Kind::HeadMalformed,
    };
    let mut settle = Settle::begin(core);
    settle.fault(kind);
    let status = kind.row().status.and_then(|status| StatusCode::from_u16(status).ok());
    let mut answer = Response::new(());
    *answer.status_mut() = status.unwrap_or(StatusCode::BAD_REQUEST);
    // RFC 9113 §8.1.1: a malformed request is a stream error.
    if kind == Kind::HeadMalformed || respond.send_response(answer, true).is_err() {
        respond.send_reset(Reason::PROTOCOL_ERROR);
    }
}

async fn feed(body: &mut RecvStream, framing: BodyFraming, pipe: &End) -> Result<(), Broken> {
    match framing {
        BodyFraming::None => Ok(()),
        _ => h2body::into_pipe(body, framing, pipe, &Cell::default()).await,
    }
}

/// Relays the answer; resets the stream when it does not come to its end.
async fn answer(
    core: &Core,
    pipe: &End,
    method: Method,
    respond: &mut SendResponse<Chunk>,
    patience: &Patience<'_>,
) {
    let mut scratch = core.take_scratch();
    let head = &mut scratch.response;
    let begun = begin(core, pipe, method, respond, head).await;
    let reset = match begun {
        Ok(None) | Err(Broken::Stream) => None,
        Err(Broken::Pipe | Broken::Stalled) => Some(Reason::INTERNAL_ERROR),
        Ok(Some((mut stream, buffer, reader))) => {
            match h2body::into_stream(pipe, buffer, reader, &mut stream, Some(patience)).await {
                Ok(()) | Err(Broken::Stream) => None,
                Err(Broken::Stalled) => Some(Reason::CANCEL),
                Err(Broken::Pipe) => {
                    // A reset throws away what waits to be sent, an event that tells of the
                    // error above all.
                    let _ = h2body::flush(&mut stream, patience).await;
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

/// Sends the head of the answer, and interim ones before it.
///
/// Shape: the stream, the beginning of the body and its framing; `None` without a body.
async fn begin(
    core: &Core,
    pipe: &End,
    method: Method,
    respond: &mut SendResponse<Chunk>,
    head: &mut ResponseHead,
) -> Result<Option<(SendStream<Chunk>, Vec<u8>, BodyReader)>, Broken> {
    let mut buffer = core.buffers.take(SMALL_BYTES);
    let mut searched = 0;
    loop {
        match parse_response(&buffer, &mut searched, &ANSWER_HEAD, head) {
            Err(_) => return Err(Broken::Pipe),
            Ok(Parse::More) => receive(pipe, respond, &mut buffer).await?,
            Ok(Parse::Done) if head.status >= 200 => break,
            Ok(Parse::Done) => {
                let interim = response::read_head(head, &buffer).map_err(|_| Broken::Pipe)?;
                respond.send_informational(interim).map_err(|_| Broken::Stream)?;
                buffer.drain(..head.len as usize);
                searched = 0;
            }
        }
    }
    let response = response::read_head(head, &buffer).map_err(|_| Broken::Pipe)?;
    let framing = response_framing(method, head, &buffer).map_err(|_| Broken::Pipe)?;
    let bare = matches!(framing, Framing::None | Framing::Length(0));
    let stream = respond.send_response(response, bare).map_err(|_| Broken::Stream)?;
    if bare {
        core.buffers.give_back(buffer);
        return Ok(None);
    }
    buffer.drain(..head.len as usize);
    Ok(Some((stream, buffer, BodyReader::new(framing))))
}

/// Receives more of the answer's head, unless the client gives up.
async fn receive(
    pipe: &End,
    respond: &mut SendResponse<Chunk>,
    buffer: &mut Vec<u8>,
) -> Result<(), Broken> {
    if buffer.capacity() == buffer.len() {
        buffer.reserve(buffer.len());
    }
    poll_fn(|cx| {
        if respond.poll_reset(cx).is_ready() {
            return Poll::Ready(Err(Broken::Stream));
        }
        match ready!(pipe.poll_recv(cx, buffer)) {
            0 => Poll::Ready(Err(Broken::Pipe)),
            _ => Poll::Ready(Ok(())),
        }
    })
    .await
}
