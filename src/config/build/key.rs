//! Builds `[[key]]`.

use std::collections::HashMap;

use sha2::{Digest as _, Sha256};

use crate::config::build::check::{AllNames, AtText as _, count, each, filled, number};
use crate::config::build::date::parse_date;
use crate::config::build::url::hex;
use crate::config::fault::Spot;
use crate::config::model::*;
use crate::config::raw::{DateText, RawConfig, RawKey};
use crate::config::reader::{At, Reader};
use crate::config::values::SecretText;

/// A shorter key can be guessed.
const KEY_BYTES_FEW: usize = 16;

pub(crate) fn keys(raw: &RawConfig, r: &mut Reader<'_>, names: &mut AllNames) -> Vec<Key> {
    let has_client_ca = has_client_ca(raw);
    let mut seen: HashMap<[u8; 32], &Spot> = HashMap::new();
    let mut keys = Vec::new();
    for at in each(&raw.key) {
        let sha256 = digest(r, &at.value, &at.spot, has_client_ca);
        if let Some(sha256) = sha256 {
            if let Some(first) = seen.get(&sha256) {
                let line = r.draft.line_of(first);
                let message = format!("the same key as {} in line {line}", first.path);
                r.draft.fault(&at.spot, message);
            } else {
                seen.insert(sha256, &at.spot);
            }
        }
        let previous = previous(r, &at.value, &at.spot);
        if let Some(previous) = previous
            && seen.insert(previous.sha256, &at.spot).is_some()
        {
            r.draft.fault(&at.spot, "previous_sha256 is the secret of a key as it is");
        }
        keys.push(Key { previous, ..key(r, &at.value, names, sha256) });
    }
    keys
}

fn key(r: &mut Reader<'_>, raw: &RawKey, names: &mut AllNames, sha256: Option<[u8; 32]>) -> Key {
    let per_second = number(r, &raw.per_second, 0, 0..=10_000);
    let burst = number(r, &raw.burst, 0, 0..=20_000);
    Key {
        name: raw.name.text(),
        sha256,
        previous: None,
        models: model_set(r, raw),
        listeners: listener_set(r, raw, names),
        rpm: count(r, &raw.rpm, 0),
        rpd: count(r, &raw.rpd, 0),
        tpm: count(r, &raw.tpm, 0),
        per_second,
        // A bucket of nothing lets nothing through.
        burst: if per_second > 0 { burst.max(1) } else { burst },
        concurrency: number(r, &raw.concurrency, 0, 0..=1_000_000),
        priority: number(r, &raw.priority, 0, -1000..=1000),
        expires: expires(r, raw),
    }
}

/// Whether some listener knows clients by their certificates.
fn has_client_ca(raw: &RawConfig) -> bool {
    let mut pairs = each(&raw.listener).iter().filter_map(|at| at.value.tls.as_ref());
    pairs.any(|tls| tls.value.0.iter().any(|pair| filled(&pair.value.client_ca).is_some()))
}

/// SHA-256 of the key, computed or as written.
fn digest(
    r: &mut Reader<'_>,
    raw: &RawKey,
    parent: &Spot,
    has_client_ca: bool,
) -> Option<[u8; 32]> {
    match (&raw.key, &raw.key_sha256) {
        (Some(_), Some(at)) => {
            r.draft.fault(&at.spot, "key and key_sha256 exclude each other");
            None
        }
        (None, None) => {
            // Its name in a client's certificate is enough.
            if has_client_ca {
                return None;
            }
            if r.is_unread(&parent.path, "key") || r.is_unread(&parent.path, "key_sha256") {
                return None;
            }
            let message = "missing key \"key\" or \"key_sha256\"; without both it needs a \
                           listener with tls.client_ca";
            r.draft.fault(parent, message);
            None
        }
        (Some(at), None) => of_key(r, at),
        (None, Some(at)) => {
            let sha256 = unhex(at.value.0.expose());
            if sha256.is_none() {
                r.draft.fault(&at.spot, "not 64 hexadecimal digits");
            }
            sha256
        }
    }
}

