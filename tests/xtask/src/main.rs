//! Developer commands, run as `cargo xtask COMMAND`.

mod host;

use clap::{Parser, Subcommand};
use std::{io, process::ExitCode};

/// Developer commands of xenopsd: a nested Xen host, a demonstration, the tests.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// A nested Xen host in QEMU: start one, run commands in its dom0, copy files, forward sockets
    #[command(subcommand)]
    Host(host::HostCommand),
    /// Install the packages and build the dom0 image and its snapshot, and nothing else
    Setup,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// The nested host failed.
    #[error(transparent)]
    Host(Box<xen_host::Error>),
    /// Something of this machine failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A program could not be started.
    #[error("cannot start `{program}`: {source}")]
    Start {
        /// Its name.
        program: String,
        /// The operating system's reason.
        source: io::Error,
    },
}

impl From<xen_host::Error> for Failure {
    fn from(error: xen_host::Error) -> Self {
        Self::Host(Box::new(error))
    }
}

impl Failure {
    fn start(command: &std::process::Command, source: io::Error) -> Self {
        Self::Start { program: command.get_program().to_string_lossy().into_owned(), source }
    }
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Host(command) => host::run(command),
        Command::Setup => setup(),
    };
    result.unwrap_or_else(|failure| {
        eprintln!("error: {failure}");
        ExitCode::FAILURE
    })
}

fn setup() -> Result<ExitCode, Failure> {
    xen_host::packages::install()?;
    xen_host::Template::base(xen_host::Options::default())?;
    Ok(ExitCode::SUCCESS)
}
