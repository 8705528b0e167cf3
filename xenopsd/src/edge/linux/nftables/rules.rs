//! What a locked interface may send, as a list of rules. No I/O.
//!
//! A rule is a list of comparisons with fields of a frame and a verdict; the first whose comparisons all hold decides.
//! One whose field a frame does not have (too short, another protocol) does not hold.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::super::mac::MacAddr;

/// Most addresses of one family: more make a message that the kernel does not take in one piece.
pub const MAX_ADDRESSES: usize = 64;

/// What an interface may send from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Locked {
    /// Its own address.
    pub mac: MacAddr,
    /// Its IPv4 addresses.
    pub ipv4: Vec<Ipv4Addr>,
    /// Its IPv6 addresses; if there are any, the link-local one that follows from `mac` is another.
    pub ipv6: Vec<Ipv6Addr>,
}

/// Where an offset is counted from (`enum nft_payload_bases`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Base {
    Link = 0,
    Network = 1,
    Transport = 2,
}

/// A part of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field {
    /// Bytes of a header: from where, which, how many.
    Header(Base, u32, u32),
    /// The transport protocol, also behind IPv6 extension headers (`NFT_META_L4PROTO`).
    TransportProtocol,
}

// IEEE 802.3.
const SOURCE: Field = Field::Header(Base::Link, 6, 6);
/// With a VLAN tag, that of the tag, also where the card took it out.
const ETHERTYPE: Field = Field::Header(Base::Link, 12, 2);
const IPV4: [u8; 2] = [0x08, 0x00];
const ARP: [u8; 2] = [0x08, 0x06];
const IPV6: [u8; 2] = [0x86, 0xdd];

// RFC 826: lengths of both kinds of address, sender's addresses, target's IP address.
const ARP_LENGTHS: Field = Field::Header(Base::Network, 4, 2);
const ETHERNET_AND_IPV4: [u8; 2] = [6, 4];
const ARP_SENDER: Field = Field::Header(Base::Network, 8, 6);
const ARP_SENDER_IP: Field = Field::Header(Base::Network, 14, 4);
const ARP_TARGET_IP: Field = Field::Header(Base::Network, 24, 4);

// RFC 791, RFC 8200.
const IPV4_SOURCE: Field = Field::Header(Base::Network, 12, 4);
const IPV6_SOURCE: Field = Field::Header(Base::Network, 8, 16);

// RFC 768, RFC 2131: a DHCP client's request.
const UDP: [u8; 1] = [17];
const UDP_PORTS: Field = Field::Header(Base::Transport, 0, 4);
const DHCP_CLIENT_TO_SERVER: [u8; 4] = [0, 68, 0, 67];

// RFC 4861: neighbour discovery.
const ICMPV6: [u8; 1] = [58];
const ICMPV6_TYPE: Field = Field::Header(Base::Transport, 0, 1);
const ROUTER_ADVERTISEMENT: [u8; 1] = [134];
const NEIGHBOUR_SOLICITATION: [u8; 1] = [135];
const NEIGHBOUR_ADVERTISEMENT: [u8; 1] = [136];
const REDIRECT: [u8; 1] = [137];
const NEIGHBOUR_TARGET: Field = Field::Header(Base::Transport, 8, 16);

/// A comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Test {
    pub(super) field: Field,
    pub(super) equal: bool,
    pub(super) value: Vec<u8>,
}

/// What becomes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Drop,
    Accept,
}

/// A line of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) tests: Vec<Test>,
    pub(super) verdict: Verdict,
}

fn is(field: Field, value: &[u8]) -> Test {
    Test { field, equal: true, value: value.to_vec() }
}

fn is_not(field: Field, value: &[u8]) -> Test {
    Test { field, equal: false, value: value.to_vec() }
}

fn accept(tests: Vec<Test>) -> Rule {
    Rule { tests, verdict: Verdict::Accept }
}

fn drop(tests: Vec<Test>) -> Rule {
    Rule { tests, verdict: Verdict::Drop }
}

/// The whole chain.
pub(super) fn chain(locked: &Locked) -> Vec<Rule> {
    let mut rules = vec![drop(vec![is_not(SOURCE, &locked.mac.0)])];
    arp(locked, &mut rules);
    ipv4(locked, &mut rules);
    if !locked.ipv6.is_empty() {
        ipv6(locked, &mut rules);
    }
    rules.push(drop(Vec::new()));
    rules
}

