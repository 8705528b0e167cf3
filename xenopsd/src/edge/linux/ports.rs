//! Ports of 127.0.0.1 for consoles, taken in turn from a range.

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU16, Ordering};

/// Where VNC displays begin, by convention; `5900` is left to dom0's own terminal.
const VNC: RangeInclusive<u16> = 5901..=9499;

/// Ports of the raw text, as the original `vncterm` has them; `9500` is left to dom0's.
const TEXT: RangeInclusive<u16> = 9501..=13_099;

/// No port.
#[derive(Debug, thiserror::Error)]
#[error("no port of 127.0.0.1 from {first} to {last} can be listened on: {source}")]
pub struct PortsError {
    first: u16,
    last: u16,
    source: io::Error,
}

/// A range of ports. One that was just given up is not the next to be taken: who comes back to it shall find nobody
/// rather than another guest.
#[derive(Debug)]
pub struct Ports {
    range: RangeInclusive<u16>,
    /// Where to begin, counted from the first.
    next: AtomicU16,
}

impl Ports {
    /// Those of screens. Each daemon begins elsewhere, for the same reason.
    pub fn vnc() -> Self {
        Self::of(VNC)
    }

    /// Those of raw text.
    pub fn text() -> Self {
        Self::of(TEXT)
    }

    fn of(range: RangeInclusive<u16>) -> Self {
        let count = u32::from(range.end() - range.start()) + 1;
        let next = AtomicU16::new(u16::try_from(std::process::id() % count).unwrap_or(0));
        Self { range, next }
    }

    /// Listens on `wanted` if that is one of the range and free, or else on the next.
    ///
    /// # Errors
    /// [`PortsError`].
    pub fn listen(&self, wanted: Option<u16>) -> Result<TcpListener, PortsError> {
        let (first, last) = (*self.range.start(), *self.range.end());
        if let Some(port) = wanted.filter(|port| self.range.contains(port))
            && let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
        {
            return Ok(listener);
        }
        let count = last - first + 1;
        let mut refused = None;
        let begin = self.next.load(Ordering::Relaxed) % count;
        for step in 0..count {
            // Both are below the count, which is far below half of what fits.
            let port = first + (begin + step) % count;
            match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
                Ok(listener) => {
                    self.next.store(port - first + 1, Ordering::Relaxed);
                    return Ok(listener);
                }
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => refused = Some(error),
                Err(error) => return Err(PortsError { first, last: port, source: error }),
            }
        }
        let source = refused.unwrap_or_else(|| io::ErrorKind::AddrInUse.into());
        Err(PortsError { first, last, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(listener: &TcpListener) -> u16 {
        listener.local_addr().unwrap().port()
    }

    #[test]
    fn a_port_that_was_given_up_is_not_the_next_one_and_can_be_asked_for() {
        let ports = Ports::vnc();
        let first = port(&ports.listen(None).unwrap());
        let second = ports.listen(None).unwrap();
        assert_ne!(port(&second), first);
        assert!(second.local_addr().unwrap().ip().is_loopback());
        // Taken by the other, or outside of the range.
        for wanted in [port(&second), 80] {
            assert_ne!(port(&ports.listen(Some(wanted)).unwrap()), wanted);
        }
        let free = port(&second);
        drop(second);
        assert_eq!(port(&ports.listen(Some(free)).unwrap()), free);
    }

    #[test]
    fn a_range_that_is_taken_is_named() {
        let held = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let only = port(&held);
        let error = Ports::of(only..=only).listen(None).unwrap_err().to_string();
        assert!(error.contains(&format!("from {only} to {only}")), "{error}");
    }
}
