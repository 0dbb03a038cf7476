//! One exchange on an HTTP/2 link: the HTTP/1.1 that it writes into a pipe becomes a stream.
//!
//! ```text
//! exchange → pipe → request head, body, trailers → stream
//! exchange ← pipe ← answer head, body, trailers  ← stream
//! ```
//! Both directions run at once. An exchange that closes its end of the pipe before the answer is
//! whole has given up: the stream is reset (CANCEL) in the same turn. A stream or link that ends
//! before the answer is whole ends the pipe before the framing does, so that the exchange sees a
//! truncated answer and never a clean end.
//!
//! Each window is opened again only for what the pipe has taken: a client that does not read
//! holds one stream window and one pipe. Allocates per request what the `h2` crate needs for heads.

use std::cell::Cell;
use std::future::{Future as _, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Poll, ready};
use std::time::Duration;

use h2::client::ResponseFuture;
use h2::{Reason, RecvStream};
use http::Response;

use super::conn::{StreamEnd, UpConn};
use super::endpoint::PoolId;
use super::h2_pool::{H2Pool, StreamSlot};
use crate::base::buf::SMALL_BYTES;
use crate::http::head::RequestHead;
use crate::http::method::Method;
use crate::http1::body::BodyReader;
use crate::http1::framing::request_framing;
use crate::http1::parse::{HeadLimits, Parse, parse_request};
use crate::http2::{BodyFraming, Ends, outgoing};
use crate::net::buffers;
use crate::net::h2body::{self, Broken};
use crate::net::pipe::{self, End};
use crate::net::pooled_future::PooledFuture;
use crate::net::race::{First, race};
use crate::net::rt;
use crate::net::stream::Stream;
use crate::net::sys::Shut;

/// Bytes that the pipe holds in each direction.
const PIPE_BYTES: usize = 64 * 1024;
/// Bounds of the request head that the exchange writes: larger than any head it lets through.
const REQUEST_HEAD: HeadLimits =
    HeadLimits { head_bytes_max: 64 << 20, fields_max: 1 << 14, target_bytes_max: 32 << 20 };
/// Bounds of the answer's head: wide, since the exchange and the link have bounds of their own.
const ANSWER_HEAD: HeadLimits =
    HeadLimits { head_bytes_max: 16 << 20, fields_max: 10_000, target_bytes_max: 0 };
