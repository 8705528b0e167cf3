//! The command line as types.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

mod devices;

pub use devices::{Carrier, VbdCommand, VifCommand};

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
pub struct Cli {
    /// Socket of the daemon; a name ending in .json is spoken to in JSON-RPC
    #[arg(long, global = true, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,

    /// Print listings as JSON, one value per line, with the names of the RPC contract
    #[arg(long, global = true)]
    pub json: bool,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Define a VM with its disks and interfaces from a configuration in xl.cfg(5) format
    ///
    /// Prints the uuid of the VM. Nothing is defined unless all of it can be. Keys that have no effect are named in
    /// warnings. shadow_memory of an hvm guest becomes the VM's shadow multiplier: its paging pool is at least as large as
    /// that, and never smaller than without the key.
    Create(CreateArgs),

    /// Start a VM
    Start {
        /// uuid, beginning of a uuid, or name
        vm: String,
        /// Leave it paused, with its kernel loaded and nothing executed
        #[arg(long)]
        paused: bool,
        /// Connect to its console before it executes anything; Ctrl-] disconnects
        #[arg(long)]
        console: bool,
    },

    /// List the VMs
    #[command(visible_alias = "ls")]
    List,

    /// Show everything about a VM
    Show {
        /// uuid, beginning of a uuid, or name
        vm: String,
    },

    /// Say what the last or current operation on a VM does, step by step
    ///
    /// Each step with its place in the plan (`|` marks steps that run side by side), when it began, how long it took and
    /// how it ended; below a step that had to be taken back, what did it.
    Explain {
        /// uuid, beginning of a uuid, or name
        vm: String,
    },

    /// Connect to the text console of a running VM; Ctrl-] disconnects
    ///
    /// What it printed before is shown first, unless it has no terminal server (`vnc = 0` in its configuration).
    Console {
        /// uuid, beginning of a uuid, or name
        vm: String,
        /// Print what it printed before, and do not connect
        #[arg(long)]
        log: bool,
    },

    /// Print where the VNC screen of a running VM is: a port of 127.0.0.1 on its host, or a Unix socket
    Vnc {
        /// uuid, beginning of a uuid, or name
        vm: String,
    },

    /// Write a picture of the screen of a running VM to a PNG file
    Screenshot {
        /// uuid, beginning of a uuid, or name
        vm: String,
        /// The file, - for standard output
        file: PathBuf,
        /// File of the password that the screen wants, if it does
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },

    /// Stop executing a VM, keeping it in memory
    Pause {
        /// uuid, beginning of a uuid, or name
        vm: String,
    },

    /// Let a paused VM execute again
    Unpause {
        /// uuid, beginning of a uuid, or name
        vm: String,
    },

    /// Shut a VM down
    Shutdown {
        /// uuid, beginning of a uuid, or name
        vm: String,
        /// How.
        #[command(flatten)]
        how: StopArgs,
    },

    /// Reboot a VM
    Reboot {
        /// uuid, beginning of a uuid, or name
        vm: String,
        /// How.
        #[command(flatten)]
        how: StopArgs,
    },

    /// Suspend a running VM to a file or block device, and free its memory
    ///
    /// The image holds all of the guest's memory: it is readable by root only. Nothing is overwritten but another
    /// suspend image. If the guest does not suspend, or the disk is full, it runs on.
    Suspend {
        /// uuid, beginning of a uuid, or name
        vm: String,
        /// File or block device for the image [default: <uuid>.suspend in /var/lib/xcp/suspend]
        file: Option<PathBuf>,
    },

    /// Resume a suspended VM from its image
    ///
    /// An image in the default place is removed when the VM runs again; a file that is named is kept.
    Resume {
        /// uuid, beginning of a uuid, or name
        vm: String,
        /// File or block device with the image [default: where `suspend` put it]
        file: Option<PathBuf>,
        /// Leave it paused, with its memory read and nothing executed
        #[arg(long)]
        paused: bool,
    },

    /// Write the image of a running VM to a file or block device, and let it run on
    Checkpoint {
        /// uuid, beginning of a uuid, or name
        vm: String,
        /// File or block device for the image
        file: PathBuf,
    },

    /// Let a VM run on whose guest has suspended and whose domain is still there
    FastResume {
        /// uuid, beginning of a uuid, or name
        vm: String,
    },

    /// Pull the plug of a VM if it runs, and forget its definition
    ///
    /// Nothing is asked: giving the command is the confirmation. What the guest has not written to its disks is
    /// lost; the disks themselves are not touched.
    Destroy {
        /// uuid, beginning of a uuid, or name
        vm: String,
    },

    /// Forget the definition of a halted VM; its disks are not touched
    #[command(visible_alias = "rm")]
    Remove {
        /// uuid, beginning of a uuid, or name
        vm: String,
    },

