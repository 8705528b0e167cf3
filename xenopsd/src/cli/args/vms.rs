//! The commands on VMs as a whole.

use std::path::PathBuf;

use clap::Subcommand;

use super::{CreateArgs, StopArgs};

/// Commands on what a VM is.
#[derive(Debug, Subcommand)]
pub enum Definition {
    /// Define a VM with its disks and interfaces from a configuration in xl.cfg(5) format
    ///
    /// Prints the uuid of the VM. Nothing is defined unless all of it can be. Keys that have no effect are named in
    /// warnings. shadow_memory of an hvm guest becomes the VM's shadow multiplier: its paging pool is at least as large as
    /// that, and never smaller than without the key.
    Create(CreateArgs),

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
}

impl Definition {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Create(_) => "create",
            Self::Destroy { .. } => "destroy",
            Self::Remove { .. } => "remove",
            Self::Export { .. } => "export",
            Self::Import { .. } => "import",
        }
    }
}

/// Commands that show VMs, and what they show.
#[derive(Debug, Subcommand)]
pub enum View {
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
}

impl View {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::List => "list",
            Self::Show { .. } => "show",
            Self::Explain { .. } => "explain",
            Self::Console { .. } => "console",
            Self::Vnc { .. } => "vnc",
            Self::Screenshot { .. } => "screenshot",
        }
    }
}

/// Commands that start and stop VMs.
#[derive(Debug, Subcommand)]
pub enum Life {
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
}

impl Life {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Start { .. } => "start",
            Self::Pause { .. } => "pause",
            Self::Unpause { .. } => "unpause",
            Self::Shutdown { .. } => "shutdown",
            Self::Reboot { .. } => "reboot",
        }
    }
}

/// Commands on the images of suspended VMs.
#[derive(Debug, Subcommand)]
pub enum Image {
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
}

impl Image {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Suspend { .. } => "suspend",
            Self::Resume { .. } => "resume",
            Self::Checkpoint { .. } => "checkpoint",
            Self::FastResume { .. } => "fast-resume",
        }
    }
}
