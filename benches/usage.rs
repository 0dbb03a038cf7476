//! What the usage tap costs per passing chunk of a stream.
//!
//! `before_first_token` looks into each event, `after_first_token` only keeps the tail; a
//! stream is nearly all of the second kind.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use tokenring::testing::llm::usage::{BodyKind, UsageTap};

const SILENT: &str = "data: {\"id\":\"chatcmpl-0123456789abcdef\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"llama3\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}],\"usage\":null}\n\n";

fn bench(c: &mut Criterion) {
    let told = SILENT.replace("\"content\":\"\"", "\"content\":\"Hi\"");
    let mut group = c.benchmark_group("usage");
    group.bench_function("before_first_token/sse_chunk", |b| {
        let mut tap = UsageTap::new(BodyKind::Sse);
        b.iter(|| tap.push(black_box(SILENT.as_bytes())));
        assert!(!tap.first_token_seen());
    });
    group.bench_function("after_first_token/sse_chunk", |b| {
        let mut tap = UsageTap::new(BodyKind::Sse);
        tap.push(told.as_bytes());
        assert!(tap.first_token_seen());
        b.iter(|| tap.push(black_box(told.as_bytes())));
    });
    group.bench_function("finish/4KB", |b| {
        let mut tap = UsageTap::new(BodyKind::Sse);
        b.iter(|| {
            tap.reset(BodyKind::Sse);
            (0..20).for_each(|_| tap.push(told.as_bytes()));
            black_box(tap.finish())
        });
    });
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
