//! Bytes of rtnetlink link messages: building requests, reading answers. No I/O.
//!
//! ```text
//!  0        4      6       8      12      16                              32
//!  ┌────────┬──────┬───────┬──────┬───────┬───────────────────────────────┬───────────────┐
//!  │ length │ type │ flags │ seq  │ port  │ ifinfomsg: index, flags, mask │ attributes... │
//!  └────────┴──────┴───────┴──────┴───────┴───────────────────────────────┴───────────────┘
//!  attribute: length (2, header included), type (2), payload, padding to 4
//! ```
//!
//! All numbers are in the byte order of the machine (netlink(7), rtnetlink(7)).

use super::super::mac::MacAddr;
use crate::edge::BridgeKind;

// <linux/netlink.h>
pub(super) const NLMSG_ERROR: u16 = 2;
pub(super) const NLMSG_DONE: u16 = 3;
pub(super) const NLM_F_REQUEST: u16 = 0x1;
pub(super) const NLM_F_ACK: u16 = 0x4;
pub(super) const NLM_F_DUMP: u16 = 0x300;
/// The list changed while it was being read.
pub(super) const NLM_F_DUMP_INTR: u16 = 0x10;
/// An error answer does not repeat the request's payload.
const NLM_F_CAPPED: u16 = 0x100;
/// An error answer carries attributes.
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;
const NLA_TYPE_MASK: u16 = 0x3fff;
const NLA_F_NESTED: u16 = 0x8000;
const ALIGNMENT: usize = 4;
const MESSAGE_HEADER: usize = 16;
const ATTRIBUTE_HEADER: usize = 4;

// <linux/rtnetlink.h>, <linux/if_link.h>
pub(super) const RTM_NEWLINK: u16 = 16;
pub(super) const RTM_DELLINK: u16 = 17;
pub(super) const RTM_GETLINK: u16 = 18;
const LINK_HEADER: usize = 16;
pub(super) const IFLA_ADDRESS: u16 = 1;
pub(super) const IFLA_IFNAME: u16 = 3;
pub(super) const IFLA_MTU: u16 = 4;
pub(super) const IFLA_MASTER: u16 = 10;
pub(super) const IFLA_LINKINFO: u16 = 18;
const IFLA_MIN_MTU: u16 = 50;
const IFLA_MAX_MTU: u16 = 51;
pub(super) const IFLA_INFO_KIND: u16 = 1;

/// `IFF_UP` of `<linux/if.h>`.
pub(super) const IFF_UP: u32 = 1;
/// `IFF_PROMISC` of the same.
pub(super) const IFF_PROMISC: u32 = 0x100;

/// An answer that is not what rtnetlink(7) describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed netlink message: {what} (byte {offset} of {length})")]
pub struct Malformed {
    /// What is wrong.
    pub what: &'static str,
    /// Where.
    pub offset: usize,
    /// Bytes there were.
    pub length: usize,
}

/// A network interface as the kernel describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Interface index: stays the same when the interface is renamed, is not reused soon after it is gone.
    pub index: u32,
    /// Name now.
    pub name: String,
    /// `IFF_*` of `<linux/if.h>`.
    pub flags: u32,
    /// Largest payload in bytes.
    pub mtu: u32,
    /// Smallest and largest MTU the driver accepts; the largest is 0 for "no limit". `None` before Linux 4.19.
    pub mtu_range: Option<(u32, u32)>,
    /// Ethernet address; `None` for interfaces that have none or a longer one.
    pub mac: Option<MacAddr>,
    /// Index of the bridge (or bond, ...) this interface is a port of.
    pub master: Option<u32>,
    /// Driver's name for the kind: `bridge`, `veth`, `openvswitch`; `None` for physical interfaces and vifs.
    pub kind: Option<String>,
}

impl Link {
    /// What kind of bridge it is, if it is one. What ports of an Open vSwitch have as their master counts as one of its.
    pub fn bridge_kind(&self) -> Option<BridgeKind> {
        match self.kind.as_deref() {
            Some("bridge") => Some(BridgeKind::Linux),
            Some("openvswitch") => Some(BridgeKind::OpenVswitch),
            _ => None,
        }
    }

    /// Whether it receives what is for others because somebody has said so, and not only because it is a bridge's port.
    pub fn is_promiscuous(&self) -> bool {
        self.flags & IFF_PROMISC != 0
    }

