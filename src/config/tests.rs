//! Tests of the loader as a whole: what is refused, what is warned of, what is shown.

use proptest::prelude::*;

use super::*;

fn env(name: &str) -> Option<String> {
    match name {
        "KEY" => Some("sk-environment-0123456789".to_owned()),
        "GROUP" => Some("nowhere".to_owned()),
        _ => None,
    }
}

fn read(path: &std::path::Path) -> Result<String, String> {
    match path.to_str() {
        Some("/run/key") => Ok("sk-from-a-file-0123456789\n".to_owned()),
        _ => Err("no such file".to_owned()),
    }
}

fn try_load(text: &str) -> Result<Loaded, Report> {
    load("config.toml", text, &Outside { env: &env, read: &read })
}

#[track_caller]
fn good(text: &str) -> Loaded {
    try_load(text).unwrap_or_else(|report| panic!("{report}"))
}

/// A file that works, to which each case adds a mistake.
const BASE: &str = r#"
[[listener]]
name = "main"
bind = "127.0.0.1:4000"
auth = "none"
default_group = "chat"
[[upstream]]
name = "gpu0"
url = "http://127.0.0.1:8000"
models = ["a"]
[[group]]
name = "chat"
members = ["gpu0"]
"#;

fn with(more: &str) -> String {
    format!("{BASE}{more}")
}

/// Every error as `path: message`.
fn errors(text: &str) -> Vec<String> {
    match try_load(text) {
        Ok(_) => Vec::new(),
        Err(report) => report.errors.iter().map(|f| format!("{}: {}", f.path, f.message)).collect(),
    }
}

fn warnings(text: &str) -> Vec<String> {
    let report = good(text).report;
    report.warnings.iter().map(|f| format!("{}: {}", f.path, f.message)).collect()
}

/// Exactly one error, which holds all of `parts`.
#[track_caller]
fn check(more: &str, parts: &[&str]) {
    let errors = errors(&with(more));
    assert_eq!(errors.len(), 1, "{more}\n{errors:#?}");
    for part in parts {
        assert!(errors[0].contains(part), "{more}\nwanted {part:?} in {:?}", errors[0]);
    }
}

#[test]
fn base_is_good_and_silent() {
    let loaded = good(BASE);
    assert_eq!(loaded.report.warnings, []);
    assert_eq!(loaded.config.models.len(), 1);
}

#[test]
fn names_the_culprit_of_groups() {
    check(
        "[[group]]\nname=\"g\"\nmembers=[\"gpu1\"]",
        &["group.g.members[0]", "no upstream named \"gpu1\"", "did you mean \"gpu0\"?"],
    );
    check(
        "[[group]]\nname=\"chat\"\nmembers=[\"gpu0\"]",
        &["group.chat.name: duplicate group \"chat\"", "line 12"],
    );
    check("[[group]]\nname=\"g\"\nmembers=[]", &["group.g.members: must not be empty"]);
    check("[[group]]\nname=\"g\"", &["group.g: missing key \"members\""]);
    check("[[group]]\nname=\"g\"\nmembers=[\"gpu0\",\"gpu0\"]", &["\"gpu0\" is a member twice"]);
    check(
        "[[group]]\nname=\"g\"\nmembers=[{upstream=\"gpu0\",weight=0}]",
        &["group.g.members[0].weight: 0 is out of range 1..65535"],
    );
    check(
        "[[group]]\nname=\"g\"\nmembers=[{upstream=\"gpu0\",weight=65536}]",
        &["65536 is out of range"],
    );
    check(
        "[[group]]\nname=\"g\"\nmembers=[\"gpu0\"]\nbalance=\"roundrobbin\"",
        &["group.g.balance", "did you mean \"round_robin\"?"],
    );
    check(
        "[[group]]\nname=\"g\"\nmembers=[\"gpu0\"]\nretry={attempts=101}",
        &["group.g.retry.attempts: 101 is out of range 0..100"],
    );
    check(
        "[[group]]\nname=\"g\"\nmembers=[\"gpu0\"]\nretry={initial=\"50ms\"}",
        &["50ms is out of range 100ms..10s"],
    );
    check(
        "[[group]]\nname=\"g\"\nmembers=[\"gpu0\"]\nretry={initial=\"5s\",max=\"1s\"}",
        &["group.g.retry.max: less than initial"],
    );
    check(
        "[[group]]\nname=\"g\"\nmembers=[\"gpu0\"]\nretry={on=[\"conect\"]}",
        &["group.g.retry.on[0]", "did you mean \"connect\"?"],
    );
    check(
        "[[group]]\nname=\"g\"\nmembers=[\"gpu0\"]\nfallback=[\"g\"]",
        &["group.g.fallback: leads back"],
    );
    check(
        "[[group]]\nname=\"g\"\nmembers=[\"gpu0\"]\naffinity={by=\"prefixx\"}",
        &["group.g.affinity.by", "did you mean \"prefix\"?"],
    );
    check("[[group]]\nmembers=[\"gpu0\"]", &["group[1]: missing key \"name\""]);
    check("[[group]]\nname=\"\"\nmembers=[\"gpu0\"]", &["name: must not be empty"]);
    check("[[group]]\nname=\"a:b\"\nmembers=[\"gpu0\"]", &["\"a:b\" is no name"]);
}

