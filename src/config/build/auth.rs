//! Builds `upstream.auth` and `upstream.api_keys`.
//!
//! Several keys stand in for the one of the table: `auth` then says where they
//! go, and without it the protocol does. So there is always one place only.

use crate::config::build::check::{each, fraction, is_field_value, missing, required};
use crate::config::build::headers::field_name;
use crate::config::fault::Spot;
use crate::config::model::*;
use crate::config::names::AuthType;
use crate::config::raw::{RawAuth, RawUpstream};
use crate::config::reader::{At, Reader};
use crate::config::values::SecretText;

/// The credentials of which one is picked per attempt.
pub(crate) fn api_keys(r: &mut Reader<'_>, raw: &RawUpstream) -> Vec<ApiKey> {
    let mut keys = Vec::new();
    for at in each(&raw.api_keys) {
        let weight = fraction(r, &at.value.weight, 1.0, 0.001..=1_000_000.0);
        if let Some(key) = secret(r, &at.value.key, &at.spot, "key") {
            keys.push(ApiKey { key, weight });
        }
    }
    keys
}

/// A credential that must be there and can stand in a header.
fn secret(
    r: &mut Reader<'_>,
    at: &Option<At<SecretText>>,
    parent: &Spot,
    key: &str,
) -> Option<Secret> {
    let Some(at) = at else {
        missing(r, parent, key);
        return None;
    };
    let bytes = at.value.0.expose();
    if bytes.is_empty() {
        r.draft.fault(&at.spot, "must not be empty");
        return None;
    }
    if !is_field_value(bytes) {
        r.draft.fault(
            &at.spot,
            "holds a control byte, or a blank at an end: a header cannot carry it",
        );
        return None;
    }
    Some(at.value.0.clone())
}

/// The credential put in place of the client's.
pub(crate) fn auth(
    r: &mut Reader<'_>,
    raw: &RawUpstream,
    protocol: Protocol,
    api_keys: &[ApiKey],
) -> UpstreamAuth {
    let first = api_keys.first().map(|one| one.key.clone());
    let Some(at) = &raw.auth else {
        return first.map_or(UpstreamAuth::None, |key| carried(protocol, key));
    };
    let said = &at.value;
    let Some(kind) = &said.kind else {
        missing(r, &at.spot, "type");
        return UpstreamAuth::None;
    };
    refuse_foreign(r, said, kind.value.0);
    // Several keys stand in for the one of the table.
    let credential = |r: &mut Reader<'_>, at_secret: &Option<At<SecretText>>, key: &str| match (
        &first, at_secret,
    ) {
        (Some(first), None) => Some(first.clone()),
        (Some(_), Some(at)) => {
            r.draft.fault(&at.spot, "this and api_keys exclude each other");
            None
        }
        (None, _) => secret(r, at_secret, &at.spot, key),
    };
    let built = match kind.value.0 {
        AuthType::None | AuthType::Pass if first.is_some() => {
            r.draft.fault(&kind.spot, "api_keys need bearer, header or query");
            None
        }
        AuthType::None => Some(UpstreamAuth::None),
        AuthType::Pass => Some(UpstreamAuth::Pass),
        AuthType::Bearer => credential(r, &said.token, "token").map(UpstreamAuth::Bearer),
        AuthType::Basic if first.is_some() => {
            r.draft.fault(&kind.spot, "api_keys need bearer, header or query");
            None
        }
        AuthType::Basic => basic(r, said, &at.spot),
        AuthType::Header => {
            let name = required(r, &said.name, &at.spot, "name").and_then(|at| field_name(r, at));
            let value = credential(r, &said.value, "value");
            name.zip(value).map(|(name, value)| UpstreamAuth::Header { name, value })
        }
        AuthType::Query => {
            let name = required(r, &said.name, &at.spot, "name").map(|at| at.value.clone());
            let value = credential(r, &said.value, "value");
            name.zip(value).map(|(name, value)| UpstreamAuth::Query { name, value })
        }
    };
    built.unwrap_or(UpstreamAuth::None)
}

/// Where a dialect carries its key.
fn carried(protocol: Protocol, key: Secret) -> UpstreamAuth {
    let header = |name: &str, value| UpstreamAuth::Header { name: name.to_owned(), value };
    match protocol {
        Protocol::OpenAi | Protocol::Ollama => UpstreamAuth::Bearer(key),
        Protocol::Anthropic => header("x-api-key", key),
        Protocol::Gemini => header("x-goog-api-key", key),
    }
}

/// Keys of the table that another type would need.
fn refuse_foreign(r: &mut Reader<'_>, said: &RawAuth, kind: AuthType) {
    use AuthType::{Basic, Bearer, Header, Query};
    let named = matches!(kind, Header | Query);
    let given = [
        (said.token.as_ref().map(|at| &at.spot), kind == Bearer),
        (said.username.as_ref().map(|at| &at.spot), kind == Basic),
        (said.password.as_ref().map(|at| &at.spot), kind == Basic),
        (said.name.as_ref().map(|at| &at.spot), named),
        (said.value.as_ref().map(|at| &at.spot), named),
    ];
    for (spot, fits) in given {
        if let (Some(spot), false) = (spot, fits) {
            r.draft.fault(spot, "has no meaning with this type of auth");
        }
    }
}

fn basic(r: &mut Reader<'_>, said: &RawAuth, parent: &Spot) -> Option<UpstreamAuth> {
    let username = required(r, &said.username, parent, "username");
    let password = secret(r, &said.password, parent, "password");
    let (username, password) = (username?, password?);
    if username.value.contains(':') {
        r.draft.fault(&username.spot, "a user name of basic holds no \":\" (RFC 7617 §2)");
        return None;
    }
    if !is_field_value(username.value.as_bytes()) {
        r.draft.fault(&username.spot, "holds a control byte, or a blank at an end");
        return None;
    }
    let mut both = format!("{}:", username.value).into_bytes();
    both.extend_from_slice(password.expose());
    Some(UpstreamAuth::Basic(Secret::new(both)))
}
