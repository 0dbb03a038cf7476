//! Secrets are in no output, whatever is wrong with the file.

use super::*;

pub(super) const SECRETS: &str = r#"
[[listener]]
name = "main"
bind = "127.0.0.1:4000"
[[key]]
name = "a"
key = "sk-CANARY-plain-0123456789"
[[key]]
name = "b"
key = "file:/run/key"
[ratelimit_store]
url = "redis://u:CANARY@127.0.0.1"
[[upstream]]
name = "bearer"
url = "http://127.0.0.1:1"
auth = { type = "bearer", token = "CANARY" }
headers = [{ op = "insert", key = "x-api-key", value = "CANARY" }]
proxy = "http://u:CANARY@proxy:8080"
[[upstream]]
name = "basic"
url = "http://127.0.0.1:2"
auth = { type = "basic", username = "me", password = "CANARY" }
[[upstream]]
name = "many"
url = "http://127.0.0.1:3"
api_keys = [{ key = "CANARY1" }, { key = "${KEY}", weight = 2 }]
health = { body = "CANARY", headers = [{ op = "insert", key = "authorization", value = "CANARY" }] }
[admin]
token = "CANARY"
"#;

#[track_caller]
pub(super) fn has_no_secret(shown: &str) {
    for secret in ["CANARY", "sk-environment", "sk-from-a-file"] {
        assert!(!shown.contains(secret), "{secret} in\n{shown}");
    }
}

#[test]
fn secrets_are_in_no_output() {
    let loaded = good(SECRETS);
    has_no_secret(&format!("{:?} {:#?}", loaded.config, loaded.config));
    has_no_secret(&loaded.config.to_toml());
    has_no_secret(&loaded.report.to_string());
    // But they are there.
    let UpstreamAuth::Bearer(token) = &loaded.config.upstreams[0].auth else { panic!() };
    assert_eq!(token.expose(), b"CANARY");
    let UpstreamAuth::Basic(both) = &loaded.config.upstreams[1].auth else { panic!() };
    assert_eq!(both.expose(), b"me:CANARY");
    let UpstreamAuth::Bearer(first) = &loaded.config.upstreams[2].auth else { panic!() };
    assert_eq!(first.expose(), b"CANARY1");
    assert_eq!(loaded.config.upstreams[2].api_keys[1].key.expose(), b"sk-environment-0123456789");
}

#[test]
fn key_from_a_file_loses_its_newline() {
    use sha2::Digest as _;
    let key = &good(SECRETS).config.keys[1];
    assert_eq!(key.sha256.unwrap()[..], sha2::Sha256::digest("sk-from-a-file-0123456789")[..]);
}

#[test]
fn a_secret_out_of_a_variable_loses_one_newline_and_no_more() {
    let text = with(
        "[[upstream]]\nname=\"u\"\nurl=\"http://127.0.0.1\"\nauth={type=\"bearer\",token=\"${T}\"}\n",
    );
    for (value, expected) in
        [("abc\n", Some("abc")), ("abc\r\n", Some("abc")), ("abc\n\n", None), ("a\nbc", None)]
    {
        let env = |name: &str| (name == "T").then(|| value.to_owned());
        let config = Config::from_toml_str(&text, &env).ok();
        let token = config.map(|config| match &config.upstreams.last().unwrap().auth {
            UpstreamAuth::Bearer(token) => token.expose().to_vec(),
            other => panic!("{other:?}"),
        });
        assert_eq!(token.as_deref(), expected.map(str::as_bytes), "{value:?}");
    }
}

#[test]
fn secrets_are_in_no_fault() {
    let up = "[[upstream]]\nname=\"u\"\nurl=\"http://127.0.0.1\"\n";
    for more in [
        "[[key]]\nname=\"k\"\nkey=\"CANARY with blanks\"",
        "[[key]]\nname=\"k\"\nkye=\"CANARY\"",
        "[[key]]\nname=\"k\"\nkey=[\"CANARY\"]",
        "[[key]]\nname=\"k\"\nkey_sha256=\"CANARY\"",
        "[[key]]\nname=\"k\"\nkey=\"\"\"\nCANARY\n\"\"\"",
        "[[key]]\nname=\"k\"\nkey=\"${KEY} ${KEY}\"",
        "[[key]]\nname=\"k\"\nkey=\"${NOT_SET}CANARY\"",
        "key=\"CANARY\"",
        "key=[\"CANARY\"]",
        &format!("{up}auth={{type=\"bearr\",token=\"CANARY\"}} # was CANARY"),
        &format!("{up}auth={{type=\"bearer\",tokn=\"CANARY\"}}"),
        &format!("{up}auth=\"CANARY\""),
        &format!("{up}api_keys=[\"CANARY\"]"),
        &format!("{up}api_keys=\"CANARY\""),
        &format!("{up}api_keys=[{{key=\"CANARY\",weight=-1}}]"),
        &format!("{up}headers=[{{op=\"insrt\",key=\"authorization\",value=\"CANARY\"}}]"),
        &format!("{up}headers=[{{op=\"insert\",key=\"x-key\",value=\"CANARY\\n\"}}]"),
        &format!("{up}proxy=\"http://u:CANARY@x/path\""),
        &format!("{up}proxy=\"socks5://u:CANARY@x\""),
        "[[upstream]]\nname=\"u\"\nurl=\"http://u:CANARY@a b\"",
        "[[upstream]]\nname=\"u\"\nurl=\"http://u:CANARY@a\"",
        "[ratelimit_store]\nurl=\"http://u:CANARY@a\"",
        "[models.x]\nbackend=\"http://u:CANARY@a\"",
        "[admin]\ntoken=5\ntokn=\"CANARY\"",
        // No TOML at all.
        "[[key]]\nname=\"k\"\nkey=\"CANARY",
        "[[key]]\nname=\"k\"\nkey=CANARY",
        "[[key]]\nname=\"k\"\nkey \"CANARY\"",
        "[[key]]\nname=\"k\"\nkey=\"\"\"\nCANARY",
        "[[key]]\nname=\"k\"\nkey=\"CANARY\\q\"",
        "[[key]]\nname=\"k\"\nkey=\"a\" \"CANARY\"",
        "[[key]]\nkey=\"CANARY\"\nkey=\"CANARY\"",
        "api_keys = [\n\"CANARY\n]",
    ] {
        // Keys of the root table stand before every section.
        let text =
            if more.starts_with(['[', '\n']) { with(more) } else { format!("{more}\n{BASE}") };
        let report = try_load(&text).expect_err(more);
        has_no_secret(&report.to_string());
        has_no_secret(&format!("{report:?}"));
    }
}
