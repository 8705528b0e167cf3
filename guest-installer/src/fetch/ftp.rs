//! FTP (RFC 959, 2428): one file, in binary, over a second connection that we open.
//!
//! ```text
//!   220 ─► USER ─► [PASS] ─► TYPE I ─► [SIZE] ─► EPSV or PASV ─► [REST n] ─► RETR ─► data, to its end ─► 226
//! ```

use super::{Address, Connect, Error, Result, Sink, Target, broken};
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
};

/// Longest line of a reply.
const LINE_BYTES: u64 = 1024;

/// Most lines of a reply: some servers greet with a page of text.
const LINES: usize = 200;

/// How much is read at once.
const BUFFER: usize = 64 << 10;

/// Gets a file, from where the sink is if the server can.
///
/// # Errors
/// [`Error`].
pub fn get(address: &Address, connect: &dyn Connect, sink: &mut Sink<'_>) -> Result<()> {
    let path = address.decoded_path().map_err(Error::Refused)?;
    // An address' path is relative to where the user comes to.
    let path = path.trim_start_matches('/');
    let mut control = Control::open(address, connect)?;
    control.login(address.user.as_ref())?;
    control.ask("TYPE I", 2)?;
    let size = control.size(path)?;
    let port = control.passive()?;
    let from = match sink.at() {
        0 => 0,
        at => match control.command(&format!("REST {at}"))?.code {
            300..=399 => at,
            _ => 0,
        },
    };
    // Never where the server says: that could be anybody.
    let target = Target { host: address.host.clone(), port, privileged: false };
    let mut data = connect.connect(&target)?;
    let begun = control.command(&format!("RETR {path}"))?;
    match begun.code {
        100..=199 => {}
        550 => return Err(Error::NotFound),
        _ => return Err(begun.refused()),
    }
    sink.begin(from, size)?;
    let mut buffer = vec![0; BUFFER];
    loop {
        match data.read(&mut buffer).map_err(|e| broken(&e))? {
            0 => break,
            read => sink.write(&buffer[..read])?,
        }
    }
    let ended = control.reply()?;
    if !(200..300).contains(&ended.code) {
        return Err(Error::Broken(format!("the server ended with {ended}")));
    }
    sink.end()
}

/// A reply: its code, and its last line's text.
#[derive(Debug, PartialEq, Eq)]
struct Reply {
    code: u16,
    text: String,
}

impl Reply {
    fn refused(&self) -> Error {
        Error::refused(format_args!("the server answers {self}"))
    }

    /// Reads one: a line, or lines from `123-` to `123 `.
    fn read(stream: &mut impl BufRead) -> Result<Self> {
        let mut open = None;
        for _ in 0..LINES {
            let mut line = Vec::new();
            stream.take(LINE_BYTES).read_until(b'\n', &mut line).map_err(|e| broken(&e))?;
            if line.pop() != Some(b'\n') {
                let why = if line.is_empty() { "the server ended the connection" } else { "no line of FTP" };
                return Err(Error::Broken(why.to_owned()));
            }
            let text = String::from_utf8_lossy(&line);
            let code: Option<u16> = text
                .get(..3)
                .filter(|code| code.bytes().all(|b| b.is_ascii_digit()))
                .and_then(|code| code.parse().ok());
            let mark = text.as_bytes().get(3).copied();
            match (open, code) {
                (None, Some(code)) if mark == Some(b'-') => open = Some(code),
                (None, None) => return Err(Error::refused("the server speaks no FTP")),
                (Some(first), code) if code != Some(first) || mark == Some(b'-') => {}
                (_, Some(code)) => {
                    let text = text.get(4..).unwrap_or_default().trim_end();
                    return Ok(Self { code, text: crate::error::printable(text) });
                }
                (Some(_), None) => {}
            }
        }
        Err(Error::refused(format_args!("a reply of more than {LINES} lines")))
    }
}

impl std::fmt::Display for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.code, self.text)
    }
}

struct Control(BufReader<TcpStream>);

impl Control {
    fn open(address: &Address, connect: &dyn Connect) -> Result<Self> {
        let target = Target { host: address.host.clone(), port: address.port, privileged: false };
        let mut control = Self(BufReader::new(connect.connect(&target)?));
        let greeting = control.reply()?;
        if greeting.code / 100 == 2 { Ok(control) } else { Err(greeting.refused()) }
    }

    fn reply(&mut self) -> Result<Reply> {
        Reply::read(&mut self.0)
    }

