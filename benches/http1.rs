//! What the HTTP/1.1 leaves cost. `cargo bench --bench http1`
//!
//! Names are `module/case/size`. `httparse` alone, with the same bytes and no checks on top, is
//! the floor for heads; for chunked bodies it is its own chunk-size function in a bare loop.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tokenring::testing::{
    http::{
        head::{RequestHead, ResponseHead},
        method::Method,
    },
    http1::{
        body::{BodyReader, drain_data},
        encode,
        framing::{Framing, request_framing, response_framing},
        parse::{HeadLimits, Parse, parse_request, parse_response},
    },
};

/// What the OpenAI SDK for Python sends, cut to 7 fields.
const FIELDS_7: &str = "POST /v1/chat/completions HTTP/1.1\r\n\
    Host: 127.0.0.1:4000\r\n\
    Accept: application/json\r\n\
    Content-Type: application/json\r\n\
    User-Agent: OpenAI/Python 1.99.1\r\n\
    Authorization: Bearer sk-0123456789abcdef0123456789\r\n\
    Connection: keep-alive\r\n\
    Content-Length: 1024\r\n\r\n";

/// The same with what it sends beside, and what a proxy before us adds: 20 fields.
fn fields_20() -> String {
    let more = "Accept-Encoding: gzip, deflate\r\n\
        X-Stainless-Lang: python\r\n\
        X-Stainless-Package-Version: 1.99.1\r\n\
        X-Stainless-OS: Linux\r\n\
        X-Stainless-Arch: x64\r\n\
        X-Stainless-Runtime: CPython\r\n\
        X-Stainless-Runtime-Version: 3.12.3\r\n\
        X-Stainless-Async: false\r\n\
        X-Stainless-Retry-Count: 0\r\n\
        X-Stainless-Read-Timeout: 600\r\n\
        X-Forwarded-For: 203.0.113.7\r\n\
        X-Forwarded-Proto: https\r\n\
        X-Request-Id: 3f2b8a54-7a3c-4f6b-9d59-0c2f0f6a1c11\r\n\r\n";
    FIELDS_7.strip_suffix("\r\n").unwrap_or(FIELDS_7).to_owned() + more
}

const RESPONSE: &str = "HTTP/1.1 200 OK\r\n\
    date: Mon, 27 Jul 2026 12:28:53 GMT\r\n\
    server: uvicorn\r\n\
    content-type: text/event-stream; charset=utf-8\r\n\
    transfer-encoding: chunked\r\n\r\n";

fn heads(c: &mut Criterion) {
    let limits = HeadLimits::default();
    let twenty = fields_20();
    let mut group = c.benchmark_group("parse");
    for (fields, wire) in [(7, FIELDS_7.as_bytes()), (20, twenty.as_bytes())] {
        group.throughput(Throughput::Bytes(wire.len() as u64));
        let mut head = RequestHead::new();
        group.bench_function(BenchmarkId::new("request", fields), |b| {
            b.iter(|| {
                let wire = black_box(wire);
                let done = parse_request(wire, &mut 0, &limits, &mut head);
                assert_eq!(done, Ok(Parse::Done));
                head.len
            });
        });
        group.bench_function(BenchmarkId::new("request_and_framing", fields), |b| {
            b.iter(|| {
                let wire = black_box(wire);
                let done = parse_request(wire, &mut 0, &limits, &mut head);
                assert_eq!(done, Ok(Parse::Done));
                request_framing(&head, wire)
            });
        });
        group.bench_function(BenchmarkId::new("httparse_alone", fields), |b| {
            b.iter(|| {
                let mut slots = [httparse::EMPTY_HEADER; 32];
                let mut request = httparse::Request::new(&mut slots);
                let done = request.parse(black_box(wire)).map(|status| status.is_complete());
                assert_eq!(done, Ok(true));
                request.headers.len()
            });
        });
    }
    let wire = RESPONSE.as_bytes();
    group.throughput(Throughput::Bytes(wire.len() as u64));
    let mut head = ResponseHead::new();
    group.bench_function("response_and_framing/4", |b| {
        b.iter(|| {
            let wire = black_box(wire);
            let done = parse_response(wire, &mut 0, &limits, &mut head);
            assert_eq!(done, Ok(Parse::Done));
            response_framing(Method::Post, &head, wire)
        });
    });
    group.finish();
}

fn bodies(c: &mut Criterion) {
    let mut group = c.benchmark_group("body");
    for (chunk_bytes, chunks) in [(200, 320), (64 << 10, 16)] {
        let mut wire = Vec::new();
        for _ in 0..chunks {
            encode::chunk(&mut wire, &vec![b'x'; chunk_bytes]);
        }
        encode::last_chunk(&mut wire);
        group.throughput(Throughput::Elements(chunks));
        group.bench_function(BenchmarkId::new("chunked_step", chunk_bytes), |b| {
            b.iter(|| {
                let mut reader = BodyReader::new(Framing::Chunked);
                let mut data = 0;
                let end = drain_data(&mut reader, black_box(&wire), |run| data += run.len());
                assert_eq!(end, Ok((wire.len(), true)));
                data
            });
        });
        group.bench_function(BenchmarkId::new("httparse_sizes", chunk_bytes), |b| {
            b.iter(|| {
                let wire = black_box(&wire[..]);
                let (mut at, mut data) = (0, 0);
                while let Ok(httparse::Status::Complete((head, size))) =
                    httparse::parse_chunk_size(&wire[at..])
                {
                    at += head + size as usize + 2;
                    data += size;
                    if size == 0 {
                        break;
                    }
                }
                assert_eq!(at, wire.len());
                data
            });
        });
    }
    group.finish();
}

fn encoding(c: &mut Criterion) {
    let twenty = fields_20();
    let wire = twenty.as_bytes();
    let mut head = RequestHead::new();
    let done = parse_request(wire, &mut 0, &HeadLimits::default(), &mut head);
    assert_eq!(done, Ok(Parse::Done));
    let mut out = Vec::with_capacity(2 * wire.len());
    c.bench_function("encode/copy_request_fields/20", |b| {
        b.iter(|| {
            out.clear();
            encode::copy_request_fields(&mut out, black_box(&head), wire, |_| false);
            out.len()
        });
    });
}

criterion_group!(benches, heads, bodies, encoding);
criterion_main!(benches);
