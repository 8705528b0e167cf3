//! The client's side of a session: the stream as it is, or in the messages of a WebSocket.

use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use tungstenite::handshake::derive_accept_key;
use tungstenite::protocol::{Role, WebSocketConfig};
use tungstenite::{Error, Message, WebSocket};

use super::ConsoleCall;

/// Bytes taken at once in either direction, and all that is held for a side that does not read.
pub(super) const CHUNK: usize = 32 << 10;

/// Longest message of a WebSocket: viewers send keys and movements, a clipboard now and then.
const MAX_MESSAGE: usize = 1 << 20;

/// What reading came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// Bytes for the screen.
    Bytes(Vec<u8>),
    /// Nothing now.
    Blocked,
    /// It has closed.
    Closed,
}

pub(super) enum Client {
    Raw { stream: UnixStream, output: Vec<u8> },
    Web { socket: Box<WebSocket<UnixStream>>, unflushed: bool },
}

impl Client {
    /// Answers the request that `call` is; what it has sent for the screen already.
    pub(super) fn welcome(call: ConsoleCall) -> (Self, Vec<u8>) {
        let Some(offer) = call.request.websocket else {
            let output = b"HTTP/1.1 200 OK\r\n\r\n".to_vec();
            return (Self::Raw { stream: call.stream, output }, call.first);
        };
        let accept = derive_accept_key(offer.key.as_bytes());
        let protocol = if offer.binary { "sec-websocket-protocol: binary\r\n" } else { "" };
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n\
             sec-websocket-accept: {accept}\r\n{protocol}\r\n"
        );
        // A few bytes fit a socket that nothing was written to; one that has gone is noticed when it is read.
        let _ = (&call.stream).write_all(answer.as_bytes());
        let limits = WebSocketConfig::default()
            .read_buffer_size(CHUNK)
            .write_buffer_size(0)
            .max_write_buffer_size(4 * CHUNK)
            .max_message_size(Some(MAX_MESSAGE))
            .max_frame_size(Some(MAX_MESSAGE));
        let socket = WebSocket::from_partially_read(call.stream, call.first, Role::Server, Some(limits));
        (Self::Web { socket: Box::new(socket), unflushed: false }, Vec::new())
    }

    /// Reads what came.
    pub(super) fn read(&mut self) -> io::Result<Read> {
        match self {
            Self::Raw { stream, .. } => read_some(stream),
            Self::Web { socket, unflushed } => {
                let message = socket.read();
                // A ping's answer goes with the next flush.
                *unflushed |= message.is_ok();
                match message {
                    Ok(Message::Binary(bytes)) => Ok(Read::Bytes(bytes.into())),
                    Ok(Message::Ping(_) | Message::Pong(_)) => Ok(Read::Bytes(Vec::new())),
                    Ok(Message::Text(_) | Message::Frame(_)) => Err(io::ErrorKind::InvalidData.into()),
                    Ok(Message::Close(_)) | Err(Error::ConnectionClosed | Error::AlreadyClosed) => {
                        // What is said last is said as far as it fits.
                        let _ = socket.flush();
                        Ok(Read::Closed)
                    }
                    Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => Ok(Read::Blocked),
                    Err(error) => Err(other(error)),
                }
            }
        }
    }

    /// Whether it has taken everything, so that it can be given more.
    pub(super) fn is_idle(&self) -> bool {
        match self {
            Self::Raw { output, .. } => output.is_empty(),
            Self::Web { unflushed, .. } => !unflushed,
        }
    }

    /// Gives it more, once it [is idle](Self::is_idle).
    pub(super) fn give(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Raw { output, .. } => output.extend_from_slice(bytes),
            Self::Web { socket, unflushed } => {
                *unflushed = true;
                match socket.write(Message::binary(bytes.to_vec())) {
                    Ok(()) => {}
                    // It is kept, and goes with the next flush.
                    Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(other(error)),
                }
            }
        }
        Ok(())
    }

    /// Sends what it takes; whether it took anything.
    pub(super) fn flush(&mut self) -> io::Result<bool> {
        match self {
            Self::Raw { stream, output } => write_some(stream, output),
            Self::Web { unflushed: false, .. } => Ok(false),
            Self::Web { socket, unflushed } => match socket.flush() {
                Ok(()) | Err(Error::ConnectionClosed | Error::AlreadyClosed) => Ok(std::mem::take(unflushed)),
                Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
                Err(error) => Err(other(error)),
            },
        }
    }

    /// Says good-bye; the screen has ended.
    pub(super) fn close(&mut self) {
        if let Self::Web { socket, .. } = self {
            // As far as it fits: the connection ends in any case.
            let _ = socket.close(None);
            let _ = socket.flush();
        }
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Raw { stream, .. } => stream.as_fd(),
            Self::Web { socket, .. } => socket.get_ref().as_fd(),
        }
    }
}

fn other(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        error => io::Error::other(error),
    }
}

/// Reads what came from a socket that does not block.
pub(super) fn read_some(stream: &mut UnixStream) -> io::Result<Read> {
    let mut buffer = vec![0; CHUNK];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(Read::Closed),
            Ok(count) => {
                buffer.truncate(count);
                return Ok(Read::Bytes(buffer));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Read::Blocked),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Writes what a socket that does not block takes; whether it took anything.
pub(super) fn write_some(stream: &mut UnixStream, bytes: &mut Vec<u8>) -> io::Result<bool> {
    let mut written = 0;
    while written < bytes.len() {
        match stream.write(&bytes[written..]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => written += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.drain(..written);
    Ok(written > 0)
}