    /// List and change the disks and drives of a VM, running or not
    #[command(subcommand)]
    Vbd(VbdCommand),

    /// List and change the network interfaces of a VM, running or not
    #[command(subcommand)]
    Vif(VifCommand),

    /// Change how many vcpus a VM has
    Vcpus {
        /// uuid, beginning of a uuid, or name
        vm: String,
        /// vcpus, at most what it was started with as its limit
        #[arg(value_parser = clap::value_parser!(u16).range(1..))]
        count: u16,
    },

    /// Change how much memory a VM has
    ///
    /// A running guest is asked to give memory back, or gets more, up to `maxmem` of its configuration.
    Memory {
        /// uuid, beginning of a uuid, or name
        vm: String,
        /// MiB; with a second number, the least it is to have
        #[arg(value_parser = clap::value_parser!(u32).range(1..))]
        mib: u32,
        /// The most it is to have, in MiB
        #[arg(value_parser = clap::value_parser!(u32).range(1..))]
        max: Option<u32>,
    },

    /// Write the definition of a VM and what the daemon remembers of it, for `import` here or on another host
    ///
    /// The disks' contents are not part of it, only where they are.
    Export {
        /// uuid, beginning of a uuid, or name
        vm: String,
        /// Where to; standard output if absent
        file: Option<PathBuf>,
    },

    /// Define a VM from what `export` wrote, or replace the definition of the one with its uuid
    ///
    /// Prints the uuid. Devices that the file does not have are forgotten, except those a running guest has. A running
    /// guest keeps what it was started with until its next start.
    Import {
        /// The file, - for standard input
        file: PathBuf,
    },

    /// Print what has changed: VMs, devices and tasks, oldest first
    Events {
        /// Go on printing changes as they happen
        #[arg(long, short)]
        follow: bool,
    },

    /// List the operations under way, and those that ended and nobody has asked after
    Tasks,

    /// Ask an operation to stop; it undoes what it did
    Cancel {
        /// Task id, as `tasks` prints it
        task: String,
    },

    /// Print what the daemon is doing, as JSON: queues, tasks, timers, what guests ask for
    Diagnostics,

    /// Show the physical network cards of this host, or give one other settings
    ///
    /// Settings are autoneg=on|off, speed=10|100|1000, duplex=half|full, mtu=BYTES, promiscuous=on|off and rx, tx, sg, tso,
    /// ufo, gso=on|off. They hold until the card or the host is started again; for good they are lines of the section
    /// [nic CARD] in the daemon's settings file. Speaks to the kernel, not to the daemon.
    Nic {
        /// The card
        card: Option<String>,
        /// What it is to be given
        #[arg(value_name = "KEY=VALUE")]
        settings: Vec<String>,
    },

    /// Say whether this is a working dom0, and what to do about what is missing
    Check,

    /// Print a completion script for a shell
    ///
    /// For bash: xenops completions bash > /etc/bash_completion.d/xenops
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },

    /// Print the manual page, of a command if one is named
    Man {
        /// The command, as in `man vbd attach`
        command: Vec<String>,
    },
}

impl Command {
    /// The command's word.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Create(_) => "create",
            Self::Start { .. } => "start",
            Self::List => "list",
            Self::Show { .. } => "show",
            Self::Explain { .. } => "explain",
            Self::Console { .. } => "console",
            Self::Vnc { .. } => "vnc",
            Self::Screenshot { .. } => "screenshot",
            Self::Pause { .. } => "pause",
            Self::Unpause { .. } => "unpause",
            Self::Shutdown { .. } => "shutdown",
            Self::Reboot { .. } => "reboot",
            Self::Suspend { .. } => "suspend",
            Self::Resume { .. } => "resume",
            Self::Checkpoint { .. } => "checkpoint",
            Self::FastResume { .. } => "fast-resume",
            Self::Destroy { .. } => "destroy",
            Self::Remove { .. } => "remove",
            Self::Vbd(_) => "vbd",
            Self::Vif(_) => "vif",
            Self::Vcpus { .. } => "vcpus",
            Self::Memory { .. } => "memory",
            Self::Export { .. } => "export",
            Self::Import { .. } => "import",
            Self::Diagnostics => "diagnostics",
            Self::Events { .. } => "events",
            Self::Tasks => "tasks",
            Self::Cancel { .. } => "cancel",
            Self::Nic { .. } => "nic",
            Self::Check => "check",
            Self::Completions { .. } => "completions",
            Self::Man { .. } => "man",
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
        Cli::try_parse_from(std::iter::once("xenops").chain(words.split_whitespace()))
            .map_err(|error| error.kind())
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
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
            let Command::Shutdown { how, .. } = parse(words).unwrap().command else { panic!("{words}") };
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
        for command in Cli::command().get_subcommands() {
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
}
