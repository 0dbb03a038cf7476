//! The deciders together, in a fleet that misbehaves, under a virtual clock.
//!
//! Each decider has its own tests. What they cannot show is what happens between them: a
//! breaker that opens while a retry pauses, a trial whose client leaves, a queue behind a
//! server that flaps. Here the real deciders run against simulated servers, and the
//! books are checked after every event (`checks`).
//!
//! Reading order: `clock`, `servers`, `setup` (what a run is made of), `fleet`, `proxy` and
//! `wait_queue` (the deciders in the order of an exchange), `sim` (the loop), `checks`, `report`;
//! `scenarios`, `blame` and `waiting` are runs with a name, this file draws the others from seeds:
//!
//! ```sh
//! TOKENRING_SIM_SEEDS=100000 cargo test --test sim       # more of them
//! TOKENRING_SIM_SEED=4711 cargo test --test sim drawn    # that one again
//! ```

mod blame;
mod checks;
mod clock;
mod fleet;
mod keys;
mod proxy;
mod report;
mod wait_queue;
mod scenarios;
mod servers;
mod setup;
mod sim;
mod waiting;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

/// Runs drawn when nobody says otherwise.
const SEEDS: u64 = 2_000;

#[test]
fn drawn_runs_keep_every_promise() {
    if let Some(seed) = number_of("TOKENRING_SIM_SEED") {
        let setup = setup::drawn(seed);
        println!("{setup:#?}");
        println!("{:#?}", sim::play(&setup));
        return;
    }
    let seeds = number_of("TOKENRING_SIM_SEEDS").unwrap_or(SEEDS);
    let next = AtomicU64::new(0);
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(8));
    let failed: Vec<u64> = std::thread::scope(|scope| {
        let worker = || {
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= seeds {
                    return None;
                }
                if catch_unwind(AssertUnwindSafe(|| sim::play(&setup::drawn(seed)))).is_err() {
                    next.store(seeds, Ordering::Relaxed);
                    return Some(seed);
                }
            }
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().filter_map(|worker| worker.join().expect("it catches")).collect()
    });
    assert!(
        failed.is_empty(),
        "seed {0} failed; again: TOKENRING_SIM_SEED={0} cargo test --test sim drawn",
        failed[0]
    );
}

fn number_of(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}
