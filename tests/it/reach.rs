//! rules §3: who may reach what. Rights hang on the target, whatever way leads to it.

use super::fake::Fake;
use super::house::{Proxy, Setup, mock, mock_with, wait_until};
use super::wire::{Client, get, post};
use loadtest::mock::Mock;
use tokenring::testing::net::dial::Address;

const CHAT: &str = "/v1/chat/completions";
const LIMITED: &str = "Authorization: Bearer sk-small\r\n";

/// Keys `small` (may use the model small) and `all`.
const KEYS: &str = "[[key]]\nname = \"small\"\nkey = \"sk-small\"\nmodels = [\"small\"]\n\
    [[key]]\nname = \"all\"\nkey = \"sk-all\"\n";

/// Models m, small and big on one server, which is the default group, too.
fn with_default(mock: &Mock, upstream: &str) -> Proxy {
    let rest = format!("[models.small]\ngroup = \"chat\"\n[models.big]\ngroup = \"chat\"\n{KEYS}");
    let listener = "auth = \"keys\"\ndefault_group = \"chat\"";
    Setup { listener, upstream, rest: &rest, ..Setup::default() }.start(&[mock])
}

fn named(model: &str) -> String {
    format!("{{\"model\":\"{model}\"}}")
}

fn status(client: &mut Client, request: impl AsRef<[u8]>) -> u16 {
    client.send(request).answer().status
}

#[test]
fn a_limited_key_has_to_prove_its_model() {
    let mock = mock();
    let proxy = with_default(&mock, "");
    let big = named("big");
    let coded = |coding: &str| format!("{LIMITED}Content-Encoding: {coding}\r\n");
    for (request, refused) in [
        (post(CHAT, &coded("gzip"), &big), 415),
        (post(CHAT, &coded("identity, gzip"), &big), 415),
        (post(CHAT, &format!("{}Content-Encoding: gzip\r\n", coded("identity")), &big), 415),
        (post(CHAT, &coded(""), &big), 403),
        (post(CHAT, &coded("identity"), &big), 403),
        (post(CHAT, LIMITED, ""), 403),
        (get("/v1/files", LIMITED), 403),
        (get("/v1/models/big", LIMITED), 403),
        (format!("DELETE /v1/models/big HTTP/1.1\r\nHost: x\r\n{LIMITED}\r\n").into(), 403),
        (format!("OPTIONS * HTTP/1.1\r\nHost: x\r\n{LIMITED}\r\n").into(), 403),
        (post(CHAT, LIMITED, "{}"), 400),
    ] {
        let mut client = proxy.client();
        assert_eq!(status(&mut client, &request), refused, "{}", String::from_utf8_lossy(&request));
    }
    for query in ["", "?model=small", "?model=big"] {
        let upgrade = format!("{LIMITED}Connection: Upgrade\r\nUpgrade: websocket\r\n");
        let request = get(&format!("/v1/realtime{query}"), &upgrade);
        assert_eq!(status(&mut proxy.client(), request), 403, "{query}");
    }
    assert_eq!(mock.stats().requests_total, 0);
    // Whoever may use every model goes to the default group with each of them.
    let mut client = proxy.client();
    let all = "Authorization: Bearer sk-all\r\n";
    for request in [
        post(CHAT, &format!("{all}Content-Encoding: gzip\r\n"), &big),
        get("/v1/files", all),
        post(CHAT, LIMITED, named("small")),
        post(CHAT, &coded(""), named("small")),
        get("/v1/models/small", LIMITED),
    ] {
        let refused = status(&mut client, &request);
        assert!(!matches!(refused, 401 | 403 | 415), "{}", String::from_utf8_lossy(&request));
    }
    assert_eq!(mock.stats().requests_total, 5);
}

