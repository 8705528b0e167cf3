//! VNC Authentication (RFC 6143, 7.2.2): the viewer shows that it knows the password by encrypting what it is sent.
//!
//! It keeps users of this host apart who may all connect to a loopback port, and no more: it is DES with 56 bits, the
//! stream after it is plain. So a wrong password costs time ([`Gate`]), and a port that others than this host reach is
//! never listened on.

use std::cell::Cell;
use std::time::{Duration, Instant};

use des::Des;
use des::cipher::{Block, BlockCipherEncrypt as _, KeyInit as _};
use subtle::ConstantTimeEq as _;

/// Bytes that are to be encrypted, and of the answer: two blocks of DES.
pub const CHALLENGE: usize = 16;

/// Longest password: a key of DES. The protocol would take no notice of more.
const LONGEST: usize = 8;

/// Wrong passwords that may come in a row.
const FREE: u32 = 5;

/// After which time one more may come: 8,640 a day.
const REGAIN: Duration = Duration::from_secs(10);

/// A password that cannot be one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PasswordError {
    /// Nothing, which nobody means.
    #[error("the password is empty")]
    Empty,
    /// What is beyond would not be compared.
    #[error("the password has more than {LONGEST} bytes, of which VNC compares {LONGEST}: use a shorter one")]
    Long,
    /// Viewers end a password at the first such byte.
    #[error("there is a NUL byte or a line end in the password")]
    Byte,
}

/// What viewers must know.
#[derive(Clone, PartialEq, Eq)]
pub struct Password([u8; LONGEST]);

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Password")
    }
}

impl Password {
    /// The text of a file: without the line end that editors leave.
    ///
    /// # Errors
    /// [`PasswordError`].
    pub fn new(text: &[u8]) -> Result<Self, PasswordError> {
        let text = text.strip_suffix(b"\n").unwrap_or(text);
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        if text.is_empty() {
            return Err(PasswordError::Empty);
        }
        if text.iter().any(|byte| matches!(byte, 0 | b'\n' | b'\r')) {
            return Err(PasswordError::Byte);
        }
        let mut padded = [0; LONGEST];
        padded.get_mut(..text.len()).ok_or(PasswordError::Long)?.copy_from_slice(text);
        Ok(Self(padded))
    }

    /// Most bytes of its text that need to be read to know whether it is one.
    pub const MOST_READ: u64 = 16;

    /// Itself, without what it is padded with.
    pub fn text(&self) -> &[u8] {
        let length = self.0.iter().position(|byte| *byte == 0).unwrap_or(LONGEST);
        &self.0[..length]
    }

    /// What who knows it answers to a challenge: both blocks encrypted with the key whose bytes have their bits the other
    /// way round, which is how the first implementation had it.
    pub fn answer(&self, challenge: &[u8; CHALLENGE]) -> [u8; CHALLENGE] {
        let cipher = Des::new(&self.0.map(u8::reverse_bits).into());
        let mut answer = *challenge;
        for half in answer.chunks_exact_mut(LONGEST) {
            let mut block = Block::<Des>::default();
            block.copy_from_slice(half);
            cipher.encrypt_block(&mut block);
            half.copy_from_slice(&block);
        }
        answer
    }
}

/// Why a viewer is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// It does not know the password.
    #[error("the password is wrong")]
    Wrong,
    /// The answer was not looked at, so a guess is not learnt from.
    #[error("too many wrong passwords: try again later")]
    TooMany,
}

/// Whom a password lets in: all viewers of a screen share one, as a guesser would be many viewers.
#[derive(Debug)]
pub struct Gate {
    password: Password,
    /// Wrong ones that may still come.
    left: Cell<u32>,
    /// Since when the next one is being regained.
    since: Cell<Instant>,
}

impl Gate {
    /// One that nobody has come to.
    pub fn new(password: Password) -> Self {
        Self { password, left: Cell::new(FREE), since: Cell::new(Instant::now()) }
    }

