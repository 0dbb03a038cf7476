//! Fetch, "CORS protocol": pages of other origins, as the listener's list has them.

use super::house::{Proxy, Setup, mock};
use super::scripted::Scripted;
use super::wire::{Answer, Client, get, post};
use loadtest::mock::Mock;

const CHAT: &str = "/v1/chat/completions";
const PAGE: &str = "Origin: https://chat.example\r\n";
const STRANGER: &str = "Origin: https://evil.example\r\n";

fn with_list(mock: &Mock, list: &str) -> Proxy {
    let listener = format!("auth = \"keys\"\ncors = [{list}]");
    let rest = "[[key]]\nname = \"a\"\nkey = \"sk-a\"";
    Setup { listener: &listener, rest, ..Setup::default() }.start(&[mock])
}

fn preflight(client: &mut Client, origin: &str) -> Answer {
    let request = format!(
        "OPTIONS {CHAT} HTTP/1.1\r\nHost: a\r\n{origin}Access-Control-Request-Method: POST\r\n\
         Access-Control-Request-Headers: authorization, content-type\r\n\r\n"
    );
    client.send(request).answer()
}

#[test]
fn a_preflight_of_a_listed_page_is_answered_without_a_key() {
    let mock = mock();
    let proxy = with_list(&mock, "\"https://chat.example\"");
    let mut client = proxy.client();
    for _ in 0..2 {
        let answer = preflight(&mut client, PAGE);
        assert_eq!(answer.status, 204);
        assert_eq!(answer.field("access-control-allow-origin"), Some("https://chat.example"));
        let allowed = answer.field("access-control-allow-headers");
        assert_eq!(allowed, Some("authorization, content-type"));
        assert!(answer.field("access-control-allow-methods").unwrap().contains("POST"));
        assert!(answer.field("vary").is_some() && answer.field("content-length").is_none());
    }
    for origin in [STRANGER, "", "Origin: null\r\n", &format!("{PAGE}{STRANGER}")] {
        let answer = preflight(&mut client, origin);
        assert_eq!(answer.status, 401, "{origin}");
        assert_eq!(answer.field("access-control-allow-origin"), None, "{origin}");
    }
    assert_eq!(mock.stats().requests_total, 0);
}

#[test]
fn every_answer_says_that_the_page_may_read_it() {
    let mock = mock();
    let proxy = with_list(&mock, "\"https://chat.example\", \"http://localhost:3000\"");
    let mut client = proxy.client();
    let (key, body) = ("x-api-key: sk-a\r\n", r#"{"model":"m"}"#);
    let keyed = format!("{PAGE}{key}");
    let stream = r#"{"model":"m","stream":true}"#;
    for (request, status) in [
        (post(CHAT, &keyed, body), 200),
        (post(CHAT, &keyed, stream), 200),
        (post(CHAT, PAGE, body), 401),
        (post(CHAT, &keyed, r#"{"model":"x"}"#), 404),
        (get("/v1/models", &keyed), 200),
        (get("/health", PAGE), 200),
    ] {
        let answer = client.send(&request).answer();
        let told = answer.field("access-control-allow-origin");
        assert_eq!((answer.status, told), (status, Some("https://chat.example")));
        assert_eq!(answer.field("vary"), Some("Origin"));
    }
    let answer = client.send(post(CHAT, &format!("{STRANGER}{key}"), body)).answer();
    assert_eq!((answer.status, answer.field("access-control-allow-origin")), (200, None));
}

#[test]
fn a_servers_own_word_does_not_stand_beside_ours() {
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nAccess-Control-Allow-Origin: *\r\n\
                access-control-allow-credentials: true\r\n\r\nok";
    let ask = |list: &str, origin: &str| {
        let server = Scripted::start(move |conn| {
            while conn.request().is_some() {
                conn.say(head);
            }
        });
        let listener = format!("cors = [{list}]");
        let proxy = Setup { listener: &listener, ..Setup::default() };
        let proxy = proxy.start_on(&[server.url()]);
        let answer = proxy.client().send(post(CHAT, origin, r#"{"model":"m"}"#)).answer();
        let told = answer.head.to_ascii_lowercase();
        let lines = told.lines().filter(|line| line.starts_with("access-control-"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let ours = ["access-control-allow-origin: *", "access-control-expose-headers: *"];
    assert_eq!(ask("\"*\"", PAGE), ours);
    assert_eq!(ask("\"https://chat.example\"", STRANGER), [""; 0]);
    // Without a list it is the servers' affair.
    assert_eq!(
        ask("", PAGE),
        ["access-control-allow-origin: *", "access-control-allow-credentials: true"]
    );
}