#[test]
fn names_the_culprit_of_upstreams() {
    let up = |rest: &str| format!("[[upstream]]\nname=\"u\"\nurl=\"http://10.0.0.1\"\n{rest}");
    check(
        "[[upstream]]\nname=\"gpu0\"\nurl=\"http://a\"",
        &["upstream.gpu0.name: duplicate upstream", "line 8"],
    );
    check(
        "[[upstream]]\nname=\"u\"\nurl=\"127.0.0.1:80\"",
        &["upstream.u.url: \"127.0.0.1:80\" is no base URL", "scheme"],
    );
    check("[[upstream]]\nname=\"u\"\nurl=\"ftp://a\"", &["neither http nor https"]);
    check("[[upstream]]\nname=\"u\"\nurl=\"\"", &["upstream.u.url"]);
    check("[[upstream]]\nname=\"u\"\nurl=\"http://a:99999\"", &["port is not in 1..65535"]);
    check("[[upstream]]\nname=\"u\"", &["upstream.u: missing key \"url\""]);
    check(&up("auth={type=\"bearer\"}"), &["upstream.u.auth: missing key \"token\""]);
    check(&up("auth={type=\"bearer\",token=\"\"}"), &["upstream.u.auth.token: must not be empty"]);
    check(&up("auth={type=\"basic\",username=\"x\"}"), &["missing key \"password\""]);
    check(
        &up("auth={type=\"bearr\",token=\"x\"}"),
        &["upstream.u.auth.type", "did you mean \"bearer\"?"],
    );
    check(&up("auth={token=\"x\"}"), &["missing key \"type\""]);
    check(&up("auth={type=\"none\",token=\"x\"}"), &["upstream.u.auth.token: has no meaning"]);
    check(
        &up("breaker={threshold=1.5}"),
        &["upstream.u.breaker.threshold: 1.5 is out of range 0.01..1.0"],
    );
    check(&up("breaker={threshold=0.0}"), &["out of range 0.01..1.0"]);
    check(
        &up("breaker={cooldown=\"2h\"}"),
        &["upstream.u.breaker.cooldown: 2h is out of range 1s..1h"],
    );
    check(
        &up("headers=[{op=\"insert\",key=\"a b\",value=\"x\"}]"),
        &["upstream.u.headers[0].key: \"a b\" is no field name"],
    );
    check(
        &up("headers=[{op=\"insert\",key=\"content-length\",value=\"1\"}]"),
        &["content-length is written by the proxy"],
    );
    check(
        &up("headers=[{op=\"insert\",key=\"x\"}]"),
        &["upstream.u.headers[0]: missing key \"value\""],
    );
    check(
        &up("headers=[{op=\"add\",key=\"x\",value=\"y\"}]"),
        &["upstream.u.headers[0].op", "none of insert, replace, remove"],
    );
    check(
        &up("health={interval=\"5s\",timeout=\"6s\"}"),
        &["upstream.u.health.timeout: longer than interval"],
    );
    check(&up("ports=[8000,8000]"), &["upstream.u.ports[1]: port 8000 is listed twice"]);
    check(&up("ports=[0]"), &["0 is out of range 1..65535"]);
    check(&up("models=\"discovr\""), &["upstream.u.models", "neither \"discover\""]);
    check(&up("discover=\"consul:x\""), &["upstream.u.discover"]);
    check(&up("tls={cert=\"c.pem\"}"), &["upstream.u.tls: cert and key need each other"]);
    check(&up("proxy=\"socks5://x\""), &["upstream.u.proxy: no proxy URL"]);
    check(&up("host=\"a b\""), &["upstream.u.host"]);
    check(&up("path_mode=\"prefix\""), &["upstream.u.path_mode"]);
    check(&up("reuse=\"sometimes\""), &["upstream.u.reuse"]);
}