fn arp(locked: &Locked, rules: &mut Vec<Rule>) {
    let arp = || is(ETHERTYPE, &ARP);
    rules.push(drop(vec![arp(), is_not(ARP_LENGTHS, &ETHERNET_AND_IPV4)]));
    rules.push(drop(vec![arp(), is_not(ARP_SENDER, &locked.mac.0)]));
    for own in &locked.ipv4 {
        rules.push(accept(vec![arp(), is(ARP_SENDER_IP, &own.octets())]));
        // RFC 5227: whether somebody else has its address.
        let probe = [is(ARP_SENDER_IP, &[0; 4]), is(ARP_TARGET_IP, &own.octets())];
        rules.push(accept([vec![arp()], probe.to_vec()].concat()));
    }
}

fn ipv4(locked: &Locked, rules: &mut Vec<Rule>) {
    let ipv4 = || is(ETHERTYPE, &IPV4);
    rules.push(accept(vec![
        ipv4(),
        is(IPV4_SOURCE, &[0; 4]),
        is(Field::TransportProtocol, &UDP),
        is(UDP_PORTS, &DHCP_CLIENT_TO_SERVER),
    ]));
    for own in &locked.ipv4 {
        rules.push(accept(vec![ipv4(), is(IPV4_SOURCE, &own.octets())]));
    }
}

fn ipv6(locked: &Locked, rules: &mut Vec<Rule>) {
    let own: Vec<Ipv6Addr> = locked.ipv6.iter().copied().chain([link_local(locked.mac)]).collect();
    let icmp = |kind: &[u8]| {
        vec![is(ETHERTYPE, &IPV6), is(Field::TransportProtocol, &ICMPV6), is(ICMPV6_TYPE, kind)]
    };
    rules.push(drop(icmp(&ROUTER_ADVERTISEMENT)));
    rules.push(drop(icmp(&REDIRECT)));
    // It may say where its own addresses are, and nobody else's.
    for address in &own {
        let target = is(NEIGHBOUR_TARGET, &address.octets());
        rules.push(accept([icmp(&NEIGHBOUR_ADVERTISEMENT), vec![target]].concat()));
    }
    rules.push(drop(icmp(&NEIGHBOUR_ADVERTISEMENT)));
    for address in &own {
        rules.push(accept(vec![is(ETHERTYPE, &IPV6), is(IPV6_SOURCE, &address.octets())]));
    }
    // RFC 4862: whether somebody else has its address.
    let unspecified = is(IPV6_SOURCE, &[0; 16]);
    rules.push(accept([icmp(&NEIGHBOUR_SOLICITATION), vec![unspecified]].concat()));
}

