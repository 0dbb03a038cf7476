//! Ids: indexes into the lists of one `Config`, and where in the file a rule stands.

/// Index of an upstream in `Config::upstreams`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UpstreamId(pub u16);

/// Index of a group in `Config::groups`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupId(pub u16);

/// Index of a client key in `Config::keys`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(pub u16);

/// Index of a listener in `Config::listeners`; `base::listener_id` has what outlives a config.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ListenerIndex(pub u16);

/// Where in the file a rule stands, for `explain` and the start-up block.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FilePosition {
    /// Path of the key, such as `listener.main.route[3]`.
    pub path: Box<str>,
    /// Line in the file, 1-based; 0 when no file says it.
    pub line: u32,
    /// Column in characters, 1-based; 0 when no file says it.
    pub column: u32,
}
