//! What the two processes say to each other: lists of byte strings, each with its length before it.
//!
//! An answer comes from a process that a guest may have taken over. So it is checked here for all that a caller relies
//! on: one line per string, within the limits, of the kind that was asked for.

use super::{Answer, Job, Listed, Wanted};
use crate::{
    boot::{Booted, Request, clean},
    error::{Error, Result, printable},
    limits,
};

/// Most bytes of a request: five strings, of which none is longer than a path or a command line.
pub const REQUEST_BYTES: usize = 32 << 10;

/// Most bytes of an answer: a listing of [`limits::ENTRIES`] entries with long command lines.
pub const ANSWER_BYTES: usize = 8 << 20;

/// Most ramdisks of one entry.
pub const RAMDISKS: usize = 64;

fn put(out: &mut Vec<u8>, text: &str) {
    // What does not fit is refused by the reader.
    out.extend(u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put_option(out: &mut Vec<u8>, text: Option<&str>) {
    put(out, if text.is_some() { "1" } else { "0" });
    put(out, text.unwrap_or_default());
}

fn put_list(out: &mut Vec<u8>, texts: &[String]) {
    put(out, &texts.len().to_string());
    for text in texts {
        put(out, text);
    }
}

/// Takes a record apart.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn text(&mut self) -> Option<String> {
        let (length, rest) = self.0.split_first_chunk::<4>()?;
        let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
        let (text, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        String::from_utf8(text.to_vec()).ok()
    }

    fn number<T: std::str::FromStr>(&mut self) -> Option<T> {
        self.text()?.parse().ok()
    }

    fn option(&mut self, into: &mut Option<String>) -> Option<()> {
        let (there, text) = (self.number::<u8>()?, self.text()?);
        *into = (there != 0).then_some(text);
        Some(())
    }

    fn number_option(&mut self, into: &mut Option<u64>) -> Option<()> {
        let mut text = None;
        self.option(&mut text)?;
        *into = match text {
            Some(text) => Some(text.parse().ok()?),
            None => None,
        };
        Some(())
    }

    fn list(&mut self, most: usize) -> Option<Vec<String>> {
        let count: usize = self.number()?;
        if count > most {
            return None;
        }
        (0..count).map(|_| self.text()).collect()
    }

    fn end<T>(&self, value: T) -> Option<T> {
        self.0.is_empty().then_some(value)
    }
}

/// A job as bytes.
///
/// # Errors
/// [`Error::TooLarge`].
pub fn encode_job(job: &Job) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    let request = &job.request;
    put(
        &mut out,
        match job.wanted {
            Wanted::List => "list",
            Wanted::Check => "check",
            Wanted::Deliver => "deliver",
            Wanted::Image => "image",
        },
    );
    for text in [&request.kernel, &request.ramdisk, &request.args, &request.entry] {
        put_option(&mut out, text.as_deref());
    }
    put_option(&mut out, request.offset.map(|n| n.to_string()).as_deref());
    put(&mut out, if request.config { "1" } else { "0" });
    put(&mut out, &request.kernel_limit.to_string());
    put(&mut out, &request.ramdisk_limit.to_string());
    put_option(&mut out, request.unpack.map(|n| n.to_string()).as_deref());
    if out.len() > REQUEST_BYTES {
        return Err(Error::too_large("the boot loader's arguments", REQUEST_BYTES));
    }
    Ok(out)
}

/// A job out of bytes.
///
/// # Errors
/// [`Error::Worker`].
pub fn decode_job(bytes: &[u8]) -> Result<Job> {
    let mut reader = Reader(bytes);
    let mut decode = || -> Option<Job> {
        let wanted = match reader.text()?.as_str() {
            "list" => Wanted::List,
            "check" => Wanted::Check,
            "deliver" => Wanted::Deliver,
            "image" => Wanted::Image,
            _ => return None,
        };
        let mut request = Request::default();
        for into in [&mut request.kernel, &mut request.ramdisk, &mut request.args, &mut request.entry] {
            reader.option(into)?;
        }
        reader.number_option(&mut request.offset)?;
        request.config = reader.number::<u8>()? != 0;
        request.kernel_limit = reader.number()?;
        request.ramdisk_limit = reader.number()?;
        reader.number_option(&mut request.unpack)?;
        reader.end(Job { wanted, request })
    };
    decode().ok_or_else(|| Error::Worker("it was asked something that is no request".to_owned()))
}

