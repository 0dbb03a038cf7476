//! Limits: how much a client may ask for.
//!
//! Reading order: `gcra` (a steady rate with a burst), `window` (requests a minute and a UTC
//! day), `tokens` (tokens a minute, paid afterwards: `passed` tells how many, with `token_size`
//! where nobody has said), `gate` (exchanges in flight), `key` (the
//! four of them for one key, all or nothing), `standing` (what the client is told), `lease` and
//! `shared` (a budget of several nodes), `client_ip` and `ip` (whose address it is, and its
//! rate), `tally` (what each of many holds of something common). All state is atomics that every core shares,
//! so a limit holds for the process and not for a core.
//!
//! Windows go by the wall's clock, all else by steady time (`base::clock`).

pub mod client_ip;
pub mod gate;
pub mod gcra;
pub mod ip;
pub mod key;
pub mod lease;
pub mod passed;
pub mod shared;
pub mod standing;
pub mod tally;
pub mod token_size;
pub mod tokens;
pub mod window;
