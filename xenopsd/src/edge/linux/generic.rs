//! Generic netlink: a family of the kernel's is found by its name and sent a request, which it acknowledges.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, connect, recv, send, setsockopt,
    socket, sockopt::ReceiveTimeout,
};
use nix::sys::time::TimeVal;

use super::netlink::{Malformed, NetlinkRequest, attributes, messages, outcome};

/// Longest answer, in bytes: a family's description lists its commands.
const RECEIVE_BUFFER: usize = 16 * 1024;

/// How long an answer may take: connecting a device reads from its server.
const ANSWER_SECONDS: i64 = 30;

// <linux/genetlink.h>
const CONTROL: u16 = 16;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
/// `struct genlmsghdr`, before the attributes.
pub(super) const GENERIC_HEADER: usize = 4;

/// `NLMSG_ERROR` of `<linux/netlink.h>`, also an acknowledgement.
const ACKNOWLEDGED: u16 = 2;

/// Why a request was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum GenericError {
    /// The kernel said no, or there is no socket.
    #[error("{}", .0.desc())]
    Kernel(Errno),
    /// No answer.
    #[error("no answer within {ANSWER_SECONDS} s")]
    Timeout,
    /// An answer that cannot be read.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// An answer without what was asked for.
    #[error("the answer does not say it")]
    Missing,
}

impl From<GenericError> for io::Error {
    fn from(error: GenericError) -> Self {
        match error {
            GenericError::Kernel(errno) => errno.into(),
            other => Self::other(other),
        }
    }
}

/// A connection to a family.
pub(super) struct Family {
    socket: OwnedFd,
    id: u16,
    sequence: u32,
}

impl Family {
    /// Finds it.
    pub(super) fn open(name: &str) -> Result<Self, GenericError> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkGeneric,
        )
        .map_err(GenericError::Kernel)?;
        setsockopt(&socket, ReceiveTimeout, &TimeVal::new(ANSWER_SECONDS, 0))
            .map_err(GenericError::Kernel)?;
        // Connected to port 0, the socket takes messages from the kernel only.
        connect(socket.as_raw_fd(), &NetlinkAddr::new(0, 0)).map_err(GenericError::Kernel)?;
        let mut family = Self { socket, id: CONTROL, sequence: 0 };
        let answer = family.exchange(GET_FAMILY, |request| request.text(FAMILY_NAME, name))?;
        let found = attributes(answer.get(GENERIC_HEADER..).unwrap_or_default())?;
        let id = found.into_iter().find(|(kind, _)| *kind == FAMILY_ID);
        let id = id.and_then(|(_, value)| value.try_into().ok()).map(u16::from_ne_bytes);
        family.id = id.ok_or(GenericError::Missing)?;
        Ok(family)
    }

    /// Makes a request.
    pub(super) fn call(
        &mut self,
        command: u8,
        arguments: impl FnOnce(NetlinkRequest) -> NetlinkRequest,
    ) -> Result<(), GenericError> {
        self.exchange(command, arguments).map(drop)
    }

    /// The payload of what is answered before the acknowledgement, if anything is.
    pub(super) fn exchange(
        &mut self,
        command: u8,
        arguments: impl FnOnce(NetlinkRequest) -> NetlinkRequest,
    ) -> Result<Vec<u8>, GenericError> {
        self.sequence = self.sequence.wrapping_add(1);
        let request = arguments(NetlinkRequest::generic(self.id, self.sequence, command)).finish();
        send(self.socket.as_raw_fd(), &request, MsgFlags::empty()).map_err(GenericError::Kernel)?;
        let mut buffer = vec![0; RECEIVE_BUFFER];
        let mut answer = Vec::new();
        loop {
            let length = match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(length) => length,
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN) => return Err(GenericError::Timeout),
                Err(errno) => return Err(GenericError::Kernel(errno)),
            };
            for message in messages(&buffer[..length])? {
                if message.sequence != self.sequence {
                    continue;
                }
                if message.kind != ACKNOWLEDGED {
                    answer = message.payload.to_vec();
                    continue;
                }
                return match outcome(&message)?.0 {
                    0 => Ok(answer),
                    errno => Err(GenericError::Kernel(Errno::from_raw(errno))),
                };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_found_by_name() {
        // The one that all kernels with generic netlink have.
        let control = Family::open("nlctrl").unwrap();
        assert_eq!(control.id, CONTROL);
        let missing = Family::open("no such family").map(drop);
        assert!(matches!(missing, Err(GenericError::Kernel(Errno::ENOENT))), "{missing:?}");
    }

    #[test]
    fn refusals_have_their_number() {
        let mut control = Family::open("nlctrl").unwrap();
        let refused = control.call(255, |request| request);
        assert!(matches!(refused, Err(GenericError::Kernel(Errno::EOPNOTSUPP))), "{refused:?}");
    }
}
