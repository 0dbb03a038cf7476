//! Routing by path: the best of all patterns that match.
//!
//! The patterns are a tree of segments. A search walks every branch that fits and keeps
//! the best rank found, which is what "with backtracking" means: `/api/users/admin` beside
//! `/api/:kind/new` must not swallow `/api/users/new`. Each node knows the best
//! rank below it, so a branch that cannot win is not entered; no node is entered
//! twice, so a search ends after at most as many steps as there are nodes, whatever the
//! path. Nothing is allocated.
//!
//! Grammar and rank are `pattern`'s. One thing to know of the regex crate: its matchers
//! share a scratch space; clone the table for each core, or cores wait for each other.

use std::sync::OnceLock;

use super::pattern::{Rank, Segment, parse};

pub use super::pattern::{PatternWhy, is_normal};

/// Path patterns, each with a value.
#[derive(Clone, Debug)]
pub struct PathTable<T> {
    root: Node,
    values: Vec<T>,
}

/// A pattern that is none, or none of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PatternFault {
    /// Its place among the rules.
    pub index: usize,
    /// What is wrong with it.
    pub why: PatternWhy,
}

impl<T> PathTable<T> {
    /// Builds the table from patterns in declared order.
    ///
    /// Errors: `PatternFault` with the first bad pattern; two patterns that match the same
    /// (names do not count) are one of them.
    pub fn new<P: AsRef<str>>(
        rules: impl IntoIterator<Item = (P, T)>,
    ) -> Result<PathTable<T>, PatternFault> {
        let mut table = PathTable { root: Node::default(), values: Vec::new() };
        for (index, (pattern, value)) in rules.into_iter().enumerate() {
            let fault = |why| PatternFault { index, why };
            let segments = parse(pattern.as_ref()).map_err(fault)?;
            let leaf = Leaf { rank: Rank::of(&segments, index as u32), value: index };
            table.root.insert(&segments, leaf).map_err(|twin| fault(PatternWhy::SameAs(twin)))?;
            table.values.push(value);
        }
        Ok(table)
    }

    /// Finds the value of the best pattern that matches.
    ///
    /// Shape: `path` is the raw path of the target, without query; anything that does
    /// not begin with `/` matches nothing.
    /// Source: rules §3, "Path patterns".
    pub fn find(&self, path: &[u8]) -> Option<&T> {
        self.find_index(path).map(|index| &self.values[index])
    }

    /// As `find`, but returns the place of the pattern among the rules.
    pub fn find_index(&self, path: &[u8]) -> Option<usize> {
        let (b'/', rest) = path.split_first()? else { return None };
        if self.is_empty() {
            return None;
        }
        let mut best = None;
        self.root.search(Some(rest), &mut best);
        best.map(|leaf| leaf.value)
    }

    /// Tells whether there is no pattern at all.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }
}

/// The end of a pattern.
#[derive(Clone, Copy, Debug)]
struct Leaf {
    rank: Rank,
    /// Index into `values`, and into the rules.
    value: usize,
}

impl Leaf {
    /// Tells whether this one wins over the best so far.
    fn beats(rank: Rank, best: &Option<Leaf>) -> bool {
        best.is_none_or(|best| rank < best.rank)
    }
}

#[derive(Clone, Debug, Default)]
struct Node {
    /// Literal children, sorted by their bytes.
    literals: Vec<(Box<[u8]>, Child)>,
    /// All others: regexes, `:name`, `*`. A tail is a child without children.
    wilds: Vec<(Segment, Child)>,
    /// The pattern that ends here.
    leaf: Option<Leaf>,
}

#[derive(Clone, Debug)]
struct Child {
    /// The best rank in `node` and below.
    best: Rank,
    node: Node,
}

