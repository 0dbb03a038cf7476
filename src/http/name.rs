//! The field names that the proxy reads, told apart once.
//!
//! Every later question ("is there a `Connection`?") compares one byte instead of a string. The
//! length sorts the candidates, at most three per length, and a comparison without case settles
//! it. A name that nobody here reads is [`Name::Other`] and passes as it came.

macro_rules! names {
    ($($(#[$doc:meta])* $variant:ident = $text:literal,)*) => {
        /// A field name that this house reads, or [`Name::Other`].
        #[repr(u8)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
        #[allow(missing_docs)]
        pub enum Name {
            $($(#[$doc])* $variant,)*
            /// Any name that is not listed here.
            #[default]
            Other,
        }

        impl Name {
            /// Every listed name, without `Other`.
            pub const ALL: &'static [Name] = &[$(Name::$variant),*];

            /// The name in lower case; empty for `Other`.
            pub fn text(self) -> &'static str {
                match self {
                    $(Name::$variant => $text,)*
                    Name::Other => "",
                }
            }
        }
    };
}

names! {
    Host = "host",
    Connection = "connection",
    KeepAlive = "keep-alive",
    ProxyConnection = "proxy-connection",
    TransferEncoding = "transfer-encoding",
    ContentLength = "content-length",
    ContentType = "content-type",
    ContentEncoding = "content-encoding",
    Te = "te",
    Trailer = "trailer",
    Upgrade = "upgrade",
    Expect = "expect",
    Authorization = "authorization",
    ProxyAuthorization = "proxy-authorization",
    ProxyAuthenticate = "proxy-authenticate",
    XApiKey = "x-api-key",
    XGoogApiKey = "x-goog-api-key",
    UserAgent = "user-agent",
    XForwardedFor = "x-forwarded-for",
    XForwardedProto = "x-forwarded-proto",
    XForwardedHost = "x-forwarded-host",
    XRealIp = "x-real-ip",
    XRequestId = "x-request-id",
    Forwarded = "forwarded",
    Server = "server",
    Date = "date",
    RetryAfter = "retry-after",
}

/// The longest listed name, in bytes. A reader that keeps this many bytes of a name can tell all.
pub const NAME_BYTES_MAX: usize = 19;

impl Name {
    /// Tells which name the bytes are; case does not matter (RFC 9110 §5.1).
    pub fn of(name: &[u8]) -> Name {
        let candidates: &[Name] = match name.len() {
            2 => &[Name::Te],
            4 => &[Name::Host, Name::Date],
            6 => &[Name::Expect, Name::Server],
            7 => &[Name::Upgrade, Name::Trailer],
            9 => &[Name::XApiKey, Name::Forwarded, Name::XRealIp],
            10 => &[Name::Connection, Name::UserAgent, Name::KeepAlive],
            11 => &[Name::RetryAfter],
            12 => &[Name::ContentType, Name::XRequestId],
            13 => &[Name::Authorization],
            14 => &[Name::ContentLength, Name::XGoogApiKey],
            15 => &[Name::XForwardedFor],
            16 => &[Name::ContentEncoding, Name::XForwardedHost, Name::ProxyConnection],
            17 => &[Name::TransferEncoding, Name::XForwardedProto],
            18 => &[Name::ProxyAuthenticate],
            19 => &[Name::ProxyAuthorization],
            _ => &[],
        };
        for &candidate in candidates {
            if candidate.text().as_bytes().eq_ignore_ascii_case(name) {
                return candidate;
            }
        }
        Name::Other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_found_in_any_case() {
        for &name in Name::ALL {
            assert_eq!(Name::of(name.text().as_bytes()), name);
            assert_eq!(Name::of(name.text().to_uppercase().as_bytes()), name);
        }
    }

    #[test]
    fn the_longest_name_is_the_bound() {
        let longest = Name::ALL.iter().map(|name| name.text().len()).max();
        assert_eq!(longest, Some(NAME_BYTES_MAX));
    }

    #[test]
    fn a_neighbour_is_not_the_name() {
        for &name in Name::ALL {
            let text = name.text();
            let mut near = text.as_bytes().to_vec();
            near[0] = b'#';
            assert_eq!(Name::of(&near), Name::Other);
            assert_eq!(Name::of(format!("{text}s").as_bytes()), Name::Other);
            assert_eq!(Name::of(text.replace('-', "_").as_bytes()) == name, !text.contains('-'));
        }
        assert_eq!(Name::of(b""), Name::Other);
    }
}
