//! What is sent and when: the seeded schedule of a run.
//!
//! The one idea: a request is decided before the run begins — its time, its prompt,
//! its length — by a plan and a seed alone. The same plan gives the same requests
//! byte for byte, to one target or to two, on one thread or on many. No clock and no
//! socket here; `load` and `pace` put it on the wire.

use std::sync::Arc;

use super::Until;
use super::arrivals::{Arrivals, BLOCK_TOKENS, Times};
use crate::text;

/// What every request of a plan has in common; a trace brings its own lengths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Sent as `model`.
    pub model: Arc<str>,
    /// Ask for a streamed answer.
    pub stream: bool,
    /// Bytes of prompt (at least; whole words).
    pub prompt_bytes: usize,
    /// Length of the completion to ask for, in tokens.
    pub tokens: Option<u32>,
}

/// All that decides a schedule.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// When requests come due.
    pub arrivals: Arrivals,
    /// When the schedule ends; due times are below an elapsed limit, not at it.
    pub until: Until,
    /// Of the times, the prompts and the seeds sent along.
    pub seed: u64,
    /// What each request asks for.
    pub shape: Shape,
}

impl Plan {
    /// The schedule of this plan, from its beginning.
    ///
    /// Errors: numbers that no schedule can be made of, and a plan without an end.
    pub fn schedule(&self) -> Result<Schedule, String> {
        self.arrivals.check()?;
        let ends = match &self.arrivals {
            Arrivals::Trace { .. } => true,
            Arrivals::Ramp { to, .. } => *to == 0.0,
            _ => false,
        };
        if self.until == Until::End && !ends {
            return Err(format!("{} arrivals have no end of their own", self.arrivals.name()));
        }
        let times = Times::new(self.arrivals.clone(), text::mix(self.seed));
        Ok(Schedule { plan: self.clone(), times, number: 0 })
    }
}

/// The requests of a plan, in the order of their due times.
#[derive(Clone, Debug)]
pub struct Schedule {
    plan: Plan,
    times: Times,
    number: u64,
}

impl Iterator for Schedule {
    type Item = Planned;

    fn next(&mut self) -> Option<Planned> {
        if matches!(self.plan.until, Until::Requests(limit) if self.number >= limit) {
            return None;
        }
        let due_us = self.times.next()?;
        if matches!(self.plan.until, Until::Elapsed(limit) if u128::from(due_us) >= limit.as_micros())
        {
            return None;
        }
        let number = self.number;
        self.number += 1;
        let mut planned = Planned::new(&self.plan.shape, self.plan.seed, number, due_us);
        if let Arrivals::Trace { trace, .. } = &self.plan.arrivals {
            let line = trace.lines().get(usize::try_from(number).ok()?)?;
            planned.tokens = Some(line.output_tokens);
            planned.prompt = Prompt::Blocks {
                tokens: line.input_tokens,
                blocks: Arc::clone(&line.blocks),
                seed: self.plan.seed,
            };
        }
        Some(planned)
    }
}

/// What a prompt is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// Words of the request's own seed, until there are so many bytes.
    Bytes(usize),
    /// So many words: first those of shared blocks, then the request's own.
    Blocks {
        /// Words in all; a word counts as a token.
        tokens: u32,
        /// Ids of blocks of 512 words.
        blocks: Arc<[u64]>,
        /// The plan's seed, which with an id gives a block its words.
        seed: u64,
    },
}

/// One request, decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// Its place in the schedule, from 0.
    pub number: u64,
    /// When it is to be sent, in microseconds from the start of the run.
    pub due_us: u64,
    /// Sent as `seed`; below 2^52, so that no JSON reader rounds it.
    pub seed: u64,
    /// Sent as `model`.
    pub model: Arc<str>,
    /// Whether a streamed answer is asked for.
    pub stream: bool,
    /// What the prompt is made of.
    pub prompt: Prompt,
    /// Sent as `max_tokens`.
    pub tokens: Option<u32>,
}

impl Planned {
    /// Request `number` of a plan with this shape and seed.
    pub fn new(shape: &Shape, seed: u64, number: u64, due_us: u64) -> Planned {
        Planned {
            number,
            due_us,
            seed: text::mix(seed ^ text::mix(number)) >> 12,
            model: Arc::clone(&shape.model),
            stream: shape.stream,
            prompt: Prompt::Bytes(shape.prompt_bytes),
            tokens: shape.tokens,
        }
    }

    /// The words of the prompt.
    pub fn prompt_text(&self) -> String {
        match &self.prompt {
            Prompt::Bytes(bytes) => {
                let mut prompt = String::with_capacity(bytes + 16);
                let mut index = 0;
                while prompt.len() < *bytes {
                    text::push_token(self.seed, index, &mut prompt);
                    index += 1;
                }
                prompt
            }
            Prompt::Blocks { tokens, blocks, seed } => {
                let mut prompt = String::with_capacity(*tokens as usize * 6);
                for index in 0..*tokens {
                    let block = blocks.get((index / BLOCK_TOKENS) as usize);
                    let from = block.map_or(self.seed, |id| text::mix(seed ^ text::mix(!id)));
                    text::push_token(from, index, &mut prompt);
                }
                prompt
            }
        }
    }