    /// Whether the answer shows that the password is known.
    ///
    /// # Errors
    /// [`Denied`]. It takes the same time whatever part of the answer is wrong.
    pub fn check(
        &self,
        challenge: &[u8; CHALLENGE],
        answer: &[u8; CHALLENGE],
        now: Instant,
    ) -> Result<(), Denied> {
        while self.left.get() < FREE && now.saturating_duration_since(self.since.get()) >= REGAIN {
            self.left.set(self.left.get() + 1);
            self.since.set(self.since.get() + REGAIN);
        }
        let Some(left) = self.left.get().checked_sub(1) else { return Err(Denied::TooMany) };
        if bool::from(self.password.answer(challenge).ct_eq(answer)) {
            return Ok(());
        }
        if self.left.replace(left) == FREE {
            self.since.set(now);
        }
        Err(Denied::Wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWERS: [(&[u8], &str); 4] = [
        (b"secret", "ee22539f33a5983ec12f9c2edbc995dd"),
        (b"12345678", "83dd2b4dbd04367f28578fdd5b142740"),
        (b"a", "449407fb6f71bd517aca76866568a4e2"),
        (b"\xe9\xff\x80", "074737b3f49cc1dcb73ee001bc02ce14"),
    ];

    fn hex(text: &str) -> [u8; CHALLENGE] {
        std::array::from_fn(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap())
    }

    /// What OpenSSL's DES makes of them: `openssl enc -des-ecb -nopad -provider legacy -provider default -K KEY`, where the
    /// bits of each byte of KEY are turned round by hand.
    #[test]
    fn answers_are_those_of_another_des() {
        let challenge = hex("000102030405060708090a0b0c0d0e0f");
        for (password, answer) in ANSWERS {
            assert_eq!(Password::new(password).unwrap().answer(&challenge), hex(answer));
        }
    }

    #[test]
    fn what_is_no_password_is_refused() {
        for (text, error) in [
            (&b""[..], PasswordError::Empty),
            (b"\r\n", PasswordError::Empty),
            (b"123456789", PasswordError::Long),
            (b"a\0b", PasswordError::Byte),
            (b"a\nb", PasswordError::Byte),
        ] {
            assert_eq!(Password::new(text), Err(error), "{text:?}");
        }
        assert_eq!(Password::new(b"secret\r\n").unwrap().text(), b"secret");
        assert_eq!(Password::new(b"12345678").unwrap().text(), b"12345678");
        assert_eq!(format!("{:?}", Password::new(b"secret").unwrap()), "Password");
    }

    #[test]
    fn guesses_are_few() {
        let (password, challenge) = (Password::new(b"secret").unwrap(), [7; CHALLENGE]);
        let (right, wrong) = (password.answer(&challenge), [0; CHALLENGE]);
        let gate = Gate::new(password);
        let start = Instant::now();
        for _ in 0..FREE {
            assert_eq!(gate.check(&challenge, &wrong, start), Err(Denied::Wrong));
        }
        // Now nothing is compared, so that a right guess cannot be told from a wrong one.
        assert_eq!(gate.check(&challenge, &right, start), Err(Denied::TooMany));
        let soon = start + REGAIN.saturating_sub(Duration::from_millis(1));
        assert_eq!(gate.check(&challenge, &wrong, soon), Err(Denied::TooMany));
        let later = start + REGAIN;
        assert_eq!(gate.check(&challenge, &right, later), Ok(()));
        assert_eq!(gate.check(&challenge, &wrong, later), Err(Denied::Wrong));
        assert_eq!(gate.check(&challenge, &wrong, later), Err(Denied::TooMany));
        // In an hour no more are saved up than there were.
        let hour = start + Duration::from_secs(3600);
        let denied: Vec<_> = (0..=FREE).map(|_| gate.check(&challenge, &wrong, hour).unwrap_err()).collect();
        assert_eq!(denied.iter().filter(|denied| **denied == Denied::Wrong).count(), 5);
    }
}