/// An answer as bytes.
pub fn encode_answer(answer: &Result<Answer>) -> Vec<u8> {
    let mut out = Vec::new();
    match answer {
        Err(error) => {
            for text in ["error", error.code(), &error.to_string()] {
                put(&mut out, text);
            }
        }
        Ok(Answer::Booted(booted)) => {
            for text in ["booted", &booted.title, &booted.kernel, &booted.args] {
                put(&mut out, text);
            }
            put_list(&mut out, &booted.ramdisks);
        }
        Ok(Answer::Entries(entries)) => {
            put(&mut out, "entries");
            put(&mut out, &entries.len().to_string());
            for entry in entries {
                for text in [&entry.title, &entry.volume, &entry.kernel, &entry.args] {
                    put(&mut out, text);
                }
                put_list(&mut out, &entry.ramdisks);
            }
        }
    }
    out
}

/// The answer to a job out of bytes that may be anything.
///
/// # Errors
/// [`Error::Remote`] when that is the answer, [`Error::Worker`] for none.
pub fn decode_answer(wanted: Wanted, bytes: &[u8]) -> Result<Answer> {
    let strange = || Error::Worker("it answered something that is no answer".to_owned());
    let mut reader = Reader(bytes);
    let answer = match reader.text().as_deref() {
        Some("error") => {
            let error = reader.text().zip(reader.text()).and_then(|error| reader.end(error));
            let (code, text) = error.ok_or_else(strange)?;
            return Err(Error::Remote { code: printable(&code), text: remote_text(&text) });
        }
        Some("booted") if wanted != Wanted::List => booted(&mut reader).map(Answer::Booted),
        Some("entries") if wanted == Wanted::List => entries(&mut reader).map(Answer::Entries),
        _ => None,
    };
    let answer = answer.and_then(|answer| reader.end(answer)).ok_or_else(strange)?;
    match &answer {
        Answer::Booted(booted) => line_checks(&booted.title, &booted.kernel, &booted.args, &booted.ramdisks)?,
        Answer::Entries(entries) => {
            for entry in entries {
                line_checks(&entry.title, &entry.kernel, &entry.args, &entry.ramdisks)?;
                clean("the name of a volume", &entry.volume)?;
            }
        }
    }
    Ok(answer)
}

fn booted(reader: &mut Reader<'_>) -> Option<Booted> {
    let [title, kernel, args] = [reader.text()?, reader.text()?, reader.text()?];
    Some(Booted { title, kernel, args, ramdisks: reader.list(RAMDISKS)? })
}

fn entries(reader: &mut Reader<'_>) -> Option<Vec<Listed>> {
    let count: usize = reader.number()?;
    if count > limits::ENTRIES {
        return None;
    }
    let mut entry = || -> Option<Listed> {
        let [title, volume, kernel, args] = [reader.text()?, reader.text()?, reader.text()?, reader.text()?];
        Some(Listed { title, volume, kernel, args, ramdisks: reader.list(RAMDISKS)? })
    };
    (0..count).map(|_| entry()).collect()
}

/// Each is one line, and no longer than one may be.
fn line_checks(title: &str, kernel: &str, args: &str, ramdisks: &[String]) -> Result<()> {
    clean("a title", title)?;
    for path in std::iter::once(kernel).chain(ramdisks.iter().map(String::as_str)) {
        clean("a path", path)?;
        if path.len() > limits::PATH_BYTES {
            return Err(Error::too_large("a path", limits::PATH_BYTES));
        }
    }
    clean("the command line", args)?;
    if args.len() > limits::ARGS_BYTES {
        return Err(Error::too_large("the command line", limits::ARGS_BYTES));
    }
    Ok(())
}

/// An error's text as one line: twenty entries of a list at their longest are within.
fn remote_text(text: &str) -> String {
    const LONGEST: usize = 6000;
    let escaped = |c: char| if c.is_control() { c.escape_default().collect() } else { vec![c] };
    text.chars().flat_map(escaped).take(LONGEST).collect()
}

