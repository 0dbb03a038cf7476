//! Runs with a name, about blame: what works is not taken away for what does not, and what is back
//! is used (rules §8).
//!
//! Availability is counted over what could work: the requests of good clients for good models,
//! from when the breaker could know.

use std::time::Duration;

use tokenring::testing::policy::balance::Strategy;
use tokenring::testing::policy::breaker::BreakerPolicy;

use crate::clock::{MS, SECOND};
use crate::report::{Ended, Report};
use crate::servers::Mode;
use crate::setup::{KeySetup, Load, Probes, ServerSetup, Setup, calm};
use crate::sim::play;

const SEEDS: std::ops::Range<u64> = 0..2;

/// Plays it under every strategy and seed.
fn each(setup: impl Fn(u64) -> Setup, judge: impl Fn(&Setup, &Report)) {
    for strategy in Strategy::ALL {
        for seed in SEEDS {
            let setup = Setup { strategy, ..setup(seed) };
            eprintln!("{strategy:?} seed {seed}, {} servers", setup.servers.len());
            judge(&setup, &play(&setup));
        }
    }
}

/// A cooldown that nobody would want to wait for.
fn patient(seed: u64) -> BreakerPolicy {
    BreakerPolicy { cooldown: Duration::from_secs(300), ..calm(seed).breaker }
}

/// Share of whole answers of a key.
fn availability(report: &Report, key: usize) -> f64 {
    let whole = report.ended[key].get(&Ended::Whole).copied().unwrap_or(0);
    whole as f64 / report.arrived[key] as f64
}

fn open_load(per_second: f64) -> KeySetup {
    KeySetup::with(Load::Open { per_second })
}

#[test]
fn poison_requests_take_no_model_from_anybody() {
    for servers in [1, 3] {
        let poisoned = |seed| Setup {
            servers: vec![ServerSetup::up(16); servers],
            breaker: patient(seed),
            keys: vec![
                open_load(25.0),
                KeySetup {
                    poison: true,
                    ..KeySetup::with(Load::Closed { clients: 4, think_us: 20 * MS })
                },
            ],
            ..calm(seed)
        };
        each(poisoned, |_, report| {
            let share = availability(report, 0);
            assert!(share >= 0.999, "{share}: {:?}", report.ended[0]);
            assert!(report.ended[1].get(&Ended::Status(500)).copied().unwrap_or(0) > 1000);
        });
    }
}

/// One client sends five bad requests and nobody else is there for a while.
#[test]
fn without_last_resort_poison_walls_as_it_did() {
    let setup = Setup {
        servers: vec![ServerSetup::up(16)],
        breaker: BreakerPolicy {
            last_resort: false,
            recheck: Duration::from_secs(60),
            ..patient(0)
        },
        keys: vec![
            open_load(25.0),
            KeySetup {
                poison: true,
                ..KeySetup::with(Load::Closed { clients: 4, think_us: 20 * MS })
            },
        ],
        ..calm(0)
    };
    let report = play(&setup);
    assert!(availability(&report, 0) < 0.5, "{:?}", report.ended[0]);
    assert!(report.last_resorts == 0 && report.count(Ended::Unavailable) > 0);
}

#[test]
fn a_model_that_keeps_failing_does_not_take_the_others_away() {
    for servers in [1, 2] {
        let broken = |seed| Setup {
            servers: vec![ServerSetup::phased(16, &[(10 * SECOND, Mode::BadModel(1))]); servers],
            breaker: patient(seed),
            keys: vec![open_load(20.0), KeySetup { model: 1, ..open_load(40.0) }],
            run_us: 120 * SECOND,
            ..calm(seed)
        };
        each(broken, |_, report| {
            let share = availability(report, 0);
            assert!(share >= 0.999, "{share}: {:?}", report.ended[0]);
        });
    }
}

/// The model fails on server 0 alone: it is asked for on the other, and server 0 keeps its share
/// of the rest.
#[test]
fn a_model_that_fails_on_one_server_goes_to_the_other() {
    let broken = |seed| Setup {
        servers: vec![
            ServerSetup::phased(16, &[(10 * SECOND, Mode::BadModel(1))]),
            ServerSetup::up(16),
        ],
        breaker: patient(seed),
        keys: vec![open_load(20.0), KeySetup { model: 1, ..open_load(20.0) }],
        run_us: 120 * SECOND,
        ..calm(seed)
    };
    each(broken, |setup, report| {
        assert!(availability(report, 0) >= 0.999, "{:?}", report.ended[0]);
        assert!(availability(report, 1) >= 0.98, "{:?}", report.ended[1]);
        if setup.strategy != Strategy::Failover {
            let rest = report.attempts(0, 60..120);
            assert!(rest > 300, "server 0 got {rest} of what it does well");
        }
    });
}