#[test]
fn path_query_and_body_name_one_model() {
    let mock = mock();
    let proxy = with_default(&mock, "");
    let (small, big) = (named("small"), named("big"));
    for (path, body) in [
        ("/v1/models/small:x", &big),
        ("/v1beta/models/small:generateContent", &big),
        ("/v1alpha/models/big:generateContent", &small),
        ("/openai/deployments/big/chat/completions", &small),
        ("/v1/publishers/google/models/big:streamGenerateContent", &small),
        ("/v1beta/%6dodels/big:generateContent", &small),
        ("/v1/chat/completions?model=big", &small),
        ("/model/big/invoke", &small),
    ] {
        let refused = status(&mut proxy.client(), post(path, LIMITED, body));
        assert!(matches!(refused, 400 | 403), "{path}: {refused}");
    }
    assert_eq!(mock.stats().requests_total, 0);
    for (path, body) in [
        ("/v1beta/models/small:generateContent", "{\"contents\":[]}"),
        ("/v1beta/models/small:generateContent", &small),
        ("/openai/deployments/small/chat/completions", &small),
    ] {
        let passed = status(&mut proxy.client(), post(path, LIMITED, body));
        assert!(!matches!(passed, 400 | 403), "{path}: {passed}");
    }
    assert_eq!(mock.stats().requests_total, 3);
}

#[test]
fn a_url_that_is_always_the_same_shows_no_server_the_path() {
    let mock = mock();
    let proxy = with_default(&mock, "path_mode = \"fixed\"");
    for body in ["{}", &named("big")] {
        let request = post("/v1/models/small:x", LIMITED, body);
        let refused = status(&mut proxy.client(), request);
        assert!(matches!(refused, 400 | 403), "{body}: {refused}");
    }
    assert_eq!(status(&mut proxy.client(), get("/v1/models/small", LIMITED)), 403);
    assert_eq!(mock.stats().requests_total, 0);
    let request = post("/v1/models/small:x", LIMITED, named("small"));
    assert!(!matches!(status(&mut proxy.client(), request), 400 | 403));
    assert_eq!(mock.stats().requests_total, 1);
}

/// Three servers that all list `shared` and one name of their own: `free` stands in no group,
/// `paid` behind a route for the key `team`, `tenant` in the default group of another listener.
/// The listener asked first is `main`.
fn tenants(mocks: &[Mock; 3], main: &str) -> Proxy {
    let upstream = |name: &str, mock: &Mock| {
        format!("[[upstream]]\nname = \"{name}\"\nurl = \"{}\"\n", mock.url())
    };
    let servers: String = ["free", "paid", "tenant"]
        .iter()
        .zip(mocks)
        .map(|(name, mock)| upstream(name, mock))
        .collect();
    Proxy::start(&format!(
        "[process]\ncores = 1\n\
         [[listener]]\nname = \"main\"\nbind = \"127.0.0.1:0\"\n{main}\n\
         [[listener.route]]\npath = \"/paid/*\"\ngroup = \"paidgroup\"\nkeys = [\"team\"]\n\
         [[listener]]\nname = \"other\"\nbind = \"127.0.0.1:0\"\nauth = \"none\"\n\
         default_group = \"tenantgroup\"\n\
         {servers}\
         [[group]]\nname = \"paidgroup\"\nmembers = [\"paid\"]\n\
         [[group]]\nname = \"tenantgroup\"\nmembers = [\"tenant\"]\n\
         [[key]]\nname = \"team\"\nkey = \"sk-team\"\n[[key]]\nname = \"guest\"\nkey = \"sk-guest\"\n"
    ))
}

fn listing(name: &str) -> Mock {
    let name = name.to_owned();
    mock_with(|config| config.models = vec!["shared".to_owned(), name])
}

