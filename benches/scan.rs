//! How fast the model is found: `ModelScan` against a blind search and a full parse.
//!
//! Every body is in the order of the Python SDKs, `messages` before `model`, so the whole
//! of it must be crossed. `memmem` looks for the bytes `"model"` and is the floor: it reads
//! the same bytes and understands nothing (it would take a decoy). simd-json builds what a
//! proxy that parses would build; its input is destroyed by parsing, so each run gets a
//! fresh copy, made outside the measured time.
//!
//! `cargo bench --bench scan -- --warm-up-time 1 --measurement-time 2`

use std::hint::black_box;
use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tokenring::testing::base::rng::Rng;
use tokenring::testing::llm::scan::ModelScan;

fn main_bench(c: &mut Criterion) {
    let bodies = [
        ("prompt/1KB", prompt(1 << 10)),
        ("prompt/100KB", prompt(100 << 10)),
        ("prompt/10MB", prompt(10 << 20)),
        ("image/10MB", image(10 << 20)),
        ("tokens/1MB", tokens(1 << 20)),
        ("turns/100KB", turns(100 << 10)),
    ];
    let mut group = c.benchmark_group("scan");
    group
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(2))
        .sample_size(20);
    for (name, body) in &bodies {
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_with_input(BenchmarkId::new("model_scan", name), body, |b, body| {
            let mut scan = ModelScan::new();
            b.iter(|| {
                scan.reset();
                // As it arrives: in reads of 64 KiB.
                for piece in body.chunks(64 << 10) {
                    scan.push(black_box(piece)).expect("the body is sound");
                }
                scan.finish().expect("the body is sound");
                assert_eq!(scan.model().map(|model| model.name.len()), Some(5));
            });
        });
        group.bench_with_input(BenchmarkId::new("memmem", name), body, |b, body| {
            let finder = memchr::memmem::Finder::new("\"model\"");
            b.iter(|| finder.find(black_box(body)).expect("it is there"));
        });
        group.bench_with_input(BenchmarkId::new("simd_json_tape", name), body, |b, body| {
            b.iter_batched_ref(
                || body.clone(),
                |copy| simd_json::to_tape(copy).expect("the body is sound").0.len(),
                BatchSize::LargeInput,
            );
        });
        group.bench_with_input(BenchmarkId::new("simd_json_borrowed", name), body, |b, body| {
            b.iter_batched_ref(
                || body.clone(),
                |copy| {
                    drop(black_box(simd_json::to_borrowed_value(copy).expect("the body is sound")))
                },
                BatchSize::LargeInput,
            );
        });
    }
    group.finish();
}

const TAIL: &str = "],\"temperature\":0.7,\"max_tokens\":512,\"model\":\"gpt-x\",\"stream\":true}";

/// One long message: words, a line break as `\n` every 80 bytes or so, now and then a quote.
fn prompt(size: usize) -> Vec<u8> {
    let mut body = "{\"messages\":[{\"role\":\"user\",\"content\":\"".to_owned();
    words(&mut body, size - TAIL.len() - 2);
    body.push_str("\"}");
    body.push_str(TAIL);
    body.into_bytes()
}

/// Many short turns, as a tool loop sends them.
fn turns(size: usize) -> Vec<u8> {
    let mut body = "{\"messages\":[".to_owned();
    let mut rng = Rng::new(2);
    while body.len() < size {
        body.push_str("{\"role\": \"user\", \"content\": \"");
        let until = body.len() + 20 + rng.below(150) as usize;
        words(&mut body, until);
        body.push_str("\"}, ");
    }
    body.push_str("{}");
    body.push_str(TAIL);
    body.into_bytes()
}

fn words(body: &mut String, until: usize) {
    let mut rng = Rng::new(1);
    let mut line = 0;
    while body.len() < until {
        let word = 2 + rng.below(8) as usize;
        body.extend((0..word).map(|_| (b'a' + rng.below(26) as u8) as char));
        line += word + 1;
        body.push_str(match () {
            () if line > 80 => "\\n",
            () if rng.below(40) == 0 => " \\\"",
            () => " ",
        });
        line %= 81;
    }
}

/// An image in base64, as vision requests carry it.
fn image(size: usize) -> Vec<u8> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut rng = Rng::new(3);
    let mut body = "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\",\"image_url\":{\"url\":\"data:image/png;base64,".to_owned();
    while body.len() < size {
        body.push(ALPHABET[rng.below(64) as usize] as char);
    }
    body.push_str("\"}}]}");
    body.push_str(TAIL);
    body.into_bytes()
}

/// A prompt as token numbers.
fn tokens(size: usize) -> Vec<u8> {
    let mut rng = Rng::new(4);
    let mut body = "{\"prompt\":[[".to_owned();
    while body.len() < size {
        body.push_str(&rng.below(128_000).to_string());
        body.push_str(", ");
    }
    body.push_str("0]");
    body.push_str(TAIL);
    body.into_bytes()
}

criterion_group!(benches, main_bench);
criterion_main!(benches);
