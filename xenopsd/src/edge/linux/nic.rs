//! Settings of physical network cards: read from the settings file or the command line, given to a card.
//!
//! ```text
//!   [nic eth0]                     xenops nic eth0 mtu=9000 autoneg=off
//!   mtu = 9000                                 │
//!        └──► CardSettings ◄───────────────────┘
//!                  │ apply: MTU, promiscuity (rtnetlink) ─► offloads (ioctl) ─► autoneg, speed, duplex (ethtool netlink)
//! ```
//!
//! What is not named stays as it is.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use super::ethtool::{self, EthtoolError, Modes};
use super::netlink::{IfName, IfNameError, Link, LinkChange, Netlink, NetlinkError};
use super::vif::{offload, set_offloads};
use crate::edge::Offload;

/// Smallest and largest MTU that an interface can be asked to have, in bytes (RFC 791; the length of an IP packet).
pub const MTU_RANGE: std::ops::RangeInclusive<u32> = 68..=65535;

/// Offloads by their names.
pub const OFFLOADS: [(&str, Offload); 6] = [
    ("rx", Offload::Rx),
    ("tx", Offload::Tx),
    ("sg", Offload::Sg),
    ("tso", Offload::Tso),
    ("ufo", Offload::Ufo),
    ("gso", Offload::Gso),
];

/// What management layers write before keys that are ethtool's.
pub const ETHTOOL_PREFIX: &str = "ethtool-";

/// What [`on_or_off`] takes.
pub const ON_OR_OFF: &str = "on, true, off or false";

/// A switch's position.
pub fn on_or_off(text: &str) -> Option<bool> {
    match text {
        "on" | "true" => Some(true),
        "off" | "false" => Some(false),
        _ => None,
    }
}

/// How a card sends and receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Duplex {
    /// One after the other.
    Half,
    /// At the same time.
    Full,
}

impl fmt::Display for Duplex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Half => "half",
            Self::Full => "full",
        })
    }
}

/// What a card is to be given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CardSettings {
    /// What its link agrees on with the other end.
    pub modes: Modes,
    /// In bytes, within [`MTU_RANGE`].
    pub mtu: Option<u32>,
    /// Whether it receives what is for others.
    pub promiscuous: Option<bool>,
    /// Work that it is to do, or not.
    pub offloads: Vec<(Offload, bool)>,
}

/// Why a card does not have its settings.
#[derive(Debug, thiserror::Error)]
pub enum CardError {
    /// No such setting.
    #[error(
        "network cards have no setting {key:?}; they have autoneg, speed, duplex, mtu, promiscuous, rx, tx, sg, tso, ufo and gso"
    )]
    UnknownKey {
        /// Its name.
        key: String,
    },
    /// No value that it can have.
    #[error("{key} of a network card is {value:?}; it can be {possible}")]
    BadValue {
        /// The setting.
        key: String,
        /// What was given.
        value: String,
        /// What can be.
        possible: String,
    },
    /// No setting at all.
    #[error("{text:?} is no setting of a network card: they are written KEY=VALUE")]
    NoSetting {
        /// What was given.
        text: String,
    },
    /// No name of an interface.
    #[error(transparent)]
    BadName(#[from] IfNameError),
    /// It is not there.
    #[error("there is no network card {card}; `xenops nic` lists them")]
    Missing {
        /// Its name.
        card: String,
    },
    /// MTU or promiscuity.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// Autonegotiation, speed, duplex.
    #[error(transparent)]
    Modes(#[from] EthtoolError),
    /// Offloads.
    #[error("offloads of network card {card}: {source}")]
    Offloads {
        /// The card.
        card: String,
        /// What the kernel says.
        source: std::io::Error,
    },
}

impl CardError {
    /// Whether what was asked for makes no sense, whatever the card.
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::UnknownKey { .. } | Self::BadValue { .. } | Self::NoSetting { .. } | Self::BadName(_)
        )
    }
}

