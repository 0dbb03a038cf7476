//! rules §6: how much a key and an address may ask for, over all cores.
//!
//! Windows are minutes of the wall clock: a test that counts in one begins with `fresh_minute`,
//! so that none of them ends in the middle of it.

use std::sync::Barrier;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::house::{LIMIT, Proxy, Setup, mock, wait_until};
use super::planner::Planner;
use super::wire::{Answer, Client, chat, get, post};
use loadtest::mock::Mock;

const KEYS: &str = "auth = \"keys\"";
const MINE: &str = "x-api-key: sk-a\r\n";
/// What a minute must have left for a test that counts in it.
const ROOM_S: u64 = 12;

/// Waits for the next minute when this one is nearly over.
pub(crate) fn fresh_minute() {
    let left_s = || 60 - SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() % 60;
    if left_s() < ROOM_S {
        wait_until("the next minute", || left_s() >= ROOM_S);
    }
}

/// A proxy with one limited key, `sk-a`, and one without limits, `sk-b`.
fn limited(mock: &Mock, limits: &str) -> Proxy {
    with_cores(mock, 1, limits)
}

fn with_cores(mock: &Mock, cores: u32, limits: &str) -> Proxy {
    let rest = format!(
        "[[key]]\nname = \"a\"\nkey = \"sk-a\"\n{limits}\n[[key]]\nname = \"b\"\nkey = \"sk-b\"\n"
    );
    let process = format!("cores = {cores}\n");
    Setup { process: &process, listener: KEYS, rest: &rest, ..Setup::default() }.start(&[mock])
}

fn ask(client: &mut Client) -> Answer {
    client.send(chat(MINE, false)).answer()
}

fn retry_after(answer: &Answer) -> u64 {
    answer.field("retry-after").and_then(|text| text.parse().ok()).expect("Retry-After")
}

/// Sends a thousand requests at once and counts the answers: (200, 429).
pub(crate) fn thousand(proxies: &[&Proxy], request: &[u8]) -> (usize, usize) {
    let (passed, refused, denied) = thousand_with_store(proxies, request);
    assert_eq!(denied, 0, "answers of 503");
    (passed, refused)
}

/// The same where a store is asked, which may answer too late: (200, 429, 503).
pub(crate) fn thousand_with_store(proxies: &[&Proxy], request: &[u8]) -> (usize, usize, usize) {
    const THREADS: usize = 8;
    const CONNECTIONS: usize = 25;
    const PIPELINED: usize = 5;
    let start = Barrier::new(THREADS);
    let flood = || {
        let mut clients: Vec<Client> =
            (0..CONNECTIONS).map(|at| proxies[at % proxies.len()].client()).collect();
        start.wait();
        for client in &mut clients {
            client.send(request.repeat(PIPELINED));
        }
        let mut counts = (0, 0, 0);
        for client in &mut clients {
            for _ in 0..PIPELINED {
                match client.answer().status {
                    200 => counts.0 += 1,
                    429 => counts.1 += 1,
                    503 => counts.2 += 1,
                    other => panic!("status {other}"),
                }
            }
        }
        counts
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(flood)).collect();
        let counts = threads.into_iter().map(|thread| thread.join().unwrap());
        counts.fold((0, 0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1, sum.2 + one.2))
    })
}

#[test]
fn rpm_5_is_exactly_five_of_a_thousand_on_four_workers() {
    let mock = mock();
    for run in 0..20 {
        let proxy = with_cores(&mock, 4, "rpm = 5");
        fresh_minute();
        assert_eq!(thousand(&[&proxy], &chat(MINE, false)), (5, 995), "run {run}");
        assert_eq!(proxy.client().send(chat("x-api-key: sk-b\r\n", false)).answer().status, 200);
    }
    assert_eq!(mock.stats().requests_total, 20 * 6);
}

