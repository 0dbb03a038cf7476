//! What several tests of this floor need.

use std::collections::BTreeSet;

use serde_json::Value;

/// Every key of the schema as a path: `listener.route.group`; names of models are left out.
pub(crate) fn schema_paths() -> BTreeSet<String> {
    let schema: Value = serde_json::from_str(&super::json_schema()).unwrap();
    let mut paths = BTreeSet::new();
    collect(&schema, &schema, "", &mut paths);
    paths
}

fn collect(root: &Value, at: &Value, path: &str, out: &mut BTreeSet<String>) {
    if let Some(name) = at["$ref"].as_str().and_then(|r| r.strip_prefix("#/$defs/")) {
        collect(root, &root["$defs"][name], path, out);
    }
    for (key, value) in at["properties"].as_object().into_iter().flatten() {
        let below = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        out.insert(below.clone());
        collect(root, value, &below, out);
    }
    for inner in ["items", "additionalProperties"] {
        if at[inner].is_object() {
            collect(root, &at[inner], path, out);
        }
    }
    for option in at["anyOf"].as_array().into_iter().flatten() {
        collect(root, option, path, out);
    }
}
