//! The walls of the house, as a test.
//!
//! What the compiler cannot see and a reader would have to remember: the pure floors name no
//! runtime, socket, file or clock; no floor imports a higher one, and in no folder do files import
//! each other in a circle (`walls/circles.rs`); `unsafe` stays in the files named here; a file
//! begins with what it is, and files and functions stay short (`walls/functions.rs`); words
//! that meant several things stay out (`walls/words.rs`); times have types (`walls/clock.rs`); what
//! other files use says what it is (`walls/documented.rs`). Each rule says which line breaks it and
//! what to do instead.
//!
//! Source is read with comments, strings and the test module at its end blanked out, by a small
//! lexer below with tests of its own. It is no parser: a name built by a macro goes unseen.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

#[path = "walls/circles.rs"]
mod circles;
#[path = "walls/clock.rs"]
mod clock;
#[path = "walls/documented.rs"]
mod documented;
#[path = "walls/functions.rs"]
mod functions;
#[path = "walls/words.rs"]
mod words;

/// The floors, low to high; a folder or file may import only lower ones and itself.
/// The map in `src/lib.rs` and the table in CONTRIBUTING.md say the same; a test compares them.
const FLOORS: &[(&str, u32)] = &[
    ("error", 0),
    ("base", 0),
    ("http", 1),
    ("pki", 1),
    ("http1", 2),
    ("llm", 2),
    ("http2", 3),
    ("policy", 3),
    ("telemetry", 3),
    ("config", 4),
    ("net", 5),
    ("upstream", 6),
    ("proxy", 7),
    ("control", 7),
];
/// The floor of what starts everything: `ROOFED`.
const ROOF: u32 = 8;
const ROOFED: &[&str] = &["load", "server", "import", "cli", "testing", "main"];

/// Floors without a runtime, socket, file or clock.
const PURE: &[&str] =
    &["error", "base", "http", "http1", "http2", "llm", "pki", "policy", "telemetry"];
/// What they may not name, and what to do instead.
const IMPURE: &[(&str, &str)] = &[
    ("monoio", "the runtime is net's"),
    ("tokio", "the control thread's runtime is control's"),
    ("io_uring", "the ring is net's"),
    ("libc", "system calls are net's"),
    ("socket2", "sockets are net's"),
    ("std::net::Tcp", "sockets are net's"),
    ("std::net::Udp", "sockets are net's"),
    ("std::os", "the machine is net's"),
    ("std::fs", "files are config's loader's and control's"),
    ("std::env", "take the value as an argument"),
    ("std::process", "take the value as an argument"),
    ("std::thread", "leaves know no threads"),
    ("Instant::now", "take `now` as an argument"),
    ("SystemTime", "take `now` as an argument"),
];
/// The one pure leaf that names an instruction set; a benchmark has earned it.
const SIMD: &str = "src/llm/simd_scan/avx2.rs";
/// Files that may hold `unsafe`: some of `net`, and that leaf.
const UNSAFE: &[&str] = &[
    "src/net/pooled_future.rs",
    "src/net/rt/accept.rs",
    "src/net/rt/socket.rs",
    "src/net/sys.rs",
    SIMD,
];
/// Longest file, its test module not counted.
const LINES_MAX: usize = 600;

/// One source file under `src`.
struct Source {
    /// From the repository's root, with `/`.
    path: String,
    /// As it is.
    text: String,
    /// Without comments, strings and the test module; line breaks are kept.
    code: String,
}

impl Source {
    fn new(path: &str, text: &str) -> Source {
        let mut code = blank(text);
        if path.contains("/tests/") {
            // A test module that fills files of its own.
            code.clear();
        } else if let Some(at) = tests_at(&code) {
            code.truncate(at);
        }
        Source { path: path.to_owned(), text: text.to_owned(), code }
    }

    /// The folder or file right under `src`.
    fn top(&self) -> &str {
        let rest = self.path.strip_prefix("src/").unwrap_or(&self.path);
        rest.split('/').next().unwrap_or(rest).trim_end_matches(".rs")
    }

    /// How many modules lie between the crate's root and this file's items.
    fn depth(&self) -> usize {
        let parts = self.path.split('/').count() - 1;
        parts - usize::from(self.path.ends_with("/mod.rs"))
    }

