//! `tokenring serve`: config → server → signals → exit code.
//!
//! Exit codes: 0 after a drain, 1 when it cannot start, 2 for a wrong command line (`cli`).

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;

use clap::Args;

use super::banner::{banner, hazards};
use super::handover::Meeting;
use super::handover::predecessor::{EstateHooks, HandoverServer};
use super::log::Log;
use super::occupy::Others;
use super::start::{Started, start_beside};
use super::systemd;
use crate::base::units::counted;
use crate::config::{Loaded, LogFormat, Sources, WithoutFile};
use crate::control;
use crate::control::reload::{FileText, ReloadHooks, Reloaded};
use crate::control::signals::{Ending, Leave, Leaving};
use crate::error::Level;
use crate::load::{self, CONFIG_PATH};
use crate::net::sys;
use crate::telemetry::failed::FailedExchange;

/// Arguments of `serve`.
#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    /// The config file [default: tokenring.toml].
    #[arg(short = 'c', long = "config", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The same without -c.
    #[arg(value_name = "FILE", conflicts_with = "config")]
    pub positional: Option<PathBuf>,
    /// Run without a file, in front of this server; may be given several times. KEY is sent to
    /// it, and may be file:/path or hold ${VARIABLES}.
    #[arg(long = "backend", value_name = "URL[,key=KEY]", conflicts_with_all = ["config", "positional"])]
    pub backends: Vec<String>,
    /// With --backend: where to listen; may be given several times [default: 127.0.0.1:4000].
    #[arg(long = "listen", value_name = "ADDR", requires = "backends")]
    pub listen: Vec<String>,
    /// With --backend: a key that clients need; may be given several times, and written as that
    /// of --backend [default: none needed].
    #[arg(long = "key", value_name = "KEY", requires = "backends")]
    pub keys: Vec<String>,
    /// With --backend: where the operator's interface listens.
    #[arg(long = "admin", value_name = "ADDR", requires = "backends")]
    pub admin: Option<String>,
}

impl ServeArgs {
    /// The config file that was named.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        self.config.as_deref().or(self.positional.as_deref())
    }
}

/// Runs the proxy until it is told to end.
pub fn serve(args: &ServeArgs, err: &mut dyn Write) -> ExitCode {
    let (sources, config) = match load_wanted(args) {
        Ok((sources, Loaded { config, report })) => {
            say(err, &report.to_string());
            (sources, config)
        }
        Err(report) => {
            say(err, &report);
            return ExitCode::FAILURE;
        }
    };
    sys::gain_no_rights();
    // Now: the name of a file that has been replaced since would not be its name any more.
    let program = std::env::current_exe().ok();
    let passed = match systemd::sockets() {
        Ok(passed) => passed,
        Err(error) => {
            say(err, &format!("error: {error}\n"));
            return ExitCode::FAILURE;
        }
    };
    // Caught before the workers start: they inherit the mask, and no signal is missed.
    let mut ending = match Ending::catch() {
        Ok(ending) => ending,
        Err(error) => {
            say(err, &format!("error: cannot catch signals: {error}\n"));
            return ExitCode::FAILURE;
        }
    };
    let log = Log::start(&config.log);
    let tell = log.clone();
    let say_line = move |line: &str| tell.say(Level::Warn, line, &[]);
    let leave = ending.leave();
    let late = leave.clone();
    let others = Others {
        meeting: Meeting::of(&config),
        passed,
        edits: sources.overlay.digest(),
        cancelled: Box::new(ending.told()),
        leave: Arc::new(move |why| late.tell(Leaving { why, successor: None })),
    };
    let differs = control::Options {
        say: Arc::new(say_line),
        reload: Some(reload_hooks(args, &log)),
        sources: Some(sources),
        ..control::Options::default()
    };
    let started = match start_beside(&config, differs, Some(others)) {
        Ok(started) => started,
        Err(error) => {
            say(err, &format!("error: {error}\n"));
            return ExitCode::FAILURE;
        }
    };
    announce(&started, &log, err);
    let tell = log.clone();
    // Nobody else sets it.
    let _ = started.server.shared().tell.set(Box::new(move |failed| tell_failed(&tell, failed)));
    let sockets = match offer_handover(&started, &log, leave) {
        Ok(sockets) => sockets,
        Err(error) => {
            say(err, &format!("error: cannot start the thread of the handover: {error}\n"));
            return ExitCode::FAILURE;
        }
    };
    systemd::ready("serving");
    let watchdog = systemd::watch(started.server.pulse());
    let Leaving { why, successor } = ending.wait(
        || {
            systemd::reloading();
            started.server.reload();
        },
        || started.server.reopen_logs(),
        || renew(program.as_deref(), &log),
    );
    let drain = started.server.shared().slot.plan().0.drain;
    match successor {
        Some(pid) => systemd::replaced_by(pid),
        None => systemd::stopping(drain),
    }
    let cut = if successor.is_some() { "a signal cuts" } else { "again to cut" };
    let told = format!("{why}: draining, at most {} s; {cut}", drain.as_secs());
    write(err, &log.line(Level::Info, &told, &[]));
    ending.on_next(started.server.aborter(), started.server.reopener());
    started.server.drain();
    let counters = started.server.join();
    // The next process is told the last numbers.
    drop((sockets, watchdog));
    let exchanges = usize::try_from(counters.exchanges).unwrap_or(usize::MAX);
    let told = format!("ended after {}", counted(exchanges, "exchange"));
    write(err, &log.line(Level::Info, &told, &[]));
    ExitCode::SUCCESS
}

