//! `xenops nic`: the host's physical network cards.

use super::error::CliError;
use super::table::{Align, table};
use super::{Streams, print_json};
use crate::api::value::{Text, ToValue as _, Value};
use crate::edge::linux::netlink::Netlink;
use crate::edge::linux::nic::{CardSettings, CardState, cards};

/// Gives `card` its settings, if there are some, and shows it, or all of them.
pub(super) fn run(
    card: Option<&str>,
    settings: &[String],
    json: bool,
    streams: &mut Streams<'_>,
) -> Result<(), CliError> {
    // All are looked at before one is set.
    let mut wanted = CardSettings::default();
    settings.iter().try_for_each(|pair| wanted.set_pair(pair))?;
    let mut netlink = Netlink::open().map_err(crate::edge::linux::nic::CardError::from)?;
    let mut found = cards(&mut netlink, card)?;
    if !settings.is_empty() {
        for state in &found {
            wanted.apply(&mut netlink, &state.link)?;
        }
        found = cards(&mut netlink, card)?;
    }
    if json {
        return print_json(streams, &Value::Array(found.iter().map(to_value).collect()));
    }
    Ok(streams.out.write_all(render(&found).as_bytes())?)
}

fn word(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

/// Names and values, empty ones for what a card does not tell.
fn members(state: &CardState) -> Vec<(&'static str, String)> {
    let (link, modes) = (&state.link, &state.modes);
    let mut members = vec![
        ("card", link.name.clone()),
        ("mac", link.mac.map(|mac| mac.to_string()).unwrap_or_default()),
        ("state", if link.is_up() { "up" } else { "down" }.to_owned()),
        ("mtu", link.mtu.to_string()),
        ("autoneg", modes.autoneg.map_or("", word).to_owned()),
        ("speed", modes.speed.map(|speed| speed.to_string()).unwrap_or_default()),
        ("duplex", modes.duplex.map(|duplex| duplex.to_string()).unwrap_or_default()),
        ("promiscuous", word(link.is_promiscuous()).to_owned()),
    ];
    members.extend(state.offloads.iter().map(|(name, on)| (*name, word(*on).to_owned())));
    members
}

fn to_value(state: &CardState) -> Value {
    let member = |(key, value): (&str, String)| (Text::from(key), value.to_value());
    Value::Dict(members(state).into_iter().map(member).collect())
}

fn render(found: &[CardState]) -> String {
    let columns = [
        ("CARD", Align::Left),
        ("MAC", Align::Left),
        ("STATE", Align::Left),
        ("MTU", Align::Right),
        ("AUTONEG", Align::Left),
        ("SPEED", Align::Right),
        ("DUPLEX", Align::Left),
        ("PROMISCUOUS", Align::Left),
        ("OFFLOADS", Align::Left),
    ];
    let row = |state: &CardState| {
        let on = state.offloads.iter().filter(|(_, on)| *on).map(|(name, _)| *name);
        let mut cells: Vec<_> =
            members(state).into_iter().take(columns.len() - 1).map(|(_, cell)| cell).collect();
        cells.push(on.collect::<Vec<_>>().join(" "));
        cells
    };
    table(&columns, &found.iter().map(row).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::linux::ethtool::Modes;
    use crate::edge::linux::netlink::Link;
    use crate::edge::linux::nic::Duplex;

    #[test]
    fn a_card_is_shown_with_what_it_tells() {
        let link = Link { name: "eth0".to_owned(), mtu: 1500, ..Link::default() };
        let modes = Modes { autoneg: Some(false), speed: Some(100), duplex: Some(Duplex::Half) };
        let state = CardState { link, modes, offloads: vec![("rx", true), ("tso", false)] };
        let text = render(std::slice::from_ref(&state));
        let line: Vec<_> = text.lines().nth(1).expect("a card").split_whitespace().collect();
        assert_eq!(line, ["eth0", "down", "1500", "off", "100", "half", "off", "rx"]);
        let Value::Dict(members) = to_value(&state) else { panic!() };
        assert!(members.contains(&(Text::from("tso"), "off".to_owned().to_value())));
    }
}
