//! A fact that a task keeps up to date.

use super::task::Task;

/// A fact that a task keeps up to date.
pub(super) struct Observed<T> {
    pub(super) value: T,
    /// The task has spoken.
    pub(super) reported: bool,
    /// Its last word was a failure.
    failed: bool,
    _task: Task,
}

impl<T: Default> Observed<T> {
    pub(super) fn by(task: Task) -> Self {
        Self { value: T::default(), reported: false, failed: false, _task: task }
    }
}

impl<T> Observed<T> {
    /// Takes a new answer, or complains of the first failure in a row and keeps the old one. The
    /// first word of all changes something either way: somebody may wait for it.
    pub(super) fn learn(
        &mut self,
        found: Result<T, String>,
        same: impl Fn(&T, &T) -> bool,
        complaint: impl Fn(String) -> String,
        complaints: &mut Vec<String>,
        changed: &mut bool,
    ) {
        *changed |= !std::mem::replace(&mut self.reported, true);
        match found {
            Ok(value) => {
                self.failed = false;
                if !same(&value, &self.value) {
                    self.value = value;
                    *changed = true;
                }
            }
            Err(why) => {
                if !std::mem::replace(&mut self.failed, true) {
                    complaints.push(complaint(why));
                }
            }
        }
    }
}
