//! `pygrub`: see the library.

use guest_installer::pygrub;
use std::process::ExitCode;

fn main() -> ExitCode {
    guest_installer::main_if_asked().unwrap_or_else(|| pygrub::main(std::env::args_os().skip(1)))
}
