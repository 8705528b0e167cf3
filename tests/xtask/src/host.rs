//! `cargo xtask host`: named nested hosts for developers.

use crate::{Failure, cargo::build_programs};
use clap::Subcommand;
use std::{
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};
use xen_host::{Host, Image, Options, Processors, Stream, Template, progress::say};

/// Longest `host run`: a person can interrupt it, a script should not hang for ever.
const RUN_LIMIT: Duration = Duration::from_secs(24 * 3600);

/// The host meant when none is named.
const DEFAULT: &str = "default";

/// Commands for a nested host that stays up between commands.
#[derive(Debug, Subcommand)]
pub(crate) enum HostCommand {
    /// Start a nested host (a second once its snapshot is made; the first time half a minute)
    Up {
        /// Its name, for when more than one is wanted
        #[arg(long, default_value = DEFAULT)]
        name: String,
        /// Build the dom0 image and the snapshot anew first
        #[arg(long)]
        fresh: bool,
        /// Run the C xenstored instead of oxenstored
        #[arg(long)]
        c_xenstored: bool,
        /// Give it one processor instead of two: on a busy machine up to ten times faster for guests with emulated devices
        #[arg(long)]
        one_processor: bool,
        /// Give dom0 two vcpus instead of one (several times slower on a busy machine)
        #[arg(long, conflicts_with = "one_processor")]
        two_vcpus: bool,
        /// Build xenopsd and xenops, and have the daemon running in it
        #[arg(long)]
        xenopsd: bool,
    },
    /// Run a command in dom0; its output is streamed and its exit code passed on
    Run {
        /// The host's name
        #[arg(long, default_value = DEFAULT)]
        name: String,
        /// The command and its arguments, which reach dom0 exactly as given
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Open a shell in dom0
    Shell {
        /// The host's name
        #[arg(long, default_value = DEFAULT)]
        name: String,
    },
    /// Copy a file into dom0 (replaced in one step, so a running program can be replaced)
    Put {
        /// The host's name
        #[arg(long, default_value = DEFAULT)]
        name: String,
        /// The file here
        local: PathBuf,
        /// The path in dom0
        remote: String,
    },
    /// Copy a file out of dom0
    Get {
        /// The host's name
        #[arg(long, default_value = DEFAULT)]
        name: String,
        /// The path in dom0
        remote: String,
        /// The file here
        local: PathBuf,
    },
    /// Make a Unix socket here lead to one in dom0, until the host goes down
    Forward {
        /// The host's name
        #[arg(long, default_value = DEFAULT)]
        name: String,
        /// The socket here
        local: PathBuf,
        /// The socket in dom0
        #[arg(default_value = "/var/lib/xcp/xenopsd")]
        remote: String,
    },
    /// Print the end of the Xen console: messages of Xen and of dom0's kernel
    Console {
        /// The host's name
        #[arg(long, default_value = DEFAULT)]
        name: String,
    },
    /// Shut a nested host down and forget it
    Down {
        /// The host's name
        #[arg(long, default_value = DEFAULT)]
        name: String,
    },
    /// List the nested hosts that run
    List,
}

/// Runs one of the commands.
pub(crate) fn run(command: HostCommand) -> Result<ExitCode, Failure> {
    match command {
        HostCommand::Up { name, fresh, c_xenstored, one_processor, two_vcpus, xenopsd } => {
            let processors = match (one_processor, two_vcpus) {
                (true, _) => Processors::One,
                (false, true) => Processors::TwoForDom0,
                (false, false) => Processors::Two,
            };
            up(&name, fresh, Options { c_xenstored, processors }, xenopsd)?;
        }
        HostCommand::Run { name, command } => return run_in(&Host::attach(&name)?, &command),
        HostCommand::Shell { name } => {
            let mut ssh = Host::attach(&name)?.interactive();
            let status = ssh.status().map_err(|e| Failure::start(&ssh, e))?;
            return Ok(exit_code(status.code().unwrap_or(1)));
        }
        HostCommand::Put { name, local, remote } => Host::attach(&name)?.put(&local, &remote)?,
        HostCommand::Get { name, remote, local } => Host::attach(&name)?.get(&remote, &local)?,
        HostCommand::Forward { name, local, remote } => {
            Host::attach(&name)?.open_forward(&std::path::absolute(local)?, &remote)?;
        }
        HostCommand::Console { name } => println!("{}", Host::attach(&name)?.console_tail()),
        HostCommand::Down { name } => Host::attach(&name)?.shutdown()?,
        HostCommand::List => {
            for name in Host::list()? {
                println!("{name}");
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn up(name: &str, fresh: bool, options: Options, xenopsd: bool) -> Result<(), Failure> {
    xen_host::packages::install()?;
    if fresh {
        Template::discard_all()?;
        Image::discard()?;
    }
    let template = if xenopsd {
        build_programs()?;
        Template::with_daemon(options)?
    } else {
        Template::base(options)?
    };
    let host = template.start_named(name)?;
    host.set_clock()?;
    let option = if name == DEFAULT { String::new() } else { format!("--name {name} ") };
    say(&format!("nested host `{name}` is up; try: cargo xtask host run {option}-- xl list"));
    Ok(())
}

fn run_in(host: &Host, command: &[String]) -> Result<ExitCode, Failure> {
    let words: Vec<_> = command.iter().map(String::as_str).collect();
    let mut sink = |stream, piece: &[u8]| {
        // A reader that has seen enough (`| head`) is no failure of the command.
        let _ = match stream {
            Stream::Out => io::stdout().write_all(piece).and_then(|()| io::stdout().flush()),
            Stream::Err => io::stderr().write_all(piece),
        };
    };
    Ok(exit_code(host.stream(&words, RUN_LIMIT, &mut sink)?))
}

pub(crate) fn exit_code(status: i32) -> ExitCode {
    ExitCode::from(u8::try_from(status).unwrap_or(1))
}
