//! A fleet under load: one server dies, fails, hangs and comes back, and no client notices.
//!
//! Three simulated engines run in processes of their own, so that a kill is a real one. The load
//! is open: every request has its own time on a fixed schedule and is sent then, whatever became
//! of those before it. A client that waits for answers would send little just when much goes
//! wrong, and see nothing of it.
//!
//! What is bounded: no request that had not begun to be answered fails; the breaker opens in
//! time; hardly anything is sent to a server that it keeps out; the server is back one second
//! after its cooldown; and then all have the same share again.

use std::io::{BufRead, BufReader, Lines, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use loadtest::mock::{Mock, MockConfig};
use tokenring::testing::policy::breaker::{State, StateName};

use super::house::{LIMIT, Proxy, Setup, wait_until};
use super::wire::{Client, chat};

/// Tells a child what engine it is: a name and a port.
const ENGINE: &str = "TOKENRING_TEST_ENGINE";
/// How an engine works when it is well: everybody has some requests in flight. So long that the
/// few milliseconds by which a busy machine wakes one engine later than another do not look like
/// a slower server: a balancer by response time sends it less, and rightly.
const WELL: &str = "delay=300ms";
const HANGS: &str = "delay=3600s";
/// Time between two requests of the load.
const PERIOD: Duration = Duration::from_millis(10);
/// Connections of the load; more than are ever busy, or the load would not be open.
const CLIENTS: usize = 160;
const COOLDOWN: Duration = Duration::from_secs(1);
/// Answers over which shares are compared.
const SHARES_OVER: Duration = Duration::from_secs(4);

/// What an operator who wants no errors sets. A machine that does much besides may well take a
/// second to answer: that must not look like a server that hangs.
const GROUP: &str = "retry = { attempts = 2, \
    on = [\"connect\", \"reset\", \"timeout\", \"500\", \"502\", \"503\"] }\n\
    timeouts = { first_byte = \"2s\" }\n";

/// No test: the body of an engine's process. Ends with its parent, whose end of stdin closes.
#[test]
fn engine() {
    let Ok(who) = std::env::var(ENGINE) else { return };
    let (name, port) = who.split_once(':').unwrap();
    let bind = SocketAddr::from((Ipv4Addr::LOCALHOST, port.parse().unwrap()));
    let mock = Mock::start(MockConfig { name: name.to_owned(), bind, ..MockConfig::default() });
    let mock = mock.unwrap_or_else(|why| panic!("{who}: {why}"));
    mock.behave(WELL);
    println!("\nengine is up");
    for line in std::io::stdin().lines() {
        mock.behave(&line.unwrap());
        println!("engine has heard");
    }
}

/// A simulated engine in a process of its own.
struct Engine {
    name: String,
    port: u16,
    process: Child,
    says: ChildStdin,
    hears: Lines<BufReader<ChildStdout>>,
}

impl Engine {
    fn start(name: &str, port: u16) -> Engine {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "fleet::engine", "--nocapture"])
            .env(ENGINE, format!("{name}:{port}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let says = process.stdin.take().unwrap();
        let hears = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut engine = Engine { name: name.to_owned(), port, process, says, hears };
        engine.hear("engine is up");
        engine
    }

    /// Waits for a line; an engine that is gone says no more.
    fn hear(&mut self, wanted: &str) {
        let heard = self.hears.by_ref().map_while(Result::ok).any(|line| line == wanted);
        assert!(heard, "{} ended before: {wanted}", self.name);
    }

    fn behave(&mut self, list: &str) {
        writeln!(self.says, "{list}").unwrap();
        self.hear("engine has heard");
    }

    /// As `kill -9`.
    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    fn restart(&mut self) {
        *self = Engine::start(&self.name, self.port);
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // It may have been killed before.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A port that nobody is given by chance while its server is away.
fn quiet_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 12_000 + (std::process::id() % 500) as u16 * 40;
    loop {
        let port = first + NEXT.fetch_add(1, Relaxed);
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

/// How one request of the load ended.
enum End {
    /// Whole, from this server.
    Good(String),
    /// The answer had begun.
    Cut,
    Bad(String),
}

struct Seen {
    ended: Instant,
    end: End,
}

/// What all clients of the load share.
struct Tally {
    begun: Instant,
    next: AtomicU64,
    stop: AtomicBool,
    /// Longest time by which a request was late for want of a free client, microseconds.
    late_us: AtomicU64,
    seen: Mutex<Vec<Seen>>,
}

/// The load.
struct Load {
    tally: Arc<Tally>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    fn start(addr: SocketAddr) -> Load {
        let tally = Arc::new(Tally {
            begun: Instant::now(),
            next: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            late_us: AtomicU64::new(0),
            seen: Mutex::default(),
        });
        let clients = (0..CLIENTS).map(|_| {
            let tally = tally.clone();
            let client = std::thread::Builder::new().stack_size(256 * 1024);
            client.spawn(move || tally.run(addr)).unwrap()
        });
        Load { clients: clients.collect(), tally }
    }

    /// Answers of each engine in the last while.
    fn shares(&self, engines: &[Engine]) -> Vec<usize> {
        let seen = self.tally.seen.lock().unwrap();
        let recent = || seen.iter().rev().take_while(|one| one.ended.elapsed() < SHARES_OVER);
        let from = |name: &str| {
            recent().filter(|one| matches!(&one.end, End::Good(who) if who == name)).count()
        };
        engines.iter().map(|engine| from(&engine.name)).collect()
    }

    /// Whether an engine has answered a request since then.
    fn answered_since(&self, engine: &Engine, since: Instant) -> bool {
        let seen = self.tally.seen.lock().unwrap();
        let mut recent = seen.iter().rev().take_while(|one| one.ended >= since);
        recent.any(|one| matches!(&one.end, End::Good(who) if *who == engine.name))
    }

    fn stop(&mut self) {
        self.tally.stop.store(true, Relaxed);
        for client in self.clients.drain(..) {
            // A client that panicked has said so.
            let _ = client.join();
        }
    }

    /// Ends it: how many requests there were, and how many of them were cut.
    fn end(mut self) -> (usize, usize) {
        self.stop();
        let seen = self.tally.seen.lock().unwrap();
        let bad = |one: &Seen| match &one.end {
            End::Bad(why) => Some(format!("{:?}: {why}", one.ended - self.tally.begun)),
            End::Good(_) | End::Cut => None,
        };
        let bad: Vec<String> = seen.iter().filter_map(bad).collect();
        assert!(bad.is_empty(), "{} of {} failed:\n{}", bad.len(), seen.len(), bad.join("\n"));
        let late = Duration::from_micros(self.tally.late_us.load(Relaxed));
        assert!(late < Duration::from_secs(2), "the load was not open: {late:?}");
        (seen.len(), seen.iter().filter(|one| matches!(one.end, End::Cut)).count())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Tally {
    fn run(&self, addr: SocketAddr) {
        let mut client = Client::connect(addr);
        loop {
            let number = self.next.fetch_add(1, Relaxed);
            let due = self.begun + PERIOD * u32::try_from(number).unwrap();
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if self.stop.load(Relaxed) {
                return;
            }
            let late = due.elapsed().as_micros();
            self.late_us.fetch_max(u64::try_from(late).unwrap(), Relaxed);
            let end = send(&mut client, number % 2 == 1);
            if !matches!(end, End::Good(_)) {
                client = Client::connect(addr);
            }
            self.seen.lock().unwrap().push(Seen { ended: Instant::now(), end });
        }
    }
}

fn send(client: &mut Client, stream: bool) -> End {
    if let Err(why) = client.try_send(&chat("", stream)) {
        return End::Bad(format!("not sent: {why}"));
    }
    match client.try_answer() {
        Ok(answer) if answer.status == 200 => {
            End::Good(answer.field("x-mock-server").unwrap_or_default().to_owned())
        }
        Ok(answer) => End::Bad(format!("{} {}", answer.status, answer.text())),
        Err(broken) if broken.head.starts_with("HTTP/1.1 200") => End::Cut,
        Err(broken) => End::Bad(format!("{:?} {}", broken.why, broken.head)),
    }
}

/// Three engines, the proxy, and the load.
struct Fleet {
    // Dropped first: it needs the others.
    load: Load,
    proxy: Proxy,
    engines: Vec<Engine>,
    /// The balancer goes by how soon servers answer.
    by_time: bool,
}

impl Fleet {
    fn start(balance: &str, cores: u32) -> Fleet {
        let engines: Vec<Engine> =
            ["a", "b", "c"].iter().map(|name| Engine::start(name, quiet_port())).collect();
        let urls: Vec<String> =
            engines.iter().map(|engine| format!("http://127.0.0.1:{}", engine.port)).collect();
        let setup = Setup {
            process: &format!("cores = {cores}\n"),
            upstream: "breaker = { cooldown = \"1s\" }",
            group: &format!("balance = \"{balance}\"\n{GROUP}"),
            ..Setup::default()
        };
        let proxy = setup.start_on(&urls);
        let load = Load::start(proxy.addr());
        let by_time = matches!(balance, "response_aware" | "p2c_ewma");
        Fleet { load, proxy, engines, by_time }
    }

    fn breaker(&self, at: usize) -> StateName {
        self.proxy.plan().upstreams[at].state.breaker.state().name()
    }

    fn attempts(&self, at: usize) -> u64 {
        self.proxy.plan().upstreams[at].state.attempts()
    }

    /// Time until the breaker lets the next trial through.
    fn closed_for(&self, at: usize) -> Duration {
        let now = self.proxy.shared().notifier.clock.at(Instant::now());
        let breaker = &self.proxy.plan().upstreams[at].state.breaker;
        match breaker.state() {
            State::Open { until } => until.since(now),
            State::Closed { .. } | State::HalfOpen { .. } => Duration::ZERO,
        }
    }

    /// The breaker opens before more than `attempts` were made.
    fn leaves(&self, at: usize, since: u64, attempts: u64) {
        let took = wait_until("the breaker opens", || self.breaker(at) == StateName::Open);
        let made = self.attempts(at) - since;
        assert!(made <= attempts, "{made} attempts at a bad server in {took:?}");
    }

    /// Waits until the breaker has tried the bad server in vain: nothing else was sent to it.
    fn is_tried_in_vain(&self, at: usize) {
        let before = self.attempts(at);
        let changes = || {
            let all = self.proxy.plan().upstreams[at].state.breaker_changes();
            all.iter().map(|to| to[StateName::HalfOpen as usize]).sum::<u64>()
        };
        let trials = changes();
        wait_until("it is tried again", || changes() > trials);
        wait_until("and found bad", || self.breaker(at) == StateName::Open);
        let (trials, made) = (changes() - trials, self.attempts(at) - before);
        // A picker may lose the race for a trial and count as an attempt for a moment.
        assert!(made <= trials + 4, "{made} attempts, {trials} trials");
    }

    /// A server that is well again answers within a second after the cooldown.
    fn comes_back(&self, at: usize, recovered: Instant, closed_for: Duration) {
        let engine = &self.engines[at];
        wait_until("it answers again", || self.load.answered_since(engine, recovered));
        let (took, limit) = (recovered.elapsed(), closed_for + Duration::from_secs(1));
        assert!(took <= limit, "back after {took:?}, limit {limit:?}");
    }

    /// All have the same share within ten seconds.
    ///
    /// A balancer by response time sends a server less that was woken some milliseconds later than
    /// the others, and rightly; there it counts that nobody is starved or gets most of it.
    fn evens_out(&self) {
        let (least, most) = if self.by_time { (18, 48) } else { (25, 37) };
        let even = || {
            let shares = self.load.shares(&self.engines);
            let sum: usize = shares.iter().sum();
            let all = (SHARES_OVER.as_micros() / PERIOD.as_micros()) as usize;
            let within = |share: &usize| (sum * least..=sum * most).contains(&(share * 100));
            (sum >= all / 2 && shares.iter().all(within), shares)
        };
        let begun = Instant::now();
        while !even().0 {
            let limit = Duration::from_secs(10);
            assert!(begun.elapsed() < limit, "shares after {limit:?}: {:?}", even().1);
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// All that can happen to a fleet, one after the other.
fn no_client_notices(balance: &str, cores: u32) {
    assert!(LIMIT >= 8 * COOLDOWN, "the longest cooldown is waited for");
    let mut fleet = Fleet::start(balance, cores);
    fleet.evens_out();

    // One is killed, stays away for more than a cooldown, and is started again.
    let before = fleet.attempts(0);
    fleet.engines[0].kill();
    // Five failures in a row, and what was on its way there.
    fleet.leaves(0, before, 40);
    fleet.is_tried_in_vain(0);
    let closed_for = fleet.closed_for(0);
    fleet.engines[0].restart();
    fleet.comes_back(0, Instant::now(), closed_for);
    fleet.evens_out();

    // One fails at once, then hangs, then is well.
    let before = fleet.attempts(1);
    fleet.engines[1].behave("status=500");
    fleet.leaves(1, before, 40);
    fleet.engines[1].behave(HANGS);
    fleet.is_tried_in_vain(1);
    let closed_for = fleet.closed_for(1);
    fleet.engines[1].behave(WELL);
    fleet.comes_back(1, Instant::now(), closed_for);
    fleet.evens_out();

    // One hangs while it has its full share: what it swallows until that is noticed is saved.
    let before = fleet.attempts(2);
    fleet.engines[2].behave(HANGS);
    fleet.leaves(2, before, 150);
    fleet.engines[2].behave(WELL);
    fleet.comes_back(2, Instant::now(), COOLDOWN);
    fleet.evens_out();

    let Fleet { load, proxy, engines, .. } = fleet;
    let (all, cut) = load.end();
    assert!(all > 1000, "{all} requests");
    assert!(cut <= 5, "{cut} of {all} were cut by one kill");
    drop((proxy, engines));
}

/// One core and four at the same time: most of it is waiting.
fn on_one_core_and_on_four(balance: &str) {
    std::thread::scope(|scope| {
        for cores in [1, 4] {
            scope.spawn(move || no_client_notices(balance, cores));
        }
    });
}

#[test]
fn round_robin_loses_nobody() {
    on_one_core_and_on_four("round_robin");
}

#[test]
fn least_conn_loses_nobody() {
    on_one_core_and_on_four("least_conn");
}

#[test]
fn response_aware_loses_nobody() {
    on_one_core_and_on_four("response_aware");
}

#[test]
fn p2c_ewma_loses_nobody() {
    on_one_core_and_on_four("p2c_ewma");
}
