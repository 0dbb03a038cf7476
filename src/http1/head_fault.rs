//! Why a message head is refused.
//!
//! `parse` and `target` find these faults; this file only names them.

use std::fmt;

/// Why a head is refused. For a request each one means an error status and close, for a response
/// 502: where the next message begins is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HeadFault {
    /// More bytes than `head_bytes_max` (431).
    HeadTooLarge,
    /// More fields than `fields_max` (431).
    TooManyFields,
    /// A target longer than `target_bytes_max` (414).
    TargetTooLong,
    /// A version of HTTP other than 1.x (505).
    BadVersion,
    /// The first line is not three parts with one space between them, or not `HTTP/1.x`.
    BadStartLine,
    /// A method that is no token, or longer than any.
    BadMethod,
    /// A target with a byte outside visible ASCII, with a fragment, or in none of the four forms.
    BadTarget,
    /// A status that is not three digits from 100 on.
    BadStatus,
    /// A line that ends in LF alone.
    BareLf,
    /// A CR that is not followed by LF.
    BareCr,
    /// A field line that begins with white space.
    ObsFold,
    /// White space between a field name and its colon.
    SpaceBeforeColon,
    /// A control byte in a value or a reason.
    ControlByte,
    /// A field line without a colon, or with a name that is no token.
    BadField,
    /// A name that some server would take for one that means something here (`Content_Length`).
    LookAlike,
    /// HTTP/1.1 without `Host`.
    HostMissing,
    /// More than one `Host`.
    HostTwice,
    /// A `Host` that is no `host[:port]`.
    HostBad,
}

impl fmt::Display for HeadFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            HeadFault::HeadTooLarge => "head too large",
            HeadFault::TooManyFields => "too many fields",
            HeadFault::TargetTooLong => "request target too long",
            HeadFault::BadVersion => "http version not supported",
            HeadFault::BadStartLine => "malformed first line",
            HeadFault::BadMethod => "malformed method",
            HeadFault::BadTarget => "malformed request target",
            HeadFault::BadStatus => "malformed status",
            HeadFault::BareLf => "line feed without carriage return",
            HeadFault::BareCr => "carriage return without line feed",
            HeadFault::ObsFold => "folded field line",
            HeadFault::SpaceBeforeColon => "white space before the colon of a field",
            HeadFault::ControlByte => "control byte in a field value",
            HeadFault::BadField => "malformed field line",
            HeadFault::LookAlike => "field name that another server may take for another",
            HeadFault::HostMissing => "host field missing",
            HeadFault::HostTwice => "more than one host field",
            HeadFault::HostBad => "malformed host field",
        })
    }
}

impl std::error::Error for HeadFault {}
