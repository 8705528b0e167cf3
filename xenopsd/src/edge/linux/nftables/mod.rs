//! Locked interfaces: nf_tables rules, in the bridge family or at the device itself, that drop what a guest sends as somebody else.
//!
//! ```text
//!   frame from a port ──► table xenopsd, chain guests ──► map: name of the port ──► chain of that port ──► accept, drop
//!                                                              └── not in it: accept
//! ```
//!
//! Rules of an interface are exchanged in one transaction, without a moment in which there are none.

mod message;
mod news;
mod port;
mod rules;

use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, connect, recv, send, setsockopt,
    socket, sockopt::ReceiveTimeout,
};
use nix::sys::time::TimeVal;

use super::netlink::{IfName, messages, outcome};

pub use news::RulesNews;
pub use rules::{Locked, MAX_ADDRESSES};

/// Receive buffer: an answer repeats the message that it is about, of which the longest is a rule.
const RECEIVE_BUFFER: usize = 64 * 1024;

/// How long the kernel may take; it answers before `send` returns.
const ANSWER_SECONDS: i64 = 5;

/// `NLMSG_ERROR`, which an acknowledgement is, too.
const NLMSG_ERROR: u16 = 2;

/// Why rules could not be set or removed.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// Too many addresses.
    #[error(
        "{interface} cannot be locked to more than {MAX_ADDRESSES} addresses of a kind; {found} are given"
    )]
    TooMany {
        /// The interface.
        interface: IfName,
        /// How many there are.
        found: usize,
    },
    /// The kernel has no nf_tables for bridges, or refuses.
    #[error(
        "the kernel cannot filter what {interface} sends ({}): is the module nf_tables there, with support for bridges?", errno.desc()
    )]
    Refused {
        /// The interface.
        interface: IfName,
        /// Its reason.
        errno: Errno,
    },
    /// No answer, or none that makes sense.
    #[error("the kernel's answer about the rules of {interface} is {what}")]
    Answer {
        /// The interface.
        interface: IfName,
        /// What is wrong with it.
        what: String,
    },
}

/// Where the rules of an interface are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Where frames enter a Linux bridge: the bridge family, all interfaces in one table.
    Bridge,
    /// Where frames come out of the interface, for switches that nf_tables does not look into: the netdev family.
    Device,
}

impl Place {
    const fn other(self) -> Self {
        match self {
            Self::Bridge => Self::Device,
            Self::Device => Self::Bridge,
        }
    }
}

/// Lets an interface send only what `locked` says, whatever it could send before.
///
/// # Errors
/// [`NftError`]; the rules are then as before.
pub fn lock(interface: &IfName, locked: &Locked, place: Place) -> Result<(), NftError> {
    let found = locked.ipv4.len().max(locked.ipv6.len());
    if found > MAX_ADDRESSES {
        return Err(NftError::TooMany { interface: interface.clone(), found });
    }
    exchange(interface, &message::set(place, interface.as_str(), &rules::chain(locked)))?;
    // Those that it had when it was in a switch of the other kind would outlive these.
    remove(interface, place.other()).map(drop)
}

/// Lets an interface send anything; whether there were rules. A kernel that cannot filter has none.
///
/// # Errors
/// [`NftError`].
pub fn unlock(interface: &IfName) -> Result<bool, NftError> {
    let bridge = remove(interface, Place::Bridge)?;
    let device = remove(interface, Place::Device)?;
    Ok(bridge || device)
}

fn remove(interface: &IfName, place: Place) -> Result<bool, NftError> {
    match exchange(interface, &message::remove(place, interface.as_str())) {
        Ok(()) => Ok(true),
        Err(NftError::Refused {
            errno: Errno::ENOENT | Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT, ..
        }) => Ok(false),
        Err(error) => Err(error),
    }
}

fn exchange(interface: &IfName, batch: &message::Finished) -> Result<(), NftError> {
    let refused = |errno| NftError::Refused { interface: interface.clone(), errno };
    let socket =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkNetFilter)
            .map_err(refused)?;
    port::take(&socket).map_err(refused)?;
    exchange_over(&socket, interface, batch)
}

