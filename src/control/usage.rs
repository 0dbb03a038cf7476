//! Who used how many tokens of which model: over the last hour, day and month.
//!
//! The cores count tokens by model, upstream and key for metrics; what they have counted is looked at
//! every few seconds, and what was added since goes into a bucket of its minute, its hour and its
//! day. So the cores do nothing for it. With `process.state_dir` the buckets outlive the process, but
//! for the last `KEEP_INTERVAL` when it is killed.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

use super::overlay_file::stage;
use super::say::Say;
use super::socket_lock::{Holder, SocketLock};
use crate::net::sys::unix_s;
use crate::telemetry::labels::{LabelId, PlanLabels};
use crate::telemetry::series::{RowId, RowKind, RowSums};

/// From one look at the counters to the next.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// From one writing to the file to the next.
const KEEP_INTERVAL: Duration = Duration::from_secs(10);
/// Name of the file in `process.state_dir`.
const FILE: &str = "usage.json";
/// Most pairs of a key and a model in one bucket; further ones are counted together.
const PAIRS_MAX: usize = 10_000;

/// Returns the rows of this process's cores, and the names in them.
pub type Rows = Box<dyn Fn() -> (RowSums, Arc<PlanLabels>) + Send + Sync>;

/// How far back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    /// The last 60 minutes.
    Hour,
    /// The last 24 hours.
    Day,
    /// The last 31 days.
    Month,
}

impl Span {
    /// All spans.
    pub const ALL: [Span; 3] = [Span::Hour, Span::Day, Span::Month];

    /// Its word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Span::Hour => "hour",
            Span::Day => "day",
            Span::Month => "month",
        }
    }

    /// Seconds of a bucket, and how many buckets make the span.
    fn buckets(self) -> (u64, u64) {
        match self {
            Span::Hour => (60, 60),
            Span::Day => (3600, 24),
            Span::Month => (86_400, 31),
        }
    }
}

/// Tokens of prompts, of completions, and of prompts from a cache.
pub type Tokens = [u64; 3];

/// A bucket: tokens by key and model.
type Bucket = BTreeMap<(String, String), Tokens>;

/// What was used; clones are the same.
#[derive(Clone, Default)]
pub struct Usage(Arc<Mutex<Counted>>);

#[derive(Default)]
struct Counted {
    /// By span: the buckets by the number of their time.
    spans: [BTreeMap<u64, Bucket>; 3],
    /// What each row had when it was last looked at.
    seen: HashMap<[u32; 3], Tokens>,
}

impl Usage {
    /// What was used in a span, the most tokens first.
    #[must_use]
    pub fn over(&self, span: Span) -> Vec<(String, String, Tokens)> {
        let counted = self.counted();
        let mut sums = Bucket::new();
        for bucket in counted.of(span, unix_s()) {
            for (pair, tokens) in bucket {
                add(sums.entry(pair.clone()).or_default(), tokens);
            }
        }
        let mut all: Vec<_> = sums.into_iter().map(|((k, m), tokens)| (k, m, tokens)).collect();
        all.sort_by_key(|(_, _, [prompt, completion, _])| std::cmp::Reverse(prompt + completion));
        all
    }

    /// Takes what the cores have counted since the last time.
    pub fn look(&self, rows: &Rows) {
        let (sums, labels) = rows();
        self.counted().take(&sums, &labels, unix_s());
    }

    fn counted(&self) -> MutexGuard<'_, Counted> {
        // Numbers alone: a thread that panicked meanwhile lost one addition at most.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what a process before has kept.
    fn read(&self, text: &str) {
        let kept: Value = serde_json::from_str(text).unwrap_or_default();
        let mut counted = self.counted();
        for (at, span) in Span::ALL.into_iter().enumerate() {
            for (time, rows) in kept[span.word()].as_object().into_iter().flatten() {
                let Ok(time) = time.parse() else { continue };
                let bucket = counted.spans[at].entry(time).or_default();
                for row in rows.as_array().into_iter().flatten() {
                    let text = |at: usize| row[at].as_str().unwrap_or_default().to_owned();
                    let tokens = [2, 3, 4].map(|at| row[at].as_u64().unwrap_or_default());
                    add(bucket.entry((text(0), text(1))).or_default(), &tokens);
                }
            }
        }
    }

    /// What `read` takes.
    fn written(&self) -> String {
        let mut counted = self.counted();
        counted.forget(unix_s());
        let mut kept = serde_json::Map::new();
        for (at, span) in Span::ALL.into_iter().enumerate() {
            let buckets = counted.spans[at].iter().map(|(time, bucket)| {
                let rows =
                    bucket.iter().map(|((key, model), [p, c, h])| json!([key, model, p, c, h]));
                (time.to_string(), rows.collect::<Value>())
            });
            kept.insert(span.word().to_owned(), Value::Object(buckets.collect()));
        }
        Value::Object(kept).to_string()
    }

