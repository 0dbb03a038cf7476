//! Keeps the edits upon a config in a file that is whole at every moment.
//!
//! ```text
//! write beside it → fsync → rename → fsync of the folder
//! ```
//! A process that is killed before the rename leaves the file as it was, one that is killed after it
//! leaves the new one; only then is the edit acknowledged. The file may hold credentials of upstreams
//! and is its owner's alone.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// The next content of a file, written beside it; dropping it undoes that.
#[derive(Debug)]
pub struct Staged {
    beside: PathBuf,
    place: PathBuf,
}

/// Writes the next content of a file beside it.
///
/// Errors: a line that names the file.
pub fn stage(place: &Path, text: &str) -> Result<Staged, String> {
    let mut name = place.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let beside = place.with_file_name(name);
    let write = || -> io::Result<()> {
        if let Some(folder) = place.parent() {
            fs::create_dir_all(folder)?;
        }
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(|why| format!("cannot keep edits in {}: {why}", beside.display()))?;
    Ok(Staged { beside, place: place.to_owned() })
}

impl Staged {
    /// Puts it in the place of the content before.
    ///
    /// Errors: a line that names the file.
    pub fn commit(self) -> Result<(), String> {
        let replace = || -> io::Result<()> {
            fs::rename(&self.beside, &self.place)?;
            match self.place.parent() {
                Some(folder) => File::open(folder)?.sync_all(),
                None => Ok(()),
            }
        };
        replace().map_err(|why| format!("cannot keep edits in {}: {why}", self.place.display()))
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // After a commit there is none.
        let _ = fs::remove_file(&self.beside);
    }
}
