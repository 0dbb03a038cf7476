//! Bodies that another parser may read in another way: whoever is limited to some models gets
//! none of them through, and nobody gets one through that cannot be routed.

use loadtest::mock::Mock;

use super::house::{Proxy, Setup, mock};
use super::wire::{Client, post, post_chunked};

const CHAT: &str = "/v1/chat/completions";
const KEYS: &str = "[models.small]\ngroup = \"chat\"\naliases = [\"nick\"]\nupstream_model = \"real\"\n\
    [models.big]\ngroup = \"chat\"\n\
    [[key]]\nname = \"all\"\nkey = \"sk-all\"\n\
    [[key]]\nname = \"some\"\nkey = \"sk-some\"\nmodels = [\"m\"]\n";

fn keys() -> (Mock, Proxy) {
    let mock = mock();
    let proxy =
        Setup { listener: "auth = \"keys\"", rest: KEYS, ..Setup::default() }.start(&[&mock]);
    (mock, proxy)
}

fn ask(client: &mut Client, key: &str, fields: &str, body: &str) -> u16 {
    let fields = format!("Authorization: Bearer {key}\r\n{fields}");
    client.send(post(CHAT, &fields, body)).answer().status
}

/// What a key with rights to `m` alone gets, and what one with all rights gets.
fn check(fields: &str, body: &str, some: u16, all: u16) {
    let (mock, proxy) = keys();
    let statuses = ["sk-some", "sk-all"].map(|key| ask(&mut proxy.client(), key, fields, body));
    assert_eq!(statuses, [some, all], "{fields}{body}");
    let passed = statuses.iter().filter(|status| **status == 200).count();
    assert_eq!(mock.stats().requests_total, passed as u64, "{fields}{body}");
}

const FORM: &str = "--B\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nm\r\n--B--\r\n";

fn of_type(kind: &str) -> String {
    format!("Content-Type: {kind}\r\n")
}

#[test]
fn a_type_that_is_not_parsed_proves_no_model() {
    let body = r#"{"model":"m","x":"&model=big&"}"#;
    for other in ["application/x-www-form-urlencoded", "text/plain", "application/yaml"] {
        check(&of_type(other), body, 415, 200);
    }
    for json in ["application/json", "application/json; charset=utf-8", "application/x+json"] {
        check(&of_type(json), body, 200, 200);
    }
    check("", body, 200, 200);
}

#[test]
fn a_type_that_is_read_in_two_ways_routes_nobody() {
    let json = r#"{"model":"m"}"#;
    let form = of_type("multipart/form-data; boundary=B");
    check(&format!("{}{form}", of_type("application/json")), json, 400, 400);
    for kind in [
        "multipart/form-data; boundary=B; boundary=C",
        "multipart/form-data; boundary=C; boundary=B",
        "multipart/form-data; boundary=\"B",
        "multipart/form-data",
        "multipart/form-data; boundary=B; charset=utf-16",
        "multipart/form-data; boundary*=utf-8''B",
    ] {
        check(&of_type(kind), FORM, 400, 400);
        check(&of_type(kind), json, 400, 400);
    }
    check(&of_type("application/json; charset=utf-16"), json, 400, 400);
}

#[test]
fn a_form_says_nothing_outside_its_parts() {
    let form = of_type("multipart/form-data; boundary=B");
    // The mock does not know forms: 400 of its own, which is a pass.
    let (mock, proxy) = keys();
    let passed = |body: &str, key: &str| {
        let before = mock.stats().requests_total;
        let status = ask(&mut proxy.client(), key, &form, body);
        (mock.stats().requests_total > before, status)
    };
    assert!(passed(FORM, "sk-some").0 && passed(FORM, "sk-all").0);
    let other = FORM.replace("\r\nm\r\n", "\r\nbig\r\n").replace("B--", "B");
    for body in [format!("{other}{FORM}"), format!("--C\r\n{FORM}"), format!("{FORM}{other}")] {
        assert!(!passed(&body, "sk-some").0, "{body}");
    }
    for body in [format!("--C\r\n{FORM}"), format!("{FORM}bye")] {
        assert_eq!(passed(&body, "sk-some"), (false, 403), "{body}");
        assert!(passed(&body, "sk-all").0, "{body}");
    }
    for body in [
        FORM.replace("\r\nm\r\n", &format!("\r\nm\n{}", FORM.replace("\r\nm\r\n", "\r\nbig\r\n"))),
        FORM.replace("name=\"model\"", "name=\"model\"; name=\"x\""),
    ] {
        assert_eq!(passed(&body, "sk-some"), (false, 400), "{body}");
        assert_eq!(passed(&body, "sk-all"), (false, 400), "{body}");
    }
}

