//! Mirror of `[[listener]]` and `[[key]]`.

use crate::config::model::*;
use crate::config::raw::entries::DateText;
use crate::config::raw::mirror::mirror;
use crate::config::reader::At;
use crate::config::values::{OneOf, OneOrMany, SecretText, Time};

mirror! {
    /// `[[listener]]`.
    RawListener {
        /// Unique name.
        #[schemars(required)]
        name: String,
        /// "IP:PORT", "unix:/path", or a list of these.
        #[schemars(required)]
        bind: OneOrMany<String>,
        /// One certificate or several, by SNI.
        tls: OneOrMany<RawListenerTls>,
        /// Whether a client key is asked for.
        auth: OneOf<ListenerAuth>,
        /// Where clients may carry their key.
        accept: Vec<At<String>>,
        /// Group of unknown models; empty = 404.
        default_group: String,
        /// What model@upstream and upstream-or-group:model may name: listed, any, off.
        force: OneOf<Force>,
        /// Origins whose pages may call, or "*".
        cors: Vec<At<String>>,
        /// CIDRs whose X-Forwarded-For is believed.
        trusted_proxies: Vec<At<String>>,
        /// X-Forwarded-For, X-Forwarded-Proto and X-Real-IP.
        forwarded: OneOf<Forwarded>,
        /// Per client IP.
        ratelimit: RawIpRate,
        /// Rules by path and host.
        route: Vec<At<RawRoute>>,
        /// Overrides of the client side's times.
        timeouts: RawClientTimeouts,
    }
    /// `listener.tls`.
    RawListenerTls {
        /// Certificate chain, PEM.
        #[schemars(required)]
        cert: String,
        /// Private key, PEM.
        #[schemars(required)]
        key: String,
        /// Protocols offered.
        alpn: Vec<At<OneOf<Alpn>>>,
        /// Authorities that vouch for clients, PEM; empty = clients show no certificate.
        client_ca: String,
        /// What becomes of a client without a certificate: require, request.
        client_auth: OneOf<ClientAuth>,
        /// The oldest version that is spoken: 1.2, 1.3.
        min_version: OneOf<TlsVersion>,
    }
    /// `listener.ratelimit`.
    RawIpRate {
        /// Requests a second, 1..10000.
        per_second: i64,
        /// At once, 1..20000.
        burst: i64,
    }
    /// `[[listener.route]]`.
    RawRoute {
        /// Pattern of the path.
        path: String,
        /// Host, with or without a prefix.
        host: String,
        /// Where the request goes.
        #[schemars(required)]
        group: String,
        /// Keys that may use it.
        keys: Vec<At<String>>,
    }
    /// `listener.timeouts`.
    RawClientTimeouts {
        /// See [timeouts].
        client_head: Time,
        /// See [timeouts].
        client_body_idle: Time,
        /// See [timeouts].
        client_keepalive: Time,
        /// See [timeouts].
        client_write_idle: Time,
        /// See [timeouts].
        tls_handshake: Time,
        /// See [timeouts].
        tcp_keepalive: Time,
    }
    /// `[[key]]`.
    RawKey {
        /// Unique name.
        #[schemars(required)]
        name: String,
        /// The key itself; or key_sha256.
        key: SecretText,
        /// SHA-256 of the key in hexadecimal.
        key_sha256: SecretText,
        /// SHA-256 of the secret before, which is good until previous_until.
        previous_sha256: SecretText,
        /// Date or time from which on the secret before is refused.
        previous_until: DateText,
        /// Requests per minute; 0 = no limit.
        rpm: i64,
        /// Requests per UTC day; 0 = no limit.
        rpd: i64,
        /// Tokens per minute; 0 = no limit.
        tpm: i64,
        /// GCRA rate, 0..10000; 0 = none.
        per_second: i64,
        /// GCRA burst, 0..20000.
        burst: i64,
        /// In flight at most; 0 = no limit.
        concurrency: i64,
        /// Names of models; a trailing * stands for any rest.
        models: Vec<At<String>>,
        /// Names of listeners, or "*".
        listeners: Vec<At<String>>,
        /// Place in a queue: the higher goes first.
        priority: i64,
        /// Date or time from which on it is refused; empty = never.
        expires: DateText,
    }
}
