//! TLS of listeners and upstreams: what is in the files counts, and every fault has its place.

use std::collections::HashMap;
use std::sync::OnceLock;

use super::*;
use crate::pki::tests::authority::Authority;

/// The files there are.
pub(super) fn files() -> &'static HashMap<&'static str, String> {
    static FILES: OnceLock<HashMap<&'static str, String>> = OnceLock::new();
    FILES.get_or_init(|| {
        let authority = Authority::new("ca");
        let (cert, key) = authority.sign("main", &["a.test"]);
        let (other, other_key) = authority.sign_until("old", &["b.test"], 2021);
        let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let encrypted =
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
        let (unnamed, unnamed_key) = authority.sign("a.test", &[]);
        HashMap::from([
            ("reversed.pem", format!("{}{cert}", authority.cert)),
            ("gap.pem", format!("{cert}{other}")),
            ("unnamed.pem", unnamed),
            ("unnamed.key", unnamed_key),
            ("ca.pem", authority.cert),
            ("c.pem", cert),
            ("c.key", key),
            ("old.pem", other),
            ("old.key", other_key),
            ("garbage.pem", garbage.to_owned()),
            ("encrypted.key", encrypted.to_owned()),
            ("empty", String::new()),
        ])
    })
}

fn listener(tls: &str) -> String {
    format!("[[listener]]\nname=\"t\"\nbind=\"127.0.0.1:1\"\nauth=\"none\"\ntls={tls}\n")
}

fn upstream(more: &str) -> String {
    format!("[[upstream]]\nname=\"u\"\nmodels=[\"z\"]\n{more}\n")
}

#[test]
fn a_file_that_cannot_be_used_is_a_fault_at_its_key() {
    let tls = "listener.t.tls";
    for (cert, key, path, why) in [
        ("none.pem", "c.key", "cert", "\"none.pem\": cannot read: no such file"),
        ("c.pem", "none.key", "key", "\"none.key\": cannot read: no such file"),
        ("empty", "c.key", "cert", "\"empty\": no certificate in it"),
        ("c.pem", "empty", "key", "\"empty\": no private key in it"),
        ("garbage.pem", "c.key", "cert", "\"garbage.pem\": no good certificate"),
        ("c.pem", "encrypted.key", "key", "\"encrypted.key\": the key is encrypted"),
        ("c.pem", "old.key", "key", "\"old.key\": the key belongs to another certificate"),
        ("reversed.pem", "c.key", "cert", "\"reversed.pem\": the certificate that the key belongs"),
    ] {
        let one = format!("{{cert=\"{cert}\",key=\"{key}\"}}");
        check(&listener(&one), &[&format!("{tls}.{path}: {why}")]);
        let second = format!("[{{cert=\"c.pem\",key=\"c.key\"}},{one}]");
        check(&listener(&second), &[&format!("{tls}[1].{path}: {why}")]);
        let url = "url=\"https://h\"";
        let tls = format!("{url}\ntls={one}");
        check(&upstream(&tls), &[&format!("upstream.u.tls.{path}: {why}")]);
    }
    let both = listener("{cert=\"x\",key=\"y\",client_ca=\"z\"}");
    assert_eq!(errors(&with(&both)).len(), 3, "all at once");
    let ca = listener("{cert=\"c.pem\",key=\"c.key\",client_ca=\"empty\"}");
    check(&ca, &["listener.t.tls.client_ca: \"empty\": no certificate in it"]);
    check(&upstream("url=\"https://h\"\ntls={ca=\"empty\"}"), &["upstream.u.tls.ca: \"empty\""]);
}

#[test]
fn a_fault_has_its_line_and_caret() {
    let Err(report) = try_load(&with(&listener("{cert=\"c.pem\",key=\"old.key\"}"))) else {
        panic!("loaded");
    };
    let shown = report.to_string();
    assert!(shown.starts_with("config.toml:18:23: listener.t.tls.key: "), "{shown}");
    assert!(shown.contains("^^^^^^^^^"), "{shown}");
}