#[test]
fn names_the_culprit_of_listeners() {
    let other = |rest: &str| {
        format!("[[listener]]\nname=\"l\"\nbind=\"127.0.0.1:1\"\nauth=\"none\"\n{rest}")
    };
    check(
        "[[listener]]\nname=\"main\"\nbind=\"127.0.0.1:1\"\nauth=\"none\"",
        &["listener.main.name: duplicate listener"],
    );
    check(
        "[[listener]]\nname=\"l\"\nbind=\"127.0.0.1:4000\"\nauth=\"none\"",
        &["bound twice", "listener.main.bind", "line 4"],
    );
    check(
        "[[listener]]\nname=\"l\"\nbind=\"localhost\"\nauth=\"none\"",
        &["listener.l.bind: \"localhost\" is no address"],
    );
    check("[[listener]]\nname=\"l\"\nauth=\"none\"", &["listener.l: missing key \"bind\""]);
    check(
        &other("default_group=\"chta\""),
        &["listener.l.default_group: no group named \"chta\", did you mean \"chat\"?"],
    );
    check(&other("trusted_proxies=[\"10.0.0.0/33\"]"), &["listener.l.trusted_proxies[0]"]);
    check(&other("accept=[\"bearrer\"]"), &["listener.l.accept[0]", "did you mean \"bearer\"?"]);
    check(&other("ratelimit={per_second=10001}"), &["per_second: 10001 is out of range 1..10000"]);
    check(&other("ratelimit={burst=20001}"), &["burst: 20001 is out of range 1..20000"]);
    check(
        &other("timeouts={client_head=\"soon\"}"),
        &["listener.l.timeouts.client_head: \"soon\" is no time"],
    );
    check(&other("timeouts={connect=\"1s\"}"), &["listener.l.timeouts.connect: unknown key"]);
    check(
        &other("[[listener.route]]\ngroup=\"chat\""),
        &["listener.l.route[0]: a route needs a path or a host"],
    );
    check(
        &other("[[listener.route]]\npath=\"/a\""),
        &["listener.l.route[0]: missing key \"group\""],
    );
    check(
        &other("[[listener.route]]\npath=\"a\"\ngroup=\"chat\""),
        &["listener.l.route[0].path", "begins with /"],
    );
    check(
        &other("[[listener.route]]\npath=\"/{a:[}\"\ngroup=\"chat\""),
        &["listener.l.route[0].path", "regex"],
    );
    check(
        &other("[[listener.route]]\npath=\"/a\"\ngroup=\"x\""),
        &["listener.l.route[0].group: no group named \"x\""],
    );
    check(
        &other("[[listener.route]]\nhost=\"a.test\"\ngroup=\"chat\"\nkeys=[\"k\"]"),
        &["listener.l.route[0].keys[0]: no key named \"k\""],
    );
    check(
        &other(
            "[[listener.route]]\npath=\"/a/:x\"\ngroup=\"chat\"\n[[listener.route]]\npath=\"/a/:y\"\ngroup=\"chat\"",
        ),
        &["listener.l.route[1].path: duplicate path", "listener.l.route[0].path in line 19"],
    );
    check(
        &other(
            "[[listener.route]]\nhost=\"A.test/x\"\ngroup=\"chat\"\n[[listener.route]]\nhost=\"a.test/x/\"\ngroup=\"chat\"",
        ),
        &["listener.l.route[1].host", "listener.l.route[0].host in line 19"],
    );
}

