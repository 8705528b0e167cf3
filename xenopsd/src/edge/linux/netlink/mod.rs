//! Network interfaces through rtnetlink: look one up, change one, list the bridges.
//!
//! A synchronous client of the few requests a toolstack needs. Each call sends one request and reads the answer with
//! the same sequence number; the kernel answers before `send` returns, so a wait means that something is wrong.

mod message;
mod news;

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::str::FromStr;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, connect, recv, send, setsockopt,
    socket, sockopt::ReceiveTimeout,
};
use nix::sys::time::TimeVal;

pub use message::{Link, Malformed};
pub(super) use message::{Request as NetlinkRequest, attributes, messages, outcome};
pub use news::{LinkEvent, LinkNews};

use super::mac::MacAddr;
use crate::edge::BridgeKind;
use message::{
    IFF_PROMISC, IFF_UP, IFLA_ADDRESS, IFLA_IFNAME, IFLA_MASTER, IFLA_MTU, NLM_F_ACK, NLM_F_DUMP,
    NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, RTM_DELLINK, RTM_GETLINK, RTM_NEWLINK, Request,
};

/// Receive buffer. The kernel builds dump datagrams of at most 32 KiB (netlink(7)) and one link needs a few KiB.
const RECEIVE_BUFFER: usize = 64 * 1024;

/// How long an answer may take; see the module's description for why it never does.
const ANSWER_SECONDS: i64 = 5;

/// How often a list that changed while being read is read again before the last reading is taken.
const DUMP_ATTEMPTS: u32 = 8;

/// Longest interface name in bytes (`IFNAMSIZ` less the terminating zero).
pub const IFNAME_MAX: usize = 15;

/// A name the kernel accepts for an interface.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct IfName(String);

impl IfName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a text is no interface name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{name:?} is not an interface name: 1 to {IFNAME_MAX} printable characters without blank, `/`, `:` and `%`"
)]
pub struct IfNameError {
    /// The refused text.
    pub name: String,
}

impl FromStr for IfName {
    type Err = IfNameError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let length_ok = (1..=IFNAME_MAX).contains(&name.len());
        // The kernel refuses the first three; it takes `%` as a template ("eth%d").
        let characters_ok = name.bytes().all(|b| b.is_ascii_graphic() && !b"/:%".contains(&b));
        if length_ok && characters_ok && name != "." && name != ".." {
            Ok(Self(name.to_owned()))
        } else {
            Err(IfNameError { name: name.to_owned() })
        }
    }
}

/// Where an interface is to be plugged in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Master {
    /// Nowhere.
    None,
    /// Into the bridge (or bond, ...) of this interface index.
    Index(u32),
}

/// What to change; absent fields stay as they are. The kernel applies one request in the order address, MTU, name,
/// master, up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkChange {
    /// Administrative state.
    pub up: Option<bool>,
    /// Ethernet address.
    pub address: Option<MacAddr>,
    /// MTU in bytes.
    pub mtu: Option<u32>,
    /// Bridge membership.
    pub master: Option<Master>,
    /// Whether it receives what is for others.
    pub promiscuous: Option<bool>,
    /// New name; the interface has to be down on kernels before 6.2.
    pub name: Option<IfName>,
}

/// Why a request to the kernel's network configuration failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No netlink socket, or it broke.
    #[error("cannot {action} the kernel's network configuration socket: {source}")]
    Socket {
        /// What was tried.
        action: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// No answer.
    #[error("the kernel did not answer within {ANSWER_SECONDS} s when asked to {action} {interface}")]
    Timeout {
        /// What was asked.
        action: &'static str,
        /// Of which interface.
        interface: String,
    },
    /// An answer that cannot be read.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The kernel said no.
    #[error("cannot {action} {interface}: {}{}", errno.desc(), extra(message.as_deref()))]
    Refused {
        /// What was asked.
        action: &'static str,
        /// Of which interface.
        interface: String,
        /// Its reason.
        errno: Errno,
        /// Its sentence, when it sent one.
        message: Option<String>,
    },
}

fn extra(message: Option<&str>) -> String {
    message.map(|text| format!(" ({text})")).unwrap_or_default()
}