/// The secret before, which needs an end.
fn previous(r: &mut Reader<'_>, raw: &RawKey, parent: &Spot) -> Option<PreviousSecret> {
    let until = raw.previous_until.as_ref().filter(|at| !at.value.0.is_empty());
    let secret = raw.previous_sha256.as_ref().filter(|at| !at.value.0.expose().is_empty());
    let (secret, until) = match (secret, until) {
        (None, None) => return None,
        (Some(secret), Some(until)) => (secret, until),
        _ => {
            r.draft.fault(parent, "previous_sha256 and previous_until belong together");
            return None;
        }
    };
    let sha256 = unhex(secret.value.0.expose());
    if sha256.is_none() {
        r.draft.fault(&secret.spot, "not 64 hexadecimal digits");
    }
    let until = date(r, until);
    sha256.zip(until).map(|(sha256, until)| PreviousSecret { sha256, until })
}

fn of_key(r: &mut Reader<'_>, at: &At<SecretText>) -> Option<[u8; 32]> {
    let key = at.value.0.expose();
    if key.is_empty() {
        r.draft.fault(&at.spot, "must not be empty");
        return None;
    }
    if !key.iter().all(u8::is_ascii_graphic) {
        r.draft
            .fault(&at.spot, "holds a blank or another byte that a header cannot carry as a key");
        return None;
    }
    if key.len() < KEY_BYTES_FEW {
        let message =
            format!("{} characters, fewer than {KEY_BYTES_FEW}: can be guessed", key.len());
        r.draft.warn(&at.spot, message);
    }
    Some(Sha256::digest(key).into())
}

fn unhex(text: &[u8]) -> Option<[u8; 32]> {
    if text.len() != 64 {
        return None;
    }
    let mut out = [0; 32];
    for (byte, pair) in out.iter_mut().zip(text.chunks_exact(2)) {
        let &[high, low] = pair else { return None };
        *byte = hex(high)? << 4 | hex(low)?;
    }
    Some(out)
}

fn model_set(r: &mut Reader<'_>, raw: &RawKey) -> ModelSet {
    let Some(list) = &raw.models else { return ModelSet::All };
    if list.value.is_empty() {
        r.draft.fault(&list.spot, "an empty list lets nothing through; write [\"*\"] for all");
    }
    let mut patterns = Vec::new();
    for at in &list.value {
        let (text, wild) = match at.value.strip_suffix('*') {
            Some(prefix) => (prefix, true),
            None => (at.value.as_str(), false),
        };
        if text.contains('*') || at.value.is_empty() {
            let shown = r.draft.quote(&at.spot, &at.value);
            r.draft
                .fault(&at.spot, format!("{shown}: only a star at the end stands for something"));
        }
        patterns.push(match wild {
            true => ModelPattern::Prefix(text.to_owned()),
            false => ModelPattern::Exact(text.to_owned()),
        });
    }
    let all = patterns.iter().any(|p| matches!(p, ModelPattern::Prefix(rest) if rest.is_empty()));
    if all { ModelSet::All } else { ModelSet::Of(patterns) }
}

fn listener_set(r: &mut Reader<'_>, raw: &RawKey, names: &mut AllNames) -> ListenersAllowed {
    let Some(list) = &raw.listeners else { return ListenersAllowed::All };
    if list.value.is_empty() {
        r.draft.fault(&list.spot, "an empty list lets nothing through; write [\"*\"] for all");
    }
    if list.value.iter().any(|at| at.value == "*") {
        return ListenersAllowed::All;
    }
    let ids = list.value.iter().filter_map(|at| names.listeners.find_one(r, at));
    ListenersAllowed::Of(ids.map(ListenerIndex).collect())
}

fn expires(r: &mut Reader<'_>, raw: &RawKey) -> Option<u64> {
    date(r, raw.expires.as_ref().filter(|at| !at.value.0.is_empty())?)
}

fn date(r: &mut Reader<'_>, at: &At<DateText>) -> Option<u64> {
    let date = parse_date(&at.value.0);
    if date.is_none() {
        let shown = r.draft.quote(&at.spot, &at.value.0);
        let forms = "2026-12-31 or 2026-12-31T23:59:59Z";
        r.draft.fault(&at.spot, format!("{shown} is no date; write {forms}"));
    }
    date
}
