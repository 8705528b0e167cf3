//! `vncterm`: a guest's text console, or a command's terminal, as a VNC screen. See the library.

use std::error::Error;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use vncterm::args::{self, Args, Listen};
use vncterm::fb::connect::{Connected, connect};
use vncterm::fb::wanted::Wanted;
use vncterm::rfb::auth::Password;
use vncterm::server::{Listener, Log, PixelServer, Server};
use vncterm::source::Source;
use vncterm::term::Terminal;
use vncterm::{jail, store};

/// Bytes of a saved screen that are read: the widest with the longest scroll-back.
const MAX_STATE: u64 = 64 << 20;

/// Bytes of the line that starts a supervised one: a password and its end.
const MAX_WORD: usize = 16;

fn main() -> ExitCode {
    match args::parse(std::env::args_os().skip(1)).map_err(Box::from).and_then(|args| run(&args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vncterm: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    if args.help {
        print!("{}", args::HELP);
        return Ok(());
    }
    if let Some(wanted) = &args.frame_buffer {
        return frame_buffer(args, wanted);
    }
    let mask: SigSet = [Signal::SIGUSR1, Signal::SIGTERM].into_iter().collect();
    mask.thread_block()?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    let terminal = terminal(args)?;
    let (vnc, text) = listeners(args)?;
    if let Some(console) = &args.store {
        store::write_ports(console, port(vnc.as_ref()), port(text.as_ref()))?;
    }
    let log =
        args.log.as_ref().map(|path| File::options().append(true).create(true).open(path)).transpose()?;
    let log = Log::new(args.log_size, log)?;
    let create = |path| File::options().write(true).create(true).truncate(false).open(path);
    let save = args.save.as_ref().map(create).transpose()?;
    let source = source(args)?;
    let ports = [("vnc-port", port(vnc.as_ref())), ("tc-port", port(text.as_ref()))];
    // Who hands sockets in knows their numbers.
    for (name, port) in ports.iter().filter(|_| !args.supervised) {
        if let Some(port) = port {
            println!("{name} {port}");
        }
    }
    let (restart, stay) = (args.restart, args.stay);
    let mut password = args.password.as_deref().map(password).transpose()?;
    if let Some(jail) = &args.jail {
        jail::enter(jail)?;
    }
    if args.supervised {
        password = wait_for_word()?;
        jail::filter()?;
    }
    let server = Server { source, terminal, log, vnc, text, save, password, signals, restart, stay };
    server.run()?;
    Ok(())
}

/// A guest's screen of pixels. All of the guest's that is needed is mapped before the daemon is told so; what it was mapped
/// through is closed then.
fn frame_buffer(args: &Args, wanted: &Wanted) -> Result<(), Box<dyn Error>> {
    /// The descriptors after the standard ones and the listening socket.
    const DRIVERS: i32 = 4;
    let mask: SigSet = [Signal::SIGTERM].into_iter().collect();
    mask.thread_block()?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    let listener = listeners(args)?.0.ok_or("no listening socket was handed in")?;
    let [privcmd, evtchn] =
        ffi::jail::given(DRIVERS, 2)?.try_into().map_err(|_| "no drivers of Xen's were handed in")?;
    let guest = connect(wanted, privcmd, evtchn)?;
    let password = wait_for_word()?;
    jail::filter_frame_buffer()?;
    let Connected { channels, screen, geometry, memory, length, input } = guest;
    PixelServer { channels, screen, geometry, memory, length, input, listener, password, signals }.run()?;
    Ok(())
}

/// Says that everything is open, and waits until whoever started this process has written down that it is there. Had it
/// ended meanwhile, nobody would know of this one: the socket is closed then. What it says is the password.
fn wait_for_word() -> Result<Option<Password>, Box<dyn Error>> {
    let mut stdout = std::io::stdout();
    stdout.write_all(b"ready\n")?;
    stdout.flush()?;
    let mut word = Vec::new();
    let mut buffer = [0; MAX_WORD];
    while !word.ends_with(b"\n") {
        match nix::unistd::read(&stdout, &mut buffer) {
            Ok(0) => return Err("whoever started this ended before it was ready".into()),
            Ok(count) => word.extend_from_slice(&buffer[..count]),
            Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        if word.len() > MAX_WORD {
            return Err("the line that starts it is longer than a password".into());
        }
    }
    Ok(if word == b"\n" { None } else { Some(Password::new(&word)?) })
}

/// The password in a file; `-` is standard input.
fn password(path: &Path) -> Result<Password, Box<dyn Error>> {
    use std::io::Read as _;
    let mut text = Vec::new();
    if path == Path::new("-") {
        std::io::stdin().take(Password::MOST_READ).read_to_end(&mut text)?;
    } else {
        let file = File::open(path).map_err(|error| format!("{}: {error}", path.display()))?;
        file.take(Password::MOST_READ).read_to_end(&mut text)?;
    }
    Ok(Password::new(&text).map_err(|error| format!("{}: {error}", path.display()))?)
}

fn terminal(args: &Args) -> Result<Terminal, Box<dyn Error>> {
    use std::io::Read as _;
    let mut terminal = match &args.load {
        None => Terminal::new(args.size, args.scrollback),
        Some(path) => {
            let mut state = Vec::new();
            File::open(path)?.take(MAX_STATE).read_to_end(&mut state)?;
            Terminal::restore(&state).map_err(|error| format!("{}: {error}", path.display()))?
        }
    };
    if let Some(title) = &args.title {
        terminal.feed(format!("\x1b]2;{title}\x07").as_bytes());
    }
    Ok(terminal)
}

fn port(listener: Option<&Listener>) -> Option<u16> {
    listener.and_then(Listener::port)
}

/// For VNC and for the text: those handed in, else those that are asked for.
fn listeners(args: &Args) -> Result<(Option<Listener>, Option<Listener>), Box<dyn Error>> {
    let mut handed = listenfd::ListenFd::from_env();
    let mut next = 0..handed.len();
    let mut take = || -> Result<Option<Listener>, Box<dyn Error>> {
        let Some(index) = next.next() else { return Ok(None) };
        // Either kind may come; the one that it is not leaves it in its place.
        if let Ok(Some(listener)) = handed.take_unix_listener(index) {
            return Ok(Some(Listener::from_unix(listener)?));
        }
        Ok(handed.take_tcp_listener(index)?.map(Listener::from_tcp).transpose()?)
    };
    let mut listener = |asked: Option<&Listen>| -> Result<Option<Listener>, Box<dyn Error>> {
        let bound = |listen| Listener::bind(listen);
        Ok(take()?.map_or_else(|| asked.map(bound).transpose(), |handed| Ok(Some(handed)))?)
    };
    let vnc = if args.vnc.is_some() { listener(args.vnc.as_ref())? } else { None };
    Ok((vnc, listener(args.text.as_ref())?))
}

fn source(args: &Args) -> Result<Source, Box<dyn Error>> {
    if let Some(command) = &args.command {
        return Ok(Source::command(command, args.size)?);
    }
    if let Some(pty) = &args.pty {
        return Source::guest(pty).map_err(|error| format!("{}: {error}", pty.display()).into());
    }
    match &args.store {
        Some(console) => Ok(Source::guest(Path::new(&store::wait_for_terminal(console)?))?),
        None => Ok(Source::command(OsStr::new("/bin/bash"), args.size)?),
    }
}
