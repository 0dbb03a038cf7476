//! rules §3 "Reach", "Rights hang on the target": a table of every way of naming a model, by every
//! kind of body, for keys and listeners with different rights.
//!
//! What counts is what the servers got: no reader of `readers` finds a model there that the key may
//! not use, and no server was reached that the asker may not reach. What is refused, and how, is
//! not looked at here; but what every client sends has to pass, or the table would prove nothing.
//!
//! `TOKENRING_RIGHTS_EVERY=1` runs all combinations, not one in so many.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use loadtest::mock::{KeepAlive, Mock};

use super::house::{Proxy, mock_with};
use super::readers::{Got, zipped};
use super::wire::Client;

/// One combination in so many is run when nothing else is asked for.
const EVERY: u64 = 50;
/// The combinations that are never too few.
const COMBINATIONS_MIN: u64 = 2_000;

// ---------------------------------------------------------------------------- who asks

/// A key on a listener, and what it may do there.
pub(crate) struct Asker {
    pub listener: &'static str,
    pub key: Option<&'static str>,
    /// The servers it may reach.
    pub reaches: &'static [&'static str],
    /// Servers at which a route leaves the model to the client.
    pub routed: &'static [&'static str],
    /// What servers may read; `None` = anything.
    pub models: Option<fn(&str) -> bool>,
}

/// `ren` is called otherwise by its servers.
fn of_small(name: &str) -> bool {
    ["small", "small-real", "fix", "frail"].contains(&name)
}

fn small_alone(name: &str) -> bool {
    name == "small"
}

fn of_glob(name: &str) -> bool {
    name.starts_with("sm")
}

pub(crate) const ASKERS: &[Asker] = &[
    Asker {
        listener: "main",
        key: Some("sk-small"),
        reaches: &["chat0", "chat1", "fixed", "pub"],
        routed: &["pub"],
        models: Some(of_small),
    },
    Asker {
        listener: "main",
        key: Some("sk-all"),
        reaches: &["chat0", "chat1", "fixed", "pub"],
        routed: &[],
        models: None,
    },
    Asker {
        listener: "main",
        key: Some("sk-boss"),
        reaches: &["chat0", "chat1", "fixed", "pub", "admin", "vip", "vault"],
        routed: &[],
        models: None,
    },
    Asker {
        listener: "main",
        key: Some("sk-bosslim"),
        reaches: &["chat0", "chat1", "fixed", "pub", "admin", "vip", "vault"],
        routed: &["pub", "admin", "vip", "vault"],
        models: Some(small_alone),
    },
    // It may not come in by this one.
    Asker { listener: "main", key: Some("sk-deft"), reaches: &[], routed: &[], models: None },
    Asker { listener: "main", key: None, reaches: &[], routed: &[], models: None },
    Asker {
        listener: "deft",
        key: Some("sk-deft"),
        reaches: &["chat0", "chat1", "fixed"],
        routed: &[],
        models: Some(small_alone),
    },
    Asker {
        listener: "deft",
        key: Some("sk-glob"),
        reaches: &["chat0", "chat1", "fixed"],
        routed: &[],
        models: Some(of_glob),
    },
    Asker {
        listener: "deft",
        key: Some("sk-boss"),
        reaches: &["chat0", "chat1", "fixed"],
        routed: &[],
        models: None,
    },
    Asker {
        listener: "off",
        key: Some("sk-small"),
        reaches: &["chat0", "chat1", "fixed"],
        routed: &[],
        models: Some(of_small),
    },
    Asker {
        listener: "open",
        key: None,
        reaches: &["chat0", "chat1", "fixed", "pub"],
        routed: &[],
        models: None,
    },
];

/// The servers: name, models that it lists, and what else is said of it.
pub(crate) const SERVERS: &[(&str, &str, &str)] = &[
    ("chat0", "\"small\", \"big\"", ""),
    ("chat1", "\"small\", \"big\", \"extra\"", ""),
    ("fixed", "\"fix\"", "path_mode = \"fixed\"\n"),
    ("admin", "\"secret\"", ""),
    ("vip", "\"vipm\"", ""),
    ("pub", "\"pubm\"", ""),
    ("vault", "\"gold\"", ""),
];