fn ids(client: &mut Client, key: &str) -> Vec<String> {
    let list = client.send(get("/v1/models", key)).answer().json();
    let rows = list["data"].as_array().unwrap().iter();
    rows.map(|row| row["id"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn what_stands_behind_a_routes_keys_is_named_by_nobody_else() {
    for force in ["listed", "any"] {
        let mocks = [listing("f"), listing("p"), listing("t")];
        let main = format!("force = \"{force}\"");
        let proxy = tenants(&mocks, &main);
        let mut client = proxy.client();
        let guest = "Authorization: Bearer sk-guest\r\n";
        let team = "Authorization: Bearer sk-team\r\n";
        super::house::wait_until("models are known", || ids(&mut proxy.client(), team).len() == 3);
        assert_eq!(ids(&mut client, guest), ["f", "shared"]);
        assert_eq!(ids(&mut client, team), ["f", "p", "shared"]);
        for mock in &mocks {
            mock.forget_seen();
        }
        for name in [
            "p",
            "t",
            "p@paid",
            "shared@paid",
            "paidgroup:p",
            "paid:shared",
            "tenant:t",
            "t@tenant",
        ] {
            let answer = client.send(post(CHAT, guest, named(name))).answer();
            assert_eq!(answer.status, 404, "{name}");
            assert!(answer.message().ends_with("Available: f, shared"), "{}", answer.message());
        }
        for name in ["t", "t@tenant", "tenantgroup:t"] {
            assert_eq!(status(&mut client, post(CHAT, team, named(name))), 404, "{name}");
        }
        // A name that is listed here and there leads to where the caller may go.
        for _ in 0..6 {
            assert_eq!(status(&mut client, post(CHAT, guest, named("shared"))), 200);
        }
        assert_eq!(status(&mut client, post("/paid/x", guest, named("p"))), 403);
        assert_eq!((mocks[1].seen().len(), mocks[2].seen().len()), (0, 0), "{force}");
        for name in ["p", "p@paid", "paidgroup:p", "paid:shared"] {
            assert_eq!(status(&mut client, post(CHAT, team, named(name))), 200, "{name}");
        }
        assert_eq!((mocks[1].seen().len(), mocks[2].seen().len()), (4, 0));
    }
}

#[test]
fn a_listener_without_keys_is_no_way_around_them() {
    let mocks = [listing("f"), listing("p"), listing("t")];
    let proxy = tenants(&mocks, "auth = \"none\"");
    let mut client = proxy.client();
    super::house::wait_until("models are known", || ids(&mut proxy.client(), "").len() == 2);
    for name in ["p", "p@paid", "paidgroup:p", "paid:shared"] {
        assert_eq!(status(&mut client, post(CHAT, "", named(name))), 404, "{name}");
    }
    assert_eq!(status(&mut client, post("/paid/x", "", named("p"))), 403);
}

#[test]
fn names_that_force_nothing_are_names() {
    let mocks = [listing("f"), listing("p"), listing("t")];
    let proxy = tenants(&mocks, "auth = \"none\"\nforce = \"off\"");
    let mut client = proxy.client();
    super::house::wait_until("models are known", || ids(&mut proxy.client(), "").len() == 2);
    for name in ["f@free", "free:f"] {
        assert_eq!(status(&mut client, post(CHAT, "", named(name))), 404, "{name}");
    }
    assert_eq!(status(&mut client, post(CHAT, "", named("f"))), 200);
}

#[test]
fn a_fallback_is_no_way_around_keys() {
    let (mine, theirs) = (mock(), mock());
    let (mine_url, theirs_url) = (mine.url(), theirs.url());
    drop(mine);
    let proxy = Proxy::start(&format!(
        "[process]\ncores = 1\n\
         [[listener]]\nname = \"main\"\nbind = \"127.0.0.1:0\"\ndefault_group = \"mine\"\n\
         [[listener.route]]\npath = \"/theirs/*\"\ngroup = \"theirs\"\nkeys = [\"team\"]\n\
         [[upstream]]\nname = \"a\"\nurl = \"{mine_url}\"\nmodels = []\n\
         [[upstream]]\nname = \"b\"\nurl = \"{theirs_url}\"\nmodels = []\n\
         [[group]]\nname = \"mine\"\nmembers = [\"a\"]\nfallback = [\"theirs\"]\n\
         [[group]]\nname = \"theirs\"\nmembers = [\"b\"]\n\
         [[key]]\nname = \"team\"\nkey = \"sk-team\"\n[[key]]\nname = \"guest\"\nkey = \"sk-guest\"\n"
    ));
    let ask = |key: &str| {
        let key = format!("Authorization: Bearer sk-{key}\r\n");
        status(&mut proxy.client(), post(CHAT, &key, named("m")))
    };
    assert!(matches!(ask("guest"), 502 | 503));
    assert_eq!(theirs.stats().requests_total, 0);
    assert_eq!(ask("team"), 200);
}

#[test]
fn rights_are_about_the_name_as_it_is_listed() {
    let mocks = [listing("f"), listing("p"), listing("t")];
    let upstream = |name: &str, mock: &Mock| {
        format!("[[upstream]]\nname = \"{name}\"\nurl = \"{}\"\n", mock.url())
    };
    let proxy = Proxy::start(&format!(
        "[process]\ncores = 1\n[[listener]]\nname = \"main\"\nbind = \"127.0.0.1:0\"\n\
         {}{}[discovery]\nprefix = true\n\
         [[key]]\nname = \"a\"\nkey = \"sk-a\"\nmodels = [\"cheap:shared\"]\n\
         [[key]]\nname = \"b\"\nkey = \"sk-b\"\nmodels = [\"shared\"]\n",
        upstream("cheap", &mocks[0]),
        upstream("dear", &mocks[1])
    ));
    let (a, b) = ("Authorization: Bearer sk-a\r\n", "Authorization: Bearer sk-b\r\n");
    super::house::wait_until("models are known", || ids(&mut proxy.client(), a).len() == 1);
    let mut client = proxy.client();
    assert_eq!(ids(&mut client, a), ["cheap:shared"]);
    assert_eq!(status(&mut client, post(CHAT, a, named("cheap:shared"))), 200);
    assert_eq!(status(&mut client, post(CHAT, a, named("shared@cheap"))), 200);
    assert_eq!(status(&mut client, post(CHAT, a, named("shared@dear"))), 403);
    for name in ["cheap:shared", "dear:shared", "shared@dear", "shared@cheap"] {
        assert_eq!(status(&mut client, post(CHAT, b, named(name))), 403, "{name}");
    }
    assert!(mocks[1].seen().iter().all(|seen| seen.request_line().starts_with("GET ")));
}

/// Two listeners and two servers that list `m`: `a` is behind the default group of `main`, so
/// that `other` reaches `b` alone. Clients are those of `other`.
fn neighbours(a: &Fake, b: &Fake) -> Proxy {
    neighbours_where(a, "", b)
}

/// As `neighbours`, with more of the upstream `a`.
fn neighbours_where(a: &Fake, more: &str, b: &Fake) -> Proxy {
    Proxy::start(&format!(
        "[process]\ncores = 1\n[discovery]\nendpoints = true\n\
         [[listener]]\nname = \"other\"\nbind = \"127.0.0.1:0\"\nauth = \"none\"\n\
         [[listener]]\nname = \"main\"\nbind = \"127.0.0.1:0\"\nauth = \"none\"\n\
         default_group = \"mine\"\n\
         [[upstream]]\nname = \"a\"\nurl = \"{}\"\n{more}\n\
         [[upstream]]\nname = \"b\"\nurl = \"{}\"\n\
         [[group]]\nname = \"mine\"\nmembers = [\"a\"]\n",
        a.url(),
        b.url()
    ))
}

fn main_of(proxy: &Proxy) -> Client {
    match &proxy.addresses()[1] {
        (_, Address::Tcp(addr)) => Client::connect(*addr),
        (_, other) => panic!("no TCP listener: {other:?}"),
    }
}

#[test]
fn a_list_names_no_server_that_the_caller_does_not_reach() {
    let (a, b) = (Fake::start("a", &["m"]), Fake::start("b", &["m"]));
    let proxy = neighbours(&a, &b);
    let row = |client: &mut Client| {
        let list = client.send(get("/v1/models", "")).answer().json();
        let text = |key: &str| list["data"][0][key].as_str().unwrap_or_default().to_owned();
        (text("owned_by"), text("provider"), text("endpoint"))
    };
    let at = |fake: &Fake| fake.addr().to_string();
    assert_eq!(row(&mut proxy.client()), ("b".to_owned(), "b".to_owned(), at(&b)));
    let both = ("a+b".to_owned(), "a+b".to_owned(), at(&a));
    assert_eq!(row(&mut main_of(&proxy)), both, "b is claimed by nobody");
}

/// Whether others serve the name elsewhere is nothing to those who do not get there.
#[test]
fn a_name_whose_servers_within_reach_are_away_stays_known() {
    let (a, b) = (Fake::start("a", &["m"]), Fake::start("b", &["m"]));
    let proxy = neighbours(&a, &b);
    let ask = |model: &str| proxy.client().send(post(CHAT, "", named(model))).answer();
    assert_eq!(ask("m").field("x-server"), Some("b"));
    let addr = b.addr();
    drop(b);
    wait_until("it is known to be away", || {
        let status = ask("m").status;
        assert!(matches!(status, 502 | 503), "{status}");
        let plan = proxy.plan();
        plan.models.known("m").is_some_and(|m| plan.groups[usize::from(m.group)].name == "a")
    });
    for name in ["m", "m@b", "b:m"] {
        let answer = ask(name);
        assert_eq!(answer.status, 503, "{name}");
        assert!(answer.field("retry-after").is_some(), "{name}");
        assert!(answer.message().contains("'b'"), "{name}: {}", answer.message());
    }
    assert_eq!(ids(&mut proxy.client(), ""), ["m"]);
    assert!(ask("n").message().ends_with("Available: m"));
    // Who reaches the other server is served by it.
    assert_eq!(status(&mut main_of(&proxy), post(CHAT, "", named("m"))), 200);
    let _b = Fake::start_at(addr, "b", &["m"]);
    wait_until("it serves again", || ask("m").status == 200);
}

#[test]
fn a_refusal_names_no_server_that_the_caller_does_not_reach() {
    let (a, b) = (Fake::start("a", &["m"]), Fake::start("b", &["m"]));
    let proxy = neighbours(&a, &b);
    drop((a, b));
    let ask = |mut client: Client| client.send(post(CHAT, "", named("m"))).answer();
    wait_until("both are away", || {
        let main = ask(main_of(&proxy)).text();
        let other = ask(proxy.client()).text();
        assert!(!other.contains("a+b"), "{other}");
        main.contains("No upstream of group 'a+b' is available.")
            && other.contains("No upstream of group 'b' is available.")
    });
}

/// That a server declares a name takes it from nobody who does not reach that server.
#[test]
fn a_name_declared_out_of_reach_leads_to_those_that_list_it_within() {
    let (a, b) = (Fake::start("a", &[]), Fake::start("b", &["m"]));
    let proxy = neighbours_where(&a, "models = [\"m\"]", &b);
    let ask = |mut client: Client| client.send(post(CHAT, "", named("m"))).answer();
    assert_eq!(ask(proxy.client()).field("x-server"), Some("b"));
    assert_eq!(ids(&mut proxy.client(), ""), ["m"]);
    let list = |mut client: Client| client.send(get("/v1/models", "")).answer().text();
    assert!(list(proxy.client()).contains("\"owned_by\":\"b\""));
    // Where both are within reach, the declared name wins.
    assert!(list(main_of(&proxy)).contains("\"owned_by\":\"a\""));
    assert_eq!(ask(main_of(&proxy)).field("x-server"), Some("a"));
    drop(b);
    wait_until("it is away", || ask(proxy.client()).status == 503);
    assert_eq!(ids(&mut proxy.client(), ""), ["m"], "its name stays known");
    assert_eq!(ask(main_of(&proxy)).status, 200);
}

/// What a key reaches by its route alone is told to no other key, and stays known to it.
#[test]
fn what_is_listed_and_known_hangs_on_the_key_too() {
    let (a, b) = (Fake::start("a", &["m"]), Fake::start("b", &["m", "n"]));
    let proxy = Proxy::start(&format!(
        "[process]\ncores = 1\n[[listener]]\nname = \"l\"\nbind = \"127.0.0.1:0\"\n\
         [[listener.route]]\npath = \"/a/*\"\ngroup = \"ga\"\nkeys = [\"one\"]\n\
         [[listener.route]]\npath = \"/b/*\"\ngroup = \"gb\"\nkeys = [\"two\"]\n\
         [[upstream]]\nname = \"a\"\nurl = \"{}\"\n[[upstream]]\nname = \"b\"\nurl = \"{}\"\n\
         [[group]]\nname = \"ga\"\nmembers = [\"a\"]\n[[group]]\nname = \"gb\"\nmembers = [\"b\"]\n\
         [[key]]\nname = \"one\"\nkey = \"sk-one\"\n[[key]]\nname = \"two\"\nkey = \"sk-two\"\n",
        a.url(),
        b.url()
    ));
    let (one, two) = ("Authorization: Bearer sk-one\r\n", "Authorization: Bearer sk-two\r\n");
    let list = |key: &str| proxy.client().send(get("/v1/models", key)).answer().text();
    let ask = |key: &str, name: &str| status(&mut proxy.client(), post(CHAT, key, named(name)));
    assert!(list(one).contains("\"owned_by\":\"a\"") && !list(one).contains("a+b"));
    assert!(list(two).contains("\"owned_by\":\"b\"") && !list(two).contains("a+b"));
    drop(b);
    wait_until("it is known to be away", || ask(two, "n") == 503 && ask(two, "m") == 503);
    assert!(list(two).contains("\"owned_by\":\"b\"") && !list(two).contains("\"a\""));
    assert_eq!(ids(&mut proxy.client(), two), ["m", "n"]);
    assert_eq!((ask(two, "m@a"), ask(one, "m"), ask(one, "n")), (404, 200, 404));
    assert_eq!(ask(one, "m@b"), 404, "not theirs");
}
