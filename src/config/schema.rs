//! The JSON schema of the file, for editors and for `config schema`.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::Value;

use crate::config::names::Named;
use crate::config::raw::{CoresEntry, DateText, HeaderValue, MemberEntry, RawConfig, RawMember};
use crate::config::reader::At;
use crate::config::values::{NameTable, OneOf, OneOrMany, SecretText, Size, Time, UrlText};

/// A schema that stands where it is used.
macro_rules! inline {
    ($($Type:ident $(<$T:ident: $Bound:ident>)?: $generator:ident => $schema:expr;)*) => {$(
        impl $(<$T: $Bound>)? JsonSchema for $Type $(<$T>)? {
            fn inline_schema() -> bool {
                true
            }
            fn schema_name() -> Cow<'static, str> {
                Cow::Borrowed(stringify!($Type))
            }
            fn json_schema($generator: &mut SchemaGenerator) -> Schema {
                $schema
            }
        }
    )*};
}

inline! {
    At<T: JsonSchema>: generator => generator.subschema_for::<T>();
    Time: _generator => json_schema!({ "type": "string", "examples": ["250ms", "30s", "1h30m"] });
    Size: _generator => json_schema!({ "type": ["string", "integer"], "examples": ["64KiB", 65536] });
    SecretText: _generator => json_schema!({ "type": "string", "writeOnly": true });
    HeaderValue: _generator => json_schema!({ "type": "string" });
    UrlText: _generator => json_schema!({ "type": "string" });
    DateText: _generator => json_schema!({ "type": "string" });
    OneOf<T: Named>: _generator => {
        let names: Vec<&str> = T::NAMES.iter().map(|(name, _)| *name).collect();
        json_schema!({ "type": "string", "enum": names })
    };
    OneOrMany<T: JsonSchema>: generator => {
        let one = generator.subschema_for::<T>();
        json_schema!({ "anyOf": [one, { "type": "array", "items": one }] })
    };
    NameTable<T: JsonSchema>: generator => {
        let one = generator.subschema_for::<T>();
        json_schema!({ "type": "object", "additionalProperties": one })
    };
    CoresEntry: _generator => json_schema!({ "anyOf": [
        { "type": "string" },
        { "type": "integer" },
        { "type": "array", "items": { "type": "integer" } },
    ] });
    MemberEntry: generator => {
        let table = generator.subschema_for::<RawMember>();
        json_schema!({ "anyOf": [{ "type": "string" }, table] })
    };
}

/// The JSON schema of the file, as text.
pub(crate) fn schema() -> String {
    let mut value = schemars::schema_for!(RawConfig).to_value();
    without_null(&mut value);
    crate::config::effect::mark_schema(&mut value);
    if let Some(object) = value.as_object_mut() {
        object.insert("title".to_owned(), "tokenring configuration".into());
    }
    serde_json::to_string_pretty(&value).unwrap_or_default()
}

/// Takes away the `null` that an optional key gets: TOML has none.
fn without_null(value: &mut Value) {
    match value {
        Value::Object(object) => {
            if let Some(Value::Array(types)) = object.get_mut("type") {
                types.retain(|t| t != "null");
                if let [only] = types.as_slice() {
                    let only = only.clone();
                    object.insert("type".to_owned(), only);
                }
            }
            if let Some(Value::Array(words)) = object.get_mut("enum") {
                words.retain(|word| !word.is_null());
            }
            let mut sole = None;
            if let Some(Value::Array(any)) = object.get_mut("anyOf") {
                any.retain(|s| s.get("type").is_none_or(|t| t != "null"));
                if let [only] = any.as_slice() {
                    sole = only.as_object().cloned();
                }
            }
            if let Some(sole) = sole {
                object.remove("anyOf");
                object.extend(sole);
            }
            object.values_mut().for_each(without_null);
        }
        Value::Array(items) => items.iter_mut().for_each(without_null),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schema_knows_sections_and_words_and_no_null() {
        let text = schema();
        let value: Value = serde_json::from_str(&text).unwrap();
        assert!(value["properties"]["listener"].is_object());
        assert!(text.contains("\"response_aware\""));
        assert!(!text.contains("null"));
        assert_eq!(value["additionalProperties"], Value::Bool(false));
    }
}