const REST: &str = r#"
[[upstream]]
name = "dead"
url = "http://127.0.0.1:1"
models = []
breaker = { consecutive = 1000000, calls_min = 1000000 }
[[group]]
name = "chat"
members = ["chat0", "chat1"]
[[group]]
name = "fixg"
members = ["fixed"]
[[group]]
name = "admin"
members = ["admin"]
[[group]]
name = "vip"
members = ["vip"]
[[group]]
name = "pub"
members = ["pub"]
[[group]]
name = "vault"
members = ["vault"]
[[group]]
name = "frailg"
members = ["dead"]
fallback = ["vault"]
[models.small]
group = "chat"
aliases = ["tiny"]
[models.ren]
group = "chat"
aliases = ["nick"]
upstream_model = "small-real"
[models.big]
group = "chat"
aliases = ["huge"]
[models.fix]
group = "fixg"
aliases = ["fixnick"]
[models.frail]
group = "frailg"
[[key]]
name = "small"
key = "sk-small"
models = ["small", "ren", "fix", "frail"]
[[key]]
name = "all"
key = "sk-all"
[[key]]
name = "boss"
key = "sk-boss"
[[key]]
name = "bosslim"
key = "sk-bosslim"
models = ["small"]
[[key]]
name = "deft"
key = "sk-deft"
models = ["small"]
listeners = ["deft"]
[[key]]
name = "glob"
key = "sk-glob"
models = ["sm*"]
"#;

fn listeners(socket: impl Fn(&str) -> String) -> String {
    let bind =
        |name: &str| format!("[[listener]]\nname = \"{name}\"\nbind = \"{}\"\n", socket(name));
    format!(
        "[process]\ncores = 1\n{}auth = \"keys\"\n\
         [[listener.route]]\npath = \"/admin/*\"\ngroup = \"admin\"\nkeys = [\"boss\", \"bosslim\"]\n\
         [[listener.route]]\npath = \"/vault/*\"\ngroup = \"vault\"\nkeys = [\"boss\", \"bosslim\"]\n\
         [[listener.route]]\npath = \"/pub/*\"\ngroup = \"pub\"\n\
         [[listener.route]]\nhost = \"vip.example\"\ngroup = \"vip\"\nkeys = [\"boss\", \"bosslim\"]\n\
         {}auth = \"keys\"\ndefault_group = \"chat\"\nforce = \"any\"\n\
         {}auth = \"keys\"\ndefault_group = \"chat\"\nforce = \"off\"\n\
         {}auth = \"none\"\ndefault_group = \"pub\"\n",
        bind("main"),
        bind("deft"),
        bind("off"),
        bind("open"),
    )
}

/// The config in front of servers at these base URLs.
pub(crate) fn config(urls: &[String], socket: impl Fn(&str) -> String) -> String {
    let mut text = listeners(socket);
    for ((name, models, more), url) in SERVERS.iter().zip(urls) {
        let path = if more.is_empty() { "" } else { "/v1/chat/completions" };
        text += &format!(
            "[[upstream]]\nname = \"{name}\"\nurl = \"{url}{path}\"\nmodels = [{models}]\n{more}\
             breaker = {{ consecutive = 1000000, calls_min = 1000000 }}\n"
        );
    }
    text + REST
}

// ---------------------------------------------------------------------------- what is sent

/// What is said in a request: the target, the JSON, and the fields of a form.
#[derive(Clone)]
struct Way {
    label: String,
    host: &'static str,
    target: String,
    json: String,
    /// Values of the field `model` of a form.
    named: Vec<String>,
}

impl Way {
    fn new(label: impl Into<String>, target: &str, json: &str, named: &[&str]) -> Way {
        Way {
            label: label.into(),
            host: "proxy",
            target: target.to_owned(),
            json: json.to_owned(),
            named: named.iter().map(|name| (*name).to_owned()).collect(),
        }
    }
}

