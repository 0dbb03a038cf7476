//! tokenring: the proxy that stands in front of GPUs.

pub mod base;
pub mod config;
pub mod control;
pub mod http;
pub mod http1;
pub mod llm;
pub mod net;
pub mod policy;
pub mod proxy;
pub mod telemetry;
pub mod upstream;
