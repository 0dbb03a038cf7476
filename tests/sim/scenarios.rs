//! Runs with a name: one thing goes wrong, and this is what must follow.
//!
//! Each says its numbers; none depends on one lucky seed (`SEEDS`).

use std::time::Duration;

use tokenring::testing::policy::balance::Strategy;
use tokenring::testing::policy::breaker::BreakerPolicy;
use tokenring::testing::policy::retry::RetryPolicy;

use crate::clock::{MS, SECOND};
use crate::report::{Ended, Report};
use crate::servers::Mode;
use crate::setup::{KeySetup, Load, Probes, ServerSetup, Setup, calm};
use crate::sim::play;

/// Every scenario is played with each of these.
const SEEDS: std::ops::Range<u64> = 0..3;

/// All strategies that spread the load.
fn spreading() -> impl Iterator<Item = Strategy> {
    Strategy::ALL.into_iter().filter(|s| *s != Strategy::Failover)
}

/// Plays a scenario under every spreading strategy and seed.
fn each(setup: impl Fn(u64) -> Setup, judge: impl Fn(&Setup, &Report)) {
    for strategy in spreading() {
        for seed in SEEDS {
            let setup = Setup { strategy, ..setup(seed) };
            eprintln!("{strategy:?} seed {seed}");
            judge(&setup, &play(&setup));
        }
    }
}

/// Share of server 0 in the attempts of these seconds, where 1.0 is an equal share.
fn share(report: &Report, seconds: std::ops::Range<usize>) -> f64 {
    let servers = report.dispatched.len();
    let all: u64 = (0..servers).map(|server| report.attempts(server, seconds.clone())).sum();
    report.attempts(0, seconds) as f64 * servers as f64 / all as f64
}

#[test]
fn a_calm_fleet_answers_everybody_and_shares_evenly() {
    each(calm, |setup, report| {
        assert_eq!(report.count(Ended::Whole), report.all());
        assert_eq!(report.retries, 0);
        // The time to the head alone tells servers apart here, and that is chance.
        let (low, high) = if setup.strategy.reads_measures() { (0.5, 1.6) } else { (0.85, 1.15) };
        for server in 0..4 {
            let share = report.attempts(server, 10..60) as f64 * 4.0
                / (0..4).map(|server| report.attempts(server, 10..60)).sum::<u64>() as f64;
            assert!((low..high).contains(&share), "server {server}: {share}");
        }
    });
}

/// Server 0 dies for two seconds out of seven, all the time.
#[test]
fn a_flapping_server_costs_nobody_an_answer_that_has_not_begun() {
    let phases: Vec<(u64, Mode)> = (1..8)
        .flat_map(|n| [(n * 7 * SECOND, Mode::Down), ((n * 7 + 2) * SECOND, Mode::Up)])
        .collect();
    let flapping = |seed| Setup {
        servers: [vec![ServerSetup::phased(8, &phases)], vec![ServerSetup::up(8); 3]].concat(),
        breaker: BreakerPolicy { cooldown: Duration::from_secs(1), ..calm(seed).breaker },
        ..calm(seed)
    };
    each(flapping, |_, report| {
        for ended in [Ended::Unreachable, Ended::TimedOut, Ended::Unavailable] {
            assert_eq!(report.count(ended), 0, "{ended:?}");
        }
        // What was streaming when it died cannot be saved.
        assert!(report.count(Ended::Broken) <= 7 * 8);
        assert_eq!(report.count(Ended::Whole) + report.count(Ended::Broken), report.all());
        // Up at 9, 16, 23 and so on for five seconds each; one cooldown of 1 or 2 s later it
        // is used again.
        for up in (9..58).step_by(7) {
            let attempts = report.attempts(0, up + 2..up + 5);
            assert!(attempts > 4, "up since {up} s and got {attempts}");
        }
    });
}

/// Server 0 answers 500 in half a millisecond, from the tenth second on.
#[test]
fn a_fast_failing_replica_loses_its_traffic_within_its_thresholds() {
    let failing = |seed| Setup {
        servers: [
            vec![ServerSetup::phased(8, &[(10 * SECOND, Mode::FailFast(500))])],
            vec![ServerSetup::up(8); 3],
        ]
        .concat(),
        ..calm(seed)
    };
    each(failing, |setup, report| {
        let failures = report.count(Ended::Status(500));
        // Five in a row open it; half a millisecond and the race let a few more in. Then one
        // trial after 5, 10, 20 seconds.
        let most = u64::from(setup.breaker.consecutive) + 4 + 4;
        assert!((1..=most).contains(&failures), "{failures} clients saw a 500");
        assert_eq!(report.count(Ended::Whole) + failures, report.all());
        let after: u64 = report.attempts(0, 12..60);
        assert!(after <= 4, "{after} attempts after it was found out");
    });
}

