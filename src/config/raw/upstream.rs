//! Mirror of `[[upstream]]`, `[[group]]` and `[models]`.

use crate::config::model::*;
use crate::config::names::AuthType;
use crate::config::raw::entries::{HeaderValue, MemberEntry, RawHeaderOp};
use crate::config::raw::mirror::mirror;
use crate::config::reader::At;
use crate::config::values::{OneOf, OneOrMany, SecretText, Time, UrlText};

mirror! {
    /// `[[upstream]]`.
    RawUpstream {
        /// Unique name.
        #[schemars(required)]
        name: String,
        /// http://, https:// or unix:/path.
        #[schemars(required)]
        url: UrlText,
        /// Expands into one upstream for each port.
        ports: Vec<At<i64>>,
        /// How the client's path meets the URL's.
        path_mode: OneOf<PathMode>,
        /// Dialect.
        protocol: OneOf<Protocol>,
        /// Credential put in place of the client's.
        auth: RawAuth,
        /// Credentials, one picked per attempt.
        api_keys: Vec<At<RawApiKey>>,
        /// Edits of the request head.
        headers: Vec<At<RawHeaderOp>>,
        /// upstream, client, or a literal host.
        host: String,
        /// User-Agent sent; empty = the client's.
        user_agent: String,
        /// Outbound proxy; empty = none.
        proxy: UrlText,
        /// TLS towards an https URL.
        tls: RawUpstreamTls,
        /// Whether HTTP/2 is spoken.
        http2: bool,
        /// "discover" or a list of names.
        models: OneOrMany<String>,
        /// In flight at most; 0 = no limit.
        concurrency: i64,
        /// When a connection is used again.
        reuse: OneOf<Reuse>,
        /// False: never picked.
        enabled: bool,
        /// Active probes.
        health: RawHealth,
        /// Circuit breaker.
        breaker: RawBreaker,
        /// Source of many upstreams; empty = none.
        discover: String,
    }
    /// `upstream.auth`.
    RawAuth {
        /// none, pass, bearer, basic, header, query.
        #[schemars(required)]
        kind as "type": OneOf<AuthType>,
        /// Of bearer.
        token: SecretText,
        /// Of basic.
        username: String,
        /// Of basic.
        password: SecretText,
        /// Of header and query: name of the field or parameter.
        name: String,
        /// Of header and query.
        value: SecretText,
    }
    /// One of `upstream.api_keys`.
    RawApiKey {
        /// The credential.
        #[schemars(required)]
        key: SecretText,
        /// Share of the attempts.
        weight: f64,
    }
    /// `upstream.tls`.
    RawUpstreamTls {
        /// Roots to trust: empty = Mozilla's, "system" = this machine's, or a PEM file.
        ca: String,
        /// Client certificate.
        cert: String,
        /// Its private key.
        key: String,
        /// SNI and name to verify; empty = the URL's host.
        server_name: String,
        /// False: any certificate will do.
        verify: bool,
    }
    /// `upstream.health`.
    RawHealth {
        /// Path asked for.
        path: String,
        /// Method.
        method: String,
        /// Body sent.
        body: HeaderValue,
        /// Fields sent.
        headers: Vec<At<RawHeaderOp>>,
        /// From one probe to the next.
        interval: Time,
        /// A slower probe has failed.
        timeout: Time,
        /// Failures until it is down.
        fall: i64,
        /// Successes until it is up.
        rise: i64,
    }
    /// `upstream.breaker`.
    RawBreaker {
        /// Share of failed calls, 0.01..1.0.
        threshold: f64,
        /// Over this time.
        window: Time,
        /// Not before so many calls.
        calls_min: i64,
        /// Failures in a row.
        consecutive: i64,
        /// Open for this long, 1s..1h.
        cooldown: Time,
        /// Calls at a time when half open.
        trials: i64,
        /// Successes that close it.
        successes: i64,
        /// How often the server is asked whether it is back.
        recheck: Time,
        /// Used all the same where breakers alone leave nobody.
        last_resort: bool,
    }
    /// `[[group]]`.
    RawGroup {
        /// Unique name.
        #[schemars(required)]
        name: String,
        /// How a member is picked.
        balance: OneOf<Balance>,
        /// Upstreams, each a name or { upstream, weight }.
        #[schemars(required)]
        members: Vec<At<MemberEntry>>,
        /// When another attempt is made.
        retry: RawRetry,
        /// The wait queue.
        queue: RawQueue,
        /// What keeps a client with a member.
        affinity: RawAffinity,
        /// Groups tried in order when this one has nobody left.
        fallback: Vec<At<String>>,
        /// Dialects offered on top of the upstreams' own.
        serve: Vec<At<OneOf<Dialect>>>,
        /// Error bodies of upstreams.
        errors: OneOf<ErrorBodies>,
        /// Overrides of the upstream side's times.
        timeouts: RawUpstreamTimeouts,
    }
    /// `[group_defaults]`.
    RawGroupDefaults {
        /// How a member is picked.
        balance: OneOf<Balance>,
        /// When another attempt is made.
        retry: RawRetry,
        /// The wait queue.
        queue: RawQueue,
        /// What keeps a client with a member.
        affinity: RawAffinity,
        /// Dialects offered on top of the upstreams' own.
        serve: Vec<At<OneOf<Dialect>>>,
        /// Error bodies of upstreams.
        errors: OneOf<ErrorBodies>,
        /// Overrides of the upstream side's times.
        timeouts: RawUpstreamTimeouts,
    }
    /// `group.retry`.
    RawRetry {
        /// Further attempts, 0..100.
        attempts: i64,
        /// First backoff, 100ms..10s.
        initial: Time,
        /// Longest backoff, 100ms..10s.
        max: Time,
        /// connect, reset, timeout, or a status 400..599.
        on: Vec<At<String>>,
        /// A group of one tries its only member again.
        same: bool,
    }
    /// `group.queue`.
    RawQueue {
        /// Requests that may wait.
        length: i64,
        /// How long each may wait.
        wait: Time,
    }
    /// `group.affinity`.
    RawAffinity {
        /// prefix, header:NAME, key or ip.
        #[schemars(required)]
        by: String,
    }
    /// `group.timeouts`.
    RawUpstreamTimeouts {
        /// See [timeouts].
        connect: Time,
        /// See [timeouts].
        proxy_connect: Time,
        /// See [timeouts].
        first_byte: Time,
        /// See [timeouts].
        stream_idle: Time,
        /// See [timeouts].
        total: Time,
        /// See [timeouts].
        pool_idle: Time,
        /// See [timeouts].
        tcp_keepalive: Time,
    }
    /// `[models.NAME]`.
    RawModel {
        /// Where it goes; or upstream, or backend.
        group: String,
        /// One upstream.
        upstream: String,
        /// HOST:PORT or a URL, without an [[upstream]].
        backend: String,
        /// For the models list.
        description: String,
        /// Other names.
        aliases: Vec<At<String>>,
        /// Name put in its place; empty = the same.
        upstream_model: String,
    }
}