#[test]
fn names_the_culprit_of_the_rest() {
    check("[process]\ndrain=\"2h\"", &["process.drain: 2h is out of range 1s..1h"]);
    check("[process]\ncores=0", &["process.cores: 0 is out of range"]);
    check("[process]\ncores=[1,1]", &["core 1 is listed twice"]);
    check("[process]\ncores=\"all\"", &["process.cores: \"all\" is neither"]);
    check("[process]\nio=\"iouringg\"", &["did you mean"]);
    check("[timeouts]\nconnect=\"121s\"", &["timeouts.connect: 121s is out of range 1s..120s"]);
    check("[timeouts]\ntcp_keepalive=\"4s\"", &["4s is out of range 5s..600s"]);
    check("[timeouts]\npool_idle=\"31min\"", &["1860s is out of range 5s..1800s"]);
    check(
        "[timeouts]\nfirst_byte=30",
        &["timeouts.first_byte: expected a time", "found an integer"],
    );
    check("[timeouts]\nfirst_byte=\"30\"", &["a number without a unit"]);
    check("[limits]\nhead=\"64kb0\"", &["limits.head", "is no size"]);
    check("[limits]\nbody_held=\"65MiB\"", &["limits.body_held: more than limits.body"]);
    check("[limits]\nfields=true", &["limits.fields: expected an integer, found a boolean"]);
    check("[log]\nlevel=\"inf\"", &["did you mean \"info\"?"]);
    check("[admin]\nbind=\"0.0.0.0:9000\"", &["admin.bind: not loopback and without a token"]);
    check("[admin]\npersist=true", &["admin.persist: needs process.state_dir"]);
    check("[admin]\nbind=\"127.0.0.1:4000\"", &["bound twice"]);
    check(
        "[models.x]\ngroup=\"chta\"",
        &["models.x.group: no group named \"chta\", did you mean \"chat\"?"],
    );
    check("[models.x]", &["models.x: leads nowhere"]);
    check(
        "[models.x]\ngroup=\"chat\"\nupstream=\"gpu0\"",
        &["models.x: group, upstream and backend exclude"],
    );
    check("[models.x]\nbackend=\"a b\"", &["models.x.backend"]);
    check(
        "[models.x]\ngroup=\"chat\"\naliases=[\"y\"]\n[models.y]\ngroup=\"chat\"",
        &["models.x.aliases[0]: \"y\" is already models.y in line 17"],
    );
    check(
        "[models.x]\ngroup=\"chat\"\naliases=[\"q\",\"q\"]",
        &["\"q\" is already models.x.aliases[0]"],
    );
    check("[[key]]\nname=\"k\"", &["key.k: missing key \"key\" or \"key_sha256\""]);
    check("[[key]]\nname=\"k\"\nkey=\"a b\"", &["key.k.key: holds a blank"]);
    check(
        "[[key]]\nname=\"k\"\nkey_sha256=\"12\"",
        &["key.k.key_sha256: not 64 hexadecimal digits"],
    );
    check(
        "[[key]]\nname=\"k\"\nkey=\"0123456789abcdef\"\n[[key]]\nname=\"l\"\nkey=\"0123456789abcdef\"",
        &["key.l: the same key as key.k in line 14"],
    );
    check(
        "[[key]]\nname=\"k\"\nkey=\"0123456789abcdef\"\nexpires=\"tomorrow\"",
        &["key.k.expires: \"tomorrow\" is no date"],
    );
    check("[[key]]\nname=\"k\"\nkey=\"0123456789abcdef\"\nmodels=[\"a*b\"]", &["key.k.models[0]"]);
    check(
        "[[key]]\nname=\"k\"\nkey=\"0123456789abcdef\"\nlisteners=[\"mian\"]",
        &["key.k.listeners[0]: no listener named \"mian\", did you mean \"main\"?"],
    );
    check("[[key]]\nname=\"k\"\nkey=\"file:/nowhere\"", &["key.k.key: cannot read the file"]);
    check(
        "[[key]]\nname=\"k\"\nkey=\"${NOT_SET}\"",
        &["key.k.key: environment variable NOT_SET is not set"],
    );
    check("[key]\nname=\"k\"", &["key: expected a list, found a table"]);
    check(
        "[ratelimit_store]\ntype=\"reddis\"",
        &["ratelimit_store.type", "did you mean \"redis\"?"],
    );
    check("[ratelimit_store]\nurl=\"http://x\"", &["ratelimit_store.url: no Redis URL"]);
    check("[discovery]\nttl=\"0s\"", &["discovery.ttl: 0s is out of range"]);
    check("[limit]\nbody=1", &["limit: unknown key, did you mean \"limits\"?"]);
    check("[limits]\nbdy=1", &["limits.bdy: unknown key, did you mean \"body\"?"]);
    assert_eq!(
        errors(""),
        ["no [[listener]]: there is nothing to listen on"].map(|m| format!(": {m}"))
    );
}