#[test]
fn settings_are_read_from_the_first_table_that_has_them() {
    let text = listener(
        "[{cert=\"c.pem\",key=\"c.key\"},{cert=\"old.pem\",key=\"old.key\",alpn=[\"h2\"],\
         client_ca=\"ca.pem\",client_auth=\"request\",min_version=\"1.3\"}]",
    );
    let tls = good(&with(&text)).config.listeners[1].tls.clone().unwrap();
    assert_eq!((tls.pairs.len(), &*tls.alpn), (2, &[Alpn::H2][..]));
    assert_eq!((tls.client_auth, tls.min_version), (ClientAuth::Request, TlsVersion::V13));
    assert_eq!(tls.client_ca.unwrap().path.to_str(), Some("ca.pem"));
    let plain = listener("{cert=\"c.pem\",key=\"c.key\"}");
    let tls = good(&with(&plain)).config.listeners[1].tls.clone().unwrap();
    assert_eq!((tls.client_ca, tls.min_version), (None, TlsVersion::V12));
    assert_eq!((tls.client_auth, tls.alpn), (ClientAuth::Require, vec![Alpn::H2, Alpn::Http11]));
    let alone = listener("{cert=\"c.pem\",key=\"c.key\",client_auth=\"request\"}");
    check(&alone, &["listener.t.tls.client_auth: needs client_ca"]);
}

#[test]
fn what_has_expired_or_is_not_verified_is_told() {
    let text = with(&listener("{cert=\"old.pem\",key=\"old.key\"}"));
    let told = |now_s| {
        let loaded = load("f", &text, &Outside { env: &env, read: &read, now_s }).unwrap();
        loaded.report.warnings.iter().map(|w| w.message.clone()).collect::<Vec<_>>()
    };
    assert_eq!(told(0), Vec::<String>::new());
    assert_eq!(told(1_600_000_000), Vec::<String>::new());
    assert_eq!(told(1_700_000_000), ["the certificate expired on 2021-01-01T00:00:00Z"]);
    let end = 1_609_459_200;
    assert_eq!(told(end - 7 * 86_400), Vec::<String>::new());
    let soon = "the certificate expires on 2021-01-01T00:00:00Z and has not been renewed";
    assert_eq!(told(end - 6 * 86_400), [soon]);
    assert_eq!(told(1), ["the certificate is not good before 2020-01-01T00:00:00Z"]);
    let chain = with(&listener("{cert=\"gap.pem\",key=\"c.key\"}"));
    let [told] = &*warnings(&chain) else { panic!("{:?}", warnings(&chain)) };
    assert!(told.starts_with("listener.t.tls.cert: certificate 2 of the chain did not"), "{told}");
    let unnamed = "{cert=\"unnamed.pem\",key=\"unnamed.key\"}";
    let expected = "listener.t.tls.cert: the certificate names no host (subjectAltName): clients \
                    refuse it";
    assert_eq!(warnings(&with(&listener(unnamed))), [expected]);
    // A client's certificate is of somebody, not of a host.
    let client = with(&upstream(&format!("url=\"https://h\"\ntls={unnamed}")));
    assert_eq!(warnings(&client), Vec::<String>::new());
    let unverified = with(&upstream("url=\"https://h\"\ntls={verify=false}"));
    let expected = "upstream.u.tls.verify: not verified: anyone on the way can read and answer \
                    everything";
    assert_eq!(warnings(&unverified), [expected]);
    let useless = with(&upstream("url=\"http://h\"\ntls={verify=false}"));
    assert_eq!(warnings(&useless), ["upstream.u.tls: has no effect: the url is not https"]);
}

#[test]
fn a_server_has_a_name_that_a_certificate_can_have() {
    let name = |name: &str| upstream(&format!("url=\"https://h\"\ntls={{server_name=\"{name}\"}}"));
    check(&name("a b"), &["upstream.u.tls.server_name: \"a b\" is neither a host name"]);
    assert!(errors(&with(&name("10.0.0.1"))).is_empty());
    let tls = good(&with(&upstream("url=\"https://h\"\ntls={ca=\"system\"}"))).config.upstreams[1]
        .tls
        .clone();
    assert_eq!(tls.ca, Authorities::System);
}

#[test]
fn a_key_needs_a_secret_or_somebody_who_vouches() {
    let key = "[[key]]\nname=\"main\"\n";
    check(key, &["key.main: missing key \"key\" or \"key_sha256\"; without both"]);
    let text = listener("{cert=\"c.pem\",key=\"c.key\",client_ca=\"ca.pem\"}");
    let config = good(&with(&format!("{text}{key}"))).config;
    assert_eq!(config.keys[0].sha256, None);
    assert!(!config.to_toml().contains("key = \"***\""));
}