    /// The parts of a command were checked when the address was parsed: none has a line break.
    fn command(&mut self, command: &str) -> Result<Reply> {
        let line = format!("{command}\r\n");
        self.0.get_mut().write_all(line.as_bytes()).map_err(|e| broken(&e))?;
        self.reply()
    }

    /// A command whose reply must begin with this digit.
    fn ask(&mut self, command: &str, digit: u16) -> Result<Reply> {
        let reply = self.command(command)?;
        if reply.code / 100 == digit { Ok(reply) } else { Err(reply.refused()) }
    }

    fn login(&mut self, user: Option<&(String, String)>) -> Result<()> {
        let (user, password) = user.map_or(("anonymous", "xenopsd@"), |(u, p)| (u, p));
        let reply = self.command(&format!("USER {user}"))?;
        match reply.code {
            230 => Ok(()),
            331 => self.ask(&format!("PASS {password}"), 2).map(drop),
            _ => Err(reply.refused()),
        }
    }

    /// How long the file is, if the server tells.
    fn size(&mut self, path: &str) -> Result<Option<u64>> {
        let reply = self.command(&format!("SIZE {path}"))?;
        match reply.code {
            213 => reply.text.trim().parse().map(Some).map_err(|_| Error::refused("a size that is none")),
            550 => Err(Error::NotFound),
            _ => Ok(None),
        }
    }

    /// The port for the data.
    fn passive(&mut self) -> Result<u16> {
        let reply = self.command("EPSV")?;
        if reply.code == 229 {
            return extended_port(&reply.text).ok_or_else(|| Error::refused("EPSV without a port"));
        }
        let reply = self.ask("PASV", 2)?;
        passive_port(&reply.text).ok_or_else(|| Error::refused("PASV without a port"))
    }
}

/// `(|||PORT|)`, whatever the bars are.
fn extended_port(text: &str) -> Option<u16> {
    let inside = text.split_once('(')?.1.split_once(')')?.0;
    let bar = inside.chars().next()?;
    let mut parts = inside.split(bar);
    let port = parts.nth(3)?;
    port.parse().ok().filter(|&port| port > 0)
}

/// `(h1,h2,h3,h4,p1,p2)`; some servers forget the brackets.
fn passive_port(text: &str) -> Option<u16> {
    let start = text.find(|c: char| c.is_ascii_digit())?;
    let list = text[start..].split(|c: char| c != ',' && !c.is_ascii_digit()).next()?;
    let numbers: Vec<u8> = list.split(',').map(str::parse).collect::<std::result::Result<_, _>>().ok()?;
    let [_, _, _, _, high, low] = *numbers.as_slice() else { return None };
    Some(u16::from_be_bytes([high, low])).filter(|&port| port > 0)
}

/// What a server says is a reply or an error, and no more is read of it than there is; for fuzzing.
pub fn fuzz(bytes: &[u8]) {
    let mut stream = bytes;
    while let Ok(reply) = Reply::read(&mut stream) {
        assert!(reply.code < 1000 && !reply.text.contains(['\n', '\0']));
        let _ = (extended_port(&reply.text), passive_port(&reply.text));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(text: &str) -> Result<Reply> {
        Reply::read(&mut text.as_bytes())
    }

    #[test]
    fn replies_of_one_and_many_lines() {
        assert_eq!(reply("220 hello\r\n").unwrap().to_string(), "220 hello");
        let many = reply("220-hello\r\n 220 not yet\r\n221 nor here\r\n220-nor\r\n220 here\r\n").unwrap();
        assert_eq!((many.code, &*many.text), (220, "here"));
        assert!(matches!(reply("HTTP/1.1 400\r\n"), Err(Error::Refused(_))));
        assert!(matches!(reply("220-\r\n"), Err(Error::Broken(_))));
        assert!(matches!(reply(&"220-x\r\n".repeat(1000)), Err(Error::Refused(_))));
        assert!(matches!(reply(&"2".repeat(5000)), Err(Error::Broken(_))));
    }

    #[test]
    fn ports() {
        assert_eq!(extended_port("Entering (|||6446|)"), Some(6446));
        assert_eq!(passive_port("Entering Passive Mode (10,0,0,1,25,46)"), Some(25 * 256 + 46));
        assert_eq!(passive_port("=10,0,0,1,25,46"), Some(25 * 256 + 46));
        for bad in ["", "(|||0|)", "(|||x|)", "(1,2,3,4,5)", "(1,2,3,4,5,256)", "(1,2,3,4,0,0)", "()"] {
            assert_eq!((extended_port(bad), passive_port(bad)), (None, None), "{bad}");
        }
    }
}
