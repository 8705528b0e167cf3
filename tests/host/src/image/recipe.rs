//! What goes into the dom0 image: data only. Any change here, or in the scripts under `assets/`, makes a new image.

use crate::hash::Key;

/// Changes when the building code changes what an image holds.
const VERSION: &str = "6";

/// The Debian release of dom0: the one with Xen 4.17 and Linux 6.1.
pub(super) const RELEASE: &str = "bookworm";

/// Packages of dom0, besides what they depend on. Their maintainer scripts are not run: `super::rootfs` makes the few
/// things of theirs that matter.
pub(super) const PACKAGES: &[&str] = &[
    // The system a script or a test expects.
    "base-files",
    "base-passwd",
    "bash",
    "coreutils",
    "dash",
    "debianutils",
    "diffutils",
    "findutils",
    "grep",
    "gzip",
    "hostname",
    "libc-bin",
    "login",
    "mawk",
    "mount",
    "passwd",
    "procps",
    "psmisc",
    "sed",
    "tar",
    "util-linux",
    // Xen, its tools (xl, oxenstored, xenconsoled) and the device model of HVM guests.
    "linux-image-amd64",
    "qemu-system-xen",
    "qemu-utils",
    "xen-hypervisor-4.17-amd64",
    "xen-utils-4.17",
    "xenstore-utils",
    // Networks, disks and modules, as the toolstack and its hotplug scripts use them.
    "bridge-utils",
    "dmsetup",
    "e2fsprogs",
    "ethtool",
    "fdisk",
    "iproute2",
    "iputils-ping",
    "kmod",
    "nftables",
    "openvswitch-switch",
    // An installation repository.
    "nfs-kernel-server",
    // Access, and finding out what is going on.
    "busybox-static",
    "dropbear-bin",
    "openssh-server",
    "socat",
    "strace",
    "zstd",
];

/// Packages on the disk of [`super::DebianDisk`], besides what they depend on: what `debootstrap --variant=minbase` installs
/// without apt, an init system, and a kernel with its boot loader.
pub(super) const DEBIAN_PACKAGES: &[&str] = &[
    "base-files",
    "base-passwd",
    "bash",
    "bsdutils",
    "coreutils",
    "dash",
    "debianutils",
    "diffutils",
    "dpkg",
    "e2fsprogs",
    "findutils",
    "grep",
    "grub-pc-bin",
    "grub2-common",
    "gzip",
    "hostname",
    "init-system-helpers",
    "initramfs-tools",
    "kmod",
    "libc-bin",
    "linux-image-amd64",
    "login",
    "mount",
    "ncurses-base",
    "ncurses-bin",
    "passwd",
    "perl-base",
    "sed",
    "sysvinit-core",
    "sysvinit-utils",
    "tar",
    "udev",
    "usr-is-merged",
    "util-linux",
    "zstd",
];

/// The package that brings the kernel which is installed in the guest. Its name makes it the newer one to GRUB.
pub(super) const DEBIAN_KERNEL: &str = "linux-image-cloud-amd64";

/// Paths of packages that are not unpacked: they would only make the image larger.
pub(super) const EXCLUDED: &[&str] = &[
    "./usr/share/doc",
    "./usr/share/info",
    "./usr/share/iso-codes",
    "./usr/share/locale",
    "./usr/share/man",
    "./usr/share/xml",
    "./usr/share/zoneinfo",
    "./usr/lib/x86_64-linux-gnu/gconv",
    "./usr/lib/python3.11/test",
    "./var/cache",
];

/// Kernel modules that stay in dom0's root, with what they depend on.
pub(super) const DOM0_MODULES: &[&str] = &[
    "br_netfilter",
    "bridge",
    "dm-mod",
    "dm-snapshot",
    "dm-thin-pool",
    "dummy",
    "ext4",
    "ifb",
    "isofs",
    "loop",
    "nbd",
    "nf_tables",
    "nft_meta_bridge",
    "nls_ascii",
    "nls_cp437",
    "nfsd",
    "null_blk",
    "openvswitch",
    "overlay",
    "sch_htb",
    "sch_ingress",
    "sch_tbf",
    "cls_u32",
    // What libcrc32c, and so nf_tables, asks for by an alias.
    "crc32c_generic",
    "act_mirred",
    "act_police",
    "squashfs",
    "tun",
    "veth",
    "vfat",
    "virtio_blk",
    "virtio_net",
    "virtio_pci",
    "xen-acpi-processor",
    "xen-blkback",
    "xen-blkfront",
    "xen-evtchn",
    "xen-gntalloc",
    "xen-gntdev",
    "xen-netback",
    "xen-netfront",
    "xen-pciback",
    "xen-privcmd",
    "xen-scsiback",
    "xenfs",
];

