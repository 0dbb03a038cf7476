//! How the control thread speaks to the operator.

use std::sync::Arc;

/// Tells the operator a line.
pub type Say = Arc<dyn Fn(&str) + Send + Sync>;
