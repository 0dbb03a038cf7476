//! `tokenring demo`: three simulated model servers and the proxy in one process.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use loadtest::mock::{Mock, MockConfig};

use super::banner::show;
use super::log::Log;
use super::serve::announce;
use super::start;
use crate::config::Config;
use crate::control::signals::Ending;

/// Where the demo listens when that port is free.
const PORT: u16 = 4000;
/// What each server serves; the second model lives on two of them.
const SERVERS: [(&str, &[&str]); 3] =
    [("gpu0", &["llama-demo"]), ("gpu1", &["qwen-demo"]), ("gpu2", &["qwen-demo", "embed-demo"])];

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
        .map(|(seed, (name, models))| {
            Mock::start(MockConfig {
                name: (*name).to_owned(),
                models: models.iter().map(|&model| model.to_owned()).collect(),
                interval: Duration::from_millis(30),
                first_token: Duration::from_millis(150),
                tokens: 40,
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
    let address = started.server.address().map(show).unwrap_or_default();
    out.write_all(usage(&address).as_bytes()).map_err(|error| error.to_string())?;
    out.flush().map_err(|error| error.to_string())?;
    ending.wait(|| started.server.reload());
    started.server.drain();
    ending.on_next(started.server.cutter());
    started.server.join();
    Ok(())
}

fn config(servers: &[Mock], port: u16) -> Result<Config, String> {
    let mut text = format!(
        "process.drain = \"2s\"\n[[listener]]\nname = \"demo\"\nbind = \"127.0.0.1:{port}\"\nauth = \"none\"\n"
    );
    for (server, (name, _)) in servers.iter().zip(SERVERS) {
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
        "\nThree simulated model servers are behind http://{address}. Try:\n\n  {}\n\n  {}\n\n  \
         curl http://{address}/v1/models\n\nCtrl-C ends the demo.\n",
        chat("llama-demo", ""),
        chat("qwen-demo", "\"stream\":true,"),
    )
}
