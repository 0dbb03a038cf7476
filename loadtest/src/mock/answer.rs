//! Which answer a request gets: endpoint by endpoint, without a byte of HTTP.

use std::time::{SystemTime, UNIX_EPOCH};

use super::Shared;
use super::ask::Ask;
use super::behave::Behaviour;
use super::dialect::{Completion, Dialect, Stream, quote};
use super::wire::Request;
use crate::text;

/// Largest JSON made for `size`; it is held in memory, unlike `big`.
const SIZE_BYTES_MAX: u64 = 256 << 20;

/// What is sent after the head.
#[derive(Debug)]
pub(super) enum Body {
    Whole(Vec<u8>),
    /// So many bytes of the pattern of a seed.
    Pattern {
        seed: u64,
        bytes: u64,
    },
    Events(Stream),
}

/// An answer, decided but not yet framed.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) content_type: &'static str,
    pub(super) body: Body,
    /// Sent as `x-mock-seed`: from it the client knows the text.
    pub(super) seed: Option<u64>,
    /// Whether the answer took computing, so that `first_token` applies.
    pub(super) computed: bool,
}

impl Answer {
    fn json(status: u16, body: String) -> Answer {
        Answer {
            status,
            content_type: "application/json",
            body: Body::Whole(body.into_bytes()),
            seed: None,
            computed: false,
        }
    }

    /// An error object as OpenAI's API gives it.
    pub(super) fn error(status: u16, message: &str) -> Answer {
        let kind = match status {
            401 | 403 => "authentication_error",
            404 => "not_found_error",
            429 => "rate_limit_error",
            400..=499 => "invalid_request_error",
            _ => "server_error",
        };
        Answer::json(
            status,
            format!(
                "{{\"error\":{{\"message\":{},\"type\":\"{kind}\",\"param\":null,\"code\":{status}}}}}",
                quote(message)
            ),
        )
    }
}

/// Decides the answer to a request whose body is complete.
///
/// Shape: `number` counts the requests of this server; it seeds what brings no seed.
pub(super) fn answer(
    shared: &Shared,
    request: &Request,
    body: Vec<u8>,
    how: &Behaviour,
    number: u64,
) -> Answer {
    let path = request.path();
    let open = matches!(path, "/health" | "/mock/stats");
    if !open && !authorized(shared, request) {
        return Answer::error(401, "wrong or missing key");
    }
    if let Some(status) = how.status.filter(|status| *status >= 400) {
        return Answer::error(status, "as x-mock asked");
    }
    let seed = how.seed.unwrap_or_else(|| text::mix(shared.config.seed ^ number.rotate_left(32)));
    if let Some(bytes) = how.big {
        return pattern(seed, bytes);
    }
    if let Some(bytes) = how.size {
        return padded(seed, bytes);
    }
    let mut made = endpoint(shared, request, body, how, seed);
    if let Some(status) = how.status {
        made.status = status;
    }
    made
}

fn endpoint(
    shared: &Shared,
    request: &Request,
    body: Vec<u8>,
    how: &Behaviour,
    seed: u64,
) -> Answer {
    let post = request.method == "POST";
    let read = request.method == "GET" || request.method == "HEAD";
    let path = request.path();
    let dialect = match path {
        "/v1/chat/completions" | "/chat/completions" => Some(Dialect::Chat),
        "/v1/completions" => Some(Dialect::Completions),
        "/v1/responses" => Some(Dialect::Responses),
        "/v1/messages" => Some(Dialect::Messages),
        "/api/chat" => Some(Dialect::OllamaChat),
        "/api/generate" => Some(Dialect::OllamaGenerate),
        _ if path.ends_with(":generateContent") || path.ends_with(":streamGenerateContent") => {
            Some(Dialect::Gemini)
        }
        _ => None,
    };
    if let (Some(dialect), true) = (dialect, post) {
        return completion(shared, dialect, path, &body, how, seed);
    }
    match path {
        "/v1/embeddings" if post => embeddings(&body, seed),
        "/v1/models" if read => Answer::json(200, models(shared)),
        "/api/tags" if read => Answer::json(200, tags(shared)),
        "/health" if read => Answer::json(200, "{\"status\":\"ok\"}".to_owned()),
        "/mock/stats" if read => Answer::json(200, stats(shared)),
        "/echo" => Answer {
            status: 200,
            content_type: "application/octet-stream",
            body: Body::Whole(body),
            seed: None,
            computed: false,
        },
        _ => Answer::error(404, &format!("no such endpoint: {} {path}", request.method)),
    }
}

/// A key may come by any of the carriers that the APIs use.
fn authorized(shared: &Shared, request: &Request) -> bool {
    let Some(key) = shared.config.api_key.as_deref() else { return true };
    let bearer = request.value("authorization").and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    let fields = ["x-api-key", "api-key", "x-goog-api-key"];
    bearer == Some(key)
        || fields.iter().any(|name| request.value(name) == Some(key))
        || request.query("key").as_deref() == Some(key)
}

