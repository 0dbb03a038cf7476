//! Faults, and the one table that says what follows from each.
//!
//! A leaf says what was wrong in words of its own (`BareLf`, `LengthConflict`).
//! The trunk turns that into a `Fault`, and everything that follows from a fault
//! is read from one row here: the status, the error type, whether the client's
//! connection must close, whether another attempt makes sense, who is to blame
//! (the breaker asks), how loudly it is logged and what the end of the exchange is
//! called. No other file maps a fault to any of these.
//!
//! The table is an array indexed by the kind; a constant proves at compile time
//! that each row stands at its own index. Statuses follow RFC 9110 §15 and §5 of
//! the project's specification; the messages of the 400s and 401s are the words
//! that users of the older proxies already match on.
//!
//! It does not build bodies or heads: the dialect of an error body is the caller's.

use std::fmt;

/// What went wrong, and on which side of the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where it was seen.
    pub side: Side,
    /// What it was; the index into the table.
    pub kind: Kind,
}

impl Fault {
    /// Returns the row of the table that says what follows.
    pub fn row(self) -> &'static Row {
        self.kind.row()
    }
}

impl From<Kind> for Fault {
    fn from(kind: Kind) -> Fault {
        Fault { side: kind.row().side, kind }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.side.name(), self.row().log)
    }
}

impl std::error::Error for Fault {}

/// The side of the proxy on which a fault was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// Downstream: the request, or the connection that it came on.
    Client,
    /// The server behind.
    Upstream,
    /// The proxy itself: its limits, its tables, its mistakes.
    Proxy,
}

impl Side {
    /// Returns the word used in logs and labels.
    pub fn name(self) -> &'static str {
        match self {
            Side::Client => "client",
            Side::Upstream => "upstream",
            Side::Proxy => "proxy",
        }
    }
}

/// Every kind of failure that the proxy can meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// The request head breaks the grammar of RFC 9112.
    HeadMalformed,
    /// The request target is longer than `limits.target`.
    TargetTooLong,
    /// The head is longer than `limits.head`.
    HeadTooLarge,
    /// The head has more fields than `limits.fields`.
    FieldsTooMany,
    /// The HTTP version is neither 1.0 nor 1.1.
    VersionUnsupported,
    /// Where the body ends cannot be told for certain (RFC 9112 §6.3).
    FramingAmbiguous,
    /// The body breaks its framing: a bad chunk, bad trailers, an early end.
    BodyMalformed,
    /// The head did not arrive within `client_head`.
    HeadTimeout,
    /// The body paused longer than `client_body_idle`.
    BodyTimeout,
    /// The body is longer than `limits.body`.
    BodyTooLarge,
    /// A content coding or type that hides the model, and no route that does without.
    CodingUnsupported,
    /// Holding this body would exceed `held_total`.
    HeldTooMuch,
    /// `CONNECT` or `TRACE`.
    MethodRefused,
    /// An `Expect` other than `100-continue`.
    ExpectationFailed,
    /// No credential in any carrier that the listener accepts.
    KeyMissing,
    /// A credential that is unknown or has expired.
    KeyInvalid,
    /// The key may not use this listener or route.
    KeyNotAllowed,
    /// The key may not use this model.
    ModelNotAllowed,
    /// The key's or client's per-second rate is spent.
    RateSecond,
    /// The key's requests of this minute are spent.
    RateMinute,
    /// The key's requests of this day are spent.
    RateDay,
    /// The key's tokens of this minute are spent.
    RateTokens,
    /// The key has as many exchanges in flight as it may.
    ConcurrencyReached,
    /// No host or path route, and no default.
    RouteNotFound,
    /// No such model, and no default.
    ModelNotFound,
    /// A WebSocket is asked for where no route leads to a server: clients go on without one.
    UpgradeRefused,
    /// A request that needs a body has none.
    BodyEmpty,
    /// The body is not one JSON object.
    JsonInvalid,
    /// The body names no model, or names it by something that is no string.
    ModelMissing,
    /// A second, different model showed up in a body already on its way.
    ModelChanged,
    /// The client closed or reset its connection before the end.
    ClientGone,
    /// The client did not read for longer than `client_write_idle`.
    ClientStalled,
    /// A connection to the upstream could not be made.
    UpstreamConnect,
    /// A connection to the upstream was not made within `connect`.
    UpstreamConnectTimeout,
    /// The TLS handshake with the upstream failed: its certificate, or the connection.
    UpstreamTls,
    /// The outbound proxy could not be connected, or broke off before its answer.
    OutboundConnect,
    /// The outbound proxy was not connected within `connect`, or did not answer to CONNECT
    /// within `proxy_connect`.
    OutboundTimeout,
    /// The outbound proxy refused: our credentials (407), or the way to the upstream.
    OutboundRefused,
    /// The upstream closed or reset before its response head was complete.
    UpstreamReset,
    /// The upstream's response breaks HTTP.
    UpstreamBadHttp,
    /// No response head within `first_byte`.
    UpstreamFirstByteTimeout,
    /// The upstream died in the middle of its response body.
    UpstreamTruncated,
    /// The upstream paused longer than `stream_idle` within its response body.
    UpstreamIdle,
    /// The exchange took longer than `total`.
    TotalTimeout,
    /// No member of the group can be picked.
    NobodyAvailable,
    /// The store of the rate limits is away, and the operator says that nobody passes then.
    LimitsUnknown,
    /// The group's queue is full.
    QueueFull,
    /// The wait in the group's queue ran out.
    QueueTimeout,
    /// The connection limit of the process is reached.
    ConnectionsReached,
    /// Descriptors, memory or ports ran out here: it says nothing of the upstream.
    Shortage,
    /// The process drains, and its time is over.
    Draining,
    /// Our own mistake.
    Internal,
}

