//! Real threads that take, wait, leave and give back, from a seed.
//!
//! Checked at each moment: no upstream holds more than its limit. Checked at the end: every
//! waiter was granted or left, nothing is in flight, nobody is wanted. A waiter that is
//! forgotten would wait for ever; here it fails the test after `LIMIT`.

use super::*;

const LIMIT: Duration = Duration::from_secs(30);

/// One flag a thread.
struct Wakes {
    woken: Vec<(Mutex<bool>, std::sync::Condvar)>,
}

impl Wake<usize> for Wakes {
    fn wake(&self, token: usize) {
        let (woken, changed) = &self.woken[token];
        *woken.lock().unwrap() = true;
        changed.notify_one();
    }
    fn now(&self) -> Moment {
        Moment::ORIGIN
    }
}

struct Town {
    ups: Vec<Arc<UpstreamState>>,
    limits: Vec<u32>,
    /// Leases held, counted apart from the slots.
    held: Vec<AtomicU32>,
    queues: Vec<(GroupQueue<usize>, Vec<usize>)>,
    wakes: Arc<Wakes>,
    granted: AtomicU64,
}

impl Town {
    fn new(rng: &mut Rng, threads: usize) -> Town {
        let limits: Vec<u32> = (0..=rng.below(3)).map(|_| 1 + rng.below(2) as u32).collect();
        let ups: Vec<_> = limits.iter().map(|limit| upstream(*limit)).collect();
        let flag = || (Mutex::new(false), std::sync::Condvar::new());
        let wakes = Arc::new(Wakes { woken: (0..threads).map(|_| flag()).collect() });
        let queues = (0..=rng.below(3))
            .map(|_| {
                let mut members: Vec<usize> = (0..ups.len()).filter(|_| rng.below(3) > 0).collect();
                if members.is_empty() {
                    members.push(rng.below(ups.len() as u64) as usize);
                }
                let states = members.iter().map(|at| ups[*at].clone()).collect();
                (WaitQueue::new(threads as u32, wakes.clone() as _).bind(states), members)
            })
            .collect();
        let held = ups.iter().map(|_| AtomicU32::new(0)).collect();
        Town { ups, limits, held, queues, wakes, granted: AtomicU64::new(0) }
    }

    fn work(&self, at: usize, rng: &mut Rng) {
        let lease = self.ups[at].in_flight();
        assert!(lease >= 1 && lease <= self.limits[at], "{lease} of {}", self.limits[at]);
        assert!(self.held[at].fetch_add(1, SeqCst) < self.limits[at], "more than the limit");
        for _ in 0..rng.below(4) {
            std::thread::yield_now();
        }
        self.held[at].fetch_sub(1, SeqCst);
    }

    /// One exchange, as the header of the queue describes it.
    fn exchange(&self, me: usize, rng: &mut Rng) {
        let (queue, members) = &self.queues[rng.below(self.queues.len() as u64) as usize];
        let mut accepts = Accepts::ALL;
        match rng.below(4) {
            0 => accepts.only = Some(rng.below(members.len() as u64) as usize),
            1 if members.len() > 1 => {
                accepts.tried.insert(rng.below(members.len() as u64) as usize)
            }
            _ => {}
        }
        for (member, at) in members.iter().enumerate().filter(|(member, _)| accepts.has(*member)) {
            if let Some(lease) = self.ups[*at].try_lease() {
                self.work(members[member], rng);
                drop(lease);
                return;
            }
        }
        let share = Share::of(me as u32 % 3, (me % 2) as i32);
        let mut place = queue.enter(share, accepts, me, LATE).expect("queue for every thread");
        let patience = if rng.below(4) == 0 { rng.below(6) } else { u64::MAX };
        let begun = Instant::now();
        let mut looks = 0;
        loop {
            if let Some((member, lease)) = place.take_grant() {
                self.granted.fetch_add(1, SeqCst);
                self.work(members[member], rng);
                drop(lease);
                return;
            }
            if looks >= patience {
                // The place is dropped, perhaps just when it is granted.
                return;
            }
            looks += 1;
            assert!(begun.elapsed() < LIMIT, "forgotten");
            if patience < u64::MAX {
                std::thread::yield_now();
                continue;
            }
            let (woken, changed) = &self.wakes.woken[me];
            let heard = woken.lock().unwrap();
            let (mut heard, timeout) =
                changed.wait_timeout_while(heard, LIMIT, |woken| !*woken).unwrap();
            assert!(!timeout.timed_out(), "never woken");
            *heard = false;
        }
    }
}

fn run(seed: u64, threads: usize, rounds: usize) -> u64 {
    let town = Town::new(&mut Rng::new(seed), threads);
    std::thread::scope(|scope| {
        for me in 0..threads {
            let town = &town;
            scope.spawn(move || {
                let mut rng = Rng::new(seed * 1000 + me as u64);
                for _ in 0..rounds {
                    town.exchange(me, &mut rng);
                }
            });
        }
    });
    for up in &town.ups {
        assert_eq!(up.in_flight(), 0, "seed {seed}: a slot was lost");
        assert!(format!("{:?}", up.slots).contains("wanted: 0,"), "seed {seed}: {:?}", up.slots);
    }
    assert!(town.queues.iter().all(|(queue, _)| queue.is_empty()), "seed {seed}");
    town.granted.load(SeqCst)
}

#[test]
fn nothing_is_lost_doubled_or_forgotten() {
    let mut granted = 0;
    for seed in 0..40 {
        granted += run(seed, 6, 300);
    }
    assert!(granted > 1000, "{granted}: hardly anybody waited");
}

// Waiters come and go while the limit is moved up and down; at rest no slot is free while
// somebody waits.
#[test]
fn no_slot_is_idle_at_rest_while_somebody_waits() {
    for seed in 0..20 {
        let up = upstream(2);
        let (queue, _) = queue(&[&up], 64);
        std::thread::scope(|scope| {
            for me in 0..4u64 {
                let (up, queue) = (&up, &queue);
                scope.spawn(move || {
                    let mut rng = Rng::new(seed * 100 + me);
                    // The last place of each thread stays behind, waiting or granted.
                    for _ in 0..200 {
                        let mut place = enter(queue, me as u32);
                        if me == 0 && rng.below(8) == 0 {
                            up.set_concurrency(1 + rng.below(3) as u32);
                        }
                        if rng.below(2) == 0 {
                            drop(place.take_grant());
                        }
                    }
                    std::mem::forget(enter(queue, me as u32));
                });
            }
        });
        let (taken, limit, waiting) = (up.in_flight(), up.slots.limit(), queue.len());
        assert!(taken <= limit.max(3), "seed {seed}");
        assert!(taken >= limit || waiting == 0, "seed {seed}: {taken}/{limit}, {waiting} wait");
        assert_eq!(taken + waiting, 4, "seed {seed}: each was granted or waits");
    }
}
