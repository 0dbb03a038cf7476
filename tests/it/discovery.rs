//! rules §2, §9, §11: models, addresses and targets that change while the proxy runs.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::fake::{Fake, NameServer, Records};
use super::house::{LIMIT, Proxy, wait_until};
use super::wire::{Client, get, post};

const CHAT: &str = "/v1/chat/completions";
const LISTENER: &str =
    "[process]\ncores = 1\n[[listener]]\nname = \"l\"\nbind = \"127.0.0.1:0\"\nauth = \"none\"\n";

fn upstream(name: &str, url: &str, more: &str) -> String {
    format!("[[upstream]]\nname = \"{name}\"\nurl = \"{url}\"\n{more}\n")
}

fn ask(client: &mut Client, model: &str) -> (u16, String) {
    let answer = client.send(post(CHAT, "", format!("{{\"model\":\"{model}\"}}"))).answer();
    (answer.status, answer.field("x-server").unwrap_or_default().to_owned())
}

fn ids(proxy: &Proxy) -> Vec<String> {
    let answer = proxy.client().send(get("/v1/models", "")).answer().json();
    let list = answer["data"].as_array().unwrap().iter();
    list.map(|model| model["id"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_model_that_appears_is_routed_and_one_that_goes_is_404_within_an_interval() {
    let (a, b) = (Fake::start("a", &["x"]), Fake::start("b", &["y"]));
    let text = format!(
        "{LISTENER}[discovery]\nttl = \"1s\"\n{}{}",
        upstream("a", &a.url(), ""),
        upstream("b", &b.url(), "protocol = \"ollama\""),
    );
    let proxy = Proxy::start(&text);
    let mut client = proxy.client();
    assert_eq!(ids(&proxy), ["x", "y"]);
    assert_eq!(ask(&mut client, "x"), (200, "a".to_owned()));
    assert_eq!(ask(&mut client, "y"), (200, "b".to_owned()));
    assert_eq!(ask(&mut client, "z").0, 404);
    a.say(|says| says.models = vec!["z".to_owned()]);
    b.say(|says| says.models.push("x".to_owned()));
    let took = wait_until("z is routed", || ask(&mut proxy.client(), "z").0 == 200);
    assert!(took < Duration::from_secs(3), "an interval of 1 s: {took:?}");
    wait_until("x has moved", || ask(&mut proxy.client(), "x") == (200, "b".to_owned()));
    assert_eq!(ids(&proxy), ["x", "y", "z"]);
    a.say(|says| says.models.clear());
    wait_until("z is gone", || ask(&mut proxy.client(), "z").0 == 404);
    assert_eq!(ids(&proxy), ["x", "y"]);
}

/// llama-server answers 503 as long as it loads, and that may take minutes.
#[test]
fn a_server_that_has_loaded_its_model_is_used_within_two_seconds() {
    let server = super::house::mock();
    server.behave("status=503");
    let proxy = Proxy::start(&format!("{LISTENER}{}", upstream("a", &server.url(), "")));
    // Long enough for pauses that double to have become long ones.
    let begun = Instant::now();
    wait_until("it has been loading for a while", || {
        assert_eq!(ask(&mut proxy.client(), "mock-model").0, 503);
        begun.elapsed() > Duration::from_secs(4)
    });
    server.behave("");
    let took = wait_until("it is used", || ask(&mut proxy.client(), "mock-model").0 == 200);
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[test]
fn discovery_probes_and_traffic_take_the_same_way() {
    for (base, mode, listed) in [("/v1", "append", true), ("/b/v1", "append", false)] {
        let a = Fake::start("a", &["x"]);
        let more = format!("path_mode = \"{mode}\"\nhealth = {{ interval = \"1s\" }}");
        let url = format!("{}{base}", a.url());
        let proxy = Proxy::start(&format!("{LISTENER}{}", upstream("a", &url, &more)));
        wait_until("it was probed", || a.probes().len() >= 2);
        let want = format!("GET {}/v1/models HTTP/1.1", base.trim_end_matches("/v1"));
        assert!(a.probes().iter().all(|probe| probe.starts_with(&want)), "{:?}", a.probes());
        assert_eq!(ids(&proxy) == ["x"], listed);
    }
}

#[test]
fn a_stale_list_holds_while_a_refresh_runs_or_is_refused() {
    let a = Fake::start("a", &["x"]);
    let text = format!("{LISTENER}[discovery]\nttl = \"1s\"\n{}", upstream("a", &a.url(), ""));
    let proxy = Proxy::start(&text);
    let asked = a.probes().len();
    a.say(|says| says.models_status = 503);
    wait_until("it was asked twice more", || a.probes().len() >= asked + 2);
    assert_eq!(ask(&mut proxy.client(), "x").0, 200);
    a.say(|says| (says.models_status, says.delay) = (200, Duration::from_millis(600)));
    let asked = a.probes().len();
    let begun = Instant::now();
    while a.probes().len() < asked + 2 {
        assert_eq!(ids(&proxy), ["x"], "while the question is open");
        assert!(begun.elapsed() < LIMIT);
    }
}

/// The cached model map of the proxies that this one replaces keeps routing to a dead server.
#[test]
fn cached_model_map_does_not_keep_routing_to_a_dead_server() {
    let (a, b) = (Fake::start("a", &["x", "only-a"]), Fake::start("b", &["x"]));
    // An hour: only the death itself can be the reason. The breaker may open meanwhile.
    let breaker = "breaker = { cooldown = \"1s\" }";
    let text = format!(
        "{LISTENER}[discovery]\nttl = \"1h\"\n{}{}",
        upstream("a", &a.url(), breaker),
        upstream("b", &b.url(), breaker),
    );
    let proxy = Proxy::start(&text);
    let mut client = proxy.client();
    assert_eq!(ask(&mut client, "only-a"), (200, "a".to_owned()));
    assert_eq!(ids(&proxy), ["only-a", "x"]);
    let addr = a.addr();
    drop(a);
    // The first of them finds the port closed; none is answered with an error.
    for _ in 0..20 {
        assert_eq!(ask(&mut client, "x"), (200, "b".to_owned()));
    }
    let took = wait_until("it is away", || ask(&mut proxy.client(), "only-a").0 == 503);
    assert!(took < Duration::from_secs(2), "at once, not after a ttl: {took:?}");
    assert_eq!(ids(&proxy), ["only-a", "x"], "its name stays known");
    let members = |proxy: &Proxy| {
        let plan = proxy.plan();
        let found = plan.models.known("x").map(|model| model.group).unwrap();
        plan.groups[usize::from(found)].members.len()
    };
    wait_until("nobody is sent there any more", || members(&proxy) == 1);
    // It comes back by itself.
    let a = Fake::start_at(addr, "a", &["x", "only-a"]);
    wait_until("its models are back", || ask(&mut proxy.client(), "only-a").0 == 200);
    wait_until("it is a member again", || members(&proxy) == 2);
    drop(a);
}

#[test]
fn a_server_that_dies_and_returns_under_load_costs_no_request() {
    let (a, b) = (Fake::start("a", &["x"]), Fake::start("b", &["x"]));
    let mut c = Some(Fake::start("c", &["x"]));
    let addr = c.as_ref().map(Fake::addr).unwrap();
    let mut text = format!("{LISTENER}[discovery]\nttl = \"1s\"\n");
    for (name, addr) in [("a", a.addr()), ("b", b.addr()), ("c", addr)] {
        let breaker = "breaker = { cooldown = \"1s\" }";
        text += &upstream(name, &format!("http://{addr}"), breaker);
    }
    let proxy = Proxy::start(&text);
    let (over, served) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut client = proxy.client();
                while !over.load(Ordering::Relaxed) {
                    assert_eq!(ask(&mut client, "x").0, 200);
                    served.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for _ in 0..3 {
            wait_until("c serves", || c.as_ref().is_some_and(|c| c.served() > 20));
            drop(c.take());
            let then = served.load(Ordering::Relaxed);
            wait_until("the others go on", || served.load(Ordering::Relaxed) > then + 100);
            c = Some(Fake::start_at(addr, "c", &["x"]));
        }
        wait_until("c serves again", || c.as_ref().is_some_and(|c| c.served() > 20));
        over.store(true, Ordering::Relaxed);
    });
}

#[test]
fn prefixed_names_are_stripped_on_their_way() {
    let a = Fake::start("a", &["x"]);
    let text = format!("{LISTENER}[discovery]\nprefix = true\n{}", upstream("a", &a.url(), ""));
    let proxy = Proxy::start(&text);
    assert_eq!(ids(&proxy), ["a:x"]);
    assert_eq!(ask(&mut proxy.client(), "a:x").0, 200);
}

/// A file of targets in a folder of its own.
struct TargetsFile(PathBuf);

impl TargetsFile {
    fn new(name: &str) -> TargetsFile {
        let dir = std::env::temp_dir().join(format!("tokenring-{}-{name}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        TargetsFile(dir.join("targets.json"))
    }

    /// Replaces the file as an editor does.
    fn write(&self, text: &str) {
        let next = self.0.with_extension("next");
        fs::write(&next, text).unwrap();
        fs::rename(&next, &self.0).unwrap();
    }

    fn list(&self, fakes: &[&Fake]) {
        let targets: Vec<String> = fakes.iter().map(|f| format!("\"{}\"", f.addr())).collect();
        self.write(&format!("[{{\"targets\":[{}]}}]", targets.join(",")));
    }
}

impl Drop for TargetsFile {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(self.0.parent().unwrap());
    }
}

fn file_config(file: &TargetsFile) -> String {
    let discover = format!("models = []\ndiscover = \"file:{}\"", file.0.display());
    format!(
        "{LISTENER}{}[[group]]\nname = \"g\"\nmembers = [\"many\"]\n[models.m]\ngroup = \"g\"\n",
        upstream("many", "http://unused:1", &discover),
    )
}

fn upstreams(proxy: &Proxy) -> usize {
    proxy.plan().upstreams.len()
}

#[test]
fn a_file_of_targets_adds_and_drains_under_load_without_an_error() {
    let file = TargetsFile::new("load");
    let (a, b, c) = (Fake::start("a", &[]), Fake::start("b", &[]), Fake::start("c", &[]));
    file.list(&[&a]);
    let proxy = Proxy::start(&file_config(&file));
    let (over, served) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut client = proxy.client();
                while !over.load(Ordering::Relaxed) {
                    assert_eq!(ask(&mut client, "m").0, 200);
                    served.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        file.list(&[&a, &b, &c]);
        wait_until("both new ones serve", || b.served() > 10 && c.served() > 10);
        file.list(&[&c]);
        wait_until("two have left", || upstreams(&proxy) == 1);
        let (before, then) = ((a.served(), b.served()), served.load(Ordering::Relaxed));
        wait_until("the load goes on", || served.load(Ordering::Relaxed) > then + 50);
        // What was in flight when they left has ended by itself.
        assert!(a.served() + b.served() <= before.0 + before.1 + 4);
        over.store(true, Ordering::Relaxed);
    });
    assert_eq!(ask(&mut proxy.client(), "many:m"), (200, "c".to_owned()));
    assert_eq!(ask(&mut proxy.client(), "m@many"), (200, "c".to_owned()));
}

/// One entry that stands for the targets of a file, each asked for its models.
fn asked_config(file: &TargetsFile) -> String {
    let discover = format!("discover = \"file:{}\"", file.0.display());
    format!("{LISTENER}{}", upstream("many", "http://unused:1", &discover))
}

#[test]
fn a_server_that_is_replaced_serves_its_models_until_the_other_has_listed_them() {
    let file = TargetsFile::new("successor");
    let (a, b) = (Fake::start("a", &["x", "only-a"]), Fake::start("b", &["x"]));
    let stays = Fake::start("stays", &["z"]);
    file.list(&[&a, &stays]);
    let proxy = Proxy::start(&asked_config(&file));
    assert_eq!(ask(&mut proxy.client(), "x"), (200, "a".to_owned()));
    b.say(|says| says.models_status = 503);
    file.list(&[&b, &stays]);
    wait_until("the other was asked, has no list yet, and was asked again", || {
        assert_eq!(ask(&mut proxy.client(), "x"), (200, "a".to_owned()));
        b.probes().len() >= 2
    });
    b.say(|says| (says.models_status, says.delay) = (200, Duration::from_millis(300)));
    wait_until("the other serves", || {
        let (status, served_by) = ask(&mut proxy.client(), "x");
        assert_eq!(status, 200, "until the list is here the old one serves");
        served_by == "b"
    });
    assert_eq!(upstreams(&proxy), 2, "the old one has left with that list");
    assert_eq!(ask(&mut proxy.client(), "only-a").0, 404);
    assert_eq!(ids(&proxy), ["x", "z"]);
}

#[test]
fn a_server_that_never_lists_its_models_holds_the_old_one_for_leave_max() {
    let file = TargetsFile::new("silent");
    let a = Fake::start("a", &["x"]);
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    file.list(&[&a]);
    let proxy = Proxy::start(&asked_config(&file));
    file.write(&format!("[{{\"targets\":[\"{}\"]}}]", silent.local_addr().unwrap()));
    wait_until("both are in force", || upstreams(&proxy) == 2);
    assert_eq!(ask(&mut proxy.client(), "x"), (200, "a".to_owned()));
    let took = wait_until("the old one has left", || upstreams(&proxy) == 1);
    let limit = tokenring::testing::control::entry::LEAVE_MAX;
    assert!(took > limit / 2 && took < limit + Duration::from_secs(2), "{took:?}");
    assert_eq!(ask(&mut proxy.client(), "x").0, 503, "the new one has not said yet what it has");
}

#[test]
fn models_of_an_entry_that_finds_nobody_any_more_stay_known_for_the_grace() {
    let file = TargetsFile::new("nobody");
    let (a, b) = (Fake::start("a", &["x"]), Fake::start("b", &["x"]));
    file.list(&[&a]);
    let told = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let lines = told.clone();
    let hears = tokenring::testing::control::Options {
        say: std::sync::Arc::new(move |line: &str| lines.lock().unwrap().push(line.to_owned())),
        ..Default::default()
    };
    let text = format!("{}[discovery]\ngrace = \"4s\"\n", asked_config(&file));
    let proxy = Proxy::start_with(&text, hears);
    assert_eq!(ask(&mut proxy.client(), "x"), (200, "a".to_owned()));
    file.list(&[]);
    wait_until("nobody is sent there", || ask(&mut proxy.client(), "x").0 != 200);
    let begun = Instant::now();
    let answer = proxy.client().send(post(CHAT, "", "{\"model\":\"x\"}")).answer();
    assert_eq!(answer.status, 503, "its name is known");
    assert!(answer.field("retry-after").is_some());
    assert_eq!(ids(&proxy), ["x"]);
    assert_eq!(ask(&mut proxy.client(), "y").0, 404, "another is not");
    let (asked, served) = (a.probes().len(), a.served());
    wait_until("the grace is over", || ask(&mut proxy.client(), "x").0 == 404);
    let took = begun.elapsed();
    assert!(took > Duration::from_secs(2) && took < Duration::from_secs(8), "{took:?}");
    assert_eq!((a.probes().len(), a.served()), (asked, served), "it was left alone");
    assert!(ids(&proxy).is_empty());
    assert_eq!(upstreams(&proxy), 0);
    // One that comes back in time, and another one.
    file.list(&[&a]);
    wait_until("it serves", || ask(&mut proxy.client(), "x") == (200, "a".to_owned()));
    file.list(&[]);
    wait_until("nobody is sent there", || ask(&mut proxy.client(), "x").0 == 503);
    file.list(&[&a]);
    wait_until("it is back", || ask(&mut proxy.client(), "x") == (200, "a".to_owned()));
    file.list(&[]);
    wait_until("nobody is sent there", || ask(&mut proxy.client(), "x").0 == 503);
    file.list(&[&b]);
    wait_until("another serves", || ask(&mut proxy.client(), "x") == (200, "b".to_owned()));
    assert_eq!(upstreams(&proxy), 1);
    let told = told.lock().unwrap().clone();
    let count = |fake: &Fake, what: &str| {
        let line = format!("upstream many-127.0.0.1-{} {what}", fake.addr().port());
        told.iter().filter(|one| **one == line).count()
    };
    assert_eq!((count(&a, "added"), count(&a, "removed")), (2, 3), "{told:?}");
    assert_eq!((count(&b, "added"), count(&b, "removed")), (1, 0), "{told:?}");
}

/// Who may not reach a server does not hear of its models when it has left either.
#[test]
fn models_that_stay_known_are_known_to_the_same_keys() {
    let file = TargetsFile::new("nobody-behind-keys");
    let a = Fake::start("a", &["x"]);
    file.list(&[&a]);
    let discover = format!("discover = \"file:{}\"", file.0.display());
    let text = format!(
        "[process]\ncores = 1\n\
         [[listener]]\nname = \"l\"\nbind = \"127.0.0.1:0\"\nauth = \"keys\"\n\
         [[listener.route]]\npath = \"/inside/*\"\ngroup = \"g\"\nkeys = [\"in\"]\n\
         [[key]]\nname = \"in\"\nkey = \"sk-in\"\n[[key]]\nname = \"out\"\nkey = \"sk-out\"\n\
         {}[[group]]\nname = \"g\"\nmembers = [\"many\"]\n",
        upstream("many", "http://unused:1", &discover),
    );
    let proxy = Proxy::start(&text);
    let key = |name: &str| format!("Authorization: Bearer sk-{name}\r\n");
    let status = |name: &str| {
        let request = post(CHAT, &key(name), "{\"model\":\"x\"}");
        proxy.client().send(request).answer().status
    };
    let lists = |name: &str| {
        let answer = proxy.client().send(get("/v1/models", &key(name))).answer();
        answer.text().contains("\"x\"")
    };
    assert_eq!((status("in"), status("out")), (200, 404));
    assert_eq!((lists("in"), lists("out")), (true, false));
    file.list(&[]);
    wait_until("nobody is sent there", || status("in") == 503);
    assert_eq!((status("in"), status("out")), (503, 404));
    assert_eq!((lists("in"), lists("out")), (true, false));
}

#[test]
fn a_broken_file_keeps_the_last_good_one_and_is_told_once() {
    let file = TargetsFile::new("broken");
    let a = Fake::start("a", &[]);
    file.list(&[&a]);
    let told = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let lines = told.clone();
    let differs = tokenring::testing::control::Options {
        say: std::sync::Arc::new(move |line: &str| lines.lock().unwrap().push(line.to_owned())),
        ..Default::default()
    };
    let proxy = Proxy::start_with(&file_config(&file), differs);
    file.write("[{\"targets\":[\"nonsense");
    wait_until("it is told", || !told.lock().unwrap().is_empty());
    assert_eq!(ask(&mut proxy.client(), "m"), (200, "a".to_owned()));
    file.write("{}");
    let b = Fake::start("b", &[]);
    file.list(&[&b]);
    wait_until("the next good one counts", || {
        ask(&mut proxy.client(), "m") == (200, "b".to_owned())
    });
    let told = told.lock().unwrap().clone();
    let count = |what: &str| told.iter().filter(|line| line.contains(what)).count();
    assert_eq!(count("upstream many: discover: "), 1, "{told:?}");
    let moved = (format!("upstream many-127.0.0.1-{}", b.addr().port()), count(" removed"));
    assert_eq!((count(&format!("{} added", moved.0)), moved.1), (1, 1), "{told:?}");
}

#[test]
fn weights_of_a_file_are_those_of_the_members() {
    let file = TargetsFile::new("weights");
    let (a, b) = (Fake::start("a", &[]), Fake::start("b", &[]));
    let group = |fake: &Fake, weight: u32| {
        format!("{{\"targets\":[\"{}\"],\"labels\":{{\"weight\":\"{weight}\"}}}}", fake.addr())
    };
    file.write(&format!("[{},{}]", group(&a, 3), group(&b, 1)));
    let proxy = Proxy::start(&file_config(&file));
    let plan = proxy.plan();
    let weights: Vec<u32> = plan.groups[0].members.iter().map(|(_, weight)| *weight).collect();
    assert_eq!(weights, [3, 1]);
}

/// Asks this name server and no other.
fn asking(server: &NameServer) -> tokenring::testing::control::Options {
    tokenring::testing::control::Options { name_server: Some(server.addr()), ..Default::default() }
}

/// Two servers on one port of two addresses of this machine.
fn pair() -> (Fake, Fake, u16) {
    for _ in 0..100 {
        let a = Fake::start("a", &["x"]);
        let port = a.addr().port();
        let second = SocketAddr::from((Ipv4Addr::new(127, 0, 0, 2), port));
        if std::net::TcpListener::bind(second).is_ok() {
            return (a, Fake::start_at(second, "b", &["x"]), port);
        }
    }
    panic!("no port that is free on both");
}

const ONE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 1);
const TWO: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

#[test]
fn a_host_name_is_looked_up_again_and_traffic_moves() {
    let (a, _b, port) = pair();
    let server = NameServer::start(Records {
        addresses: vec![("gpu.test", vec![ONE])],
        ..Records::default()
    });
    let url = format!("http://gpu.test:{port}");
    let text =
        format!("{LISTENER}{}[models.m]\nupstream = \"u\"\n", upstream("u", &url, "models = []"),);
    let proxy = Proxy::start_with(&text, asking(&server));
    let mut client = proxy.client();
    assert_eq!(ask(&mut client, "m"), (200, "a".to_owned()));
    let state = proxy.plan().upstreams[0].state.clone();
    server.set(|records| records.addresses[0].1 = vec![TWO]);
    wait_until("traffic has moved", || ask(&mut proxy.client(), "m") == (200, "b".to_owned()));
    let plan = proxy.plan();
    assert!(std::sync::Arc::ptr_eq(&state, &plan.upstreams[0].state), "the same upstream");
    // Also on a connection whose upstream connection was pooled before.
    assert_eq!(ask(&mut client, "m"), (200, "b".to_owned()));
    // A server that fails changes nothing.
    server.set(|records| records.fails = true);
    let asked = server.asked();
    wait_until("it was asked again", || server.asked() > asked + 2);
    assert_eq!(ask(&mut client, "m"), (200, "b".to_owned()));
    drop(a);
}

#[test]
fn each_address_of_a_name_is_an_upstream() {
    let (a, b, port) = pair();
    let server = NameServer::start(Records {
        addresses: vec![("all.test", vec![ONE, TWO])],
        ..Records::default()
    });
    let discover = format!("discover = \"dns:all.test:{port}\"");
    let text = format!("{LISTENER}{}", upstream("many", "http://all.test", &discover));
    let proxy = Proxy::start_with(&text, asking(&server));
    let names = |proxy: &Proxy| {
        let plan = proxy.plan();
        let mut names: Vec<String> = plan.upstreams.iter().map(|u| u.name.clone()).collect();
        names.sort();
        names
    };
    assert_eq!(names(&proxy), [format!("many-127.0.0.1-{port}"), format!("many-127.0.0.2-{port}")]);
    let mut client = proxy.client();
    let mut seen: Vec<String> = (0..4).map(|_| ask(&mut client, "x").1).collect();
    seen.sort();
    assert_eq!(seen, ["a", "a", "b", "b"], "their models were asked for and put together");
    assert!(b.probes()[0].contains("host: all.test\r\n"), "{}", b.probes()[0]);
    server.set(|records| records.addresses[0].1 = vec![TWO]);
    wait_until("one has left", || names(&proxy).len() == 1);
    let before = a.served();
    for _ in 0..4 {
        assert_eq!(ask(&mut client, "x"), (200, "b".to_owned()));
    }
    assert_eq!(a.served(), before);
}

#[test]
fn services_are_those_of_the_best_priority_with_their_weights() {
    let (a, _b, port) = pair();
    let server = NameServer::start(Records {
        addresses: vec![("one.test", vec![ONE]), ("two.test", vec![TWO])],
        services: vec![(
            "_http._tcp.test",
            vec![(10, 7, port, "one.test"), (20, 1, port, "two.test")],
        )],
        ..Records::default()
    });
    let discover = "models = []\ndiscover = \"srv:_http._tcp.test\"";
    let text = format!(
        "{LISTENER}{}[[group]]\nname = \"g\"\nmembers = [{{ upstream = \"many\", weight = 2 }}]\n\
         [models.m]\ngroup = \"g\"\n",
        upstream("many", "http://test", discover),
    );
    let proxy = Proxy::start_with(&text, asking(&server));
    let mut client = proxy.client();
    assert_eq!(ask(&mut client, "m"), (200, "a".to_owned()));
    let members = proxy.plan().groups[0].members.clone();
    assert_eq!(members, [(0, 14)]);
    server.set(|records| records.services[0].1[0].3 = "nowhere.test");
    let asked = server.asked();
    wait_until("it was asked for a host without an address", || {
        assert_eq!(ask(&mut proxy.client(), "m"), (200, "a".to_owned()));
        server.asked() >= asked + 10
    });
    server.set(|records| {
        records.services[0].1[0].0 = 30;
        records.delay = Duration::from_millis(200);
    });
    wait_until("the other is the best", || {
        let (status, served_by) = ask(&mut proxy.client(), "m");
        assert_eq!(status, 200, "until it is known where the other is this one serves");
        served_by == "b"
    });
    drop(a);
}

#[test]
fn models_of_services_that_change_are_served_all_the_while() {
    let (_a, b, port) = pair();
    let server = NameServer::start(Records {
        addresses: vec![("one.test", vec![ONE]), ("two.test", vec![TWO])],
        services: vec![("_http._tcp.test", vec![(10, 1, port, "one.test")])],
        ..Records::default()
    });
    let text = format!(
        "{LISTENER}{}",
        upstream("many", "http://test", "discover = \"srv:_http._tcp.test\"")
    );
    let proxy = Proxy::start_with(&text, asking(&server));
    assert_eq!(ask(&mut proxy.client(), "x"), (200, "a".to_owned()));
    b.say(|says| says.delay = Duration::from_millis(300));
    server.set(|records| {
        records.services[0].1[0].3 = "two.test";
        records.delay = Duration::from_millis(100);
    });
    wait_until("the other serves", || {
        let (status, served_by) = ask(&mut proxy.client(), "x");
        assert_eq!(status, 200, "neither its address nor its list may be waited for");
        served_by == "b"
    });
}

/// There is nobody to blame, and nothing to recover from when the address is known.
#[test]
fn a_breaker_counts_nothing_before_there_is_an_address() {
    let (a, b) = (Fake::start("a", &[]), Fake::start("b", &[]));
    let server = NameServer::start(Records::default());
    let late = format!("http://late.test:{}", a.addr().port());
    let breaker = "models = []\nbreaker = { consecutive = 2, cooldown = \"1h\" }";
    let text = format!(
        "{LISTENER}{}{}[[group]]\nname = \"g\"\nbalance = \"round_robin\"\n\
         members = [\"late\", \"b\"]\n[models.both]\ngroup = \"g\"\n\
         [models.late]\nupstream = \"late\"\n",
        upstream("late", &late, breaker),
        upstream("b", &b.url(), breaker),
    );
    let proxy = Proxy::start_with(&text, asking(&server));
    let mut client = proxy.client();
    for _ in 0..10 {
        assert_eq!(ask(&mut client, "both"), (200, "b".to_owned()));
        assert_eq!(ask(&mut client, "late").0, 503);
    }
    server.set(|records| records.addresses = vec![("late.test", vec![ONE])]);
    wait_until("it serves as soon as it has an address", || {
        ask(&mut proxy.client(), "late") == (200, "a".to_owned())
    });
    let state = proxy.plan().upstreams[0].state.clone();
    assert_eq!(state.breaker_changes(), [[0; 3]; 3]);
}

#[test]
fn the_start_does_not_wait_long_for_a_server_that_is_silent() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let a = Fake::start("a", &["x"]);
    let url = format!("http://{}", silent.local_addr().unwrap());
    let text = format!("{LISTENER}{}{}", upstream("s", &url, ""), upstream("a", &a.url(), ""));
    let begun = Instant::now();
    let proxy = Proxy::start(&text);
    let limit = tokenring::testing::control::reconciler::FIRST_WAIT + Duration::from_secs(2);
    assert!(begun.elapsed() < limit, "{:?}", begun.elapsed());
    assert_eq!(ask(&mut proxy.client(), "x"), (200, "a".to_owned()));
}

#[test]
fn localhost_is_in_the_hosts_file() {
    let a = Fake::start("a", &["x"]);
    let url = format!("http://localhost:{}", a.addr().port());
    let proxy = Proxy::start(&format!("{LISTENER}{}", upstream("a", &url, "")));
    assert_eq!(ask(&mut proxy.client(), "x").0, 200);
}
