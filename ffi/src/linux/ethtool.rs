//! Offloads of network interfaces: `SIOCETHTOOL` of `<linux/sockios.h>`.

use std::io;
use std::os::fd::BorrowedFd;

use super::ioctl;

const SIOCETHTOOL: libc::Ioctl = 0x8946;

/// Bytes of an interface's name in a request, terminating zero included (`IFNAMSIZ`).
const NAME_SIZE: usize = 16;

/// An offload, by the command that sets it (`<linux/ethtool.h>`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offload {
    /// Checksums of received packets.
    Rx,
    /// Checksums of sent packets.
    Tx,
    /// Packets in several pieces.
    Sg,
    /// TCP segmentation by the receiver.
    Tso,
    /// UDP fragmentation by the receiver; Linux has had none since 4.14.
    Ufo,
    /// Segmentation as late as possible.
    Gso,
}

impl Offload {
    /// Commands to read and to set it.
    const fn commands(self) -> (u32, u32) {
        match self {
            Self::Rx => (0x14, 0x15),
            Self::Tx => (0x16, 0x17),
            Self::Sg => (0x18, 0x19),
            Self::Tso => (0x1e, 0x1f),
            Self::Ufo => (0x21, 0x22),
            Self::Gso => (0x23, 0x24),
        }
    }
}

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// `struct ifreq` as this call uses it: a name, and where the command is.
#[repr(C)]
struct Request {
    name: [u8; NAME_SIZE],
    value: *mut Value,
    // The union is as long as `struct ifmap`.
    rest: [u64; 2],
}

const _: () = assert!(size_of::<Request>() == 40 && size_of::<Value>() == 8);

/// Turns an offload of an interface on or off. `socket` is any socket of the interface's network namespace.
///
/// # Errors
///
/// The kernel's errno: `EOPNOTSUPP` when the interface or the kernel does not have it, `ENODEV` when there is no such
/// interface; `EINVAL` for a name that is too long.
pub fn set(socket: BorrowedFd<'_>, interface: &str, offload: Offload, on: bool) -> io::Result<()> {
    call(socket, interface, offload.commands().1, u32::from(on)).map(drop)
}

/// Whether an offload of an interface is on.
///
/// # Errors
///
/// As [`set`].
pub fn get(socket: BorrowedFd<'_>, interface: &str, offload: Offload) -> io::Result<bool> {
    call(socket, interface, offload.commands().0, 0).map(|data| data != 0)
}

fn call(socket: BorrowedFd<'_>, interface: &str, command: u32, data: u32) -> io::Result<u32> {
    let mut name = [0; NAME_SIZE];
    let bytes = interface.as_bytes();
    if bytes.len() >= NAME_SIZE {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    name[..bytes.len()].copy_from_slice(bytes);
    let mut value = Value { command, data };
    let mut request = Request { name, value: &raw mut value, rest: [0; 2] };
    // SAFETY: SIOCETHTOOL reads one `struct ifreq`, whose size `Request` has (asserted above), and for these commands
    // reads and writes one `struct ethtool_value` at its pointer, which is alive and used by nobody else until the call
    // returns. Every bit pattern is a valid `Request` and `Value`; the pointer is not used afterwards.
    unsafe { ioctl::with_struct(socket, SIOCETHTOOL, &mut request)? };
    Ok(value.data)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn the_loopback_device_has_offloads_and_an_absent_one_has_none() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
        get(socket.as_fd(), "lo", Offload::Gso).expect("lo can say");
        let missing = get(socket.as_fd(), "no-such-device", Offload::Gso);
        assert_eq!(missing.unwrap_err().raw_os_error(), Some(libc::ENODEV));
        let long = set(socket.as_fd(), "sixteen-letters-", Offload::Gso, true);
        assert_eq!(long.unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }
}
