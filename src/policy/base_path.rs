//! How the path of a request goes behind the base path of a server's URL.
//!
//! The one idea: people write the URL of a server as its SDKs want it, with the version at its
//! end (`http://h:8000/v1`), and clients send the version too. Where the end of the base and the
//! beginning of the path are the same segments, version included, they are written once. What a
//! server has beside its API (Ollama's `/api`, `/health`) stands beside the version, not in it.
//!
//! Discovery, probes and traffic all go through here, so that a server that lists its models
//! where it was asked is asked for answers there too.

/// First segments that stand beside a version at the end of a base.
const BESIDE: [&[u8]; 6] = [b"api", b"health", b"healthz", b"metrics", b"ping", b"version"];

/// The base path of a server, ready to have paths put behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BasePath {
    /// Begins with `/` or is empty; no `/` at its end.
    path: Vec<u8>,
    /// Where its last segment that is a version begins, slash included.
    version_at: Option<usize>,
    /// Whether a leading `/v1` of the path behind it is dropped.
    drops_v1: bool,
}

impl BasePath {
    /// A base under which paths are appended.
    #[must_use]
    pub fn new(path: &str) -> Self {
        let path = path.trim_end_matches('/').as_bytes().to_vec();
        let mut version_at = None;
        let mut at = 0usize;
        for segment in path.split(|&byte| byte == b'/') {
            if is_version(segment) {
                version_at = at.checked_sub(1);
            }
            at += segment.len() + 1;
        }
        Self { path, version_at, drops_v1: false }
    }

    /// The same, where a leading `/v1` of what is appended is dropped.
    #[must_use]
    pub fn dropping_v1(self) -> Self {
        Self { drops_v1: true, ..self }
    }

    /// Tells what to write for a target (path and query): a part of the base, then a part of
    /// the target.
    #[must_use]
    pub fn join<'a>(&'a self, target: &'a [u8]) -> (&'a [u8], &'a [u8]) {
        if self.drops_v1
            && let Some(rest) = target.strip_prefix(b"/v1")
            && matches!(rest.first(), None | Some(b'/' | b'?'))
        {
            return (&self.path, rest);
        }
        match self.version_at {
            None => (&self.path, target),
            Some(version_at) => (self.in_front_of(target, version_at), target),
        }
    }

    /// The part of the base that does not stand in the target already.
    fn in_front_of(&self, target: &[u8], version_at: usize) -> &[u8] {
        let (path, covered) = (&self.path, |end: &[u8]| {
            let rest = target.strip_prefix(end);
            rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'/' | b'?')))
        });
        let slashes = (0..=version_at).filter(|&at| path.get(at) == Some(&b'/'));
        for at in slashes {
            let (front, end) = path.split_at(at);
            if covered(end) {
                return front;
            }
        }
        let (front, end) = path.split_at(version_at);
        let ends_in_version = !end.iter().skip(1).any(|&byte| byte == b'/');
        let first = target.strip_prefix(b"/").unwrap_or(target);
        let first = first.split(|&byte| matches!(byte, b'/' | b'?')).next().unwrap_or_default();
        if ends_in_version && BESIDE.contains(&first) { front } else { path }
    }
}

/// Tells whether a segment is a version: `v1`, `v1beta`, `v4`.
fn is_version(segment: &[u8]) -> bool {
    matches!(segment, [b'v', digit, rest @ ..]
        if digit.is_ascii_digit() && rest.iter().all(u8::is_ascii_alphanumeric))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(base: &BasePath, target: &str) -> String {
        let (front, rest) = base.join(target.as_bytes());
        String::from_utf8([front, rest].concat()).unwrap()
    }

    #[test]
    fn a_version_is_written_once() {
        for (base, target, expected) in [
            ("", "/v1/chat", "/v1/chat"),
            ("/", "/v1/chat", "/v1/chat"),
            ("/v1", "/v1/chat", "/v1/chat"),
            ("/v1/", "/v1/chat?a=/v1", "/v1/chat?a=/v1"),
            ("/v1", "/v1", "/v1"),
            ("/v1", "/v1?x", "/v1?x"),
            ("/v1", "/chat/completions", "/v1/chat/completions"),
            ("/v1", "/v1beta/models", "/v1/v1beta/models"),
            ("/v1", "/v10/chat", "/v1/v10/chat"),
            ("/v1beta", "/v1beta/models/m:go", "/v1beta/models/m:go"),
            ("/openai/v1", "/v1/chat", "/openai/v1/chat"),
            ("/openai/v1", "/openai/v1/chat", "/openai/v1/chat"),
            ("/v1beta/openai", "/v1beta/openai/chat", "/v1beta/openai/chat"),
            ("/v1beta/openai", "/chat", "/v1beta/openai/chat"),
            ("/b", "/v1/chat", "/b/v1/chat"),
            ("/b", "/b/v1/chat", "/b/b/v1/chat"),
            ("/v1/b", "/v1/chat", "/v1/b/v1/chat"),
            ("/vllm", "/vllm/x", "/vllm/vllm/x"),
            ("/v1", "/api/tags", "/api/tags"),
            ("/b/v1", "/health?deep=1", "/b/health?deep=1"),
            ("/b/v1", "/healthy", "/b/v1/healthy"),
            ("/v1/b", "/api/tags", "/v1/b/api/tags"),
            ("/b", "/health", "/b/health"),
        ] {
            assert_eq!(joined(&BasePath::new(base), target), expected, "{base} {target}");
        }
    }

    #[test]
    fn v1_is_dropped_where_the_operator_says_so() {
        for (base, target, expected) in [
            ("", "/v1/chat", "/chat"),
            ("/v1beta/openai", "/v1/models", "/v1beta/openai/models"),
            ("/v1beta/openai", "/v1?x=1", "/v1beta/openai?x=1"),
            ("/v1", "/v1/chat", "/v1/chat"),
            ("/v4", "/v1/chat", "/v4/chat"),
            ("/v4", "/v1beta/x", "/v4/v1beta/x"),
            ("/b/v4", "/api/tags", "/b/api/tags"),
            ("/b", "/v11/x", "/b/v11/x"),
        ] {
            assert_eq!(joined(&BasePath::new(base).dropping_v1(), target), expected, "{target}");
        }
    }
}
