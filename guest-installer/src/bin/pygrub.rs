//! `pygrub`: see the library.

use guest_installer::{pygrub, worker};
use std::process::ExitCode;

fn main() -> ExitCode {
    worker::main_if_asked().unwrap_or_else(|| pygrub::main(std::env::args_os().skip(1)))
}