fn completion(
    shared: &Shared,
    dialect: Dialect,
    path: &str,
    body: &[u8],
    how: &Behaviour,
    seed: u64,
) -> Answer {
    let ask: Ask = match serde_json::from_slice(body) {
        Ok(ask) => ask,
        Err(error) => return Answer::error(400, &format!("request body: {error}")),
    };
    let model = match dialect {
        // The path names the model: /v1beta/models/NAME:generateContent
        Dialect::Gemini => path.rsplit('/').next().and_then(|last| last.split(':').next()),
        _ => ask.model.as_deref(),
    };
    let Some(model) = model else { return Answer::error(400, "no model in the request") };
    let says = shared.config.says.clone();
    let usual = says
        .as_ref()
        .map_or(u64::from(shared.config.tokens), |says| says.split(' ').count() as u64);
    let wanted = how.tokens.map_or(usual, u64::from);
    let tokens = match how.tokens {
        Some(_) => wanted,
        None => ask.tokens_max.map_or(wanted, |max| wanted.min(max)),
    };
    let streamed = match dialect {
        Dialect::Gemini => path.ends_with(":streamGenerateContent"),
        // Ollama streams unless told not to.
        Dialect::OllamaChat | Dialect::OllamaGenerate => ask.stream != Some(false),
        _ => ask.stream == Some(true),
    };
    let completion = Completion {
        dialect,
        model: model.to_owned(),
        seed: how.seed.or(ask.seed).unwrap_or(seed),
        tokens: u32::try_from(tokens).unwrap_or(u32::MAX),
        says,
        // Four bytes a token is the usual rough measure; it makes usage repeatable.
        prompt_tokens: body.len() as u64 / 4,
        include_usage: ask.include_usage,
        cut_short: tokens < wanted,
        created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
    };
    Answer {
        status: 200,
        content_type: if streamed { dialect.stream_type() } else { "application/json" },
        seed: completion.says.is_none().then_some(completion.seed),
        body: match streamed {
            true => Body::Events(Stream::new(completion)),
            false => Body::Whole(completion.plain().into_bytes()),
        },
        computed: true,
    }
}

fn embeddings(body: &[u8], seed: u64) -> Answer {
    let ask: Ask = match serde_json::from_slice(body) {
        Ok(ask) => ask,
        Err(error) => return Answer::error(400, &format!("request body: {error}")),
    };
    let seed = ask.seed.unwrap_or(seed);
    let vector = |index: usize| {
        let number = |at: u64| text::mix(seed ^ text::mix(at)) as f64 / u64::MAX as f64 - 0.5;
        let numbers: Vec<String> =
            (0..8).map(|at| format!("{:.6}", number(index as u64 * 8 + at))).collect();
        format!(
            "{{\"object\":\"embedding\",\"index\":{index},\"embedding\":[{}]}}",
            numbers.join(",")
        )
    };
    let vectors: Vec<String> = (0..ask.inputs).map(vector).collect();
    let tokens = body.len() / 4;
    let mut made = Answer::json(
        200,
        format!(
            "{{\"object\":\"list\",\"data\":[{}],\"model\":{},\
             \"usage\":{{\"prompt_tokens\":{tokens},\"total_tokens\":{tokens}}}}}",
            vectors.join(","),
            quote(ask.model.as_deref().unwrap_or_default())
        ),
    );
    (made.seed, made.computed) = (Some(seed), true);
    made
}

fn pattern(seed: u64, bytes: u64) -> Answer {
    Answer {
        status: 200,
        content_type: "application/octet-stream",
        body: Body::Pattern { seed, bytes },
        seed: Some(seed),
        computed: true,
    }
}

/// A JSON object of exactly `bytes` bytes (of its shortest form, if that is longer).
fn padded(seed: u64, bytes: u64) -> Answer {
    const FRAME: &str = "{\"object\":\"mock.pad\",\"pad\":\"\"}";
    let room = bytes.min(SIZE_BYTES_MAX).saturating_sub(FRAME.len() as u64) as usize;
    let mut pad = Vec::new();
    text::push_pattern(seed, 0, room, &mut pad);
    let pad: String = pad.iter().map(|byte| char::from(b'a' + byte % 26)).collect();
    let mut made = Answer::json(200, format!("{{\"object\":\"mock.pad\",\"pad\":\"{pad}\"}}"));
    made.computed = true;
    made
}

fn models(shared: &Shared) -> String {
    let models = shared.config.models.iter().map(|model| {
        format!(
            "{{\"id\":{},\"object\":\"model\",\"created\":1700000000,\"owned_by\":{}}}",
            quote(model),
            quote(&shared.config.name)
        )
    });
    format!("{{\"object\":\"list\",\"data\":[{}]}}", models.collect::<Vec<_>>().join(","))
}

fn tags(shared: &Shared) -> String {
    let models = shared.config.models.iter().map(|model| {
        let model = quote(model);
        format!(
            "{{\"name\":{model},\"model\":{model},\"modified_at\":\"2026-01-01T00:00:00Z\",\"size\":0,\
             \"digest\":\"\",\"details\":{{\"format\":\"mock\"}}}}"
        )
    });
    format!("{{\"models\":[{}]}}", models.collect::<Vec<_>>().join(","))
}

fn stats(shared: &Shared) -> String {
    let stats = shared.counters.snapshot();
    let since_abort = stats.last_abort_at.map(|at| at.elapsed().as_millis().to_string());
    format!(
        "{{\"name\":{},\"connections_open\":{},\"connections_total\":{},\"requests_total\":{},\
         \"in_flight\":{},\"aborted_total\":{},\"last_abort_ms_ago\":{},\"malformed_total\":{},\
         \"events_total\":{},\"body_bytes_total\":{},\"written_bytes_total\":{}}}",
        quote(&shared.config.name),
        stats.connections_open,
        stats.connections_total,
        stats.requests_total,
        // The request that asks is not one of those asked for.
        stats.in_flight.saturating_sub(1),
        stats.aborted_total,
        since_abort.as_deref().unwrap_or("null"),
        stats.malformed_total,
        stats.events_total,
        stats.body_bytes_total,
        stats.written_bytes_total
    )
}
