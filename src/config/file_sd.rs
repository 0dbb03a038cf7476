//! Targets out of a file, as Prometheus reads them: `file_sd` in JSON.
//!
//! `[{"targets": ["host:port", …], "labels": {"weight": "2"}}, …]`. Of the labels `weight` (or
//! `__weight__`) counts, a number or a text; all others belong to who else reads the file. A
//! target without a port has that of the entry's URL. One that cannot be read makes the whole
//! file bad: half a fleet is worse than the one before.

use serde_json::Value;

use crate::config::build::url::split_host_port;
use crate::config::expanded::Target;

/// Reads the text of a file.
///
/// Errors: what is wrong and where, for a person.
pub fn parse_file_sd(text: &[u8], port: u16) -> Result<Vec<Target>, String> {
    let tree: Value = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    let groups = tree.as_array().ok_or("it is no array of target groups")?;
    let mut targets = Vec::new();
    for (index, group) in groups.iter().enumerate() {
        let named = |why: String| format!("group {index}: {why}");
        let weight = weight(group.get("labels")).map_err(named)?;
        let list = group.get("targets").and_then(Value::as_array);
        for target in list.ok_or(named("it has no array `targets`".to_owned()))? {
            let text = target.as_str().ok_or(named(format!("{target} is no text")))?;
            let (host, own) =
                split_host_port(text).map_err(|why| named(format!("{text:?}: {why}")))?;
            targets.push(Target { host, port: own.unwrap_or(port), weight });
        }
    }
    Ok(targets)
}

fn weight(labels: Option<&Value>) -> Result<u16, String> {
    let said = ["weight", "__weight__"].iter().find_map(|name| labels?.get(name));
    let Some(said) = said else { return Ok(1) };
    let number = match said {
        Value::String(text) => text.parse().ok(),
        other => other.as_u64(),
    };
    let weight = number.and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0);
    weight.ok_or(format!("weight {said} is not in 1..65535"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Result<Vec<(String, u16, u16)>, String> {
        let targets = parse_file_sd(text.as_bytes(), 8000)?;
        Ok(targets.into_iter().map(|t| (t.host, t.port, t.weight)).collect())
    }

    #[test]
    fn reads_what_prometheus_reads() {
        let text = r#"[
            {"targets": ["10.0.0.1:9000", "GPU-2", "[fd00::1]:1"], "labels": {"job": "x"}},
            {"targets": ["a:1"], "labels": {"weight": "7"}},
            {"targets": ["b:2"], "labels": {"__weight__": 3}},
            {"targets": []}
        ]"#;
        let expected = [
            ("10.0.0.1", 9000, 1),
            ("gpu-2", 8000, 1),
            ("fd00::1", 1, 1),
            ("a", 1, 7),
            ("b", 2, 3),
        ];
        let expected: Vec<_> = expected.iter().map(|(h, p, w)| (h.to_string(), *p, *w)).collect();
        assert_eq!(read(text), Ok(expected));
        assert_eq!(read("[]"), Ok(vec![]));
    }

    #[test]
    fn says_what_is_wrong() {
        for (text, part) in [
            ("", "EOF"),
            ("{}", "no array of target groups"),
            ("[{}]", "group 0: it has no array `targets`"),
            (r#"[{"targets":["a:1"]},{"targets":"b"}]"#, "group 1"),
            (r#"[{"targets":[7]}]"#, "7 is no text"),
            (r#"[{"targets":["http://a:1"]}]"#, "group 0: \"http://a:1\""),
            (r#"[{"targets":["a:0"]}]"#, "port"),
            (r#"[{"targets":["a"],"labels":{"weight":"0"}}]"#, "weight \"0\""),
            (r#"[{"targets":["a"],"labels":{"weight":-1}}]"#, "weight -1"),
            (r#"[{"targets":["a"],"labels":{"weight":70000}}]"#, "weight 70000"),
        ] {
            let why = read(text).expect_err(text);
            assert!(why.contains(part), "{text}: {why}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = parse_file_sd(&bytes, 1);
        }

        #[test]
        fn no_tree_panics(text in r#"[\[\]{}":,a-z0-9 targetslabelsweight]{0,60}"#) {
            let _ = parse_file_sd(text.as_bytes(), 1);
        }
    }
}
