//! The command line. The options of the original are kept, with its letters.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use crate::fb::wanted::Wanted;

/// What `--help` prints.
pub const HELP: &str = "\
usage: vncterm [OPTIONS]

Shows a guest's text console, or a command's terminal, as a VNC screen.

  -p, --pty PTY            the console's pseudo-terminal; - is standard input
  -c, --cmd COMMAND        run a command on a pseudo-terminal instead (default: /bin/bash)
  -x, --xenstore PATH      write the ports to PATH/vnc-port and PATH/tc-port; without -p and -c, wait for PATH/tty
  -v, --vnclisten [IP:]N   listen on port 5900+N, or the next that is free; IP must be a loopback address
      --vnc-socket PATH    listen on a Unix socket instead (mode 0600)
      --no-vnc             serve the raw text only, as of a serial port of a guest with a screen of its own
  -T, --text               serve the raw text too, on port 9500+N
      --text-socket PATH   serve the raw text on a Unix socket (mode 0600)
      --password-file FILE viewers must know the password in FILE, at most 8 bytes; - is standard input; the raw text
                           asks for none
  -l, --loadstate FILE     begin with a screen that was saved
      --savestate FILE     where SIGUSR1 and SIGTERM save it
      --log FILE           append the output to FILE, at most --log-size bytes
      --log-size BYTES     also of the ring in memory (default 65536, at most 16777216)
  -r, --restart            run the command again when it ends
  -s, --stay               stay when the command ends or the guest goes
  -t, --title TITLE        the screen's name
      --geometry COLSxROWS size of the screen (default 80x24)
      --scrollback ROWS    rows to scroll back to (default 512, at most 8192)
      --chroot DIR         with --uid and --gid: give up everything before the first byte is read
      --uid UID, --gid GID
      --supervised         in a jail that somebody else made: say `ready` on standard output, a socket; wait for a
                           line from it, which is the password or empty; then make only the system calls that are
                           needed from there on
      --frame-buffer WORD  with --supervised: serve a guest's paravirtual frame buffer and keyboard instead of text; WORD
                           is D:FRAME:PORT:32|64[:FRAME:PORT:abs|rel]: the domain, page and port of the frame buffer and
                           the length of the guest's words, page and port of the keyboard and whether it wants the
                           pointer's place. The two descriptors after the listening socket are /dev/xen/privcmd and
                           /dev/xen/evtchn, both restricted to the domain
  -h, --help

Listening sockets can be handed in as systemd does (LISTEN_FDS): the first is for VNC, the next for the text.
";

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// This port of a loopback address, or the next that is free.
    Port(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

/// Whom to become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Jail {
    /// An empty directory.
    pub root: PathBuf,
    /// Not 0.
    pub uid: u32,
    /// Not 0.
    pub gid: u32,
}

/// What the command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Args {
    /// The guest's pseudo-terminal.
    pub pty: Option<PathBuf>,
    /// A command to run instead.
    pub command: Option<OsString>,
    /// A path of the store.
    pub store: Option<String>,
    /// For VNC, if that is served.
    pub vnc: Option<Listen>,
    /// For raw text.
    pub text: Option<Listen>,
    /// A saved screen.
    pub load: Option<PathBuf>,
    /// Where to save it.
    pub save: Option<PathBuf>,
    /// Where the password is.
    pub password: Option<PathBuf>,
    /// Where to write the output.
    pub log: Option<PathBuf>,
    /// Bytes of the log and of the ring.
    pub log_size: usize,
    /// Run the command again.
    pub restart: bool,
    /// Stay without a guest.
    pub stay: bool,
    /// The screen's name.
    pub title: Option<String>,
    /// Columns and rows.
    pub size: crate::term::Size,
    /// Rows.
    pub scrollback: usize,
    /// Whom to become.
    pub jail: Option<Jail>,
    /// Jailed already, by somebody who listens on standard output.
    pub supervised: bool,
    /// A guest's screen of pixels to serve instead.
    pub frame_buffer: Option<Wanted>,
    /// `--help` was given.
    pub help: bool,
}

