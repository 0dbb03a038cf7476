//! argv → config → server → exit code.

use std::io::{stderr, stdout};
use std::process::ExitCode;

use tokenring::cli::{self, Command};
use tokenring::{demo, serve};

fn main() -> ExitCode {
    let (mut out, mut err) = (stdout(), stderr());
    match cli::parse(std::env::args_os()) {
        Ok(Command::Serve(args)) => serve(&args, &mut err),
        Ok(Command::Check(args)) => cli::check(&args, &mut out, &mut err),
        Ok(Command::Diff(args)) => cli::diff(&args, &mut out, &mut err),
        Ok(Command::Config(command)) => cli::show(&command, &mut out, &mut err),
        Ok(Command::Demo) => demo(&mut out, &mut err),
        Ok(Command::Init(args)) => cli::init(&args, &mut out, &mut err),
        Ok(Command::Import(args)) => cli::import(&args, &mut out, &mut err),
        Ok(Command::Completions(args)) => cli::completions(&args, &mut out),
        Ok(Command::Man) => cli::man(&mut out, &mut err),
        Err((message, code)) => {
            // Help and version are asked for and belong to stdout; mistakes do not.
            use std::io::Write as _;
            let _ = match code {
                0 => out.write_all(message.as_bytes()),
                _ => err.write_all(message.as_bytes()),
            };
            ExitCode::from(code)
        }
    }
}
