//! Builds `upstream.health` and `upstream.breaker`.

use crate::config::build::check::{
    each, filled, fraction, is_token, number, secs, section, time, value,
};
use crate::config::build::headers::header_ops;
use crate::config::model::*;
use crate::config::raw::{RawHealth, RawUpstream};
use crate::config::reader::{At, Reader};

/// Active probes.
pub(crate) fn health(r: &mut Reader<'_>, at: &At<RawHealth>) -> Health {
    let raw = &at.value;
    let path = filled(&raw.path).map_or("/v1/models".to_owned(), |at| at.value.clone());
    if let Some(at) = filled(&raw.path)
        && !(path.starts_with('/') && path.chars().all(|c| c.is_ascii_graphic()))
    {
        let shown = r.draft.quote(&at.spot, &path);
        r.draft.fault(&at.spot, format!("{shown} is no path: it begins with / and has no blanks"));
    }
    let method = filled(&raw.method).map_or("GET".to_owned(), |at| at.value.to_ascii_uppercase());
    if let Some(at) = filled(&raw.method)
        && !is_token(&method)
    {
        r.draft.fault(&at.spot, "no method");
    }
    let interval = time(r, &raw.interval, Health::INTERVAL, secs(1)..=secs(3600));
    let limit = time(r, &raw.timeout, secs(5).min(interval), secs(1) / 10..=secs(600));
    if let Some(at) = &raw.timeout
        && limit > interval
    {
        r.draft.fault(&at.spot, "longer than interval");
    }
    Health {
        path,
        method,
        body: Secret::new(raw.body.as_ref().map_or("", |at| at.value.0.as_str())),
        headers: header_ops(r, each(&raw.headers)),
        interval,
        timeout: limit,
        fall: number(r, &raw.fall, 3, 1..=1000),
        rise: number(r, &raw.rise, 1, 1..=1000),
    }
}

/// The circuit breaker.
pub(crate) fn breaker(r: &mut Reader<'_>, raw: &RawUpstream) -> BreakerPolicy {
    let said = section(&raw.breaker);
    let unsaid = BreakerPolicy::default();
    BreakerPolicy {
        threshold: fraction(r, &said.threshold, unsaid.threshold, 0.01..=1.0),
        window: time(r, &said.window, unsaid.window, secs(1)..=secs(3600)),
        calls_min: number(r, &said.calls_min, unsaid.calls_min, 1..=1_000_000),
        consecutive: number(r, &said.consecutive, unsaid.consecutive, 1..=1_000_000),
        cooldown: time(r, &said.cooldown, unsaid.cooldown, secs(1)..=secs(3600)),
        trials: number(r, &said.trials, unsaid.trials, 1..=1000),
        successes: number(r, &said.successes, unsaid.successes, 1..=1000),
        recheck: time(r, &said.recheck, unsaid.recheck, secs(1) / 10..=secs(60)),
        last_resort: value(&said.last_resort, unsaid.last_resort),
    }
}
