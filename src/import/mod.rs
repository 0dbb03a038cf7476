//! `tokenring import`: another proxy's config as one of ours.
//!
//! The one idea: every key of the source is written into the result, or told with its line as not
//! carried over; the tree of the source (`source`) keeps the books, the tables of the result
//! (`draft`) the order. One file a format, each of them only that mapping. No value of the source is ever
//! told, since any of them may be a secret: only names of keys.

mod draft;
mod freellm_env;
mod litellm;
mod llama_swap;
mod llmproxy;
mod nginx_llm_proxy;
mod simple_endpoints;
mod source;
mod x5iu;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueEnum};

use crate::base::units::counted;
use draft::Draft;
pub use draft::quoted;
use source::{Lost, Node};

/// Whose config it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// nginx-llm-proxy: config.json.
    NginxLlmProxy,
    /// The FastAPI proxy of Ollama and vLLM: its .env.
    FreellmEnv,
    /// The Node proxy of local endpoints: endpoints.yml.
    SimpleEndpoints,
    /// llmproxy: config.yaml.
    Llmproxy,
    /// x5iu/llm-proxy: config.yml.
    X5iu,
    /// LiteLLM: config.yaml.
    Litellm,
    /// llama-swap: config.yaml.
    LlamaSwap,
}

/// Arguments of `import`.
#[derive(Debug, Clone, Args)]
pub struct ImportArgs {
    /// Whose config it is.
    #[arg(value_name = "KIND", value_enum)]
    kind: Kind,
    /// The other proxy's config.
    #[arg(value_name = "FILE", required_unless_present = "env_file")]
    file: Option<PathBuf>,
    /// The same, for freellm-env.
    #[arg(long, value_name = "FILE", conflicts_with = "file")]
    env_file: Option<PathBuf>,
    /// Write here instead of to stdout; a file that is there is kept.
    #[arg(short = 'o', long = "output", value_name = "FILE")]
    output: Option<PathBuf>,
    /// Overwrite the file of -o.
    #[arg(long, requires = "output")]
    force: bool,
}

/// `import`: our config to `out` or the file of `-o`, and to `err` what was not carried over.
///
/// Errors: the source cannot be read, or the result not be written; exit 1.
pub fn import(args: &ImportArgs, out: &mut dyn Write, err: &mut dyn Write) -> ExitCode {
    let file = args.file.as_deref().or(args.env_file.as_deref()).unwrap_or(Path::new(""));
    let shown = file.display().to_string();
    let said = std::fs::read_to_string(file).map_err(|why| why.to_string());
    let (text, lost) = match said.and_then(|text| converted(args.kind, &shown, &text)) {
        Ok(done) => done,
        Err(why) => {
            let _ = writeln!(err, "{shown}: {why}");
            return ExitCode::FAILURE;
        }
    };
    for lost in &lost {
        let _ = writeln!(err, "{shown}:{}: {}", lost.line, told(lost));
    }
    let Some(output) = &args.output else {
        // A reader that leaves early, such as `head`, is not our fault.
        let _ = out.write_all(text.as_bytes());
        return ExitCode::SUCCESS;
    };
    if let Err(why) = write_new(output, &text, args.force) {
        let _ = writeln!(err, "{}: {why}", output.display());
        return ExitCode::FAILURE;
    }
    let _ = writeln!(
        err,
        "{}: written, {} not carried over; next: tokenring check -c {}",
        output.display(),
        counted(lost.len(), "key"),
        output.display()
    );
    ExitCode::SUCCESS
}

/// Our config for another proxy's, and what has no place in it, in the order of the source.
///
/// Errors: the source cannot be understood; never with a value of it.
fn converted(kind: Kind, shown: &str, text: &str) -> Result<(String, Vec<Lost>), String> {
    let root = match kind {
        Kind::FreellmEnv => Node::parse_env(text),
        _ => Node::parse(text)?,
    };
    if root.entries().is_empty() {
        return Err("holds no keys".to_owned());
    }
    let mut draft = Draft::default();
    match kind {
        Kind::NginxLlmProxy => nginx_llm_proxy::import(&root, &mut draft),
        Kind::FreellmEnv => freellm_env::import(&root, &mut draft)?,
        Kind::SimpleEndpoints => simple_endpoints::import(&root, &mut draft),
        Kind::Llmproxy => llmproxy::import(&root, &mut draft),
        Kind::X5iu => x5iu::import(&root, &mut draft),
        Kind::Litellm => litellm::import(&root, &mut draft),
        Kind::LlamaSwap => llama_swap::import(&root, &mut draft),
    }
    let mut lost = root.left();
    lost.append(&mut draft.lost);
    lost.sort_by_key(|lost| lost.line);
    let name =
        kind.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
    // A comment ends with its line, whatever the name of the file.
    let shown: String = shown.chars().filter(|c| !c.is_control()).collect();
    let mut head = format!("# From {shown}, a config of {name}. Every key: config.example.toml.\n");
    if !lost.is_empty() {
        head.push_str("#\n# Not carried over:\n");
    }
    for lost in &lost {
        head.push_str(&format!("#   line {}: {}\n", lost.line, told(lost)));
    }
    Ok((head + &draft.to_toml(), lost))
}

/// A line about what is lost.
fn told(lost: &Lost) -> String {
    let path: String = lost.path.chars().filter(|c| !c.is_control()).collect();
    match lost.why.as_str() {
        "" => format!("{path}: not carried over"),
        why => format!("{path}: {why}"),
    }
}

/// Writes a file that was not there, or with `force` whatever was.
///
/// Shape: readable by its owner alone, since it may hold keys.
pub fn write_new(path: &Path, text: &str, force: bool) -> Result<(), String> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = std::fs::OpenOptions::new();
    options.write(true).mode(0o600);
    match force {
        true => options.create(true).truncate(true),
        false => options.create_new(true),
    };
    let mut file = options.open(path).map_err(|why| match why.kind() {
        std::io::ErrorKind::AlreadyExists => "is there already; --force overwrites it".to_owned(),
        _ => why.to_string(),
    })?;
    file.write_all(text.as_bytes()).map_err(|why| why.to_string())
}
