//! `tokenring init`: looks for model servers on this machine and writes a config that works.
//!
//! It asks where vLLM, llama-server, Ollama and SGLang listen by default, and where it is told to.
//! Plain HTTP only: a server behind https is written down unasked, since its key is not known here.

use std::io::Write;
use std::net::ToSocketAddrs as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use crate::server::question::{connect, exchange, explain};

/// Where servers listen by default, and whose port it is.
const USUAL: &[(&str, &str)] = &[
    ("http://127.0.0.1:8000", "vllm"),
    ("http://127.0.0.1:8080", "llama-server"),
    ("http://127.0.0.1:11434", "ollama"),
    ("http://127.0.0.1:30000", "sglang"),
];
/// Longest wait for a connection, and for each piece of an answer.
const STEP_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest answer that is read, in bytes.
const ANSWER_BYTES_MAX: u64 = 1 << 20;

/// Arguments of `init`.
#[derive(Debug, Clone, Args)]
pub struct InitArgs {
    /// The file to write [default: tokenring.toml]; one that is there is kept.
    #[arg(short = 'o', long = "output", value_name = "FILE", default_value = crate::load::CONFIG_PATH, hide_default_value = true)]
    output: PathBuf,
    /// Another server to ask: its base URL.
    #[arg(long = "backend", value_name = "URL")]
    backends: Vec<String>,
    /// Overwrite the file.
    #[arg(long)]
    force: bool,
}

/// A server that is to stand in the file.
struct Found {
    name: String,
    url: String,
    /// None where nobody was asked.
    models: Option<Vec<String>>,
    protocol: &'static str,
}

/// `init`: what was found, line by line, to `out`; exit 1 where the file is not written.
pub fn init(args: &InitArgs, out: &mut dyn Write, err: &mut dyn Write) -> ExitCode {
    let mut found = Vec::new();
    for (url, name) in USUAL {
        look(url, name, false, &mut found, out);
    }
    for (at, url) in args.backends.iter().enumerate() {
        look(url, &format!("server{}", at + 1), true, &mut found, out);
    }
    if let Err(why) = crate::import::write_new(&args.output, &text(&found), args.force) {
        let _ = writeln!(err, "{}: {why}", args.output.display());
        return ExitCode::FAILURE;
    }
    let shown = args.output.display();
    let _ = writeln!(out, "{shown}: written; next: tokenring serve -c {shown}");
    ExitCode::SUCCESS
}

fn look(url: &str, name: &str, wanted: bool, found: &mut Vec<Found>, out: &mut dyn Write) {
    let url = url.trim_end_matches('/');
    if found.iter().any(|known: &Found| known.url == url) {
        return;
    }
    let mut add = |models, protocol| {
        found.push(Found { name: name.to_owned(), url: url.to_owned(), models, protocol });
    };
    if url.starts_with("https://") {
        let _ = writeln!(out, "{url}: not asked; its key belongs into the file");
        return add(None, "openai");
    }
    match ask(url) {
        Ok((protocol, models)) => {
            let list = if models.is_empty() { "no models".to_owned() } else { models.join(", ") };
            let _ = writeln!(out, "{url}: answers, has {list}");
            add(Some(models), protocol);
        }
        Err(why) => {
            let _ = writeln!(out, "{url}: {why}");
            if wanted {
                add(None, "openai");
            }
        }
    }
}

/// What a server says of its models, in the first way that it understands.
fn ask(url: &str) -> Result<(&'static str, Vec<String>), String> {
    let bare = url.strip_suffix("/v1").unwrap_or(url);
    let ids = |body: &str, list: &str, key: &str| -> Option<Vec<String>> {
        let json: serde_json::Value = serde_json::from_str(body).ok()?;
        let items = json.get(list)?.as_array()?;
        Some(items.iter().filter_map(|item| Some(item.get(key)?.as_str()?.to_owned())).collect())
    };
    let (status, body) = get(bare, "/v1/models")?;
    if let Some(models) = ids(&body, "data", "id").filter(|_| status == 200) {
        // Ollama speaks both; its own list is the fuller one.
        let own = get(bare, "/api/tags").ok().and_then(|(_, body)| ids(&body, "models", "name"));
        return Ok((if own.is_some() { "ollama" } else { "openai" }, models));
    }
    if let Some(models) =
        get(bare, "/api/tags").ok().and_then(|(_, body)| ids(&body, "models", "name"))
    {
        return Ok(("ollama", models));
    }
    match get(bare, "/health") {
        Ok((200, _)) => Ok(("openai", Vec::new())),
        _ => Err(format!("answers with {status} when asked for its models")),
    }
}

/// One question in HTTP/1.0, which is answered without chunks: status and body.
fn get(url: &str, path: &str) -> Result<(u16, String), String> {
    let rest = url.strip_prefix("http://").ok_or("no http:// or https:// URL")?;
    let (authority, base) = rest
        .split_once('/')
        .map_or((rest, String::new()), |(authority, base)| (authority, format!("/{base}")));
    let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let target = if has_port { authority.to_owned() } else { format!("{authority}:80") };
    let told = |why: std::io::Error| match why.kind() {
        std::io::ErrorKind::ConnectionRefused => "nobody listens".to_owned(),
        _ => explain(&why),
    };
    let address = target.to_socket_addrs().map_err(told)?.next().ok_or("no address")?;
    let stream = connect(&address, STEP_TIMEOUT).map_err(told)?;
    let request = format!("GET {base}{path} HTTP/1.0\r\nHost: {authority}\r\nAccept: */*\r\n\r\n");
    let answer = exchange(stream, request.as_bytes(), ANSWER_BYTES_MAX).map_err(told)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("speaks no HTTP")?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.ok_or("speaks no HTTP")?, body.to_owned()))
}

