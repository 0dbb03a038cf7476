//! The proxy as a process of its own, with its config in a folder and its lines as they come.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::house::LIMIT;

/// A process of the proxy; it ends with the test.
pub(crate) struct Run {
    pub child: Child,
    pub dir: PathBuf,
    lines: Arc<Mutex<Vec<String>>>,
}

/// Where such a process has its files.
pub(crate) fn folder(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("tokenring-{}-{name}", std::process::id()))
}

impl Run {
    /// Serves what `text` describes.
    pub(crate) fn start(name: &str, text: &str) -> Run {
        Run::start_with(name, text, &[])
    }

    /// As `start`, with these variables in its environment.
    pub(crate) fn start_with(name: &str, text: &str, variables: &[(&str, &Path)]) -> Run {
        let dir = folder(name);
        std::fs::create_dir_all(&dir).unwrap();
        let file = dir.join("c.toml");
        std::fs::write(&file, text).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_tokenring"))
            .args(["serve", "-c"])
            .arg(&file)
            .envs(variables.iter().copied())
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

    /// Writes its config anew; it reads it when it is told to.
    pub(crate) fn write(&self, text: &str) {
        std::fs::write(self.dir.join("c.toml"), text).unwrap();
    }

    /// Sends it a signal, by the name that kill(1) knows.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    /// All lines so far.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    /// What stands behind `begin` in the first line that has it.
    pub(crate) fn behind(&self, begin: &str) -> String {
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
pub(crate) fn address(told: &str) -> SocketAddr {
    told.split(' ').next().unwrap().parse().unwrap_or_else(|why| panic!("{told}: {why}"))
}
