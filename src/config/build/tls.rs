//! Builds `listener.tls` and `upstream.tls`, with what is in their files.
//!
//! A file that cannot be used is a fault at the key that names it. The same reading serves a
//! running process whose files have changed (`reread`), where a fault is a line of text.

use std::path::{Path, PathBuf};

use rustls::pki_types::ServerName;

use crate::config::build::check::{filled, required, section, value};
use crate::config::build::date::format_date;
use crate::config::fault::Spot;
use crate::config::model::*;
use crate::config::raw::{RawListenerTls, RawUpstream, RawUpstreamTls};
use crate::config::reader::{At, Reader};
use crate::config::values::OneOrMany;
use crate::pki::{Facts, Pair, Roots, facts};

/// Longest time before its end at which a certificate is told to end soon, in seconds.
const SOON_S_MAX: u64 = 7 * 86_400;

/// The warning where `verify` is off.
pub(crate) const NOT_VERIFIED: &str =
    "not verified: anyone on the way can read and answer everything";

/// Reads a file of the machine.
pub(crate) type Read<'a> = &'a dyn Fn(&Path) -> Result<String, String>;

pub(crate) fn listener_tls(
    r: &mut Reader<'_>,
    at: &At<OneOrMany<RawListenerTls>>,
) -> Option<ListenerTls> {
    let OneOrMany(list) = &at.value;
    if list.is_empty() {
        r.draft.fault(&at.spot, "must not be empty");
    }
    let mut alpn = vec![Alpn::H2, Alpn::Http11];
    if let Some(said) = list.iter().find_map(|pair| pair.value.alpn.as_ref()) {
        alpn = said.value.iter().map(|word| word.value.0).collect();
        if alpn.is_empty() {
            r.draft.fault(&said.spot, "must not be empty");
        }
    }
    let mut pairs = Vec::new();
    for at in list {
        let cert = required(r, &at.value.cert, &at.spot, "cert");
        let key = required(r, &at.value.key, &at.spot, "key");
        if let (Some(cert), Some(key)) = (cert, key) {
            let pair = pair(r, cert, key);
            if let Some(pair) = &pair {
                warn_of_names(r, &cert.spot, &pair.loaded);
            }
            pairs.extend(pair);
        }
    }
    let client_ca = list.iter().find_map(|pair| filled(&pair.value.client_ca));
    let client_auth = list.iter().find_map(|pair| pair.value.client_auth.as_ref());
    if let (Some(at), None) = (client_auth, client_ca) {
        r.draft.fault(&at.spot, "needs client_ca");
    }
    let min_version = list.iter().find_map(|pair| pair.value.min_version.as_ref());
    Some(ListenerTls {
        pairs,
        alpn,
        client_ca: client_ca.and_then(|at| trust_file(r, at)),
        client_auth: client_auth.map_or(ClientAuth::Require, |at| at.value.0),
        min_version: min_version.map_or(TlsVersion::V12, |at| at.value.0),
    })
}

pub(crate) fn upstream_tls(
    r: &mut Reader<'_>,
    raw: &RawUpstream,
    url: &UpstreamUrl,
) -> UpstreamTls {
    let tls = client_tls(r, &raw.tls);
    warn_of_use(r, raw, url, &tls);
    tls
}

/// What a client needs for TLS, whoever the server is.
pub(crate) fn client_tls(r: &mut Reader<'_>, raw: &Option<At<RawUpstreamTls>>) -> UpstreamTls {
    let said = section(raw);
    let ca = match filled(&said.ca) {
        None => Some(Authorities::Mozilla),
        Some(at) if at.value == "system" => Some(Authorities::System),
        Some(at) => trust_file(r, at).map(Authorities::File),
    };
    let client = match (filled(&said.cert), filled(&said.key)) {
        (Some(cert), Some(key)) => pair(r, cert, key),
        (None, None) => None,
        _ => {
            if let Some(at) = raw {
                r.draft.fault(&at.spot, "cert and key need each other");
            }
            None
        }
    };
    let server_name = filled(&said.server_name);
    if let Some(at) = server_name
        && ServerName::try_from(at.value.as_str()).is_err()
    {
        let shown = r.draft.quote(&at.spot, &at.value);
        r.draft.fault(&at.spot, format!("{shown} is neither a host name nor an address"));
    }
    UpstreamTls {
        ca: ca.unwrap_or(Authorities::Mozilla),
        client,
        server_name: server_name.map(|at| at.value.clone()),
        verify: value(&said.verify, true),
    }
}

