//! rules §6: the budget that nodes share, in a real Redis that is reached by TLS.
//!
//! Its plain port stays open beside, for the test alone.

use super::certs::House;
use super::house::{Proxy, mock, wait_until};
use super::process::{Run, address};
use super::ratelimits::fresh_minute;
use super::redis_store::{MINE, Redis, free_port};
use super::wire::{Client, chat};

/// What must be in no line.
const PASSWORD: &str = "CANARY-p#ss";

/// A Redis with a certificate of `house`, which wants one of ours when `asks` is `yes`.
struct Secured {
    redis: Redis,
    port: u16,
}

impl Secured {
    fn start(house: &House, asks: &str) -> Option<Secured> {
        house.renew("redis");
        let port = free_port();
        let (cert, key, ca) = (house.path("c.pem"), house.path("k.pem"), house.path("ca.pem"));
        let (password, shown_port) = (format!(">{PASSWORD}"), port.to_string());
        #[rustfmt::skip]
        let options = [
            "--tls-port", &shown_port, "--tls-cert-file", &cert, "--tls-key-file", &key,
            "--tls-ca-cert-file", &ca, "--tls-auth-clients", asks,
            "--user", "app", "on", &password, "~*", "+@all",
        ];
        Some(Secured { redis: Redis::start_with(&options)?, port })
    }

    fn url(&self, more: &str) -> String {
        let password = PASSWORD.replace('#', "%23");
        format!("rediss://app:{password}@localhost:{}/3{more}", self.port)
    }

    /// Calls that database 3 has counted in the minute of a key.
    fn counted(&self, key: &str) -> u64 {
        let script = format!(
            "redis.call('SELECT', 3) return redis.call('HGET', 'tokenring:limit:{key}', 'mc')"
        );
        let said = self.redis.tell(&["EVAL", &script, "0"]);
        said.and_then(|text| text.parse().ok()).unwrap_or(0)
    }
}

fn config(url: &str, store: &str, mock: &str) -> String {
    format!(
        "[process]\ncores = 1\n[log]\nformat = \"json\"\n\
         [[listener]]\nname = \"main\"\nbind = \"127.0.0.1:0\"\nauth = \"keys\"\n\
         [[upstream]]\nname = \"a\"\nurl = \"{mock}\"\nmodels = [\"m\"]\n\
         [[key]]\nname = \"k\"\nkey = \"sk-a\"\nrpm = 5\n\
         [ratelimit_store]\ntype = \"redis\"\nurl = \"{url}\"\nmode = \"strict\"\n{store}\n"
    )
}

fn status(client: &mut Client) -> u16 {
    client.send(chat(MINE, false)).answer().status
}

#[test]
fn nodes_share_a_budget_over_tls_with_user_database_and_certificate() {
    let house = House::new("redis");
    let Some(secured) = Secured::start(&house, "yes") else { return };
    let mock = mock();
    let (own, own_key) = house.sign("tokenring", &[]);
    house.write("own.pem", &own);
    house.write("own.key", &own_key);
    let files = ["ca.pem", "own.pem", "own.key"].map(|name| house.path(name));
    let [ca, cert, key] = &files;
    let tls = format!("tls = {{ ca = \"{ca}\", cert = \"{cert}\", key = \"{key}\" }}");
    let text = config(&secured.url(""), &format!("{tls}\non_error = \"deny\""), &mock.url());
    let nodes = [0; 2].map(|_| Proxy::start(&text));
    let up = |node: &Proxy| node.plan().budget.as_ref().is_some_and(|budget| budget.is_up());
    assert!(nodes.iter().all(up), "connected before the start is over");
    fresh_minute();
    let mut clients = nodes.each_ref().map(Proxy::client);
    // A store that answers too late on a busy machine denies (503): that call may be counted.
    let passed = (0..30).filter(|at| status(&mut clients[at % 2]) == 200).count() as u64;
    assert!(secured.counted("k") <= 5 && passed <= 5, "{passed}");
    assert_eq!(secured.counted("k"), 5, "30 calls use up 5");
    assert!(passed > 0);
}

#[test]
fn a_certificate_of_a_wrong_authority_is_refused_by_name_until_the_right_one_is_there() {
    let (house, other) = (House::new("redis"), House::new("other"));
    let Some(secured) = Secured::start(&house, "no") else { return };
    let mock = mock();
    let ca = house.path("trusted.pem");
    house.write("trusted.pem", &other.ca);
    let tls = format!("tls = {{ ca = \"{ca}\" }}");
    let run = Run::start("redis-ca", &config(&secured.url(""), &tls, &mock.url()));
    let addr = address(&run.behind("listener   main on "));
    let wanted = "ratelimit_store: not reached yet: tls: the certificate is signed by nobody we \
                  trust (tls.ca)";
    run.behind(wanted);
    assert_eq!(status(&mut Client::connect(addr)), 200, "no request fails for it");
    assert_eq!(secured.counted("k"), 0);
    house.write("trusted.pem", &house.ca);
    run.behind("ratelimit_store: back");
    fresh_minute();
    wait_until("calls are counted", || {
        status(&mut Client::connect(addr));
        secured.counted("k") > 0
    });
    for line in run.lines() {
        assert!(!line.contains("CANARY"), "{line}");
    }
}

#[test]
fn a_reload_moves_the_store_to_tls_and_says_what_is_refused_there() {
    let house = House::new("redis");
    let Some(secured) = Secured::start(&house, "no") else { return };
    let mock = mock();
    let plain = format!("redis://127.0.0.1:{}", secured.redis.port());
    let run = Run::start("redis-move", &config(&plain, "", &mock.url()));
    let addr = address(&run.behind("listener   main on "));
    assert_eq!(status(&mut Client::connect(addr)), 200);
    // No authority of Mozilla's has signed it.
    run.write(&config(&secured.url(""), "", &mock.url()));
    run.signal("HUP");
    run.behind("ratelimit_store: refused: tls: the certificate is signed by nobody we trust");
    assert_eq!(secured.counted("k"), 0);
    run.write(&config(&secured.url("#insecure"), "", &mock.url()));
    run.signal("HUP");
    fresh_minute();
    wait_until("calls are counted", || {
        status(&mut Client::connect(addr));
        secured.counted("k") > 0
    });
    let unverified = |line: &String| line.contains("anyone on the way can read");
    assert!(run.lines().iter().any(unverified), "{:#?}", run.lines());
    for line in run.lines() {
        assert!(!line.contains("CANARY"), "{line}");
    }
}

#[test]
fn a_wrong_password_is_told_without_it() {
    let house = House::new("redis");
    let Some(secured) = Secured::start(&house, "no") else { return };
    let mock = mock();
    let tls = format!("tls = {{ ca = \"{}\" }}", house.path("ca.pem"));
    let url = secured.url("").replace("CANARY", "CANARY-wrong");
    let run = Run::start("redis-password", &config(&url, &tls, &mock.url()));
    run.behind("ratelimit_store: not reached yet: ");
    let lines = run.lines();
    let line = lines.iter().find(|line| line.contains("not reached yet")).unwrap();
    assert!(line.to_lowercase().contains("auth"), "{line}");
    assert!(!lines.iter().any(|line| line.contains("CANARY")), "{lines:#?}");
}
