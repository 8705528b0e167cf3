//! The commands on the daemon and on its host.

use clap::Subcommand;

/// Commands on what the daemon does.
#[derive(Debug, Subcommand)]
pub enum Daemon {
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
}

impl Daemon {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Events { .. } => "events",
            Self::Tasks => "tasks",
            Self::Cancel { .. } => "cancel",
            Self::Diagnostics => "diagnostics",
        }
    }
}

/// Commands that need no daemon.
#[derive(Debug, Subcommand)]
pub enum Local {
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

impl Local {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Nic { .. } => "nic",
            Self::Check => "check",
            Self::Completions { .. } => "completions",
            Self::Man { .. } => "man",
        }
    }
}
