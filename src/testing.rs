//! What the tests, benches and fuzz targets of this repository reach, by the paths that it has
//! inside the crate.
//!
//! Item by item and never a whole module: all other modules are private, so the compiler tells
//! what nobody calls any more. A name that only tests use stands here or goes.
#![allow(missing_docs)]

pub mod base {
    pub mod clock {
        pub use crate::base::clock::{AtomicMoment, Moment, Timestamp, WallTime, seconds_up};
    }
    pub mod listener_id {
        pub use crate::base::listener_id::ListenerId;
    }
    pub mod rng {
        pub use crate::base::rng::Rng;
    }
    pub mod units {
        pub use crate::base::units::fuzz;
    }
}
pub mod config {
    pub use crate::config::{Config, Loaded, Outside, Report, Sources, fuzz, load};
}
pub mod control {
    pub use crate::control::Options;
    pub mod entry {
        pub use crate::control::entry::LEAVE_MAX;
    }
    pub mod reconciler {
        pub use crate::control::reconciler::FIRST_WAIT;
    }
    pub mod redis {
        pub use crate::control::redis::CALL_TIMEOUT;
    }
    pub mod reload {
        pub use crate::control::reload::{FileText, ReloadHooks, Reloaded};
    }
}
pub mod error {
    pub use crate::error::{Kind, RETRY_AFTER_S_MAX, RetryClass};
}
pub mod http {
    pub mod fields {
        pub use crate::http::fields::fuzz;
    }
    pub mod head {
        pub use crate::http::head::{RequestHead, ResponseHead};
    }
    pub mod method {
        pub use crate::http::method::Method;
    }
    pub mod path {
        pub use crate::http::path::fuzz;
    }
}
pub mod http1 {
    pub mod body {
        pub use crate::http1::body::{BodyReader, drain_data, fuzz};
    }
    pub mod connect {
        pub use crate::http1::connect::fuzz;
    }
    pub mod encode {
        pub use crate::http1::encode::{chunk, copy_request_fields, last_chunk};
    }
    pub mod framing {
        pub use crate::http1::framing::{Framing, fuzz, request_framing, response_framing};
    }
    pub mod parse {
        pub use crate::http1::parse::{HeadLimits, Parse, fuzz, parse_request, parse_response};
    }
    pub mod reparse {
        pub use crate::http1::reparse::fuzz;
    }
}
pub mod http2 {
    pub mod flood {
        pub use crate::http2::flood::fuzz;
    }
    pub mod fragment {
        pub use crate::http2::fragment::fuzz;
    }
    pub mod outgoing {
        pub use crate::http2::outgoing::fuzz;
    }
    pub mod request {
        pub use crate::http2::request::fuzz;
    }
    pub mod response {
        pub use crate::http2::response::fuzz;
    }
    pub mod trailers {
        pub use crate::http2::trailers::fuzz;
    }
}
pub mod llm {
    pub mod content {
        pub use crate::llm::content::fuzz;
    }
    pub mod messages {
        pub use crate::llm::messages::fuzz;
    }
    pub mod meter {
        pub use crate::llm::meter::fuzz;
    }
    pub mod multipart {
        pub use crate::llm::multipart::fuzz;
    }
    pub mod path {
        pub use crate::llm::path::fuzz;
    }
    pub mod scan {
        pub use crate::llm::scan::{ModelScan, fuzz};
    }
    pub mod sse {
        pub use crate::llm::sse::fuzz;
    }
    pub mod usage {
        pub use crate::llm::usage::{BodyKind, UsageTap, fuzz};
    }
}
pub mod load {
    pub use crate::load::{load_sources, load_text, read_sources};
}
pub mod net {
    pub mod dial {
        pub use crate::net::dial::Address;
    }
    pub mod handover_socket {
        pub use crate::net::handover_socket::{Channel, ControlSocket, Name, Received, file_of};
    }
    pub mod sys {
        pub use crate::net::sys::wall_time;
    }
    pub mod tls {
        pub use crate::net::tls::{Store, client_name, provider};
    }
}
pub mod policy {
    pub mod balance {
        pub use crate::policy::balance::{Member, PickState, Strategy, Tried, pick};
    }
    pub mod breaker {
        pub use crate::policy::breaker::{
            Breaker, BreakerPolicy, CallResult, Entry, Sign, State, StateName,
        };
    }
    pub mod budget {
        pub use crate::policy::budget::{MILLIS_PER_SECOND, RetryBudget};
    }
    pub mod ewma {
        pub use crate::policy::ewma::Measures;
    }
    pub mod health {
        pub use crate::policy::health::HealthState;
    }
    pub mod host {
        pub use crate::policy::host::HostTable;
    }
    pub mod keys {
        pub use crate::policy::keys::{Key, KeyDigest, KeyTable, ModelRights};
    }
    pub mod limit {
        pub mod gcra {
            pub use crate::policy::limit::gcra::Pace;
        }
        pub mod key {
            pub use crate::policy::limit::key::{KeyRules, KeyState, Over};
        }
        pub mod shared {
            pub use crate::policy::limit::shared::Budget;
        }
        pub mod window {
            pub use crate::policy::limit::window::Quota;
        }
    }
    pub mod model {
        pub use crate::policy::model::{Force, ModelEntry, ModelNames, ModelTable};
    }
    pub mod query {
        pub use crate::policy::query::fuzz;
    }
    pub mod queue {
        pub use crate::policy::queue::{Queue, RETRY_AFTER_S_MAX, Share};
    }
    pub mod retry {
        pub use crate::policy::retry::{Attempt, Failure, RetryDecision, RetryOn, RetryPolicy};
    }
    pub mod route {
        pub use crate::policy::route::{PathTable, fuzz};
    }
}
pub mod proxy {
    pub mod admit {
        pub use crate::proxy::admit::{Admitted, admit};
    }
    pub mod compile {
        pub use crate::proxy::compile::compile;
    }
    pub mod core {
        pub use crate::proxy::core::Mailboxes;
    }
    pub mod hold {
        pub use crate::proxy::hold::Scanner;
    }
    pub mod plan {
        pub use crate::proxy::plan::{PathPlan, Plan};
    }
    pub mod route {
        pub use crate::proxy::route::{by_head, finish};
    }
}
pub mod server {
    pub use crate::server::running::{Options, Server};
    pub use crate::server::start::{Started, start, start_with};
    pub mod handover {
        pub use crate::server::handover::Meeting;
        pub use crate::server::handover::message::{Message, Passed, Role};
    }
    pub mod listeners {
        pub use crate::server::listeners::Applied;
    }
}
pub mod telemetry {
    pub mod access {
        pub use crate::telemetry::access::write_line;
    }
    pub mod counters {
        pub use crate::telemetry::counters::Counters;
    }
    pub mod finished {
        pub use crate::telemetry::finished::Finished;
    }
    pub mod outcome {
        pub use crate::telemetry::outcome::{EndedBy, Outcome, RouteKind};
    }
}
pub mod upstream {
    pub mod registry {
        pub use crate::upstream::registry::Registry;
    }
    pub mod state {
        pub use crate::upstream::state::{Lease, UpstreamState};
    }
    pub mod wait_queue {
        pub use crate::upstream::wait_queue::{
            Accepts, GroupQueue, Share, WaitQueue, WaitSlot, Wake,
        };
    }
}
