//! Network interface specifications: xl-network-configuration(5).

use crate::edge::linux::mac::MacAddr;
use crate::edge::linux::netlink::{IfName, IfNameError};
use crate::edge::linux::nic::MTU_RANGE;

use super::error::{Fault, Remark};

/// Bridge of an interface that names none.
pub const DEFAULT_BRIDGE: &str = "xenbr0";

/// Time slice of a rate that names none, in microseconds (50 ms).
const DEFAULT_TIMESLICE_US: u64 = 50_000;

/// Longest time slice: netback counts it in 32 bits of microseconds.
const TIMESLICE_US_MAX: u64 = u32::MAX as u64;

/// A bandwidth limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Bytes per second, more than 0.
    pub bytes_per_second: u64,
    /// Time slice in microseconds, more than 0.
    pub timeslice_us: u64,
}

/// One network interface of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VifConfig {
    /// Line of the specification.
    pub line: usize,
    /// The guest's address; derived from the VM's uuid when absent.
    pub mac: Option<MacAddr>,
    /// Bridge in dom0.
    pub bridge: IfName,
    /// MTU in bytes.
    pub mtu: Option<u32>,
    /// Bandwidth limit.
    pub rate: Option<Rate>,
    /// Model of the emulated card, as it is written.
    pub model: Option<String>,
    /// Hotplug script, by its path or its name in the directory of scripts.
    pub script: Option<String>,
}

const NAMES: &str = "the names are mac, bridge, mtu, rate, type, model, vifname, ip, script";

/// Reads one specification.
pub(super) fn parse(line: usize, spec: &str) -> Result<(VifConfig, Vec<Remark>), Fault> {
    let bridge = DEFAULT_BRIDGE.parse().map_err(|_| Fault::bad(DEFAULT_BRIDGE, "a bridge name"))?;
    let mut vif = VifConfig { line, mac: None, bridge, mtu: None, rate: None, model: None, script: None };
    let mut remarks = Vec::new();
    for parameter in spec.split(',').map(str::trim).filter(|parameter| !parameter.is_empty()) {
        let Some((name, value)) = parameter.split_once('=') else {
            match parameter {
                "trusted" | "untrusted" => {
                    remarks.push(Remark { found: parameter.to_owned(), why: "all backends are in dom0" });
                    continue;
                }
                _ => return Err(Fault::bad(parameter, format!("write name=value; {NAMES}"))),
            }
        };
        let (name, value) = (name.trim(), value.trim());
        if let Some(why) = no_effect(name, value) {
            remarks.push(Remark { found: parameter.to_owned(), why });
            continue;
        }
        match name {
            "mac" => vif.mac = Some(mac(value)?),
            "bridge" => {
                vif.bridge =
                    value.parse().map_err(|error: IfNameError| Fault::bad(value, error.to_string()))?;
            }
            "mtu" => {
                let mtu = value.parse().ok().filter(|mtu| MTU_RANGE.contains(mtu));
                let accepted = || format!("the MTU is {} to {} bytes", MTU_RANGE.start(), MTU_RANGE.end());
                vif.mtu = Some(mtu.ok_or_else(|| Fault::bad(value, accepted()))?);
            }
            "model" => vif.model = Some(value.to_owned()),
            "rate" => vif.rate = Some(rate(value)?),
            "script" => vif.script = Some(value.to_owned()),
            "type" if matches!(value, "vif" | "ioemu") => {}
            "type" => return Err(Fault::bad(value, "the type is vif or ioemu")),
            "backend" if matches!(value, "0" | "Domain-0" | "") => {}
            "backend" => {
                return Err(Fault::unsupported(
                    parameter,
                    "leave it out: interfaces are served by dom0, not by driver domains",
                ));
            }
            _ => return Err(Fault::bad(parameter, NAMES)),
        }
    }
    Ok((vif, remarks))
}

/// Why a parameter of `xl` changes nothing here.
fn no_effect(name: &str, value: &str) -> Option<&'static str> {
    Some(match name {
        "vifname" => "interfaces keep their names vifDOMID.N",
        "ip" | "gatewaydev" | "netdev" => "interfaces are bridged, not routed",
        "accel" | "devid" => "it has no counterpart",
        "script" if value.ends_with("vif-bridge") || value.is_empty() => "bridging needs no script",
        _ => return None,
    })
}

fn mac(text: &str) -> Result<MacAddr, Fault> {
    let mac: MacAddr = text.parse().map_err(|error| Fault::bad(text, format!("{error}")))?;
    if mac.is_multicast() {
        return Err(Fault::bad(
            text,
            "this is a group address; the first byte of an interface's must be even",
        ));
    }
    if mac.is_zero() {
        return Err(Fault::bad(
            text,
            "the address of zeroes belongs to nobody; leave mac out to have one made",
        ));
    }
    Ok(mac)
}

