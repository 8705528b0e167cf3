//! One conversation with a server, up to a whole picture.

use std::io::{self, BufReader, Read, Write};
use std::time::Duration;

use vncterm::rfb::auth::{CHALLENGE, Password};

use super::picture::{Canvas, SENT};
use super::{Picture, RfbError};

/// Bytes read at once.
const BUFFER: usize = 64 << 10;

/// Longest text of the server's that is read: its name, and why it refuses.
const MAX_TEXT: u32 = 4096;

/// Longest clipboard that is passed over, in bytes.
const MAX_CUT_TEXT: u32 = 1 << 20;

/// Most messages before the picture is whole: QEMU and vncterm need one, and one more for each change of size.
const MAX_MESSAGES: usize = 1000;

/// How often the screen may change its size before that is a way to keep us.
const MAX_RESIZES: usize = 16;

/// Security types (RFC 6143, 7.1.2).
const NONE: u8 = 1;
const PASSWORD: u8 = 2;
const RAW: i32 = 0;
const DESKTOP_SIZE: i32 = -223;

/// 32 bits a pixel, 24 of them colour, little-endian: blue, green, red, nothing (RFC 6143, 7.4).
const PIXEL_FORMAT: [u8; 16] = [32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0];

/// Reads the whole screen once. `stream` ends by itself with [`io::ErrorKind::TimedOut`] after `limit`, which is named in
/// the error.
///
/// # Errors
/// [`RfbError`].
pub fn capture(stream: &mut (impl Read + Write), limit: Duration) -> Result<Picture, RfbError> {
    capture_as(None, stream, limit)
}

/// As [`capture`], of a screen that may want a password.
///
/// # Errors
/// [`RfbError`].
pub fn capture_as(
    password: Option<&Password>,
    stream: &mut (impl Read + Write),
    limit: Duration,
) -> Result<Picture, RfbError> {
    let stream = BufReader::with_capacity(BUFFER, stream);
    let mut session = Session { stream, row: Vec::new(), limit, password };
    let minor = session.versions()?;
    session.security(minor)?;
    let mut canvas = session.begin()?;
    session.send(&[&[0, 0, 0, 0][..], &PIXEL_FORMAT].concat())?;
    let [raw, size] = [RAW, DESKTOP_SIZE].map(i32::to_be_bytes);
    session.send(&[&[2, 0, 0, 2][..], &raw, &size].concat())?;
    session.ask(&canvas, false)?;
    let mut resizes = 0;
    for _ in 0..MAX_MESSAGES {
        match session.message(&mut canvas)? {
            Message::Other => {}
            Message::Update { .. } if canvas.is_whole() => return Ok(canvas.into_picture()),
            // Nothing of the screen is held any more.
            Message::Update { resized: true } if resizes < MAX_RESIZES => {
                resizes += 1;
                session.ask(&canvas, false)?;
            }
            Message::Update { resized: true } => return Err(protocol("changes of size", MAX_RESIZES)),
            Message::Update { resized: false } => session.ask(&canvas, true)?,
        }
    }
    Err(protocol("messages without a whole picture:", MAX_MESSAGES))
}

fn protocol(what: &'static str, value: impl TryInto<i64>) -> RfbError {
    RfbError::Protocol { what, value: value.try_into().unwrap_or(i64::MAX) }
}

/// What a message was.
enum Message {
    /// Of the screen, whose size may have changed with it.
    Update { resized: bool },
    /// Nothing that a picture needs.
    Other,
}

struct Session<'p, S> {
    password: Option<&'p Password>,
    stream: BufReader<S>,
    /// Pixels of a row on their way.
    row: Vec<u8>,
    limit: Duration,
}