/// The same with a breaker that never opens: the measures alone must keep away from it.
#[test]
fn fast_failures_do_not_attract_traffic() {
    let failing = |strategy, seed| Setup {
        servers: [
            vec![ServerSetup::phased(8, &[(10 * SECOND, Mode::FailFast(500))])],
            vec![ServerSetup::up(8); 3],
        ]
        .concat(),
        breaker: never(seed),
        strategy,
        ..calm(seed)
    };
    for seed in SEEDS {
        for strategy in [Strategy::ResponseAware, Strategy::P2cEwma] {
            let share = share(&play(&failing(strategy, seed)), 15..60);
            assert!(share < 0.2, "{strategy:?} seed {seed}: {share}");
        }
        // It is the breaker that must help those who only count connections.
        let share = share(&play(&failing(Strategy::LeastConn, seed)), 15..60);
        assert!(share > 1.2, "least_conn seed {seed}: {share}");
    }
}

/// Calls that a stall swallowed fail one after the other, long after the server is well again.
#[test]
fn failures_of_calls_from_before_do_not_reopen_the_breaker() {
    each(
        |seed| Setup {
            servers: vec![
                ServerSetup::phased(8, &[(10 * SECOND, Mode::Stalled), (12 * SECOND, Mode::Up)]),
                ServerSetup::up(8),
            ],
            breaker: BreakerPolicy {
                consecutive: 2,
                calls_min: 2,
                threshold: 0.1,
                cooldown: Duration::from_secs(1),
                ..calm(seed).breaker
            },
            ..calm(seed)
        },
        |_, report| {
            // Sent from 10 to 12 s, given up on from 15 to 17 s; one second in which it is
            // open, one trial, and it has its share although calls go on failing.
            for second in 17..20 {
                let attempts = report.attempts(0, second..second + 1);
                assert!(attempts > 8, "second {second}: {attempts} attempts of 60");
            }
        },
    );
}

/// The failing one has nothing in flight, and to a balancer that only counts connections
/// it looks best.
#[test]
fn least_connections_does_not_prefer_the_dead_server() {
    for seed in SEEDS {
        let setup = Setup {
            servers: vec![
                ServerSetup::phased(8, &[(0, Mode::Down)]),
                ServerSetup::up(8),
                ServerSetup::up(8),
            ],
            strategy: Strategy::LeastConn,
            ..calm(seed)
        };
        let report = play(&setup);
        assert_eq!(report.count(Ended::Whole), report.all());
        // Five failures, then trials at 5, 15, 35 s; a few were on their way.
        assert!(report.attempts(0, 0..60) <= 16, "{}", report.attempts(0, 0..60));
    }
}

/// Server 0 takes five times as long for everything.
#[test]
fn a_five_times_slower_replica_gets_less() {
    let slow = |strategy, seed| Setup {
        servers: [vec![ServerSetup::phased(8, &[(0, Mode::Slow(5))])], vec![ServerSetup::up(8); 4]]
            .concat(),
        keys: vec![KeySetup::with(Load::Closed { clients: 24, think_us: 10 * MS })],
        strategy,
        run_us: 120 * SECOND,
        ..calm(seed)
    };
    for seed in SEEDS {
        for strategy in [Strategy::ResponseAware, Strategy::P2cEwma, Strategy::LeastConn] {
            let report = play(&slow(strategy, seed));
            // The response time begins with a guess of 2 s, which fades before it is tried.
            let share = share(&report, 60..120);
            assert!((0.02..0.6).contains(&share), "{strategy:?} seed {seed}: {share}");
            assert_eq!(report.count(Ended::Whole), report.all());
        }
        // Those that do not look give it as much as the others.
        let share = share(&play(&slow(Strategy::RoundRobin, seed)), 10..60);
        assert!((0.9..1.1).contains(&share), "round_robin seed {seed}: {share}");
    }
}

/// Everybody is down from second 20 to 30: retries must not make it worse.
#[test]
fn a_whole_outage_is_not_multiplied_by_retries() {
    for mode in [Mode::Down, Mode::FailFast(503), Mode::Stalled] {
        let outage = |seed| Setup {
            servers: vec![
                ServerSetup::phased(8, &[(20 * SECOND, mode), (30 * SECOND, Mode::Up)]);
                4
            ],
            // A breaker that never opens leaves the budget alone with it.
            breaker: never(seed),
            retry: RetryPolicy { attempts: 10, ..calm(seed).retry },
            ..calm(seed)
        };
        each(outage, |_, report| {
            let during = 21..30;
            let all: u64 =
                (0..4).map(|server| report.attempts(server, during.clone())).sum::<u64>();
            // 60 new ones a second for nine seconds; a fifth of it and three a second more, and
            // what the budget had kept: 40.
            let most = 1.25 * (60.0 * 9.0 * 1.2 + 3.0 * 9.0 + 40.0);
            assert!((all as f64) < most, "{mode:?}: {all} attempts, at most {most}");
            assert!(report.retries <= report.sent / 5 + 3 * 60 + 30);
            assert!(report.attempts(0, 32..60) > 0, "{mode:?}: it is back and gets nothing");
        });
    }
}

