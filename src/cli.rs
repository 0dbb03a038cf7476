//! The command line.
//!
//! The one idea: `parse` says what is wanted, as a `Command`; `main` matches on
//! it. `check`, `diff` and `config` are carried out here, since they need nothing but
//! files (`load`), or one question (`live`); `serve` and `demo` are the server's.

mod init;
mod shell;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, CommandFactory as _, Parser, Subcommand};

use crate::base::units::counted;
use crate::config::{self, Config, Loaded};
use crate::import::ImportArgs;
pub use crate::import::import;
use crate::load::{CONFIG_PATH, LoadFault, load};
use crate::server::live::{self, Said};
use crate::server::{self, serve::ServeArgs};
pub use init::{InitArgs, init};
pub use shell::CompletionsArgs;

/// The reverse proxy in front of LLM servers.
#[derive(Debug, Parser)]
#[command(name = "tokenring", version)]
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
    /// Check the config, or with --live the process that runs with it; exit 0 or 1.
    Check(CheckArgs),
    /// Show what differs between two configs: what a reload would add, change and remove.
    Diff(DiffArgs),
    /// Show the effective config, or the schema of the file.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Run three simulated model servers and the proxy in one process.
    Demo,
    /// Look for model servers on this machine and write a config that works.
    Init(InitArgs),
    /// Turn the config of another proxy into one for this, and tell what has no place in it.
    Import(ImportArgs),
    /// Print the completions of this command line for a shell.
    Completions(CompletionsArgs),
    /// Print the manual page (roff): `tokenring man | man -l -`.
    Man,
}

/// Arguments of what reads a file and nothing else.
#[derive(Debug, Clone, Args)]
pub struct FileArgs {
    /// The config file [default: tokenring.toml].
    #[arg(short = 'c', long = "config", value_name = "FILE")]
    config: Option<PathBuf>,
    /// The same without -c.
    #[arg(value_name = "FILE", conflicts_with = "config")]
    positional: Option<PathBuf>,
}

/// Arguments of `check`.
#[derive(Debug, Clone, Args)]
pub struct CheckArgs {
    #[command(flatten)]
    file: FileArgs,
    /// Ask the running process, at the admin address of the config, whether it is ready.
    #[arg(long)]
    live: bool,
}

impl CheckArgs {
    /// The arguments that check this file.
    #[must_use]
    pub fn of(file: impl Into<PathBuf>) -> Self {
        Self { file: FileArgs::of(file), live: false }
    }
}

/// Arguments of `diff`.
#[derive(Debug, Clone, Args)]
pub struct DiffArgs {
    /// The config file that is in force [default: tokenring.toml].
    #[arg(short = 'c', long = "config", value_name = "FILE")]
    config: Option<PathBuf>,
    /// The file that would take its place.
    #[arg(value_name = "NEW")]
    new: PathBuf,
}

impl FileArgs {
    /// The arguments that name this file.
    #[must_use]
    pub fn of(file: impl Into<PathBuf>) -> Self {
        Self { config: Some(file.into()), positional: None }
    }

    /// The config file.
    #[must_use]
    pub fn file(&self) -> &Path {
        let named = self.config.as_deref().or(self.positional.as_deref());
        named.unwrap_or(Path::new(CONFIG_PATH))
    }
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
        (None, true) => Ok(Command::Check(CheckArgs::of(file()))),
        (Some(command), false) => Ok(command),
        (Some(_), true) => Err(("error: -t stands without a command\n".to_owned(), 2)),
        (None, false) => Err((Cli::command().render_help().to_string(), 2)),
    }
}

/// `check`: all errors and warnings to `err`, a verdict to `out`; exit 0 or 1.
///
/// With `--live` the verdict is that of the running process.
pub fn check(args: &CheckArgs, out: &mut dyn Write, err: &mut dyn Write) -> ExitCode {
    let file = args.file.file();
    let shown = file.display();
    match load(file) {
        Ok(Loaded { config, .. }) if args.live => check_live(file, &config, out, err),
        Ok(Loaded { config, report }) => {
            let _ = write!(err, "{report}");
            // What this machine has no room for is refused by `serve`, too.
            if let Err(why) = server::running::cores(&config) {
                let _ = writeln!(err, "{shown}: error: {why}\n{shown}: refused, 1 error");
                return ExitCode::FAILURE;
            }
            let _ = writeln!(
                out,
                "{shown}: ok, {}, {}, {}, {}, {}",
                counted(config.listeners.len(), "listener"),
                counted(config.upstreams.len(), "upstream"),
                counted(config.models.len(), "model"),
                counted(config.keys.len(), "key"),
                counted(report.warnings.len(), "warning"),
            );
            ExitCode::SUCCESS
        }
        Err(fault) => {
            let _ = write!(err, "{fault}");
            if let LoadFault::Refused(report) = fault {
                let _ =
                    writeln!(err, "{shown}: refused, {}", counted(report.errors.len(), "error"));
            }
            ExitCode::FAILURE
        }
    }
}

/// Tells whether the process that runs with this config is ready; its warnings it has told itself.
fn check_live(file: &Path, config: &Config, out: &mut dyn Write, err: &mut dyn Write) -> ExitCode {
    let Some(admin) = &config.admin else {
        let shown = file.display();
        let _ = writeln!(err, "{shown}: no [admin] section, so nobody can be asked");
        return ExitCode::FAILURE;
    };
    let why = match live::ask(admin) {
        Ok(Said::Ready) => {
            let _ = writeln!(out, "{}: ready", admin.bind);
            return ExitCode::SUCCESS;
        }
        Ok(Said::NotReady(why)) => format!("not ready: {why}"),
        Err(why) => why,
    };
    let _ = writeln!(err, "{}: {why}", admin.bind);
    ExitCode::FAILURE
}

