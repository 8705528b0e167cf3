//! The stream of a simulated domain's memory: framed and checksummed, so that one that is cut short or damaged is
//! found, as libxenguest would.
//!
//! ```text
//!   magic · kind, vcpus, pages · CHUNKS of fixed bytes, each with its number · checksum of all before
//! ```

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::time::Duration;

use nix::unistd;

use crate::edge::{GuestKind, HypervisorError, Stream};

/// First bytes.
const MAGIC: &[u8; 8] = b"SimMem1\n";

/// Pieces the memory is said to be in.
const CHUNKS: u64 = 8;

/// Bytes of a piece.
const CHUNK: usize = 4096;

/// A stopped stream is noticed after this long at the latest.
const STOP_LOOK: Duration = Duration::from_millis(1);

/// What of a domain is in its stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Saved {
    pub(super) kind: GuestKind,
    pub(super) vcpus: u32,
    pub(super) pages: u64,
}

/// The descriptor that the hypervisor is given, with a checksum of what went through.
struct Checked<'a> {
    stream: &'a Stream,
    sum: u64,
}

impl Checked<'_> {
    /// FNV-1a.
    fn count(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.sum = (self.sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

impl Write for Checked<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = unistd::write(self.stream.as_fd(), bytes)?;
        self.count(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Checked<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = unistd::read(self.stream.as_fd(), bytes)?;
        self.count(&bytes[..read]);
        Ok(read)
    }
}

fn chunk(number: u64) -> Vec<u8> {
    let mut bytes = number.to_le_bytes().to_vec();
    bytes.resize(CHUNK, 0x5a);
    bytes
}

/// Writes a domain. Each piece takes `delay`.
pub(super) fn save(saved: &Saved, stream: &Stream, delay: Duration) -> Result<(), HypervisorError> {
    let mut out = Checked { stream, sum: 0 };
    let outcome = (|| {
        out.write_all(MAGIC)?;
        out.write_all(&[kind_number(saved.kind)])?;
        out.write_all(&saved.vcpus.to_le_bytes())?;
        out.write_all(&saved.pages.to_le_bytes())?;
        for number in 0..CHUNKS {
            take_time(stream, delay);
            out.write_all(&chunk(number))?;
        }
        let sum = out.sum;
        out.write_all(&sum.to_le_bytes())
    })();
    outcome.map_err(|error| failed(stream, "save", &error))
}

/// Reads a domain, and not a byte further. Each piece takes `delay`.
pub(super) fn restore(stream: &Stream, delay: Duration) -> Result<Saved, HypervisorError> {
    let mut source = Checked { stream, sum: 0 };
    read(&mut source, delay).map_err(|error| failed(stream, "restore", &error))
}

fn read(source: &mut Checked<'_>, delay: Duration) -> io::Result<Saved> {
    let damaged = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    if array(source)? != *MAGIC {
        return Err(damaged("not a memory stream"));
    }
    let [kind] = array(source)?;
    let kind = kind_of(kind).ok_or_else(|| damaged("an unknown kind of guest"))?;
    let vcpus = u32::from_le_bytes(array(source)?);
    let pages = u64::from_le_bytes(array(source)?);
    for number in 0..CHUNKS {
        take_time(source.stream, delay);
        let mut bytes = vec![0; CHUNK];
        source.read_exact(&mut bytes)?;
        if bytes != chunk(number) {
            return Err(damaged("a damaged piece of memory"));
        }
    }
    let sum = source.sum;
    if u64::from_le_bytes(array(source)?) == sum {
        Ok(Saved { kind, vcpus, pages })
    } else {
        Err(damaged("a wrong checksum"))
    }
}

fn array<const N: usize>(source: &mut Checked<'_>) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    source.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn failed(stream: &Stream, call: &str, error: &io::Error) -> HypervisorError {
    if stream.is_stopped() {
        return HypervisorError::Stopped;
    }
    HypervisorError::Call(format!("{call}: {error}"))
}

/// As copying would, unless the stream is stopped.
fn take_time(stream: &Stream, time: Duration) {
    let over = crossbeam::channel::after(time);
    while !time.is_zero() && !stream.is_stopped() && over.recv_timeout(STOP_LOOK).is_err() {}
}

const fn kind_number(kind: GuestKind) -> u8 {
    match kind {
        GuestKind::Pv => 1,
        GuestKind::Pvh => 2,
        GuestKind::Hvm => 3,
    }
}

fn kind_of(number: u8) -> Option<GuestKind> {
    [GuestKind::Pv, GuestKind::Pvh, GuestKind::Hvm].into_iter().find(|kind| kind_number(*kind) == number)
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, SeekFrom};

    use super::*;

    const SAVED: Saved = Saved { kind: GuestKind::Pvh, vcpus: 3, pages: 70_000 };

    fn file_with(bytes: &[u8]) -> std::fs::File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        file
    }

    fn saved() -> Vec<u8> {
        let mut file = file_with(b"");
        save(&SAVED, &Stream::new(file.as_fd()).unwrap(), Duration::ZERO).unwrap();
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    }

    fn restored(bytes: &[u8]) -> Result<Saved, HypervisorError> {
        let file = file_with(bytes);
        restore(&Stream::new(file.as_fd()).unwrap(), Duration::ZERO)
    }

    #[test]
    fn what_is_saved_is_restored_and_nothing_after_it_is_read() {
        let mut file = file_with(&[saved(), b"rest".to_vec()].concat());
        let stream = Stream::new(file.as_fd()).unwrap();
        assert_eq!(restore(&stream, Duration::ZERO).unwrap(), SAVED);
        let mut rest = String::new();
        file.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "rest");
    }

    #[test]
    fn every_cut_and_every_changed_byte_is_found() {
        let whole = saved();
        for cut in (0..whole.len()).step_by(97) {
            assert!(restored(&whole[..cut]).is_err(), "{cut}");
        }
        for at in (0..whole.len()).step_by(89) {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            assert!(restored(&bytes).is_err(), "{at}");
        }
    }

    #[test]
    fn a_stopped_stream_says_so() {
        let file = file_with(b"");
        let stream = Stream::new(file.as_fd()).unwrap();
        let stopper = stream.stopper();
        std::thread::spawn(move || stopper.stop().unwrap()).join().unwrap();
        let outcome = save(&SAVED, &stream, Duration::from_secs(3600));
        assert!(matches!(outcome, Err(HypervisorError::Stopped)), "{outcome:?}");
    }
}