impl Kind {
    /// The kind of this number, as `as u8` gives it.
    #[must_use]
    pub fn numbered(number: u8) -> Option<Kind> {
        TABLE.get(usize::from(number)).map(|row| row.kind)
    }

    /// Every kind, in the order of the table.
    pub fn all() -> impl Iterator<Item = Kind> {
        TABLE.iter().map(|row| row.kind)
    }

    /// Returns the row of the table that says what follows.
    pub fn row(self) -> &'static Row {
        &TABLE[self as usize]
    }

    /// Returns `error.code` as the Responses API has it.
    ///
    /// Codex takes each 403 for a failure that passes and asks six times, but for the word that
    /// OpenAI itself uses for a model that a key may not use.
    #[must_use]
    pub fn code_in_responses(self) -> &'static str {
        match self {
            Kind::ModelNotAllowed => Kind::ModelNotFound.row().code,
            _ => self.row().code,
        }
    }
}

/// What follows from a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// The fault that this row is about.
    pub kind: Kind,
    /// Where it is seen.
    pub side: Side,
    /// The status of our answer while none has begun; `None` = the peer cannot be answered.
    pub status: Option<u16>,
    /// `error.type` of the body.
    pub error_type: &'static str,
    /// `error.code` of the body: a word that SDKs know, never the status again.
    pub code: &'static str,
    /// `error.message`, where the trunk knows nothing more exact.
    pub message: &'static str,
    /// The short form for logs and metrics: lower case, no secrets, a bounded set.
    pub log: &'static str,
    /// Whether the client's connection can go on.
    pub connection: Connection,
    /// Whether another attempt upstream may help.
    pub retry: RetryClass,
    /// Whose failure it counts as.
    pub blame: Blame,
    /// How loudly it is logged.
    pub level: Level,
    /// What the end of the exchange is called.
    pub finish: Finish,
    /// Whether the answer carries `Retry-After`.
    pub retry_after: bool,
    /// Most seconds that it says.
    pub retry_after_s_max: u32,
}

impl Row {
    /// Whether the same request, sent again, would be answered the same: a client is told so,
    /// or it repeats it for as long as its patience lasts.
    #[must_use]
    pub fn lasts(&self) -> bool {
        match self.status {
            // 408: the next one may be in time.
            Some(status) => !self.retry_after && status < 500 && status != 408 || status == 505,
            None => false,
        }
    }
}

