//! The command line as types.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

mod devices;
mod host;
mod vms;

pub use devices::{Carrier, Machine, VbdCommand, VifCommand};
pub use host::{Daemon, Local};
pub use vms::{Definition, Image, Life, View};

/// Socket the daemon listens on when nothing else is said.
pub const DEFAULT_SOCKET: &str = "/var/lib/xcp/xenopsd";

/// How long a guest is given to shut down or reboot itself when nothing else is said. Most do it within seconds; a
/// database writing back its caches needs a minute or two.
pub const DEFAULT_TIMEOUT_SECONDS: f64 = 120.0;

/// Longest such time, a day: the daemon accepts no more.
const TIMEOUT_SECONDS_MAX: f64 = 86_400.0;

const AFTER_HELP: &str = "\
VMs are named by their uuid, by the beginning of it, or by their name, as long as that means one VM.

EXIT STATUS
  0  done
  1  the operation failed, or `check` found something essential missing
  2  the command line or the configuration file is wrong
  3  the daemon cannot be reached: not running, or not permitted
  4  there is no such VM, or its name means several

A command that is interrupted leaves its operation running in the daemon; see `xenops tasks`.";

/// Creates, starts, stops and shows the VMs of this host
#[derive(Debug, Parser)]
#[command(name = "xenops", version, after_help = AFTER_HELP, propagate_version = true)]
pub struct Cli<C: Subcommand = Command> {
    /// Socket of the daemon; a name ending in .json is spoken to in JSON-RPC
    #[arg(long, global = true, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,

    /// Print listings as JSON, one value per line, with the names of the RPC contract
    #[arg(long, global = true)]
    pub json: bool,

    /// What to do.
    #[command(subcommand)]
    pub command: C,
}

/// The commands, in groups that the parser can be told of alone: see [`parse`].
#[derive(Debug, Subcommand)]
pub enum Command {
    /// What VMs are.
    #[command(flatten)]
    Definition(Definition),
    /// What is to be seen of them.
    #[command(flatten)]
    View(View),
    /// Starting and stopping.
    #[command(flatten)]
    Life(Life),
    /// To a file and back.
    #[command(flatten)]
    Image(Image),
    /// Devices and size.
    #[command(flatten)]
    Machine(Machine),
    /// What the daemon does.
    #[command(flatten)]
    Daemon(Daemon),
    /// What needs no daemon.
    #[command(flatten)]
    Local(Local),
}

impl Command {
    /// The command's word.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Definition(command) => command.name(),
            Self::View(command) => command.name(),
            Self::Life(command) => command.name(),
            Self::Image(command) => command.name(),
            Self::Machine(command) => command.name(),
            Self::Daemon(command) => command.name(),
            Self::Local(command) => command.name(),
        }
    }
}

/// Parses the words of a command line, the program's first.
///
/// What the parser notes of all commands is a third of the pages that a short call touches: if the first word is a command, it is
/// told of that command's group only.
///
/// # Errors
/// What is to be said instead of running a command; help and the version are that, too.
pub fn parse(words: &[OsString]) -> Result<Cli, clap::Error> {
    let group = first_word(words).and_then(|word| {
        parse_in(word, words, Command::Definition)
            .or_else(|| parse_in(word, words, Command::View))
            .or_else(|| parse_in(word, words, Command::Life))
            .or_else(|| parse_in(word, words, Command::Image))
            .or_else(|| parse_in(word, words, Command::Machine))
            .or_else(|| parse_in(word, words, Command::Daemon))
            .or_else(|| parse_in(word, words, Command::Local))
    });
    group.unwrap_or_else(|| <Cli>::try_parse_from(words))
}

/// As the group's, if it has this command.
fn parse_in<C: Subcommand>(
    word: &str,
    words: &[OsString],
    group: fn(C) -> Command,
) -> Option<Result<Cli, clap::Error>> {
    let parsed = || Cli::<C>::try_parse_from(words);
    let of_all = |Cli { socket, json, command }| Cli { socket, json, command: group(command) };
    C::has_subcommand(word).then(|| parsed().map(of_all))
}

/// What stands behind nothing but options that all commands have.
fn first_word(words: &[OsString]) -> Option<&str> {
    let mut words = words.iter().skip(1);
    loop {
        match words.next()?.to_str()? {
            "--json" => {}
            "--socket" => drop(words.next()),
            option if option.starts_with("--socket=") => {}
            word => return Some(word),
        }
    }
}

/// Options of `create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Configuration file, - for standard input
    pub file: PathBuf,
    /// Start the VM as well
    #[arg(long)]
    pub start: bool,
    /// With --start: leave it paused
    #[arg(long, requires = "start")]
    pub paused: bool,
}

