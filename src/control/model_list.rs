//! Asking a server for its models (rules §11).
//!
//! `GET /v1/models`, of Ollama `GET /api/tags`, of Gemini `GET /v1beta/models`, page by page where
//! the server writes pages; at the start and then every interval of `[discovery]`; also at once
//! when a core could not connect, when a probe finds the server up again, and when its address
//! changes.
//!
//! A server that is late is not taken for dead. Until it answers, its last list holds: a busy
//! server may well serve, but after `LATE_AFTER` others are preferred to it. The models of a dead
//! server stay known for `discovery.grace`, and no requests go there (`reconciler`).

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::event::{Event, Listed};
use super::fetch::{FetchError, Question, fetch};
use super::monitored::{Monitored, is_asked};
use super::task::Task;
use crate::config::{HeaderAction, HeaderOp, Protocol, Upstream};

/// How long a server may take to list its models.
pub const LIST_TIMEOUT: Duration = Duration::from_secs(60);
/// After so long without an answer others are preferred to the server.
pub const LATE_AFTER: Duration = Duration::from_secs(9);
/// Most pages of a list that are read.
const PAGES_MAX: usize = 32;
/// Least pause between two requests; that after a request without a list begins at twice this.
const AGAIN_MIN: Duration = Duration::from_millis(250);
/// Longest such pause; it doubles from one request to the next.
const AGAIN_MAX: Duration = Duration::from_secs(5);
/// Longest such pause for a server that is dead or still loads its model: clients wait for it.
const AGAIN_AWAY_MAX: Duration = Duration::from_secs(1);

/// Asks for as long as the task lives; `None` for an upstream that is disabled or whose models are
/// listed in the config.
pub(super) fn keep_listing(monitored: &Arc<Monitored>, interval: Duration) -> Option<Task> {
    if !is_asked(&monitored.upstream) {
        return None;
    }
    let monitored = monitored.clone();
    Some(Task::of(tokio::spawn(async move {
        let mut again = AGAIN_MIN;
        // No list of the server holds: it gets no requests until it lists its models.
        let mut away = true;
        loop {
            let longest = match monitored.list_models().await {
                Listed::Models(_) => {
                    away = false;
                    None
                }
                Listed::Dead(_) => {
                    away = true;
                    Some(AGAIN_AWAY_MAX)
                }
                Listed::NotNow(_) if away => Some(AGAIN_AWAY_MAX),
                Listed::NotNow(_) | Listed::NoList(_) => Some(AGAIN_MAX),
            };
            let wait = match longest {
                None => {
                    again = AGAIN_MIN;
                    interval
                }
                Some(longest) => {
                    again = (again * 2).min(longest);
                    again.min(interval)
                }
            };
            // Pokes that come within this pause cause one request together.
            sleep(AGAIN_MIN).await;
            let _ = timeout(wait.saturating_sub(AGAIN_MIN), monitored.poke.notified()).await;
        }
    })))
}

impl Monitored {
    /// Asks once, now, and sends the outcome to the reconciler.
    pub(super) async fn list_models(&self) -> Listed {
        let mut asking = pin!(self.listed());
        let answer = match timeout(LATE_AFTER, asking.as_mut()).await {
            Ok(answer) => answer,
            Err(_) => {
                self.state.set_late(true);
                self.facts().checked.unreachable = true;
                self.tell(Listed::NoList(format!("no list within {LATE_AFTER:?}"))).await;
                asking.await
            }
        };
        let listed = match answer {
            Ok(models) => {
                self.state.set_unheard(false);
                Listed::Models(models)
            }
            Err(NoList::Said(why)) => Listed::NoList(why),
            Err(NoList::NotNow(why)) => Listed::NotNow(why),
            Err(NoList::Silent(FetchError::Dead(why))) => Listed::Dead(why),
            Err(NoList::Silent(FetchError::Late(why))) => {
                return self.tell(Listed::NoList(why)).await;
            }
            // The server was not asked: nothing changes, not even the record for the operator.
            Err(NoList::Silent(FetchError::Ours(why))) => {
                let listed = Listed::NoList(why);
                let event = Event::Models(self.identity.clone(), listed.clone());
                let _ = self.events.send(event).await;
                return listed;
            }
        };
        self.state.set_late(false);
        self.facts().checked.unreachable = matches!(listed, Listed::Dead(_));
        self.tell(listed).await
    }

