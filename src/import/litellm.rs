//! LiteLLM's `config.yaml`: deployments under the names of models, as far as they speak HTTP that
//! we pass on as it is.

use super::draft::{Draft, Names, Table, quoted, quoted_list, seconds};
use super::source::Node;

/// Where a provider's own API is, how it is spoken, and the variable of its key.
/// An empty URL: `api_base` must say it.
const PROVIDERS: &[(&str, &str, &str, &str)] = &[
    ("openai", "https://api.openai.com/v1", "openai", "OPENAI_API_KEY"),
    ("text-completion-openai", "https://api.openai.com/v1", "openai", "OPENAI_API_KEY"),
    ("anthropic", "https://api.anthropic.com", "anthropic", "ANTHROPIC_API_KEY"),
    ("gemini", "https://generativelanguage.googleapis.com", "gemini", "GEMINI_API_KEY"),
    ("groq", "https://api.groq.com/openai/v1", "openai", "GROQ_API_KEY"),
    ("mistral", "https://api.mistral.ai/v1", "openai", "MISTRAL_API_KEY"),
    ("deepseek", "https://api.deepseek.com/v1", "openai", "DEEPSEEK_API_KEY"),
    ("openrouter", "https://openrouter.ai/api/v1", "openai", "OPENROUTER_API_KEY"),
    ("together_ai", "https://api.together.xyz/v1", "openai", "TOGETHERAI_API_KEY"),
    ("ollama", "http://localhost:11434", "ollama", ""),
    ("ollama_chat", "http://localhost:11434", "ollama", ""),
    ("hosted_vllm", "", "openai", ""),
    ("vllm", "", "openai", ""),
    ("openai_like", "", "openai", ""),
    ("litellm_proxy", "", "openai", ""),
    ("lm_studio", "", "openai", ""),
    ("llamafile", "http://127.0.0.1:8080/v1", "openai", ""),
];

/// A deployment that has become an upstream.
struct Deployment {
    upstream: String,
    sent: String,
    weight: f64,
}

/// Writes what the file says.
pub fn import(root: &Node, draft: &mut Draft) {
    let router = root.get("router_settings");
    let settings = root.get("litellm_settings");
    let general = root.get("general_settings");
    listener(general, draft);

    let mut names = Names::default();
    let mut models: Vec<(&str, Vec<Deployment>)> = Vec::new();
    for entry in root.get("model_list").map(Node::items).unwrap_or_default() {
        let (Some(name), Some(params)) = (entry.text_of("model_name"), entry.get("litellm_params"))
        else {
            continue;
        };
        let known = models.iter().position(|(known, _)| *known == name);
        let before = known.and_then(|at| models[at].1.first()).map(|first| first.sent.as_str());
        let Some(deployment) = deployment(entry, name, params, before, router, &mut names, draft)
        else {
            continue;
        };
        match known {
            Some(at) => models[at].1.push(deployment),
            None => models.push((name, vec![deployment])),
        }
    }
    let mut group_names = Names::default();
    let groups: Vec<_> = models.iter().map(|(name, _)| group_names.give(name)).collect();
    for ((name, deployments), group) in models.iter().zip(&groups) {
        let mut table = Table::new("[[group]]");
        table.text("name", group);
        let one = |d: &Deployment| {
            format!("{{ upstream = {}, weight = {} }}", quoted(&d.upstream), d.weight)
        };
        table.raw(
            "members",
            &format!("[{}]", deployments.iter().map(one).collect::<Vec<_>>().join(", ")),
        );
        let fallback = fallbacks(&[router, settings], name, &models, &groups);
        if !fallback.is_empty() {
            table.raw("fallback", &quoted_list(&fallback));
        }
        draft.groups.push(table);
        let mut table = Table::new(format!("[models.{}]", quoted(name)));
        table.text("group", group);
        let aliases = router.and_then(|node| node.get("model_group_alias")).map(Node::entries);
        let mine = |(alias, node): &(String, Node)| {
            let target = node.text_of("model").or_else(|| node.text())?;
            (target == *name).then(|| alias.clone())
        };
        let aliases: Vec<_> = aliases.unwrap_or_default().iter().filter_map(mine).collect();
        if !aliases.is_empty() {
            table.raw("aliases", &quoted_list(&aliases));
        }
        if let Some(first) = deployments.first().filter(|first| first.sent != *name) {
            table.text("upstream_model", &first.sent);
        }
        draft.models.push(table);
    }
    defaults(router, settings, draft);
}

/// `os.environ/X` is `${X}` here.
fn env(text: &str) -> String {
    text.strip_prefix("os.environ/").map_or_else(|| text.to_owned(), |name| format!("${{{name}}}"))
}

fn listener(general: Option<&Node>, draft: &mut Draft) {
    let master = general.and_then(|node| node.text_of("master_key"));
    let mut table = Table::new("[[listener]]");
    table.text("name", "main").note("Put the address of its --host and --port here.");
    table.text("bind", "0.0.0.0:4000").text("auth", if master.is_some() { "keys" } else { "none" });
    draft.listeners.push(table);
    if let Some(secret) = master {
        let mut table = Table::new("[[key]]");
        table.note("Keys that it keeps in its database have to be made here.");
        table.text("name", "master").text("key", &env(secret));
        draft.keys.push(table);
    }
    if let Some(general) = general {
        general.lost_at("database_url", "tokenring has no database: keys are in this file");
    }
}

