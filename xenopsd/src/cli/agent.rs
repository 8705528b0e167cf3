//! What a guest says of itself, in a few lines. Every word is the guest's.

use std::collections::BTreeMap;

use crate::api::VmState;

/// Longest text of a line, in characters: what is longer is no address and no name.
const MAX_TEXT: usize = 200;

/// Most lines of addresses.
const MAX_INTERFACES: usize = 16;

/// Lines with their labels; none of a guest that has said nothing.
pub(super) fn lines(state: &VmState) -> Vec<(&'static str, String)> {
    let said = |key: &str| state.guest_agent.get(key).map(|text| cut(text)).filter(|text| !text.is_empty());
    let mut lines = Vec::new();
    if let Some(name) = said("data/os_name") {
        let kernel = said("data/os_uname").map(|uname| format!(", kernel {uname}"));
        lines.push(("guest OS", name + &kernel.unwrap_or_default()));
    }
    let version =
        ["Major", "Minor", "Micro", "Build"].map(|part| said(&format!("attr/PVAddons/{part}Version")));
    let version: Vec<String> = version.into_iter().flatten().collect();
    let connected = if state.pv_drivers_detected { "connected" } else { "not connected" };
    if !version.is_empty() {
        lines.push(("PV drivers", format!("{}, {connected}", version.join("."))));
    } else if state.pv_drivers_detected {
        lines.push(("PV drivers", connected.to_owned()));
    }
    lines.extend(addresses(state).into_iter().map(|line| ("addresses", line)));
    if let Some((free, total)) = said("data/meminfo_free").zip(said("data/meminfo_total")) {
        lines.push(("guest memory", format!("{free} of {total} KiB free")));
    }
    let features = state.guest_agent.iter().filter(|(_, value)| !matches!(value.as_str(), "" | "0"));
    let features: Vec<&str> =
        features.filter_map(|(key, _)| key.strip_prefix("control/feature-")).take(MAX_INTERFACES).collect();
    if !features.is_empty() {
        lines.push(("features", cut(&features.join(", "))));
    }
    lines
}

/// The addresses of each interface (`attr/vif/N/ipv4/I` and `ipv6/I`).
fn addresses(state: &VmState) -> Vec<String> {
    let mut by_interface: BTreeMap<u32, Vec<&str>> = BTreeMap::new();
    for (key, address) in state.guest_agent.iter() {
        let parts: Vec<&str> = key.split('/').collect();
        if let ["attr", "vif", vif, "ipv4" | "ipv6", _] = parts[..]
            && let Ok(vif) = vif.parse()
            && !address.is_empty()
        {
            by_interface.entry(vif).or_default().push(address);
        }
    }
    let line = |(vif, all): (u32, Vec<&str>)| cut(&format!("vif {vif}: {}", all.join(", ")));
    by_interface.into_iter().take(MAX_INTERFACES).map(line).collect()
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(MAX_TEXT) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::halted;
    use super::*;

    fn said(nodes: &[(&str, &str)]) -> Vec<String> {
        let agent = nodes.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let state = VmState { guest_agent: agent, ..halted() };
        lines(&state).into_iter().map(|(label, text)| format!("{label}: {text}")).collect()
    }

    #[test]
    fn a_guest_that_says_nothing_has_no_lines() {
        assert_eq!(said(&[("data/updated", "1"), ("attr/vif/x/ipv4/0", "1"), ("data/os_name", "")]), [""; 0]);
    }

    #[test]
    fn an_agent_s_words_are_put_together() {
        let lines = said(&[
            ("data/os_name", "Debian 12"),
            ("data/os_uname", "6.1.0"),
            ("attr/PVAddons/MajorVersion", "7"),
            ("attr/PVAddons/MinorVersion", "30"),
            ("attr/vif/1/ipv4/0", "10.0.1.2"),
            ("attr/vif/0/ipv4/0", "10.0.0.2"),
            ("attr/vif/0/ipv6/0", "fe80::1"),
            ("data/meminfo_free", "100"),
            ("data/meminfo_total", "200"),
            ("control/feature-balloon", "1"),
            ("control/feature-s3", "0"),
        ]);
        assert_eq!(
            lines,
            [
                "guest OS: Debian 12, kernel 6.1.0",
                "PV drivers: 7.30, not connected",
                "addresses: vif 0: 10.0.0.2, fe80::1",
                "addresses: vif 1: 10.0.1.2",
                "guest memory: 100 of 200 KiB free",
                "features: balloon",
            ]
        );
    }

    #[test]
    fn long_words_are_cut() {
        let name = "ö".repeat(5000);
        let lines = said(&[("data/os_name", &name)]);
        assert_eq!(lines[0].chars().count(), "guest OS: ".len() + MAX_TEXT + 1);
        let keys: Vec<String> = (0..100).map(|n| format!("attr/vif/{n}/ipv4/0")).collect();
        let nodes: Vec<(&str, &str)> = keys.iter().map(|key| (key.as_str(), "10.0.0.1")).collect();
        assert_eq!(said(&nodes).len(), MAX_INTERFACES);
    }
}