/// How long to wait for the end of a stream whose bytes have all come: a reset would look like an
/// abort.
const LAST_FRAME: Duration = Duration::from_secs(1);
/// Written for an answer that cannot be put into HTTP/1.1: the exchange reads it as bad HTTP.
const NO_ANSWER: &[u8] = b"HTTP/2 malformed\r\n\r\n";
/// The answer to a request that cannot be put into HTTP/2: the client's fault, not the server's.
const NO_REQUEST: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n\
    content-length: 132\r\nx-should-retry: false\r\n\r\n\
    {\"error\":{\"message\":\"The request cannot be sent over HTTP/2.\",\
    \"type\":\"invalid_request_error\",\"param\":null,\"code\":\"invalid_request\"}}";

/// What the end of a stream before its answer says of the server; shared with the exchange.
type Excuse = Rc<Cell<StreamEnd>>;

/// Gives a stream to an exchange as a connection: a request written to it goes out as a stream.
#[must_use]
pub fn open(h2_pool: &Rc<H2Pool>, slot: StreamSlot, pool: PoolId) -> UpConn {
    let (ours, theirs) = pipe::pair(PIPE_BYTES);
    // As with a pooled connection: a used link may have been closed while the request was on its
    // way.
    let end = if slot.is_fresh() { StreamEnd::Blamed } else { StreamEnd::Excused };
    let excuse = Rc::new(Cell::new(end));
    let conn = UpConn::bridged(Stream::Pipe(theirs), pool, excuse.clone());
    h2_pool.spawn(async move { run(&ours, &slot, &excuse).await });
    conn
}

/// Relays one exchange between its pipe and a stream, until the answer is over.
async fn run(pipe: &End, slot: &StreamSlot, excuse: &Excuse) {
    let mut head = RequestHead::new();
    let mut buffer = buffers::take(SMALL_BYTES);
    if !read_head(pipe, &mut head, &mut buffer).await {
        return buffers::give_back(buffer);
    }
    let request = outgoing::read_request(&head, &buffer, slot.scheme());
    let framing = request_framing(&head, &buffer);
    let (Ok(request), Ok(framing)) = (request, framing) else {
        let _ = pipe.send_now(NO_REQUEST);
        return buffers::give_back(buffer);
    };
    let reader = BodyReader::new(framing);
    let mut requests = slot.requests();
    let unread = poll_fn(|cx| pipe.poll_unread(cx));
    let ready = poll_fn(|cx| requests.poll_ready(cx));
    if !matches!(first(ready, unread).await, Some(Ok(()))) {
        // The request has not been sent.
        excuse.set(StreamEnd::Excused);
        return buffers::give_back(buffer);
    }
    let Ok((response, mut stream)) = requests.send_request(request, reader.is_done()) else {
        excuse.set(StreamEnd::Excused);
        return buffers::give_back(buffer);
    };
    let progress = AnswerProgress::default();
    let answer = pin!(answer(pipe, response, head.method, &progress, excuse));
    if reader.is_done() {
        buffers::give_back(buffer);
        drop(stream);
        both_ways(pipe, pin!(async { Ok(()) }), answer, &progress).await;
    } else {
        let from = head.len as usize;
        let upload = pin!(h2body::into_stream(pipe, buffer, from, reader, &mut stream, None));
        both_ways(pipe, upload, answer, &progress).await;
    }
}

/// Awaits the left future, unless the right one ends first. Both are dropped.
async fn first<T>(left: impl Future<Output = T>, right: impl Future<Output = ()>) -> Option<T> {
    match race(pin!(left), pin!(right)).await {
        First::Left(value) => Some(value),
        First::Right(()) => None,
    }
}

/// Receives the head that the exchange writes; false when it ends before, or is no HTTP.
async fn read_head(pipe: &End, head: &mut RequestHead, buffer: &mut Vec<u8>) -> bool {
    let mut searched = 0;
    loop {
        match parse_request(buffer, &mut searched, &REQUEST_HEAD, head) {
            Ok(Parse::Done) => return true,
            Err(_) => return false,
            Ok(Parse::More) => {}
        }
        if buffer.len() == buffer.capacity() {
            buffer.reserve(buffer.len());
        }
        if poll_fn(|cx| pipe.poll_recv(cx, buffer)).await == 0 {
            return false;
        }
    }
}

/// How much of an answer the exchange has.
#[derive(Default)]
struct AnswerProgress {
    /// How the body is delimited, once the head has been written.
    framing: Cell<Option<BodyFraming>>,
    body_bytes: Cell<u64>,
}

impl AnswerProgress {
    /// Whether the exchange has the whole answer, though the stream may still be open.
    fn is_whole(&self) -> bool {
        match self.framing.get() {
            Some(BodyFraming::None) => true,
            Some(BodyFraming::Length(bytes)) => self.body_bytes.get() >= bytes,
            Some(BodyFraming::Chunked) | None => false,
        }
    }
}

/// Runs request and answer at once, until the answer is over or the exchange gives up.
///
/// A stream that has not ended is reset when it is dropped.
async fn both_ways(
    pipe: &End,
    mut upload: Pin<&mut impl Future<Output = Result<(), Broken>>>,
    mut answer: Pin<&mut impl Future<Output = Result<(), Broken>>>,
    progress: &AnswerProgress,
) {
    let (mut sent, mut answered) = (false, false);
    let mut last_frame = None;
    poll_fn(|cx| {
        if !sent && let Poll::Ready(end) = upload.as_mut().poll(cx) {
            sent = true;
            match end {
                Ok(()) => {}
                // The answer tells why the server reads no more, if there is one.
                Err(Broken::Stream | Broken::Ours | Broken::Stalled) => pipe.shutdown(Shut::Read),
                Err(Broken::Pipe) => return Poll::Ready(()),
            }
        }
        if !answered && let Poll::Ready(end) = answer.as_mut().poll(cx) {
            answered = true;
            if end.is_err() {
                return Poll::Ready(());
            }
        }
        if sent && answered {
            return Poll::Ready(());
        }
        ready!(pipe.poll_unread(cx));
        if !sent || !progress.is_whole() {
            return Poll::Ready(());
        }
        let last_frame = last_frame.get_or_insert_with(|| PooledFuture::new(rt::sleep(LAST_FRAME)));
        Pin::new(last_frame).poll(cx)
    })
    .await;
}

/// Writes the answer into the pipe.
///
/// Errors: the answer did not come to its end, or the exchange reads no more.
async fn answer(
    pipe: &End,
    response: ResponseFuture,
    method: Method,
    progress: &AnswerProgress,
    excuse: &Excuse,
) -> Result<(), Broken> {
    let mut out = buffers::take(SMALL_BYTES);
    let begun = begin(pipe, response, method, progress, excuse, &mut out).await;
    buffers::give_back(out);
    let relayed = match begun {
        Ok((mut body, framing)) => {
            h2body::into_pipe(&mut body, None, framing, pipe, &progress.body_bytes).await
        }
        Err(broken) => Err(broken),
    };
    if relayed == Err(Broken::Ours) {
        excuse.set(StreamEnd::Ours);
    }
    relayed
}

/// Writes the answer's head, and the interim heads before it.
async fn begin(
    pipe: &End,
    mut response: ResponseFuture,
    method: Method,
    progress: &AnswerProgress,
    excuse: &Excuse,
    out: &mut Vec<u8>,
) -> Result<(RecvStream, BodyFraming), Broken> {
    loop {
        let came = next_head(&mut response).await.map_err(|error| {
            note_unprocessed(&error, excuse);
            Broken::by(&error)
        })?;
        out.clear();
        let (parts, body) = came.into_parts();
        let ends = Ends::of(body.as_ref().is_some_and(RecvStream::is_end_stream));
        let (status, fields) = (parts.status, &parts.headers);
        let written =
            outgoing::write_response_head(out, status, fields, method, ends, &ANSWER_HEAD);
        let Ok(framing) = written else {
            let _ = pipe.send_now(NO_ANSWER);
            return Err(Broken::Stream);
        };
        h2body::send(pipe, out).await?;
        if let Some(body) = body {
            progress.framing.set(Some(framing));
            return Ok((body, framing));
        }
    }
}

/// Waits for the next head; an interim one has no body.
async fn next_head(
    response: &mut ResponseFuture,
) -> Result<Response<Option<RecvStream>>, h2::Error> {
    poll_fn(|cx| {
        // Interim heads first: the future of the response would throw them away.
        if let Poll::Ready(Some(interim)) = response.poll_informational(cx) {
            return Poll::Ready(interim.map(|head| head.map(|()| None)));
        }
        let last = ready!(Pin::new(&mut *response).poll(cx));
        Poll::Ready(last.map(|head| head.map(Some)))
    })
    .await
}

/// Notes whether the server has not processed the request, which may then be sent again whatever
/// link it was on; a request that the server reset by itself is not (RFC 9113 §8.7).
fn note_unprocessed(error: &h2::Error, excuse: &Excuse) {
    if !error.is_remote() {
        return;
    }
    // A GOAWAY ends only streams above the last one it names, which were not processed.
    let untouched = error.is_go_away() || error.reason() == Some(Reason::REFUSED_STREAM);
    excuse.set(if untouched { StreamEnd::Excused } else { StreamEnd::Blamed });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::head::ResponseHead;
    use crate::http1::framing::{Framing, response_framing};
    use crate::http1::parse::parse_response;

    #[test]
    fn what_we_answer_ourselves_is_read_as_meant() {
        let mut head = ResponseHead::new();
        let parsed = parse_response(NO_REQUEST, &mut 0, &ANSWER_HEAD, &mut head);
        assert_eq!((parsed, head.status), (Ok(Parse::Done), 400));
        let body = &NO_REQUEST[head.len as usize..];
        let framing = response_framing(Method::Get, &head, NO_REQUEST);
        assert_eq!(framing, Ok(Framing::Length(body.len() as u64)));
        assert!(serde_json::from_slice::<serde_json::Value>(body).is_ok());
        let mut head = ResponseHead::new();
        assert!(parse_response(NO_ANSWER, &mut 0, &ANSWER_HEAD, &mut head).is_err());
    }

    #[test]
    fn an_answer_is_whole_when_its_framing_is() {
        let progress = AnswerProgress::default();
        assert!(!progress.is_whole());
        for (framing, body_bytes, whole) in [
            (BodyFraming::None, 0, true),
            (BodyFraming::Length(3), 2, false),
            (BodyFraming::Length(3), 3, true),
            (BodyFraming::Chunked, 3, false),
        ] {
            progress.framing.set(Some(framing));
            progress.body_bytes.set(body_bytes);
            assert_eq!(progress.is_whole(), whole, "{framing:?}");
        }
    }
}
