//! How the control thread writes lines for the operator.

use std::sync::Arc;

/// Writes one line, without its line end, for the operator.
pub type Say = Arc<dyn Fn(&str) + Send + Sync>;
