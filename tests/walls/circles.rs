//! No circle between the files of a folder.
//!
//! Every path in the code (`crate::a::b`, `super::b`, `self::b`, and `b::c` in the `mod.rs` that
//! has `b`, alone or in a group) is followed to the file that defines what it names: through
//! `use` and `pub use`, so that a re-export is an address and not a use. Each gives an arrow from
//! file to file. In each folder the nodes are its files and its sub-folders as a whole, and the
//! folder's own `mod.rs`: a child that wants an item *defined* in `mod.rs` while the code of
//! `mod.rs` uses that child makes a circle as two sisters would. A `mod x;` line is no arrow.
//!
//! It does not see methods called on a value whose type it has not named, nor names in macros;
//! such a value came through a path somewhere.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use super::Source;

/// A path as it stands in the code, groups spread out.
#[derive(Clone, PartialEq, Debug)]
struct Found {
    /// Its names; the first may be `crate`, `super` or `self`.
    names: Vec<String>,
    /// The name it has afterwards: the last one, or what follows `as`.
    alias: String,
    /// Where it begins.
    at: usize,
}

/// A file as a module.
struct Module<'s> {
    source: &'s Source,
    /// From the crate's root.
    path: Vec<String>,
    /// What it brings into its scope, by name: path from the root of the crate.
    brings: HashMap<String, Vec<String>>,
    /// Modules of which it brings everything.
    globs: Vec<Vec<String>>,
    /// Re-exports that its own code does not use.
    handed_on: BTreeSet<usize>,
    paths: Vec<Found>,
}

/// Every circle, one text each: the chain and a line for each of its arrows.
pub(super) fn circles(sources: &[Source]) -> Vec<String> {
    let house = House::new(sources);
    house.folders().iter().flat_map(|folder| house.circles_of(folder)).collect()
}

struct House<'s> {
    modules: Vec<Module<'s>>,
    by_path: HashMap<Vec<String>, usize>,
}

/// Arrows between the nodes of a folder, each with a line that makes it.
type Arrows = BTreeMap<String, BTreeMap<String, String>>;

impl<'s> House<'s> {
    fn new(sources: &'s [Source]) -> Self {
        let paths: BTreeSet<Vec<String>> = sources.iter().map(|s| module_path(&s.path)).collect();
        let modules: Vec<Module> = sources.iter().map(|s| Module::new(s, &paths)).collect();
        let by_path = modules.iter().enumerate().map(|(i, m)| (m.path.clone(), i)).collect();
        House { modules, by_path }
    }

    /// Modules that have children.
    fn folders(&self) -> BTreeSet<Vec<String>> {
        let with_parent = self.modules.iter().filter(|m| !m.path.is_empty());
        with_parent.map(|m| m.path[..m.path.len() - 1].to_vec()).collect()
    }

    /// Follows a path to the module that defines what it names; `None` outside of the crate.
    fn follow(&self, path: &[String], steps: u32) -> Option<usize> {
        let mut here = Vec::new();
        for (index, name) in path.iter().enumerate() {
            here.push(name.clone());
            if self.by_path.contains_key(&here) {
                continue;
            }
            here.pop();
            let module = &self.modules[*self.by_path.get(&here)?];
            if module.defines(name) || steps == 0 {
                break;
            }
            if let Some(brought) = module.brings.get(name) {
                let on: Vec<String> = brought.iter().chain(&path[index + 1..]).cloned().collect();
                return self.follow(&on, steps - 1);
            }
            for glob in &module.globs {
                let from = self.follow(glob, steps - 1);
                if let Some(from) = from.filter(|from| self.modules[*from].defines(name)) {
                    return Some(from);
                }
            }
            break;
        }
        self.by_path.get(&here).copied()
    }

    fn arrows(&self, folder: &[String]) -> Arrows {
        let mut arrows = Arrows::new();
        for module in self.modules.iter().filter(|m| m.path.starts_with(folder)) {
            let from = node(&module.path, folder);
            for found in module.paths.iter().filter(|f| !module.handed_on.contains(&f.at)) {
                let Some(path) = module.path_from_root(&found.names) else { continue };
                let Some(target) = self.follow(&path, 8) else { continue };
                let target = &self.modules[target].path;
                if !target.starts_with(folder) || node(target, folder) == from {
                    continue;
                }
                let (file, line) = (&module.source.path, module.source.line_of(found.at));
                let shown = format!("{file}:{line} wants {}", found.names.join("::"));
                let to = arrows.entry(from.clone()).or_default();
                to.entry(node(target, folder)).or_insert(shown);
            }
        }
        arrows
    }