/// Modules dom0 needs to find its root.
pub(super) const TINY_MODULES: &[&str] = &["virtio_pci", "virtio_blk", "squashfs", "overlay"];

/// Modules of the test guest.
pub(super) const GUEST_MODULES: &[&str] = &["xenfs", "xen-blkfront", "xen-netfront"];

/// Modules of the test guest that its `/init` does not load: drivers of what a device model emulates. A guest with PV
/// drivers has no use for them, and a test loads them to see what is there.
pub(super) const GUEST_EMULATED: &[&str] = &["ata_piix", "sd_mod"];

/// Programs of the test guest from dom0's root, besides busybox.
pub(super) const GUEST_PROGRAMS: &[&str] = &["usr/bin/xenstore"];

/// Names under which the test guest's xenstore client is called.
pub(super) const GUEST_XENSTORE: &[&str] = &[
    "xenstore-exists",
    "xenstore-list",
    "xenstore-ls",
    "xenstore-read",
    "xenstore-rm",
    "xenstore-watch",
    "xenstore-write",
];

/// Commands of the test guest that busybox provides.
pub(super) const GUEST_BUSYBOX: &[&str] = &[
    "awk",
    "cat",
    "cmp",
    "cp",
    "cttyhack",
    "cut",
    "date",
    "dd",
    "dmesg",
    "echo",
    "env",
    "false",
    "free",
    "grep",
    "head",
    "hexdump",
    "insmod",
    "ip",
    "kill",
    "ls",
    "lsmod",
    "md5sum",
    "mkdir",
    "mknod",
    "mount",
    "mv",
    "nc",
    "od",
    "ping",
    "ps",
    "rm",
    "rmmod",
    "sed",
    "seq",
    "setsid",
    "sh",
    "sha256sum",
    "sleep",
    "sort",
    "stty",
    "sync",
    "tail",
    "test",
    "time",
    "touch",
    "tr",
    "true",
    "tty",
    "umount",
    "uname",
    "uniq",
    "wc",
    "wget",
    "yes",
];

/// First process of dom0, in the initramfs.
pub(super) const TINY_INIT: &str = include_str!("../../assets/tiny-init");
/// First process of dom0's root.
pub(super) const DOM0_INIT: &str = include_str!("../../assets/dom0-init");
/// First process of the test guest.
pub(super) const GUEST_INIT: &str = include_str!("../../assets/guest-init");
/// `poweroff` and `reboot` of the test guest.
pub(super) const GUEST_END: &str = include_str!("../../assets/guest-end");
/// Guest configurations for `xl`, by file name in `/guests`.
pub(super) const GUEST_CONFIGS: &[(&str, &str)] = &[
    ("pv.cfg", include_str!("../../assets/guests/pv.cfg")),
    ("pv-bare.cfg", include_str!("../../assets/guests/pv-bare.cfg")),
    ("pvh.cfg", include_str!("../../assets/guests/pvh.cfg")),
    ("pvh-bare.cfg", include_str!("../../assets/guests/pvh-bare.cfg")),
    ("hvm.cfg", include_str!("../../assets/guests/hvm.cfg")),
];

/// The key of the image this recipe makes.
pub(super) fn key() -> Key {
    let mut key = Key::new("image");
    key.field(VERSION.as_bytes());
    key.field(RELEASE.as_bytes());
    let lists = [
        PACKAGES,
        EXCLUDED,
        DOM0_MODULES,
        TINY_MODULES,
        GUEST_MODULES,
        GUEST_EMULATED,
        GUEST_PROGRAMS,
        GUEST_XENSTORE,
        GUEST_BUSYBOX,
    ];
    for list in lists {
        key.field(list.join("\n").as_bytes());
    }
    for script in [TINY_INIT, DOM0_INIT, GUEST_INIT, GUEST_END] {
        key.field(script.as_bytes());
    }
    for (name, text) in GUEST_CONFIGS {
        key.field(name.as_bytes());
        key.field(text.as_bytes());
    }
    key
}
