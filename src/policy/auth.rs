//! Where a request carries its credential.
//!
//! SDKs disagree: OpenAI's send `Authorization: Bearer`, Anthropic's `x-api-key`,
//! Gemini's `x-goog-api-key` or `?key=`. A listener lists what it accepts, in order; the
//! first listed carrier that is there counts, whether its key is good or not, since a
//! second look elsewhere would turn one refusal into a guessing game.
//!
//! It finds the credential and says where it stood, so that the trunk can take it out;
//! whose it is, `keys` knows.

use std::borrow::Cow;

use super::query;

/// One place that may hold a credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// `Authorization: Bearer KEY`; the scheme in any case (RFC 9110 §11.1).
    Bearer,
    /// `Authorization: KEY`, without a scheme.
    Raw,
    /// `x-api-key: KEY`.
    XApiKey,
    /// `x-goog-api-key: KEY`.
    XGoogApiKey,
    /// A query parameter of this name.
    Query(Box<str>),
}

impl Carrier {
    /// Reads one word of a listener's `accept`: `bearer`, `raw`, `x-api-key`,
    /// `x-goog-api-key` or `query:NAME`.
    pub fn parse(word: &str) -> Option<Carrier> {
        match word {
            "bearer" => Some(Carrier::Bearer),
            "raw" => Some(Carrier::Raw),
            "x-api-key" => Some(Carrier::XApiKey),
            "x-goog-api-key" => Some(Carrier::XGoogApiKey),
            _ => {
                let name = word.strip_prefix("query:").filter(|name| !name.is_empty())?;
                Some(Carrier::Query(name.into()))
            }
        }
    }
}

/// The parts of a request that may hold a credential; values without surrounding blanks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Places<'r> {
    /// Value of `Authorization`.
    pub authorization: Option<&'r [u8]>,
    /// Value of `x-api-key`.
    pub x_api_key: Option<&'r [u8]>,
    /// Value of `x-goog-api-key`.
    pub x_goog_api_key: Option<&'r [u8]>,
    /// The query, without its `?`.
    pub query: Option<&'r [u8]>,
}

/// Finds the credential: the first of the listener's carriers that holds something.
///
/// Shape: returns the carrier, to be taken out before forwarding, and the secret, which
/// borrows from the request unless a query value had to be decoded.
pub fn find_credential<'c, 'r>(
    accept: &'c [Carrier],
    places: &Places<'r>,
) -> Option<(&'c Carrier, Cow<'r, [u8]>)> {
    accept.iter().find_map(|carrier| {
        let secret = match carrier {
            Carrier::Bearer => Cow::Borrowed(bearer(places.authorization?)?),
            Carrier::Raw => Cow::Borrowed(raw(places.authorization?)?),
            Carrier::XApiKey => Cow::Borrowed(places.x_api_key?),
            Carrier::XGoogApiKey => Cow::Borrowed(places.x_goog_api_key?),
            Carrier::Query(name) => query::find(places.query?, name.as_bytes())?,
        };
        (!secret.is_empty()).then_some((carrier, secret))
    })
}

/// Returns what follows `Bearer` and at least one blank.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = value.split_at_checked(b"bearer".len())?;
    let parted = rest.first().is_some_and(|b| is_blank(*b));
    (scheme.eq_ignore_ascii_case(b"bearer") && parted).then(|| rest.trim_ascii())
}

/// Returns the value when it is one word: two would be a scheme and its parameter.
fn raw(value: &[u8]) -> Option<&[u8]> {
    let bare_scheme = value.eq_ignore_ascii_case(b"bearer");
    (!bare_scheme && !value.iter().any(|b| is_blank(*b))).then_some(value)
}

fn is_blank(byte: u8) -> bool {
    byte == b' ' || byte == b'\t'
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn accept(words: &[&str]) -> Vec<Carrier> {
        words.iter().map(|w| Carrier::parse(w).unwrap()).collect()
    }

    fn found(words: &[&str], places: Places<'_>) -> Option<(Carrier, String)> {
        let accept = accept(words);
        let (carrier, secret) = find_credential(&accept, &places)?;
        Some((carrier.clone(), String::from_utf8(secret.into_owned()).unwrap()))
    }

    fn authorization(value: &str) -> Places<'_> {
        Places { authorization: Some(value.as_bytes()), ..Places::default() }
    }

    #[test]
    fn reads_bearer_in_any_case() {
        for value in ["Bearer k1", "bearer k1", "BEARER  k1", "Bearer\tk1"] {
            assert_eq!(
                found(&["bearer"], authorization(value)),
                Some((Carrier::Bearer, "k1".into()))
            );
        }
    }

    #[test]
    fn refuses_what_is_no_bearer() {
        for value in ["", "Bearer", "Bearer ", "Bearerk1", "Basic k1", "k1", "Bear"] {
            assert_eq!(found(&["bearer"], authorization(value)), None, "{value}");
        }
    }

    #[test]
    fn reads_a_raw_key_only_when_listed() {
        assert_eq!(found(&["bearer"], authorization("sk-1")), None);
        let both = ["bearer", "raw"];
        assert_eq!(found(&both, authorization("sk-1")), Some((Carrier::Raw, "sk-1".into())));
        assert_eq!(
            found(&both, authorization("Bearer sk-1")),
            Some((Carrier::Bearer, "sk-1".into()))
        );
        for value in ["Basic abc", "Bearer", ""] {
            assert_eq!(found(&both, authorization(value)), None, "{value}");
        }
    }

    #[test]
    fn reads_every_listed_carrier_and_no_other() {
        let places = Places {
            x_api_key: Some(b"anthropic"),
            x_goog_api_key: Some(b"gemini"),
            query: Some(b"alt=sse&key=in%2Dquery"),
            ..Places::default()
        };
        let secret = |words: &[&str]| found(words, places).map(|(_, s)| s);
        assert_eq!(secret(&["x-api-key"]).as_deref(), Some("anthropic"));
        assert_eq!(secret(&["x-goog-api-key"]).as_deref(), Some("gemini"));
        assert_eq!(secret(&["query:key"]).as_deref(), Some("in-query"));
        assert_eq!(secret(&["bearer", "query:token"]), None);
        assert_eq!(secret(&["bearer", "query:key", "x-api-key"]).as_deref(), Some("in-query"));
        assert_eq!(secret(&[]), None);
    }

    #[test]
    fn an_empty_value_is_no_credential() {
        let places =
            Places { x_api_key: Some(b""), query: Some(b"key=&key=x"), ..Places::default() };
        assert_eq!(found(&["x-api-key", "query:key"], places), None);
    }

    #[test]
    fn refuses_words_that_are_no_carrier() {
        for word in ["", "Bearer", "query", "query:", "cookie"] {
            assert_eq!(Carrier::parse(word), None, "{word}");
        }
    }

    proptest! {
        #[test]
        fn a_secret_is_a_part_of_its_field(value in proptest::collection::vec(any::<u8>(), 0..40)) {
            let places = Places { authorization: Some(&value), ..Places::default() };
            let accept = accept(&["bearer", "raw"]);
            if let Some((_, secret)) = find_credential(&accept, &places) {
                prop_assert!(!secret.is_empty());
                prop_assert!(value.windows(secret.len()).any(|w| w == &secret[..]));
            }
        }
    }
}