/// What is wrong with the command line.
#[derive(Debug, thiserror::Error)]
pub enum ArgsError {
    /// Unknown, or without its value.
    #[error(transparent)]
    Syntax(#[from] lexopt::Error),
    /// A value that cannot be.
    #[error("{option}: {value:?}: {why}")]
    Value {
        /// Which option.
        option: &'static str,
        /// Its value.
        value: String,
        /// What is expected.
        why: &'static str,
    },
    /// Options that belong together.
    #[error("--chroot, --uid and --gid belong together, and not with a command: it could not be run there")]
    Jail,
    /// Standard input can be one thing.
    #[error("standard input cannot be the pseudo-terminal and the password's file at once")]
    Stdin,
    /// Whoever supervises says the password.
    #[error("--password-file is not for --supervised: the line that starts it is the password")]
    Supervised,
    /// It needs a jail and what is handed into it.
    #[error("--frame-buffer is for --supervised: the daemon hands in what it needs")]
    FrameBuffer,
}

/// Most bytes of the log and its ring.
const MAX_LOG: usize = 16 << 20;

/// Bytes of the log and its ring: a Linux guest's boot messages.
const DEFAULT_LOG: usize = 64 << 10;

const VNC_BASE: u16 = 5900;
const TEXT_BASE: u16 = 9500;

fn bad(option: &'static str, value: &str, why: &'static str) -> ArgsError {
    ArgsError::Value { option, value: value.into(), why }
}

/// `[IP:]N`.
fn display(value: &str) -> Result<(IpAddr, u16), ArgsError> {
    let (ip, number) = match value.rsplit_once(':') {
        Some((ip, number)) => {
            let ip = ip.trim_start_matches('[').trim_end_matches(']');
            (ip.parse().map_err(|_| bad("-v", value, "not an address"))?, number)
        }
        None => (IpAddr::V4(Ipv4Addr::LOCALHOST), value),
    };
    if !ip.is_loopback() {
        return Err(bad("-v", value, "consoles are reached through this host only: a loopback address"));
    }
    let number = number.parse().ok().filter(|number| *number <= u16::MAX - TEXT_BASE);
    number.map(|number| (ip, number)).ok_or_else(|| bad("-v", value, "a display number"))
}

/// Reads the arguments after the program's name.
///
/// # Errors
/// [`ArgsError`] names the option.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Args, ArgsError> {
    use lexopt::prelude::{Long, Short, ValueExt as _};
    let mut parser = lexopt::Parser::from_args(arguments);
    let mut args = Args {
        pty: None,
        command: None,
        store: None,
        vnc: None,
        text: None,
        load: None,
        save: None,
        password: None,
        log: None,
        log_size: DEFAULT_LOG,
        restart: false,
        stay: false,
        title: None,
        size: crate::term::Size::DEFAULT,
        scrollback: crate::term::DEFAULT_SCROLLBACK,
        jail: None,
        supervised: false,
        frame_buffer: None,
        help: false,
    };
    let mut listen = (IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
    let (mut text, mut vnc_socket, mut text_socket, mut no_vnc) = (false, None, None, false);
    let (mut root, mut uid, mut gid) = (None, None, None);
    while let Some(argument) = parser.next()? {
        match argument {
            Short('p') | Long("pty") => args.pty = Some(parser.value()?.into()),
            Short('c') | Long("cmd") => args.command = Some(parser.value()?),
            Short('x') | Long("xenstore") => args.store = Some(parser.value()?.string()?),
            Short('v') | Long("vnclisten") => listen = display(&parser.value()?.string()?)?,
            Long("vnc-socket") => vnc_socket = Some(parser.value()?.into()),
            Long("no-vnc") => no_vnc = true,
            Short('T') | Long("text") => text = true,
            Long("text-socket") => text_socket = Some(parser.value()?.into()),
            Short('l') | Long("loadstate") => args.load = Some(parser.value()?.into()),
            Long("savestate") => args.save = Some(parser.value()?.into()),
            Long("password-file") => args.password = Some(parser.value()?.into()),
            Long("log") => args.log = Some(parser.value()?.into()),
            Long("log-size") => args.log_size = parser.value()?.parse::<usize>()?.min(MAX_LOG),
            Short('r') | Long("restart") => args.restart = true,
            Short('s') | Long("stay") => args.stay = true,
            // A command always keeps the user it is run as.
            Short('S') | Long("stay-root") => {}
            Short('t') | Long("title") => args.title = Some(parser.value()?.string()?),
            Long("geometry") => args.size = geometry(&parser.value()?.string()?)?,
            Long("scrollback") => {
                args.scrollback = parser.value()?.parse::<usize>()?.min(crate::term::MAX_SCROLLBACK);
            }
            Long("chroot") => root = Some(PathBuf::from(parser.value()?)),
            Long("uid") => uid = Some(parser.value()?.parse::<u32>()?),
            Long("gid") => gid = Some(parser.value()?.parse::<u32>()?),
            Long("supervised") => args.supervised = true,
            Long("frame-buffer") => args.frame_buffer = Some(frame_buffer(&parser.value()?.string()?)?),
            Short('h') | Long("help") => args.help = true,
            other => return Err(other.unexpected().into()),
        }
    }
    let is_stdin = |path: &Option<PathBuf>| path.as_deref() == Some(std::path::Path::new("-"));
    if is_stdin(&args.pty) && is_stdin(&args.password) {
        return Err(ArgsError::Stdin);
    }
    if args.frame_buffer.is_some() && !args.supervised {
        return Err(ArgsError::FrameBuffer);
    }
    if args.supervised && args.password.is_some() {
        return Err(ArgsError::Supervised);
    }
    let (ip, number) = listen;
    let vnc = vnc_socket.map_or(Listen::Port((ip, VNC_BASE + number).into()), Listen::Unix);
    args.vnc = (!no_vnc).then_some(vnc);
    args.text =
        text_socket.map(Listen::Unix).or_else(|| text.then(|| Listen::Port((ip, TEXT_BASE + number).into())));
    args.jail = match (root, uid, gid) {
        (None, None, None) => None,
        (Some(root), Some(uid @ 1..), Some(gid @ 1..)) if args.command.is_none() => {
            Some(Jail { root, uid, gid })
        }
        _ => return Err(ArgsError::Jail),
    };
    Ok(args)
}

fn frame_buffer(value: &str) -> Result<Wanted, ArgsError> {
    value.parse().map_err(|_| bad("--frame-buffer", value, "D:FRAME:PORT:32|64[:FRAME:PORT:abs|rel]"))
}

fn geometry(value: &str) -> Result<crate::term::Size, ArgsError> {
    let size = value.split_once('x').and_then(|(cols, rows)| {
        Some(crate::term::Size { cols: cols.parse().ok()?, rows: rows.parse().ok()? })
    });
    size.filter(|size| *size == size.clamped()).ok_or_else(|| bad("--geometry", value, "1x1 to 256x128"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Args, ArgsError> {
        parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn the_originals_command_lines_are_read() {
        let guest = parsed("-x /local/domain/3/console -T -v 127.0.0.1:1 -l /state").unwrap();
        assert_eq!(guest.store.as_deref(), Some("/local/domain/3/console"));
        assert_eq!(guest.vnc, Some(Listen::Port("127.0.0.1:5901".parse().unwrap())));
        assert_eq!(guest.text, Some(Listen::Port("127.0.0.1:9501".parse().unwrap())));
        let dom0 =
            parsed("-v 127.0.0.1:0 -r -s -x /local/domain/0/console -T -c dom0term.sh -t Host").unwrap();
        assert!(dom0.restart && dom0.stay);
        assert_eq!((dom0.command, dom0.title.as_deref()), (Some("dom0term.sh".into()), Some("Host")));
    }

    #[test]
    fn nothing_listens_where_others_reach_it() {
        for address in ["0.0.0.0:1", "10.0.0.1:0", "[::]:0", "192.168.1.2:5"] {
            let error = parsed(&format!("-v {address}")).unwrap_err();
            assert!(error.to_string().contains("loopback"), "{error}");
        }
        let vnc = |address: &str| Some(Listen::Port(address.parse().unwrap()));
        assert_eq!(parsed("-v [::1]:2").unwrap().vnc, vnc("[::1]:5902"));
        assert_eq!(parsed("-v 2").unwrap().vnc, vnc("127.0.0.1:5902"));
        assert_eq!(parsed("").unwrap().vnc, vnc("127.0.0.1:5900"));
        assert_eq!(parsed("--no-vnc -T").unwrap().vnc, None);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for line in [
            "-v x",
            "-v 127.0.0.1:99999",
            "--geometry 0x5",
            "--geometry 9999x5",
            "--nothing",
            "-p",
            "file",
            "--uid 1",
            "--chroot / --uid 0 --gid 1",
            "--chroot / --uid 1 --gid 1 -c sh",
            "--log-size x",
            "-p - --password-file -",
            "--supervised --password-file /p",
            "--frame-buffer 1:2:3:64",
            "--supervised --frame-buffer 1:2:3",
        ] {
            assert!(parsed(line).is_err(), "{line}");
        }
    }
}
