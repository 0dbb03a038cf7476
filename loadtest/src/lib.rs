//! Simulated model servers and a load generator.