    /// Whether the interface is administratively up.
    pub fn is_up(&self) -> bool {
        self.flags & IFF_UP != 0
    }
}

/// A request under construction.
#[derive(Debug)]
pub(in super::super) struct Request {
    bytes: Vec<u8>,
}

impl Request {
    fn of(kind: u16, options: u16, sequence: u32) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(128);
        bytes.extend_from_slice(&0u32.to_ne_bytes());
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&options.to_ne_bytes());
        bytes.extend_from_slice(&sequence.to_ne_bytes());
        bytes.extend_from_slice(&0u32.to_ne_bytes());
        bytes
    }

    /// One to a family of generic netlink (`struct genlmsghdr`), to be acknowledged.
    pub(in super::super) fn generic(family: u16, sequence: u32, command: u8) -> Self {
        let mut bytes = Self::of(family, NLM_F_REQUEST | NLM_F_ACK, sequence);
        // The version of all families used here; the last two bytes are reserved.
        bytes.extend_from_slice(&[command, 1, 0, 0]);
        Self { bytes }
    }

    /// One about links. `flags` and `mask`: which `IFF_*` bits to set to what.
    pub(super) fn link(kind: u16, options: u16, sequence: u32, index: u32, flags: u32, mask: u32) -> Self {
        let mut bytes = Self::of(kind, options, sequence);
        // Family AF_UNSPEC, padding, device type: zero in requests.
        bytes.extend_from_slice(&0u32.to_ne_bytes());
        bytes.extend_from_slice(&index.to_ne_bytes());
        bytes.extend_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(&mask.to_ne_bytes());
        Self { bytes }
    }

    /// Appends an attribute. Payloads here are names, addresses and numbers; longer than a 16-bit length can say is
    /// cut, and the kernel refuses the message.
    pub(in super::super) fn attribute(mut self, kind: u16, payload: &[u8]) -> Self {
        let length = u16::try_from(ATTRIBUTE_HEADER + payload.len()).unwrap_or(u16::MAX);
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend(payload.iter().take(usize::from(length) - ATTRIBUTE_HEADER));
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
        self
    }

    /// Appends a number.
    pub(in super::super) fn number(self, kind: u16, value: u32) -> Self {
        self.attribute(kind, &value.to_ne_bytes())
    }

    /// Appends a large number.
    pub(in super::super) fn long(self, kind: u16, value: u64) -> Self {
        self.attribute(kind, &value.to_ne_bytes())
    }

    /// Appends attributes of an attribute.
    pub(in super::super) fn nested(self, kind: u16, inner: impl FnOnce(Self) -> Self) -> Self {
        let inner = inner(Self { bytes: Vec::new() });
        self.attribute(kind | NLA_F_NESTED, &inner.bytes)
    }

    /// Appends a name with the terminating zero the kernel wants.
    pub(in super::super) fn text(self, kind: u16, value: &str) -> Self {
        let mut payload = value.as_bytes().to_vec();
        payload.push(0);
        self.attribute(kind, &payload)
    }

    /// The finished message.
    pub(in super::super) fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes
    }
}

/// One message of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(in super::super) struct Message<'a> {
    pub(in super::super) kind: u16,
    pub(in super::super) flags: u16,
    pub(in super::super) sequence: u32,
    /// Whose socket it answers, or whose doing is told of (`nlmsg_pid`).
    pub(in super::super) port: u32,
    pub(in super::super) payload: &'a [u8],
}

/// Splits a datagram into its messages.
pub(in super::super) fn messages(datagram: &[u8]) -> Result<Vec<Message<'_>>, Malformed> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < datagram.len() {
        let malformed = |what| Malformed { what, offset: at, length: datagram.len() };
        let rest = &datagram[at..];
        let header = rest.get(..MESSAGE_HEADER).ok_or(malformed("cut inside a header"))?;
        let length = usize::try_from(u32_at(header, 0)).map_err(|_| malformed("length too large"))?;
        let payload = rest.get(MESSAGE_HEADER..length).ok_or(malformed("length outside the datagram"))?;
        found.push(Message {
            kind: u16_at(header, 4),
            flags: u16_at(header, 6),
            sequence: u32_at(header, 8),
            port: u32_at(header, 12),
            payload,
        });
        at = at.saturating_add(length.next_multiple_of(ALIGNMENT));
    }
    Ok(found)
}

