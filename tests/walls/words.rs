//! Words that meant several things, or were nowhere else, stay out.
//!
//! `src/lib.rs` has the words that took their place. Comments are not looked at: many of these
//! are good English.

use super::Source;

/// Names that are not to come back, and where they mean what everybody means by them.
const RETIRED: &[(&str, &[&str])] = &[
    ("Bell", &[]),
    ("Bells", &[]),
    ("Board", &[]),
    ("Desk", &[]),
    ("Door", &[]),
    ("Fleet", &[]),
    ("Frame", &["src/http2/", "src/http1/smuggling.rs"]),
    ("Gate", &["src/policy/"]),
    ("Judge", &[]),
    ("Known", &[]),
    ("Lead", &[]),
    // A list of elements that know each other.
    ("Links", &["src/policy/queue/"]),
    ("Missed", &[]),
    ("NoTls", &[]),
    ("NoWay", &[]),
    ("Opening", &[]),
    ("OrFrame", &[]),
    ("Place", &[]),
    ("Ringer", &[]),
    ("Room", &[]),
    ("Seat", &[]),
    ("Seats", &[]),
    ("Silence", &[]),
    ("Ticket", &["src/net/tls/"]),
    ("Told", &[]),
    ("Turn", &[]),
    ("UpstreamCut", &[]),
    ("Verdict", &[]),
    ("Watched", &[]),
    ("Way", &[]),
    ("cut_target", &[]),
    ("recut", &[]),
];

/// Files that had these names.
const RETIRED_FILES: &[&str] = &[
    "ask", "bell", "fleet", "frame", "judge", "known", "leap", "links", "recut", "room", "seats",
    "talk", "told", "watched",
];

pub(super) fn retired(source: &Source, faults: &mut Vec<String>) {
    let path = &source.path;
    for (word, allowed) in RETIRED {
        if allowed.iter().any(|place| path.starts_with(place)) {
            continue;
        }
        for at in source.places_of(word) {
            let line = source.line_of(at);
            faults.push(format!("{path}:{line}: `{word}` is retired: src/lib.rs has the words"));
        }
    }
    let folders = path.trim_end_matches(".rs").split('/');
    for name in folders.filter(|name| RETIRED_FILES.contains(name)) {
        faults.push(format!("{path}: `{name}` is retired: src/lib.rs has the words"));
    }
}

mod rules {
    use super::*;

    #[test]
    fn finds_retired_words() {
        let count = |path: &str, text: &str| {
            let mut faults = Vec::new();
            retired(&Source::new(path, text), &mut faults);
            faults.len()
        };
        assert_eq!(count("src/net/x.rs", "struct Bell; let b: Frame<'_> = Bell;"), 3);
        assert_eq!(count("src/net/bell.rs", ""), 1);
        assert_eq!(count("src/proxy/judge/mod.rs", ""), 1);
        assert_eq!(count("src/http2/x.rs", "struct Frame; // Bell"), 0);
        assert_eq!(count("src/net/x.rs", "struct Bellows; fn doorbell() {}"), 0);
    }
}
