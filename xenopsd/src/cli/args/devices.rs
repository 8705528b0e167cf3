//! The commands on a VM's devices and its size.

use std::path::PathBuf;

use clap::{Subcommand, ValueEnum};

/// Commands on the devices and the size of a VM.
#[derive(Debug, Subcommand)]
pub enum Machine {
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
}

impl Machine {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Vbd(_) => "vbd",
            Self::Vif(_) => "vif",
            Self::Vcpus { .. } => "vcpus",
            Self::Memory { .. } => "memory",
        }
    }
}

/// Commands on disks and drives.
#[derive(Debug, Subcommand)]
pub enum VbdCommand {
    /// List the disks and drives of a VM
    #[command(visible_alias = "ls")]
    List {
        /// uuid, beginning of a uuid, or name of the VM
        vm: String,
    },

    /// Give a VM another disk or drive, at once if it runs
    ///
    /// Prints what it is called. If it cannot be plugged, the VM is as it was.
    Attach {
        /// uuid, beginning of a uuid, or name of the VM
        vm: String,
        /// The disk, as in the quotes of `disk = ['…']` in xl.cfg(5): /dev/vg/data,raw,xvdb,rw
        #[arg(value_name = "DISK")]
        spec: String,
    },

    /// Take a disk or drive away from a VM; what is on it is not touched
    ///
    /// A guest that still uses it refuses, and keeps it.
    Detach {
        /// uuid, beginning of a uuid, or name of the VM
        vm: String,
        /// Where the guest sees it, as `list` has it: xvdb
        device: String,
        /// Do not ask the guest: what it has not written is lost
        #[arg(long)]
        force: bool,
    },

    /// Put a medium into an empty drive
    Insert {
        /// uuid, beginning of a uuid, or name of the VM
        vm: String,
        /// Where the guest sees the drive
        device: String,
        /// File or block device of dom0
        medium: PathBuf,
    },

    /// Take the medium out of a drive
    Eject {
        /// uuid, beginning of a uuid, or name of the VM
        vm: String,
        /// Where the guest sees the drive
        device: String,
    },

    /// Tell a running guest that its disk has grown
    Refresh {
        /// uuid, beginning of a uuid, or name of the VM
        vm: String,
        /// Where the guest sees it
        device: String,
    },
}

/// Commands on network interfaces.
#[derive(Debug, Subcommand)]
pub enum VifCommand {
    /// List the network interfaces of a VM
    #[command(visible_alias = "ls")]
    List {
        /// uuid, beginning of a uuid, or name of the VM
        vm: String,
    },

    /// Give a VM another network interface, at once if it runs
    ///
    /// Prints its number. If it cannot be plugged, the VM is as it was.
    Attach {
        /// uuid, beginning of a uuid, or name of the VM
        vm: String,
        /// The interface, as in the quotes of `vif = ['…']` in xl.cfg(5): mac=00:16:3e:01:02:03,bridge=xenbr1
        #[arg(value_name = "VIF", default_value = "")]
        spec: String,
    },

    /// Take a network interface away from a VM
    Detach {
        /// uuid, beginning of a uuid, or name of the VM
        vm: String,
        /// Its number, as `list` has it, or its MAC address
        device: String,
        /// Do not ask the guest
        #[arg(long)]
        force: bool,
    },

    /// Connect a network interface to another bridge; the guest keeps it
    Move {
        /// uuid, beginning of a uuid, or name of the VM
        vm: String,
        /// Its number, as `list` has it, or its MAC address
        device: String,
        /// A bridge of dom0, of Linux or of Open vSwitch
        bridge: String,
    },

    /// Pull the cable of a network interface, or put it in
    Carrier {
        /// uuid, beginning of a uuid, or name of the VM
        vm: String,
        /// Its number, as `list` has it, or its MAC address
        device: String,
        /// The cable
        state: Carrier,
    },
}

/// Whether the cable is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Carrier {
    /// It is
    Up,
    /// It is not
    Down,
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use clap::error::ErrorKind;

    use super::super::Cli;

    #[test]
    fn mistakes_are_usage_errors() {
        for (words, kind) in [
            ("vbd", ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand),
            ("vbd attach web", ErrorKind::MissingRequiredArgument),
            ("vbd plug web xvda", ErrorKind::InvalidSubcommand),
            ("vbd eject web hdc --force", ErrorKind::UnknownArgument),
            ("vif carrier web 0 sideways", ErrorKind::InvalidValue),
            ("vif move web 0", ErrorKind::MissingRequiredArgument),
            ("vcpus web 0", ErrorKind::ValueValidation),
            ("vcpus web 70000", ErrorKind::ValueValidation),
            ("memory web 0", ErrorKind::ValueValidation),
        ] {
            let words = std::iter::once("xenops").chain(words.split_whitespace());
            assert_eq!(<Cli>::try_parse_from(words).unwrap_err().kind(), kind);
        }
    }
}
