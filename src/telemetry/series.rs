//! A core's counts by label: one row of numbers for each combination of labels that occurs.
//!
//! Only the core writes its rows, by plain loads and stores; a scrape reads them at any time, and
//! neither waits for the other. Rows are found by a hash of numbers, never of names. A new
//! combination costs an allocation once; `ROWS_MAX` bounds them, and what comes after that is
//! counted as `other`. Rows of what has gone from the config are used again: a row carries a
//! generation, odd while it is in use, by which a reader sees that it has changed under its eyes (a
//! seqlock).
//!
//! Source: H.-J. Boehm, "Can seqlocks get along with programming language memory models?", 2012.

use std::hash::{Hash, Hasher};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, fence};
use std::sync::{Arc, OnceLock};

use foldhash::HashMap;

use super::histogram::{self, Bounds};
use super::labels::{LabelId, LabelKind};

/// Most rows of a core.
pub const ROWS_MAX: usize = CHUNKS * CHUNK_ROWS;
const CHUNKS: usize = 512;
const CHUNK_ROWS: usize = 256;
/// Rows kept free for combinations of which every label is `other`.
const ROWS_RESERVED: usize = 64;

/// What a row counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RowKind {
    /// Requests at a listener: by method, refused for a rate, durations.
    Listener,
    /// Requests of a listener that were routed to a group.
    RouteMatch,
    /// Exchanges of a listener that ended badly: an error and a status, as plain numbers.
    ExchangeError,
    /// Attempts of a group at an upstream, and their durations.
    Attempt,
    /// Attempts of a group at an upstream that failed: an error, as a plain number.
    AttemptError,
    /// Tokens of a model, an upstream and a key: of prompts, of completions, from a cache.
    Tokens,
    /// Times and sizes of a model.
    Model,
    /// What answers of a model and an upstream would have taken after their clients left.
    Saved,
}

const KINDS: usize = RowKind::Saved as usize + 1;

/// Methods that are told apart; those of `http::method::Method`.
pub const METHODS: usize = 10;
/// Where a listener's refusals for a rate stand in its row.
pub const RATE_LIMITED: usize = METHODS;
/// Where a listener's durations begin.
pub const DURATION: usize = RATE_LIMITED + 1;
/// Where the durations of attempts begin, behind their number.
pub const ATTEMPT_DURATION: usize = 1;
/// Where a model's times to the first token begin.
pub const FIRST_TOKEN: usize = 0;
/// Where a model's times between tokens begin.
pub const BETWEEN_TOKENS: usize = FIRST_TOKEN + histogram::WIDTH;
/// Where a model's prompts, in tokens, begin.
pub const INPUT: usize = BETWEEN_TOKENS + histogram::WIDTH;
/// Where a model's completions, in tokens, begin.
pub const OUTPUT: usize = INPUT + histogram::WIDTH;
const WIDTH_MAX: usize = OUTPUT + histogram::WIDTH;

impl RowKind {
    /// Every kind, in the order of their numbers.
    pub const ALL: [RowKind; KINDS] = [
        RowKind::Listener,
        RowKind::RouteMatch,
        RowKind::ExchangeError,
        RowKind::Attempt,
        RowKind::AttemptError,
        RowKind::Tokens,
        RowKind::Model,
        RowKind::Saved,
    ];

    /// A word for it, the same in all versions.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            RowKind::Listener => "listener",
            RowKind::RouteMatch => "route_match",
            RowKind::ExchangeError => "exchange_error",
            RowKind::Attempt => "attempt",
            RowKind::AttemptError => "attempt_error",
            RowKind::Tokens => "tokens",
            RowKind::Model => "model",
            RowKind::Saved => "saved",
        }
    }

    /// What the names in its labels stand for.
    #[must_use]
    pub fn label_kinds(self) -> &'static [LabelKind] {
        use LabelKind::{Group, Key, Listener, Model, Upstream};
        match self {
            RowKind::Listener | RowKind::ExchangeError => &[Listener],
            RowKind::RouteMatch => &[Listener, Group],
            RowKind::Attempt | RowKind::AttemptError => &[Group, Upstream],
            RowKind::Tokens => &[Model, Upstream, Key],
            RowKind::Model => &[Model],
            RowKind::Saved => &[Model, Upstream],
        }
    }

    /// Which of its labels is the number of an error; `None` = none is.
    #[must_use]
    pub fn error_label(self) -> Option<usize> {
        matches!(self, RowKind::ExchangeError | RowKind::AttemptError).then(|| self.names())
    }

    /// How many numbers a row has.
    #[must_use]
    pub fn width(self) -> usize {
        match self {
            RowKind::Listener => DURATION + histogram::WIDTH,
            RowKind::RouteMatch
            | RowKind::ExchangeError
            | RowKind::AttemptError
            | RowKind::Saved => 1,
            RowKind::Attempt => ATTEMPT_DURATION + histogram::WIDTH,
            RowKind::Tokens => 3,
            RowKind::Model => WIDTH_MAX,
        }
    }

    /// How many of a row's labels are numbers of names; others behind them are plain numbers.
    #[must_use]
    pub fn names(self) -> usize {
        self.label_kinds().len()
    }
}

