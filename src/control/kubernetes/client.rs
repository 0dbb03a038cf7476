//! Requests to the API server of a cluster: who we are there, and the connection.
//!
//! `kube` reads kubeconfigs and service accounts and adds the token; the connection is ours, with
//! the TLS that upstreams have, one for each request. All is read anew for each client, which the
//! caller makes for each list and watch: so tokens and certificates that are renewed in place, as
//! those of a service account are every hour, are never old for long.
//!
//! Not here: a proxy towards the API server, and plugins that give out client certificates.

use std::error::Error;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::{StreamExt as _, TryStreamExt as _};
use http_body_util::BodyExt as _;
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{HOST, HeaderValue};
use hyper::{Request, Response, Uri};
use hyper_util::rt::TokioIo;
use kube::client::middleware::AuthLayer;
use kube::client::{AuthError, Body, ConfigExt as _};
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use rustls::pki_types::ServerName;
use secrecy::ExposeSecret as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tower::{BoxError, ServiceBuilder, ServiceExt as _};

use crate::config::{Authorities, CertPair, TrustFile, UpstreamTls};
use crate::control::task::Task;
use crate::net::sys;
use crate::net::tls::{TlsClient, client_config, explain};
use crate::pki::{Pair, Roots};

/// Longest time to connect and shake hands.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Silence after which TCP asks whether the API server is still there.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// Longest line of an answer, in bytes: a list is one line, and so is each event of a watch.
const LINE_BYTES_MAX: usize = 16 << 20;

/// Makes a client of the cluster that `kubeconfig` names; without one the usual places are looked
/// at: `$KUBECONFIG`, the service account of this pod, `~/.kube/config`.
///
/// Errors: a text for the operator; no token, key or certificate is in it.
pub(super) async fn client(kubeconfig: Option<PathBuf>) -> Result<Client, String> {
    // Files are read, and a plugin of the kubeconfig may run: not on the control thread itself.
    let runtime = tokio::runtime::Handle::current();
    let read = move || runtime.block_on(read(kubeconfig.as_deref()));
    let read = tokio::task::spawn_blocking(read).await;
    let (config, auth, dialer) = read.map_err(|error| error.to_string())??;
    let headers = config.extra_headers_layer().map_err(|error| told(&error))?;
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(auth)
        .layer(headers)
        .map_err(BoxError::from)
        .service(tower::service_fn(move |request| send(dialer.clone(), request)));
    Ok(Client::new(service.map_err(BoxError::from), config.default_namespace))
}

async fn read(kubeconfig: Option<&Path>) -> Result<(Config, Option<AuthLayer>, Dialer), String> {
    let config = config(kubeconfig).await?;
    let auth = config.auth_layer().map_err(|error| match error {
        // Its text has all that the plugin has printed.
        kube::Error::Auth(AuthError::AuthExecRun { cmd, status, .. }) => {
            format!("the plugin {cmd} of the kubeconfig failed: {status}")
        }
        error => told(&error),
    })?;
    let dialer = Dialer::of(&config)?;
    Ok((config, auth, dialer))
}

async fn config(kubeconfig: Option<&Path>) -> Result<Config, String> {
    let from_env = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let read = match kubeconfig {
        Some(path) => Kubeconfig::read_from(path),
        None if from_env("KUBECONFIG") => Kubeconfig::read(),
        None if from_env("KUBERNETES_SERVICE_HOST") => {
            return Config::incluster().map_err(|error| told(&error));
        }
        None => Kubeconfig::read(),
    };
    let read = read.map_err(|error| match kubeconfig {
        None if !from_env("KUBECONFIG") => format!(
            "neither in a pod nor with a kubeconfig (discovery.kubeconfig, $KUBECONFIG, \
             ~/.kube/config): {}",
            told(&error)
        ),
        _ => told(&error),
    })?;
    let proxy = |read: &Kubeconfig| {
        let mut clusters = read.clusters.iter().filter_map(|named| named.cluster.as_ref());
        clusters.any(|cluster| cluster.proxy_url.as_ref().is_some_and(|url| !url.is_empty()))
    };
    if proxy(&read) {
        return Err("proxy-url of a kubeconfig is not supported".to_owned());
    }
    let made = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await;
    made.map_err(|error| told(&error))
}

/// An error with all its causes, since most of kube's say little by themselves.
pub(super) fn told(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let why = match error.downcast_ref::<std::io::Error>() {
            Some(error) => explain(error),
            None => error.to_string(),
        };
        // Some repeat their cause themselves.
        if !text.contains(&why) {
            text = format!("{text}: {why}");
        }
        cause = error.source();
    }
    text
}

/// Where the API server is.
#[derive(Clone)]
struct Dialer {
    host: String,
    port: u16,
    tls: Option<TlsClient>,
}

impl Dialer {
    fn of(config: &Config) -> Result<Self, String> {
        let url = &config.cluster_url;
        let host = url.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let is_tls = url.scheme_str() != Some("http");
        let port = url.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let tls = is_tls.then(|| tls(config, &host)).transpose()?;
        Ok(Self { host, port, tls })
    }