impl<S: Read + Write> Session<'_, S> {
    fn read(&mut self, buffer: &mut [u8], expected: &'static str) -> Result<(), RfbError> {
        self.stream.read_exact(buffer).map_err(|source| match source.kind() {
            io::ErrorKind::TimedOut => RfbError::Late { expected, limit: self.limit },
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe => RfbError::Closed { expected },
            _ => RfbError::Io { doing: "read from the screen", source },
        })
    }

    fn array<const N: usize>(&mut self, expected: &'static str) -> Result<[u8; N], RfbError> {
        let mut bytes = [0; N];
        self.read(&mut bytes, expected)?;
        Ok(bytes)
    }

    fn long(&mut self, expected: &'static str) -> Result<u32, RfbError> {
        self.array(expected).map(u32::from_be_bytes)
    }

    fn shorts<const N: usize>(&mut self, expected: &'static str) -> Result<[u16; N], RfbError> {
        let mut numbers = [0; N];
        for number in &mut numbers {
            *number = u16::from_be_bytes(self.array(expected)?);
        }
        Ok(numbers)
    }

    /// Reads past bytes.
    fn skip(&mut self, mut count: u32, expected: &'static str) -> Result<(), RfbError> {
        let mut buffer = [0; 4096];
        while count > 0 {
            let now = usize::try_from(count).map_or(buffer.len(), |count| count.min(buffer.len()));
            self.read(&mut buffer[..now], expected)?;
            count -= u32::try_from(now).unwrap_or(count);
        }
        Ok(())
    }

    /// A text with its length before it.
    fn text(&mut self, expected: &'static str) -> Result<String, RfbError> {
        let length = self.long(expected)?;
        if length > MAX_TEXT {
            return Err(protocol("a text of a length of", length));
        }
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
        self.read(&mut bytes, expected)?;
        let text = String::from_utf8_lossy(&bytes);
        Ok(text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect())
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), RfbError> {
        self.stream.get_mut().write_all(bytes).map_err(|source| match source.kind() {
            io::ErrorKind::TimedOut => {
                RfbError::Late { expected: "that our messages are read", limit: self.limit }
            }
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                RfbError::Closed { expected: "that our messages are read" }
            }
            _ => RfbError::Io { doing: "write to the screen", source },
        })
    }

    /// The minor version that is spoken: 3, 7 or 8.
    fn versions(&mut self) -> Result<u8, RfbError> {
        let greeting: [u8; 12] = self.array("its version")?;
        let number = greeting.strip_prefix(b"RFB 003.").and_then(|rest| rest.strip_suffix(b"\n"));
        let number = number.and_then(|digits| std::str::from_utf8(digits).ok());
        let number = number.filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
        let Some(number) = number.and_then(|digits| digits.parse::<u16>().ok()) else {
            return Err(RfbError::Greeting { greeting: String::from_utf8_lossy(&greeting).into_owned() });
        };
        // As servers do with viewers: versions that never were are 3.3, later ones are 3.8.
        let minor = match number {
            0..7 => 3,
            7 => 7,
            8.. => 8,
        };
        self.send(format!("RFB 003.{minor:03}\n").as_bytes())?;
        Ok(minor)
    }

    fn security(&mut self, minor: u8) -> Result<(), RfbError> {
        const EXPECTED: &str = "its security types";
        if minor == 3 {
            return match self.long(EXPECTED)? {
                0 => Err(RfbError::Refused { reason: self.text("why it refuses")? }),
                1 => Ok(()),
                2 if self.password.is_some() => self.answer(minor),
                other => Err(RfbError::Security { types: vec![u8::try_from(other).unwrap_or(u8::MAX)] }),
            };
        }
        let [count] = self.array(EXPECTED)?;
        if count == 0 {
            return Err(RfbError::Refused { reason: self.text("why it refuses")? });
        }
        let mut types = vec![0; usize::from(count)];
        self.read(&mut types, EXPECTED)?;
        if !types.contains(&NONE) {
            if self.password.is_none() || !types.contains(&PASSWORD) {
                return Err(RfbError::Security { types });
            }
            self.send(&[PASSWORD])?;
            return self.answer(minor);
        }
        self.send(&[NONE])?;
        if minor == 8 && self.long("whether we may stay")? != 0 {
            return Err(RfbError::Refused { reason: self.text("why it refuses")? });
        }
        Ok(())
    }

    /// Shows that the password is known.
    fn answer(&mut self, minor: u8) -> Result<(), RfbError> {
        let challenge: [u8; CHALLENGE] = self.array("a challenge")?;
        let answer = self.password.map_or([0; CHALLENGE], |password| password.answer(&challenge));
        self.send(&answer)?;
        if self.long("whether we may stay")? == 0 {
            return Ok(());
        }
        // Only the last version says why.
        let reason =
            if minor == 8 { self.text("why it refuses")? } else { "the password is wrong".to_owned() };
        Err(RfbError::Refused { reason })
    }

    /// Beside other viewers; the canvas for its screen.
    fn begin(&mut self) -> Result<Canvas, RfbError> {
        const EXPECTED: &str = "the size of its screen";
        self.send(&[1])?;
        let [width, height] = self.shorts(EXPECTED)?;
        let canvas = Canvas::new(width, height)?;
        self.skip(16, EXPECTED)?;
        self.text("its name")?;
        Ok(canvas)
    }

    /// Wants all of the screen, or what changes of it.
    fn ask(&mut self, canvas: &Canvas, incremental: bool) -> Result<(), RfbError> {
        let (width, height) = canvas.size();
        let mut message = vec![3, u8::from(incremental), 0, 0, 0, 0];
        message.extend([width.to_be_bytes(), height.to_be_bytes()].concat());
        self.send(&message)
    }

    fn message(&mut self, canvas: &mut Canvas) -> Result<Message, RfbError> {
        const EXPECTED: &str = "its screen";
        let [kind] = self.array(EXPECTED)?;
        match kind {
            0 => return self.update(canvas),
            // A map of colours that was not asked for.
            1 => {
                self.skip(3, EXPECTED)?;
                let [count] = self.shorts(EXPECTED)?;
                self.skip(u32::from(count) * 6, EXPECTED)?;
            }
            2 => {}
            3 => {
                self.skip(3, EXPECTED)?;
                let length = self.long(EXPECTED)?;
                if length > MAX_CUT_TEXT {
                    return Err(protocol("a clipboard of a length of", length));
                }
                self.skip(length, EXPECTED)?;
            }
            other => return Err(protocol("a message of kind", other)),
        }
        Ok(Message::Other)
    }

    fn update(&mut self, canvas: &mut Canvas) -> Result<Message, RfbError> {
        const EXPECTED: &str = "a rectangle of its screen";
        self.skip(1, EXPECTED)?;
        let [count] = self.shorts(EXPECTED)?;
        let mut resized = false;
        for _ in 0..count {
            let [x, y, width, height] = self.shorts(EXPECTED)?;
            match i32::from_be_bytes(self.array(EXPECTED)?) {
                RAW if canvas.holds([x, y, width, height]) => {
                    let mut row = std::mem::take(&mut self.row);
                    row.resize(usize::from(width) * SENT, 0);
                    for line in y..y + height {
                        self.read(&mut row, EXPECTED)?;
                        canvas.put(x, line, &row);
                    }
                    self.row = row;
                }
                RAW => return Err(protocol("a rectangle beyond its screen, of a width of", width)),
                DESKTOP_SIZE if !resized => {
                    *canvas = Canvas::new(width, height)?;
                    resized = true;
                }
                DESKTOP_SIZE => return Err(protocol("two changes of size at once, with a width of", width)),
                other => return Err(protocol("an encoding that was not asked for, number", other)),
            }
        }
        Ok(Message::Update { resized })
    }
}
