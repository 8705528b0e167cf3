//! News of interfaces: that one has come, has changed, or is gone.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};

use super::message::{self, RTM_DELLINK, RTM_NEWLINK, messages};
use super::{Link, NetlinkError, RECEIVE_BUFFER};

/// `RTMGRP_LINK` of `<linux/rtnetlink.h>`: news of interfaces.
const LINK_NEWS: u32 = 1;

/// `AF_UNSPEC`: news of the interface itself.
const INTERFACE: Option<u8> = Some(0);

/// Something that happened to an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// It is there, new or changed.
    There(Link),
    /// The one of this index is gone.
    Gone(u32),
    /// More has happened than the kernel kept for us.
    Lost,
}

/// A subscription to what happens to interfaces of the network namespace it was opened in.
#[derive(Debug)]
pub struct LinkNews {
    socket: OwnedFd,
}

impl LinkNews {
    /// Subscribes: what happens from now on is news.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::Socket`].
    pub fn open() -> Result<Self, NetlinkError> {
        let broken = |action| move |errno: Errno| NetlinkError::Socket { action, source: errno.into() };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)
            .map_err(broken("open"))?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, LINK_NEWS)).map_err(broken("subscribe to"))?;
        Ok(Self { socket })
    }

    /// What has happened since the last time, without waiting.
    ///
    /// # Errors
    ///
    /// [`NetlinkError`].
    pub fn read(&self) -> Result<Vec<LinkEvent>, NetlinkError> {
        let mut events = Vec::new();
        let mut buffer = vec![0; RECEIVE_BUFFER];
        loop {
            match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(length) => {
                    for message in messages(&buffer[..length])? {
                        events.extend(event(message.kind, message.payload)?);
                    }
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(events),
                Err(Errno::ENOBUFS) => events.push(LinkEvent::Lost),
                Err(errno) => {
                    return Err(NetlinkError::Socket { action: "read from", source: errno.into() });
                }
            }
        }
    }
}

impl AsFd for LinkNews {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn event(kind: u16, payload: &[u8]) -> Result<Option<LinkEvent>, message::Malformed> {
    if message::family(payload) != INTERFACE {
        return Ok(None);
    }
    Ok(match kind {
        RTM_NEWLINK => Some(LinkEvent::There(message::link(payload)?)),
        RTM_DELLINK => Some(LinkEvent::Gone(message::link(payload)?.index)),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{create, in_namespace};
    use super::*;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    fn next(news: &LinkNews) -> Vec<LinkEvent> {
        let limit = PollTimeout::from(10_000u16);
        assert_eq!(poll(&mut [PollFd::new(news.as_fd(), PollFlags::POLLIN)], limit), Ok(1));
        news.read().unwrap()
    }

    #[test]
    fn an_interface_that_comes_and_goes_is_news() {
        in_namespace(|netlink| {
            let news = LinkNews::open().unwrap();
            assert_eq!(news.read().unwrap(), []);
            let Some(link) = create(netlink, "xenbr0", "bridge") else { return };
            let there = |event: &LinkEvent| matches!(event, LinkEvent::There(l) if l.index == link.index);
            assert!(next(&news).iter().any(there));
            netlink.remove(&link).unwrap();
            assert!(next(&news).contains(&LinkEvent::Gone(link.index)));
        });
    }

    #[test]
    fn what_is_about_a_bridges_port_is_no_news_of_an_interface() {
        let mut payload = vec![0; 16];
        assert_eq!(event(RTM_DELLINK, &payload), Ok(Some(LinkEvent::Gone(0))));
        payload[0] = 7;
        assert_eq!(event(RTM_DELLINK, &payload), Ok(None));
        assert_eq!(event(RTM_DELLINK, &[]), Ok(None));
        assert!(event(RTM_NEWLINK, &[0; 3]).is_err());
    }
}
