//! The deciders that every request passes, alone: routes, models, keys, the log line.
//!
//! Names are `policy/what/case`. The sizes are those of a large installation: 100 routes, 200
//! models, 1,000 keys.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use tokenring::policy::balance::{self, Member, PickState, Strategy, Tried};
use tokenring::policy::host::HostTable;
use tokenring::policy::keys::{Key, KeyDigest, KeyTable, ModelRights};
use tokenring::policy::model::{ModelEntry, ModelTable};
use tokenring::policy::route::PathTable;
use tokenring::telemetry::Outcome;
use tokenring::telemetry::access::{AccessEntry, write_line};
use tokenring::telemetry::counters::Counters;

fn routes(c: &mut Criterion) {
    let rules = (0..100).map(|i| match i % 4 {
        0 => (format!("/api/v{i}/chat"), i),
        1 => (format!("/api/v{i}/:id/items"), i),
        2 => (format!("/api/v{i}/{{id:[0-9]+}}"), i),
        _ => (format!("/files{i}/*"), i),
    });
    let table = PathTable::new(rules).expect("the patterns above are good");
    for (case, path) in [
        ("literal", "/api/v96/chat"),
        ("named", "/api/v97/alice/items"),
        ("regex", "/api/v98/42"),
        ("tail", "/files99/a/b/c"),
        ("none", "/v1/chat/completions"),
    ] {
        let path = path.as_bytes();
        c.bench_function(&format!("policy/route/{case}"), |b| {
            b.iter(|| table.find(black_box(path)));
        });
    }
    let hosts = (0..100).map(|i| (format!("h{i}.example.com/pre"), i));
    let hosts = HostTable::new(hosts).expect("the rules above are good");
    c.bench_function("policy/host/prefix", |b| {
        b.iter(|| hosts.find(black_box(b"H42.example.com:443"), black_box(b"/pre/v1/chat")));
    });
}

fn models(c: &mut Criterion) {
    let entries = (0..200).map(|i| ModelEntry {
        name: format!("model-{i}"),
        aliases: vec![format!("alias-{i}")],
        ..ModelEntry::default()
    });
    let table = ModelTable::new(entries, [], [], []).expect("the names above differ");
    for (case, name) in [("exact", "model-99"), ("alias", "alias-99"), ("none", "gpt-4o-mini")] {
        c.bench_function(&format!("policy/model/{case}"), |b| {
            b.iter(|| table.find(black_box(name)));
        });
    }
}

fn keys(c: &mut Criterion) {
    for count in [1usize, 100, 1000] {
        let key = |i: usize| Key {
            name: format!("key-{i}").into(),
            digest: KeyDigest::of(format!("sk-{i:048}").as_bytes()),
            models: ModelRights::new(["*"]),
            listeners: None,
            expires_at: None,
        };
        let table = KeyTable::new((0..count).map(key).collect()).expect("the keys above differ");
        let secret = format!("sk-{:048}", count / 2);
        c.bench_function(&format!("policy/key/{count}"), |b| {
            b.iter(|| table.authenticate(black_box(secret.as_bytes()), 0, 0));
        });
    }
}

fn picks(c: &mut Criterion) {
    let members = [Member::default(); 16];
    let mut state = PickState::default();
    c.bench_function("policy/pick/round_robin", |b| {
        b.iter(|| {
            balance::pick(Strategy::RoundRobin, &mut state, black_box(&members), &Tried::NONE, 0)
        });
    });
}

fn records(c: &mut Criterion) {
    let outcome = Outcome { status: 200, attempts: 1, duration_us: 12_345, ..Outcome::default() };
    let mut counters = Counters::default();
    c.bench_function("policy/record/counters", |b| b.iter(|| counters.record(black_box(&outcome))));
    let mut out = Vec::with_capacity(4096);
    c.bench_function("policy/record/access", |b| {
        b.iter(|| {
            out.clear();
            let entry = AccessEntry {
                ts_ms: 1_700_000_000_000,
                request_id: "01HF7YAT00ABCDEFGHJKMNP",
                client: Some([10, 0, 0, 1].into()),
                key: "my-app",
                listener: "main",
                method: b"POST",
                path: b"/v1/chat/completions",
                route: "chat",
                model: b"llama3",
                upstream: "gpu0",
                outcome: &outcome,
            };
            write_line(black_box(&entry), &mut out);
        });
    });
}

criterion_group!(benches, routes, models, keys, picks, records);
criterion_main!(benches);