/// What an `NLMSG_ERROR` or `NLMSG_DONE` says: the errno (0 is success) and the kernel's own sentence if it sent one.
pub(in super::super) fn outcome(message: &Message<'_>) -> Result<(i32, Option<String>), Malformed> {
    let code = message.payload.get(..4).ok_or(Malformed {
        what: "result without a number",
        offset: 0,
        length: message.payload.len(),
    })?;
    let errno = i32::from_ne_bytes(code.try_into().unwrap_or_default()).wrapping_neg();
    Ok((errno, extended_text(message)))
}

/// The sentence is a courtesy: anything unexpected about it only means that there is none.
fn extended_text(message: &Message<'_>) -> Option<String> {
    if message.kind != NLMSG_ERROR || message.flags & NLM_F_ACK_TLVS == 0 {
        return None;
    }
    let request = message.payload.get(4..)?;
    let skip = if message.flags & NLM_F_CAPPED != 0 {
        MESSAGE_HEADER
    } else {
        usize::try_from(u32_at(request.get(..4)?, 0)).ok()?.checked_next_multiple_of(ALIGNMENT)?
    };
    let found = attributes(request.get(skip..)?).ok()?;
    found.into_iter().find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG).map(|(_, payload)| text(payload))
}

/// The address family that an `RTM_NEWLINK` or `RTM_DELLINK` is about: `AF_UNSPEC` (0) is the interface itself, `AF_BRIDGE`
/// its being a port of a bridge.
pub(super) fn family(payload: &[u8]) -> Option<u8> {
    payload.first().copied()
}

/// Reads the payload of an `RTM_NEWLINK`.
pub(super) fn link(payload: &[u8]) -> Result<Link, Malformed> {
    let header = payload.get(..LINK_HEADER).ok_or(Malformed {
        what: "cut inside a link header",
        offset: 0,
        length: payload.len(),
    })?;
    let mut link = Link { index: u32_at(header, 4), flags: u32_at(header, 8), ..Link::default() };
    let (mut lowest, mut highest) = (None, None);
    for (kind, value) in attributes(&payload[LINK_HEADER..])? {
        match kind {
            IFLA_IFNAME => link.name = text(value),
            IFLA_ADDRESS => link.mac = value.try_into().ok().map(MacAddr),
            IFLA_MTU => link.mtu = number(value)?,
            IFLA_MASTER => link.master = Some(number(value)?),
            IFLA_MIN_MTU => lowest = Some(number(value)?),
            IFLA_MAX_MTU => highest = Some(number(value)?),
            IFLA_LINKINFO => {
                let info = attributes(value)?;
                link.kind =
                    info.into_iter().find(|(kind, _)| *kind == IFLA_INFO_KIND).map(|(_, name)| text(name));
            }
            _ => {}
        }
    }
    link.mtu_range = lowest.zip(highest);
    Ok(link)
}

/// The attributes in a payload, or in another.
pub(in super::super) fn attributes(bytes: &[u8]) -> Result<Vec<(u16, &[u8])>, Malformed> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let malformed = |what| Malformed { what, offset: at, length: bytes.len() };
        let rest = &bytes[at..];
        let header = rest.get(..ATTRIBUTE_HEADER).ok_or(malformed("cut inside an attribute header"))?;
        let length = usize::from(u16_at(header, 0));
        let value =
            rest.get(ATTRIBUTE_HEADER..length).ok_or(malformed("attribute length outside the message"))?;
        found.push((u16_at(header, 2) & NLA_TYPE_MASK, value));
        at += length.next_multiple_of(ALIGNMENT);
    }
    Ok(found)
}

fn number(value: &[u8]) -> Result<u32, Malformed> {
    let bytes: [u8; 4] = value.try_into().map_err(|_| Malformed {
        what: "number of odd size",
        offset: 0,
        length: value.len(),
    })?;
    Ok(u32::from_ne_bytes(bytes))
}

fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

