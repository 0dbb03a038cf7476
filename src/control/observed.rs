//! A fact that a task keeps up to date: its last good value, and whether the task has reported.

use super::task::Task;

/// A fact, and the task that keeps it up to date and ends with it.
pub(super) struct Observed<T> {
    pub(super) value: T,
    /// The task has reported at least once, if only a failure.
    pub(super) reported: bool,
    /// Its last report was a failure.
    pub(super) failed: bool,
    _task: Task,
}

impl<T: Default> Observed<T> {
    pub(super) fn by(task: Task) -> Self {
        Self { value: T::default(), reported: false, failed: false, _task: task }
    }
}

impl<T> Observed<T> {
    /// Takes a report of the task. A value replaces the old one; a failure keeps it, and the first
    /// failure in a row is added to `complaints`.
    ///
    /// Shape: sets `changed` when the value is not the `same`, and at the first report of all, even
    /// a failure: others may wait for `reported`.
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
