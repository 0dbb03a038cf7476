//! How a connection to Redis is made, with TLS where the URL is `rediss://`.
//!
//! The `redis` crate would take rustls's default cryptography and the machine's roots, so TLS is
//! spoken here, with the settings that upstreams have, and the crate gets the finished stream. It
//! still reads the URL, once as `redis://`, so that user, password and database mean the same.

use std::io;
use std::path::Path;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, ConnectionAddr, IntoConnectionInfo as _, RedisError};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::config::{RatelimitStore, UpstreamTls};
use crate::control::task::Task;
use crate::net::tls::{client_config, explain};

/// Longest time to connect, load the script and send the first beat.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// The server that has the store, and how it is reached.
pub(super) struct StoreServer {
    client: Client,
    tls: Option<StoreTls>,
}

struct StoreTls {
    host: String,
    port: u16,
    name: ServerName<'static>,
    settings: UpstreamTls,
}

/// A connection, and the task that moves its bytes where that is ours.
pub(super) struct Connected {
    pub(super) connection: MultiplexedConnection,
    /// Ends with the connection.
    _driver: Option<Task>,
}

/// Why there is no connection; a text for the operator.
pub(super) enum Failed {
    /// The other side answered, and it will not do so better until somebody changes something: a
    /// certificate, a password.
    Refused(String),
    /// Nobody answers.
    Silent(String),
}

impl From<RedisError> for Failed {
    fn from(error: RedisError) -> Self {
        match error.is_io_error() || error.is_timeout() {
            true => Failed::Silent(error.to_string()),
            false => Failed::Refused(error.to_string()),
        }
    }
}

impl Failed {
    fn silent(error: &io::Error) -> Self {
        Failed::Silent(error.to_string())
    }
}

impl StoreServer {
    /// Reads the URL and tries the TLS settings.
    ///
    /// Errors: a text for the operator without the URL, since it may hold a password.
    pub(super) fn of(store: &RatelimitStore) -> Result<Self, String> {
        let url = String::from_utf8_lossy(store.url.expose()).into_owned();
        // Only the kind of the error: its text may quote the URL.
        let refused = |error: RedisError| format!("ratelimit_store.url: {:?}", error.kind());
        let Some(rest) = url.strip_prefix("rediss://") else {
            return Ok(Self { client: Client::open(url).map_err(refused)?, tls: None });
        };
        let plain = format!("redis://{}", rest.split('#').next().unwrap_or(rest));
        let info = plain.into_connection_info().map_err(refused)?;
        let ConnectionAddr::Tcp(host, port) = info.addr().clone() else {
            return Err("ratelimit_store.url: names no host and port".to_owned());
        };
        let settings = store.tls.clone();
        let name = settings.server_name.clone().unwrap_or_else(|| host.clone());
        let name = ServerName::try_from(name).map_err(
            |_| "ratelimit_store.url: its host can stand in no certificate; set tls.server_name",
        )?;
        client_config(&settings, false).map_err(|why| format!("ratelimit_store.tls: {why}"))?;
        let tls = Some(StoreTls { host, port, name, settings });
        Ok(Self { client: Client::open(info).map_err(refused)?, tls })
    }

    /// Connects, and says user, password and database.
    pub(super) async fn connect(&mut self) -> Result<Connected, Failed> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(CONNECT_TIMEOUT));
        let Some(tls) = &mut self.tls else {
            let made = self.client.get_multiplexed_async_connection_with_config(&config).await;
            return Ok(Connected { connection: made?, _driver: None });
        };
        let stream = tls.stream().await?;
        let settings = self.client.get_connection_info().redis_settings();
        let made = MultiplexedConnection::new_with_config(settings, stream, config);
        let (connection, driver) = made.await?;
        let driver = Some(Task::of(tokio::spawn(driver)));
        Ok(Connected { connection, _driver: driver })
    }
}

impl StoreTls {
    async fn stream(&mut self) -> Result<TlsStream<TcpStream>, Failed> {
        self.read_files_again().await;
        let config = client_config(&self.settings, false).map_err(Failed::Refused)?;
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await;
        let stream = stream.map_err(|error| Failed::silent(&error))?;
        stream.set_nodelay(true).map_err(|error| Failed::silent(&error))?;
        let stream = TlsConnector::from(config).connect(self.name.clone(), stream).await;
        // What rustls itself refuses stands inside the error of the socket.
        stream.map_err(|error| {
            match error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()) {
                true => Failed::Refused(format!("tls: {}", explain(&error))),
                false => Failed::silent(&error),
            }
        })
    }

    /// Takes the certificates that are in the files now; those of before stay when one is no good.
    async fn read_files_again(&mut self) {
        if self.settings.files().is_empty() {
            return;
        }
        let settings = self.settings.clone();
        let read = |path: &Path| std::fs::read_to_string(path).map_err(|why| why.to_string());
        // A file on a network file system that hangs must not stop the control thread.
        let read = tokio::task::spawn_blocking(move || settings.reread(&read)).await;
        if let Ok(Ok(settings)) = read {
            self.settings = settings;
        }
    }
}