    fn line_of(&self, at: usize) -> usize {
        self.code[..at].matches('\n').count() + 1
    }

    /// Places where `word` stands by itself.
    fn places_of<'s>(&'s self, word: &'s str) -> impl Iterator<Item = usize> + 's {
        let part = |c: char| c.is_alphanumeric() || c == '_';
        self.code.match_indices(word).map(|(at, _)| at).filter(move |at| {
            let before = self.code[..*at].chars().next_back();
            let after = self.code[at + word.len()..].chars().next();
            // `std::net::Tcp` is the beginning of several names.
            let open_end = word.ends_with("Tcp") || word.ends_with("Udp");
            !before.is_some_and(part) && (open_end || !after.is_some_and(part))
        })
    }

    /// Modules of the crate's root that this file names, with the place of each.
    fn tops(&self) -> Vec<(String, usize)> {
        let mut found = Vec::new();
        for at in self.places_of("crate") {
            if let Some(rest) = self.code[at..].strip_prefix("crate::") {
                found.extend(first_names(rest).into_iter().map(|name| (name, at)));
            }
        }
        let chain = "super::".repeat(self.depth());
        for at in self.places_of("super") {
            if let Some(rest) = self.code[at..].strip_prefix(&chain) {
                found.extend(first_names(rest).into_iter().map(|name| (name, at)));
            }
        }
        found
    }
}

