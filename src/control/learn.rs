//! What must be known of the upstreams before the start: their addresses, and the models of
//! those that are asked for them.
//!
//! Names are resolved by the system's resolver, once; models are asked with one GET each, all
//! servers at once, with a short limit. A server that does not answer is a warning: the proxy
//! starts without its models.

use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, UnixStream};

use crate::config::{Config, ModelsFrom, Protocol, Upstream, UpstreamAuth, UpstreamId};
use crate::net::dial::Address;

/// How long a server may take to list its models.
const ASK_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest list of models, in bytes.
const ANSWER_BYTES_MAX: usize = 4 << 20;

/// What was learnt about the upstreams of a config.
#[derive(Clone, Debug, Default)]
pub struct Learnt {
    /// The addresses of each upstream, in order of preference; empty = not resolved.
    pub addresses: Vec<Vec<Address>>,
    /// The models of those that were asked and answered.
    pub models: Vec<(UpstreamId, Vec<String>)>,
    /// One line for each that could not be resolved or asked.
    pub warnings: Vec<String>,
}

/// Learns about every upstream of a config.
#[must_use]
pub fn learn(config: &Config) -> Learnt {
    let mut learnt = Learnt::default();
    for upstream in &config.upstreams {
        let addresses = resolve(upstream).unwrap_or_else(|error| {
            let url = &upstream.url.original;
            learnt.warnings.push(format!("upstream {}: {url}: {error}", upstream.name));
            Vec::new()
        });
        learnt.addresses.push(addresses);
    }
    let asked: Vec<usize> = (0..config.upstreams.len())
        .filter(|&u| config.upstreams[u].enabled)
        .filter(|&u| matches!(config.upstreams[u].models, ModelsFrom::Discover))
        .filter(|&u| !config.upstreams[u].url.tls && !learnt.addresses[u].is_empty())
        .collect();
    if asked.is_empty() {
        return learnt;
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            learnt.warnings.push(format!("models cannot be asked: {error}"));
            return learnt;
        }
    };
    let answers = runtime.block_on(async {
        let mut asks = Vec::new();
        for &index in &asked {
            let upstream = config.upstreams[index].clone();
            let address = learnt.addresses[index][0].clone();
            let ask = async move {
                match tokio::time::timeout(ASK_TIMEOUT, ask(&upstream, &address)).await {
                    Ok(answer) => answer,
                    Err(_) => Err(format!("no answer within {} s", ASK_TIMEOUT.as_secs())),
                }
            };
            asks.push((index, tokio::spawn(ask)));
        }
        let mut answers = Vec::new();
        for (index, ask) in asks {
            let answer = ask.await.unwrap_or_else(|error| Err(error.to_string()));
            answers.push((index, answer));
        }
        answers
    });
    for (index, answer) in answers {
        match answer {
            Ok(models) => {
                learnt.models.push((UpstreamId(u16::try_from(index).unwrap_or(u16::MAX)), models));
            }
            Err(why) => learnt.warnings.push(format!(
                "upstream {}: models could not be asked: {why}",
                config.upstreams[index].name
            )),
        }
    }
    learnt
}

fn resolve(upstream: &Upstream) -> Result<Vec<Address>, String> {
    let url = &upstream.url;
    if url.unix {
        return Ok(vec![Address::Unix(url.host.clone().into())]);
    }
    let found: Vec<SocketAddr> = (url.host.as_str(), url.port)
        .to_socket_addrs()
        .map_err(|error| format!("cannot resolve: {error}"))?
        .collect();
    if found.is_empty() {
        return Err("cannot resolve: no address".to_owned());
    }
    Ok(found.into_iter().map(Address::Tcp).collect())
}

async fn ask(upstream: &Upstream, address: &Address) -> Result<Vec<String>, String> {
    let path = match upstream.protocol {
        Protocol::Ollama => "/api/tags",
        _ => "/v1/models",
    };
    let base = upstream.url.base_path.trim_end_matches('/');
    let base = base.strip_suffix("/v1").unwrap_or(base);
    let mut request = Request::get(format!("{base}{path}"))
        .header("host", upstream.url.authority())
        .header("accept", "application/json");
    let first = upstream.api_keys.first().map(|key| &key.key);
    match &upstream.auth {
        UpstreamAuth::Bearer(token) => {
            let token = String::from_utf8_lossy(first.unwrap_or(token).expose()).into_owned();
            request = request.header("authorization", format!("Bearer {token}"));
        }
        UpstreamAuth::Header { name, value } => {
            request = request.header(name.as_str(), first.unwrap_or(value).expose());
        }
        _ => {}
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| error.to_string())?;
    let body = match address {
        Address::Tcp(addr) => {
            let stream = TcpStream::connect(addr).await.map_err(|error| error.to_string())?;
            exchange(TokioIo::new(stream), request).await?
        }
        Address::Unix(path) => {
            let stream = UnixStream::connect(path).await.map_err(|error| error.to_string())?;
            exchange(TokioIo::new(stream), request).await?
        }
    };
    names(&body).ok_or_else(|| "the answer is no list of models".to_owned())
}

async fn exchange<S>(stream: S, request: Request<Empty<Bytes>>) -> Result<Bytes, String>
where
    S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        http1::handshake(stream).await.map_err(|error| error.to_string())?;
    let driver = tokio::spawn(connection);
    let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
    let status = answer.status();
    if !status.is_success() {
        return Err(format!("status {}", status.as_u16()));
    }
    let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX)
        .collect()
        .await
        .map_err(|error| error.to_string())?
        .to_bytes();
    driver.abort();
    Ok(body)
}

/// Reads `{"data":[{"id":…}]}` (OpenAI) or `{"models":[{"name":…}]}` (Ollama).
fn names(body: &[u8]) -> Option<Vec<String>> {
    let tree: serde_json::Value = serde_json::from_slice(body).ok()?;
    let list = |list: &str, key: &str| {
        let entries = tree.get(list)?.as_array()?;
        let name = |entry: &serde_json::Value| Some(entry.get(key)?.as_str()?.to_owned());
        Some(entries.iter().filter_map(name).collect::<Vec<_>>())
    };
    list("data", "id").or_else(|| list("models", "name"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_both_shapes_of_list_and_nothing_else() {
        let openai = br#"{"object":"list","data":[{"id":"a"},{"id":7},{"id":"b"}]}"#;
        assert_eq!(names(openai), Some(vec!["a".to_owned(), "b".to_owned()]));
        let ollama = br#"{"models":[{"name":"llama3:8b"}]}"#;
        assert_eq!(names(ollama), Some(vec!["llama3:8b".to_owned()]));
        assert_eq!(names(b"{\"data\":{}}"), None);
        assert_eq!(names(b"<html>"), None);
    }
}