/// The file.
fn text(found: &[Found]) -> String {
    let mut text = String::from(
        "# Made by `tokenring init`. Every key: config.example.toml. `tokenring check` checks it.\n\n\
         [[listener]]\nname = \"main\"\n# This machine alone; for others use 0.0.0.0:4000 and auth = \"keys\".\n\
         bind = \"127.0.0.1:4000\"\nauth = \"none\"\n\n\
         # [[key]]\n# name = \"my-app\"\n# key = \"${MY_APP_KEY}\"\n",
    );
    if found.is_empty() {
        text.push_str(
            "\n# No server was found: this is where vLLM listens; put in yours.\n\
             [[upstream]]\nname = \"vllm\"\nurl = \"http://127.0.0.1:8000\"\n",
        );
    }
    for server in found {
        let models = match &server.models {
            None => "was not asked".to_owned(),
            Some(models) if models.is_empty() => "named no models yet".to_owned(),
            Some(models) => format!("had {}", models.join(", ")),
        };
        // A comment ends with its line, whatever a server calls its models.
        let models: String = models.chars().filter(|c| !c.is_control()).collect();
        let (name, url) = (crate::import::quoted(&server.name), crate::import::quoted(&server.url));
        text.push_str(&format!("\n# It {models}; it is asked again and again.\n"));
        text.push_str(&format!("[[upstream]]\nname = {name}\nurl = {url}\n"));
        if server.protocol != "openai" {
            text.push_str(&format!("protocol = \"{}\"\n", server.protocol));
        }
        if server.url.starts_with("https://") {
            text.push_str("# auth = { type = \"bearer\", token = \"${ITS_KEY}\" }\n");
        }
    }
    text.push_str("\n[admin]\n# Metrics, health and the API, for this machine alone.\nbind = \"127.0.0.1:9000\"\n");
    text
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::net::TcpListener;

    use super::*;

    /// A server that answers these paths, and 404 to others; for as long as the test runs.
    fn server(answers: &'static [(&'static str, &'static str)]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut head = [0; 4096];
                let read = stream.read(&mut head).unwrap_or(0);
                let line = String::from_utf8_lossy(&head[..read]).into_owned();
                let path = line.split(' ').nth(1).unwrap_or_default();
                let found = answers.iter().find(|(known, _)| *known == path);
                let (status, body) = found.map_or((404, "{}"), |(_, body)| (200, *body));
                let _ = write!(stream, "HTTP/1.0 {status} x\r\n\r\n{body}");
            }
        });
        url
    }

    const OPENAI: &str = r#"{"object":"list","data":[{"id":"small"},{"id":"large"}]}"#;
    const TAGS: &str = r#"{"models":[{"name":"llama3:8b"}]}"#;

    #[test]
    fn tells_servers_apart() {
        let names = |models: &[&str]| models.iter().map(|m| (*m).to_owned()).collect::<Vec<_>>();
        let url = server(&[("/v1/models", OPENAI)]);
        assert_eq!(ask(&url), Ok(("openai", names(&["small", "large"]))));
        assert_eq!(ask(&format!("{url}/v1")), Ok(("openai", names(&["small", "large"]))));
        let both = server(&[("/v1/models", OPENAI), ("/api/tags", TAGS)]);
        assert_eq!(ask(&both), Ok(("ollama", names(&["small", "large"]))));
        assert_eq!(ask(&server(&[("/api/tags", TAGS)])), Ok(("ollama", names(&["llama3:8b"]))));
        assert_eq!(ask(&server(&[("/health", "ok")])), Ok(("openai", Vec::new())));
        assert!(ask(&server(&[])).unwrap_err().contains("404"));
    }

    #[test]
    fn writes_a_config_that_loads_and_keeps_what_is_there() {
        let file = std::env::temp_dir().join(format!("tokenring-init-{}.toml", std::process::id()));
        let _ = std::fs::remove_file(&file);
        let backends =
            vec![server(&[("/v1/models", OPENAI)]), "https://api.example.com".to_owned()];
        let mut args = InitArgs { output: file.clone(), backends, force: false };
        let run = |args: &InitArgs| {
            let (mut out, mut err) = (Vec::new(), Vec::new());
            let code = init(args, &mut out, &mut err);
            (code, String::from_utf8(out).unwrap() + &String::from_utf8(err).unwrap())
        };
        let (code, said) = run(&args);
        assert_eq!(code, ExitCode::SUCCESS, "{said}");
        assert!(said.contains("answers, has small, large") && said.contains("not asked"), "{said}");
        let config = crate::load::load(&file).unwrap_or_else(|why| panic!("{why}")).config;
        assert!(config.upstreams.len() >= 2);
        let (code, said) = run(&args);
        assert!(code == ExitCode::FAILURE && said.contains("--force"), "{said}");
        args.force = true;
        assert_eq!(run(&args).0, ExitCode::SUCCESS);
        std::fs::remove_file(&file).unwrap();
    }

    #[test]
    fn a_config_without_servers_loads_too() {
        let loaded = crate::load::load_text("init", &text(&[]));
        assert!(loaded.is_ok(), "{}", loaded.unwrap_err());
    }
}
