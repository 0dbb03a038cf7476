//! rules §13: one line an exchange, with what the client and the server saw.

use std::path::PathBuf;

use serde_json::Value;

use super::house::{Proxy, Setup, mock, mock_with, wait_until};
use super::wire::{chat, get, post};

/// A folder for one log; removed with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("access-it-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn path(&self) -> PathBuf {
        self.0.join("access.log")
    }

    fn setup(&self, more: &str) -> String {
        format!("[log]\naccess = \"{}\"\n{more}", self.path().display())
    }

    /// Waits for so many lines.
    fn lines(&self, count: usize) -> Vec<Value> {
        let read = || std::fs::read_to_string(self.path()).unwrap_or_default();
        wait_until("the lines are written", || read().lines().count() >= count);
        let text = read();
        assert!(text.ends_with('\n'));
        let parse =
            |line: &str| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"));
        text.lines().map(parse).collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn start(folder: &Folder, more: &str, group: &str, mocks: &[&loadtest::mock::Mock]) -> Proxy {
    Setup { rest: &folder.setup(more), group, ..Setup::default() }.start(mocks)
}

#[test]
fn each_exchange_has_its_line_with_what_was_seen() {
    let folder = Folder::new("each");
    let mock = mock_with(|config| config.name = "gpu0".to_owned());
    let proxy = start(&folder, "", "", &[&mock]);
    let mut client = proxy.client();
    let request = chat("x-request-id: one-1\r\n", false);
    let answer = client.send(&request).answer();
    assert_eq!(answer.status, 200);
    let body_bytes = request.len() - memchr_end(&request);
    let streamed = client.send(chat("", true)).answer();
    assert_eq!(
        client.send(post("/v1/chat/completions", "", "{\"model\":\"no\\nne\"}")).answer().status,
        404
    );
    let mut bad = proxy.client();
    bad.send(b"GET / HTTP/1.1\r\nbroken\r\n\r\n").answer();
    let lines = folder.lines(4);
    let (plain, stream, unknown, refused) = (&lines[0], &lines[1], &lines[2], &lines[3]);
    assert_eq!((&plain["request_id"], &plain["status"]), (&"one-1".into(), &200.into()));
    assert_eq!((&plain["model"], &plain["upstream"]), (&"m".into(), &"gpu0".into()));
    assert_eq!((&plain["listener"], &plain["method"]), (&"main".into(), &"POST".into()));
    assert_eq!(
        (&plain["path"], &plain["route_by"]),
        (&"/v1/chat/completions".into(), &"model".into())
    );
    assert_eq!(plain["request_bytes"], body_bytes);
    assert_eq!(plain["response_bytes"], answer.body.len());
    let usage = answer.json()["usage"].clone();
    assert_eq!(plain["prompt_tokens"], usage["prompt_tokens"]);
    assert_eq!(plain["completion_tokens"], usage["completion_tokens"]);
    assert_eq!((&plain["finish"], &plain["attempts"]), (&"ok".into(), &1.into()));
    assert_eq!(
        (&stream["stream"], &stream["response_bytes"]),
        (&true.into(), &streamed.body.len().into())
    );
    assert!(stream["ttft_ms"].as_f64().unwrap() <= stream["duration_ms"].as_f64().unwrap());
    assert_eq!((&unknown["status"], &unknown["model"]), (&404.into(), &"no\nne".into()));
    assert_eq!((&refused["status"], &refused["ended_by"]), (&400.into(), &"proxy".into()));
    assert!(refused["upstream"].is_null());
}

fn memchr_end(request: &[u8]) -> usize {
    let end = request.windows(4).position(|window| window == b"\r\n\r\n");
    end.expect("a head") + 4
}

#[test]
fn a_retry_names_the_attempt_that_failed_and_an_abort_who_left() {
    let folder = Folder::new("retry");
    let (bad, good) = (mock(), mock());
    bad.behave("status=503");
    let group = "retry = { attempts = 2, on = [\"503\"] }\n";
    let proxy = start(&folder, "", group, &[&bad, &good]);
    let mut retried = 0;
    for asked in 1..=4 {
        assert_eq!(proxy.client().send(chat("", false)).answer().status, 200);
        let lines = folder.lines(asked);
        let line = &lines[asked - 1];
        if line["attempts"] == 2 {
            retried += 1;
            assert_eq!(line["failed"][0]["upstream"], "gpu0");
            assert_eq!(line["failed"][0]["status"], 503);
            assert_eq!(line["upstream"], "gpu1");
        }
    }
    assert!(retried > 0);
    good.behave("delay=3600s");
    bad.behave("delay=3600s");
    let mut leaves = proxy.client();
    leaves.send(chat("", false));
    wait_until("it is under way", || good.stats().in_flight + bad.stats().in_flight == 1);
    leaves.reset();
    let line = folder.lines(5).pop().unwrap();
    assert_eq!((&line["status"], &line["ended_by"]), (&499.into(), &"client".into()));
}

#[test]
fn a_sample_leaves_out_only_what_went_well() {
    let folder = Folder::new("sample");
    let mock = mock();
    let proxy = start(&folder, "access_sample = 0.0\n", "", &[&mock]);
    let mut client = proxy.client();
    for _ in 0..5 {
        assert_eq!(client.send(chat("", false)).answer().status, 200);
        assert_eq!(client.send(get("/v1/chat/completions", "")).answer().status / 100, 4);
    }
    let lines = folder.lines(5);
    assert_eq!(lines.len(), 5);
    assert!(lines.iter().all(|line| line["status"] != 200), "{lines:#?}");
}

#[test]
fn what_is_recorded_before_the_end_is_written_at_the_end() {
    let folder = Folder::new("end");
    let mock = mock();
    let proxy = start(&folder, "", "", &[&mock]);
    let mut client = proxy.client();
    for _ in 0..20 {
        client.send(chat("", false)).answer();
    }
    proxy.drain();
    proxy.join();
    assert_eq!(folder.lines(20).len(), 20);
}

#[test]
fn a_fifo_that_nobody_reads_costs_lines_and_no_request() {
    let folder = Folder::new("fifo");
    let made = std::process::Command::new("mkfifo").arg(folder.path()).status().unwrap();
    assert!(made.success());
    let mock = mock();
    let proxy = start(&folder, "[admin]\nbind = \"127.0.0.1:0\"\n", "", &[&mock]);
    let mut client = proxy.client();
    let Some(tokenring::testing::net::dial::Address::Tcp(admin)) = proxy.admin() else {
        panic!("none")
    };
    let admin = *admin;
    for _ in 0..50 {
        assert_eq!(client.send(chat("", false)).answer().status, 200);
    }
    wait_until("they are counted as lost", || {
        let text = super::wire::Client::connect(admin).send(get("/metrics", "")).answer().text();
        text.contains("tokenring_access_log_lines_lost_total 50\n")
    });
}