#[test]
fn a_file_that_is_no_toml_has_places_too() {
    let report = try_load("[process]\ndrain = \nio = \"auto\"\nx y\n").unwrap_err();
    assert!(report.errors.len() >= 2, "{report}");
    assert_eq!(report.errors[0].line, 2);
    let report = try_load("a = 1\na = 2\n").unwrap_err();
    assert!(report.to_string().contains("config.toml:2:1: duplicate key"), "{report}");
}

#[test]
fn reports_everything_at_once() {
    let text = with(
        "[process]\ndrain=\"9h\"\ncoers=1\n[limits]\nhead=true\n[[upstream]]\nname=\"u\"\nurl=\"x\"\n\
         [[group]]\nname=\"g\"\nmembers=[\"no\",{upstream=\"gpu0\",weight=0,wieght=1}]\n\
         [models.m]\ngroup=\"none\"\n[[listener]]\nname=\"l\"\nbind=\"x\"\n",
    );
    let paths: Vec<_> = try_load(&text).unwrap_err().errors.into_iter().map(|f| f.path).collect();
    assert_eq!(
        paths,
        [
            "process.drain",
            "process.coers",
            "limits.head",
            "upstream.u.url",
            "group.g.members[0]",
            "group.g.members[1].weight",
            "group.g.members[1].wieght",
            "models.m.group",
            "listener.l.bind",
        ]
    );
}

#[test]
fn shows_place_message_line_and_caret() {
    let report = try_load(&with("[models.m]\ngroup = \"chta\" # here\n")).unwrap_err();
    assert_eq!(
        report.to_string(),
        "config.toml:15:9: models.m.group: no group named \"chta\", did you mean \"chat\"?\n \
         15 | group = \"chta\" # here\n    |         ^^^^^^\n"
    );
}

#[test]
fn quotes_the_source_of_what_was_substituted() {
    let errors = errors(&with("[models.m]\ngroup = \"${GROUP}\"\n"));
    assert_eq!(errors, ["models.m.group: no group named \"${GROUP}\""]);
}

