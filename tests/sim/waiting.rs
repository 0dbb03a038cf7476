//! Runs with a name, about waiting: who gets the next slot, and what those are told who do not.

use tokenring::testing::policy::breaker::BreakerPolicy;

use crate::clock::{MS, SECOND};
use crate::report::Ended;
use crate::servers::Mode;
use crate::setup::{KeySetup, Load, Probes, Queue, ServerSetup, Setup, calm};
use crate::sim::play;

/// One server that takes four at a time, about twenty a second.
fn busy(seed: u64, keys: Vec<KeySetup>) -> Setup {
    Setup {
        servers: vec![ServerSetup { concurrency: 4, ..ServerSetup::up(4) }],
        keys,
        queue: Queue { length: 200, wait_us: 60 * SECOND },
        run_us: 120 * SECOND,
        first_byte_us: 30 * SECOND,
        ..calm(seed)
    }
}

fn clients(clients: u32) -> KeySetup {
    KeySetup::with(Load::Closed { clients, think_us: 5 * MS })
}

#[test]
fn two_hundred_clients_leave_no_slot_idle_and_their_keys_share_it() {
    for seed in 0..3 {
        // The first key has as many clients as it likes; it gets a third all the same.
        let setup = busy(seed, vec![clients(160), clients(20), clients(20)]);
        let report = play(&setup);
        assert_eq!(report.count(Ended::Whole), report.all());
        let used = report.busy_us[0] as f64 / (4 * setup.run_us) as f64;
        assert!(used >= 0.99, "seed {seed}: {used} of the slots were used");
        let whole: u64 = report.granted.iter().sum();
        for (key, granted) in report.granted.iter().enumerate() {
            let share = *granted as f64 * 3.0 / whole as f64;
            assert!((0.95..1.05).contains(&share), "seed {seed}, key {key}: {share}");
        }
    }
}

#[test]
fn a_lonely_key_waits_for_one_turn_behind_a_crowd() {
    for seed in 0..3 {
        let report = play(&busy(seed, vec![clients(150), clients(1)]));
        let longest = |key: usize| report.waits[key].iter().map(|(us, _)| *us).max().unwrap();
        // Slots come free every 50 ms on average; one turn of the other key in between.
        assert!(longest(1) < 600 * MS, "seed {seed}: {} us", longest(1));
        assert!(longest(0) > 5 * SECOND, "seed {seed}: nobody waited, which shows nothing");
        assert!(report.granted[1] > 200);
    }
}

#[test]
fn a_higher_priority_goes_first_and_the_lower_gets_the_rest() {
    for seed in 0..3 {
        let first = KeySetup { priority: 1, ..clients(2) };
        let report = play(&busy(seed, vec![clients(100), first]));
        let longest = report.waits[1].iter().map(|(us, _)| *us).max().unwrap();
        assert!(longest < 400 * MS, "seed {seed}: {longest} us");
        assert!(report.granted[0] > 500, "seed {seed}: the lower one starves");
    }
}

#[test]
fn a_room_that_overflows_refuses_and_says_how_long_it_takes() {
    for seed in 0..3 {
        let queue = Queue { length: 60, wait_us: 60 * SECOND };
        // Thirty a second come, twenty are served: it is full after six seconds and stays so.
        let open = KeySetup::with(Load::Open { per_second: 30.0 });
        let report = play(&Setup { queue, ..busy(seed, vec![open]) });
        let refused = report.count(Ended::Overdue) as f64 / report.all() as f64;
        assert!((0.2..0.45).contains(&refused), "seed {seed}: {refused} refused");
        // What those were told who came just before it was full is what came true.
        let waits = &report.waits[0][200..];
        let told: f64 = waits.iter().map(|(_, s)| f64::from(*s)).sum();
        let true_s: f64 = waits.iter().map(|(us, _)| *us as f64 / SECOND as f64).sum();
        // Whole seconds, rounded up: half a second more on average.
        let off = told / true_s - 0.5 * waits.len() as f64 / true_s;
        assert!((0.8..1.25).contains(&off), "seed {seed}: told {off} of what it took");
    }
}

#[test]
fn clients_that_give_up_waiting_free_their_places() {
    for seed in 0..3 {
        let open = KeySetup::with(Load::Open { per_second: 60.0 });
        let report = play(&Setup {
            queue: Queue { length: 30, wait_us: 500 * MS },
            leaving: 50,
            leaving_within_us: 400 * MS,
            ..busy(seed, vec![open])
        });
        assert!(report.count(Ended::Left) > 500 && report.count(Ended::Overdue) > 200);
        let used = report.busy_us[0] as f64 / (4 * 120 * SECOND) as f64;
        assert!(used > 0.9, "seed {seed}: {used} of the slots were used");
    }
}

/// Server 0 stalls; probes say so before its calls run out and leave their slots behind.
#[test]
fn slots_of_a_server_that_is_down_go_to_nobody() {
    for seed in 0..3 {
        let phases = [(10 * SECOND, Mode::Stalled), (30 * SECOND, Mode::Up)];
        let stalling = ServerSetup::phased(4, &phases);
        let report = play(&Setup {
            servers: vec![
                ServerSetup { concurrency: 4, ..stalling },
                ServerSetup { concurrency: 4, ..ServerSetup::up(4) },
            ],
            probes: Some(Probes {
                interval_us: 500 * MS,
                timeout_us: 400 * MS,
                fall: 1,
                rise: 1,
                fooled: false,
            }),
            breaker: BreakerPolicy { consecutive: 1000, calls_min: 1000, ..calm(seed).breaker },
            first_byte_us: 5 * SECOND,
            ..busy(seed, vec![clients(60)])
        });
        assert_eq!(report.attempts(0, 12..30), 0, "seed {seed}");
        // Back by a probe, without a slot that came free: those who wait hear of it.
        assert!(report.attempts(0, 31..40) > 100, "seed {seed}: {}", report.attempts(0, 31..40));
    }
}