fn deployment(
    entry: &Node,
    name: &str,
    params: &Node,
    before: Option<&str>,
    router: Option<&Node>,
    names: &mut Names,
    draft: &mut Draft,
) -> Option<Deployment> {
    let said = params.get("model")?.text()?;
    let (provider, sent) = said.split_once('/').unwrap_or(("openai", said));
    let base = params.get("api_base").or_else(|| params.get("base_url"));
    let found = PROVIDERS.iter().find(|(known, ..)| *known == provider);
    // A model of OpenAI may have a slash of its own where api_base says who answers.
    let (url, protocol, variable) = match (found, base) {
        (Some((_, url, protocol, variable)), _) => (*url, *protocol, *variable),
        (None, _) => {
            entry.lost("speaks an API of its own: not carried over");
            return None;
        }
    };
    if name.contains('*') || sent.contains('*') {
        entry.lost("a pattern: name its models, or set default_group");
        return None;
    }
    if before.is_some_and(|before| before != sent) {
        entry.lost("another model under the same name: one name goes out under one name here");
        return None;
    }
    let url = base.and_then(Node::text).map_or_else(|| url.to_owned(), env);
    if url.is_empty() {
        entry.lost("has no api_base");
        return None;
    }
    let upstream = names.give(name);
    let mut table = Table::new("[[upstream]]");
    table.text("name", &upstream).text("url", url.trim_end_matches('/'));
    if protocol != "openai" {
        table.text("protocol", protocol);
    }
    table.raw("models", "[]");
    let own = base.is_none() && !variable.is_empty();
    let secret =
        params.text_of("api_key").map(env).or_else(|| own.then(|| format!("${{{variable}}}")));
    if let Some(secret) = secret.filter(|secret| !secret.is_empty()) {
        table.raw("api_keys", &format!("[{{ key = {} }}]", quoted(&secret)));
    }
    if let Some(limit) = params.number_of("max_parallel_requests").filter(|n| *n >= 1.0) {
        table.raw("concurrency", &format!("{limit}"));
    }
    breaker(router, &mut table);
    draft.upstreams.push(table);
    let weight = params.number_of("weight").unwrap_or(1.0).round().clamp(1.0, 65_535.0);
    for key in ["rpm", "tpm"] {
        params.lost_at(key, "limits are those of a client's key here");
    }
    entry.lost_at("model_info", "prices and properties are not kept");
    Some(Deployment { upstream, sent: sent.to_owned(), weight })
}

fn breaker(router: Option<&Node>, table: &mut Table) {
    let number = |key: &str| router.and_then(|node| node.number_of(key));
    let mut parts = Vec::new();
    if let Some(fails) = number("allowed_fails") {
        // It opens when there are more of them.
        parts.push(format!("consecutive = {}", (fails + 1.0).clamp(1.0, 1e6)));
    }
    if let Some(wait) = number("cooldown_time") {
        parts.push(format!("cooldown = {}", seconds(wait.clamp(1.0, 3600.0))));
    }
    if !parts.is_empty() {
        table.raw("breaker", &format!("{{ {} }}", parts.join(", ")));
    }
}

/// Groups that take over, where they take the name that would be sent to them.
fn fallbacks(
    places: &[Option<&Node>],
    name: &str,
    models: &[(&str, Vec<Deployment>)],
    groups: &[String],
) -> Vec<String> {
    let sent = |at: usize| models[at].1.first().map(|first| first.sent.as_str());
    let own = models.iter().position(|(known, _)| *known == name).and_then(sent);
    let mut found = Vec::new();
    for list in places.iter().copied().flatten().filter_map(|place| place.get("fallbacks")) {
        for target in list.items().iter().filter_map(|item| item.get(name)).flat_map(Node::items) {
            let at = models.iter().position(|(known, _)| Some(*known) == target.text());
            match at {
                Some(at) if sent(at) == own => found.push(groups[at].clone()),
                _ => target
                    .lost("a fallback gets the model's name as it was sent first: not this one"),
            }
        }
    }
    found
}

fn defaults(router: Option<&Node>, settings: Option<&Node>, draft: &mut Draft) {
    let mut table = Table::new("[group_defaults]");
    let strategy = router.and_then(|node| node.get("routing_strategy"));
    table.text(
        "balance",
        match strategy.and_then(Node::text).unwrap_or("simple-shuffle") {
            "simple-shuffle" => "weighted_random",
            "latency-based-routing" => "p2c_ewma",
            "least-busy" => "least_conn",
            _ => {
                if let Some(node) = strategy {
                    node.lost("fewest in flight now");
                }
                "least_conn"
            }
        },
    );
    let number = |key: &str| {
        let of = |node: Option<&Node>| node.and_then(|node| node.number_of(key));
        let (first, second) = (of(router), of(settings));
        first.or(second)
    };
    if let Some(retries) = number("num_retries") {
        table.raw("retry", &format!("{{ attempts = {}, same = true }}", retries.clamp(0.0, 100.0)));
    }
    let wait = number("timeout").or_else(|| number("request_timeout"));
    if let Some(wait) = wait.filter(|wait| *wait > 0.0) {
        table.raw("timeouts", &format!("{{ first_byte = {} }}", seconds(wait)));
    }
    draft.groups.push(table);
    if let Some(settings) = settings {
        for key in ["drop_params", "modify_params"] {
            settings.lost_at(key, "bodies pass as they are");
        }
    }
}
