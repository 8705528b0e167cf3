//! As much of QEMU's monitor protocol as the daemon needs to take this for a QEMU.

use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};

const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""}, "capabilities": []}}"#;

/// Serves the daemon, one connection after the other, for ever. `run` is called when the guest is to run, and its error
/// is the answer to that.
///
/// # Errors
/// When no connection can be accepted any more.
pub(crate) fn serve(
    listener: OwnedFd,
    status: &str,
    mut run: impl FnMut() -> Result<(), String>,
) -> Result<(), String> {
    let listener = UnixListener::from(listener);
    loop {
        let (stream, _) = listener.accept().map_err(|error| format!("accept: {error}"))?;
        // The daemon may go at any time; another comes.
        let _ = talk(&stream, status, &mut run);
    }
}

fn talk(
    mut stream: &UnixStream,
    status: &str,
    run: &mut impl FnMut() -> Result<(), String>,
) -> io::Result<()> {
    write!(stream, "{GREETING}\r\n")?;
    for line in BufReader::new(stream.try_clone()?).lines() {
        let line = line?;
        let id = member(&line, "id").unwrap_or("0");
        let answer = match member(&line, "execute") {
            Some("query-status") => format!(r#"{{"return": {{"status": "{status}"}}, "id": {id}}}"#),
            Some("cont") => match run() {
                Ok(()) => format!(r#"{{"return": {{}}, "id": {id}}}"#),
                Err(text) => {
                    format!(r#"{{"error": {{"class": "GenericError", "desc": "{text}"}}, "id": {id}}}"#)
                }
            },
            _ => format!(r#"{{"return": {{}}, "id": {id}}}"#),
        };
        write!(stream, "{answer}\r\n")?;
    }
    Ok(())
}

/// A member of a flat object, as the daemon writes it.
fn member<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    let (_, rest) = line.split_once(&format!("\"{key}\":"))?;
    let end = rest.find([',', '}'])?;
    Some(rest[..end].trim().trim_matches('"'))
}