const SECRETS: &str = r#"
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
fn has_no_secret(shown: &str) {
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
    assert_eq!(key.sha256[..], sha2::Sha256::digest("sk-from-a-file-0123456789")[..]);
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
    let text = BASE.replace("members = ", "balance=\"leastconn\"\nmembers = ");
    assert_eq!(warnings(&text), ["group.chat.balance: not implemented yet; acts as round_robin"]);
    let text = BASE.replace("members = ", "balance=\"failover\"\nmembers = ");
    assert_eq!(warnings(&text), Vec::<String>::new());
    let text = BASE.replace("models = ", "breaker={threshold=0.5,trials=2}\nmodels = ");
    assert_eq!(
        warnings(&text),
        ["upstream.gpu0.breaker.trials: not implemented yet; has no effect"]
    );
    let text = with("[[key]]\nname=\"k\"\nkey=\"0123456789abcdef\"\nrpm=5\nrpd=0");
    assert_eq!(warnings(&text), ["key.k.rpm: not implemented yet; has no effect"]);
}

#[test]
fn implicit_groups_follow_the_declared_ones() {
    let text = with(
        "[[upstream]]\nname=\"gpu1\"\nurl=\"http://127.0.0.1:8001\"\nmodels=[\"b\",\"a\"]\n\
         [models.m]\nupstream=\"gpu1\"\n[models.n]\nbackend=\"127.0.0.1:8080\"\n\
         [models.o]\nbackend=\"127.0.0.1:8080\"\n",
    );
    let config = good(&text).config;
    let names: Vec<_> = config.groups.iter().map(|g| (g.name.as_str(), g.implicit)).collect();
    assert_eq!(
        names,
        [
            ("chat", false),
            ("gpu0", true),
            ("gpu1", true),
            ("127.0.0.1:8080", true),
            ("gpu0+gpu1", true),
        ]
    );
    let models: Vec<_> = config
        .models
        .iter()
        .map(|m| (m.name.as_str(), config.group(m.group).name.as_str()))
        .collect();
    assert_eq!(
        models,
        [
            ("m", "gpu1"),
            ("n", "127.0.0.1:8080"),
            ("o", "127.0.0.1:8080"),
            ("a", "gpu0+gpu1"),
            ("b", "gpu1"),
        ]
    );
    assert_eq!(config.upstreams.len(), 3);
    for (index, upstream) in config.upstreams.iter().enumerate() {
        let members = &config.group(upstream.group).members;
        assert_eq!(members.as_slice(), [Member { upstream: UpstreamId(index as u16), weight: 1 }]);
    }
    assert_eq!(config.group_named("gpu0"), None);
    assert_eq!(config.group_named("chat"), Some(GroupId(0)));
}

#[test]
fn ports_make_several_upstreams() {
    let text = with(
        "[[upstream]]\nname=\"vllm\"\nurl=\"http://10.0.0.1/base\"\nports=[8001,8002]\nmodels=[\"x\"]\n\
         [[group]]\nname=\"g\"\nmembers=[\"vllm\"]\n[models.one]\nupstream=\"vllm-8002\"\n\
         [models.all]\nupstream=\"vllm\"\n",
    );
    let config = good(&text).config;
    let urls: Vec<_> = config.upstreams.iter().map(|u| u.url.original.as_str()).collect();
    assert_eq!(
        urls,
        ["http://127.0.0.1:8000", "http://10.0.0.1:8001/base", "http://10.0.0.1:8002/base"]
    );
    assert_eq!(config.group(config.group_named("g").unwrap()).members.len(), 2);
    let of = |name: &str| {
        &config.group(config.models.iter().find(|m| m.name == name).unwrap().group).name
    };
    assert_eq!((of("one").as_str(), of("x").as_str()), ("vllm-8002", "vllm-8001+vllm-8002"));
    assert_eq!(of("all"), of("x"));
}