impl CardSettings {
    /// Takes a setting over, in place of one of the same name.
    ///
    /// # Errors
    /// [`CardError::UnknownKey`], [`CardError::BadValue`].
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), CardError> {
        let name = key.strip_prefix(ETHTOOL_PREFIX).unwrap_or(key);
        let bad = |possible: &str| CardError::BadValue {
            key: key.to_owned(),
            value: value.to_owned(),
            possible: possible.to_owned(),
        };
        let switch = || on_or_off(value).ok_or_else(|| bad(ON_OR_OFF));
        match name {
            "autoneg" => self.modes.autoneg = Some(switch()?),
            "promiscuous" => self.promiscuous = Some(switch()?),
            "speed" => {
                let known = ["10", "100", "1000"].contains(&value);
                let speed = value.parse().ok().filter(|_| known);
                self.modes.speed = Some(speed.ok_or_else(|| bad("10, 100 or 1000, in Mb/s"))?);
            }
            "duplex" => {
                self.modes.duplex = Some(match value {
                    "half" => Duplex::Half,
                    "full" => Duplex::Full,
                    _ => return Err(bad("half or full")),
                });
            }
            "mtu" => {
                let mtu = value.parse().ok().filter(|mtu| MTU_RANGE.contains(mtu));
                let range = format!("{} to {}", MTU_RANGE.start(), MTU_RANGE.end());
                self.mtu = Some(mtu.ok_or_else(|| bad(&range))?);
            }
            _ => {
                let offload = OFFLOADS.into_iter().find(|(offload, _)| *offload == name);
                let (_, offload) = offload.ok_or_else(|| CardError::UnknownKey { key: key.to_owned() })?;
                let on = switch()?;
                self.offloads.retain(|(other, _)| *other != offload);
                self.offloads.push((offload, on));
            }
        }
        Ok(())
    }

    /// Takes `KEY=VALUE` over.
    ///
    /// # Errors
    /// As [`CardSettings::set`]; [`CardError::NoSetting`].
    pub fn set_pair(&mut self, text: &str) -> Result<(), CardError> {
        let pair = text.split_once('=').ok_or_else(|| CardError::NoSetting { text: text.to_owned() })?;
        self.set(pair.0.trim(), pair.1.trim())
    }

    /// Gives them to a card.
    ///
    /// # Errors
    /// [`CardError`]: what comes after the refused one is not set.
    pub fn apply(&self, netlink: &mut Netlink, link: &Link) -> Result<(), CardError> {
        let name: IfName = link.name.parse()?;
        if let Some(mtu) = self.mtu.filter(|mtu| *mtu != link.mtu) {
            netlink.change(link, &LinkChange { mtu: Some(mtu), ..LinkChange::default() })?;
        }
        if let Some(promiscuous) = self.promiscuous {
            let change = LinkChange { promiscuous: Some(promiscuous), ..LinkChange::default() };
            netlink.change(link, &change)?;
        }
        let refused = |source| CardError::Offloads { card: link.name.clone(), source };
        set_offloads(&name, &self.offloads).map_err(refused)?;
        if self.modes != Modes::default() {
            ethtool::set(&name, &self.modes)?;
        }
        Ok(())
    }
}

/// Settings of cards by their names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cards(BTreeMap<String, CardSettings>);

impl Cards {
    /// Those of a card, to be changed.
    ///
    /// # Errors
    /// [`CardError::BadName`].
    pub fn of(&mut self, card: &str) -> Result<&mut CardSettings, CardError> {
        card.parse::<IfName>()?;
        Ok(self.0.entry(card.to_owned()).or_default())
    }

    /// Gives an interface those of its name, if there are any.
    ///
    /// # Errors
    /// As [`CardSettings::apply`].
    pub fn apply(&self, netlink: &mut Netlink, link: &Link) -> Result<(), CardError> {
        let Some(settings) = self.0.get(&link.name) else { return Ok(()) };
        settings.apply(netlink, link)?;
        tracing::info!(card = link.name, ?settings, "the network card has its settings");
        Ok(())
    }
}

/// How a card is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CardState {
    /// Name, flags, MTU.
    pub link: Link,
    /// What its link has agreed on; nothing of what it does not tell.
    pub modes: Modes,
    /// Offloads that it knows, by name.
    pub offloads: Vec<(&'static str, bool)>,
}

