//! Debian 12 from its own disk on real Xen: PV and PVH guests start through the daemon's boot loader, install a package with a
//! newer kernel, whose scripts run `update-grub`, and reboot into it.

use std::time::Duration;

use suite::{Dom0, Guest};
use xen_host::{DebianDisk, Options};

/// Until a guest is up, or has installed a package. A minute on a quiet machine.
const BOOT_LIMIT: Duration = Duration::from_secs(600);

/// What the shell that root is logged in with on every console says first.
const UP: &str = "DEBIAN: up ";

fn config(guest: &Guest, kind: &str, disk: &str) -> String {
    format!(
        "name = \"{}\"\nuuid = \"{}\"\ntype = \"{kind}\"\nmemory = 256\nvcpus = 1\non_reboot = \"restart\"\nbootloader = \"pygrub\"\n\
         disk = [\"phy:{disk},xvda,w\"]\n",
        guest.name(),
        guest.id()
    )
}

/// Defines and starts a guest as a person does.
fn create(dom0: &Dom0, kind: &str, disk: &str) -> Guest {
    let guest = Guest::new(&format!("debian-{kind}"));
    let path = format!("/root/{kind}.cfg");
    let text = config(&guest, kind, disk);
    dom0.sh(&format!("cat >{path} <<'EOF'\n{text}EOF\nxenops create --start {path}"));
    guest
}

fn is_up(dom0: &Dom0, guest: &Guest, release: &str) {
    let seen = dom0.host.wait_for_guest(guest.name(), &format!("{UP}{release}\r"), BOOT_LIMIT);
    seen.unwrap_or_else(|error| panic!("{error}"));
}

/// The entry of the newest kernel is booted, which is another one after its package has been installed.
fn boots_the_kernel_it_installs(dom0: &Dom0, guest: &Guest, kind: &str, release: &str) {
    is_up(dom0, guest, release);
    assert_eq!(dom0.type_into(guest, "cat /sys/hypervisor/guest_type"), kind);
    let cmdline = dom0.type_into(guest, "cat /proc/cmdline");
    let expected =
        |line: &str| line.starts_with("root=UUID=") && line.ends_with(" ro console=hvc0 console=ttyS0 quiet");
    assert!(expected(&cmdline), "{cmdline}");

    // The package has its initial ramdisk with it: making one takes minutes on an emulated processor.
    let installed = dom0.type_within(
        guest,
        "INITRD=No dpkg -i kernel.deb >log 2>&1 || cat log; grep -c ^menuentry /boot/grub/grub.cfg",
        BOOT_LIMIT,
    );
    assert_eq!(installed, "1");
    let newer = dom0.type_into(guest, "ls /lib/modules | grep cloud");
    assert!(newer.ends_with("-cloud-amd64") && newer != release, "{newer}");
    let first = dom0.domid(guest);
    dom0.forget_output(guest);
    dom0.enter(guest, "reboot");
    is_up(dom0, guest, &newer);
    assert_ne!(dom0.domid(guest), first, "the guest has rebooted into a domain of its own");
    assert_eq!(dom0.type_into(guest, "uname -r"), newer);
}

/// One guest's test, in a host with the disk plugged in. The kind is the kernel's own word for it.
fn reboots_into_the_kernel_it_installs(kind: &str) {
    let disk = DebianDisk::get().unwrap_or_else(|error| panic!("{error}"));
    let release = disk.release().unwrap_or_else(|error| panic!("{error}"));
    let dom0 = Dom0::without_daemon(Options::default());
    dom0.start_daemon("--boot-loader-timeout 300");
    let device = dom0.host.plug_disk("debian", &disk.image()).unwrap_or_else(|error| panic!("{error}"));
    let before = dom0.snapshot();
    let guest = create(&dom0, &kind.to_lowercase(), &device);
    boots_the_kernel_it_installs(&dom0, &guest, kind, &release);
    dom0.hard_shutdown(&guest).expect("goes down");
    dom0.remove(&guest).expect("is forgotten");
    before.must_be_left(&dom0);
}

#[test]
fn a_pv_guest_reboots_into_the_kernel_that_it_installs() {
    reboots_into_the_kernel_it_installs("PV");
}

#[test]
fn a_pvh_guest_reboots_into_the_kernel_that_it_installs() {
    reboots_into_the_kernel_it_installs("PVH");
}
