//! The plan in force, where all cores find it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::plan::Plan;

/// Where a new plan is put and each core finds it.
///
/// A core compares the version first, so that it takes the lock once per plan and no more.
pub struct PlanSlot {
    plan: Mutex<Arc<Plan>>,
    version: AtomicU64,
}

impl PlanSlot {
    /// A slot with the first plan.
    #[must_use]
    pub fn new(plan: Plan) -> Self {
        Self { plan: Mutex::new(Arc::new(plan)), version: AtomicU64::new(0) }
    }

    /// The plan in force and its version.
    #[must_use]
    pub fn plan(&self) -> (Arc<Plan>, u64) {
        // A plan is stored whole: a thread that panicked while it held the lock left nothing half
        // done.
        let plan = self.plan.lock().unwrap_or_else(PoisonError::into_inner);
        (plan.clone(), self.version.load(Ordering::Acquire))
    }

    /// The version of the plan in force.
    #[must_use]
    #[inline]
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Puts another plan in its place.
    pub fn put(&self, plan: Plan) {
        let mut slot = self.plan.lock().unwrap_or_else(PoisonError::into_inner);
        *slot = Arc::new(plan);
        self.version.fetch_add(1, Ordering::Release);
    }
}
