//! tokenring: the proxy that stands in front of GPUs.

pub mod error;
pub mod base;
pub mod http;
pub mod http1;
pub mod llm;
pub mod policy;
pub mod telemetry;
pub mod config;
pub mod net;
pub mod upstream;
pub mod proxy;
pub mod control;
