//! Names anywhere; the rest against the kernel in a network namespace of its own, as root, else skipped.

use super::message::{IFLA_INFO_KIND, IFLA_LINKINFO};
use super::*;
use nix::sched::{CloneFlags, unshare};

// NLM_F_CREATE | NLM_F_EXCL of <linux/netlink.h>.
const CREATE: u16 = 0x400 | 0x200;

/// Runs `body` on a thread with an empty network namespace; says so and returns when this is not possible.
pub(in super::super) fn in_namespace(body: impl FnOnce(&mut Netlink) + Send + 'static) {
    let thread = std::thread::spawn(move || {
        if let Err(errno) = unshare(CloneFlags::CLONE_NEWNET) {
            eprintln!("skipped: no network namespace ({errno}); needs root");
            return;
        }
        body(&mut Netlink::open().unwrap());
    });
    thread.join().unwrap();
}

/// Makes an interface; `None` (with a message) when this kernel does not have the kind.
pub(in super::super) fn create(netlink: &mut Netlink, name: &str, kind: &str) -> Option<Link> {
    netlink.sequence += 1;
    let mut nested = u16::try_from(5 + kind.len()).unwrap().to_ne_bytes().to_vec();
    nested.extend_from_slice(&IFLA_INFO_KIND.to_ne_bytes());
    nested.extend_from_slice(kind.as_bytes());
    nested.push(0);
    let options = NLM_F_REQUEST | NLM_F_ACK | CREATE;
    let request = Request::link(RTM_NEWLINK, options, netlink.sequence, 0, 0, 0)
        .text(IFLA_IFNAME, name)
        .attribute(IFLA_LINKINFO, &nested)
        .finish();
    match netlink.exchange(&request, "create", name) {
        Ok(_) => netlink.link_by_name(&name.parse().unwrap()).unwrap(),
        Err(NetlinkError::Refused { errno: Errno::EOPNOTSUPP | Errno::ENODEV, .. }) => {
            eprintln!("skipped: this kernel has no {kind} interfaces");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn interface_names_are_those_the_kernel_takes() {
    for name in ["xenbr0", "vif1.0", "a", "123456789012345"] {
        assert!(name.parse::<IfName>().is_ok(), "{name}");
    }
    for name in ["", ".", "..", "a b", "a/b", "a:0", "eth%d", "1234567890123456", "é", "a\nb", "a\0"] {
        assert!(name.parse::<IfName>().is_err(), "{name:?}");
    }
}

#[test]
fn looking_up_what_is_not_there_is_none() {
    in_namespace(|netlink| {
        assert_eq!(netlink.link_by_name(&"nothing0".parse().unwrap()).unwrap(), None);
        assert_eq!(netlink.link_by_index(4711).unwrap(), None);
        let lo = netlink.link_by_name(&"lo".parse().unwrap()).unwrap().expect("loopback");
        assert_eq!(netlink.link_by_index(lo.index).unwrap(), Some(lo.clone()));
        assert!(!lo.is_up() && lo.bridge_kind().is_none());
        assert!(netlink.bridges().unwrap().is_empty());
    });
}

#[test]
fn all_changes_arrive() {
    in_namespace(|netlink| {
        let Some(bridge) = create(netlink, "xenbr0", "bridge") else { return };
        let Some(port) = create(netlink, "vif1.0", "veth") else { return };
        assert_eq!((bridge.bridge_kind(), port.bridge_kind()), (Some(BridgeKind::Linux), None));
        let change = LinkChange {
            up: Some(true),
            promiscuous: Some(true),
            address: Some(MacAddr::BACKEND),
            mtu: Some(1400),
            master: Some(Master::Index(bridge.index)),
            name: Some("web-eth0".parse().unwrap()),
        };
        netlink.change(&port, &change).unwrap();
        let changed = netlink.link_by_index(port.index).unwrap().expect("still there");
        assert!(changed.is_up() && changed.is_promiscuous());
        assert_eq!(changed.mac, Some(MacAddr::BACKEND));
        assert_eq!(
            (changed.mtu, changed.master, changed.name.as_str()),
            (1400, Some(bridge.index), "web-eth0")
        );
        let back = LinkChange { up: Some(false), master: Some(Master::None), ..LinkChange::default() };
        netlink.change(&changed, &back).unwrap();
        let after = netlink.link_by_index(port.index).unwrap().expect("still there");
        assert!(!after.is_up() && after.master.is_none());
    });
}

#[test]
fn a_refusal_names_errno_interface_and_the_kernels_reason() {
    in_namespace(|netlink| {
        let Some(port) = create(netlink, "vif1.0", "veth") else { return };
        let error = netlink
            .change(&port, &LinkChange { mtu: Some(1), ..LinkChange::default() })
            .expect_err("below minimum");
        let NetlinkError::Refused { errno, interface, message, .. } = &error else { panic!("{error}") };
        assert_eq!((*errno, interface.as_str()), (Errno::EINVAL, "vif1.0"));
        assert_eq!(message.as_deref(), Some("mtu less than device minimum"));
        let gone = Link { index: 4711, name: "vif9.9".to_owned(), ..Link::default() };
        let error =
            netlink.change(&gone, &LinkChange { up: Some(true), ..LinkChange::default() }).unwrap_err();
        assert!(matches!(error, NetlinkError::Refused { errno: Errno::ENODEV, .. }), "{error}");
    });
}

#[test]
fn a_long_list_is_read_to_its_end() {
    in_namespace(|netlink| {
        for number in 0..100 {
            if create(netlink, &format!("xenbr{number}"), "bridge").is_none() {
                return;
            }
        }
        let bridges = netlink.bridges().unwrap();
        assert_eq!(bridges.len(), 100);
        assert!(bridges.iter().any(|bridge| bridge.name == "xenbr99"));
    });
}

#[test]
fn an_interface_that_appears_is_waited_for() {
    in_namespace(|netlink| {
        let name: IfName = "late0".parse().unwrap();
        assert_eq!(netlink.await_link(&name, Duration::from_millis(10)).unwrap(), None);
        // Its thread is in the same namespace.
        let maker = std::thread::spawn(|| create(&mut Netlink::open().unwrap(), "late0", "bridge"));
        let found = netlink.await_link(&name, Duration::from_secs(10)).unwrap();
        assert_eq!(found.map(|link| link.name), maker.join().unwrap().map(|link| link.name));
    });
}

#[test]
fn a_removed_interface_is_gone() {
    in_namespace(|netlink| {
        let Some(bridge) = create(netlink, "br7", "bridge") else { return };
        netlink.remove(&bridge).unwrap();
        assert_eq!(netlink.link_by_name(&"br7".parse().unwrap()).unwrap(), None);
        assert!(matches!(netlink.remove(&bridge), Err(NetlinkError::Refused { errno: Errno::ENODEV, .. })));
    });
}