/// `diff`: one line for each thing that a reload would change, to `out`.
///
/// Shape: exit 0 when a reload can do it all, 1 when a file is refused or a new process is needed.
pub fn diff(args: &DiffArgs, out: &mut dyn Write, err: &mut dyn Write) -> ExitCode {
    let old = args.config.as_deref().unwrap_or(Path::new(CONFIG_PATH));
    let mut configs = Vec::new();
    for file in [old, &args.new] {
        match load(file) {
            Ok(Loaded { config, report }) => {
                let _ = write!(err, "{report}");
                configs.push(config);
            }
            Err(fault) => {
                let _ = write!(err, "{fault}");
                return ExitCode::FAILURE;
            }
        }
    }
    let [old, new] = configs.as_slice() else { return ExitCode::FAILURE };
    let changes = config::diff::diff(old, new);
    let mut text = String::new();
    for change in &changes {
        text.push_str(&format!("{change}\n"));
    }
    let fixed: Vec<String> = changes.iter().filter_map(|change| change.fixed()).collect();
    if changes.is_empty() {
        text.push_str("nothing differs\n");
    } else if !fixed.is_empty() {
        text.push_str(&format!(
            "a reload would be refused: {} needs a restart\n",
            fixed.join(", ")
        ));
    }
    // A reader that leaves early, such as `head`, is not our fault.
    let _ = out.write_all(text.as_bytes());
    if fixed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// `config print` and `config schema`; exit 0 or 1.
pub fn show(command: &ConfigCommand, out: &mut dyn Write, err: &mut dyn Write) -> ExitCode {
    let text = match command {
        ConfigCommand::Schema => config::json_schema() + "\n",
        ConfigCommand::Print(args) => match load(args.file()) {
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

/// `completions`: the script for a shell, to `out`.
pub fn completions(args: &CompletionsArgs, out: &mut dyn Write) -> ExitCode {
    shell::completions(args, Cli::command(), out)
}

/// `man`: the manual page, as roff, to `out`; exit 1 where it cannot be made.
pub fn man(out: &mut dyn Write, err: &mut dyn Write) -> ExitCode {
    shell::man(Cli::command(), out, err)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_commands() {
        let command = |args: &[&str]| parse([&["tokenring"], args].concat());
        assert!(matches!(command(&["demo"]), Ok(Command::Demo)));
        let Ok(Command::Check(args)) = command(&["-t", "-c", "x.toml"]) else { panic!() };
        assert_eq!((args.file.file(), args.live), (Path::new("x.toml"), false));
        let Ok(Command::Check(args)) = command(&["check"]) else { panic!() };
        assert_eq!(args.file.file(), Path::new(CONFIG_PATH));
        let Ok(Command::Check(args)) = command(&["check", "--live", "y.toml"]) else { panic!() };
        assert_eq!((args.file.file(), args.live), (Path::new("y.toml"), true));
        let Ok(Command::Serve(args)) = command(&["serve", "y.toml"]) else { panic!() };
        assert_eq!(args.file(), Some(Path::new("y.toml")));
        let serve = ["serve", "--backend", "http://a", "--backend", "http://b"];
        let Ok(Command::Serve(args)) = command(&serve) else { panic!() };
        assert_eq!((args.backends.len(), args.file()), (2, None));
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
        assert_eq!(code(&["check", "x", "-c", "y"]), 2);
        assert_eq!(code(&["serve", "--listen", "127.0.0.1:1"]), 2);
        assert_eq!(code(&["--help"]), 0);
        assert_eq!(code(&["help"]), 0);
        assert_eq!(code(&["help", "check"]), 0);
    }

    #[test]
    fn a_command_line_says_what_a_file_would() {
        let said = ["serve", "--backend", "http://a:1/v1,key=sk-1", "--backend", "b:2"];
        let more =
            ["--listen", "127.0.0.1:7", "--key", "k1", "--key", "k2", "--admin", "127.0.0.1:8"];
        let Ok(Command::Serve(args)) = parse([&["tokenring"][..], &said, &more].concat()) else {
            panic!()
        };
        let config = crate::load::load_sources(&server::serve::said(&args))
            .unwrap_or_else(|why| panic!("{why}"))
            .config;
        assert_eq!(config.listeners[0].binds[0].to_string(), "127.0.0.1:7");
        assert_eq!((config.keys.len(), config.upstreams.len()), (2, 2));
        let config::UpstreamAuth::Bearer(token) = &config.upstreams[0].auth else { panic!() };
        assert_eq!(token.expose(), b"sk-1");
        assert!(matches!(config.upstreams[1].auth, config::UpstreamAuth::None));
        assert_eq!(config.admin.unwrap().bind.to_string(), "127.0.0.1:8");
    }

    #[test]
    fn says_which_file_cannot_be_read() {
        let args = CheckArgs::of("no/such/file.toml");
        let (mut out, mut err) = (Vec::new(), Vec::new());
        assert_eq!(check(&args, &mut out, &mut err), ExitCode::FAILURE);
        assert!(String::from_utf8(err).unwrap().starts_with("no/such/file.toml: "));
    }
}