/// Starts the program anew, as it is on the disk by now and as this process was called; it takes
/// over.
fn renew(program: Option<&Path>, log: &Log) {
    if std::process::id() == 1 {
        let told = "SIGUSR2: this is process 1 (of a container), and all others end with it: \
                    replace the container";
        return log.say(Level::Error, told, &[]);
    }
    let Some(program) = program else {
        return log.say(Level::Error, "SIGUSR2: nobody knows where this program is", &[]);
    };
    let mut next = Command::new(program);
    // Those are addressed to this process.
    next.args(std::env::args_os().skip(1)).env_remove("WATCHDOG_PID").env_remove("LISTEN_PID");
    let mut child = match next.spawn() {
        Ok(child) => child,
        Err(error) => {
            let told = format!("SIGUSR2: cannot start {}: {error}", program.display());
            return log.say(Level::Error, &told, &[]);
        }
    };
    let told = format!("SIGUSR2: started process {}, which is to take over", child.id());
    log.say(Level::Info, &told, &[]);
    let log = log.clone();
    let watch = std::thread::Builder::new().name("successor".to_owned());
    // Without the thread nobody says that it has ended.
    let _ = watch.spawn(move || {
        let pid = child.id();
        if let Ok(status) = child.wait() {
            let told = format!("process {pid}, which was to take over, has ended: {status}");
            log.say(Level::Error, &told, &[]);
        }
    });
}

/// Lets a next process take over from this one.
///
/// Errors: no thread can be started.
fn offer_handover(
    started: &Started,
    log: &Log,
    leave: Leave,
) -> std::io::Result<Option<HandoverServer>> {
    let Started { server, config, .. } = started;
    let tell = log.clone();
    let hooks = EstateHooks {
        meeting: Meeting::of(config),
        say: Box::new(move |line| tell.say(Level::Info, line, &[])),
        leave: Box::new(move |pid, why| leave.tell(Leaving { why, successor: Some(pid) })),
    };
    server.estate(hooks).map(HandoverServer::open).transpose()
}

/// The config that the command line asks for, with the edits that were kept upon it.
///
/// Errors: a report for the operator.
fn load_wanted(args: &ServeArgs) -> Result<(Sources, Loaded), String> {
    let sources = match file_of(args) {
        None => said(args),
        Some(path) => load::read_sources(path).map_err(|fault| {
            let hint = match args.file().is_none() && !path.exists() {
                true => "hint: give a file with -c FILE, or servers with --backend URL\n",
                false => "",
            };
            format!("{fault}{hint}")
        })?,
    };
    let loaded = load::load_sources(&sources).map_err(|report| report.to_string())?;
    Ok((sources, loaded))
}

