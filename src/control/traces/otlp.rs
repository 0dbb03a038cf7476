//! Spans in the messages of OTLP, with the attributes of OpenTelemetry's HTTP and GenAI conventions.
//!
//! What a client chose is a value and never the name of an attribute; of the request there are the
//! method, the path without its query and the model, never a body, and of the key nothing. What has no
//! name in the conventions begins with `tokenring.`.

use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{
    AnyValue, InstrumentationScope, KeyValue, any_value::Value,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use prost::Message as _;

use crate::base::clock::{Moment, WallTime};
use crate::error::{Blame, Kind};
use crate::telemetry::trace::AttemptSpan;
use crate::telemetry::traced::TracedExchange;

/// `SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK`, and that the parent is in another process.
const PARENT_IS_REMOTE: u32 = 0x300;
/// The same, and that it is in this one.
const PARENT_IS_HERE: u32 = 0x100;
/// The flag of a sampled trace.
const SAMPLED: u32 = 1;

/// The body of an export.
#[must_use]
pub fn encode(service: &str, exchanges: &[Box<TracedExchange>]) -> Vec<u8> {
    let scope = InstrumentationScope {
        name: "tokenring".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    };
    let mut resource = Attributes::default();
    resource.text("service.name", service);
    resource.text("service.version", env!("CARGO_PKG_VERSION"));
    let request = ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(Resource { attributes: resource.0, ..Resource::default() }),
            scope_spans: vec![ScopeSpans {
                scope: Some(scope),
                spans: exchanges.iter().flat_map(|traced| spans(traced)).collect(),
                ..ScopeSpans::default()
            }],
            ..ResourceSpans::default()
        }],
    };
    request.encode_to_vec()
}

/// The span of an exchange, then those of its attempts.
fn spans(traced: &TracedExchange) -> Vec<Span> {
    let mut spans = vec![exchange(traced)];
    spans
        .extend(traced.trace.attempts.iter().enumerate().map(|(at, one)| attempt(traced, at, one)));
    spans
}

fn exchange(traced: &TracedExchange) -> Span {
    let outcome = &traced.outcome;
    let mut attributes = Attributes::default();
    attributes.text("http.request.method", &traced.method);
    attributes.text("url.path", &traced.path);
    if let Some(client) = traced.client {
        attributes.text("client.address", &client.to_string());
    }
    attributes.some("http.response.status_code", u64::from(outcome.status));
    attributes.some("http.request.body.size", outcome.request_bytes);
    attributes.some("http.response.body.size", outcome.sent_bytes());
    model(&mut attributes, traced);
    if outcome.upstream_status / 100 == 2 {
        attributes.text("gen_ai.response.model", &traced.model_sent);
    }
    attributes.known("gen_ai.usage.input_tokens", outcome.prompt_tokens);
    attributes.known("gen_ai.usage.output_tokens", outcome.completion_tokens);
    attributes.known("gen_ai.usage.cache_read.input_tokens", outcome.cached_tokens);
    attributes.text("tokenring.request_id", &traced.request_id);
    attributes.text("tokenring.listener", &traced.listener);
    attributes.text("tokenring.group", &traced.group);
    attributes.text("tokenring.upstream", &traced.upstream);
    attributes.known("tokenring.attempts", Some(u64::from(outcome.attempts)));
    attributes.flag("tokenring.stream", outcome.streamed);
    let queued = Some(outcome.queue_us).filter(|us| *us > 0).map(Duration::from_micros);
    attributes.seconds("tokenring.queue_time", queued);
    let first_token = outcome.first_token_us.map(Duration::from_micros);
    attributes.seconds("tokenring.time_to_first_token", first_token);
    let fault = outcome.fault.map(|fault| fault.kind);
    let status = ended(&mut attributes, fault, outcome.status);
    let end = traced.begun + traced.duration();
    Span {
        parent_span_id: traced.trace.parent.map_or_else(Vec::new, |id| id.to_vec()),
        flags: SAMPLED | PARENT_IS_REMOTE,
        kind: SpanKind::Server as i32,
        ..span(traced, traced.trace.span, (traced.begun, end), attributes, status)
    }
}

fn attempt(traced: &TracedExchange, at: usize, one: &AttemptSpan) -> Span {
    let outcome = &traced.outcome;
    let mut attributes = Attributes::default();
    attributes.text("http.request.method", &traced.method);
    if let Some(address) = one.address {
        attributes.text("server.address", &address.ip().to_string());
        attributes.some("server.port", u64::from(address.port()));
    }
    attributes.some("http.request.resend_count", at as u64);
    attributes.text("tokenring.upstream", &one.upstream);
    model(&mut attributes, traced);
    // The last attempt's end is the exchange's.
    let (end, kind, status) = match one.failed {
        Some(failed) => (failed, one.kind, one.status),
        None => {
            let fault = outcome.fault.map(|fault| fault.kind);
            (traced.begun + traced.duration(), fault, outcome.upstream_status)
        }
    };
    attributes.some("http.response.status_code", u64::from(status));
    let status = ended(&mut attributes, kind, status);
    Span {
        parent_span_id: traced.trace.span.to_vec(),
        flags: SAMPLED | PARENT_IS_HERE,
        kind: SpanKind::Client as i32,
        ..span(traced, one.span, (one.begun, end), attributes, status)
    }
}

