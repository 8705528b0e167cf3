//! The console's nodes in xenstore: used at start only. The connection is closed before a byte of the guest is read.

use std::io;
use std::time::{Duration, Instant};
use xenstore::{Client, Endpoint, Operations as _, WatchStream};

/// How long xenconsoled may take to make the guest's terminal.
const TERMINAL_WAIT: Duration = Duration::from_secs(60);

fn failed(error: impl std::fmt::Display) -> io::Error {
    io::Error::other(format!("xenstore: {error}"))
}

/// Writes where this console listens.
///
/// # Errors
/// When the store cannot be reached or refuses.
pub fn write_ports(console: &str, vnc: Option<u16>, text: Option<u16>) -> io::Result<()> {
    let mut client = Client::connect_to(Endpoint::from_environment()).map_err(failed)?;
    for (node, port) in [("vnc-port", vnc), ("tc-port", text)] {
        if let Some(port) = port {
            let path = xenstore::Path::new(&format!("{console}/{node}")).map_err(failed)?;
            client.write(&path, port.to_string().as_bytes()).map_err(failed)?;
        }
    }
    Ok(())
}

/// Waits until the console has a terminal; its path.
///
/// # Errors
/// When it has none within a minute, or the store cannot be reached.
pub fn wait_for_terminal(console: &str) -> io::Result<String> {
    let endpoint = Endpoint::from_environment();
    let path = xenstore::Path::new(&format!("{console}/tty")).map_err(failed)?;
    let mut client = Client::connect_to(endpoint.clone()).map_err(failed)?;
    let mut watches = WatchStream::connect(endpoint).map_err(failed)?;
    watches.watch(&path);
    let mut poll = mio::Poll::new()?;
    let interest = mio::Interest::READABLE | mio::Interest::WRITABLE;
    poll.registry().register(&mut watches, mio::Token(0), interest)?;
    let mut events = mio::Events::with_capacity(8);
    let deadline = Instant::now() + TERMINAL_WAIT;
    loop {
        watches.drain(|_| ()).map_err(failed)?;
        let values = client.read_all(std::slice::from_ref(&path)).map_err(failed)?;
        if let Some(value) = values.into_iter().flatten().find(|value| !value.is_empty()) {
            return Ok(String::from_utf8_lossy(&value).into_owned());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(failed(format!("{console}/tty names no terminal")));
        }
        match poll.poll(&mut events, Some(left)) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
    }
}