/// What becomes of the client's connection after the answer.
///
/// `Keep` says only that the fault itself does not forbid keep-alive: a request
/// body that was not read to its end still does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connection {
    /// The next request can be found; keep-alive as negotiated.
    Keep,
    /// The next message cannot be found, or nobody is there to read it.
    Close,
}

/// The word in a group's `retry.on` that covers the fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RetryClass {
    /// No other attempt can help.
    Never,
    /// `connect`: nothing was sent.
    Connect,
    /// `reset`: the connection died or spoke bad HTTP before an answer.
    Reset,
    /// `timeout`: the answer did not begin in time.
    Timeout,
}

/// Whose failure a fault counts as; only `Upstream` counts for a breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Blame {
    /// The client's doing.
    Client,
    /// The upstream's doing.
    Upstream,
    /// Our own mistake or limit.
    Proxy,
    /// Nobody's: it happens.
    Nobody,
}

/// How loudly something is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// What only a developer wants to see.
    Debug,
    /// Normal operation.
    Info,
    /// Someone should look at it some day.
    Warn,
    /// Someone should look at it now.
    Error,
}

/// The end states of an exchange, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Finish {
    /// The client has the upstream's whole response, whatever its status.
    Ok,
    /// We refused the request ourselves.
    Refused,
    /// The key or the client went over a rate.
    RateLimited,
    /// The client sent something that is no HTTP, no JSON or too large.
    BadRequest,
    /// The client was too slow to send or to read.
    ClientTimeout,
    /// The client went away.
    ClientAbort,
    /// No connection to the upstream.
    UpstreamConnect,
    /// The upstream died, before or during its response.
    UpstreamReset,
    /// The upstream spoke bad HTTP.
    UpstreamBad,
    /// The upstream was too slow.
    Timeout,
    /// Nobody could take it: no member, no room, no queue.
    Unavailable,
    /// Cut by the end of a drain.
    Drained,
    /// Our own mistake.
    Internal,
}

impl Finish {
    /// Every end state, in the order of their numbers.
    pub const ALL: [Finish; 13] = [
        Finish::Ok,
        Finish::Refused,
        Finish::RateLimited,
        Finish::BadRequest,
        Finish::ClientTimeout,
        Finish::ClientAbort,
        Finish::UpstreamConnect,
        Finish::UpstreamReset,
        Finish::UpstreamBad,
        Finish::Timeout,
        Finish::Unavailable,
        Finish::Drained,
        Finish::Internal,
    ];

    /// Returns the word used in the access log and as a label.
    pub fn name(self) -> &'static str {
        match self {
            Finish::Ok => "ok",
            Finish::Refused => "refused",
            Finish::RateLimited => "rate_limited",
            Finish::BadRequest => "bad_request",
            Finish::ClientTimeout => "client_timeout",
            Finish::ClientAbort => "client_abort",
            Finish::UpstreamConnect => "upstream_connect",
            Finish::UpstreamReset => "upstream_reset",
            Finish::UpstreamBad => "upstream_bad",
            Finish::Timeout => "timeout",
            Finish::Unavailable => "unavailable",
            Finish::Drained => "drained",
            Finish::Internal => "internal",
        }
    }
}

const INVALID: &str = "invalid_request_error";
const AUTH: &str = "authentication_error";
// The type that OpenAI gives a 403, too: at any other LiteLLM, and so aider, asks for 45 s.
const DENIED: &str = INVALID;
const NOT_FOUND: &str = "not_found_error";
const RATE: &str = "rate_limit_exceeded";
const API: &str = "api_error";

/// Most seconds that a client is told to wait. What it waits for may come sooner, and there are
/// clients that take 60 s and more for no answer at all (Qwen Code).
pub const RETRY_AFTER_S_MAX: u32 = 59;