#[test]
fn tells_on_every_answer_what_is_left() {
    let mock = mock();
    let proxy = limited(&mock, "rpm = 3\nrpd = 7");
    fresh_minute();
    let mut client = proxy.client();
    let told = |answer: &Answer| {
        let names = ["limit-minute", "remaining-minute", "limit-day", "remaining-day"];
        let one = |name| answer.fields(&format!("x-ratelimit-{name}")).join("+");
        (answer.status, names.map(one).join(" "))
    };
    let fields = |left: &str| format!("3 {left}");
    assert_eq!(told(&ask(&mut client)), (200, fields("2 7 6")));
    // A stream, and an answer of our own.
    assert_eq!(told(&client.send(chat(MINE, true)).answer()), (200, fields("1 7 5")));
    let unknown = post("/v1/chat/completions", MINE, "{\"model\":\"nobody\"}");
    assert_eq!(told(&client.send(unknown).answer()), (404, fields("0 7 4")));
    let refused = ask(&mut client);
    assert_eq!(told(&refused), (429, fields("0 7 4")));
    // The other key has no windows, and so nothing is told.
    let other = client.send(chat("x-api-key: sk-b\r\n", false)).answer();
    assert_eq!(told(&other), (200, "   ".to_owned()));
}

#[test]
fn a_full_minute_says_so_and_names_its_end() {
    let mock = mock();
    let proxy = limited(&mock, "rpm = 1");
    fresh_minute();
    let mut client = proxy.client();
    assert_eq!(ask(&mut client).status, 200);
    let refused = ask(&mut client);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    assert_eq!(refused.status, 429);
    assert_eq!(refused.message(), "Rate limit exceeded: minute limit reached.");
    assert_eq!(refused.json()["error"]["type"], "rate_limit_exceeded");
    let left = 60 - now.as_secs() % 60;
    assert!(retry_after(&refused).abs_diff(left) <= 1, "{} {left}", retry_after(&refused));
    // The connection goes on.
    assert_eq!(client.send(get("/health", "")).answer().status, 200);
}

#[test]
fn a_full_day_says_so_and_names_its_end() {
    let mock = mock();
    let proxy = with_cores(&mock, 4, "rpd = 5");
    fresh_minute();
    assert_eq!(thousand(&[&proxy], &chat(MINE, false)), (5, 995));
    let refused = ask(&mut proxy.client());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    assert_eq!(refused.message(), "Rate limit exceeded: daily limit reached.");
    let left = 86_400 - now.as_secs() % 86_400;
    assert!(retry_after(&refused).abs_diff(left) <= 1, "{} {left}", retry_after(&refused));
    assert_eq!(refused.field("x-ratelimit-limit-minute"), None);
}

#[test]
fn a_steady_rate_refuses_what_comes_too_fast() {
    let mock = mock();
    let proxy = limited(&mock, "per_second = 2\nburst = 3");
    let mut client = proxy.client();
    let begun = Instant::now();
    assert_eq!([0; 3].map(|_| ask(&mut client).status), [200; 3]);
    let refused = ask(&mut client);
    assert_eq!((refused.status, retry_after(&refused)), (429, 1));
    assert_eq!(refused.message(), "Rate limit reached.");
    wait_until("the rate allows one more", || ask(&mut proxy.client()).status == 200);
    assert!(begun.elapsed() >= Duration::from_millis(500), "{:?}", begun.elapsed());
}

#[test]
fn another_config_forgets_nothing() {
    let mock = mock();
    let text = |rpm: u32| {
        let rest = format!("[[key]]\nname = \"a\"\nkey = \"sk-a\"\nrpm = {rpm}\n");
        Setup { listener: KEYS, rest: &rest, ..Setup::default() }.text(&[mock.url()])
    };
    let mut planner = Planner::new(1);
    let proxy = planner.start(&text(2));
    fresh_minute();
    let mut client = proxy.client();
    assert_eq!([0; 3].map(|_| ask(&mut client).status), [200, 200, 429]);
    proxy.swap(planner.plan(&text(3)));
    wait_until("one more may pass", || ask(&mut proxy.client()).status == 200);
    assert_eq!([0; 2].map(|_| ask(&mut client).status), [429, 429]);
}

#[test]
fn listing_models_costs_nothing_of_a_key() {
    let mock = mock();
    let proxy = limited(&mock, "rpm = 1");
    fresh_minute();
    let mut client = proxy.client();
    for _ in 0..3 {
        assert_eq!(client.send(get("/v1/models", MINE)).answer().status, 200);
    }
    assert_eq!([0; 2].map(|_| ask(&mut client).status), [200, 429]);
}

#[test]
fn fields_of_other_proxies_change_nothing() {
    let mock = mock();
    let proxy = limited(&mock, "rpm = 2");
    fresh_minute();
    let mut client = proxy.client();
    let forged = format!(
        "{MINE}X-Rate-Limit-Checked: true\r\nX-RateLimit-Remaining-Minute: 99\r\n\
         X-Tokenring-Charged: 1\r\nX-Forwarded-For: 127.0.0.1\r\n"
    );
    let statuses = [0; 4].map(|_| client.send(chat(&forged, false)).answer().status);
    assert_eq!(statuses, [200, 200, 429, 429]);
    let answer = client.send(chat(&forged, false)).answer();
    assert_eq!(answer.fields("x-ratelimit-remaining-minute"), ["0"]);
}

