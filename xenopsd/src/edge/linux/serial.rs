//! Pseudo-terminals for serial ports.

use std::io;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::pty::openpty;
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::ttyname;

use crate::edge::Terminal;

/// Makes one, raw: bytes go through as they are.
///
/// # Errors
/// The kernel's.
pub fn open() -> io::Result<Terminal> {
    let pair = openpty(None, None)?;
    for end in [&pair.master, &pair.slave] {
        fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    }
    let mut settings = tcgetattr(&pair.slave)?;
    cfmakeraw(&mut settings);
    tcsetattr(&pair.slave, SetArg::TCSANOW, &settings)?;
    let path = ttyname(&pair.slave)?;
    Ok(Terminal { master: pair.master, slave: pair.slave, path })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read, Write};

    #[test]
    fn bytes_go_through_as_they_are() {
        let Terminal { master, slave, path } = open().unwrap();
        let mut reader = File::open(&path).unwrap();
        let mut server = File::from(master);
        server.write_all(b"a\x03\rb").unwrap();
        let mut bytes = [0; 4];
        reader.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"a\x03\rb");
        drop(slave);
    }
}
