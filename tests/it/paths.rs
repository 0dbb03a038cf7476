//! A path has one form, and that one is matched and sent.

use loadtest::mock::Mock;

use super::house::{Proxy, Setup, house, mock};
use super::wire::{get, post};

/// `/admin` is for one key alone, everything else for all.
fn guarded() -> (Mock, Proxy) {
    let mock = mock();
    let listener = "auth = \"keys\"\n\
        [[listener.route]]\npath = \"/admin/*\"\ngroup = \"chat\"\nkeys = [\"boss\"]\n\
        [[listener.route]]\npath = \"/v1/x:y/*\"\ngroup = \"chat\"\nkeys = [\"boss\"]\n\
        [[listener.route]]\nhost = \"b.example/in/side\"\ngroup = \"chat\"\nkeys = [\"boss\"]\n\
        [[listener.route]]\nhost = \"b.example\"\ngroup = \"chat\"\n\
        [[listener.route]]\npath = \"/*\"\ngroup = \"chat\"";
    let rest =
        "[[key]]\nname = \"boss\"\nkey = \"sk-boss\"\n[[key]]\nname = \"all\"\nkey = \"sk-all\"";
    let proxy = Setup { listener, rest, ..Setup::default() }.start(&[&mock]);
    (mock, proxy)
}

#[test]
fn no_spelling_of_a_path_passes_the_keys_of_its_route() {
    let (mock, proxy) = guarded();
    let ask = |host: &str, path: &str, key: &str| {
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer sk-{key}\r\n\r\n"
        );
        proxy.client().send(request).answer().status
    };
    for path in [
        "/admin/x",
        "/%61dmin/x",
        "/%61%64%6D%69%6e/x",
        "/pub/../admin/x",
        "/pub/%2e%2e/admin/x",
        "/pub/.%2E/admin/x",
        "//admin/x",
        "/./admin/x",
        "/admin//x",
        "/admin/./x",
        "/admin%2Fx",
        "/admin%2fx",
        "/v1/x:y/z",
        "/v1/x%3Ay/z",
        "/v1/x%3ay/z",
        "http://a/pub/../admin/x",
        "http://b.example/in/side/x",
    ] {
        assert_eq!(ask("a", path, "all"), 403, "{path}");
    }
    for path in ["/in/side/x", "/in/%73ide", "/in//side/x", "/x/../in/side", "/in%2Fside/x"] {
        assert_eq!(ask("b.example", path, "all"), 403, "{path}");
        assert_ne!(ask("b.example", path, "boss"), 403, "{path}");
    }
    assert_eq!(ask("b.example", "/in%2Fother", "all"), 404);
    mock.forget_seen();
    ask("a", "/pub/../%61dmin//x?q=//%61", "boss");
    ask("a", "/pub/a%2fb/%7Ec", "all");
    let lines: Vec<String> = mock.seen().iter().map(|seen| seen.request_line()).collect();
    assert_eq!(lines, ["GET /admin/x?q=//%61 HTTP/1.1", "GET /pub/a%2Fb/~c HTTP/1.1"]);
}

#[test]
fn a_path_that_climbs_out_is_refused() {
    let (mock, proxy) = house();
    for path in [
        "/../b/x",
        "/echo/../../b",
        "/%2e%2e/b",
        "/echo/..%2F..%2Fb",
        "/echo/%2e%2e%2fb",
        "/%zz",
        "/echo/%4",
        "/%%36%31",
        "http://h/../b",
    ] {
        let answer = proxy.client().send(get(path, "")).answer();
        assert_eq!(answer.status, 400, "{path}");
        assert!(answer.message().starts_with("Malformed request: "), "{}", answer.message());
    }
    assert_eq!(mock.stats().requests_total, 0);
}

