//! A real PV guest that boots what is on its own disk, changes its kernel from inside, and reboots into that one; and
//! a guest that is installed from a server in dom0, in two rounds; one disk that `xl` boots with our `pygrub` as a PV guest and the daemon as a PVH guest.

use std::process::Command;

use suite::{Dom0, Guest};
use xen_host::{Options, target};
use xenopsd::api::{PowerState, VbdMode, Vm};

/// Makes `/root/tree`: a kernel as Debian packs it, the test guest's initramfs, a second one with what a guest needs to
/// write to FAT, and a configuration of GRUB 2. Debian's initramfs-tools are not in dom0, so it is the guest's userland.
const MAKE_TREE: &str = r#"
set -e
boot=/root/tree/boot more=/root/more
mkdir -p $boot/grub $more/modules
modules=/usr/lib/modules/$(uname -r)/kernel
for path in fs/nls/nls_cp437.ko fs/nls/nls_ascii.ko fs/fat/fat.ko fs/fat/vfat.ko; do
    n=$((${n:-89} + 1))
    cp $modules/$path $more/modules/$n-$(basename $path)
done
(cd $more; busybox find modules | busybox cpio -o -H newc 2>/dev/null) >$boot/more.img
cp /guests/vmlinuz $boot/vmlinuz-old
cp /guests/initramfs $boot/initrd.img
cat >$boot/grub/grub.cfg <<'GRUB'
set default="0"
if [ x"${feature_menuentry_id}" = xy ]; then menuentry_id_option="--id"; fi
menuentry 'Debian GNU/Linux' --class debian $menuentry_id_option 'debian' {
	linux	/boot/vmlinuz-old booted=old
	initrd	/boot/initrd.img /boot/more.img
}
submenu 'Advanced options' {
	menuentry 'Debian GNU/Linux, other' {
		linux	/boot/vmlinuz-gone root=/dev/xvda
	}
}
GRUB
"#;

/// The tree on FAT, which this machine has the tools for and the guest a driver.
fn fat_disk(dom0: &Dom0) {
    let scratch = tempfile::tempdir().expect("a directory");
    let (archive, image) = (scratch.path().join("tree.tar"), scratch.path().join("disk"));
    dom0.sh("tar -C /root/tree -cf /root/tree.tar boot");
    dom0.host.get("/root/tree.tar", &archive).expect("is copied");
    let run = |program: &str, arguments: &[&str]| {
        let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
        let status = Command::new(program).args(arguments).current_dir(&scratch).env("PATH", path).status();
        assert!(status.expect("runs").success(), "{program} {arguments:?}");
    };
    run("tar", &["-xf", "tree.tar"]);
    run("truncate", &["-s", "128M", "disk"]);
    run("mkfs.vfat", &["-F", "16", "disk"]);
    run("mcopy", &["-s", "-i", "disk", "boot", "::/"]);
    dom0.host.put(&image, "/root/debian.img").expect("is copied");
}

/// A dom0 whose daemon has patience: emulated processors, which others keep busy, unpack a kernel in seconds.
fn dom0() -> Dom0 {
    let dom0 = Dom0::without_daemon(Options::default());
    dom0.start_daemon("--boot-loader-timeout 300");
    dom0.sh(MAKE_TREE);
    dom0
}

fn config(name: &str, kind: &str, bootloader: &str) -> String {
    let guest = Guest::new(name);
    let uuid = guest.id();
    format!(
        "name = \"{name}\"\nuuid = \"{uuid}\"\ntype = \"{kind}\"\nmemory = 128\nvcpus = 1\nbootloader = \"{bootloader}\"\n\
         extra = \"console=hvc0\"\non_reboot = \"restart\"\ndisk = [\"/root/debian.img,raw,xvda,rw\"]\n"
    )
}

#[test]
fn a_guest_boots_its_own_kernel_and_reboots_into_the_one_it_installs() {
    let dom0 = dom0();
    fat_disk(&dom0);
    let before = dom0.snapshot();
    let guest = Guest::new("debian");
    dom0.sh(&format!(
        "cat >/root/debian.cfg <<'EOF'\n{}EOF\nxenops create --start /root/debian.cfg",
        config("debian", "pv", "pygrub")
    ));
    dom0.said(&guest, "GUEST: ready");
    assert_eq!(dom0.type_into(&guest, "cat /proc/cmdline"), "booted=old console=hvc0");

    // What a package with a new kernel does: its file, the configuration, the old one away.
    let changed = dom0.type_into(
        &guest,
        "mkdir -p /mnt && mount -t vfat /dev/xvda /mnt && cd /mnt/boot && mv vmlinuz-old vmlinuz-new && \
         sed -i s/old/new/g grub/grub.cfg && cd / && umount /mnt && echo changed",
    );
    assert_eq!(changed, "changed");
    let first = dom0.domid(&guest);
    dom0.forget_output(&guest);
    dom0.reboot(&guest, None).expect("reboots");
    dom0.said(&guest, "GUEST: ready");
    assert_ne!(dom0.domid(&guest), first);
    assert_eq!(dom0.type_into(&guest, "cat /proc/cmdline"), "booted=new console=hvc0");
    // No worker, no file of one.
    assert_eq!(dom0.run("pgrep -x boot-worker").text(), "");
    assert_eq!(dom0.sh("ls -A /var/run/xen/pygrub /var/run/xend/boot 2>/dev/null | grep boot_ || true"), "");

    // The guest removes what it boots: the next start says so, and nothing is left of it.
    let removed = dom0.type_into(
        &guest,
        "mount -t vfat /dev/xvda /mnt && rm /mnt/boot/vmlinuz-new && umount /mnt && echo removed",
    );
    assert_eq!(removed, "removed");
    dom0.hard_shutdown(&guest).expect("goes down");
    let refused = dom0.run("xenops start debian");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.success() && said.contains("/boot/vmlinuz-new, which does not exist"), "{said}");
    assert_eq!(dom0.state(&guest).power_state, PowerState::Halted);
    dom0.remove(&guest).expect("is forgotten");
    before.must_be_left(&dom0);
}

