//! Bytes of nf_tables' netlink messages. No I/O.
//!
//! ```text
//!   batch begin │ table, chains, map │ rules │ element of the map │ batch end      all of it takes effect, or nothing
//! ```
//!
//! Lengths, types and sequence numbers are in the byte order of the machine, numbers in attributes in that of the network
//! (`<linux/netfilter/nf_tables.h>`).

use super::super::netlink::attributes;
use super::Place;
use super::rules::{Field, Rule, Test, Verdict};

// <linux/netfilter/nfnetlink.h>
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

// <linux/netlink.h>
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;
const NLA_F_NESTED: u16 = 0x8000;
const ALIGNMENT: usize = 4;
const HEADER: usize = 4;

/// `NFPROTO_BRIDGE`.
const BRIDGE: u8 = 7;
/// `NFPROTO_NETDEV`.
const NETDEV: u8 = 5;
/// `NF_BR_PRE_ROUTING`, where frames that a port has received begin; also `NF_NETDEV_INGRESS`.
const HOOK: u32 = 0;
/// Where nft's own `filter` chains of the bridge family are (`NF_BR_PRI_FILTER_BRIDGED`).
const PRIORITY: i32 = -200;

// Messages.
const NEW_TABLE: u16 = 0;
const NEW_CHAIN: u16 = 3;
const DELETE_CHAIN: u16 = 5;
const NEW_RULE: u16 = 6;
const DELETE_RULE: u16 = 8;
const NEW_SET: u16 = 9;
const NEW_ELEMENT: u16 = 12;
const DELETE_ELEMENT: u16 = 14;

/// `NFTA_LIST_ELEM`.
const ITEM: u16 = 1;
const MAP: u32 = 8;
/// What nft calls a key that is an interface's name, for its listings.
const KEY_IS_IFNAME: u32 = 41;
/// `IFNAMSIZ`.
const NAME_SIZE: u32 = 16;
/// `NFT_DATA_VERDICT`.
const DATA_IS_VERDICT: u32 = 0xffff_ff00;

// Registers: of the verdict, and one for everything else.
const VERDICT_REGISTER: u32 = 0;
const REGISTER: u32 = 1;

// Verdicts.
const DROP: i32 = 0;
const ACCEPT: i32 = 1;
const JUMP: i32 = -3;

// Keys of `meta`.
const RECEIVED_FROM: u32 = 6;
const TRANSPORT_PROTOCOL: u32 = 16;

/// The table, of this daemon alone.
const TABLE: &str = "xenopsd";
const BASE_CHAIN: &str = "guests";
const INTERFACES: &str = "interfaces";

/// Attributes under construction.
#[derive(Debug, Default)]
struct Attributes(Vec<u8>);

impl Attributes {
    fn raw(mut self, kind: u16, payload: &[u8]) -> Self {
        // Payloads here are bounded by the number of tests of a rule; a longer one the kernel refuses.
        let length = u16::try_from(HEADER + payload.len()).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(payload);
        self.0.resize(self.0.len().next_multiple_of(ALIGNMENT), 0);
        self
    }

    fn number(self, kind: u16, value: u32) -> Self {
        self.raw(kind, &value.to_be_bytes())
    }

    fn signed(self, kind: u16, value: i32) -> Self {
        self.raw(kind, &value.to_be_bytes())
    }

    fn text(self, kind: u16, value: &str) -> Self {
        self.raw(kind, &[value.as_bytes(), &[0]].concat())
    }

    fn nested(self, kind: u16, inner: &Self) -> Self {
        self.raw(kind | NLA_F_NESTED, &inner.0)
    }

    fn expression(self, name: &str, data: &Self) -> Self {
        let inner = Self::default().text(1, name).nested(2, data);
        self.nested(ITEM, &inner)
    }

