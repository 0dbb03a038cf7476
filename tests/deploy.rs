//! What `deploy/` says about the program, compared with the program: command lines that it
//! understands, configs that it takes without a warning, times that leave room for its drain, paths
//! that agree with each other, files that are there. What only a service manager knows is asked of
//! `systemd-analyze` where there is one; `scripts/manifests.py` compares the manifests with
//! Kubernetes' own models.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tokenring::cli;

/// Highest exposure that `systemd-analyze security` may find, of 10.
const EXPOSURE_MAX: f64 = 2.0;
/// `process.drain` where a config says nothing, in seconds.
const DRAIN_DEFAULT_S: u64 = 30;
/// The file that everything here runs with.
const CONFIG: &str = "/etc/tokenring/tokenring.toml";

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|why| panic!("{path}: {why}"))
}

/// The lines that are no comment.
fn settings(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.starts_with('#') && !line.is_empty())
}

/// The values of `name=` in a unit, in order.
fn values<'t>(unit: &'t str, name: &str) -> Vec<&'t str> {
    let of = |line: &'t str| line.strip_prefix(name)?.strip_prefix('=');
    settings(unit).filter_map(of).collect()
}

/// Seconds of `30s`, `45`, `5m`.
fn seconds(text: &str) -> u64 {
    let digits = text.trim_end_matches(|c: char| c.is_alphabetic());
    let unit = if text.ends_with('m') { 60 } else { 1 };
    digits.parse::<u64>().unwrap_or_else(|why| panic!("{text}: {why}")) * unit
}

/// What stands behind `begin` in the first line with it, without quotes.
fn behind<'t>(text: &'t str, begin: &str) -> &'t str {
    let found = settings(text).find_map(|line| line.split_once(begin));
    let (_, value) = found.unwrap_or_else(|| panic!("no {begin:?}"));
    value.trim().trim_matches('"')
}

/// `process.drain` of a config, in seconds.
fn drain_s(config: &str) -> u64 {
    match settings(config).any(|line| line.starts_with("drain = ")) {
        true => seconds(behind(config, "drain = ")),
        false => DRAIN_DEFAULT_S,
    }
}

/// The strings of the arrays `["…", "…"]` in a text, one list an array.
fn arrays(text: &str) -> Vec<Vec<String>> {
    let arrays = settings(text).filter_map(|line| Some(&line[line.find("[\"")?..]));
    arrays.filter_map(|array| serde_json::from_str(&array[..=array.find(']')?]).ok()).collect()
}

/// A command line is understood, and is about the one config.
fn check_command(shown: &str, words: &[&str]) {
    let line = [&["tokenring"], words].concat();
    if let Err((why, _)) = cli::parse(&line) {
        panic!("{shown}: {line:?}: {why}");
    }
    assert!(words.contains(&CONFIG), "{shown}: {line:?} is not about {CONFIG}");
}

#[test]
fn every_command_line_is_understood() {
    let mut found = 0;
    for path in ["tokenring.service", "before-253.conf"] {
        let unit = read(&format!("deploy/systemd/{path}"));
        let lines = [values(&unit, "ExecStart"), values(&unit, "ExecReload")].concat();
        for line in lines.iter().filter_map(|line| line.strip_prefix("/usr/bin/tokenring ")) {
            check_command(path, &line.split_whitespace().collect::<Vec<_>>());
            found += 1;
        }
    }
    for path in ["Dockerfile", "deploy/kubernetes/deployment.yaml"] {
        for words in arrays(&read(path)).iter().filter(|words| words.len() > 1) {
            let words: Vec<_> = words.iter().map(String::as_str).collect();
            check_command(path, words.strip_prefix(&["/usr/bin/tokenring"]).unwrap_or(&words));
            found += 1;
        }
    }
    assert_eq!(found, 7, "a command line was not found");
}

