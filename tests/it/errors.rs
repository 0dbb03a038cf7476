//! rules §5: our own answers in the caller's dialect, with a length and a request id.

use super::house::{Setup, house, mock};
use super::wire::{chat, get, post};

#[test]
fn speaks_the_dialect_of_the_path() {
    let mock = mock();
    let proxy = Setup { listener: "auth = \"keys\"", ..Setup::default() }.start(&[&mock]);
    let mut client = proxy.client();
    let answer = client.send(post("/v1/chat/completions", "", "{}")).answer();
    let error = answer.json();
    assert_eq!(error["error"]["code"], "invalid_api_key");
    assert_eq!(answer.field("x-should-retry"), Some("false"));
    assert_eq!(error["error"]["type"], "authentication_error");
    assert!(error["error"]["param"].is_null() && error["error"].get("param").is_some());
    assert!(error["error"]["hint"].is_string());
    assert_eq!(error["error"]["request_id"].as_str(), answer.field("x-request-id"));
    assert_eq!(answer.field("content-type"), Some("application/json"));
    assert!(answer.text().starts_with("{\"error\":{\"message\":\""), "{}", answer.text());

    let answer = client.send(post("/v1/messages", "", "{}")).answer();
    let error = answer.json();
    assert_eq!((answer.status, &error["type"]), (401, &"error".into()));
    assert_eq!(error["error"]["type"], "authentication_error");
    assert!(error["error"]["message"].as_str().unwrap().starts_with("Authentication Error"));

    let answer = client.send(post("/v1beta/models/x:generateContent", "", "{}")).answer();
    let error = answer.json();
    assert_eq!((answer.status, &error["error"]["code"]), (401, &401.into()));
    assert_eq!(error["error"]["status"], "UNAUTHENTICATED");
}

#[test]
fn accepts_a_request_id_or_makes_one() {
    let (mock, proxy) = house();
    let mut client = proxy.client();
    let answer = client.send(chat("X-Request-Id: abc-123\r\n", false)).answer();
    assert_eq!(answer.fields("x-request-id"), ["abc-123"]);
    let answer = client.send(get("/nothing", "X-Request-Id: abc-124\r\n")).answer();
    assert_eq!(answer.fields("x-request-id"), ["abc-124"]);
    let mut made: Vec<String> = Vec::new();
    for _ in 0..10 {
        let answer = client.send(chat("", false)).answer();
        made.push(answer.field("x-request-id").unwrap().to_owned());
        assert_eq!(answer.fields("x-request-id").len(), 1);
    }
    let seen: Vec<String> =
        mock.seen().iter().skip(1).filter_map(|request| request.field("x-request-id")).collect();
    assert_eq!(seen, made, "the upstream is told the same");
    made.sort();
    made.dedup();
    assert_eq!(made.len(), 10);
    // One that could break a log line is not taken over.
    let answer = client.send(chat("X-Request-Id: a b\"c\r\n", false)).answer();
    assert_ne!(answer.field("x-request-id"), Some("a b\"c"));
}

#[test]
fn passes_an_upstreams_own_errors_unchanged() {
    let (_mock, proxy) = house();
    let mut client = proxy.client();
    for status in [400, 404, 422, 429, 500, 503, 529] {
        let how = format!("x-mock: status={status},retry_after=7\r\n");
        let answer = client.send(chat(&how, false)).answer();
        assert_eq!((answer.status, answer.field("retry-after")), (status, Some("7")));
        assert_eq!(answer.message(), "as x-mock asked");
    }
}

#[test]
fn answers_404_where_nothing_routes() {
    let (_mock, proxy) = house();
    let mut client = proxy.client();
    let answer = client.send(get("/favicon.ico", "")).answer();
    assert_eq!((answer.status, answer.message().as_str()), (404, "No route for GET /favicon.ico."));
}

#[test]
fn answers_503_with_retry_after_when_nobody_is_left() {
    let mock = mock();
    let proxy = Setup { upstream: "enabled = false", ..Setup::default() }.start(&[&mock]);
    let answer = proxy.client().send(chat("", false)).answer();
    assert_eq!((answer.status, answer.field("retry-after")), (503, Some("1")));
}

#[test]
fn an_error_message_is_valid_json_whatever_the_name() {
    let (_mock, proxy) = house();
    let mut client = proxy.client();
    for name in ["\\u0000", "\\ud83d\\ude00", "\\\"\\\\/", "\u{e9}\u{1f600}", "\\ud800"] {
        let body = format!("{{\"model\":\"{name}\"}}");
        let answer = client.send(post("/v1/chat/completions", "", body)).answer();
        assert!(answer.status == 404 || answer.status == 400, "{name}");
        answer.json();
    }
}