/// How to stop a VM.
#[derive(Debug, Args)]
pub struct StopArgs {
    /// Do not ask the guest
    #[arg(long, conflicts_with = "timeout")]
    pub hard: bool,
    /// Seconds the guest is given to do it itself
    #[arg(long, value_name = "SECONDS", default_value_t = DEFAULT_TIMEOUT_SECONDS, value_parser = timeout)]
    pub timeout: f64,
}

impl StopArgs {
    /// The contract's delay: absent is without asking.
    pub fn delay(&self) -> Option<f64> {
        (!self.hard).then_some(self.timeout)
    }
}

fn timeout(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds <= TIMEOUT_SECONDS_MAX => Ok(seconds),
        _ => Err(format!(
            "a number of seconds above 0, at most {TIMEOUT_SECONDS_MAX}; to not wait at all use --hard"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;
    use clap::error::ErrorKind;

    fn parse(words: &str) -> Result<Cli, ErrorKind> {
        <Cli>::try_parse_from(std::iter::once("xenops").chain(words.split_whitespace()))
            .map_err(|error| error.kind())
    }

    #[test]
    fn the_definition_is_consistent() {
        <Cli>::command().debug_assert();
    }

    #[test]
    fn global_options_stand_before_or_after_the_command() {
        for words in ["--json --socket /s list", "list --json --socket /s"] {
            let cli = parse(words).unwrap();
            assert!(cli.json && cli.socket.as_os_str() == "/s", "{words}");
        }
        assert_eq!(parse("list").unwrap().socket, PathBuf::from(DEFAULT_SOCKET));
    }

    #[test]
    fn stopping_is_gentle_unless_told_otherwise() {
        for (words, delay) in [
            ("shutdown web", Some(DEFAULT_TIMEOUT_SECONDS)),
            ("shutdown web --timeout 1.5", Some(1.5)),
            ("shutdown web --hard", None),
        ] {
            let Command::Life(Life::Shutdown { how, .. }) = parse(words).unwrap().command else {
                panic!("{words}")
            };
            assert_eq!(how.delay(), delay, "{words}");
        }
    }

    #[test]
    fn mistakes_are_usage_errors() {
        for (words, kind) in [
            ("", ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand),
            ("start", ErrorKind::MissingRequiredArgument),
            ("frobnicate", ErrorKind::InvalidSubcommand),
            ("shutdown web --hard --timeout 3", ErrorKind::ArgumentConflict),
            ("shutdown web --timeout 0", ErrorKind::ValueValidation),
            ("shutdown web --timeout nan", ErrorKind::ValueValidation),
            ("shutdown web --timeout 1e9", ErrorKind::ValueValidation),
            ("create web.cfg --paused", ErrorKind::MissingRequiredArgument),
            ("completions tcsh", ErrorKind::InvalidValue),
        ] {
            assert_eq!(parse(words).unwrap_err(), kind, "{words}");
        }
    }

    #[test]
    fn every_command_knows_its_word() {
        for command in <Cli>::command().get_subcommands() {
            let name = command.get_name();
            let words = ["", " x", " bash", " x y", " x 1", " list x"].map(|more| format!("{name}{more}"));
            let parsed = words.iter().find_map(|words| parse(words).ok());
            if let Some(cli) = parsed {
                assert_eq!(cli.command.name(), name);
            } else {
                assert_eq!(name, "help");
            }
        }
    }

    fn outcome(parsed: Result<Cli, clap::Error>) -> Result<String, String> {
        parsed.map(|cli| format!("{cli:?}")).map_err(|error| error.to_string())
    }

    #[test]
    fn a_command_is_parsed_by_its_group_as_by_all() {
        let all = <Cli>::command();
        let names = all.get_subcommands().flat_map(|c| c.get_all_aliases().chain([c.get_name()]));
        let names: Vec<_> = names.chain(["frobnicate", "", "-h", "--version", "--socket", "--"]).collect();
        for name in names {
            for before in ["", "--json ", "--socket /s ", "--socket=list --json ", "--help ", "-- "] {
                for after in ["", " x", " bash", " x y", " x 1", " list x --json", " x --bogus", " --help"] {
                    let line = format!("xenops {before}{name}{after}");
                    let words: Vec<_> = line.split_whitespace().map(OsString::from).collect();
                    let (group, all) =
                        (outcome(super::parse(&words)), outcome(<Cli>::try_parse_from(&words)));
                    assert_eq!(group, all, "{line}");
                }
            }
        }
    }

    #[test]
    fn the_first_word_is_behind_options_of_all_commands_only() {
        for (line, word) in [
            ("xenops list", Some("list")),
            ("xenops --json --socket start --socket=/s show", Some("show")),
            ("xenops --help list", Some("--help")),
            ("xenops --socket", None),
            ("xenops", None),
        ] {
            let words: Vec<_> = line.split_whitespace().map(OsString::from).collect();
            assert_eq!(first_word(&words), word, "{line}");
        }
    }
}