#[test]
fn files_are_read_again() {
    let text = listener("{cert=\"c.pem\",key=\"c.key\",client_ca=\"ca.pem\"}");
    let tls = good(&with(&text)).config.listeners[1].tls.clone().unwrap();
    let names: Vec<_> = tls.files().iter().filter_map(|path| path.to_str()).collect();
    assert_eq!(names, ["c.pem", "c.key", "ca.pem"]);
    assert_eq!(tls.reread(&read).as_ref(), Ok(&tls));
    let renewed = |path: &std::path::Path| match path.to_str() {
        Some("c.pem") => Ok(files()["old.pem"].clone()),
        Some("c.key") => Ok(files()["old.key"].clone()),
        _ => read(path),
    };
    let after = tls.reread(&renewed).unwrap();
    assert!(after != tls && after.client_ca == tls.client_ca);
    let half = |path: &std::path::Path| match path.to_str() {
        Some("c.pem") => Ok(files()["old.pem"].clone()),
        _ => read(path),
    };
    assert_eq!(tls.reread(&half), Err("c.key: the key belongs to another certificate".to_owned()));
    let text = upstream("url=\"https://h\"\ntls={ca=\"ca.pem\",cert=\"c.pem\",key=\"c.key\"}");
    let tls = good(&with(&text)).config.upstreams[1].tls.clone();
    assert_eq!(tls.files().len(), 3);
    assert!(tls.reread(&renewed).unwrap() != tls);
    let gone = |_: &std::path::Path| Err("gone".to_owned());
    let bytes = |_: &std::path::Path| Err("stream did not contain valid UTF-8".to_owned());
    assert!(tls.reread(&bytes).unwrap_err().ends_with("; PEM is wanted, not DER or PKCS #12"));
    assert_eq!(
        tls.reread(&gone),
        Err("ca.pem: cannot read: gone".to_owned()),
        "the file and the reason"
    );
}

#[test]
fn limits_of_http2_have_ranges() {
    let h2 = |text: &str| format!("[limits]\nh2={{{text}}}\n");
    let limits = good(&with(&h2("window=\"2MiB\",resets=7,frames_window=\"1m\""))).config.limits.h2;
    assert_eq!((limits.window, limits.connection_window, limits.resets), (2 << 20, 2 << 20, 7));
    assert_eq!((limits.frames_window.as_secs(), limits.pings), (60, 100));
    assert_eq!(good(BASE).config.limits.h2, H2Limits::default());
    check(&h2("streams=0"), &["limits.h2.streams: 0 is out of range 1..10000"]);
    check(&h2("window=\"1KiB\""), &["limits.h2.window: 1KiB is out of range"]);
    let less = h2("window=\"1MiB\",connection_window=\"64KiB\"");
    check(&less, &["limits.h2.connection_window: less than limits.h2.window"]);
    check(&h2("resets=0"), &["limits.h2.resets: 0 is out of range"]);
}

#[test]
fn the_store_of_limits_has_the_tls_of_an_upstream() {
    let store = |more: &str| format!("[ratelimit_store]\ntype=\"redis\"\n{more}\n");
    let text = store("url=\"rediss://u:CANARY@h/2\"\ntls={ca=\"ca.pem\",server_name=\"x\"}");
    let tls = good(&with(&text)).config.ratelimit_store.tls;
    assert!(matches!(&tls.ca, Authorities::File(file) if file.path.ends_with("ca.pem")));
    assert_eq!((tls.server_name.as_deref(), tls.verify), (Some("x"), true));
    assert_eq!(warnings(&with(&text)), Vec::<String>::new());
    check(
        &store("url=\"rediss://h\"\ntls={ca=\"none.pem\"}"),
        &["ratelimit_store.tls.ca: \"none.pem\": cannot read"],
    );
    let told = "not verified: anyone on the way can read and answer everything";
    for (url, at) in
        [("rediss://h#insecure", "url"), ("rediss://h\"\ntls.verify=false#", "tls.verify")]
    {
        let text = with(&store(&format!("url=\"{url}\"")));
        assert!(!good(&text).config.ratelimit_store.tls.verify, "{text}");
        assert_eq!(warnings(&text), [format!("ratelimit_store.{at}: {told}")]);
    }
    let text = with(&store("url=\"redis://h\"\ntls={ca=\"ca.pem\"}"));
    let told = "ratelimit_store.tls: has no effect: the url is not rediss://";
    assert_eq!(warnings(&text), [told]);
}
