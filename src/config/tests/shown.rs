//! Warnings, and texts that nobody would write.

use proptest::prelude::*;

use super::secrets::SECRETS;
use super::*;

#[test]
fn base_is_good_and_silent() {
    let loaded = good(BASE);
    assert_eq!(loaded.report.warnings, []);
    assert_eq!(loaded.config.models.len(), 1);
}

#[test]
fn warns_of_what_is_unsafe() {
    let warns = |text: &str, part: &str| {
        let warnings = warnings(text);
        assert!(warnings.iter().any(|w| w.contains(part)), "{part}: {warnings:?}");
    };
    warns(&BASE.replace("127.0.0.1:4000", "0.0.0.0:4000"), "listener.main.auth: open");
    warns(&BASE.replace("auth = \"none\"", ""), "nobody gets in");
    warns(&with("[[key]]\nname=\"k\"\nkey=\"short\""), "key.k.key: 5 characters, fewer than 16");
    warns(&with("[[group]]\nname=\"g\"\nmembers=[\"gpu0\"]"), "group.g: unused");
    warns(&with("[[upstream]]\nname=\"u\"\nurl=\"http://a\"\nmodels=[]"), "upstream.u: unused");
    warns(
        &with(
            "[[upstream]]\nname=\"u\"\nurl=\"http://8.8.8.8\"\nauth={type=\"bearer\",token=\"x\"}",
        ),
        "upstream.u.url: credentials go to 8.8.8.8 in clear",
    );
    warns(
        &with("[models.a]\nupstream=\"u\"\n[[upstream]]\nname=\"u\"\nurl=\"http://a\""),
        "upstream.gpu0.models: model \"a\" is shadowed by models.a",
    );
    warns(&with("[models.\"x@gpu0\"]\ngroup=\"chat\""), "shadowed");
}

#[test]
fn warns_of_what_has_no_effect_unless_it_is_the_default() {
    let defaults =
        "[process]\nstate_dir=\"\"\n[log]\naccess=\"off\"\n[discovery]\nttl=\"30000ms\"\n";
    assert_eq!(warnings(&with(defaults)), Vec::<String>::new());
    let text = BASE.replace("members = ", "balance=\"prefix\"\nmembers = ");
    assert_eq!(warnings(&text), ["group.chat.balance: not implemented yet; acts as round_robin"]);
    let text = BASE.replace("members = ", "balance=\"leastconn\"\nmembers = ");
    assert_eq!(warnings(&text), Vec::<String>::new());
    let text = with("[process]\ncontrol_socket=\"/run/t\"");
    assert_eq!(warnings(&text), Vec::<String>::new());
}

/// Text made of pieces that mean something to the loader.
fn toml_like() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "[[listener]]\n",
        "[[upstream]]\n",
        "[[group]]\n",
        "[[key]]\n",
        "[models.x]\n",
        "[limits]\n",
        "[timeouts]\n",
        "[admin]\n",
        "[process]\n",
        "[[listener.route]]\n",
        "name",
        "bind",
        "url",
        "key",
        "members",
        "group",
        "auth",
        "tls",
        "path",
        "host",
        "ports",
        "models",
        "cores",
        " = ",
        "=",
        "\"a\"",
        "\"127.0.0.1:1\"",
        "\"http://a\"",
        "\"${X:-y}\"",
        "\"${\"",
        "[",
        "]",
        "{",
        "}",
        ",",
        "\n",
        "\n",
        "0",
        "-1",
        "1.5",
        "true",
        "1979-05-27",
        "\"\"\"",
        "'",
        "#",
        "\u{e9}",
        "\\",
        "\r\n",
        "\t",
        "\"30s\"",
        "nan",
        "inf",
        "0xff",
        "type",
        "\"/:a\"",
        "\"/{a:[}\"",
        "aliases",
    ]);
    prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_text_panics(text in ".{0,60}") {
        fuzz(text.as_bytes());
    }

    #[test]
    fn no_toml_like_text_panics(text in toml_like()) {
        fuzz(text.as_bytes());
        fuzz(with(&text).as_bytes());
    }

    #[test]
    fn no_cut_or_flip_of_a_real_file_panics(at in 0usize..1400, byte in any::<u8>()) {
        let mut bytes = SECRETS.as_bytes().to_vec();
        let at = at % bytes.len();
        fuzz(&bytes[..at]);
        bytes[at] = byte;
        fuzz(&bytes);
    }
}

#[test]
fn warns_where_rights_are_not_what_they_seem() {
    let route = "[[listener]]\nname = \"l\"\nbind = \"127.0.0.1:1\"\nauth = \"AUTH\"\n\
        [[listener.route]]\npath = \"/x\"\ngroup = \"chat\"\nKEYS\n\
        [[key]]\nname = \"some\"\nkey = \"sk-0123456789abcdef\"\nmodels = [\"m\"]\n\
        [[key]]\nname = \"all\"\nkey = \"sk-0123456789abcdeg\"\n";
    let warned = |auth: &str, keys: &str| {
        let text = with(&route.replace("AUTH", auth).replace("KEYS", keys));
        let lines = warnings(&text);
        lines.into_iter().filter(|line| line.starts_with("listener.l.route")).collect::<Vec<_>>()
    };
    let [line] = &warned("keys", "")[..] else { panic!("one warning") };
    assert!(line.contains("a route asks for no model: key \"some\" may use all"), "{line}");
    assert_eq!(warned("keys", "keys = [\"some\"]").len(), 1);
    assert_eq!(warned("keys", "keys = [\"all\"]"), [""; 0]);
    let [line] = &warned("none", "keys = [\"all\"]")[..] else { panic!("one warning") };
    assert!(line.contains("nobody gets through"), "{line}");
}

#[test]
fn a_path_that_no_request_can_have_is_told_and_kept() {
    let text = with(
        "[[listener]]\nname = \"l\"\nbind = \"127.0.0.1:1\"\nauth = \"none\"\n\
         [[listener.route]]\npath = \"/api/test/special!@#$%^&*()_+\"\ngroup = \"chat\"",
    );
    let told = warnings(&text);
    assert!(told.iter().any(|line| line.contains("a % without two digits")), "{told:?}");
}