    async fn tell(&self, listed: Listed) -> Listed {
        self.note(match &listed {
            Listed::Models(_) => None,
            Listed::NoList(why) | Listed::NotNow(why) | Listed::Dead(why) => Some(why.as_str()),
        });
        // The reconciler is gone only when all of this ends.
        let _ = self.events.send(Event::Models(self.identity.clone(), listed.clone())).await;
        listed
    }

    /// The names of all pages of the server's list.
    async fn listed(&self) -> Result<Vec<String>, NoList> {
        let by = Instant::now() + LIST_TIMEOUT;
        let headers = list_headers(&self.upstream);
        let (mut all, mut next, mut path) = (Vec::new(), None, list_path(&self.upstream));
        for _ in 0..PAGES_MAX {
            let whole = page_path(&self.upstream, path, next.as_deref());
            let question = Question { method: "GET", path: &whole, body: b"", headers: &headers };
            let left = by.saturating_duration_since(Instant::now());
            let (status, body) = fetch(self, &question, left).await.map_err(NoList::Silent)?;
            if status.as_u16() == 404 && path == GEMINI_LIST {
                path = OPENAI_LIST;
                continue;
            }
            if !status.is_success() {
                let why = format!("status {}", status.as_u16());
                // Such a status means that it has no list at all, rather than none for now.
                if status.is_client_error() && !matches!(status.as_u16(), 408 | 429) {
                    self.state.set_unheard(false);
                    return Err(NoList::Said(why));
                }
                return Err(NoList::NotNow(why));
            }
            let Some(page) = read_page(self.upstream.protocol, &body) else {
                self.state.set_unheard(false);
                return Err(NoList::Said("the answer is no list of models".to_owned()));
            };
            all.extend(page.names);
            // A token that comes twice would lead to an endless loop.
            if page.next.is_none() || page.next == next {
                break;
            }
            next = page.next;
        }
        Ok(all)
    }
}

/// Why there is no list.
enum NoList {
    /// It answered, but with no list; the text says what it answered.
    Said(String),
    /// It answered that it cannot say now, as a server does that loads its model.
    NotNow(String),
    /// It did not answer.
    Silent(FetchError),
}

/// One page of a list.
#[derive(Debug, PartialEq, Eq)]
struct Page {
    names: Vec<String>,
    /// The token that asks for the next page; `None` on the last.
    next: Option<String>,
}

const OPENAI_LIST: &str = "/v1/models";
const GEMINI_LIST: &str = "/v1beta/models";

fn list_path(upstream: &Upstream) -> &'static str {
    match upstream.protocol {
        Protocol::Ollama => "/api/tags",
        Protocol::Gemini => GEMINI_LIST,
        _ => OPENAI_LIST,
    }
}

/// The fields that a request for models needs: Anthropic wants the version of its API.
fn list_headers(upstream: &Upstream) -> Vec<HeaderOp> {
    let version = HeaderOp {
        op: HeaderAction::Insert,
        name: "anthropic-version".to_owned(),
        value: "2023-06-01".to_owned(),
    };
    if upstream.protocol == Protocol::Anthropic { vec![version] } else { Vec::new() }
}

