//! A file with edits upon it: what is in force, where faults point, and what is a conflict.

use super::*;

fn file(text: &str) -> Sources {
    Sources::new("config.toml".to_owned(), text.to_owned())
}

fn try_sources(sources: &Sources) -> Result<Loaded, Report> {
    load_sources(sources, &Outside { env: &env, read: &read, now_s: 0 })
}

fn upstream(name: &str) -> EntryId {
    EntryId::new(Section::Upstream, name)
}

fn entry(text: &str) -> Option<toml::Table> {
    Some(text.parse().unwrap())
}

const TWO: &str =
    "[[upstream]]\nname = \"gpu1\"\nurl = \"http://127.0.0.1:8001\"\nmodels = [\"b\"]\n";

/// The names of upstreams with their ports, in order.
fn shown(sources: &Sources) -> Vec<String> {
    let config = try_sources(sources).unwrap_or_else(|report| panic!("{report}")).config;
    config.upstreams.iter().map(|one| format!("{}:{}", one.name, one.url.port)).collect()
}

#[test]
fn an_edited_entry_stands_where_the_files_stood_and_added_ones_behind() {
    let mut sources = file(&with(TWO));
    let gpu0 = "name = \"gpu0\"\nurl = \"http://127.0.0.1:9\"\nmodels = [\"a\"]";
    sources.edit(upstream("gpu0"), entry(gpu0));
    sources.edit(upstream("new"), entry("name = \"new\"\nurl = \"http://h:7\"\nmodels = [\"c\"]"));
    assert_eq!(shown(&sources), ["gpu0:9", "gpu1:8001", "new:7"]);
    sources.edit(upstream("gpu1"), None);
    assert_eq!(shown(&sources), ["gpu0:9", "new:7"]);
    let names: Vec<_> = sources.entries(Section::Upstream).iter().map(|(n, _)| *n).collect();
    assert_eq!(names, ["gpu0", "new"]);
    assert!(sources.entry(&upstream("gpu1")).is_none());
    let again = sources.clone().with(Overlay::parse(&sources.overlay.to_string()).unwrap());
    assert_eq!(shown(&again), shown(&sources));
    for name in ["gpu0", "gpu1", "new"] {
        sources.revert(&upstream(name));
    }
    assert!(sources.overlay.is_empty());
    assert_eq!(sources.version(), file(&with(TWO)).version());
}

#[test]
fn models_and_sections_that_the_file_has_not_are_added() {
    let mut sources = file(BASE);
    let id = EntryId::new(Section::Model, "x/y");
    sources.edit(id.clone(), entry("group = \"chat\""));
    let key = "name = \"k\"\nkey_sha256 = \"9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08\"";
    sources.edit(EntryId::new(Section::Key, "k"), entry(key));
    let config = try_sources(&sources).unwrap_or_else(|report| panic!("{report}")).config;
    assert!(config.models.iter().any(|model| model.name == "x/y"));
    assert_eq!(config.keys[0].name, "k");
    let mut sources =
        file(&with("[models.\"x/y\"]\nupstream = \"gpu0\"\n[models.z]\ngroup = \"chat\""));
    sources.edit(id, None);
    let config = try_sources(&sources).unwrap_or_else(|report| panic!("{report}")).config;
    assert!(config.models.iter().any(|model| model.name == "z"));
    assert!(!config.models.iter().any(|model| model.name == "x/y"));
}

#[test]
fn faults_name_the_document_and_its_line() {
    let mut sources = file(&with("[limits]\nhead = \"1B\""));
    sources.edit(upstream("new"), entry("name = \"new\"\nurl = \"ftp://h:7\""));
    let report = try_sources(&sources).unwrap_err();
    let text = report.to_string();
    let lines = with("").lines().count();
    assert!(text.contains(&format!("config.toml:{}:8: limits.head", lines + 2)), "{text}");
    let edits = sources.overlay.to_string();
    let line = 1 + edits.lines().position(|line| line.contains("ftp")).unwrap();
    assert!(text.contains(&format!("overlay:{line}:7: upstream.new.url")), "{text}");
    assert!(text.contains("url = \"ftp://h:7\""), "{text}");
}

