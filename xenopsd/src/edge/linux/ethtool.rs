//! What a card's link agrees on: autonegotiation, speed and duplex, through ethtool's generic netlink family.
//!
//! ```text
//!   controller: which number has "ethtool"? ──► LINKMODES_GET, LINKMODES_SET of that family
//! ```
//!
//! Only what is named in a request is changed; which modes are offered to the other end follows from that, in the kernel
//! (`Documentation/networking/ethtool-netlink.rst`). Linux 5.6 is the first to have it.

use super::generic::{Family, GENERIC_HEADER, GenericError};
use super::netlink::{IfName, Malformed, NetlinkRequest, attributes};
use super::nic::Duplex;

// <linux/ethtool_netlink.h>
const FAMILY: &str = "ethtool";
const LINKMODES_GET: u8 = 4;
const LINKMODES_SET: u8 = 5;
const HEADER: u16 = 1;
const HEADER_DEV_NAME: u16 = 2;
const AUTONEG: u16 = 2;
const SPEED: u16 = 5;
const DUPLEX: u16 = 6;

// <linux/ethtool.h>
const DUPLEX_HALF: u8 = 0;
const DUPLEX_FULL: u8 = 1;
const SPEED_UNKNOWN: u32 = u32::MAX;

/// What a link agrees on; nothing of what is not known, or not to be changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Modes {
    /// Whether it asks the other end.
    pub autoneg: Option<bool>,
    /// In Mb/s.
    pub speed: Option<u32>,
    /// Both ways at once, or not.
    pub duplex: Option<Duplex>,
}

/// Why modes could not be read or set.
#[derive(Debug, thiserror::Error)]
#[error("the link of {interface} cannot be {action}: {source}")]
pub struct EthtoolError {
    /// The interface.
    pub interface: IfName,
    /// What was asked.
    pub action: &'static str,
    /// The driver's or the kernel's reason.
    pub source: GenericError,
}

/// What an interface's link has agreed on.
///
/// # Errors
/// [`EthtoolError`]: `EOPNOTSUPP` when it has no such thing, `ENODEV` when it is not there.
pub fn get(interface: &IfName) -> Result<Modes, EthtoolError> {
    let answer = ask(interface, LINKMODES_GET, |request| request);
    answer.and_then(|answer| Ok(parse(&answer)?)).map_err(|source| failed(interface, "looked at", source))
}

/// Sets what is named.
///
/// # Errors
/// As [`get`]; also when the driver does not have the mode.
pub fn set(interface: &IfName, modes: &Modes) -> Result<(), EthtoolError> {
    let answer = ask(interface, LINKMODES_SET, |mut request| {
        if let Some(autoneg) = modes.autoneg {
            request = request.attribute(AUTONEG, &[u8::from(autoneg)]);
        }
        if let Some(speed) = modes.speed {
            request = request.number(SPEED, speed);
        }
        if let Some(duplex) = modes.duplex {
            let duplex = match duplex {
                Duplex::Half => DUPLEX_HALF,
                Duplex::Full => DUPLEX_FULL,
            };
            request = request.attribute(DUPLEX, &[duplex]);
        }
        request
    });
    answer.map(drop).map_err(|source| failed(interface, "set", source))
}

fn failed(interface: &IfName, action: &'static str, source: GenericError) -> EthtoolError {
    EthtoolError { interface: interface.clone(), action, source }
}

fn ask(
    interface: &IfName,
    command: u8,
    arguments: impl FnOnce(NetlinkRequest) -> NetlinkRequest,
) -> Result<Vec<u8>, GenericError> {
    let named = |request: NetlinkRequest| {
        request.nested(HEADER, |header| header.text(HEADER_DEV_NAME, interface.as_str()))
    };
    Family::open(FAMILY)?.exchange(command, |request| arguments(named(request)))
}

fn parse(payload: &[u8]) -> Result<Modes, Malformed> {
    let mut modes = Modes::default();
    for (kind, value) in attributes(payload.get(GENERIC_HEADER..).unwrap_or_default())? {
        match (kind, value) {
            (AUTONEG, [on]) => modes.autoneg = Some(*on != 0),
            (DUPLEX, [DUPLEX_HALF]) => modes.duplex = Some(Duplex::Half),
            (DUPLEX, [DUPLEX_FULL]) => modes.duplex = Some(Duplex::Full),
            (SPEED, value) => {
                let speed = value.try_into().map(u32::from_ne_bytes).ok();
                modes.speed = speed.filter(|speed| ![0, SPEED_UNKNOWN].contains(speed));
            }
            _ => {}
        }
    }
    Ok(modes)
}

#[cfg(test)]
mod tests {
    use super::super::netlink::messages;
    use super::super::netlink::tests::{create, in_namespace};
    use super::*;
    use nix::errno::Errno;
    use proptest::prelude::*;

    #[test]
    fn an_answer_is_read_and_what_is_unknown_is_nothing() {
        let answer = |speed: u32, duplex: u8| {
            let answer = NetlinkRequest::generic(0, 0, LINKMODES_GET).attribute(AUTONEG, &[1]);
            let answer = answer.number(SPEED, speed).attribute(DUPLEX, &[duplex]).finish();
            parse(messages(&answer).unwrap()[0].payload).unwrap()
        };
        let modes = |speed, duplex| Modes { autoneg: Some(true), speed, duplex };
        assert_eq!(answer(1000, DUPLEX_FULL), modes(Some(1000), Some(Duplex::Full)));
        assert_eq!(answer(10, DUPLEX_HALF), modes(Some(10), Some(Duplex::Half)));
        assert_eq!(answer(SPEED_UNKNOWN, 0xff), modes(None, None));
        assert_eq!(parse(&[]).unwrap(), Modes::default());
    }

    proptest! {
        #[test]
        fn answers_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..128)) {
            let _ = parse(&bytes);
        }
    }

    /// A veth says 10,000 Mb/s, and that this cannot be changed.
    #[test]
    fn a_link_without_choice_is_read_and_not_set() {
        in_namespace(|netlink| {
            let Some(link) = create(netlink, "card0", "veth") else { return };
            let name: IfName = link.name.parse().unwrap();
            match get(&name) {
                Ok(modes) => assert_eq!((modes.speed, modes.duplex), (Some(10_000), Some(Duplex::Full))),
                Err(EthtoolError { source: GenericError::Kernel(errno), .. })
                    if [Errno::EOPNOTSUPP, Errno::EPROTONOSUPPORT, Errno::ENOENT].contains(&errno) =>
                {
                    return eprintln!("skipped: this kernel has no ethtool netlink");
                }
                Err(error) => panic!("{error}"),
            }
            let number = |error: EthtoolError| match error.source {
                GenericError::Kernel(errno) => errno,
                other => panic!("{other}"),
            };
            let refused = set(&name, &Modes { speed: Some(100), ..Modes::default() });
            assert_eq!(refused.map_err(number), Err(Errno::EOPNOTSUPP));
            assert_eq!(get(&"nothing0".parse().unwrap()).map_err(number), Err(Errno::ENODEV));
        });
    }
}