    /// Errors: a text for the operator that names the address.
    async fn dial(&self) -> Result<Box<dyn Stream>, String> {
        let told = |why: String| format!("{}:{}: {why}", self.host, self.port);
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await;
        let stream = stream.map_err(|error| told(error.to_string()))?;
        sys::tune_tcp(stream.as_raw_fd(), KEEPALIVE);
        let Some(tls) = &self.tls else { return Ok(Box::new(stream)) };
        let secured = TlsConnector::from(tls.config.clone()).connect(tls.name.clone(), stream);
        match secured.await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(error) => Err(told(format!("tls: {}", explain(&error)))),
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// The TLS settings of a kubeconfig in the words of ours.
fn tls(config: &Config, host: &str) -> Result<TlsClient, String> {
    let ca = match &config.root_cert {
        // As kubectl does it.
        None => Authorities::System,
        Some(certificates) => {
            let pem = |der: &Vec<u8>| {
                let text = STANDARD.encode(der);
                format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
            };
            let text: String = certificates.iter().map(pem).collect();
            let roots = Roots::from_pem(&text);
            let roots =
                roots.map_err(|why| format!("the cluster's certificate-authority: {why}"))?;
            Authorities::File(TrustFile { path: PathBuf::new(), roots })
        }
    };
    let settings = UpstreamTls {
        ca,
        client: client_pair(&config.auth_info)?,
        server_name: None,
        verify: !config.accept_invalid_certs,
    };
    let name = config.tls_server_name.clone().unwrap_or_else(|| host.to_owned());
    let name = ServerName::try_from(name)
        .map_err(|_| format!("{host:?}, the API server's host, can stand in no certificate"))?;
    Ok(TlsClient { config: client_config(&settings, false)?, name })
}

/// The client certificate of a kubeconfig; data goes before files.
fn client_pair(info: &AuthInfo) -> Result<Option<CertPair>, String> {
    let part = |what: &str, data: Option<&str>, file: Option<&String>| match (data, file) {
        (Some(data), _) => {
            let bytes = STANDARD.decode(data.trim()).ok();
            let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
            text.map(Some).ok_or_else(|| format!("{what}-data is no PEM in base64"))
        }
        (None, Some(path)) => {
            let read = std::fs::read_to_string(path);
            read.map(Some).map_err(|error| format!("{what}: {path}: {error}"))
        }
        (None, None) => Ok(None),
    };
    let data = info.client_certificate_data.as_deref();
    let cert = part("client-certificate", data, info.client_certificate.as_ref())?;
    let data = info.client_key_data.as_ref().map(|secret| secret.expose_secret());
    let key = part("client-key", data, info.client_key.as_ref())?;
    let (Some(cert), Some(key)) = (cert, key) else { return Ok(None) };
    let loaded = Pair::from_pem(&cert, &key);
    let loaded =
        loaded.map_err(|why| format!("the client certificate of the kubeconfig: {why}"))?;
    Ok(Some(CertPair { cert: PathBuf::new(), key: PathBuf::new(), loaded }))
}

/// Sends one request on a connection of its own, which ends with the body of the answer.
async fn send(
    dialer: Dialer,
    request: Request<Body>,
) -> Result<Response<axum::body::Body>, BoxError> {
    let dialed = timeout(CONNECT_TIMEOUT, dialer.dial()).await;
    let late = |_| format!("{}:{}: no connection within 5 s", dialer.host, dialer.port);
    let stream = dialed.map_err(late)??;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let driver = Task::of(tokio::spawn(async move {
        // Its error reaches the body as well.
        let _ = connection.await;
    }));
    let answer = sender.send_request(with_host(request)?).await?;
    Ok(answer.map(|body| lines(body, driver)))
}

/// Takes the authority out of the URL and into `Host`, as HTTP/1.1 wants it.
fn with_host(mut request: Request<Body>) -> Result<Request<Body>, BoxError> {
    let uri = request.uri();
    let host = uri.authority().map(|authority| HeaderValue::try_from(authority.as_str()));
    let path = uri.path_and_query().map_or("/", |path| path.as_str()).parse::<Uri>()?;
    if let Some(host) = host.transpose()? {
        request.headers_mut().insert(HOST, host);
    }
    *request.uri_mut() = path;
    Ok(request)
}

/// The body of an answer, no line of which is longer than `LINE_BYTES_MAX`; the connection ends
/// with it.
fn lines(body: Incoming, connection: Task) -> axum::body::Body {
    let mut line_bytes = 0;
    let mut check = move |data: Bytes| {
        let _lives_as_long = &connection;
        line_bytes = match memchr::memrchr(b'\n', &data) {
            Some(at) => data.len() - at - 1,
            None => line_bytes + data.len(),
        };
        match line_bytes > LINE_BYTES_MAX {
            true => Err(format!("a line of {line_bytes} bytes, limit {LINE_BYTES_MAX}").into()),
            false => Ok(data),
        }
    };
    let data = body.into_data_stream().map_err(BoxError::from);
    axum::body::Body::from_stream(data.map(move |read| read.and_then(&mut check)))
}
