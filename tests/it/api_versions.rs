//! rules §12: no edit is lost, none half applied; what is in force says where it comes from; the
//! operator's address takes what it is sent.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokenring::testing::base::rng::Rng;

use super::api::{House, Operator, admin_of};
use super::house::wait_until;
use super::reload::ask_until;
use super::wire::Client;

#[test]
fn who_was_slower_is_told_and_decides_anew() {
    let house = House::new();
    let mut operator = house.operator();
    let shown = operator.get("/upstream-groups/chat");
    assert!(shown.version.starts_with('"') && shown.version.len() > 10, "{shown:?}");
    let match_it = format!("if-match: {}\r\n", shown.version);
    let to = |name: &str| json!({ "upstreams": [{ "name": name }] });
    let first = operator.send("PATCH", "/upstream-groups/chat", &match_it, &to("gpu1"));
    assert_eq!(first.status, 200);
    assert_ne!(first.version, shown.version);
    let late = operator.send("PATCH", "/upstream-groups/chat", &match_it, &to("gpu0"));
    assert_eq!(late.status, 412);
    assert!(late.error().contains(first.version.trim_matches('"')), "{late:?}");
    assert_eq!(house.who("m"), "b", "the faster one counts");
    let again = format!("if-match: \"no\", {}\r\n", first.version);
    let told = operator.send("PATCH", "/upstream-groups/chat", &again, &to("gpu0"));
    assert_eq!(told.status, 200);
    assert_eq!(told.version, shown.version, "the same config has the same version");
    let any = operator.send("DELETE", "/models/m", "if-match: *\r\n", &Value::Null);
    assert_eq!(any.status, 204);
    // Nothing new, nothing sent.
    let known = format!("if-none-match: {}\r\n", any.version);
    for path in ["/upstreams", "/forwards", "/upstream-groups/chat", "/config", "/keys"] {
        let told = operator.send("GET", path, &known, &Value::Null);
        assert_eq!((told.status, &told.json), (304, &Value::Null), "{path}");
        assert_eq!(told.version, any.version);
    }
}

#[test]
fn the_same_put_twice_changes_nothing() {
    let house = House::new();
    let mut operator = house.operator();
    let body = json!({ "url": house.b.url(), "models": ["x"] });
    let first = operator.put("/upstreams/gpu1", body.clone());
    let second = operator.put("/upstreams/gpu1", body);
    assert_eq!((first.status, second.status), (200, 200));
    assert_eq!(first.version, second.version);
    assert_eq!(first.json, second.json);
}

#[test]
fn what_is_in_force_says_where_it_comes_from() {
    let house = House::with("[timeouts]\nconnect = \"3s\"\n");
    let mut operator = house.operator();
    let told =
        operator.patch("/upstream-groups/chat", json!({ "upstreams": [{ "name": "gpu1" }] }));
    assert_eq!(told.status, 200);
    let config = operator.get("/config");
    let data = config.data();
    let of = |key: &str| {
        let all = data["values"].as_array().unwrap();
        let one = all.iter().find(|one| one["key"] == key);
        let one = one.unwrap_or_else(|| panic!("no {key}: {data:#}"));
        (one["value"].clone(), one["from"].as_str().unwrap().to_owned())
    };
    assert_eq!(of("process.cores"), (json!(2), "config.toml:2".to_owned()));
    assert_eq!(of("limits.fields"), (json!(128), "default".to_owned()));
    let (url, from) = of("upstream.gpu0.url");
    assert_eq!(url, json!(house.a.url()));
    assert!(from.starts_with("config.toml:"), "{from}");
    assert_eq!(of("upstream.gpu0.enabled"), (json!(true), "default".to_owned()));
    assert!(of("group.chat.members").1.starts_with("overlay:"), "{:?}", of("group.chat.members"));
    let inherited = of("group.chat.timeouts.connect");
    assert_eq!(inherited.0, "3s");
    assert!(inherited.1.starts_with("config.toml:"), "{inherited:?}");
    assert_eq!(data["edits"]["entries"], json!([{ "entry": "group/chat", "did": "set" }]));
    assert!(data["edits"]["note"].as_str().unwrap().contains("lost when this process ends"));

    assert_eq!(operator.delete("/overlay/group/chat").status, 204);
    assert_eq!(house.who("m"), "a");
    assert_eq!(operator.get("/overlay").data()["entries"], json!([]));
    assert_eq!(operator.delete("/overlay/group/chat").status, 404);
    assert_eq!(operator.delete("/overlay/nothing/chat").status, 404);
}