/// What all spans have.
fn span(
    traced: &TracedExchange,
    id: [u8; 8],
    (from, to): (Moment, Moment),
    attributes: Attributes,
    status: Option<Status>,
) -> Span {
    let at = |moment: Moment| traced.begun_wall + moment.since(traced.begun);
    let nanos = |at: WallTime| at.as_nanos();
    Span {
        trace_id: traced.trace.id.to_vec(),
        span_id: id.to_vec(),
        name: name(traced),
        start_time_unix_nano: nanos(at(from)),
        end_time_unix_nano: nanos(at(to)),
        attributes: attributes.0,
        status,
        ..Span::default()
    }
}

/// `chat llama3`, as the conventions for GenAI have it, or the method alone.
fn name(traced: &TracedExchange) -> String {
    match operation(&traced.path) {
        Some(operation) if !traced.model.is_empty() => format!("{operation} {}", traced.model),
        Some(operation) => operation.to_owned(),
        None if traced.method.is_empty() => "HTTP".to_owned(),
        None => traced.method.clone(),
    }
}

/// The `gen_ai.operation.name` of a path, by its end.
fn operation(path: &str) -> Option<&'static str> {
    let path = path.strip_suffix('/').unwrap_or(path);
    let ends = |end: &str| path.ends_with(end);
    if ends("/chat/completions") || ends("/messages") || ends("/responses") || ends("/chat") {
        return Some("chat");
    }
    if ends(":generateContent") || ends(":streamGenerateContent") {
        return Some("generate_content");
    }
    if ends("/embeddings") || ends("/embed") || ends(":embedContent") {
        return Some("embeddings");
    }
    let texts = ends("/completions") || ends("/completion") || ends("/generate");
    texts.then_some("text_completion")
}

fn model(attributes: &mut Attributes, traced: &TracedExchange) {
    attributes.text("gen_ai.operation.name", operation(&traced.path).unwrap_or_default());
    attributes.text("gen_ai.request.model", &traced.model);
}

/// Says how a span ended; a client that left or erred is no error of the spans.
fn ended(attributes: &mut Attributes, fault: Option<Kind>, status: u16) -> Option<Status> {
    match fault {
        Some(kind) => attributes.text("error.type", kind.row().finish.name()),
        None if status >= 500 => attributes.text("error.type", &status.to_string()),
        None => return None,
    }
    let row = fault.map(Kind::row);
    if row.is_some_and(|row| row.blame == Blame::Client) {
        return None;
    }
    let message = row.map_or("", |row| row.log).to_owned();
    Some(Status { message, code: StatusCode::Error as i32 })
}

/// The attributes of a span; what is not known has none.
#[derive(Default)]
struct Attributes(Vec<KeyValue>);

impl Attributes {
    fn put(&mut self, key: &'static str, value: Value) {
        let value = Some(AnyValue { value: Some(value) });
        self.0.push(KeyValue { key: key.to_owned(), value, ..KeyValue::default() });
    }

    fn text(&mut self, key: &'static str, text: &str) {
        if !text.is_empty() {
            self.put(key, Value::StringValue(text.to_owned()));
        }
    }

    fn known(&mut self, key: &'static str, number: Option<u64>) {
        if let Some(number) = number {
            self.put(key, Value::IntValue(i64::try_from(number).unwrap_or(i64::MAX)));
        }
    }

    fn some(&mut self, key: &'static str, number: u64) {
        self.known(key, Some(number).filter(|number| *number > 0));
    }

    fn flag(&mut self, key: &'static str, flag: bool) {
        self.put(key, Value::BoolValue(flag));
    }

    fn seconds(&mut self, key: &'static str, time: Option<Duration>) {
        if let Some(time) = time {
            self.put(key, Value::DoubleValue(time.as_secs_f64()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_known_by_the_end_of_the_path() {
        for (path, expected) in [
            ("/v1/chat/completions", Some("chat")),
            ("/v1/chat/completions/", Some("chat")),
            ("/v1/messages", Some("chat")),
            ("/api/chat", Some("chat")),
            ("/v1/completions", Some("text_completion")),
            ("/v1/embeddings", Some("embeddings")),
            ("/v1beta/models/m:streamGenerateContent", Some("generate_content")),
            ("/v1/models", None),
            ("", None),
        ] {
            assert_eq!(operation(path), expected, "{path}");
        }
    }
}
