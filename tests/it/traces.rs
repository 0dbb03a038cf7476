//! `[tracing]`: spans over OTLP, and the `traceparent` that servers see.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use loadtest::mock::Mock;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;

use super::house::{Setup, mock, wait_until};
use super::reload::Live;
use super::wire::{chat, get};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// A collector that keeps what it is sent, and answers with a status of the test's choice.
struct Collector {
    addr: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
    spans: Arc<Mutex<Vec<(String, Span)>>>,
    status: Arc<AtomicU16>,
}

impl Collector {
    fn start() -> Collector {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let addr = listener.local_addr().unwrap();
        let (heads, spans) = (Arc::default(), Arc::default());
        let status = Arc::new(AtomicU16::new(200));
        let collector = Collector { addr, heads, spans, status };
        let (heads, spans) = (collector.heads.clone(), collector.spans.clone());
        let status = collector.status.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (head, body) = request(&stream);
                heads.lock().unwrap().push(head);
                let status = status.load(Relaxed);
                if status == 200 {
                    let mut kept = spans.lock().unwrap();
                    let export = ExportTraceServiceRequest::decode(body.as_slice()).unwrap();
                    for of in export.resource_spans {
                        let service = of.resource.unwrap().attributes[0].clone();
                        let service = format!("{:?}", service.value.unwrap().value.unwrap());
                        let all = of.scope_spans.into_iter().flat_map(|scope| scope.spans);
                        kept.extend(all.map(|span| (service.clone(), span)));
                    }
                }
                let answer = format!("HTTP/1.1 {status} x\r\nContent-Length: 0\r\n\r\n");
                let _ = (&stream).write_all(answer.as_bytes());
            }
        });
        collector
    }

    fn table(&self, more: &str) -> String {
        format!("[tracing]\nendpoint = \"http://{}\"\n{more}\n", self.addr)
    }

    /// Waits for so many spans and returns them all, by the order of their beginning.
    fn spans(&self, count: usize) -> Vec<Span> {
        wait_until("the spans come", || self.spans.lock().unwrap().len() >= count);
        let mut spans: Vec<Span> =
            self.spans.lock().unwrap().iter().map(|(_, span)| span.clone()).collect();
        assert_eq!(spans.len(), count, "{spans:?}");
        spans.sort_by_key(|span| span.start_time_unix_nano);
        spans
    }
}

