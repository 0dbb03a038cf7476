//! rules §6: where clients carry their key, and what credential the upstream gets: exactly one.

use super::house::{Proxy, Setup, mock};
use super::wire::{chat, get, post};
use loadtest::mock::{Mock, SeenRequest};

const KEYS: &str = "[[key]]\nname = \"a\"\nkey = \"sk-a\"\n\
    [[key]]\nname = \"old\"\nkey = \"sk-old\"\nexpires = \"2020-01-01\"\n";
const ALL: &str =
    "auth = \"keys\"\naccept = [\"bearer\", \"x-api-key\", \"x-goog-api-key\", \"query:key\"]";

fn guarded(mock: &Mock, upstream: &str) -> Proxy {
    Setup { listener: ALL, upstream, rest: KEYS, ..Setup::default() }.start(&[mock])
}

#[test]
fn takes_a_key_from_every_carrier() {
    let mock = mock();
    let proxy = guarded(&mock, "");
    let mut client = proxy.client();
    for fields in [
        "Authorization: Bearer sk-a\r\n",
        "authorization: bEARER   sk-a\r\n",
        "Authorization: sk-a\r\n",
        "X-Api-Key: sk-a\r\n",
        "x-goog-api-key: sk-a\r\n",
    ] {
        assert_eq!(client.send(chat(fields, false)).answer().status, 200, "{fields}");
    }
    assert_eq!(client.send(get("/echo?a=1&key=sk-a", "")).answer().status, 200);
    // None of them went further.
    for request in mock.seen() {
        let head = String::from_utf8_lossy(&request.head).into_owned();
        assert!(!head.contains("sk-a"), "{head}");
    }
    assert_eq!(mock.seen()[5].request_line(), "GET /echo?a=1 HTTP/1.1");
}

#[test]
fn refuses_a_missing_a_wrong_and_an_expired_key() {
    let mock = mock();
    let proxy = guarded(&mock, "");
    let mut client = proxy.client();
    for (fields, message) in [
        ("", "Authentication Error, No api key passed in."),
        ("Authorization: Bearer sk-b\r\n", "Invalid API key."),
        ("Authorization: Bearer sk-a x\r\n", "Invalid API key."),
        ("Authorization: Bearer sk-old\r\n", "Invalid API key."),
        ("x-api-key: SK-A\r\n", "Invalid API key."),
    ] {
        let answer = client.send(chat(fields, false)).answer();
        assert_eq!((answer.status, answer.message().as_str()), (401, message), "{fields}");
        assert_eq!(answer.field("www-authenticate"), Some("Bearer"));
        assert_eq!(answer.json()["error"]["type"], "authentication_error");
    }
    assert_eq!(mock.stats().requests_total, 0);
}

#[test]
fn looks_only_where_the_listener_says() {
    let mock = mock();
    let proxy = Setup {
        listener: "auth = \"keys\"\naccept = [\"x-api-key\"]",
        rest: KEYS,
        ..Setup::default()
    }
    .start(&[&mock]);
    let mut client = proxy.client();
    assert_eq!(client.send(chat("Authorization: Bearer sk-a\r\n", false)).answer().status, 401);
    assert_eq!(client.send(get("/echo?key=sk-a", "")).answer().status, 401);
    assert_eq!(client.send(chat("x-api-key: sk-a\r\n", false)).answer().status, 200);
}

#[test]
fn keeps_a_key_to_its_listeners() {
    let mock = mock();
    let proxy = Setup {
        listener: ALL,
        rest: "[[listener]]\nname = \"other\"\nbind = \"127.0.0.1:0\"\n\
               [[key]]\nname = \"a\"\nkey = \"sk-a\"\nlisteners = [\"other\"]",
        ..Setup::default()
    }
    .start(&[&mock]);
    let mut client = proxy.client();
    let status = client.send(chat("x-api-key: sk-a\r\n", false)).answer().status;
    assert!(status == 401 || status == 403, "{status}");
}

