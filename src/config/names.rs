//! The words of the file for each choice, once for reading, printing and the schema.

use crate::config::model::*;

/// A choice that is written as a word.
pub(crate) trait Named: Copy + PartialEq + 'static {
    /// Every word with what it stands for; the first of equal ones is printed.
    const NAMES: &'static [(&'static str, Self)];

    /// What a word stands for; `-` and `_` are the same and may be left out.
    fn named(text: &str) -> Option<Self> {
        let wanted = bare(text);
        Self::NAMES.iter().find(|(name, _)| bare(name) == wanted).map(|(_, value)| *value)
    }

    /// The word for it.
    fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, value)| *value == self).map_or("", |(name, _)| name)
    }
}

fn bare(text: &str) -> String {
    text.chars().filter(|c| !matches!(c, '-' | '_')).collect()
}

macro_rules! named {
    ($($Type:ident { $($name:literal = $Variant:ident),* $(,)? })*) => {$(
        impl Named for $Type {
            const NAMES: &'static [(&'static str, Self)] = &[$(($name, $Type::$Variant)),*];
        }
    )*};
}

named! {
    Io { "auto" = Auto, "io_uring" = IoUring, "epoll" = Epoll }
    Level { "error" = Error, "warn" = Warn, "info" = Info, "debug" = Debug, "trace" = Trace }
    LogFormat { "text" = Text, "json" = Json }
    ListenerAuth { "keys" = Keys, "none" = None }
    Force { "listed" = Listed, "any" = Any, "off" = Off }
    Forwarded { "append" = Append, "off" = Off }
    Alpn { "h2" = H2, "http/1.1" = Http11 }
    ClientAuth { "require" = Require, "request" = Request }
    TlsVersion { "1.2" = V12, "1.3" = V13 }
    StoreKind { "memory" = Memory, "redis" = Redis }
    StoreMode { "lease" = Lease, "strict" = Strict }
    StoreOnError { "local" = Local, "deny" = Deny }
    PathMode { "append" = Append, "fixed" = Fixed, "strip_v1" = StripV1 }
    Protocol { "openai" = OpenAi, "ollama" = Ollama, "anthropic" = Anthropic, "gemini" = Gemini }
    HeaderAction { "insert" = Insert, "replace" = Replace, "remove" = Remove }
    Reuse { "auto" = Auto, "no-after-stream" = NoAfterStream, "never" = Never }
    Balance {
        "round_robin" = RoundRobin,
        "weighted_round_robin" = WeightedRoundRobin,
        "random" = Random,
        "weighted_random" = WeightedRandom,
        "least_conn" = LeastConn,
        "failover" = Failover,
        "response_aware" = ResponseAware,
        "p2c_ewma" = P2cEwma,
        "prefix" = Prefix,
    }
    Dialect { "ollama" = Ollama, "gemini" = Gemini }
    ErrorBodies { "pass" = Pass, "normalise" = Normalise, "normalize" = Normalise }
    AuthType {
        "none" = None, "pass" = Pass, "bearer" = Bearer, "basic" = Basic,
        "header" = Header, "query" = Query,
    }
}

/// `upstream.*.auth.type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AuthType {
    None,
    Pass,
    Bearer,
    Basic,
    Header,
    Query,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn balance_may_be_written_without_dashes() {
        for (text, value) in [
            ("roundrobin", Balance::RoundRobin),
            ("weightedroundrobin", Balance::WeightedRoundRobin),
            ("round-robin", Balance::RoundRobin),
            ("leastconn", Balance::LeastConn),
            ("response_aware", Balance::ResponseAware),
        ] {
            assert_eq!(Balance::named(text), Some(value), "{text}");
        }
        assert_eq!(Balance::named("robin"), None);
        assert_eq!(Balance::named(""), None);
    }

    #[test]
    fn every_word_reads_back() {
        fn check<T: Named + std::fmt::Debug>() {
            for (name, value) in T::NAMES {
                assert_eq!(T::named(name), Some(*value));
                assert_eq!(T::named(value.name()), Some(*value));
            }
        }
        check::<Balance>();
        check::<Io>();
        check::<ErrorBodies>();
        check::<PathMode>();
    }
}