/// Which row: its kind and labels; labels that the kind does not have are 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowId {
    /// What it counts.
    pub kind: RowKind,
    /// Its labels.
    pub labels: [u32; 3],
}

impl RowId {
    /// A row whose labels are all names.
    #[must_use]
    pub fn of<const N: usize>(kind: RowKind, labels: [LabelId; N]) -> Self {
        let mut numbers = [0; 3];
        for (number, label) in numbers.iter_mut().zip(labels) {
            *number = label.0;
        }
        Self { kind, labels: numbers }
    }

    /// The labels that are numbers of names.
    pub fn names(&self) -> impl Iterator<Item = LabelId> {
        self.labels.into_iter().take(self.kind.names()).map(LabelId)
    }

    /// The row of those that have none of their own.
    fn other(mut self) -> Self {
        for label in self.labels.iter_mut().take(self.kind.names()) {
            *label = LabelId::OTHER.0;
        }
        self
    }
}

impl Hash for RowId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let [a, b, c] = self.labels;
        state.write_u64(u64::from(a) << 32 | self.kind as u64);
        state.write_u64(u64::from(b) << 32 | u64::from(c));
    }
}

/// One row.
#[derive(Debug)]
pub struct Row {
    kind: RowKind,
    labels: [AtomicU32; 3],
    /// Odd = the row is in use.
    generation: AtomicU64,
    values: Box<[AtomicU64]>,
}

