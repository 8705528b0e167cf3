//! What an HVM guest that runs the probe is asked.

use std::fmt;

use xen_host::probe::{PROBE_DONE, PROBE_UP};

use crate::dom0::Dom0;
use crate::guest::Guest;

/// Register of the first serial port that switches its queues on, and the bits that do: the device model fills a queue up to
/// the level at which the guest is to be interrupted, 14 letters at most, and further only one letter after the other.
const FIFO_CONTROL: u32 = 0x3fa;
const FIFO_ON: u32 = 0xc1;

/// One command; see [`xen_host::probe`].
#[derive(Debug, Clone, Copy)]
pub enum Ask {
    /// A leaf of `cpuid`.
    Cpuid(u32),
    /// Words of memory from an address.
    Read(u32, u32),
    /// A word to memory.
    Write(u32, u32),
    /// Where between two addresses a word is.
    Find(u32, u32, [u8; 4]),
    /// A byte from a port.
    In8(u32),
    /// A byte to a port.
    Out8(u32, u32),
    /// Vendor and device of what is on the first PCI bus.
    Bus,
    /// The firmware's map of memory.
    Map,
}

impl fmt::Display for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Cpuid(leaf) => write!(f, "c{leaf:08x}"),
            Self::Read(address, count) => write!(f, "d{address:08x}{count:08x}"),
            Self::Write(address, value) => write!(f, "p{address:08x}{value:08x}"),
            Self::Find(from, to, word) => write!(f, "s{from:08x}{to:08x}{:08x}", u32::from_le_bytes(word)),
            Self::In8(port) => write!(f, "i{port:08x}"),
            Self::Out8(port, value) => write!(f, "o{port:08x}{value:08x}"),
            Self::Bus => write!(f, "b"),
            Self::Map => write!(f, "e"),
        }
    }
}

impl Dom0 {
    /// Lets a guest that was started from the probe's disk run until it says that it is up.
    #[track_caller]
    pub fn run_probe(&self, guest: &Guest) {
        self.listen_to_serial(guest);
        self.unpause(guest).expect("runs");
        self.serial_said(guest, PROBE_UP);
        // The probe looks for letters at each tick of the timer, 18 in a second: they wait for it in the port. What
        // waits there when that is switched on is lost, so that nothing more is said until it is.
        self.type_on_serial(guest, &Ask::Out8(FIFO_CONTROL, FIFO_ON).to_string());
        self.serial_line(guest);
    }

    /// The numbers that the probe answers to each.
    #[track_caller]
    pub fn probe(&self, guest: &Guest, asks: &[Ask]) -> Vec<Vec<u32>> {
        let text: String = asks.iter().map(Ask::to_string).collect();
        self.type_on_serial(guest, &format!("{text}z"));
        self.serial_said(guest, PROBE_DONE);
        let said = self.serial_text(guest);
        let number = |word: &str| u32::from_str_radix(word, 16).unwrap_or_else(|_| panic!("{said}"));
        said.lines().take(asks.len()).map(|line| line.split_whitespace().map(number).collect()).collect()
    }
}
