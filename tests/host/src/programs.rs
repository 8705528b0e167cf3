//! Our own programs in dom0: `xenopsd` and `xenops`, as the last release build left them.

use crate::{
    error::{Error, Result},
    host::Host,
    machine::Options,
    paths,
    snapshot::{Layer, Template},
};

/// Where the daemon is in dom0.
pub const DAEMON: &str = "/usr/local/sbin/xenopsd";

/// Where the command line is in dom0.
pub const CLIENT: &str = "/usr/local/bin/xenops";

/// Where the terminal server is in dom0: beside the daemon, which looks for it there.
pub const TERMINAL: &str = "/usr/local/sbin/vncterm";

/// The daemon's socket in dom0.
pub const SOCKET: &str = "/var/lib/xcp/xenopsd";

/// What the daemon prints, in dom0.
pub const DAEMON_LOG: &str = "/var/log/xenopsd.log";

/// Starts the daemon and waits until it answers: 30 s at most, a fraction of a second on an idle machine.
const START: &str = "setsid xenopsd --pidfile /run/xenopsd.pid </dev/null >/var/log/xenopsd.log 2>&1 &
for _ in $(seq 300); do xenops list >/dev/null 2>&1 && exit 0; sleep 0.1; done
echo xenopsd does not answer >&2; cat /var/log/xenopsd.log >&2; exit 1";

impl Template {
    /// A dom0 with the freshly built `xenopsd` and `xenops` installed, the daemon not started.
    ///
    /// # Errors
    /// [`Error::NotBuilt`] when there is no release build; otherwise as [`Template::base`] and [`Template::layer`].
    pub fn with_programs(options: Options) -> Result<Self> {
        Self::programs(options, "xenopsd", "true")
    }

    /// As [`Template::with_programs`], with the daemon running.
    ///
    /// # Errors
    /// As [`Template::with_programs`]; also when the daemon does not answer, with what it printed.
    pub fn with_daemon(options: Options) -> Result<Self> {
        Self::programs(options, "xenopsd running", START)
    }

    fn programs(options: Options, name: &str, script: &str) -> Result<Self> {
        let release = paths::target().join("release");
        let (daemon, client) = (release.join("xenopsd"), release.join("xenops"));
        for path in [&daemon, &client] {
            if !path.is_file() {
                return Err(Error::NotBuilt { path: path.clone() });
            }
        }
        let terminal = release.join("vncterm");
        let mut files = vec![(daemon.as_path(), DAEMON), (client.as_path(), CLIENT)];
        // Only guests that ask for one need it; the daemon says that it is not there.
        if terminal.is_file() {
            files.push((terminal.as_path(), TERMINAL));
        }
        Self::base(options)?.layer(&Layer { name, files: &files, script })
    }
}

impl Host {
    /// Starts the daemon in a host of [`Template::with_programs`] and waits until it answers.
    ///
    /// # Errors
    /// When it does not answer, with what it printed.
    pub fn start_daemon(&self) -> Result<()> {
        self.check_shell(START).map(drop)
    }
}