/// The path and query of a page: the first without `next`, else the one behind that token.
fn page_path(upstream: &Upstream, path: &str, next: Option<&str>) -> String {
    let (size, from) = match upstream.protocol {
        Protocol::Gemini => ("pageSize=1000", "pageToken"),
        Protocol::Anthropic => ("limit=1000", "after_id"),
        _ => return path.to_owned(),
    };
    let mut out = format!("{path}?{size}");
    if let Some(next) = next {
        out.push_str(&format!("&{from}="));
        for byte in next.bytes() {
            match byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                true => out.push(char::from(byte)),
                false => out.push_str(&format!("%{byte:02X}")),
            }
        }
    }
    out
}

/// The request for the first page of an upstream's models.
pub(super) fn models_question(upstream: &Upstream) -> Question<'static> {
    Question { method: "GET", path: list_path(upstream), body: b"", headers: &[] }
}

/// Reads `{"data":[{"id":…}]}` (OpenAI), `{"models":[{"name":…}]}` (Ollama), and as these servers
/// write them, `{"models":[{"name":"models/…"}],"nextPageToken":…}` (Gemini) and
/// `{"data":[{"id":…}],"has_more":…,"last_id":…}` (Anthropic).
fn read_page(protocol: Protocol, body: &[u8]) -> Option<Page> {
    let tree: serde_json::Value = serde_json::from_slice(body).ok()?;
    let list = |list: &str, key: &str| {
        let entries = tree.get(list)?.as_array()?;
        let name = |entry: &serde_json::Value| Some(entry.get(key)?.as_str()?.to_owned());
        Some(entries.iter().filter_map(name).collect::<Vec<_>>())
    };
    let text = |key: &str| Some(tree.get(key)?.as_str()?.to_owned()).filter(|t| !t.is_empty());
    let mut next = None;
    let mut names = list("data", "id").or_else(|| list("models", "name"));
    match protocol {
        Protocol::Gemini => {
            next = text("nextPageToken");
            if next.is_some() || tree.as_object().is_some_and(serde_json::Map::is_empty) {
                // Gemini leaves `models` out of a page without any.
                names.get_or_insert_with(Vec::new);
            }
            for name in names.iter_mut().flatten() {
                if let Some(bare) = name.strip_prefix("models/") {
                    *name = bare.to_owned();
                }
            }
        }
        Protocol::Anthropic if tree.get("has_more").is_some_and(|more| more == true) => {
            next = text("last_id");
        }
        _ => {}
    }
    Some(Page { names: names?, next })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(body: &[u8]) -> Option<Vec<String>> {
        read_page(Protocol::OpenAi, body).map(|page| page.names)
    }

    #[test]
    fn reads_the_lists_of_gemini_and_anthropic_as_they_write_them() {
        let page = |names: &[&str], next: Option<&str>| {
            let names = names.iter().map(|&name| name.to_owned()).collect();
            Some(Page { names, next: next.map(str::to_owned) })
        };
        let gemini = |body: &[u8]| read_page(Protocol::Gemini, body);
        let body =
            br#"{"models":[{"name":"models/gemini-x","displayName":"X"}],"nextPageToken":"t"}"#;
        assert_eq!(gemini(body), page(&["gemini-x"], Some("t")));
        let body = br#"{"models":[{"name":"models/b"}]}"#;
        assert_eq!(gemini(body), page(&["b"], None));
        assert_eq!(gemini(b"{}"), page(&[], None));
        assert_eq!(gemini(br#"{"data":[{"id":"c"}]}"#), page(&["c"], None));
        let anthropic = |body: &[u8]| read_page(Protocol::Anthropic, body);
        let body =
            br#"{"data":[{"type":"model","id":"claude-a"}],"has_more":true,"last_id":"claude-a"}"#;
        assert_eq!(anthropic(body), page(&["claude-a"], Some("claude-a")));
        let body = br#"{"data":[{"id":"claude-b"}],"has_more":false,"last_id":"claude-b"}"#;
        assert_eq!(anthropic(body), page(&["claude-b"], None));
        assert_eq!(read_page(Protocol::OpenAi, body), page(&["claude-b"], None));
    }

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
