//! Where the config meets the environment, the file system and the clock; the only place.

use std::fmt;
use std::path::Path;

use crate::config::{self, Loaded, Outside, Overlay, Report, Sources};
use crate::control::reload::FileText;
use crate::net::sys::unix_s;

/// Where the config is looked for when `-c` is not given.
pub const CONFIG_PATH: &str = "tokenring.toml";

/// Reads and checks a config file, with this process's environment and files.
///
/// Errors: a report; of a file that cannot be read, one whose only message says why.
pub fn load(path: &Path) -> Result<Loaded, LoadFault> {
    let shown = path.display().to_string();
    let text = std::fs::read_to_string(path)
        .map_err(|why| LoadFault::Unreadable(format!("{shown}: {why}\n")))?;
    load_text(&shown, &text).map_err(|report| LoadFault::Refused(Box::new(report)))
}

/// Reads a config file and, where it says that edits are kept, those upon it.
///
/// Errors: as `load`, without any check of what the file says.
pub fn read_sources(path: &Path) -> Result<Sources, LoadFault> {
    let FileText { name, text } = read_file(path)?;
    let kept = config::kept_edits(&text, &outside());
    let sources = Sources::new(name, text);
    let Some(place) = kept else { return Ok(sources) };
    let amiss = |why: String| LoadFault::Unreadable(format!("{}: {why}\n", place.display()));
    let overlay = match std::fs::read_to_string(&place) {
        Ok(text) => Overlay::parse(&text).map_err(amiss)?,
        Err(why) if why.kind() == std::io::ErrorKind::NotFound => return Ok(sources),
        Err(why) => return Err(amiss(why.to_string())),
    };
    Ok(sources.with(overlay))
}

/// Reads a config file alone.
///
/// Errors: it cannot be read.
pub fn read_file(path: &Path) -> Result<FileText, LoadFault> {
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path)
        .map_err(|why| LoadFault::Unreadable(format!("{name}: {why}\n")))?;
    Ok(FileText { name, text })
}

/// Checks a config with the edits upon it, with this process's environment and files.
pub fn load_sources(sources: &Sources) -> Result<Loaded, Box<Report>> {
    config::load_sources(sources, &outside()).map_err(Box::new)
}

/// Checks the text of a config, with this process's environment and files.
///
/// Shape: `shown` is its name in complaints.
pub fn load_text(shown: &str, text: &str) -> Result<Loaded, Report> {
    config::load(shown, text, &outside())
}

/// This process's environment, files and clock.
pub(crate) fn outside() -> Outside<'static> {
    Outside {
        env: &|name| std::env::var(name).ok(),
        read: &|path| std::fs::read_to_string(path).map_err(|why| why.to_string()),
        now_s: unix_s(),
    }
}

/// Why there is no config.
#[derive(Debug)]
pub enum LoadFault {
    /// The file could not be read; the text says why.
    Unreadable(String),
    /// It was read and refused.
    Refused(Box<Report>),
}

impl fmt::Display for LoadFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(why) => f.write_str(why),
            Self::Refused(report) => report.fmt(f),
        }
    }
}

impl std::error::Error for LoadFault {}