#[test]
fn a_code_is_a_word_and_says_whether_to_come_again() {
    let mock = mock();
    let key = "[[key]]\nname = \"k\"\nkey = \"sk-1\"\nrpm = 1\nmodels = [\"m\"]\n";
    let proxy =
        Setup { listener: "auth = \"keys\"", rest: key, ..Setup::default() }.start(&[&mock]);
    let mut client = proxy.client();
    let auth = "Authorization: Bearer sk-1\r\n";
    let check = |answer: super::wire::Answer, status: u16, code: &str| {
        assert_eq!((answer.status, answer.json()["error"]["code"].as_str()), (status, Some(code)));
        let lasts = (400..500).contains(&status) && status != 429;
        assert_eq!(answer.field("x-should-retry"), lasts.then_some("false"), "{code}");
        assert_eq!(answer.field("retry-after").is_some(), status == 429, "{code}");
        answer
    };
    let wrong = "Authorization: Bearer sk-2\r\n";
    check(client.send(chat(wrong, false)).answer(), 401, "invalid_api_key");
    let body = "{\"model\":\"other\"}";
    check(client.send(post("/v1/chat/completions", auth, body)).answer(), 404, "model_not_found");
    let answer = check(client.send(chat(auth, false)).answer(), 429, "rate_limit_exceeded");
    let seconds: u64 = answer.field("retry-after").unwrap().parse().unwrap();
    assert!((1..=59).contains(&seconds), "{seconds}");
    assert_eq!(answer.field("retry-after-ms"), Some(format!("{}", 1000 * seconds).as_str()));
    let path = "/v1beta/models/m:generateContent";
    let answer = client.send(post(path, auth, "{}")).answer();
    let details = &answer.json()["error"]["details"][0];
    assert_eq!(details["@type"], "type.googleapis.com/google.rpc.RetryInfo");
    let delay = details["retryDelay"].as_str().unwrap();
    assert_eq!(delay, format!("{}s", answer.field("retry-after").unwrap()));
}

#[test]
fn a_day_that_is_spent_is_not_asked_again() {
    let mock = mock();
    let key = "[[key]]\nname = \"k\"\nkey = \"sk-1\"\nrpd = 1\n";
    let proxy =
        Setup { listener: "auth = \"keys\"", rest: key, ..Setup::default() }.start(&[&mock]);
    let mut client = proxy.client();
    let auth = "Authorization: Bearer sk-1\r\n";
    client.send(chat(auth, false)).answer();
    let answer = client.send(chat(auth, false)).answer();
    assert_eq!(answer.status, 429);
    let seconds: u64 = answer.field("retry-after").unwrap().parse().unwrap();
    // In the last minute of a day it will be better soon.
    assert_eq!(answer.field("x-should-retry"), (seconds > 59).then_some("false"));
}

#[test]
fn a_websocket_that_no_route_takes_is_told_to_go_without() {
    let (_mock, proxy) = house();
    let mut client = proxy.client();
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let answer = client.send(get("/v1/responses", upgrade)).answer();
    assert_eq!((answer.status, answer.field("upgrade")), (426, Some("HTTP/1.1")));
    assert_eq!(answer.field("x-should-retry"), Some("false"));
    // The connection goes on, as HTTP.
    assert_eq!(client.send(chat("", false)).answer().status, 200);
    assert_eq!(client.send(get("/v1/responses", "")).answer().status, 404);
}

#[test]
fn a_websocket_that_leads_to_nobody_costs_no_key_and_no_limit() {
    let mock = mock();
    let key = "[[key]]\nname = \"k\"\nkey = \"sk-1\"\nrpm = 1\nmodels = [\"m\"]\n";
    let route = "[[listener.route]]\npath = \"/ws\"\ngroup = \"chat\"\n";
    let listener = format!("auth = \"keys\"\n{route}");
    let proxy = Setup { listener: &listener, rest: key, ..Setup::default() }.start(&[&mock]);
    let mut client = proxy.client();
    for credential in ["", "Authorization: Bearer sk-2\r\n", "Authorization: Bearer sk-1\r\n"] {
        let upgrade = format!("{credential}Connection: Upgrade\r\nUpgrade: websocket\r\n");
        for _ in 0..2 {
            assert_eq!(client.send(get("/v1/responses", &upgrade)).answer().status, 426);
        }
        // Where one can lead to somebody, the key comes first.
        if !credential.contains("sk-1") {
            assert_eq!(client.send(get("/ws", &upgrade)).answer().status, 401);
            assert_eq!(client.send(get("/v1/realtime?model=m", &upgrade)).answer().status, 401);
        }
    }
    let auth = "Authorization: Bearer sk-1\r\n";
    assert_eq!(client.send(chat(auth, false)).answer().status, 200);
    assert_eq!(mock.seen().len(), 1);
}

