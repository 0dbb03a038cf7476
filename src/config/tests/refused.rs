//! Every kind of mistake names its culprit.

use super::*;

#[test]
fn what_the_start_would_refuse_is_refused_here() {
    check(
        "[ratelimit_store]\ntype=\"redis\"\nurl=\"rediss://:a#b@h\"",
        &["ratelimit_store.url: only #insecure may follow #; in a password write %23"],
    );
    for (one, other) in [
        ("0.0.0.0:4", "127.0.0.1:4"),
        ("127.0.0.1:4", "0.0.0.0:4"),
        ("[::]:4", "127.0.0.1:4"),
        ("[::]:4", "0.0.0.0:4"),
        ("[::1]:4", "[::]:4"),
    ] {
        let binds = format!("[[listener]]\nname=\"l\"\nbind=[\"{one}\",\"{other}\"]");
        check(&binds, &["listener.l.bind[1]", "are the same port of one machine"]);
    }
}

#[test]
fn a_route_for_no_key_is_none() {
    check(
        "[[listener]]\nname=\"l\"\nbind=\"127.0.0.1:1\"\n\
         [[listener.route]]\npath=\"/x\"\ngroup=\"chat\"\nkeys=[]",
        &["listener.l.route[0].keys: must not be empty; without it every key may use the route"],
    );
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
    check(&up("ports=[1]\ndiscover=\"srv:x\""), &["upstream.u.ports: ports and discover exclude"]);
    check(&up("tls={cert=\"c.pem\"}"), &["upstream.u.tls: cert and key need each other"]);
    check(&up("proxy=\"socks5://x\""), &["upstream.u.proxy: no proxy URL: only http://"]);
    check(&up("proxy=\"https://x\""), &["upstream.u.proxy: no proxy URL", "write http://"]);
    check(&up("proxy=\"http://x/path\""), &["upstream.u.proxy: no proxy URL: it has a path"]);
    check(&up("proxy=\"http://u:%4@x\""), &["upstream.u.proxy: no proxy URL: a \"%\""]);
    check(
        &up("proxy=\"http://x\"\ndiscover=\"dns:a:80\""),
        &["upstream.u.discover: dns: and proxy exclude each other"],
    );
    check(
        "[[upstream]]\nname=\"u\"\nurl=\"unix:/x\"\nproxy=\"http://x\"",
        &["upstream.u.proxy: a Unix socket is not reached through a proxy"],
    );
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
    check(
        "[timeouts]\nproxy_connect=\"500ms\"",
        &["timeouts.proxy_connect: 500ms is out of range 1s..120s"],
    );
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
