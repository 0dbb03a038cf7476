//! Deciders: who may, where to, and what next.
//!
//! Reading order follows a request: `auth` (which credential) and `keys` (whose, and what
//! it may), `route` and `host` (by path and by host), `model` (by name), `balance` (which
//! member), `retry` and `budget` (after a failure). `pattern` and `query` are what `route`
//! and `auth` lean on. All pure: values in, a value out; `now` and chance are arguments.

pub mod auth;
pub mod balance;
pub mod budget;
pub mod host;
pub mod keys;
pub mod model;
mod pattern;
pub mod query;
pub mod retry;
pub mod route;