    /// Looks at the counters for ever, and keeps what was used in `folder`, if there is one.
    pub async fn run(self, rows: Arc<Rows>, folder: Option<PathBuf>, lock: SocketLock, say: Say) {
        let place = folder.map(|folder| folder.join(FILE));
        if let Some(place) = place.clone() {
            let text = spawn_blocking(move || std::fs::read_to_string(place)).await;
            if let Ok(Ok(text)) = text {
                self.read(&text);
            }
        }
        let (mut kept_at, mut complained) = (Instant::now(), false);
        loop {
            sleep(LOOK_INTERVAL).await;
            self.look(&rows);
            let Some(place) = &place else { continue };
            // From the first word of a handover on the file is the next process's.
            if kept_at.elapsed() < KEEP_INTERVAL || lock.is_held_by(Holder::Handover) {
                continue;
            }
            kept_at = Instant::now();
            let amiss = keep(place, self.written()).await.err();
            if let Some(why) = amiss.as_ref().filter(|_| !complained) {
                say(&format!("usage: {why}"));
            }
            complained = amiss.is_some();
        }
    }
}

async fn keep(place: &Path, text: String) -> Result<(), String> {
    let place = place.to_owned();
    let kept = spawn_blocking(move || stage(&place, &text)?.commit()).await;
    kept.unwrap_or_else(|_| Err("writing it failed".to_owned()))
}

impl Counted {
    fn of(&self, span: Span, now_s: u64) -> impl Iterator<Item = &Bucket> {
        let (seconds, count) = span.buckets();
        let first = (now_s / seconds + 1).saturating_sub(count);
        self.spans[span as usize].range(first..).map(|(_, bucket)| bucket)
    }

    fn take(&mut self, sums: &RowSums, labels: &PlanLabels, now_s: u64) {
        let mut seen = HashMap::new();
        for (id, values) in sums.all() {
            let RowId { kind: RowKind::Tokens, labels: [model, upstream, key] } = id else {
                continue;
            };
            let now: Tokens = std::array::from_fn(|at| values.get(at).copied().unwrap_or_default());
            let before = self.seen.get(&[model, upstream, key]).copied().unwrap_or_default();
            seen.insert([model, upstream, key], now);
            let added: Tokens = std::array::from_fn(|at| now[at].saturating_sub(before[at]));
            if added != [0; 3] {
                let name = |id: u32| labels.name(LabelId(id)).unwrap_or("other").to_owned();
                self.add((name(key), name(model)), &added, now_s);
            }
        }
        self.seen = seen;
        self.forget(now_s);
    }

    fn add(&mut self, pair: (String, String), added: &Tokens, now_s: u64) {
        for span in Span::ALL {
            let bucket = self.spans[span as usize].entry(now_s / span.buckets().0).or_default();
            let is_full = bucket.len() >= PAIRS_MAX && !bucket.contains_key(&pair);
            let other = || ("other".to_owned(), "other".to_owned());
            let pair = if is_full { other() } else { pair.clone() };
            add(bucket.entry(pair).or_default(), added);
        }
    }

    /// Forgets what is older than each span.
    fn forget(&mut self, now_s: u64) {
        for span in Span::ALL {
            let (seconds, count) = span.buckets();
            let first = (now_s / seconds + 1).saturating_sub(count);
            self.spans[span as usize] = self.spans[span as usize].split_off(&first);
        }
    }
}

fn add(sum: &mut Tokens, added: &Tokens) {
    sum.iter_mut().zip(added).for_each(|(sum, added)| *sum = sum.saturating_add(*added));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(key: &str, model: &str) -> (String, String) {
        (key.to_owned(), model.to_owned())
    }

    #[test]
    fn tokens_stay_as_long_as_their_span_and_outlive_the_process() {
        let usage = Usage::default();
        let now = unix_s();
        for (ago_s, tokens) in [(0, 1), (2 * 3600, 10), (3 * 86_400, 100), (40 * 86_400, 1000)] {
            usage.counted().add(pair("a", "m"), &[tokens, 0, 0], now - ago_s);
        }
        usage.counted().add(pair("b", "m"), &[0, 5, 0], now);
        let again = Usage::default();
        again.read(&usage.written());
        again.read("nonsense");
        for usage in [&usage, &again] {
            let of = |span| {
                let all = usage.over(span);
                all.into_iter().map(|(key, _, [p, c, _])| (key, p + c)).collect::<Vec<_>>()
            };
            let row = |key: &str, tokens| (key.to_owned(), tokens);
            assert_eq!(of(Span::Hour), [row("b", 5), row("a", 1)]);
            assert_eq!(of(Span::Day), [row("a", 11), row("b", 5)]);
            assert_eq!(of(Span::Month), [row("a", 111), row("b", 5)]);
        }
    }

    #[test]
    fn only_what_was_added_since_counts() {
        let mut counted = Counted::default();
        let sums = |tokens| {
            let mut sums = RowSums::default();
            sums.add_row(RowId { kind: RowKind::Tokens, labels: [1, 1, 0] }, &[tokens, 1, 0]);
            sums
        };
        for tokens in [5, 5, 9] {
            counted.take(&sums(tokens), &PlanLabels::default(), 1000);
        }
        let all: Vec<_> = counted.of(Span::Hour, 1000).flat_map(|bucket| bucket.iter()).collect();
        assert_eq!(all, [(&pair("", "other"), &[9, 1, 0])]);
    }

    #[test]
    fn a_bucket_is_bounded() {
        let mut counted = Counted::default();
        for at in 0..PAIRS_MAX + 10 {
            counted.add(pair(&at.to_string(), "m"), &[1, 0, 0], 0);
        }
        let bucket = counted.of(Span::Hour, 0).next().unwrap();
        assert_eq!(bucket.len(), PAIRS_MAX + 1);
        assert_eq!(bucket[&pair("other", "other")], [10, 0, 0]);
    }
}