#[test]
fn timeouts_are_resolved() {
    let text = with(
        "timeouts={first_byte=\"5s\"}\n[timeouts]\nfirst_byte=\"9s\"\nconnect=\"2s\"\nclient_head=\"3s\"\n\
         [[listener]]\nname=\"l\"\nbind=\"127.0.0.1:1\"\nauth=\"none\"\ntimeouts={client_head=\"1s\"}",
    );
    let config = good(&text).config;
    let secs = std::time::Duration::from_secs;
    assert_eq!(
        (config.groups[0].timeouts.first_byte, config.groups[0].timeouts.connect),
        (secs(5), secs(2))
    );
    assert_eq!(config.groups[1].timeouts.first_byte, secs(9));
    assert_eq!(config.listeners[0].timeouts.client_head, secs(3));
    assert_eq!(config.listeners[1].timeouts.client_head, secs(1));
    assert_eq!(config.timeouts.upstream.total, None);
}

#[test]
fn discovered_names_come_last_and_are_replaced() {
    let urls = ["http://127.0.0.1:1", "127.0.0.1:2"];
    let names = [vec!["x".to_owned(), "y".to_owned()], vec!["y".to_owned()]];
    let config = Config::for_backends(&urls, &names).unwrap();
    let of = |config: &Config, name: &str| {
        let model = config.models.iter().find(|m| m.name == name)?;
        Some(config.group(model.group).name.clone())
    };
    assert_eq!(of(&config, "x").as_deref(), Some("backend1"));
    assert_eq!(of(&config, "y").as_deref(), Some("backend1+backend2"));
    assert_eq!(config.listeners[0].default_group, None);
    let next = config.with_discovered(&[(UpstreamId(1), vec!["x".to_owned()])]);
    assert_eq!((of(&next, "x").as_deref(), of(&next, "y")), (Some("backend2"), None));
    let one = Config::for_backends(&urls[..1], &[]).unwrap();
    assert_eq!(one.listeners[0].default_group, Some(GroupId(0)));
    assert!(
        Config::for_backends(&["ftp://x"], &[]).unwrap_err().to_string().contains("command line")
    );
}

#[test]
fn unix_sockets_and_fixed_urls() {
    let text = with(
        "[[upstream]]\nname=\"s\"\nurl=\"unix:/run/x.sock\"\n[[upstream]]\nname=\"f\"\n\
         url=\"https://api.test/v1/chat?x=1\"\npath_mode=\"fixed\"\n[[upstream]]\nname=\"b\"\n\
         url=\"https://[2001:db8::1]:8443/base/\"\n",
    );
    let config = good(&text).config;
    let [_, socket, fixed, base] = &config.upstreams[..] else { panic!() };
    assert!(
        socket.url.unix
            && socket.url.host == "/run/x.sock"
            && socket.url.authority() == "localhost"
    );
    assert_eq!((fixed.url.base_path.as_str(), fixed.url.port), ("/v1/chat?x=1", 443));
    assert_eq!(fixed.url.authority(), "api.test");
    assert_eq!(
        (base.url.base_path.as_str(), base.url.authority()),
        ("/base", "[2001:db8::1]:8443".to_owned())
    );
}

