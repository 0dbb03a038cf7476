//! rules §12: what `/api/v1` says of forwards, routes, groups and upstreams, and what edits of them do
//! to traffic.

use base64::Engine as _;
use base64::engine::general_purpose::{URL_SAFE, URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use super::api::{House, all_say, named};
use super::house::wait_until;

#[test]
fn upstreams_are_listed_and_shown() {
    let house = House::new();
    let mut operator = house.operator();
    let list = operator.get("/upstreams");
    let names: Vec<_> = list.data().as_array().unwrap().iter().map(|one| &one["name"]).collect();
    assert_eq!(names, ["gpu0", "gpu1"]);
    let one = operator.get("/upstreams/gpu0");
    assert_eq!((one.status, one.json["code"].as_u64()), (200, Some(200)));
    let data = one.data();
    assert_eq!((&data["name"], &data["url"]), (&json!("gpu0"), &json!(house.a.url())));
    assert_eq!(data["breaker"]["threshold"], 0.5);
    assert_eq!(data["breaker"]["cooldown"], 30);
    assert_eq!((&data["auth"]["type"], &data["headers"]), (&json!("none"), &json!([])));
    let none = operator.get("/upstreams/none");
    assert_eq!((none.status, none.json["error"]["type"].as_str()), (404, Some("not_found")));
    assert!(none.error().contains("\"none\" not found"), "{none:?}");
}

#[test]
fn a_created_upstream_serves_an_edited_one_changes_a_deleted_one_is_gone() {
    let house = House::new();
    let mut operator = house.operator();
    let c = named("c");
    assert_eq!(house.who("mc"), "404");
    let new = json!({ "name": "gpu2", "url": c.url(), "models": ["mc"],
        "breaker": { "threshold": 0.25, "cooldown": 7 },
        "headers": [{ "op": "insert", "key": "x-said", "value": "one" }] });
    let made = operator.post("/upstreams", new.clone());
    assert_eq!((made.status, made.json["code"].as_u64()), (201, Some(201)), "{made:?}");
    assert_eq!(made.data()["breaker"], json!({ "threshold": 0.25, "cooldown": 7 }));
    all_say(&house, "mc", "c");
    let again = operator.post("/upstreams", new);
    assert_eq!(again.status, 409);
    assert!(again.error().contains("already exists"));

    let changed =
        operator.put("/upstreams/gpu2", json!({ "url": house.b.url(), "models": ["mc"] }));
    assert_eq!(changed.status, 200, "{changed:?}");
    assert_eq!(changed.data()["headers"], json!([]), "what is left out has its default");
    all_say(&house, "mc", "b");
    let off = json!({ "url": house.b.url(), "models": ["mc", "md"], "enabled": false });
    assert_eq!(operator.put("/upstreams/gpu2", off).status, 200);
    all_say(&house, "mc", "503");

    let gone = operator.delete("/upstreams/gpu2");
    assert_eq!((gone.status, &gone.json), (204, &Value::Null));
    all_say(&house, "mc", "404");
    assert_eq!(operator.delete("/upstreams/gpu2").status, 404);
    assert_eq!(operator.put("/upstreams/gpu2", json!({ "url": "http://x" })).status, 404);
    assert_eq!(house.who("m"), "a", "nothing else has changed");
}

#[test]
fn what_is_in_use_is_not_deleted_and_its_users_are_named() {
    let house = House::new();
    let mut operator = house.operator();
    let told = operator.delete("/upstreams/gpu0");
    assert_eq!((told.status, told.json["error"]["type"].as_str()), (409, Some("conflict")));
    assert!(told.error().contains("group chat"), "{told:?}");
    let told = operator.delete("/upstream-groups/chat");
    assert_eq!(told.status, 409);
    for user in ["forward main", "model m"] {
        assert!(told.error().contains(user), "{user}: {told:?}");
    }
    assert_eq!(house.who("m"), "a");
}

#[test]
fn a_bad_upstream_is_refused_with_all_that_is_wrong_and_changes_nothing() {
    let house = House::new();
    let mut operator = house.operator();
    let version = operator.get("/upstreams").version;
    for (body, says) in [
        (json!({ "url": "http://h" }), "name is missing"),
        (json!({ "name": "", "url": "http://h" }), "name must not be empty"),
        (json!({ "name": "x" }), "url"),
        (json!({ "name": "x", "url": "ftp://h" }), "upstream.x.url"),
        (json!({ "name": "x", "url": "http://h", "brekaer": {} }), "did you mean \"breaker\"?"),
        (json!({ "name": "x", "url": "http://h", "breaker": { "threshold": 7 } }), "threshold"),
        (json!({ "name": "x", "url": "http://h", "auth": { "type": "bearer" } }), "token"),
        (
            json!({ "name": "x", "url": "http://h", "auth": { "type": "bearer", "token": "***" } }),
            "***",
        ),
        (json!({ "name": "a/b", "url": "http://h" }), "name"),
    ] {
        let told = operator.post("/upstreams", body.clone());
        assert_eq!(told.status, 400, "{body}");
        assert!(told.error().contains(says), "{body}: {told:?}");
    }
    let two = json!({ "name": "x", "url": "http://h", "n1": 1, "n2": 2 });
    let told = operator.post("/upstreams", two);
    assert!(told.error().contains("n1") && told.error().contains("n2"), "all at once: {told:?}");
    assert_eq!(operator.get("/upstreams").version, version);
}

#[test]
fn secrets_are_never_shown_and_survive_an_edit() {
    let house = House::new();
    let mut operator = house.operator();
    let new = json!({ "name": "gpu2", "url": house.b.url(), "models": ["mc"],
        "auth": { "type": "bearer", "token": "sk-CANARY" } });
    let made = operator.post("/upstreams", new);
    assert_eq!(made.status, 201);
    let mut shown = operator.get("/upstreams/gpu2").data().clone();
    for text in [made.json.to_string(), shown.to_string(), operator.get("/config").json.to_string()]
    {
        assert!(!text.contains("CANARY"), "{text}");
    }
    shown["concurrency"] = json!(9);
    assert_eq!(operator.put("/upstreams/gpu2", shown).status, 200);
    house.b.forget_seen();
    all_say(&house, "mc", "b");
    let sent = house.b.seen();
    assert!(sent.iter().all(|one| one.field("authorization").unwrap() == "Bearer sk-CANARY"));
    assert_eq!(operator.get("/upstreams/gpu2").data()["concurrency"], 9);
    let denied = operator.post(
        "/upstreams",
        json!({ "name": "x", "url": "http://h",
        "auth": { "type": "bearer", "token": "file:/etc/hostname" } }),
    );
    assert_eq!(denied.status, 403, "without a token no file is read: {denied:?}");
}

#[test]
fn the_members_of_a_group_are_replaced() {
    let house = House::new();
    let mut operator = house.operator();
    let shown = operator.get("/upstream-groups/chat");
    let data = shown.data();
    assert_eq!(data["upstreams"], json!([{ "name": "gpu0", "weight": 1 }]));
    assert_eq!(data["balance"], json!({ "strategy": "failover" }));
    assert_eq!(data["http_client"]["timeout"]["connect"], 10);
    assert_eq!(data["http_client"]["retry"]["initial"], 100);
    assert_eq!(house.who("m"), "a");
    let to_b = json!({ "upstreams": [{ "name": "gpu1", "weight": 3 }, { "name": "gpu0" }] });
    let told = operator.patch("/upstream-groups/chat", to_b);
    assert_eq!(told.status, 200, "{told:?}");
    assert_eq!(told.data()["upstreams"][0], json!({ "name": "gpu1", "weight": 3 }));
    all_say(&house, "m", "b");
    assert_eq!(house.who_at("/echo"), "b");

    for (body, says) in [
        (json!({ "upstreams": [{ "name": "gpu7" }] }), "not found"),
        (json!({ "upstreams": [{ "name": "gpu0" }, { "name": "gpu0" }] }), "duplicate"),
        (json!({ "upstreams": [] }), "members"),
        (json!({ "upstreams": [{ "name": "gpu0", "weight": 0 }] }), "weight"),
        (json!({ "upstreams": [{ "name": "gpu0", "wieght": 1 }] }), "unknown field"),
        (json!({ "balance": "random" }), "unknown field"),
        (json!({}), "missing"),
    ] {
        let told = operator.patch("/upstream-groups/chat", body.clone());
        assert_eq!(told.status, 400, "{body}");
        assert!(told.error().contains(says), "{body}: {told:?}");
    }
    let to_b = json!({ "upstreams": [{ "name": "gpu1" }] });
    assert_eq!(operator.patch("/upstream-groups/none", to_b).status, 404);
    assert_eq!(house.who("m"), "b");
}

#[test]
fn groups_come_change_and_go() {
    let house = House::new();
    let mut operator = house.operator();
    let new = json!({ "name": "g2", "upstreams": [{ "name": "gpu1" }],
        "balance": { "strategy": "random" }, "queue": { "length": 3, "wait": "1s" } });
    assert_eq!(operator.post("/upstream-groups", new.clone()).status, 201);
    assert_eq!(operator.post("/upstream-groups", new).status, 409);
    assert_eq!(house.who("g2:x"), "404", "a group without that model");
    let route = json!({ "path": "/two", "target_group": "g2" });
    assert_eq!(operator.post("/forwards/main/routes", route).status, 201);
    assert_eq!(house.who_at("/two"), "b");
    let mut shown = operator.get("/upstream-groups/g2").data().clone();
    assert_eq!(shown["balance"]["strategy"], "random");
    shown["upstreams"] = json!([{ "name": "gpu0" }]);
    let told = operator.put("/upstream-groups/g2", shown);
    assert_eq!(told.status, 200, "{told:?}");
    assert_eq!(house.who_at("/two"), "a");
    assert_eq!(operator.delete("/upstream-groups/g2").status, 409);
    let id = URL_SAFE_NO_PAD.encode("/two");
    assert_eq!(operator.delete(&format!("/forwards/main/routes/{id}")).status, 204);
    assert_eq!(operator.delete("/upstream-groups/g2").status, 204);
    assert_eq!(house.who_at("/two"), "404");
}

#[test]
fn forwards_are_shown_with_their_routes() {
    let house = House::new();
    let mut operator = house.operator();
    let list = operator.get("/forwards");
    assert_eq!(list.data().as_array().unwrap().len(), 1);
    let one = operator.get("/forwards/main");
    let data = one.data();
    assert_eq!((&data["name"], &data["address"]), (&json!("main"), &json!("127.0.0.1")));
    assert_eq!(data["routing"], json!([{ "path": "/echo", "target_group": "chat" }]));
    assert_eq!((&data["default_group"], &data["port"]), (&json!(""), &json!(0)));
    assert_eq!(operator.get("/forwards/none").status, 404);
    assert_eq!(operator.get("/forwards/none/routes").status, 404);
}

#[test]
fn routes_come_change_and_go_by_base64url() {
    let house = House::with(
        "[[group]]\nname = \"other\"\nmembers = [\"gpu1\"]\n[models.n]\ngroup = \"other\"\n",
    );
    let mut operator = house.operator();
    let routes = "/forwards/main/routes";
    let long = format!("/{}", "x".repeat(1999));
    let special = "/api/test/special!@#$%^&*()_+";
    let sendable = "/api/test/special!@$&()_+~';,=";
    let all = ["/api/v1", "/users/:id", "/files/*", "/items/{id:[0-9]+}", sendable, special, &long];
    for path in all {
        let new = json!({ "path": path, "target_group": "chat" });
        let made = operator.post(routes, new.clone());
        assert_eq!(made.status, 201, "{path}: {made:?}");
        assert_eq!(made.data(), &new);
        assert_eq!(operator.post(routes, new.clone()).status, 409, "{path}");
        for code in [URL_SAFE_NO_PAD.encode(path), URL_SAFE.encode(path)] {
            let one = operator.get(&format!("{routes}/{code}"));
            assert_eq!((one.status, one.json["data"].clone()), (200, new.clone()), "{path}");
        }
        let real = match path {
            "/users/:id" => "/users/7",
            "/files/*" => "/files/a/b",
            "/items/{id:[0-9]+}" => "/items/42",
            // A "%" without two digits is no path that a client could send: 400, whatever routes say.
            path if path == special => "/echo",
            path => path,
        };
        assert_eq!(house.who_at(real), "a", "{path}");
        let code = URL_SAFE_NO_PAD.encode(path);
        let moved = operator.put(&format!("{routes}/{code}"), json!({ "target_group": "other" }));
        assert_eq!(moved.status, 200, "{path}: {moved:?}");
        assert_eq!(house.who_at(real), if path == special { "a" } else { "b" }, "{path}");
        assert_eq!(operator.delete(&format!("{routes}/{code}")).status, 204);
        assert_eq!(house.who_at(real), if path == special { "a" } else { "404" }, "{path}");
        assert_eq!(operator.delete(&format!("{routes}/{code}")).status, 404);
        assert_eq!(operator.get(&format!("{routes}/{code}")).status, 404);
    }
    let list = operator.get(routes);
    assert_eq!(list.data(), &json!([{ "path": "/echo", "target_group": "chat" }]));
    for (body, says) in [
        (json!({ "path": "/x", "target_group": "none" }), "not found"),
        (json!({ "path": "/x" }), "target_group is missing"),
        (json!({ "path": "x", "target_group": "chat" }), "path"),
        (json!({ "target_group": "chat" }), "path"),
        (json!({ "path": "/x", "target_group": "chat", "weight": 1 }), "unknown field"),
        (json!({ "path": "/x/{id:[}", "target_group": "chat" }), "path"),
    ] {
        let told = operator.post(routes, body.clone());
        assert_eq!(told.status, 400, "{body}");
        assert!(told.error().contains(says), "{body}: {told:?}");
    }
    assert_eq!(operator.get(&format!("{routes}/!!!")).status, 400);
    let elsewhere = json!({ "path": "/x", "target_group": "chat" });
    assert_eq!(operator.post("/forwards/none/routes", elsewhere).status, 404);
}

#[test]
fn a_route_by_host_is_called_by_its_host() {
    let house = House::new();
    let mut operator = house.operator();
    let routes = "/forwards/main/routes";
    let new = json!({ "host": "h.test", "target_group": "chat" });
    assert_eq!(operator.post(routes, new.clone()).status, 201);
    let both = json!({ "host": "h.test", "path": "/echo", "target_group": "chat" });
    assert_eq!(operator.post(routes, both.clone()).status, 201);
    let code = URL_SAFE_NO_PAD.encode("h.test");
    assert_eq!(operator.get(&format!("{routes}/{code}")).data(), &new);
    let code = URL_SAFE_NO_PAD.encode("/echo");
    assert_eq!(operator.get(&format!("{routes}/{code}")).status, 409, "which of the two?");
    let code = URL_SAFE_NO_PAD.encode("h.test /echo");
    assert_eq!(operator.get(&format!("{routes}/{code}")).data(), &both);
    assert_eq!(operator.delete(&format!("{routes}/{code}")).status, 204);
}

#[test]
fn a_deleted_upstream_lets_its_exchanges_end() {
    let house = House::new();
    let mut operator = house.operator();
    let slow = super::house::mock_with(|config| {
        config.name = "slow".to_owned();
        config.first_token = std::time::Duration::from_millis(500);
    });
    let new = json!({ "name": "gpu2", "url": slow.url(), "models": ["mc"] });
    assert_eq!(operator.post("/upstreams", new).status, 201);
    std::thread::scope(|scope| {
        let asks = scope.spawn(|| house.who("mc"));
        wait_until("it is under way", || slow.stats().requests_total > 0);
        assert_eq!(operator.delete("/upstreams/gpu2").status, 204);
        assert_eq!(house.who("mc"), "404");
        assert_eq!(asks.join().unwrap(), "slow");
    });
}

#[test]
fn secrets_do_not_follow_an_upstream_at_the_word_of_somebody_without_a_token() {
    let secret = "[[upstream]]\nname = \"paid\"\nurl = \"http://127.0.0.1:9\"\nmodels = [\"p\"]\n\
                  auth = { type = \"bearer\", token = \"sk-of-the-server\" }\n";
    let kept = json!({ "type": "bearer", "token": "***" });
    let token = "[admin]\nbind = \"127.0.0.1:0\"\ntoken = \"t0ken\"\n";
    for (admin, status) in [("", 400), (token, 200)] {
        let house = House::with(&format!("{secret}{admin}"));
        let mut operator = house.operator();
        operator.fields = "authorization: Bearer t0ken\r\n".to_owned();
        let elsewhere = [
            json!({ "url": house.a.url(), "models": ["p"], "auth": kept }),
            json!({ "url": "http://127.0.0.1:9", "models": ["p"], "auth": kept,
                "proxy": format!("http://{}", house.a.addr()) }),
        ];
        for there in elsewhere {
            let told = operator.put("/upstreams/paid", there.clone());
            assert_eq!(told.status, status, "{there}: {told:?}");
        }
        // Where it leads as before, all else may change and the secret stays.
        let now = operator.get("/upstreams/paid").data().clone();
        let mut same = now.clone();
        same["concurrency"] = json!(3);
        let told = operator.put("/upstreams/paid", same);
        assert_eq!((told.status, &told.data()["auth"]), (200, &kept), "{told:?}");
    }
}
