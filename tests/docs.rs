//! The documents, as far as a test can hold them: links lead to files and headings that are
//! there, README leads to every page of `docs/`, each page begins with one line that says what it
//! is about, and nothing asks for a folder beside the checkout.

use std::fs;
use std::path::{Path, PathBuf};

/// Longest README, in lines: the rest belongs into `docs/`.
const README_LINES_MAX: usize = 140;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|why| panic!("{}: {why}", path.display()))
}

/// The pages of `docs/`, sorted.
fn pages() -> Vec<PathBuf> {
    let folder = fs::read_dir(root().join("docs")).expect("docs/ is readable");
    let mut pages: Vec<_> = folder.map(|entry| entry.expect("an entry").path()).collect();
    pages.retain(|path| path.extension().is_some_and(|e| e == "md"));
    pages.sort();
    pages
}

/// All documents of the repository that link to others.
fn documents() -> Vec<PathBuf> {
    let named = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "loadtest/README.md"];
    named.iter().map(|name| root().join(name)).chain(pages()).collect()
}

/// The text without what stands between fences of code.
fn without_code(text: &str) -> String {
    let mut inside = false;
    let mut out = String::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            inside = !inside;
        } else if !inside {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

/// Targets of `[text](target)`.
fn links(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for part in without_code(text).split("](").skip(1) {
        found.extend(part.split(')').next().map(str::to_owned));
    }
    found
}

/// The anchors of the headings, as GitHub makes them.
fn anchors(text: &str) -> Vec<String> {
    let headings = without_code(text);
    let headings = headings.lines().filter(|line| line.starts_with('#'));
    headings.map(|line| anchor(line.trim_start_matches('#').trim())).collect()
}

fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase();
    let kept = kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn links_lead_somewhere() {
    let mut faults = Vec::new();
    for document in documents() {
        let text = read(&document);
        for link in links(&text).iter().filter(|link| !link.starts_with("http")) {
            let (path, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = match path {
                "" => document.clone(),
                _ => document.parent().expect("a file has a folder").join(path),
            };
            let known = target.exists()
                && (heading.is_empty() || anchors(&read(&target)).iter().any(|a| a == heading));
            if !known {
                faults.push(format!("{}: {link}", document.display()));
            }
        }
    }
    assert!(faults.is_empty(), "links to nothing:\n{}", faults.join("\n"));
}

#[test]
fn readme_is_short_and_leads_to_every_page() {
    let text = read(&root().join("README.md"));
    let lines = text.lines().count();
    assert!(lines <= README_LINES_MAX, "README has {lines} lines, limit {README_LINES_MAX}");
    let links = links(&text);
    for page in pages() {
        let name = page.file_name().expect("a page has a name").to_string_lossy();
        let linked = links.iter().any(|link| *link == format!("docs/{name}"));
        assert!(linked, "README does not link to docs/{name}");
    }
}

#[test]
fn every_page_begins_with_one_line_of_summary() {
    for page in pages() {
        let text = read(&page);
        let lines: Vec<&str> = text.lines().take(4).collect();
        let [title, "", summary, ""] = lines.as_slice() else {
            panic!("{}: a title, a line of summary, then the rest", page.display());
        };
        assert!(title.starts_with("# "), "{}: no title", page.display());
        assert!(summary.ends_with('.'), "{}: no summary: {summary}", page.display());
    }
}

#[test]
fn nothing_asks_for_a_folder_beside_the_checkout() {
    // Put together here, or this file would find itself.
    let beside = ["..", "/shared"].concat();
    let scripts = fs::read_dir(root().join("scripts")).expect("scripts/ is readable");
    let scripts = scripts.map(|entry| entry.expect("an entry").path()).filter(|p| p.is_file());
    for path in documents().into_iter().chain(scripts).chain([root().join(".ci/run")]) {
        assert!(!read(&path).contains(&beside), "{}: {beside}", path.display());
    }
}

#[test]
fn anchors_are_as_on_the_web() {
    assert_eq!(anchor("The admin address"), "the-admin-address");
    assert_eq!(anchor("§9 HTTP"), "9-http");
    assert_eq!(anchors("# A b\n```\n# no\n```\n## C, d"), ["a-b", "c-d"]);
    assert_eq!(links("see [a](b.md#c) and [d](e)"), ["b.md#c", "e"]);
}