/// A server that starts refuses, then says 503 to everything for a while, then works.
#[test]
fn a_loading_server_is_used_within_two_seconds_and_not_before() {
    let phases =
        [(10 * SECOND, Mode::Down), (14 * SECOND, Mode::FailFast(503)), (30 * SECOND, Mode::Up)];
    for others in [0, 3] {
        let loading = |seed| Setup {
            servers: [vec![ServerSetup::phased(16, &phases)], vec![ServerSetup::up(16); others]]
                .concat(),
            breaker: patient(seed),
            ..calm(seed)
        };
        each(loading, |_, report| {
            let served = report.attempts(0, 30..33);
            assert!(served > 0, "it is back and got nothing");
            if others > 0 {
                let share = availability(report, 0);
                // What was streaming when it died cannot be saved.
                let broken = report.count(Ended::Broken) as f64 / report.all() as f64;
                assert!(share + broken >= 0.999, "{share}: {:?}", report.ended[0]);
                assert_eq!(report.attempts(0, 15..29), 0, "a trial is wasted on it");
                let (own, most) = (report.most(0, 30..34), report.most(1, 30..34));
                assert!(own <= 2 * most + 4, "a mob: {own} at once, the others {most}");
            } else {
                let lost = report.count(Ended::Unavailable);
                assert_eq!(lost, 0, "it fails fast, so its own answers are passed on");
            }
        });
    }
}

/// Calls and trials are swallowed for 20 s, and `first_byte` is much longer than that.
#[test]
fn a_hung_trial_keeps_nobody_from_a_server_that_is_back() {
    for others in [0, 3] {
        let hung = |seed| Setup {
            servers: [
                vec![ServerSetup::phased(
                    16,
                    &[(10 * SECOND, Mode::Stalled), (40 * SECOND, Mode::Up)],
                )],
                vec![ServerSetup::up(16); others],
            ]
            .concat(),
            first_byte_us: 20 * SECOND,
            // Its trial at about 35 s hangs until 55 s.
            breaker: BreakerPolicy { cooldown: Duration::from_secs(5), ..calm(seed).breaker },
            run_us: 100 * SECOND,
            ..calm(seed)
        };
        each(hung, |_, report| {
            let back: u64 = report.attempts(0, 40..43);
            let failover_or_alone = report.attempts(0, 60..100) > 1000;
            assert!(back > 0 || failover_or_alone, "it is back and got {back}");
            if others == 0 {
                // Swallowed before the breaker could know, one trial after the other, then all.
                let late: u64 = report.attempts(0, 43..100);
                assert!(late > 57 * 50, "of about {}: {late}", 57 * 60);
            } else {
                let swallowed = report.attempts(0, 10..40);
                let failed = report.all() - report.count(Ended::Whole);
                assert!(failed <= swallowed + 16, "{failed} failed, {swallowed} were swallowed");
            }
        });
    }
}

/// Its health is well and its answers hang: at most a trickle of clients is lost to it.
#[test]
fn one_trial_at_a_time_while_calls_hang() {
    let hung = |seed| Setup {
        servers: vec![ServerSetup::phased(16, &[(10 * SECOND, Mode::Stalled)])],
        first_byte_us: 5 * SECOND,
        breaker: patient(seed),
        ..calm(seed)
    };
    each(hung, |_, report| {
        // From 16 s on it is known that calls hang, and each lasts for five seconds.
        let sent = report.attempts(0, 17..60);
        assert!((4..=12).contains(&sent), "{sent} calls in 43 s");
    });
}

/// A server that answers questions well and fails every request.
#[test]
fn a_server_whose_health_lies_costs_hardly_anybody_an_answer() {
    let lying = |seed| Setup {
        servers: [
            vec![ServerSetup::phased(16, &[(10 * SECOND, Mode::FailFast(500))])],
            vec![ServerSetup::up(16); 3],
        ]
        .concat(),
        probes: Some(Probes {
            interval_us: SECOND,
            timeout_us: 400 * MS,
            fall: 2,
            rise: 1,
            fooled: true,
        }),
        breaker: patient(seed),
        run_us: 300 * SECOND,
        ..calm(seed)
    };
    each(lying, |setup, report| {
        let failed = report.count(Ended::Status(500));
        assert!(failed <= u64::from(setup.breaker.consecutive) + 6, "{failed} saw a 500");
        assert!(availability(report, 0) >= 0.999);
    });
}