/// Names that cannot be verified, settings that mean nothing, and the dangerous one.
fn warn_of_use(r: &mut Reader<'_>, raw: &RawUpstream, url: &UpstreamUrl, tls: &UpstreamTls) {
    // Without a URL there was a complaint already.
    let Some(url_at) = raw.url.as_ref().filter(|_| !url.host.is_empty()) else { return };
    if url.tls {
        let name = tls.server_name.as_deref().unwrap_or(&url.host);
        if ServerName::try_from(name).is_err() && tls.server_name.is_none() {
            let shown = r.draft.quote(&url_at.spot, &url.host);
            let message = format!("{shown} can stand in no certificate; set tls.server_name");
            r.draft.fault(&url_at.spot, message);
        }
    }
    let Some(at) = &raw.tls else { return };
    if !url.tls && *tls != UpstreamTls::default() {
        r.draft.warn(&at.spot, "has no effect: the url is not https");
    } else if let Some(verify) = at.value.verify.as_ref().filter(|at| !at.value) {
        r.draft.warn(&verify.spot, NOT_VERIFIED);
    }
}

/// Loads a certificate and its key; complains at the one that is to blame.
fn pair(r: &mut Reader<'_>, cert: &At<String>, key: &At<String>) -> Option<CertPair> {
    let paths = (PathBuf::from(&cert.value), PathBuf::from(&key.value));
    match load_pair(&paths.0, &paths.1, r.outside.read) {
        Ok(loaded) => {
            warn_of_dates(r, &cert.spot, &loaded);
            if let Some(at) = loaded.broken_after() {
                let next = at + 1;
                let message = format!(
                    "certificate {next} of the chain did not issue certificate {at}: not everybody \
                     will find the way to the authority"
                );
                r.draft.warn(&cert.spot, message);
            }
            Some(CertPair { cert: paths.0, key: paths.1, loaded })
        }
        Err(faults) => {
            for (part, why) in faults {
                let at = if part == Part::Cert { cert } else { key };
                fault(r, at, &why);
            }
            None
        }
    }
}

fn trust_file(r: &mut Reader<'_>, at: &At<String>) -> Option<TrustFile> {
    let path = PathBuf::from(&at.value);
    match load_roots(&path, r.outside.read) {
        Ok(roots) => Some(TrustFile { path, roots }),
        Err(why) => {
            fault(r, at, &why);
            None
        }
    }
}

fn fault(r: &mut Reader<'_>, at: &At<String>, why: &str) {
    let shown = r.draft.quote(&at.spot, &at.value);
    r.draft.fault(&at.spot, format!("{shown}: {why}"));
}

fn warn_of_dates(r: &mut Reader<'_>, spot: &Spot, pair: &Pair) {
    let Some(facts) = pair.own().and_then(|cert| facts(cert)) else { return };
    let now = r.outside.now_s;
    if let Some(end) = end_of(&facts, now) {
        r.draft.warn(spot, end);
    } else if now > 0 && now < facts.not_before {
        let date = format_date(facts.not_before);
        r.draft.warn(spot, format!("the certificate is not good before {date}"));
    }
}

/// What an operator should know of a certificate's end; 0 is a clock that stands still.
fn end_of(facts: &Facts, now_s: u64) -> Option<String> {
    let life_s = facts.not_after.saturating_sub(facts.not_before);
    // Who renews in time does so before: after two thirds of it, most often.
    let little_s = (life_s / 10).min(SOON_S_MAX);
    let date = || format_date(facts.not_after);
    match facts.not_after.checked_sub(now_s) {
        None => Some(format!("the certificate expired on {}", date())),
        Some(left_s) if now_s > 0 && left_s < little_s => {
            Some(format!("the certificate expires on {} and has not been renewed", date()))
        }
        Some(_) => None,
    }
}

fn warn_of_names(r: &mut Reader<'_>, spot: &Spot, pair: &Pair) {
    if pair.own().and_then(|cert| facts(cert)).is_some_and(|facts| !facts.names_a_host) {
        let message = "the certificate names no host (subjectAltName): clients refuse it";
        r.draft.warn(spot, message);
    }
}

/// Which of two files is meant.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Cert,
    Key,
}

