//! The field names that the proxy reads, told apart once.
//!
//! Every later question ("is there a `Connection`?") compares one byte instead of a string. The
//! length sorts the candidates, at most three per length, and a comparison without case, eight bytes
//! at a time, settles it. A name that nobody here reads is [`Name::Other`] and passes as it came.

macro_rules! names {
    ($($(#[$doc:meta])* $variant:ident = $text:literal,)*) => {
        /// A field name that this house reads, or [`Name::Other`].
        #[repr(u8)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
        #[allow(missing_docs)]
        pub enum Name {
            $($(#[$doc])* $variant,)*
            /// A listed name with something else in place of a dash, such as `Content_Length`:
            /// for a server that maps both to one variable (CGI, WSGI, PHP) it is that name.
            LookAlike,
            /// Any name that is not listed here.
            #[default]
            Other,
        }

        impl Name {
            /// Every listed name, without `LookAlike` and `Other`.
            pub const ALL: &'static [Name] = &[$(Name::$variant),*];

            /// The name in lower case; empty for `LookAlike` and `Other`.
            pub const fn text(self) -> &'static str {
                match self {
                    $(Name::$variant => $text,)*
                    Name::LookAlike | Name::Other => "",
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
        let candidates: &[Candidate] = match name.len() {
            2 => const { &[Candidate::new(Name::Te)] },
            4 => const { &[Candidate::new(Name::Host), Candidate::new(Name::Date)] },
            6 => const { &[Candidate::new(Name::Expect), Candidate::new(Name::Server)] },
            7 => const { &[Candidate::new(Name::Upgrade), Candidate::new(Name::Trailer)] },
            9 => {
                const {
                    &[
                        Candidate::new(Name::XApiKey),
                        Candidate::new(Name::Forwarded),
                        Candidate::new(Name::XRealIp),
                    ]
                }
            }
            10 => {
                const {
                    &[
                        Candidate::new(Name::Connection),
                        Candidate::new(Name::UserAgent),
                        Candidate::new(Name::KeepAlive),
                    ]
                }
            }
            11 => const { &[Candidate::new(Name::RetryAfter)] },
            12 => const { &[Candidate::new(Name::ContentType), Candidate::new(Name::XRequestId)] },
            13 => const { &[Candidate::new(Name::Authorization)] },
            14 => {
                const { &[Candidate::new(Name::ContentLength), Candidate::new(Name::XGoogApiKey)] }
            }
            15 => const { &[Candidate::new(Name::XForwardedFor)] },
            16 => {
                const {
                    &[
                        Candidate::new(Name::ContentEncoding),
                        Candidate::new(Name::XForwardedHost),
                        Candidate::new(Name::ProxyConnection),
                    ]
                }
            }
            17 => {
                const { &[Candidate::new(Name::TransferEncoding), Candidate::new(Name::XForwardedProto)] }
            }
            18 => const { &[Candidate::new(Name::ProxyAuthenticate)] },
            19 => const { &[Candidate::new(Name::ProxyAuthorization)] },
            _ => return Name::Other,
        };
        let words = words(name);
        match candidates.iter().find(|candidate| candidate.is(words)) {
            Some(found) if found.has_dashes(words) => found.name,
            Some(found) => found.look_alike(name),
            None => Name::Other,
        }
    }
}

/// A name as three words, so that it is compared in three steps and not byte by byte.
struct Candidate {
    name: Name,
    text: [u64; 3],
    /// The bits that have to be the same: all but the case bit of a letter, and the dashes.
    mask: [u64; 3],
    /// The bytes that have to be dashes.
    dashes: [u64; 3],
}

impl Candidate {
    const fn new(name: Name) -> Candidate {
        let text = name.text().as_bytes();
        let mut mask = [0u8; NAME_BYTES_MAX];
        let mut dashes = [0u8; NAME_BYTES_MAX];
        let mut at = 0;
        while at < text.len() {
            match text[at] {
                b'-' => dashes[at] = !0,
                _ => mask[at] = !0x20,
            }
            at += 1;
        }
        let (mask, dashes) = (mask.split_at(text.len()).0, dashes.split_at(text.len()).0);
        Candidate { name, text: words(text), mask: words(mask), dashes: words(dashes) }
    }

    /// Whether the words are this name but for its dashes; both are of the same length.
    #[inline]
    fn is(&self, words: [u64; 3]) -> bool {
        self.same(words, &self.mask)
    }

    /// Whether dashes stand where this name has them.
    #[inline]
    fn has_dashes(&self, words: [u64; 3]) -> bool {
        self.same(words, &self.dashes)
    }

    #[inline]
    fn same(&self, words: [u64; 3], mask: &[u64; 3]) -> bool {
        let differ = |at: usize| (words[at] ^ self.text[at]) & mask[at];
        differ(0) | differ(1) | differ(2) == 0
    }

    /// What a name is that differs from this one in its dashes alone.
    #[cold]
    fn look_alike(&self, name: &[u8]) -> Name {
        // Nothing hangs on these two.
        if matches!(self.name, Name::UserAgent | Name::RetryAfter) {
            return Name::Other;
        }
        let dashes = self.name.text().bytes().zip(name).filter(|(wanted, _)| *wanted == b'-');
        let mut other = dashes.map(|(_, byte)| *byte);
        match other.all(|byte| !byte.is_ascii_alphanumeric()) {
            true => Name::LookAlike,
            false => Name::Other,
        }
    }
}

/// The bytes as words: the first eight, the last eight and, where these leave a gap, the eight in
/// the middle. Covers up to 24 bytes; fewer than eight stand in the first word alone.
#[inline]
const fn words(bytes: &[u8]) -> [u64; 3] {
    let (Some(first), Some(last)) = (bytes.first_chunk::<8>(), bytes.last_chunk::<8>()) else {
        let mut word = 0;
        let mut at = 0;
        while at < bytes.len() {
            word = word << 8 | bytes[at] as u64;
            at += 1;
        }
        return [word, 0, 0];
    };
    let middle = match bytes.split_at(8).1.first_chunk::<8>() {
        Some(middle) => u64::from_le_bytes(*middle),
        None => 0,
    };
    [u64::from_le_bytes(*first), u64::from_le_bytes(*last), middle]
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
    fn agrees_with_a_comparison_without_case() {
        for &name in Name::ALL {
            for at in 0..name.text().len() {
                for byte in 0..=255u8 {
                    let mut near = name.text().as_bytes().to_vec();
                    near[at] = byte;
                    let slow = |name: &&Name| name.text().as_bytes().eq_ignore_ascii_case(&near);
                    let slow = Name::ALL.iter().find(slow).copied();
                    let stands_for_dash = name.text().as_bytes()[at] == b'-'
                        && !byte.is_ascii_alphanumeric()
                        && !matches!(name, Name::UserAgent | Name::RetryAfter);
                    let other = if stands_for_dash { Name::LookAlike } else { Name::Other };
                    assert_eq!(Name::of(&near), slow.unwrap_or(other), "{near:?}");
                }
            }
        }
    }

    #[test]
    fn look_alikes_are_told() {
        for name in ["Transfer_Encoding", "content_LENGTH", "X_Api-Key", "x.goog~api_key"] {
            assert_eq!(Name::of(name.as_bytes()), Name::LookAlike, "{name}");
        }
        for name in ["user_agent", "contentxlength", "x_api_keys", "_host", "hos_", "x_one"] {
            assert_eq!(Name::of(name.as_bytes()), Name::Other, "{name}");
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