fn exchange_over(socket: &OwnedFd, interface: &IfName, batch: &message::Finished) -> Result<(), NftError> {
    let refused = |errno| NftError::Refused { interface: interface.clone(), errno };
    let strange = |what: &dyn std::fmt::Display| NftError::Answer {
        interface: interface.clone(),
        what: what.to_string(),
    };
    setsockopt(socket, ReceiveTimeout, &TimeVal::new(ANSWER_SECONDS, 0)).map_err(refused)?;
    // Connected to port 0, the socket takes messages from the kernel only.
    connect(socket.as_raw_fd(), &NetlinkAddr::new(0, 0)).map_err(refused)?;
    send(socket.as_raw_fd(), &batch.bytes, MsgFlags::empty()).map_err(refused)?;
    let mut buffer = vec![0; RECEIVE_BUFFER];
    loop {
        let length = match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(length) => length,
            Err(Errno::EINTR) => continue,
            Err(Errno::EAGAIN) => return Err(strange(&format!("missing after {ANSWER_SECONDS} s"))),
            Err(errno) => return Err(refused(errno)),
        };
        for message in messages(&buffer[..length]).map_err(|e| strange(&e))? {
            if message.kind != NLMSG_ERROR {
                continue;
            }
            match outcome(&message).map_err(|e| strange(&e))?.0 {
                0 if message.sequence == batch.acknowledged => return Ok(()),
                0 => {}
                errno => return Err(refused(Errno::from_raw(errno))),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::mac::MacAddr;
    use super::super::netlink::tests::in_namespace;
    use super::*;

    #[test]
    fn rules_come_are_replaced_and_go() {
        in_namespace(|_| {
            let interface: IfName = "vif1.0".parse().unwrap();
            let locked = |last: u8| Locked {
                mac: MacAddr([0, 0x16, 0x3e, 0, 0, 1]),
                ipv4: vec![[10, 0, 0, last].into()],
                ipv6: vec![[last; 16].into()],
            };
            if let Err(error) = lock(&interface, &locked(1), Place::Bridge) {
                // What could not be set must not be in the way of what is tidied up afterwards.
                assert!(!unlock(&interface).unwrap());
                // Not every kernel that tests run on has it; the nested host's has.
                eprintln!("left out: {error}");
                return;
            }
            lock(&interface, &locked(2), Place::Bridge).unwrap();
            let other: IfName = "vif2.0".parse().unwrap();
            lock(&other, &locked(3), Place::Bridge).unwrap();
            assert!(unlock(&interface).unwrap());
            assert!(!unlock(&interface).unwrap());
            assert!(unlock(&other).unwrap());
        });
    }

    #[test]
    fn what_others_do_to_our_table_is_news_and_what_we_do_is_not() {
        in_namespace(|_| {
            let interface: IfName = "vif1.0".parse().unwrap();
            let locked = Locked { mac: MacAddr::BACKEND, ipv4: vec![[10, 0, 0, 1].into()], ipv6: Vec::new() };
            let Ok(news) = RulesNews::open() else { return };
            if let Err(error) = lock(&interface, &locked, Place::Bridge) {
                eprintln!("left out: {error}");
                return;
            }
            assert_eq!(news.read(), Ok(false), "our own");
            let flags = SockFlag::SOCK_CLOEXEC;
            let theirs = || {
                socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkNetFilter).unwrap()
            };
            // Rules are added and removed, and then all of an interface's are.
            let others = message::set(Place::Bridge, interface.as_str(), &rules::chain(&locked)[1..]);
            exchange_over(&theirs(), &interface, &others).unwrap();
            assert_eq!((news.read(), news.read()), (Ok(true), Ok(false)));
            exchange_over(&theirs(), &interface, &message::remove(Place::Bridge, interface.as_str()))
                .unwrap();
            assert_eq!(news.read(), Ok(true));
            lock(&interface, &locked, Place::Bridge).unwrap();
            assert!(unlock(&interface).unwrap());
            assert_eq!(news.read(), Ok(false));
        });
    }

    #[test]
    fn too_many_addresses_are_refused_before_anything_is_sent() {
        let ipv4 = vec![[10, 0, 0, 1].into(); MAX_ADDRESSES + 1];
        let locked = Locked { mac: MacAddr::BACKEND, ipv4, ipv6: Vec::new() };
        let refused = lock(&"vif1.0".parse().unwrap(), &locked, Place::Device);
        assert!(matches!(refused, Err(NftError::TooMany { found: 65, .. })), "{refused:?}");
    }
}
