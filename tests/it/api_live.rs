//! rules §12: what happens now is shown, and servers are drained and checked.

use serde_json::json;

use super::api::{House, admin_of, all_say};
use super::fake::Fake;
use super::house::wait_until;
use super::wire::{Client, get, post};

#[test]
fn a_drained_upstream_gets_no_new_requests_and_its_exchanges_end() {
    let house = House::new();
    let mut operator = house.operator();
    let both = json!({ "upstreams": [{ "name": "gpu0" }, { "name": "gpu1" }] });
    assert_eq!(operator.patch("/upstream-groups/chat", both).status, 200);
    house.a.behave("delay=400ms");
    std::thread::scope(|scope| {
        let asks = scope.spawn(|| house.who("m"));
        wait_until("it is under way", || house.a.stats().in_flight > 0);
        house.a.behave("");
        let told = operator.post("/upstreams/gpu0/drain", json!({}));
        assert_eq!((told.status, told.data()["enabled"].as_bool()), (200, Some(false)));
        all_say(&house, "m", "b");
        let status = operator.get("/upstreams/gpu0/status");
        assert_eq!(status.data()[0]["enabled"], false);
        assert_eq!(asks.join().unwrap(), "a", "it ends as it would have");
    });
    assert_eq!(operator.post("/upstreams/gpu0/enable", json!({})).status, 200);
    all_say(&house, "m", "a");
    assert!(!operator.get("/overlay").json.to_string().contains("gpu0"), "as the file has it");
    assert_eq!(operator.post("/upstreams/none/drain", json!({})).status, 404);
}

#[test]
fn a_check_acts_at_once() {
    let house = House::new();
    let mut operator = house.operator();
    let fake = Fake::start("c", &["mc"]);
    let new = json!({ "name": "gpu2", "url": fake.url(),
        "health": { "path": "/health", "interval": "1h", "timeout": "5s", "fall": 1 } });
    assert_eq!(operator.post("/upstreams", new).status, 201);
    let state = |told: super::api::Told| told.data()[0]["state"].as_str().unwrap().to_owned();
    assert_eq!(state(operator.post("/upstreams/gpu2/check", json!({}))), "healthy");
    fake.say(|says| says.health = 500);
    let told = operator.post("/upstreams/gpu2/check", json!({}));
    assert_eq!(told.data()[0]["last_error"], "status 500");
    assert_eq!(state(told), "unhealthy");
    assert_eq!(state(operator.get("/upstreams/gpu2/status")), "unhealthy");
    fake.say(|says| says.health = 200);
    assert_eq!(state(operator.post("/upstreams/gpu2/check", json!({}))), "healthy");
    let all = operator.get("/status");
    assert_eq!(all.data().as_array().unwrap().len(), 3);
    assert_eq!(operator.post("/upstreams/none/check", json!({})).status, 404);
}

#[test]
fn what_failed_is_told_attempt_by_attempt() {
    let house = House::new();
    let mut operator = house.operator();
    assert_eq!(operator.get("/failures").data(), &json!([]));
    let both = json!({ "upstreams": [{ "name": "gpu0" }, { "name": "gpu1" }] });
    assert_eq!(operator.patch("/upstream-groups/chat", both).status, 200);
    house.a.behave("reset");
    house.b.behave("reset");
    let addr = house.live.proxy.addr();
    let ask = |model: &str, id: &str| {
        let (fields, body) =
            (format!("x-request-id: {id}\r\n"), format!("{{\"model\":\"{model}\"}}"));
        Client::connect(addr).send(post("/v1/chat/completions", &fields, body)).answer().status
    };
    assert_eq!(ask("m", "both-reset"), 502);
    // A client's own fault is none of the operator's business.
    assert_eq!(ask("unknown", "not-found"), 404);
    // The answer is sent before the exchange is over.
    let failures = |count: usize| {
        let told = || house.operator().get("/failures").data().as_array().unwrap().clone();
        wait_until("it is told", || told().len() >= count);
        assert_eq!(told().len(), count);
        told()
    };
    let one = &failures(1)[0];
    assert_eq!((&one["request_id"], &one["status"]), (&json!("both-reset"), &json!(502)));
    assert_eq!((&one["model"], &one["group"]), (&json!("m"), &json!("chat")));
    assert!(one["at"].as_str().unwrap().ends_with('Z') && one["client"] == "127.0.0.1", "{one}");
    let attempts = one["failed_attempts"].as_array().unwrap();
    assert_eq!(attempts[0]["upstream"], "gpu0", "{one}");
    assert!(attempts.iter().all(|one| !one["reason"].as_str().unwrap().is_empty()), "{one}");
    // Nobody there at all.
    let new = json!({ "name": "dead", "url": "http://127.0.0.1:9", "models": ["md"] });
    assert_eq!(operator.post("/upstreams", new).status, 201);
    assert_eq!(ask("md", "nobody-there"), 502);
    let one = failures(2)[0].clone();
    assert_eq!(one["request_id"], "nobody-there", "the latest first");
    assert_eq!((&one["upstream"], &one["status"]), (&json!("dead"), &json!(502)));
    assert!(!one["reason"].as_str().unwrap().is_empty(), "{one}");
}

#[test]
fn who_used_most_tokens_has_an_answer() {
    let house = House::with(
        "[[listener]]\nname = \"keyed\"\nbind = \"127.0.0.1:0\"\nauth = \"keys\"\n\
         [[key]]\nname = \"small\"\nkey = \"sk-small-0123456789\"\n\
         [[key]]\nname = \"=large,1\"\nkey = \"sk-large-0123456789\"\n",
    );
    let addr = house.live.addr("keyed");
    let ask = |secret: &str| {
        let fields = format!("authorization: Bearer {secret}\r\n");
        let body = "{\"model\":\"m\",\"messages\":[]}";
        let answer =
            Client::connect(addr).send(post("/v1/chat/completions", &fields, body)).answer();
        assert_eq!(answer.status, 200);
    };
    (0..5).for_each(|_| ask("sk-large-0123456789"));
    ask("sk-small-0123456789");
    let rows = || {
        let told = house.operator().get("/usage?span=hour");
        told.data()["rows"].as_array().unwrap().clone()
    };
    wait_until("all is counted", || {
        rows().len() == 2 && rows()[0]["completion_tokens"].as_u64() == Some(5 * 16)
    });
    let rows = rows();
    assert_eq!((&rows[0]["key"], &rows[0]["model"]), (&json!("=large,1"), &json!("m")));
    assert_eq!((&rows[1]["key"], &rows[1]["completion_tokens"]), (&json!("small"), &json!(16)));
    for span in ["", "?span=day", "?span=month"] {
        let told = house.operator().get(&format!("/usage{span}"));
        assert_eq!(told.data()["rows"].as_array().unwrap().len(), 2, "{span}");
    }
    let addr = admin_of(&house.live.proxy);
    let answer = Client::connect(addr).send(get("/api/v1/usage?format=csv", "")).answer();
    assert_eq!(answer.field("content-type"), Some("text/csv; charset=utf-8"));
    let text = answer.text();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "key,model,prompt_tokens,completion_tokens,cached_tokens");
    assert!(lines[1].starts_with("\"'=large,1\",m,"), "no formula for a spreadsheet: {text}");
    for bad in ["?span=week", "?format=xml", "?x=1"] {
        assert_eq!(house.operator().get(&format!("/usage{bad}")).status, 400, "{bad}");
    }
}
