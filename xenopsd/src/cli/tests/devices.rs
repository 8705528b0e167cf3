//! What is left of a device that could not be plugged.

use super::Host;

const DISK: &str = "vbd attach web /srv/data.img,raw,xvdb,rw";
const INTERFACE: &str = "vif attach web bridge=xenbr1";

fn with_running_vm() -> Host {
    let host = Host::with_vm();
    assert_eq!(host.xenops("start web").0, 0);
    host.forget();
    host
}

#[test]
fn a_device_that_cannot_be_plugged_is_forgotten() {
    for (words, kind) in [(DISK, "VBD"), (INTERFACE, "VIF")] {
        let host = with_running_vm();
        host.fail(if kind == "VBD" { "VBD.plug" } else { "VIF.plug" });
        let (code, out, err) = host.xenops(words);
        assert!(code == 1 && out.is_empty() && err.contains("not been built"), "{words}: {code} {out} {err}");
        assert_eq!(host.asked(), ["add", "plug", "remove"].map(|call| format!("{kind}.{call}")));
    }
}

#[test]
fn one_that_cannot_be_forgotten_either_is_named() {
    for (words, calls, advice) in [
        (DISK, ["VBD.plug", "VBD.remove"], "`xenops vbd detach web xvdb`"),
        (INTERFACE, ["VIF.plug", "VIF.remove"], "`xenops vif detach web 1`"),
    ] {
        let host = with_running_vm();
        for call in calls {
            host.fail(call);
        }
        let (code, _, err) = host.xenops(words);
        assert!(code == 1 && err.contains("not been built") && err.contains(advice), "{words}: {err}");
    }
}

#[test]
fn nothing_is_asked_with_a_wrong_description() {
    let host = with_running_vm();
    for (words, says) in [
        ("vbd attach web /srv/data.img,raw,xvdb,sideways", "r or ro, w or rw"),
        ("vbd attach web /srv/data.img", "needs a vdev"),
        ("vif attach web bridge=", "not an interface name"),
    ] {
        let (code, _, err) = host.xenops(words);
        assert!(code == 2 && err.contains(says), "{words}: {code} {err}");
    }
    assert!(host.asked().is_empty());
}
