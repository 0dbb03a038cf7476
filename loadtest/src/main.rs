//! `loadtest`: simulated model servers and a load generator, on the command line.

fn main() {}