impl Node {
    /// Hangs a pattern below this node, or tells the value of its twin.
    fn insert(&mut self, segments: &[Segment], leaf: Leaf) -> Result<(), usize> {
        let Some((segment, rest)) = segments.split_first() else {
            return match self.leaf {
                Some(twin) => Err(twin.value),
                None => {
                    self.leaf = Some(leaf);
                    Ok(())
                }
            };
        };
        let child = self.child(segment, leaf.rank);
        child.best = child.best.min(leaf.rank);
        child.node.insert(rest, leaf)
    }

    /// Returns the child for a segment; makes it where there is none.
    fn child(&mut self, segment: &Segment, rank: Rank) -> &mut Child {
        let new = || Child { best: rank, node: Node::default() };
        if let Segment::Literal(bytes) = segment {
            let at = match self.literals.binary_search_by(|(known, _)| known.cmp(bytes)) {
                Ok(at) => at,
                Err(at) => {
                    self.literals.insert(at, (bytes.clone(), new()));
                    at
                }
            };
            return &mut self.literals[at].1;
        }
        let at = match self.wilds.iter().position(|(known, _)| known.same(segment)) {
            Some(at) => at,
            None => {
                self.wilds.push((segment.clone(), new()));
                self.wilds.len() - 1
            }
        };
        &mut self.wilds[at].1
    }

    /// Walks every branch that fits and may still win; `rest` is what follows the last
    /// slash, `None` at the end of the path. The depth is at most `SEGMENTS_MAX`.
    fn search(&self, rest: Option<&[u8]>, best: &mut Option<Leaf>) {
        let Some(rest) = rest else {
            self.keep_leaf(best);
            self.search_tail(best);
            return;
        };
        let (segment, after) = match memchr::memchr(b'/', rest) {
            Some(at) => (&rest[..at], Some(&rest[at + 1..])),
            None => (rest, None),
        };
        // Literals first: they win most often and then spare the regexes.
        if let Ok(at) = self.literals.binary_search_by(|(known, _)| (**known).cmp(segment)) {
            let child = &self.literals[at].1;
            if Leaf::beats(child.best, best) {
                child.node.search(after, best);
            }
        }
        for (wild, child) in &self.wilds {
            if Leaf::beats(child.best, best) && wild.fits(segment) {
                match wild {
                    Segment::Tail => child.node.keep_leaf(best),
                    _ => child.node.search(after, best),
                }
            }
        }
    }

    /// A tail matches nothing at all, too: `/files/*` takes `/files`.
    fn search_tail(&self, best: &mut Option<Leaf>) {
        for (wild, child) in &self.wilds {
            if matches!(wild, Segment::Tail) {
                child.node.keep_leaf(best);
            }
        }
    }

    fn keep_leaf(&self, best: &mut Option<Leaf>) {
        if let Some(leaf) = self.leaf.filter(|leaf| Leaf::beats(leaf.rank, best)) {
            *best = Some(leaf);
        }
    }
}

/// Feeds arbitrary bytes as a path to a table with every kind of pattern, and compares
/// with a search that tries them all.
#[doc(hidden)]
pub fn fuzz(data: &[u8]) {
    const RULES: [&str; 8] =
        ["/a/*", "/a/:x/b", "/a/{x:[ab]+}", "/*/a", "/a/b", "/a//", "/:x/*/b/*", "/"];
    static TABLE: OnceLock<Option<PathTable<()>>> = OnceLock::new();
    let table = TABLE.get_or_init(|| PathTable::new(RULES.map(|rule| (rule, ()))).ok());
    let path = [b"/", data].concat();
    assert_eq!(table.as_ref().and_then(|t| t.find_index(&path)), slow_find(&RULES, &path));
}