/// A proxy whose listener limits each address.
fn by_address(mock: &Mock, more: &str) -> Proxy {
    let listener = format!("{KEYS}\nratelimit = {{ per_second = 1, burst = 2 }}\n{more}");
    let rest = "[[key]]\nname = \"a\"\nkey = \"sk-a\"\n";
    Setup { listener: &listener, rest, ..Setup::default() }.start(&[mock])
}

fn from(client: &mut Client, forwarded_for: &str) -> u16 {
    let fields = format!("{MINE}X-Forwarded-For: {forwarded_for}\r\n");
    client.send(chat(&fields, false)).answer().status
}

#[test]
fn each_address_behind_a_trusted_proxy_has_its_own_rate() {
    let mock = mock();
    let proxy = by_address(&mock, "trusted_proxies = [\"127.0.0.0/8\", \"10.0.0.0/8\"]");
    let mut client = proxy.client();
    let mut statuses = |address: &str| [0; 3].map(|_| from(&mut client, address));
    assert_eq!(statuses("192.0.2.1"), [200, 200, 429]);
    assert_eq!(statuses("192.0.2.2"), [200, 200, 429]);
    // What stands before the first stranger from the right was said by the stranger.
    assert_eq!(statuses("6.6.6.6, 192.0.2.1, 10.1.1.1"), [429; 3]);
    // One network of IPv6 is one client.
    assert_eq!(statuses("2001:db8::1"), [200, 200, 429]);
    assert_eq!(statuses("2001:db8::ffff:2"), [429; 3]);
    assert_eq!(statuses("2001:db8:0:1::1"), [200, 200, 429]);
    // Garbage stands for nobody: it is the proxy's own address that is counted.
    assert_eq!(statuses("192.0.2.9, nonsense"), [200, 200, 429]);
    assert_eq!(statuses("garbage"), [429; 3]);
}

#[test]
fn a_stranger_cannot_claim_another_address() {
    let mock = mock();
    let proxy = by_address(&mock, "");
    let mut client = proxy.client();
    let statuses = [1, 2, 3, 4].map(|n| from(&mut client, &format!("192.0.2.{n}")));
    assert_eq!(statuses, [200, 200, 429, 429]);
}

#[test]
fn the_rate_of_an_address_comes_before_its_key_and_behind_health() {
    let mock = mock();
    let proxy = by_address(&mock, "");
    let mut client = proxy.client();
    for _ in 0..5 {
        assert_eq!(client.send(get("/health", "")).answer().status, 200);
    }
    let guess = chat("x-api-key: wrong\r\n", false);
    let statuses = [0; 3].map(|_| client.send(&guess).answer().status);
    assert_eq!(statuses, [401, 401, 429]);
    let refused = client.send(get("/v1/models", MINE)).answer();
    assert_eq!((refused.status, retry_after(&refused)), (429, 1));
    assert_eq!(mock.stats().requests_total, 0);
}

#[test]
fn the_rate_of_an_address_holds_over_all_cores() {
    let mock = mock();
    let listener = "ratelimit = { per_second = 1, burst = 50 }";
    let proxy = Setup { process: "cores = 4\n", listener, ..Setup::default() }.start(&[&mock]);
    let begun = Instant::now();
    let (passed, _) = thousand(&[&proxy], &chat("", false));
    let refilled = usize::try_from(begun.elapsed().as_secs()).unwrap() + 1;
    assert!((50..=50 + refilled).contains(&passed), "{passed}");
}