/// The word for `error.code` that goes with a status, where a kind has no better one.
const fn code(status: u16) -> &'static str {
    match status {
        401 => "invalid_api_key",
        403 => "insufficient_permissions",
        404 => "not_found",
        405 => "method_not_allowed",
        408 => "request_timeout",
        413 => "request_too_large",
        414 => "url_too_long",
        415 => "unsupported_content_encoding",
        417 => "expectation_failed",
        426 => "websocket_not_supported",
        429 => "rate_limit_exceeded",
        431 => "headers_too_large",
        500 => "server_error",
        502 => "upstream_error",
        503 => "server_overloaded",
        504 => "upstream_timeout",
        505 => "http_version_not_supported",
        _ => "invalid_request",
    }
}

/// A refusal that the client can repair: no retry, its own blame, the connection goes on.
const fn refuse(
    kind: Kind,
    status: u16,
    error_type: &'static str,
    message: &'static str,
    log: &'static str,
) -> Row {
    Row {
        kind,
        side: Side::Client,
        status: Some(status),
        error_type,
        code: code(status),
        message,
        log,
        connection: Connection::Keep,
        retry: RetryClass::Never,
        blame: Blame::Client,
        level: Level::Info,
        finish: Finish::Refused,
        retry_after: false,
        retry_after_s_max: RETRY_AFTER_S_MAX,
    }
}

/// A request that cannot be read: as `refuse`, but the next message cannot be found.
const fn broken(kind: Kind, status: u16, message: &'static str, log: &'static str) -> Row {
    Row {
        connection: Connection::Close,
        finish: Finish::BadRequest,
        ..refuse(kind, status, INVALID, message, log)
    }
}

/// A request over a rate: as `refuse`, with `Retry-After`.
const fn over_rate(kind: Kind, message: &'static str, log: &'static str) -> Row {
    Row { finish: Finish::RateLimited, retry_after: true, ..refuse(kind, 429, RATE, message, log) }
}

/// A failure of the upstream; the client did nothing wrong and its connection goes on.
const fn upstream(
    kind: Kind,
    status: u16,
    message: &'static str,
    log: &'static str,
    retry: RetryClass,
    finish: Finish,
) -> Row {
    Row {
        side: Side::Upstream,
        retry,
        blame: Blame::Upstream,
        level: Level::Warn,
        finish,
        ..refuse(kind, status, API, message, log)
    }
}

/// A response that died after its head: it must never look like a clean end.
const fn truncated(kind: Kind, message: &'static str, log: &'static str, finish: Finish) -> Row {
    Row {
        status: None,
        connection: Connection::Close,
        ..upstream(kind, 502, message, log, RetryClass::Never, finish)
    }
}

/// No room in the proxy or behind it: 503 with `Retry-After`.
const fn no_room(kind: Kind, message: &'static str, log: &'static str) -> Row {
    Row {
        side: Side::Proxy,
        blame: Blame::Nobody,
        level: Level::Warn,
        finish: Finish::Unavailable,
        retry_after: true,
        ..refuse(kind, 503, API, message, log)
    }
}