#[test]
fn a_secret_of_an_edit_is_not_shown() {
    let mut sources = file(BASE);
    let new =
        "name = \"new\"\nurl = \"http://h:7\"\nauth = { type = \"bearer\", tokn = \"CANARY\" }";
    sources.edit(upstream("new"), entry(new));
    let text = try_sources(&sources).unwrap_err().to_string();
    assert!(text.contains("tokn") && !text.contains("CANARY"), "{text}");
}

#[test]
fn an_entry_that_file_and_edit_both_change_is_a_conflict() {
    let first = with(TWO);
    let mut sources = file(&first);
    sources.edit(upstream("gpu1"), entry("name = \"gpu1\"\nurl = \"http://127.0.0.1:9\""));
    sources.edit(upstream("new"), entry("name = \"new\"\nurl = \"http://h:7\""));
    let upon = |text: &str| sources.upon("config.toml".to_owned(), text.to_owned());
    // Another line of the file, a comment, another entry: none of it is the edit's.
    let other = first.replace("8000", "8080").replace("[[upstream]]", "# c\n[[upstream]]");
    assert_eq!(shown(&upon(&other)), ["gpu0:8080", "gpu1:9", "new:7"]);
    // The same entry.
    let moved = first.replace("8001", "8002");
    let text = try_sources(&upon(&moved)).unwrap_err().to_string();
    assert!(text.contains("upstream.gpu1: changed over the admin API"), "{text}");
    assert!(text.contains("DELETE /api/v1/overlay/upstream/gpu1"), "{text}");
    let gone = BASE.to_owned();
    let text = try_sources(&upon(&gone)).unwrap_err().to_string();
    assert!(text.contains("overlay:") && text.contains("upstream.gpu1"), "{text}");
    let came = format!("{first}[[upstream]]\nname = \"new\"\nurl = \"http://else:7\"\n");
    let text = try_sources(&upon(&came)).unwrap_err().to_string();
    assert!(text.contains("upstream.new: added over the admin API"), "{text}");
    // The file says the same: it is no edit any more.
    let taken = format!("{first}[[upstream]]\nname = \"new\"\nurl = \"http://h:7\" # taken over\n");
    let settled = upon(&taken);
    assert!(!settled.is_edited(&upstream("new")) && settled.is_edited(&upstream("gpu1")));
    assert_eq!(shown(&settled), ["gpu0:8000", "gpu1:9", "new:7"]);
    // Said which is meant.
    let mut back = upon(&moved);
    back.revert(&upstream("gpu1"));
    assert_eq!(shown(&back), ["gpu0:8000", "gpu1:8002", "new:7"]);
}

#[test]
fn a_removed_entry_that_the_file_changes_is_a_conflict_too() {
    let mut sources = file(&with(TWO));
    sources.edit(upstream("gpu1"), None);
    let upon = |text: String| sources.upon("config.toml".to_owned(), text);
    let text = try_sources(&upon(with(TWO).replace("8001", "8002"))).unwrap_err().to_string();
    assert!(text.contains("upstream.gpu1: removed over the admin API"), "{text}");
    let both = upon(BASE.to_owned());
    assert!(both.overlay.is_empty() && try_sources(&both).is_ok());
}

#[test]
fn where_edits_are_kept_is_read_without_a_check() {
    let kept = |text: &str| kept_edits(text, &Outside::NOTHING);
    let text = "[process]\nstate_dir = \"/s\"\n[admin]\npersist = true\n";
    assert_eq!(kept(text), Some("/s/overlay.toml".into()));
    assert_eq!(
        kept(&format!("{text}[[group]]\nmembers = [\"x\"]")),
        Some("/s/overlay.toml".into())
    );
    assert_eq!(kept(&text.replace("true", "false")), None);
    assert_eq!(kept("[process]\nstate_dir = \"/s\""), None);
    assert_eq!(kept("[[["), None);
}