fn request(stream: &TcpStream) -> (String, Vec<u8>) {
    let mut reader = BufReader::new(stream);
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        if line.trim().is_empty() {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        head += &line;
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    (head, body)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn attribute(span: &Span, key: &str) -> Option<String> {
    let found = span.attributes.iter().find(|one| one.key == key)?;
    Some(match found.value.clone()?.value? {
        Value::StringValue(text) => text,
        Value::IntValue(number) => number.to_string(),
        other => format!("{other:?}"),
    })
}

fn parent_of(mock: &Mock, at: usize) -> Option<String> {
    mock.seen()[at].field("traceparent")
}

#[test]
fn a_clients_trace_is_continued_with_a_span_for_the_exchange_and_one_for_its_attempt() {
    let (mock, collector) = (mock(), Collector::start());
    let more = "service_name = \"edge\"\nheaders = { x-token = \"CANARY\" }\nsample = 0.0";
    let rest = collector.table(more);
    let proxy = Setup { rest: &rest, ..Setup::default() }.start(&[&mock]);
    let fields = format!("traceparent: 00-{TRACE}-{PARENT}-01\r\ntracestate: a=b\r\n");
    assert_eq!(proxy.client().send(chat(&fields, false)).answer().status, 200);
    let spans = collector.spans(2);
    let (server, client) = (&spans[0], &spans[1]);
    assert_eq!((hex(&server.trace_id), hex(&server.parent_span_id)), (TRACE.into(), PARENT.into()));
    assert_eq!((server.kind, client.kind), (2, 3));
    assert_eq!(hex(&client.trace_id), TRACE);
    assert_eq!(client.parent_span_id, server.span_id);
    assert_eq!(parent_of(&mock, 0), Some(format!("00-{TRACE}-{}-01", hex(&client.span_id))));
    assert_eq!(mock.seen()[0].fields("traceparent").len(), 1);
    assert_eq!(mock.seen()[0].field("tracestate").as_deref(), Some("a=b"));
    assert_eq!(server.name, "chat m");
    for (key, expected) in [
        ("http.request.method", "POST"),
        ("url.path", "/v1/chat/completions"),
        ("http.response.status_code", "200"),
        ("gen_ai.operation.name", "chat"),
        ("gen_ai.request.model", "m"),
        ("gen_ai.response.model", "m"),
        ("tokenring.upstream", "gpu0"),
        ("tokenring.group", "chat"),
        ("tokenring.attempts", "1"),
        ("client.address", "127.0.0.1"),
    ] {
        assert_eq!(attribute(server, key).as_deref(), Some(expected), "{key}");
    }
    assert!(attribute(server, "gen_ai.usage.output_tokens").is_some(), "{server:?}");
    let port = mock.addr().port().to_string();
    assert_eq!(attribute(client, "server.address").as_deref(), Some("127.0.0.1"));
    assert_eq!(attribute(client, "server.port"), Some(port));
    assert!(server.status.is_none() && client.status.is_none());
    assert!(server.start_time_unix_nano <= client.start_time_unix_nano);
    assert!(client.end_time_unix_nano <= server.end_time_unix_nano);
    assert!(server.start_time_unix_nano > 1_600_000_000_000_000_000);
    let heads = collector.heads.lock().unwrap();
    assert!(heads[0].starts_with("POST /v1/traces HTTP/1.1"), "{heads:?}");
    assert!(heads[0].contains("x-token: CANARY"), "{heads:?}");
    assert_eq!(collector.spans.lock().unwrap()[0].0, "StringValue(\"edge\")");
}

#[test]
fn each_attempt_has_its_span_and_its_traceparent() {
    let (bad, good, collector) = (mock(), mock(), Collector::start());
    bad.behave("status=503");
    let rest = collector.table("");
    let group =
        "balance = \"failover\"\nretry = { attempts = 2, initial = \"100ms\", on = [\"503\"] }";
    let proxy = Setup { group, rest: &rest, ..Setup::default() }.start(&[&bad, &good]);
    assert_eq!(proxy.client().send(chat("", false)).answer().status, 200);
    let spans = collector.spans(3);
    let trace = hex(&spans[0].trace_id);
    assert!(spans[0].parent_span_id.is_empty(), "the trace begins here");
    for (mock, span) in [(&bad, &spans[1]), (&good, &spans[2])] {
        assert_eq!(span.parent_span_id, spans[0].span_id);
        assert_eq!(parent_of(mock, 0), Some(format!("00-{trace}-{}-01", hex(&span.span_id))));
    }
    assert_eq!(attribute(&spans[1], "http.response.status_code").as_deref(), Some("503"));
    assert!(attribute(&spans[1], "error.type").is_some());
    assert_eq!(spans[1].status.as_ref().map(|status| status.code), Some(2));
    assert_eq!(attribute(&spans[2], "http.response.status_code").as_deref(), Some("200"));
    assert_eq!(attribute(&spans[2], "http.request.resend_count").as_deref(), Some("1"));
    assert!(spans[0].status.is_none());
}

#[test]
fn what_is_not_sampled_passes_untouched_and_has_no_span() {
    let (mock, collector) = (mock(), Collector::start());
    let rest = collector.table("");
    let proxy = Setup { rest: &rest, ..Setup::default() }.start(&[&mock]);
    let unsampled = format!("00-{TRACE}-{PARENT}-00");
    let fields = format!("Traceparent: {unsampled}\r\n");
    assert_eq!(proxy.client().send(chat(&fields, false)).answer().status, 200);
    assert_eq!(parent_of(&mock, 0), Some(unsampled));
    // The next one is sampled, and its spans are the only ones.
    assert_eq!(proxy.client().send(get("/nowhere", "")).answer().status, 404);
    let refused = &collector.spans(1)[0];
    assert_eq!(attribute(refused, "http.response.status_code").as_deref(), Some("404"));
    assert_eq!(refused.name, "GET");
}

#[test]
fn without_a_collector_nothing_is_changed() {
    let mock = mock();
    let proxy = Setup::default().start(&[&mock]);
    let sent = format!("00-{TRACE}-{PARENT}-01");
    let fields = format!("traceparent: {sent}\r\n");
    assert_eq!(proxy.client().send(chat(&fields, false)).answer().status, 200);
    assert_eq!(parent_of(&mock, 0), Some(sent));
}

#[test]
fn a_collector_that_takes_nothing_costs_spans_which_are_counted() {
    let (mock, collector) = (mock(), Collector::start());
    collector.status.store(503, Relaxed);
    let rest = format!("[admin]\nbind = \"127.0.0.1:0\"\n{}", collector.table(""));
    let proxy = Setup { rest: &rest, ..Setup::default() }.start(&[&mock]);
    let traces = || &proxy.shared().traces;
    assert_eq!(proxy.client().send(chat("", false)).answer().status, 200);
    wait_until("it is dropped", || traces().dropped.load(Relaxed) == 1);
    collector.status.store(200, Relaxed);
    assert_eq!(proxy.client().send(chat("", false)).answer().status, 200);
    wait_until("the next is taken", || traces().exported.load(Relaxed) == 1);
    let Some(tokenring::testing::net::dial::Address::Tcp(admin)) = proxy.admin().cloned() else {
        panic!("it has an address");
    };
    let metrics = super::wire::Client::connect(admin).send(get("/metrics", "")).answer().text();
    for line in [
        "tokenring_trace_exchanges_total{result=\"exported\"} 1",
        "tokenring_trace_exchanges_total{result=\"dropped\"} 1",
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
}

#[test]
fn a_reload_switches_it_on_and_off() {
    let (mock, collector) = (mock(), Collector::start());
    let text = |rest: &str| Setup { rest, ..Setup::default() }.text(&[mock.url()]);
    let live = Live::start(&text(""));
    let ask = || assert_eq!(live.proxy.client().send(chat("", false)).answer().status, 200);
    ask();
    assert_eq!(parent_of(&mock, 0), None);
    live.reload(&text(&collector.table(""))).unwrap();
    ask();
    collector.spans(2);
    assert!(parent_of(&mock, 1).is_some());
    live.reload(&text("")).unwrap();
    ask();
    assert_eq!(parent_of(&mock, 2), None);
}