#[test]
fn what_is_printed_loads_and_prints_the_same() {
    let text = with(
        "[process]\ncores=[0,1]\n[models.\"a.b\"]\nbackend=\"127.0.0.1:8080\"\naliases=[\"$${X}\"]\n\
         [models.p]\nupstream=\"v\"\n[[upstream]]\nname=\"v\"\nurl=\"http://10.0.0.1\"\nports=[1,2]\n\
         host=\"client\"\nhealth={}\ndiscover=\"dns:x:80\"\nproxy=\"http://p:8080\"\n\
         headers=[{op=\"remove\",key=\"X-A\"},{op=\"replace\",key=\"b\",value=\"c \\\" d\"}]\n\
         [[group]]\nname=\"g\"\nmembers=[{upstream=\"gpu0\",weight=3}]\nretry={on=[\"5xx\",\"429\"]}\n\
         affinity={by=\"header:X-S\"}\nfallback=[\"chat\"]\nserve=[\"ollama\"]\n\
         [[listener]]\nname=\"l\"\nbind=[\"unix:/x\",\"[::1]:1\"]\nauth=\"none\"\n\
         tls={cert=\"c\",key=\"k\"}\nratelimit={}\naccept=[\"raw\",\"query:K\"]\n\
         [[listener.route]]\nhost=\"A.test/p\"\npath=\"/{id:[0-9]+}\"\ngroup=\"g\"\n\
         [[key]]\nname=\"k\"\nkey=\"***\"\nexpires=2030-01-01\nmodels=[\"a\",\"b*\"]\nlisteners=[\"l\"]\n\
         [admin]\nbind=\"127.0.0.1:9000\"\n",
    );
    let printed = good(&text).config.to_toml();
    let again = good(&printed).config.to_toml();
    assert_eq!(printed, again);
    for part in [
        "body_held = \"2MiB\"",
        "connect = \"10s\"",
        "backend = \"http://127.0.0.1:8080\"",
        "v-1+v-2",
    ] {
        assert!(printed.contains(part), "{part} in\n{printed}");
    }
}

#[test]
fn the_example_loads_without_errors() {
    let text = include_str!("../../config.example.toml");
    let env = |name: &str| name.ends_with("_KEY").then(|| format!("{name}-0123456789abcdef"));
    let outside = Outside { env: &env, read: &read };
    let loaded = load("config.example.toml", text, &outside).unwrap_or_else(|r| panic!("{r}"));
    has_no_secret(&loaded.report.to_string());
}

/// The sections of the example, each with its lines, comment signs taken off.
fn example_sections() -> Vec<(String, Vec<String>)> {
    let text = include_str!("../../config.example.toml");
    let known = tests_support::schema_paths();
    let mut sections = vec![(String::new(), Vec::new())];
    for line in text.lines() {
        let line = line.trim_start().trim_start_matches('#').trim_start();
        let bare = line.trim_matches(['[', ']']);
        let name = bare.split(".\"").next().unwrap_or_default();
        if line.starts_with('[') && known.contains(name) {
            sections.push((name.to_owned(), Vec::new()));
        } else if let Some((_, lines)) = sections.last_mut() {
            lines.push(line.to_owned());
        }
    }
    sections
}

#[test]
fn every_key_stands_in_the_example() {
    let sections = example_sections();
    let mut missing = Vec::new();
    for path in tests_support::schema_paths() {
        let mut parts = path.split('.');
        let top = parts.next().unwrap_or_default();
        let rest: Vec<_> = parts.collect();
        let found = match rest.as_slice() {
            [] => sections.iter().any(|(name, _)| name == top),
            // A section of its own, or a key of the section, or a key in a key's table.
            [key] => sections.iter().any(|(name, lines)| {
                name == &format!("{top}.{key}")
                    || (name == top && lines.iter().any(|l| says(l, key)))
            }),
            [outer, key, ..] => sections.iter().any(|(name, lines)| {
                (name == &format!("{top}.{outer}") && lines.iter().any(|l| says(l, key)))
                    || (name == top
                        && lines.iter().any(|l| says(l, outer))
                        && all_held(lines, &rest[1..]))
            }),
        };
        if !found {
            missing.push(path);
        }
    }
    assert!(missing.is_empty(), "not in config.example.toml: {missing:#?}");
}

/// Whether a line sets a key.
fn says(line: &str, key: &str) -> bool {
    line.strip_prefix(key).is_some_and(|rest| rest.trim_start().starts_with('='))
}

/// Whether inline tables on some lines have all of these keys.
fn all_held(lines: &[String], keys: &[&str]) -> bool {
    keys.iter().all(|key| lines.iter().any(|line| holds(line, key)))
}

/// Whether an inline table on a line has a key.
fn holds(line: &str, key: &str) -> bool {
    line.split(['{', ',']).any(|part| says(part.trim_start(), key))
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