/// The physical cards of dom0, or the one of this name, which may be of any kind.
///
/// # Errors
/// [`CardError`]; [`CardError::Missing`].
pub fn cards(netlink: &mut Netlink, card: Option<&str>) -> Result<Vec<CardState>, CardError> {
    let links = match card {
        None => netlink.links()?.into_iter().filter(is_physical).collect(),
        Some(card) => {
            let found = netlink.link_by_name(&card.parse()?)?;
            vec![found.ok_or_else(|| CardError::Missing { card: card.to_owned() })?]
        }
    };
    links.into_iter().map(state).collect()
}

fn state(link: Link) -> Result<CardState, CardError> {
    let name: IfName = link.name.parse()?;
    let known = OFFLOADS.into_iter().filter_map(|(text, which)| Some((text, offload(&name, which).ok()?)));
    // A kind of interface that has no such modes is no error.
    let modes = ethtool::get(&name).unwrap_or_default();
    Ok(CardState { offloads: known.collect(), modes, link })
}

/// A device is behind it, and not one of a guest's.
fn is_physical(link: &Link) -> bool {
    let subsystem = std::fs::read_link(Path::new("/sys/class/net").join(&link.name).join("device/subsystem"));
    subsystem.is_ok_and(|path| path.file_name().is_some_and(|name| name != "xen-backend"))
}

#[cfg(test)]
mod tests {
    use super::super::netlink::tests::{create, in_namespace};
    use super::*;

    fn settings(pairs: &[&str]) -> Result<CardSettings, CardError> {
        let mut settings = CardSettings::default();
        pairs.iter().try_for_each(|pair| settings.set_pair(pair)).map(|()| settings)
    }

    #[test]
    fn settings_are_read_strictly_and_the_last_one_counts() {
        let read = settings(&["autoneg=off", "speed=10", "ethtool-speed=100", "duplex = half", "mtu=9000"]);
        let modes = Modes { autoneg: Some(false), speed: Some(100), duplex: Some(Duplex::Half) };
        let expected = CardSettings { modes, mtu: Some(9000), ..CardSettings::default() };
        assert_eq!(read.unwrap(), expected);
        let read = settings(&["promiscuous=true", "tso=on", "gso=false", "tso=off"]).unwrap();
        assert_eq!(read.promiscuous, Some(true));
        assert_eq!(read.offloads, [(Offload::Gso, false), (Offload::Tso, false)]);
        for bad in [
            "autoneg=yes",
            "speed=2500",
            "speed=010",
            "speed=",
            "duplex=both",
            "mtu=67",
            "mtu=x",
            "rx=1",
            "promiscuous=",
        ] {
            assert!(matches!(settings(&[bad]), Err(CardError::BadValue { .. })), "{bad}");
        }
        for bad in ["lro=on", "=on", "ethtool-=on"] {
            assert!(matches!(settings(&[bad]), Err(CardError::UnknownKey { .. })), "{bad}");
        }
        assert!(matches!(settings(&["speed"]), Err(CardError::NoSetting { .. })));
        assert!(matches!(Cards::default().of("a b"), Err(CardError::BadName(_))));
    }

    #[test]
    fn a_card_gets_what_is_said_for_its_name_and_no_other_does() {
        in_namespace(|netlink| {
            let Some(card) = create(netlink, "card0", "dummy") else { return };
            let mut all = Cards::default();
            for pair in ["mtu=1400", "promiscuous=on", "gso=off"] {
                all.of("card0").unwrap().set_pair(pair).unwrap();
            }
            all.apply(netlink, &card).unwrap();
            let other = create(netlink, "card1", "dummy").expect("another");
            all.apply(netlink, &other).unwrap();
            let [now, untouched] =
                ["card0", "card1"].map(|card| cards(netlink, Some(card)).unwrap().remove(0));
            assert_eq!((now.link.mtu, now.link.is_promiscuous()), (1400, true));
            assert!(!untouched.link.is_promiscuous() && untouched.link.mtu == other.mtu);
            let gso =
                |state: &CardState| state.offloads.iter().find(|(name, _)| *name == "gso").map(|(_, on)| *on);
            assert!(gso(&now).is_none_or(|on| !on));
            // A dummy has no link to agree on anything.
            assert!(matches!(
                settings(&["speed=100"]).unwrap().apply(netlink, &card),
                Err(CardError::Modes(_))
            ));
            assert!(matches!(cards(netlink, Some("card2")), Err(CardError::Missing { .. })));
            assert_eq!(cards(netlink, None).unwrap(), []);
        });
    }
}
