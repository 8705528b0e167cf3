//! The command line of a host: creates, starts, stops and shows its VMs through the daemon.

use std::process::ExitCode;

fn main() -> ExitCode {
    xenopsd::cli::main()
}
