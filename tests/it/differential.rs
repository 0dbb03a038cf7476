//! What we take for the model of a request, against what servers read in it: millions of requests
//! that are harmed a little, decided as the proxy decides them, without a socket.
//!
//! The property is that of `rights`: whatever passes for a key that is limited to some models has
//! no other model in it for any reader of `readers`, and goes to nobody out of reach.
//!
//! `TOKENRING_FUZZ_SEED`, `TOKENRING_FUZZ_ITERATIONS` as in `fuzz`; a failure prints both.
//! `TOKENRING_READERS_OUT=FILE` writes what passed for limited keys, for `scripts/readers.py`,
//! which has the real parsers read it.

use std::io::Write as _;
use std::sync::Arc;

use base64::Engine as _;
use tokenring::testing::base::clock::{Timestamp, WallTime};
use tokenring::testing::base::rng::Rng;
use tokenring::testing::http::head::RequestHead;
use tokenring::testing::http1::body::{BodyReader, drain_data};
use tokenring::testing::http1::encode;
use tokenring::testing::http1::parse::{Parse, parse_request};
use tokenring::testing::llm::scan::ModelScan;
use tokenring::testing::proxy::admit::{Admitted, admit};
use tokenring::testing::proxy::hold::Scanner;
use tokenring::testing::proxy::plan::{PathPlan, Plan};
use tokenring::testing::proxy::route;

use super::house::Proxy;
use super::readers::Got;
use super::rights::{ASKERS, Asker, NAMES, PATHS, SERVERS, config, leak};

const ITERATIONS: u64 = 2_000;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

// ---------------------------------------------------------------------------- deciding

/// What servers would get, each by its name; empty when the request is refused.
fn decide(plan: &Plan, listener: usize, request: &[u8]) -> Vec<(String, Got)> {
    passed(plan, listener, request).unwrap_or_default()
}

/// As `proxy::exchange` does it.
fn passed(plan: &Plan, listener: usize, request: &[u8]) -> Option<Vec<(String, Got)>> {
    let listener = &plan.listeners[listener];
    let (mut bytes, mut head) = (request.to_vec(), RequestHead::new());
    let parsed = parse_request(&bytes, &mut 0, &plan.head, &mut head).ok()?;
    (parsed == Parse::Done).then_some(())?;
    head.normalise_path(&mut bytes).ok()?;
    let now = Timestamp::agreeing(WallTime::from_secs(1_700_000_000));
    let admitted = admit(plan, listener, &head, &bytes, None, None, now);
    let Admitted::Permit(permit) = admitted.ok()? else { return None };
    let head_route = route::by_head(listener, &head, &bytes, &permit).ok()?;
    let mut scan = ModelScan::new();
    let mut scanner = head_route.scanner(&head, &bytes, listener, &permit, &mut scan).ok()?;
    let (mut reader, mut body) = (BodyReader::new(permit.framing), Vec::new());
    let framed = &bytes[head.len as usize..];
    drain_data(&mut reader, framed, |data| body.extend_from_slice(data)).ok()?;
    reader.is_done().then_some(())?;
    scanner.push(&body).ok()?;
    scanner.finish().ok()?;
    let route = route::finish(plan, listener, head_route, &head, &bytes, &scanner, &permit).ok()?;
    if let (Some(name), Some(found)) = (&route.rename, scanner.model()) {
        let value = match &scanner {
            Scanner::Form(_) => name.clone(),
            _ => serde_json::to_string(name).unwrap(),
        };
        let (from, to) = (found.span.start as usize, found.span.end as usize);
        body.splice(from..to, value.bytes());
    }
    let mut target = Vec::new();
    route.write_target(&mut target, &head, &bytes);
    let mut fields = b"POST / HTTP/1.1\r\n".to_vec();
    encode::copy_request_fields(&mut fields, &head, &bytes, |_| false);
    let fields = Got::of(&fields, b"").fields;
    let members: Vec<u16> = match route.upstream {
        Some(upstream) => vec![upstream],
        None => plan.groups[usize::from(route.group)].members.iter().map(|m| m.0).collect(),
    };
    let upstreams = members.iter().map(|number| &plan.upstreams[usize::from(*number)]);
    let mut servers = Vec::new();
    for upstream in upstreams.filter(|upstream| upstream.reach.allows(permit.asker())) {
        let target = match &upstream.path {
            PathPlan::Fixed(_) if route.by_target => continue,
            PathPlan::Fixed(path) => path.clone(),
            PathPlan::Under(_) => target.clone(),
        };
        let got = Got { target, fields: fields.clone(), body: body.clone() };
        servers.push((upstream.name.clone(), got));
    }
    Some(servers)
}

