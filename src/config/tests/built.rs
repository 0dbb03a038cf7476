//! What a good file comes to.

use super::*;

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
fn what_a_group_does_not_say_is_as_in_group_defaults() {
    let groups = "retry = { attempts = 5 }\n[group_defaults]\nretry = { initial = \"1s\", same = true }\n\
                  balance = \"random\"\nqueue = { length = 7 }\n";
    let config = good(&with(groups)).config;
    let chat = &config.groups[0];
    assert_eq!((chat.retry.attempts, chat.retry.same, chat.queue.length), (5, true, 7));
    // And so are those that no [[group]] says, also when they come later.
    let (own, found) = (&config.groups[1], "several".to_owned());
    assert!(own.implicit && own.retry.attempts == 2 && own.retry.same);
    assert_eq!((own.balance, own.retry.initial.as_secs()), (Balance::Random, 1));
    let urls = ["http://127.0.0.1:1", "http://127.0.0.1:2"];
    let both = for_backends(&urls, &[vec![found.clone()], vec![found]]).unwrap();
    assert_eq!(both.groups.last().unwrap().balance, Balance::LeastConn);
}

#[test]
fn ports_make_several_upstreams() {
    let text = with(
        "[[upstream]]\nname=\"vllm\"\nurl=\"http://10.0.0.1/base\"\nports=[8001,8002]\nmodels=[\"x\"]\n\
         [[group]]\nname=\"g\"\nmembers=[\"vllm\"]\n[models.one]\nupstream=\"vllm-8002\"\n\
         [models.all]\nupstream=\"vllm\"\n",
    );
    let config = good(&text).config;
    let urls: Vec<_> = config.upstreams.iter().map(|u| u.url.original.expose()).collect();
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

/// As `serve --backend URL…` makes it; `models[i]` are the names that `urls[i]` reported.
fn for_backends(urls: &[&str], models: &[Vec<String>]) -> Result<Config, Report> {
    let urls: Vec<String> = urls.iter().map(|&url| url.to_owned()).collect();
    let said = WithoutFile { backends: &urls, ..WithoutFile::default() };
    let config = load_sources(&said.sources(), &Outside::NOTHING)?.config;
    let found: Vec<_> = (0..=u16::MAX).map(UpstreamId).zip(models.iter().cloned()).collect();
    Ok(config.with_discovered(&found, &[]))
}

#[test]
fn discovered_names_come_last_and_are_replaced() {
    let urls = ["http://127.0.0.1:1", "127.0.0.1:2"];
    let names = [vec!["x".to_owned(), "y".to_owned()], vec!["y".to_owned()]];
    let config = for_backends(&urls, &names).unwrap();
    let of = |config: &Config, name: &str| {
        let model = config.models.iter().find(|m| m.name == name)?;
        Some(config.group(model.group).name.clone())
    };
    assert_eq!(of(&config, "x").as_deref(), Some("backend1"));
    assert_eq!(of(&config, "y").as_deref(), Some("backend1+backend2"));
    assert_eq!(config.listeners[0].default_group, None);
    let next = config.with_discovered(&[(UpstreamId(1), vec!["x".to_owned()])], &[]);
    assert_eq!((of(&next, "x").as_deref(), of(&next, "y")), (Some("backend2"), None));
    let one = for_backends(&urls[..1], &[]).unwrap();
    assert_eq!(one.listeners[0].default_group, Some(GroupId(0)));
    assert!(for_backends(&["ftp://x"], &[]).unwrap_err().to_string().contains("command line"));
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
fn models_are_asked_for_after_the_smaller_of_both_times() {
    for (text, probes, seconds) in [
        ("", "", 30),
        ("ttl=\"7s\"", "health={interval=\"5s\"}", 7),
        ("ttl_multiplier=2.0", "health={interval=\"5s\"}", 10),
        ("ttl_multiplier=2.0", "", 60),
        ("ttl=\"7s\"\nttl_multiplier=2.0", "health={interval=\"5s\"}", 7),
        ("ttl=\"12s\"\nttl_multiplier=2.0", "health={interval=\"5s\"}", 10),
        ("ttl_multiplier=0.01", "health={interval=\"5s\"}", 1),
    ] {
        let up = format!("[[upstream]]\nname=\"v\"\nurl=\"http://10.0.0.1\"\n{probes}\n");
        let config = good(&with(&format!("[discovery]\n{text}\n{up}"))).config;
        let interval = config.discovery.interval(config.upstreams[1].health.as_ref());
        assert_eq!(interval.as_secs(), seconds, "{text} {probes}");
    }
}

#[test]
fn what_is_printed_loads_and_prints_the_same() {
    let text = with(
        "[process]\ncores=[0,1]\n[models.\"a.b\"]\nbackend=\"127.0.0.1:8080\"\naliases=[\"$${X}\"]\n\
         [models.p]\nupstream=\"v\"\n[[upstream]]\nname=\"v\"\nurl=\"http://10.0.0.1\"\nports=[1,2]\n\
         host=\"client\"\nhealth={}\nproxy=\"http://p:8080\"\n\
         headers=[{op=\"remove\",key=\"X-A\"},{op=\"replace\",key=\"b\",value=\"c \\\" d\"}]\n\
         [[upstream]]\nname=\"w\"\nurl=\"http://x\"\ndiscover=\"dns:x:80\"\n\
         [[group]]\nname=\"g\"\nmembers=[{upstream=\"gpu0\",weight=3}]\nretry={on=[\"5xx\",\"429\"]}\n\
         affinity={by=\"header:X-S\"}\nfallback=[\"chat\"]\nserve=[\"ollama\"]\n\
         [[listener]]\nname=\"l\"\nbind=[\"unix:/x\",\"[::1]:1\"]\nauth=\"none\"\n\
         tls={cert=\"c.pem\",key=\"c.key\",client_ca=\"ca.pem\"}\nratelimit={}\naccept=[\"raw\",\"query:K\"]\n\
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
fn connections_go_to_the_proxy_where_there_is_one() {
    let built = |lines: &str| {
        let text = with(&format!("[[upstream]]\nname=\"u\"\nurl=\"http://a:1\"\n{lines}"));
        good(&text).config.upstreams.remove(1)
    };
    assert_eq!(built("").first_hop(), ("a", 1));
    let plain = built("proxy=\"http://[::1]/\"");
    assert_eq!(
        (plain.first_hop(), plain.proxy.as_ref().unwrap().credentials.is_none()),
        (("::1", 80), true)
    );
    assert_eq!(plain.proxy.unwrap().authority(), "[::1]:80");
    for (userinfo, pair) in
        [("u:p", &b"u:p"[..]), ("u", b"u:"), ("u:%70%40%3a", b"u:p@:"), ("u:a@b", b"u:a@b")]
    {
        let proxy = built(&format!("proxy=\"http://{userinfo}@p:8080\"")).proxy.unwrap();
        assert_eq!(proxy.authority(), "p:8080");
        assert_eq!(proxy.credentials.unwrap().expose(), pair, "{userinfo}");
    }
    assert!(built("proxy=\"\"").proxy.is_none());
}

#[test]
fn a_host_that_a_proxy_would_replace_is_warned_of() {
    let warned = |url: &str, lines: &str| {
        let up = format!("[[upstream]]\nname=\"u\"\nurl=\"{url}\"\nproxy=\"http://10.0.0.1\"\n");
        warnings(&with(&format!("{up}{lines}"))).iter().any(|line| line.contains("upstream.u.host"))
    };
    assert!(warned("http://10.0.0.2", "host=\"client\""));
    assert!(warned("http://10.0.0.2", "host=\"a.test\""));
    assert!(!warned("http://10.0.0.2", "host=\"upstream\""));
    assert!(!warned("https://10.0.0.2", "host=\"a.test\""), "in a tunnel it stays");
}

#[test]
fn proxy_connect_may_differ_by_group() {
    let text = with(
        "[timeouts]\nproxy_connect=\"3s\"\n[[group]]\nname=\"g\"\nmembers=[\"gpu0\"]\n\
         timeouts={proxy_connect=\"4s\"}\n",
    );
    let times: Vec<u64> =
        good(&text).config.groups.iter().map(|g| g.timeouts.proxy_connect.as_secs()).collect();
    assert_eq!(times, [3, 4, 3]);
    assert_eq!(good(BASE).config.groups[0].timeouts.proxy_connect.as_secs(), 10);
}

#[test]
fn keys_have_rights_and_an_end() {
    let text = with(
        "[[key]]\nname=\"k\"\nkey=\"0123456789abcdef\"\nmodels=[\"a\",\"gpt-*\"]\nexpires=2030-01-01\n\
         listeners=[\"main\"]\n[[key]]\nname=\"all\"\nkey_sha256=\"\
         9F9F5111F7B27A781F1F1DDDE5EBC2DD2B796BFC7365C9C28B548E564176929E\"\n",
    );
    let [key, all] = &good(&text).config.keys[..] else { panic!() };
    let models = [ModelPattern::Exact("a".to_owned()), ModelPattern::Prefix("gpt-".to_owned())];
    assert_eq!(key.models, ModelSet::Of(models.into()));
    assert_eq!(key.expires, Some(1_893_456_000));
    assert!(key.listeners.allows(ListenerIndex(0)) && !key.listeners.allows(ListenerIndex(1)));
    assert!(all.models == ModelSet::All && all.listeners.allows(ListenerIndex(1)));
    assert_eq!((all.sha256.map(|sum| sum[0]), all.expires), (Some(0x9f), None));
}

#[test]
fn admin_token_may_come_from_the_environment() {
    let text = with("[admin]\nbind=\"0.0.0.0:9000\"\n");
    let env = |name: &str| (name == "TOKENRING_ADMIN_TOKEN").then(|| "t0ken".to_owned());
    let admin = Config::from_toml_str(&text, &env).unwrap().admin.unwrap();
    assert_eq!(admin.token.unwrap().expose(), b"t0ken");
    // The name that users of llmproxy bring; ours comes first.
    let theirs = |name: &str| (name == "LLMPROXY_ADMIN_AUTH_TOKEN").then(|| "theirs".to_owned());
    let admin = Config::from_toml_str(&text, &theirs).unwrap().admin.unwrap();
    assert_eq!(admin.token.unwrap().expose(), b"theirs");
    let both = |name: &str| env(name).or_else(|| theirs(name));
    let admin = Config::from_toml_str(&text, &both).unwrap().admin.unwrap();
    assert_eq!(admin.token.unwrap().expose(), b"t0ken");
    // One line end is what `echo` leaves; more, and any other control byte, is a fault.
    for (token, is_good) in
        [("t0ken\n", true), ("t0ken\r\n", true), ("t0ken\n\n", false), ("t0\nken", false)]
    {
        for by_env in [true, false] {
            let env =
                |name: &str| (by_env && name == "TOKENRING_ADMIN_TOKEN").then(|| token.to_owned());
            let said = if by_env { String::new() } else { format!("token={token:?}\n") };
            let text = with(&format!("[admin]\nbind=\"0.0.0.0:9000\"\n{said}"));
            match Config::from_toml_str(&text, &env) {
                Ok(config) => {
                    assert!(is_good, "{token:?}");
                    assert_eq!(config.admin.unwrap().token.unwrap().expose(), b"t0ken");
                }
                Err(report) => assert!(!is_good && !report.to_string().contains("t0"), "{report}"),
            }
        }
    }
    assert!(good(BASE).config.admin.is_none());
    assert!(good(&with("[admin]\nbind=\"\"")).config.admin.is_none());
}

#[test]
fn several_keys_take_the_carrier_of_the_protocol() {
    let auth = |protocol: &str| {
        let text = with(&format!(
            "[[upstream]]\nname=\"u\"\nurl=\"http://a\"\nprotocol=\"{protocol}\"\napi_keys=[{{key=\"k\"}}]"
        ));
        good(&text).config.upstreams[1].auth.clone()
    };
    assert!(matches!(auth("openai"), UpstreamAuth::Bearer(_)));
    assert!(matches!(auth("anthropic"), UpstreamAuth::Header { name, .. } if name == "x-api-key"));
    assert!(
        matches!(auth("gemini"), UpstreamAuth::Header { name, .. } if name == "x-goog-api-key")
    );
}

#[cfg(feature = "kubernetes")]
#[test]
fn a_service_of_kubernetes_has_a_namespace_and_perhaps_a_port() {
    let service = |port| {
        let (namespace, name) = ("ml".to_owned(), "vllm-0".to_owned());
        Some(Discover::K8s(KubernetesService { namespace, name, port }))
    };
    let text =
        |source: &str| BASE.replace("models = ", &format!("discover=\"{source}\"\nmodels = "));
    let name = Some(ServicePort::Name("http".to_owned()));
    for (source, port) in [
        ("k8s:ml/vllm-0", None),
        ("k8s:ml/vllm-0:8000", Some(ServicePort::Number(8000))),
        ("k8s:ml/vllm-0:http", name),
    ] {
        let loaded = good(&text(source));
        assert_eq!(loaded.config.upstreams[0].discover, service(port), "{source}");
        let printed = crate::config::print::print(&loaded.config);
        assert!(printed.contains(&format!("discover = \"{source}\"\n")), "{printed}");
    }
    for source in [
        "k8s:vllm",
        "k8s:/vllm",
        "k8s:ml/",
        "k8s:ml/vllm:",
        "k8s:ml/vllm:0",
        "k8s:ml/vllm:65536",
        "k8s:ml/vllm:Http",
        "k8s:ml/a/b",
        "k8s:ml/vllm?watch=1",
        "k8s:../vllm",
        "k8s:ml/-vllm",
    ] {
        let found = errors(&text(source));
        let forms = "is none of dns:NAME:PORT, srv:NAME, file:PATH, k8s:NAMESPACE/SERVICE[:PORT]";
        assert!(found.len() == 1 && found[0].ends_with(forms), "{source}: {found:?}");
    }
}

#[cfg(not(feature = "kubernetes"))]
#[test]
fn a_build_without_kubernetes_says_so() {
    let text = BASE.replace("models = ", "discover=\"k8s:a/b\"\nmodels = ");
    let told = "upstream.gpu0.discover: k8s: is not in this program: built without the feature \
                kubernetes";
    assert_eq!(errors(&text), [told]);
}
