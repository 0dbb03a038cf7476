//! What shells and `man` are told of the command line: made of its definition, so that neither can
//! lag behind it.

use std::io::Write;
use std::process::ExitCode;

use clap::{Args, Command};
use clap_complete::{Shell, generate};

/// Arguments of `completions`.
#[derive(Debug, Clone, Args)]
pub struct CompletionsArgs {
    /// The shell that is to complete.
    #[arg(value_name = "SHELL", value_enum)]
    shell: Shell,
}

/// `completions`: the script for a shell, to `out`; `command` is the whole command line.
pub fn completions(args: &CompletionsArgs, mut command: Command, out: &mut dyn Write) -> ExitCode {
    let mut text = Vec::new();
    generate(args.shell, &mut command, "tokenring", &mut text);
    // A reader that leaves early, such as `head`, is not our fault.
    let _ = out.write_all(&text);
    ExitCode::SUCCESS
}

/// `man`: the manual page with a section for every command, as roff, to `out`.
///
/// Errors: it cannot be made; exit 1.
pub fn man(command: Command, out: &mut dyn Write, err: &mut dyn Write) -> ExitCode {
    match page(command) {
        Ok(text) => {
            let _ = out.write_all(&text);
            ExitCode::SUCCESS
        }
        Err(why) => {
            let _ = writeln!(err, "tokenring man: {why}");
            ExitCode::FAILURE
        }
    }
}

/// One page for all: its own options, then those of each command under the command's name.
fn page(mut command: Command) -> std::io::Result<Vec<u8>> {
    command.build();
    let mut text = Vec::new();
    let whole = clap_mangen::Man::new(command.clone()).title("TOKENRING").manual("tokenring");
    whole.render_title(&mut text)?;
    whole.render_name_section(&mut text)?;
    whole.render_synopsis_section(&mut text)?;
    whole.render_description_section(&mut text)?;
    whole.render_options_section(&mut text)?;
    command_sections(&command, &mut text)?;
    writeln!(
        text,
        ".SH FILES\n.TP\ntokenring.toml\nThe config; every key is in config.example.toml."
    )?;
    writeln!(text, ".SH SEE ALSO\ndocs/config.md and docs/operations.md of the package")?;
    Ok(text)
}

/// A section of its own for every command below `command`, and for those below them.
fn command_sections(command: &Command, text: &mut Vec<u8>) -> std::io::Result<()> {
    for below in command.get_subcommands().filter(|c| !c.is_hide_set() && c.get_name() != "help") {
        // `build` has made the display name "tokenring-config-print" of it.
        let shown = below.get_display_name().unwrap_or(below.get_name()).replace('-', " ");
        let mut section = Vec::new();
        let man = clap_mangen::Man::new(below.clone());
        man.render_synopsis_section(&mut section)?;
        man.render_description_section(&mut section)?;
        man.render_options_section(&mut section)?;
        writeln!(text, ".SH \"{}\"", shown.to_uppercase())?;
        // What are sections of a page of its own are subsections here.
        text.extend(String::from_utf8_lossy(&section).replace("\n.SH ", "\n.SS ").bytes());
        command_sections(below, text)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, ValueEnum as _};
    use clap_complete::Generator as _;

    use super::*;
    use crate::cli::Cli;

    /// Every command, as typed: "config print".
    fn commands(command: &Command, before: &str) -> Vec<String> {
        let mut all = Vec::new();
        for below in command.get_subcommands() {
            let typed = format!("{before} {}", below.get_name()).trim().to_owned();
            all.extend(commands(below, &typed));
            all.push(typed);
        }
        all
    }

    /// Every long option of a command and those below it.
    fn options(command: &Command) -> Vec<String> {
        let own = command.get_arguments().filter_map(|a| a.get_long()).map(|l| format!("--{l}"));
        own.chain(command.get_subcommands().flat_map(options)).collect()
    }

    #[test]
    fn every_shell_completes_every_command_and_option() {
        for shell in Shell::value_variants() {
            let (mut out, args) = (Vec::new(), CompletionsArgs { shell: *shell });
            assert_eq!(completions(&args, Cli::command(), &mut out), ExitCode::SUCCESS);
            let script = String::from_utf8(out).unwrap();
            assert!(!shell.file_name("tokenring").is_empty());
            for command in commands(&Cli::command(), "") {
                let word = command.rsplit(' ').next().unwrap();
                assert!(script.contains(word), "{shell} does not know `{command}`");
            }
            for option in options(&Cli::command()) {
                let bare = option.trim_start_matches('-');
                assert!(script.contains(bare), "{shell} does not know `{option}`");
            }
        }
    }

    #[test]
    fn the_manual_page_has_every_command_and_option() {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        assert_eq!(man(Cli::command(), &mut out, &mut err), ExitCode::SUCCESS);
        let page = String::from_utf8(out).unwrap();
        for command in commands(&Cli::command(), "") {
            let heading = format!(".SH \"TOKENRING {}\"", command.to_uppercase());
            assert!(page.contains(&heading), "no section {heading}");
        }
        for option in options(&Cli::command()) {
            let roff = option.replace('-', "\\-");
            assert!(page.contains(&roff), "no option {option}");
        }
        assert_eq!(page.matches(".TH ").count(), 1);
    }
}