    /// Holds when the field is, or is not, the value.
    fn test(self, test: &Test) -> Self {
        let loaded = match test.field {
            Field::Header(base, offset, length) => {
                let data = Self::default().number(1, REGISTER).number(2, base as u32);
                self.expression("payload", &data.number(3, offset).number(4, length))
            }
            Field::TransportProtocol => self.meta(TRANSPORT_PROTOCOL),
        };
        let value = Self::default().raw(1, &test.value);
        let data = Self::default().number(1, REGISTER).number(2, u32::from(!test.equal)).nested(3, &value);
        loaded.expression("cmp", &data)
    }

    fn meta(self, key: u32) -> Self {
        self.expression("meta", &Self::default().number(1, REGISTER).number(2, key))
    }

    fn verdict(self, code: i32) -> Self {
        let verdict = Self::default().nested(2, &Self::default().signed(1, code));
        self.expression("immediate", &Self::default().number(1, VERDICT_REGISTER).nested(2, &verdict))
    }
}

/// A batch under construction.
#[derive(Debug)]
pub(super) struct Batch {
    family: u8,
    bytes: Vec<u8>,
    sequence: u32,
    /// Where the last message begins.
    last: usize,
}

/// A finished batch.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Finished {
    pub(super) bytes: Vec<u8>,
    /// The sequence number that is acknowledged once all is done.
    pub(super) acknowledged: u32,
}

impl Batch {
    fn new(family: u8) -> Self {
        let mut batch = Self { family, bytes: Vec::new(), sequence: 0, last: 0 };
        batch.push(BATCH_BEGIN, 0, (0, SUBSYSTEM), &Attributes::default());
        batch
    }

    fn push(&mut self, kind: u16, options: u16, (family, resource): (u8, u16), body: &Attributes) {
        self.sequence += 1;
        self.last = self.bytes.len();
        let length = u32::try_from(20 + body.0.len()).unwrap_or(u32::MAX);
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&(NLM_F_REQUEST | options).to_ne_bytes());
        self.bytes.extend_from_slice(&self.sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&0u32.to_ne_bytes());
        self.bytes.extend_from_slice(&[family, 0]);
        self.bytes.extend_from_slice(&resource.to_be_bytes());
        self.bytes.extend_from_slice(&body.0);
    }

    fn table(&mut self, kind: u16, options: u16, body: &Attributes) {
        self.push(SUBSYSTEM << 8 | kind, options, (self.family, 0), body);
    }

    fn rule(&mut self, chain: &str, expressions: &Attributes) {
        let body = Attributes::default().text(1, TABLE).text(2, chain).nested(4, expressions);
        self.table(NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, &body);
    }

    fn finish(mut self) -> Finished {
        let acknowledged = self.sequence;
        let options = self.last + 6;
        let with_ack = u16::from_ne_bytes([self.bytes[options], self.bytes[options + 1]]) | NLM_F_ACK;
        self.bytes[options..options + 2].copy_from_slice(&with_ack.to_ne_bytes());
        self.push(BATCH_END, 0, (0, SUBSYSTEM), &Attributes::default());
        Finished { bytes: self.bytes, acknowledged }
    }
}

/// The rules of an interface, in place of any that it has there.
pub(super) fn set(place: Place, interface: &str, rules: &[Rule]) -> Finished {
    match place {
        Place::Bridge => set_in_bridges(interface, rules),
        Place::Device => set_at_device(interface, rules),
    }
}

fn set_in_bridges(interface: &str, rules: &[Rule]) -> Finished {
    let mut batch = Batch::new(BRIDGE);
    common(&mut batch);
    let chain = Attributes::default().text(1, TABLE).text(3, interface);
    batch.table(NEW_CHAIN, NLM_F_CREATE, &chain);
    fill(&mut batch, interface, rules);
    batch.table(NEW_ELEMENT, NLM_F_CREATE, &element(interface));
    batch.finish()
}