// ---------------------------------------------------------------------------- making requests

/// Pieces of which bodies and fields are made and with which they are harmed.
const PIECES: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"",
    "\\",
    "\\\"",
    "\\\\",
    "\\u006d",
    "\\u0065",
    "\\ud800",
    "null",
    "true",
    "-0",
    "1e5",
    "NaN",
    " ",
    "\r\n",
    "\n",
    "\r",
    "\t",
    "\0",
    "\u{feff}",
    "//",
    "/*",
    "*/",
    "'",
    "\"model\"",
    "\"Model\"",
    "\"mod\\u0065l\"",
    "\"model\":",
    "\"model\":\"big\"",
    "\"model\":\"small\"",
    ",\"model\":\"big\"",
    "\"x\":",
    "{\"model\":\"big\"}",
    "model=big&",
    "&model=big",
    "&",
    "=",
    ";",
    "%",
    "+",
    "--",
    "--B",
    "--B\r\n",
    "\r\n--B\r\n",
    "--B--",
    "\r\n--B--",
    "\r\n--B--\r\n",
    "\r\n\r\n",
    "Content-Disposition: form-data; name=\"model\"\r\n",
    "content-disposition:form-data;name=model",
    "; name=\"model\"",
    "; name=model",
    "; name=\"o\"",
    "; filename=\"x\"",
    "; x=\"\\\\\"",
    "; x=a\"b",
    "; name*=utf-8''model",
    "big",
    "small",
    "nick",
    "Content-Transfer-Encoding: base64\r\n",
    "Content-Type: text/plain; charset=utf-7\r\n",
];
/// Pieces of paths and queries.
const STEPS: &[&str] = &[
    "v1",
    "v1beta",
    "models",
    "Models",
    "%6dodels",
    "tunedModels",
    "model",
    "deployments",
    "engines",
    "endpoints",
    "publishers",
    "openai",
    "..",
    ".",
    "",
    "%2e%2e",
    "%2F",
    "%2f",
    "%5C",
    "\\",
    ";",
    ";a=b",
    "small",
    "big",
    "nick",
    "sm%61ll",
    "b%69g",
    "small:x",
    "big:x",
    "big%3Ax",
    "big:x1",
    "admin",
    "pub",
    "vault",
    "?",
    "model=big",
    "model=small",
    "&model=big",
    ";model=big",
    "mod%65l=big",
    "%",
    "%25",
    "%2Fmodels%2Fbig",
    ":",
    "@",
    "+",
    "//",
    "/",
];
const FIELDS: &[&str] = &[
    "Content-Type: application/json\r\n",
    "Content-Type: application/json\r\n",
    "Content-Type: application/json; charset=utf-8\r\n",
    "Content-Type: multipart/form-data; boundary=B\r\n",
    "Content-Type: multipart/form-data; boundary=B\r\n",
    "Content-Type: multipart/form-data; boundary=\"B\"; charset=utf-8\r\n",
    "Content-Type: multipart/form-data; x=\"\\\\\"; boundary=B\r\n",
    "Content-Type: application/x-www-form-urlencoded\r\n",
    "Content-Type: text/plain\r\n",
    "Content-Type: \r\n",
    "Content-Encoding: gzip\r\n",
    "Content-Encoding: identity\r\n",
    "Content-Encoding: \r\n",
    "Connection: content-type\r\n",
    "Connection: Upgrade\r\nUpgrade: websocket\r\n",
    "Content_Type: multipart/form-data; boundary=B\r\n",
];

/// What may stand behind `form-data`.
const DISPOSED: &[&str] = &[
    "; name=\"model\"",
    "; name=model",
    "; name=\"x\"",
    "; name=\"o\"",
    "; filename=\"a\"",
    "; x=\"\\\\\"",
    "; x=a\"",
    "; name=\"o\"; z=\"; name=model; \"",
    ";w=b\"",
    "; NAME=\"model\"",
    "; x=\"\\\"\"",
    "; name=\"mo\\del\"",
    "; name*=utf-8''model",
    "; y=\"",
    "\"",
    "; x=\"\\\"; name=model",
];

struct Maker {
    rng: Rng,
}

