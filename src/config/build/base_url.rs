//! Builds `upstream.url`: a base URL or the path of a Unix socket.

use crate::config::build::url::{Url, parse_url};
use crate::config::model::*;
use crate::config::reader::{At, Reader};
use crate::config::values::{UrlText, may_hold_secret};

/// Stands in for a URL that is none.
pub(crate) fn nowhere() -> UpstreamUrl {
    let none = String::new;
    UpstreamUrl {
        tls: false,
        host: none(),
        port: 0,
        base_path: none(),
        unix: false,
        original: UrlAsWritten::new(none()),
    }
}

/// A base URL, or the path of a Unix socket.
pub(crate) fn upstream_url(
    r: &mut Reader<'_>,
    at: &At<UrlText>,
    path_mode: PathMode,
) -> Option<UpstreamUrl> {
    let text = at.value.0.as_str();
    if let Some(path) = text.strip_prefix("unix:") {
        if path.is_empty() || path.len() > 107 {
            r.draft.fault(&at.spot, "a Unix socket is written unix:/path, at most 107 bytes");
            return None;
        }
        let (host, original) = (path.to_owned(), UrlAsWritten::new(text));
        return Some(UpstreamUrl {
            tls: false,
            host,
            port: 0,
            base_path: String::new(),
            unix: true,
            original,
        });
    }
    match parse_url(text).and_then(|url| base_url(url, path_mode, text)) {
        Ok(url) => Some(url),
        Err(why) => {
            // With a userinfo part or a query the text is a secret.
            let shown = match may_hold_secret(text) {
                true => "***".to_owned(),
                false => r.draft.quote(&at.spot, text),
            };
            r.draft.fault(&at.spot, format!("{shown} is no base URL: {why}"));
            None
        }
    }
}

fn base_url(url: Url, path_mode: PathMode, text: &str) -> Result<UpstreamUrl, String> {
    let tls = match url.scheme.as_str() {
        "http" => false,
        "https" => true,
        _ => return Err("its scheme is neither http nor https".to_owned()),
    };
    if url.userinfo.is_some() {
        return Err("credentials belong in auth".to_owned());
    }
    let fixed = path_mode == PathMode::Fixed;
    if url.rest.contains('?') && !fixed {
        return Err("a query needs path_mode = \"fixed\"".to_owned());
    }
    let path = url.rest.split('?').next().unwrap_or_default();
    if path.split('/').any(|segment| matches!(segment, "." | "..")) {
        return Err("its path has dot segments".to_owned());
    }
    let base_path = match (fixed, url.rest.as_str()) {
        (true, "") => "/".to_owned(),
        (true, rest) if rest.starts_with('?') => format!("/{rest}"),
        (true, rest) => rest.to_owned(),
        (false, rest) => rest.trim_end_matches('/').to_owned(),
    };
    let port = url.port.unwrap_or(if tls { 443 } else { 80 });
    Ok(UpstreamUrl {
        tls,
        host: url.host,
        port,
        base_path,
        unix: false,
        original: UrlAsWritten::new(text),
    })
}