/// Where frames come out of the device, before any switch sees them. The chain goes with the device.
fn set_at_device(interface: &str, rules: &[Rule]) -> Finished {
    let mut batch = Batch::new(NETDEV);
    batch.table(NEW_TABLE, NLM_F_CREATE, &Attributes::default().text(1, TABLE));
    let hook = Attributes::default().number(1, HOOK).signed(2, PRIORITY).text(3, interface);
    let chain = Attributes::default().text(1, TABLE).text(3, interface).nested(4, &hook);
    batch.table(NEW_CHAIN, NLM_F_CREATE, &chain.signed(5, ACCEPT).text(7, "filter"));
    fill(&mut batch, interface, rules);
    batch.finish()
}

fn fill(batch: &mut Batch, interface: &str, rules: &[Rule]) {
    batch.table(DELETE_RULE, 0, &Attributes::default().text(1, TABLE).text(2, interface));
    for rule in rules {
        let tests = rule.tests.iter().fold(Attributes::default(), Attributes::test);
        let code = match rule.verdict {
            Verdict::Drop => DROP,
            Verdict::Accept => ACCEPT,
        };
        batch.rule(interface, &tests.verdict(code));
    }
}

/// No rules for an interface there.
pub(super) fn remove(place: Place, interface: &str) -> Finished {
    let mut batch = match place {
        Place::Bridge => Batch::new(BRIDGE),
        Place::Device => Batch::new(NETDEV),
    };
    if place == Place::Bridge {
        batch.table(DELETE_ELEMENT, 0, &element(interface));
    }
    batch.table(DELETE_CHAIN, 0, &Attributes::default().text(1, TABLE).text(3, interface));
    batch.finish()
}

/// Whether the message tells of a change of our table or of anything in it, in either family.
pub(super) fn is_of_our_table(kind: u16, payload: &[u8]) -> bool {
    // `struct nfgenmsg`, then the name of the table, which is the first attribute of each kind of thing and has a zero at its
    // end.
    let name =
        |(number, value): &(u16, &[u8])| *number == 1 && value.strip_suffix(&[0]) == Some(TABLE.as_bytes());
    kind >> 8 == SUBSYSTEM
        && payload
            .get(HEADER..)
            .and_then(|rest| attributes(rest).ok())
            .is_some_and(|all| all.iter().any(name))
}

/// What all interfaces share: a chain that every frame from a port goes through, and a map from the port's name to the
/// chain of that port, so that a frame costs the same however many there are.
fn common(batch: &mut Batch) {
    batch.table(NEW_TABLE, NLM_F_CREATE, &Attributes::default().text(1, TABLE));
    let hook = Attributes::default().number(1, HOOK).signed(2, PRIORITY);
    let base = Attributes::default().text(1, TABLE).text(3, BASE_CHAIN).nested(4, &hook);
    batch.table(NEW_CHAIN, NLM_F_CREATE, &base.signed(5, ACCEPT).text(7, "filter"));
    let map = Attributes::default().text(1, TABLE).text(2, INTERFACES).number(3, MAP);
    let map = map.number(4, KEY_IS_IFNAME).number(5, NAME_SIZE);
    batch.table(NEW_SET, NLM_F_CREATE, &map.number(6, DATA_IS_VERDICT).number(7, 16).number(10, 1));
    batch.table(DELETE_RULE, 0, &Attributes::default().text(1, TABLE).text(2, BASE_CHAIN));
    let lookup = Attributes::default().text(1, INTERFACES).number(2, REGISTER).number(3, VERDICT_REGISTER);
    batch.rule(BASE_CHAIN, &Attributes::default().meta(RECEIVED_FROM).expression("lookup", &lookup));
}

fn element(interface: &str) -> Attributes {
    let mut name = [0; NAME_SIZE as usize];
    for (slot, byte) in name.iter_mut().zip(interface.bytes()) {
        *slot = byte;
    }
    let verdict = Attributes::default().signed(1, JUMP).text(2, interface);
    let data = Attributes::default().nested(2, &verdict);
    let item = Attributes::default().nested(1, &Attributes::default().raw(1, &name)).nested(2, &data);
    let items = Attributes::default().nested(ITEM, &item);
    Attributes::default().text(1, TABLE).text(2, INTERFACES).nested(3, &items)
}

