//! Builds `[tracing]`.

use crate::config::build::check::{filled, fraction, is_field_value, secs, section, time};
use crate::config::build::headers::field_name;
use crate::config::build::tls::client_tls;
use crate::config::build::url::parse_url;
use crate::config::model::{Collector, Secret, Tracing};
use crate::config::raw::RawConfig;
use crate::config::reader::{At, Reader};
use crate::config::values::UrlText;

/// Fields that an export writes itself.
const OWN_FIELDS: [&str; 5] =
    ["connection", "content-length", "content-type", "host", "transfer-encoding"];
/// Where a collector takes traces, below its base URL.
const TRACES: &str = "/v1/traces";

pub(crate) fn tracing(raw: &RawConfig, r: &mut Reader<'_>) -> Tracing {
    let raw = section(&raw.tracing);
    let mut headers = Vec::new();
    for (name, value) in section(&raw.headers).0 {
        if let Some(name) = header(r, &name, &value.0) {
            headers.push((name, value.0));
        }
    }
    let said = raw.endpoint.as_ref().filter(|at| !at.value.0.is_empty());
    Tracing {
        collector: said.and_then(|at| collector(r, at)),
        sample: fraction(r, &raw.sample, 1.0, 0.0..=1.0),
        service_name: filled(&raw.service_name).map_or("tokenring", |at| &at.value).to_owned(),
        headers,
        timeout: time(r, &raw.timeout, secs(10), secs(1)..=secs(60)),
        tls: client_tls(r, &raw.tls),
    }
}

fn header(r: &mut Reader<'_>, name: &At<String>, value: &Secret) -> Option<String> {
    let lower = field_name(r, name)?;
    if OWN_FIELDS.contains(&lower.as_str()) {
        r.draft.fault(&name.spot, "is written by the export itself");
        return None;
    }
    if !is_field_value(value.expose()) {
        r.draft.fault(&name.spot, "holds a control byte, or a blank at an end");
        return None;
    }
    Some(lower)
}

fn collector(r: &mut Reader<'_>, at: &At<UrlText>) -> Option<Collector> {
    let text = &at.value.0;
    let url = match parse_url(text) {
        Ok(url) => url,
        Err(why) => {
            r.draft.fault(&at.spot, format!("no URL: {why}"));
            return None;
        }
    };
    let secure = match url.scheme.as_str() {
        "https" => true,
        "http" => false,
        _ => {
            let message = "OTLP is spoken over HTTP here; write http:// or https://";
            r.draft.fault(&at.spot, message);
            return None;
        }
    };
    if url.userinfo.is_some() || url.rest.contains('?') {
        let message = "takes no user and no query; a token goes into tracing.headers";
        r.draft.fault(&at.spot, message);
        return None;
    }
    if url.port == Some(4317) {
        r.draft.warn(&at.spot, "port 4317 is usually OTLP over gRPC; over HTTP it is 4318");
    }
    let base = url.rest.trim_end_matches('/');
    let path = match base.ends_with(TRACES) {
        true => base.to_owned(),
        false => format!("{base}{TRACES}"),
    };
    let port = url.port.unwrap_or(if secure { 443 } else { 80 });
    Some(Collector { endpoint: text.clone(), secure, host: url.host, port, path })
}
