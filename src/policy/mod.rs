//! Deciders: who may, where to, and what next.
//!
//! Reading order follows a request: `auth` (which credential) and `keys` (whose, and what
//! it may), `limit` (how much of it), `routes` (by `host`, by path, which is
//! `route`, or by both), `model` (by
//! name), `balance` (which member) by what `ewma` has measured, `breaker` and `health` (whether
//! it may be used at all), `queue` (who waits for one), `retry` and `budget` (after a failure).
//! `pattern` and `query` are what `route` and `auth` lean on; `base_path` is where a path goes behind a
//! server's URL. All pure: values in, a value out;
//! `now` and chance are arguments. What all cores share is held in atomics, never behind a lock.

pub mod auth;
pub mod balance;
pub mod base_path;
pub mod breaker;
pub mod budget;
pub mod cors;
pub mod ewma;
pub mod health;
pub mod host;
pub mod keys;
pub mod limit;
pub mod model;
mod pattern;
pub mod query;
pub mod queue;
pub mod reach;
pub mod retry;
pub mod route;
pub mod routes;