#[cfg(test)]
mod tests {
    use super::super::rules::{Locked, MAX_ADDRESSES, chain};
    use super::*;
    use crate::edge::linux::mac::MacAddr;

    /// Beginning, type and flags of each message.
    fn messages(bytes: &[u8]) -> Vec<(u16, u16)> {
        let mut found = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let u16_at = |n: usize| u16::from_ne_bytes([bytes[at + n], bytes[at + n + 1]]);
            found.push((u16_at(4), u16_at(6)));
            at += usize::from(u16_at(0));
            assert_eq!(at % 4, 0);
        }
        assert_eq!(at, bytes.len());
        found
    }

    #[test]
    fn a_batch_is_framed_and_its_last_message_acknowledged() {
        let finished = remove(Place::Bridge, "vif1.0");
        let kinds = [BATCH_BEGIN, SUBSYSTEM << 8 | DELETE_ELEMENT, SUBSYSTEM << 8 | DELETE_CHAIN, BATCH_END];
        let found = messages(&finished.bytes);
        assert_eq!(found.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), kinds);
        assert_eq!(
            found.iter().map(|(_, flags)| flags & NLM_F_ACK != 0).collect::<Vec<_>>(),
            [false, false, true, false]
        );
        assert_eq!(finished.acknowledged, 3);
    }

    #[test]
    fn only_what_is_told_of_our_own_table_counts() {
        let payload = |name: &str| [&[BRIDGE, 0, 0, 0][..], &Attributes::default().text(1, name).0].concat();
        for kind in [NEW_TABLE, NEW_CHAIN, NEW_RULE, DELETE_RULE, DELETE_CHAIN, DELETE_ELEMENT] {
            let kind = SUBSYSTEM << 8 | kind;
            assert!(is_of_our_table(kind, &payload(TABLE)));
            assert!(!is_of_our_table(kind, &payload("filter")));
            for end in 0..payload(TABLE).len() - 2 {
                assert!(!is_of_our_table(kind, &payload(TABLE)[..end]), "{end}");
            }
        }
        assert!(!is_of_our_table(DELETE_RULE, &payload(TABLE)), "of another subsystem");
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn a_comparison_has_the_bytes_that_nft_sends() {
        let test = Test { field: Field::TransportProtocol, equal: true, value: vec![17] };
        #[rustfmt::skip]
        let expected = [
            // an item: "meta", register 1, key 16
            36, 0, 1, 0x80,
            9, 0, 1, 0, b'm', b'e', b't', b'a', 0, 0, 0, 0,
            20, 0, 2, 0x80,
            8, 0, 1, 0, 0, 0, 0, 1,
            8, 0, 2, 0, 0, 0, 0, 16,
            // an item: "cmp", register 1, equal, value 17
            44, 0, 1, 0x80,
            8, 0, 1, 0, b'c', b'm', b'p', 0,
            32, 0, 2, 0x80,
            8, 0, 1, 0, 0, 0, 0, 1,
            8, 0, 2, 0, 0, 0, 0, 0,
            12, 0, 3, 0x80, 5, 0, 1, 0, 17, 0, 0, 0,
        ];
        assert_eq!(Attributes::default().test(&test).0, expected);
    }

    /// What a socket takes in one piece is 212,992 bytes by default (`net.core.wmem_default`).
    #[test]
    fn the_largest_batch_fits_into_a_socket() {
        let number = |n: usize| u8::try_from(n).unwrap();
        let locked = Locked {
            mac: MacAddr::BACKEND,
            ipv4: (0..MAX_ADDRESSES).map(|n| [10, 0, 0, number(n)].into()).collect(),
            ipv6: (0..MAX_ADDRESSES).map(|n| [number(n); 16].into()).collect(),
        };
        let length = [Place::Bridge, Place::Device]
            .map(|place| set(place, "vif32767.65535", &chain(&locked)).bytes.len());
        assert!(length.iter().all(|length| *length < 180_000), "{length:?}");
    }
}