const CHAT: &str = "/v1/chat/completions";
/// Names alone: known ones, aliases, forced ones, such as stand elsewhere, and none.
pub(crate) const NAMES: &[&str] = &[
    "small",
    "ren",
    "big",
    "fix",
    "frail",
    "tiny",
    "nick",
    "huge",
    "fixnick",
    "small-real",
    "small@chat0",
    "big@chat0",
    "extra",
    "extra@chat1",
    "chat:small",
    "chat:big",
    "chat0:big",
    "chat:ren",
    "nick@chat1",
    "secret",
    "secret@admin",
    "admin:secret",
    "admin:small",
    "small@admin",
    "vipm",
    "vipm@vip",
    "pubm",
    "pubm@pub",
    "pub:pubm",
    "pub:small",
    "gold",
    "vault:gold",
    "small@vault",
    "small@fixed",
    "fixg:big",
    "big@fixed",
    "small@nobody",
    "nobody",
    "smallest",
    "small:latest",
    "sm@chat0",
    "models/small",
    "models/big",
];
/// Bodies that are read in more than one way, and such as only seem to be.
const BODIES: &[(&str, &str, &[&str])] = &[
    ("messages first", r#"{"messages":[{"role":"user"}],"model":"small"}"#, &["small"]),
    ("nested", r#"{"x":[{"model":"big"}],"model":"small","y":{"model":"big"}}"#, &["small"]),
    ("in text", r#"{"x":"\"model\":\"big\"","model":"small"}"#, &["small"]),
    ("small big", r#"{"model":"small","model":"big"}"#, &["small", "big"]),
    ("big small", r#"{"model":"big","model":"small"}"#, &["big", "small"]),
    ("escaped", r#"{"mod\u0065l":"b\u0069g"}"#, &["big"]),
    ("escaped small", r#"{"mod\u0065l":"sm\u0061ll"}"#, &["small"]),
    ("small escaped big", r#"{"model":"small","\u006dodel":"big"}"#, &["small", "big"]),
    ("case after", r#"{"model":"small","Model":"big"}"#, &["small"]),
    ("case before", r#"{"MODEL":"big","model":"small"}"#, &["small"]),
    ("case alone", r#"{"Model":"big"}"#, &[]),
    ("null after", r#"{"model":"big","model":null}"#, &["big"]),
    ("small null big", r#"{"model":"small","model":null,"MODEL":"big"}"#, &["small"]),
    ("number", r#"{"model":7}"#, &[]),
    ("list", r#"{"model":["small","big"]}"#, &[]),
    ("nothing", r#"{"messages":[]}"#, &[]),
    ("no object", r#"["small"]"#, &[]),
    ("two values", r#"{"model":"big"}{"model":"small"}"#, &["small"]),
    ("mark", "\u{feff}{\"model\":\"big\"}", &["big"]),
    ("pair", r#"{"model":"small","x":"&model=big&"}"#, &["small"]),
    ("padded", r#"  {"model" : "small" }  "#, &["small"]),
    ("alias twice", r#"{"model":"nick","x":1,"model":"nick"}"#, &["nick", "nick"]),
];
/// Where a path may name a model.
pub(crate) const PATHS: &[&str] = &[
    "/v1beta/models/NAME:generateContent",
    "/v1/models/NAME:streamGenerateContent?alt=sse",
    "/models/NAME:countTokens",
    "/v1alpha/models/NAME:generateContent",
    "/v1/publishers/google/models/NAME:predict",
    "/v1/projects/p/locations/l/publishers/google/models/NAME:rawPredict",
    "/v1/projects/p/locations/l/endpoints/NAME:predict",
    "/v1beta/tunedModels/NAME:generateContent",
    "/openai/deployments/NAME/chat/completions?api-version=1",
    "/openai/Deployments/NAME/chat/completions",
    "/model/NAME/converse",
    "/v1/engines/NAME/completions",
    "/v1beta/%6dodels/NAME:generateContent",
    "/v1beta/Models/NAME:generateContent",
    "/v1beta%2Fmodels%2FNAME:generateContent",
    "/v1beta/models%2fNAME:generateContent",
    "/v1beta/models/NAME%3AgenerateContent",
    "/v1beta/x/../models/NAME:generateContent",
    "/v1beta/%2e/models/NAME:generateContent",
    "//v1beta//models//NAME:generateContent",
    "/v1beta/models/small:x/../NAME:generateContent",
    "/v1beta/models/NAME:generateContent/../small:x",
    "/v1beta/models/small%2F..%2FNAME:generateContent",
    "/v1beta/models/small/models/NAME:generateContent",
    "/v1beta/models;a=b/NAME:generateContent",
    "/v1beta\\models\\NAME:generateContent",
    "/v1beta/models/NAME:x1",
    "/v1/models/NAME",
    "/v1/models/NAME?x=1",
    "http://proxy/v1beta/models/NAME:generateContent",
    "/v1/realtime?model=NAME",
    "/v1/chat/completions?mod%65l=NAME",
    "/v1/chat/completions?model=small&model=NAME",
    "/v1/chat/completions?model=NAME&model=small",
    "/v1/chat/completions?x=1;model=NAME",
    "/v1/chat/completions?model=%4eAME",
    "/v1/chat/completions?model=NAME%00",
    "/v1beta/models/small:generateContent?model=NAME",
];
/// Ways to a route, and around it.
const ROUTES: &[(&str, &str)] = &[
    ("proxy", "/admin/x"),
    ("proxy", "/admin"),
    ("proxy", "/%61dmin/x"),
    ("proxy", "/pub/../admin/x"),
    ("proxy", "/pub/%2e%2e/admin/x"),
    ("proxy", "/pub/..%2Fadmin/x"),
    ("proxy", "//admin/x"),
    ("proxy", "/./admin/x"),
    ("proxy", "/admin%2Fx"),
    ("proxy", "/pub%2F..%2Fadmin/x"),
    ("proxy", "/../admin/x"),
    ("proxy", "http://proxy/admin/x"),
    ("proxy", "/vault/x"),
    ("proxy", "/pub/x"),
    ("vip.example", "/x"),
    ("VIP.Example:80", "/x"),
    ("vip.example.", "/x"),
    ("vip.example", "/admin/x"),
    ("proxy", "http://vip.example/x"),
    ("proxy", "HTTP://VIP.EXAMPLE:80/x"),
];

fn ways() -> Vec<Way> {
    let mut ways = Vec::new();
    let json = |name: &str| format!("{{\"model\":\"{name}\"}}");
    for name in NAMES {
        ways.push(Way::new(format!("name {name}"), CHAT, &json(name), &[name]));
    }
    for (label, body, named) in BODIES {
        ways.push(Way::new(*label, CHAT, body, named));
    }
    for path in PATHS {
        for in_path in ["small", "big", "nick"] {
            let target =
                path.replace("NAME", in_path).replace("%4eAME", &in_path.replace('b', "%62"));
            for body in ["", "small", "big", "nick", "models/small"] {
                let (json, named) = match body {
                    "" => ("{\"contents\":[]}".to_owned(), vec![]),
                    name => (json(name), vec![name]),
                };
                let label = format!("{path} {in_path} {body}");
                ways.push(Way::new(label, &target, &json, &named));
            }
        }
    }
    for (host, target) in ROUTES {
        for name in ["small", "secret"] {
            let way = Way::new(format!("{host} {target} {name}"), target, &json(name), &[name]);
            ways.push(Way { host, ..way });
        }
    }
    ways
}

/// A method, fields and a body.
struct Carried {
    method: &'static str,
    fields: String,
    body: Vec<u8>,
    chunked: bool,
}

/// Makes a request of a kind out of what is said.
type Kind = fn(&Way) -> Carried;

fn carried(fields: &str, body: impl Into<Vec<u8>>) -> Carried {
    Carried { method: "POST", fields: fields.to_owned(), body: body.into(), chunked: false }
}

fn typed(kind: &str, way: &Way) -> Carried {
    carried(&format!("Content-Type: {kind}\r\n"), way.json.clone())
}

fn bare(method: &'static str, fields: &str) -> Carried {
    Carried { method, ..carried(fields, "") }
}

const FORM: &str = "Content-Type: multipart/form-data; boundary=B\r\n";

/// Parts of a form: what its disposition says behind `form-data`, more fields, and the value.
fn form(parts: &[(&str, &str, &str)]) -> String {
    let part = |(more, fields, value): &(&str, &str, &str)| {
        format!("--B\r\nContent-Disposition: form-data; {more}\r\n{fields}\r\n{value}\r\n")
    };
    let parts: String = parts.iter().map(part).collect();
    format!("{parts}--B--\r\n")
}

fn model_parts(way: &Way, more: &str) -> String {
    let file = ("name=\"file\"; filename=\"a.wav\"", "Content-Type: audio/wav\r\n", "\0\r\n--\r\n");
    let named = way.named.iter().map(|name| (more, "", name.as_str()));
    form(&std::iter::once(file).chain(named).collect::<Vec<_>>())
}

const KINDS: &[(&str, Kind)] = &[
    ("json", |way| typed("application/json", way)),
    ("json utf-8", |way| typed("Application/JSON; charset=\"utf-8\"", way)),
    ("json utf-16", |way| typed("application/json; charset=utf-16", way)),
    ("no type", |way| carried("", way.json.clone())),
    ("empty type", |way| typed("", way)),
    ("text", |way| typed("text/plain", way)),
    ("vendor json", |way| typed("application/vnd.x+json", way)),
    ("two types", |way| {
        typed("multipart/form-data; boundary=B\r\nContent-Type: application/json", way)
    }),
    ("json in two types", |way| {
        typed("application/json\r\nContent-Type: application/x-www-form-urlencoded", way)
    }),
    ("json as form", |way| carried(FORM, way.json.clone())),
    ("json as urlencoded", |way| typed("application/x-www-form-urlencoded", way)),
    ("urlencoded", |way| {
        let pairs = way.named.iter().map(|name| format!("&model={name}"));
        let kind = "Content-Type: application/x-www-form-urlencoded\r\n";
        carried(kind, format!("x=1{}", pairs.collect::<String>()))
    }),
    ("form", |way| carried(FORM, model_parts(way, "name=\"model\""))),
    ("form, small too", |way| {
        carried(FORM, form(&[("name=model", "", "small")]) + &model_parts(way, "name=model"))
    }),
    ("form, two boundaries", |way| {
        let small = form(&[("name=\"model\"", "", "small")]);
        let other = model_parts(way, "name=\"model\"").replace("--B", "--C");
        let kind = "Content-Type: multipart/form-data; boundary=B; boundary=C\r\n";
        carried(kind, small.trim_end_matches("--B--\r\n").to_owned() + &other + "\r\n--B--\r\n")
    }),
    ("form behind json", |way| {
        carried(FORM, format!("{}\r\n{}", way.json, form(&[("name=\"model\"", "", "small")])))
    }),
    ("form before json", |way| {
        carried(FORM, format!("{}{}", form(&[("name=\"model\"", "", "small")]), way.json))
    }),
    ("form, a file", |way| carried(FORM, model_parts(way, "name=\"model\"; filename=\"x\""))),
    ("form, hidden by quotes", |way| {
        let hidden = r#"x="\\"; name="o"; z="; name=model; ""#;
        carried(
            FORM,
            model_parts(way, hidden).trim_end_matches("--B--\r\n").to_owned()
                + &form(&[("name=\"model\"", "", "small")]),
        )
    }),
    ("form, hidden by a quote", |way| {
        let hidden = r#"x=a"; name="o"; y="; name=model; z=";w=b""#;
        carried(
            FORM,
            model_parts(way, hidden).trim_end_matches("--B--\r\n").to_owned()
                + &form(&[("name=\"model\"", "", "small")]),
        )
    }),
    ("form, coded", |way| {
        use base64::Engine as _;
        let coded = |name: &String| base64::engine::general_purpose::STANDARD.encode(name);
        let values: Vec<String> = way.named.iter().map(coded).collect();
        let coding = "Content-Transfer-Encoding: base64\r\n";
        let parts: Vec<_> =
            values.iter().map(|value| ("name=\"model\"", coding, value.as_str())).collect();
        carried(FORM, form(&parts))
    }),
    ("gzip", |way| {
        let fields = "Content-Type: application/json\r\nContent-Encoding: gzip\r\n";
        carried(fields, zipped(way.json.as_bytes()))
    }),
    ("gzip, said late", |way| {
        let fields = "Content-Encoding: identity\r\nContent-Encoding: gzip\r\n";
        carried(fields, zipped(way.json.as_bytes()))
    }),
    ("said to be gzip", |way| carried("Content-Encoding: gzip\r\n", way.json.clone())),
    ("identity", |way| typed("application/json\r\nContent-Encoding: identity", way)),
    ("empty coding", |way| typed("application/json\r\nContent-Encoding: ", way)),
    ("json, its type dropped", |way| {
        typed("multipart/form-data; boundary=B\r\nConnection: content-type", way)
    }),
    ("form, its type dropped", |way| {
        let fields = format!("{FORM}Connection: Content-Type\r\n");
        carried(&fields, model_parts(way, "name=\"model\""))
    }),
    ("chunked", |way| Carried { chunked: true, ..typed("application/json", way) }),
    ("chunked form", |way| Carried {
        chunked: true,
        ..carried(FORM, model_parts(way, "name=\"model\""))
    }),
    ("put", |way| Carried { method: "PUT", ..typed("application/json", way) }),
    ("delete with a body", |way| Carried { method: "DELETE", ..typed("application/json", way) }),
    ("get with a body", |way| Carried { method: "GET", ..typed("application/json", way) }),
    ("post", |_| bare("POST", "Content-Length: 0\r\n")),
    ("get", |_| bare("GET", "")),
    ("head", |_| bare("HEAD", "")),
    ("delete", |_| bare("DELETE", "")),
    ("options", |_| bare("OPTIONS", "")),
    ("websocket", |_| {
        bare(
            "GET",
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
            Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        )
    }),
    ("websocket, a length", |_| {
        bare("GET", "Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 0\r\n")
    }),
];

fn request(way: &Way, carried: &Carried, key: Option<&str>) -> Vec<u8> {
    let Carried { method, fields, body, chunked } = carried;
    let key = key.map(|key| format!("Authorization: Bearer {key}\r\n")).unwrap_or_default();
    let mut out =
        format!("{method} {} HTTP/1.1\r\nHost: {}\r\n{key}{fields}", way.target, way.host)
            .into_bytes();
    match (chunked, body.is_empty()) {
        (true, _) => {
            out.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
            for piece in body.chunks(9) {
                out.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
                out.extend_from_slice(piece);
                out.extend_from_slice(b"\r\n");
            }
            out.extend_from_slice(b"0\r\n\r\n");
        }
        (false, true) => out.extend_from_slice(b"\r\n"),
        (false, false) => {
            out.extend_from_slice(format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes());
            out.extend_from_slice(body);
        }
    }
    out
}

// ---------------------------------------------------------------------------- the table

/// Combinations that have to pass, and a server that each may come to.
const PASSES: &[(&str, &str, &str, &str)] = &[
    ("sk-small", "name small", "json", "chat"),
    ("sk-small", "name small", "no type", "chat"),
    ("sk-small", "name small", "vendor json", "chat"),
    ("sk-small", "name small", "json utf-8", "chat"),
    ("sk-small", "name small", "chunked", "chat"),
    ("sk-small", "name small", "identity", "chat"),
    ("sk-small", "name small", "empty coding", "chat"),
    ("sk-small", "name small", "form", "chat"),
    ("sk-small", "name small", "chunked form", "chat"),
    ("sk-small", "name small", "put", "chat"),
    ("sk-small", "name ren", "json", "chat"),
    ("sk-small", "name ren", "form", "chat"),
    ("sk-small", "name nick", "json", "chat"),
    ("sk-small", "name nick", "chunked", "chat"),
    ("sk-small", "name tiny", "json", "chat"),
    ("sk-small", "name fix", "json", "fixed"),
    ("sk-small", "name fixnick", "json", "fixed"),
    ("sk-small", "name small@chat0", "json", "chat0"),
    ("sk-small", "name chat:small", "json", "chat"),
    ("sk-small", "nested", "json", "chat"),
    ("sk-small", "in text", "json", "chat"),
    ("sk-small", "escaped small", "json", "chat"),
    ("sk-small", "messages first", "json", "chat"),
    ("sk-small", "padded", "json", "chat"),
    ("sk-small", "/v1beta/models/NAME:generateContent small ", "json", "chat"),
    ("sk-small", "/v1beta/models/NAME:generateContent nick ", "json", "chat"),
    ("sk-small", "/v1beta/models/NAME:generateContent small small", "json", "chat"),
    ("sk-small", "/v1beta/models/NAME:generateContent small models/small", "json", "chat"),
    ("sk-small", "/v1beta/models/NAME:generateContent nick nick", "json", "chat"),
    ("sk-small", "/v1/models/NAME:streamGenerateContent?alt=sse small ", "json", "chat"),
    (
        "sk-small",
        "/openai/deployments/NAME/chat/completions?api-version=1 small small",
        "json",
        "chat",
    ),
    ("sk-small", "/v1/models/NAME small ", "get", "chat"),
    ("sk-small", "proxy /pub/x small", "json", "pub"),
    ("sk-small", "proxy /pub/x secret", "get", "pub"),
    ("sk-all", "name big", "json", "chat"),
    ("sk-all", "name huge", "form", "chat"),
    ("sk-all", "name big", "text", "chat"),
    ("sk-all", "name extra", "json", "chat1"),
    ("sk-all", "small big", "json", "chat"),
    ("sk-all", "/v1beta/models/NAME:generateContent big big", "json", "chat"),
    ("sk-all", "/v1/realtime?model=NAME big ", "websocket", "chat"),
    ("sk-boss", "name secret", "json", "admin"),
    ("sk-boss", "name secret@admin", "json", "admin"),
    ("sk-boss", "name frail", "json", "vault"),
    ("sk-boss", "proxy /admin/x secret", "json", "admin"),
    ("sk-boss", "proxy /admin/x secret", "websocket", "admin"),
    ("sk-boss", "proxy /vault/x secret", "gzip", "vault"),
    ("sk-boss", "vip.example /x secret", "json", "vip"),
    ("sk-boss", "VIP.Example:80 /x secret", "get", "vip"),
    ("sk-bosslim", "proxy /admin/x secret", "json", "admin"),
    ("sk-deft", "name small", "json", "chat"),
    ("sk-glob", "name smallest", "json", "chat"),
    ("none", "name nobody", "json", "pub"),
    ("none", "name pubm", "json", "pub"),
    ("none", "name big", "json", "chat"),
    ("none", "proxy /pub/x small", "get", "pub"),
];

/// A combination's own number, the same in every run.
fn number_of(words: &[&str]) -> u64 {
    let bytes = words.iter().flat_map(|word| word.bytes().chain([0]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    }) >> 17
}

fn send(client: &mut Option<Client>, path: &Path, request: &[u8], method: &str) {
    for fresh in [false, true] {
        if fresh || client.is_none() {
            *client = Some(Client::connect_unix(path));
        }
        let open = client.as_mut().unwrap();
        let sent = open.try_send(request);
        match open.try_answer_to(method) {
            Ok(answer) => {
                if answer.status == 101 || answer.head.to_lowercase().contains("connection: close")
                {
                    *client = None;
                }
                return;
            }
            // A connection that was kept may have been closed meanwhile.
            Err(_) if !fresh => *client = None,
            Err(broken) => panic!("{sent:?} {broken:?}\n{}", String::from_utf8_lossy(request)),
        }
    }
}

#[test]
fn nobody_reaches_what_is_not_theirs() {
    let every = std::env::var("TOKENRING_RIGHTS_EVERY").ok().and_then(|text| text.parse().ok());
    let every = every.unwrap_or(EVERY).max(1);
    let server = |name: &str| {
        mock_with(|config| {
            config.name = name.to_owned();
            config.tokens = 1;
            config.keep_alive = KeepAlive::Normal;
        })
    };
    let servers: Vec<(&str, Mock)> =
        SERVERS.iter().map(|(name, ..)| (*name, server(name))).collect();
    let urls: Vec<String> = servers.iter().map(|(_, mock)| mock.url()).collect();
    let socket = |name: &str| -> PathBuf {
        std::env::temp_dir().join(format!("tokenring-rights-{}-{name}.sock", std::process::id()))
    };
    let _proxy = Proxy::start(&config(&urls, |name| format!("unix:{}", socket(name).display())));

    let (ways, mut combinations, mut leaks) = (ways(), 0u64, Vec::new());
    let mut passed: BTreeMap<(&str, &str, &str), BTreeSet<&str>> = BTreeMap::new();
    for asker in ASKERS {
        let (who, path) = (asker.key.unwrap_or("none"), socket(asker.listener));
        let mut client = None;
        for way in &ways {
            for (kind, make) in KINDS {
                let must =
                    PASSES.iter().any(|(w, l, k, _)| (*w, *l, *k) == (who, &way.label, kind));
                if !must
                    && !number_of(&[asker.listener, who, &way.label, kind]).is_multiple_of(every)
                {
                    continue;
                }
                combinations += 1;
                let carried = make(way);
                let request = request(way, &carried, asker.key);
                send(&mut client, &path, &request, carried.method);
                for (name, mock) in &servers {
                    for seen in mock.seen() {
                        let key = (who, way.label.as_str(), *kind);
                        passed.entry(key).or_default().insert(name);
                        let got = Got::of(&seen.head, &seen.body);
                        let none = || {
                            let none = names_none(asker, name, &got);
                            none.then(|| format!("{name} reads no model"))
                        };
                        if let Some(why) = leak(asker, name, &got).or_else(none) {
                            leaks.push(format!(
                                "{}/{who}, {} as {kind}: {why}\n    {}",
                                asker.listener,
                                way.label,
                                request.escape_ascii(),
                            ));
                        }
                    }
                    mock.forget_seen();
                }
            }
        }
    }
    assert!(
        leaks.is_empty(),
        "{} of {combinations} combinations leak:\n{}",
        leaks.len(),
        leaks.join("\n")
    );
    assert!(combinations >= COMBINATIONS_MIN || every > EVERY, "{combinations}");
    for (who, label, kind, server) in PASSES {
        let came_to = passed.get(&(*who, *label, *kind));
        let good = came_to.is_some_and(|names| names.iter().any(|name| name.starts_with(server)));
        assert!(good, "{who}, {label} as {kind} has to come to {server}: {came_to:?}");
    }
    println!("{combinations} combinations, {} passed", passed.len());
}

/// Two servers that list one name, under `discovery.prefix`: a key has what is listed.
#[test]
fn listed_names_are_what_keys_are_about() {
    let listing = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        mock_with(|config| config.models = names)
    };
    let servers = [("cheap", listing(&["m", "n"])), ("dear", listing(&["m", "x"]))];
    let socket = |name: &str| -> PathBuf {
        let file = format!("tokenring-listed-{}-{name}.sock", std::process::id());
        std::env::temp_dir().join(file)
    };
    let mut text = "[process]\ncores = 1\n[discovery]\nprefix = true\n".to_owned();
    for force in ["listed", "any", "off"] {
        text += &format!(
            "[[listener]]\nname = \"{force}\"\nforce = \"{force}\"\nauth = \"keys\"\n\
             bind = \"unix:{}\"\n",
            socket(force).display()
        );
    }
    for (name, mock) in &servers {
        text += &format!("[[upstream]]\nname = \"{name}\"\nurl = \"{}\"\n", mock.url());
    }
    text += "[[group]]\nname = \"both\"\nmembers = [\"cheap\", \"dear\"]\n";
    text += "[[key]]\nname = \"one\"\nkey = \"one\"\nmodels = [\"cheap:m\"]\n\
             [[key]]\nname = \"bare\"\nkey = \"bare\"\nmodels = [\"m\", \"m@dear\"]\n\
             [[key]]\nname = \"all\"\nkey = \"all\"\n";
    let _proxy = Proxy::start(&text);
    let names = [
        "m",
        "n",
        "x",
        "cheap:m",
        "dear:m",
        "m@cheap",
        "m@dear",
        "cheap:n",
        "dear:x",
        "cheap:x",
        "n@dear",
        "cheap:m@dear",
        "dear:m@cheap",
        "cheap:dear:m",
        "cheap:cheap:m",
        "cheap",
        "cheap:",
        "@cheap",
        "both:m",
        "both:cheap:m",
        "both:dear:m",
    ];
    let mut passed = BTreeSet::new();
    for force in ["listed", "any", "off"] {
        for key in ["one", "bare", "all"] {
            let mut client = None;
            for name in names {
                for kind in ["json", "form", "chunked", "no type"] {
                    let (kind, make) = KINDS.iter().find(|(label, _)| *label == kind).unwrap();
                    let way = Way::new(name, CHAT, &format!("{{\"model\":\"{name}\"}}"), &[name]);
                    let carried = make(&way);
                    for (_, mock) in &servers {
                        mock.forget_seen();
                    }
                    let request = request(&way, &carried, Some(key));
                    send(&mut client, &socket(force), &request, carried.method);
                    for (server, mock) in &servers {
                        for seen in mock.seen() {
                            let got = Got::of(&seen.head, &seen.body);
                            let read: BTreeSet<String> =
                                got.models().into_iter().map(|(_, name)| name).collect();
                            let what =
                                format!("{force}/{key}: {name} as {kind} at {server}: {read:?}");
                            assert_ne!(key, "bare", "{what}");
                            let listed = *server == "cheap" && read.iter().eq(["m"]);
                            assert!(key == "all" || listed, "{what}");
                            passed.insert((force, key, name, *server));
                        }
                    }
                }
            }
        }
    }
    for must in [
        ("listed", "one", "cheap:m", "cheap"),
        ("listed", "one", "m@cheap", "cheap"),
        ("off", "one", "cheap:m", "cheap"),
        ("listed", "all", "dear:m", "dear"),
        ("listed", "all", "m@dear", "dear"),
    ] {
        assert!(passed.contains(&must), "{must:?} has to pass: {passed:?}");
    }
}

/// What is wrong with a server having got this.
pub(crate) fn leak(asker: &Asker, server: &str, got: &Got) -> Option<String> {
    // One that is out of order, and everybody's.
    if server != "dead" && !asker.reaches.contains(&server) {
        return Some(format!("{server} was reached"));
    }
    let may = asker.models.filter(|_| !asker.routed.contains(&server))?;
    // Gemini writes its names so in bodies.
    let plain = |name: &str| name.strip_prefix("models/").unwrap_or(name).to_owned();
    let read = got.models();
    let other = read.iter().find(|(_, name)| !may(&plain(name)));
    other.map(|(reader, name)| format!("{server} ({reader}) reads {name:?}"))
}

/// Whether a server is left to choose a model for a key that is limited to some.
fn names_none(asker: &Asker, server: &str, got: &Got) -> bool {
    asker.models.is_some() && !asker.routed.contains(&server) && got.models().is_empty()
}
