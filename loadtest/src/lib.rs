//! Simulated model servers, and a load generator that checks what it receives.
//!
//! The one idea: both ends of a proxy under test, written without a line of the
//! proxy, so that one bug cannot hide on both sides of a comparison.
//!
//! Reading order:
//! - [`text`]: the seeded words and bytes that both ends can compute on their own;
//!   what arrives is compared with what must have been sent.
//! - `chunked`: the decoder of chunked bodies, for requests in the mock and for
//!   answers in the generator.
//! - `mock` (feature `mock`): a server that speaks OpenAI, Anthropic, Ollama and
//!   Gemini, with faults down to single bytes on request.
//! - `run` (feature `run`): closed and open loop, histograms, integrity first.
//! - `ab` (feature `run`): one schedule to two targets in turn, and what differs.
//! - `report` (feature `run`): a page of a measurement.
//!
//! It is not a model and not a benchmark suite; it does no TLS and no HTTP/2.

#[cfg(any(feature = "mock", feature = "run"))]
mod chunked;
pub mod text;

#[cfg(feature = "mock")]
pub mod mock;
#[cfg(feature = "run")]
pub mod ab;
#[cfg(feature = "run")]
pub mod report;
#[cfg(feature = "run")]
pub mod run;

/// Keeps the example in the README true.
#[cfg(all(doctest, feature = "mock"))]
#[doc = include_str!("../README.md")]
mod readme {}