/// Both files are read before either is judged, so that both can be complained about.
fn load_pair(cert: &Path, key: &Path, read: Read<'_>) -> Result<Pair, Vec<(Part, String)>> {
    match (read(cert), read(key)) {
        (Ok(chain), Ok(secret)) => Pair::from_pem(&chain, &secret).map_err(|why| {
            let part = if why.is_of_cert() { Part::Cert } else { Part::Key };
            vec![(part, why.to_string())]
        }),
        (chain, secret) => {
            let unread = |part, result: Result<String, String>| {
                result.err().map(|why| (part, unreadable(&why)))
            };
            let faults = [unread(Part::Cert, chain), unread(Part::Key, secret)];
            Err(faults.into_iter().flatten().collect())
        }
    }
}

fn load_roots(path: &Path, read: Read<'_>) -> Result<Roots, String> {
    Roots::from_pem(&read(path).map_err(|why| unreadable(&why))?)
}

/// Why a file was not read. Certificates that are not PEM are bytes, and a file is read as text.
fn unreadable(why: &str) -> String {
    let hint = if why.contains("UTF-8") { "; PEM is wanted, not DER or PKCS #12" } else { "" };
    format!("cannot read: {why}{hint}")
}

impl CertPair {
    /// Says that the certificate has expired or soon will; for a person.
    ///
    /// Units: Unix seconds. Soon is a tenth of its life before its end, a week at most.
    #[must_use]
    pub fn told_of_end(&self, now_s: u64) -> Option<String> {
        let facts = facts(self.loaded.own()?)?;
        Some(format!("{}: {}", self.cert.display(), end_of(&facts, now_s)?))
    }

    fn reread(&self, read: Read<'_>) -> Result<Self, String> {
        let told = |faults: Vec<(Part, String)>| {
            let one = |(part, why): &(Part, String)| {
                let path = if *part == Part::Cert { &self.cert } else { &self.key };
                format!("{}: {why}", path.display())
            };
            faults.iter().map(one).collect::<Vec<_>>().join("; ")
        };
        let loaded = load_pair(&self.cert, &self.key, read).map_err(told)?;
        Ok(Self { loaded, ..self.clone() })
    }
}

impl TrustFile {
    fn reread(&self, read: Read<'_>) -> Result<Self, String> {
        let told = |why| format!("{}: {why}", self.path.display());
        let roots = load_roots(&self.path, read).map_err(told)?;
        Ok(Self { path: self.path.clone(), roots })
    }
}

impl ListenerTls {
    /// The same settings with what is in their files now.
    ///
    /// Errors: the file and the reason, for a person; nothing half new is made.
    pub fn reread(
        &self,
        read: &dyn Fn(&Path) -> Result<String, String>,
    ) -> Result<ListenerTls, String> {
        Ok(ListenerTls {
            pairs: self.pairs.iter().map(|pair| pair.reread(read)).collect::<Result<_, _>>()?,
            client_ca: self.client_ca.as_ref().map(|file| file.reread(read)).transpose()?,
            ..self.clone()
        })
    }

    /// The files that it was made from.
    #[must_use]
    pub fn files(&self) -> Vec<&Path> {
        let pairs = self.pairs.iter().flat_map(|pair| [pair.cert.as_path(), &pair.key]);
        pairs.chain(self.client_ca.iter().map(|file| file.path.as_path())).collect()
    }
}

impl UpstreamTls {
    /// The same settings with what is in their files now.
    ///
    /// Errors: the file and the reason, for a person; nothing half new is made.
    pub fn reread(
        &self,
        read: &dyn Fn(&Path) -> Result<String, String>,
    ) -> Result<UpstreamTls, String> {
        Ok(UpstreamTls {
            ca: match &self.ca {
                Authorities::File(file) => Authorities::File(file.reread(read)?),
                other => other.clone(),
            },
            client: self.client.as_ref().map(|pair| pair.reread(read)).transpose()?,
            ..self.clone()
        })
    }

    /// The files that it was made from.
    #[must_use]
    pub fn files(&self) -> Vec<&Path> {
        let pair = self.client.iter().flat_map(|pair| [pair.cert.as_path(), &pair.key]);
        let ca = match &self.ca {
            Authorities::File(file) => Some(file.path.as_path()),
            Authorities::Mozilla | Authorities::System => None,
        };
        pair.chain(ca).collect()
    }
}
