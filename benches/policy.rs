//! The deciders that every request passes, alone: routes, models, keys, picks, the breaker, the
//! log line.
//!
//! Names are `policy/what/case`. The sizes are those of a large installation: 100 routes, 200
//! models, 1,000 keys.

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use tokenring::testing::base::clock::Moment;
use tokenring::testing::base::rng::Rng;
use tokenring::testing::policy::balance::{self, Member, PickState, Strategy, Tried};
use tokenring::testing::policy::breaker::{Breaker, BreakerPolicy, CallResult};
use tokenring::testing::policy::ewma::Measures;
use tokenring::testing::policy::host::HostTable;
use tokenring::testing::policy::keys::{Key, KeyDigest, KeyTable, ModelRights};
use tokenring::testing::policy::model::{Force, ModelEntry, ModelNames, ModelTable};
use tokenring::testing::policy::queue::{Queue, Share};
use tokenring::testing::policy::route::PathTable;
use tokenring::testing::telemetry::access::write_line;
use tokenring::testing::telemetry::counters::Counters;
use tokenring::testing::telemetry::finished::Finished;
use tokenring::testing::telemetry::outcome::Outcome;

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
        b.iter(|| {
            let (host, path) = (black_box(b"H42.example.com:443"), black_box(b"/pre/v1/chat"));
            hosts.find_map(host, path, |value, strip| Some((value, strip)))
        });
    });
}

fn models(c: &mut Criterion) {
    let entries = (0..200).map(|i| ModelEntry {
        name: format!("model-{i}"),
        aliases: vec![format!("alias-{i}")],
        ..ModelEntry::default()
    });
    let table =
        ModelTable::new(ModelNames { configured: entries.collect(), ..ModelNames::default() })
            .expect("the names above differ");
    for (case, name) in [("exact", "model-99"), ("alias", "alias-99"), ("none", "gpt-4o-mini")] {
        c.bench_function(&format!("policy/model/{case}"), |b| {
            b.iter(|| table.find(black_box(name), None, Force::Listed, |_| true));
        });
    }
}

fn keys(c: &mut Criterion) {
    for count in [1usize, 100, 1000] {
        let key = |i: usize| Key {
            name: format!("key-{i}").into(),
            digest: Some(KeyDigest::of(format!("sk-{i:048}").as_bytes())),
            previous: None,
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
    let mut rng = Rng::new(1);
    for count in [8usize, 64] {
        let members: Vec<Member> = (0..count)
            .map(|_| Member {
                weight: 1 + rng.below(8) as u32,
                in_flight: rng.below(16) as u32,
                rt_us: 20_000 + rng.below(80_000) as u32,
                peak_us: 20_000 + rng.below(200_000) as u32,
                ..Member::default()
            })
            .collect();
        for strategy in Strategy::ALL {
            let mut state = PickState::default();
            c.bench_function(&format!("policy/pick/{strategy:?}/{count}"), |b| {
                b.iter(|| {
                    let chance = rng.next_u64();
                    balance::pick(strategy, &mut state, black_box(&members), &Tried::NONE, chance)
                });
            });
        }
    }
}

fn calls(c: &mut Criterion) {
    let breaker = Breaker::new(BreakerPolicy::default());
    c.bench_function("policy/breaker/call", |b| {
        b.iter(|| {
            let entry = breaker.enter(black_box(Moment::from_millis(5_000)))?;
            breaker.record(entry, CallResult::Success, black_box(Moment::from_millis(5_100)))
        });
    });
    let (measures, now) = (Measures::new(), Moment::from_secs(5));
    c.bench_function("policy/measures/record", |b| {
        b.iter(|| measures.record_success(black_box(Duration::from_millis(50)), black_box(now)));
    });
    c.bench_function("policy/measures/read", |b| b.iter(|| measures.read(black_box(now))));
}

fn records(c: &mut Criterion) {
    let outcome = Outcome { status: 200, attempts: 1, duration_us: 12_345, ..Outcome::default() };
    let mut counters = Counters::default();
    c.bench_function("policy/record/counters", |b| b.iter(|| counters.record(black_box(&outcome))));
    let mut out = Vec::with_capacity(4096);
    c.bench_function("policy/record/access", |b| {
        b.iter(|| {
            out.clear();
            let entry = Finished {
                ts_ms: 1_700_000_000_000,
                request_id: "01HF7YAT00ABCDEFGHJKMNP",
                client: Some([10, 0, 0, 1].into()),
                key: "my-app",
                listener: "main",
                method: b"POST",
                path: b"/v1/chat/completions",
                group: "chat",
                model: b"llama3",
                model_sent: b"llama3",
                upstream: "gpu0",
                failures: &[],
                outcome: &outcome,
            };
            write_line(black_box(&entry), &mut out);
        });
    });
}

/// 200 wait under three keys of two priorities; one enters, one is let go.
fn queue(c: &mut Criterion) {
    let mut queue = Queue::new(1000);
    let mut turn = 0u32;
    let mut enter = |queue: &mut Queue| {
        turn = turn.wrapping_add(1);
        queue.enqueue(
            Share::of(turn % 3, (turn % 3 / 2) as i32),
            Moment::from_millis(turn.into()),
            Moment::MAX,
        )
    };
    for _ in 0..200 {
        let _ = enter(&mut queue);
    }
    c.bench_function("queue/enqueue_next/200", |b| {
        b.iter(|| {
            let _ = black_box(enter(&mut queue));
            queue.find(Moment::ORIGIN, |_| true).map(|id| queue.grant(id, Moment::ORIGIN))
        });
    });
    c.bench_function("queue/enqueue_cancel/200", |b| {
        b.iter(|| enter(&mut queue).map(|id| queue.cancel(id, Moment::ORIGIN)));
    });
}

criterion_group!(benches, routes, models, keys, picks, calls, records, queue);
criterion_main!(benches);