/// Server 0 is down for 20 seconds. When it is back it gets its share and no more.
#[test]
fn nobody_mobs_a_server_that_recovers() {
    for probes in [None, Some(probes())] {
        let recovering = |seed| Setup {
            servers: [
                vec![ServerSetup::phased(8, &[(10 * SECOND, Mode::Down), (30 * SECOND, Mode::Up)])],
                vec![ServerSetup::up(8); 3],
            ]
            .concat(),
            probes,
            run_us: 80 * SECOND,
            ..calm(seed)
        };
        each(recovering, |_, report| {
            // The cooldown has doubled to 20 s at most while it was down: 5 + 10 + 20.
            for second in 10..60 {
                let others = (1..4).map(|server| report.most(server, second..second + 2));
                let most = 2 * others.max().unwrap_or(0) + 4;
                let own = report.most(0, second..second + 1);
                assert!(own <= most, "second {second}: {own} at once, the others {most}");
            }
            let back = (50..80).collect::<Vec<_>>();
            assert!(back.iter().any(|second| report.attempts(0, *second..second + 1) > 5));
            let share = share(report, 60..80);
            assert!((0.5..1.6).contains(&share), "its share in the end: {share}");
        });
    }
}

/// Probes see that a server is gone before its clients do, and that it is back.
#[test]
fn probes_take_a_dead_server_out_and_bring_it_back() {
    for seed in SEEDS {
        let setup = Setup {
            servers: vec![
                ServerSetup::phased(8, &[(10 * SECOND, Mode::Stalled), (30 * SECOND, Mode::Up)]),
                ServerSetup::up(8),
            ],
            probes: Some(probes()),
            keys: vec![KeySetup::with(Load::Open { per_second: 30.0 })],
            strategy: Strategy::RoundRobin,
            ..calm(seed)
        };
        let report = play(&setup);
        assert_eq!(report.health_changes, 2);
        // Interval, timeout and fall of 2 make 2.8 s at most; the first byte takes 5 s to miss.
        assert_eq!(report.attempts(0, 14..30), 0);
        // The stalled ones opened the breaker when they ran out, at 15 s and later; one cooldown
        // after the probes are good both agree.
        assert!(report.attempts(0, 33..60) > 200, "{}", report.attempts(0, 33..60));
    }
}

/// One failure in the beginning, and never again.
#[test]
fn one_failure_starves_no_server_for_ever() {
    each(
        |seed| Setup {
            servers: [
                vec![ServerSetup::phased(
                    8,
                    &[(5 * SECOND, Mode::FailFast(500)), (5 * SECOND + 200 * MS, Mode::Up)],
                )],
                vec![ServerSetup::up(8); 2],
            ]
            .concat(),
            // One client: nothing is ever in flight when it picks.
            keys: vec![KeySetup::with(Load::Closed { clients: 1, think_us: 10 * MS })],
            run_us: 120 * SECOND,
            ..calm(seed)
        },
        |_, report| {
            for server in 0..3 {
                let late = report.attempts(server, 60..120);
                assert!(late > 0, "server {server} got nothing in a minute");
            }
        },
    );
}

/// A server that has just started takes eight times as long at first.
#[test]
fn a_slow_start_is_not_buried() {
    for strategy in [Strategy::ResponseAware, Strategy::P2cEwma, Strategy::LeastConn] {
        for seed in SEEDS {
            let warming = Mode::Warming { factor: 8, us: 10 * SECOND };
            let setup = Setup {
                servers: [
                    vec![ServerSetup::phased(
                        8,
                        &[(10 * SECOND, Mode::Down), (15 * SECOND, warming)],
                    )],
                    vec![ServerSetup::up(8); 3],
                ]
                .concat(),
                strategy,
                ..calm(seed)
            };
            let report = play(&setup);
            let most = report.most(0, 15..60);
            assert!(most <= 12, "{strategy:?} seed {seed}: {most} at once");
            assert!(share(&report, 50..60) > 0.3, "{strategy:?} seed {seed}");
        }
    }
}

/// Trials whose clients leave come back, however many leave.
#[test]
fn clients_that_leave_do_not_use_the_trials_up() {
    each(
        |seed| Setup {
            servers: vec![
                ServerSetup::phased(8, &[(5 * SECOND, Mode::Stalled), (20 * SECOND, Mode::Up)]),
                ServerSetup::up(8),
            ],
            leaving: 70,
            leaving_within_us: 400 * MS,
            first_byte_us: SECOND,
            breaker: BreakerPolicy { cooldown: Duration::from_secs(1), ..calm(seed).breaker },
            ..calm(seed)
        },
        |_, report| {
            let late = report.attempts(0, 40..60);
            assert!(late > 20, "it is well for 20 s and got {late} of about 1200");
        },
    );
}

fn probes() -> Probes {
    Probes { interval_us: SECOND, timeout_us: 400 * MS, fall: 2, rise: 1, fooled: false }
}

/// A breaker that never opens.
fn never(seed: u64) -> BreakerPolicy {
    BreakerPolicy { consecutive: 1_000_000, calls_min: 1_000_000, ..calm(seed).breaker }
}