/// What an upstream sees when the client brings its key in every place.
fn sent(upstream: &str) -> SeenRequest {
    let mock = mock();
    let proxy = guarded(&mock, upstream);
    let fields = "Authorization: Bearer sk-a\r\nx-api-key: sk-a\r\nx-goog-api-key: sk-a\r\n";
    let mut client = proxy.client();
    let request = post("/echo?key=sk-a&b=%20c", fields, "x");
    assert_eq!(client.send(request).answer().status, 200);
    mock.seen().remove(0)
}

fn credentials(seen: &SeenRequest) -> Vec<(&'static str, String)> {
    let names = ["authorization", "x-api-key", "x-goog-api-key", "api-key"];
    let one = |name| seen.fields(name).into_iter().map(move |value| (name, value));
    names.into_iter().flat_map(one).collect()
}

#[test]
fn sends_each_kind_of_credential_exactly_once() {
    for (auth, name, value) in [
        ("{ type = \"bearer\", token = \"up\" }", "authorization", "Bearer up"),
        ("{ type = \"basic\", username = \"u\", password = \"p\" }", "authorization", "Basic dTpw"),
        ("{ type = \"header\", name = \"x-api-key\", value = \"up\" }", "x-api-key", "up"),
        ("{ type = \"header\", name = \"Api-Key\", value = \"up\" }", "api-key", "up"),
    ] {
        let seen = sent(&format!("auth = {auth}"));
        assert_eq!(credentials(&seen), [(name, value.to_owned())], "{auth}");
        assert_eq!(seen.request_line(), "POST /echo?b=%20c HTTP/1.1");
    }
}

#[test]
fn puts_a_query_credential_in_place_of_the_clients() {
    let seen = sent("auth = { type = \"query\", name = \"key\", value = \"up&1\" }");
    assert_eq!(credentials(&seen), []);
    let line = seen.request_line();
    assert_eq!(line.matches("key=").count(), 1, "{line}");
    assert!(line.contains("key=up%261") && line.contains("b=%20c"), "{line}");
}

#[test]
fn sends_no_credential_where_there_is_none() {
    let seen = sent("auth = { type = \"none\" }");
    assert_eq!(credentials(&seen), []);
    assert_eq!(seen.request_line(), "POST /echo?b=%20c HTTP/1.1");
}

#[test]
fn passes_the_clients_credential_when_told_to() {
    let seen = sent("auth = { type = \"pass\" }");
    let key = || "sk-a".to_owned();
    let bearer = ("authorization", "Bearer sk-a".to_owned());
    assert_eq!(credentials(&seen), [bearer, ("x-api-key", key()), ("x-goog-api-key", key())]);
    assert_eq!(seen.request_line(), "POST /echo?key=sk-a&b=%20c HTTP/1.1");
}

#[test]
fn an_open_listener_in_front_of_an_open_upstream_passes_credentials() {
    let mock = mock();
    let proxy = Setup::default().start(&[&mock]);
    proxy.client().send(chat("Authorization: Bearer own\r\n", false)).answer();
    assert_eq!(mock.seen()[0].field("authorization").as_deref(), Some("Bearer own"));
}

#[test]
fn picks_one_of_several_keys_for_each_attempt() {
    let mock = mock();
    let keys = "api_keys = [{ key = \"k1\", weight = 1.0 }, { key = \"k2\", weight = 3.0 }]";
    let proxy = guarded(&mock, keys);
    let mut client = proxy.client();
    for _ in 0..200 {
        client.send(chat("x-api-key: sk-a\r\n", false)).answer();
    }
    let all: Vec<_> = mock.seen().iter().flat_map(credentials).map(|(_, value)| value).collect();
    let first = all.iter().filter(|value| *value == "Bearer k1").count();
    assert_eq!(all.len(), 200);
    // Mean 50, standard deviation 6: ten of them away is no chance.
    assert!((20..=100).contains(&first), "{first}");
    assert!(all.iter().all(|value| value == "Bearer k1" || value == "Bearer k2"));
}

#[test]
fn a_forged_internal_field_opens_nothing() {
    let mock = mock();
    let proxy = guarded(&mock, "");
    let mut client = proxy.client();
    let forged =
        "X-Rate-Limit-Checked: true\r\nX-Forwarded-For: 127.0.0.1\r\nX-Real-IP: 127.0.0.1\r\n";
    assert_eq!(client.send(chat(forged, false)).answer().status, 401);
}
