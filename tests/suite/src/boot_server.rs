//! A server in dom0 that machines on its bridge boot from.

use xen_host::quote;

use crate::dom0::Dom0;

/// Its program.
const PROGRAM: &str = include_str!("boot_server.py");

/// What it writes down.
const LOG: &str = "/root/boot-server.log";

/// The bridge that it is on, and its address there.
const BRIDGE: [&str; 2] = ["xenbr0", "10.9.0.1"];

impl Dom0 {
    /// Answers DHCP and TFTP on `xenbr0`: a machine with the MAC address `00:16:3e:00:00:51` gets the address 10.9.0.81 and is
    /// to boot what `directory` has as `boot-00163e000051`. It is listening when this returns.
    #[track_caller]
    pub fn serve_boot(&self, directory: &str) {
        let [bridge, address] = BRIDGE;
        let directory = quote(directory);
        self.sh(&format!("python3 - {bridge} {address} {directory} {LOG} <<'PYTHON'\n{PROGRAM}PYTHON"));
    }

    /// What that server was asked for so far, a line each without repetitions: `discover MAC`, `request MAC`, `sent FILE` or
    /// `refused FILE`.
    #[track_caller]
    pub fn asked_of_boot_server(&self) -> String {
        self.sh(&format!("uniq {LOG}")).trim().to_owned()
    }
}