/// What is understood means the same when it is sent on; for fuzzing.
pub fn fuzz(bytes: &[u8]) {
    if let Ok(job) = decode_job(bytes) {
        let sent = encode_job(&job).expect("as short as what came, within its limit");
        assert_eq!(decode_job(&sent).expect("what is sent is understood"), job);
    }
    for wanted in [Wanted::List, Wanted::Deliver] {
        if let Ok(answer) = decode_answer(wanted, bytes) {
            let again = decode_answer(wanted, &encode_answer(&Ok(answer.clone())));
            assert_eq!(again.expect("what is sent is understood"), answer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn booted() -> Booted {
        Booted {
            title: "Debian".to_owned(),
            kernel: "/boot/vmlinuz".to_owned(),
            ramdisks: vec!["/a".to_owned(), "/b".to_owned()],
            args: "root=/dev/xvda1 ro".to_owned(),
        }
    }

    #[test]
    fn what_is_said_is_understood() {
        let request = Request {
            kernel: Some("/k".to_owned()),
            args: Some(String::new()),
            offset: Some(1 << 40),
            config: true,
            unpack: Some(7),
            ..Request::new()
        };
        for wanted in [Wanted::List, Wanted::Check, Wanted::Deliver, Wanted::Image] {
            let job = Job { wanted, request: request.clone() };
            assert_eq!(decode_job(&encode_job(&job).unwrap()).unwrap(), job);
        }
        let answer = Answer::Booted(booted());
        assert_eq!(decode_answer(Wanted::Check, &encode_answer(&Ok(answer.clone()))).unwrap(), answer);
        let listed = Listed { title: "x".to_owned(), ramdisks: vec!["/r".to_owned()], ..Listed::default() };
        let answer = Answer::Entries(vec![listed.clone(), listed]);
        assert_eq!(decode_answer(Wanted::List, &encode_answer(&Ok(answer.clone()))).unwrap(), answer);
        let error =
            decode_answer(Wanted::List, &encode_answer(&Err(Error::NoBootConfig(Vec::new())))).unwrap_err();
        assert_eq!(
            (error.code(), error.to_string()),
            ("NO_BOOT_CONFIG", Error::NoBootConfig(Vec::new()).to_string())
        );
    }

    #[test]
    fn an_answer_cannot_break_a_line_or_a_limit() {
        let refused = |change: &dyn Fn(&mut Booted)| {
            let mut booted = booted();
            change(&mut booted);
            decode_answer(Wanted::Deliver, &encode_answer(&Ok(Answer::Booted(booted))))
                .unwrap_err()
                .code()
                .to_owned()
        };
        assert_eq!(refused(&|b| b.args.push('\n')), "CONTROL_CHARACTER");
        assert_eq!(refused(&|b| b.args.push('\0')), "CONTROL_CHARACTER");
        assert_eq!(refused(&|b| b.kernel.push('\n')), "CONTROL_CHARACTER");
        assert_eq!(refused(&|b| b.title.push('\x1b')), "CONTROL_CHARACTER");
        assert_eq!(refused(&|b| b.ramdisks[1].push('\r')), "CONTROL_CHARACTER");
        assert_eq!(refused(&|b| b.args = "x".repeat(limits::ARGS_BYTES + 1)), "TOO_LARGE");
        assert_eq!(refused(&|b| b.kernel = "x".repeat(limits::PATH_BYTES + 1)), "TOO_LARGE");
        assert_eq!(refused(&|b| b.ramdisks = vec![String::new(); RAMDISKS + 1]), "WORKER");
        let error = Error::Worker("a\nb\x1b".repeat(10_000));
        let told = decode_answer(Wanted::List, &encode_answer(&Err(error))).unwrap_err().to_string();
        assert!(told.len() <= 6000 && !told.contains(['\n', '\x1b']));
    }

    #[test]
    fn an_answer_to_another_question_is_none() {
        let entries = encode_answer(&Ok(Answer::Entries(Vec::new())));
        assert_eq!(decode_answer(Wanted::Deliver, &entries).unwrap_err().code(), "WORKER");
        let booted = encode_answer(&Ok(Answer::Booted(booted())));
        assert_eq!(decode_answer(Wanted::List, &booted).unwrap_err().code(), "WORKER");
        for cut in 0..booted.len() {
            assert!(decode_answer(Wanted::Deliver, &booted[..cut]).is_err(), "{cut}");
        }
        assert!(decode_answer(Wanted::Deliver, &[&booted[..], b"x"].concat()).is_err());
    }
}
