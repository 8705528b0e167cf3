//! What is said before the first message: which version is spoken, who may come in, and who may stay.

use std::rc::Rc;
use std::time::Instant;

use super::auth::{CHALLENGE, Denied, Gate};
use super::message::ViewerError;

/// Security types (RFC 6143, 7.1.2): nothing is asked, or the password.
const NONE: u8 = 1;
const PASSWORD: u8 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Version,
    Security,
    /// To this.
    Answer([u8; CHALLENGE]),
    Init,
    Over,
}

/// The handshake with one viewer.
#[derive(Debug)]
pub(super) struct Handshake {
    phase: Phase,
    /// Of a message that has not come whole.
    buffer: Vec<u8>,
    /// 3, 7 or 8.
    minor: u8,
    gate: Option<Rc<Gate>>,
}

/// The viewer is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Begun {
    /// Others may stay.
    pub(super) shared: bool,
    /// Bytes that were taken of those that came; what follows are messages.
    pub(super) taken: usize,
}

impl Handshake {
    /// The greeting.
    pub(super) const GREETING: &[u8; 12] = b"RFB 003.008\n";

    pub(super) fn new(gate: Option<Rc<Gate>>) -> Self {
        Self { phase: Phase::Version, buffer: Vec::new(), minor: 8, gate }
    }

    /// It has come to its end.
    pub(super) fn is_over(&self) -> bool {
        self.phase == Phase::Over
    }

    /// Takes what the viewer sent and appends what it is answered; `None` when there is more to come.
    ///
    /// # Errors
    /// [`ViewerError`]: it must be sent away, after it has read the answer.
    pub(super) fn received(
        &mut self,
        bytes: &[u8],
        output: &mut Vec<u8>,
    ) -> Result<Option<Begun>, ViewerError> {
        let mut taken = 0;
        loop {
            let needed = match self.phase {
                Phase::Version => Self::GREETING.len(),
                Phase::Security | Phase::Init => 1,
                Phase::Answer(_) => CHALLENGE,
                Phase::Over => return Ok(Some(Begun { shared: true, taken })),
            };
            let end = bytes.len().min(taken + needed - self.buffer.len());
            self.buffer.extend_from_slice(&bytes[taken..end]);
            taken = end;
            if self.buffer.len() < needed {
                return Ok(None);
            }
            let message = std::mem::take(&mut self.buffer);
            match self.phase {
                Phase::Version => self.version(&message, output)?,
                Phase::Security => self.security(message[0], output)?,
                Phase::Answer(challenge) => self.answer(&challenge, &message, output)?,
                Phase::Init | Phase::Over => {
                    self.phase = Phase::Over;
                    return Ok(Some(Begun { shared: message[0] != 0, taken }));
                }
            }
        }
    }

    fn offered(&self) -> u8 {
        if self.gate.is_some() { PASSWORD } else { NONE }
    }

    fn version(&mut self, message: &[u8], output: &mut Vec<u8>) -> Result<(), ViewerError> {
        let text = std::str::from_utf8(message).map_err(|_| ViewerError::Greeting)?;
        let version = text.strip_prefix("RFB 003.").and_then(|rest| rest.strip_suffix('\n'));
        let minor: u16 = version.and_then(|minor| minor.parse().ok()).ok_or(ViewerError::Greeting)?;
        // Versions that never were are 3.3 (RFC 6143, 7.1.1); Apple's 889 and other later ones are 3.8.
        self.minor = match minor {
            0..7 => 3,
            7 => 7,
            8.. => 8,
        };
        if self.minor == 3 {
            // The server chooses.
            output.extend(u32::from(self.offered()).to_be_bytes());
            self.chosen(output)
        } else {
            output.extend([1, self.offered()]);
            self.phase = Phase::Security;
            Ok(())
        }
    }

    fn security(&mut self, kind: u8, output: &mut Vec<u8>) -> Result<(), ViewerError> {
        if kind != self.offered() {
            return Err(ViewerError::Security(kind));
        }
        self.chosen(output)?;
        if self.minor == 8 && self.phase == Phase::Init {
            output.extend([0; 4]);
        }
        Ok(())
    }

    fn chosen(&mut self, output: &mut Vec<u8>) -> Result<(), ViewerError> {
        self.phase = Phase::Init;
        if self.gate.is_some() {
            let mut challenge = [0; CHALLENGE];
            getrandom::fill(&mut challenge).map_err(ViewerError::Random)?;
            output.extend(challenge);
            self.phase = Phase::Answer(challenge);
        }
        Ok(())
    }

    fn answer(
        &mut self,
        challenge: &[u8; CHALLENGE],
        answer: &[u8],
        output: &mut Vec<u8>,
    ) -> Result<(), ViewerError> {
        let checked = match (&self.gate, <&[u8; CHALLENGE]>::try_from(answer)) {
            (Some(gate), Ok(answer)) => gate.check(challenge, answer, Instant::now()),
            _ => Err(Denied::Wrong),
        };
        output.extend(u32::from(checked.is_err()).to_be_bytes());
        if let Err(denied) = checked {
            // Only the last version says why.
            if self.minor == 8 {
                let why = denied.to_string();
                output.extend(u32::try_from(why.len()).unwrap_or(0).to_be_bytes());
                output.extend_from_slice(why.as_bytes());
            }
            return Err(denied.into());
        }
        self.phase = Phase::Init;
        Ok(())
    }
}