#[test]
fn a_reload_keeps_the_edits_and_tells_of_a_conflict() {
    let house = House::new();
    let mut operator = house.operator();
    let text = super::api::text(&house.a, &house.b, "");
    let to_b = json!({ "upstreams": [{ "name": "gpu1" }] });
    assert_eq!(operator.patch("/upstream-groups/chat", to_b).status, 200);
    house.live.reload(&format!("{text}[models.other]\nupstream = \"gpu0\"\n")).unwrap();
    assert_eq!([house.who("m"), house.who("other")], ["b", "a"]);
    let changed = text.replace("\"failover\"", "\"random\"");
    let why = house.live.reload(&changed).unwrap_err();
    assert!(why.contains("group.chat: changed over the admin API"), "{why}");
    assert_eq!([house.who("m"), house.who("other")], ["b", "a"], "nothing has changed");
    assert_eq!(operator.delete("/overlay/group/chat").status, 204);
    house.live.reload(&changed).unwrap();
    assert_eq!(house.who("m"), "a");
}

/// The members that each client has given its group last, by its own account.
#[test]
fn random_edits_of_four_clients_under_load_cost_no_exchange_and_no_update() {
    const EDITS: usize = 60;
    let house = House::new();
    let over = AtomicBool::new(false);
    let (served, edits) = (AtomicU64::new(0), AtomicU64::new(0));
    let addr = house.live.proxy.addr();
    std::thread::scope(|scope| {
        let (over, served) = (&over, &served);
        let load = |fresh| move || ask_until(addr, fresh, over, served);
        let loads: Vec<_> = [false, true].map(|fresh| scope.spawn(load(fresh))).into();
        let client = |number: u64| {
            let (house, edits) = (&house, &edits);
            move || edit_at_random(house, number, EDITS, edits)
        };
        let clients: Vec<_> = (0..4).map(|number| scope.spawn(client(number))).collect();
        let expected: Vec<Value> = clients.into_iter().map(|one| one.join().unwrap()).collect();
        over.store(true, Relaxed);
        loads.into_iter().for_each(|load| load.join().unwrap());
        // Nobody's edit undid another's.
        let mut operator = house.operator();
        for (number, expected) in expected.iter().enumerate() {
            let told = operator.get(&format!("/upstreams/own{number}"));
            match expected {
                Value::Null => assert_eq!(told.status, 404, "{number}"),
                expected => assert_eq!(told.data()["concurrency"], *expected, "{number}"),
            }
        }
        let shared = operator.get("/keys").data().as_array().unwrap().len() as u64;
        assert_eq!(shared, edits.load(Relaxed), "each counted key is there");
    });
    assert!(served.load(Relaxed) > 100, "{served:?}");
}

/// Edits an upstream of its own, the group of all and the keys; returns the own one's concurrency.
fn edit_at_random(house: &House, number: u64, edits: usize, keys: &AtomicU64) -> Value {
    let mut rng = Rng::new(number);
    let mut operator = house.operator();
    let mut own = Value::Null;
    let path = format!("/upstreams/own{number}");
    for turn in 0..edits {
        match rng.below(4) {
            0 | 1 => {
                let body = json!({ "name": format!("own{number}"), "url": house.b.url(),
                    "models": [format!("m{number}")], "concurrency": turn + 100 });
                let told = match own.is_null() {
                    true => operator.post("/upstreams", body),
                    false => operator.put(&path, body),
                };
                assert!(told.status == 200 || told.status == 201, "{told:?}");
                own = json!(turn + 100);
                assert_eq!(house.who(&format!("m{number}")), "b");
            }
            2 if !own.is_null() => {
                assert_eq!(operator.delete(&path).status, 204);
                own = Value::Null;
                assert_eq!(house.who(&format!("m{number}")), "404");
            }
            2 => {
                let name = format!("k{number}-{turn}");
                let told = operator.post("/keys", json!({ "name": name }));
                assert_eq!(told.status, 201, "{told:?}");
                keys.fetch_add(1, Relaxed);
            }
            // By version: whoever loses reads again.
            _ => loop {
                let shown = operator.get("/upstream-groups/chat");
                let turned = match shown.data()["upstreams"][0]["name"] == "gpu0" {
                    true => json!({ "upstreams": [{ "name": "gpu1" }, { "name": "gpu0" }] }),
                    false => json!({ "upstreams": [{ "name": "gpu0" }, { "name": "gpu1" }] }),
                };
                let match_it = format!("if-match: {}\r\n", shown.version);
                let told = operator.send("PATCH", "/upstream-groups/chat", &match_it, &turned);
                match told.status {
                    200 => break,
                    412 => {}
                    _ => panic!("{told:?}"),
                }
            },
        }
    }
    own
}

