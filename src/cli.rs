//! The command line.
//!
//! The one idea: `parse` says what is wanted, as a `Command`; `main` matches on
//! it. `check` and `config` are carried out here, since they need nothing but
//! the file; `serve` and `demo` are the server's. This is the only place where
//! the config meets the environment and the file system.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{self, Loaded, Outside, Report};
use crate::net::sys::unix_s;

/// Where the config is looked for when `-c` is not given.
pub const CONFIG_PATH: &str = "tokenring.toml";

/// The reverse proxy in front of LLM servers.
#[derive(Debug, Parser)]
#[command(name = "tokenring", version, disable_help_subcommand = true)]
struct Cli {
    /// Check the config and exit, as `check` does.
    #[arg(short = 't')]
    test: bool,
    /// With -t: the config file.
    #[arg(short = 'c', long = "config", value_name = "FILE", requires = "test")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

/// What is wanted.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Run the proxy.
    Serve(ServeArgs),
    /// Check the config: print all errors and warnings; exit 0 or 1.
    Check(FileArgs),
    /// Show the effective config, or the schema of the file.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Run three simulated model servers and the proxy in one process.
    Demo,
}

/// Arguments of `serve`.
#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    /// The config file [default: tokenring.toml].
    #[arg(short = 'c', long = "config", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Run without a file, in front of this server; may be given several times.
    #[arg(long = "backend", value_name = "URL", conflicts_with = "config")]
    pub backends: Vec<String>,
}

/// Arguments of what reads a file and nothing else.
#[derive(Debug, Clone, Args)]
pub struct FileArgs {
    /// The config file.
    #[arg(short = 'c', long = "config", value_name = "FILE", default_value = CONFIG_PATH)]
    pub config: PathBuf,
}

/// What `config` shows.
#[derive(Debug, Clone, Subcommand)]
pub enum ConfigCommand {
    /// The effective config: defaults filled in, secrets masked.
    Print(FileArgs),
    /// The JSON schema of the file, for editors.
    Schema,
}

/// Reads the command line; `Err` holds a message for the user and the exit code.
///
/// Shape: `args` begins with the program's name. Help and version are "errors" of code 0.
pub fn parse<I, T>(args: I) -> Result<Command, (String, u8)>
where
    I: IntoIterator<Item = T>,
    T: Into<std::ffi::OsString> + Clone,
{
    let said = |e: clap::Error| (e.render().to_string(), u8::from(e.use_stderr()) * 2);
    let cli = Cli::try_parse_from(args).map_err(said)?;
    let file = || cli.config.clone().unwrap_or_else(|| CONFIG_PATH.into());
    match (cli.command, cli.test) {
        (None, true) => Ok(Command::Check(FileArgs { config: file() })),
        (Some(command), false) => Ok(command),
        (Some(_), true) => Err(("error: -t stands without a command\n".to_owned(), 2)),
        (None, false) => {
            use clap::CommandFactory as _;
            Err((Cli::command().render_help().to_string(), 2))
        }
    }
}

/// Reads and checks a config file, with this process's environment and files.
///
/// Errors: a report; of a file that cannot be read, one whose only message says why.
pub fn load(path: &Path) -> Result<Loaded, LoadFault> {
    let shown = path.display().to_string();
    let text = std::fs::read_to_string(path)
        .map_err(|why| LoadFault::Unreadable(format!("{shown}: {why}\n")))?;
    load_text(&shown, &text).map_err(|report| LoadFault::Refused(Box::new(report)))
}

/// Checks the text of a config, with this process's environment and files.
///
/// Shape: `shown` is its name in complaints.
pub fn load_text(shown: &str, text: &str) -> Result<Loaded, Report> {
    let outside = Outside {
        env: &|name| std::env::var(name).ok(),
        read: &|path| std::fs::read_to_string(path).map_err(|why| why.to_string()),
        now_s: unix_s(),
    };
    config::load(shown, text, &outside)
}

/// Why there is no config.
#[derive(Debug)]
pub enum LoadFault {
    /// The file could not be read; the text says why.
    Unreadable(String),
    /// It was read and refused.
    Refused(Box<Report>),
}

impl std::fmt::Display for LoadFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unreadable(why) => f.write_str(why),
            Self::Refused(report) => report.fmt(f),
        }
    }
}

impl std::error::Error for LoadFault {}

/// `check`: all errors and warnings to `err`, a verdict to `out`; exit 0 or 1.
pub fn check(args: &FileArgs, out: &mut dyn Write, err: &mut dyn Write) -> ExitCode {
    let shown = args.config.display();
    match load(&args.config) {
        Ok(Loaded { config, report }) => {
            let _ = write!(err, "{report}");
            let _ = writeln!(
                out,
                "{shown}: ok, {} listeners, {} upstreams, {} models, {} keys, {} warnings",
                config.listeners.len(),
                config.upstreams.len(),
                config.models.len(),
                config.keys.len(),
                report.warnings.len(),
            );
            ExitCode::SUCCESS
        }
        Err(fault) => {
            let _ = write!(err, "{fault}");
            if let LoadFault::Refused(report) = fault {
                let _ = writeln!(err, "{shown}: refused, {} errors", report.errors.len());
            }
            ExitCode::FAILURE
        }
    }
}

/// `config print` and `config schema`; exit 0 or 1.
pub fn show(command: &ConfigCommand, out: &mut dyn Write, err: &mut dyn Write) -> ExitCode {
    let text = match command {
        ConfigCommand::Schema => config::json_schema() + "\n",
        ConfigCommand::Print(args) => match load(&args.config) {
            Ok(loaded) => loaded.config.to_toml(),
            Err(fault) => {
                let _ = write!(err, "{fault}");
                return ExitCode::FAILURE;
            }
        },
    };
    // A reader that leaves early, such as `head`, is not our fault.
    let _ = out.write_all(text.as_bytes());
    ExitCode::SUCCESS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_commands() {
        let command = |args: &[&str]| parse([&["tokenring"], args].concat());
        assert!(matches!(command(&["demo"]), Ok(Command::Demo)));
        let Ok(Command::Check(args)) = command(&["-t", "-c", "x.toml"]) else { panic!() };
        assert_eq!(args.config, PathBuf::from("x.toml"));
        let Ok(Command::Check(args)) = command(&["check"]) else { panic!() };
        assert_eq!(args.config, PathBuf::from(CONFIG_PATH));
        let serve = ["serve", "--backend", "http://a", "--backend", "http://b"];
        let Ok(Command::Serve(args)) = command(&serve) else { panic!() };
        assert_eq!((args.backends.len(), args.config), (2, None));
        assert!(matches!(
            command(&["config", "schema"]),
            Ok(Command::Config(ConfigCommand::Schema))
        ));
    }

    #[test]
    fn refuses_what_makes_no_sense() {
        let code = |args: &[&str]| parse([&["tokenring"], args].concat()).unwrap_err().1;
        assert_eq!(code(&["serve", "-c", "x", "--backend", "http://a"]), 2);
        assert_eq!(code(&["-t", "demo"]), 2);
        assert_eq!(code(&["-c", "x"]), 2);
        assert_eq!(code(&[]), 2);
        assert_eq!(code(&["--help"]), 0);
    }

    #[test]
    fn says_which_file_cannot_be_read() {
        let args = FileArgs { config: "no/such/file.toml".into() };
        let (mut out, mut err) = (Vec::new(), Vec::new());
        assert_eq!(check(&args, &mut out, &mut err), ExitCode::FAILURE);
        assert!(String::from_utf8(err).unwrap().starts_with("no/such/file.toml: "));
    }
}
