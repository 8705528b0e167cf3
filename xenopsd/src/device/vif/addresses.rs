//! What the guest's agent is asked to do about an interface's addresses.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use xenstore::layout::{Asked, GuestAddresses};

use super::settings::{handle, mac_of};
use crate::api::{Error, Ipv4Configuration, Ipv6Configuration, Vif};
use crate::device::store_domid;
use crate::edge::DomId;

/// Checked, so that an agent in the guest never sees what is no address.
///
/// # Errors
/// What is wrong in the record.
pub(super) fn asked(domid: DomId, vif: &Vif) -> Result<GuestAddresses, Error> {
    Ok(GuestAddresses {
        domid: store_domid(domid),
        handle: handle(vif)?,
        mac: mac_of(vif)?,
        ipv4: match &vif.ipv4_configuration {
            Ipv4Configuration::Unspecified => Asked::Nothing,
            Ipv4Configuration::Dhcp => Asked::Automatic,
            Ipv4Configuration::Static { addresses, gateway } => {
                fixed::<Ipv4Addr>(vif, 32, addresses, gateway.as_ref())?
            }
        },
        ipv6: match &vif.ipv6_configuration {
            Ipv6Configuration::Unspecified => Asked::Nothing,
            Ipv6Configuration::Autoconf => Asked::Automatic,
            Ipv6Configuration::Static { addresses, gateway } => {
                fixed::<Ipv6Addr>(vif, 128, addresses, gateway.as_ref())?
            }
        },
    })
}

/// The nodes have room for one address; all are checked.
fn fixed<A: FromStr>(
    vif: &Vif,
    longest: u8,
    addresses: &[String],
    gateway: Option<&String>,
) -> Result<Asked, Error> {
    let bad = |what: &str, text: &str| {
        Error::internal(format!(
            "VIF {}: {text:?} is no {what}: an address of the family is{}",
            vif.id,
            if what == "gateway" {
                String::new()
            } else {
                format!(", with the length of its prefix: ADDRESS/0 to ADDRESS/{longest}")
            }
        ))
    };
    for text in addresses {
        let parts = text.split_once('/');
        let fine = parts.is_some_and(|(address, length)| {
            address.parse::<A>().is_ok() && length.parse::<u8>().is_ok_and(|length| length <= longest)
        });
        if !fine {
            return Err(bad("static address", text));
        }
    }
    // The model takes an empty gateway for none.
    let gateway = gateway.filter(|text| !text.is_empty());
    if let Some(text) = gateway.filter(|text| text.parse::<A>().is_err()) {
        return Err(bad("gateway", text));
    }
    let first = addresses.first().ok_or_else(|| bad("static address", ""))?;
    Ok(Asked::Fixed(first.clone(), gateway.cloned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_vif;

    fn v4(addresses: &[&str], gateway: Option<&str>) -> Result<Asked, Error> {
        let ipv4_configuration = Ipv4Configuration::Static {
            addresses: addresses.iter().map(|&a| a.to_owned()).collect(),
            gateway: gateway.map(str::to_owned),
        };
        let vif = Vif { ipv4_configuration, ..test_vif("11111111-2222-3333-4444-555555555555", "0") };
        asked(DomId::new(3).unwrap(), &vif).map(|asked| asked.ipv4)
    }

    #[test]
    fn only_addresses_of_the_family_reach_the_guest() {
        let fixed = Asked::Fixed("10.0.0.2/24".to_owned(), Some("10.0.0.1".to_owned()));
        assert_eq!(v4(&["10.0.0.2/24", "10.0.0.3/24"], Some("10.0.0.1")).unwrap(), fixed);
        assert_eq!(v4(&["10.0.0.2/24"], Some("")).unwrap(), Asked::Fixed("10.0.0.2/24".to_owned(), None));
        for (addresses, gateway) in [
            (&[][..], None),
            (&["10.0.0.2"], None),
            (&["10.0.0.2/33"], None),
            (&["10.0.0.2/24", "x"], None),
            (&["fd00::2/64"], None),
            (&["10.0.0.2/24"], Some("fd00::1")),
            (&["10.0.0.2/24\n"], None),
        ] {
            assert!(v4(addresses, gateway).is_err(), "{addresses:?} {gateway:?}");
        }
        let vif = Vif { ipv6_configuration: Ipv6Configuration::Autoconf, ..test_vif("x", "0") };
        assert_eq!(asked(DomId::new(3).unwrap(), &vif).unwrap().ipv6, Asked::Automatic);
    }
}
