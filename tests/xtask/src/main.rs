//! Developer commands, run as `cargo xtask COMMAND`.

mod cargo;
mod demo;
mod host;
mod install;
mod licence;
mod pool;
mod test;

use clap::{Parser, Subcommand};
use std::{io, process::ExitCode};
use xen_host::progress::{say, step};

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
    /// Show everything: install, build, boot, start xenopsd and a guest, use the guest, shut it down
    Demo(demo::DemoArguments),
    /// Run all tests, those on the nested Xen host included
    Test(test::TestArguments),
    /// Run the measurements on the nested Xen host
    Bench(test::BenchArguments),
    /// Build and install the programs, manual pages, completions, the systemd unit and a settings file
    Install(install::InstallArguments),
    /// Remove what `install` has installed; settings, records and guests stay
    Uninstall(install::InstallArguments),
    /// Check formatting, clippy's lints and the licences of the dependencies
    Lint,
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
    /// A step's program failed; its own output has said why.
    #[error("`{command}` failed: {status}")]
    Step {
        /// The command line.
        command: String,
        /// How it ended.
        status: String,
    },
    /// Test targets failed; their own output has said why.
    #[error("failed: {}", .0.join(", "))]
    Targets(Vec<String>),
    /// A thread of ours panicked; its message is on standard error.
    #[error("the {0} panicked")]
    Panicked(&'static str),
    /// There is nothing to run.
    #[error("the suite has no {0} test target")]
    NoTargets(&'static str),
    /// What was chosen is all left out.
    #[error("nothing to run: {} need the nested host; leave --quick out", .0.join(", "))]
    AllNested(Vec<String>),
    /// The demonstration did not see what it should.
    #[error("demonstration: {0}")]
    Demo(String),
    /// Dependencies whose licence is not in the list.
    #[error("licences that deny.toml does not allow:\n  {}", .0.join("\n  "))]
    Licences(Vec<String>),
    /// Where to install is no place of the file system's.
    #[error("--prefix {}: must be an absolute path", .0.display())]
    Prefix(std::path::PathBuf),
    /// A program to install is not there.
    #[error("{} is not built: {source}", program.display())]
    NotBuilt {
        /// Where it should be.
        program: std::path::PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// A file could not be installed.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file.
        path: std::path::PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
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
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Test(arguments) => test::test(&arguments),
        Command::Bench(arguments) => test::bench(&arguments),
        Command::Install(arguments) => install::install(&arguments),
        Command::Uninstall(arguments) => install::uninstall(&arguments),
        Command::Lint => lint(),
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

fn lint() -> Result<ExitCode, Failure> {
    use cargo::{cargo, check};
    step("formatting", || check(&mut cargo(&["fmt", "--all", "--check"])))?;
    let clippy = ["clippy", "--quiet", "--workspace", "--all-targets", "--", "--deny", "warnings"];
    step("clippy", || check(&mut cargo(&clippy)))?;
    let count = step("licences", licence::check)?;
    say(&format!("{count} packages have licences that deny.toml allows"));
    Ok(ExitCode::SUCCESS)
}