impl Row {
    fn new(id: RowId) -> Self {
        Self {
            kind: id.kind,
            labels: id.labels.map(AtomicU32::new),
            generation: AtomicU64::new(1),
            values: (0..id.kind.width()).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Adds to one number; called by the core that owns the row.
    pub fn add(&self, at: usize, count: u64) {
        if let Some(value) = self.values.get(at) {
            // Nobody else writes: no read-modify-write is needed.
            value.store(value.load(Relaxed).saturating_add(count), Relaxed);
        }
    }

    /// Adds a value to the histogram that begins at `at`, whose buckets have these bounds.
    pub fn observe(&self, at: usize, bounds: &Bounds, value: u64) {
        self.add(at + bounds.bucket_of(value), 1);
        self.add(at + histogram::SUM, value);
    }

    /// The median of the histogram that begins at `at`, whose buckets have these bounds.
    #[must_use]
    pub fn median(&self, at: usize, bounds: &Bounds) -> Option<u64> {
        let mut buckets = [0; histogram::SUM];
        for (copy, value) in buckets.iter_mut().zip(self.values.get(at..)?) {
            *copy = value.load(Relaxed);
        }
        bounds.median(&buckets)
    }

    fn free(&self) {
        self.generation.store(self.generation.load(Relaxed) + 1, Relaxed);
        // What follows must not be seen before the generation is.
        fence(Release);
    }

    fn use_again(&self, id: RowId) {
        for (kept, label) in self.labels.iter().zip(id.labels) {
            kept.store(label, Relaxed);
        }
        self.values.iter().for_each(|value| value.store(0, Relaxed));
        self.generation.store(self.generation.load(Relaxed) + 1, Release);
    }

    /// Copies the row out; `None` when it is free, or was used for something else meanwhile.
    fn read(&self, values: &mut [u64; WIDTH_MAX]) -> Option<RowId> {
        let generation = self.generation.load(Acquire);
        if generation.is_multiple_of(2) {
            return None;
        }
        for (copy, value) in values.iter_mut().zip(&self.values) {
            *copy = value.load(Relaxed);
        }
        let labels = self.labels.each_ref().map(|label| label.load(Relaxed));
        fence(Acquire);
        let same = self.generation.load(Relaxed) == generation;
        same.then_some(RowId { kind: self.kind, labels })
    }
}

type Chunk = Box<[OnceLock<Arc<Row>>]>;

/// The rows of one core as others see them: a list that only grows.
#[derive(Debug)]
pub struct CoreRows {
    chunks: Box<[OnceLock<Chunk>]>,
    len: AtomicUsize,
}

impl Default for CoreRows {
    fn default() -> Self {
        Self { chunks: (0..CHUNKS).map(|_| OnceLock::new()).collect(), len: AtomicUsize::new(0) }
    }
}

impl CoreRows {
    fn push(&self, row: Arc<Row>) {
        let at = self.len.load(Relaxed);
        let Some(chunk) = self.chunks.get(at / CHUNK_ROWS) else { return };
        let chunk = chunk.get_or_init(|| (0..CHUNK_ROWS).map(|_| OnceLock::new()).collect());
        if chunk[at % CHUNK_ROWS].set(row).is_ok() {
            self.len.store(at + 1, Release);
        }
    }

    fn rows(&self) -> impl Iterator<Item = &Row> {
        let chunks = self.chunks.iter().map_while(OnceLock::get);
        let rows = chunks.flat_map(|chunk| chunk.iter()).take(self.len.load(Acquire));
        rows.filter_map(OnceLock::get).map(|row| &**row)
    }
}

/// The writing end of a core's rows.
#[derive(Debug)]
pub struct RowWriter {
    shared: Arc<CoreRows>,
    known: HashMap<RowId, Arc<Row>>,
    free: [Vec<Arc<Row>>; KINDS],
}

impl RowWriter {
    /// Writes rows that are read through `shared`.
    #[must_use]
    pub fn new(shared: Arc<CoreRows>) -> Self {
        Self { shared, known: HashMap::default(), free: Default::default() }
    }

    /// Writes to a row; a row that is new is made.
    pub fn with(&mut self, id: RowId, write: impl FnOnce(&Row)) {
        match self.known.get(&id) {
            Some(row) => write(row),
            None => write(&self.make(id)),
        }
    }

    /// The row, made if it is new. It is this one until the next `sweep`.
    pub fn row(&mut self, id: RowId) -> Arc<Row> {
        match self.known.get(&id) {
            Some(row) => row.clone(),
            None => self.make(id),
        }
    }

    #[cold]
    fn make(&mut self, wanted: RowId) -> Arc<Row> {
        let mut id = wanted;
        let free = &mut self.free[id.kind as usize];
        let len = self.shared.len.load(Relaxed);
        let row = if let Some(row) = free.pop() {
            row.use_again(id);
            row
        } else {
            if len + ROWS_RESERVED >= ROWS_MAX {
                id = wanted.other();
                if let Some(row) = self.known.get(&id) {
                    return row.clone();
                }
            }
            let row = Arc::new(Row::new(id));
            self.shared.push(row.clone());
            row
        };
        self.known.insert(id, row.clone());
        row
    }

    /// Frees the rows of which a name is gone.
    pub fn sweep(&mut self, is_there: impl Fn(LabelId) -> bool) {
        let free = &mut self.free;
        self.known.retain(|id, row| {
            let stays = id.names().all(&is_there);
            if !stays {
                row.free();
                free[id.kind as usize].push(row.clone());
            }
            stays
        });
    }
}

/// The rows of all cores, added up.
#[derive(Debug, Default)]
pub struct RowSums {
    at: HashMap<RowId, usize>,
    values: Vec<u64>,
}

impl RowSums {
    /// Adds the rows of a core.
    pub fn add(&mut self, core: &CoreRows) {
        let mut copy = [0; WIDTH_MAX];
        for row in core.rows() {
            let Some(id) = row.read(&mut copy) else { continue };
            self.add_row(id, &copy[..id.kind.width()]);
        }
    }

    /// Adds one row's numbers, as many as its kind has.
    pub fn add_row(&mut self, id: RowId, values: &[u64]) {
        match self.at.get(&id) {
            Some(&at) => {
                for (sum, value) in self.values[at..].iter_mut().zip(values) {
                    *sum = sum.saturating_add(*value);
                }
            }
            None => {
                self.at.insert(id, self.values.len());
                self.values.extend_from_slice(values);
            }
        }
    }

    /// Adds all of another one.
    pub fn merge(&mut self, other: &RowSums) {
        for (id, &at) in &other.at {
            self.add_row(*id, &other.values[at..at + id.kind.width()]);
        }
    }

    /// All rows with their numbers, in no order.
    pub fn all(&self) -> impl Iterator<Item = (RowId, &[u64])> {
        self.at.iter().map(|(id, &at)| (*id, &self.values[at..at + id.kind.width()]))
    }

    /// The rows of each kind with their numbers, ordered by their labels.
    #[must_use]
    pub fn by_kind(&self) -> [Vec<(RowId, &[u64])>; KINDS] {
        let mut all: [Vec<(RowId, &[u64])>; KINDS] = Default::default();
        for (id, &at) in &self.at {
            all[id.kind as usize].push((*id, &self.values[at..at + id.kind.width()]));
        }
        for rows in &mut all {
            rows.sort_unstable_by_key(|(id, _)| id.labels);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(labels: [u32; 3]) -> RowId {
        RowId { kind: RowKind::Tokens, labels }
    }

    fn sums(cores: &[&CoreRows]) -> Vec<([u32; 3], Vec<u64>)> {
        let mut sums = RowSums::default();
        cores.iter().for_each(|core| sums.add(core));
        let rows = &sums.by_kind()[RowKind::Tokens as usize];
        rows.iter().map(|(id, values)| (id.labels, values.to_vec())).collect()
    }

    #[test]
    fn rows_of_all_cores_are_added_up() {
        let cores: [Arc<CoreRows>; 2] = Default::default();
        for (at, core) in cores.iter().enumerate() {
            let mut writer = RowWriter::new(core.clone());
            writer.with(id([2, 3, 0]), |row| row.add(1, 5));
            writer.with(id([2, 3, 0]), |row| row.add(1, at as u64));
            writer.with(id([9, 3, 0]), |row| row.add(at, 7));
        }
        let told = sums(&[&cores[0], &cores[1]]);
        assert_eq!(told, [([2, 3, 0], vec![0, 11, 0]), ([9, 3, 0], vec![7, 7, 0])]);
    }

    #[test]
    fn rows_of_what_has_gone_are_used_again() {
        let core = Arc::new(CoreRows::default());
        let mut writer = RowWriter::new(core.clone());
        for label in 2..500 {
            writer.with(id([label, 0, 0]), |row| row.add(0, 3));
            writer.sweep(|name| name == LabelId::NONE);
            assert_eq!(sums(&[&core]), []);
        }
        writer.with(id([7, 8, 0]), |row| row.add(2, 1));
        assert_eq!(sums(&[&core]), [([7, 8, 0], vec![0, 0, 1])]);
        assert_eq!(core.len.load(Relaxed), 1);
    }

    #[test]
    fn rows_beyond_rows_max_are_other() {
        let core = Arc::new(CoreRows::default());
        let mut writer = RowWriter::new(core.clone());
        let most = ROWS_MAX as u32 + 1000;
        for label in 0..most {
            writer.with(id([label + 2, 2, 2]), |row| row.add(0, 1));
        }
        let told = sums(&[&core]);
        assert!(told.len() <= ROWS_MAX);
        assert_eq!(told.iter().map(|(_, values)| values[0]).sum::<u64>(), u64::from(most));
        let other = told.iter().find(|(labels, _)| *labels == [LabelId::OTHER.0; 3]).unwrap();
        assert!(other.1[0] >= 1000);
    }

    #[test]
    fn a_reader_never_sees_numbers_of_one_row_under_the_labels_of_another() {
        let core = Arc::new(CoreRows::default());
        let shared = core.clone();
        let done = Arc::new(AtomicU64::new(0));
        let stop = done.clone();
        let reader = std::thread::spawn(move || {
            let mut seen = 0;
            while stop.load(Relaxed) == 0 || seen == 0 {
                for (labels, values) in sums(&[&shared]) {
                    // Each row holds its own label, or nothing yet.
                    assert!(values.iter().all(|v| [0, u64::from(labels[0])].contains(v)));
                    seen += 1;
                }
            }
        });
        let mut writer = RowWriter::new(core);
        for label in 2..20_000 {
            writer.sweep(|_| false);
            writer.with(id([label, 0, 0]), |row| (0..3).for_each(|at| row.add(at, label.into())));
        }
        done.store(1, Relaxed);
        reader.join().unwrap();
    }
}