// The callers have checked the length; a short slice reads as zero.
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).and_then(|b| b.try_into().ok()).map_or(0, u16::from_ne_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[cfg(target_endian = "little")]
    #[test]
    fn a_change_request_has_the_documented_bytes() {
        let bytes = Request::link(RTM_NEWLINK, NLM_F_REQUEST | NLM_F_ACK, 7, 5, IFF_UP, IFF_UP)
            .attribute(IFLA_ADDRESS, &MacAddr::BACKEND.0)
            .number(IFLA_MTU, 1500)
            .number(IFLA_MASTER, 3)
            .text(IFLA_IFNAME, "vif1.0")
            .finish();
        #[rustfmt::skip]
        let expected = [
            // length 72, RTM_NEWLINK, REQUEST|ACK, sequence 7, port 0
            72, 0, 0, 0, 16, 0, 5, 0, 7, 0, 0, 0, 0, 0, 0, 0,
            // AF_UNSPEC, index 5, flags UP, mask UP
            0, 0, 0, 0, 5, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0,
            // IFLA_ADDRESS, two bytes of padding
            10, 0, 1, 0, 0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0,
            // IFLA_MTU 1500
            8, 0, 4, 0, 0xdc, 5, 0, 0,
            // IFLA_MASTER 3
            8, 0, 10, 0, 3, 0, 0, 0,
            // IFLA_IFNAME with its zero, one byte of padding
            11, 0, 3, 0, b'v', b'i', b'f', b'1', b'.', b'0', 0, 0,
        ];
        assert_eq!(bytes, expected);
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn a_refusal_gives_errno_and_the_kernels_sentence() {
        let request = Request::link(RTM_NEWLINK, NLM_F_REQUEST, 9, 1, 0, 0).number(IFLA_MTU, 1).finish();
        let mut payload = (-22i32).to_ne_bytes().to_vec();
        payload.extend_from_slice(&request);
        let sentence = b"mtu less than device minimum\0";
        payload.extend_from_slice(&u16::try_from(4 + sentence.len()).unwrap().to_ne_bytes());
        payload.extend_from_slice(&NLMSGERR_ATTR_MSG.to_ne_bytes());
        payload.extend_from_slice(sentence);
        let with =
            Message { kind: NLMSG_ERROR, flags: NLM_F_ACK_TLVS, sequence: 9, port: 0, payload: &payload };
        assert_eq!(outcome(&with), Ok((22, Some("mtu less than device minimum".to_owned()))));
        let without = Message { kind: NLMSG_ERROR, flags: 0, sequence: 9, port: 0, payload: &payload };
        assert_eq!(outcome(&without), Ok((22, None)));
    }

    #[test]
    fn cut_messages_are_refused_at_every_length() {
        let whole = Request::link(RTM_NEWLINK, 0, 1, 2, 0, 0).text(IFLA_IFNAME, "xenbr0").finish();
        for end in 1..whole.len() {
            assert!(messages(&whole[..end]).is_err(), "{end}");
        }
        let payload = &whole[MESSAGE_HEADER..];
        for end in 0..payload.len() - 1 {
            let whole_attributes = end == LINK_HEADER;
            assert_eq!(link(&payload[..end]).is_ok(), whole_attributes, "{end}");
        }
    }

    #[test]
    fn zero_lengths_do_not_loop() {
        assert!(messages(&[0; 64]).is_err());
        assert!(attributes(&[0; 64]).is_err());
    }

    proptest! {
        #[test]
        fn parsers_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512), flags: u16) {
            if let Ok(found) = messages(&bytes) {
                for message in &found {
                    let _ = link(message.payload);
                    let _ = outcome(message);
                }
            }
            let _ = link(&bytes);
            let _ = outcome(&Message { kind: NLMSG_ERROR, flags, sequence: 0, port: 0, payload: &bytes });
        }

        #[test]
        fn links_round_trip(
            index: u32, flags: u32, mtu: u32, mac: [u8; 6], master: Option<u32>,
            name in "[a-z][a-z0-9.-]{0,14}", kind in proptest::option::of("[a-z]{1,12}"),
        ) {
            let mut request = Request::link(RTM_NEWLINK, 0, 1, index, flags, 0)
                .text(IFLA_IFNAME, &name)
                .number(IFLA_MTU, mtu)
                .attribute(IFLA_ADDRESS, &mac);
            if let Some(master) = master {
                request = request.number(IFLA_MASTER, master);
            }
            if let Some(kind) = &kind {
                let nested = Request { bytes: Vec::new() }.text(IFLA_INFO_KIND, kind).bytes;
                request = request.attribute(IFLA_LINKINFO, &nested);
            }
            let bytes = request.finish();
            let found = messages(&bytes).unwrap();
            prop_assert_eq!(found.len(), 1);
            let expected =
                Link { index, name, flags, mtu, mtu_range: None, mac: Some(MacAddr(mac)), master, kind };
            prop_assert_eq!(link(found[0].payload), Ok(expected));
        }
    }
}
