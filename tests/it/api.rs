//! A house with `/api/v1`: a proxy whose config can be edited, and what the edits do to traffic.

use std::net::SocketAddr;

use loadtest::mock::Mock;
use serde_json::Value;
use tokenring::testing::net::dial::Address;

use super::house::{Proxy, mock_with};
use super::reload::Live;
use super::wire::{Client, post};

/// A simulated server that says who it is.
pub(crate) fn named(name: &str) -> Mock {
    mock_with(|config| config.name = name.to_owned())
}

/// What the operator was told.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) status: u16,
    pub(crate) version: String,
    pub(crate) json: Value,
}

impl Told {
    pub(crate) fn data(&self) -> &Value {
        assert_eq!(self.json["status"], "success", "{self:?}");
        &self.json["data"]
    }

    /// The message of a refusal; its envelope says the same status as HTTP.
    pub(crate) fn error(&self) -> &str {
        assert_eq!(self.json["status"], "error", "{self:?}");
        assert_eq!(self.json["code"], self.status, "{self:?}");
        assert!(self.json["error"]["type"].is_string(), "{self:?}");
        self.json["error"]["message"].as_str().unwrap()
    }
}

/// A client of the operator's address.
pub(crate) struct Operator {
    client: Client,
    pub(crate) fields: String,
}

impl Operator {
    pub(crate) fn of(proxy: &Proxy) -> Operator {
        Operator::at(admin_of(proxy))
    }

    pub(crate) fn at(addr: SocketAddr) -> Operator {
        Operator { client: Client::connect(addr), fields: String::new() }
    }

    /// Sends a request; `path` is below `/api/v1`.
    pub(crate) fn send(&mut self, method: &str, path: &str, fields: &str, body: &Value) -> Told {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let kind = if body.is_empty() { "" } else { "content-type: application/json\r\n" };
        let request = format!(
            "{method} /api/v1{path} HTTP/1.1\r\nhost: localhost\r\n{kind}{fields}{}content-length: {}\r\n\r\n{body}",
            self.fields,
            body.len()
        );
        let answer = self.client.send(request).answer_to(method);
        let json = match answer.body.is_empty() {
            true => Value::Null,
            false => answer.json(),
        };
        if let Some(code) = json.get("code") {
            assert_eq!(*code, answer.status, "{json}");
        }
        let version = answer.field("etag").unwrap_or_default().to_owned();
        Told { status: answer.status, version, json }
    }

    pub(crate) fn get(&mut self, path: &str) -> Told {
        self.send("GET", path, "", &Value::Null)
    }

    pub(crate) fn post(&mut self, path: &str, body: Value) -> Told {
        self.send("POST", path, "", &body)
    }

    pub(crate) fn put(&mut self, path: &str, body: Value) -> Told {
        self.send("PUT", path, "", &body)
    }

    pub(crate) fn patch(&mut self, path: &str, body: Value) -> Told {
        self.send("PATCH", path, "", &body)
    }

    pub(crate) fn delete(&mut self, path: &str) -> Told {
        self.send("DELETE", path, "", &Value::Null)
    }
}

pub(crate) fn admin_of(proxy: &Proxy) -> SocketAddr {
    match proxy.admin() {
        Some(Address::Tcp(addr)) => *addr,
        other => panic!("no admin listener: {other:?}"),
    }
}

/// `a` and `b` behind the group `chat`, which the model `m` and the route `/echo` lead to.
pub(crate) struct House {
    pub(crate) live: Live,
    pub(crate) a: Mock,
    pub(crate) b: Mock,
}

impl House {
    pub(crate) fn new() -> House {
        House::with("")
    }

    /// `more` are whole tables.
    pub(crate) fn with(more: &str) -> House {
        let (a, b) = (named("a"), named("b"));
        let text = text(&a, &b, more);
        House { live: Live::start(&text), a, b }
    }

    pub(crate) fn operator(&self) -> Operator {
        Operator::of(&self.live.proxy)
    }

    /// Which server answers a chat with this model, else the status.
    pub(crate) fn who(&self, model: &str) -> String {
        ask(self.live.proxy.addr(), "/v1/chat/completions", model)
    }

    /// Which server answers a request of this path, else the status.
    pub(crate) fn who_at(&self, path: &str) -> String {
        ask(self.live.proxy.addr(), path, "of-no-server")
    }
}

/// The config of a house.
pub(crate) fn text(a: &Mock, b: &Mock, more: &str) -> String {
    let process = if more.contains("[process]") { "" } else { "[process]\ncores = 2\n" };
    let admin = if more.contains("[admin]") { "" } else { "[admin]\nbind = \"127.0.0.1:0\"\n" };
    let calm = "breaker = { consecutive = 1000000, calls_min = 1000000 }";
    format!(
        "{process}{admin}[[listener]]\nname = \"main\"\nbind = \"127.0.0.1:0\"\nauth = \"none\"\n\
         [[listener.route]]\npath = \"/echo\"\ngroup = \"chat\"\n\
         [[upstream]]\nname = \"gpu0\"\nurl = \"{}\"\nmodels = []\n{calm}\n\
         [[upstream]]\nname = \"gpu1\"\nurl = \"{}\"\nmodels = []\n{calm}\n\
         [[group]]\nname = \"chat\"\nbalance = \"failover\"\nmembers = [\"gpu0\"]\n\
         [models.m]\ngroup = \"chat\"\n{more}",
        a.url(),
        b.url()
    )
}

/// Which server answers, else the status.
pub(crate) fn ask(addr: SocketAddr, path: &str, model: &str) -> String {
    let body = format!("{{\"model\":\"{model}\",\"messages\":[]}}");
    let answer = Client::connect(addr).send(post(path, "", body)).answer();
    answer.field("x-mock-server").map_or(answer.status.to_string(), str::to_owned)
}

/// Every core serves by the edit that was answered: each of many new connections meets it.
pub(crate) fn all_say(house: &House, model: &str, who: &str) {
    for _ in 0..8 {
        assert_eq!(house.who(model), who, "{model}");
    }
}

#[test]
fn without_documents_it_says_so() {
    let a = named("a");
    let text = text(&a, &a, "");
    let proxy = Proxy::start(&text);
    let mut operator = Operator::of(&proxy);
    let told = operator.get("/upstreams");
    assert_eq!(told.status, 503);
    assert!(told.error().contains("cannot be shown"), "{told:?}");
}