#[test]
fn a_key_has_only_so_many_exchanges_in_flight() {
    let mock = mock();
    let proxy = with_cores(&mock, 2, "concurrency = 2");
    let slow = chat(&format!("{MINE}x-mock: delay=60s\r\n"), false);
    let mut held: Vec<Client> = (0..2).map(|_| proxy.client()).collect();
    for client in &mut held {
        client.send(&slow);
    }
    mock.wait_until(LIMIT, |stats| stats.in_flight == 2).expect("both are in flight");
    let refused = ask(&mut proxy.client());
    assert_eq!((refused.status, retry_after(&refused)), (429, 1));
    assert_eq!(refused.message(), "Too many requests in flight for this API key.");
    assert_eq!(proxy.client().send(chat("x-api-key: sk-b\r\n", false)).answer().status, 200);
    // One leaves in the middle, one is reset: each gives its place back.
    drop(held.pop());
    wait_until("one place is free", || ask(&mut proxy.client()).status == 200);
    held.pop().unwrap().reset();
    let free = || {
        let mut clients = [proxy.client(), proxy.client()];
        let stream = chat(&format!("{MINE}x-mock: delay=50ms\r\n"), false);
        clients.each_mut().map(|client| client.send(&stream).answer().status) == [200, 200]
    };
    wait_until("both places are free", free);
}

#[test]
fn a_place_in_flight_comes_back_from_every_end() {
    let mock = mock();
    let proxy = limited(&mock, "concurrency = 1");
    for fields in ["x-mock: reset\r\n", "x-mock: status=500\r\n", "x-mock: garbage\r\n", ""] {
        let mut client = proxy.client();
        client.send(chat(&format!("{MINE}{fields}"), true)).answer();
    }
    // A stream that dies, and a request that we refuse.
    let mut client = proxy.client();
    let cut = client.send(chat(&format!("{MINE}x-mock: cut_after=2\r\n"), true)).try_answer();
    assert!(cut.is_err());
    let mut client = proxy.client();
    assert_eq!(client.send(post("/v1/chat/completions", MINE, "{")).answer().status, 400);
    assert_eq!(ask(&mut client).status, 200);
    wait_until("nothing is counted", || ask(&mut proxy.client()).status == 200);
}

#[test]
fn a_tunnel_takes_its_place_and_its_request() {
    let mock = mock();
    let proxy = limited(&mock, "concurrency = 1\nrpm = 3");
    fresh_minute();
    let mut client = proxy.client();
    let upgrade = format!("{MINE}Connection: Upgrade\r\nUpgrade: websocket\r\n");
    assert_eq!(client.send(get("/echo?model=m", &upgrade)).answer().status, 101);
    let refused = ask(&mut proxy.client());
    assert_eq!(refused.message(), "Too many requests in flight for this API key.");
    drop(client);
    wait_until("its place is free", || ask(&mut proxy.client()).status == 200);
    assert_eq!(ask(&mut proxy.client()).status, 200);
    assert_eq!(ask(&mut proxy.client()).message(), "Rate limit exceeded: minute limit reached.");
}

/// A stream that reports its usage at its end, or does not.
fn stream(tokens: u32, usage: bool) -> Vec<u8> {
    let body = format!(
        "{{\"model\":\"m\",\"stream\":true,\"stream_options\":{{\"include_usage\":{usage}}}}}"
    );
    post("/v1/chat/completions", &format!("{MINE}x-mock: tokens={tokens}\r\n"), body)
}

#[test]
fn tokens_are_paid_afterwards_from_what_the_server_said() {
    let mock = mock();
    let proxy = limited(&mock, "tpm = 600");
    let mut client = proxy.client();
    // Half of a minute's tokens, and then as many as make a debt of 100 and the prompts.
    assert_eq!(client.send(stream(300, true)).answer().status, 200);
    assert_eq!(client.send(stream(400, true)).answer().status, 200);
    let refused = wait_for_debt(&mut client);
    assert_eq!(refused.message(), "Rate limit exceeded: token limit reached.");
    // Ten tokens are earned in a second: 100 and two prompts of some 20 tokens.
    assert!((8..=16).contains(&retry_after(&refused)), "{}", retry_after(&refused));
    assert_eq!(client.send(chat("x-api-key: sk-b\r\n", false)).answer().status, 200);
}

#[test]
fn a_stream_without_usage_is_not_free() {
    let mock = mock();
    let proxy = limited(&mock, "tpm = 100");
    let mut client = proxy.client();
    assert_eq!(client.send(stream(2000, false)).answer().status, 200);
    assert!(retry_after(&wait_for_debt(&mut client)) > 60);
}

/// The answer ends before its exchange is settled: asks until the debt is known.
fn wait_for_debt(client: &mut Client) -> Answer {
    let deadline = Instant::now() + LIMIT;
    loop {
        let answer = client.send(stream(0, true)).answer();
        if answer.status == 429 {
            return answer;
        }
        assert!(Instant::now() < deadline, "no debt");
    }
}