impl Maker {
    fn below(&mut self, count: usize) -> usize {
        self.rng.below(count as u64) as usize
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.rng.below(count) == 0
    }

    fn pick<'t>(&mut self, texts: &[&'t str]) -> &'t str {
        texts[self.below(texts.len())]
    }

    fn name(&mut self) -> &'static str {
        match self.below(12) {
            0 => "big",
            1 => self.pick(NAMES),
            _ => "small",
        }
    }

    fn target(&mut self) -> String {
        match self.below(10) {
            0 => {
                let name = self.name();
                self.pick(PATHS).replace("NAME", name)
            }
            1 => {
                let steps: Vec<&str> = (0..1 + self.below(7)).map(|_| self.pick(STEPS)).collect();
                format!("/{}", steps.join(if self.one_in(3) { "" } else { "/" }))
            }
            2 => format!("/v1/chat/completions?{}={}", self.pick(&["model", "x"]), self.name()),
            3 => "/v1beta/models/small:generateContent".to_owned(),
            _ => "/v1/chat/completions".to_owned(),
        }
    }

    fn json(&mut self) -> String {
        let mut pairs = Vec::new();
        // One model and some more, mostly.
        let model = self.below(3);
        for at in 0..1 + self.below(4).max(model) {
            let key = match self.below(24) {
                0 => "Model",
                1 => "mod\\u0065l",
                2 => "model",
                _ if at == model => "model",
                _ => "x",
            };
            let name = if key == "x" { "big" } else { self.name() };
            let escaped = || name.chars().map(|char| format!("\\u{:04x}", u32::from(char)));
            let value = match self.below(16) {
                0 => "null".to_owned(),
                1 => format!("[{{\"model\":\"{name}\"}}]"),
                2 => "\"\\\"model\\\":\\\"big\\\"\"".to_owned(),
                3 => format!("\"{}\"", escaped().collect::<String>()),
                _ => format!("\"{name}\""),
            };
            pairs.push(format!("\"{key}\":{value}"));
        }
        format!("{{{}}}", pairs.join(","))
    }

    fn form(&mut self) -> String {
        let (mut form, parts) = (String::new(), 1 + self.below(3));
        let model = self.below(parts);
        for at in 0..parts {
            let mut more = match at == model {
                true => self.pick(&["; name=\"model\"", "; name=model", ";name = \"model\" "]),
                false => self.pick(&["; name=\"x\"", "; name=\"file\"; filename=\"a\""]),
            }
            .to_owned();
            if self.one_in(5) {
                more.clear();
                for _ in 0..1 + self.below(4) {
                    more += self.pick(DISPOSED);
                }
            }
            let fields = match self.below(8) {
                0 => "Content-Transfer-Encoding: base64\r\n",
                1 => "Content-Type: text/plain; charset=ISO-8859-1\r\n",
                _ => "",
            };
            let name = if at == model { self.name() } else { "big" };
            form +=
                &format!("--B\r\nContent-Disposition: form-data{more}\r\n{fields}\r\n{name}\r\n");
        }
        let ends = ["--B--\r\n", "--B--\r\n", "--B--\r\n", "--B--", "--B--\r\n--B--", "--B"];
        form + self.pick(&ends)
    }

    fn body(&mut self) -> String {
        match self.below(16) {
            0..7 => self.json(),
            7..14 => self.form(),
            14 => format!("x=1&model={}", self.name()),
            _ => {
                let (json, form) = (self.json(), self.form());
                if self.one_in(2) { json + "\r\n" + &form } else { form + &json }
            }
        }
    }

    fn harm(&mut self, data: &mut Vec<u8>, pieces: &[&str]) {
        let at = self.below(data.len() + 1);
        let until = (at + self.below(12)).min(data.len());
        match self.below(6) {
            0 if at < data.len() => data[at] = self.rng.next_u64() as u8,
            1 if at < data.len() => data[at] ^= 1 << self.below(8),
            2 => drop(data.drain(at..until)),
            3 => {
                let again = data[at..until].to_vec();
                drop(data.splice(at..at, again));
            }
            _ => {
                let piece = self.pick(pieces);
                drop(data.splice(at..at, piece.bytes()));
            }
        }
    }

    fn request(&mut self, asker: &Asker) -> Vec<u8> {
        let method = match self.below(20) {
            0 => self.pick(&["GET", "DELETE", "PUT", "HEAD", "OPTIONS"]),
            _ => "POST",
        };
        let mut target = self.target().into_bytes();
        let mut body = self.body().into_bytes();
        let is_form = body.starts_with(b"--B");
        let mut fields = match self.below(16) {
            0 => String::new(),
            1..3 => self.pick(FIELDS).to_owned(),
            // Mostly what it is, or few would pass.
            _ if is_form => FIELDS[3].to_owned(),
            _ => FIELDS[0].to_owned(),
        };
        if self.one_in(16) {
            fields += self.pick(FIELDS);
        }
        let mut fields = fields.into_bytes();
        if self.one_in(12) {
            self.harm(&mut target, STEPS);
        }
        if self.one_in(12) {
            self.harm(&mut fields, PIECES);
        }
        if self.one_in(3) {
            for _ in 0..1 + self.below(3) {
                self.harm(&mut body, PIECES);
            }
        }
        if self.one_in(30) {
            body.clear();
        }
        let mut out = format!("{method} ").into_bytes();
        out.extend_from_slice(&target);
        let key = asker.key.map(|key| format!("Authorization: Bearer {key}\r\n"));
        out.extend_from_slice(
            format!(" HTTP/1.1\r\nHost: proxy\r\n{}", key.unwrap_or_default()).as_bytes(),
        );
        out.extend_from_slice(&fields);
        if self.one_in(8) {
            out.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
            if !body.is_empty() {
                out.extend_from_slice(format!("{:x}\r\n", body.len()).as_bytes());
                out.extend_from_slice(&body);
                out.extend_from_slice(b"\r\n");
            }
            out.extend_from_slice(b"0\r\n\r\n");
        } else {
            out.extend_from_slice(format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes());
            out.extend_from_slice(&body);
        }
        out
    }
}