#[test]
fn xl_boots_with_our_pygrub_what_the_daemon_boots_as_pvh() {
    let program = target().join("release/pygrub");
    assert!(program.is_file(), "{} is not built: cargo build --release --bins", program.display());
    let dom0 = dom0();
    dom0.sh("truncate -s 128M /root/debian.img; mke2fs -q -F -t ext4 -d /root/tree /root/debian.img");
    dom0.host.put(&program, "/usr/local/bin/pygrub").expect("is copied");
    let text = config("debian-xl", "pv", "/usr/local/bin/pygrub").replace(",raw,xvda,rw", ",raw,xvda,w");
    dom0.sh(&format!("cat >/root/xl.cfg <<'EOF'\n{text}EOF\nxl create /root/xl.cfg"));
    dom0.host.wait_for_guest("debian-xl", "GUEST: ready", suite::LIMIT).expect("boots");
    dom0.sh("xl destroy debian-xl");
    assert_eq!(dom0.sh("ls -A /var/run/xen/pygrub 2>/dev/null || true"), "", "xl has removed the files");

    let guest = Guest::new("debian-pvh");
    let text = config("debian-pvh", "pvh", "pygrub");
    dom0.sh(&format!("cat >/root/pvh.cfg <<'EOF'\n{text}EOF\nxenops create --start /root/pvh.cfg"));
    dom0.said(&guest, "GUEST: ready");
    assert_eq!(dom0.type_into(&guest, "cat /sys/hypervisor/guest_type"), "PVH");
    assert_eq!(dom0.type_into(&guest, "cat /proc/cmdline"), "booted=old console=hvc0");
    dom0.hard_shutdown(&guest).expect("goes down");
}

/// A repository of the test guest as its own installer, which has the drivers for the disk with it, as a second archive.
const MAKE_REPOSITORY: &str = r"
set -e
os=/root/www/os/isolinux
mkdir -p $os
cp /guests/vmlinuz $os/vmlinuz
cp /guests/initramfs $os/initrd.img
truncate -s %4 $os/initrd.img
cat /root/tree/boot/more.img >>$os/initrd.img
";

const REPOSITORY: &str = "http://127.0.0.1:8000/os/";

#[test]
fn a_guest_is_installed_from_a_server_and_reboots_into_what_it_has_installed() {
    let dom0 = dom0();
    dom0.sh("mv /root/tree/boot/grub/grub.cfg /root/tree/boot/grub/grub.new");
    fat_disk(&dom0);
    dom0.sh(MAKE_REPOSITORY);
    dom0.serve_http("/root/www");
    let before = dom0.snapshot();
    let guest = Guest::new("installed").memory(160).disk("xvda", "/root/debian.img", VbdMode::ReadWrite);
    let guest = guest.installed_from(REPOSITORY, &[("install-vnc", "1")]);
    dom0.boot(&guest);
    let said = dom0.type_into(&guest, "cat /proc/cmdline");
    assert_eq!(said, format!("method={REPOSITORY} vnc console=hvc0"));
    let key = |vm: &Vm, key: &str| vm.platformdata.get(key).cloned();
    let loader = |vm: &Vm| vm.indirect_boot().expect("its disk").bootloader.clone();
    let first = dom0.record(&guest);
    assert_eq!((&*loader(&first), key(&first, "install-round").as_deref()), ("eliloader", Some("2")));

    // What an installer does last.
    let done = dom0.type_into(
        &guest,
        "mkdir -p /mnt && mount -t vfat /dev/xvda /mnt && mv /mnt/boot/grub/grub.new /mnt/boot/grub/grub.cfg && \
         umount /mnt && echo installed",
    );
    assert_eq!(done, "installed");
    dom0.forget_output(&guest);
    dom0.reboot(&guest, None).expect("reboots");
    dom0.said(&guest, "GUEST: ready");
    assert_eq!(dom0.type_into(&guest, "cat /proc/cmdline"), "booted=old console=hvc0");
    let second = dom0.record(&guest);
    assert_eq!((&*loader(&second), key(&second, "install-round")), ("pygrub", None));

    // Each file was asked for once, in the first round; no worker is left.
    let asked = dom0.asked_of_http();
    let expected = "/os/images/xen/vmlinuz 404\n/os/isolinux/vmlinuz 200\n/os/isolinux/initrd.img 200";
    assert_eq!(asked, expected);
    assert_eq!(dom0.run("pgrep -x 'fetch-worker|boot-worker'").text(), "");
    dom0.hard_shutdown(&guest).expect("goes down");
    dom0.remove(&guest).expect("is forgotten");
    before.must_be_left(&dom0);
}