/// The oracle: cuts the path, tries every pattern, ranks what matched.
fn slow_find<P: AsRef<str>>(rules: &[P], path: &[u8]) -> Option<usize> {
    let path: Vec<&[u8]> = path.strip_prefix(b"/")?.split(|byte| *byte == b'/').collect();
    let matching = rules.iter().enumerate().filter_map(|(index, rule)| {
        let segments = parse(rule.as_ref()).ok()?;
        let matched = match segments.split_last()? {
            (Segment::Tail, before) => {
                path.len() >= before.len() && before.iter().zip(&path).all(|(s, p)| s.fits(p))
            }
            _ => path.len() == segments.len() && segments.iter().zip(&path).all(|(s, p)| s.fits(p)),
        };
        matched.then(|| (Rank::of(&segments, index as u32), index))
    });
    matching.min().map(|(_, index)| index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Each case: a path, and the pattern that must take it ("" = none).
    fn check(rules: &[&'static str], cases: &[(&str, &str)]) {
        let table = PathTable::new(rules.iter().map(|rule| (*rule, *rule))).unwrap();
        for (path, expected) in cases {
            let found = table.find(path.as_bytes()).copied().unwrap_or_default();
            assert_eq!(found, *expected, "{path}");
        }
        // The order of declaration decides only between equals.
        let reversed = PathTable::new(rules.iter().rev().map(|rule| (*rule, *rule))).unwrap();
        for (path, expected) in cases {
            assert_eq!(reversed.find(path.as_bytes()).copied().unwrap_or_default(), *expected);
        }
    }

    #[test]
    fn routes_as_llmproxy_did() {
        check(
            &[
                "/api",
                "/users/:id",
                "/posts/:category/:id",
                "/files/*",
                "/api/*/docs",
                "/items/{id:[0-9]+}",
                "/codes/{code:[A-Z][A-Z][A-Z][0-9][0-9][0-9]}",
                "/api/:version/users/{id:[0-9]+}/profile",
            ],
            &[
                ("/api", "/api"),
                ("/nowhere", ""),
                ("/users/7", "/users/:id"),
                ("/users", ""),
                ("/users/7/x", ""),
                ("/posts/rust/7", "/posts/:category/:id"),
                ("/posts/rust", ""),
                ("/posts/rust/7/x", ""),
                ("/files/a/b", "/files/*"),
                ("/files", "/files/*"),
                ("/files/", "/files/*"),
                ("/filesystem", ""),
                ("/api/v1/docs", "/api/*/docs"),
                ("/api/v1/v2/docs", ""),
                ("/items/42", "/items/{id:[0-9]+}"),
                ("/items/abc", ""),
                ("/codes/ABC123", "/codes/{code:[A-Z][A-Z][A-Z][0-9][0-9][0-9]}"),
                ("/codes/abc123", ""),
                ("/codes/ABC12", ""),
                ("/api/v2/users/42/profile", "/api/:version/users/{id:[0-9]+}/profile"),
                ("/api/v2/users/bob/profile", ""),
            ],
        );
    }

    #[test]
    fn routes_where_llmproxy_failed() {
        check(
            &["/api/users/admin", "/api/users/:id", "/v1/*", "/v1/chat/completions"],
            &[
                ("/api/users/admin", "/api/users/admin"),
                ("/api/users/alice", "/api/users/:id"),
                ("/v1/completions", "/v1/*"),
                ("/v1/chat/completions", "/v1/chat/completions"),
                ("/v1/chat", "/v1/*"),
                ("/v1", "/v1/*"),
            ],
        );
    }

    #[test]
    fn comes_back_from_a_dead_end() {
        check(
            &["/a/b/c", "/a/:x/d", "/:x/b/e", "/*"],
            &[
                ("/a/b/c", "/a/b/c"),
                ("/a/b/d", "/a/:x/d"),
                ("/a/b/e", "/:x/b/e"),
                ("/a/b/f", "/*"),
                ("/", "/*"),
            ],
        );
    }

    #[test]
    fn more_literal_segments_win_even_on_a_later_branch() {
        check(&["/a/:x/:y", "/:a/b/c"], &[("/a/b/c", "/:a/b/c"), ("/a/b/d", "/a/:x/:y")]);
        check(&["/a/*", "/:x/b/c"], &[("/a/b/c", "/:x/b/c"), ("/a/b", "/a/*")]);
    }

    #[test]
    fn never_decodes() {
        check(
            &["/a/:x", "/a/b/c"],
            &[("/a/b%2Fc", "/a/:x"), ("/a%2Fb/c", ""), ("/%61/x", ""), ("/a/b/c", "/a/b/c")],
        );
    }

    #[test]
    fn a_wildcard_is_not_nothing() {
        check(&["/a/:x", "/b/*/c"], &[("/a/", ""), ("/b//c", ""), ("/b/x/c", "/b/*/c")]);
    }

    #[test]
    fn slashes_count() {
        check(&["/a", "/a/"], &[("/a", "/a"), ("/a/", "/a/"), ("/a//", ""), ("//a", "")]);
    }

    #[test]
    fn matches_nothing_but_absolute_paths() {
        check(&["/*"], &[("*", ""), ("", ""), ("a", "")]);
        let empty = PathTable::<()>::new([("/", ()); 0]).unwrap();
        assert!(empty.is_empty() && empty.find(b"/").is_none());
    }

    #[test]
    fn equals_go_to_the_first_declared() {
        let table = PathTable::new([("/:a/b/*", 0), ("/a/:b/*", 1)]).unwrap();
        assert_eq!(table.find(b"/a/b/c"), Some(&0));
    }

    #[test]
    fn takes_long_and_special_paths() {
        let long = format!("/{}", "x".repeat(2000));
        let table = PathTable::new([(long.as_str(), 1), ("/api/test/special!@#$%^&*()_+", 2)]);
        let table = table.unwrap();
        assert_eq!(table.find(long.as_bytes()), Some(&1));
        assert_eq!(table.find(b"/api/test/special!@#$%^&*()_+"), Some(&2));
    }

    #[test]
    fn refuses_duplicates_whatever_their_names() {
        let twins = [
            ["/a", "/a"],
            ["/u/:id", "/u/:name"],
            ["/{x:[0-9]+}", "/{y:[0-9]+}"],
            ["/f/*", "/f/*"],
        ];
        for [a, b] in twins {
            let fault = PathTable::new([("/other", 0), (a, 1), (b, 2)]).unwrap_err();
            assert_eq!(fault, PatternFault { index: 2, why: PatternWhy::SameAs(1) });
        }
        assert!(PathTable::new([("/u/:id", 0), ("/u/*", 1), ("/u/*/x", 2)]).is_ok());
    }

    #[test]
    fn names_the_bad_pattern() {
        let fault = PathTable::new([("/a", 0), ("b", 1)]).unwrap_err();
        assert_eq!(fault, PatternFault { index: 1, why: PatternWhy::NoSlash });
    }

    fn segment() -> impl Strategy<Value = &'static str> {
        prop::sample::select(vec!["a", "b", "", ":x", "*", "{x:[ab]+}", "{x:a.*}", "ab"])
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]

        #[test]
        fn agrees_with_trying_every_rule(
            rules in prop::collection::vec(prop::collection::vec(segment(), 1..5), 0..12),
            paths in prop::collection::vec("(/(a|b|ab|ba|)){1,5}", 1..12),
        ) {
            let mut kept: Vec<String> = Vec::new();
            for rule in rules {
                kept.push(format!("/{}", rule.join("/")));
                if PathTable::new(kept.iter().map(|rule| (rule, ()))).is_err() {
                    kept.pop();
                }
            }
            let table = PathTable::new(kept.iter().map(|rule| (rule, ()))).unwrap();
            for path in paths {
                let path = path.as_bytes();
                prop_assert_eq!(table.find_index(path), slow_find(&kept, path), "{:?}", kept);
            }
        }

        #[test]
        fn fuzz_holds(data in prop::collection::vec(
            prop_oneof![Just(b'/'), Just(b'a'), Just(b'b'), any::<u8>()], 0..40,
        )) {
            fuzz(&data);
        }
    }
}