/// `10Mb/s`, `250KB/s`, `1MB/s@20ms`: bits or bytes in decimal multiples, and how often credit is given.
fn rate(text: &str) -> Result<Rate, Fault> {
    let refuse = || {
        let accepted =
            "write a rate like 10Mb/s (bits) or 250KB/s (bytes), and an interval if need be: 1MB/s@20ms";
        Fault::bad(text, accepted)
    };
    let (amount, interval) = match text.split_once('@') {
        Some((amount, interval)) => (amount, Some(interval)),
        None => (text, None),
    };
    let amount = amount.strip_suffix("/s").ok_or_else(refuse)?;
    let (number, unit) = split_number(amount).ok_or_else(refuse)?;
    let (multiple, unit) = match unit.as_bytes() {
        [b'G', ..] => (1_000_000_000, &unit[1..]),
        [b'M', ..] => (1_000_000, &unit[1..]),
        [b'K', ..] => (1_000, &unit[1..]),
        _ => (1, unit),
    };
    let amount: u64 = number.checked_mul(multiple).ok_or_else(refuse)?;
    let bytes_per_second = match unit {
        "B" => amount,
        "b" => amount / 8,
        _ => return Err(refuse()),
    };
    let timeslice_us = match interval {
        None => DEFAULT_TIMESLICE_US,
        Some(interval) => {
            let (number, unit) = split_number(interval).ok_or_else(refuse)?;
            let unit_us: u64 = match unit {
                "s" => 1_000_000,
                "ms" => 1_000,
                "us" | "" => 1,
                _ => return Err(refuse()),
            };
            number.checked_mul(unit_us).ok_or_else(refuse)?
        }
    };
    if bytes_per_second == 0 || timeslice_us == 0 || timeslice_us > TIMESLICE_US_MAX {
        return Err(refuse());
    }
    Ok(Rate { bytes_per_second, timeslice_us })
}

fn split_number(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    Some((digits.parse().ok()?, unit))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn vif(spec: &str) -> VifConfig {
        parse(1, spec).unwrap_or_else(|fault| panic!("{spec}: {fault:?}")).0
    }

    #[test]
    fn the_manuals_examples() {
        assert_eq!(vif("").bridge.as_str(), DEFAULT_BRIDGE);
        let found = vif("mac=00:16:3E:74:3d:76,model=rtl8139,bridge=xenbr1, mtu=9000");
        assert_eq!(found.mac.map(|mac| mac.to_string()).as_deref(), Some("00:16:3e:74:3d:76"));
        assert_eq!((found.bridge.as_str(), found.mtu), ("xenbr1", Some(9000)));
        assert_eq!(found.model.as_deref(), Some("rtl8139"));
        assert_eq!((found.script, vif("script=vif-site").script.as_deref()), (None, Some("vif-site")));
        for (spec, bytes_per_second, timeslice_us) in [
            ("rate=10Mb/s", 1_250_000, 50_000),
            ("rate=250KB/s", 250_000, 50_000),
            ("rate=1MB/s@20ms", 1_000_000, 20_000),
            ("rate=1GB/s@1s", 1_000_000_000, 1_000_000),
            ("rate=800b/s@100", 100, 100),
        ] {
            assert_eq!(vif(spec).rate, Some(Rate { bytes_per_second, timeslice_us }), "{spec}");
        }
    }

    #[test]
    fn what_changes_nothing_is_remarked() {
        let (_, remarks) =
            parse(1, "model=e1000,vifname=web,ip=10.0.0.1,script=vif-bridge,untrusted").unwrap();
        assert_eq!(remarks.len(), 4);
        assert_eq!(remarks[0].found, "vifname=web");
    }

    #[test]
    fn mistakes() {
        for (spec, part) in [
            ("mac=00:16:3e:74:3d", "not a MAC address"),
            ("mac=01:16:3e:74:3d:76", "group address"),
            ("mac=00:00:00:00:00:00", "zeroes"),
            ("bridge=", "not an interface name"),
            ("bridge=a-name-that-is-too-long", "not an interface name"),
            ("mtu=20", "68 to 65535"),
            ("mtu=x", "68 to 65535"),
            ("rate=10", "write a rate"),
            ("rate=10Mb/s@1h", "write a rate"),
            ("rate=0B/s", "write a rate"),
            ("rate=4b/s", "write a rate"),
            ("rate=99999999999GB/s", "write a rate"),
            ("type=emulated", "vif or ioemu"),
            ("colour=red", "the names are"),
            ("xenbr0", "name=value"),
        ] {
            let Fault::Bad { accepted, .. } = parse(1, spec).expect_err(spec) else { panic!("{spec}") };
            assert!(accepted.contains(part), "{spec}: {accepted}");
        }
        assert!(matches!(parse(1, "backend=netdom"), Err(Fault::Unsupported { .. })));
    }

    proptest! {
        #[test]
        fn never_panics(spec in "\\PC*", rate_text in "[0-9GMKBbs/@mu]{0,30}") {
            let _ = parse(1, &spec);
            let _ = rate(&rate_text);
        }

        #[test]
        fn what_is_written_is_read(bytes: [u8; 6], bridge in "[a-z][a-z0-9]{0,14}", mtu in MTU_RANGE) {
            let mac = MacAddr([bytes[0] & 0xfe, bytes[1], bytes[2], bytes[3], bytes[4], bytes[5] | 1]);
            let found = vif(&format!("mac={mac}, bridge={bridge}, mtu={mtu}"));
            prop_assert_eq!(found.mac, Some(mac));
            prop_assert_eq!((found.bridge.as_str(), found.mtu), (bridge.as_str(), Some(mtu)));
        }
    }
}