/// THE table. One row a kind, in the order of `Kind`.
#[rustfmt::skip]
const ROWS: [Row; 52] = [
    broken(Kind::HeadMalformed, 400, "Malformed request head.", "malformed head"),
    broken(Kind::TargetTooLong, 414, "Request target is too long.", "target too long"),
    broken(Kind::HeadTooLarge, 431, "Request head is too large.", "head too large"),
    broken(Kind::FieldsTooMany, 431, "Request head has too many fields.", "too many fields"),
    broken(Kind::VersionUnsupported, 505, "HTTP version is not supported.", "version unsupported"),
    broken(Kind::FramingAmbiguous, 400, "Request framing is ambiguous.", "ambiguous framing"),
    broken(Kind::BodyMalformed, 400, "Malformed request body framing.", "malformed body"),
    Row { finish: Finish::ClientTimeout,
        ..broken(Kind::HeadTimeout, 408, "Request head did not arrive in time.", "head timeout") },
    Row { finish: Finish::ClientTimeout,
        ..broken(Kind::BodyTimeout, 408, "Request body did not arrive in time.", "body timeout") },
    broken(Kind::BodyTooLarge, 413, "Request body is too large.", "body too large"),
    refuse(Kind::CodingUnsupported, 415, INVALID, "Content-Encoding is not supported: the model cannot be read.", "coding unsupported"),
    // The body that was refused room is still on its way.
    Row { connection: Connection::Close,
        ..no_room(Kind::HeldTooMuch, "Too many request bodies are held. Try again later.", "held bytes exhausted") },
    // 405 rather than 501: the method is known, and refused on every target.
    Row { connection: Connection::Close,
        ..refuse(Kind::MethodRefused, 405, INVALID, "Method is not allowed here.", "method refused") },
    Row { connection: Connection::Close,
        ..refuse(Kind::ExpectationFailed, 417, INVALID, "Expectation is not supported.", "expectation failed") },
    refuse(Kind::KeyMissing, 401, AUTH, "Authentication Error, No api key passed in.", "no key"),
    refuse(Kind::KeyInvalid, 401, AUTH, "Invalid API key.", "invalid key"),
    refuse(Kind::KeyNotAllowed, 403, DENIED, "This API key is not allowed here.", "key not allowed"),
    refuse(Kind::ModelNotAllowed, 403, DENIED, "This API key is not allowed to use this model.", "model not allowed"),
    over_rate(Kind::RateSecond, "Rate limit reached.", "second limit"),
    over_rate(Kind::RateMinute, "Rate limit exceeded: minute limit reached.", "minute limit"),
    // Nothing comes sooner than the next day.
    Row { retry_after_s_max: u32::MAX,
        ..over_rate(Kind::RateDay, "Rate limit exceeded: daily limit reached.", "daily limit") },
    // A debt is paid by the clock alone.
    Row { retry_after_s_max: u32::MAX,
        ..over_rate(Kind::RateTokens, "Rate limit exceeded: token limit reached.", "token limit") },
    over_rate(Kind::ConcurrencyReached, "Too many requests in flight for this API key.", "concurrency limit"),
    Row { code: "unknown_url",
        ..refuse(Kind::RouteNotFound, 404, NOT_FOUND, "No route for this request.", "no route") },
    Row { code: "model_not_found",
        ..refuse(Kind::ModelNotFound, 404, INVALID, "Model not found.", "no such model") },
    refuse(Kind::UpgradeRefused, 426, INVALID, "No WebSocket is served here: send the request as a POST.", "upgrade refused"),
    Row { finish: Finish::BadRequest, code: "missing_required_parameter",
        ..refuse(Kind::BodyEmpty, 400, INVALID, "Empty request body.", "empty body") },
    Row { finish: Finish::BadRequest, code: "invalid_json",
        ..refuse(Kind::JsonInvalid, 400, INVALID, "Invalid JSON.", "invalid json") },
    Row { finish: Finish::BadRequest, code: "missing_required_parameter",
        ..refuse(Kind::ModelMissing, 400, INVALID, "Missing 'model' field in request.", "no model") },
    // Not answered where the response has begun; both sides are cut.
    Row { level: Level::Warn,
        ..broken(Kind::ModelChanged, 400, "The request names two different models.", "model changed") },
    Row { status: None, blame: Blame::Nobody, level: Level::Debug, finish: Finish::ClientAbort,
        ..broken(Kind::ClientGone, 400, "The client went away.", "client gone") },
    Row { status: None, finish: Finish::ClientTimeout,
        ..broken(Kind::ClientStalled, 408, "The client does not read.", "client stalled") },
    upstream(Kind::UpstreamConnect, 502, "The upstream refused the connection.", "connect failed", RetryClass::Connect, Finish::UpstreamConnect),
    upstream(Kind::UpstreamConnectTimeout, 504, "The upstream did not accept the connection in time.", "connect timeout", RetryClass::Connect, Finish::Timeout),
    upstream(Kind::UpstreamTls, 502, "The TLS handshake with the upstream failed.", "tls handshake failed", RetryClass::Connect, Finish::UpstreamConnect),
    upstream(Kind::OutboundConnect, 502, "The outbound proxy could not be connected.", "outbound proxy failed", RetryClass::Connect, Finish::UpstreamConnect),
    upstream(Kind::OutboundTimeout, 504, "The outbound proxy did not answer in time.", "outbound proxy timeout", RetryClass::Connect, Finish::Timeout),
    upstream(Kind::OutboundRefused, 502, "The outbound proxy refused to pass the request on.", "outbound proxy refused", RetryClass::Connect, Finish::UpstreamConnect),
    upstream(Kind::UpstreamReset, 502, "The upstream closed the connection without an answer.", "reset before answer", RetryClass::Reset, Finish::UpstreamReset),
    upstream(Kind::UpstreamBadHttp, 502, "The upstream sent an invalid response.", "bad response", RetryClass::Reset, Finish::UpstreamBad),
    upstream(Kind::UpstreamFirstByteTimeout, 504, "The upstream did not answer in time.", "first byte timeout", RetryClass::Timeout, Finish::Timeout),
    truncated(Kind::UpstreamTruncated, "The upstream died in the middle of its response.", "cut mid-stream", Finish::UpstreamReset),
    truncated(Kind::UpstreamIdle, "The upstream paused too long in the middle of its response.", "idle mid-stream", Finish::Timeout),
    // The operator's limit, not the upstream's failure: a long answer is no fault.
    Row { blame: Blame::Nobody, connection: Connection::Close,
        ..upstream(Kind::TotalTimeout, 504, "The request took too long.", "total timeout", RetryClass::Never, Finish::Timeout) },
    no_room(Kind::NobodyAvailable, "No upstream is available. Try again later.", "nobody available"),
    no_room(Kind::LimitsUnknown, "Rate limits cannot be checked. Try again later.", "limits unknown"),
    no_room(Kind::QueueFull, "All upstreams are busy and the queue is full. Try again later.", "queue full"),
    no_room(Kind::QueueTimeout, "All upstreams stayed busy. Try again later.", "queue timeout"),
    Row { connection: Connection::Close,
        ..no_room(Kind::ConnectionsReached, "Too many connections. Try again later.", "connection limit") },
    no_room(Kind::Shortage, "The proxy is out of connections. Try again later.", "out of descriptors, memory or ports"),
    Row { connection: Connection::Close, level: Level::Info, finish: Finish::Drained,
        ..no_room(Kind::Draining, "The server is shutting down. Try again.", "drained") },
    Row { side: Side::Proxy, connection: Connection::Close, blame: Blame::Proxy, level: Level::Error, finish: Finish::Internal,
        ..refuse(Kind::Internal, 500, API, "Internal error.", "internal error") },
];