#[test]
fn an_edit_is_in_force_within_a_moment_even_where_a_new_server_is_dead() {
    let house = House::new();
    let mut operator = house.operator();
    // Nobody answers there: the address is for documents (RFC 5737).
    let dead = json!({ "name": "dead", "url": "http://192.0.2.1:9" });
    let started = Instant::now();
    assert_eq!(operator.post("/upstreams", dead).status, 201);
    let took = started.elapsed();
    assert!(took < Duration::from_secs(3), "a reload would have waited for 5 s: {took:?}");
    assert_eq!(house.who("m"), "a");
}

#[test]
fn requests_that_pages_of_others_could_send_are_refused() {
    let house = House::new();
    let addr = admin_of(&house.live.proxy);
    let send = |request: String| Client::connect(addr).send(request).answer();
    let body = "{\"name\":\"x\",\"url\":\"http://h\"}";
    let of = |fields: &str| {
        format!(
            "POST /api/v1/upstreams HTTP/1.1\r\n{fields}content-length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let json = "content-type: application/json\r\n";
    let version = house.operator().get("/upstreams").version;
    for (fields, status) in [
        ("host: localhost\r\n", 415),
        ("host: localhost\r\ncontent-type: text/plain\r\n", 415),
        ("host: localhost\r\ncontent-type: application/x-www-form-urlencoded\r\n", 415),
    ] {
        assert_eq!(send(of(fields)).status, status, "{fields}");
    }
    assert_eq!(send(of(&format!("host: evil.test\r\n{json}"))).status, 403, "DNS rebinding");
    let foreign = format!("host: localhost\r\norigin: http://evil.test\r\n{json}");
    assert_eq!(send(of(&foreign)).status, 403);
    let rebound = "GET /api/v1/config HTTP/1.1\r\nhost: evil.test\r\n\r\n".to_owned();
    assert_eq!(send(rebound).status, 403, "nor what the config says");
    assert_eq!(house.operator().get("/upstreams").version, version);
}

#[test]
fn with_a_token_nothing_is_answered_without_it() {
    let house = House::with("[admin]\nbind = \"127.0.0.1:0\"\ntoken = \"right-0123456789\"\n");
    let mut operator = Operator::at(admin_of(&house.live.proxy));
    for path in ["/upstreams", "/config", "/openapi.json", "/docs", "/nothing"] {
        for fields in ["", "authorization: Bearer wrong\r\n", "authorization: right-0123456789\r\n"]
        {
            let told = operator.send("GET", path, fields, &Value::Null);
            assert_eq!(told.status, 401, "{path} {fields}");
        }
    }
    operator.fields = "authorization: Bearer right-0123456789\r\n".to_owned();
    assert_eq!(operator.get("/upstreams").status, 200);
    let told = operator.post(
        "/upstreams",
        json!({ "name": "x", "url": "http://h", "models": [],
        "auth": { "type": "bearer", "token": "${NO_SUCH_VARIABLE}" } }),
    );
    assert_eq!(told.status, 400, "who has the token may name variables: {told:?}");
    assert!(told.error().contains("NO_SUCH_VARIABLE is not set"), "{told:?}");
}

#[test]
fn large_and_slow_bodies_are_bounded_and_traffic_goes_on() {
    let house = House::new();
    let addr = admin_of(&house.live.proxy);
    let mut large = Client::connect(addr);
    let head =
        "POST /api/v1/upstreams HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n";
    large.send(format!("{head}content-length: 100000000\r\n\r\n"));
    assert_eq!(large.answer().status, 413);
    let mut chunked = Client::connect(addr);
    chunked.send(format!("{head}transfer-encoding: chunked\r\n\r\n"));
    let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
    let mut sent = 0;
    // It may close before all of it has been sent.
    while sent < 64 && chunked.try_send(chunk.as_bytes()).is_ok() {
        sent += 1;
    }
    let status = chunked.try_answer().map(|answer| answer.status);
    assert!(matches!(status, Ok(413) | Err(_)), "{status:?}");
    // Many that send nothing.
    let slow: Vec<Client> = (0..300)
        .map(|_| {
            let mut client = Client::connect(addr);
            let _ = client.try_send(format!("{head}content-length: 9\r\n\r\n").as_bytes());
            client
        })
        .collect();
    assert_eq!(house.who("m"), "a");
    drop(slow);
    wait_until("the operator is answered again", || {
        let mut client = Client::connect(addr);
        let asked = client.try_send(b"GET /api/v1/upstreams HTTP/1.1\r\nhost: localhost\r\n\r\n");
        asked.is_ok() && client.try_answer().is_ok_and(|answer| answer.status == 200)
    });
}