// ---------------------------------------------------------------------------- the property

#[test]
fn no_server_reads_another_model_than_we_do() {
    let urls: Vec<String> = SERVERS.iter().map(|_| "http://127.0.0.1:9".to_owned()).collect();
    let socket = |name: &str| {
        let file = format!("tokenring-readers-{}-{name}.sock", std::process::id());
        format!("unix:{}", std::env::temp_dir().join(file).display())
    };
    let proxy = Proxy::start(&config(&urls, socket));
    let plan: Arc<Plan> = proxy.plan();
    let number_of = |name: &str| plan.listeners.iter().position(|l| l.name == name).unwrap();
    let (seed, turns) =
        (number("TOKENRING_FUZZ_SEED", 1), number("TOKENRING_FUZZ_ITERATIONS", ITERATIONS));
    let out = std::env::var("TOKENRING_READERS_OUT").ok();
    let mut out = out.map(|path| std::io::BufWriter::new(std::fs::File::create(path).unwrap()));
    let mut maker = Maker { rng: Rng::new(seed) };
    let (mut limited, mut others) = (0u64, 0u64);
    for turn in 0..turns {
        let asker = &ASKERS[maker.below(ASKERS.len())];
        let request = maker.request(asker);
        for (server, got) in decide(&plan, number_of(asker.listener), &request) {
            if let Some(why) = leak(asker, &server, &got) {
                panic!(
                    "seed {seed}, turn {turn}, {}/{:?}: {why}\n{}",
                    asker.listener,
                    asker.key,
                    request.escape_ascii()
                );
            }
            match asker.models {
                Some(_) if !asker.routed.contains(&server.as_str()) => {
                    limited += 1;
                    if let Some(out) = &mut out {
                        writeln!(out, "{}", line(asker, &got)).unwrap();
                    }
                }
                _ => others += 1,
            }
        }
    }
    println!("{turns} requests; {limited} passed for keys with some models, {others} for others");
    assert!(limited > turns / 50 && others > turns / 50, "{limited}, {others}: too few pass");
}

/// A line for `scripts/readers.py`.
fn line(asker: &Asker, got: &Got) -> serde_json::Value {
    let coded = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
    let may = asker.models.expect("it is limited");
    let names = ["small", "small-real", "fix", "frail", "big", "nick"];
    let fields: Vec<[String; 2]> =
        got.fields.iter().map(|(name, value)| [name.clone(), coded(value)]).collect();
    serde_json::json!({
        "may": names.iter().filter(|name| may(name)).collect::<Vec<_>>(),
        "begins": if may("sm") { "sm" } else { "" },
        "target": coded(&got.target),
        "fields": fields,
        "body": coded(&got.body),
    })
}
