//! `tokenring demo`: three simulated model servers and the proxy in one process.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use loadtest::mock::{Mock, MockConfig};

use super::log::Log;
use super::serve::announce;
use super::start::start;
use crate::config::Config;
use crate::control::signals::Ending;

/// Where the demo listens when that port is free.
const PORT: u16 = 4000;

/// A simulated server.
struct Simulated {
    name: &'static str,
    models: &'static [&'static str],
    /// What it answers to every chat.
    says: &'static str,
}

/// The servers; `qwen-demo` lives on two of them.
const SERVERS: [Simulated; 3] = [
    Simulated {
        name: "gpu0",
        models: &["llama-demo"],
        says: "This answer comes from gpu0, a simulated server and the only one with llama-demo.",
    },
    Simulated {
        name: "gpu1",
        models: &["qwen-demo"],
        says: "This answer comes from gpu1, a simulated server. It shares qwen-demo with gpu2: ask again.",
    },
    Simulated {
        name: "gpu2",
        models: &["qwen-demo", "embed-demo"],
        says: "This answer comes from gpu2, a simulated server. It shares qwen-demo with gpu1: ask again.",
    },
];

/// Runs the demo until Ctrl-C.
pub fn demo(out: &mut dyn Write, err: &mut dyn Write) -> ExitCode {
    match run(out, err) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(err, "error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(out: &mut dyn Write, err: &mut dyn Write) -> Result<(), String> {
    let mut ending = Ending::catch().map_err(|error| error.to_string())?;
    let servers: Vec<Mock> = SERVERS
        .iter()
        .enumerate()
        .map(|(seed, server)| {
            Mock::start(MockConfig {
                name: server.name.to_owned(),
                models: server.models.iter().map(|&model| model.to_owned()).collect(),
                interval: Duration::from_millis(100),
                first_token: Duration::from_millis(150),
                says: Some(server.says.to_owned()),
                seed: seed as u64,
                ..MockConfig::default()
            })
        })
        .collect::<io::Result<_>>()
        .map_err(|error| format!("a simulated server cannot start: {error}"))?;
    let started = match start(&config(&servers, PORT)?) {
        Ok(started) => started,
        // The usual port is taken: any other will do for a demo.
        Err(_) => start(&config(&servers, 0)?)?,
    };
    announce(&started, &Log::start(&started.config.log), err);
    let address = started.server.address().map(|address| address.to_string()).unwrap_or_default();
    out.write_all(usage(&address).as_bytes()).map_err(|error| error.to_string())?;
    out.flush().map_err(|error| error.to_string())?;
    ending.wait(|| started.server.reload(), || {}, || {});
    started.server.drain();
    ending.on_next(started.server.aborter(), || {});
    started.server.join();
    Ok(())
}

fn config(servers: &[Mock], port: u16) -> Result<Config, String> {
    let mut text = format!(
        "process.drain = \"2s\"\n[[listener]]\nname = \"demo\"\nbind = \"127.0.0.1:{port}\"\nauth = \"none\"\n"
    );
    for (server, Simulated { name, .. }) in servers.iter().zip(SERVERS) {
        text.push_str(&format!("[[upstream]]\nname = \"{name}\"\nurl = \"{}\"\n", server.url()));
    }
    Config::from_toml_str(&text, &|_| None).map_err(|report| report.to_string())
}

fn usage(address: &str) -> String {
    let chat = |model: &str, stream: &str| {
        format!(
            "curl -N http://{address}/v1/chat/completions -H 'Content-Type: application/json' \\\n    \
             -d '{{\"model\":\"{model}\",{stream}\"messages\":[{{\"role\":\"user\",\"content\":\"hello\"}}]}}'"
        )
    };
    format!(
        "\nThree simulated model servers are behind http://{address}: gpu0 has llama-demo, gpu1 and gpu2\n\
         share qwen-demo, gpu2 has embed-demo as well. Each answer says which of them it comes from.\n\
         In another terminal, try a whole answer:\n\n  {}\n\n\
         A stream, word by word; ask a few times, and both servers take their turns:\n\n  {}\n\n\
         The models that clients see:\n\n  curl http://{address}/v1/models\n\nCtrl-C ends the demo.\n",
        chat("llama-demo", ""),
        chat("qwen-demo", "\"stream\":true,"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readme_shows_what_it_prints() {
        let printed = usage("127.0.0.1:4000");
        let (first, _) = printed.trim_start().split_once("\n\nA stream").unwrap();
        let readme = include_str!("../../README.md");
        assert!(readme.contains(first), "README.md does not show:\n{first}");
        assert!(readme.contains(SERVERS[0].says), "nor: {}", SERVERS[0].says);
    }

    #[test]
    fn every_server_says_its_name() {
        for server in &SERVERS {
            assert!(server.says.contains(&format!("comes from {},", server.name)));
        }
    }
}
