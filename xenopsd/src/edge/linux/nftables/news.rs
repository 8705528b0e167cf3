//! News of rules: that somebody has removed our table.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};

use super::RECEIVE_BUFFER;
use super::message::is_loss_of_table;
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

    /// Whether our table has been removed since the last time, or may have been. The daemon never removes it itself, so that
    /// its own changes are none.
    ///
    /// # Errors
    /// The kernel's errno.
    pub fn read(&self) -> Result<bool, Errno> {
        let mut lost = false;
        let mut buffer = vec![0; RECEIVE_BUFFER];
        loop {
            match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                // What cannot be read may have been about our table.
                Ok(length) => {
                    lost |= messages(&buffer[..length]).map_or(true, |all| {
                        all.iter().any(|message| is_loss_of_table(message.kind, message.payload))
                    });
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(lost),
                Err(Errno::ENOBUFS) => lost = true,
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