#[test]
fn a_forbidden_model_is_told_to_codex_in_the_word_that_ends_it() {
    let mock = mock();
    let key = "[[key]]\nname = \"k\"\nkey = \"sk-1\"\nmodels = [\"other\"]\n";
    let proxy =
        Setup { listener: "auth = \"keys\"", rest: key, ..Setup::default() }.start(&[&mock]);
    let mut client = proxy.client();
    let auth = "Authorization: Bearer sk-1\r\n";
    for (path, code) in
        [("/v1/responses", "model_not_found"), ("/v1/chat/completions", "insufficient_permissions")]
    {
        let answer = client.send(post(path, auth, "{\"model\":\"m\"}")).answer();
        assert_eq!((answer.status, answer.json()["error"]["code"].as_str()), (403, Some(code)));
        // What LiteLLM ends at.
        assert_eq!(answer.json()["error"]["type"], "invalid_request_error");
    }
}

#[test]
fn the_root_answers_without_a_key_where_health_does() {
    let mock = mock();
    let key = "[[key]]\nname = \"k\"\nkey = \"sk-1\"\n";
    let listener = "auth = \"keys\"";
    let proxy = Setup { listener, rest: key, ..Setup::default() }.start(&[&mock]);
    let mut client = proxy.client();
    assert_eq!(client.send(get("/", "")).answer().text(), "{\"status\":\"ok\"}");
    let head = String::from_utf8(get("/", "")).unwrap().replace("GET", "HEAD");
    assert_eq!(client.send(head).answer_to("HEAD").status, 200);
    assert_eq!(client.send(post("/", "", "{}")).answer().status, 401);

    // Where the root leads somewhere it is no longer ours, but for who brings no key.
    let listener = "auth = \"keys\"\ndefault_group = \"chat\"";
    let proxy = Setup { listener, rest: key, ..Setup::default() }.start(&[&mock]);
    let mut client = proxy.client();
    assert_eq!(client.send(get("/", "")).answer().text(), "{\"status\":\"ok\"}");
    let before = mock.seen().len();
    client.send(get("/", "Authorization: Bearer sk-1\r\n")).answer();
    assert_eq!(mock.seen().len(), before + 1);
}

#[test]
fn a_path_that_names_no_api_is_not_found() {
    let (_mock, proxy) = house();
    let mut client = proxy.client();
    for (path, body) in [
        ("/nonsense", "{}"),
        ("/api/event_logging/batch", "{\"events\":[]}"),
        ("/v1internal:loadCodeAssist", "{\"metadata\":{}}"),
        ("/nonsense", "[]"),
        ("/nonsense", ""),
    ] {
        let answer = client.send(post(path, "", body)).answer();
        assert_eq!((answer.status, answer.message()), (404, format!("No route for POST {path}.")));
    }
    let answer = client.send(post("/v1/chat/completions", "", "{}")).answer();
    assert_eq!(answer.message(), "Missing 'model' field in request.");
    // What names a model is routed by it, whatever its path.
    let answer = client.send(post("/nonsense", "", "{\"model\":\"m\"}")).answer();
    assert_ne!(answer.message(), "No route for POST /nonsense.");
}

#[test]
fn a_failure_that_is_ours_is_told_with_all_that_is_known_of_it() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let key = "[[key]]\nname = \"k\"\nkey = \"sk-1\"\n";
    let proxy = Setup { listener: "auth = \"keys\"", rest: key, ..Setup::default() }
        .start_on(&[format!("http://{nobody}")]);
    let (tell, told) = std::sync::mpsc::channel();
    let tell = std::sync::Mutex::new(tell);
    let set = proxy.shared().tell.set(Box::new(move |failed| {
        let line = format!(
            "{} {} {} {} {} {}",
            failed.request_id,
            failed.status,
            failed.key,
            failed.model,
            failed.upstream,
            failed.reason
        );
        tell.lock().unwrap().send(line).unwrap();
    }));
    assert!(set.is_ok());
    let mut client = proxy.client();
    let auth = "Authorization: Bearer sk-1\r\nX-Request-Id: r-1\r\n";
    // What the client has done itself is told to nobody else.
    assert_eq!(client.send(post("/v1/chat/completions", auth, "{}")).answer().status, 400);
    assert_eq!(client.send(chat("", false)).answer().status, 401);
    assert_eq!(client.send(chat(auth, false)).answer().status, 502);
    let line = told.recv_timeout(super::house::LIMIT).unwrap();
    assert_eq!(line, "r-1 502 k m gpu0 connect failed");
    assert!(told.try_recv().is_err());
}
