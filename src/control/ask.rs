//! Asking a server for its models (SPEC §11).
//!
//! `GET /v1/models`, of Ollama `GET /api/tags`, at the start and then every interval of
//! `[discovery]`; also at once when a core could not connect, when a probe finds the server up
//! again, and when its address changes. While a question is open the last list holds. Of one
//! that is dead, or late `LATE_MAX` times in a row, the list is gone; it is asked again soon.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::fetch::{Question, Silence, Task, fetch};
use super::fleet::Event;
use super::watched::Watched;
use crate::config::{ModelsFrom, Protocol, Upstream};

/// How long a server may take to list its models.
pub const ASK_TIMEOUT: Duration = Duration::from_secs(3);
/// Lists that may come too late, one after the other, before the server counts as dead.
const LATE_MAX: u32 = 3;
/// Pause after a question without a list; also the least between any two.
const AGAIN_MIN: Duration = Duration::from_millis(250);
/// Most of that pause, which doubles.
const AGAIN_MAX: Duration = Duration::from_secs(5);

/// What came of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listed {
    /// Its models.
    Models(Vec<String>),
    /// It lives and has no list for us now: what was known still holds.
    NoList(String),
    /// Nobody is there.
    Dead(String),
}

/// Asks for as long as the task lives; none for one that lists its models in the config.
pub(super) fn keep_asking(watched: &Arc<Watched>, interval: Duration) -> Option<Task> {
    if watched.upstream.models != ModelsFrom::Discover || !watched.upstream.enabled {
        return None;
    }
    let watched = watched.clone();
    Some(Task::of(tokio::spawn(async move {
        let mut again = AGAIN_MIN;
        loop {
            let wait = match watched.ask().await {
                Listed::Models(_) => {
                    again = AGAIN_MIN;
                    interval
                }
                Listed::NoList(_) | Listed::Dead(_) => {
                    again = (again * 2).min(AGAIN_MAX);
                    again.min(interval)
                }
            };
            // Pokes within the pause are one.
            sleep(AGAIN_MIN).await;
            let _ = timeout(wait.saturating_sub(AGAIN_MIN), watched.poke.notified()).await;
        }
    })))
}

impl Watched {
    /// Asks once, now, and tells the fleet.
    pub(super) async fn ask(&self) -> Listed {
        let answer = self.listed().await;
        let late = match &answer {
            Err(Silence::Late(_)) => self.facts().late + 1,
            _ => 0,
        };
        self.facts().late = late;
        let listed = match answer {
            Ok(Ok(models)) => Listed::Models(models),
            Ok(Err(why)) => Listed::NoList(why),
            Err(Silence::Late(why)) if late < LATE_MAX => Listed::NoList(why),
            Err(Silence::Late(why) | Silence::Dead(why)) => Listed::Dead(why),
        };
        self.note(match &listed {
            Listed::Models(_) => None,
            Listed::NoList(why) | Listed::Dead(why) => Some(why.as_str()),
        });
        self.facts().checked.unreachable = matches!(listed, Listed::Dead(_));
        // The fleet is gone only when all of this ends.
        let _ = self.events.send(Event::Models(self.identity.clone(), listed.clone())).await;
        listed
    }

    async fn listed(&self) -> Result<Result<Vec<String>, String>, Silence> {
        let (status, body) = fetch(self, &models_question(&self.upstream), ASK_TIMEOUT).await?;
        if !status.is_success() {
            return Ok(Err(format!("status {}", status.as_u16())));
        }
        Ok(names(&body).ok_or_else(|| "the answer is no list of models".to_owned()))
    }
}

/// What asks for the first page of the models.
pub(super) fn models_question(upstream: &Upstream) -> Question<'static> {
    let path = match upstream.protocol {
        Protocol::Ollama => "/api/tags",
        _ => "/v1/models",
    };
    Question { method: "GET", path, body: b"", headers: &[] }
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
