//! News of rules: that somebody else has changed our table, or something in it.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};

use super::message::is_of_our_table;
use super::{RECEIVE_BUFFER, port};
use crate::edge::linux::netlink::messages;

/// `NFNLGRP_NFTABLES` of `<linux/netfilter/nfnetlink.h>`, as a bit.
const RULES_NEWS: u32 = 1 << (7 - 1);

/// A subscription to what happens to nf_tables of the network namespace it was opened in.
#[derive(Debug)]
pub struct RulesNews {
    socket: OwnedFd,
}

impl RulesNews {
    /// Subscribes.
    ///
    /// # Errors
    /// The kernel's errno; one that cannot filter has nothing to tell.
    pub fn open() -> Result<Self, Errno> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkNetFilter)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, RULES_NEWS))?;
        Ok(Self { socket })
    }

    /// Whether our table is not as we have left it, or may not be: somebody else has changed something of it since the last
    /// time.
    ///
    /// # Errors
    /// The kernel's errno.
    pub fn read(&self) -> Result<bool, Errno> {
        let mut changed = false;
        let mut buffer = vec![0; RECEIVE_BUFFER];
        loop {
            match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                // What cannot be read may have been about our table.
                Ok(length) => {
                    changed |= messages(&buffer[..length]).map_or(true, |all| {
                        all.iter().any(|message| {
                            !port::is_ours(message.port) && is_of_our_table(message.kind, message.payload)
                        })
                    });
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(changed),
                Err(Errno::ENOBUFS) => changed = true,
                Err(errno) => return Err(errno),
            }
        }
    }
}

impl AsFd for RulesNews {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
