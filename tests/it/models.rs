//! rules §3, §4, §11: which model a request names, where it goes, and under what name.

use super::house::{Proxy, Setup, house, mock, mock_with};
use super::wire::{Client, chat, get, post, post_chunked, sha256};
use loadtest::mock::Mock;

const CHAT: &str = "/v1/chat/completions";

/// Sends a body and gives status and message of the error.
fn refused(client: &mut Client, body: &str) -> (u16, String) {
    let answer = client.send(post(CHAT, "", body)).answer();
    assert_eq!(answer.json()["error"]["type"], "invalid_request_error", "{body}");
    (answer.status, answer.message())
}

#[test]
fn says_what_is_wrong_with_a_body() {
    let (mock, proxy) = house();
    let mut client = proxy.client();
    let missing = "Missing 'model' field in request.";
    for (body, message) in [
        ("", "Empty request body."),
        ("  \r\n", "Empty request body."),
        ("{}", missing),
        (r#"{"Model":"m"}"#, missing),
        (r#"{"x":{"model":"m"}}"#, missing),
        (r#"{"x":"\"model\":\"m\""}"#, missing),
        (r#"{"model":null}"#, missing),
        (r#"{"model":false}"#, missing),
        (r#"{"model":7}"#, missing),
        (r#"{"model":{"model":"m"}}"#, missing),
        (r#"{"model":["m"]}"#, missing),
        (r#"{"model":"m","model":null}"#, missing),
    ] {
        assert_eq!(refused(&mut client, body), (400, message.to_owned()), "{body}");
    }
    for body in [
        "[]",
        "nonsense",
        "{\"model\":\"m\"",
        "{\"model\":\"m\"}x",
        "{\"model\":\"m\"}{}",
        "{\"model\" \"m\"}",
        "\"m\"",
        "{\"model\":\"m\",}",
    ] {
        let (status, message) = refused(&mut client, body);
        assert!(status == 400 && message.starts_with("Invalid JSON: "), "{body}: {message}");
    }
    assert_eq!(mock.stats().requests_total, 0);
    assert_eq!(client.send(chat("", false)).answer().status, 200);
}

#[test]
fn names_the_models_that_there_are() {
    let mock = mock();
    let proxy = Setup {
        rest: "[models.b]\ngroup = \"chat\"\n[models.a]\ngroup = \"chat\"",
        ..Setup::default()
    };
    let proxy = proxy.start(&[&mock]);
    let mut client = proxy.client();
    assert_eq!(
        refused(&mut client, r#"{"model":"x\"y"}"#),
        (404, "Model 'x\"y' not found. Available: a, b, m".to_owned())
    );
}

#[test]
fn names_twenty_models_and_counts_the_others() {
    let mock = mock();
    let ids: Vec<String> = (0..1240).map(|n| format!("\"n{n:04}\"")).collect();
    let rest = format!("[models.b]\ngroup = \"chat\"\naliases = [{}]\n", ids[..2].join(", "));
    let more: String =
        ids[2..].iter().map(|id| format!("[models.{id}]\ngroup = \"chat\"\n")).collect();
    let proxy = Setup { rest: &(rest + &more), ..Setup::default() }.start(&[&mock]);
    let (status, message) = refused(&mut proxy.client(), r#"{"model":"x"}"#);
    let shown: Vec<String> = (2..20).map(|n| format!("n{n:04}")).collect();
    let expected = format!("b, m, {} and 1,220 more", shown.join(", "));
    assert_eq!((status, message), (404, format!("Model 'x' not found. Available: {expected}")));
}

#[test]
fn takes_the_last_of_two_models_as_servers_do() {
    let (mock, proxy) = house();
    let mut client = proxy.client();
    let body = r#"{"model":"x","messages":[{"model":"y"}],"model":"m"}"#;
    assert_eq!(client.send(post(CHAT, "", body)).answer().status, 200);
    assert_eq!(mock.seen()[0].body_sha256, sha256(body.as_bytes()));
    let body = r#"{"model":"m","model":"x"}"#;
    assert_eq!(client.send(post(CHAT, "", body)).answer().status, 404);
    let body = r#"{"mod\u0065l":"\u006d"}"#;
    assert_eq!(client.send(post(CHAT, "", body)).answer().status, 200);
}

fn small_hold(mock: &Mock) -> Proxy {
    let rest = "[limits]\nbody_held = \"4KiB\"\n[models.other]\ngroup = \"chat\"";
    Setup { rest, ..Setup::default() }.start(&[mock])
}

#[test]
fn aborts_both_sides_when_another_model_shows_up_in_a_streamed_body() {
    let mock = mock();
    let proxy = small_hold(&mock);
    let begin = format!("{{\"model\":\"m\",\"pad\":\"{}\"", "x".repeat(300_000));
    let whole = format!("{begin},\"model\":\"other\"}}");
    for request in [
        post(CHAT, "", &whole),
        post_chunked(CHAT, "", &whole.as_bytes().chunks(10_000).collect::<Vec<_>>()),
    ] {
        let mut client = proxy.client();
        let _ = client.try_send(&request);
        // Nothing has been answered yet: the client may be told, and is cut.
        if let Ok(answer) = client.try_answer() {
            assert_eq!(
                (answer.status, answer.message().as_str()),
                (400, "The request names two different models.")
            );
        }
        assert!(client.is_over());
    }
    proxy.wait_until_empty();
    super::house::wait_until("the upstream is let go", || mock.stats().in_flight == 0);
    assert!(mock.seen().iter().all(|request| !request.body_complete));
    // The same name again is no other model.
    let mut client = proxy.client();
    let same = format!("{begin},\"model\":\"m\"}}");
    assert_eq!(client.send(post(CHAT, "", same)).answer().status, 200);
}

#[test]
fn streams_a_body_past_body_held_and_checks_its_end() {
    let mock = mock();
    let proxy = small_hold(&mock);
    let begin = format!("{{\"model\":\"m\",\"pad\":\"{}\"", "x".repeat(300_000));
    let mut client = proxy.client();
    let good = format!("{begin}}}");
    assert_eq!(client.send(post(CHAT, "", &good)).answer().status, 200);
    assert_eq!(mock.seen()[0].body_sha256, sha256(good.as_bytes()));
    mock.forget_seen();
    let _ = client.try_send(&post(CHAT, "", format!("{begin}]")));
    let status = client.try_answer().map_or(400, |answer| answer.status);
    assert_eq!(status, 400);
    super::house::wait_until("the upstream is let go", || mock.stats().in_flight == 0);
    assert!(mock.seen().iter().all(|request| !request.body_complete));
}

const RENAMES: &str = "[models.\"real\"]\ngroup = \"chat\"\naliases = [\"gpt-4\", \"a\"]\n\
    upstream_model = \"org/real \\\"v2\\\"\"\n";

#[test]
fn changes_nothing_but_the_bytes_of_the_name() {
    let mock = mock();
    let proxy = Setup { rest: RENAMES, ..Setup::default() }.start(&[&mock]);
    let mut client = proxy.client();
    let sent = r#"org/real \"v2\""#;
    for (before, name, after) in [
        ("{\"model\":\"", "gpt-4", "\",\"x\":1e400,\"x\":2}"),
        ("{ \"messages\" : [\"\\u00e9\",{\"model\":\"gpt-4\"}],\n\"model\" :\t\"", "a", "\" }\n"),
        ("{\"model\":\"first\",\"mod\\u0065l\":\"", "re\\u0061l", "\",\"encoding_format\":null}"),
    ] {
        let body = format!("{before}{name}{after}");
        let expected = format!("{before}{sent}{after}");
        for request in [
            post(CHAT, "", &body),
            post_chunked(CHAT, "", &body.as_bytes().chunks(7).collect::<Vec<_>>()),
        ] {
            mock.forget_seen();
            assert_eq!(client.send(request).answer().status, 200, "{body}");
            let seen = mock.seen();
            assert_eq!(String::from_utf8_lossy(&seen[0].body), expected);
            let length = seen[0].field("content-length");
            assert!(seen[0].chunked || length == Some(expected.len().to_string()), "{length:?}");
        }
    }
}

#[test]
fn renames_in_a_body_that_is_streamed() {
    let mock = mock();
    let rest = format!("[limits]\nbody_held = \"4KiB\"\n{RENAMES}");
    let proxy = Setup { rest: &rest, ..Setup::default() }.start(&[&mock]);
    let pad = "x".repeat(500_000);
    let body = format!("{{\"model\":\"gpt-4\",\"pad\":\"{pad}\"}}");
    let expected = format!("{{\"model\":\"org/real \\\"v2\\\"\",\"pad\":\"{pad}\"}}");
    let mut client = proxy.client();
    for request in [
        post(CHAT, "", &body),
        post_chunked(CHAT, "", &body.as_bytes().chunks(9_999).collect::<Vec<_>>()),
    ] {
        mock.forget_seen();
        assert_eq!(client.send(request).answer().status, 200);
        assert_eq!(mock.seen()[0].body_sha256, sha256(expected.as_bytes()));
    }
}

#[test]
fn renames_in_a_form() {
    let mock = mock();
    let proxy = Setup { rest: RENAMES, ..Setup::default() }.start(&[&mock]);
    let form = |name: &str| {
        format!(
            "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"model\"\r\n\r\n\
             \0binary\r\n--b\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\n{name}\r\n--b--\r\n"
        )
    };
    let kind = "Content-Type: multipart/form-data; boundary=b\r\n";
    let mut client = proxy.client();
    // The mock has no such endpoint; what counts is what it was sent.
    client.send(post("/v1/audio/transcriptions", kind, form("gpt-4"))).answer();
    let seen = mock.seen();
    assert_eq!(String::from_utf8_lossy(&seen[0].body), form("org/real \"v2\""));
    let answer = client.send(post("/v1/audio/transcriptions", kind, form("nobody"))).answer();
    assert_eq!(answer.status, 404);
}

#[test]
fn finds_and_renames_the_model_in_a_gemini_path() {
    let mock = mock();
    let rest = "[models.\"gemini-2\"]\ngroup = \"chat\"\naliases = [\"g\"]\nupstream_model = \"gemini-2.5\"";
    let proxy = Setup { rest, ..Setup::default() }.start(&[&mock]);
    let mut client = proxy.client();
    for (sent, arrived) in [
        ("/v1beta/models/g:generateContent", "/v1beta/models/gemini-2.5:generateContent"),
        (
            "/v1beta/models/gemini-2:streamGenerateContent?alt=sse",
            "/v1beta/models/gemini-2.5:streamGenerateContent?alt=sse",
        ),
    ] {
        mock.forget_seen();
        let body = r#"{"contents":[],"model":"decoy"}"#;
        assert_eq!(client.send(post(sent, "", body)).answer().status, 200);
        let seen = mock.seen();
        assert_eq!(seen[0].request_line(), format!("POST {arrived} HTTP/1.1"));
        assert_eq!(seen[0].body_sha256, sha256(body.as_bytes()));
    }
    let answer = client.send(post("/v1beta/models/no:generateContent", "", "{}")).answer();
    assert_eq!(
        (answer.status, answer.json()["error"]["status"].as_str()),
        (404, Some("NOT_FOUND"))
    );
}

#[test]
fn takes_the_model_of_a_get_from_path_or_query() {
    let (mock, proxy) = house();
    let mut client = proxy.client();
    client.send(get("/v1/models/m", "")).answer();
    client.send(get("/v1/files?x=1&model=m", "")).answer();
    assert_eq!(mock.stats().requests_total, 2);
    assert_eq!(client.send(get("/v1/models/x", "")).answer().status, 404);
    assert_eq!(client.send(get("/v1/files", "")).answer().status, 404);
    assert_eq!(mock.stats().requests_total, 2);
}

#[test]
fn sends_a_request_to_the_upstream_behind_the_at_sign() {
    let mocks = [mock(), mock()];
    let proxy = Setup::default().start(&[&mocks[0], &mocks[1]]);
    let mut client = proxy.client();
    for _ in 0..4 {
        let answer = client.send(post(CHAT, "", r#"{"model":"m@gpu1"}"#)).answer();
        assert_eq!(answer.status, 200);
    }
    assert_eq!((mocks[0].stats().requests_total, mocks[1].stats().requests_total), (0, 4));
    assert_eq!(&mocks[1].seen()[0].body[..], br#"{"model":"m"}"#);
    assert_eq!(client.send(post(CHAT, "", r#"{"model":"m@no"}"#)).answer().status, 404);
}

#[test]
fn strips_a_prefix_that_names_an_upstream_or_group() {
    let mocks = [mock(), mock()];
    let proxy = Setup { listener: "force = \"any\"", ..Setup::default() };
    let proxy = proxy.start(&[&mocks[0], &mocks[1]]);
    let mut client = proxy.client();
    for name in ["gpu1:llama3:8b", "chat:m"] {
        let body = format!("{{\"model\":\"{name}\"}}");
        assert_eq!(client.send(post(CHAT, "", body)).answer().status, 200, "{name}");
    }
    assert_eq!(&mocks[1].seen()[0].body[..], br#"{"model":"llama3:8b"}"#);
}

#[test]
fn asks_upstreams_for_their_models() {
    let mock = mock_with(|config| config.models = vec!["found".to_owned()]);
    let proxy = Setup { upstream: "models = \"discover\"", ..Setup::default() }.start(&[&mock]);
    let mut client = proxy.client();
    assert_eq!(client.send(post(CHAT, "", r#"{"model":"found"}"#)).answer().status, 200);
    assert!(client.send(get("/v1/models", "")).answer().text().contains("\"id\":\"found\""));
}

#[test]
fn sends_unknown_models_to_the_default_group() {
    let mock = mock();
    let proxy = Setup { listener: "default_group = \"chat\"", ..Setup::default() }.start(&[&mock]);
    let mut client = proxy.client();
    let body = r#"{"model":"anything"}"#;
    assert_eq!(client.send(post(CHAT, "", body)).answer().status, 200);
    assert_eq!(&mock.seen()[0].body[..], body.as_bytes());
    assert_eq!(client.send(get("/mock/stats", "")).answer().status, 200);
}

#[test]
fn refuses_a_body_whose_coding_hides_the_model() {
    let (mock, proxy) = house();
    let mut client = proxy.client();
    let answer = client.send(post(CHAT, "Content-Encoding: gzip\r\n", "\x1f")).answer();
    assert_eq!(answer.status, 415);
    assert_eq!(mock.stats().requests_total, 0);
    // A route needs no model.
    let answer = client.send(post("/echo", "Content-Encoding: gzip\r\n", "\x1f")).answer();
    assert_eq!((answer.status, answer.text().as_str()), (200, "\x1f"));
}

#[test]
fn routes_by_path_and_host() {
    let mocks = [mock(), mock()];
    let proxy = Setup {
        listener: "[[listener.route]]\npath = \"/files/{id:[0-9]+}/*\"\ngroup = \"one\"\n\
                   [[listener.route]]\nhost = \"b.example/pre\"\ngroup = \"one\"",
        rest: "[[group]]\nname = \"one\"\nmembers = [\"gpu1\"]",
        ..Setup::default()
    }
    .start(&[&mocks[0], &mocks[1]]);
    let mut client = proxy.client();
    client.send(get("/files/12/a%2Fb?q", "")).answer();
    client.send("GET /pre/x HTTP/1.1\r\nHost: B.Example:80\r\n\r\n").answer();
    client.send("GET /pre HTTP/1.1\r\nHost: b.example\r\n\r\n").answer();
    let lines: Vec<String> = mocks[1].seen().iter().map(|seen| seen.request_line()).collect();
    assert_eq!(lines, ["GET /files/12/a%2Fb?q HTTP/1.1", "GET /x HTTP/1.1", "GET / HTTP/1.1"]);
    for path in ["/files/x/a", "/prefix"] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: b.example\r\n\r\n");
        assert_eq!(client.send(request).answer().status, 404, "{path}");
    }
}

#[test]
fn a_route_with_host_and_path_wants_both() {
    let mocks = [mock(), mock()];
    let proxy = Setup {
        listener: "[[listener.route]]\nhost = \"b.example\"\npath = \"/files/*\"\ngroup = \"one\"\n\
                   [[listener.route]]\nhost = \"b.example\"\npath = \"/other\"\ngroup = \"one\"",
        rest: "[[group]]\nname = \"one\"\nmembers = [\"gpu1\"]",
        ..Setup::default()
    }
    .start(&[&mocks[0], &mocks[1]]);
    let mut client = proxy.client();
    for (host, path, status) in [
        ("b.example", "/files/1", 200),
        ("b.example", "/other", 200),
        ("b.example", "/elsewhere", 404),
        ("c.example", "/files/1", 404),
    ] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n");
        let before = mocks[1].seen().len();
        let answer = client.send(request).answer();
        assert_eq!(mocks[1].seen().len() - before, usize::from(status == 200), "{host} {path}");
        assert!(status == 200 || answer.status == status, "{host} {path}");
    }
}

#[test]
fn answers_health_and_the_models_list_itself() {
    let mock = mock();
    let proxy = Setup {
        listener: "auth = \"keys\"",
        rest: "[models.other]\ngroup = \"chat\"\ndescription = \"d\"\n\
               [[key]]\nname = \"a\"\nkey = \"sk-a\"\n\
               [[key]]\nname = \"b\"\nkey = \"sk-b\"\nmodels = [\"oth*\"]",
        ..Setup::default()
    }
    .start(&[&mock]);
    let mut client = proxy.client();
    assert_eq!(client.send(get("/health", "")).answer().text(), r#"{"status":"ok"}"#);
    assert_eq!(client.send(get("/healthz", "")).answer().text(), r#"{"ok":true}"#);
    assert_eq!(client.send(get("/v1/models", "")).answer().status, 401);
    let ids = |answer: super::wire::Answer| -> Vec<String> {
        assert!(!answer.text().contains(": "), "compact: {}", answer.text());
        let list = answer.json();
        let rows = list["data"].as_array().unwrap();
        rows.iter().map(|row| row["id"].as_str().unwrap().to_owned()).collect()
    };
    let all = client.send(get("/v1/models", "Authorization: Bearer sk-a\r\n")).answer();
    assert_eq!(ids(all), ["m", "other"]);
    let some = client.send(get("/v1/models", "Authorization: Bearer sk-b\r\n")).answer();
    assert_eq!(ids(some), ["other"]);
    assert_eq!(mock.stats().requests_total, 0);
}

#[test]
fn tells_where_a_model_is_only_when_asked_to_and_never_more_than_its_address() {
    let url = "http://127.0.0.1:1/base?key=CANARY".to_owned();
    for (rest, endpoint) in [("", None), ("[discovery]\nendpoints = true", Some("127.0.0.1:1"))] {
        let upstream = "path_mode = \"fixed\"";
        let proxy =
            Setup { upstream, rest, ..Setup::default() }.start_on(std::slice::from_ref(&url));
        let answer = proxy.client().send(get("/v1/models", "")).answer();
        assert_eq!(answer.json()["data"][0]["endpoint"].as_str(), endpoint);
        assert!(!answer.text().contains("CANARY") && !answer.text().contains("base"));
        assert_eq!(answer.text().contains("endpoint"), endpoint.is_some());
    }
}

#[test]
fn keeps_a_key_to_its_models() {
    let mock = mock();
    let proxy = Setup {
        listener: "auth = \"keys\"",
        rest: "[models.real]\ngroup = \"chat\"\naliases = [\"nick\"]\n\
               [[key]]\nname = \"b\"\nkey = \"sk-b\"\nmodels = [\"real\"]",
        ..Setup::default()
    }
    .start(&[&mock]);
    let mut client = proxy.client();
    let mut ask = |name: &str| {
        let body = format!("{{\"model\":\"{name}\"}}");
        client.send(post(CHAT, "Authorization: Bearer sk-b\r\n", body)).answer()
    };
    assert_eq!(ask("real").status, 200);
    assert_eq!(ask("nick").status, 200);
    for name in ["m", "m@gpu0", "chat:m", "gpu0:m", "gpu0:x"] {
        assert_eq!(ask(name).status, 403, "{name}");
    }
    // What a key may not use is not named to it.
    assert_eq!(ask("no").message(), "Model 'no' not found. Available: real");
}
