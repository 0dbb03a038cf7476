//! A task of the control thread that ends with its owner.

use tokio::task::JoinHandle;

/// A task that ends with its owner.
#[derive(Debug)]
pub struct Task(JoinHandle<()>);

impl Task {
    /// Owns a running task.
    #[must_use]
    pub fn of(handle: JoinHandle<()>) -> Self {
        Self(handle)
    }

    /// Whether it has ended.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.0.is_finished()
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}
