//! The page in a real browser: it opens without an error and shows its curves.

// In a test a panic is the report.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::process::Command;

use loadtest::report::{Difference, Page, Sample, Series, Table, html};

fn page() -> Page {
    let series = |name: &str, more: u64| Series {
        name: name.to_owned(),
        latency: (0..500).map(|n| Sample { at_us: n * 1000, us: more + n * 7 % 900 }).collect(),
        first_token: (0..500).map(|n| Sample { at_us: n * 1000, us: more + n % 90 }).collect(),
    };
    Page {
        title: "a <b> & \"c\"".to_owned(),
        verdict: "good".to_owned(),
        good: true,
        series: vec![series("a", 300), series("b", 350)],
        differences: vec![Difference {
            what: "latency p50".to_owned(),
            of: "b - a".to_owned(),
            value_us: 50.0,
            low_us: 40.0,
            high_us: 60.0,
        }],
        table: Table { head: vec!["target".to_owned()], rows: vec![vec!["a".to_owned()]] },
        ..Page::default()
    }
}

#[test]
fn opens_in_a_browser_without_an_error_and_shows_the_curves() {
    if Command::new("chromium").arg("--version").output().is_err() {
        let how = "chromium is missing; install it with: apt-get install chromium";
        assert!(std::env::var_os("TOKENRING_CI").is_none_or(|ci| ci != "1"), "{how}");
        eprintln!("skip: {how}");
        return;
    }
    let folder = std::env::temp_dir().join(format!("loadtest-page-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("page.html");
    std::fs::write(&file, html(&page())).unwrap();
    let told = Command::new("chromium")
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .args(["--enable-logging=stderr", "--v=0", "--dump-dom"])
        .arg(format!("--user-data-dir={}", folder.join("profile").display()))
        .arg(format!("file://{}", file.display()))
        .output()
        .unwrap();
    // The browser may still be tidying its profile.
    let _ = std::fs::remove_dir_all(&folder);
    let (dom, log) = (String::from_utf8_lossy(&told.stdout), String::from_utf8_lossy(&told.stderr));
    assert!(told.status.success(), "{log}");
    let errors: Vec<&str> = log.lines().filter(|line| line.contains("CONSOLE")).collect();
    assert!(errors.is_empty(), "{errors:?}");
    for id in ["latency-percentiles", "latency-over-time", "first-token-distribution"] {
        let from = dom.find(&format!("<svg id=\"{id}\"")).unwrap_or_else(|| panic!("{id}: {dom}"));
        let chart = &dom[from..from + dom[from..].find("</svg>").unwrap()];
        assert_eq!(chart.matches("s0\" d=\"M").count(), 1, "{id}");
        assert_eq!(chart.matches("s1\" d=\"M").count(), 1, "{id}");
    }
    assert!(dom.contains("<svg id=\"differences\""), "{dom}");
    assert!(dom.contains("<h1>a &lt;b&gt; &amp; \"c\"</h1>"), "{dom}");
}
