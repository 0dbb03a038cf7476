//! The config in force as it was said, for who shows it and who edits it.
//!
//! A reload or an edit replaces all of it at once, when it is in force on the cores; who reads in the
//! meantime sees the one before. The version is a digest of what was said, so the same documents have
//! the same version in every process.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use crate::config::{Config, Sources, overlay_place};

/// One state of the config.
#[derive(Debug)]
pub struct Snapshot {
    /// What was said.
    pub sources: Sources,
    /// What is meant by it: what was discovered is not in it.
    pub config: Config,
    /// Tells it from other states.
    pub version: String,
}

impl Snapshot {
    /// That state of the config.
    #[must_use]
    pub fn new(sources: Sources, config: Config) -> Self {
        let version = sources.version();
        Self { sources, config, version }
    }

    /// Where its edits are kept; `None` = in memory alone.
    #[must_use]
    pub fn place(&self) -> Option<PathBuf> {
        place(&self.config)
    }
}

/// Where the edits upon a config are kept; `None` = in memory alone.
#[must_use]
pub fn place(config: &Config) -> Option<PathBuf> {
    overlay_place(&config.process, config.admin.as_ref())
}

/// The state in force; clones show the same.
#[derive(Clone, Debug, Default)]
pub struct Documents(Arc<RwLock<Option<Arc<Snapshot>>>>);

impl Documents {
    /// The state in force; `None` in a process whose config no document says.
    #[must_use]
    pub fn now(&self) -> Option<Arc<Snapshot>> {
        // Stored whole: a thread that panicked meanwhile left nothing half done.
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Says that another state is in force, and gives it back.
    pub fn set(&self, snapshot: Snapshot) -> Arc<Snapshot> {
        let snapshot = Arc::new(snapshot);
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(snapshot.clone());
        snapshot
    }
}
