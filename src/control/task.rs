//! A task of the control thread that is aborted when its owner is dropped.

use tokio::task::JoinHandle;

/// A running task; dropping this aborts it at its next await.
#[derive(Debug)]
pub struct Task(JoinHandle<()>);

impl Task {
    /// Takes ownership of a running task.
    #[must_use]
    pub fn of(handle: JoinHandle<()>) -> Self {
        Self(handle)
    }

    /// Whether the task has ended by itself or by a panic.
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