/// A connection to rtnetlink of the network namespace it was opened in.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    /// Opens the socket.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::Socket`].
    pub fn open() -> Result<Self, NetlinkError> {
        let failed = |action| move |errno: Errno| NetlinkError::Socket { action, source: errno.into() };
        let socket =
            socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)
                .map_err(failed("open"))?;
        setsockopt(&socket, ReceiveTimeout, &TimeVal::new(ANSWER_SECONDS, 0)).map_err(failed("configure"))?;
        // Connected to port 0, the socket takes messages from the kernel only.
        connect(socket.as_raw_fd(), &NetlinkAddr::new(0, 0)).map_err(failed("connect"))?;
        // Without it errors have a number only, which is what kernels before 4.12 give anyway.
        let _ = ffi::linux::netlink::enable_extended_ack(socket.as_fd());
        Ok(Self { socket, sequence: 0 })
    }

    /// The interface called `name`; `None` when there is none.
    ///
    /// # Errors
    ///
    /// [`NetlinkError`].
    pub fn link_by_name(&mut self, name: &IfName) -> Result<Option<Link>, NetlinkError> {
        let request = self.request(RTM_GETLINK, 0, 0).text(IFLA_IFNAME, name.as_str());
        self.get(request, name.as_str())
    }

    /// The interface called `name`, which may take up to `limit` to appear; `None` when it does not.
    ///
    /// # Errors
    ///
    /// [`NetlinkError`].
    pub fn await_link(&mut self, name: &IfName, limit: Duration) -> Result<Option<Link>, NetlinkError> {
        if let Some(link) = self.link_by_name(name)? {
            return Ok(Some(link));
        }
        let news = LinkNews::open()?;
        let deadline = Instant::now() + limit;
        loop {
            // After the subscription: what happens from here on is news.
            if let Some(link) = self.link_by_name(name)? {
                return Ok(Some(link));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(news.as_fd(), PollFlags::POLLIN)], timeout) {
                Ok(0) => return Ok(None),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(NetlinkError::Socket { action: "wait for", source: errno.into() }),
            }
            // Which interface it is about does not matter, and that some news was lost neither: a look tells.
            news.read()?;
        }
    }

    /// The interface of index `index`; `None` when there is none.
    ///
    /// # Errors
    ///
    /// [`NetlinkError`].
    pub fn link_by_index(&mut self, index: u32) -> Result<Option<Link>, NetlinkError> {
        let request = self.request(RTM_GETLINK, 0, index);
        self.get(request, &format!("interface {index}"))
    }

    /// Applies `change` to `link`, found by its index.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::Refused`] with what was being changed; `ENODEV` when the interface is gone.
    pub fn change(&mut self, link: &Link, change: &LinkChange) -> Result<(), NetlinkError> {
        let (mut flags, mut mask) = (0, 0);
        for (wanted, flag) in [(change.up, IFF_UP), (change.promiscuous, IFF_PROMISC)] {
            mask |= wanted.map_or(0, |_| flag);
            flags |= if wanted == Some(true) { flag } else { 0 };
        }
        self.sequence = self.sequence.wrapping_add(1);
        let options = NLM_F_REQUEST | NLM_F_ACK;
        let mut request = Request::link(RTM_NEWLINK, options, self.sequence, link.index, flags, mask);
        if let Some(address) = change.address {
            request = request.attribute(IFLA_ADDRESS, &address.0);
        }
        if let Some(mtu) = change.mtu {
            request = request.number(IFLA_MTU, mtu);
        }
        if let Some(master) = change.master {
            let index = match master {
                Master::None => 0,
                Master::Index(index) => index,
            };
            request = request.number(IFLA_MASTER, index);
        }
        if let Some(name) = &change.name {
            request = request.text(IFLA_IFNAME, name.as_str());
        }
        self.exchange(&request.finish(), action_of(change), &link.name).map(drop)
    }

    /// Removes `link`, found by its index.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::Refused`], as for an interface that only hardware can remove.
    pub fn remove(&mut self, link: &Link) -> Result<(), NetlinkError> {
        let request = self.request(RTM_DELLINK, NLM_F_ACK, link.index).finish();
        self.exchange(&request, "remove", &link.name).map(drop)
    }

    /// All Linux bridges of this network namespace.
    ///
    /// # Errors
    ///
    /// [`NetlinkError`].
    pub fn bridges(&mut self) -> Result<Vec<Link>, NetlinkError> {
        let mut links = self.links()?;
        links.retain(|link| link.bridge_kind() == Some(BridgeKind::Linux));
        Ok(links)
    }

    /// All interfaces of this network namespace.
    ///
    /// # Errors
    ///
    /// [`NetlinkError`].
    pub fn links(&mut self) -> Result<Vec<Link>, NetlinkError> {
        let mut links = Vec::new();
        for _ in 0..DUMP_ATTEMPTS {
            let request = self.request(RTM_GETLINK, NLM_F_DUMP, 0).finish();
            let answer = self.exchange(&request, "list", "the interfaces")?;
            links = answer.links;
            if !answer.interrupted {
                break;
            }
        }
        Ok(links)
    }

    fn request(&mut self, kind: u16, flags: u16, index: u32) -> Request {
        self.sequence = self.sequence.wrapping_add(1);
        Request::link(kind, NLM_F_REQUEST | flags, self.sequence, index, 0, 0)
    }

    fn get(&mut self, request: Request, interface: &str) -> Result<Option<Link>, NetlinkError> {
        match self.exchange(&request.finish(), "look up", interface) {
            Ok(answer) => Ok(answer.links.into_iter().next()),
            Err(NetlinkError::Refused { errno: Errno::ENODEV, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn exchange(
        &mut self,
        request: &[u8],
        action: &'static str,
        interface: &str,
    ) -> Result<Answer, NetlinkError> {
        let broken = |action, errno: Errno| NetlinkError::Socket { action, source: errno.into() };
        send(self.socket.as_raw_fd(), request, MsgFlags::empty())
            .map_err(|errno| broken("write to", errno))?;
        let dump = request.get(6..8).is_some_and(|flags| flags == (NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
        let mut answer = Answer::default();
        let mut buffer = vec![0; RECEIVE_BUFFER];
        loop {
            let length = match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_TRUNC) {
                Ok(length) => length,
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN) => {
                    return Err(NetlinkError::Timeout { action, interface: interface.to_owned() });
                }
                Err(errno) => return Err(broken("read from", errno)),
            };
            let datagram = buffer.get(..length).ok_or(Malformed {
                what: "longer than the receive buffer",
                offset: RECEIVE_BUFFER,
                length,
            })?;
            for message in messages(datagram)? {
                // An answer to an earlier request that was given up.
                if message.sequence != self.sequence {
                    continue;
                }
                answer.interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
                match message.kind {
                    RTM_NEWLINK => {
                        answer.links.push(message::link(message.payload)?);
                        if !dump {
                            return Ok(answer);
                        }
                    }
                    NLMSG_DONE | NLMSG_ERROR => {
                        return match outcome(&message)? {
                            (0, _) => Ok(answer),
                            (errno, message) => Err(NetlinkError::Refused {
                                action,
                                interface: interface.to_owned(),
                                errno: Errno::from_raw(errno),
                                message,
                            }),
                        };
                    }
                    _ => {}
                }
            }
        }
    }
}

#[derive(Debug, Default)]
struct Answer {
    links: Vec<Link>,
    interrupted: bool,
}

fn action_of(change: &LinkChange) -> &'static str {
    match change {
        LinkChange { master: Some(Master::Index(_)), .. } => "add to its bridge interface",
        LinkChange { master: Some(Master::None), .. } => "remove from its bridge interface",
        LinkChange { name: Some(_), .. } => "rename interface",
        LinkChange { mtu: Some(_), .. } => "set the MTU of interface",
        LinkChange { address: Some(_), .. } => "set the MAC address of interface",
        LinkChange { up: Some(true), .. } => "bring up interface",
        LinkChange { up: Some(false), .. } => "bring down interface",
        LinkChange { promiscuous: Some(_), .. } => "set what is received by interface",
        _ => "change interface",
    }
}

#[cfg(test)]
pub(super) mod tests;