#[test]
fn a_second_model_in_json_is_no_proof() {
    for body in [
        r#"{"model":"big","model":"m"}"#,
        r#"{"model":null,"model":"m"}"#,
        r#"{"model":"m","mod\u0065l":"m"}"#,
        r#"{"MODEL":"big","model":"m"}"#,
    ] {
        check("", body, 403, 200);
    }
}

#[test]
fn no_second_model_follows_a_rename() {
    let mock = mock();
    let rest = format!("[limits]\nbody_held = \"4KiB\"\n{KEYS}");
    let proxy =
        Setup { listener: "auth = \"keys\"", rest: &rest, ..Setup::default() }.start(&[&mock]);
    let pad = "x".repeat(300_000);
    let fields = "Authorization: Bearer sk-all\r\n";
    // The alias again, in front of the pad and behind it: the server would read the alias.
    for body in [
        format!(r#"{{"model":"nick","pad":"{pad}","model":"nick"}}"#),
        format!(r#"{{"model":"nick","pad":"{pad}","mod\u0065l":"nick"}}"#),
        format!(r#"{{"model":"nick","pad":"{pad}","model":null}}"#),
        format!(r#"{{"model":"nick","pad":"{pad}","model":"big"}}"#),
        format!(r#"{{"model":"nick","pad":"{pad}","Model":"big"}}"#),
    ] {
        for request in [
            post(CHAT, fields, &body),
            post_chunked(CHAT, fields, &body.as_bytes().chunks(10_000).collect::<Vec<_>>()),
        ] {
            let mut client = proxy.client();
            let _ = client.try_send(&request);
            // It is told, or cut.
            if let Ok(answer) = client.try_answer() {
                assert_eq!(answer.status, 400, "{body:.60}");
            }
        }
    }
    proxy.wait_until_empty();
    super::house::wait_until("the upstream is let go", || mock.stats().in_flight == 0);
    assert!(mock.seen().iter().all(|request| !request.body_complete));
    let body = format!(r#"{{"model":"nick","pad":"{pad}"}}"#);
    assert_eq!(proxy.client().send(post(CHAT, fields, body)).answer().status, 200);
}

#[test]
fn nothing_ambiguous_follows_the_model_of_a_limited_key() {
    let mock = mock();
    let rest = format!("[limits]\nbody_held = \"4KiB\"\n{KEYS}");
    let proxy =
        Setup { listener: "auth = \"keys\"", rest: &rest, ..Setup::default() }.start(&[&mock]);
    let pad = "x".repeat(300_000);
    let file = format!("--B\r\nContent-Disposition: form-data; name=f\r\n\r\n{pad}\r\n");
    let form = FORM.replace("--B--\r\n", "");
    let kind = of_type("multipart/form-data; boundary=B");
    for (kind, body) in [
        ("", format!(r#"{{"model":"m","pad":"{pad}","model":"m"}}"#)),
        (&*kind, format!("{form}{file}{FORM}")),
        (&*kind, format!("{form}{file}--B--\r\n{FORM}")),
    ] {
        let fields = format!("Authorization: Bearer sk-some\r\n{kind}");
        let mut client = proxy.client();
        let _ = client.try_send(&post(CHAT, &fields, &body));
        if let Ok(answer) = client.try_answer() {
            assert_eq!(answer.status, 400, "{body:.60}");
        }
    }
    proxy.wait_until_empty();
    super::house::wait_until("the upstream is let go", || mock.stats().in_flight == 0);
    assert!(mock.seen().iter().all(|request| !request.body_complete));
}