/// The config file; `None` when the command line says it all.
fn file_of(args: &ServeArgs) -> Option<&Path> {
    let file = || args.file().unwrap_or(Path::new(CONFIG_PATH));
    args.backends.is_empty().then(file)
}

/// Reads the config of the command line again, without the edits upon it.
fn read_again(args: &ServeArgs) -> Result<FileText, String> {
    match file_of(args) {
        Some(path) => load::read_file(path).map_err(|fault| fault.to_string()),
        None => {
            let Sources { file: name, text, .. } = said(args);
            Ok(FileText { name, text })
        }
    }
}

/// What a reload does besides the plan: the log, and what is told of it.
fn reload_hooks(args: &ServeArgs, log: &Log) -> ReloadHooks {
    let (args, set, told) = (args.clone(), log.clone(), log.clone());
    ReloadHooks {
        read: Arc::new(move || read_again(&args)),
        check: Arc::new(load::load_sources),
        prepare: Arc::new(move |config| {
            let (log, said) = (set.clone(), config.log.clone());
            Ok(Box::new(move || log.set(&said)))
        }),
        told: Arc::new(move |how| {
            tell_reload(&told, how);
            systemd::ready("serving");
        }),
    }
}

fn tell_reload(log: &Log, how: &Result<Reloaded, String>) {
    match how {
        Ok(done) => {
            let endpoints = done.endpoints.to_string();
            let models = done.models.to_string();
            let facts = [("upstreams", endpoints.as_str()), ("models", &models)];
            let how = if done.edited { "edited" } else { "reloaded" };
            let message = format!("config {how}: {}", counted(done.changes.len(), "change"));
            log.say(Level::Info, &message, &facts);
            for change in &done.changes {
                log.say(Level::Info, &format!("config: {change}"), &[]);
            }
            for warning in &done.warnings {
                log.say(Level::Warn, warning, &[]);
            }
        }
        Err(why) => {
            log.say(Level::Error, "config not reloaded: what was in force stays", &[]);
            for line in why.lines().filter(|line| !line.is_empty()) {
                log.say(Level::Error, line, &[]);
            }
        }
    }
}

/// The config that a command line with `--backend` says.
pub fn said(args: &ServeArgs) -> Sources {
    let said = WithoutFile {
        backends: &args.backends,
        listen: &args.listen,
        keys: &args.keys,
        admin: args.admin.as_deref(),
    };
    said.sources()
}

/// Prints what was obtained and what is amiss.
///
/// As text the block is one for people to read; as JSON each of its lines is one.
pub fn announce(started: &Started, log: &Log, err: &mut dyn Write) {
    let block = banner(started);
    match started.config.log.format {
        LogFormat::Text if log.writes(Level::Info) => say(err, &block),
        LogFormat::Text => {}
        LogFormat::Json => {
            block.lines().for_each(|line| write(err, &log.line(Level::Info, line.trim(), &[])));
        }
    }
    for warning in started.warnings.iter().chain(&hazards(&started.server, &started.config)) {
        write(err, &log.line(Level::Warn, warning, &[]));
    }
}

fn tell_failed(log: &Log, failed: &FailedExchange<'_>) {
    let status = if failed.status > 0 { failed.status.to_string() } else { String::new() };
    let facts = [
        ("request_id", failed.request_id),
        ("status", &status),
        ("key", failed.key),
        ("model", failed.model),
        ("upstream", failed.upstream),
        ("reason", failed.reason),
    ];
    log.say_failed(failed.level, "exchange failed", &facts);
}

fn write(err: &mut dyn Write, line: &[u8]) {
    // Nobody can be told that stderr is closed.
    let _ = err.write_all(line);
}

fn say(err: &mut dyn Write, text: &str) {
    // Nobody can be told that stderr is closed.
    let _ = err.write_all(text.as_bytes());
}