/// The table where it lives: a constant would be copied into every caller.
static TABLE: [Row; ROWS.len()] = ROWS;

// `Kind::row` indexes by number: every row must stand at its own, and the last
// kind must be the last row.
const _: () = {
    let mut i = 0;
    while i < ROWS.len() {
        assert!(ROWS[i].kind as usize == i, "a row of the fault table is out of order");
        i += 1;
    }
    assert!(Kind::Internal as usize + 1 == ROWS.len(), "a kind has no row");
};

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn status(kind: Kind) -> Option<u16> {
        kind.row().status
    }

    #[test]
    fn walks_every_kind() {
        let mut logs = HashSet::new();
        for kind in Kind::all() {
            let row = kind.row();
            assert_eq!(row.kind, kind);
            assert!(logs.insert(row.log), "{kind:?} shares its log word");
            assert_eq!(row.log.to_lowercase(), row.log);
            assert!(!row.message.is_empty() && !row.error_type.is_empty());
            let word = row.code.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
            assert!(word && !row.code.is_empty(), "{kind:?}: {}", row.code);
            let fault = Fault::from(kind);
            assert_eq!(fault.side, row.side);
            assert_ne!(row.finish, Finish::Ok, "{kind:?} is no clean end");
            match row.status {
                // Nobody can be answered, so nothing can follow on the connection.
                None => {
                    assert_eq!(row.connection, Connection::Close, "{kind:?}");
                    assert_eq!(row.retry, RetryClass::Never, "{kind:?}");
                }
                Some(status) => {
                    assert!((400..=505).contains(&status), "{kind:?}");
                    assert_eq!(row.retry_after, status == 429 || status == 503, "{kind:?}");
                    assert_eq!(row.error_type == API, status >= 500 && status != 505, "{kind:?}");
                }
            }
            // Only what the upstream did counts for its breaker or is tried elsewhere.
            if row.blame == Blame::Upstream || row.retry != RetryClass::Never {
                assert_eq!(row.side, Side::Upstream, "{kind:?}");
            }
            assert_eq!(row.level == Level::Error, row.blame == Blame::Proxy, "{kind:?}");
        }
    }

    #[test]
    fn answers_with_the_statuses_of_the_specification() {
        let expected = [
            (Kind::HeadMalformed, 400),
            (Kind::FramingAmbiguous, 400),
            (Kind::BodyEmpty, 400),
            (Kind::JsonInvalid, 400),
            (Kind::ModelMissing, 400),
            (Kind::KeyMissing, 401),
            (Kind::KeyInvalid, 401),
            (Kind::ModelNotAllowed, 403),
            (Kind::ModelNotFound, 404),
            (Kind::RouteNotFound, 404),
            (Kind::MethodRefused, 405),
            (Kind::HeadTimeout, 408),
            (Kind::BodyTimeout, 408),
            (Kind::BodyTooLarge, 413),
            (Kind::TargetTooLong, 414),
            (Kind::CodingUnsupported, 415),
            (Kind::ExpectationFailed, 417),
            (Kind::RateMinute, 429),
            (Kind::HeadTooLarge, 431),
            (Kind::FieldsTooMany, 431),
            (Kind::Internal, 500),
            (Kind::UpstreamConnect, 502),
            (Kind::UpstreamTls, 502),
            (Kind::UpstreamReset, 502),
            (Kind::OutboundConnect, 502),
            (Kind::OutboundRefused, 502),
            (Kind::UpstreamBadHttp, 502),
            (Kind::NobodyAvailable, 503),
            (Kind::HeldTooMuch, 503),
            (Kind::UpstreamConnectTimeout, 504),
            (Kind::OutboundTimeout, 504),
            (Kind::UpstreamFirstByteTimeout, 504),
            (Kind::VersionUnsupported, 505),
        ];
        for (kind, code) in expected {
            assert_eq!(status(kind), Some(code), "{kind:?}");
        }
    }

    #[test]
    fn never_answers_after_a_response_began_or_to_nobody() {
        for kind in
            [Kind::UpstreamTruncated, Kind::UpstreamIdle, Kind::ClientGone, Kind::ClientStalled]
        {
            assert_eq!(status(kind), None, "{kind:?}");
        }
    }

    #[test]
    fn what_will_not_get_better_says_so() {
        for kind in Kind::all() {
            let row = kind.row();
            assert!(!(row.lasts() && row.retry_after), "{kind:?}");
            let again = matches!(row.status, None | Some(408 | 429 | 500..=504));
            assert_eq!(row.lasts(), !again, "{kind:?}");
        }
    }

    #[test]
    fn a_client_abort_is_nobodys_failure() {
        assert_eq!(Kind::ClientGone.row().blame, Blame::Nobody);
        assert_eq!(Kind::ClientGone.row().finish, Finish::ClientAbort);
    }

    #[test]
    fn names_every_end_state_once() {
        let names: HashSet<_> = Finish::ALL.iter().map(|f| f.name()).collect();
        assert_eq!(names.len(), Finish::ALL.len());
        for (i, finish) in Finish::ALL.iter().enumerate() {
            assert_eq!(*finish as usize, i);
        }
    }

    #[test]
    fn prints_side_and_word() {
        assert_eq!(Fault::from(Kind::UpstreamReset).to_string(), "upstream: reset before answer");
    }
}