#[test]
fn an_upstreams_base_path_is_not_left() {
    let mock = mock();
    let proxy =
        Setup { base: "/base", listener: "force = \"any\"", ..Setup::default() }.start(&[&mock]);
    let mut client = proxy.client();
    for path in ["/x/../echo", "/%65cho", "//echo", "/./echo"] {
        client.send(get(path, "")).answer();
    }
    assert!(mock.seen().iter().all(|seen| seen.request_line() == "GET /base/echo HTTP/1.1"));
    assert_eq!(mock.seen().len(), 4);
    assert_eq!(proxy.client().send(get("/../echo", "")).answer().status, 400);
    // A name behind a prefix that is taken away may not climb either.
    let mut client = proxy.client();
    let mut ask = |name: &str| {
        let path = format!("/v1beta/models/{name}:generateContent");
        client.send(post(&path, "", "{}")).answer().status
    };
    mock.forget_seen();
    for name in ["gpu0:..%2Fx", "gpu0:%2e%2e%2Fx", "gpu0:x%2F%2Fy", "gpu0:"] {
        assert_eq!(ask(name), 404, "{name}");
    }
    assert!(mock.seen().is_empty());
    ask("gpu0:a..%2Fx");
    assert_eq!(
        mock.seen()[0].request_line(),
        "POST /base/v1beta/models/a../x:generateContent HTTP/1.1"
    );
}

#[test]
fn built_in_paths_and_models_are_known_in_every_spelling() {
    let mock = mock();
    let proxy = Setup { listener: "force = \"any\"", ..Setup::default() }.start(&[&mock]);
    let mut client = proxy.client();
    for path in
        ["//health", "/%68ealth", "/x/../health", "/./health", "/v1/%6dodels", "/v1//models"]
    {
        assert_eq!(client.send(get(path, "")).answer().status, 200, "{path}");
    }
    assert_eq!(mock.stats().requests_total, 0);
    for path in [
        "/v1beta/%6dodels/no:generateContent",
        "/v1beta//models/no:generateContent",
        "/x/../v1beta/models/no:generateContent",
        "http://h/v1beta/models/no:generateContent",
    ] {
        let answer = client.send(post(path, "", r#"{"model":"m"}"#)).answer();
        assert_eq!(answer.status, 404, "{path}");
    }
    // One in absolute form is renamed where it stands.
    client.send(post("http://h/v1beta/models/gpu0:real:generateContent?x=1", "", "{}")).answer();
    let line = "POST /v1beta/models/real:generateContent?x=1 HTTP/1.1";
    assert_eq!(mock.seen()[0].request_line(), line);
}

#[test]
fn a_model_behind_an_encoded_slash_is_seen() {
    let mock = mock();
    let rest = "[[key]]\nname = \"some\"\nkey = \"sk-some\"\nmodels = [\"m\"]";
    let proxy = Setup { listener: "auth = \"keys\"", rest, ..Setup::default() }.start(&[&mock]);
    let key = "Authorization: Bearer sk-some\r\n";
    for path in [
        "/v1beta%2Fmodels/big:generateContent",
        "/v1beta%2Fmodels%2Fbig%3AgenerateContent",
        "/openai%2Fdeployments/big/chat/completions",
        "/openai/%64eployments//big/chat/completions",
    ] {
        let status = proxy.client().send(post(path, key, r#"{"model":"m"}"#)).answer().status;
        assert!(status == 400 || status == 403, "{path}: {status}");
    }
    assert_eq!(mock.stats().requests_total, 0);
}

#[test]
fn a_route_that_no_normal_path_reaches_is_a_fault() {
    for (route, good) in [
        ("path = \"/a//b\"", false),
        ("path = \"/%61\"", false),
        ("path = \"/a/../b\"", false),
        ("path = \"/a%2Fb/{x:[a/]+}/\"", true),
        ("host = \"h/a//b\"", false),
        ("host = \"h/%61\"", false),
        ("host = \"h/a/\"", true),
    ] {
        let listener = format!("[[listener.route]]\n{route}\ngroup = \"chat\"");
        let setup = Setup { listener: &listener, ..Setup::default() };
        let text = setup.text(&["http://127.0.0.1:1".to_owned()]);
        let loaded = tokenring::testing::load::load_text("config.toml", &text);
        match loaded {
            Ok(_) => assert!(good, "{route}"),
            Err(report) => {
                assert!(!good && report.to_string().contains("is never matched"), "{report}");
            }
        }
    }
}