/// RFC 4291, appendix A.
fn link_local(mac: MacAddr) -> Ipv6Addr {
    let mut address = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xfe, 0, 0, 0];
    address[8..11].copy_from_slice(&mac.0[..3]);
    address[13..].copy_from_slice(&mac.0[3..]);
    address[8] ^= 2;
    Ipv6Addr::from(address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAC: [u8; 6] = [0, 0x16, 0x3e, 1, 2, 3];
    const OWN: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 7);

    fn locked() -> Locked {
        let ipv6 = vec!["2001:db8::7".parse().unwrap()];
        Locked { mac: MacAddr(MAC), ipv4: vec![OWN, Ipv4Addr::new(10, 9, 0, 8)], ipv6 }
    }

    /// What the kernel does with a frame whose transport header is where IPv4 without options and IPv6 without
    /// extensions have it.
    fn verdict(rules: &[Rule], frame: &[u8]) -> Verdict {
        let v6 = frame.get(12..14) == Some(&IPV6);
        let transport = if v6 { 54 } else { 34 };
        let field = |field: Field| match field {
            Field::Header(base, offset, length) => {
                let start = match base {
                    Base::Link => 0,
                    Base::Network => 14,
                    Base::Transport => transport,
                };
                let (from, length) =
                    (start + usize::try_from(offset).unwrap(), usize::try_from(length).unwrap());
                frame.get(from..from + length)
            }
            Field::TransportProtocol => frame.get(if v6 { 20..21 } else { 23..24 }),
        };
        let holds = |test: &Test| field(test.field).is_some_and(|value| (value == test.value) == test.equal);
        rules.iter().find(|rule| rule.tests.iter().all(holds)).expect("the last always holds").verdict
    }

    fn frame(source: [u8; 6], kind: [u8; 2], rest: &[&[u8]]) -> Vec<u8> {
        [&[0xff; 6][..], &source, &kind, &rest.concat(), &[0; 64]].concat()
    }

    fn arp(sender: [u8; 6], from: [u8; 4], to: [u8; 4]) -> Vec<u8> {
        frame(MAC, ARP, &[&[0, 1, 8, 0, 6, 4, 0, 1], &sender, &from, &[0; 6], &to])
    }

    fn ip(source: [u8; 4], protocol: u8, ports: [u8; 4]) -> Vec<u8> {
        frame(
            MAC,
            IPV4,
            &[&[0x45, 0, 0, 60, 0, 0, 0, 0, 64, protocol, 0, 0], &source, &[10, 9, 0, 1], &ports],
        )
    }

    fn icmpv6(source: [u8; 16], kind: u8, target: [u8; 16]) -> Vec<u8> {
        frame(
            MAC,
            IPV6,
            &[&[0x60, 0, 0, 0, 0, 24, 58, 255], &source, &[0xff; 16], &[kind, 0, 0, 0, 0, 0, 0, 0], &target],
        )
    }

    #[test]
    fn its_own_traffic_passes() {
        let rules = chain(&locked());
        let own6 = locked().ipv6[0].octets();
        let local = "fe80::216:3eff:fe01:203".parse::<Ipv6Addr>().unwrap().octets();
        for (what, frame) in [
            ("ARP", arp(MAC, OWN.octets(), [10, 9, 0, 1])),
            ("ARP probe", arp(MAC, [0; 4], OWN.octets())),
            ("TCP", ip(OWN.octets(), 6, [1; 4])),
            ("second address", ip([10, 9, 0, 8], 1, [0; 4])),
            ("DHCP", ip([0; 4], 17, DHCP_CLIENT_TO_SERVER)),
            ("solicitation", icmpv6(own6, 135, [7; 16])),
            ("advertisement", icmpv6(own6, 136, own6)),
            ("link-local advertisement", icmpv6(local, 136, local)),
            ("duplicate detection", icmpv6([0; 16], 135, own6)),
            ("echo", icmpv6(local, 128, [0; 16])),
        ] {
            assert_eq!(verdict(&rules, &frame), Verdict::Accept, "{what}");
        }
    }

    #[test]
    fn what_pretends_to_be_somebody_else_is_dropped() {
        let rules = chain(&locked());
        let own6 = locked().ipv6[0].octets();
        let other = [0, 0x16, 0x3e, 9, 9, 9];
        let mut foreign = ip(OWN.octets(), 6, [0; 4]);
        foreign[6..12].copy_from_slice(&other);
        for (what, frame) in [
            ("another MAC", foreign),
            ("ARP of another MAC", arp(other, OWN.octets(), [10, 9, 0, 1])),
            ("ARP of another IP", arp(MAC, [10, 9, 0, 1], [10, 9, 0, 2])),
            ("ARP probe of another IP", arp(MAC, [0; 4], [10, 9, 0, 1])),
            ("ARP with odd lengths", frame(MAC, ARP, &[&[0, 1, 8, 0, 8, 4, 0, 1], &MAC, &OWN.octets()])),
            ("another IP", ip([10, 9, 0, 1], 6, [0; 4])),
            ("DHCP server", ip([0; 4], 17, [0, 67, 0, 68])),
            ("router", icmpv6(own6, 134, [0; 16])),
            ("redirect", icmpv6(own6, 137, [0; 16])),
            ("another's advertisement", icmpv6(own6, 136, [7; 16])),
            ("another IPv6", icmpv6([7; 16], 128, [0; 16])),
            ("VLAN", frame(MAC, [0x81, 0], &[&[0, 5, 8, 0]])),
            ("spanning tree", frame(MAC, [0, 38], &[&[0x42, 0x42, 3]])),
            ("nothing", MAC.to_vec()),
        ] {
            assert_eq!(verdict(&rules, &frame), Verdict::Drop, "{what}");
        }
        let without = chain(&Locked { ipv6: Vec::new(), ..locked() });
        assert_eq!(verdict(&without, &icmpv6([0; 16], 135, own6)), Verdict::Drop);
    }

    proptest! {
        /// Whatever passes has the interface's MAC address, and a source that is its own or none.
        #[test]
        fn nothing_foreign_passes(
            mac in any::<bool>(), kind in prop::sample::select(vec![IPV4, ARP, IPV6, [0x88, 0xa8]]),
            body in proptest::collection::vec(any::<u8>(), 0..80),
        ) {
            let source = if mac { MAC } else { [2; 6] };
            let frame = frame(source, kind, &[&body]);
            if verdict(&chain(&locked()), &frame) == Verdict::Accept {
                prop_assert_eq!(source, MAC);
                let own = |bytes: &[u8]| bytes.iter().all(|b| *b == 0) || locked().ipv4.iter().any(|a| a.octets() == *bytes);
                match kind {
                    IPV4 => prop_assert!(own(&frame[26..30])),
                    ARP => prop_assert!(own(&frame[28..32])),
                    IPV6 => {}
                    _ => prop_assert!(false),
                }
            }
        }
    }
}
