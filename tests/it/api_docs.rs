//! rules §12: the description of `/api/v1` is complete, and what it shows works.

use serde_json::{Value, json};

use super::api::{House, Operator, admin_of};
use super::wire::{Client, get};

fn house() -> House {
    House::with("[[key]]\nname = \"my-app\"\nkey = \"sk-first-0123456789\"\n")
}

fn document(operator: &mut Operator) -> Value {
    let told = operator.get("/openapi.json");
    assert_eq!(told.status, 200);
    assert!(told.json["openapi"].as_str().unwrap().starts_with("3.1"));
    told.json
}

/// Path, method and description of every operation.
fn operations(document: &Value) -> Vec<(String, String, Value)> {
    let mut all = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            all.push((path.clone(), method.to_ascii_uppercase(), operation.clone()));
        }
    }
    all
}

/// What comes first, so that what is changed is there and what is removed is not missed.
fn order(method: &str, path: &str) -> (usize, bool) {
    let turn = ["POST", "PATCH", "PUT", "GET", "DELETE"].iter().position(|one| *one == method);
    (turn.unwrap(), path.ends_with("/rotate"))
}

#[test]
fn every_example_works() {
    let house = house();
    let mut operator = house.operator();
    let document = document(&mut operator);
    let mut all = operations(&document);
    all.sort_by_key(|(path, method, _)| order(method, path));
    assert!(all.len() > 30, "{}", all.len());
    // So that there is an edit to drop.
    let gpu1 = json!({ "url": house.b.url(), "models": ["mb"] });
    assert_eq!(operator.put("/upstreams/gpu1", gpu1).status, 200);
    for (path, method, operation) in all {
        let mut filled = path.strip_prefix("/api/v1").unwrap().to_owned();
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            let name = parameter["name"].as_str().unwrap();
            if parameter["in"] == "query" {
                continue;
            }
            let example = parameter["example"].as_str().unwrap_or_else(|| panic!("{path}: {name}"));
            filled = filled.replace(&format!("{{{name}}}"), example);
        }
        let body = &operation["requestBody"]["content"]["application/json"]["example"];
        assert_eq!(body.is_null(), operation["requestBody"].is_null(), "{method} {path}");
        if path == "/api/v1/docs" {
            continue;
        }
        if path == "/api/v1/exchanges/{id}" {
            // There is none in flight: `api_exchanges` has some.
            assert_eq!(operator.send(&method, &filled, "", body).status, 404);
            continue;
        }
        let told = operator.send(&method, &filled, "", body);
        let wanted: Vec<&String> = operation["responses"].as_object().unwrap().keys().collect();
        assert!((200..300).contains(&told.status), "{method} {filled} {body}: {told:?}");
        assert!(wanted.contains(&&told.status.to_string()), "{method} {path}: {}", told.status);
        assert!(operation["summary"].is_string() && operation["tags"][0].is_string(), "{path}");
    }
}

#[test]
fn every_route_of_the_code_is_described() {
    let house = house();
    let mut operator = house.operator();
    let document = document(&mut operator);
    let described = operations(&document);
    // A route that is not described could only be made by these words.
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/control/api");
    for file in std::fs::read_dir(folder).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        assert!(!text.contains(".route("), "routes!(…) describes what it adds");
    }
    for (path, method, _) in &described {
        let path = path.strip_prefix("/api/v1").unwrap().replace(['{', '}'], "");
        let told = operator.send("TRACE", &path, "", &Value::Null);
        assert_eq!(told.status, 405, "{method} {path}");
    }
    let told = operator.get("/nothing");
    assert_eq!((told.status, told.error()), (404, "no such resource"));
}

#[test]
fn the_page_needs_no_network_and_no_script() {
    let house = house();
    let addr = admin_of(&house.live.proxy);
    let answer = Client::connect(addr).send(get("/api/v1/docs", "")).answer();
    assert_eq!(answer.status, 200);
    assert_eq!(answer.field("content-type"), Some("text/html; charset=utf-8"));
    let policy = answer.field("content-security-policy").unwrap().to_owned();
    assert!(policy.starts_with("default-src 'none'; style-src 'sha256-"), "{policy}");
    let page = answer.text();
    for word in ["<script", "http-equiv", "src=", "onclick", "@import", "url("] {
        assert!(!page.contains(word), "{word}");
    }
    let mut operator = house.operator();
    for (path, _, operation) in operations(&document(&mut operator)) {
        assert!(page.contains(&path), "{path}");
        let summary = operation["summary"].as_str().unwrap();
        assert!(page.contains(&summary.replace('&', "&amp;")), "{summary}");
    }
}
