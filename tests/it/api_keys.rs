//! rules §12: keys come, turn and go, and clients notice at once.

use serde_json::json;

use super::api::{House, Operator};
use super::house::wait_until;
use super::wire::{Client, post};

fn house() -> (House, Operator) {
    let house = House::with(
        "[[listener]]\nname = \"keyed\"\nbind = \"127.0.0.1:0\"\nauth = \"keys\"\n\
         [[listener.route]]\npath = \"/private\"\ngroup = \"chat\"\nkeys = [\"first\"]\n\
         [[key]]\nname = \"first\"\nkey = \"sk-first-0123456789\"\n",
    );
    let operator = house.operator();
    (house, operator)
}

/// The status of a chat with this secret.
fn status(house: &House, secret: &str) -> u16 {
    let addr = house.live.addr("keyed");
    let fields = format!("authorization: Bearer {secret}\r\n");
    let body = "{\"model\":\"m\",\"messages\":[]}";
    Client::connect(addr).send(post("/v1/chat/completions", &fields, body)).answer().status
}

#[test]
fn a_key_is_made_and_its_secret_is_shown_once() {
    let (house, mut operator) = house();
    let made = operator.post("/keys", json!({ "name": "b", "rpm": 2, "models": ["m"] }));
    assert_eq!(made.status, 201, "{made:?}");
    let secret = made.data()["secret"].as_str().unwrap().to_owned();
    assert!(secret.starts_with("sk-") && secret.len() > 40, "{secret}");
    assert_eq!([status(&house, &secret), status(&house, &secret)], [200, 200]);
    assert_eq!(status(&house, &secret), 429, "its limit counts");
    let digest = tests_digest(&secret);
    for path in ["/keys", "/keys/b", "/config", "/overlay"] {
        let told = operator.get(path);
        let text = told.json.to_string();
        assert_eq!(told.status, 200);
        assert!(!text.contains(&secret) && !text.contains(&digest), "{path}: {text}");
    }
    assert_eq!(operator.get("/keys/b").data()["rpm"], 2);
    assert_eq!(operator.post("/keys", json!({ "name": "b" })).status, 409);
    for (body, says) in [
        (json!({ "name": "x", "key": "sk-mine" }), "made here"),
        (json!({ "name": "x", "key_sha256": "00" }), "made here"),
        (json!({ "name": "x", "rmp": 1 }), "did you mean \"rpm\"?"),
        (json!({ "name": "x", "listeners": ["none"] }), "none"),
        (json!({ "rpm": 1 }), "name is missing"),
    ] {
        let told = operator.post("/keys", body.clone());
        assert_eq!(told.status, 400, "{body}");
        assert!(told.error().contains(says), "{body}: {told:?}");
    }
}

#[test]
fn the_limits_of_a_key_change_and_its_secret_stays() {
    let (house, mut operator) = house();
    let told = operator.put("/keys/first", json!({ "rpm": 1 }));
    assert_eq!(told.status, 200, "{told:?}");
    assert_eq!(status(&house, "sk-first-0123456789"), 200);
    assert_eq!(status(&house, "sk-first-0123456789"), 429);
    let mut shown = operator.get("/keys/first").data().clone();
    shown["rpm"] = json!(0);
    assert_eq!(operator.put("/keys/first", shown).status, 200, "what was read goes back");
    assert_eq!(status(&house, "sk-first-0123456789"), 200);
}

#[test]
fn after_a_rotation_both_secrets_are_good_until_the_overlap_ends() {
    let (house, mut operator) = house();
    let old = "sk-first-0123456789";
    let told = operator.post("/keys/first/rotate", json!({ "overlap": "1h" }));
    assert_eq!(told.status, 200, "{told:?}");
    let new = told.data()["secret"].as_str().unwrap().to_owned();
    assert!(told.data()["previous_until"].as_str().unwrap().ends_with('Z'));
    assert_eq!([status(&house, old), status(&house, &new)], [200, 200]);
    // Another rotation ends the first secret: only the one before overlaps.
    let told = operator.post("/keys/first/rotate", json!({ "overlap": "2s" }));
    let newest = told.data()["secret"].as_str().unwrap().to_owned();
    assert_eq!([status(&house, old), status(&house, &newest)], [401, 200]);
    wait_until("the overlap is over", || status(&house, &new) == 401);
    assert_eq!(status(&house, &newest), 200);
    let told = operator.post("/keys/first/rotate", json!({ "overlap": "0s" }));
    let last = told.data()["secret"].as_str().unwrap().to_owned();
    assert_eq!([status(&house, &newest), status(&house, &last)], [401, 200]);
    for body in [json!({ "overlap": "soon" }), json!({ "overlap": "91d" }), json!({ "lap": "1s" })]
    {
        assert_eq!(operator.post("/keys/first/rotate", body.clone()).status, 400, "{body}");
    }
    assert_eq!(operator.post("/keys/none/rotate", json!({})).status, 404);
}

#[test]
fn a_revoked_key_is_refused_at_once() {
    let (house, mut operator) = house();
    let made = operator.post("/keys", json!({ "name": "b" }));
    let secret = made.data()["secret"].as_str().unwrap().to_owned();
    assert_eq!(status(&house, &secret), 200);
    assert_eq!(operator.delete("/keys/b").status, 204);
    for _ in 0..8 {
        assert_eq!(status(&house, &secret), 401);
    }
    let told = operator.delete("/keys/first");
    assert_eq!(told.status, 409);
    assert!(told.error().contains("forward keyed"), "{told:?}");
    assert_eq!(operator.delete("/keys/none").status, 404);
    assert_eq!(status(&house, "sk-first-0123456789"), 200);
}

#[test]
fn models_come_change_and_go() {
    let (house, mut operator) = house();
    let new = json!({ "name": "x/y", "upstream": "gpu0", "aliases": ["z"] });
    assert_eq!(operator.post("/models", new.clone()).status, 201);
    assert_eq!(operator.post("/models", new.clone()).status, 409);
    assert_eq!([house.who("x/y"), house.who("z")], ["a", "a"]);
    assert_eq!(operator.get("/models/x%2Fy").data(), &new);
    assert_eq!(operator.delete("/upstreams/gpu0").status, 409, "the model is in its way");
    assert_eq!(operator.put("/models/x%2Fy", json!({ "upstream": "gpu1" })).status, 200);
    assert_eq!([house.who("x/y"), house.who("z")], ["b", "404"]);
    assert_eq!(operator.get("/models").data().as_array().unwrap().len(), 2);
    assert_eq!(operator.delete("/models/x%2Fy").status, 204);
    assert_eq!(house.who("x/y"), "404");
    assert_eq!(operator.get("/models/x%2Fy").status, 404);
    let told = operator.post("/models", json!({ "name": "n", "group": "none" }));
    assert_eq!(told.status, 400);
    assert!(told.error().contains("none"), "{told:?}");
}

fn tests_digest(secret: &str) -> String {
    super::wire::sha256(secret.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}