#[test]
fn every_config_is_taken_without_a_warning() {
    for path in [
        "deploy/tokenring.toml",
        "deploy/compose/tokenring.toml",
        "deploy/kubernetes/tokenring.toml",
    ] {
        if !cfg!(feature = "kubernetes") && read(path).contains("k8s:") {
            continue;
        }
        let told = Command::new(env!("CARGO_BIN_EXE_tokenring"))
            .args(["check", path])
            .current_dir(root())
            .env("TOKENRING_ADMIN_TOKEN", "a-token-of-the-test-0123456789")
            .env("MY_APP_KEY", "sk-of-the-test-0123456789")
            .env("POD_NAMESPACE", "default")
            .env_remove("CLIENT_KEY")
            .output()
            .expect("the program runs");
        let [out, err] =
            [told.stdout, told.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        assert!(told.status.success() && out.contains(" 0 warnings"), "{out}{err}");
    }
}

#[test]
fn the_pod_may_ask_for_what_its_config_discovers() {
    let config = read("deploy/kubernetes/tokenring.toml");
    assert!(behind(&config, "discover = ").starts_with("k8s:${POD_NAMESPACE}/"));
    let deployment = read("deploy/kubernetes/deployment.yaml");
    let account = behind(&deployment, "serviceAccountName: ");
    assert_eq!(behind(&deployment, "automountServiceAccountToken: "), "true");
    assert!(settings(&deployment).any(|line| line == "- name: POD_NAMESPACE"));
    let rbac = read("deploy/kubernetes/rbac.yaml");
    assert!(rbac.contains(&format!("kind: ServiceAccount, name: {account}, ")));
    assert_eq!(behind(&rbac, "- apiGroups: "), "[discovery.k8s.io]");
    assert_eq!(behind(&rbac, "resources: "), "[endpointslices]");
    assert_eq!(behind(&rbac, "verbs: "), "[get, list, watch]");
}

#[test]
fn every_end_leaves_room_for_the_drain() {
    let check = |what: &str, limit_s: u64, config: &str, before_s: u64| {
        let drain_s = drain_s(&read(config));
        assert!(limit_s >= before_s + drain_s + 5, "{what}: {limit_s} s, {config}: {drain_s} s");
    };
    let unit = read("deploy/systemd/tokenring.service");
    let stop_s = seconds(values(&unit, "TimeoutStopSec")[0]);
    check("TimeoutStopSec", stop_s, "deploy/tokenring.toml", 0);
    let grace_s = seconds(behind(&read("deploy/compose.yaml"), "stop_grace_period: "));
    check("stop_grace_period", grace_s, "deploy/compose/tokenring.toml", 0);
    let deployment = read("deploy/kubernetes/deployment.yaml");
    let grace_s = seconds(behind(&deployment, "terminationGracePeriodSeconds: "));
    let sleep = behind(&deployment, "sleep: { seconds: ");
    let sleep_s = seconds(sleep.trim_end_matches([' ', '}']));
    check("terminationGracePeriodSeconds", grace_s, "deploy/kubernetes/tokenring.toml", sleep_s);
}

#[test]
fn the_paths_of_the_service_agree() {
    let unit = read("deploy/systemd/tokenring.service");
    assert_eq!(values(&unit, "LogsDirectory"), ["tokenring"]);
    let access = "/var/log/tokenring/access.log";
    assert_eq!(behind(&read("deploy/tokenring.toml"), "access = "), access);
    let logrotate = read("deploy/systemd/logrotate");
    assert!(settings(&logrotate).any(|line| line == "/var/log/tokenring/*.log {"));
    assert!(logrotate.contains("--signal=USR1 tokenring.service"));
    let user = values(&unit, "User")[0];
    assert!(
        settings(&read("deploy/systemd/sysusers.d/tokenring.conf"))
            .any(|l| l.starts_with(&format!("u {user} ")))
    );
    let tmpfiles = read("deploy/systemd/tmpfiles.d/tokenring.conf");
    assert!(settings(&tmpfiles).any(|line| line == format!("z {CONFIG} 0640 root {user} -")));
    // The three calls of io_uring.
    let filters = values(&unit, "SystemCallFilter").join(" ");
    for call in ["io_uring_setup", "io_uring_enter", "io_uring_register"] {
        assert!(filters.contains(call), "{call} is not allowed");
    }
}

#[test]
fn the_package_holds_what_the_service_needs() {
    let manifest = read("Cargo.toml");
    let deb = manifest.split("[package.metadata.deb]").nth(1).expect("metadata of the package");
    let deb = deb.split("\n[").next().unwrap_or(deb);
    let assets: Vec<Vec<String>> = arrays(deb).into_iter().filter(|a| a.len() == 3).collect();
    assert!(assets.len() >= 8, "{assets:?}");
    for asset in &assets {
        let from = asset[0].trim_start_matches("target/release/tokenring").trim_end_matches("*.md");
        assert!(root().join(from).exists(), "{from} is not there");
        // Fixed paths only: what is in them is named by the unit or by a comment.
        assert!(!asset[1].starts_with('/'), "{}: cargo-deb wants it without the first /", asset[1]);
    }
    let holds = |to: &str| assets.iter().any(|asset| asset[1] == to);
    assert!(holds(CONFIG.trim_start_matches('/')) && holds("usr/bin/"));
    let postinst = read("deploy/debian/postinst");
    for path in postinst.split_whitespace().filter(|word| word.starts_with("/usr/share/tokenring/"))
    {
        assert!(holds(path.trim_start_matches('/')), "the package has no {path}");
    }
    let unit_path = root().join("deploy/systemd/tokenring.service");
    assert!(deb.contains("unit-scripts = \"deploy/systemd\"") && unit_path.exists());
}

#[test]
fn the_image_is_built_with_a_compiler_that_will_do() {
    let needed = read("Cargo.toml");
    let needed = behind(&needed, "rust-version = ");
    let dockerfile = read("Dockerfile");
    let used = behind(&dockerfile, "FROM rust:").split('-').next().unwrap_or_default();
    let number =
        |version: &str| version.split('.').nth(1).and_then(|minor| minor.parse::<u32>().ok());
    assert!(number(used) >= number(needed), "rust:{used} builds what needs {needed}");
    // What the workspace names must be in the context, or cargo refuses the manifest.
    let kept = read(".dockerignore");
    for path in ["Cargo.toml", "Cargo.lock", "src", "benches", "tests", "loadtest"] {
        assert!(settings(&kept).any(|line| line == format!("!{path}")), "{path} is left out");
    }
}

#[test]
fn the_simulated_servers_of_compose_understand_their_flags() {
    let source = read("loadtest/src/main.rs");
    let compose = read("deploy/compose.yaml");
    let commands = settings(&compose).filter_map(|line| line.strip_prefix("command: [mock, "));
    let mut found = 0;
    for command in commands {
        for flag in command.split(", ").filter_map(|word| word.strip_prefix("--")) {
            let field = flag.replace('-', "_");
            let known = [field.clone(), format!("{field}s")]
                .iter()
                .any(|name| source.contains(&format!("{name}: ")));
            assert!(known, "loadtest mock has no --{flag}");
            found += 1;
        }
    }
    assert!(found >= 10, "{found} flags");
}

#[test]
fn the_seccomp_profile_allows_io_uring_and_little_else_than_the_usual() {
    let profile: serde_json::Value = serde_json::from_str(&read("deploy/seccomp.json")).unwrap();
    assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO");
    let rules = profile["syscalls"].as_array().unwrap();
    let is_allowed = |call: &str| {
        rules.iter().any(|rule| {
            rule["action"] == "SCMP_ACT_ALLOW"
                && rule.get("includes").is_none_or(|only| only.as_object().unwrap().is_empty())
                && rule["names"].as_array().unwrap().iter().any(|name| name == call)
        })
    };
    for call in ["io_uring_setup", "io_uring_enter", "io_uring_register", "accept4", "prctl"] {
        assert!(is_allowed(call), "{call}");
    }
    for call in ["mount", "bpf", "init_module", "kexec_load", "reboot"] {
        assert!(!is_allowed(call), "{call}");
    }
    for user in ["deploy/compose.yaml", "deploy/kubernetes/deployment.yaml", "docs/deploy.md"] {
        assert!(read(user).contains("seccomp.json"), "{user}");
    }
}

#[test]
fn what_compose_mounts_is_there() {
    let compose = read("deploy/compose.yaml");
    let mounts = settings(&compose).filter_map(|line| line.strip_prefix("- ./")?.split(':').next());
    let mounts: Vec<_> = mounts.collect();
    assert!(mounts.len() >= 6, "{mounts:?}");
    for path in mounts {
        assert!(root().join("deploy").join(path).exists(), "deploy/compose.yaml: no {path}");
    }
}

#[test]
fn what_the_page_names_is_there() {
    let page = read("docs/deploy.md");
    let ends = |c: char| !(c.is_alphanumeric() || "/._-".contains(c));
    for at in page.match_indices("deploy/").map(|(at, _)| at) {
        if page[..at].ends_with(|c: char| !ends(c)) {
            continue;
        }
        let path = page[at..].split(ends).next().unwrap_or_default().trim_end_matches('.');
        assert!(root().join(path).exists(), "docs/deploy.md: no {path}");
    }
}

/// The version of the service manager's tools; `None`, with a hint, where there are none.
fn systemd() -> Option<u32> {
    let told = Command::new("systemd-analyze").arg("--version").output().ok();
    let told = told.map(|told| String::from_utf8_lossy(&told.stdout).into_owned());
    let version = told.as_deref().and_then(|t| t.split_whitespace().nth(1)?.parse().ok());
    if version.is_none() {
        eprintln!("skipped: no systemd-analyze here; apt-get install systemd");
    }
    version
}

/// A copy of the unit that runs the program of this test, in a folder of its own.
fn unit_here(folder: &Path, with: Option<&str>) -> PathBuf {
    fs::create_dir_all(folder).expect("a folder for the unit");
    let program = env!("CARGO_BIN_EXE_tokenring");
    let unit = read("deploy/systemd/tokenring.service").replace("/usr/bin/tokenring", program);
    let path = folder.join("tokenring.service");
    let more = with.map(|file| read(file).replace("/usr/bin/tokenring", program));
    fs::write(&path, unit + &more.unwrap_or_default()).expect("the unit is written");
    path
}

#[test]
fn the_service_manager_takes_the_unit() {
    let Some(version) = systemd() else { return };
    for (name, with) in [
        ("alone", None),
        ("before-253", Some("deploy/systemd/before-253.conf")),
        ("low-ports", Some("deploy/systemd/low-ports.conf")),
    ] {
        let folder =
            std::env::temp_dir().join(format!("tokenring-unit-{}-{name}", std::process::id()));
        let unit = unit_here(&folder, with);
        let told = Command::new("systemd-analyze").arg("verify").arg(&unit).output();
        let told = String::from_utf8_lossy(&told.expect("it runs").stderr).into_owned();
        let _ = fs::remove_dir_all(&folder);
        // What an older one says of the type is what before-253.conf is for.
        let expected = |line: &str| version < 253 && line.ends_with("ignoring: notify-reload");
        let complaints: Vec<_> =
            told.lines().filter(|l| l.contains("tokenring.service") && !expected(l)).collect();
        assert!(complaints.is_empty(), "{name}: {complaints:#?}");
    }
}

#[test]
fn the_service_exposes_little() {
    // Without a running manager since 250.
    let Some(250..) = systemd() else { return };
    let folder =
        std::env::temp_dir().join(format!("tokenring-unit-{}-exposure", std::process::id()));
    let unit = unit_here(&folder, None);
    let told = Command::new("systemd-analyze")
        .args(["security", "--offline=true", "--no-pager"])
        .arg(&unit)
        .output();
    let told = String::from_utf8_lossy(&told.expect("it runs").stdout).into_owned();
    let _ = fs::remove_dir_all(&folder);
    let level = told
        .rsplit("tokenring.service: ")
        .next()
        .and_then(|rest| rest.split(' ').next()?.parse().ok());
    let level: f64 = level.unwrap_or_else(|| panic!("no exposure in {told}"));
    assert!(level <= EXPOSURE_MAX, "exposure {level}, limit {EXPOSURE_MAX}:\n{told}");
}