    /// The shortest circles of a folder, none through a node of another.
    fn circles_of(&self, folder: &[String]) -> Vec<String> {
        let arrows = self.arrows(folder);
        let mut found: Vec<Vec<&String>> =
            arrows.keys().filter_map(|start| way_back(&arrows, start)).collect();
        found.sort_by_key(Vec::len);
        let mut told: BTreeSet<&String> = BTreeSet::new();
        let mut texts = Vec::new();
        for circle in found {
            if circle.iter().any(|node| told.contains(node)) {
                continue;
            }
            told.extend(&circle);
            let chain: Vec<&str> = circle.iter().map(|node| node.as_str()).collect();
            let mut text = format!("src/{}: {}", folder.join("/"), chain.join(" → "));
            for pair in circle.windows(2) {
                text.push_str(&format!("\n    {}", arrows[pair[0]][pair[1]]));
            }
            texts.push(text);
        }
        texts
    }
}

/// The shortest way from a node to itself, with the node at both ends.
fn way_back<'a>(arrows: &'a Arrows, start: &'a String) -> Option<Vec<&'a String>> {
    let mut came_from: HashMap<&String, &String> = HashMap::new();
    let mut next = VecDeque::from([start]);
    while let Some(node) = next.pop_front() {
        for to in arrows.get(node).into_iter().flat_map(BTreeMap::keys) {
            if to == start {
                let mut way = vec![start, node];
                while let Some(before) = came_from.get(way[way.len() - 1]) {
                    way.push(before);
                }
                way.reverse();
                return Some(way);
            }
            if !came_from.contains_key(to) {
                came_from.insert(to, node);
                next.push_back(to);
            }
        }
    }
    None
}

impl<'s> Module<'s> {
    fn new(source: &'s Source, all: &BTreeSet<Vec<String>>) -> Self {
        let path = module_path(&source.path);
        let is_child = |name: &str| {
            let mut child = path.clone();
            child.push(name.to_owned());
            all.contains(&child)
        };
        let mut module = Module {
            source,
            paths: paths_in(&source.code, is_child),
            path,
            brings: HashMap::new(),
            globs: Vec::new(),
            handed_on: BTreeSet::new(),
        };
        for (found, public) in uses_in(&source.code) {
            let root = module.path_from_root(&found.names);
            if found.alias == "*" {
                module.globs.extend(root);
            } else {
                if public && source.places_of(&found.alias).count() == 1 {
                    module.handed_on.insert(found.at);
                }
                // A name from outside of the crate ends the search, as `None` does.
                module.brings.insert(found.alias, root.unwrap_or(vec!["?".to_owned()]));
            }
        }
        module
    }

    /// The names from the crate's root; `None` for what lies outside.
    fn path_from_root(&self, names: &[String]) -> Option<Vec<String>> {
        let mut path = match names[0].as_str() {
            "crate" => Vec::new(),
            _ => self.path.clone(),
        };
        for name in names {
            match name.as_str() {
                "crate" | "self" | "*" => {}
                "super" => drop(path.pop()?),
                name => path.push(name.to_owned()),
            }
        }
        let relative = matches!(names[0].as_str(), "crate" | "self" | "super");
        let own = self.paths.iter().any(|found| found.names[0] == names[0]);
        (relative || own).then_some(path)
    }

    fn defines(&self, name: &str) -> bool {
        const KINDS: &[&str] =
            &["fn", "struct", "enum", "trait", "type", "const", "static", "mod", "macro_rules!"];
        self.source.places_of(name).any(|at| {
            let before = self.source.code[..at].trim_end();
            let word = before.rsplit(char::is_whitespace).next().unwrap_or_default();
            KINDS.contains(&word)
        })
    }
}

fn module_path(file: &str) -> Vec<String> {
    let path = file.strip_prefix("src/").unwrap_or(file).trim_end_matches(".rs");
    let mut names: Vec<String> = path.split('/').map(str::to_owned).collect();
    if matches!(names.last().map(String::as_str), Some("mod" | "lib")) {
        names.pop();
    }
    names
}

/// What a module is to a folder: a file or sub-folder of it, or its `mod.rs`.
fn node(path: &[String], folder: &[String]) -> String {
    path.get(folder.len()).cloned().unwrap_or_else(|| "mod.rs".to_owned())
}

fn is_part(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The paths in code that begin in the crate or, by `is_child`, in a module below this one.
fn paths_in(code: &str, is_child: impl Fn(&str) -> bool) -> Vec<Found> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("::") {
        let begin = code[..at].rfind(|c| !is_part(c)).map_or(0, |before| before + 1);
        let head = &code[begin..at];
        let inner = code[..begin].ends_with("::") || code[..begin].ends_with("in ");
        if !inner && (matches!(head, "crate" | "super" | "self") || is_child(head)) {
            spread(&code[begin..], begin, &mut Vec::new(), &mut found);
        }
    }
    found
}

/// The paths that `use` brings, and whether it hands them on.
fn uses_in(code: &str) -> Vec<(Found, bool)> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("use ") {
        let before = code[..at].trim_end_matches(' ');
        let public = before.ends_with("pub") || before.ends_with(')');
        if !public && !before.is_empty() && !before.ends_with(['\n', ';', '{', '}', ']']) {
            continue;
        }
        let mut paths = Vec::new();
        spread(&code[at + 4..], at + 4, &mut Vec::new(), &mut paths);
        found.extend(paths.into_iter().map(|path| (path, public)));
    }
    found
}