    /// A body of which every API takes what it knows, `model` last as some SDKs do it.
    pub fn body(&self, path: &str) -> String {
        let path = path.split('?').next().unwrap_or_default();
        let prompt = serde_json::Value::from(self.prompt_text());
        let model = serde_json::Value::from(&*self.model);
        let input = match path.rsplit('/').next() {
            Some("completions") if !path.contains("/chat/") => format!("\"prompt\":{prompt}"),
            Some("generate") => format!("\"prompt\":{prompt}"),
            Some("embeddings" | "responses") => format!("\"input\":{prompt}"),
            _ => format!("\"messages\":[{{\"role\":\"user\",\"content\":{prompt}}}]"),
        };
        let tokens = self.tokens.map(|tokens| format!(",\"max_tokens\":{tokens}"));
        let usage = if self.stream && path.ends_with("completions") {
            ",\"stream_options\":{\"include_usage\":true}"
        } else {
            ""
        };
        format!(
            "{{{input},\"seed\":{},\"stream\":{}{usage}{},\"model\":{model}}}",
            self.seed,
            self.stream,
            tokens.unwrap_or_default()
        )
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::super::arrivals::Trace;
    use super::*;

    fn plan(arrivals: Arrivals, until: Until, seed: u64) -> Plan {
        let shape =
            Shape { model: "mock-model".into(), stream: true, prompt_bytes: 64, tokens: Some(5) };
        Plan { arrivals, until, seed, shape }
    }

    fn wire(plan: &Plan) -> Vec<u8> {
        let mut out = Vec::new();
        for planned in plan.schedule().unwrap() {
            out.extend(planned.due_us.to_le_bytes());
            out.extend(planned.body("/v1/chat/completions").into_bytes());
        }
        out
    }

    fn trace(lines: &[&str]) -> Arrivals {
        Arrivals::Trace { trace: Arc::new(Trace::parse(&lines.join("\n")).unwrap()), speed: 2.0 }
    }

    #[test]
    fn bodies_are_json_for_every_path() {
        let plan = plan(Arrivals::Constant { rate: 1.0 }, Until::Requests(4), 1);
        let planned = plan.schedule().unwrap().last().unwrap();
        for path in ["/v1/chat/completions", "/v1/completions?a=b", "/v1/embeddings", "/api/chat"] {
            let body: serde_json::Value = serde_json::from_str(&planned.body(path)).unwrap();
            assert_eq!(body["model"], "mock-model", "{path}");
            assert_eq!(body["seed"], planned.seed, "{path}");
            assert_eq!(body["max_tokens"], 5, "{path}");
        }
    }

    #[test]
    fn trace_gives_times_lengths_and_shared_prefixes() {
        let arrivals = trace(&[
            r#"{"timestamp":100,"input_length":1100,"output_length":9,"hash_ids":[1,2,3]}"#,
            r#"{"timestamp":300,"input_length":1024,"output_length":8,"hash_ids":[1,2]}"#,
            r#"{"timestamp":300,"input_length":1030,"output_length":7,"hash_ids":[1,4]}"#,
        ]);
        let requests: Vec<Planned> = plan(arrivals, Until::End, 7).schedule().unwrap().collect();
        let dues: Vec<_> = requests.iter().map(|one| (one.due_us, one.tokens)).collect();
        assert_eq!(dues, [(0, Some(9)), (100_000, Some(8)), (100_000, Some(7))]);
        let prompts: Vec<Vec<String>> = requests
            .iter()
            .map(|one| one.prompt_text().split(' ').map(str::to_owned).collect())
            .collect();
        let words = |request: usize, from: usize, to: usize| &prompts[request][from..to];
        assert_eq!(words(0, 0, 1000), words(1, 0, 1000));
        assert_eq!(words(0, 0, 500), words(2, 0, 500));
        assert_ne!(words(0, 600, 700), words(2, 600, 700));
    }

    #[test]
    fn plan_without_an_end_is_refused() {
        let poisson = Arrivals::Poisson { rate: 5.0 };
        assert!(plan(poisson, Until::End, 1).schedule().is_err());
        let over = Duration::from_secs(2);
        let down = Arrivals::Ramp { from: 50.0, to: 0.0, over };
        let sent = plan(down, Until::End, 1).schedule().unwrap().count();
        assert!((20..80).contains(&sent), "{sent}");
    }

    #[test]
    fn rate_holds_over_an_elapsed_limit() {
        let until = Until::Elapsed(Duration::from_secs(10));
        let exact = plan(Arrivals::Constant { rate: 100.0 }, until, 1);
        assert_eq!(exact.schedule().unwrap().count(), 1000);
        for seed in 0..20 {
            let count =
                plan(Arrivals::Poisson { rate: 100.0 }, until, seed).schedule().unwrap().count();
            assert!((840..1160).contains(&count), "seed {seed}: {count}");
        }
    }

    proptest! {
        #[test]
        fn same_seed_gives_the_same_bytes_and_another_seed_others(
            seed: u64, cv in 0.2..3.0, count in 1u64..40,
        ) {
            let of = |seed| plan(Arrivals::Gamma { rate: 50.0, cv }, Until::Requests(count), seed);
            prop_assert_eq!(wire(&of(seed)), wire(&of(seed)));
            prop_assert_ne!(wire(&of(seed)), wire(&of(seed ^ 1)));
        }

        #[test]
        fn limits_hold_and_numbers_count_up(
            seed: u64, rate in 1.0..2e3, limit_ms in 1u64..500, count in 0u64..200,
        ) {
            let limit = Duration::from_millis(limit_ms);
            let poisson = || Arrivals::Poisson { rate };
            let timed = plan(poisson(), Until::Elapsed(limit), seed).schedule().unwrap();
            for (at, planned) in timed.enumerate() {
                prop_assert_eq!(planned.number, at as u64);
                prop_assert!(u128::from(planned.due_us) < limit.as_micros());
            }
            let counted = plan(poisson(), Until::Requests(count), seed).schedule().unwrap();
            prop_assert_eq!(counted.count() as u64, count);
        }
    }
}
