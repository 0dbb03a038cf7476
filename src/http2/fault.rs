//! Why a message cannot cross between HTTP/2 and HTTP/1.1.
//!
//! From a client each one is a malformed request (RFC 9113 §8.1.1): an answer of 400, or the status
//! named below, or a stream reset. From a server each one is a 502. Which of these is the trunk's
//! table; here is only what was wrong.

use std::fmt;

/// What is wrong with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// `CONNECT` or `TRACE`: not relayed, in no version (501 or 405).
    MethodRefused,
    /// A method longer than any, or no token.
    MethodBad,
    /// A scheme other than `http` and `https`.
    SchemeBad,
    /// Neither `:authority` nor `host`.
    AuthorityMissing,
    /// An authority that is no `host[:port]`.
    AuthorityBad,
    /// An authority with user information (RFC 9113 §8.3.1).
    UserInfo,
    /// More than one `host`.
    HostTwice,
    /// `host` names another server than `:authority`.
    HostConflict,
    /// A target that is neither a path nor the `*` of OPTIONS, or with bytes that no target has.
    TargetBad,
    /// A target longer than `target_bytes_max` (414).
    TargetTooLong,
    /// A status that has no meaning on the other side: 101, or an interim one that ends the stream.
    StatusBad,
    /// A field name that is no lower-case token.
    NameBad,
    /// A control byte in a value; CR and LF above all.
    ValueBad,
    /// White space around a value (RFC 9113 §8.2.1).
    ValuePadded,
    /// A field that speaks of one HTTP/1.1 connection (RFC 9113 §8.2.2).
    ConnectionSpecific,
    /// A `te` other than `trailers` (RFC 9113 §8.2.2).
    TeBad,
    /// A `content-length` that is no plain decimal.
    LengthBad,
    /// Two lengths that differ.
    LengthConflict,
    /// A length above 0 of a stream that has ended with its head.
    LengthWithoutBody,
    /// More field lines than `fields_max` (431).
    TooManyFields,
    /// A head longer than `head_bytes_max` (431).
    HeadTooLarge,
    /// A trailer line that is no field line.
    TrailerBad,
    /// Trailers longer than a chunked body may have.
    TrailersTooLong,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Fault::MethodRefused => "method not relayed",
            Fault::MethodBad => "malformed method",
            Fault::SchemeBad => "scheme is not http or https",
            Fault::AuthorityMissing => "neither :authority nor host",
            Fault::AuthorityBad => "malformed authority",
            Fault::UserInfo => "user information in the authority",
            Fault::HostTwice => "more than one host field",
            Fault::HostConflict => "host differs from :authority",
            Fault::TargetBad => "malformed request target",
            Fault::TargetTooLong => "request target too long",
            Fault::StatusBad => "status that cannot be relayed",
            Fault::NameBad => "malformed field name",
            Fault::ValueBad => "control byte in a field value",
            Fault::ValuePadded => "white space around a field value",
            Fault::ConnectionSpecific => "connection-specific field in http/2",
            Fault::TeBad => "te other than trailers",
            Fault::LengthBad => "malformed content-length",
            Fault::LengthConflict => "content-length values differ",
            Fault::LengthWithoutBody => "content-length of a stream that has ended",
            Fault::TooManyFields => "too many fields",
            Fault::HeadTooLarge => "head too large",
            Fault::TrailerBad => "malformed trailer",
            Fault::TrailersTooLong => "trailers too long",
        })
    }
}

impl std::error::Error for Fault {}