/// Reads one path at the beginning of `text`, groups spread out; returns its length.
fn spread(text: &str, at: usize, before: &mut Vec<String>, found: &mut Vec<Found>) -> usize {
    let deep = before.len();
    let mut len = 0;
    loop {
        let rest = &text[len..];
        let blank = rest.len() - rest.trim_start().len();
        let rest = rest.trim_start();
        if let Some(group) = rest.strip_prefix('{') {
            len += blank + 1 + spread_group(group, at + len + blank + 1, before, found);
            break;
        }
        let name = rest.find(|c| !is_part(c) && c != '*').unwrap_or(rest.len());
        let name = if rest.starts_with('*') { 1 } else { name };
        len += blank + name;
        if name > 0 {
            before.push(rest[..name].to_owned());
        }
        if name > 0 && text[len..].starts_with("::") {
            len += 2;
            continue;
        }
        let names = before.clone();
        let Some(last) = names.iter().rfind(|name| *name != "self") else { break };
        let mut alias = last.clone();
        if let Some(renamed) = text[len..].strip_prefix(" as ") {
            let end = renamed.find(|c| !is_part(c)).unwrap_or(renamed.len());
            alias = renamed[..end].to_owned();
            len += 4 + end;
        }
        found.push(Found { names, alias, at });
        break;
    }
    before.truncate(deep);
    len
}

fn spread_group(text: &str, at: usize, before: &mut Vec<String>, found: &mut Vec<Found>) -> usize {
    let mut len = 0;
    while let Some(c) = text[len..].chars().next() {
        if c == '}' {
            return len + 1;
        }
        if c.is_whitespace() || c == ',' {
            len += c.len_utf8();
            continue;
        }
        let step = spread(&text[len..], at + len, before, found);
        if step == 0 {
            break;
        }
        len += step;
    }
    len
}

mod rules {
    use super::*;

    fn found(files: &[(&str, &str)]) -> Vec<String> {
        let sources: Vec<Source> =
            files.iter().map(|(path, text)| Source::new(path, text)).collect();
        circles(&sources)
    }

    #[test]
    fn finds_a_circle_of_sisters() {
        let texts = found(&[
            ("src/a/mod.rs", "pub mod x; pub mod y; pub mod z;"),
            ("src/a/x.rs", "use super::y::Y;\npub struct X;"),
            ("src/a/y.rs", "use crate::{a::{self, z::{Z, W as V}}};\npub struct Y;"),
            ("src/a/z.rs", "fn f() {\n super::x::X\n}"),
        ]);
        assert_eq!(texts.len(), 1, "{texts:?}");
        assert!(texts[0].starts_with("src/a: x → y → z → x"), "{texts:?}");
        assert!(texts[0].contains("src/a/z.rs:2 wants super::x::X"), "{texts:?}");
    }

    #[test]
    fn a_sub_folder_is_one_node() {
        let texts = found(&[
            ("src/a/mod.rs", "mod b; mod x;"),
            ("src/a/b/mod.rs", "mod c;"),
            ("src/a/b/c.rs", "use super::super::x::X;"),
            ("src/a/x.rs", "use super::b::Deep;"),
        ]);
        assert_eq!(texts.len(), 1, "{texts:?}");
        assert!(texts[0].starts_with("src/a: b → x → b"), "{texts:?}");
    }

    #[test]
    fn the_hub_that_defines_is_part_of_the_circle() {
        let child = ("src/a/x.rs", "use super::Item;\npub struct X;");
        let uses = "mod x;\nuse x::X;\npub struct Item(X);";
        assert_eq!(found(&[("src/a/mod.rs", uses), child]).len(), 1);
        assert_eq!(
            found(&[("src/a/mod.rs", "mod x;\nfn f() { x::X }\nenum Item {}"), child]).len(),
            1
        );
        let hands_on = "mod x;\npub use x::X;\npub struct Item;";
        assert!(found(&[("src/a/mod.rs", hands_on), child]).is_empty());
    }

    #[test]
    fn a_re_export_is_followed() {
        let hub = "mod x; mod y;\npub use x::X;\npub use y::*;\nuse std::rc::Rc;";
        let x = ("src/a/x.rs", "use super::{Rc, Y};\npub struct X;");
        let y = ("src/a/y.rs", "pub struct Y;");
        assert!(found(&[("src/a/mod.rs", hub), x, y]).is_empty());
        let back = ("src/a/y.rs", "use super::X;\npub struct Y;");
        let texts = found(&[("src/a/mod.rs", hub), x, back]);
        assert!(texts.len() == 1 && texts[0].starts_with("src/a: x → y → x"), "{texts:?}");
    }

    #[test]
    fn tests_and_words_are_no_arrows() {
        let x = ("src/a/x.rs", "// super::y\n#[cfg(test)]\nmod tests { use super::super::y; }");
        let y = ("src/a/y.rs", "use super::x;\nlet s = \"super::x\";");
        assert!(found(&[("src/a/mod.rs", "mod x; mod y;"), x, y]).is_empty());
    }
}