/// Returns the names at the beginning of a path, or of each path in a group.
fn first_names(rest: &str) -> Vec<String> {
    let name = |text: &str| -> String {
        text.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    let Some(group) = rest.strip_prefix('{') else { return vec![name(rest)] };
    let (mut names, mut depth, mut start) = (Vec::new(), 1, 0);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 || (depth == 1 && c == ',') {
            names.push(name(&group[start..at]));
            start = at + 1;
        }
        if depth == 0 {
            break;
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

/// Finds the test module that ends a file.
fn tests_at(code: &str) -> Option<usize> {
    code.match_indices("#[cfg(test)]").map(|(at, _)| at).find(|at| {
        let rest = code[at + "#[cfg(test)]".len()..].trim_start();
        rest.starts_with("mod ") && rest.contains('{')
    })
}

/// Blanks comments, strings and character literals; keeps line breaks.
fn blank(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let end = at + opaque_len(&chars[at..], at.checked_sub(1).map(|before| chars[before]));
        if end == at {
            out.push(chars[at]);
            at += 1;
            continue;
        }
        out.extend(chars[at..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
        at = end;
    }
    out
}

/// Length of the comment or literal at the beginning of `rest`, 0 when there is none.
fn opaque_len(rest: &[char], before: Option<char>) -> usize {
    let upto = |from: usize, end: &[char]| {
        let found = rest[from..].windows(end.len()).position(|window| window == end);
        found.map_or(rest.len(), |at| from + at + end.len())
    };
    match rest {
        ['/', '/', ..] => rest.iter().position(|c| *c == '\n').unwrap_or(rest.len()),
        ['/', '*', ..] => upto(2, &['*', '/']),
        ['"', ..] => quoted_len(rest),
        ['\'', '\\', ..] => upto(3, &['\'']),
        ['\'', _, '\'', ..] => 3,
        ['r', '"' | '#', ..] if !before.is_some_and(|c| c.is_alphanumeric() && c != 'b') => {
            let hashes = rest[1..].iter().take_while(|c| **c == '#').count();
            if rest.get(1 + hashes) != Some(&'"') {
                return 0;
            }
            let end: Vec<char> =
                std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
            upto(2 + hashes, &end)
        }
        _ => 0,
    }
}

fn quoted_len(rest: &[char]) -> usize {
    let mut escaped = false;
    for (at, c) in rest.iter().enumerate().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every file that could be tracked, as paths from the root.
fn files() -> Vec<String> {
    const SKIPPED: &[&str] = &[".git", "target", "corpus", "artifacts", "node_modules"];
    let mut found = Vec::new();
    let mut folders = vec![root()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of the repository is readable") {
            let entry = entry.expect("an entry of a readable folder");
            let name = entry.file_name().to_string_lossy().into_owned();
            let kind = entry.file_type().expect("an entry has a type");
            if kind.is_dir() && !SKIPPED.contains(&name.as_str()) {
                folders.push(entry.path());
            } else if kind.is_file() {
                found.push(from_root(&entry.path()));
            }
        }
    }
    found.sort();
    found
}

fn from_root(path: &Path) -> String {
    let path = path.strip_prefix(root()).expect("found below the root");
    path.to_string_lossy().replace('\\', "/")
}

/// The text of a file; `None` when it is none.
fn text_of(path: &str) -> Option<String> {
    String::from_utf8(fs::read(root().join(path)).ok()?).ok()
}

fn sources() -> Vec<Source> {
    let rust = files().into_iter().filter(|p| p.starts_with("src/") && p.ends_with(".rs"));
    rust.filter_map(|path| Some(Source::new(&path, &text_of(&path)?))).collect()
}

/// Runs a rule over all sources and shows every line that breaks it.
fn check(rule: fn(&Source, &mut Vec<String>)) {
    let sources = sources();
    assert!(!sources.is_empty(), "no sources found");
    let mut faults = Vec::new();
    sources.iter().for_each(|source| rule(source, &mut faults));
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

/// The modules of the crate's root: the folders and files right under `src`.
fn modules() -> &'static [String] {
    static MODULES: OnceLock<Vec<String>> = OnceLock::new();
    MODULES.get_or_init(|| sources().iter().map(|source| source.top().to_owned()).collect())
}

fn floor_of(top: &str) -> u32 {
    FLOORS.iter().find(|(name, _)| *name == top).map_or(ROOF, |(_, floor)| *floor)
}

fn pure_floors(source: &Source, faults: &mut Vec<String>) {
    if !PURE.contains(&source.top()) {
        return;
    }
    for (word, instead) in IMPURE {
        for at in source.places_of(word) {
            let (path, line) = (&source.path, source.line_of(at));
            faults.push(format!("{path}:{line}: `{word}` on a pure floor: {instead}"));
        }
    }
}

fn imports_point_down(source: &Source, faults: &mut Vec<String>) {
    let own = source.top();
    if matches!(own, "lib" | "main") {
        return;
    }
    for (name, at) in source.tops() {
        // Other names at the root are items and macros, not floors.
        let both_roof = floor_of(own) == ROOF && floor_of(&name) == ROOF;
        let allowed = name == own || floor_of(&name) < floor_of(own) || both_roof;
        if modules().contains(&name) && !allowed {
            let (path, line) = (&source.path, source.line_of(at));
            faults.push(format!("{path}:{line}: `{own}` imports `{name}`: imports point down"));
        }
    }
}

fn one_place_names_the_runtime(source: &Source, faults: &mut Vec<String>) {
    let is_rt = source.path.starts_with("src/net/rt/");
    for word in ["monoio", "io_uring"] {
        for at in source.places_of(word).filter(|_| !is_rt) {
            let (path, line) = (&source.path, source.line_of(at));
            faults.push(format!("{path}:{line}: `{word}`: only src/net/rt names the runtime"));
        }
    }
}

fn config_reads_files_in_one_place(source: &Source, faults: &mut Vec<String>) {
    if source.top() != "config" {
        return;
    }
    for word in ["std::fs", "Instant::now", "SystemTime", "std::net::Tcp", "tokio", "libc"] {
        for at in source.places_of(word) {
            let (path, line) = (&source.path, source.line_of(at));
            faults.push(format!("{path}:{line}: `{word}`: files come in through `Outside`"));
        }
    }
}

fn unsafe_stays_in_its_files(source: &Source, faults: &mut Vec<String>) {
    let allowed = UNSAFE.contains(&source.path.as_str());
    for at in source.places_of("unsafe") {
        let line = source.line_of(at);
        if !allowed {
            faults.push(format!("{}:{line}: `unsafe` outside the files of UNSAFE", source.path));
            continue;
        }
        // The proof stands above the block, within the statement that holds it.
        let above: Vec<&str> = source.text.lines().take(line).collect();
        let told =
            above.iter().rev().take(12).any(|l| l.contains("SAFETY:") || l.contains("# Safety"));
        if !told {
            faults.push(format!("{}:{line}: `unsafe` without a SAFETY comment", source.path));
        }
    }
}

fn nothing_unwraps(source: &Source, faults: &mut Vec<String>) {
    for (at, _) in source.code.match_indices(".unwrap()") {
        let (path, line) = (&source.path, source.line_of(at));
        faults.push(format!("{path}:{line}: unwrap: handle it, or `expect` with the reason"));
    }
}

fn files_are_short_and_say_what_they_are(source: &Source, faults: &mut Vec<String>) {
    if !source.text.starts_with("//!") {
        faults.push(format!("{}:1: begins with `//!`: what it is", source.path));
    }
    let lines = source.code.lines().count();
    if lines > LINES_MAX {
        faults.push(format!("{}: {lines} lines, limit {LINES_MAX}", source.path));
    }
}

fn leftovers_say_when_they_end(source: &Source, faults: &mut Vec<String>) {
    for (index, line) in source.text.lines().enumerate() {
        if line.contains("TODO") && !line.contains("until") {
            faults.push(format!("{}:{}: TODO without `until`", source.path, index + 1));
        }
    }
}

#[test]
fn pure_floors_name_no_runtime_socket_file_or_clock() {
    check(pure_floors);
}

#[test]
fn no_floor_imports_a_higher_one() {
    check(imports_point_down);
}

#[test]
fn retired_words_stay_out() {
    check(words::retired);
}

#[test]
fn functions_fit_a_screen() {
    let found = functions::too_long(&sources());
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

#[test]
fn no_result_holds_a_result() {
    check(functions::results_in_results);
}

#[test]
fn no_bare_time_crosses_a_function() {
    check(clock::bare_times);
}

#[test]
fn no_circle_between_the_files_of_a_folder() {
    let found = circles::circles(&sources());
    assert!(
        found.is_empty(),
        "\n{}\nwhat both need goes into a file of its own, below both\n",
        found.join("\n")
    );
}

#[test]
fn only_rt_names_the_runtime() {
    check(one_place_names_the_runtime);
}

#[test]
fn config_reads_files_only_in_its_loader() {
    check(config_reads_files_in_one_place);
}

#[test]
fn unsafe_is_only_where_it_is_named_and_proven() {
    check(unsafe_stays_in_its_files);
}

#[test]
fn nothing_unwraps_outside_tests() {
    check(nothing_unwraps);
}

#[test]
fn every_file_is_short_and_says_what_it_is() {
    check(files_are_short_and_say_what_they_are);
}

#[test]
fn no_leftover_without_its_end() {
    check(leftovers_say_when_they_end);
}

#[test]
fn nothing_names_a_machine_or_a_registry() {
    // Put together here, or this file would find itself.
    let machines =
        [["/ro", "ot/"], ["/ho", "me/"], ["/wo", "rk/"], ["/tmp", "/wt"], ["/Us", "ers/"]];
    let registries = [["replace-", "with"], ["regis", "try = \"http"], ["sparse", "+http"]];
    let words: Vec<String> = machines.iter().chain(&registries).map(|w| w.concat()).collect();
    let mut faults = Vec::new();
    for path in files() {
        for (index, line) in text_of(&path).unwrap_or_default().lines().enumerate() {
            for word in words.iter().filter(|word| line.contains(word.as_str())) {
                faults.push(format!("{path}:{}: `{word}`", index + 1));
            }
            let foreign =
                line.starts_with("source = ") && !line.contains("rust-lang/crates.io-index");
            if path.ends_with("Cargo.lock") && foreign {
                faults.push(format!("{path}:{}: a source that is not crates.io", index + 1));
            }
        }
    }
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

#[test]
fn every_module_has_its_floor() {
    let known = |name: &str| name == "lib" || floors().iter().any(|(floor, _)| floor == name);
    let unknown: Vec<_> = modules().iter().filter(|name| !known(name)).collect();
    assert!(unknown.is_empty(), "in neither FLOORS nor ROOFED: {unknown:?}");
}

#[test]
fn the_map_and_contributing_tell_the_floors() {
    let map = floors_of_map(&text_of("src/lib.rs").expect("the crate's root is readable"));
    let without_main: Vec<_> = floors().into_iter().filter(|(name, _)| name != "main").collect();
    assert_eq!(map, without_main, "src/lib.rs: the map differs from FLOORS");
    let table = floors_of_table(&text_of("CONTRIBUTING.md").expect("CONTRIBUTING.md is readable"));
    assert_eq!(table, floors(), "CONTRIBUTING.md: the table differs from FLOORS");
}

/// `FLOORS` and `ROOFED` as one list, sorted by name.
fn floors() -> Vec<(String, u32)> {
    let roofed = ROOFED.iter().map(|name| (*name, ROOF));
    let all = FLOORS.iter().copied().chain(roofed);
    sorted(all.map(|(name, floor)| (name.to_owned(), floor)))
}

/// The lines `//! NAME  FLOOR  …` of the map in the crate's root.
fn floors_of_map(text: &str) -> Vec<(String, u32)> {
    sorted(text.lines().filter_map(|line| {
        let mut words = line.strip_prefix("//! ")?.split_whitespace();
        let (name, floor) = (words.next()?, words.next()?);
        Some((name.to_owned(), floor.parse().ok()?))
    }))
}

/// The rows ``| FLOOR | `NAME`, `NAME` | … |`` of the table in CONTRIBUTING.md.
fn floors_of_table(text: &str) -> Vec<(String, u32)> {
    sorted(text.lines().flat_map(|line| {
        let mut cells = line.split('|').skip(1);
        let floor: Option<u32> = cells.next().and_then(|cell| cell.trim().parse().ok());
        let names = cells.next().unwrap_or_default().split('`').skip(1).step_by(2);
        floor.into_iter().flat_map(move |floor| names.clone().map(move |n| (n.to_owned(), floor)))
    }))
}

fn sorted(rows: impl Iterator<Item = (String, u32)>) -> Vec<(String, u32)> {
    let mut rows: Vec<_> = rows.collect();
    rows.sort();
    rows
}

#[test]
fn every_fuzz_function_has_a_driver() {
    let Some(driver) = text_of("tests/it/fuzz.rs") else { return };
    let mut faults = Vec::new();
    for source in sources().iter().filter(|s| s.code.contains("pub fn fuzz(")) {
        let module = source.path.trim_start_matches("src/").trim_end_matches(".rs");
        let entry = format!("{}::fuzz", module.trim_end_matches("/mod").replace('/', "::"));
        if !driver.contains(&entry) {
            faults.push(format!("{}: tests/it/fuzz.rs does not call {entry}", source.path));
        }
    }
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

#[test]
fn unsafe_files_lie_under_net_but_one() {
    assert!(UNSAFE.iter().all(|path| path.starts_with("src/net/") || *path == SIMD));
}

/// The rules themselves: each must find what it forbids, or a hole goes unseen.
mod rules {
    use super::*;

    fn faults(rule: fn(&Source, &mut Vec<String>), path: &str, text: &str) -> usize {
        let mut faults = Vec::new();
        rule(&Source::new(path, text), &mut faults);
        faults.len()
    }

    #[test]
    fn blanking_keeps_code_and_lines() {
        let text = "a // unsafe\n\"x\\\"unsafe\" b 'u' '\\'' 'a /* unsafe\n */ r#\"un\"safe\"# c";
        let blanked = blank(text);
        assert_eq!(blanked.matches('\n').count(), text.matches('\n').count());
        assert!(!blanked.contains("unsafe") && !blanked.contains("safe"));
        for kept in ["a ", " b ", "'a", " c"] {
            assert!(blanked.contains(kept), "{kept}: {blanked}");
        }
    }

    #[test]
    fn test_modules_are_not_code() {
        let source =
            Source::new("src/base/x.rs", "fn a() {}\n#[cfg(test)]\nmod tests { x.unwrap() }");
        assert!(!source.code.contains("unwrap") && source.code.contains("fn a"));
    }

    #[test]
    fn finds_impurity() {
        for text in
            ["use std::fs;", "use std::net::TcpStream;", "let t = Instant::now();", "monoio::x()"]
        {
            assert_eq!(faults(pure_floors, "src/http1/x.rs", text), 1, "{text}");
            assert_eq!(faults(pure_floors, "src/net/x.rs", text), 0, "{text}");
        }
        for text in
            ["use std::net::IpAddr;", "// monoio", "let instant = now;", "fn monoio_like() {}"]
        {
            assert_eq!(faults(pure_floors, "src/http1/x.rs", text), 0, "{text}");
        }
    }

    #[test]
    fn finds_imports_that_point_up_or_aside() {
        let count = |path, text| faults(imports_point_down, path, text);
        assert_eq!(count("src/policy/x.rs", "use crate::config::Config;"), 1);
        assert_eq!(count("src/policy/x.rs", "use crate::{error::Kind, proxy::{a, b}};"), 1);
        assert_eq!(count("src/policy/x.rs", "use super::super::net::rt;"), 1);
        assert_eq!(count("src/policy/mod.rs", "use super::telemetry::Outcome;"), 1);
        assert_eq!(count("src/http1/x.rs", "fn f() { crate::llm::scan() }"), 1);
        assert_eq!(count("src/policy/x.rs", "use crate::{error::Kind, base::ids};"), 0);
        assert_eq!(count("src/policy/balance/x.rs", "use super::super::keys;"), 0);
        assert_eq!(count("src/proxy/x.rs", "use crate::upstream::pool;"), 0);
        assert_eq!(count("src/main.rs", "use crate::control::x;"), 0);
    }

    #[test]
    fn reads_floors_from_both_documents() {
        let rows = |rows: &[(&str, u32)]| sorted(rows.iter().map(|(n, f)| ((*n).to_owned(), *f)));
        let map =
            "//! ```text\n//! base  0  pure  sizes\n//! of which more\n//! net 5 io\nmod net;";
        assert_eq!(floors_of_map(map), rows(&[("base", 0), ("net", 5)]));
        let table =
            "| Floor | Folders |\n|---|---|\n| 7 | `proxy`, `control` | run `x` |\n| x | `y` |";
        assert_eq!(floors_of_table(table), rows(&[("control", 7), ("proxy", 7)]));
    }

    #[test]
    fn finds_the_runtime_elsewhere() {
        let text = "use monoio::net::TcpStream;";
        assert_eq!(faults(one_place_names_the_runtime, "src/proxy/worker.rs", text), 1);
        assert_eq!(faults(one_place_names_the_runtime, "src/net/rt/mod.rs", text), 0);
    }

    #[test]
    fn finds_files_read_in_config() {
        let text = "std::fs::read_to_string(path)";
        assert_eq!(faults(config_reads_files_in_one_place, "src/config/raw.rs", text), 1);
    }

    #[test]
    fn finds_unsafe_elsewhere_or_unproven() {
        let text = "unsafe { x() }";
        assert_eq!(faults(unsafe_stays_in_its_files, "src/proxy/relay.rs", text), 1);
        assert_eq!(faults(unsafe_stays_in_its_files, UNSAFE[0], text), 1);
        let proven = "// SAFETY: x has no preconditions.\nunsafe { x() }";
        assert_eq!(faults(unsafe_stays_in_its_files, UNSAFE[0], proven), 0);
        assert_eq!(faults(unsafe_stays_in_its_files, "src/a.rs", "#![deny(unsafe_code)]"), 0);
    }

    #[test]
    fn finds_untidiness() {
        assert_eq!(faults(nothing_unwraps, "src/a.rs", "x.unwrap();\ny.unwrap_or(1);"), 1);
        assert_eq!(faults(files_are_short_and_say_what_they_are, "src/a.rs", "fn a() {}"), 1);
        let long = format!("//! Long.\n{}", "x;\n".repeat(LINES_MAX));
        assert_eq!(faults(files_are_short_and_say_what_they_are, "src/a.rs", &long), 1);
        assert_eq!(faults(leftovers_say_when_they_end, "src/a.rs", "// TODO: later"), 1);
        assert_eq!(faults(leftovers_say_when_they_end, "src/a.rs", "// TODO until 1.0: x"), 0);
    }
}
