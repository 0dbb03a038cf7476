//! rules §13: what an operator reads on stderr, of the process itself.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::house::{LIMIT, mock, wait_until};
use super::redis_store::Redis;
use super::wire::{Client, chat};

/// A process of the proxy; it ends with the test.
struct Run {
    child: Child,
    dir: PathBuf,
    lines: Arc<Mutex<Vec<String>>>,
}

/// Where such a process has its files.
fn folder(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("tokenring-{}-{name}", std::process::id()))
}

impl Run {
    /// Serves what `text` describes.
    fn start(name: &str, text: &str) -> Run {
        let dir = folder(name);
        std::fs::create_dir_all(&dir).unwrap();
        let file = dir.join("c.toml");
        std::fs::write(&file, text).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_tokenring"))
            .args(["serve", "-c"])
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let (stderr, told) = (child.stderr.take().unwrap(), lines.clone());
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                told.lock().unwrap().push(line);
            }
        });
        Run { child, dir, lines }
    }

    /// All lines so far.
    fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    /// What stands behind `begin` in the first line that has it.
    fn behind(&self, begin: &str) -> String {
        let find = || {
            let lines = self.lines();
            lines.iter().find_map(|line| Some(line.split_once(begin)?.1.to_owned()))
        };
        let begun = Instant::now();
        loop {
            match find() {
                Some(behind) => return behind,
                None => assert!(begun.elapsed() < LIMIT, "no {begin:?} in {:#?}", self.lines()),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// The address that a line of the start block begins with.
fn address(told: &str) -> SocketAddr {
    told.split(' ').next().unwrap().parse().unwrap_or_else(|why| panic!("{told}: {why}"))
}

/// A line that can be read by a machine, by its level and its message.
fn level_and_message(line: &str) -> (String, String) {
    let line: Value = serde_json::from_str(line).unwrap_or_else(|why| panic!("{line}: {why}"));
    assert!(line["ts"].is_string(), "{line}");
    let text = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
    (text("level"), text("msg"))
}

#[test]
fn the_start_block_tells_what_was_obtained_and_no_secret() {
    let mock = mock();
    let config = |format: &str, socket: &str| {
        format!(
            "[process]\ncores = 1\n[log]\nformat = \"{format}\"\n\
             [[listener]]\nname = \"main\"\nbind = \"127.0.0.1:0\"\nauth = \"keys\"\n\
             [[listener]]\nname = \"inside\"\nbind = \"unix:{socket}\"\nauth = \"none\"\n\
             [[upstream]]\nname = \"gpu0\"\nurl = \"{}/b?key=secret-of-the-url\"\n\
             models = [\"m\"]\npath_mode = \"fixed\"\n\
             auth = {{ type = \"bearer\", token = \"secret-of-the-server\" }}\n\
             [[upstream]]\nname = \"off\"\nurl = \"http://10.0.0.1\"\nenabled = false\nmodels = [\"n\"]\n\
             [[key]]\nname = \"k\"\nkey = \"sk-secret-of-a-client\"\n\
             [admin]\nbind = \"127.0.0.1:0\"\ntoken = \"secret-of-the-operator\"\n",
            mock.url()
        )
    };
    for (name, format) in [("block-text", "text"), ("block-json", "json")] {
        let socket = folder(name).join("inside.sock").display().to_string();
        let run = Run::start(name, &config(format, &socket));
        let main = run.behind("listener   main on ");
        assert!(main.contains(" (keys)"), "{main}");
        let inside = run.behind("listener   inside on ");
        assert!(inside.starts_with(&format!("unix:{socket} (open)")), "{inside}");
        let admin = run.behind("admin      on ");
        assert!(admin.contains(" (token)"), "{admin}");
        let upstream = run.behind("upstream   gpu0 at ");
        assert!(upstream.starts_with(&format!("{}/b", mock.url())), "{upstream}");
        assert!(run.behind("upstream   off at ").starts_with("http://10.0.0.1 (disabled)"));
        assert!(run.behind("models     ").starts_with('m'));
        run.behind("limits     ");
        // The ports are those that were obtained.
        for addr in [address(&main), address(&admin)] {
            assert_ne!(addr.port(), 0);
            assert_eq!(Client::connect(addr).send(chat("", false)).answer().status, 401);
        }
        let lines = run.lines();
        assert!(!lines.iter().any(|line| line.contains("secret")), "{lines:?}");
        if format == "json" {
            for line in &lines {
                let (level, message) = level_and_message(line);
                let is_fact = ["listener ", "admin ", "upstream ", "models ", "limits "]
                    .iter()
                    .any(|begin| message.starts_with(begin));
                // Beside them there may be warnings: few open files, no io_uring.
                assert!(level == "info" || (level == "warn" && !is_fact), "{line}");
            }
        }
    }
}

#[test]
fn the_loss_of_the_store_is_one_line_and_its_return_another() {
    let Some(mut redis) = Redis::start() else { return };
    let mock = mock();
    let text = format!(
        "[process]\ncores = 1\n[log]\nformat = \"json\"\n\
         [[listener]]\nname = \"main\"\nbind = \"127.0.0.1:0\"\nauth = \"keys\"\n\
         [[upstream]]\nname = \"a\"\nurl = \"{}\"\nmodels = [\"m\"]\n\
         [[key]]\nname = \"k\"\nkey = \"sk-a\"\nrpm = 100000\n\
         [ratelimit_store]\ntype = \"redis\"\nurl = \"redis://127.0.0.1:{}\"\n",
        mock.url(),
        redis.port()
    );
    let run = Run::start("store", &text);
    let addr = address(&run.behind("listener   main on "));
    let told = || -> Vec<(String, String)> {
        let lines = run.lines();
        let of_store = lines.iter().filter(|line| line.contains("ratelimit_store"));
        of_store.map(|line| level_and_message(line)).collect()
    };
    let serves = || {
        let mut client = Client::connect(addr);
        for _ in 0..30 {
            let answer = client.send(chat("x-api-key: sk-a\r\n", false)).answer();
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
    };
    serves();
    assert_eq!(told(), []);
    for outage in 1..=2 {
        redis.kill();
        wait_until("the loss is told", || told().len() == 2 * outage - 1);
        serves();
        redis.restart();
        wait_until("the return is told", || told().len() == 2 * outage);
        serves();
    }
    let lost = "ratelimit_store: lost; on_error holds until it is back";
    let both = [lost, "ratelimit_store: back"].map(|line| ("warn".to_owned(), line.to_owned()));
    assert_eq!(told(), [both.clone(), both].concat());
}
