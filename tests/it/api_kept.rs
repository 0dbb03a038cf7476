//! rules §12: with `persist` an edit that was acknowledged outlives the process, however it ends.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokenring::testing::base::rng::Rng;

use super::api::{Operator, ask, named, text};
use super::house::wait_until;
use super::process::{Run, address};

fn persist(name: &str) -> (PathBuf, String) {
    let dir = std::env::temp_dir().join(format!("tokenring-{}-{name}-state", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    let more = format!(
        "[process]\ncores = 1\nstate_dir = \"{}\"\n[admin]\nbind = \"127.0.0.1:0\"\npersist = true\n",
        dir.display()
    );
    (dir, more)
}

/// Where a process listens for clients and for the operator.
fn places(run: &Run) -> (SocketAddr, SocketAddr) {
    let admin = address(&run.behind("admin      on "));
    (address(&run.behind("listener   main on ")), admin)
}

#[test]
fn an_edit_comes_back_with_the_next_process_and_a_changed_file_beneath_it() {
    let (a, b) = (named("a"), named("b"));
    let (dir, more) = persist("kept");
    let first = text(&a, &b, &more);
    let to_b = json!({ "upstreams": [{ "name": "gpu1" }] });
    let version = {
        let run = Run::start("kept-1", &first);
        let (_, admin) = places(&run);
        let mut operator = Operator::at(admin);
        assert_eq!(operator.patch("/upstream-groups/chat", to_b).status, 200);
        let overlay = operator.get("/overlay");
        let kept_in = overlay.data()["kept_in"].as_str().unwrap().to_owned();
        assert_eq!(kept_in, dir.join("overlay.toml").display().to_string());
        let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(kept_in).unwrap());
        assert_eq!(mode & 0o777, 0o600, "it may hold credentials");
        run.signal("KILL");
        overlay.version
    };
    {
        let run = Run::start("kept-2", &first);
        let (main, admin) = places(&run);
        assert_eq!(ask(main, "/v1/chat/completions", "m"), "b");
        assert_eq!(Operator::at(admin).get("/overlay").version, version);
    }
    {
        // Another part of the file: both count.
        let more = format!("{more}[models.other]\nupstream = \"gpu0\"\n");
        let run = Run::start("kept-3", &text(&a, &b, &more));
        let (main, _) = places(&run);
        assert_eq!(ask(main, "/v1/chat/completions", "m"), "b");
        assert_eq!(ask(main, "/v1/chat/completions", "other"), "a");
    }
    // The same entry: nobody guesses which is meant.
    let run = Run::start("kept-4", &first.replace("\"failover\"", "\"random\""));
    let told = run.behind("group.chat: ");
    assert!(told.contains("changed over the admin API") && told.contains("overlay.toml"), "{told}");
    std::fs::write(dir.join("overlay.toml"), "[[group").unwrap();
    let run = Run::start("kept-5", &first);
    run.behind("overlay.toml: ");
    let _ = std::fs::remove_dir_all(&dir);
}

#[test]
fn an_edit_that_cannot_be_kept_is_refused_and_changes_nothing() {
    let (a, b) = (named("a"), named("b"));
    let (dir, more) = persist("full");
    let run = Run::start("full", &text(&a, &b, &more));
    let (main, admin) = places(&run);
    let mut operator = Operator::at(admin);
    // A folder in the place of the file that is written first.
    std::fs::create_dir_all(dir.join("overlay.toml.new")).unwrap();
    let to_b = json!({ "upstreams": [{ "name": "gpu1" }] });
    let told = operator.patch("/upstream-groups/chat", to_b.clone());
    assert_eq!(told.status, 500, "{told:?}");
    assert!(told.error().contains("overlay.toml.new"), "{told:?}");
    assert_eq!(ask(main, "/v1/chat/completions", "m"), "a");
    std::fs::remove_dir(dir.join("overlay.toml.new")).unwrap();
    assert_eq!(operator.patch("/upstream-groups/chat", to_b).status, 200);
    assert_eq!(ask(main, "/v1/chat/completions", "m"), "b");
    let _ = std::fs::remove_dir_all(&dir);
}

/// What was acknowledged last is there after a kill, or what was under way.
#[test]
fn a_kill_at_any_moment_leaves_an_acknowledged_state() {
    let (a, b) = (named("a"), named("b"));
    let (dir, more) = persist("killed");
    let config = text(&a, &b, &more);
    let mut rng = Rng::new(7);
    let (mut turn, mut kept) = (0, Value::Null);
    for round in 0..6 {
        let acknowledged = Mutex::new((kept.clone(), kept));
        {
            let run = Run::start(&format!("killed-{round}"), &config);
            let (_, admin) = places(&run);
            let begun = Instant::now();
            let lives = Duration::from_millis(20 + rng.below(300));
            std::thread::scope(|scope| {
                scope.spawn(|| edit_until_dead(admin, &mut turn, &acknowledged));
                wait_until("its time is over", || begun.elapsed() >= lives);
                run.signal("KILL");
            });
        }
        let (last, under_way) = acknowledged.into_inner().unwrap();
        let run = Run::start(&format!("killed-{round}-after"), &config);
        let (_, admin) = places(&run);
        let told = Operator::at(admin).get("/upstreams/own");
        let found = match told.status {
            404 => Value::Null,
            _ => told.data()["concurrency"].clone(),
        };
        assert!(
            found == last || found == under_way,
            "round {round}: {found}, acknowledged {last}, under way {under_way}"
        );
        kept = found;
    }
    assert!(turn > 10 && !kept.is_null(), "{turn} edits");
    let _ = std::fs::remove_dir_all(&dir);
}

/// Keeps what was acknowledged and what was under way, until nobody answers.
fn edit_until_dead(admin: SocketAddr, turn: &mut u64, state: &Mutex<(Value, Value)>) {
    // The connection breaks in the middle of an answer.
    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let mut operator = Operator::at(admin);
        loop {
            *turn += 1;
            let body = json!({ "name": "own", "url": "http://127.0.0.1:9", "models": [],
                "concurrency": *turn });
            state.lock().unwrap().1 = json!(*turn);
            let told = match operator.get("/upstreams/own").status {
                404 => operator.post("/upstreams", body),
                _ => operator.put("/upstreams/own", body),
            };
            assert!(told.status == 200 || told.status == 201);
            state.lock().unwrap().0 = json!(*turn);
        }
    }));
}
