//! The way into dom0: ssh over ports that QEMU forwards from 127.0.0.1, with one kept connection per server, so that
//! a command costs no handshake.

use crate::{
    error::Result,
    process::{self, Output, Sink},
};
use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// Exit code with which ssh tells of its own failures. A remote command that ends with 255 looks the same.
pub(crate) const SSH_FAILED: i32 = 255;

/// One of dom0's ssh servers, as seen from here.
#[derive(Debug)]
pub(crate) struct Access {
    /// Where the control socket is; ssh is started there, because a full path could be too long for a socket.
    dir: PathBuf,
    /// Name of the control socket.
    control: &'static str,
    key: PathBuf,
    port: u16,
}

impl Access {
    pub(crate) fn new(dir: &Path, control: &'static str, key: &Path, port: u16) -> Self {
        Self { dir: dir.to_owned(), control, key: key.to_owned(), port }
    }

    fn ssh(&self) -> Command {
        let mut command = Command::new("ssh");
        command.current_dir(&self.dir).args(["-F", "none", "-S", self.control, "-i"]).arg(&self.key);
        command.args(["-p", &self.port.to_string()]);
        for option in [
            "BatchMode=yes",
            "ConnectTimeout=30",
            "IdentitiesOnly=yes",
            // Nobody but our own QEMU listens on that port, and every image has keys of its own.
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "LogLevel=ERROR",
            // The cheapest to compute for an emulated CPU.
            "Compression=no",
        ] {
            command.args(["-o", option]);
        }
        command
    }

    fn target(command: &mut Command) -> &mut Command {
        command.args(["--", "root@127.0.0.1"])
    }

    /// Makes the kept connection. It ends with the QEMU at its other end.
    pub(crate) fn connect(&self, limit: Duration) -> Result<Output> {
        let mut command = self.ssh();
        command.args(["-M", "-N", "-f", "-o", "StreamLocalBindUnlink=yes"]);
        process::run(Self::target(&mut command), None, limit, None)
    }

    /// Runs a shell script in dom0.
    pub(crate) fn run(
        &self,
        script: &str,
        stdin: Option<File>,
        limit: Duration,
        sink: Option<Sink<'_>>,
    ) -> Result<Output> {
        let mut command = self.ssh();
        process::run(Self::target(&mut command).arg(script), stdin, limit, sink)
    }

    /// An ssh with a terminal, for a person.
    pub(crate) fn interactive(&self) -> Command {
        let mut command = self.ssh();
        command.arg("-t");
        Self::target(&mut command);
        command
    }

    /// Tells the kept connection something: `forward`, `cancel` or `exit`.
    pub(crate) fn control(&self, what: &str, forward: Option<&str>, limit: Duration) -> Result<Output> {
        let mut command = self.ssh();
        command.args(["-O", what]);
        if let Some(forward) = forward {
            command.args(["-L", forward]);
        }
        process::run(Self::target(&mut command), None, limit, None)
    }
}

/// One word for a POSIX shell: nothing in it has a meaning but itself.
pub fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@%+,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

/// A command line for a POSIX shell that runs exactly these words.
pub fn quote_all<S: AsRef<str>>(words: &[S]) -> String {
    words.iter().map(|w| quote(w.as_ref())).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn plain_words_stay_readable() {
        assert_eq!(quote_all(&["xl", "list", "--long"]), "xl list --long");
        assert_eq!(quote_all(&["echo", "it's", ""]), "echo 'it'\\''s' ''");
        assert_eq!(quote("~root"), "'~root'");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_shell_gives_back_the_words(words in proptest::collection::vec("[^\\x00]{0,12}", 0..4)) {
            let mut expected = String::new();
            for word in &words {
                expected.push_str(word);
                expected.push('\0');
            }
            let script = format!("for w in {}; do printf '%s\\0' \"$w\"; done", quote_all(&words));
            let output = process::run(Command::new("sh").args(["-c", &script]), None, Duration::from_secs(20), None);
            prop_assert_eq!(output.expect("runs").text(), expected);
        }
    }
}
